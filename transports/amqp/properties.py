"""Owns how the canonical Properties, and what else a Message says of itself, become AMQP's basic properties and back.

Its rule: both ways are the identity. What AMQP has no field for travels in a header that the way back restores, and
such a header is believed only where the field itself could not have carried the value (ruling 9).

| canonical                                           | AMQP                                                       |
|-----------------------------------------------------|------------------------------------------------------------|
| qos 0, 1                                            | delivery_mode 1, 2                                         |
| qos 0, delivery_mode 0 (from AMQP alone)            | no delivery_mode                                           |
| qos 2                                               | delivery_mode 2, header `x-mqtt-qos` 2                     |
| retain                                              | header `x-mqtt-retain` true                                |
| payload_format                                      | header `x-mqtt-payload-format`                             |
| ttl                                                 | expiration, in milliseconds: see `encode`                  |
| correlation_id, no UTF-8 or above 255 bytes         | header `x-mqtt-correlation-data`, bytes                    |
| reply_to                                            | reply_to as in `names`; else header `x-mqtt-reply-to`      |
| another text above 255 bytes                        | header `x-mqtt-content-type` and so on                     |
| priority or timestamp out of the field's range      | header `x-mqtt-priority`, `x-mqtt-timestamp`               |
| delay (from AMQP alone; it is not sent on)          | header `x-delay`, in milliseconds, which stays             |
| further topics (from AMQP alone)                    | headers `CC`, which stays, and `BCC`, which does not       |
| topic whose routing key is above 255 bytes          | routing key "", header `x-mqtt-topic`                      |
| headers that repeat, are not sorted by name, have a | header `x-mqtt-user-properties`: all of them in order, an  |
| name above 128 bytes or one of those above          | array of [name, value]                                     |
| types that only AMQP knows (see `fields`)           | the wire's own; the hints are in the canonical headers as  |
|                                                     | the last one, `x-amqp-types`                               |

Clients of AMQP keep headers in dictionaries and write them sorted by name, hence the list. It is merged with what
the table says now: a header that was changed, added or taken away since then stays so. Headers that an AMQP client
sent go out as they came in, without a list, unless that is impossible; of an empty table the (empty) hints stay.

Clients also write other types than they have read: py-amqp bytes as text, others true as 1 and 2 as 2.0. So the headers
that the way back restores are believed by what they say, in whichever of these types they come.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any, NamedTuple

from gateway.model.message import DEFAULT_EXCHANGE, NO_PROPERTIES, Message, Properties
from gateway.model.topics import check_name, swap
from gateway.model.values import same
from transports.amqp.errors import PRECONDITION_FAILED, AmqpError
from transports.amqp.fields import decode_table, encode_table, syntax_error
from transports.amqp.names import DIRECT_REPLY, MAX_SHORT, reply_to_key, reply_to_topic

TYPES = "x-amqp-types"
ORDERED = "x-mqtt-user-properties"
QOS = "x-mqtt-qos"
RETAIN = "x-mqtt-retain"
PAYLOAD_FORMAT = "x-mqtt-payload-format"
CORRELATION = "x-mqtt-correlation-data"
REPLY_TO = "x-mqtt-reply-to"
TOPIC = "x-mqtt-topic"
DELAY = "x-delay"
COPIES = ("CC", "BCC")
MAX_COPIES = 1000
"""Routing keys in one header: each is looked up, and the others wait."""
MAX_NAME = 128
"""Bytes of a header's name that all clients can write [AMQP 4.2.5.5]."""
MAX_EXPIRATION = ((1 << 32) - 1) * 1000
"""Milliseconds: what MQTT can say in seconds [MQTT-3.3.2.3.3]."""

_TEXTS = (
    ("content_type", 0x8000),
    ("content_encoding", 0x4000),
    ("message_id", 0x0080),
    ("type", 0x0020),
    ("user_id", 0x0010),
    ("app_id", 0x0008),
    ("cluster_id", 0x0004),
)
_NUMBERS = (("priority", 0x0800, 0xFF), ("timestamp", 0x0040, (1 << 64) - 1))
_HEADER_OF = {name: "x-mqtt-" + name.replace("_", "-") for name, *_ in (*_TEXTS, *_NUMBERS)}
_RESTORING = frozenset({ORDERED, QOS, RETAIN, PAYLOAD_FORMAT, CORRELATION, REPLY_TO, TOPIC, *_HEADER_OF.values()})

