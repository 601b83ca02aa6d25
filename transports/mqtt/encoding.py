"""Owns how packets become bytes, for 3.1.1 and 5.0, of clients and of servers (the way back is `codec`).

Its rule: a PUBLISH that goes to many is encoded once, and only its packet identifier differs between them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from struct import pack as _pack
from typing import Any

from transports.mqtt.fields import write_binary, write_properties, write_text, write_two, write_varint
from transports.mqtt.packets import (
    BRIDGE,
    FAILURE_311,
    RETURN_CODES,
    SERVER_UNAVAILABLE_311,
    V5,
    V311,
    Ack,
    Auth,
    ConnAck,
    Connect,
    Disconnect,
    Packet,
    PingReq,
    PingResp,
    Properties5,
    Publish,
    SubAck,
    Subscribe,
    Type,
    UnsubAck,
    Unsubscribe,
)

PINGRESP = b"\xd0\x00"
_JOIN_BELOW = 4096
"""Up to this many bytes one copy is cheaper than a further buffer in the write."""


class EncodedPublish:
    """A PUBLISH without its packet identifier."""

    __slots__ = ("head", "size", "tail")

    def __init__(
        self, version: int, topic: bytes, payload: bytes, qos: int, retain: bool, properties: Properties5
    ) -> None:
        section = write_properties(properties) if version == V5 else b""
        size = 2 + len(topic) + (2 if qos else 0) + len(section) + len(payload)
        first = bytes((0x30 | qos << 1 | retain,))
        self.head = first + write_varint(size) + write_two(len(topic)) + topic
        self.tail = section + payload
        self.size = len(self.head) + len(self.tail) + (2 if qos else 0)
        """Bytes on the wire."""
        if not qos:
            self.head += self.tail
            self.tail = b""

    def parts(self, packet_id: int = 0, dup: bool = False) -> Sequence[bytes]:
        """What goes to the socket; packet_id is 0 for QoS 0."""
        if not packet_id:
            return (self.head,)
        head = bytes((self.head[0] | 8,)) + self.head[1:] if dup else self.head
        if len(self.tail) < _JOIN_BELOW:
            return (b"%b%b%b" % (head, packet_id.to_bytes(2, "big"), self.tail),)
        return (head, packet_id.to_bytes(2, "big"), self.tail)


def positive_pubacks(packet_ids: Sequence[int]) -> bytes:
    """PUBACKs without a reason for these, in this order, as one piece."""
    return _pack(f">{len(packet_ids)}I", *[0x4002_0000 | packet_id for packet_id in packet_ids])


def puback(packet_id: int, reason: int, version: int) -> bytes:
    """Without words; 3.1.1 has no reasons."""
    if reason and version == V5:
        return b"\x40\x03" + packet_id.to_bytes(2, "big") + bytes((reason,))
    return b"\x40\x02" + packet_id.to_bytes(2, "big")


def encode(packet: Packet, version: int) -> bytes:
    """The packet's bytes. Raises ProtocolError for what the wire can't hold."""
    first, body = _WRITE[type(packet)](packet, version)
    return bytes((first,)) + write_varint(len(body)) + body


def _section(properties: Properties5, version: int) -> bytes:
    return write_properties(properties) if version == V5 else b""


def _connect(packet: Connect, version: int) -> tuple[int, bytes]:
    will = packet.will
    flags = packet.clean_start << 1 | (packet.username is not None) << 7 | (packet.password is not None) << 6
    if will:
        flags |= 4 | will.qos << 3 | will.retain << 5
    level = packet.version | BRIDGE if packet.bridge else packet.version
    body = b"\0\4MQTT" + bytes((level, flags)) + write_two(packet.keep_alive)
    body += _section(packet.properties, packet.version) + write_text(packet.client_id)
    if will:
        body += _section(will.properties, packet.version) + write_text(will.topic) + write_binary(will.payload)
    if packet.username is not None:
        body += write_text(packet.username)
    if packet.password is not None:
        body += write_binary(packet.password)
    return 0x10, body


def _connack(packet: ConnAck, version: int) -> tuple[int, bytes]:
    if version == V311:
        return 0x20, bytes((packet.session_present, RETURN_CODES.get(packet.reason, SERVER_UNAVAILABLE_311)))
    return 0x20, bytes((packet.session_present, packet.reason)) + write_properties(packet.properties)


def _publish(packet: Publish, version: int) -> tuple[int, bytes]:
    first = 0x30 | packet.dup << 3 | packet.qos << 1 | packet.retain
    packet_id = write_two(packet.packet_id) if packet.qos else b""
    return first, write_text(packet.topic) + packet_id + _section(packet.properties, version) + packet.payload


def _reason_and_properties(reason: int, properties: Properties5, version: int) -> bytes:
    """Left out where they say nothing [MQTT-3.4.2.1]."""
    if version == V311 or not (reason or properties):
        return b""
    return bytes((reason,)) + (write_properties(properties) if properties else b"")


def _ack(packet: Ack, version: int) -> tuple[int, bytes]:
    first = packet.type << 4 | (2 if packet.type == Type.PUBREL else 0)
    return first, write_two(packet.packet_id) + _reason_and_properties(packet.reason, packet.properties, version)


def _subscribe(packet: Subscribe, version: int) -> tuple[int, bytes]:
    body = write_two(packet.packet_id) + _section(packet.properties, version)
    for one in packet.requests:
        options = one.qos
        if version == V5:
            options |= one.no_local << 2 | one.retain_as_published << 3 | one.retain_handling << 4
        body += write_text(one.filter) + bytes((options,))
    return 0x82, body


def _suback(packet: SubAck, version: int) -> tuple[int, bytes]:
    if version == V311:
        reasons = bytes(min(reason, FAILURE_311) for reason in packet.reasons)
        return 0x90, write_two(packet.packet_id) + reasons
    return 0x90, write_two(packet.packet_id) + write_properties(packet.properties) + bytes(packet.reasons)


def _unsubscribe(packet: Unsubscribe, version: int) -> tuple[int, bytes]:
    body = write_two(packet.packet_id) + _section(packet.properties, version)
    return 0xA2, body + b"".join(map(write_text, packet.filters))


def _unsuback(packet: UnsubAck, version: int) -> tuple[int, bytes]:
    if version == V311:
        return 0xB0, write_two(packet.packet_id)
    return 0xB0, write_two(packet.packet_id) + write_properties(packet.properties) + bytes(packet.reasons)


def _disconnect(packet: Disconnect, version: int) -> tuple[int, bytes]:
    return 0xE0, _reason_and_properties(packet.reason, packet.properties, version)


def _auth(packet: Auth, version: int) -> tuple[int, bytes]:
    return 0xF0, _reason_and_properties(packet.reason, packet.properties, version)


_WRITE: dict[type, Callable[[Any, int], tuple[int, bytes]]] = {
    Connect: _connect,
    ConnAck: _connack,
    Publish: _publish,
    Ack: _ack,
    Subscribe: _subscribe,
    SubAck: _suback,
    Unsubscribe: _unsubscribe,
    UnsubAck: _unsuback,
    PingReq: lambda packet, version: (0xC0, b""),
    PingResp: lambda packet, version: (0xD0, b""),
    Disconnect: _disconnect,
    Auth: _auth,
}
