"""Owns what can be seen of a real core and its journal, in the words of the reference model.

Its rule: it looks and changes nothing.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from gateway.queueing.host import Counters
from gateway.queueing.ordering import Grouped
from gateway.queueing.pending import Pending
from gateway.queueing.queue import Queue
from gateway.storage.journal import Journal
from gateway.storage.memory import MemoryJournal
from gateway.storage.sqlite import SqliteJournal
from gateway.transport import Delivery
from tests.harness.kernel import Kernel
from tests.model.facts import Heir, Key, Seen


class Witness:
    """Of one run. A Real to the model."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.core = kernel.core

    def entries(self, queue: str) -> dict[int, Seen]:
        """What was committed to it, by id, in the order of arrival."""
        found = self.core.get(queue)
        return {seen.id: seen for seen in (self._see(found, slot) for slot in found.entries.slots())}

    def _see(self, queue: Queue, slot: int) -> Seen:
        entries = queue.entries
        return Seen(
            entries.ident[slot],
            queue.groups.name(entries.group[slot]),
            entries.length[slot],
            entries.accepted[slot],
            entries.expires[slot],
            queue.attempts.get(slot, 0),
            slot in queue.flying,
            slot in queue.doomed,
            tuple((one.queue, one.reason, one.attempts) for one in self.core.extras[entries.extra[slot]].deaths),
        )

    def id_of(self, delivery: Delivery) -> int:
        return self.core.get(delivery.queue).entries.ident[delivery.slot]

    def heirs(self) -> dict[int, list[Heir]]:
        """Dead letters that are not yet committed, by the id of what died."""
        found: dict[int, list[Heir]] = {}
        for entry in self._uncommitted():
            extra = self.core.extras[entry.extra]
            if extra.sequence:
                heir = Heir(entry.ident, entry.queue.name, extra.deaths[0].reason)
                found.setdefault(extra.sequence, []).append(heir)
        return found

    def remembers(self, key: Key) -> bool:
        """Whether a message with that dedup key would be a duplicate now."""
        return self.core.dedup.seen(self.core.dedup.digest(*key), self.core.now())

    def expired(self, queue: str) -> int:
        """How many it says have expired."""
        return self.core.get(queue).counters.expired

    def pending(self) -> list[int]:
        """The ids of what waits for a commit."""
        return sorted(entry.ident for entry in self._uncommitted())

    def _uncommitted(self) -> list[Pending]:
        core = self.core
        return [*core.gather.entries(), *(core.committing.entries() if core.committing is not None else ())]

    def parked(self) -> set[int]:
        found: set[int] = set()
        for queue in self.core.queues.values():
            if isinstance(queue.order, Grouped):
                found |= {queue.entries.ident[slot] for slot in queue.order.parked.values()}
        return found

    def counters(self) -> dict[tuple[str, str], int]:
        """Those that are not 0; but not `circled`, as it depends on why a message was dropped, which can't be seen."""
        return {
            (queue.name, name): count
            for queue in self.core.queues.values()
            for name in Counters.__slots__
            if name != "circled"
            if (count := getattr(queue.counters, name))
        }


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
