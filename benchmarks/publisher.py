"""Owns the publishers: MQTT and AMQP connections that keep up to `window` messages unanswered.

Its rule: each message is answered once and positively, and that is checked after the run.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Protocol

from benchmarks import amqp, mqtt
from benchmarks.load import Peer
from benchmarks.messages import LoadError, Packets
from tests.harness.process import Address


class Answers(Protocol):
    """count: how many messages were answered so far."""

    count: int

    def take(self, data: bytes) -> None: ...

    def check(self, number: int) -> None:
        """That many messages were answered, each once and positively. Raises LoadError."""


class PubAcks:
    """Counted by their octets."""

    def __init__(self) -> None:
        self.count = 0
        self._octets = 0
        self._chunks: list[bytes] = []

    def take(self, data: bytes) -> None:
        self._chunks.append(data)
        self._octets += len(data)
        self.count = self._octets // mqtt.PUBACK_SIZE

    def check(self, number: int) -> None:
        answers, expected = b"".join(self._chunks), mqtt.pubacks(number)
        if answers != expected and _sorted_packets(answers) != _sorted_packets(expected):
            raise LoadError("the answers are not one PUBACK for each message")


class Confirms:
    """basic.ack frames; several messages may be confirmed by one, in any order."""

    def __init__(self) -> None:
        self.count = 0
        self._rest = b""
        self._floor = 0
        self._above: set[int] = set()

    def take(self, data: bytes) -> None:
        data = self._rest + data
        end = len(data) - len(data) % amqp.CONFIRM.size
        self._rest = data[end:]
        above = self._above
        for kind, _, size, _, method, tag, flags, _ in amqp.CONFIRM.iter_unpack(data[:end]):
            if kind != 1 or size != 13 or method != 80:
                raise LoadError(f"a publish was answered by {data[:end].hex()[:200]}")
            if flags & 1:
                if tag <= self._floor:
                    raise LoadError(f"publish {tag} was confirmed twice")
                above.difference_update(range(self._floor + 1, tag + 1))
                self._floor = tag
            else:
                if tag <= self._floor or tag in above:
                    raise LoadError(f"publish {tag} was confirmed twice")
                above.add(tag)
            while self._floor + 1 in above:
                self._floor += 1
                above.remove(self._floor)
        self.count = self._floor + len(above)

    def check(self, number: int) -> None:
        if self._floor != number or self._above or self._rest:
            raise LoadError(f"{number} messages were published, {self.count} confirmed, all up to {self._floor}")


class Publisher(Peer):
    """Sends its packets as its window allows. Finished when all are answered."""

    def __init__(self, connection: socket.socket, packets: Packets, window: int, answers: Answers) -> None:
        super().__init__(connection)
        self.answers = answers
        self._packets = packets
        self._window = window
        self._sent_octets = 0

    @classmethod
    def mqtt(cls, address: Address, packets: Packets, window: int, client_id: str) -> Publisher:
        return cls(mqtt.open_session(address, client_id), packets, window, PubAcks())

    @classmethod
    def amqp(cls, address: Address, packets: Packets, window: int) -> Publisher:
        return cls(amqp.AmqpSetup(address).confirm(), packets, window, Confirms())

    @property
    def finished(self) -> bool:
        return self.answers.count >= self._packets.number

    @property
    def allowed(self) -> int:
        """How many of its messages may have been sent by now."""
        return self.answers.count + self._window

    def fill(self) -> None:
        packets = self._packets
        allowed = self.allowed
        limit = (allowed if allowed < packets.number else packets.number) * packets.size
        if self._sent_octets < limit:
            self._sent_octets += self.send(packets.octets[self._sent_octets : limit])
        self.stuck = self._sent_octets < limit

    def take(self, data: bytes) -> None:
        self.answers.take(data)
        self.fill()
        if self.answers.count >= self._packets.number:
            self.finish()

    def state(self) -> str:
        return f"{self.answers.count} of {self._packets.number} messages were answered"

    def check(self) -> None:
        """Raises LoadError unless each message was answered once and positively."""
        self.answers.check(self._packets.number)


def check_answers(publishers: Sequence[Publisher]) -> None:
    """Raises LoadError unless each of their messages was answered once and positively."""
    for publisher in publishers:
        publisher.check()


def _sorted_packets(octets: bytes) -> list[bytes]:
    return sorted(octets[i : i + mqtt.PUBACK_SIZE] for i in range(0, len(octets), mqtt.PUBACK_SIZE))
