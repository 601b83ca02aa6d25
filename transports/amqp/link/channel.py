"""Owns the two kinds of channel of a link: DeliveryChannel takes messages, ConfirmChannel publishes them.

Its rule: nothing is done twice over, and no message is taken for another. aiormq's own channel makes a task for each
delivery, and finds the message that was returned by its message id, which applications may use more than once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import count
from typing import Any, NamedTuple, TypeVar

import aiormq
import msgspec
from aiormq.abc import AbstractConnection, ChannelFrame, ConfirmationFrameType
from aiormq.exceptions import ChannelInvalidStateError
from pamqp import commands

from gateway.logs import log
from transports.amqp.codec import append_content, content_fits, encode_method
from transports.amqp.link.wire import unwrap
from transports.amqp.properties import message_id

CLOSE_SECONDS = 2.0
"""How long a remote may take to answer channel.close."""
MAX_FRAME = 131_072
"""Octets of a frame to a remote that has no limit; RabbitMQ's own."""
FLUSH_OCTETS = 1 << 16
"""So much is gathered before it is written."""

C = TypeVar("C", bound="LinkChannel")


class LostError(Exception):
    """The channel or its connection ended before the remote answered; the text says why. alone: nothing else was in
    flight on the channel."""

    def __init__(self, why: str, alone: bool) -> None:
        super().__init__(why)
        self.alone = alone


class Answer(msgspec.Struct, frozen=True):
    """What became of a published message. returned: why it found no queue, else "". nack: it was not taken."""

    returned: str = ""
    nack: bool = False


TAKEN = Answer()
NACKED = Answer(nack=True)


class Content(NamedTuple):
    """A message as it is published. properties: as they are on the wire. Two with one address and message id can't be
    told apart when one of them is returned."""

    exchange: str
    routing_key: str
    message_id: str
    properties: bytes
    body: bytes

    @property
    def identity(self) -> tuple[str, str, str]:
        return self.exchange, self.routing_key, self.message_id


class Pending(msgspec.Struct, eq=False):
    """A message that was published and waits for its confirm."""

    identity: tuple[str, str, str]
    since: float
    answer: asyncio.Future[Answer]
    returned: str = ""


class LinkChannel(aiormq.Channel):
    """Open once `open_on` has returned. `over`: it is closed, or the remote is closing it, and takes nothing more: what
    came behind its close-ok would cost the connection."""

    def __init__(self, connection: AbstractConnection, number: int) -> None:
        self.over = False
        super().__init__(connection, number, publisher_confirms=isinstance(self, ConfirmChannel), frame_buffer=100)
        self._closing.add_done_callback(lambda closing: self._lose(self.end))

    @classmethod
    async def open_on(cls: type[C], connection: AbstractConnection, seconds: float, *arguments: Any) -> C:
        """seconds: for each answer. Raises AMQPError, ChannelInvalidStateError if the connection is lost meanwhile,
        and TimeoutError."""
        number = next(number for number in count(1) if number not in connection.channels)
        channel = cls(connection, number, *arguments)
        connection.channels[number] = channel
        await channel.open(timeout=seconds)
        return channel

    async def _on_close_frame(self, frame: commands.Channel.Close) -> None:
        self._lose(frame.reply_text or "the remote closed the channel")
        await super()._on_close_frame(frame)

    def _lose(self, why: str) -> None:
        self.over = True

    @property
    def end(self) -> str:
        """Why it was closed."""
        error = None if self._closing.cancelled() or not self._closing.done() else self._closing.exception()
        error = self._close_exception or error
        return (str(error) if error is not None else "") or "the channel was closed"

    async def leave(self) -> None:
        """Closes it, whatever its state."""
        try:
            await self.close(timeout=CLOSE_SECONDS)
        except (TimeoutError, aiormq.AMQPError, ChannelInvalidStateError, ConnectionError) as error:
            log.debug("no clean end of a channel", error=str(error))


class DeliveryChannel(LinkChannel):
    """`receive` gets each delivery as it comes, with its properties as they are on the wire; it must not raise."""

    def __init__(
        self,
        connection: AbstractConnection,
        number: int,
        receive: Callable[[commands.Basic.Deliver, bytes, bytes], None],
    ) -> None:
        super().__init__(connection, number)
        self._receive = receive

    async def _on_deliver_frame(self, frame: commands.Basic.Deliver) -> None:
        message = await self._read_content(frame, await self._get_frame())  # type: ignore[arg-type]
        self._receive(frame, unwrap(message.header), message.body)


