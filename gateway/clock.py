"""Owns the daemon's one time (ruling 6): wall time at start, then the monotonic clock.

Its rule: it never runs backwards, and a jump of the wall clock changes nothing while the daemon runs.
"""

from __future__ import annotations

import time


class Clock:
    """Seconds since 1970."""

    __slots__ = ("_offset",)

    def __init__(self) -> None:
        self._offset = time.time() - time.monotonic()

    def not_before(self, last: float) -> None:
        """Goes on from `last`, the last time that the journal knows, if that is later. Once, before anything runs."""
        self._offset = max(self._offset, last - time.monotonic())

    def __call__(self) -> float:
        return self._offset + time.monotonic()
