"""Owns RabbitSink: how what an outbox holds is published on one connection of a link; a Sink.

Its rule: DONE comes from the remote's confirm alone. What it returned is a dead letter with its reason, what it refused
is tried again, and what had no answer goes back: it will be published again, with the same message id.

An error of RabbitMQ (an exchange that is not there, no permission) closes the channel and does not say which message it
was. So what was in flight then is published again one by one: the one that the channel is closed over alone is the one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence

from gateway.model.counters import TransportCounters
from gateway.transport import Delivery, Verdict
from transports.amqp.link.channel import Answer, ConfirmChannel, Content, LostError
from transports.amqp.link.mapping import outgoing
from transports.amqp.link.remote import ERRORS, Remote
from transports.amqp.link.settings import AmqpClientSettings

Decision = Verdict | tuple[Verdict, str]


class RabbitSink:
    """Of one connection. made_ids: by queue, the beginning of the message ids of messages that have none, which is used
    nowhere else. natives: transports whose messages have AMQP tables for headers. report: is told why the remote closes
    channels, and "" when it takes messages again."""

    def __init__(
        self,
        settings: AmqpClientSettings,
        remote: Remote,
        counters: TransportCounters,
        made_ids: Mapping[str, str],
        natives: Collection[str],
        now: Callable[[], float],
        report: Callable[[str], None],
    ) -> None:
        self._settings = settings
        self._username = settings.login[0]
        self._remote = remote
        self._counters = counters
        self._made_ids = made_ids
        self._natives = natives
        self._now = now
        self._report = report
        self._told = ""
        self._channel: ConfirmChannel | None = None
        self._opening = asyncio.Lock()
        self._suspects = 0
        """So many more are published one by one."""
        self._may_go = asyncio.Event()
        self._may_go.set()

    async def open(self) -> None:
        """Raises one of link_remote's ERRORS."""
        async with self._opening:
            if self._channel is None or self._channel.over:
                timeout = float(self._settings.connect_timeout)
                self._channel = await ConfirmChannel.open_on(self._remote.connection, timeout)

    def changed(self) -> None:
        """The remote is blocked, no longer blocked, or lost."""
        if self._remote.blocked and not self._remote.is_lost:
            self._may_go.clear()
        else:
            self._may_go.set()

    async def watch(self) -> None:
        """Until cancelled: gives up a connection on which a confirm does not come in time."""
        timeout = float(self._settings.confirm_timeout)
        loop = asyncio.get_running_loop()
        since = loop.time()
        while True:
            await asyncio.sleep(timeout / 4)
            if self._remote.blocked:
                since = loop.time()
                continue
            oldest = self._channel.oldest if self._channel is not None else None
            if oldest is not None and loop.time() - max(oldest.since, since) > timeout:
                self._counters.refusals["confirm-timeout"] += 1
                self._remote.lose(f"no confirm within {timeout:g} s")

    # the Sink

    async def send(self, batch: Sequence[Delivery]) -> list[Decision | None]:
        """In the order of the batch. What had no answer when the connection was lost: None if it may be the cause,
        otherwise RETURNED."""
        sent = [await self._publish(delivery) for delivery in batch]
        if self._channel is not None:
            await self._channel.flush()
        waiting = [answer for answer in sent if isinstance(answer, asyncio.Future)]
        if waiting:
            await asyncio.wait(waiting)
        return [
            self._decide(answer, delivery) if isinstance(answer, asyncio.Future) else answer
            for answer, delivery in zip(sent, batch, strict=True)
        ]

    async def _publish(self, delivery: Delivery) -> asyncio.Future[Answer] | Decision:
        made_id = f"{self._made_ids[delivery.queue]}-{delivery.ident}"
        native = delivery.message.source in self._natives
        content = outgoing(delivery, self._username, made_id, native, self._now())
        if isinstance(content, str):
            return Verdict.INVALID, content
        channel = await self._turn(content)
        if channel is None:
            return Verdict.RETURNED
        if not channel.fits(content.properties):
            return Verdict.INVALID, f"its properties need {len(content.properties)} bytes, above the remote's frame-max"
        answer = channel.publish(content)
        if self._suspects:
            answer.add_done_callback(self._heard)
        if channel.is_full:
            await channel.flush()
        return answer

    async def _turn(self, content: Content) -> ConfirmChannel | None:
        """The channel, as soon as this one may be published; None if the connection is lost before."""
        while not self._remote.is_lost:
            channel = self._channel
            if channel is None or channel.over:
                self._suspects = max(self._suspects, channel.orphans if channel is not None else 0)
                try:
                    await self.open()
                except ERRORS as error:
                    self._remote.lose(f"no channel to publish on: {error}")
            elif not self._may_go.is_set():
                await self._may_go.wait()
            elif (before := channel.twin(content)) or (self._suspects and (before := channel.oldest)):
                await channel.flush()
                await asyncio.wait([before.answer])
            else:
                return channel
        return None

    def _heard(self, answer: asyncio.Future[Answer]) -> None:
        """One of the suspects has its answer."""
        self._suspects = max(self._suspects - 1, 0)

    def _decide(self, answer: asyncio.Future[Answer], delivery: Delivery) -> Decision | None:
        try:
            found = answer.result()
        except LostError as error:
            if self._remote.is_lost and self._remote.suspicious:
                return None
            if self._remote.is_lost or not error.alone:
                return Verdict.RETURNED
            self._counters.refusals["channel-closed"] += 1
            self._tell(f"the remote closed the channel: {error}")
            return Verdict.RETRY, f"the remote closed the channel over it: {error}"
        if found.nack:
            return Verdict.RETRY, "the remote refused it (basic.nack)"
        self._tell("")
        if found.returned:
            return Verdict.DEAD, f"the remote returned it: {found.returned}"
        self._counters.messages_out += 1
        self._counters.octets_out += len(delivery.message.body)
        return Verdict.DONE

    def _tell(self, why: str) -> None:
        if why != self._told:
            self._told = why
            self._report(why)
