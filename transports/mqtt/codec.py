"""Owns how bytes become packets, for 3.1.1 and 5.0, of clients and of servers (the way back is `encoding`).

Its rule: no I/O and no state but the version; too few bytes is no error, and whatever a peer sends ends in
packets or in one Fault, never in an exception.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transports.mqtt.fields import (
    decode_text,
    malformed,
    read_binary,
    read_byte,
    read_properties,
    read_text,
    read_two,
    violation,
)
from transports.mqtt.packets import (
    BRIDGE,
    NO_PROPERTIES5,
    RETURN_CODES,
    SERVER_UNAVAILABLE_311,
    V5,
    V311,
    WILL,
    Ack,
    Auth,
    ConnAck,
    Connect,
    Disconnect,
    Fault,
    Packet,
    PingReq,
    PingResp,
    Property,
    ProtocolError,
    Publish,
    Reason,
    Request,
    SubAck,
    Subscribe,
    Type,
    UnsubAck,
    Unsubscribe,
    Will,
)

_PINGREQ = PingReq()
_PINGRESP = PingResp()
_MANY_PACKETS = 1 << 30
MAX_FILTERS = 2000
"""Of one SUBSCRIBE or UNSUBSCRIBE."""
_FILTERS_AT_ONCE = 1000
"""With so many in it, a `decode` that has a limit ends."""
_FILTERS_OF_ONE = 16
"""A packet with filters counts for at least so many: for each, all that a session has may be written."""
_CACHED_TOPICS = 16_384
_CACHED_TOPIC_BYTES = 256

_PUBLISH_ALIAS = int(Property.TOPIC_ALIAS)


class TopicNames:
    """Topic bytes that were found valid, as text. Bounded; meant to be shared by the connections of a listener."""

    __slots__ = ("known", "max_levels")

    def __init__(self, max_levels: int = 128) -> None:
        self.known: dict[bytes, str] = {}
        self.max_levels = max_levels

    def check(self, raw: bytes) -> str:
        """The topic name, remembered. Raises ProtocolError."""
        topic = decode_text(raw)
        if "+" in topic or "#" in topic:  # [MQTT-3.3.2-2]
            raise malformed("a topic name contains a wildcard")
        if topic.count("/") >= self.max_levels:
            raise ProtocolError(Reason.TOPIC_NAME_INVALID, f"a topic name has more than {self.max_levels} levels")
        if topic and len(raw) <= _CACHED_TOPIC_BYTES:
            if len(self.known) >= _CACHED_TOPICS:
                self.known.clear()
            self.known[raw] = topic
        return topic


class Decoder:
    """Cuts a stream into packets. `version` is 0 until a CONNECT came by (or is set, for the client's side)."""

    __slots__ = ("_filters", "has_more", "max_packet_size", "max_packets", "topics", "version")

    def __init__(
        self, max_packet_size: int, topics: TopicNames, version: int = 0, max_packets: int = _MANY_PACKETS
    ) -> None:
        """max_packets: of one `decode`, which then ends with many filters, too. has_more: the last one has ended so,
        and there may be more in the buffer."""
        self.max_packets = max_packets
        self.has_more = False
        self._filters = 0
        self.max_packet_size = max_packet_size
        self.topics = topics
        self.version = version

    def decode(self, buffer: bytearray) -> tuple[list[Packet | Fault], int]:
        """The whole packets at the start of `buffer`, all or `max_packets`, and how many bytes they take. A Fault is
        always the last. A CONNECT is the last too: what follows it waits until its sender is known."""
        packets: list[Packet | Fault] = []
        at = self._filters = 0
        self.has_more = False
        try:
            if not self.version and buffer and buffer[0] >> 4 != Type.CONNECT:
                raise violation("the first packet is not CONNECT")  # [MQTT-3.1.0-1], said before it is whole
            body, stop = self._frame(buffer, 0, len(buffer))
            if not stop:
                return packets, 0
            data = bytes(buffer)  # one copy, so that every slice below is one too
            end = len(data)
            known = self.topics.known
            version = self.version
            append = packets.append
            while stop and len(packets) < self.max_packets:
                first = data[at]
                kind = first >> 4
                if kind == 3 and version:
                    qos = first >> 1 & 3
                    place = body + 2
                    if place > stop:
                        raise malformed("PUBLISH ends within its topic")
                    place += data[body] << 8 | data[body + 1]
                    if place > stop:
                        raise malformed("PUBLISH ends within its topic")
                    raw = data[body + 2 : place]
                    topic = known.get(raw)
                    if topic is None:
                        topic = self.topics.check(raw)
                    if qos:
                        if qos == 3:  # [MQTT-3.3.1-4]
                            raise malformed("QoS 3 does not exist")
                        if place + 2 > stop:
                            raise malformed("PUBLISH ends within its packet identifier")
                        packet_id = data[place] << 8 | data[place + 1]
                        if not packet_id:  # [MQTT-2.2.1-3]
                            raise violation("packet identifier 0")
                        place += 2
                    else:
                        packet_id = 0
                        if first & 8:  # [MQTT-3.3.1-2]
                            raise malformed("DUP is set at QoS 0")
                    properties = NO_PROPERTIES5
                    if version == V5:
                        if place < stop and not data[place]:
                            place += 1
                        else:
                            properties, place = read_properties(data, place, stop, Type.PUBLISH)
                    if not topic and _PUBLISH_ALIAS not in properties:  # [MQTT-3.3.2-1], [MQTT-4.7.3-1]
                        raise violation("an empty topic name")
                    append(Publish(topic, data[place:stop], qos, first & 1 == 1, first & 8 == 8, packet_id, properties))
                elif first == 0x40 and stop - body == 2 and version:
                    packet_id = data[body] << 8 | data[body + 1]
                    if not packet_id:
                        raise violation("packet identifier 0")
                    append(Ack(Type.PUBACK, packet_id))
                else:
                    packet = self._other(kind, first & 15, data, body, stop)
                    append(packet)
                    if kind == Type.CONNECT:
                        return packets, stop
                    if self._filters >= _FILTERS_AT_ONCE and self.max_packets < _MANY_PACKETS:
                        self.has_more = True
                        return packets, stop
                at = stop
                if at + 1 < end and data[at + 1] < 0x80:
                    body = at + 2
                    stop = body + data[at + 1]
                    if stop > end:
                        break
                else:
                    body, stop = self._frame(data, at, end)
            self.has_more = len(packets) >= self.max_packets
        except ProtocolError as error:
            packets.append(Fault(error.reason, error.why, self.version))
        except _UnsupportedVersion as error:
            packets.append(Fault(Reason.UNSUPPORTED_PROTOCOL_VERSION, str(error), error.answer))
        return packets, at

    def _frame(self, data: bytes | bytearray, at: int, end: int) -> tuple[int, int]:
        """Where the body of the packet at `at` begins and ends; (0, 0) if it is not whole yet."""
        size = shift = 0
        place = at + 1
        while place < end:
            byte = data[place]
            size |= (byte & 0x7F) << shift
            place += 1
            if byte < 0x80:
                if shift and not byte:  # [MQTT-1.5.5-1]
                    raise malformed("Remaining Length is not in its shortest form")
                stop = place + size
                if stop - at > self.max_packet_size:  # [MQTT-3.2.2-15]
                    raise ProtocolError(Reason.PACKET_TOO_LARGE, f"a packet of {stop - at} bytes")
                return (place, stop) if stop <= end else (0, 0)
            shift += 7
            if shift > 21:
                raise malformed("Remaining Length has more than four bytes")
        return 0, 0

    def _other(self, kind: int, flags: int, data: bytes, at: int, stop: int) -> Packet:
        read = _READ.get(kind)
        if read is None or flags != _FLAGS.get(kind, 0) or (kind == Type.AUTH and self.version == V311):
            raise malformed(f"packet type {kind} with flags {flags}")  # [MQTT-2.1.3-1]
        if kind == Type.CONNECT and not self.version:
            packet, at = _read_connect(data, at, stop)
            self.version = packet.version
            return packet
        other: Packet
        other, at = read(data, at, stop, self.version)
        if kind == Type.SUBSCRIBE or kind == Type.UNSUBSCRIBE:
            filters = other.requests if isinstance(other, Subscribe) else other.filters  # type: ignore[union-attr]
            self._filters += max(len(filters), _FILTERS_OF_ONE)
        if at != stop:
            raise malformed(f"{stop - at} bytes behind the packet's last field")
        return other


class _UnsupportedVersion(Exception):
    """The peer speaks another MQTT; `answer` is the version whose CONNACK it can read."""

    def __init__(self, level: int) -> None:
        super().__init__(f"protocol level {level}")
        self.answer = V311 if level < V5 else V5


# Readers of all packets but PUBLISH: (data, at, stop, version) -> (packet, next place).

_Read = Callable[[bytes, int, int, int], tuple[Any, int]]


def _properties(data: bytes, at: int, stop: int, version: int, place: int) -> tuple[dict[int, Any], int]:
    return read_properties(data, at, stop, place) if version == V5 else (NO_PROPERTIES5, at)


def _packet_id(data: bytes, at: int, stop: int) -> tuple[int, int]:
    packet_id, at = read_two(data, at, stop)
    if not packet_id:
        raise violation("packet identifier 0")  # [MQTT-2.2.1-3]
    return packet_id, at


def _read_connect(data: bytes, at: int, stop: int) -> tuple[Connect, int]:
    name, at = read_binary(data, at, stop)
    if name not in (b"MQTT", b"MQIsdp"):  # [MQTT-3.1.2-1]
        raise ProtocolError(Reason.UNSUPPORTED_PROTOCOL_VERSION, "no MQTT")
    level, at = read_byte(data, at, stop)
    bridge = (name, level) in _BRIDGES
    version = V311 if bridge else level
    if not bridge and (name != b"MQTT" or version not in (V311, V5)):
        raise _UnsupportedVersion(level)
    flags, at = read_byte(data, at, stop)
    keep_alive, at = read_two(data, at, stop)
    qos = flags >> 3 & 3
    if flags & 1 or qos == 3 or (not flags & 4 and flags & 0x38):  # [MQTT-3.1.2-3], [MQTT-3.1.2-11..15]
        raise malformed("CONNECT has impossible flags")
    if version == V311 and flags & 0xC0 == 0x40:  # [MQTT-3.1.2-22 of 3.1.1]
        raise malformed("CONNECT has a password without a user name")
    properties, at = _properties(data, at, stop, version, Type.CONNECT)
    if Property.AUTHENTICATION_DATA in properties and Property.AUTHENTICATION_METHOD not in properties:
        raise violation("authentication data without a method")  # [MQTT-3.1.2.11.10]
    client_id, at = read_text(data, at, stop)
    will = None
    if flags & 4:
        about, at = _properties(data, at, stop, version, WILL)
        topic, at = read_text(data, at, stop)
        payload, at = read_binary(data, at, stop)
        will = Will(topic, payload, qos, flags & 0x20 != 0, about)
    username = password = None
    if flags & 0x80:
        username, at = read_text(data, at, stop)
    if flags & 0x40:
        password, at = read_binary(data, at, stop)
    if at != stop:
        raise malformed("bytes behind the last field of CONNECT")
    return Connect(client_id, version, flags & 2 != 0, keep_alive, will, username, password, properties, bridge), at


_BRIDGES = ((b"MQTT", BRIDGE | V311), (b"MQIsdp", BRIDGE | 3))
"""What a bridge of 3.1.1, and one of 3.1, begins with; between brokers these two say the same."""


def _second_connect(data: bytes, at: int, stop: int, version: int) -> tuple[Connect, int]:
    raise violation("a second CONNECT")  # [MQTT-3.1.0-2]


def _read_connack(data: bytes, at: int, stop: int, version: int) -> tuple[ConnAck, int]:
    flags, at = read_byte(data, at, stop)
    code, at = read_byte(data, at, stop)
    if flags > 1:
        raise malformed("CONNACK has impossible flags")
    if version == V311:
        reason = _FROM_RETURN_CODE.get(code)
        if reason is None:
            raise malformed("CONNACK has an unknown return code")
        return ConnAck(reason, flags == 1), at
    reason = _reason(code)
    properties, at = read_properties(data, at, stop, Type.CONNACK)
    return ConnAck(reason, flags == 1, properties), at


_FROM_RETURN_CODE = {code: reason for reason, code in reversed(RETURN_CODES.items())}
_FROM_RETURN_CODE[SERVER_UNAVAILABLE_311] = Reason.SERVER_UNAVAILABLE
_FROM_RETURN_CODE[5] = Reason.NOT_AUTHORIZED
_REASONS = {int(reason): reason for reason in Reason}


def _reason(code: int) -> Reason:
    reason = _REASONS.get(code)
    if reason is None:
        raise malformed(f"reason code {code:#04x} does not exist")
    return reason


def _read_ack(type: Type) -> _Read:
    def read(data: bytes, at: int, stop: int, version: int) -> tuple[Ack, int]:
        packet_id, at = _packet_id(data, at, stop)
        if version == V311 or at == stop:  # [MQTT-3.4.2.1]: without a reason it is 0
            return Ack(type, packet_id), at
        reason, at = read_byte(data, at, stop)
        _reason(reason)
        if at == stop:
            return Ack(type, packet_id, reason), at
        properties, at = read_properties(data, at, stop, type)
        return Ack(type, packet_id, reason, properties), at

    return read


def _read_filter(data: bytes, at: int, stop: int) -> tuple[str, int]:
    filter, at = read_text(data, at, stop)
    if not filter:
        raise malformed("an empty topic filter")  # [MQTT-4.7.3-1]
    return filter, at


def _too_many(packet: str) -> ProtocolError:
    """Said before any of it is done: SUBACK and UNSUBACK have a word for each filter alone [MQTT-3.8.4-6]."""
    return ProtocolError(Reason.QUOTA_EXCEEDED, f"{packet} with more than {MAX_FILTERS} topic filters; send several")


def _read_subscribe(data: bytes, at: int, stop: int, version: int) -> tuple[Subscribe, int]:
    packet_id, at = _packet_id(data, at, stop)
    properties, at = _properties(data, at, stop, version, Type.SUBSCRIBE)
    requests: list[Request] = []
    while at < stop:
        if len(requests) == MAX_FILTERS:
            raise _too_many("SUBSCRIBE")
        filter, at = _read_filter(data, at, stop)
        options, at = read_byte(data, at, stop)
        if options & 3 == 3 or options & (0xC0 if version == V5 else 0xFC) or options & 0x30 == 0x30:
            raise malformed("SUBSCRIBE has impossible options")  # [MQTT-3.8.3-5]
        requests.append(Request(filter, options & 3, options & 4 != 0, options & 8 != 0, options >> 4 & 3))
    if not requests:
        raise violation("SUBSCRIBE without a topic filter")  # [MQTT-3.8.3-2]
    return Subscribe(packet_id, tuple(requests), properties), at


def _read_codes(data: bytes, at: int, stop: int) -> tuple[int, ...]:
    for code in data[at:stop]:
        _reason(code)
    return tuple(data[at:stop])


def _read_suback(data: bytes, at: int, stop: int, version: int) -> tuple[SubAck, int]:
    packet_id, at = _packet_id(data, at, stop)
    properties, at = _properties(data, at, stop, version, Type.SUBACK)
    return SubAck(packet_id, _read_codes(data, at, stop), properties), stop


def _read_unsubscribe(data: bytes, at: int, stop: int, version: int) -> tuple[Unsubscribe, int]:
    packet_id, at = _packet_id(data, at, stop)
    properties, at = _properties(data, at, stop, version, Type.UNSUBSCRIBE)
    filters: list[str] = []
    while at < stop:
        if len(filters) == MAX_FILTERS:
            raise _too_many("UNSUBSCRIBE")
        filter, at = _read_filter(data, at, stop)
        filters.append(filter)
    if not filters:
        raise violation("UNSUBSCRIBE without a topic filter")  # [MQTT-3.10.3-2]
    return Unsubscribe(packet_id, tuple(filters), properties), at


def _read_unsuback(data: bytes, at: int, stop: int, version: int) -> tuple[UnsubAck, int]:
    packet_id, at = _packet_id(data, at, stop)
    if version == V311:
        return UnsubAck(packet_id), at
    properties, at = read_properties(data, at, stop, Type.UNSUBACK)
    return UnsubAck(packet_id, _read_codes(data, at, stop), properties), stop


def _read_pingreq(data: bytes, at: int, stop: int, version: int) -> tuple[PingReq, int]:
    return _PINGREQ, at


def _read_pingresp(data: bytes, at: int, stop: int, version: int) -> tuple[PingResp, int]:
    return _PINGRESP, at


def _read_closing(make: type[Disconnect] | type[Auth], type: Type) -> _Read:
    def read(data: bytes, at: int, stop: int, version: int) -> tuple[Disconnect | Auth, int]:
        if version == V311 or at == stop:  # [MQTT-3.14.2.1]
            return make(), at
        reason, at = read_byte(data, at, stop)
        _reason(reason)
        if at == stop:
            return make(reason), at
        properties, at = read_properties(data, at, stop, type)
        return make(reason, properties), at

    return read


_FLAGS: dict[int, int] = {Type.PUBREL: 2, Type.SUBSCRIBE: 2, Type.UNSUBSCRIBE: 2}
_READ: dict[int, _Read] = {
    Type.CONNECT: _second_connect,
    Type.CONNACK: _read_connack,
    Type.PUBACK: _read_ack(Type.PUBACK),
    Type.PUBREC: _read_ack(Type.PUBREC),
    Type.PUBREL: _read_ack(Type.PUBREL),
    Type.PUBCOMP: _read_ack(Type.PUBCOMP),
    Type.SUBSCRIBE: _read_subscribe,
    Type.SUBACK: _read_suback,
    Type.UNSUBSCRIBE: _read_unsubscribe,
    Type.UNSUBACK: _read_unsuback,
    Type.PINGREQ: _read_pingreq,
    Type.PINGRESP: _read_pingresp,
    Type.DISCONNECT: _read_closing(Disconnect, Type.DISCONNECT),
    Type.AUTH: _read_closing(Auth, Type.AUTH),
}
