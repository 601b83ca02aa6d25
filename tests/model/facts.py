"""Owns the words of the reference model: an entry, a call, what a restart must find, what can be seen of the real core.

Its rule: plain data, in which a test's failure can be read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from gateway.model.message import Message
from gateway.model.policy import QueuePolicy
from gateway.transport import Outcome

GATHERING, COMMITTING, COMMITTED = range(3)
NEVER = float("inf")
Key = tuple[str, str | None, str]
"""Queue, group if it is the scope, value."""
Place = tuple[str, str | None]
"""Queue and group."""
State = dict[str, bytes | None]


class Seen(NamedTuple):
    """What is the same for an entry of the real core and of the model. deaths: (queue, reason, attempts), the latest
    first."""

    id: int
    group: str | None
    octets: int
    accepted: float
    expires: float
    attempts: int
    in_flight: bool
    doomed: bool
    deaths: tuple[tuple[str, str, int], ...]


@dataclass(eq=False)
class Entry:
    """A message in a queue. id: in the order of accept, of all queues; what moves gets a new one."""

    id: int
    queue: str
    message: Message
    group: str | None
    octets: int
    accepted: float
    expires: float = 0.0
    delay: float = 0.0
    """Not to go out before, as it came; `due`: as it is now, after a retry."""
    due: float = 0.0
    stage: int = GATHERING
    moved: bool = False
    attempts: int = 0
    seen: bool = False
    """Perhaps delivered before."""
    undecided: int = 0
    """So many of its latest deaths came by themselves, since a consumer rejected it or an operator redrove it."""
    given_up: bool = False
    """An operator makes it a dead letter."""
    back: bool = False
    """It was delivered in this run, and came back."""
    deaths: tuple[tuple[str, str, int], ...] = ()
    died_as: int = 0
    died_in_group: str | None = None
    holder: object = None
    delivery: int = 0
    deadline: float = NEVER
    last: bool = False
    """In flight, and nothing more of its group before it is settled."""
    slow: bool = False
    """In flight, and perhaps nothing more of its group before it is settled: a delayed one comes next, or another
    consumer waits for a group."""
    fate: str = ""
    """The reason why it must leave."""
    doomed: bool = False
    """It can't leave before its dead-letter queue has room."""

    @property
    def place(self) -> Place:
        return self.queue, self.group

    def show(self) -> Seen:
        flies = self.holder is not None
        return Seen(
            self.id,
            self.group,
            self.octets,
            self.accepted,
            self.expires,
            self.attempts,
            flies,
            self.doomed,
            self.deaths,
        )


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
    keys: dict[Key, float] = field(default_factory=dict)
    states: State = field(default_factory=dict)
    policies: dict[str, QueuePolicy] = field(default_factory=dict)
    live: set[str] = field(default_factory=set)


class Heir(NamedTuple):
    """A dead letter that is not yet committed."""

    id: int
    queue: str
    reason: str


class Taker(Protocol):
    """A consumer."""

    queue: str

    def may_take(self) -> bool: ...


class Real(Protocol):
    """What the model asks of the real core, where more than one thing may have happened."""

    def entries(self, queue: str) -> Mapping[int, Seen]:
        """What was committed to it, by id."""
        ...

    def heirs(self) -> Mapping[int, Sequence[Heir]]:
        """By the id of what died."""
        ...

    def remembers(self, key: Key) -> bool:
        """Whether a message with that dedup key would be a duplicate now."""
        ...

    def expired(self, queue: str) -> int:
        """How many it says have expired."""
        ...
