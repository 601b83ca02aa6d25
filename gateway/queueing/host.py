"""Owns what a queue asks of the core, and what it counts.

Its rule: a queue knows the core by this contract alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from gateway.model.delivery import Reason
from gateway.storage.records import Extra

if TYPE_CHECKING:
    from gateway.queueing.queue import Queue


RESIDENT_OCTETS = 300
"""What a message in memory takes besides the bytes that stand for it on disk."""


class Memory:
    """What all messages in memory take, about. Each queue adds and takes away its own.

    octets: waiting and in flight. volatile: of these, what is in memory alone. limit: of both.
    """

    __slots__ = ("limit", "octets", "volatile")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.octets = 0
        self.volatile = 0


class Ledger(Protocol):
    """What a queue needs of the core."""

    memory: Memory
    deliveries: Iterator[int]
    """Ids of deliveries, each used once."""
    restored_ident: int
    """Entries up to this one were there when the daemon started: they may have been delivered before."""

    def now(self) -> float: ...
    def removed(self, queue: Queue, slots: Sequence[int], done: bool) -> None:
        """The entries leave for good, settled as done or not; called before their slots are freed."""

    def goes_on(self, queue: Queue) -> None:
        """The queue is busy, and wants to `go_on` in turn with others until it says that it need not."""

    def attempted(self, queue: Queue, slot: int, attempts: int, error: str) -> None: ...
    def bury(self, queue: Queue, slot: int, reason: Reason, attempts: int, error: str, decided: bool = False) -> bool:
        """Stores the entry as a dead letter (and the caller then removes it); False if it is refused for now. decided:
        an operator wants it so, which lets it go round in a circle as a consumer's rejection does."""
        ...

    def body(self, row: int) -> bytes | None:
        """A row of bodies that is in memory; None: asked for, `wake` follows."""
        ...

    def is_unreadable(self, row: int) -> bool:
        """That row could not be read; it is tried again later."""
        ...

    def may_spill(self, queue: Queue, slot: int) -> bool:
        """Whether the body is on disk and need not be in memory; if only not now, the queue is asked to `spill` it
        later."""
        ...

    def spillable(self, queue: Queue, slot: int) -> None:
        """A body that is on disk is in memory again."""

    def consumer_failed(self, queue: Queue, error: Exception) -> None:
        """A consumer raised, which none may."""

    def extra(self, number: int) -> Extra: ...
    def wake(self, queue: Queue) -> None:
        """Something may be delivered now."""

    def jitter(self) -> float:
        """From 0 to 1, at random."""
        ...


class Counters:
    """Of one queue, since the daemon's start."""

    __slots__ = (
        "accepted",
        "circled",
        "dead_lettered",
        "dead_on_arrival",
        "delivered",
        "dropped",
        "duplicates",
        "expired",
        "refused",
        "retried",
        "returned",
        "settled",
        "stale",
    )

    def __init__(self) -> None:
        for name in self.__slots__:
            setattr(self, name, 0)

    def include(self, other: Counters) -> None:
        """Counts what that one has counted, too."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    accepted: int
    circled: int
    dead_lettered: int
    dead_on_arrival: int
    delivered: int
    dropped: int
    duplicates: int
    expired: int
    refused: int
    retried: int
    returned: int
    settled: int
    stale: int
