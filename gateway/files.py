"""Owns what a section of settings says of the files that it names, when `gateway check` asks.

Its rule: it knows no kind of file.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable


class Finding(NamedTuple):
    """What is wrong with a file. key: of the section. fatal: the daemon can't work with it."""

    key: str
    text: str
    fatal: bool


MAX_OCTETS = 16 << 20
"""Of a file that the settings name."""


def read_whole(path: Path) -> str:
    """The text of a file that the settings name. Whatever stands there, this ends soon: a pipe or a device is refused,
    as it could keep the reader waiting for ever. Raises OSError, and ValueError for what is no UTF-8 text or too large.
    """
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(number, "rb") as file:
        if not stat.S_ISREG(os.fstat(number).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", str(path))
        data = file.read(MAX_OCTETS + 1)
    if len(data) > MAX_OCTETS:
        raise OSError(errno.EFBIG, f"it has more than {MAX_OCTETS} bytes", str(path))
    return data.decode()


def why_unreadable(error: OSError | ValueError) -> str:
    """In words, of an error of `Path.read_text`: a ValueError is text that is none, or a path that can be none."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return "is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else f"is no path ({error})"


@runtime_checkable
class NamesFiles(Protocol):
    """A section of settings that can look at its files."""

    def look_at_files(self, now: float) -> Iterator[Finding]:
        """now: seconds since 1970."""
        ...
