"""Owns the words of the reference model: an entry, a call, who takes, what a restart must find.

Its rule: plain data, in which a test's failure can be read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from gateway.message import Message
from gateway.policy import QueuePolicy
from gateway.transport import Outcome

GATHERING, COMMITTING, COMMITTED = range(3)
NEVER = float("inf")
State = dict[str, bytes | None]


@dataclass(eq=False)
class Taker:
    """A consumer. held: in the order of delivery. pool: credit that it shares."""

    queue: str
    credit: int = 0
    pool: list[int] = field(default_factory=lambda: [1 << 30])
    cancelled: bool = False
    held: list[Entry] = field(default_factory=list)

    def may_take(self) -> bool:
        return not self.cancelled and self.credit > 0 and self.pool[0] > 0


@dataclass(eq=False)
class Entry:
    """A message in a queue. name: the queue that it came to first, and its body: there is one of it in all queues."""

    name: str
    queue: str
    message: Message
    seq: int
    group: str | None
    accepted: float
    expires: float = 0.0
    delay: float = 0.0
    """Until then by its delay; `due`: and by its retry."""
    due: float = 0.0
    moved: bool = False
    stage: int = GATHERING
    attempts: int = 0
    deaths: tuple[tuple[str, str, int], ...] = ()
    died_as: int = 0
    died_in_group: str | None = None
    holder: Taker | None = None
    times: int = 0
    """Delivered, in this life."""
    deadline: float = NEVER
    doomed: str = ""


@dataclass(eq=False)
class Call:
    messages: Sequence[Message]
    changes: State
    outcomes: list[Outcome] = field(default_factory=list)
    stage: int = GATHERING
    counts: list[tuple[str, str]] = field(default_factory=list)

    @property
    def is_refused(self) -> bool:
        return bool(self.messages) and set(self.outcomes) == {Outcome.REFUSED}


@dataclass
class Image:
    """What a restart must find."""

    entries: list[Entry] = field(default_factory=list)
    keys: dict[tuple[str, str | None, str], float] = field(default_factory=dict)
    states: State = field(default_factory=dict)
    policies: dict[str, QueuePolicy] = field(default_factory=dict)


class Real(Protocol):
    """What the model asks of the real core, where more than one thing may have happened."""

    def holds(self, queue: str, name: str) -> bool: ...
    def is_in_flight(self, queue: str, name: str) -> bool: ...
    def is_doomed(self, queue: str, name: str) -> bool:
        """It waits for room in its dead-letter queue."""
        ...

    def expired(self, queue: str) -> int:
        """How many it says have expired."""
        ...

    def why(self, queue: str, name: str) -> str:
        """The reason for which it died there, "" if it is nowhere any more."""
        ...
