"""Plugins: how they are found, what a broken one does, and how a transport is kept running."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import sys
from pathlib import Path

import msgspec
import pytest

from gateway.errors import ConfigError, ListenError
from gateway.model.policy import Seconds
from gateway.transport import registry as plugins
from tests.harness.local import local_gateway

pytestmark = pytest.mark.anyio
MODULE = """
import msgspec
from gateway.model.policy import Seconds
class Good:
    class Settings(msgspec.Struct, forbid_unknown_fields=True):
        type: str
        pause: Seconds = Seconds(1)
    def __init__(self, name, settings):
        self.name, self.settings = name, settings
    async def run(self, gateway): ...
class NoSettings:
    async def run(self, gateway): ...
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """`install(dist, {type: "module:Class"})` installs a distribution with these entry points."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "foreign_plugin.py").write_text(MODULE)
    (tmp_path / "foreign_broken.py").write_text("raise RuntimeError('no such device')")

    def install(name: str, entries: dict[str, str]) -> None:
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        lines = [f"{kind} = {value}" for kind, value in entries.items()]
        (info / "entry_points.txt").write_text("[gateway.transports]\n" + "\n".join(lines))
        importlib.invalidate_caches()

    yield install
    for module in ("foreign_plugin", "foreign_broken"):
        sys.modules.pop(module, None)


@pytest.fixture
def events(monkeypatch):
    """What was logged, as (event, fields)."""
    seen: list[tuple[str, dict[str, object]]] = []

    class Recorder:
        def __getattr__(self, level: str):
            return lambda event, *error, **fields: seen.append((event, {"raised": error, **fields}))

    monkeypatch.setattr(plugins, "log", Recorder())
    return seen


@pytest.fixture
def quick(monkeypatch):
    """Restarts without waiting; gives the pauses that were asked for."""
    pauses: list[float] = []
    monkeypatch.setattr(plugins.random, "uniform", lambda low, high: 1.0)
    sleep = asyncio.sleep

    async def no_sleep(seconds: float) -> None:
        pauses.append(seconds)
        await sleep(0)

    monkeypatch.setattr(plugins.asyncio, "sleep", no_sleep)
    return pauses


def test_built_in_transports_come_by_the_same_door():
    assert {"mqtt", "amqp", "http", "webhook"} <= set(plugins.installed())
    assert plugins.built_in("http")
    assert plugins.load("http").__module__ == "plugins.http"


def test_a_foreign_plugin_is_found_and_made(install):
    install("foreign", {"good": "foreign_plugin:Good"})
    assert not plugins.built_in("good")
    made = plugins.create("x", plugins.load("good").Settings("good"))
    assert made.name == "x"


def test_a_broken_plugin_is_told_by_name_and_spoils_no_other(install):
    install("foreign", {"bad": "foreign_broken:Bad", "gone": "nowhere:X", "none": "foreign_plugin:NoSettings"})
    for kind, said in (
        ("bad", r'"bad" \(foreign_broken:Bad of foreign\) fails to import: RuntimeError: no such device'),
        ("gone", r'"gone" .* fails to import: ModuleNotFoundError'),
        ("none", r'"none" .* is no transport: it needs a Settings struct'),
    ):
        with pytest.raises(plugins.PluginError, match=said):
            plugins.load(kind)
    assert plugins.load("http")


def test_our_own_name_is_not_taken_over(install, events):
    install("foreign", {"http": "foreign_plugin:Good"})
    assert plugins.load("http").__module__ == "plugins.http"
    assert ("transport type claimed twice", "foreign") in [(e, f["ignored"]) for e, f in events]


def test_an_unknown_type_names_the_nearest():
    with pytest.raises(plugins.UnknownTransportError, match='"htp"; did you mean "http"'):
        plugins.load("htp")


def test_a_section_waits_for_its_plugin(install):
    waiting = plugins.Unloaded("late", {"type": "late", "pause": "5m"}, "not there yet")
    with pytest.raises(plugins.UnknownTransportError):
        plugins.create("x", waiting)
    install("foreign", {"late": "foreign_plugin:Good"})
    assert plugins.create("x", waiting).settings.pause == Seconds(300)
    with pytest.raises(ConfigError, match=r"transports\.x: .*pase"):
        plugins.create("x", plugins.Unloaded("late", {"type": "late", "pase": 1}, ""))


def test_our_packages_are_our_own():
    assert plugins.shadowed() == []


def test_a_shadowed_package_is_told(monkeypatch):
    other = importlib.util.spec_from_file_location("transports", "/elsewhere/transports/__init__.py")
    find = importlib.util.find_spec
    monkeypatch.setattr(plugins.importlib.util, "find_spec", lambda name: other if name == "transports" else find(name))
    (problem,) = plugins.shadowed()
    assert problem.startswith("package transports of mqtt-amqp-gateway is shadowed by /elsewhere/transports")
    assert str(Path(plugins.__file__).parents[2]) in problem


def test_a_package_that_another_distribution_claims_is_told(monkeypatch):
    claims = {"plugins": ["mqtt-amqp-gateway", "other-plugins"]}
    monkeypatch.setattr(plugins.importlib.metadata, "packages_distributions", lambda: claims)
    assert plugins.shadowed() == [
        "package plugins of mqtt-amqp-gateway is also installed by other-plugins; remove that"
    ]


class Script:
    """A transport whose runs go as told: an exception is raised, None returns, "serve" runs until cancelled."""

    def __init__(self, *steps: object) -> None:
        self.steps = list(steps)
        self.serving = asyncio.Event()
        self.drained = False

    async def run(self, gateway: object) -> None:
        step = self.steps.pop(0)
        if isinstance(step, Exception):
            raise step
        if step == "serve":
            self.serving.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.drained = True


async def supervise(script: Script) -> None:
    """Until the script serves, then a stop."""
    async with local_gateway() as (gateway, _):
        task = asyncio.create_task(plugins.supervise("door", lambda: script, gateway))
        waiting = asyncio.create_task(script.serving.wait())
        await asyncio.wait([task, waiting], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if task.done():
            await task
        task.cancel()
        await task


async def test_a_transport_that_fails_is_named_and_started_again(events, quick):
    script = Script(RuntimeError("boom"), None, ListenError("taken again"), "serve")
    await supervise(script)
    assert script.drained
    failures = [(event, fields["transport"]) for event, fields in events if event != "transport starts again"]
    assert failures == [
        ("transport failed", "door"), ("transport ended by itself", "door"), ("transport failed", "door")
    ]  # fmt: skip
    assert quick == [1.0, 2.0, 4.0]


async def test_the_pause_has_a_limit(events, quick):
    await supervise(Script(*[RuntimeError("boom")] * 9, "serve"))
    assert quick == [1, 2, 4, 8, 16, 32, 60, 60, 60]


async def test_an_address_that_cannot_be_had_at_the_start_is_the_daemons_failure(events, quick):
    with pytest.raises(ListenError, match="taken"):
        await supervise(Script(ListenError("taken")))


async def test_a_plugin_that_is_not_there_is_tried_again(events, quick):
    script = Script("serve")
    tries = [plugins.PluginError("not yet"), plugins.PluginError("not yet"), script]

    def make() -> Script:
        made = tries.pop(0)
        if isinstance(made, Exception):
            raise made
        return made

    async with local_gateway() as (gateway, _):
        task = asyncio.create_task(plugins.supervise("door", make, gateway))
        await script.serving.wait()
        task.cancel()
        await task
    assert [event for event, _ in events if event == "transport not available"] == ["transport not available"] * 2


def test_unloaded_settings_have_a_type():
    assert msgspec.structs.fields(plugins.Unloaded)[0].name == "type"
