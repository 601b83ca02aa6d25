"""Owns the MQTT octets that the load generator writes and looks for: 3.1.1, encoded beforehand.

Its rule: within one flow all PUBLISH packets have one length, so packet `i` is found by its offset, and a broker that
passes one on with the same QoS writes the same octets except for the packet id.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence

from benchmarks.messages import Flow, LoadError, Packets

PUBACK_SIZE = 4
CONNACK = b"\x20\x02\x00\x00"
DISCONNECT = b"\xe0\x00"
IDS = 65_535


def connect(client_id: str, clean: bool = True, keep_alive: int = 0) -> bytes:
    """CONNECT, MQTT 3.1.1; keep_alive in seconds, 0 for none."""
    name = client_id.encode()
    variable = b"\x00\x04MQTT\x04" + struct.pack("!BHH", 2 if clean else 0, keep_alive, len(name)) + name
    return b"\x10" + remaining_length(len(variable)) + variable


def subscribe(filters: Sequence[bytes], qos: int) -> bytes:
    body = b"".join(struct.pack("!H", len(each)) + each + bytes((qos,)) for each in filters)
    return b"\x82" + remaining_length(2 + len(body)) + b"\x00\x01" + body


def suback(count: int, qos: int) -> bytes:
    """What grants `subscribe` all that it asks for."""
    return b"\x90" + remaining_length(2 + count) + b"\x00\x01" + bytes((qos,)) * count


def publishes(flow: Flow, publisher: int) -> Packets:
    """The share of one publisher."""
    flow.check()
    topic, groups = flow.topic, flow.groups
    length = 2 + len(topic % 0) + (2 if flow.qos else 0) + flow.body_size
    head = bytes((0x30 | flow.qos << 1,)) + remaining_length(length) + struct.pack("!H", len(topic % 0))
    if not flow.qos:
        template = head + topic + flow.body()
        return Packets.of([template % (n % groups, n) for n in flow.numbers(publisher)])
    template = head + topic + b"%c%c" + flow.body()
    return Packets.of(
        [template % (n % groups, *divmod(i % IDS + 1, 256), n) for i, n in enumerate(flow.numbers(publisher))]
    )


def id_offset(packet: bytes | bytearray) -> int:
    """Where in a PUBLISH of QoS 1 its packet id stands."""
    at = 1
    while packet[at] & 0x80:
        at += 1
    return at + 3 + int.from_bytes(packet[at + 1 : at + 3], "big")


def pubacks(count: int) -> bytes:
    """The answers to `publishes`, in order."""
    return b"".join(b"\x40\x02" + struct.pack("!H", i % IDS + 1) for i in range(count))


def remaining_length(value: int) -> bytes:
    out = bytearray()
    while True:
        value, digit = divmod(value, 128)
        out.append(digit | 0x80 if value else digit)
        if not value:
            return bytes(out)


def open_session(
    address: tuple[str, int], client_id: str, clean: bool = True, source: tuple[str, int] | None = None
) -> socket.socket:
    """A connection after its CONNACK. Raises LoadError if that says no."""
    connection = socket.create_connection(address, timeout=30, source_address=source)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    call(connection, connect(client_id, clean), CONNACK)
    return connection


def call(connection: socket.socket, request: bytes, answer: bytes) -> None:
    """Sends a request and waits for the one right answer. Raises LoadError for another."""
    connection.sendall(request)
    got = connection.recv(len(answer), socket.MSG_WAITALL)
    if got != answer:
        raise LoadError(f"packet type {request[0] >> 4} was answered by {got.hex()}")
