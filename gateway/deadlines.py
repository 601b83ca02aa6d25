"""Owns what a queue does at a time: the expiry of entries, and the end of what may be in flight.

Its rule: what has left meanwhile, or has another's slot, is not reported.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping
from heapq import heapify, heappop, heappush

from gateway.entries import Entries
from gateway.order import NEVER
from gateway.subscription import QueueSubscription
from gateway.transport import Delivery


class Expiries:
    """By the second, so that many entries of one time cost a few bytes each; what leaves before its time costs none for
    long."""

    __slots__ = ("_entries", "_gone", "_seconds", "_slots", "_taken")

    def __init__(self, entries: Entries) -> None:
        self._entries = entries
        self._slots: dict[int, array[int]] = {}
        self._gone: dict[int, int] = {}
        """How many of a second's slots have left."""
        self._seconds: list[int] = []
        self._taken = 0.0
        """All up to this time has been reported; what of it is still there was watched again."""

    @property
    def count(self) -> int:
        return sum(map(len, self._slots.values()))

    def watch(self, slot: int) -> None:
        """Has the entry reported when it expires."""
        second = int(self._entries.expires[slot]) + 1
        slots = self._slots.get(second)
        if slots is None:
            slots = self._slots[second] = array("i")
            heappush(self._seconds, second)
            if len(self._seconds) > 2 * len(self._slots) + 64:
                self._seconds = sorted(self._slots)
        slots.append(slot)

    def forget(self, slot: int) -> None:
        """An entry that expires is about to leave."""
        expires = self._entries.expires
        second = int(expires[slot]) + 1
        slots = self._slots.get(second)
        if slots is None or second <= self._taken:
            return
        gone = self._gone.get(second, 0) + 1
        if gone >= len(slots):
            del self._slots[second]
            self._gone.pop(second, None)
        elif gone > 64 and 2 * gone > len(slots):
            ident = self._entries.ident
            here = [one for one in slots if one != slot and one < len(ident) and ident[one]]
            self._slots[second] = array("i", [one for one in here if int(expires[one]) + 1 == second])
            self._gone.pop(second, None)
        else:
            self._gone[second] = gone

    def due(self) -> float:
        return self._seconds[0] if self._seconds else NEVER

    def take(self, now: float, most: int) -> Iterator[int]:
        """The slots of what has expired, the earliest second first, of at most so many; with more, `due` stays in the
        past."""
        entries = self._entries
        self._taken = max(self._taken, now)
        while most > 0 and self._seconds and self._seconds[0] <= now:
            second = self._seconds[0]
            slots = self._slots.get(second, array("i"))
            some = slots[:most]
            most -= len(some)
            del slots[: len(some)]
            if not slots:
                heappop(self._seconds)
                self._slots.pop(second, None)
                self._gone.pop(second, None)
            for slot in some:
                # The slot may be another's by now, which then has its own time.
                if slot < len(entries.ident) and entries.ident[slot] and 0 < entries.expires[slot] <= now:
                    yield slot


class Timeouts:
    """When each delivery in flight must be settled; `flying` has them by slot."""

    __slots__ = ("_flying", "_waiting")

    def __init__(self, flying: Mapping[int, Delivery]) -> None:
        self._flying = flying
        self._waiting: list[tuple[float, int, Delivery, QueueSubscription]] = []
        """A heap. The deliveries' ids keep equal times apart."""

    def watch(self, deadline: float, delivery: Delivery, subscription: QueueSubscription) -> None:
        if len(self._waiting) > 2 * len(self._flying) + 64:
            # One slow consumer must not keep all that others have settled since.
            self._waiting = [item for item in self._waiting if self._is_flying(item[2])]
            heapify(self._waiting)
        heappush(self._waiting, (deadline, delivery.id, delivery, subscription))

    def shorten(self, latest: float | None, subscriptions: Iterable[QueueSubscription]) -> None:
        """Nothing that these hold has longer than that, also if it had no end; None: nothing has an end."""
        before = {id: due for due, id, _, _ in self._waiting}
        self._waiting.clear()
        if latest is not None:
            held = ((id, delivery, by) for by in subscriptions for id, delivery in by.held.items())
            # A list in order is a heap.
            self._waiting = sorted((min(before.get(id, latest), latest), id, taken, by) for id, taken, by in held)

    def due(self) -> float:
        while self._waiting:
            deadline, _, delivery, _ = self._waiting[0]
            if self._is_flying(delivery):
                return deadline
            heappop(self._waiting)
        return NEVER

    def take(self, now: float) -> Iterator[tuple[Delivery, QueueSubscription]]:
        """What should have been settled by now."""
        while self._waiting and self._waiting[0][0] <= now:
            _, _, delivery, subscription = heappop(self._waiting)
            if self._is_flying(delivery):
                yield delivery, subscription

    def _is_flying(self, delivery: Delivery) -> bool:
        return self._flying.get(delivery.slot) is delivery
