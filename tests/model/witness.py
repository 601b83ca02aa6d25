"""Owns what can be seen of a real core and its journal, in the words of the reference model.

Its rule: it looks and changes nothing; a body that is on disk only is read past the core, straight from the journal.
"""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from gateway.gather import Pending
from gateway.ledger import Counters
from gateway.message import Message
from gateway.order import Grouped
from gateway.queue import Queue, decode_message
from gateway.records import Extra
from gateway.storage.journal import Journal
from gateway.storage.memory import MemoryJournal
from gateway.storage.sqlite import SqliteJournal
from tests.harness.kernel import Kernel


class Seen(NamedTuple):
    """An entry of the real queue. deaths: (queue, reason, attempts), the latest first."""

    name: str
    group: str | None
    in_flight: bool
    doomed: bool
    attempts: int
    accepted: float
    expires: float
    deaths: tuple[tuple[str, str, int], ...]


class Witness:
    """Of one run. A Real to the model."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.core = kernel.core
        self._names: dict[int, str] = {}
        """By ident, which is never used again for another entry that was committed."""
        self._places: dict[tuple[str, str], tuple[int, int]] = {}

    def queue(self, name: str) -> list[Seen]:
        """What was committed to it, by arrival."""
        queue = self.core.get(name)
        return [self._see(queue, slot) for slot in queue.entries.slots()]

    def _see(self, queue: Queue, slot: int) -> Seen:
        entries, extra = queue.entries, self.core.extras[queue.entries.extra[slot]]
        ident = entries.ident[slot]
        name = self._names.get(ident)
        if name is None:
            name = self._names[ident] = self._name(queue, extra, self._message(queue, slot))
        self._places[queue.name, name] = (slot, ident)
        return Seen(
            name,
            queue.groups.name(entries.group[slot]),
            slot in queue.flying,
            slot in queue.doomed,
            queue.attempts.get(slot, 0),
            entries.accepted[slot],
            entries.expires[slot],
            tuple((death.queue, death.reason, death.attempts) for death in extra.deaths),
        )

    def _name(self, queue: Queue, extra: Extra, message: Message) -> str:
        origin = extra.deaths[-1].queue if extra.deaths else queue.name
        return f"{origin}:{message.body.decode()}"

    def _message(self, queue: Queue, slot: int) -> Message:
        if slot in queue.flying:
            return queue.flying[slot].message
        found = queue.resident.get(slot)
        if found is not None:
            return found
        entries = queue.entries
        return self._read(entries.row[slot], entries.offset[slot], entries.length[slot])

    def _read(self, row: int, offset: int, length: int) -> Message:
        return decode_message(self.kernel.journal.read([row])[row][offset : offset + length])

    def pending(self) -> Counter[str]:
        """How many entries wait for a commit, for each queue."""
        return Counter(entry.queue.name for entry in self._uncommitted())

    def _uncommitted(self) -> list[Pending]:
        core = self.core
        return [*core.gather.entries(), *(core.committing.entries() if core.committing is not None else ())]

    def parked(self) -> set[str]:
        found: set[str] = set()
        for queue in self.core.queues.values():
            if isinstance(queue.order, Grouped):
                found |= {self._names[queue.entries.ident[slot]] for slot in queue.order.parked.values()}
        return found

    def counters(self) -> dict[tuple[str, str], int]:
        """Those that are not 0."""
        return {
            (queue.name, name): count
            for queue in self.core.queues.values()
            for name in Counters.__slots__
            if (count := getattr(queue.counters, name))
        }

    # what the model asks

    def holds(self, queue: str, name: str) -> bool:
        place = self._places.get((queue, name))
        return place is not None and self.core.get(queue).entries.holds(*place)

    def is_in_flight(self, queue: str, name: str) -> bool:
        return self.holds(queue, name) and self._places[queue, name][0] in self.core.get(queue).flying

    def is_doomed(self, queue: str, name: str) -> bool:
        return self.holds(queue, name) and self._places[queue, name][0] in self.core.get(queue).doomed

    def expired(self, queue: str) -> int:
        return self.core.get(queue).counters.expired

    def why(self, queue: str, name: str) -> str:
        for entry in self._uncommitted():
            extra = self.core.extras[entry.extra]
            if extra.deaths and extra.deaths[0].queue == queue:
                message = entry.message or self._read(entry.row, entry.offset, entry.length)
                if self._name(entry.queue, extra, message) == name:
                    return extra.deaths[0].reason
        return ""


class Store:
    """The journal of one machine: in memory, or with a folder a file there, whose every life has a copy of its own."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._lives = 0
        self.journal: Journal = MemoryJournal() if folder is None else self._open(folder / "0")

    def _open(self, path: Path) -> SqliteJournal:
        journal = SqliteJournal(path, reserve=0)
        journal.open()
        return journal

    def cut_power(self) -> Journal:
        """What the next process finds: the files as they are now, which nobody has closed."""
        if self._folder is not None:
            before = self._folder / str(self._lives)
            self._lives += 1
            shutil.copytree(before, self._folder / str(self._lives))
            self.journal.close()
            shutil.rmtree(before)
            self.journal = self._open(self._folder / str(self._lives))
        return self.journal

    def close(self) -> None:
        self.journal.close()
        if self._folder is not None:
            shutil.rmtree(self._folder)
