"""A daemon with a plugin of somebody else: found, broken, failing while it runs, and repaired; the daemon lives on."""

from __future__ import annotations

import httpx

CONFIG = {
    "transports": {"extra": {"type": "extra", "speed": 3}, "web": {"type": "http", "listen": "127.0.0.1:0"}},
    "queues": {"q": {}},
    "routes": [{"from": "#", "to": "q"}],
}
GOOD = """
import asyncio
import msgspec
from gateway.model.message import Message

class Extra:
    class Settings(msgspec.Struct, frozen=True):
        type: str
        speed: int = 1

    def __init__(self, name, settings):
        self.name, self.settings, self.runs = name, settings, 0

    async def run(self, gateway):
        self.runs += 1
        if self.runs == 1:
            raise RuntimeError("the cable is out")
        (outcome,) = await gateway.accept([Message("from/extra", b"%d" % self.settings.speed, source=self.name)])
        gateway.started(self.name, [f"extra://{outcome.value}"])
        await asyncio.Event().wait()
"""


def install(folder, code: str) -> dict[str, str]:
    """A distribution with this plugin, and the environment that finds it."""
    info = folder / "extra_plugin-1.0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: extra-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[gateway.transports]\nextra = extra_plugin:Extra\n")
    (folder / "extra_plugin.py").write_text(code)
    from tests.harness.daemon import ROOT

    return {"PYTHONPATH": f"{ROOT}:{folder}"}


def test_a_plugin_that_raises_is_named_and_started_again(daemon, tmp_path):
    running = daemon(CONFIG, install(tmp_path / "site", GOOD))
    failed = running.wait_for("transport failed")
    assert failed["transport"] == "extra"
    assert failed["error"] == "RuntimeError: the cable is out"
    assert running.wait_for("listening", lambda r: r["transport"] == "extra")["address"] == "extra://stored"
    assert httpx.post(f"{running.url('web')}/topics/a", trust_env=False).status_code == 201
    assert running.stop() == 0


def test_a_plugin_that_fails_to_import_is_named_and_tried_until_it_is_repaired(make_daemon, tmp_path):
    site = tmp_path / "site"
    made = make_daemon(CONFIG, install(site, "import no_such_module"))
    made.launch()
    missing = made.wait_for("transport not available")
    assert missing["transport"] == "extra"
    assert '"extra" (extra_plugin:Extra of extra-plugin) fails to import: ModuleNotFoundError' in missing["error"]
    assert httpx.post(f"{made.url('web')}/topics/a", trust_env=False).status_code == 201
    install(site, GOOD)
    assert made.wait_for("listening", lambda r: r["transport"] == "extra", timeout=30)["address"] == "extra://stored"
    assert made.stop() == 0
