"""Owns what a section of settings says of the files that it names, when `gateway check` asks.

Its rule: it knows no kind of file.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol, runtime_checkable


class Finding(NamedTuple):
    """What is wrong with a file. key: of the section. fatal: the daemon can't work with it."""

    key: str
    text: str
    fatal: bool


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
