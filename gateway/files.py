"""Owns the look at files that the settings name, for `gateway check`: the daemon itself reads them when it needs them.

Its rule: it knows no kind of file. A section of settings that names files says what is wrong with them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol, runtime_checkable

import msgspec

from gateway.document import Faults, Node


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


def look(section: object, node: Node, place: str, now: float, faults: Faults, warnings: Faults) -> None:
    """Of that section and all in it; `place` are the keys that lead there, with dots."""
    if isinstance(section, NamesFiles) and not node.unread:  # else it would look at what nobody wrote
        for finding in section.look_at_files(now):
            into = faults if finding.fatal else warnings
            into.add(node.child(finding.key).line, f"{place}.{finding.key}", finding.text)
    if isinstance(section, msgspec.Struct):
        for field in msgspec.structs.fields(section):
            inner = getattr(section, field.name)
            if isinstance(inner, msgspec.Struct):
                key = field.encode_name
                look(inner, node.child(key), f"{place}.{key}", now, faults, warnings)
