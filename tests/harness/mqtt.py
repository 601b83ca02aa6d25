"""Owns MqttPeer: an MQTT 3.1.1 client that shows all that happens, and can vanish.

Its rule: it hides nothing. It sends what a test says and calls back in the order in which packets came.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from typing import Any

from tests.harness.process import Address

SECONDS = 20.0
CONNACK, PUBLISH, PUBACK, PUBREC, PUBREL, PUBCOMP, SUBACK = 2, 3, 4, 5, 6, 7, 9


class MqttPeer(asyncio.Protocol):
    """Made by `connect`. `on_answer` gets the token of each message that was answered by PUBACK, `on_message`
    topic, body and packet id (0 for QoS 0) of each one that came, `on_step` kind and packet id of a PUBREC, PUBREL or
    PUBCOMP."""

    def __init__(self) -> None:
        self.on_answer: Callable[[Any], None] = lambda token: None
        self.on_message: Callable[[str, bytes, int], None] = lambda topic, body, packet_id: None
        self.on_step: Callable[[int, int], None] = lambda kind, packet_id: None
        self.lost = asyncio.Event()
        self.session_present = False
        """The server knew the session."""
        self.unanswered: dict[int, Any] = {}
        """Tokens by packet id."""
        self._packet_id = 0
        self._transport: asyncio.WriteTransport | None = None
        self._buffer = bytearray()
        self._answers: asyncio.Queue[bytes] = asyncio.Queue()

    @classmethod
    async def connect(
        cls,
        address: Address,
        client_id: str,
        clean: bool = True,
        will: tuple[str, bytes] | None = None,
        prepare: Callable[[MqttPeer], None] = lambda peer: None,
    ) -> MqttPeer:
        """`will`: topic and body, QoS 1. `prepare` gets the peer before CONNECT is sent: what a session holds comes
        right behind CONNACK. Raises ConnectionError if it is refused."""
        _, peer = await asyncio.get_running_loop().create_connection(cls, *address)
        prepare(peer)
        flags = (2 if clean else 0) | (0x0C if will else 0)
        texts = [client_id.encode(), *([will[0].encode(), will[1]] if will else [])]
        payload = b"".join(struct.pack("!H", len(text)) + text for text in texts)
        peer._send(0x10, b"\x00\x04MQTT\x04" + bytes([flags]) + b"\x00\x00" + payload)
        answer = await peer._answer()
        if answer[:1] != b"\x20" or answer[-1] != 0:
            raise ConnectionError(f"CONNECT was answered by {answer.hex() or 'the end'}")
        peer.session_present = bool(answer[2] & 1)
        return peer

    def publish_assured(self, topic: str, body: bytes, packet_id: int, again: bool) -> None:
        """At QoS 2, under an identifier that the caller looks after."""
        name = topic.encode()
        self._send(0x34 | again << 3, struct.pack("!H", len(name)) + name + struct.pack("!H", packet_id) + body)

    def step(self, kind: int, packet_id: int) -> None:
        """PUBREC, PUBREL or PUBCOMP."""
        self._write(struct.pack("!BBH", kind << 4 | (2 if kind == PUBREL else 0), 2, packet_id))

    def publish(self, topic: str, body: bytes, token: Any = None, qos: int = 1, retain: bool = False) -> None:
        """`token` comes back with the PUBACK of QoS 1."""
        name = topic.encode()
        head = struct.pack("!H", len(name)) + name
        if qos:
            self._packet_id = self._packet_id % 65_535 + 1
            self.unanswered[self._packet_id] = token
            head += struct.pack("!H", self._packet_id)
        self._send(0x30 | qos << 1 | retain, head + body)

    async def subscribe(self, filter: str, qos: int = 1) -> int:
        """The QoS that was granted, or 128."""
        name = filter.encode()
        self._packet_id = self._packet_id % 65_535 + 1
        self._send(0x82, struct.pack("!HH", self._packet_id, len(name)) + name + bytes([qos]))
        return (await self._answer())[-1]

    def ack(self, packet_id: int) -> None:
        self._write(struct.pack("!BBH", 0x40, 2, packet_id))

    def vanish(self) -> None:
        """As a process that was killed: no DISCONNECT."""
        if self._transport:
            self._transport.abort()

    async def close(self) -> None:
        """In good order; also for a peer that is gone."""
        if self._transport and not self.lost.is_set():
            self._write(b"\xe0\x00")
            self._transport.close()
            async with asyncio.timeout(SECONDS):
                await self.lost.wait()

    # what comes in

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set()
        self._answers.put_nowait(b"")

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        start = 0
        while (found := _packet(self._buffer, start)) is not None:
            body, end = found
            self._packet(self._buffer[start], bytes(self._buffer[body:end]), bytes(self._buffer[start:end]))
            start = end
        del self._buffer[:start]

    def _packet(self, first: int, body: bytes, whole: bytes) -> None:
        kind = first >> 4
        if kind == PUBACK:
            self.on_answer(self.unanswered.pop(int.from_bytes(body[:2], "big")))
        elif PUBREC <= kind <= PUBCOMP:
            self.on_step(kind, int.from_bytes(body[:2], "big"))
        elif kind == PUBLISH:
            size = int.from_bytes(body[:2], "big")
            topic, rest = body[2 : 2 + size].decode(), body[2 + size :]
            if first & 6:
                self.on_message(topic, rest[2:], int.from_bytes(rest[:2], "big"))
            else:
                self.on_message(topic, rest, 0)
        else:
            self._answers.put_nowait(whole)

    async def _answer(self) -> bytes:
        async with asyncio.timeout(SECONDS):
            answer = await self._answers.get()
        if not answer:
            raise ConnectionError("the connection was closed")
        return answer

    def _send(self, first: int, body: bytes) -> None:
        size, octets = len(body), bytearray()
        while True:
            size, digit = divmod(size, 128)
            octets.append(digit | 0x80 if size else digit)
            if not size:
                break
        self._write(bytes([first]) + octets + body)

    def _write(self, data: bytes) -> None:
        if self._transport and not self._transport.is_closing():
            self._transport.write(data)


def _packet(buffer: bytearray, start: int) -> tuple[int, int] | None:
    """Where the body of the packet at `start` begins and ends; None if it is not whole."""
    size, shift, at = 0, 0, start + 1
    while True:
        if at >= len(buffer):
            return None
        digit = buffer[at]
        size |= (digit & 127) << shift
        shift, at = shift + 7, at + 1
        if digit < 128:
            break
    return (at, at + size) if at + size <= len(buffer) else None
