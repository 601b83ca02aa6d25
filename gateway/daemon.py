"""Owns the daemon's life: start, serve, reload, drain, stop.

Its rule: nothing takes clients before all that was promised is back, and nothing ends before what was accepted is
committed or refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import os
import resource
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import msgspec
import uvloop

from gateway import logs
from gateway.admin.api import NAME as ADMIN
from gateway.admin.api import Admin
from gateway.admin.service import Operator
from gateway.auth.users import Access
from gateway.broker.core import Core
from gateway.broker.definitions import configure, configuring, secret_state
from gateway.clock import Clock
from gateway.config import links
from gateway.config.checks import is_open_without_users
from gateway.config.settings import Settings, load
from gateway.engine.committer import Committer
from gateway.engine.drop_log import Losses
from gateway.engine.gateway import LocalGateway
from gateway.engine.recovery import restore
from gateway.errors import ConfigError, GatewayError
from gateway.logs import log
from gateway.model.credit import Pressure
from gateway.slices import Slices
from gateway.storage.journal import Journal
from gateway.storage.memory import MemoryJournal
from gateway.storage.sqlite import SqliteJournal
from gateway.transport import registry as plugins

START_SECONDS = 10.0
"""After this the daemon is ready even if a plugin's transport is not; it is named and goes on trying."""
SECRET_BYTES = 32
MANY_FILES = 1 << 16
RESTARTED = (
    "store",
    "admin",
    "transports",
    "max_memory",
    "max_retained",
    "max_dedup_keys",
    "max_bindings",
    "max_backlog",
    "drain_timeout",
    "log",
)
"""What a reload does not change."""

OnReady = Callable[[Mapping[str, Sequence[str]]], None]


def run(settings: Settings, path: Path | None = None, on_ready: OnReady | None = None) -> None:
    """Runs the daemon until SIGTERM or SIGINT. `path`: the configuration, read again on SIGHUP. `on_ready` gets the
    addresses by transport. Raises ConfigError, StoreError or ListenError if it can't start; then nothing is left."""
    logs.setup(settings.log.level, settings.log.format)
    _allow_many_files()
    for problem in plugins.shadowed():
        log.error("a package is shadowed", problem=problem)
    uvloop.run(Daemon(settings, path, on_ready).run())


