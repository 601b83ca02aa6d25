"""Owns field tables: AMQP's typed values to the canonical ones and back, without loss [AMQP 4.2.5.5].

Its rule: a value stays what templates and other protocols can use (a number, a text); what the wire says about its
type beyond that stands beside it, as a hint.

| on the wire                          | canonical                     | hint       |
|--------------------------------------|-------------------------------|------------|
| t bool, V void, S text, d double     | bool, None, str, float        | -          |
| I int32                              | int                           | -          |
| l int64 beyond int32                 | int                           | -          |
| b B s u i, l within int32, L         | int                           | the letter |
| f float                              | float                         | `f`        |
| T timestamp                          | int, seconds since 1970       | `T`        |
| D decimal                            | str, as Python writes Decimal | `D`        |
| x bytes                              | bytes                         | -          |
| S that is no UTF-8                   | bytes                         | `S`        |
| A array, F table                     | list, dict                    | a dict     |

The hint of an array is {"place": hint}, of a table {"name": hint}, without the members that need none. An integer
beyond 64 bits, which no client of AMQP can send, is written as text.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from decimal import Decimal
from typing import Any

from transports.amqp.errors import SYNTAX_ERROR, AmqpError

MAX_DEPTH = 32
"""Tables and arrays inside each other; more is refused both ways."""

_LENGTH = struct.Struct(">I")
_INT32 = struct.Struct(">i")
_INT64 = struct.Struct(">q")
_DOUBLE = struct.Struct(">d")
_DECIMAL = struct.Struct(">Bi")

_FIXED: dict[int, tuple[struct.Struct, str | None]] = {
    ord("b"): (struct.Struct(">b"), "b"),
    ord("B"): (struct.Struct(">B"), "B"),
    ord("s"): (struct.Struct(">h"), "s"),
    ord("u"): (struct.Struct(">H"), "u"),
    ord("I"): (_INT32, None),
    ord("i"): (_LENGTH, "i"),
    ord("L"): (_INT64, "L"),
    ord("f"): (struct.Struct(">f"), "f"),
    ord("d"): (_DOUBLE, None),
    ord("T"): (struct.Struct(">Q"), "T"),
}
_LOW, _HIGH = -(1 << 31), (1 << 31) - 1


def syntax_error(what: str) -> AmqpError:
    return AmqpError(SYNTAX_ERROR, what)


def decode_table(data: bytes, at: int, end: int, depth: int = 0) -> tuple[dict[str, Any], dict[str, Any] | None, int]:
    """(values, hints or None, offset behind it) of the table that begins at `at`. Raises AmqpError."""
    at, stop = _span(data, at, end)
    if depth > MAX_DEPTH:
        raise syntax_error("tables are nested too deep")
    values: dict[str, Any] = {}
    hints: dict[str, Any] | None = None
    while at < stop:
        begin = at + 1
        at = begin + data[at]
        if at >= stop:
            raise syntax_error("a field is cut short")
        try:
            name = data[begin:at].decode()
        except UnicodeDecodeError:
            raise syntax_error("a field's name is no UTF-8") from None
        if name in values:
            raise syntax_error(f"the field {name[:64]!r} stands twice in a table")
        values[name], hint, at = _decode_value(data, at, stop, depth)
        if hint is not None:
            if hints is None:
                hints = {}
            hints[name] = hint
    return values, hints, stop


def _span(data: bytes, at: int, end: int) -> tuple[int, int]:
    """Begin and end of what a 4-byte length says."""
    if at + 4 > end:
        raise syntax_error("a length is cut short")
    stop = at + 4 + int(_LENGTH.unpack_from(data, at)[0])
    if stop > end:
        raise syntax_error("a value reaches beyond its end")
    return at + 4, stop


def _decode_value(data: bytes, at: int, end: int, depth: int) -> tuple[Any, Any, int]:
    kind = data[at]
    at += 1
    if kind == 83:  # S
        at, stop = _span(data, at, end)
        raw = data[at:stop]
        try:
            return raw.decode(), None, stop
        except UnicodeDecodeError:
            return raw, "S", stop
    fixed = _FIXED.get(kind)
    if fixed is not None:
        stop = at + fixed[0].size
        if stop > end:
            raise syntax_error("a value is cut short")
        return fixed[0].unpack_from(data, at)[0], fixed[1], stop
    if kind == 116:  # t
        if at >= end:
            raise syntax_error("a value is cut short")
        return data[at] != 0, None, at + 1
    if kind == 108:  # l
        if at + 8 > end:
            raise syntax_error("a value is cut short")
        number = _INT64.unpack_from(data, at)[0]
        return number, "l" if _LOW <= number <= _HIGH else None, at + 8
    if kind == 86:  # V
        return None, None, at
    if kind == 70:  # F
        return decode_table(data, at, end, depth + 1)
    if kind == 65:  # A
        return _decode_array(data, at, end, depth + 1)
    if kind == 120:  # x
        at, stop = _span(data, at, end)
        return data[at:stop], None, stop
    if kind == 68:  # D
        if at + 5 > end:
            raise syntax_error("a value is cut short")
        scale, unscaled = _DECIMAL.unpack_from(data, at)
        digits = tuple(map(int, str(abs(unscaled))))
        return str(Decimal((int(unscaled < 0), digits, -scale))), "D", at + 5
    raise syntax_error(f"no field type {kind:#04x}")


def _decode_array(data: bytes, at: int, end: int, depth: int) -> tuple[list[Any], dict[str, Any] | None, int]:
    at, stop = _span(data, at, end)
    if depth > MAX_DEPTH:
        raise syntax_error("arrays are nested too deep")
    values: list[Any] = []
    hints: dict[str, Any] | None = None
    while at < stop:
        value, hint, at = _decode_value(data, at, stop, depth)
        if hint is not None:
            if hints is None:
                hints = {}
            hints[str(len(values))] = hint
        values.append(value)
    return values, hints, stop


def encode_table(items: Iterable[tuple[Any, Any]], hints: dict[str, Any] | None = None, depth: int = 0) -> bytes:
    """With its length before it. Raises ValueError for what no table can hold: names above 255 bytes or not text,
    other types than the canonical ones, nesting beyond MAX_DEPTH."""
    if depth > MAX_DEPTH:
        raise ValueError("headers are nested too deep for AMQP")
    parts: list[bytes] = []
    for name, value in items:
        if not isinstance(name, str):
            raise ValueError("a header's name is no text")
        raw = name.encode()
        if len(raw) > 255:
            raise ValueError("a header's name is above 255 bytes")
        parts.append(bytes((len(raw),)))
        parts.append(raw)
        parts.append(encode_value(value, hints.get(name) if hints else None, depth))
    joined = b"".join(parts)
    return _LENGTH.pack(len(joined)) + joined


def encode_value(value: Any, hint: Any = None, depth: int = 0) -> bytes:
    """Type and value. A hint that does not fit its value (somebody has changed it) is passed over."""
    if type(hint) is str and (write := _HINTED.get(hint)) is not None:
        try:
            return write(value)
        except (struct.error, TypeError, ValueError, ArithmeticError):
            pass  # written by the value's own type instead
    if isinstance(value, str):
        raw = value.encode()
        return b"S" + _LENGTH.pack(len(raw)) + raw
    if isinstance(value, bool):
        return b"t\1" if value else b"t\0"
    if isinstance(value, int):
        if _LOW <= value <= _HIGH:
            return b"I" + _INT32.pack(value)
        if -(1 << 63) <= value < 1 << 63:
            return b"l" + _INT64.pack(value)
        return encode_value(str(value))
    if isinstance(value, float):
        return b"d" + _DOUBLE.pack(value)
    if value is None:
        return b"V"
    if isinstance(value, (bytes, bytearray, memoryview)):
        return b"x" + _LENGTH.pack(len(value)) + value
    inner = hint if isinstance(hint, dict) else None
    if isinstance(value, dict):
        return b"F" + encode_table(value.items(), inner, depth + 1)
    if isinstance(value, (list, tuple)):
        if depth >= MAX_DEPTH:
            raise ValueError("headers are nested too deep for AMQP")
        items = [encode_value(v, inner.get(str(i)) if inner else None, depth + 1) for i, v in enumerate(value)]
        joined = b"".join(items)
        return b"A" + _LENGTH.pack(len(joined)) + joined
    raise ValueError(f"a header of type {type(value).__name__} can't be written in AMQP")


def _write_fixed(letter: str, form: struct.Struct) -> Callable[[Any], bytes]:
    kind = letter.encode()

    def write(value: Any) -> bytes:
        if isinstance(value, bool):
            raise TypeError("a bool is no number here")
        return kind + form.pack(value)

    return write


def _write_decimal(value: Any) -> bytes:
    if not isinstance(value, str) or len(value) > 300:
        raise TypeError("no decimal")
    sign, digits, exponent = Decimal(value).as_tuple()
    if not isinstance(exponent, int) or exponent > 0 or len(digits) > 10:
        raise ValueError("no decimal of AMQP")
    unscaled = int("".join(map(str, digits)))
    return b"D" + _DECIMAL.pack(-exponent, -unscaled if sign else unscaled)


def _write_text(value: Any) -> bytes:
    if not isinstance(value, bytes):
        raise TypeError("no bytes")
    return b"S" + _LENGTH.pack(len(value)) + value


_HINTED: dict[str, Callable[[Any], bytes]] = {
    **{hint: _write_fixed(hint, form) for form, hint in _FIXED.values() if hint is not None},
    "l": _write_fixed("l", _INT64),
    "D": _write_decimal,
    "S": _write_text,
}
