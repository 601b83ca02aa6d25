"""Owns MemoryJournal, the store of `store: {memory: true}`.

Its rule: it keeps the Journal contract to the letter, except that nothing outlives the process.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Iterator, Sequence

from gateway.errors import StoreFailedError
from gateway.model.state import StateChange
from gateway.storage.journal import Commit, Content, Rebuilt


class MemoryJournal:
    """A Journal whose dictionaries are changed by the writer thread and read by the reader thread, each change one
    atomic operation."""

    durable = False

    def __init__(self) -> None:
        self._log: dict[int, bytes] = {}
        self._bodies: dict[int, bytes] = {}
        self._states: dict[tuple[str, str], bytes] = {}
        self._expiring: list[tuple[float, bytes]] = []
        self._last = 0
        self._octets = 0
        self._failed = ""

    def open(self) -> None:
        """Nothing can be wrong with it."""

    def records(self) -> Iterator[tuple[int, bytes]]:
        return iter(list(self._log.items()))

    def states(self) -> Iterator[StateChange]:
        return iter([StateChange(owner, key, value) for (owner, key), value in self._states.items()])

    def expiring(self) -> Iterator[tuple[float, bytes]]:
        return iter(sorted(self._expiring))

    def rows(self) -> Iterator[tuple[int, int]]:
        return iter(sorted((row, len(data)) for row, data in self._bodies.items()))

    def commit(self, commit: Commit) -> int:
        if self._failed:
            raise StoreFailedError(self._failed)
        # All that can fail comes first, so that a commit is whole or never was.
        new = [row for row, _ in commit.bodies]
        if len(set(new)) < len(new) or not self._bodies.keys().isdisjoint(new):
            self._failed = "memory store: a body row was written twice; it must be rebuilt"
            raise StoreFailedError(self._failed)
        if commit.trim is not None:
            trim = commit.trim
            for id in list(itertools.takewhile(lambda id: id < trim, self._log)):
                self._octets -= len(self._log.pop(id))
        for row, data in commit.bodies:
            self._bodies[row] = data
            self._octets += len(data)
        for row in commit.dropped:
            self._octets -= len(self._bodies.pop(row, b""))
        self._change(commit.state)
        if commit.expired is not None:
            expired = commit.expired
            self._keep([item for item in self._expiring if item[0] > expired])
        self._keep([*self._expiring, *commit.expiring])
        return self._append(commit.record) if commit.record else 0

    def read(self, rows: Sequence[int]) -> dict[int, bytes]:
        bodies = self._bodies
        return {row: data for row in rows if (data := bodies.get(row)) is not None}

    def rebuild(self, content: Content, salvage: bool = False) -> Rebuilt:
        wanted, kept = list(content.rows), list(content.records)
        found = self.read(wanted)
        before = self._last
        self._log, self._states, self._bodies = {}, {}, {**found, **dict(content.bodies)}
        self._expiring = []
        self._octets = sum(map(len, self._bodies.values()))
        self._keep(list(content.expiring))
        self._failed = ""
        self._change(content.state)
        for record in kept:
            self._append(record)
        return Rebuilt(self._last if self._last > before else 0, [row for row in wanted if row not in found])

    def tidy(self) -> bool:
        return False

    def room(self) -> int:
        return sys.maxsize

    def size(self) -> int:
        return self._octets

    def close(self) -> None:
        self._log, self._states, self._bodies, self._expiring, self._octets = {}, {}, {}, [], 0

    def _change(self, changes: Iterable[StateChange]) -> None:
        for owner, key, value in changes:
            self._octets -= len(self._states.pop((owner, key), b""))
            if value is not None:
                self._states[owner, key] = value
                self._octets += len(value)

    def _keep(self, expiring: list[tuple[float, bytes]]) -> None:
        self._octets += sum(len(data) for _, data in expiring) - sum(len(data) for _, data in self._expiring)
        self._expiring = expiring

    def _append(self, record: bytes) -> int:
        self._last += 1
        self._log[self._last] = record
        self._octets += len(record)
        return self._last
