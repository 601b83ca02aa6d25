"""Owns the packed arrays in which a queue keeps its entries, 64 bytes each, and their order of arrival.

Its rule: a slot is one entry from `add` to `remove`; slot 0 is none, and an ident is never used twice.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from itertools import islice
from math import isqrt
from typing import Any

_COLUMNS = {
    "ident": "q",
    "row": "q",
    "offset": "I",
    "length": "I",
    "expires": "d",
    "accepted": "d",
    "group": "I",
    "extra": "I",
    "next": "i",
    "previous": "i",
    "group_next": "i",
    "group_previous": "i",
}


_EMPTY: dict[str, array[int] | array[float]] = {name: array(code, [0]) for name, code in _COLUMNS.items()}
"""Of all queues that never held an entry, as those of most devices: twelve arrays are a kilobyte. Slot 0 is never
written."""


class Entries:
    """ident: place in the daemon's order. row, offset, length: where the body is; row 0: nowhere on disk.
    expires: 0 for never. group, extra: numbers whose meaning the queue knows. next, previous: by arrival."""

    __slots__ = (*_COLUMNS, "_free", "_top", "copied", "count", "first", "last", "octets", "purged", "reordered")

    ident: array[int]
    row: array[int]
    offset: array[int]
    length: array[int]
    expires: array[float]
    accepted: array[float]
    group: array[int]
    extra: array[int]
    next: array[int]
    previous: array[int]
    group_next: array[int]
    group_previous: array[int]

    def __init__(self) -> None:
        for name, empty in _EMPTY.items():
            setattr(self, name, empty)
        self._free = 0
        self._top = 1
        self.first = 0
        self.last = 0
        self.count = 0
        self.octets = 0
        self.copied = 0
        self.purged = 0
        self.reordered = 0
        """Where walks that pause go on, of a copy of the log, of a purge and of a new ordering: each moves on by itself
        when its entry is removed."""

    def add(
        self,
        ident: int,
        row: int,
        offset: int,
        length: int,
        expires: float,
        accepted: float,
        group: int,
        extra: int,
    ) -> int:
        """Returns the new slot, last by arrival. Idents must grow."""
        slot = self._free
        if slot:
            self._free = self.next[slot]
        else:
            slot = self._top
            if slot == len(self.ident):
                self._grow(max(8, min(slot, 64), slot >> 3))
            self._top = slot + 1
        self.ident[slot] = ident
        self.row[slot] = row
        self.offset[slot] = offset
        self.length[slot] = length
        self.expires[slot] = expires
        self.accepted[slot] = accepted
        self.group[slot] = group
        self.extra[slot] = extra
        last = self.last
        self.previous[slot] = last
        self.next[slot] = 0
        if last:
            self.next[last] = slot
        else:
            self.first = slot
        self.last = slot
        self.count += 1
        self.octets += length
        return slot

    @property
    def is_dense(self) -> bool:
        """Whether no slot below the highest is free."""
        return not self._free

    def extend(self, columns: Mapping[str, array[Any]]) -> range:
        """As `add`, for many at once; only while `is_dense`. Returns their slots."""
        assert not self._free
        first, count = self._top, len(columns["ident"])
        slots = range(first, first + count)
        if slots.stop > len(self.ident):
            self._grow(max(slots.stop - len(self.ident), len(self.ident) >> 3))
        for name, values in columns.items():
            getattr(self, name)[first : slots.stop] = values
        self.previous[first : slots.stop] = array("i", range(first - 1, slots.stop - 1))
        self.next[first : slots.stop] = array("i", range(first + 1, slots.stop + 1))
        self.previous[first] = last = self.last
        self.next[slots[-1]] = 0
        if last:
            self.next[last] = first
        else:
            self.first = first
        self.last = slots[-1]
        self._top = slots.stop
        self.count += count
        self.octets += sum(columns["length"])
        return slots

    def remove(self, slot: int) -> None:
        """Frees the slot; its ident becomes 0."""
        before, after = self.previous[slot], self.next[slot]
        if slot == self.copied:
            self.copied = after
        if slot == self.purged:
            self.purged = after
        if slot == self.reordered:
            self.reordered = after
        if before:
            self.next[before] = after
        else:
            self.first = after
        if after:
            self.previous[after] = before
        else:
            self.last = before
        self.count -= 1
        self.octets -= self.length[slot]
        self.ident[slot] = 0
        self.next[slot] = self._free
        self._free = slot
        if not self.count:
            self._reset()

    def holds(self, slot: int, ident: int) -> bool:
        """Whether the slot is still that entry; for whoever kept a slot while others may have been removed."""
        return slot < len(self.ident) and self.ident[slot] == ident

    def after(self, ident: int) -> int:
        """The slot of the first entry with a greater ident, 0 if there is none. It goes on from the nearest of some
        slots that are spread over all, so of n entries it looks at about twice the root of n."""
        idents, following = self.ident, self.next
        slot = self.first
        if not slot or idents[self.last] <= ident:
            return 0
        if idents[slot] > ident:
            return slot
        stride = isqrt(self._top)
        sample = idents[stride : self._top : stride]
        nearest = max((one for one in sample if one <= ident), default=0)
        if nearest > idents[slot]:
            slot = stride * (1 + sample.index(nearest))
        while idents[slot] <= ident:
            slot = following[slot]
        return slot

    def _grow(self, slots: int) -> None:
        for name in _COLUMNS:
            column: array[int] | array[float] = getattr(self, name)
            if column is _EMPTY[name]:
                column = column[:]
                setattr(self, name, column)
            column.frombytes(bytes(column.itemsize * slots))

    def _reset(self) -> None:
        """An empty queue gives its memory back."""
        self._free, self._top = 0, 1
        if len(self.ident) > 8192:
            for name in _COLUMNS:
                column: array[int] | array[float] = getattr(self, name)
                del column[64:]

    def slots(self, start: int = 0) -> Iterator[int]:
        """By arrival, from `start` or the first. The present one may be removed meanwhile, no other."""
        slot = start or self.first
        while slot:
            following = self.next[slot]
            yield slot
            slot = following


class Walk:
    """Over the entries by arrival, some at a time. Between, any may come and go: what is there all the while is met
    once. after: begins behind the entry with this ident."""

    __slots__ = ("_after", "_entries", "_slot")

    def __init__(self, entries: Entries, after: int = 0) -> None:
        self._entries = entries
        self._after = after
        self._slot = 0

    def some(self, most: int) -> list[int]:
        """The slots of the next ones; none at the end."""
        entries = self._entries
        if self._slot and entries.holds(self._slot, self._after):
            start = entries.next[self._slot]
        else:
            start = entries.after(self._after)
        slots = list(islice(entries.slots(start), most)) if start else []
        if slots:
            self._slot = slots[-1]
            self._after = entries.ident[self._slot]
        return slots
