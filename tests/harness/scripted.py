"""Owns ScriptedRemote: an MQTT 5 server for one client, which answers each PUBLISH as a test says.

Its rule: it does only what it was told, also what no proper server does. What it can't read it takes for the end.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from typing import BinaryIO, NamedTuple

from tests.harness.process import Address

CONNACK = b"\x20\x03\x00\x00\x00"


class Published(NamedTuple):
    """A PUBLISH that came. packet_id: 0 for QoS 0."""

    topic: bytes
    body: bytes
    packet_id: int
    retain: bool


class ScriptedRemote:
    """Takes one connection after the other on `address`. `answer` gives the octets for a PUBLISH; with None it closes
    the connection. `greeting` follows the SUBACK, or the CONNACK if nothing is subscribed."""

    def __init__(self, answer: Callable[[Published], bytes | None], greeting: bytes = b"", connack: bytes = CONNACK):
        self._answer = answer
        self._greeting = greeting
        self._connack = connack
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = Address(*self._listener.getsockname()[:2])
        self._connection: socket.socket | None = None
        self.hears_pings = True
        self.connections = 0
        self.published: list[Published] = []
        self.connects: list[bytes] = []
        """The CONNECT packets, from their variable header on."""
        self.subscribed: list[bytes] = []
        """Likewise the SUBSCRIBE packets."""
        self.acknowledged: list[int] = []
        """The packet identifiers of PUBACKs."""
        self.changed = threading.Condition()
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def url(self) -> str:
        return f"mqtt://{self.address.host}:{self.address.port}"

    def wait_until(self, enough: Callable[[], bool], seconds: float = 30) -> None:
        with self.changed:
            assert self.changed.wait_for(enough, seconds), (self.connections, self.published, self.acknowledged)

    def send(self, octets: bytes) -> None:
        """To the client that is connected."""
        assert self._connection is not None
        self._connection.sendall(octets)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return  # closed
            with connection, connection.makefile("rb") as stream, contextlib.suppress(OSError):
                self.connections += 1
                self._connection = connection
                while (packet := _packet(stream)) and (answer := self._hear(*packet)) is not None:
                    connection.sendall(answer)

    def _hear(self, kind: int, flags: int, rest: bytes) -> bytes | None:
        with self.changed:
            self.changed.notify_all()
            if kind == 1:
                self.connects.append(rest)
                return self._connack
            if kind == 8:
                self.subscribed.append(rest)
                return b"\x90\x04" + rest[:2] + b"\x00\x01" + self._greeting
            if kind == 4:
                self.acknowledged.append(int.from_bytes(rest[:2], "big"))
            if kind == 12 and self.hears_pings:
                return b"\xd0\x00"
            if kind != 3:
                return None if kind == 14 else b""
            length = struct.unpack("!H", rest[:2])[0]
            topic, rest = rest[2 : 2 + length], rest[2 + length :]
            packet_id = 0
            if flags & 6:
                packet_id, rest = int.from_bytes(rest[:2], "big"), rest[2:]
            found = Published(
                topic, rest[1 + rest[0] :], packet_id, bool(flags & 1)
            )  # the properties are shorter than 128 octets
            self.published.append(found)
        return self._answer(found)


def publish(topic: bytes, body: bytes, packet_id: int, properties: bytes = b"") -> bytes:
    """A PUBLISH of QoS 1."""
    rest = struct.pack("!H", len(topic)) + topic + struct.pack("!HB", packet_id, len(properties)) + properties + body
    assert len(rest) < 128
    return b"\x32" + bytes([len(rest)]) + rest


def puback(packet_id: int, reason: int = 0) -> bytes:
    return b"\x40\x03" + struct.pack("!HB", packet_id, reason)


def disconnect(reason: int) -> bytes:
    return b"\xe0\x01" + bytes([reason])


def _packet(stream: BinaryIO) -> tuple[int, int, bytes] | None:
    read = stream.read
    first = read(1)
    if not first:
        return None
    length = shift = 0
    while True:
        octet = read(1)
        if not octet:
            return None
        length |= (octet[0] & 127) << shift
        shift += 7
        if octet[0] < 128:
            return first[0] >> 4, first[0] & 15, read(length)
