"""Owns how transports are found, made and kept running: entry points of the group `gateway.transports`.

Its rule: a plugin that fails is reported by its name with the cause, tried again, and never takes the daemon down.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.metadata
import importlib.util
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, cast

import msgspec

import gateway
from gateway.errors import ConfigError, GatewayError, ListenError, nearest
from gateway.logs import log
from gateway.model.policy import decode_custom
from gateway.transport import Gateway, Transport

GROUP = "gateway.transports"
DISTRIBUTION = "mqtt-amqp-gateway"
PACKAGES = ("gateway", "transports", "plugins")
FIRST_DELAY = 1.0
LAST_DELAY = 60.0
"""Seconds between a transport's failure and its next run: doubled from the first to the last, with jitter."""


class PluginError(GatewayError):
    """A plugin can't be imported or is no transport; the text names it and the cause."""


class UnknownTransportError(GatewayError):
    """No plugin has this transport type; the text names the nearest one."""


class Unloaded(msgspec.Struct, frozen=True):
    """Stands for the settings of a transport whose plugin could not be imported; it is tried again while running.

    section: the settings as written, read when the plugin is there. error: why it is not.
    """

    type: str
    section: dict[str, Any]
    error: str


def installed() -> dict[str, importlib.metadata.EntryPoint]:
    """All transport types by name. A name that two distributions claim is ours if we claim it, and otherwise
    belongs to the first by name of distribution."""
    found: dict[str, importlib.metadata.EntryPoint] = {}
    claims = sorted(importlib.metadata.entry_points(group=GROUP), key=lambda e: (not _ours(e), _owner(e), e.value))
    for entry in claims:
        if entry.name not in found:
            found[entry.name] = entry
        elif _owner(entry) != _owner(found[entry.name]):
            owner = _owner(found[entry.name])
            log.warning("transport type claimed twice", type=entry.name, used=owner, ignored=_owner(entry))
    return found


def built_in(kind: str) -> bool:
    """Our own distribution brings this transport type."""
    entry = installed().get(kind)
    return entry is not None and _ours(entry)


def load(kind: str) -> type[Transport]:
    """The class of a transport type. Raises UnknownTransportError, or PluginError if it can't be imported."""
    entries = installed()
    if not entries:
        raise UnknownTransportError(
            f'unknown transport type "{kind}": no transport is installed; install this product with pip, '
            f"a source tree with `pip install -e .`"
        )
    if kind not in entries:
        raise UnknownTransportError(f'unknown transport type "{kind}"{nearest(kind, entries, "types")}')
    entry = entries[kind]
    try:
        found = entry.load()
    except Exception as error:  # an import runs foreign code, which may raise anything
        raise PluginError(
            f'the plugin of transport type "{kind}" ({entry.value} of {_owner(entry)}) fails to import: '
            f"{type(error).__name__}: {error}"
        ) from error
    settings = getattr(found, "Settings", None)
    if not (isinstance(settings, type) and issubclass(settings, msgspec.Struct) and hasattr(found, "run")):
        raise PluginError(
            f'the plugin of transport type "{kind}" ({entry.value} of {_owner(entry)}) is no transport: '
            f"it needs a Settings struct and a method run"
        )
    return cast("type[Transport]", found)


def is_link(kind: str) -> bool:
    """Routes may name transports of this type as targets: its class says `is_link = True`."""
    try:
        return bool(getattr(load(kind), "is_link", False))
    except GatewayError:
        return False


def target_check(kind: str) -> Callable[[str], str]:
    """Tells why no link of this type can send to a template, or "": what its class says by `check_target`, if it has
    one."""
    try:
        check: Callable[[str], str] | None = getattr(load(kind), "check_target", None)
    except GatewayError:
        check = None
    return check if check is not None else lambda template: ""


def create(name: str, settings: msgspec.Struct) -> Transport:
    """A transport, made with its name and settings. Raises PluginError, or ConfigError for a section whose plugin
    was not there when the configuration was read and which does not fit it."""
    # The section was read by this field, which Struct does not declare.
    kind: str = settings.type  # type: ignore[attr-defined]
    if isinstance(settings, Unloaded):
        importlib.invalidate_caches()  # it may have been installed since
    found: Any = load(kind)
    if isinstance(settings, Unloaded):
        try:
            settings = msgspec.convert(settings.section, found.Settings, dec_hook=decode_custom)
        except msgspec.ValidationError as error:
            raise ConfigError(f"transports.{name}: {error}") from error
    return cast(Transport, found(name, settings))


class Runnable(Protocol):
    """The part of a Transport that `supervise` needs."""

    async def run(self, gateway: Gateway) -> None: ...


async def supervise(name: str, make: Callable[[], Runnable], to: Gateway) -> None:
    """Makes the transport and runs it until cancelled; after a failure again, with backoff and jitter:
    `supervise("mqtt", lambda: create("mqtt", settings), gateway)`.

    Raises only ListenError, of the very first run: the address can't be had and the daemon should not start."""
    transport: Runnable | None = None
    first = True
    delay = FIRST_DELAY
    loop = asyncio.get_running_loop()
    while True:
        began = loop.time()
        try:
            transport = transport or make()
            await transport.run(to)
            if _cancelled():
                return
            log.error("transport ended by itself", transport=name)
        except ListenError as error:
            if first:
                raise
            log.error("transport failed", transport=name, error=str(error))
        except (PluginError, ConfigError) as error:
            log.error("transport not available", transport=name, error=str(error))
        except Exception as error:  # the border: whatever a plugin raises stays its own
            if _cancelled():
                log.fault("transport failed while stopping", error, transport=name)
                return
            log.fault("transport failed", error, transport=name)
        first = False
        if loop.time() - began > LAST_DELAY:
            delay = FIRST_DELAY
        pause = delay * random.uniform(0.75, 1.25)
        delay = min(delay * 2, LAST_DELAY)
        log.info("transport starts again", transport=name, in_seconds=round(pause, 1))
        await asyncio.sleep(pause)


def shadowed() -> list[str]:
    """What is wrong with our own packages: each that another distribution shadows or also claims, said plainly.

    `transports` and `plugins` are common names; a module found in our place would fail in strange ways."""
    home = Path(gateway.__file__).resolve().parent.parent
    claims = importlib.metadata.packages_distributions()
    faults = []
    for package in PACKAGES:
        found = importlib.util.find_spec(package)
        others = sorted(set(claims.get(package, [])) - {DISTRIBUTION})
        if found is None:
            faults.append(f"package {package} of {DISTRIBUTION} is not found beside {home}")
        elif not found.origin or Path(found.origin).resolve().parent.parent != home:
            where = found.origin or ", ".join(found.submodule_search_locations or [])
            faults.append(f"package {package} of {DISTRIBUTION} is shadowed by {where}; it should be in {home}")
        elif others:
            faults.append(f"package {package} of {DISTRIBUTION} is also installed by {', '.join(others)}; remove that")
    return faults


def _owner(entry: importlib.metadata.EntryPoint) -> str:
    return entry.dist.name if entry.dist else "unknown"


def _ours(entry: importlib.metadata.EntryPoint) -> bool:
    return _owner(entry) == DISTRIBUTION


def _cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
