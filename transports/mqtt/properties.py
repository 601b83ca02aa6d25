"""Owns the mapping of a message's Properties to the properties of a MQTT 5 PUBLISH, and its inverse.

Its rule: to the wire and back is the identity. What MQTT 5 has no place for travels in user properties:

    x-amqp-FIELD            a field that only AMQP has: message-id, type, timestamp, priority, ...
    x-amqp-KIND:NAME        the header NAME, whose value is no string: int, float, bool, null, bytes, packed;
                            KIND is str for a string whose plain name would be taken for one of these
    x-amqp-part, x-amqp-all what fits in no user property (a NUL, too long): parts of base64 that end with `all`

Such a property is believed only in the exact form that `to_wire` writes; any other is a header as it stands.
"""

from __future__ import annotations

import binascii
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from gateway.model.message import NO_PROPERTIES, Properties
from transports.mqtt.fields import MAX_STRING
from transports.mqtt.packets import NO_PROPERTIES5, Properties5, Property

_PREFIX = "x-amqp-"
_PART = "x-amqp-part"
_ALL = "x-amqp-all"
_PART_SIZE = 32_768
_LARGEST = {"priority": (1 << 8) - 1, "timestamp": (1 << 64) - 1}
"""The ranges that AMQP gives these; larger values are not said."""
_TEXTS = ("message_id", "type", "user_id", "app_id", "cluster_id", "content_encoding")
_ONLY_AMQP = (*_TEXTS, *_LARGEST)
_FIELDS = {_PREFIX + name.replace("_", "-"): name for name in (*_ONLY_AMQP, "reply_to")}
_NAMES = {name: wire for wire, name in _FIELDS.items()}
_Pair = tuple[str, str]


def to_wire(properties: Properties) -> Properties5:
    """What a PUBLISH says; the values are all fit for the wire."""
    if properties is NO_PROPERTIES:
        return NO_PROPERTIES5
    found: Properties5 = {}
    user: list[_Pair] = []
    large: list[tuple[str, Any]] = []
    if properties.payload_format in (0, 1):
        found[Property.PAYLOAD_FORMAT_INDICATOR] = properties.payload_format
    if (content_type := properties.content_type) is not None:
        if _fits(content_type):
            found[Property.CONTENT_TYPE] = content_type
        else:
            large.append(("content_type", content_type))
    if (reply_to := properties.reply_to) is not None:
        if is_topic_name(reply_to):
            found[Property.RESPONSE_TOPIC] = reply_to
        elif _fits(reply_to):
            user.append((_NAMES["reply_to"], reply_to))
        else:
            large.append(("reply_to", reply_to))
    if (correlation := properties.correlation_id) is not None:
        if len(correlation) <= MAX_STRING:
            found[Property.CORRELATION_DATA] = correlation
        else:
            large.append(("correlation_id", correlation))
    for name in _TEXTS:
        text = getattr(properties, name)
        if text is None:
            continue
        if _fits(text):
            user.append((_NAMES[name], text))
        else:
            large.append((name, text))
    for name, largest in _LARGEST.items():
        number = getattr(properties, name)
        if number is not None and 0 <= number <= largest:
            user.append((_NAMES[name], str(number)))
    for field in large:
        user += _parts(field)
    for name, value in properties.headers:
        user += _header(name, value)
    if user:
        found[Property.USER_PROPERTY] = user
    return found


def from_wire(found: Properties5) -> Properties:
    """What the message keeps of a PUBLISH's properties. Never raises for what a client sent."""
    if not found:
        return NO_PROPERTIES
    fields: dict[str, Any] = {}
    headers: list[tuple[str, Any]] = []
    user: Sequence[_Pair] = found.get(Property.USER_PROPERTY, ())
    at = 0
    while at < len(user):
        name, value = user[at]
        at += 1
        if not name.startswith(_PREFIX):
            headers.append((name, value))
        elif name in _FIELDS:
            _set(fields, headers, name, value)
        elif name in (_PART, _ALL):
            at = _gather(user, at - 1, fields, headers)
        else:
            headers.append(_restore(name, value) or (name, value))
    for wire, name in _DIRECT.items():
        if wire in found:
            fields[name] = found[wire]
    return Properties(headers=tuple(headers), **fields)


_DIRECT = {
    Property.PAYLOAD_FORMAT_INDICATOR: "payload_format",
    Property.CONTENT_TYPE: "content_type",
    Property.RESPONSE_TOPIC: "reply_to",
    Property.CORRELATION_DATA: "correlation_id",
}


def is_topic_name(topic: str) -> bool:
    """Whether it can stand as a topic name on the wire [MQTT-4.7.3]."""
    return bool(topic) and "+" not in topic and "#" not in topic and _fits(topic)


def _fits(text: str) -> bool:
    """Whether it can be a string on the wire [MQTT-1.5.4]."""
    if "\0" in text:
        return False
    # Only a text that might be too long is worth encoding; one character takes at most four bytes.
    return len(text) * 4 <= MAX_STRING or len(text.encode()) <= MAX_STRING


