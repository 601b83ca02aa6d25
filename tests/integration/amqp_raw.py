"""Owns Raw: an AMQP client of plain blocking sockets, for what no library would send or would hide.

Its rule: it sends what a test says, and shows every frame that comes but heartbeats.
"""

from __future__ import annotations

import socket
import struct
from typing import Any

from pamqp import body, commands, frame, header
from pamqp.heartbeat import Heartbeat

from tests.harness.process import Address

HELLO = b"AMQP\x00\x00\x09\x01"
CAPABILITIES: Any = {"authentication_failure_close": True, "consumer_cancel_notify": True, "connection.blocked": True}


class Raw:
    """A client that sends what it is told and shows the frames that come back. Channel 1 is open."""

    def __init__(self, address: Address) -> None:
        self.socket = socket.create_connection(address, timeout=10)
        self._buffer = b""
        self.published = 0
        self.prefetch = 0

    def login(self, user: str = "guest", vhost: str = "/", **tune: int) -> None:
        """The password is the user's name."""
        self.socket.sendall(HELLO)
        self.expect(commands.Connection.Start)
        self.send(commands.Connection.StartOk({"capabilities": CAPABILITIES}, "PLAIN", f"\0{user}\0{user}"), 0)
        offered = self.expect(commands.Connection.Tune)
        limits = {"channel_max": offered.channel_max, "frame_max": offered.frame_max, "heartbeat": 0, **tune}
        self.send(commands.Connection.TuneOk(**limits), 0)
        self.send(commands.Connection.Open(virtual_host=vhost), 0)
        self.expect(commands.Connection.OpenOk)
        self.send(commands.Channel.Open())
        self.expect(commands.Channel.OpenOk)

    def send(self, *frames: Any, channel: int | None = None) -> None:
        last = frames[-1]
        if isinstance(last, int):
            frames, channel = frames[:-1], last
        number = 1 if channel is None else channel
        self.socket.sendall(b"".join(frame.marshal(one, number) for one in frames))

    def read(self) -> Any:
        """The next frame that is no heartbeat; None at the end of the stream."""
        while True:
            if len(self._buffer) >= 7:
                size = struct.unpack(">I", self._buffer[3:7])[0] + 8
                if len(self._buffer) >= size:
                    one, self._buffer = self._buffer[:size], self._buffer[size:]
                    found = frame.unmarshal(one)[2]
                    if not isinstance(found, Heartbeat):
                        return found
                    continue
            data = self.socket.recv(65536)
            if not data:
                return None
            self._buffer += data

    def expect(self, kind: type[Any]) -> Any:
        found = self.read()
        assert isinstance(found, kind), (found, getattr(found, "reply_text", ""))
        return found

    def call(self, method: Any, answer: type[Any]) -> Any:
        self.send(method)
        return self.expect(answer)

    def publish(self, content: bytes, key: str = "", exchange: str = "", **options: Any) -> None:
        self.published += 1
        properties = commands.Basic.Properties(**options.pop("properties", {}))
        self.send(
            commands.Basic.Publish(exchange=exchange, routing_key=key, **options),
            header.ContentHeader(0, len(content), properties),
            *([body.ContentBody(content)] if content else []),
        )

    def close(self) -> None:
        self.socket.close()

    def is_alive(self) -> bool:
        self.send(commands.Channel.Open(), 2)
        return isinstance(self.read(), commands.Channel.OpenOk)

    # properties as bytes

    def subscribe(self, pattern: str) -> None:
        """A queue of its own that gets what goes to `amq.topic` with such a key, without acknowledgement."""
        queue = self.call(commands.Queue.Declare(exclusive=True), commands.Queue.DeclareOk).queue
        self.call(commands.Queue.Bind(queue=queue, exchange="amq.topic", routing_key=pattern), commands.Queue.BindOk)
        self.call(commands.Basic.Consume(queue=queue, no_ack=True), commands.Basic.ConsumeOk)

    def publish_raw(self, exchange: str, key: str, properties: bytes, content: bytes) -> None:
        head = struct.pack(">HHQ", 60, 0, len(content)) + properties
        whole = struct.pack(">BHI", 2, 1, len(head)) + head + b"\xce"
        name, text = exchange.encode(), key.encode()
        payload = (
            struct.pack(">IH", commands.Basic.Publish.index, 0)
            + bytes((len(name),))
            + name
            + bytes((len(text),))
            + text
            + b"\0"
        )
        self.socket.sendall(struct.pack(">BHI", 1, 1, len(payload)) + payload + b"\xce" + whole)
        if content:
            self.send(body.ContentBody(content))

    def delivered_raw(self) -> tuple[str, bytes, bytes]:
        """(routing key, properties, body) of the next delivery."""
        deliver = self.expect(commands.Basic.Deliver)
        head = self._payload()
        size = struct.unpack_from(">Q", head, 4)[0]
        data = b""
        while len(data) < size:
            data += self._payload()
        return deliver.routing_key, head[12:], data

    def _payload(self) -> bytes:
        while len(self._buffer) < 7 or len(self._buffer) < struct.unpack(">I", self._buffer[3:7])[0] + 8:
            received = self.socket.recv(65536)
            if not received:
                raise ConnectionError("the server has closed the connection")
            self._buffer += received
        size = struct.unpack(">I", self._buffer[3:7])[0]
        payload, self._buffer = self._buffer[7 : 7 + size], self._buffer[8 + size :]
        return payload
