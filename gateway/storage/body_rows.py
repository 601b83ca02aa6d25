"""Owns the rows of bodies on disk: which entries' bodies they hold, which are in memory, and which are to be read.

Its rule: a row is let go when the last entry that refers to it has left, and never before.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Set
from itertools import groupby, islice

CACHE_OCTETS = 32 << 20
ROWS_AT_ONCE = 64
"""How many are read at one time: they are all in memory until their messages are handed out."""


class Rows:
    """uses: how many entries refer to each row. peaks: how many did at most, where that is more than one.
    sparse: rows that less than half of their entries still refer to. wanted: to be read, in the order in which they
    were asked for. unreadable: could not be. left_out: of these, the ones that the file lacks."""

    __slots__ = (
        "_cache",
        "_cache_octets",
        "_proven",
        "_reading",
        "left_out",
        "next",
        "peaks",
        "sparse",
        "unreadable",
        "uses",
        "wanted",
    )

    def __init__(self) -> None:
        self.next = 1
        self.uses: dict[int, int] = {}
        self.peaks: dict[int, int] = {}
        self.sparse: set[int] = set()
        self.wanted: dict[int, None] = {}
        self._reading: set[int] = set()
        self.unreadable: set[int] = set()
        self.left_out: set[int] = set()
        self._proven: set[int] | None = None
        """While the file is in doubt: what was read from it since."""
        self._cache: OrderedDict[int, bytes] = OrderedDict()
        self._cache_octets = 0

    def new(self) -> int:
        """The number of a row to be written."""
        row = self.next
        self.next = row + 1
        return row

    def restore(self, uses: Mapping[int, int], sizes: Mapping[int, int], live: Mapping[int, int]) -> None:
        """What a start found. sizes: of the rows on disk; live: octets of entries in each row."""
        self.uses = dict(uses)
        self.peaks = {row: count for row, count in uses.items() if count > 1}
        self.sparse = {row for row, octets in live.items() if 2 * octets < sizes.get(row, 0)}
        self.unreadable = self.uses.keys() - sizes.keys()
        self.next = max(self.next, max(sizes, default=0) + 1)

    def refer(self, row: int, count: int = 1) -> None:
        """So many entries more refer to this row."""
        uses = self.uses.get(row, 0) + count
        self.uses[row] = uses
        if uses > 1:
            self.peaks[row] = uses

    def release(self, row: int, count: int = 1) -> bool:
        """So many entries less; True if none is left, and the row may go."""
        left = self.uses[row] - count
        if left:
            self.uses[row] = left
            if 2 * left < self.peaks[row]:
                self.sparse.add(row)
            return False
        self._forget(row)
        return True

    def undo(self, row: int) -> None:
        """The row is not written; nothing but what was to be written with it refers to it."""
        self._forget(row)

    def _forget(self, row: int) -> None:
        del self.uses[row]
        self.peaks.pop(row, None)
        self.sparse.discard(row)
        self.unreadable.discard(row)
        self.left_out.discard(row)
        data = self._cache.pop(row, None)
        if data is not None:
            self._cache_octets -= len(data)

    def doubt(self) -> None:
        """The file has failed: what of it can still be read is not known."""
        if self._proven is None:
            self._proven = set()

    def trust(self, left_out: Iterable[int]) -> set[int]:
        """There is a new file, which lacks these. Returns those that entries refer to."""
        self._proven = None
        missing = self.living(left_out)
        self.left_out |= missing
        self.unreadable |= missing
        return missing

    def is_safe(self, row: int) -> bool:
        """Whether the row can be read again, as far as is known: then it need not be in memory."""
        return row not in self.unreadable and (self._proven is None or row in self._proven)

    def read_again(self, rows: Set[int]) -> None:
        """Those that could not be read may be asked for again."""
        self.unreadable -= rows - self.left_out

    def in_memory(self, row: int) -> bytes | None:
        return self._cache.get(row)

    def data(self, row: int) -> bytes | None:
        """The row if it is in memory; otherwise it is wanted from now on."""
        data = self._cache.get(row)
        if data is not None:
            self._cache.move_to_end(row)
        elif row not in self.unreadable and row not in self._reading:
            self.wanted[row] = None
        return data

    def take_wanted(self) -> list[int]:
        """Rows to be read now, none while others are: answer with `Core.loaded`, also for those that can't be read.
        First come, first served, so that a queue with a deep backlog does not keep the others waiting."""
        if self._reading:
            return []
        rows = list(islice(self.wanted, ROWS_AT_ONCE))
        for row in rows:
            del self.wanted[row]
        self._reading.update(rows)
        return sorted(rows)

    def keep(self, rows: Mapping[int, bytes]) -> None:
        """Of those that were to be read now, these were."""
        self._reading.clear()
        if self._proven is not None:
            self._proven.update(rows)
        for row, data in rows.items():
            if row not in self.left_out:
                self.unreadable.discard(row)
            if row in self.uses and row not in self._cache:
                self._cache[row] = data
                self._cache_octets += len(data)

    def trim(self) -> None:
        """Lets go of what was used longest ago, but for one row and what can't be read again."""
        if self._cache_octets <= CACHE_OCTETS:
            return
        for row in list(self._cache)[:-1]:
            if self.is_safe(row):
                self._cache_octets -= len(self._cache.pop(row))
                if self._cache_octets <= CACHE_OCTETS:
                    return

    def __contains__(self, row: int) -> bool:
        return row in self.uses

    def living(self, rows: Iterable[int]) -> set[int]:
        """Those of them that entries refer to."""
        return self.uses.keys() & set(rows)


def runs(rows: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Each row (0 is none) with how often it stands there in a row: messages that came together are together."""
    for row, same in groupby(rows):
        if row:
            yield row, len(list(same))