class Daemon:
    """One run of the daemon."""

    def __init__(self, settings: Settings, path: Path | None = None, on_ready: OnReady | None = None) -> None:
        self.settings = settings
        self._running = settings.transports
        """Those that were started; a reload changes none of them."""
        self._running_admin = settings.admin
        self._path = path
        self._on_ready = on_ready
        self._stop = asyncio.Event()
        self._operator = Operator()
        self._reloads = 0
        """SIGHUPs that are not answered yet."""
        self._reloading: asyncio.Task[None] | None = None

    async def run(self) -> None:
        settings = self.settings
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled, number)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        clock = Clock()
        pressure = Pressure()
        core = Core(
            clock,
            os.urandom(SECRET_BYTES),
            settings.max_memory,
            max_retained=settings.max_retained,
            max_dedup_keys=settings.max_dedup_keys,
            max_bindings=settings.max_bindings,
        )
        journal = _journal(settings)
        access = Access(*credentials(settings))
        committer = Committer(core, journal, pressure, settings.max_backlog, settings.store.log_slack)
        gateway = LocalGateway(committer, access, pressure, settings.drain_timeout)
        self._gateway = gateway
        losses = Losses(gateway)
        watch = loop.create_task(losses.watch(), name="losses")
        try:
            async with self._serving_admin(gateway):
                await self._replay(clock)
                tame_collector()
                await self._serve_transports()
        finally:
            with anyio.CancelScope(shield=True):
                if self._reloading is not None:
                    self._reloading.cancel()
                    await asyncio.wait([self._reloading])
                await committer.close()
            access.close()
            watch.cancel()
            losses.look(last=True)
            gateway.refusals.close()
        log.info("stopped")

    def _signalled(self, number: int) -> None:
        log.info("stopping", signal=signal.Signals(number).name)
        self._operator.reasons["draining"] = None
        self._stop.set()

    # start

    @contextlib.asynccontextmanager
    async def _serving_admin(self, gateway: LocalGateway) -> AsyncIterator[None]:
        """Health is told from the first moment to the last."""
        if self.settings.admin is None:
            yield
            return
        admin = Admin(self.settings.admin, self._operator)
        up = asyncio.Event()
        gateway.on_started = up.set
        with _unwrapped():
            async with anyio.create_task_group() as group:
                group.start_soon(plugins.supervise, ADMIN, lambda: admin, gateway)
                await _either(up, self._stop)
                gateway.on_started = None
                yield
                group.cancel_scope.cancel()

    async def _replay(self, clock: Clock) -> None:
        gateway, settings = self._gateway, self.settings
        committer, core = gateway.committer, gateway.core
        began = clock()
        await anyio.to_thread.run_sync(committer.journal.open)
        restored = await anyio.to_thread.run_sync(restore, core, committer.journal)
        clock.not_before(restored.time)
        # A new store gets its secret now, an old one has brought its own.
        core.gather.forced_states.append(secret_state(core))
        if not settings.store.memory:  # the secret of a store in memory ends with the process
            gateway.access.keep_decoys(core.dedup.secret)
        for note in configure(core, links.policies(settings), links.bindings(settings)):
            log.warning(note)
        if lost := len(core.rows.unreadable):
            log.error("bodies are missing in the store, their messages can't be delivered", rows=lost)
        messages = sum(queue.entries.count for queue in core.queues.values())
        committer.start(restored)
        if not await committer.put():
            raise GatewayError(f"the store {settings.store.path} can't be written: {core.refusing}")
        log.info("replayed", messages=messages, seconds=round(clock() - began, 3))
        self._operator.take_over(gateway)

    async def _serve_transports(self) -> None:
        waiting = set(self.settings.transports)
        ready = asyncio.Event()

        def started() -> None:
            waiting.difference_update(self._gateway.addresses)
            if not waiting:
                ready.set()

        self._operator.reasons["starting"] = None
        self._gateway.on_started = started
        started()
        with _unwrapped():
            async with anyio.create_task_group() as group:
                for name, section in self.settings.transports.items():
                    make = functools.partial(plugins.create, name, section)
                    group.start_soon(plugins.supervise, name, make, self._gateway, name=f"transport {name}")
                group.start_soon(self._say_ready, ready, waiting)
                await self._stop.wait()
                log.info("draining", seconds=float(self.settings.drain_timeout))
                self._gateway.core.drain()
                # Transports take nothing new, answer what they accepted, and give back what is in flight.
                group.cancel_scope.cancel()

    async def _say_ready(self, ready: asyncio.Event, waiting: set[str]) -> None:
        with anyio.move_on_after(START_SECONDS):
            await ready.wait()
        for name in sorted(waiting):
            log.warning("transport is not up yet", transport=name)
        self._operator.reasons.pop("starting", None)
        log.info("ready")
        if self._on_ready is not None:
            self._on_ready(dict(self._gateway.addresses))

    # serve

    def _reload(self) -> None:
        """SIGHUP: routes, queue policies and users; a bad file changes nothing. What comes while one is under way has
        the file read once more."""
        if self._path is None:
            log.warning("nothing to read again: the daemon was started without a file")
            return
        self._reloads += 1
        if self._reloads == 1:
            self._reloading = asyncio.get_running_loop().create_task(self._reload_all(self._path), name="reload")

    async def _reload_all(self, path: Path) -> None:
        while self._reloads:
            self._reloads = 1
            try:
                await self._reload_once(path)
            except (ConfigError, GatewayError, ValueError) as error:
                log.error("reload refused, the old configuration stays", error=str(error))
            except Exception as error:
                log.fault("reload failed", error)
            self._reloads -= 1

    async def _reload_once(self, path: Path) -> None:
        """The file is read in a thread, and what it says comes into force in slices: it may be long."""
        if "replaying" in self._operator.reasons:
            raise GatewayError("the store is being replayed; send SIGHUP again when /readyz says so")
        settings = await anyio.to_thread.run_sync(load, path, os.environ, abandon_on_cancel=True)
        self._must_stay_guarded(settings)
        core = self._gateway.core
        policies, bindings = links.policies(settings, self._running), links.bindings(settings)
        notes: list[str] = []
        slices = Slices()
        await slices.pause()
        for _ in configuring(core, policies, bindings, notes):
            await slices.pause()
        notes += links.waiting_for_restart(settings, self._running)
        put_out = self._gateway.access.replace(*credentials(settings))
        for note in notes:
            log.warning(note)
        for key in RESTARTED:
            if getattr(settings, key) != getattr(self.settings, key):
                log.warning("this change waits for a restart", key=key)
        self.settings = settings
        self._gateway.committer.poke()
        for call in self._gateway.reloads.values():
            call()
        if put_out:
            log.info("logins end: their user or password is gone", connections=put_out)
        log.info("reloaded", queues=len(settings.queues), routes=len(settings.routes))

    def _must_stay_guarded(self, settings: Settings) -> None:
        """What listens goes on until a restart as it was started, whatever the file says of it now; without users it
        would let everybody in. Raises ConfigError."""
        if settings.users:
            return
        listeners: dict[str, Any] = {f"transports.{name}": section for name, section in self._running.items()}
        if self._running_admin is not None:
            listeners["admin"] = self._running_admin
        for key, section in listeners.items():
            said = section.section if isinstance(section, plugins.Unloaded) else msgspec.structs.asdict(section)
            if (address := is_open_without_users(said)) is not None:
                raise ConfigError(
                    f"{key} goes on to listen on {address} until a restart, can be reached there from other machines, "
                    "and there would be no users any more: restart the daemon, or leave `users`"
                )


def tame_collector() -> None:
    """Keeps the garbage collector's passes short: what is there now stays, and is out of its sight; of what comes, a
    pass looks at no more at once than takes some milliseconds, but for a full one, which comes seldom."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 10, 100)


def credentials(settings: Settings) -> tuple[dict[str, str], dict[str, str]]:
    """Hashes and SCRAM verifiers, by user."""
    users = settings.users.items()
    return (
        {name: user.password_hash for name, user in users},
        {name: user.scram for name, user in users if user.scram is not None},
    )


def _allow_many_files() -> None:
    """Every connection is an open file. The usual soft limit of 1024 is there for programs that use select."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MANY_FILES if hard == resource.RLIM_INFINITY else min(MANY_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def _either(first: asyncio.Event, second: asyncio.Event) -> None:
    """Until one of the two is set."""
    waits = [asyncio.ensure_future(event.wait()) for event in (first, second)]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


def _journal(settings: Settings) -> Journal:
    if settings.store.memory:
        return MemoryJournal()
    return SqliteJournal(Path(settings.store.path), settings.store.reserve)


@contextlib.contextmanager
def _unwrapped() -> Iterator[None]:
    """A task group wraps what its tasks raise; a start that fails has one cause, and that is what is told."""
    try:
        yield
    except BaseExceptionGroup as group:
        causes = [error for error in _leaves(group) if isinstance(error, GatewayError)]
        if causes:
            raise causes[0] from None
        raise


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    leaves: list[BaseException] = []
    for error in group.exceptions:
        leaves += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return leaves
