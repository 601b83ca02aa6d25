"""Owns QueueSubscription: one consumer's tie to one queue, its credit and what it holds.

Its rule: only who holds a delivery can settle it; a settlement from anybody else is ignored and counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from gateway.model.credit import UNLIMITED, Credit
from gateway.model.delivery import Delivery, Reason
from gateway.model.outcome import Verdict
from gateway.transport import Consumer

if TYPE_CHECKING:
    from gateway.queueing.queue import Queue, Return


_NONE: Mapping[int, Delivery] = {}
"""What is in flight from a queue that was deleted is nobody's: it leaves with the rest."""


class QueueSubscription:
    """A Subscription of the contract. Credit is its own and its pools'."""

    __slots__ = (
        "_queue",
        "consumer",
        "exclusive",
        "held",
        "live",
        "messages",
        "octets",
        "pools",
        "priority",
        "queue",
        "served",
    )

    def __init__(
        self,
        queue: Queue,
        consumer: Consumer,
        pools: tuple[Credit, ...],
        live: bool,
        priority: int,
        exclusive: bool = False,
    ) -> None:
        self._queue = queue
        self.queue = queue.name
        self.consumer = consumer
        self.pools = pools
        self.live = live
        self.priority = priority
        self.exclusive = exclusive
        self.messages = 0
        self.octets = UNLIMITED
        self.held: dict[int, Delivery] = {}
        self.served = 0
        """The id of its latest delivery."""

    def grant(self, messages: int = 0, octets: int = 0) -> None:
        self.messages += messages
        self.octets += octets
        if self.messages > 0 and self.octets > 0 and self._queue.depth:
            self._queue.ledger.wake(self._queue)

    def revoke(self) -> int:
        unused, self.messages = max(0, self.messages), min(0, self.messages)
        return unused

    def has_credit(self) -> bool:
        """If only a pool is spent, its next grant wakes the queue."""
        if self.messages <= 0 or self.octets <= 0:
            return False
        for pool in self.pools:
            if pool.spent:
                pool.wakes[self.wake] = None
                return False
        return True

    def take(self, octets: int) -> bool:
        """Uses credit for one message; whether there is more."""
        self.messages -= 1
        self.octets -= octets
        more = self.messages > 0 and self.octets > 0
        for pool in self.pools:
            pool.messages -= 1
            pool.octets -= octets
            if pool.messages <= 0 or pool.octets <= 0:
                pool.wakes[self.wake] = None
                pool.taker = self.wake
                more = False
        return more

    def wake(self) -> None:
        if self._queue.depth:
            self._queue.ledger.wake(self._queue)

    def settle(self, ids: Iterable[int], verdict: Verdict, error: str = "") -> int:
        queue, held = self._queue, self.held
        flying = queue.flying if not queue.deleted else _NONE
        found: list[Delivery] = []
        for id in ids:
            delivery = held.pop(id, None)
            # Held and not flying: the queue was emptied under it.
            if delivery is None or flying.get(delivery.slot) is not delivery:
                queue.counters.stale += 1
            else:
                found.append(delivery)
        if verdict is Verdict.DONE:
            queue.done(found)
        elif verdict is Verdict.DEAD or verdict is Verdict.INVALID:
            reason = Reason.REJECTED if verdict is Verdict.DEAD else Reason.INVALID
            for delivery in found:
                queue.bury_flying(delivery.slot, reason, error)
        else:
            # The newest first, so that the oldest is again the first of all.
            queue.take_back((one, error if verdict is Verdict.RETRY else None, True) for one in reversed(found))
        return len(found)

    def holds(self, id: int) -> bool:
        delivery = self.held.get(id) if not self._queue.deleted else None
        return delivery is not None and self._queue.flying.get(delivery.slot) is delivery

    def journaled(self, ids: Iterable[int]) -> list[int]:
        """The idents by which the journal knows those of these deliveries that it holds."""
        queue = self._queue
        if not queue.policy.durable or queue.deleted:
            return []
        found = [delivery for id in ids if (delivery := self.held.get(id)) is not None]
        row = queue.entries.row
        return [one.ident for one in found if queue.flying.get(one.slot) is one and row[one.slot]]

    def cancel(self) -> None:
        queue = self._queue
        if self in queue.subscriptions:
            queue.subscriptions.remove(self)
            queue._leaving[self] = None
            queue.rank(-1 if self.priority else 0)
            queue.order.forget(self, [delivery.slot for delivery in self.held.values()])
            queue.idle_since = queue.ledger.now()
            queue.ledger.wake(queue)
        for pool in self.pools:
            pool.wakes.pop(self.wake, None)

    def detach(self, lost: bool = False) -> None:
        self.cancel()
        self._queue._leaving.pop(self, None)
        flying = self._queue.flying if not self._queue.deleted else _NONE
        held = [delivery for delivery in self.held.values() if flying.get(delivery.slot) is delivery]
        self.held.clear()
        oldest = held.pop(0) if lost and held else None
        returns: list[Return] = [(delivery, None, False) for delivery in reversed(held)]
        if oldest is not None:
            returns.append((oldest, "the connection was lost", False))
        if returns:
            self._queue.take_back(returns)

    @property
    def unsettled(self) -> int:
        return len(self.held)
