"""Owns the octets that the load generator writes and looks for: MQTT 3.1.1 and AMQP 0-9-1, encoded beforehand.

Its rule: within one run all PUBLISH packets have one length, so packet `i` is found by its offset.
"""

from __future__ import annotations

import re
import socket
import struct
from typing import NamedTuple

from pamqp import commands, frame, header

PUBACK_SIZE = 4
CONNACK = b"\x20\x02\x00\x00"
DISCONNECT = b"\xe0\x00"
BODY = re.compile(rb'\{"id":"(\d{10})"')
BODY_END = b'"}'
"""Ends each body and stands nowhere else in it. In a frame's own fields it does no harm: a body comes after these."""
SMALLEST_BODY = len('{"id":"0123456789","v":""}')
MAX_FRAME = 131_072
CHANNELS = 8


class Packets(NamedTuple):
    """What one publisher sends: so many packets of one size, end to end."""

    octets: memoryview
    size: int
    number: int


def connect(client_id: str) -> bytes:
    """CONNECT, MQTT 3.1.1, clean session, keep-alive off."""
    name = client_id.encode()
    variable = b"\x00\x04MQTT\x04\x02\x00\x00" + struct.pack("!H", len(name)) + name
    return b"\x10" + _remaining_length(len(variable)) + variable


def publishes(publisher: int, publishers: int, total: int, groups: int, body_size: int) -> Packets:
    """The share of one publisher of `total` messages: number n goes to group n % groups as `bench/GROUP/orders`,
    QoS 1, and carries n as JSON field `id`. A group has one publisher, as `publishers` divides `groups`."""
    if groups % publishers or groups > 10_000 or body_size < SMALLEST_BODY:
        raise ValueError("publishers must divide groups, groups be at most 10000, and a body hold its id")
    topic = b"bench/%04d/orders"
    filling = b"x" * (body_size - SMALLEST_BODY)
    length = 2 + len(topic % 0) + 2 + body_size
    template = b"".join(
        (
            b"\x32",
            _remaining_length(length),
            struct.pack("!H", len(topic % 0)),
            topic,
            b"%c%c",
            b'{"id":"%010d","v":"',
            filling,
            b'"}',
        )
    )
    numbers = range(publisher, total, publishers)
    parts = [template % (n % groups, *divmod(i % 65_535 + 1, 256), n) for i, n in enumerate(numbers)]
    octets = b"".join(parts)
    size = len(parts[0]) if parts else 1
    return Packets(memoryview(octets), size, len(parts))


def pubacks(count: int) -> bytes:
    """The answers to `publishes`, in order."""
    return b"".join(b"\x40\x02" + struct.pack("!H", i % 65_535 + 1) for i in range(count))


def ack(delivery_tag: int) -> bytes:
    """basic.ack of all deliveries up to this one, on channel 1."""
    return struct.pack("!BHIHHQBB", 1, 1, 13, 60, 80, delivery_tag, 1, 0xCE)


def delivery(body: bytes) -> bytes:
    """basic.deliver with its header and body, as a broker writes it."""
    properties = commands.Basic.Properties(delivery_mode=2)
    return b"".join(
        (
            frame.marshal(commands.Basic.Deliver("bench", 1, False, "amq.topic", "bench.0000.orders"), 1),
            frame.marshal(header.ContentHeader(0, len(body), properties), 1),
            struct.pack("!BHI", 3, 1, len(body)) + body + b"\xce",
        )
    )


class AmqpSetup:
    """A blocking AMQP 0-9-1 connection for what comes before the measured part: one channel, number 1."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.socket = socket.create_connection(address, timeout=30)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = b""
        self.socket.sendall(b"AMQP\x00\x00\x09\x01")
        self._expect(commands.Connection.Start)
        start_ok = commands.Connection.StartOk({}, "PLAIN", "\x00guest\x00guest", "en_US")
        self.socket.sendall(frame.marshal(start_ok, 0))
        self._expect(commands.Connection.Tune)
        self.socket.sendall(frame.marshal(commands.Connection.TuneOk(CHANNELS, MAX_FRAME, 0), 0))
        self._call(commands.Connection.Open("/"), commands.Connection.OpenOk, channel=0)
        self._call(commands.Channel.Open(), commands.Channel.OpenOk)

    def declare_bound(self, queue: str, pattern: str) -> None:
        """A durable queue bound to amq.topic."""
        self._call(commands.Queue.Declare(queue=queue, durable=True), commands.Queue.DeclareOk)
        bind = commands.Queue.Bind(queue=queue, exchange="amq.topic", routing_key=pattern)
        self._call(bind, commands.Queue.BindOk)

    def consume(self, queue: str, prefetch: int) -> tuple[socket.socket, bytes]:
        """Starts a consumer with manual ack; returns the socket and what was read past consume-ok."""
        self._call(commands.Basic.Qos(prefetch_count=prefetch), commands.Basic.QosOk)
        self._call(commands.Basic.Consume(queue=queue, consumer_tag="bench"), commands.Basic.ConsumeOk)
        return self.socket, self._buffer

    def _call(self, method: frame.FrameTypes, answer: type, channel: int = 1) -> None:
        self.socket.sendall(frame.marshal(method, channel))
        self._expect(answer)

    def _expect(self, answer: type) -> None:
        while True:
            if len(self._buffer) >= 7:
                end = 8 + int.from_bytes(self._buffer[3:7], "big")
                if len(self._buffer) >= end:
                    _, _, value = frame.unmarshal(self._buffer[:end])
                    self._buffer = self._buffer[end:]
                    if not isinstance(value, answer):
                        raise ConnectionError(f"expected {answer.__name__}, got {value!r}")
                    return
            data = self.socket.recv(65_536)
            if not data:
                raise ConnectionError(f"closed by the server, which was to send {answer.__name__}")
            self._buffer += data


def _remaining_length(value: int) -> bytes:
    out = bytearray()
    while True:
        value, digit = divmod(value, 128)
        out.append(digit | 0x80 if value else digit)
        if not value:
            return bytes(out)
