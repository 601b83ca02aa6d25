"""Owns how the core and its journal come together: reading the log at start, and copying it forward so it stays short.

Its rule: a start reads indexes, settlements, keys and state, never a body (ruling 27); what is copied forward counts
only once all of it is there, in the commit that also trims what it replaces.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple, TypeVar

import msgspec

from gateway.broker import definitions as declarations
from gateway.broker import retained
from gateway.broker.commit_batch import fill
from gateway.broker.core import Core
from gateway.broker.definitions import OWNER, decode_binding, decode_definition, decode_exchange_binding
from gateway.errors import StoreError
from gateway.model.binding import Binding
from gateway.model.state import StateChange
from gateway.queueing.dedup import pack_keys
from gateway.queueing.ordering import Grouped
from gateway.queueing.queue import Queue
from gateway.storage.journal import Commit, Content, Source
from gateway.storage.records import COLUMNS, Record, decode, encode, pack, unpack

SLICE_ENTRIES = 4000
"""Of one slice of a refresh: below 10 ms of work."""
ENTRY_OCTETS = 56

T = TypeVar("T")


class Restored(NamedTuple):
    """states: of the transports, by owner. time: the latest that the log knows. last_id, octets: of the log."""

    states: dict[str, dict[str, bytes]]
    time: float
    last_id: int
    octets: int


def restore(core: Core, journal: Source) -> Restored:
    """Brings an empty core to where the journal left off, all that was in flight waiting again. Raises StoreError for
    a journal that can't be understood."""
    try:
        return _Restore(core, journal).run()
    except (msgspec.DecodeError, KeyError, IndexError, ValueError) as error:
        raise StoreError(f"the store holds a record that makes no sense: {error!r}") from error


_ENTRY_COLUMNS = ("ident", "queue", "group", "row", "offset", "length", "expires", "accepted", "extra")
"""What the columns of a record are to an entry."""


