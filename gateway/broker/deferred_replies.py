"""Owns Awaited: the messages whose senders are answered when a link has delivered them (`ack: delivered`).

Its rule: such a message is STORED if its consumer said DONE, and REFUSED whatever else became of it; what was answered
as REFUSED is never handed to a link again. Nothing of it is on a disk.

They stand in a queue in memory, as others do. This knows which call each of them belongs to and when its time is over.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING

import msgspec

from gateway.queueing.ordering import NEVER

if TYPE_CHECKING:
    from gateway.broker.commit_batch import Accept
    from gateway.queueing.pending import Pending
    from gateway.queueing.queue import Queue


class Wait(msgspec.Struct, eq=False):
    """One message. place: in its call. due: when its time is over, seconds since 1970. slot: 0 before the commit.
    answers: its Outcome is waited for; one of QoS 0 whose sender does not ask is only delivered or dropped in time."""

    queue: Queue
    ident: int
    place: int
    due: float
    accept: Accept
    slot: int = 0
    answers: bool = True


class Awaited:
    """Of one core. over: calls that are committed and wait no more, in the order in which that came true."""

    __slots__ = ("_broken", "_dues", "_uncommitted", "_waits", "draining", "over")

    def __init__(self) -> None:
        self._waits: dict[int, Wait] = {}
        self._dues: list[tuple[float, int]] = []
        self._uncommitted = 0
        """Calls that wait for their commit first."""
        self._broken: list[Accept] = []
        """Calls whose messages keep their order, and one was refused: those behind it are to be refused, too."""
        self.over: list[Accept] = []
        self.draining = False
        """Links take nothing more: only what is in flight may still be delivered."""

    def __len__(self) -> int:
        return len(self._waits)

    # from accept to the commit

    def add(self, accept: Accept, waits: list[Wait]) -> None:
        """What was decided of a call, in the order of its messages."""
        self._uncommitted += 1
        accept.waits = waits
        for wait in waits:
            wait.answers = accept.messages[wait.place].qos > 0 or not accept.offer.drops_qos0
            accept.open += wait.answers
            self._waits[wait.ident] = wait

    def undo(self, accept: Accept) -> None:
        """Its commit failed, or is never made."""
        if accept.waits:
            self._uncommitted -= 1
        for wait in accept.waits:
            self._waits.pop(wait.ident, None)
        accept.waits = ()
        accept.open = 0

    def stored(self, slots: Sequence[int], entries: Sequence[Pending]) -> None:
        """The entries stand in their queue; time counts from their accept."""
        for slot, entry in zip(slots, entries, strict=True):
            wait = self._waits.get(entry.ident)
            if wait is not None:
                wait.slot = slot
                heappush(self._dues, (wait.due, wait.ident))
        if len(self._dues) > 2 * len(self._waits) + 64:
            self._dues = [item for item in self._dues if item[1] in self._waits]
            heapify(self._dues)

    def committed(self, accepts: Sequence[Accept]) -> Sequence[Accept]:
        """Those that wait for no link."""
        if not self._uncommitted:
            return accepts
        waiting = [accept for accept in accepts if accept.waits]
        self._uncommitted -= len(waiting)
        for accept in waiting:
            accept.committed = True
            if not accept.open:
                self.over.append(accept)
        return [accept for accept in accepts if not accept.waits]

    # what becomes of them

    def answers(self, ident: int) -> bool:
        """Whether somebody waits for what becomes of this entry."""
        wait = self._waits.get(ident)
        return wait is not None and wait.answers

    def left(self, idents: Iterable[int], done: bool) -> bool:
        """Entries leave their queue; whether any call is over by it."""
        before = len(self.over)
        for ident in idents:
            wait = self._waits.pop(ident, None)
            if wait is None or not wait.answers:
                continue
            accept = wait.accept
            if not done:
                accept.refuse(wait.place)
                if accept.offer.in_order and accept not in self._broken:
                    self._broken.append(accept)
            accept.open -= 1
            if not accept.open and accept.committed:
                self.over.append(accept)
        return len(self.over) > before

    def sweep(self) -> None:
        """Takes out what may not go out any more; before anything is handed out."""
        gone: list[Wait] = []
        if self._broken:
            broken, self._broken = self._broken, []
            gone = [wait for accept in broken for wait in accept.waits if wait.ident in self._waits]
        if self.draining:
            gone = list(self._waits.values())
        for wait in gone:
            if wait.slot and wait.ident in self._waits and wait.slot not in wait.queue.flying:
                wait.queue.counters.refused += wait.answers
                wait.queue.counters.dropped += not wait.answers
                wait.queue.remove((wait.slot,))
                wait.queue.ledger.wake(wait.queue)

    def due(self) -> float:
        """When `tick` has something to do, or infinity."""
        while self._dues and self._dues[0][1] not in self._waits:
            heappop(self._dues)
        return self._dues[0][0] if self._dues else NEVER

    def tick(self, now: float) -> None:
        """What was not delivered in time leaves; if it is in flight, whatever its link says of it comes too late."""
        while self.due() <= now:
            wait = self._waits[heappop(self._dues)[1]]
            wait.queue.counters.expired += 1
            wait.queue.counters.refused += wait.answers
            wait.queue.counters.dropped += not wait.answers
            wait.queue.remove((wait.slot,))
            wait.queue.ledger.wake(wait.queue)

    def give_up(self) -> list[Accept]:
        """The daemon ends: all calls that wait still, REFUSED."""
        accepts = {id(wait.accept): wait.accept for wait in self._waits.values() if wait.answers}
        for accept in accepts.values():
            for wait in accept.waits:
                if wait.ident in self._waits and wait.answers:
                    accept.refuse(wait.place)
        self._waits.clear()
        over, self.over = self.over, []
        return [*over, *accepts.values()]
