"""Owns History: what clients saw of one FIFO queue, in the order in which they saw it, and what that proves.

Its rule: everything is told to it when it happens, by one thread; a promise that was broken is found at that moment
or by `check`, and is named with the message.
"""

from __future__ import annotations

from typing import NamedTuple


class Key(NamedTuple):
    """One message: its group, and its place among those that the group's one sender sent."""

    group: str
    number: int

    @property
    def id(self) -> str:
        return f"{self.group}-{self.number}"


class History:
    """Of messages that are deduplicated by key, at least once, in groups with one delivery in flight at a time."""

    def __init__(self) -> None:
        self.sent: set[Key] = set()
        self.acknowledged: set[Key] = set()
        self.delivered: set[Key] = set()
        self.done: set[Key] = set()
        """A consumer said so; the daemon may not have heard it."""
        self.durable: set[Key] = set()
        """Done, and a later accept was acknowledged: no crash can take that back (ruling 13)."""
        self.again = 0
        """Deliveries that were not the first ones of their messages."""
        self.faults: list[str] = []
        self._first: dict[str, int] = {}
        self._latest: dict[str, int] = {}
        self._holder: dict[str, tuple[Key, object]] = {}
        self._run = 0

    def began(self) -> None:
        """The daemon was (re)started: whatever consumers held, they hold no more."""
        self._run += 1
        self._latest.clear()
        self._holder.clear()

    def saw(self, key: Key, consumer: object) -> None:
        """A delivery."""
        group, number = key
        if key not in self.sent:
            self._fault(key, "was never sent")
        if key in self.durable:
            self._fault(key, "came although it was settled durably")
        if group in self._holder:
            held, other = self._holder[group]
            where = "the same consumer" if other is consumer else "another consumer"
            self._fault(key, f"came while {where} held {held.id}")
        if number < self._latest.get(group, -1):
            self._fault(key, f"came after {group}-{self._latest[group]} in one run")
        if key in self.delivered:
            self.again += 1
        else:
            if number < self._first.get(group, -1):
                self._fault(key, f"came for the first time after {group}-{self._first[group]}")
            # All of its group that were answered for before it was sent are in front of it.
            for earlier in range(self._first.get(group, -1) + 1, number):
                if Key(group, earlier) in self.acknowledged:
                    self._fault(key, f"overtook {group}-{earlier}")
            self._first[group] = number
            self.delivered.add(key)
        if number and Key(group, number - 1) in self.delivered and Key(group, number - 1) not in self.done:
            self._fault(key, f"came before {group}-{number - 1} was done")
        self._latest[group] = number
        self._holder[group] = (key, consumer)

    def finished(self, key: Key) -> None:
        """A consumer is about to say that it is done."""
        self._holder.pop(key.group, None)
        self.done.add(key)

    def gave_back(self, key: Key) -> None:
        """A consumer is about to ask for it again, or to vanish."""
        self._holder.pop(key.group, None)

    def _fault(self, key: Key, text: str) -> None:
        self.faults.append(f"run {self._run}: {key.id} {text}")

    def check(self) -> list[str]:
        """All that was wrong, once the queue is drained."""
        lost = sorted(self.acknowledged - self.delivered)
        unfinished = sorted(self.delivered - self.done)
        return (
            self.faults
            + [f"{key.id} was acknowledged and never delivered" for key in lost]
            + [f"{key.id} was delivered, and not again after it was given back" for key in unfinished]
        )
