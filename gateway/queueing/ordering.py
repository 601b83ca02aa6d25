"""Owns which entry of a queue goes out next: competing consumers, or groups (FIFO).

Its rule: the next one is found in O(1), and what goes back goes back to its old place (ruling 18).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from heapq import heapify, heappop, heappush
from typing import Protocol

import msgspec

from gateway.queueing.entries import Entries


class Order(Protocol):
    """An entry is waiting from `add` or `back`, and in flight from `take`; `leave` ends it either way."""

    def add(self, slot: int, due: float) -> None:
        """A new entry, the last of all; not before `due` (0: at once)."""

    def extend(self, slots: Iterable[int]) -> None:
        """As `add`, for many that may go out at once, while nothing is in flight."""

    def peek(self, holder: object, now: float) -> int:
        """The slot that this consumer may have next, 0 for none. Changes nothing that can be seen."""
        ...

    def take(self, slot: int, holder: object) -> None:
        """What `peek` just said is in flight now."""

    def back(self, slot: int, due: float) -> None:
        """From in flight to its old place; not before `due` (0: at once)."""

    def leave(self, slot: int, flying: bool) -> None:
        """The entry is about to be removed; `flying`: it was in flight."""

    def adopt(self, slots: Iterable[int]) -> None:
        """These, which were just added, are in flight already, since another order handed them out. To be called
        before the first `peek`."""

    def forget(self, holder: object, slots: Iterable[int]) -> None:
        """This consumer takes nothing more; its `slots` are in flight and may still `leave` or go `back`."""

    def due(self, slot: int) -> float:
        """When a delayed entry may go out, 0 if it is not delayed."""
        ...

    def dues(self) -> dict[int, float]:
        """That of all delayed entries, by slot; and perhaps of others, whose time is over. A new dictionary."""
        ...

    def tick(self, now: float) -> int:
        """Lets go what is due, some at a time: with more, `next_due` stays in the past. Returns of how many."""
        ...

    def next_due(self) -> float:
        """When `tick` has something to do, or infinity."""
        ...


NEVER = float("inf")
DUE_AT_ONCE = 500
"""So many whose time has come are looked at before others have their turn."""


class Delays:
    """Slots that wait for a time. due: until when, by slot; whoever asks often reads it directly. NEVER stands for one
    that was adopted in flight: it is passed over until it goes back."""

    __slots__ = ("_timers", "due")

    def __init__(self) -> None:
        self.due: dict[int, float] = {}
        self._timers: list[tuple[float, int]] = []

    def hold(self, slot: int, due: float) -> None:
        """Until then; in place of an earlier time."""
        self.due[slot] = due
        heappush(self._timers, (due, slot))
        if len(self._timers) > 2 * len(self.due) + 64:
            # Many have left before their time.
            self._timers = sorted((due, slot) for slot, due in self.due.items() if due < NEVER)

    def adopt(self, slots: Iterable[int]) -> None:
        """These are in flight."""
        self.due.update(dict.fromkeys(slots, NEVER))

    def time(self, slot: int) -> float:
        """When it may go out, 0 if it waits for no time."""
        due = self.due.get(slot, 0.0)
        return due if due < NEVER else 0.0

    def times(self) -> dict[int, float]:
        """Of all that wait for a time."""
        return {slot: due for slot, due in self.due.items() if due < NEVER}

    def take(self, now: float) -> Iterator[int]:
        """Those whose time has come, some at a time; they wait no more."""
        for _ in range(DUE_AT_ONCE):
            if not self._timers or self._timers[0][0] > now:
                return
            due, slot = heappop(self._timers)
            if self.due.get(slot) == due:
                del self.due[slot]
                yield slot

    def next_due(self) -> float:
        return self._timers[0][0] if self._timers else NEVER


class Competing:
    """No groups: any waiting entry, the oldest first."""

    __slots__ = ("_cursor", "_delays", "_entries", "_returned")

    def __init__(self, entries: Entries) -> None:
        self._entries = entries
        self._cursor = 0
        """The oldest entry that was not yet passed; whatever went back is older."""
        self._returned: list[tuple[int, int]] = []
        self._delays = Delays()

    def add(self, slot: int, due: float) -> None:
        if due:
            self._delays.hold(slot, due)
        if not self._cursor:
            self._cursor = slot

    def extend(self, slots: Iterable[int]) -> None:
        for slot in slots:
            if not self._cursor:
                self._cursor = slot
            break

    def peek(self, holder: object, now: float) -> int:
        returned = self._returned
        while returned:
            number, slot = returned[0]
            if self._entries.holds(slot, number):
                return slot
            heappop(returned)
        cursor = self._cursor
        if self._delays.due:
            while cursor and cursor in self._delays.due:
                cursor = self._entries.next[cursor]
            self._cursor = cursor
        return cursor

    def take(self, slot: int, holder: object) -> None:
        if slot == self._cursor:
            self._cursor = self._entries.next[slot]
        else:
            heappop(self._returned)

    def back(self, slot: int, due: float) -> None:
        if due:
            self._delays.hold(slot, due)
            return
        if self._delays.due:
            self._delays.due.pop(slot, None)
        self._let_go(slot)

    def _let_go(self, slot: int) -> None:
        """It may go out now: in its turn, if the cursor has not passed it."""
        ident = self._entries.ident
        if not self._cursor or ident[slot] < ident[self._cursor]:
            heappush(self._returned, (ident[slot], slot))

    def leave(self, slot: int, flying: bool) -> None:
        if slot == self._cursor:
            self._cursor = self._entries.next[slot]
        if self._delays.due:
            self._delays.due.pop(slot, None)
        if len(self._returned) > 64 and len(self._returned) > 2 * self._entries.count:
            holds = self._entries.holds
            self._returned = [item for item in self._returned if item[1] != slot and holds(item[1], item[0])]
            heapify(self._returned)

    def adopt(self, slots: Iterable[int]) -> None:
        self._delays.adopt(slots)

    def forget(self, holder: object, slots: Iterable[int]) -> None:
        pass

    def due(self, slot: int) -> float:
        return self._delays.time(slot)

    def dues(self) -> dict[int, float]:
        return self._delays.times()

    def tick(self, now: float) -> int:
        woken = 0
        for slot in self._delays.take(now):
            woken += 1
            self._let_go(slot)
        return woken

    def next_due(self) -> float:
        return self._delays.next_due()


class _Flight(msgspec.Struct, eq=False, gc=False):
    """What of one group is in flight, and with whom. next: the slot that may follow it, 0 for none.
    draining: something went back, so nothing more goes out until the rest is settled."""

    holder: object
    count: int = 0
    next: int = 0
    draining: bool = False


class Grouped:
    """Entries of one group strictly in their order, at most `limit` of it in flight, all with one consumer.

    A group is a ring of slots in the entries' arrays, known by its head alone, whose predecessor is the tail.
    A token in `ready` is only a hint: `peek` throws away those that no longer hold.
    With a limit above 1 a consumer may keep a group for as long as there is more of it. So that nobody keeps all of
    them, a consumer that found nothing gets the next group that would be continued by one with two groups more.
    """

    __slots__ = (
        "_due",
        "_entries",
        "_flights",
        "_held",
        "_hungry",
        "_ready",
        "_shares",
        "_timers",
        "blocked",
        "emptied",
        "heads",
        "limit",
        "parked",
    )

    def __init__(self, entries: Entries, limit: int) -> None:
        self._entries = entries
        self.limit = limit
        self.heads: dict[int, int] = {}
        self.blocked: dict[int, float] = {}
        """Groups that wait for a time: a retry or a delay at their head."""
        self.parked: dict[int, int] = {}
        """Groups that wait for an operator, with the slot they wait for."""
        self.emptied: deque[int] = deque()
        """Groups that ran out of entries; the queue takes them from here and frees their numbers."""
        self._flights: dict[int, _Flight] = {}
        self._ready: deque[int] = deque()
        self._held: dict[object, deque[int]] = {}
        self._shares: dict[object, int] = {}
        """How many groups each consumer has in flight; counted only with a limit above 1."""
        self._hungry: dict[object, None] = {}
        """Consumers that found nothing when they last looked; kept only with a limit above 1."""
        self._due: dict[int, float] = {}
        self._timers: list[tuple[float, int]] = []

    def allow(self, limit: int) -> None:
        """So many of a group may be in flight from now on, of those that are in flight now, too."""
        self.limit = limit
        self._hungry.clear()
        self._shares.clear()
        for flight in self._flights.values() if limit > 1 else ():
            self._shares[flight.holder] = self._shares.get(flight.holder, 0) + 1
        for number in self._flights:
            self._offer(number)

    def add(self, slot: int, due: float) -> None:
        entries = self._entries
        number = entries.group[slot]
        if due:
            self._due[slot] = due
        head = self.heads.get(number)
        if head is None:
            self.heads[number] = slot
            entries.group_next[slot] = entries.group_previous[slot] = slot
            self._ready.append(number)
            if len(self._ready) > 2 * len(self.heads) + 64:
                # Groups come and go, and nobody consumes.
                self._ready = deque(dict.fromkeys(number for number in self._ready if number in self.heads))
            return
        tail = entries.group_previous[head]
        entries.group_next[tail] = slot
        entries.group_previous[slot] = tail
        entries.group_next[slot] = head
        entries.group_previous[head] = slot
        flight = self._flights.get(number)
        if flight is not None and not flight.next and not flight.draining:
            flight.next = slot
            self._offer(number)

    def extend(self, slots: Iterable[int]) -> None:
        heads, group = self.heads, self._entries.group
        following, before = self._entries.group_next, self._entries.group_previous
        for slot in slots:
            number = group[slot]
            head = heads.get(number)
            if head is None:
                heads[number] = following[slot] = before[slot] = slot
                self._ready.append(number)
            else:
                tail = before[head]
                following[tail] = before[head] = slot
                before[slot] = tail
                following[slot] = head

    def peek(self, holder: object, now: float) -> int:
        held = self._held.get(holder) if self._held else None
        while held:
            number = held[0]
            flight = self._flights.get(number)
            if flight is not None and flight.holder is holder and self._may_follow(number, flight):
                if self._due and self._due.get(flight.next, 0) > now:
                    # A delayed one holds up its group: it is looked at again when the group is free.
                    held.popleft()
                    flight.draining = True
                    continue
                return flight.next
            held.popleft()
        if held is not None:
            del self._held[holder]
        ready = self._ready
        while ready:
            number = ready[0]
            slot = self.heads.get(number, 0)
            if slot and number not in self._flights and number not in self.blocked and number not in self.parked:
                due = self._due.get(slot, 0) if self._due else 0
                if due <= now:
                    return slot
                self._block(number, due)
            ready.popleft()
        if self.limit > 1:
            self._hungry[holder] = None
        return 0

    def take(self, slot: int, holder: object) -> None:
        entries = self._entries
        number = entries.group[slot]
        flight = self._flights.get(number)
        if flight is None:
            self._ready.popleft()
            flight = self._flights[number] = _Flight(holder)
            if self.limit > 1:
                self._shares[holder] = self._shares.get(holder, 0) + 1
        else:
            self._held[holder].popleft()
        if self._hungry:
            self._hungry.pop(holder, None)
        flight.count += 1
        following = entries.group_next[slot]
        flight.next = following if following != self.heads[number] else 0
        if self.limit > 1:
            self._offer(number)

    def back(self, slot: int, due: float) -> None:
        number = self._entries.group[slot]
        if due:
            self._due[slot] = due  # its own, whichever entry of the group leaves before
            self._block(number, due)
        flight = self._flights[number]
        flight.count -= 1
        flight.draining = True
        if not flight.count:
            self._end(number, flight)
            self._ready.appendleft(number)

    def _end(self, number: int, flight: _Flight) -> None:
        """Nothing of the group is in flight any more."""
        del self._flights[number]
        if self._shares:
            share = self._shares.pop(flight.holder, 0) - 1
            if share > 0:
                self._shares[flight.holder] = share

    def leave(self, slot: int, flying: bool) -> None:
        entries = self._entries
        number = entries.group[slot]
        flight = self._flights.get(number)
        following = entries.group_next[slot]
        if following == slot:
            del self.heads[number]
            self.blocked.pop(number, None)
            self.emptied.append(number)
            following = 0
        else:
            before = entries.group_previous[slot]
            entries.group_next[before] = following
            entries.group_previous[following] = before
            if self.heads[number] == slot:
                self.heads[number] = following
                if not flying and self.blocked.pop(number, None) is not None:
                    self._ready.append(number)  # it waited for this one
            elif self.heads[number] == following:
                following = 0  # it was the tail
        if self._due:
            due = self._due.pop(slot, 0.0)
            if due and not flying and self.blocked.get(number) == due:
                del self.blocked[number]  # it waited for this one, wherever in the group that stood
                if flight is None and number in self.heads:
                    self._ready.append(number)
        if self.parked and self.parked.get(number) == slot:
            self.release(number)
        if flight is None:
            return
        if flight.next == slot:
            flight.next = following
        if flying:
            flight.count -= 1
            if not flight.count:
                self._end(number, flight)
                if number in self.heads:
                    self._ready.append(number)
            else:
                self._offer(number)

    def adopt(self, slots: Iterable[int]) -> None:
        """Several consumers may hold what is one group from now on: nothing more of it goes out until all is
        settled."""
        for slot in slots:
            number = self._entries.group[slot]
            flight = self._flights.get(number)
            if flight is None:
                flight = self._flights[number] = _Flight(None, draining=True)
            flight.count += 1

    def forget(self, holder: object, slots: Iterable[int]) -> None:
        self._held.pop(holder, None)
        self._hungry.pop(holder, None)
        for slot in slots:
            flight = self._flights.get(self._entries.group[slot])
            if flight is not None and flight.holder is holder:
                flight.draining = True  # nothing more of the group until another may have it

    def due(self, slot: int) -> float:
        return self._due.get(slot, 0.0)

    def dues(self) -> dict[int, float]:
        return dict(self._due)

    def park(self, slot: int) -> None:
        """Holds the whole group of this waiting entry until `release`."""
        self.parked.setdefault(self._entries.group[slot], slot)

    def release(self, number: int) -> None:
        self.parked.pop(number, None)
        if number in self.heads:
            self._ready.appendleft(number)

    def tick(self, now: float) -> int:
        woken = 0
        for _ in range(DUE_AT_ONCE):
            if not self._timers or self._timers[0][0] > now:
                break
            due, number = heappop(self._timers)
            if self.blocked.get(number) == due:
                del self.blocked[number]
                self._ready.append(number)
                woken += 1
        return woken

    def next_due(self) -> float:
        return self._timers[0][0] if self._timers else NEVER

    def in_flight(self, number: int) -> int:
        flight = self._flights.get(number)
        return flight.count if flight is not None else 0

    def _block(self, number: int, due: float) -> None:
        if self.blocked.get(number, 0.0) < due:
            self.blocked[number] = due
            heappush(self._timers, (due, number))
            if len(self._timers) > 2 * len(self.blocked) + 64:
                # Many have left before their time.
                self._timers = sorted((due, number) for number, due in self.blocked.items())

    def _may_follow(self, number: int, flight: _Flight) -> bool:
        return bool(flight.next) and not flight.draining and flight.count < self.limit and number not in self.parked

    def _offer(self, number: int) -> None:
        flight = self._flights.get(number)
        if flight is None or not self._may_follow(number, flight):
            return
        if self._hungry and self._cede(flight.holder):
            flight.draining = True  # whoever is next gets the group when nothing of it is in flight
            return
        self._held.setdefault(flight.holder, deque()).append(number)

    def _cede(self, holder: object) -> bool:
        """Whether this consumer is to give up a group, since a hungry one has two less; that one has its turn by it."""
        hungry = next(iter(self._hungry))
        if self._shares.get(holder, 0) < self._shares.get(hungry, 0) + 2:
            return False
        del self._hungry[hungry]
        return True
