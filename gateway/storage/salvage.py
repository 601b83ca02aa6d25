"""Owns Salvage: all that can still be read of a store that no process has open, whole or damaged.

Its rule: it changes nothing, believes no checksum but its own, and names the place of whatever it had to leave out.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from zlib import crc32

import msgspec

from gateway.errors import StoreError
from gateway.model.state import StateChange
from gateway.storage import database
from gateway.storage.directory import StoreDirectory

_FURTHEST = 1 << 62


class Report(msgspec.Struct, frozen=True):
    """What could be read of one store; sound if there are no problems. octets: of the file and its log. The counts are
    of what is whole."""

    file: str
    octets: int
    records: int
    bodies: int
    states: int
    problems: tuple[str, ...]


class Salvage:
    """The reading half of a Journal, of what is whole. Use it in a `with`; `report` is complete from its begin.

    Entering raises StoreError if there is no store in the directory `path`, if it is in use, or if it can't be opened
    at all."""

    report: Report

    def __init__(self, path: Path) -> None:
        self._path = path
        self._directory = StoreDirectory(path, 0)
        self._connection: sqlite3.Connection
        self._problems: list[str] = []
        self._records: list[int] = []
        self._rows: dict[int, int] = {}
        self._expiring: list[int] = []
        self._states: list[StateChange] = []

    def __enter__(self) -> Salvage:
        if not self._path.is_dir() or not self._directory.newest():
            raise StoreError(f"{self._path}: there is no store here")
        self._directory.lock()
        number = self._directory.newest()
        file = self._directory.file(number)
        try:
            self._connection = database.connect(file, "ro")
            database.recognise(self._connection, file)
            self._look()
        except sqlite3.Error as error:
            self.close()
            raise database.unusable(file, error) from error
        except BaseException:
            self.close()
            raise
        counts = len(self._records), len(self._rows), len(self._states)
        self.report = Report(str(file), self._directory.size(number), *counts, tuple(self._problems))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        if hasattr(self, "_connection"):
            self._connection.close()
        self._directory.unlock()

    def _look(self) -> None:
        try:
            for (text,) in self._connection.execute("PRAGMA integrity_check(100)"):
                if text != "ok":
                    self._problems.append(text)
        except sqlite3.Error as error:
            self._problems.append(f"integrity_check: {database.reason(error)}")
        self._records += [id for id, _ in self._whole("log", "id", "record")]
        self._rows.update((row, len(data)) for row, data in self._whole("bodies", "row", "data"))
        self._expiring += [row for row, _ in self._whole("expiring", "rowid", "data")]
        try:
            self._states += map(StateChange._make, self._connection.execute("SELECT owner, key, value FROM states"))
        except sqlite3.Error as error:
            self._problems.append(f"states: {database.reason(error)}")

    def _whole(self, table: str, key: str, data: str) -> Iterator[tuple[int, bytes]]:
        """Rows that are what was written, by key. Where the tree is damaged it goes on behind the gap."""
        after, step = 0, 0
        query = f"SELECT {key}, crc, {data} FROM {table} WHERE {key} > ? ORDER BY {key}"
        while after < _FURTHEST:
            try:
                for id, crc, value in self._connection.execute(query, (after,)):
                    after, step = id, 0
                    if crc32(value) == crc:
                        yield id, value
                    else:
                        self._problems.append(f"{table}: {key} {id} is not what was written")
                return
            except sqlite3.Error as error:
                if not step:
                    self._problems.append(
                        f"{table}: what follows {key} {after} can't be read: {database.reason(error)}"
                    )
                step = 2 * step or 1
                after += step

    # the reading half of a Journal

    def records(self) -> Iterator[tuple[int, bytes]]:
        for id in self._records:
            yield id, self._value("SELECT record FROM log WHERE id = ?", id)

    def states(self) -> Iterator[StateChange]:
        return iter(self._states)

    def expiring(self) -> Iterator[tuple[float, bytes]]:
        for row in self._expiring:
            (found,) = self._connection.execute("SELECT until, data FROM expiring WHERE rowid = ?", (row,))
            yield found

    def rows(self) -> Iterator[tuple[int, int]]:
        return iter(self._rows.items())

    def read(self, rows: Sequence[int]) -> dict[int, bytes]:
        return {row: self._value("SELECT data FROM bodies WHERE row = ?", row) for row in rows if row in self._rows}

    def _value(self, query: str, key: int) -> bytes:
        ((value,),) = self._connection.execute(query, (key,))
        return bytes(value)

    # saving

    def save(self, path: Path) -> None:
        """Writes all of it as a new store in the directory `path`, which must not hold one. Raises StoreError."""
        directory = StoreDirectory(path, 0)
        directory.lock()
        try:
            if directory.newest():
                raise StoreError(f"{path}: there is a store already; name another directory")
            with database.making(directory.begin()) as new:
                # Ids stay: records refer to each other by them.
                for id, record in self.records():
                    database.add_record(new, id, record)
                database.set_last(new, self._records[-1] if self._records else 0)
                database.add_bodies(new, self._bodies())
                database.add_expiring(new, self.expiring())
                database.change_states(new, self.states())
            directory.publish(1)
        except (sqlite3.Error, OSError) as error:
            raise database.unusable(path, error) from error
        finally:
            directory.unlock()

    def _bodies(self) -> Iterable[tuple[int, bytes]]:
        for row in self._rows:
            yield from self.read([row]).items()


def check(path: Path) -> Report:
    """What can be read of the store in the directory `path`. Raises StoreError as `Salvage` does."""
    with Salvage(path) as salvage:
        return salvage.report
