"""Owns the MQTT subscriber: it knows what must come, octet for octet, and answers each message of QoS 1.

Its rule: a lot is compared as a whole, by slices; only packet ids may be the broker's own.
"""

from __future__ import annotations

import socket

from benchmarks import mqtt
from benchmarks.load import Answering
from benchmarks.messages import LoadError, Packets


class Expected:
    """The packets of a publisher as each subscriber must get them; shared by all that get the same."""

    def __init__(self, packets: Packets, qos: int) -> None:
        self.size = packets.size
        self.number = packets.number
        self.qos = qos
        octets = bytearray(packets.octets)
        self.id_at = mqtt.id_offset(octets[: self.size]) if qos and octets else 0
        if self.id_at:
            blank(octets, self.id_at, self.size, self.number)
        self.octets = bytes(octets)


class Subscriber(Answering):
    """Finished when all expected messages came."""

    def __init__(self, connection: socket.socket, expected: Expected) -> None:
        """connection: of a session that is subscribed; see `subscribe`."""
        super().__init__(connection)
        self.count = 0
        self._expected = expected
        self._rest = b""

    @property
    def finished(self) -> bool:
        return self.count >= self._expected.number

    def take(self, data: bytes) -> None:
        expected = self._expected
        size = expected.size
        data = self._rest + data
        count = len(data) // size
        end = count * size
        self._rest = data[end:]
        if not count:
            return
        lot: bytes | bytearray = data[:end]
        if expected.qos:
            at = expected.id_at
            acks = bytearray(b"\x40\x02\x00\x00" * count)
            acks[2::4], acks[3::4] = lot[at::size], lot[at + 1 :: size]
            lot = bytearray(lot)
            blank(lot, at, size, count)
            self.answer(bytes(acks))
        begin = self.count * size
        if lot != expected.octets[begin : begin + end]:
            raise LoadError(f"after {self.count} messages a subscriber got others than the next {count}")
        self.count += count
        self.arrived(count)
        if self.finished:
            self.finish()

    def arrived(self, count: int) -> None:
        """So many more came just now, and `count` has them."""

    def state(self) -> str:
        return f"{self.count} of {self._expected.number} messages reached a subscriber"


def subscribe(session: socket.socket, topic_filter: bytes, qos: int) -> socket.socket:
    """Subscribes it, and returns it. Raises LoadError if it is not granted."""
    mqtt.call(session, mqtt.subscribe([topic_filter], qos), mqtt.suback(1, qos))
    return session


def blank(packets: bytearray, at: int, size: int, count: int) -> None:
    """Writes zeros over the ids of so many packets."""
    packets[at::size] = packets[at + 1 :: size] = bytes(count)
