"""Owns Gather: all that the next commit will hold, and how it becomes a Commit.

Its rule: what can be undone (accepts) and what can't (settlements, moves, names) are kept apart, so a failed commit
undoes the one and carries the other over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from gateway.model.binding import Options
from gateway.model.message import Message
from gateway.model.outcome import Outcome, Verdict
from gateway.model.state import StateChange
from gateway.queueing.dedup import pack_keys
from gateway.queueing.pending import Pending
from gateway.storage.journal import Commit
from gateway.storage.records import Extra, Record, encode, pack
from gateway.transport import PLAIN, Offer

if TYPE_CHECKING:
    from gateway.broker.deferred_replies import Wait
    from gateway.queueing.host import Counters
    from gateway.queueing.queue import Queue

ROW_OCTETS = 256 * 1024
_encode_message = msgspec.msgpack.Encoder().encode_into


class Relocation(NamedTuple):
    """An entry whose body is copied from a row that is mostly dead."""

    queue: Queue
    slot: int
    ident: int
    old_row: int
    row: int
    offset: int


class DeadOnArrival(msgspec.Struct, frozen=True):
    """A message that one queue could not take: a template of it has no value, and `why` says which. It is a dead letter
    in the queues `kept_in`, and dropped if there is none."""

    queue: str
    kept_in: tuple[str, ...]
    why: str


class Accept:
    """One call of `accept`, `put` or `keep`. outcomes are what will be true once the commit is done, and counts,
    (counters of a queue, which), what is counted then: a call that is decided again counts once. insists: its changes
    are true already, so they are never refused. offer: as `Gateway.accept` has it.
    waits: its messages that a link must deliver; open: how many of these must be known before it is answered.
    invalid: what of it became a dead letter at once."""

    __slots__ = (
        "changes",
        "committed",
        "counts",
        "insists",
        "invalid",
        "messages",
        "offer",
        "open",
        "outcomes",
        "resolve",
        "waits",
    )

    def __init__(
        self,
        messages: Sequence[Message],
        changes: Sequence[StateChange],
        resolve: Callable[[Sequence[Outcome], bool], None],
        insists: bool = False,
        offer: Offer = PLAIN,
    ) -> None:
        self.messages = messages
        self.offer = offer
        self.changes = changes
        self.resolve = resolve
        self.insists = insists
        self.outcomes: list[Outcome] = []
        self.counts: Sequence[tuple[Counters, str]] = ()
        self.invalid: Sequence[DeadOnArrival] = ()
        self.waits: Sequence[Wait] = ()
        self.open = 0
        self.committed = False

    def count(self) -> None:
        """It is about to be answered."""
        for counters, name in self.counts:
            setattr(counters, name, getattr(counters, name) + 1)

    def refuse(self, place: int) -> None:
        """A link did not deliver this message."""
        self.outcomes[place] = Outcome.REFUSED

    def settles(self) -> bool:
        """Its deliveries are done: none of its messages was refused."""
        return bool(self.offer.done) and Outcome.REFUSED not in self.outcomes

    def settle(self) -> None:
        """What it is done with leaves, now that its outcomes are true."""
        if self.offer.done and self.settles():
            for subscription, ids in self.offer.done:
                subscription.settle(ids, Verdict.DONE)

    def is_refused(self) -> bool:
        """All of its messages were; then its changes are not made."""
        return bool(self.messages) and all(outcome is Outcome.REFUSED for outcome in self.outcomes)


class Bodies:
    """Rows being filled. A row is closed at 256 KB; a larger body has a row of its own."""

    __slots__ = ("_row", "full", "number")

    def __init__(self) -> None:
        self.full: list[tuple[int, bytes]] = []
        self._row = bytearray()
        self.number = 0

    def add(self, message: Message, next_row: Callable[[], int]) -> tuple[int, int, int]:
        """Row, offset and length."""
        row = self._row
        if not self.number:
            self.number = next_row()
        offset = len(row)
        _encode_message(message, row, -1)
        place = (self.number, offset, len(row) - offset)
        if len(row) >= ROW_OCTETS:
            self.close()
        return place

    def append(self, body: bytes, next_row: Callable[[], int]) -> tuple[int, int]:
        """Row and offset of a body that is encoded already."""
        if not self.number:
            self.number = next_row()
        place = (self.number, len(self._row))
        self._row += body
        if len(self._row) >= ROW_OCTETS:
            self.close()
        return place

    def close(self) -> list[tuple[int, bytes]]:
        """All rows so far."""
        if self.number:
            self.full.append((self.number, bytes(self._row)))
            self._row = bytearray()
            self.number = 0
        return self.full


class Gather:
    """Everything since the last commit began."""

    __slots__ = (
        "accepts",
        "attempts",
        "bodies",
        "copied_bodies",
        "done",
        "dropped",
        "dues",
        "expired",
        "extras",
        "forced_states",
        "groups",
        "insisted",
        "keys",
        "live",
        "moved",
        "moved_bodies",
        "octets",
        "pending",
        "relocations",
        "retained",
        "settled",
        "states",
        "volatile_keys",
    )

    def __init__(self) -> None:
        self.octets = 0
        # Undone when the commit fails:
        self.accepts: list[Accept] = []
        self.pending: list[Pending] = []
        self.bodies = Bodies()
        self.keys: dict[float, list[tuple[bytes, float]]] = {}
        """By window, so that what is written together is over together: digests, and until when they count."""
        self.volatile_keys: list[bytes] = []
        """Of transient queues: kept in memory only."""
        self.states: list[StateChange] = []
        self.done: list[int] = []
        """Entries that leave with the calls of this commit, and stay if these are refused."""
        self.retained: list[tuple[Message, float]] = []
        self.live: list[tuple[Queue, Message, Options]] = []
        self.relocations: list[Relocation] = []
        self.copied_bodies = Bodies()
        # Carried over:
        self.settled: list[int] = []
        self.attempts: list[tuple[int, int, str]] = []
        self.moved: list[Pending] = []
        self.moved_bodies = Bodies()
        self.dropped: list[int] = []
        self.dues: list[tuple[int, float]] = []
        self.expired: float | None = None
        """Keys in the journal that are over by then go."""
        self.groups: list[tuple[int, int, str]] = []
        self.extras: list[tuple[int, Extra]] = []
        self.forced_states: list[StateChange] = []
        self.insisted: dict[tuple[str, str], StateChange] = {}
        """Of calls that insist, since their commit failed or could not be tried: the last of each key."""

    def insist(self, changes: Iterable[StateChange]) -> None:
        for change in changes:
            self.insisted[change.owner, change.key] = change

    def add_key(self, digest: bytes, until: float, window: float) -> None:
        keys = self.keys.get(window)
        if keys is None:
            keys = self.keys[window] = []
        keys.append((digest, until))

    def is_empty(self) -> bool:
        return not (self.accepts or self.must_commit())

    def must_commit(self) -> bool:
        """Something stands here that no caller waits for."""
        return bool(
            self.settled
            or self.attempts
            or self.moved
            or self.dropped
            or self.groups
            or self.extras
            or self.forced_states
            or self.insisted
            or self.relocations
            or self.expired is not None
        )

    def carry(self, other: Gather) -> None:
        """Puts in front what `other`, whose commit failed, must not lose."""
        self.settled[:0] = other.settled
        self.attempts[:0] = other.attempts
        self.moved[:0] = other.moved
        self.moved_bodies.full[:0] = other.moved_bodies.close()
        self.dropped[:0] = other.dropped
        self.dues[:0] = other.dues
        self.expired = self.expired or other.expired
        self.groups[:0] = other.groups
        self.extras[:0] = other.extras
        self.forced_states[:0] = other.forced_states
        self.insisted = other.insisted | self.insisted

    def take_volatile(self) -> Gather:
        """Takes out all that needs no disk, and every call: what insists or can't be undone stays. To be called when
        nothing durable was accepted."""
        volatile = Gather()
        volatile.octets, self.octets = self.octets, 0
        volatile.accepts, self.accepts = self.accepts, []
        volatile.pending, self.pending = self.pending, []
        volatile.volatile_keys, self.volatile_keys = self.volatile_keys, []
        volatile.live, self.live = self.live, []
        if self.moved:
            volatile.moved = [entry for entry in self.moved if not entry.queue.policy.durable]
            self.moved = [entry for entry in self.moved if entry.queue.policy.durable]
        self.states = []
        for accept in volatile.accepts:
            if accept.messages and not accept.is_refused() and not accept.waits:
                accept.insists = True  # its messages are there
            if accept.insists:
                self.insist(accept.changes)
        return volatile

    def entries(self) -> list[Pending]:
        """All that becomes deliverable, by ident."""
        if not self.moved:
            return self.pending
        return sorted([*self.moved, *self.pending], key=lambda entry: entry.ident)

    def commit(self, now: float) -> Commit:
        """What the journal gets; an empty Commit if nothing here is durable."""
        durable = [entry for entry in self.entries() if entry.row and entry.queue.policy.durable]
        record = Record(now)
        if durable:
            fill(record, durable)
        if self.settled or self.done:
            record.settled = pack("q", [*self.settled, *self.done])
        record.attempts = self.attempts
        record.dues = self.dues
        record.groups_named = self.groups
        record.extras_named = self.extras
        if self.relocations:
            record.moved_idents = pack("q", [item.ident for item in self.relocations])
            record.moved_rows = pack("q", [item.row for item in self.relocations])
            record.moved_offsets = pack("I", [item.offset for item in self.relocations])
        # A state alone has a record, too: the next start must know that time had come so far.
        said = (
            self.settled,
            self.done,
            self.attempts,
            self.groups,
            self.extras,
            self.relocations,
            self.forced_states,
            self.insisted,
            self.states,
        )
        useful = durable or any(said)
        return Commit(
            record=encode(record) if useful else b"",
            bodies=[*self.moved_bodies.close(), *self.bodies.close(), *self.copied_bodies.close()],
            dropped=self.dropped,
            expiring=[pack_keys(keys) for keys in self.keys.values()],
            expired=self.expired,
            state=[*self.forced_states, *self.insisted.values(), *self.states],
        )


def fill(record: Record, entries: Sequence[Pending]) -> None:
    """The entries into the record's columns."""
    record.idents = pack("q", [entry.ident for entry in entries])
    record.queues = pack("I", [entry.queue.number for entry in entries])
    record.rows = pack("q", [entry.row for entry in entries])
    record.offsets = pack("I", [entry.offset for entry in entries])
    record.lengths = pack("I", [entry.length for entry in entries])
    record.expires = pack("d", [entry.expires for entry in entries])
    record.accepted = pack("d", [entry.accepted for entry in entries])
    record.groups = pack("I", [entry.group for entry in entries])
    record.extras = pack("I", [entry.extra for entry in entries])