class _Restore:
    def __init__(self, core: Core, journal: Source) -> None:
        self.core = core
        self.journal = journal
        self.settled: set[int] = set()
        self.attempts: dict[int, tuple[int, str]] = {}
        self.dues: dict[int, float] = {}
        self.rows: Counter[int] = Counter()
        self.row_octets: Counter[int] = Counter()
        self.extra_uses: Counter[int] = Counter()
        self.moved: dict[int, tuple[int, int]] = {}
        self.complete = 0
        self.time = 0.0
        self.last_id = 0
        self.octets = 0

    def run(self) -> Restored:
        core = self.core
        states: dict[str, dict[str, bytes]] = {}
        bindings: list[Binding] = []
        for change in self.journal.states():
            if change.value is None:
                continue
            if change.owner == retained.OWNER:
                core.retained.restore(change.value)
            elif change.owner == OWNER:
                self._restore_own(change, bindings)
            else:
                states.setdefault(change.owner, {})[change.key] = change.value
        for binding in bindings:
            if binding.queue in core.queues:
                core.router.bind(binding)
        self._read_all_but_entries()
        # First what was copied forward, then the rest: each queue gets its entries by ident.
        self._read_entries(forward=True)
        self._read_entries(forward=False)
        self._finish()
        return Restored(states, self.time, self.last_id, self.octets)

    def _restore_own(self, change: StateChange, bindings: list[Binding]) -> None:
        core = self.core
        assert change.value is not None
        kind, _, name = change.key.partition("/")
        if kind == "queue":
            definition = decode_definition(change.value)
            queue = Queue(name, definition.number, definition.policy, definition.owner, core)
            queue.live = definition.live
            queue.unsure = [] if definition.live else None
            core.add(queue)
            core.next_queue = max(core.next_queue, definition.number + 1)
        elif kind == "secret":
            core.dedup.secret = change.value
        elif kind == "bind":
            bindings.append(decode_binding(change.value))
        elif kind == "exchange-bind":
            core.router.bind_exchange(decode_exchange_binding(change.value))

    def _read_all_but_entries(self) -> None:
        core = self.core
        for id, data in self.journal.records():
            record = decode(data)
            self.last_id = id
            self.octets += len(data)
            self.time = max(self.time, record.time)
            settled = unpack("q", record.settled)
            self.settled.update(settled)
            for ident, attempts, error in record.attempts:
                self.attempts[ident] = (attempts, error)
            self.dues.update(record.dues)
            places = zip(unpack("q", record.moved_rows), unpack("I", record.moved_offsets), strict=True)
            self.moved.update(zip(unpack("q", record.moved_idents), places, strict=True))
            # A settlement may outlive its entry's record; its ident must not come again all the same.
            named = [*settled, *(item[0] for item in record.attempts), *(item[0] for item in record.dues)]
            core.next_ident = max(core.next_ident, max(named, default=0) + 1)
            # The number of a queue that is gone must not come again while the log still names it.
            numbers = [*unpack("I", record.queues), *(item[0] for item in record.groups_named)]
            core.next_queue = max(core.next_queue, max(numbers, default=0) + 1)
            for queue_number, number, name in record.groups_named:
                queue = core.by_number.get(queue_number)
                if queue is not None:
                    queue.groups.restore(number, name)
            for number, extra in record.extras_named:
                core.extras.restore(number, extra)
            if record.refreshed:
                self.complete = record.refresh
            if record.idents:
                core.next_ident = max(core.next_ident, max(unpack("q", record.idents)) + 1)

    def _read_entries(self, forward: bool) -> None:
        for _, data in self.journal.records():
            record = decode(data)
            if record.idents and (not forward if record.refresh == 0 else forward and record.refresh == self.complete):
                self._add_entries(record)

    def _add_entries(self, record: Record) -> None:
        columns: dict[str, array[Any]] = {
            column: unpack(code, getattr(record, name))
            for (name, code), column in zip(COLUMNS, _ENTRY_COLUMNS, strict=True)
        }
        numbers, idents, settled = columns.pop("queue"), columns["ident"], self.settled
        places: dict[int, Sequence[int]]
        if numbers.count(numbers[0]) == len(numbers) and settled.isdisjoint(idents):  # of a backlog, nearly always
            places = {numbers[0]: range(len(numbers))}
        else:
            places = _places(numbers, idents, settled)
        for number, chosen in places.items():
            queue = self.core.by_number.get(number)
            if queue is None:
                continue  # it was deleted
            last = queue.entries.ident[queue.entries.last]
            if idents[chosen[0]] <= last:
                # A new file had them already, and the commit that was under way then wrote them again.
                chosen = [place for place in chosen if idents[place] > last]
            if len(chosen) == len(idents):
                self._add_to(queue, columns)
            elif chosen:
                self._add_to(
                    queue,
                    {name: array(all.typecode, [all[place] for place in chosen]) for name, all in columns.items()},
                )

    def _add_to(self, queue: Queue, columns: Mapping[str, array[Any]]) -> None:
        idents, rows, lengths = columns["ident"], columns["row"], columns["length"]
        if self.moved:
            for place, ident in enumerate(idents):
                if ident in self.moved:
                    rows[place], columns["offset"][place] = self.moved[ident]
        slots = queue.restore(columns, self.dues)
        done = 0
        for row, same in groupby(rows):
            count = len(list(same))
            self.rows[row] += count
            self.row_octets[row] += sum(lengths[done : done + count])
            done += count
        self.extra_uses.update(filter(None, columns["extra"]))
        if self.attempts:
            for slot, ident in zip(slots, idents, strict=True):
                if ident in self.attempts:
                    self._restore_attempts(queue, slot, *self.attempts[ident])

    def _restore_attempts(self, queue: Queue, slot: int, attempts: int, error: str) -> None:
        queue.attempts[slot] = attempts
        queue.errors[slot] = error
        policy = queue.policy
        exhausted = policy.max_deliveries is not None and attempts >= policy.max_deliveries
        if exhausted and policy.on_exhausted == "park" and isinstance(queue.order, Grouped):
            queue.order.park(slot)

    def _finish(self) -> None:
        core = self.core
        present = dict(self.journal.rows())
        core.rows.restore(self.rows, present, self.row_octets)
        core.extras.restored(self.extra_uses)
        core.dedup.restore(self._keys(), core.now())
        core.committed_ident = core.restored_ident = core.next_ident - 1
        now = max(core.now(), self.time)
        for queue in core.queues.values():
            queue.idle_since = now  # they were made before it was known how late it is
            if isinstance(queue.order, Grouped):
                queue.groups.restored(queue.order.heads)
        core.gather.dropped += [row for row in present if row not in core.rows]

    def _keys(self) -> Iterator[bytes]:
        for until, data in self.journal.expiring():
            self.core.keys_until = until
            yield data


def _places(numbers: Sequence[int], idents: Sequence[int], settled: set[int]) -> dict[int, Sequence[int]]:
    """Where the entries of each queue stand that are not settled."""
    places: dict[int, list[int]] = {}
    for place, (number, ident) in enumerate(zip(numbers, idents, strict=True)):
        if ident not in settled:
            places.setdefault(number, []).append(place)
    return {**places}


