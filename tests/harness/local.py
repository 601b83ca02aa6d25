"""Owns a gateway inside the test's own loop: the real core and committer on a memory store, no sockets.

Its rule: it is made as the daemon makes it, so what passes here is not a fake.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

from gateway.admin.service import Operator
from gateway.auth.users import Access
from gateway.broker.core import Core
from gateway.broker.definitions import configure
from gateway.clock import Clock
from gateway.config import links
from gateway.config.settings import Settings, load
from gateway.engine.committer import Committer
from gateway.engine.gateway import LocalGateway
from gateway.engine.recovery import restore
from gateway.model.credit import Pressure
from gateway.storage.memory import MemoryJournal
from gateway.transport import Transport


@contextlib.asynccontextmanager
async def local_gateway(
    config: str = "{}", users: Mapping[str, str] | None = None, drain_timeout: float = 5.0
) -> AsyncIterator[tuple[LocalGateway, Operator]]:
    """config: queues and routes in YAML. users: argon2 hashes by name."""
    settings = _settings(config)
    core = Core(Clock(), b"secret", settings.max_memory, None, settings.max_retained, settings.max_dedup_keys)
    journal = MemoryJournal()
    journal.open()
    pressure = Pressure()
    committer = Committer(core, journal, pressure, settings.max_backlog)
    access = Access(users or {})
    gateway = LocalGateway(committer, access, pressure, drain_timeout)
    operator = Operator()
    restored = restore(core, journal)
    configure(core, links.policies(settings), links.bindings(settings))
    committer.start(restored)
    operator.take_over(gateway)
    try:
        yield gateway, operator
    finally:
        await committer.close()
        access.close()


@contextlib.asynccontextmanager
async def serving(gateway: LocalGateway, **transports: Transport) -> AsyncIterator[Mapping[str, tuple[str, int]]]:
    """Runs these transports on the test's loop until it is left; gives host and port of each."""
    up = asyncio.Event()
    gateway.on_started = lambda: up.set() if transports.keys() <= gateway.addresses.keys() else None
    tasks = [asyncio.create_task(one.run(gateway)) for one in transports.values()]
    try:
        waiting = asyncio.create_task(up.wait())
        ended, _ = await asyncio.wait([waiting, *tasks], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        for task in ended:
            await task  # raises what kept a transport from its start
        found = {name: urlsplit(gateway.addresses[name][0]) for name in transports}
        yield {name: (url.hostname or "", url.port or 0) for name, url in found.items()}
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _settings(config: str) -> Settings:
    with TemporaryDirectory() as folder:
        path = Path(folder, "gateway.yaml")
        path.write_text(config)
        return load(path, {})
