"""Owns what becomes of a message that comes in: the queues that get it, the keys it leaves, and its Outcome.

Its rule: first every queue is asked, then all of them get the message or none does (ruling 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from gateway.broker.commit_batch import Accept, DeadOnArrival
from gateway.broker.dead_letters import UNSTORED_OCTETS
from gateway.broker.deferred_replies import Wait
from gateway.model.binding import NO_OPTIONS, Options
from gateway.model.delivery import Reason
from gateway.model.message import TOPIC_EXCHANGE, Message
from gateway.model.outcome import Outcome
from gateway.model.policy import QueuePolicy
from gateway.queueing.ordering import Grouped
from gateway.queueing.pending import Pending
from gateway.routing.router import merge_options
from gateway.routing.templates import Fields, MissingValueError, Template
from gateway.storage.records import Extra
from gateway.transport import PLAIN, Offer

if TYPE_CHECKING:
    from gateway.broker.core import Core
    from gateway.queueing.queue import Queue


class Intake:
    """Of one core. All that it does stands in the core's present Gather and is undone if that is not committed."""

    __slots__ = ("_core", "_ends", "_outcomes", "_targets", "invalid", "waits")

    def __init__(self, core: Core) -> None:
        self._core = core
        self._outcomes: list[Outcome] = []
        """Of this call, so far."""
        self.waits: list[tuple[int, Queue, int, float]] = []
        """What of this call a link must deliver: place in the call, queue, ident there, and until when."""
        self.invalid: list[DeadOnArrival] = []
        """What of this call can't be what a queue wants of it."""
        self._targets: dict[str, Template] = {}
        """Of the configured routes, by their text."""
        self._ends: dict[float, float] = {}
        """When the dedup keys of this call end, by their window: one float for all of them."""

    def take(self, messages: Sequence[Message], offer: Offer) -> list[Outcome]:
        """One Outcome for each, in order; they become true with the next commit."""
        now, decide, route = self._core.now(), self._decide, self._core.router.route
        self._ends = {}
        outcomes: list[Outcome] = []
        self._outcomes = outcomes
        if offer is not PLAIN and (offer.also or offer.in_order or offer.unroutable is not None):
            self._take_as_offered(messages, offer, now)
            return outcomes
        for message in messages:
            outcomes.append(decide(message, now, route(message)))  # noqa: PERF401 - its length is asked for meanwhile
        return outcomes

    def take_invalid(self) -> Sequence[DeadOnArrival]:
        """Of the call that was just taken."""
        invalid, self.invalid = self.invalid, []
        return invalid

    def take_waits(self, accept: Accept) -> list[Wait]:
        """Of the call that was just taken."""
        waits, self.waits = self.waits, []
        return [Wait(queue, ident, place, due, accept) for place, queue, ident, due in waits]

    def _take_as_offered(self, messages: Sequence[Message], offer: Offer, now: float) -> None:
        core, decide, outcomes = self._core, self._decide, self._outcomes
        keeper = core.queues.get(offer.unroutable) if offer.unroutable is not None else None
        for place, message in enumerate(messages):
            topics = offer.also.get(place)
            targets = core.router.route(message) if topics is None else core.router.route_also(message, topics)
            if targets or keeper is None:
                outcome = decide(message, now, targets)
            else:
                outcome = decide(message, now, ((keeper, NO_OPTIONS),))
                if outcome is not Outcome.REFUSED:
                    outcome = Outcome.UNROUTED
            outcomes.append(outcome)
            if outcome is Outcome.REFUSED and offer.in_order and not (offer.drops_qos0 and message.qos == 0):
                outcomes += [Outcome.REFUSED] * (len(messages) - len(outcomes))
                break

    def _decide(self, message: Message, now: float, targets: Sequence[tuple[Queue, Options]]) -> Outcome:
        core = self._core
        if core.overloaded:
            return Outcome.REFUSED
        retains = message.retain and message.exchange == TOPIC_EXCHANGE
        if retains and any(options.within is not None for _, options in targets):
            retains = False  # that is for the other side of the link: nothing is kept here
        if retains and (core.refusing or self._retained_is_full(message, now)):
            return Outcome.REFUSED
        if not targets:
            if retains:
                self._retain(message, now)
            return Outcome.UNROUTED
        fields: Fields | None = None
        within: float | None = None
        plan: list[tuple[Queue, Options, str | None, bytes | None]] = []
        # Rare, and a list for nothing costs as much as a dictionary hit.
        live: list[tuple[Queue, Options]] | None = None
        invalid: list[tuple[Queue, Message, list[Queue], str]] | None = None
        duplicates: list[Queue] | None = None
        octets = len(message.body) + UNSTORED_OCTETS
        for queue, options in targets:
            if queue.live and (message.qos == 0 or options.qos == 0):
                live = live or []
                live.append((queue, options))
                continue
            if core.refusing and queue.policy.durable:
                core.counts.append((queue.counters, "refused"))
                return Outcome.REFUSED
            group: str | None = None
            digest: bytes | None = None
            if options.within is not None:
                within = options.within if within is None else min(within, options.within)
            if queue.reads_fields or options.target is not None:
                if fields is None:
                    fields = Fields(message)
                try:
                    if options.target is not None:
                        options = self._address(options, options.target, fields)
                        if self._joins(plan, queue, options):
                            continue
                    if queue.group_template is not None:
                        group = queue.group_template.render(fields)
                    if queue.dedup_key is not None:
                        key = queue.dedup_key(fields)
                        if key is not None:
                            digest = core.dedup.digest(queue.name, group if queue.dedup_by_group else None, key)
                except MissingValueError as error:
                    dead, bins = core.dead_letters.routes_unstored(queue, message)
                    if any(core.dead_letters.refuses(found, octets) for found in bins):
                        core.counts.append((queue.counters, "refused"))
                        return Outcome.REFUSED
                    invalid = invalid or []
                    invalid.append((queue, dead, bins, str(error)))
                    continue
                if digest is not None and core.dedup.seen(digest, now):
                    duplicates = duplicates or []
                    duplicates.append(queue)
                    continue
                crowded = core.dedup.count >= core.max_dedup_keys or queue.groups.count >= queue.policy.max_groups
                if crowded and self._names_are_full(queue, group, digest, now):
                    core.counts.append((queue.counters, "refused"))
                    return Outcome.REFUSED
            if queue.is_limited:
                # An outbox may be here more than once, for other targets.
                ahead = sum(planned[0] is queue for planned in plan) if options.target is not None else 0
                is_full = queue.is_full(octets, ahead)
                if is_full and (queue.may_refuse() or core.dead_letters.overflow_is_refused(queue, octets)):
                    core.counts.append((queue.counters, "refused"))
                    if queue.policy.overflow == "refuse-dead-letter":
                        core.dead_letters.bury_refused(queue, message, octets, now)
                    return Outcome.REFUSED
            plan.append((queue, options, group, digest))
        if within is not None:
            return self._store_awaited(message, plan, live, octets, now, within, bool(invalid or duplicates))
        for queue in duplicates or ():
            core.counts.append((queue.counters, "duplicates"))
        if plan:
            self._store(message, plan, octets, now)
        for queue, options in live or ():
            core.gather.live.append((queue, message, options))
        for queue, dead, bins, why in invalid or ():
            core.dead_letters.bury_unstored(queue, dead, bins, Reason.INVALID, why, now, message)
            self.invalid.append(DeadOnArrival(queue.name, tuple([found.name for found in bins]), why))
        if retains:
            self._retain(message, now)
        return Outcome.STORED if plan or live or invalid else Outcome.DUPLICATE

    def _address(self, options: Options, text: str, fields: Fields) -> Options:
        """With the target that a message has in an outbox. Raises MissingValueError."""
        template = self._targets.get(text)
        if template is None:
            template = self._targets[text] = Template(text)
        return msgspec.structs.replace(options, target=template.render(fields))

    @staticmethod
    def _joins(plan: list[tuple[Queue, Options, str | None, bytes | None]], queue: Queue, options: Options) -> bool:
        """Whether the plan has an entry for this target already, by a template of another text, which then serves both
        bindings: one entry for each distinct target (ruling 8)."""
        for place, (planned, known, group, digest) in enumerate(plan):
            if planned is queue and known.target == options.target:
                plan[place] = (queue, merge_options(known, options), group, digest)
                return True
        return False

    def _store_awaited(
        self,
        message: Message,
        plan: list[tuple[Queue, Options, str | None, bytes | None]],
        live: list[tuple[Queue, Options]] | None,
        octets: int,
        now: float,
        within: float,
        fails: bool,
    ) -> Outcome:
        """One that a link must deliver before its sender is answered: nothing else may keep it (ruling 23), or it would
        be there although it is REFUSED. fails: it can't be what a queue wants of it."""
        core = self._core
        is_kept = len(plan) > 1 or (bool(plan) and plan[0][0].policy.durable)
        if fails or is_kept or not plan:
            core.refused["delivered-and-stored" if is_kept else "invalid"] += 1
            return Outcome.REFUSED
        self.waits.append((len(self._outcomes), plan[0][0], core.next_ident, now + within))
        self._store(message, plan, octets, now)
        for queue, options in live or ():
            core.gather.live.append((queue, message, options))
        return Outcome.STORED

    def _store(
        self,
        message: Message,
        plan: list[tuple[Queue, Options, str | None, bytes | None]],
        octets: int,
        now: float,
    ) -> None:
        core = self._core
        gather = core.gather
        stored: tuple[int, int, int] | None = None
        for queue, options, group, digest in plan:
            policy = queue.policy
            durable = policy.durable
            ident = core.next_ident
            core.next_ident = ident + 1
            if durable:
                if stored is None:
                    stored = gather.bodies.add(message, core.rows.new)
                    gather.octets += stored[2]
                row, offset, length = stored
            else:
                row, offset, length = 0, 0, octets
                gather.octets += octets
            number = core.group_number(queue, group, ident) if group is not None else 0
            extra = core.extra_number(Extra(options), durable) if options is not NO_OPTIONS else 0
            if digest is not None and policy.dedup is not None:
                window = policy.dedup.window
                until = self._ends.setdefault(window, now + window)
                core.dedup.add(digest, until, window, durable)
                if durable:
                    gather.add_key(digest, until, window)
                else:
                    gather.volatile_keys.append(digest)
            expires = due = 0.0
            if queue.is_timed or message.ttl is not None or message.delay:
                expires, due = _times(message, policy, now)
                if due and durable:
                    gather.dues.append((ident, due))
            queue.pending_count += 1
            queue.pending_octets += length
            gather.pending.append(Pending(queue, ident, message, row, offset, length, expires, now, number, extra, due))

    def _names_are_full(self, queue: Queue, group: str | None, digest: bytes | None, now: float) -> bool:
        """Whether there may be no group, or no dedup key, that is not known yet."""
        core, groups = self._core, queue.groups
        order, limit = queue.order, queue.policy.max_groups
        if isinstance(order, Grouped) and group is not None and len(groups) >= limit and not groups.find(group):
            groups.free_idle(order.heads, core.committed_ident)
            if len(groups) >= queue.policy.max_groups:
                core.refused["groups"] += 1
                return True
        if digest is not None and core.dedup.count >= core.max_dedup_keys:
            core.dedup.sweep(now)
            if core.dedup.count >= core.max_dedup_keys:
                core.refused["dedup-keys"] += 1
                return True
        return False

    def _retained_is_full(self, message: Message, now: float) -> bool:
        core = self._core
        if not core.retained.is_full(message):
            return False
        core.gather.forced_states += core.retained.make_room(now)
        if not core.retained.is_full(message):
            return False
        core.refused["retained"] += 1
        return True

    def _retain(self, message: Message, now: float) -> None:
        gather = self._core.gather
        change, at = self._core.retained.change(message, now)
        gather.states.append(change)
        gather.retained.append((message, at))


def _times(message: Message, policy: QueuePolicy, now: float) -> tuple[float, float]:
    """When it expires and from when it may be delivered; 0 for never and at once."""
    ttl, delay = message.ttl, message.delay if message.delay is not None else policy.delay
    if policy.ttl is not None and (ttl is None or policy.ttl < ttl):
        ttl = policy.ttl
    return 0.0 if ttl is None else now + ttl, now + min(delay, policy.max_delay) if delay else 0.0
