"""Owns QueueSource: the consumer of one queue at a RabbitMQ, on a channel of its own, from its delivery to its ack.

Its rule: it is verified that the remote consumes for us, not only that there is a connection. Whatever ends a consumer
(basic.cancel, a deleted queue, a closed channel, a silent loss) ends this one, with the reason; the next is a new one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import anyio
from aiormq.abc import ChannelFrame
from pamqp import commands

from gateway.logs import log
from gateway.model.message import Message
from gateway.transport import Gateway
from gateway.transport.source import Arrival, Arrivals, hops
from transports.amqp.codec import encode_ack, encode_method
from transports.amqp.errors import AmqpError
from transports.amqp.link.channel import DeliveryChannel
from transports.amqp.link.mapping import incoming
from transports.amqp.link.remote import ERRORS, Remote
from transports.amqp.link.settings import AmqpClientSettings

VERIFY_SECONDS = 30.0
"""How often the remote is asked whether it still has our consumer."""


class QueueSource:
    """Consumes once. `report` is told why nothing comes or is held, and "" when all is well."""

    def __init__(
        self, link: str, queue: str, settings: AmqpClientSettings, gateway: Gateway, report: Callable[[str], None]
    ) -> None:
        self._link = link
        self._queue = queue
        self._settings = settings
        self._counters = gateway.counters(link)
        self._report = report
        self._arrivals: Arrivals[int] = Arrivals(gateway, self._counters, settings.unroutable, report)
        self._told: set[str] = set()
        self._ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def run(self, remote: Remote) -> str:
        """Returns why it ended, with its channel closed. Raises one of link_remote's ERRORS if it can't begin."""
        timeout = float(self._settings.connect_timeout)
        channel = await DeliveryChannel.open_on(remote.connection, timeout, self._receive)
        try:
            channel.on_consumer_cancel_callbacks.add(self._cancelled)
            await channel.basic_qos(prefetch_count=self._settings.prefetch, timeout=timeout)
            answer = await channel.basic_consume(self._queue, _unused, timeout=timeout)
            log.info("link consumes", link=self._link, queue=self._queue, consumer_tag=answer.consumer_tag)
            self._report("")

            async def settle(arrivals: Sequence[Arrival[int]]) -> None:
                await self._settle(channel, arrivals)

            async with anyio.create_task_group() as group:
                group.start_soon(self._arrivals.run, settle)
                group.start_soon(self._verify, channel)
                await asyncio.wait([self._ended, channel.closing], return_when=asyncio.FIRST_COMPLETED)
                group.cancel_scope.cancel()
            return self._ended.result() if self._ended.done() else channel.end
        finally:
            with anyio.CancelScope(shield=True):
                await channel.leave()

    def _end(self, why: str) -> None:
        if not self._ended.done():
            self._ended.set_result(why)

    # what comes

    def _receive(self, method: commands.Basic.Deliver, properties: bytes, body: bytes) -> None:
        self._counters.messages_in += 1
        self._counters.octets_in += len(body)
        if len(self._arrivals) >= self._settings.prefetch:
            self._end(f"the remote sent more than {self._settings.prefetch} messages ahead of our acks")
            return
        message: Message | None = None
        try:
            found = incoming(self._link, self._queue, method, properties, body)
        except AmqpError as error:
            self._tell_dropped("properties-invalid", str(error))
        else:
            if hops(found.properties) < self._settings.max_hops:
                message = found
            else:
                self._tell_dropped("max-hops", f"it came over {hops(found.properties)} links")
        self._arrivals.put(Arrival(method.delivery_tag or 0, message))

    async def _settle(self, channel: DeliveryChannel, arrivals: Sequence[Arrival[int]]) -> None:
        """One basic.ack for all, behind a basic.reject for each that is not taken: it is a dead letter there, if its
        queue has a place for them. What finds no channel is forgotten: the remote sends it again."""
        rejected = [arrival.tag for arrival in arrivals if arrival.message is None]
        last = next((arrival.tag for arrival in reversed(arrivals) if arrival.message is not None), 0)
        frames = [encode_method(channel.number, commands.Basic.Reject, delivery_tag=tag) for tag in rejected]
        if last:
            frames.append(encode_ack(channel.number, last, True))
        if not channel.over:
            await channel.write_queue.put(ChannelFrame(b"".join(frames), should_close=False))

    def _tell_dropped(self, reason: str, why: str) -> None:
        """Counted each time, logged once for each consumer."""
        self._counters.dropped[reason] += 1
        if reason not in self._told:
            self._told.add(reason)
            log.warning("a message that came over a link is rejected", link=self._link, queue=self._queue, reason=why)

    # whether anything comes

    def _cancelled(self, frame: commands.Basic.Cancel) -> None:
        self._end("the remote cancelled the consumer: its queue is gone, or has moved")

    async def _verify(self, channel: DeliveryChannel) -> None:
        while True:
            await asyncio.sleep(VERIFY_SECONDS)
            try:
                answer = await channel.queue_declare(
                    self._queue, passive=True, timeout=float(self._settings.connect_timeout)
                )
            except ERRORS as error:  # most often the channel is closed by it, too, and says why
                self._end(str(error) or "the remote does not answer on the consumer's channel")
                return
            if not answer.consumer_count:
                self._end("the remote knows of no consumer")
                return


async def _unused(message: object) -> None:
    """aiormq wants a callback; deliveries take another way."""
    raise AssertionError("a delivery went past DeliveryChannel")
