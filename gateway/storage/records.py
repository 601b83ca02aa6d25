"""Owns the form in which the core writes its log records, and how columns of numbers become bytes.

Its rule: a record read again means what it meant; a new field goes at the end and has a default.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence
from typing import Any

import msgspec

from gateway.model.binding import NO_OPTIONS, Options
from gateway.model.delivery import Death


class Extra(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What an entry carries beside its message. group: the group it had in the queue where it died first. sequence:
    its ident in the queue where it died last, 0 if it never had one. undecided: so many of the latest deaths came by
    themselves, without a word of a consumer or an operator since."""

    options: Options = NO_OPTIONS
    deaths: tuple[Death, ...] = ()
    group: str | None = None
    sequence: int = 0
    undecided: int = 0


NO_EXTRA = Extra()


class Record(msgspec.Struct, array_like=True):
    """What one commit says in the log. Columns of equal length belong together; `settled` before entries.

    refresh: not 0 for entries copied forward from older records, whose number it is; `refreshed` tells that it is
    complete, and is committed with the trim of what it replaces. groups_named: (queue, group number, value),
    extras_named: (extra number, value); a later one replaces an earlier one. attempts: (ident, count, error).
    dues: (ident, when it may be delivered) of delayed entries. moved: entries whose body is in another place now.
    """

    time: float
    settled: bytes = b""
    attempts: list[tuple[int, int, str]] = []
    idents: bytes = b""
    queues: bytes = b""
    groups: bytes = b""
    rows: bytes = b""
    offsets: bytes = b""
    lengths: bytes = b""
    expires: bytes = b""
    accepted: bytes = b""
    extras: bytes = b""
    groups_named: list[tuple[int, int, str]] = []
    extras_named: list[tuple[int, Extra]] = []
    refresh: int = 0
    refreshed: bool = False
    dues: list[tuple[int, float]] = []
    moved_idents: bytes = b""
    moved_rows: bytes = b""
    moved_offsets: bytes = b""


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Record)
COLUMNS = (
    ("idents", "q"),
    ("queues", "I"),
    ("groups", "I"),
    ("rows", "q"),
    ("offsets", "I"),
    ("lengths", "I"),
    ("expires", "d"),
    ("accepted", "d"),
    ("extras", "I"),
)


def pack(code: str, values: Sequence[Any]) -> bytes:
    """Little-endian, whatever the machine."""
    column: array[Any] = array(code, values)
    if sys.byteorder == "big":
        column.byteswap()
    return column.tobytes()


def unpack(code: str, data: bytes) -> array[Any]:
    column: array[Any] = array(code)
    column.frombytes(data)
    if sys.byteorder == "big":
        column.byteswap()
    return column


def encode(record: Record) -> bytes:
    return _encoder.encode(record)


def decode(data: bytes) -> Record:
    """Raises msgspec.DecodeError (also ValidationError) for what is no record."""
    return _decoder.decode(data)
