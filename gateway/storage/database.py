"""Owns the format of a database file: its tables, how one is made, opened and recognised.

Its rule: a file is used only if it says that it is ours, that we know its format and that it is whole.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from zlib import crc32

from gateway.errors import StoreDamagedError, StoreError
from gateway.model.state import StateChange

APPLICATION_ID = 0x47617465  # "Gate"
FORMAT = 3
PAGE = 8192
"""Bytes: a small commit writes two of them, a body of 256 KB 33."""

_SCHEMA = (
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID",
    # A row's checksum stands before its blob, so that it is read without it.
    "CREATE TABLE log (id INTEGER PRIMARY KEY, crc INTEGER NOT NULL, record BLOB NOT NULL)",
    "CREATE TABLE bodies (row INTEGER PRIMARY KEY, crc INTEGER NOT NULL, data BLOB NOT NULL)",
    "CREATE TABLE expiring (until REAL NOT NULL, crc INTEGER NOT NULL, data BLOB NOT NULL)",
    "CREATE INDEX expiring_until ON expiring (until)",
    "CREATE TABLE states (owner TEXT NOT NULL, key TEXT NOT NULL, value BLOB NOT NULL, PRIMARY KEY (owner, key))"
    " WITHOUT ROWID",
)
READ_AT_START = ("meta", "log", "expiring", "states")
"""Tables that a start reads in full; of bodies it reads only which there are."""
_SETTINGS = (
    f"page_size={PAGE}",
    "auto_vacuum=INCREMENTAL",
    "journal_mode=OFF",
    "synchronous=OFF",
    f"application_id={APPLICATION_ID}",
    f"user_version={FORMAT}",
)


def connect(file: Path, mode: str) -> sqlite3.Connection:
    """mode: `rw`, or `ro` for a connection that never writes, not even a checkpoint when it closes."""
    uri = f"{file.absolute().as_uri()}?mode={mode}"
    return sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, timeout=5)


@contextmanager
def making(file: Path) -> Iterator[sqlite3.Connection]:
    """A new database in the empty `file`, filled by the caller in one transaction. Nothing of it is on disk for
    sure before the caller's fsync, and it is useless if the process ends before."""
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        for setting in _SETTINGS:
            pragma(connection, setting)
        connection.execute("BEGIN")
        for statement in _SCHEMA:
            connection.execute(statement)
        yield connection
        connection.execute("COMMIT")


def add_record(connection: sqlite3.Connection, id: int, record: bytes) -> None:
    connection.execute("INSERT INTO log VALUES (?, ?, ?)", (id, crc32(record), record))


def add_bodies(connection: sqlite3.Connection, bodies: Iterable[tuple[int, bytes]]) -> None:
    connection.executemany("INSERT INTO bodies VALUES (?, ?, ?)", ((row, crc32(data), data) for row, data in bodies))


def add_expiring(connection: sqlite3.Connection, expiring: Iterable[tuple[float, bytes]]) -> None:
    rows = ((until, crc32(data), data) for until, data in expiring)
    connection.executemany("INSERT INTO expiring VALUES (?, ?, ?)", rows)


def change_states(connection: sqlite3.Connection, changes: Iterable[StateChange]) -> None:
    """In their order."""
    for owner, key, value in changes:
        if value is None:
            connection.execute("DELETE FROM states WHERE owner = ? AND key = ?", (owner, key))
        else:
            connection.execute("INSERT OR REPLACE INTO states VALUES (?, ?, ?)", (owner, key, value))


def set_last(connection: sqlite3.Connection, id: int) -> None:
    """Log ids go on above it, even when the log is empty."""
    connection.execute("INSERT OR REPLACE INTO meta VALUES ('last', ?)", (id,))


def last_id(connection: sqlite3.Connection) -> int:
    found = connection.execute("SELECT max(id) FROM log UNION ALL SELECT value FROM meta WHERE key = 'last'")
    return max(id or 0 for (id,) in found.fetchall())


def pragma(connection: sqlite3.Connection, text: str) -> Any:
    """The first value of its answer, None if it has none."""
    found = connection.execute(f"PRAGMA {text}").fetchall()
    return found[0][0] if found else None


def recognise(connection: sqlite3.Connection, file: Path) -> None:
    """Raises StoreError if the file is not ours or is newer than this program."""
    if pragma(connection, "application_id") != APPLICATION_ID:
        raise StoreError(f"{file}: this is no store of the gateway; move it away, or set another store.path")
    if (format := pragma(connection, "user_version")) != FORMAT:
        raise StoreError(
            f"{file}: the store has format {format}, and this program reads format {FORMAT}; "
            "run the version that wrote it, or a newer one"
        )


def damaged(file: Path, found: str) -> StoreError:
    return StoreDamagedError(
        f"{file}: the store is damaged ({found}); `gateway check --store` tells what can be saved; "
        "or restore it from a backup, or move it away to start empty"
    )


def unusable(file: Path, error: sqlite3.Error | OSError) -> StoreError:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return damaged(file, str(error))
    return StoreError(f"{file}: the store can't be used ({reason(error)}); see that it is writable and the disk sound")


def reason(error: sqlite3.Error | OSError) -> str:
    """The cause alone; SQLite's own name of it is what one looks up."""
    if isinstance(error, sqlite3.Error):
        return f"{error}, {getattr(error, 'sqlite_errorname', type(error).__name__)}"
    return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error)