_HEADERS = 0x2000
_MODE = 0x1000
_CORRELATION = 0x0400
_REPLY_TO = 0x0200
_EXPIRATION = 0x0100
_UNUSED = 0x0003
_SHORT = struct.Struct(">H")
_LONGLONG = struct.Struct(">Q")

EMPTY = b"\x00\x00"
TRANSIENT = b"\x10\x00\x01"
PERSISTENT = b"\x10\x00\x02"
"""Properties that say nothing, or the delivery mode alone: what most messages need."""


class Content(NamedTuple):
    """What a content header says. delay: seconds, None if it says none.

    is_plain: none of those that follow says anything. topic: what `x-mqtt-topic` says in place of the routing key.
    copies: routing keys besides that of the method. replies: reply_to is the pseudo-queue of direct replies."""

    properties: Properties
    qos: int
    retain: bool
    ttl: float | None
    delay: float | None
    is_plain: bool = True
    topic: str | None = None
    copies: tuple[str, ...] = ()
    replies: bool = False


NO_MODE = Properties(delivery_mode=0)
NOTHING_SAID = Content(NO_MODE, 0, False, None, None)
"""Of a content header without any property."""


def decode(data: bytes, at: int, end: int, empty_key: bool = False, prefix: str = "") -> Content:
    """Flags and property list of a content header. `empty_key`: the routing key is "", so a topic header is
    believed. `prefix`: of the names in the client's virtual host. Raises AmqpError: SYNTAX_ERROR, or
    PRECONDITION_FAILED for an expiration, delivery mode, delay or copy that is none."""
    if at + 2 > end:
        raise syntax_error("the property flags are cut short")
    flags = _SHORT.unpack_from(data, at)[0]
    if flags & _UNUSED:
        raise syntax_error("unknown property flags")
    at += 2
    fields: dict[str, Any] = {}
    headers: dict[str, Any] = {}
    hints: dict[str, Any] | None = None
    mode = 0
    ttl: float | None = None
    replies = False
    copies: tuple[str, ...] = ()
    for name, bit in _TEXTS[:2]:
        if flags & bit:
            fields[name], at = _text(data, at, end)
    if flags & _HEADERS:
        headers, hints, at = decode_table(data, at, end)
    if flags & _MODE:
        mode, at = _octet(data, at, end)
    if flags & 0x0800:
        fields["priority"], at = _octet(data, at, end)
    if flags & _CORRELATION:
        fields["correlation_id"], at = _short(data, at, end)
    if flags & _REPLY_TO:
        text, at = _text(data, at, end)
        fields["reply_to"] = reply_to_topic(text, prefix)
        replies = text == DIRECT_REPLY
    if flags & _EXPIRATION:
        text, at = _text(data, at, end)
        ttl = _ttl(text)
    if flags & 0x0080:
        fields["message_id"], at = _text(data, at, end)
    if flags & 0x0040:
        if at + 8 > end:
            raise syntax_error("a timestamp is cut short")
        fields["timestamp"] = _LONGLONG.unpack_from(data, at)[0]
        at += 8
    for name, bit in _TEXTS[3:]:
        if flags & bit:
            fields[name], at = _text(data, at, end)
    if at != end:
        raise syntax_error("bytes behind the last property")
    if mode != 1 and mode != 2:
        if flags == 0:
            return NOTHING_SAID
        if flags & _MODE:
            raise AmqpError(PRECONDITION_FAILED, f"invalid delivery mode {mode}: 1 or 2 is needed")
        fields["delivery_mode"] = 0
    qos, retain, topic, delay = int(mode == 2), False, None, None
    if headers:
        # A text is a header like any other: it may be a user property that a worker sends back.
        if DELAY in headers and not isinstance(headers[DELAY], str):
            delay = _delay(headers[DELAY])
        for name in COPIES:
            if name in headers and not isinstance(headers[name], str):
                copies += _copies(name, headers[name])
        if isinstance(headers.get("BCC"), list):
            del headers["BCC"]
        qos, retain, topic = _restore(headers, fields, qos, empty_key, prefix)
        ordered = _pairs(headers.get(ORDERED))
        if ordered is not None:
            del headers[ORDERED]
        items = tuple(headers.items()) if ordered is None else tuple(_merge(ordered, headers))
        if hints is not None:
            hints = {name: hint for name, hint in hints.items() if name in headers}
        if hints or _has_hints(items):
            items = (*items, (TYPES, hints or {}))
        fields["headers"] = items
    elif flags & _HEADERS:
        fields["headers"] = ((TYPES, {}),)
    properties = Properties(**fields) if fields else NO_PROPERTIES
    if topic is None and not copies and not replies:
        return Content(properties, qos, retain, ttl, delay)
    return Content(properties, qos, retain, ttl, delay, False, topic, copies, replies)


