"""Owns the bytes of AMQP 0-9-1 frames: how a buffer is cut into frames, and how methods and contents are written.

Its rule: pamqp's classes are the grammar of all methods; the bytes are read here, by offset and with every length
checked, and the three methods of the hot path (publish, deliver, ack) have code of their own.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

from pamqp.base import Frame
from pamqp.commands import INDEX_MAPPING, Basic

from transports.amqp.errors import COMMAND_INVALID, FRAME_ERROR, UNEXPECTED_FRAME, AmqpError
from transports.amqp.fields import decode_table, encode_table, syntax_error

PROTOCOL_HEADER = b"AMQP\x00\x00\x09\x01"
METHOD, HEADER, BODY, HEARTBEAT = 1, 2, 3, 8
FRAME_END = 0xCE
OVERHEAD = 8
"""Bytes of a frame besides its payload."""
TOLERANCE = OVERHEAD
"""Bytes that a frame may have beyond frame_max, as in RabbitMQ: some clients take it for the limit of the payload."""
MIN_FRAME = 4096
"""The smallest frame_max a peer may ask for [AMQP 1.2, frame-min-size]."""
HEARTBEAT_FRAME = b"\x08\x00\x00\x00\x00\x00\x00\xce"

PUBLISH: int = Basic.Publish.index
ACK: int = Basic.Ack.index

_FRAME = struct.Struct(">BHI")
_METHOD = struct.Struct(">BHII")
_HEADER = struct.Struct(">BHIHHQ")
_CONTENT = struct.Struct(">HHQ")
_ACK = struct.Struct(">BHIIQBB")
_TAG = struct.Struct(">QB")
_UINT = struct.Struct(">I")
_NUMBERS = {
    "octet": struct.Struct(">B"),
    "short": struct.Struct(">H"),
    "long": struct.Struct(">I"),
    "longlong": struct.Struct(">Q"),
}
END = b"\xce"
_CLASS_BASIC = 60

RawFrame = tuple[int, int, int, int]
"""(type, channel, begin, end) of one frame's payload."""


def split(data: bytes, limit: int, most: int = 1 << 30) -> tuple[list[RawFrame], int, AmqpError | None]:
    """The whole frames at the front of `data`, all or the first `most`, how many bytes they take, and why what follows
    can't be read: a frame that is larger than `limit` and TOLERANCE or does not end as it should [AMQP 4.2.3]."""
    frames: list[RawFrame] = []
    at, end = 0, len(data)
    unpack = _FRAME.unpack_from
    while at + 7 <= end and len(frames) < most:
        kind, channel, size = unpack(data, at)
        if size + OVERHEAD > limit + TOLERANCE:
            return frames, at, AmqpError(FRAME_ERROR, f"a frame of {size + OVERHEAD} bytes is above {limit}")
        begin = at + 7
        stop = begin + size
        if stop >= end:
            break
        if data[stop] != FRAME_END:
            return frames, at, AmqpError(FRAME_ERROR, "a frame does not end with 0xCE")
        frames.append((kind, channel, begin, stop))
        at = stop + 1
    return frames, at, None


def lacks(buffer: bytearray, limit: int) -> bool:
    """Whether even the first frame is not whole, and may become so: then nothing of it is looked at."""
    if len(buffer) < 7:
        return True
    size: int = _FRAME.unpack_from(buffer)[2] + OVERHEAD
    return len(buffer) < size <= limit + TOLERANCE


def method_index(data: bytes, begin: int, end: int) -> int:
    """Class and method id of a method frame."""
    if begin + 4 > end:
        raise syntax_error("a method frame is cut short")
    return int(_UINT.unpack_from(data, begin)[0])


def decode_method(data: bytes, begin: int, end: int) -> Frame:
    """The method in a frame, as pamqp's class of it; tables as canonical dicts, long strings as bytes. Raises
    AmqpError."""
    index = method_index(data, begin, end)
    kind: type[Frame] | None = INDEX_MAPPING.get(index)
    if kind is None:
        raise AmqpError(COMMAND_INVALID, f"unknown method {index >> 16}.{index & 0xFFFF}", index)
    method = kind.__new__(kind)  # its __init__ would run regular expressions on what the client sent
    at = begin + 4
    bits, shift = 0, 8
    for name in kind.attributes():
        type_ = kind.amqp_type(name)
        if type_ == "bit":
            if shift == 8:
                bits, at = _number("octet", data, at, end)
                shift = 0
            setattr(method, name, bool(bits >> shift & 1))
            shift += 1
            continue
        shift = 8
        value: Any
        if type_ == "shortstr":
            value, at = _short_string(data, at, end)
        elif type_ == "table":
            value, _, at = decode_table(data, at, end)
        elif type_ == "longstr":
            size, at = _number("long", data, at, end)
            if at + size > end:
                raise syntax_error("a long string is cut short")
            value = data[at : at + size]
            at += size
        else:
            value, at = _number(type_, data, at, end)
        setattr(method, name, value)
    return method


def _number(type_: str, data: bytes, at: int, end: int) -> tuple[int, int]:
    form = _NUMBERS[type_]
    if at + form.size > end:
        raise syntax_error("a method's argument is cut short")
    return int(form.unpack_from(data, at)[0]), at + form.size


