"""Owns priorities: how that of a message is kept with its entry, and which entry of a queue with priorities goes next.

Its rule: the highest priority first, the oldest of it before the others; what goes back goes back to its old place.

The priority of an entry is the name of its group, a number as text: so the journal, a restart and the moves between
queues know it without another field. Nothing is ordered or held up by such a group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from heapq import heapify, heappop, heappush

from gateway.queueing.entries import Entries
from gateway.queueing.ordering import Delays
from gateway.routing.templates import Fields

MAX_PRIORITY = 255


class PriorityName:
    """Stands where a queue with groups has its template. most: what is above it counts as it."""

    __slots__ = ("_most",)

    def __init__(self, most: int) -> None:
        self._most = most

    def render(self, fields: Fields) -> str:
        """A message without a priority has the lowest."""
        return str(min(max(fields.message.properties.priority or 0, 0), self._most))


def priority_of(name: str | None) -> int:
    """Of an entry whose group has this name; 0 for one that came when the queue had no priorities."""
    return min(int(name), MAX_PRIORITY) if name and name.isascii() and name.isdigit() and len(name) <= 3 else 0


class _Lane:
    """The entries of one priority, a ring of slots in the entries' arrays. cursor: the oldest that was not passed yet,
    0 if all were; `returned` are older."""

    __slots__ = ("cursor", "head", "returned")

    def __init__(self) -> None:
        self.cursor = self.head = 0
        self.returned: list[tuple[int, int]] = []


class Prioritized:
    """An Order. name: of a group's number."""

    __slots__ = ("_delays", "_entries", "_lanes", "_name", "_ranked")

    def __init__(self, entries: Entries, name: Callable[[int], str | None]) -> None:
        self._entries = entries
        self._name = name
        self._lanes: dict[int, _Lane] = {}
        self._ranked: list[_Lane] = []
        """The lanes, the highest priority first."""
        self._delays = Delays()

    def _lane(self, slot: int) -> _Lane:
        priority = priority_of(self._name(self._entries.group[slot]))
        lane = self._lanes.get(priority)
        if lane is None:
            lane = self._lanes[priority] = _Lane()
            self._ranked = [self._lanes[known] for known in sorted(self._lanes, reverse=True)]
        return lane

    def _following(self, lane: _Lane, slot: int) -> int:
        following = self._entries.group_next[slot]
        return following if following != lane.head else 0

    def add(self, slot: int, due: float) -> None:
        entries, lane = self._entries, self._lane(slot)
        if due:
            self._delays.hold(slot, due)
        if not lane.head:
            lane.head = entries.group_next[slot] = entries.group_previous[slot] = slot
        else:
            tail = entries.group_previous[lane.head]
            entries.group_next[tail] = entries.group_previous[lane.head] = slot
            entries.group_previous[slot] = tail
            entries.group_next[slot] = lane.head
        if not lane.cursor:
            lane.cursor = slot

    def extend(self, slots: Iterable[int]) -> None:
        for slot in slots:
            self.add(slot, 0.0)

    def peek(self, holder: object, now: float) -> int:
        for lane in self._ranked:
            if slot := self._first(lane):
                return slot
        return 0

    def _first(self, lane: _Lane) -> int:
        returned = lane.returned
        while returned:
            ident, slot = returned[0]
            if self._entries.holds(slot, ident):
                return slot
            heappop(returned)
        cursor = lane.cursor
        if self._delays.due:
            while cursor and cursor in self._delays.due:
                cursor = self._following(lane, cursor)
            lane.cursor = cursor
        return cursor

    def take(self, slot: int, holder: object) -> None:
        lane = self._lane(slot)
        if slot == lane.cursor:
            lane.cursor = self._following(lane, slot)
        else:
            heappop(lane.returned)

    def back(self, slot: int, due: float) -> None:
        if due:
            self._delays.hold(slot, due)
            return
        if self._delays.due:
            self._delays.due.pop(slot, None)
        self._let_go(slot)

    def _let_go(self, slot: int) -> None:
        """It may go out now: in its turn, if the cursor of its lane has not passed it."""
        lane, ident = self._lane(slot), self._entries.ident
        if not lane.cursor or ident[slot] < ident[lane.cursor]:
            heappush(lane.returned, (ident[slot], slot))

    def leave(self, slot: int, flying: bool) -> None:
        entries, lane = self._entries, self._lane(slot)
        if slot == lane.cursor:
            lane.cursor = self._following(lane, slot)
        following, before = entries.group_next[slot], entries.group_previous[slot]
        if following == slot:
            lane.head = 0
        else:
            entries.group_next[before] = following
            entries.group_previous[following] = before
            if lane.head == slot:
                lane.head = following
        if self._delays.due:
            self._delays.due.pop(slot, None)
        if len(lane.returned) > 64 and len(lane.returned) > 2 * entries.count:
            lane.returned = [item for item in lane.returned if item[1] != slot and entries.holds(item[1], item[0])]
            heapify(lane.returned)

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