class ConfirmChannel(LinkChannel):
    """Publishes with confirms, mandatory."""

    def __init__(self, connection: AbstractConnection, number: int) -> None:
        super().__init__(connection, number)
        self._frame_max = connection.connection_tune.frame_max or MAX_FRAME
        self.orphans = 0
        """How many were in flight when the channel was closed, if it was not one alone."""
        self._published = 0
        self._pending: dict[int, Pending] = {}
        """By delivery tag, in the order in which they were published."""
        self._by_identity: dict[tuple[str, str, str], Pending] = {}
        self._out: list[bytes] = []
        self._octets = 0
        self._writing = asyncio.Lock()

    def fits(self, properties: bytes) -> bool:
        """They can be sent: a content header is one frame."""
        return content_fits(properties, self._frame_max)

    @property
    def oldest(self) -> Pending | None:
        """The one that has waited longest."""
        return next(iter(self._pending.values()), None)

    def twin(self, content: Content) -> Pending | None:
        """One without its confirm that could not be told from this one if it were returned."""
        return self._by_identity.get(content.identity)

    def publish(self, content: Content) -> asyncio.Future[Answer]:
        """To be written with the next `flush`. There must be no `twin`. The Future raises LostError."""
        answer: asyncio.Future[Answer] = self.loop.create_future()
        pending = Pending(content.identity, self.loop.time(), answer)
        if self.over:
            _fail(pending, self.end, False)
            return answer
        self._published += 1
        self._pending[self._published] = self._by_identity[content.identity] = pending
        self._out.append(
            encode_method(
                self.number,
                commands.Basic.Publish,
                exchange=content.exchange,
                routing_key=content.routing_key,
                mandatory=True,
            )
        )
        append_content(self._out, self.number, content.properties, content.body, self._frame_max)
        self._octets += len(content.body)
        return answer

    @property
    def is_full(self) -> bool:
        """There is enough to write."""
        return self._octets >= FLUSH_OCTETS

    async def flush(self) -> None:
        """Hands over what was published, in that order."""
        async with self._writing:
            if not self._out or self.over:
                return
            out, octets = self._out, self._octets
            self._out, self._octets = [], 0
            try:
                await self.write_queue.put(ChannelFrame(b"".join(out), should_close=False))
            except asyncio.CancelledError:
                self._out, self._octets = out + self._out, octets + self._octets
                raise

    # what aiormq calls

    async def _on_return_frame(self, frame: commands.Basic.Return) -> None:
        message = await self._read_content(frame, await self._get_frame())  # type: ignore[arg-type]
        identity = (frame.exchange, frame.routing_key or "", message_id(unwrap(message.header)))
        pending = self._by_identity.get(identity)
        if pending is None:
            raise ValueError(
                f"the remote returned a message to {frame.exchange}/{frame.routing_key} that it was not sent"
            )
        pending.returned = f"{frame.reply_code} {frame.reply_text}"

    async def _on_confirm_frame(self, frame: ConfirmationFrameType) -> None:
        nack = isinstance(frame, commands.Basic.Nack)
        last = frame.delivery_tag or self._published
        if not getattr(frame, "multiple", False):
            self._confirm(last, nack)
            return
        while self._pending and (tag := next(iter(self._pending))) <= last:
            self._confirm(tag, nack)

    def _confirm(self, tag: int, nack: bool) -> None:
        pending = self._pending.pop(tag, None)
        if pending is None:
            log.warning("a remote confirmed what was not published or is confirmed", delivery_tag=tag)
            return
        del self._by_identity[pending.identity]
        if pending.answer.done():  # who waited for it was cancelled
            return
        if pending.returned:
            pending.answer.set_result(Answer(returned=pending.returned))
        else:
            pending.answer.set_result(NACKED if nack else TAKEN)

    def _lose(self, why: str) -> None:
        super()._lose(why)
        if not self._pending:
            return
        pending, self._pending = list(self._pending.values()), {}
        self._by_identity.clear()
        alone = len(pending) == 1
        self.orphans = 0 if alone else len(pending)
        for one in pending:
            _fail(one, why, alone)


def _fail(pending: Pending, why: str, alone: bool) -> None:
    if not pending.answer.done():
        pending.answer.set_exception(LostError(why, alone))
        pending.answer.exception()  # whoever waited may have been cancelled; asyncio would report it as overlooked
