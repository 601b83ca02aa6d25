"""Owns the rewriting of body rows that are mostly dead, so that the store stays near the size of what lives in it.

Its rule: a body is copied, then its entry's new place is committed with the copy, and only then is the old row let go
(ruling 27). Each step is short; the scan that finds the entries of many rows at once is cut in slices.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Set

from gateway.broker.commit_batch import Relocation
from gateway.broker.core import Core
from gateway.queueing.queue import Queue

SCAN_SLOTS = 50_000
"""Of one slice of the scan: a few milliseconds."""
STEP_OCTETS = 1 << 20
"""Of bodies copied in one step, about."""
FEW_ROWS = 16


def is_due(core: Core) -> bool:
    """More than a quarter of the rows are less than half alive, and what was copied before is where it belongs: the log
    takes the last place that it is told for the true one, so no entry may be on its way to two."""
    for gather in (core.gather, core.committing):
        if gather is not None and gather.relocations:
            return False
    return len(core.rows.sparse) >= max(FEW_ROWS, len(core.rows.uses) // 4)


def rescue(core: Core, rows: Set[int]) -> Counter[str]:
    """Puts the messages of these rows, which the store has lost, into the next commit, if they are in memory. Returns
    how many are not, by queue: they keep their place and can't be delivered."""
    lost: Counter[str] = Counter()
    bodies = core.gather.copied_bodies
    # Entries that share a body go on sharing it.
    places: dict[tuple[int, int], tuple[int, int]] = {}
    for queue in core.queues.values():
        entries = queue.entries
        for slot in entries.slots():
            row, offset = entries.row[slot], entries.offset[slot]
            if row not in rows:
                continue
            place = places.get((row, offset))
            if place is None:
                message, data = queue.in_memory(slot), core.rows.in_memory(row)
                if message is not None:
                    place = bodies.add(message, core.rows.new)[:2]
                elif data is not None:
                    place = bodies.append(data[offset : offset + entries.length[slot]], core.rows.new)
                else:
                    lost[queue.name] += 1
                    continue
                places[row, offset] = place
            core.gather.relocations.append(Relocation(queue, slot, entries.ident[slot], row, *place))
    return lost


class Compaction:
    """One pass: finds what lives in the rows that are sparse now, and copies it together."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._victims = frozenset(core.rows.sparse)
        core.rows.sparse -= self._victims
        self._living: dict[int, list[tuple[Queue, int, int]]] = {}
        self._scan = self._find()
        self._rows: list[int] = []
        self.scanned = False

    def step(self) -> None:
        """One slice of the scan."""
        if next(self._scan, None) is None:
            self.scanned = True
            self._rows = sorted(self._living, reverse=True)

    def next_rows(self) -> list[int]:
        """Rows to read for the next `copy`; none: the pass is over."""
        chosen: list[int] = []
        octets = 0
        while self._rows and octets < STEP_OCTETS:
            row = self._rows.pop()
            octets += sum(queue.entries.length[slot] for queue, slot, _ in self._living[row])
            chosen.append(row)
        return chosen

    def copy(self, rows: Mapping[int, bytes]) -> None:
        """Puts what still lives in these rows into the next commit, at new places. A row that could not be read stays
        as it is."""
        core = self._core
        gather = core.gather
        for row, data in rows.items():
            if row in core.rows.left_out:
                continue  # it was read from a file that is no more, and is stored again already
            # Entries that share a body go on sharing it.
            places: dict[int, tuple[int, int]] = {}
            for queue, slot, ident in self._living.pop(row, ()):
                entries = queue.entries
                if not entries.holds(slot, ident) or entries.row[slot] != row:
                    continue
                offset = entries.offset[slot]
                place = places.get(offset)
                if place is None:
                    body = data[offset : offset + entries.length[slot]]
                    place = places[offset] = gather.copied_bodies.append(body, core.rows.new)
                gather.relocations.append(Relocation(queue, slot, ident, row, *place))

    def give_up(self) -> None:
        """Ends the pass; the next one takes up what this one has not copied."""
        rows = self._core.rows
        rows.sparse |= rows.living(self._living if self.scanned else self._victims)

    def _find(self) -> Iterator[bool]:
        victims, living = self._victims, self._living
        for queue in list(self._core.queues.values()):
            entries = queue.entries
            for start in range(0, len(entries.row), SCAN_SLOTS):
                some = entries.row[start : start + SCAN_SLOTS]
                for slot, row in enumerate(some, start):
                    if row in victims and entries.ident[slot]:
                        living.setdefault(row, []).append((queue, slot, entries.ident[slot]))
                yield True
