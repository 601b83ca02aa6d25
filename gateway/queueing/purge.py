"""Owns Purge: what of one queue leaves because somebody asked for it, and how far its removal has come.

Its rule: what came later stays, and so does what was in flight when it began, also if it has come back meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from itertools import islice

from gateway.queueing.entries import Entries

PURGED_AT_ONCE = 1000
"""So many that are purged are removed in one turn of the loop."""


class Purge:
    """Of all that waits now. flying: the slots in flight. then: called by its queue when all of it is gone. left: how
    many are still to be removed."""

    __slots__ = ("_entries", "_last", "_spared", "left", "then")

    def __init__(self, entries: Entries, flying: Collection[int], then: tuple[Callable[[], None], ...]) -> None:
        self._entries = entries
        self.left = entries.count - len(flying)
        self._last = entries.ident[entries.last]
        self._spared = frozenset(flying)
        self.then = then
        entries.purged = entries.first

    def covers(self, slot: int) -> bool:
        """Whether it is about to leave."""
        return self._entries.ident[slot] <= self._last and slot not in self._spared

    def next_slots(self) -> list[int]:
        """Some of what is to be removed now."""
        entries = self._entries
        slots: list[int] = []
        for slot in islice(entries.slots(entries.purged) if entries.purged else (), 8 * PURGED_AT_ONCE):
            if entries.ident[slot] > self._last or len(slots) == PURGED_AT_ONCE:
                break
            entries.purged = entries.next[slot]
            if slot not in self._spared:
                slots.append(slot)
        self.left -= len(slots)
        return slots

    @property
    def is_over(self) -> bool:
        """There is nothing more to remove."""
        entries = self._entries
        return not entries.purged or entries.ident[entries.purged] > self._last
