"""Owns the Journal contract: one ordered log, message bodies and what expires apart from it, and a map of small states.

Its rule: a commit is whole or it never was, and once `commit` has returned it survives a power cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

import msgspec

from gateway.model.state import StateChange


class Commit(msgspec.Struct):
    """What one commit makes durable, all or nothing.

    record: appended to the log; opaque to the journal; b"" appends nothing.
    bodies: rows of message bodies, (row id, data); ids are given by the caller, are positive and only grow.
    dropped: body rows to remove. Rows that do not exist are ignored.
    state: applied in order.
    trim: removes the log records that precede this one by position, i.e. all with an id < `trim`; None keeps all.
    It is done before `record` is appended, so a commit never removes its own record.
    expiring: pieces of data that are needed until a time, (time, data); opaque, too.
    expired: pieces of earlier commits whose time is at or before it are removed; None removes none.
    """

    record: bytes = b""
    bodies: list[tuple[int, bytes]] = []
    dropped: list[int] = []
    state: list[StateChange] = []
    trim: int | None = None
    expiring: list[tuple[float, bytes]] = []
    expired: float | None = None

    @property
    def octets(self) -> int:
        """What it brings: its record, bodies and expiring pieces."""
        return len(self.record) + sum(len(data) for _, data in (*self.bodies, *self.expiring))


class Content(NamedTuple):
    """All that a new file gets. records: of the log, in order. rows: of bodies, read from the old file. bodies: new
    ones. state, expiring: as in a Commit."""

    records: Iterable[bytes] = ()
    rows: Iterable[int] = ()
    state: Iterable[StateChange] = ()
    bodies: Iterable[tuple[int, bytes]] = ()
    expiring: Iterable[tuple[float, bytes]] = ()


class Rebuilt(NamedTuple):
    """last_id: of the last log record. left_out: rows that the new file lacks. aside: where the old file stands from
    now on, if it may hold more of these than could be read; "" if it is gone."""

    last_id: int
    left_out: Sequence[int] = ()
    aside: str = ""


class Source(Protocol):
    """What a start reads."""

    def records(self) -> Iterator[tuple[int, bytes]]:
        """All log records with their ids, in the order of their commits."""

    def states(self) -> Iterator[StateChange]:
        """The present state, no None among the values."""

    def expiring(self) -> Iterator[tuple[float, bytes]]:
        """All that is kept until a time, ascending."""

    def rows(self) -> Iterator[tuple[int, int]]:
        """(id, size in bytes) of every body row, ascending, without reading the bodies."""


class Journal(Source, Protocol):
    """A store. All calls block; `commit`, `rebuild` and `close` come from one writer thread, `read` from one
    reader thread at the same time, the others before the first commit from either."""

    durable: bool
    """True if what was committed survives the process."""

    def open(self) -> None:
        """Open or make the store and check it. Raises StoreError with the path and what to do (a second process
        that holds it, not writable, damaged, made by a newer version)."""

    def commit(self, commit: Commit) -> int:
        """Make it durable. Returns the id of its log record (ids grow; 0 if `record` was empty).

        Raises StoreFullError when there was no room: rolled back, may be tried again, and StoreFailedError when
        the file can't be trusted any more: every later commit raises it too, until `rebuild`."""
        ...

    def read(self, rows: Sequence[int]) -> dict[int, bytes]:
        """The bodies of these rows; a row that does not exist is absent. Raises StoreError on an I/O error."""
        ...

    def rebuild(self, content: Content, salvage: bool = False) -> Rebuilt:
        """After StoreFailedError: write a new file with that content, fsync it and its directory, and go on with it
        instead of the old one. Rows that are missing or damaged are left out; with `salvage` also those that can't be
        read, which may be for now only. Raises StoreError and leaves the old file if that can't be done."""
        ...

    def tidy(self) -> bool:
        """One slice of housekeeping (giving free pages back, a checkpoint), for the writer thread when it has
        nothing to commit. True if there is more to do. Never needed for correctness: `commit` does what can't
        wait. Raises StoreFailedError as `commit` does."""
        ...

    def room(self) -> int:
        """Bytes that new messages may still take before the file system is full (a large number if unknown). What
        a store keeps in reserve is not in it: a commit without bodies may use that, so settlements still fit when
        this is 0."""
        ...

    def size(self) -> int:
        """Bytes that the store takes on disk now, write-ahead log included."""
        ...

    def close(self) -> None:
        """Flush and release the store; a second call does nothing."""
