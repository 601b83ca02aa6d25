"""Owns what waits for the disk: answers that may be sent after a commit alone, and the frames that came behind them.

Its rule: while a channel waits its frames are kept back, in order; other channels go on.
"""

from __future__ import annotations

from asyncio import Future
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from gateway.transport import StateChange
from transports.amqp.channel import Channel
from transports.amqp.declarations import Answer
from transports.amqp.errors import RESOURCE_ERROR, AmqpError

if TYPE_CHECKING:
    from transports.amqp.connection import AmqpConnection

BACKLOG_OCTETS = 1 << 20
"""Frames of one connection that are kept back before reading from it pauses."""
_FRAME_OCTETS = 64

Then = Callable[[Any], "Future[Any] | None"]


class Waiting:
    """That of one connection."""

    __slots__ = ("_octets", "connection", "gateway")

    def __init__(self, connection: AmqpConnection) -> None:
        self.connection = connection
        self.gateway = connection.gateway
        self._octets = 0

    def wait(self, channel: Channel, future: Future[Any], then: Then) -> None:
        """Frames of the channel are kept back until `then` has run and the Future it may return is done too. `then`
        may wait for something else again."""
        channel.waiting = future
        future.add_done_callback(partial(self._made, channel, then))

    def postpone(self, channel: Channel, kind: int, payload: bytes) -> None:
        """A frame behind an answer that is not sent yet."""
        channel.backlog.append((kind, payload))
        self._octets += len(payload) + _FRAME_OCTETS
        if self._octets > BACKLOG_OCTETS:
            self.connection.pause("backlog")

    def answer(self, channel: Channel, answer: Answer) -> None:
        """Sends it, after its changes are durable if it has any. What can't be undone, since it took something away, is
        not refused: the store hears of it as soon as it can."""
        connection = self.connection
        if answer.changes is None:
            if answer.frame:
                connection.send(answer.frame)
            return

        def durable(made: bool) -> None:
            if not made and answer.undo is not None:
                answer.undo()
                raise AmqpError(RESOURCE_ERROR, "the store takes no changes at present")
            if answer.frame:
                connection.send(answer.frame)

        changes = answer.changes
        if answer.undo is None:
            self.keep(changes)
            changes = []
        self.wait(channel, self.gateway.put(changes), durable)

    def keep(self, changes: Sequence[StateChange]) -> None:
        """Makes durable what is so already and no client waits for."""
        if changes:
            self.gateway.keep(changes)

    def _made(self, channel: Channel, then: Then, future: Future[Any]) -> None:
        connection = self.connection
        if future.cancelled() or connection.ended or connection.channels.get(channel.id) is not channel:
            return
        more: Future[Any] | None = None
        try:
            try:
                more = then(future.result())
            except AmqpError as error:
                connection.failed(error, channel)
            if more is not None:
                channel.waiting = more
                more.add_done_callback(lambda _: self._go_on(channel))
            elif channel.waiting is future:
                self._go_on(channel)
        except Exception as error:  # the border: this is called by the loop
            connection.broke(error)

    def _go_on(self, channel: Channel) -> None:
        """With the frames that came meanwhile."""
        connection = self.connection
        channel.waiting = None
        try:
            while channel.backlog and channel.waiting is None and not connection.ended:
                kind, payload = channel.backlog.popleft()
                self._octets -= len(payload) + _FRAME_OCTETS
                connection.frame(kind, channel.id, payload, 0, len(payload))
            connection.flush_all()
        except Exception as error:  # the border: this is called by the loop
            connection.broke(error)
            return
        if self._octets <= BACKLOG_OCTETS // 2:
            connection.resume("backlog")
        connection.check_idle()
