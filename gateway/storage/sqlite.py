"""Owns SqliteJournal, the store on disk.

Its rule: a commit is one transaction in a write-ahead log with synchronous=FULL, and after an error that is not
"disk full" the file gets no further byte (ruling 2).
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn
from zlib import crc32

from gateway.errors import StoreDamagedError, StoreError, StoreFailedError, StoreFullError
from gateway.model.state import StateChange
from gateway.storage import database
from gateway.storage.database import PAGE, pragma
from gateway.storage.directory import NO_ROOM, PROBE_OCTETS, StoreDirectory, sync
from gateway.storage.journal import Commit, Content, Rebuilt

RESERVE = 64 << 20
WAL_LIMIT = 8 << 20
"""Bytes of write-ahead log before a commit has to wait for a checkpoint."""
WAL_IDLE = 1 << 20
"""Bytes of it before an idle writer makes one."""
FREE_LIMIT = (16 << 20) // PAGE
"""Free pages that are always kept for reuse; besides them, half as many as are in use."""
FREE_SLICE = 128
"""Pages given back in one slice (1 MB)."""
CHECK_LIMIT = 64 << 20
"""A file up to this size is checked in full at each start, a larger one without its bodies."""

# IOERR_SHMSIZE: the index of the write-ahead log could not grow, which has no other cause than want of space.
_FULL = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE)
_MAYBE_FULL = (sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_TRUNCATE)
_SETTINGS = (
    "synchronous=FULL",
    "secure_delete=OFF",  # some builds overwrite what is deleted, page by page
    "wal_autocheckpoint=0",  # `_checkpoint` does it and sees its errors
    f"journal_size_limit={WAL_LIMIT}",
    "temp_store=MEMORY",
    "cache_size=-8192",
)
_log = logging.getLogger(__name__)


class SqliteJournal:
    """A Journal in the directory `path`, made if it is missing. `reserve`: bytes of disk set aside while it is open.
    Only a commit without bodies may use them, so settlements still find room when messages, or another program, have
    filled the disk."""

    durable = True

    def __init__(self, path: Path, reserve: int = RESERVE) -> None:
        self._directory = StoreDirectory(path, reserve)
        self._number = 0
        self._file = path
        self._writer: sqlite3.Connection | None = None
        self._reader: sqlite3.Connection | None = None
        self._reading = threading.Lock()
        """Held for one row or one chunk at a time, so a checkpoint meets no reader and always frees the log."""
        self._last = 0
        self._logged = 0
        """About how many bytes went to the write-ahead log since the last checkpoint."""
        self._free = 0
        """Pages of the file that were free at the begin of the last commit: new bodies go there first."""
        self._freed = False
        """Pages may have become free since they were last counted."""
        self._failed = ""
        self._was_full = False
        """The last refusal was for want of room, and nobody has found any since."""

    def open(self) -> None:
        """Raises StoreError: in use, not writable, damaged, foreign, newer, or no space to start."""
        self._directory.lock()
        try:
            newest = self._directory.newest()
            if newest:
                self._directory.secure_log(newest)
                self._use(newest, *self._connect(self._directory.file(newest)))
            else:
                self._write_new(1, Content())
            self._directory.keep(self._number)
            self._directory.hold()
        except (sqlite3.Error, OSError) as error:
            self.close()
            raise database.unusable(self._directory.path, error) from error
        except BaseException:
            self.close()
            raise

    def records(self) -> Iterator[tuple[int, bytes]]:
        """Raises StoreError if one is damaged."""
        after = 0
        while chunk := self._select("SELECT id, crc, record FROM log WHERE id > ? ORDER BY id LIMIT 64", after):
            for id, crc, record in chunk:
                if crc32(record) != crc:
                    raise database.damaged(self._file, f"log record {id} is not what was written")
                yield id, record
            after = chunk[-1][0]

    def states(self) -> Iterator[StateChange]:
        query = "SELECT owner, key, value FROM states WHERE (owner, key) {} (?, ?) ORDER BY owner, key LIMIT 1024"
        chunk = self._select(query.format(">="), "", "")
        while chunk:
            yield from map(StateChange._make, chunk)
            chunk = self._select(query.format(">"), *chunk[-1][:2])

    def expiring(self) -> Iterator[tuple[float, bytes]]:
        """Raises StoreError if a piece is damaged."""
        query = (
            "SELECT until, rowid, crc, data FROM expiring WHERE (until, rowid) > (?, ?) ORDER BY until, rowid LIMIT 64"
        )
        after: tuple[float, int] = (-1.0, 0)
        while chunk := self._select(query, *after):
            for until, row, crc, data in chunk:
                if crc32(data) != crc:
                    raise database.damaged(self._file, f"row {row} of expiring is not what was written")
                yield until, data
            after = chunk[-1][:2]

    def rows(self) -> Iterator[tuple[int, int]]:
        # SQLite knows the length of a blob from the head of its row; the pages that hold the rest are not read.
        after = 0
        while chunk := self._select(
            "SELECT row, length(data) FROM bodies WHERE row > ? ORDER BY row LIMIT 4096", after
        ):
            yield from chunk
            after = chunk[-1][0]

    def commit(self, commit: Commit) -> int:
        writer = self._usable()
        self._keep_bounds(writer, WAL_LIMIT)
        while True:
            try:
                return self._append(writer, commit)
            except sqlite3.Error as error:
                self._roll_back(writer)
                if not self._is_full(error):
                    self._fail(error)
                self._was_full = True
                if commit.bodies or not self._release():  # the reserve is for settlements
                    raise StoreFullError(f"{self._file}: the disk is full; free some space") from error
            except BaseException:
                self._roll_back(writer)
                raise

    def read(self, rows: Sequence[int]) -> dict[int, bytes]:
        return {row: data for row in rows if (data := self._body(row)) is not None}

    def rebuild(self, content: Content, salvage: bool = False) -> Rebuilt:
        before, old, old_writer, old_reader = self._last, self._number, self._writer, self._reader
        try:
            left_out, unread = self._write_new(self._number + 1, content, salvage)
        except (sqlite3.Error, OSError, StoreError) as error:
            self._abandon(error)
            if isinstance(error, StoreError):
                raise
            raise database.unusable(self._directory.path, error) from error
        # The one that can't write goes last: so SQLite makes no checkpoint in the failed file.
        for connection in (old_writer, old_reader):
            if connection:
                connection.close()
        aside = ""
        try:
            if unread:
                aside = str(self._directory.set_aside(old))
            self._directory.keep(self._number)
        except OSError as error:
            _log.warning("store: the old file could not be removed (%s); the next start tries again", error)
        return Rebuilt(self._last if self._last > before else 0, left_out, aside)

    def tidy(self) -> bool:
        self._keep_bounds(self._usable(), WAL_IDLE)
        return self._freed or self._logged >= WAL_IDLE

    def room(self) -> int:
        try:
            room = self._directory.room() + self._free * PAGE
        except OSError:
            return 0  # asked behind a commit, which must not fail for this; the next one finds out what is wrong
        # After a refusal the file system's own word is not enough: it knows nothing of quotas.
        if self._was_full and room:
            self._was_full = self._directory.lacks_reserve()
        return 0 if self._was_full else room

    def size(self) -> int:
        """Bytes of the database and its write-ahead log; the reserve is not in it."""
        return self._directory.size(self._number)

    def close(self) -> None:
        with self._reading:
            # The last one that can write makes a checkpoint: the writer goes last, unless the file has failed.
            ends = (self._writer, self._reader) if self._failed else (self._reader, self._writer)
            self._writer = self._reader = None
            for connection in ends:
                if connection:
                    connection.close()
        try:
            self._directory.release()
        finally:
            self._directory.unlock()

    # the transaction

    def _append(self, writer: sqlite3.Connection, commit: Commit) -> int:
        last = self._last
        writer.execute("BEGIN IMMEDIATE")
        if commit.trim is not None:
            writer.execute("DELETE FROM log WHERE id < ?", (commit.trim,))
            database.set_last(writer, last)
        if commit.record:
            last += 1
            database.add_record(writer, last, commit.record)
        database.add_bodies(writer, commit.bodies)
        if commit.dropped:
            writer.executemany("DELETE FROM bodies WHERE row = ?", [(row,) for row in commit.dropped])
        if commit.expired is not None:
            writer.execute("DELETE FROM expiring WHERE until <= ?", (commit.expired,))
        database.add_expiring(writer, commit.expiring)
        database.change_states(writer, commit.state)
        writer.execute("COMMIT")
        self._last = last
        self._freed = self._freed or bool(commit.dropped) or commit.trim is not None or commit.expired is not None
        self._logged += PAGE * (8 + 2 * len(commit.dropped) + len(commit.state)) + commit.octets
        return last if commit.record else 0

    def _keep_bounds(self, writer: sqlite3.Connection, logged: int) -> None:
        """A checkpoint if that many bytes were logged, and one slice of free pages given back if there are too many.
        Raises StoreFailedError. On a full disk both wait."""
        if self._logged >= logged:
            self._checkpoint(writer)
        try:
            free = self._free = pragma(writer, "freelist_count")
            if not self._freed:
                return
            excess = free - (pragma(writer, "page_count") - free) // 2 - FREE_LIMIT
            if excess > 0:
                # A script, for `execute` would end this statement after one page.
                writer.executescript(f"BEGIN IMMEDIATE; PRAGMA incremental_vacuum({min(excess, FREE_SLICE)}); COMMIT")
                self._logged += 2 * FREE_SLICE * PAGE  # the file itself shrinks at the next checkpoint
            self._freed = excess > FREE_SLICE
        except sqlite3.Error as error:
            self._roll_back(writer)
            if not self._is_full(error):
                self._fail(error)
            self._freed = False

    def _checkpoint(self, writer: sqlite3.Connection) -> None:
        """Raises StoreFailedError. On a full disk the log just grows on, and `commit` finds out."""
        try:
            with self._reading:
                pragma(writer, "wal_checkpoint(PASSIVE)")
            self._logged = 0
            self._directory.hold()
        except OSError as error:
            self._fail(error)
        except sqlite3.Error as error:
            if not self._is_full(error):
                self._fail(error)

    def _roll_back(self, writer: sqlite3.Connection) -> None:
        if writer.in_transaction:  # SQLite itself has rolled back after most errors
            try:
                writer.execute("ROLLBACK")
            except sqlite3.Error as error:
                self._fail(error)

    def _abandon(self, error: Exception) -> None:
        """No new file came of it. If the disk was full, the next attempt has the reserve: only in a new file do
        settlements find a place now."""
        full = self._is_full(error) if isinstance(error, sqlite3.Error) else getattr(error, "errno", 0) in NO_ROOM
        try:
            self._directory.abandon()
            if full:
                self._directory.release()
        except OSError as second:
            _log.warning("store: what was written of a new file is still there (%s)", second)

    def _is_full(self, error: sqlite3.Error) -> bool:
        """SQLite knows one kind of full disk only: to it, a quota that is used up is an I/O error like any other."""
        code = getattr(error, "sqlite_errorcode", None)  # errors of the Python module itself carry none
        return code in _FULL or (code in _MAYBE_FULL and self._directory.lacks(PROBE_OCTETS))

    def _release(self) -> bool:
        try:
            return self._directory.release()
        except OSError as error:
            self._fail(error)

    def _fail(self, error: sqlite3.Error | OSError) -> NoReturn:
        self._failed = f"{self._file}: {database.reason(error)}; nothing more is written to this file"
        raise StoreFailedError(self._failed) from error

    def _usable(self) -> sqlite3.Connection:
        if self._failed:
            raise StoreFailedError(self._failed)
        if self._writer is None:
            raise StoreError(f"{self._file}: the store is closed")
        return self._writer

    # reading

    def _body(self, row: int) -> bytes | None:
        for crc, data in self._select("SELECT crc, data FROM bodies WHERE row = ?", row):
            if crc32(data) != crc:
                raise database.damaged(self._file, f"body row {row} is not what was written")
            return bytes(data)
        return None

    def _select(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        with self._reading:
            if self._reader is None:
                raise StoreError(f"{self._file}: the store is closed")
            try:
                return self._reader.execute(query, values).fetchall()
            except sqlite3.Error as error:
                raise database.unusable(self._file, error) from error

    # files

    def _connect(self, file: Path) -> tuple[sqlite3.Connection, sqlite3.Connection]:
        """Writer and reader of a sound file whose write-ahead log is empty. Raises StoreError and OSError."""
        writer = reader = None
        try:
            writer = database.connect(file, "rw")
            database.recognise(writer, file)
            if (mode := pragma(writer, "journal_mode=WAL")) != "wal":
                raise StoreError(f"{file}: no write-ahead log is possible here (only {mode}); use a local file system")
            for setting in _SETTINGS:
                pragma(writer, setting)
            self._empty_log(writer, file)
            sync(file.parent)  # the write-ahead log may be new
            self._check(writer, file)
            reader = database.connect(file, "ro")
            pragma(reader, "cache_size=-1024")
            pragma(reader, "schema_version")  # it opens the file only now
            return writer, reader
        except BaseException as error:
            for connection in (reader, writer):
                if connection:
                    connection.close()
            if isinstance(error, sqlite3.Error):
                raise database.unusable(file, error) from error
            raise

    def _check(self, writer: sqlite3.Connection, file: Path) -> None:
        """The structure of all that a start relies on. Bodies have their checksums, and are not read for this when
        there are many."""
        whole = file.stat().st_size <= CHECK_LIMIT
        for part in (1,) if whole else database.READ_AT_START:
            if (found := pragma(writer, f"quick_check({part})")) != "ok":
                raise database.damaged(file, found)

    def _empty_log(self, writer: sqlite3.Connection, file: Path) -> None:
        """Every start does it before its first commit: what an earlier process wrote and could not fsync is then
        written and fsynced again, as pages of the database (ruling 2)."""
        while True:
            try:
                if pragma(writer, "wal_checkpoint(TRUNCATE)"):
                    raise StoreError(f"{file}: another program has it open; close that one")
                return
            except sqlite3.Error as error:
                if not self._is_full(error) or not self._directory.release():
                    raise

    def _write_new(self, number: int, content: Content, salvage: bool = False) -> tuple[list[int], bool]:
        """Write a whole file, publish it under `number` and go on with it. Returns the rows that it lacks, and whether
        one of them is there in the old file and could not be read. Raises StoreError, OSError and sqlite3.Error, and
        then nothing has changed."""
        left_out: list[int] = []
        unread = False
        with database.making(self._directory.begin()) as new:
            database.set_last(new, self._last)
            for id, record in enumerate(content.records, self._last + 1):
                database.add_record(new, id, record)
            database.change_states(new, content.state)
            for row in content.rows:
                try:
                    data = self._body(row)
                except StoreError as error:
                    if not (salvage or isinstance(error, StoreDamagedError)):
                        raise
                    _log.error("store: %s", error)  # with the place; all else is saved
                    data, unread = None, True
                if data is None:
                    left_out.append(row)
                else:
                    database.add_bodies(new, [(row, data)])
            database.add_bodies(new, content.bodies)
            database.add_expiring(new, content.expiring)
        file = self._directory.publish(number)
        try:
            writer, reader = self._connect(file)
        except BaseException:
            self._directory.withdraw(number)
            raise
        self._use(number, writer, reader)
        return left_out, unread

    def _use(self, number: int, writer: sqlite3.Connection, reader: sqlite3.Connection) -> None:
        last = database.last_id(writer)
        with self._reading:
            self._number, self._file = number, self._directory.file(number)
            self._writer, self._reader = writer, reader
            self._last, self._logged, self._freed, self._failed = last, 0, True, ""