def _short_string(data: bytes, at: int, end: int) -> tuple[str, int]:
    if at >= end or (stop := at + 1 + data[at]) > end:
        raise syntax_error("a short string is cut short")
    try:
        return data[at + 1 : stop].decode(), stop
    except UnicodeDecodeError:
        raise syntax_error("a name is no UTF-8") from None


def short(raw: bytes) -> bytes:
    """A short string; the caller keeps it within 255 bytes."""
    return bytes((len(raw),)) + raw


def encode_method(channel: int, kind: type[Frame], **arguments: Any) -> bytes:
    """A method frame; arguments that are not given are 0, "" and empty."""
    parts: list[bytes] = []
    bits, shift = 0, -1
    for name in kind.attributes():
        type_ = kind.amqp_type(name)
        value = arguments.pop(name, None)
        if type_ == "bit":
            shift = (shift + 1) % 8
            if shift == 0:
                bits = 0
                parts.append(b"")
            bits |= bool(value) << shift
            parts[-1] = bytes((bits,))
            continue
        shift = -1
        if type_ == "shortstr":
            parts.append(short((value or "").encode()))
        elif type_ == "table":
            parts.append(encode_table((value or {}).items()))
        elif type_ == "longstr":
            raw = value.encode() if isinstance(value, str) else value or b""
            parts.append(_UINT.pack(len(raw)) + raw)
        else:
            parts.append(_NUMBERS[type_].pack(value or 0))
    if arguments:
        raise TypeError(f"{kind.name} has no {', '.join(arguments)}")
    payload = b"".join(parts)
    return _METHOD.pack(METHOD, channel, len(payload) + 4, kind.index) + payload + END


# the hot path in


class Publish(NamedTuple):
    """Where a basic.publish goes; equal frames give equal values, so it can be kept by its bytes."""

    exchange: str
    routing_key: str
    mandatory: bool
    immediate: bool


def decode_publish(data: bytes, begin: int, end: int) -> Publish:
    """The payload of a basic.publish frame."""
    exchange, at = _short_string(data, begin + 6, end)
    key, at = _short_string(data, at, end)
    if at >= end:
        raise syntax_error("basic.publish is cut short")
    return Publish(exchange, key, bool(data[at] & 1), bool(data[at] & 2))


def decode_ack(data: bytes, begin: int, end: int) -> tuple[int, bool]:
    """(delivery tag, multiple) of a basic.ack frame."""
    if begin + 13 > end:
        raise syntax_error("basic.ack is cut short")
    tag, bits = _TAG.unpack_from(data, begin + 4)
    return tag, bool(bits & 1)


def decode_content_header(data: bytes, begin: int, end: int) -> tuple[int, int]:
    """(body size, offset of the property flags) of a content header."""
    if begin + 12 > end:
        raise syntax_error("a content header is cut short")
    class_id, weight, size = _CONTENT.unpack_from(data, begin)
    if class_id != _CLASS_BASIC or weight:  # [AMQP 4.2.6.1]
        raise AmqpError(UNEXPECTED_FRAME, f"a content header of class {class_id} and weight {weight}, not 60 and 0")
    return size, begin + 12


# the hot path out


def encode_ack(channel: int, tag: int, multiple: bool) -> bytes:
    """A basic.ack frame: a publisher confirm."""
    return _ACK.pack(METHOD, channel, 13, ACK, tag, multiple, FRAME_END)


def deliver_head(channel: int, consumer_tag: bytes, address_size: int) -> bytes:
    """A basic.deliver frame up to its delivery tag. Then come `encode_tag`, `address_size` octets of exchange and
    routing key as short strings, and END. consumer_tag is a short string, too."""
    return _METHOD.pack(METHOD, channel, 13 + len(consumer_tag) + address_size, _DELIVER) + consumer_tag


encode_tag = _TAG.pack
"""(delivery tag, redelivered), as basic.deliver has it."""

_DELIVER: int = Basic.Deliver.index


def content_head(channel: int, properties: bytes, size: int) -> bytes:
    """A content header and the begin of the one body frame; then come the body's `size` octets, and END."""
    head = _HEADER.pack(HEADER, channel, 12 + len(properties), _CLASS_BASIC, 0, size) + properties
    return head + END + _FRAME.pack(BODY, channel, size) if size else head


def append_content(parts: list[bytes], channel: int, properties: bytes, body: bytes, frame_max: int) -> None:
    """A content header with these properties and as many body frames as `frame_max` asks for."""
    size = len(body)
    room = frame_max - OVERHEAD
    if size <= room:
        parts += (content_head(channel, properties, size), body, END)
        return
    parts += (_HEADER.pack(HEADER, channel, 12 + len(properties), _CLASS_BASIC, 0, size), properties, END)
    for start in range(0, size, room):
        chunk = body[start : start + room]
        parts += (_FRAME.pack(BODY, channel, len(chunk)), chunk, END)


def content_fits(properties: bytes, frame_max: int) -> bool:
    """A content header is one frame, whatever it holds [AMQP 4.2.6.1]."""
    return 12 + len(properties) + OVERHEAD <= frame_max
