"""Owns what a queue does at a time: the expiry of entries, and the end of what may be in flight.

Its rule: what has left meanwhile, or has another's slot, is not reported.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping
from heapq import heapify, heappop, heappush

from gateway.model.delivery import Delivery
from gateway.queueing.entries import Entries
from gateway.queueing.ordering import DUE_AT_ONCE, NEVER
from gateway.queueing.subscription import QueueSubscription

PARTS = 64
"""Of a second: an entry leaves at most so much of it late."""


class Expiries:
    """By the second until that begins, so that many entries of one time cost a few bytes each, and then by its parts;
    what leaves before its time costs none for long."""

    __slots__ = ("_entries", "_gone", "_slots", "_taken", "_times")

    def __init__(self, entries: Entries) -> None:
        self._entries = entries
        self._slots: dict[float, array[int]] = {}
        """By the time when they are looked at next."""
        self._gone: dict[float, int] = {}
        """How many of these have left."""
        self._times: list[float] = []
        self._taken = 0.0
        """Seconds up to this time have begun."""

    @property
    def count(self) -> int:
        return sum(map(len, self._slots.values()))

    def watch(self, slot: int) -> None:
        """Has the entry reported when it expires."""
        time = self._time(slot)
        slots = self._slots.get(time)
        if slots is None:
            slots = self._slots[time] = array("i")
            heappush(self._times, time)
            if len(self._times) > 2 * len(self._slots) + 64:
                self._times = sorted(self._slots)
        slots.append(slot)

    def _time(self, slot: int) -> float:
        expires = self._entries.expires[slot]
        second = float(int(expires))
        return second if second > self._taken else (int(expires * PARTS) + 1) / PARTS

    def forget(self, slot: int) -> None:
        """An entry that expires is about to leave."""
        time = self._time(slot)
        slots = self._slots.get(time)
        # What is due is being reported; while more of it waits for its turn, nobody knows where the others stand.
        if slots is None or self._entries.expires[slot] <= self._taken or self._times[0] <= self._taken:
            return
        gone = self._gone.get(time, 0) + 1
        if gone >= len(slots):
            del self._slots[time]
            self._gone.pop(time, None)
        elif gone > 64 and 2 * gone > len(slots):
            ident = self._entries.ident
            here = [one for one in slots if one != slot and one < len(ident) and ident[one]]
            self._slots[time] = array("i", [one for one in here if self._time(one) == time])
            self._gone.pop(time, None)
        else:
            self._gone[time] = gone

    def due(self) -> float:
        return self._times[0] if self._times else NEVER

    def take(self, now: float, most: int) -> Iterator[int]:
        """The slots of what has expired, the earliest first but for a part of a second. At most so many are looked at;
        with more, `due` stays in the past."""
        entries = self._entries
        self._taken = max(self._taken, now)
        while most > 0 and self._times and self._times[0] <= now:
            time = self._times[0]
            slots = self._slots.get(time, array("i"))
            some = slots[:most]
            most -= len(some)
            del slots[: len(some)]
            if not slots:
                heappop(self._times)
                self._slots.pop(time, None)
                self._gone.pop(time, None)
            for slot in some:
                # The slot may be another's by now, which then has its own time.
                if slot >= len(entries.ident) or not entries.ident[slot]:
                    continue
                expires = entries.expires[slot]
                if 0 < expires <= now:
                    yield slot
                elif int(expires) == time:
                    self.watch(slot)  # its second has begun


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
        """Not later than what must be settled next."""
        for _ in range(DUE_AT_ONCE):
            if not self._waiting or self._is_flying(self._waiting[0][2]):
                break
            heappop(self._waiting)
        return self._waiting[0][0] if self._waiting else NEVER

    def take(self, now: float) -> Iterator[tuple[Delivery, QueueSubscription]]:
        """What should have been settled by now, some at a time; with more, `due` stays in the past."""
        for _ in range(DUE_AT_ONCE):
            if not self._waiting or self._waiting[0][0] > now:
                return
            _, _, delivery, subscription = heappop(self._waiting)
            if self._is_flying(delivery):
                yield delivery, subscription

    def _is_flying(self, delivery: Delivery) -> bool:
        return self._flying.get(delivery.slot) is delivery