# Fields.


def _set(fields: dict[str, Any], headers: list[tuple[str, Any]], wire: str, value: str) -> None:
    """Restores a field from its user property; a second one and one out of range are plain headers."""
    name = _FIELDS[wire]
    believed: Any = value
    if name in _LARGEST:
        believed = _whole(value, 0, _LARGEST[name])
    elif name == "reply_to" and is_topic_name(value):
        believed = None  # it would have gone as the response topic
    if believed is None or name in fields:
        headers.append((wire, value))
    else:
        fields[name] = believed


def _whole(text: str, low: int, high: int) -> int | None:
    """The number, if `text` is its plain decimal form."""
    if len(text) > 20:
        return None
    try:
        number = int(text)
    except ValueError:
        return None
    return number if str(number) == text and low <= number <= high else None


# Headers with a value that is no string. Each kind: value -> text, text -> value (None: not its exact form).


def _float(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if repr(number) == text else None


def _base64(data: bytes) -> str:
    return binascii.b2a_base64(data, newline=False).decode()


def _unbase64(text: str) -> bytes | None:
    try:
        data = binascii.a2b_base64(text, strict_mode=True)
    except ValueError:  # not ASCII, or not base64
        return None
    return data if _base64(data) == text else None


def _pack(value: Any) -> str:
    return _base64(msgspec.msgpack.encode(value))


def _unpack(text: str) -> Any:
    data = _unbase64(text)
    if data is None:
        return None
    try:
        value = msgspec.msgpack.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    return value if isinstance(value, (list, dict)) and _plain(value) else None


def _plain(value: Any, depth: int = 32) -> bool:
    """Only what a header may hold, and no deeper than any transport can follow."""
    if isinstance(value, list):
        return depth > 0 and all(_plain(one, depth - 1) for one in value)
    if isinstance(value, dict):
        return depth > 0 and all(isinstance(key, str) and _plain(one, depth - 1) for key, one in value.items())
    return value is None or isinstance(value, (str, bytes, int, float))


_KINDS: dict[str, tuple[Callable[[Any], str], Callable[[str], Any]]] = {
    "str": (str, str),
    "int": (str, lambda text: _whole(text, -(1 << 63), (1 << 64) - 1)),
    "float": (repr, _float),
    "bool": (lambda value: "true" if value else "false", {"true": True, "false": False}.get),
    "bytes": (_base64, _unbase64),
    "packed": (_pack, _unpack),
}
_KIND_OF = {str: "str", int: "int", float: "float", bool: "bool", bytes: "bytes"}


def _header(name: str, value: Any) -> list[_Pair]:
    """The user properties for one header."""
    pair: _Pair
    if type(value) is str:
        pair = (name, value)
        if name.startswith(_PREFIX) and (name in _FIELDS or name in (_PART, _ALL) or _restore(name, value)):
            pair = (f"{_PREFIX}str:{name}", value)
    elif value is None:
        pair = (f"{_PREFIX}null:{name}", "")
    else:
        kind = _KIND_OF.get(type(value), "packed")
        pair = (f"{_PREFIX}{kind}:{name}", _KINDS[kind][0](value))
    if _fits(pair[0]) and _fits(pair[1]):
        return [pair]
    return _parts((name, value), header=True)


def _restore(wire: str, text: str) -> tuple[str, Any] | None:
    """The header that a user property `x-amqp-KIND:NAME` stands for, None if it is none."""
    kind, colon, name = wire[len(_PREFIX) :].partition(":")
    if not colon:
        return None
    if kind == "null":
        return None if text else (name, None)
    codec = _KINDS.get(kind)
    if codec is None:
        return None
    value = codec[1](text)
    if value is None or (kind == "str" and not name.startswith(_PREFIX)):
        return None
    return name, value


# What fits in no user property.


def _parts(item: tuple[str, Any], header: bool = False) -> list[_Pair]:
    text = _pack([header, *item])
    pieces = [text[at : at + _PART_SIZE] for at in range(0, len(text), _PART_SIZE)]
    return [(_PART, piece) for piece in pieces[:-1]] + [(_ALL, pieces[-1])]


def _gather(user: Sequence[_Pair], at: int, fields: dict[str, Any], headers: list[tuple[str, Any]]) -> int:
    """Restores what the parts from `at` on hold; returns where they end. Parts that hold nothing stay headers."""
    stop = at
    while stop < len(user) and user[stop][0] == _PART:
        stop += 1
    whole = stop < len(user) and user[stop][0] == _ALL
    stop += whole
    pieces = user[at:stop]
    item = _unpack("".join(piece for _, piece in pieces)) if whole else None
    match item:
        case [True, str(name), value]:
            headers.append((name, value))
        case [False, str(name), str(text)] if name in (*_TEXTS, "content_type", "reply_to") and name not in fields:
            fields[name] = text
        case [False, "correlation_id", bytes(data)] if "correlation_id" not in fields:
            fields["correlation_id"] = data
        case _:
            headers += pieces
    return stop
