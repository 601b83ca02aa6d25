"""Owns what an operator's requests do: the contract of `gateway.admin.operations` on a running core.

Its rule: whatever moves a message moves it in one record, by the core.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence, Set
from itertools import islice
from operator import attrgetter, itemgetter
from typing import Any, Literal

import anyio
import msgspec

from gateway.admin.explain import explain
from gateway.admin.metrics import Holdings
from gateway.admin.operations import (
    GroupView,
    QueueStats,
    Readiness,
    RedriveProgress,
    Selection,
    Step,
    StoredMessage,
)
from gateway.broker.commit_batch import Accept, DeadOnArrival
from gateway.broker.core import Core
from gateway.broker.definitions import CONFIG, OWNER
from gateway.engine.committer import Committer
from gateway.engine.gateway import LocalGateway
from gateway.errors import GatewayError
from gateway.model import topics
from gateway.model.counters import CommitStats, TransportCounters
from gateway.model.delivery import Reason
from gateway.model.message import Message
from gateway.model.names import is_reserved
from gateway.model.outcome import Outcome
from gateway.queueing.entries import Walk
from gateway.queueing.host import Counters
from gateway.queueing.ordering import Grouped
from gateway.queueing.queue import Queue
from gateway.routing.templates import Fields, MissingValueError
from gateway.slices import PORTION, Slices, in_order, portions

REDRIVE_SLICE = 200
PACE_SECONDS = 0.05

_place: Callable[[tuple[int, int, int]], int] = itemgetter(0)
_name: Callable[[Queue], str] = attrgetter("name")


class Operator:
    """Operations. Before `take_over` there is nothing to see: the store is being replayed."""

    def __init__(self) -> None:
        self.reasons: dict[str, None] = {"replaying": None}
        """Why the daemon is not ready, besides its store."""
        self._gateway: LocalGateway | None = None
        self._empty_commits = CommitStats()

    def take_over(self, gateway: LocalGateway) -> None:
        """The replay is over."""
        self._gateway = gateway
        self.reasons.pop("replaying", None)

    @property
    def commits(self) -> CommitStats:
        return self._gateway.committer.stats if self._gateway is not None else self._empty_commits

    def holdings(self) -> Holdings:
        if self._gateway is None:
            return Holdings()
        core = self._core
        retained = core.retained
        memory = core.memory
        return Holdings(
            memory.octets,
            memory.volatile,
            len(retained),
            retained.octets,
            len(core.dedup),
            core.router.octets,
            dict(core.refused),
        )

    @property
    def _core(self) -> Core:
        return self._committer.core

    @property
    def _committer(self) -> Committer:
        if self._gateway is None:
            raise GatewayError("the store is being replayed; ask again when /readyz says so")
        return self._gateway.committer

    def readiness(self) -> Readiness:
        reasons = list(self.reasons)
        if self._gateway is not None and self._gateway.core.refusing:
            reasons.append(self._gateway.core.refusing)
        impaired = self._gateway.impaired if self._gateway is not None else {}
        reasons += [f"{name}: {why}" for name, (why, unready) in impaired.items() if unready]
        return Readiness(not reasons, tuple(reasons), {name: why for name, (why, _) in impaired.items()})

    def transports(self) -> Mapping[str, TransportCounters]:
        return self._gateway.all_counters if self._gateway is not None else {}

    async def stats(self, summed: bool = False) -> Sequence[QueueStats]:
        if self._gateway is None:
            return []
        slices = Slices()
        sessions: dict[str, _Sum] = {}
        if summed:
            sessions = {owner: _Sum(owner, ended) for owner, ended in self._core.ended_sessions.items()}
        found: list[QueueStats] = []
        for some in portions(await in_order(list(self._core.queues.values()), slices, _name)):
            await slices.pause()
            now = self._core.now()
            for queue in some:
                if not (queue.live and summed):
                    found.append(_stats(queue, now))
                else:
                    sessions.setdefault(queue.owner, _Sum(queue.owner)).add(queue, now)
        return [*found, *(one.stats() for one in sessions.values())]

    async def groups(self, queue: str, limit: int = 1000, parked: bool = False) -> Sequence[GroupView]:
        found = self._core.get(queue)
        order = found.order
        if not isinstance(order, Grouped):
            return []
        numbers = list(islice(order.parked if parked else order.heads, limit))
        slices, walk = Slices(), Walk(found.entries)
        depths = dict.fromkeys(numbers, 0)
        group_of = found.entries.group
        while slots := walk.some(PORTION):
            for slot in slots:
                number = group_of[slot]
                if number in depths:
                    depths[number] += 1
            await slices.pause()
        views: list[GroupView] = []
        for some in portions(numbers):
            await slices.pause()
            now = self._core.now()
            # One that has run empty meanwhile is no group any more.
            views += [_group(found, order, number, depths[number], now) for number in some if number in order.heads]
        return views

    async def release(self, queue: str, group: str, dead: bool = False) -> bool:
        core = self._core
        found = core.get(queue)
        order = found.order
        number = found.groups.find(group)
        if not isinstance(order, Grouped) or number not in order.parked:
            return False
        slot = order.parked[number]
        if dead:
            await self._committer.reader.message(found, slot)  # its dead-letter exchange may want to see it
            if order.parked.get(number) != slot:
                return False
            if not found.bury_waiting(slot, Reason.EXHAUSTED):
                raise GatewayError(f"the dead-letter queue of {queue} takes nothing now; make room there first")
            core.wake(found)
        else:
            found.release(slot)
        await self._committer.put()
        return True

    async def browse(self, queue: str, limit: int = 100, after: int = 0) -> Sequence[StoredMessage]:
        found = self._core.get(queue)
        entries, slices, walk = found.entries, Slices(), Walk(found.entries, after)
        stored: list[StoredMessage] = []
        while len(stored) < limit and (slots := walk.some(min(limit - len(stored), PORTION))):
            for slot, ident in [(slot, entries.ident[slot]) for slot in slots]:
                await slices.pause()
                if not entries.holds(slot, ident):
                    continue
                message = await self._committer.reader.message(found, slot)
                if message is not None and entries.holds(slot, ident):
                    stored.append(self._stored(found, slot, message))
        return stored

    def _stored(self, queue: Queue, slot: int, message: Message) -> StoredMessage:
        entries = queue.entries
        extra = self._core.extras[entries.extra[slot]]
        return StoredMessage(
            id=entries.ident[slot],
            queue=queue.name,
            message=message,
            accepted=entries.accepted[slot],
            attempts=queue.attempts.get(slot, 0),
            in_flight=slot in queue.flying,
            group=queue.groups.name(entries.group[slot]) if entries.group[slot] else extra.group,
            expires=entries.expires[slot] or None,
            deaths=extra.deaths,
        )

    async def redrive(
        self, queue: str, selection: Selection, to: str | None = None, rate: float | None = None, dry_run: bool = False
    ) -> AsyncIterator[RedriveProgress]:
        source = self._core.get(queue)
        if to is not None:
            self._core.get(to)
        chosen, skipped = await self._select(source, selection)
        yield RedriveProgress(len(chosen), 0, skipped)
        if dry_run:
            return
        moved = 0
        error = ""
        slices = Slices()
        began = anyio.current_time()
        for place, (slot, ident) in enumerate(chosen, 1):
            if source.deleted:
                error = f"queue {queue} is gone"
                break
            await slices.pause()
            if not source.entries.holds(slot, ident) or slot in source.flying:
                skipped += 1
                continue
            error = await self._redrive_one(source, slot, ident, to)
            if error:
                break
            moved += 1
            if rate is not None and (ahead := moved / rate - (anyio.current_time() - began)) > 0:
                if ahead > PACE_SECONDS or place == len(chosen):
                    yield RedriveProgress(len(chosen), moved, skipped)
                    await anyio.sleep(ahead)
            elif moved % REDRIVE_SLICE == 0:
                yield RedriveProgress(len(chosen), moved, skipped)
                await self._committer.put()
        await self._committer.put()
        yield RedriveProgress(len(chosen), moved, skipped, error)

    async def _select(self, source: Queue, selection: Selection) -> tuple[list[tuple[int, int]], int]:
        """(slot, ident) of all that meet the selection, in the order they had where they died, and how many more are
        in flight."""
        entries, slices, walk = source.entries, Slices(), Walk(source.entries)
        wanted: set[int] | None = None
        if selection.ids is not None:
            wanted = set()
            for ids in portions(selection.ids):
                await slices.pause()
                wanted.update(ids)
        found: list[tuple[int, int, int]] = []
        while slots := walk.some(PORTION):
            found += self._died(source, slots, selection, wanted)
            await slices.pause()
        chosen: list[tuple[int, int]] = []
        skipped = 0
        for _, slot, ident in await in_order(found, slices, _place):
            await slices.pause()
            if not entries.holds(slot, ident):
                continue
            if selection.topic is not None:
                message = await self._committer.reader.message(source, slot)
                if message is None or not topics.matches(selection.topic, message.topic):
                    continue
                if not entries.holds(slot, ident):
                    continue
            if slot in source.flying:
                skipped += 1
                continue
            chosen.append((slot, ident))
            if selection.limit is not None and len(chosen) >= selection.limit:
                break
        return chosen, skipped

    def _died(
        self, source: Queue, slots: Sequence[int], selection: Selection, wanted: Set[int] | None
    ) -> Iterator[tuple[int, int, int]]:
        """(place where they died, slot, ident) of those that meet all of the selection that is known without their
        messages. wanted: their ids, if it names any."""
        entries, extras = source.entries, self._core.extras
        for slot in slots:
            ident = entries.ident[slot]
            if wanted is not None and ident not in wanted:
                continue
            extra = extras[entries.extra[slot]]
            deaths = extra.deaths
            if not deaths or (selection.queue is not None and deaths[0].queue != selection.queue):
                continue
            if selection.reason is not None and deaths[0].reason != selection.reason:
                continue
            if selection.before is not None and deaths[0].last >= selection.before:
                continue
            yield extra.sequence or ident, slot, ident

    async def _redrive_one(self, source: Queue, slot: int, ident: int, to: str | None) -> str:
        """Why it could not be moved, or ""."""
        core = self._core
        extra = core.extras[source.entries.extra[slot]]
        died_in = extra.deaths[0].queue
        name = to if to is not None else died_in
        target = core.queues.get(name)
        if target is None:
            return f"there is no queue {name!r} any more; name another with --to"
        if target is source:
            return f"{name} is the queue of these dead letters itself; name another with --to"
        if is_reserved(name):
            return f"queue {name} is a session's, a share's or a link's; name another with --to"
        entries = source.entries
        group = extra.group
        message: Message | None = None
        if target.group_template is not None and (group is None or name != died_in):
            message = await self._committer.reader.message(source, slot)
            if message is None:
                return f"message {ident} can't be read" if entries.holds(slot, ident) else ""
        # Only now, as the target may have gone or filled while the body was read.
        if target.deleted:
            return f"queue {name} was deleted; name another with --to"
        if core.refusing and target.policy.durable:
            return core.refusing
        if target.is_full(entries.length[slot]) and target.may_refuse():
            return f"queue {name} is full; the rest is where it was"
        if message is not None and target.group_template is not None:
            try:
                group = target.group_template.render(Fields(message))
            except MissingValueError as error:
                return f"queue {name} can't take message {ident}: {error}"
        if not entries.holds(slot, ident) or slot in source.flying:
            return ""  # somebody took it meanwhile
        # A body that is in memory only is there now, since its entry is neither on disk nor in flight.
        core.dead_letters.move(
            source,
            slot,
            target,
            # An operator's word breaks a circle as a consumer's does.
            msgspec.structs.replace(extra, group=group, sequence=0, undecided=0),
            group=group or "",
        )
        source.remove((slot,))
        core.wake(source)
        return ""

    async def purge_queue(self, name: str) -> int:
        return await self._committer.purge(name)

    async def delete_queue(self, name: str) -> int:
        queue = self._core.get(name)
        if queue.owner in (CONFIG, OWNER) and not queue.removed:
            raise GatewayError(f"queue {name} is configured; take it out of the configuration and reload first")
        count = self._core.delete(name)
        await self._committer.put()
        return count

    async def publish(self, message: Message) -> tuple[Outcome, Sequence[DeadOnArrival]]:
        answered: asyncio.Future[Sequence[Outcome]] = asyncio.get_running_loop().create_future()

        def resolve(outcomes: Sequence[Outcome], ok: bool) -> None:
            if not answered.done():
                answered.set_result(outcomes)

        accept = Accept((message,), (), resolve)
        self._committer.take(accept)
        (outcome,) = await answered
        return outcome, accept.invalid if outcome is not Outcome.REFUSED else ()

    def explain(self, message: Message) -> Sequence[Step]:
        return explain(self._core, message)


class _Sum:
    """What all sessions of one owner have together; one that has ended goes on to count."""

    def __init__(self, owner: str, ended: Counters | None = None) -> None:
        self._owner = owner
        self._counters = Counters()
        if ended is not None:
            self._counters.include(ended)
        self._depth = self._octets = self._in_flight = self._consumers = 0
        self._oldest = 0.0

    def add(self, queue: Queue, now: float) -> None:
        """Of a session that was there when the sum began."""
        entries = queue.entries
        self._counters.include(queue.counters)
        if queue.deleted:
            return
        self._depth += queue.depth
        self._octets += entries.octets
        self._in_flight += queue.in_flight
        self._consumers += queue.consumers
        if entries.count:
            self._oldest = max(self._oldest, now - entries.accepted[entries.first])

    def stats(self) -> QueueStats:
        return QueueStats(
            name=f"{self._owner}.*",
            owner=self._owner,
            durable=False,
            depth=self._depth,
            octets=self._octets,
            in_flight=self._in_flight,
            consumers=self._consumers,
            groups=0,
            parked_groups=0,
            oldest_age_seconds=self._oldest,
            session=True,
            **_counted(self._counters),
        )


def _counted(counters: Counters) -> dict[str, Any]:
    """By their names in QueueStats."""
    return {"stale_settlements" if name == "stale" else name: getattr(counters, name) for name in Counters.__slots__}


def _stats(queue: Queue, now: float) -> QueueStats:
    entries, order = queue.entries, queue.order
    return QueueStats(
        name=queue.name,
        owner=queue.owner,
        durable=queue.policy.durable,
        depth=queue.depth,
        octets=entries.octets,
        in_flight=queue.in_flight,
        consumers=queue.consumers,
        groups=len(order.heads) if isinstance(order, Grouped) else 0,
        parked_groups=len(order.parked) if isinstance(order, Grouped) else 0,
        oldest_age_seconds=max(0.0, now - entries.accepted[entries.first]) if entries.count else 0.0,
        refused_dead_letters=len(queue.doomed),
        session=queue.live,
        removed=queue.removed,
        **_counted(queue.counters),
    )


def _group(queue: Queue, order: Grouped, number: int, depth: int, now: float) -> GroupView:
    head = order.heads[number]
    in_flight = order.in_flight(number)
    until = order.blocked.get(number)
    state: Literal["ready", "in-flight", "waiting", "parked"] = "ready"
    if number in order.parked:
        state = "parked"
    elif in_flight:
        state = "in-flight"
    elif until is not None:
        state = "waiting"
    return GroupView(
        queue=queue.name,
        group=queue.groups.name(number) or "",
        state=state,
        depth=depth,
        in_flight=in_flight,
        head_age_seconds=max(0.0, now - queue.entries.accepted[head]),
        attempts=queue.attempts.get(head, 0),
        error=queue.errors.get(head, ""),
        until=until,
    )