def _restore(
    headers: dict[str, Any], fields: dict[str, Any], qos: int, empty_key: bool, prefix: str
) -> tuple[int, bool, str | None]:
    """Takes the headers that stand for something else out of `headers`."""
    retain, topic = False, None
    if _RESTORING.isdisjoint(headers):
        return qos, retain, topic
    if qos and _whole(headers.get(QOS)) == 2:
        qos = 2
        del headers[QOS]
    if _whole(headers.get(RETAIN)) == 1:
        retain = True
        del headers[RETAIN]
    if (number := _whole(headers.get(PAYLOAD_FORMAT))) is not None:
        fields["payload_format"] = number
        del headers[PAYLOAD_FORMAT]
    raw = as_octets(headers.get(CORRELATION))
    if "correlation_id" not in fields and raw is not None and not _fits(raw):
        fields["correlation_id"] = raw
        del headers[CORRELATION]
    text = as_text(headers.get(REPLY_TO))
    if "reply_to" not in fields and text is not None and reply_to_key(text, prefix) is None:
        fields["reply_to"] = text
        del headers[REPLY_TO]
    text = as_text(headers.get(TOPIC)) if empty_key else None
    # Only a topic that MQTT can name comes from where routing keys have no limit.
    if text is not None and not _fits(text.encode()) and check_name(text) is None:
        topic = text
        del headers[TOPIC]
    for name, _ in _TEXTS:
        header = _HEADER_OF[name]
        text = as_text(headers.get(header))
        if name not in fields and text is not None and not _fits(text.encode()):
            fields[name] = text
            del headers[header]
    for name, _, limit in _NUMBERS:
        header = _HEADER_OF[name]
        number = _whole(headers.get(header))
        if name not in fields and number is not None and not 0 <= number <= limit:
            fields[name] = number
            del headers[header]
    return qos, retain, topic


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _whole(value: Any) -> int | None:
    """The whole number that a header says, as a bool or a float too."""
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    return int(value) if isinstance(value, int) else None


def as_octets(value: Any) -> bytes | None:
    """The bytes that a header says, as a text too."""
    return value.encode() if isinstance(value, str) else value if isinstance(value, bytes) else None


def as_text(value: Any) -> str | None:
    """The text that a header says, as bytes too."""
    if isinstance(value, str):
        return value
    try:
        return value.decode() if isinstance(value, bytes) else None
    except UnicodeDecodeError:
        return None


def _fits(raw: bytes) -> bool:
    if len(raw) > MAX_SHORT:
        return False
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def _pairs(value: Any) -> list[tuple[str, Any]] | None:
    """Names and values of a list of headers; None if it is none."""
    if not isinstance(value, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in value):
        return None
    pairs = [(name, one) for first, one in value if (name := as_text(first)) is not None]
    return pairs if len(pairs) == len(value) else None


def _merge(ordered: list[tuple[str, Any]], headers: dict[str, Any]) -> Iterable[tuple[str, Any]]:
    """The list, corrected by what the table says now."""
    first: dict[str, Any] = {}
    for name, value in ordered:
        first.setdefault(name, value)
    changed: set[str] = set()
    for name, value in ordered:
        if not _in_table(name):
            yield name, value
        elif name in headers and name not in changed:
            now = headers[name]
            if same(now, first[name]):
                yield name, value
            else:
                changed.add(name)
                yield name, now
    for name, value in headers.items():
        if name not in first:
            yield name, value


