"""Owns Shim: `shim.c` built, preloaded into a process, told what shall fail, and its trace read back.

Its rule: it changes nothing but what a rule names, and the trace holds every write, fsync, rename and removal in the
store's directory, in the order in which they happened.
"""

from __future__ import annotations

import errno
import mmap
import os
import struct
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import gettempdir
from typing import NamedTuple
from zlib import crc32

SOURCE = Path(__file__).with_name("shim.c")
KINDS = (
    *("", "open", "close", "write", "truncate", "sync", "rename", "unlink", "mark", "read", "sync failed", "start"),
    "allocate",
)
_HEAD = struct.Struct("=BBHIiiq")
_RULE = struct.Struct("=iiiii64s64s")
_HITS = 16
"""Where a rule's count of failures stands."""


class Event(NamedTuple):
    """name: below the root, "" for the root itself; only of open, rename, unlink. number: an offset, or a size.
    data: what was written, the new name of a rename, or what a mark says. created: an open made the file."""

    kind: str
    fd: int
    name: str
    number: int
    data: bytes
    created: bool


@cache
def library() -> Path:
    """The shim, compiled once for each state of its source. Raises CalledProcessError with what gcc said."""
    made = Path(gettempdir(), f"gateway-shim-{os.getuid()}-{crc32(SOURCE.read_bytes()):08x}.so")
    if not made.exists():
        own = made.with_suffix(f".{os.getpid()}")
        subprocess.run(["gcc", "-shared", "-fPIC", "-O2", "-o", own, SOURCE, "-ldl"], check=True)
        own.rename(made)
    return made


class Rules:
    """What shall fail, in a file that the shim maps too; it must be there, zeros at first."""

    SIZE = 8 * _RULE.size

    def __init__(self, control: Path) -> None:
        with open(control, "r+b") as file:
            self._rules = mmap.mmap(file.fileno(), 0)

    def fail(
        self,
        calls: tuple[str, ...],
        error: int = errno.EIO,
        name: str = "*",
        *,
        after: int = 0,
        times: int = -1,
        during: str = "",
        rule: int = 0,
    ) -> None:
        """From now on these calls on files whose name matches fail, once `after` of them have passed, `times` times
        or for ever; `during`: only while the file of that name is there. rule: 0 to 7, of which it takes the place."""
        self.heal(rule)
        bits = sum(1 << KINDS.index(call) for call in calls)
        place = rule * _RULE.size
        whole = _RULE.pack(bits, error, after, times, 0, name.encode(), during.encode())
        self._rules[place + 4 : place + _RULE.size] = whole[4:]
        self._rules[place : place + 4] = whole[:4]  # last: from here on it is in force

    def heal(self, rule: int = 0) -> None:
        """That rule is in force no more."""
        self._rules[rule * _RULE.size : rule * _RULE.size + 4] = bytes(4)

    def hits(self, rule: int = 0) -> int:
        """How many calls have failed by it."""
        place = rule * _RULE.size + _HITS
        return int.from_bytes(self._rules[place : place + 4], "little")

    def close(self) -> None:
        self._rules.close()


class Shim(Rules):
    """For one store in the directory `root`, which must exist; `folder` takes the trace and the rules. `env` is for
    the process that shall be watched."""

    def __init__(self, folder: Path, root: Path) -> None:
        control = folder / "control"
        control.write_bytes(bytes(Rules.SIZE))
        super().__init__(control)
        self.root = root.resolve()
        self.trace = folder / "trace"
        self.env = {
            "LD_PRELOAD": str(library()),
            "SHIM_ROOT": str(self.root),
            "SHIM_CONTROL": str(control),
            "SHIM_TRACE": str(self.trace),
        }


def read_trace(file: Path) -> Iterator[Event]:
    """All that happened, by one process or by several, one after the other."""
    data = memoryview(file.read_bytes())
    place = 0
    while place < len(data):
        kind, created, name_size, size, fd, _, number = _HEAD.unpack_from(data, place)
        place += _HEAD.size
        name = bytes(data[place : place + name_size]).decode()
        place += name_size
        yield Event(KINDS[kind], fd, name, number, bytes(data[place : place + size]), bool(created))
        place += size
