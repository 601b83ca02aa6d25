"""Owns StateChange: a small value of a transport or of the broker that is committed with messages (ruling 5).

Its rule: of one key the last write wins.
"""

from __future__ import annotations

from typing import NamedTuple


class StateChange(NamedTuple):
    """A small value of a transport or of the core that must survive: last write wins, None removes it."""

    owner: str
    key: str
    value: bytes | None
