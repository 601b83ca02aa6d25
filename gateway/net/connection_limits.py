"""Owns Crowd: all connections of one listener, who of them is known, and what they leave unfinished.

Its rule: who is connected is not disturbed by who only knocks; when there are too many strangers, or too much is
unfinished, the one that has taken longest has to go. A place is free again from the moment its holder's end is decided,
however long the socket takes.
"""

from __future__ import annotations

from typing import Protocol

from gateway.model.counters import TransportCounters

SPARE = 100
"""So many strangers more may be there when all places are taken, to be told so."""
SMALL_OCTETS = 4096
"""Less than that is not counted: the end of nearly every read is the beginning of something."""


class Member(Protocol):
    """A connection, as far as the crowd needs it."""

    def cut_off(self, why: str) -> None:
        """End it now, and let go of what it holds."""


class Crowd:
    """max_connections: of those that have said who they are. max_unfinished: octets of packets and bodies that have
    begun and are not whole, of all connections together. Who is cut off is counted in `counters.refusals`:
    `crowded-out` and `unfinished`."""

    def __init__(self, max_connections: int, max_unfinished: int, counters: TransportCounters) -> None:
        self.max_connections = max_connections
        self.max_unfinished = max_unfinished
        self.unfinished = 0
        self._counters = counters
        self._known: set[Member] = set()
        self._strangers: dict[Member, None] = {}
        """In the order in which they came."""
        self._parting: dict[Member, None] = {}
        """Whose end is decided, and only the socket is not closed yet. They count as strangers, and go first."""
        self._held: dict[Member, int] = {}
        """Who finished something longest ago comes first."""

    def __len__(self) -> int:
        return len(self._known) + len(self._strangers) + len(self._parting)

    def join(self, one: Member) -> None:
        """A new connection, or one that starts anew."""
        self._known.discard(one)
        self._strangers.pop(one, None)
        self._strangers[one] = None
        if len(self) <= self.max_connections + SPARE:
            return
        if self._parting:
            parting = next(iter(self._parting))
            self.leave(parting)
            parting.cut_off("crowded-out")
        else:
            self._cut_off(next(iter(self._strangers)), "crowded-out")

    def admit(self, one: Member, instead_of: object = None) -> bool:
        """It has said who it is; False if all places are taken. instead_of: whose place it takes over, if that has one
        here; the caller ends that one now."""
        if not self.has_place(one, instead_of):
            self._counters.refusals["max-connections"] += 1
            return False
        self._strangers.pop(one, None)
        self._known.add(one)
        return True

    def has_place(self, one: Member, instead_of: object = None) -> bool:
        """Whether it has one, or `admit` would give it one."""
        return one in self._known or len(self._known) - (instead_of in self._known) < self.max_connections

    def part(self, one: Member) -> None:
        """Its end is decided: its place is another's from now on."""
        if one in self._known or one in self._strangers:
            self._known.discard(one)
            self._strangers.pop(one, None)
            self._parting[one] = None

    def leave(self, one: Member) -> None:
        """The connection is gone."""
        self._known.discard(one)
        self._strangers.pop(one, None)
        self._parting.pop(one, None)
        self.unfinished -= self._held.pop(one, 0)

    def hold(self, one: Member, octets: int) -> None:
        """So much of what it has sent is not whole. Call it whenever that changes, `SMALL_OCTETS` or more are held or
        were held."""
        before = self._held.get(one, 0)
        if octets < max(before, SMALL_OCTETS):  # something was finished
            self._held.pop(one, None)
        if octets >= SMALL_OCTETS:
            self._held[one] = octets
        else:
            octets = 0
        self.unfinished += octets - before
        while self.unfinished > self.max_unfinished:
            self._cut_off(next(iter(self._held)), "unfinished")

    def _cut_off(self, one: Member, why: str) -> None:
        self.leave(one)
        self._counters.refusals[why] += 1
        one.cut_off(why)
