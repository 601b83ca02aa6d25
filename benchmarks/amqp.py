"""Owns the AMQP 0-9-1 octets that the load generator writes and looks for, encoded beforehand.

Its rule: within one flow all publishes (method, header and body) have one length, so each is found by its offset.
"""

from __future__ import annotations

import socket
import struct

from pamqp import commands, frame, header

from benchmarks.messages import Flow, Packets

MAX_FRAME = 131_072
CHANNELS = 8
CONFIRM = struct.Struct("!BHIHHQBB")
"""basic.ack and basic.nack as frames: type, channel, size, class, method, delivery tag, flags, end."""
FRAME_END = b"\xce"


def publishes(flow: Flow, publisher: int, queue: str) -> Packets:
    """The share of one publisher, persistent, to that queue by the default exchange, on channel 1."""
    flow.check()
    start = b"".join(
        (
            frame.marshal(commands.Basic.Publish(exchange="", routing_key=queue), 1),
            frame.marshal(header.ContentHeader(0, flow.body_size, commands.Basic.Properties(delivery_mode=2)), 1),
            struct.pack("!BHI", 3, 1, flow.body_size),
        )
    )
    body = flow.body()
    return Packets.of([start + body % n + FRAME_END for n in flow.numbers(publisher)])


def ack(delivery_tag: int) -> bytes:
    """basic.ack of all deliveries, or publishes, up to this one, on channel 1."""
    return CONFIRM.pack(1, 1, 13, 60, 80, delivery_tag, 1, 0xCE)


def delivery(body: bytes) -> bytes:
    """basic.deliver with its header and body, as a broker writes it."""
    properties = commands.Basic.Properties(delivery_mode=2)
    return b"".join(
        (
            frame.marshal(commands.Basic.Deliver("bench", 1, False, "amq.topic", "bench.0000.orders"), 1),
            frame.marshal(header.ContentHeader(0, len(body), properties), 1),
            struct.pack("!BHI", 3, 1, len(body)) + body + FRAME_END,
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

    def declare_bound(self, queue: str, pattern: str, kind: str) -> None:
        """A durable queue of that type (classic, quorum), empty, bound to amq.topic."""
        declare = commands.Queue.Declare(queue=queue, durable=True, arguments={"x-queue-type": kind})
        self._call(declare, commands.Queue.DeclareOk)
        bind = commands.Queue.Bind(queue=queue, exchange="amq.topic", routing_key=pattern)
        self._call(bind, commands.Queue.BindOk)

    def depth(self, queue: str) -> int:
        """How many messages it holds for delivery."""
        self.socket.sendall(frame.marshal(commands.Queue.Declare(queue=queue, passive=True), 1))
        answer = self._expect(commands.Queue.DeclareOk)
        assert isinstance(answer, commands.Queue.DeclareOk)
        return answer.message_count or 0

    def delete(self, queue: str) -> None:
        """Whether it is there or not."""
        self._call(commands.Queue.Delete(queue=queue), commands.Queue.DeleteOk)

    def confirm(self) -> socket.socket:
        """Turns publisher confirms on; returns the socket."""
        self._call(commands.Confirm.Select(), commands.Confirm.SelectOk)
        return self.socket

    def consume(self, queue: str, prefetch: int) -> tuple[socket.socket, bytes]:
        """Starts a consumer with manual ack; returns the socket and what was read past consume-ok."""
        self._call(commands.Basic.Qos(prefetch_count=prefetch), commands.Basic.QosOk)
        self._call(commands.Basic.Consume(queue=queue, consumer_tag="bench"), commands.Basic.ConsumeOk)
        return self.socket, self._buffer

    def _call(self, method: frame.FrameTypes, answer: type, channel: int = 1) -> None:
        self.socket.sendall(frame.marshal(method, channel))
        self._expect(answer)

    def _expect(self, answer: type) -> object:
        while True:
            if len(self._buffer) >= 7:
                end = 8 + int.from_bytes(self._buffer[3:7], "big")
                if len(self._buffer) >= end:
                    _, _, value = frame.unmarshal(self._buffer[:end])
                    self._buffer = self._buffer[end:]
                    if not isinstance(value, answer):
                        raise ConnectionError(f"expected {answer.__name__}, got {value!r}")
                    return value
            data = self.socket.recv(65_536)
            if not data:
                raise ConnectionError(f"closed by the server, which was to send {answer.__name__}")
            self._buffer += data
