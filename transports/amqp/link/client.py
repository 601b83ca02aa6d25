"""Owns AmqpClient: the link to a RabbitMQ, which is a client there (`type: amqp-client`).

Its rule: it has two connections, one that consumes and one that publishes, since RabbitMQ stops reading from one that
publishes while it is short of memory, acknowledgements included. Each is tried again for ever, says in /readyz why it
is down, and loses nothing: what comes stays there until it is stored here, what goes stays in the outbox until it is
confirmed.
"""

from __future__ import annotations

import asyncio
import math
import random
import secrets
from collections.abc import Awaitable, Callable
from functools import partial

import anyio

from gateway.logs import log
from gateway.transport import Gateway, StateChange
from gateway.transport.outbox import awaited, outbox
from gateway.transport.sink import drive
from transports.amqp.link.remote import ERRORS, REFUSALS, MismatchError, Remote
from transports.amqp.link.settings import AmqpClientSettings, check_target
from transports.amqp.link.sink import RabbitSink
from transports.amqp.link.source import QueueSource
from transports.amqp.native import natives

MAX_SEND = 100
"""Messages that wait for their confirms together."""
STEADY_SECONDS = 10.0
"""A connection or consumer that lasted so long was a good one: the pauses begin with the first again."""
PUBLISHING = "publishing"
CONSUMING = "consuming"
_MADE_IDS = "message-ids"


class AmqpClient:
    """A Transport."""

    Settings = AmqpClientSettings
    is_link = True
    check_target = staticmethod(check_target)

    def __init__(self, name: str, settings: AmqpClientSettings) -> None:
        self.name = name
        self.settings = settings
        self._owner = f"link.{name}"
        self._unstored_ids = secrets.token_hex(8)
        """Of messages that are in memory alone, whose numbers come again after a restart."""
        self._impaired: dict[str, str] = {}
        """Why, by what is: publishing, consuming, or the name of a queue there."""

    async def run(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._counters = gateway.counters(self.name)
        natives(gateway).add(self.name)
        parts: list[tuple[str, Callable[[Remote], Awaitable[str]]]] = [(PUBLISHING, self._publish)]
        if self.settings.consume:
            parts.append((CONSUMING, self._consume))
        for part, _ in parts:
            self._report(part, "not connected yet")
        # At once: a remote that is away must not hold up the start.
        gateway.started(self.name, [str(self.settings.place)])
        async with anyio.create_task_group() as group:
            for part, work in parts:
                group.start_soon(self._keep, part, work)

    def _report(self, part: str, why: str) -> None:
        """Where the remote is stands in the log alone: /readyz tells everybody."""
        if why:
            self._impaired[part] = why
        else:
            self._impaired.pop(part, None)
        told = "; ".join(f"{part}: {why}" for part, why in self._impaired.items())
        self._gateway.impair(self.name, told, self.settings.required)

    def _tell(self, part: str, remote: Remote) -> None:
        """A connection is blocked, no longer blocked, or lost."""
        blocked = remote.blocked and not remote.why
        if blocked:
            self._counters.refusals["link-blocked"] += 1
            log.warning("link is blocked", link=self.name, reason=remote.blocked)
        self._report(part, f"the remote takes no messages at present: {remote.blocked}" if blocked else remote.why)

    async def _keep(self, part: str, work: Callable[[Remote], Awaitable[str]]) -> None:
        """One connection after the other."""
        loop = asyncio.get_running_loop()
        first, last = self.settings.reconnect
        pause = first
        while True:
            remote = Remote(self.name, part, self.settings)
            remote.changed = partial(self._tell, part, remote)
            up_since = math.inf
            try:
                await remote.open()
                up_since = loop.time()
                self._counters.connections += 1
                self._counters.connections_total += 1
                log.info("link is up", link=self.name, part=part)
                self._report(part, "")
                why = await work(remote)
            except ERRORS as error:
                self._counters.refusals["link-refused" if isinstance(error, REFUSALS) else "link-unreachable"] += 1
                why = str(error) or type(error).__name__
                if isinstance(error, MismatchError):
                    pause = last
            except Exception as error:
                self._report(part, f"{type(error).__name__}: {error}")
                raise
            finally:
                self._counters.connections -= up_since < math.inf
                await remote.close()
            if loop.time() - up_since > STEADY_SECONDS:
                pause = first
            self._report(part, why)
            wait = pause * random.uniform(0.75, 1.25)
            pause = min(pause * 2, last)
            place = str(self.settings.place)
            log.warning(
                "link is down",
                link=self.name,
                part=part,
                remote=place,
                reason=why,
                again_in_seconds=round(wait, 2),
            )
            await asyncio.sleep(wait)

    # what goes

    async def _publish(self, remote: Remote) -> str:
        settings, gateway = self.settings, self._gateway
        sink = RabbitSink(
            settings,
            remote,
            self._counters,
            {outbox(self.name): await self._made_ids(), awaited(outbox(self.name)): self._unstored_ids},
            natives(gateway),
            gateway.now,
            partial(self._report, PUBLISHING),
        )

        def changed() -> None:
            self._tell(PUBLISHING, remote)
            sink.changed()

        remote.changed = changed
        await sink.open()
        batch = min(MAX_SEND, settings.max_in_flight)
        async with anyio.create_task_group() as group:
            group.start_soon(sink.watch)
            # Only while there is a connection: what waits for one may expire, and is held by nobody.
            group.start_soon(
                partial(drive, gateway, outbox(self.name), sink, batch, settings.max_in_flight, slow_start=True)
            )
            why = await remote.lost()
            group.cancel_scope.cancel()
        return why

    async def _made_ids(self) -> str:
        """Always the same, so that a message has the same id however often it is sent."""
        known = self._gateway.state(self._owner).get(_MADE_IDS)
        if known is not None:
            return known.decode()
        made = secrets.token_hex(8)
        if not await self._gateway.put([StateChange(self._owner, _MADE_IDS, made.encode())]):
            raise ConnectionError(f"the beginning of message ids can't be stored here: {self._gateway.refusing}")
        return made

    # what comes

    async def _consume(self, remote: Remote) -> str:
        async with anyio.create_task_group() as group:
            for queue in self.settings.consume:
                group.start_soon(self._consume_queue, remote, queue)
            why = await remote.lost()
            group.cancel_scope.cancel()
        return why

    async def _consume_queue(self, remote: Remote, queue: str) -> None:
        """One consumer after the other, on one connection."""
        loop = asyncio.get_running_loop()
        first, last = self.settings.reconnect
        pause = first
        report = partial(self._report, f"queue {queue}")
        declare = False
        try:
            while True:
                since = loop.time()
                report("not consumed yet")
                try:
                    if declare:
                        await remote.declare()
                    source = QueueSource(self.name, queue, self.settings, self._gateway, report)
                    why = await source.run(remote)
                    self._counters.refusals["consumer-lost"] += 1
                except ERRORS as error:
                    self._counters.refusals["consume-refused"] += 1
                    why = str(error) or type(error).__name__
                    if isinstance(error, MismatchError):
                        pause = last
                declare = True
                if remote.is_lost:
                    return
                if loop.time() - since > STEADY_SECONDS:
                    pause = first
                report(why)
                wait = pause * random.uniform(0.75, 1.25)
                pause = min(pause * 2, last)
                log.warning(
                    "link does not consume", link=self.name, queue=queue, reason=why, again_in_seconds=round(wait, 2)
                )
                await asyncio.sleep(wait)
        finally:
            report("")  # what is wrong now is the connection
