"""Owns what an operator can see and do: the views and the contract that admin API and CLI stand on.

Its rule: looking changes nothing; doing goes through the same commits as everything else.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Literal, Protocol

import msgspec

from gateway.admin.metrics import Holdings
from gateway.broker.commit_batch import DeadOnArrival
from gateway.model.counters import CommitStats, TransportCounters
from gateway.model.delivery import Death
from gateway.model.message import Message
from gateway.model.outcome import Outcome
from gateway.model.topics import matches


class QueueStats(msgspec.Struct, frozen=True):
    """One queue now. oldest_age_seconds: of the oldest message that is still there; 0 when empty. Counters count
    from the daemon's start."""

    name: str
    owner: str
    durable: bool
    depth: int
    octets: int
    in_flight: int
    consumers: int
    groups: int
    parked_groups: int
    oldest_age_seconds: float
    accepted: int
    duplicates: int
    refused: int
    delivered: int
    settled: int
    retried: int
    returned: int
    dead_lettered: int
    expired: int
    dropped: int
    stale_settlements: int
    circled: int = 0
    dead_on_arrival: int = 0
    refused_dead_letters: int = 0
    """Waiting here now, since the queue they should go to refuses them."""
    session: bool = False
    """One client's own, as MQTT sessions are; /metrics sums them."""
    removed: bool = False
    """No longer in the configuration; kept until it is empty or deleted (ruling 24)."""


class GroupView(msgspec.Struct, frozen=True):
    """One group of a queue. state: `ready`, `in-flight`, `waiting` (for its retry, until `until`) or `parked`."""

    queue: str
    group: str
    state: Literal["ready", "in-flight", "waiting", "parked"]
    depth: int
    in_flight: int
    head_age_seconds: float
    attempts: int
    error: str = ""
    until: float | None = None


class StoredMessage(msgspec.Struct, frozen=True):
    """One message in a queue. id: its place in the daemon's order, unique; accepted, expires: seconds since 1970."""

    id: int
    queue: str
    message: Message
    accepted: float
    attempts: int
    in_flight: bool
    group: str | None = None
    expires: float | None = None
    deaths: tuple[Death, ...] = ()


class Step(msgspec.Struct, frozen=True):
    """One line of an explanation: a queue that would get the message, by which bindings, and what it would get."""

    queue: str
    bindings: tuple[str, ...]
    group: str | None = None
    dedup_key: str | None = None
    invalid: str | None = None
    """Why a template has no value; the message goes to the queue's dead letters as `invalid`."""
    target: str | None = None
    within: float | None = None
    """Its sender is answered when the link has delivered it, or has not in so many seconds; nothing is stored."""
    refused: str | None = None
    """Why the message is refused."""


class Selection(msgspec.Struct, frozen=True):
    """Which dead letters: all that meet every condition that is set. queue: which died there last.
    topic: a filter in MQTT form. before: died before that time."""

    ids: tuple[int, ...] | None = None
    queue: str | None = None
    reason: str | None = None
    topic: str | None = None
    before: float | None = None
    limit: int | None = None

    def takes(self, stored: StoredMessage) -> bool:
        """Whether it meets every condition but `limit`."""
        death = stored.deaths[0] if stored.deaths else None
        return (
            (self.ids is None or stored.id in self.ids)
            and (self.queue is None or (death is not None and death.queue == self.queue))
            and (self.reason is None or (death is not None and death.reason == self.reason))
            and (self.before is None or (death.last if death is not None else stored.accepted) < self.before)
            and (self.topic is None or matches(self.topic, stored.message.topic))
        )


class RedriveProgress(msgspec.Struct, frozen=True):
    """total: how many were selected. skipped: in flight. error: why it stopped early, "" if it did not."""

    total: int
    moved: int
    skipped: int = 0
    error: str = ""


class Readiness(msgspec.Struct, frozen=True):
    """ready only if nothing stands in `reasons` (replaying, draining, store failed: ...). impaired: transports that
    can't do their work at present, and why; a link that is down stands here, and its outbox waits."""

    ready: bool
    reasons: tuple[str, ...] = ()
    impaired: dict[str, str] = {}


class Operations(Protocol):
    """All that the admin API may do. On the event loop's thread."""

    @property
    def commits(self) -> CommitStats: ...

    def holdings(self) -> Holdings: ...

    def readiness(self) -> Readiness: ...

    def transports(self) -> Mapping[str, TransportCounters]:
        """The counters of all transports, by name."""
        ...

    async def stats(self, summed: bool = False) -> Sequence[QueueStats]:
        """All queues, by name. summed: all sessions of an owner are one, named `OWNER.*`, the last; it has counted what
        those counted that have ended."""
        ...

    async def groups(self, queue: str, limit: int = 1000, parked: bool = False) -> Sequence[GroupView]:
        """Raises UnknownQueueError."""
        ...

    async def release(self, queue: str, group: str, dead: bool = False) -> bool:
        """Lets a parked group go on, attempts reset; `dead` dead-letters its head first. False if it is not
        parked. Raises UnknownQueueError."""
        ...

    async def browse(self, queue: str, limit: int = 100, after: int = 0) -> Sequence[StoredMessage]:
        """The oldest with an id above `after`, without touching them. Raises UnknownQueueError."""
        ...

    def redrive(
        self, queue: str, selection: Selection, to: str | None = None, rate: float | None = None, dry_run: bool = False
    ) -> AsyncIterator[RedriveProgress]:
        """Moves dead letters out of `queue` back to the queue each died in (or `to`), in order of their ids, at most
        `rate` messages a second; yields at least once, lastly the end. Raises UnknownQueueError."""
        ...

    async def purge_queue(self, name: str) -> int:
        """Removes what waits; returns how many. Raises UnknownQueueError."""
        ...

    async def delete_queue(self, name: str) -> int:
        """Deletes a queue that the configuration does not name. Raises UnknownQueueError, GatewayError if it does."""
        ...

    async def publish(self, message: Message) -> tuple[Outcome, Sequence[DeadOnArrival]]:
        """What became of it, as `Gateway.accept` has it, and the queues for which it was a dead letter at once."""
        ...

    def explain(self, message: Message) -> Sequence[Step]:
        """Empty if no binding matches (UNROUTED)."""
        ...
