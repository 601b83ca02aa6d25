"""Owns the fields that packets are made of: numbers, strings, binary data and the property section of MQTT 5.

Its rule: a reader never looks at or beyond `end`; whatever is not well formed raises ProtocolError.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import Any

from transports.mqtt.packets import NO_PROPERTIES5, WILL, Properties5, Property, ProtocolError, Reason, Type

MAX_SIZE = 268_435_455
"""The largest Remaining Length [MQTT-2.1.4]."""
MAX_STRING = 65_535

_TWO = Struct(">H")
_FOUR = Struct(">I")


def malformed(why: str) -> ProtocolError:
    return ProtocolError(Reason.MALFORMED_PACKET, why)


def violation(why: str) -> ProtocolError:
    return ProtocolError(Reason.PROTOCOL_ERROR, why)


# Readers: (data, at, end) -> (value, next place).


def read_byte(data: bytes, at: int, end: int) -> tuple[int, int]:
    if at >= end:
        raise malformed("the packet ends within a field")
    return data[at], at + 1


def read_two(data: bytes, at: int, end: int) -> tuple[int, int]:
    if at + 2 > end:
        raise malformed("the packet ends within a number")
    return data[at] << 8 | data[at + 1], at + 2


def read_four(data: bytes, at: int, end: int) -> tuple[int, int]:
    if at + 4 > end:
        raise malformed("the packet ends within a number")
    return int(_FOUR.unpack_from(data, at)[0]), at + 4


def read_varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in (0, 7, 14, 21):
        if at >= end:
            raise malformed("the packet ends within a number")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if shift and not byte:  # [MQTT-1.5.5-1]: the shortest form
                raise malformed("a number is not in its shortest form")
            return value, at
    raise malformed("a number has more than four bytes")  # [MQTT-1.5.5]


def read_binary(data: bytes, at: int, end: int) -> tuple[bytes, int]:
    size, at = read_two(data, at, end)
    if at + size > end:
        raise malformed("the packet ends within a string")
    return data[at : at + size], at + size


def read_text(data: bytes, at: int, end: int) -> tuple[str, int]:
    raw, at = read_binary(data, at, end)
    return decode_text(raw), at


def decode_text(raw: bytes) -> str:
    try:
        text = raw.decode()  # refuses surrogates too [MQTT-1.5.4-1]
    except UnicodeDecodeError:
        raise malformed("a string is not UTF-8") from None
    if "\0" in text:  # [MQTT-1.5.4-2]
        raise malformed("a string contains U+0000")
    return text


def read_pair(data: bytes, at: int, end: int) -> tuple[tuple[str, str], int]:
    name, at = read_text(data, at, end)
    value, at = read_text(data, at, end)
    return (name, value), at


# Writers. They raise ProtocolError for what the wire can't hold; whoever makes the packet has checked before.


def write_two(value: int) -> bytes:
    return _TWO.pack(value)


def write_varint(value: int) -> bytes:
    if value < 0x80:
        return bytes((value,))
    if value > MAX_SIZE:
        raise ProtocolError(Reason.PACKET_TOO_LARGE, f"{value} does not fit in four bytes")
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def write_binary(value: bytes) -> bytes:
    if len(value) > MAX_STRING:
        raise ProtocolError(Reason.PACKET_TOO_LARGE, "a string is longer than 65535 bytes")
    return _TWO.pack(len(value)) + value


def write_text(value: str) -> bytes:
    return write_binary(value.encode())


def write_pair(value: tuple[str, str]) -> bytes:
    return write_text(value[0]) + write_text(value[1])


# The property section.

_Reader = Callable[[bytes, int, int], tuple[Any, int]]
_Writer = Callable[[Any], bytes]
_BYTE: tuple[_Reader, _Writer] = (read_byte, lambda value: bytes((value,)))
_SHORT: tuple[_Reader, _Writer] = (read_two, write_two)
_LONG: tuple[_Reader, _Writer] = (read_four, _FOUR.pack)
_VARINT: tuple[_Reader, _Writer] = (read_varint, write_varint)
_BINARY: tuple[_Reader, _Writer] = (read_binary, write_binary)
_TEXT: tuple[_Reader, _Writer] = (read_text, write_text)
_PAIR: tuple[_Reader, _Writer] = (read_pair, write_pair)

# Where each property may stand, and as what [MQTT-2.2.2.2].
_P = Property
_ACKS = (Type.PUBACK, Type.PUBREC, Type.PUBREL, Type.PUBCOMP)
_ALL = (
    *(Type.CONNECT, Type.CONNACK, Type.PUBLISH, WILL, *_ACKS, Type.SUBSCRIBE, Type.SUBACK),
    *(Type.UNSUBSCRIBE, Type.UNSUBACK, Type.DISCONNECT, Type.AUTH),
)
_TABLE: dict[Property, tuple[tuple[_Reader, _Writer], tuple[int, ...]]] = {
    _P.PAYLOAD_FORMAT_INDICATOR: (_BYTE, (Type.PUBLISH, WILL)),
    _P.MESSAGE_EXPIRY_INTERVAL: (_LONG, (Type.PUBLISH, WILL)),
    _P.CONTENT_TYPE: (_TEXT, (Type.PUBLISH, WILL)),
    _P.RESPONSE_TOPIC: (_TEXT, (Type.PUBLISH, WILL)),
    _P.CORRELATION_DATA: (_BINARY, (Type.PUBLISH, WILL)),
    _P.SUBSCRIPTION_IDENTIFIER: (_VARINT, (Type.PUBLISH, Type.SUBSCRIBE)),
    _P.SESSION_EXPIRY_INTERVAL: (_LONG, (Type.CONNECT, Type.CONNACK, Type.DISCONNECT)),
    _P.ASSIGNED_CLIENT_IDENTIFIER: (_TEXT, (Type.CONNACK,)),
    _P.SERVER_KEEP_ALIVE: (_SHORT, (Type.CONNACK,)),
    _P.AUTHENTICATION_METHOD: (_TEXT, (Type.CONNECT, Type.CONNACK, Type.AUTH)),
    _P.AUTHENTICATION_DATA: (_BINARY, (Type.CONNECT, Type.CONNACK, Type.AUTH)),
    _P.REQUEST_PROBLEM_INFORMATION: (_BYTE, (Type.CONNECT,)),
    _P.WILL_DELAY_INTERVAL: (_LONG, (WILL,)),
    _P.REQUEST_RESPONSE_INFORMATION: (_BYTE, (Type.CONNECT,)),
    _P.RESPONSE_INFORMATION: (_TEXT, (Type.CONNACK,)),
    _P.SERVER_REFERENCE: (_TEXT, (Type.CONNACK, Type.DISCONNECT)),
    _P.REASON_STRING: (_TEXT, (Type.CONNACK, *_ACKS, Type.SUBACK, Type.UNSUBACK, Type.DISCONNECT, Type.AUTH)),
    _P.RECEIVE_MAXIMUM: (_SHORT, (Type.CONNECT, Type.CONNACK)),
    _P.TOPIC_ALIAS_MAXIMUM: (_SHORT, (Type.CONNECT, Type.CONNACK)),
    _P.TOPIC_ALIAS: (_SHORT, (Type.PUBLISH,)),
    _P.MAXIMUM_QOS: (_BYTE, (Type.CONNACK,)),
    _P.RETAIN_AVAILABLE: (_BYTE, (Type.CONNACK,)),
    _P.USER_PROPERTY: (_PAIR, _ALL),
    _P.MAXIMUM_PACKET_SIZE: (_LONG, (Type.CONNECT, Type.CONNACK)),
    _P.WILDCARD_SUBSCRIPTION_AVAILABLE: (_BYTE, (Type.CONNACK,)),
    _P.SUBSCRIPTION_IDENTIFIER_AVAILABLE: (_BYTE, (Type.CONNACK,)),
    _P.SHARED_SUBSCRIPTION_AVAILABLE: (_BYTE, (Type.CONNACK,)),
}
_READERS: dict[int, dict[int, _Reader]] = {
    place: {int(name): codec[0] for name, (codec, places) in _TABLE.items() if place in places} for place in _ALL
}
_WRITERS: dict[int, _Writer] = {int(name): codec[1] for name, (codec, _) in _TABLE.items()}
_NEVER_ZERO = frozenset((_P.SUBSCRIPTION_IDENTIFIER, _P.RECEIVE_MAXIMUM, _P.MAXIMUM_PACKET_SIZE))
_FLAGS = frozenset(int(name) for name, (codec, _) in _TABLE.items() if codec is _BYTE)


def allowed_properties(place: int) -> frozenset[int]:
    """Which properties a packet of this type (or the will) may have."""
    return frozenset(_READERS[place])


def read_properties(data: bytes, at: int, end: int, place: int) -> tuple[Properties5, int]:
    """The property section at `at` of a packet of type `place` (or WILL)."""
    size, at = read_varint(data, at, end)
    if not size:
        return NO_PROPERTIES5, at
    stop = at + size
    if stop > end:
        raise malformed("the packet ends within its properties")
    readers = _READERS[place]
    found: Properties5 = {}
    while at < stop:
        name = data[at]  # every identifier that exists fits in one byte
        reader = readers.get(name)
        if reader is None:
            raise malformed(f"property {name:#04x} can't stand here")  # [MQTT-2.2.2.2]
        value, at = reader(data, at + 1, stop)
        if name == _P.USER_PROPERTY:
            found.setdefault(name, []).append(value)
            continue
        if name in _FLAGS and value > 1:
            raise violation(f"property {name:#04x} must be 0 or 1")
        if not value and name in _NEVER_ZERO:
            raise violation(f"property {name:#04x} must not be 0")
        if name == _P.SUBSCRIPTION_IDENTIFIER and place == Type.PUBLISH:
            found.setdefault(name, []).append(value)
        elif name in found:
            raise violation(f"property {name:#04x} comes twice")
        else:
            found[name] = [value] if name == _P.SUBSCRIPTION_IDENTIFIER else value
    return found, stop


def write_properties(properties: Properties5) -> bytes:
    if not properties:
        return b"\0"
    out = bytearray()
    for name, value in properties.items():
        writer = _WRITERS[name]
        for one in value if isinstance(value, list) else (value,):
            out.append(name)
            out += writer(one)
    return write_varint(len(out)) + out