def _has_hints(items: tuple[tuple[str, Any], ...]) -> bool:
    """The last header is our own one, or would be taken for it."""
    return bool(items) and items[-1][0] == TYPES and isinstance(items[-1][1], dict)


def _is_table(items: tuple[tuple[str, Any], ...]) -> bool:
    """What came by AMQP is none if it was restored from the list of a message that had come by MQTT."""
    names = {name for name, _ in items}
    return len(names) == len(items) and all(len(name.encode()) <= MAX_SHORT for name in names)


def _in_table(name: str) -> bool:
    return name not in _RESTORING and len(name.encode()) <= MAX_NAME


def _short(data: bytes, at: int, end: int) -> tuple[bytes, int]:
    if at >= end or (stop := at + 1 + data[at]) > end:
        raise syntax_error("a short string is cut short")
    return data[at + 1 : stop], stop


def _text(data: bytes, at: int, end: int) -> tuple[str, int]:
    raw, at = _short(data, at, end)
    try:
        return raw.decode(), at
    except UnicodeDecodeError:
        raise syntax_error("a property is no UTF-8") from None


def _octet(data: bytes, at: int, end: int) -> tuple[int, int]:
    if at >= end:
        raise syntax_error("a property is cut short")
    return data[at], at + 1


def _ttl(text: str) -> float:
    # The length is checked first: a number of 255 digits is no reason to convert one.
    if not (text.isascii() and text.isdigit() and len(text) <= 13 and int(text) <= MAX_EXPIRATION):
        raise AmqpError(PRECONDITION_FAILED, f"invalid expiration {text[:32]!r}: milliseconds as a number are needed")
    return int(text) / 1000


def _delay(value: Any) -> float | None:
    """Below 0 says nothing: so RabbitMQ's plugin marks what has been delayed."""
    if not _is_number(value) or value > MAX_EXPIRATION:
        raise AmqpError(PRECONDITION_FAILED, f"invalid header {DELAY!r}: {str(value)[:32]!r}: milliseconds are needed")
    return int(value) / 1000 if value >= 0 else None


def _copies(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(key, str) and _fits(key.encode()) for key in value):
        raise AmqpError(PRECONDITION_FAILED, f"invalid header {name!r}: an array of routing keys is needed")
    if len(value) > MAX_COPIES:
        raise AmqpError(PRECONDITION_FAILED, f"header {name!r} has {len(value)} routing keys, above {MAX_COPIES}")
    return tuple(value)


def encode(
    message: Message,
    native: bool,
    remaining: float | None = None,
    added: Iterable[tuple[str, Any]] = (),
    prefix: str = "",
) -> bytes:
    """Flags and property list of a message. `native`: it came by AMQP, so its headers are an AMQP table.
    `remaining`: seconds of its expiration, None for none; of what came by AMQP it is as it was published, of what came
    otherwise what is left. `added`: headers of the delivery, in place of the message's own of that
    name. `prefix`: as in `decode`. Raises ValueError for headers that AMQP can't hold."""
    properties = message.properties
    if message.qos < 2 and not message.retain and remaining is None and not added:
        if properties == NO_PROPERTIES and _key_fits(_topic(message, prefix)):
            return PERSISTENT if message.qos else TRANSIENT
        if properties == NO_MODE and not message.qos and _key_fits(_topic(message, prefix)):
            return EMPTY
    flags = 0
    parts: dict[int, bytes] = {}
    if message.qos or properties.delivery_mode is None:
        parts[_MODE] = b"\x02" if message.qos else b"\x01"
    extra: dict[str, Any] = {}
    for name, bit in _TEXTS:
        text = getattr(properties, name)
        if text is not None and not _put_short(parts, bit, text.encode()):
            extra[_HEADER_OF[name]] = text
    for name, bit, limit in _NUMBERS:
        number = getattr(properties, name)
        if number is not None:
            if 0 <= number <= limit:
                parts[bit] = bytes((number,)) if limit == 0xFF else _LONGLONG.pack(number)
            else:
                extra[_HEADER_OF[name]] = number
    if (correlation := properties.correlation_id) is not None:
        if not (_fits(correlation) and _put_short(parts, _CORRELATION, correlation)):
            extra[CORRELATION] = correlation
    if properties.reply_to is not None:
        key = reply_to_key(properties.reply_to, prefix)
        if key is None:
            extra[REPLY_TO] = properties.reply_to
        else:
            _put_short(parts, _REPLY_TO, key.encode())
    if remaining is not None:
        milliseconds = min(max(round(remaining * 1000), 0), MAX_EXPIRATION)
        _put_short(parts, _EXPIRATION, str(milliseconds).encode())
    if message.qos == 2:
        extra[QOS] = 2
    if message.retain:
        extra[RETAIN] = True
    if properties.payload_format is not None:
        extra[PAYLOAD_FORMAT] = properties.payload_format
    if not _key_fits(topic := _topic(message, prefix)):
        extra[TOPIC] = topic
    headers = _headers(properties.headers, native, extra, dict(added))
    if headers is not None:
        parts[_HEADERS] = headers
    for bit in parts:
        flags |= bit
    return _SHORT.pack(flags) + b"".join(parts[bit] for bit in sorted(parts, reverse=True))