class Refresh:
    """Copies forward what is live, slice by slice, and then lets the journal trim all that is older.

    Entries with an ident above `cut` are in records that stay. A slice is made and committed as one step, so that
    what the log says is always true up to its last record."""

    def __init__(self, core: Core, first_kept: int) -> None:
        """first_kept: id of the first log record that is not committed yet; it numbers this refresh, too."""
        self.first_kept = first_kept
        self._core = core
        self._number = first_kept
        self._cut = core.committed_ident
        self._slices = self._run()

    def next_slice(self) -> tuple[bytes, bool]:
        """A record, and whether it is the last, to be committed with `trim=first_kept`.

        It leaves out what is settled in memory, so commit what has gathered by now before it."""
        record = next(self._slices)
        return encode(record), record.refreshed

    def _run(self) -> Iterator[Record]:
        core = self._core
        yield from self._names()
        for queue in list(core.queues.values()):
            if queue.policy.durable:
                yield from self._entries(queue)
        yield Record(core.now(), refresh=self._number, refreshed=True)

    def _names(self) -> Iterator[Record]:
        core = self._core
        for start in range(0, core.extras.top, SLICE_ENTRIES):
            yield Record(core.now(), extras_named=core.extras.named(start, start + SLICE_ENTRIES))
        for queue in list(core.queues.values()):
            if queue.policy.durable:
                for start in range(0, queue.groups.top, SLICE_ENTRIES):
                    names = queue.groups.named(start, start + SLICE_ENTRIES)
                    yield Record(core.now(), groups_named=[(queue.number, *item) for item in names])

    def _entries(self, queue: Queue) -> Iterator[Record]:
        entries = queue.entries
        entries.copied = entries.first
        while entries.copied and not queue.deleted:
            slots: list[int] = []
            for slot in entries.slots(entries.copied):
                if entries.ident[slot] > self._cut:
                    entries.copied = 0
                    break
                if entries.row[slot]:  # else it came while the queue was transient
                    slots.append(slot)
                entries.copied = entries.next[slot]
                if len(slots) == SLICE_ENTRIES:
                    break
            if slots:
                yield self._slice(queue, slots)

    def _slice(self, queue: Queue, slots: list[int]) -> Record:
        entries = queue.entries
        record = Record(self._core.now(), refresh=self._number)
        record.idents = pack("q", [entries.ident[slot] for slot in slots])
        record.queues = pack("I", [queue.number] * len(slots))
        record.groups = pack("I", [entries.group[slot] for slot in slots])
        record.rows = pack("q", [entries.row[slot] for slot in slots])
        record.offsets = pack("I", [entries.offset[slot] for slot in slots])
        record.lengths = pack("I", [entries.length[slot] for slot in slots])
        record.expires = pack("d", [entries.expires[slot] for slot in slots])
        record.accepted = pack("d", [entries.accepted[slot] for slot in slots])
        record.extras = pack("I", [entries.extra[slot] for slot in slots])
        for slot in slots:
            if queue.attempts.get(slot):  # none failed of what was only given back
                record.attempts.append((entries.ident[slot], queue.attempts[slot], queue.errors.get(slot, "")))
        record.dues = queue.dues(slots)
        return record


def snapshot(core: Core, states: Mapping[str, Mapping[str, bytes]], waiting: Commit) -> Content:
    """Everything live, for a new file. `waiting`: a commit that the old one does not hold."""
    refresh = Refresh(core, 1)
    records: list[bytes] = []
    last = False
    while not last:
        record, last = refresh.next_slice()
        records.append(record)
    moved = [entry for entry in core.gather.moved if entry.row and entry.queue.policy.durable]
    if moved:
        # Gone from where they were, and not yet committed where they go.
        record_of_moved = Record(core.now())
        fill(record_of_moved, moved)
        records.append(encode(record_of_moved))
    if waiting.record:
        records.append(waiting.record)
    rows = sorted(core.rows.uses.keys() - {row for row, _ in waiting.bodies})
    kept = [StateChange(owner, key, value) for owner, values in states.items() for key, value in values.items()]
    changes = [*kept, *core.retained.states(), *declarations.states(core), *waiting.state]
    # Those of what waits are live already.
    keys = [pack_keys(some) for some in _slices(list(core.dedup.live(core.now())))]
    return Content(records, rows, changes, waiting.bodies, keys)


def _slices(items: list[T]) -> Iterator[list[T]]:
    for start in range(0, len(items), SLICE_ENTRIES):
        yield items[start : start + SLICE_ENTRIES]


def live_octets(core: Core) -> int:
    """About what the log would take if it held only what is live."""
    return ENTRY_OCTETS * sum(queue.entries.count for queue in core.queues.values() if queue.policy.durable)
