"""Owns Disk: what SQLite writes and fsyncs in this process, recorded, and made to fail on request.

Its rule: only what a real disk may do happens: a write or fsync fails.
"""

from __future__ import annotations

import _sqlite3
import ctypes as c
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

OK, FULL, IOERR_WRITE, IOERR_FSYNC = 0, 13, 778, 1034
_WATCHED = 0x100 | 0x800 | 0x80000  # SQLITE_OPEN_MAIN_DB, _MAIN_JOURNAL, _WAL


class Event(NamedTuple):
    """kind: write, truncate, sync or delete. number: the offset of a write, the size of a truncate."""

    kind: str
    name: str = ""
    number: int = 0
    data: bytes = b""


class _File(c.Structure):
    """sqlite3_file: a pointer to the table of its methods."""

    _fields_ = [("methods", c.c_void_p)]


class _Methods(c.Structure):
    """sqlite3_io_methods, version 3 (https://sqlite.org/c3ref/io_methods.html)."""

    _fields_ = [
        ("version", c.c_int),
        ("close", c.c_void_p),
        ("read", c.c_void_p),
        ("write", c.c_void_p),
        ("truncate", c.c_void_p),
        ("sync", c.c_void_p),
        ("others", c.c_void_p * 13),
    ]


class _Vfs(c.Structure):
    """sqlite3_vfs (https://sqlite.org/c3ref/vfs.html), as far as xDelete."""

    _fields_ = [
        ("version", c.c_int),
        ("file_size", c.c_int),
        ("path_size", c.c_int),
        ("next", c.c_void_p),
        ("name", c.c_char_p),
        ("data", c.c_void_p),
        ("open", c.c_void_p),
        ("delete", c.c_void_p),
    ]


# Names as addresses: SQLite keeps the pointer, so no copy of the text may be passed on.
_OPEN = c.CFUNCTYPE(c.c_int, c.c_void_p, c.c_void_p, c.POINTER(_File), c.c_int, c.c_void_p)
_DELETE = c.CFUNCTYPE(c.c_int, c.c_void_p, c.c_void_p, c.c_int)
_WRITE = c.CFUNCTYPE(c.c_int, c.c_void_p, c.c_void_p, c.c_int, c.c_int64)
_TRUNCATE = c.CFUNCTYPE(c.c_int, c.c_void_p, c.c_int64)
_SYNC = c.CFUNCTYPE(c.c_int, c.c_void_p, c.c_int)


class Disk:
    """While `watched()` runs, every file that SQLite opens is seen. `fault` is asked before each write, truncate and
    sync, and answers with the code that it fails with, or OK."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.fault: Callable[[Event], int] = lambda event: OK
        self._names: dict[int, str] = {}
        self._tables: dict[int, _Methods] = {}
        self._alive: list[Any] = []
        """Callbacks, which C holds but does not own."""

    @contextmanager
    def watched(self) -> Iterator[Disk]:
        # The library that Python's own module uses: its symbols are reachable through the module.
        library = c.CDLL(getattr(_sqlite3, "__file__", None))
        library.sqlite3_vfs_find.restype = c.POINTER(_Vfs)
        vfs = library.sqlite3_vfs_find(None).contents
        before = vfs.open, vfs.delete
        really_open, really_delete = _OPEN(vfs.open), _DELETE(vfs.delete)

        def opened(self_: int, name: int | None, file: Any, flags: int, out: int) -> int:
            code: int = really_open(self_, name, file, flags, out)
            if code == OK and name and flags & _WATCHED:
                self._names[c.addressof(file.contents)] = _file_name(name)
                file.contents.methods = c.addressof(self._table(file.contents.methods))
            return code

        def delete(self_: int, name: int, sync: int) -> int:
            self.events.append(Event("delete", _file_name(name)))
            return int(really_delete(self_, name, sync))

        vfs.open, vfs.delete = self._pointer(_OPEN(opened)), self._pointer(_DELETE(delete))
        try:
            yield self
        finally:
            vfs.open, vfs.delete = before

    def _table(self, original: int) -> _Methods:
        """The same methods, of which three pass by here first."""
        if original in self._tables:
            return self._tables[original]
        methods = _Methods.from_buffer_copy(c.string_at(original, c.sizeof(_Methods)))
        write, truncate, sync = _WRITE(methods.write), _TRUNCATE(methods.truncate), _SYNC(methods.sync)

        def passing(event: Event, really: Callable[[], int]) -> int:
            code = self.fault(event)
            if code == OK and (code := really()) == OK:
                self.events.append(event)
            return code

        def on_write(file: int, data: int, size: int, offset: int) -> int:
            event = Event("write", self._names[file], offset, c.string_at(data, size))
            return passing(event, lambda: write(file, data, size, offset))

        def on_truncate(file: int, size: int) -> int:
            return passing(Event("truncate", self._names[file], size), lambda: truncate(file, size))

        def on_sync(file: int, flags: int) -> int:
            return passing(Event("sync", self._names[file]), lambda: sync(file, flags))

        methods.write = self._pointer(_WRITE(on_write))
        methods.truncate = self._pointer(_TRUNCATE(on_truncate))
        methods.sync = self._pointer(_SYNC(on_sync))
        self._tables[original] = methods
        return methods

    def _pointer(self, callback: Any) -> int | None:
        self._alive.append(callback)
        return c.cast(callback, c.c_void_p).value


def _file_name(address: int) -> str:
    return Path(c.string_at(address).decode()).name