def _put_short(parts: dict[int, bytes], bit: int, raw: bytes) -> bool:
    """False if it is too long for a short string."""
    if len(raw) > MAX_SHORT:
        return False
    parts[bit] = bytes((len(raw),)) + raw
    return True


def _headers(
    items: tuple[tuple[str, Any], ...], native: bool, extra: dict[str, Any], added: dict[str, Any]
) -> bytes | None:
    hints: dict[str, Any] | None = None
    if _has_hints(items):
        hints = items[-1][1]
        items = items[:-1]
    table: dict[str, Any] = {}
    if native and _is_table(items):
        table.update(items)
    else:
        for name, value in items:
            if _in_table(name):
                table.setdefault(name, value)
        names = list(table)
        if len(names) != len(items) or names != sorted(names):
            extra[ORDERED] = [list(item) for item in items]
    table.update(extra)
    if added:
        table.update(added)
        hints = {name: hint for name, hint in (hints or {}).items() if name not in added} | {"x-death": _DEATH_HINTS}
    return encode_table(table.items(), hints) if table or hints is not None else None


_DEATH_HINTS = {str(place): {"time": "T", "count": "l"} for place in range(64)}
"""Deaths beyond the 64 latest are written with a number for the time."""


def _topic(message: Message, prefix: str) -> str:
    """Without the prefix if it is the name of a queue."""
    return message.topic.removeprefix(prefix) if message.exchange == DEFAULT_EXCHANGE else message.topic


def _key_fits(topic: str) -> bool:
    # A character is at most 4 bytes, so most need no encoding here.
    return len(topic) <= MAX_SHORT // 4 or len(topic.encode()) <= MAX_SHORT


def routing_key(message: Message, prefix: str = "") -> bytes:
    """The routing key it is delivered with; "" if it would be above 255 bytes (then the header has the topic).
    `prefix`: as in `decode`."""
    topic = _topic(message, prefix)
    if not _key_fits(topic):
        return b""
    return (topic if message.exchange == DEFAULT_EXCHANGE else swap(topic)).encode()


_BEFORE_MESSAGE_ID = (0x8000, 0x4000, _HEADERS, _MODE, 0x0800, _CORRELATION, _REPLY_TO, _EXPIRATION)


def message_id(data: bytes) -> str:
    """The message id alone, of properties that were encoded here; "" if there is none."""
    flags, at = _SHORT.unpack_from(data)[0], 2
    if not flags & 0x0080:
        return ""
    for bit in _BEFORE_MESSAGE_ID:
        if not flags & bit:
            continue
        if bit == _HEADERS:
            at += 4 + int.from_bytes(data[at : at + 4], "big")
        elif bit in (_MODE, 0x0800):
            at += 1
        else:
            at += 1 + data[at]
    return _text(data, at, len(data))[0]
