"""Owns the AMQP consumer with manual acks: each lot that one read brings is acked at once, by one frame.

Its rule: it looks for nothing but the numbers of the messages.
"""

from __future__ import annotations

import socket

from benchmarks import amqp, messages
from benchmarks.load import Answering
from tests.harness.process import Address


class Consumer(Answering):
    """Finished when it has as many messages as it was told to expect."""

    def __init__(self, connection: socket.socket, start: bytes = b"") -> None:
        """`start`: octets of deliveries that were read already."""
        super().__init__(connection)
        self.ids: list[bytes] = []
        self._expected = 0
        self._rest = b""
        self._start = start

    @classmethod
    def of(cls, address: Address, queue: str, prefetch: int) -> Consumer:
        return cls(*amqp.AmqpSetup(address).consume(queue, prefetch))

    def expect(self, total: int) -> None:
        """`total` in all, since the beginning."""
        self._expected = total
        self.finished_at = 0.0

    def begin(self) -> None:
        if self._start:
            start, self._start = self._start, b""
            self.take(start)

    @property
    def finished(self) -> bool:
        return len(self.ids) >= self._expected

    def take(self, data: bytes) -> None:
        buffer = self._rest + data
        end = buffer.rfind(messages.BODY_END) + len(messages.BODY_END)
        if end < len(messages.BODY_END):
            self._rest = buffer
            return
        self._rest = buffer[end:]
        if found := messages.BODY.findall(buffer, 0, end):
            self.ids += found
            self.answer(amqp.ack(len(self.ids)))
            if self.finished:
                self.finish()

    def state(self) -> str:
        return f"{len(self.ids)} of {self._expected} messages were delivered"

    def check(self, first: int, total: int, groups: int) -> None:
        """Each number from `first` to `first + total` came once, ascending within its group, and nothing else came.
        Raises LoadError."""
        messages.check_deliveries(self.ids, first, total, groups)
