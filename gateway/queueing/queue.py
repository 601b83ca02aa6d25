"""Owns Queue: what waits, what is in flight, and what settling does (design section 4).

Its rule: an entry leaves by settlement, expiry or a stated overflow policy, and by nothing else; a delivery is
registered before its consumer hears of it.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import groupby, islice
from operator import attrgetter
from typing import Any

import msgspec
from msgspec import structs

from gateway.errors import ExclusiveUseError
from gateway.model.credit import Credit
from gateway.model.delivery import Delivery, Reason
from gateway.model.message import Message
from gateway.model.names import Actor
from gateway.model.policy import DISCARD, QueuePolicy
from gateway.queueing.dedup import body_key
from gateway.queueing.entries import Entries
from gateway.queueing.host import RESIDENT_OCTETS, Counters, Ledger
from gateway.queueing.interning import GroupNames
from gateway.queueing.ordering import NEVER, Competing, Grouped, Order
from gateway.queueing.pending import Pending
from gateway.queueing.priority import Prioritized, PriorityName
from gateway.queueing.purge import Purge
from gateway.queueing.reordering import Reordering
from gateway.queueing.subscription import QueueSubscription
from gateway.queueing.timers import Expiries, Timeouts
from gateway.routing.templates import Fields, Template
from gateway.storage.records import NO_EXTRA
from gateway.transport import Consumer

RETRY_DEAD_LETTER_SECONDS = 1.0
"""After this a dead letter that was refused by its queue is tried again."""
EXPIRED_AT_ONCE = 200
"""So many that have expired are removed, or refused dead letters tried again, before others have their turn."""
HANDED_OUT_AT_ONCE = 1000
"""So many entries are looked at for delivery before others have their turn,"""
RETURNED_AT_ONCE = 1000
"""and so many of one consumer go back."""
MAX_ERROR_CHARS = 1024
READ_AHEAD_OCTETS = 1 << 20
SPARED_OCTETS = 64 << 10
"""A queue that holds no more gives up nothing when another has filled the memory with what is in memory alone."""
COLUMNS_FROM = 8
"""So many entries are faster stored column by column than one by one."""
SPILLED = Message("", b"")
"""Stands for the message of a delivery in flight whose body is on disk alone."""
_NONE: Mapping[int, int] = {}

_priority: Callable[[QueueSubscription], int] = attrgetter("priority")
_served: Callable[[QueueSubscription], int] = attrgetter("served")
Return = tuple[Delivery, str | None, bool]
"""A delivery that goes back, why it failed (None: it was given back unused), and whether it then waits."""
decode_message = msgspec.msgpack.Decoder(Message).decode


def templates_of(policy: QueuePolicy) -> tuple[Template | PriorityName | None, Template | None]:
    """For the group and for the dedup key. Raises ValueError for a text that is no template, or for groups together
    with priorities."""
    dedup = policy.dedup
    group: Template | PriorityName | None = Template(policy.group) if policy.group is not None else None
    if policy.max_priority is not None:
        if group is not None:
            raise ValueError("a queue has group or max_priority, not both")
        group = PriorityName(policy.max_priority)
    return group, Template(dedup.key) if dedup is not None and dedup.key != "sha256" else None


class Queue:
    """Keeps entries until they are settled. Also a QueueView."""

    __slots__ = (
        "_again",
        "_crowded",
        "_cut_short",
        "_keeps_nothing",
        "_leaving",
        "_memory",
        "_now_or_never",
        "_over",
        "_placing",
        "_prioritized",
        "_purge",
        "_returning",
        "_timeouts",
        "attempts",
        "counters",
        "dedup_by_group",
        "dedup_key",
        "deleted",
        "doomed",
        "entries",
        "errors",
        "expiries",
        "flying",
        "group_template",
        "groups",
        "holder",
        "idle_since",
        "is_limited",
        "is_timed",
        "ledger",
        "live",
        "name",
        "number",
        "order",
        "owner",
        "pending_count",
        "pending_octets",
        "policy",
        "ranks",
        "reads_fields",
        "removed",
        "resident",
        "subscriptions",
        "unsure",
    )

    def __init__(self, name: str, number: int, policy: QueuePolicy, owner: str, ledger: Ledger) -> None:
        self.name = name
        self.number = number
        self.owner = owner
        self.holder: Actor | None = None
        """Who alone may use it, if somebody is; not kept over a restart, as such a queue is none."""
        self.ledger = ledger
        self._memory = ledger.memory
        self.live = False
        """A session's: entries of QoS 0 go straight to a connected consumer and are never kept (ruling 12), and what
        has begun to be delivered neither expires nor is dropped [MQTT-4.3.3-7], [MQTT-4.4.0-1]."""
        self.unsure: list[tuple[int, int]] | None = None
        """Of a session that was restored, until `begun` tells what its client was sent: what expires meanwhile, by
        slot and ident."""
        self.removed = False
        self.deleted = False
        self.entries = Entries()
        self.groups = GroupNames()
        self.resident: dict[int, Message] = {}
        self.flying: dict[int, Delivery] = {}
        self.attempts: dict[int, int] = {}
        """Of entries that were delivered before; 0: only given back."""
        self.errors: dict[int, str] = {}
        self.doomed: dict[int, tuple[Reason, str]] = {}
        """Dead letters that their queue refused; they wait here for room there."""
        self.subscriptions: list[QueueSubscription] = []
        self.pending_count = 0
        self.pending_octets = 0
        self.counters = Counters()
        self.idle_since = ledger.now()
        self._leaving: dict[QueueSubscription, None] = {}
        """Cancelled, and not yet detached."""
        self._crowded = False
        """What was stored since the last dispatch has no room, and goes to those who wait now or leaves."""
        self._cut_short = False
        """The last dispatch has not looked at all that is ready; another follows."""
        self._over = False
        """Above its limits, because a dead letter was refused or it was being purged."""
        self._now_or_never: set[int] = set()
        """With a ttl of 0, and stored since the last dispatch: for whoever has credit at the next one."""
        self._purge: Purge | None = None
        self._returning: deque[Return] = deque()
        """On their way back. Nothing is delivered until all are there, so that the oldest is again the first."""
        self._again = NEVER
        """When refused dead letters are tried again."""
        self._prioritized = 0
        """Consumers with a priority of their own."""
        self.ranks = False
        """Its consumers do not simply take turns."""
        self._timeouts = Timeouts(self.flying)
        self.expiries = Expiries(self.entries)
        self.order: Order = Competing(self.entries)
        self._placing: Order | Reordering = self.order
        """Told of what comes, goes back and leaves; the order itself, but for the time of a Reordering."""
        self.apply(policy)

    # policy

    def apply(self, policy: QueuePolicy) -> None:
        """From now on. Group values and dedup keys of what is here stay as they are (ruling 24)."""
        self.policy = policy
        self.group_template, template = templates_of(policy)
        self.dedup_key: Callable[[Fields], str | None] | None = None
        """Where its messages' dedup keys come from."""
        if policy.dedup is not None and template is None:
            self.dedup_key = body_key
        elif policy.dedup is not None and template is not None:
            self.dedup_key = template.render if policy.dedup.required else template.find
        self.dedup_by_group = policy.dedup is not None and policy.dedup.scope == "group"
        self.reads_fields = self.group_template is not None or policy.dedup is not None
        self.is_timed = policy.ttl is not None or bool(policy.delay)
        self.rank()
        self._keeps_nothing = 0 in (policy.max_messages, policy.max_bytes)
        self.is_limited = policy.max_messages is not None or policy.max_bytes is not None or not policy.durable
        # What is in flight has no longer than what goes out from now on, and no time-out if that has none.
        latest = None if policy.ack_timeout is None else self.ledger.now() + policy.ack_timeout
        self._timeouts.shorten(latest, (*self.subscriptions, *self._leaving))
        order = self._order()
        if type(order) is not type(self.order):
            self._reorder(order)
        elif isinstance(self.order, Grouped):
            self.order.allow(policy.group_in_flight)

    def _order(self) -> Order:
        """An empty one of the kind that the policy asks for."""
        if self.policy.max_priority is not None:
            return Prioritized(self.entries, self.groups.name)
        if self.group_template is not None:
            return Grouped(self.entries, self.policy.group_in_flight)
        return Competing(self.entries)

    def _reorder(self, order: Order) -> None:
        """What is in flight stays with its consumers (ruling 24); a long queue delivers nothing until all of it is in
        the new order."""
        before, self.order = self.order, order
        for slot in before.parked.values() if isinstance(before, Grouped) else ():
            if self.entries.expires[slot]:
                self.expiries.watch(slot)  # its moment may have come while its group was parked
        now = self.ledger.now()
        dues = {slot: due for slot, due in self._placing.dues().items() if due > now}
        self._placing = Reordering(self.entries, order, dues, self.flying)
        if self._reorder_some():
            self.ledger.goes_on(self)

    def _reorder_some(self) -> bool:
        """False at the end."""
        assert isinstance(self._placing, Reordering)
        self._placing.step()
        if not self._placing.is_over:
            return True
        self._placing = self.order
        self.groups.empty(range(1, self.groups.top))  # what left while there were no groups told nobody
        self.ledger.wake(self)
        return False

    # what a QueueView shows

    @property
    def depth(self) -> int:
        return self.entries.count - len(self.flying)

    @property
    def is_empty(self) -> bool:
        """Nothing is here, or on its way."""
        return not (self.entries.count or self.pending_count)

    @property
    def in_flight(self) -> int:
        return len(self.flying)

    @property
    def consumers(self) -> int:
        return len(self.subscriptions)

    # entries in

    def is_full(self, octets: int, ahead: int = 0) -> bool:
        """Whether one message more would pass a limit, what waits for its commit included, and `ahead` copies of it."""
        count, held = self.pending_count + ahead + 1, self.pending_octets + octets * (ahead + 1)
        return self._is_over(count, held) and (not self._begun or self._is_over(*self._less_begun(count, held)))

    def _is_over(self, more: int = 0, octets: int = 0) -> bool:
        """Whether its limits are passed by what is here and so much more."""
        policy, held = self.policy, self.entries.octets + octets
        if policy.max_messages is not None and self.entries.count + more > policy.max_messages:
            return True
        if not policy.durable and held > SPARED_OCTETS and self._is_memory_full():
            return True
        return policy.max_bytes is not None and held > policy.max_bytes

    @property
    def _begun(self) -> Mapping[int, int]:
        """Of a session: what its client was sent, and has not answered. As much as the client takes at once, so it
        needs no other limit."""
        return self.attempts if self.live else _NONE

    def _less_begun(self, count: int, octets: int) -> tuple[int, int]:
        begun = self._begun
        return count - len(begun), octets - sum([self.entries.length[slot] for slot in begun])

    def _is_memory_full(self) -> bool:
        """Of what is in memory alone, which no disk can relieve."""
        return self._memory.volatile > self._memory.limit

    def may_refuse(self) -> bool:
        """Refuses when full; with another overflow only if there is nothing to drop (ruling 18)."""
        if self.policy.refuses:
            return True
        if self._keeps_nothing:
            return False  # but what comes, and that may be taken at once
        staying = len(self.order.parked) if isinstance(self.order, Grouped) else 0
        staying += sum(slot not in self.flying for slot in self._begun)
        return self.depth + self.pending_count == staying

    def store(self, entries: Sequence[Pending]) -> Sequence[int]:
        """Committed entries, the last by arrival, and their slots."""
        enqueue, resident, slots = self._placing.add, self.resident, self._place(entries)
        octets = volatile = 0
        for slot, entry in zip(slots, entries, strict=True):
            if entry.message is not None:
                resident[slot] = entry.message
                octets += entry.length + RESIDENT_OCTETS
                if not entry.row:
                    volatile += entry.length + RESIDENT_OCTETS
            if entry.expires:
                self.expiries.watch(slot)
                if entry.expires == entry.accepted:
                    self._now_or_never.add(slot)
            enqueue(slot, entry.due)
        self._memory.octets += octets
        self._memory.volatile += volatile
        return slots

    def _place(self, entries: Sequence[Pending]) -> Sequence[int]:
        add = self.entries.add
        if len(entries) < COLUMNS_FROM or not self.entries.is_dense:
            return [
                add(one.ident, one.row, one.offset, one.length, one.expires, one.accepted, one.group, one.extra)
                for one in entries
            ]
        return self.entries.extend(
            {
                "ident": array("q", [one.ident for one in entries]),
                "row": array("q", [one.row for one in entries]),
                "offset": array("I", [one.offset for one in entries]),
                "length": array("I", [one.length for one in entries]),
                "expires": array("d", [one.expires for one in entries]),
                "accepted": array("d", [one.accepted for one in entries]),
                "group": array("I", [one.group for one in entries]),
                "extra": array("I", [one.extra for one in entries]),
            }
        )

    def restore(self, columns: Mapping[str, array[Any]], dues: Mapping[int, float]) -> range:
        """What an earlier run of the daemon left, the last by arrival; bodies are on disk only. Only before the first
        dispatch. columns: as in Entries, with growing idents. dues: until when an ident is delayed. Returns slots."""
        slots = self.entries.extend(columns)
        if any(columns["expires"]):
            for slot, expires in zip(slots, columns["expires"], strict=True):
                if expires:
                    self.expiries.watch(slot)
        if dues:
            for slot, ident in zip(slots, columns["ident"], strict=True):
                self.order.add(slot, dues.get(ident, 0.0))
        else:
            self.order.extend(slots)
        return slots

    def evict_stored(self) -> None:
        """As `evict`, now that more was stored. With a limit of 0 that is for whoever waits now: these have their turn
        first."""
        if self._keeps_nothing and not self.is_purging:
            self._crowded = True
        else:
            self.evict()

    def evict(self) -> None:
        """Drops or dead-letters the oldest that are not in flight until the limits hold again."""
        policy = self.policy
        self._crowded = False
        self._over = self.is_purging or self.unsure is not None  # when that has ended it is looked at again
        if self._over or policy.refuses:
            return  # since a reload; what is here stays (ruling 24)
        less = self._less_begun(0, 0)
        for slot in self.entries.slots():
            if not self._is_over(*less):
                return
            if self._stays(slot):
                continue
            if policy.overflow == "dead-letter" and policy.dead_letter != DISCARD:
                if not self._bury(slot, Reason.OVERFLOW, ""):
                    self._over = True
                    self._try_again()
                    return
            else:
                self.counters.dropped += 1
                self.remove((slot,))

    def spill(self, slot: int, ident: int) -> None:
        """Forgets the body in memory if the entry still waits and its body is on disk."""
        entries = self.entries
        if not entries.holds(slot, ident) or slot not in self.resident:
            return
        if self.ledger.may_spill(self, slot):
            del self.resident[slot]
            self._memory.octets -= self.entries.length[slot] + RESIDENT_OCTETS

    # entries out

    def remove(self, slots: Sequence[int], done: bool = False) -> None:
        """These entries leave for good, waiting or in flight; `done`: since their consumer said so."""
        entries, flying, resident, leave = self.entries, self.flying, self.resident, self._placing.leave
        self.ledger.removed(self, slots, done)
        expires, forget = entries.expires, self.expiries.forget
        octets = volatile = 0
        for slot in slots:
            delivery = flying.pop(slot, None)
            message = delivery.message if delivery is not None else resident.pop(slot, SPILLED)
            if message is not SPILLED:
                length = entries.length[slot] + RESIDENT_OCTETS
                octets += length
                if not entries.row[slot]:
                    volatile += length
            leave(slot, delivery is not None)
            if expires[slot]:
                forget(slot)
            entries.remove(slot)
        self._memory.octets -= octets
        self._memory.volatile -= volatile
        for known in (self.attempts, self.errors, self.doomed):
            if known:
                for slot in slots:
                    known.pop(slot, None)
        if self._now_or_never:
            self._now_or_never.difference_update(slots)

    def purge(self, *then: Callable[[], None]) -> int:
        """What waits now is delivered no more, and leaves in the turns that follow; returns how many, without those
        that leave for an earlier purge, which has told of them. then: called when all of it is gone."""
        leaving = 0
        if self._purge is not None:
            leaving = self._purge.left
            then = (*self._purge.then, *then)
        self._purge = Purge(self.entries, self.flying, then)
        self.ledger.goes_on(self)
        return max(0, self.depth - leaving)

    @property
    def is_purging(self) -> bool:
        return self._purge is not None

    def _is_purged(self, slot: int) -> bool:
        """Whether it is about to leave."""
        return self._purge is not None and self._purge.covers(slot)

    @property
    def is_busy(self) -> bool:
        """Nothing is delivered for the time being: it is purged or brought into another order, or much goes back."""
        return self._purge is not None or bool(self._returning) or self._placing is not self.order

    def go_on(self) -> bool:
        """One step of what keeps it busy. False at the end."""
        if self._returning:
            self._return_some()
            return self.is_busy
        if self._placing is not self.order:
            return self._reorder_some() or self.is_busy
        return self._purge_some() or self.is_busy

    def _purge_some(self) -> bool:
        """Removes some of what is purged. False at the end."""
        purge = self._purge
        if purge is None:
            return False
        self.remove(purge.next_slots())
        if not purge.is_over:
            return True
        self._purge = None
        if self._over:
            self.evict()
        for call in purge.then:
            call()
        self.ledger.wake(self)
        return False

    def end(self) -> None:
        """It is deleted: all that is here leaves in the turns that follow, also what is in flight, which nobody can
        settle any more."""
        self.deleted = True
        self._returning.clear()
        self._purge = Purge(self.entries, (), self._purge.then if self._purge is not None else ())
        self.ledger.goes_on(self)

    def is_parked(self, slot: int) -> bool:
        """Whether its group waits for an operator's word on it."""
        order = self.order
        return isinstance(order, Grouped) and order.parked.get(self.entries.group[slot]) == slot

    def _stays(self, slot: int) -> bool:
        """Whether it neither expires nor is dropped (ruling 18)."""
        return slot in self.flying or slot in self._begun or self.is_parked(slot)

    def begun(self, idents: Collection[int]) -> set[int]:
        """A session's client was sent these, and no others in an earlier run. Returns which of them are here."""
        found: set[int] = set()
        latest = max(idents, default=0)
        for slot in self.entries.slots():
            ident = self.entries.ident[slot]
            if ident > latest:
                break
            if ident in idents and not self._is_purged(slot):
                self.attempts.setdefault(slot, 0)
                found.add(ident)
        if self.unsure is not None:
            unsure, self.unsure = self.unsure, None
            for slot, ident in unsure:
                if self.entries.holds(slot, ident):
                    self.expiries.watch(slot)
            if self._over and not self.is_purging:
                self.evict()
            self.ledger.wake(self)
        return found

    # delivery

    def message(self, slot: int) -> Message | None:
        """The message in this slot; None: its body is being read, `wake` follows."""
        message = self.in_memory(slot)
        if message is not None:
            return message
        entries = self.entries
        data = self.ledger.body(entries.row[slot])
        if data is None:
            self._read_ahead(slot)
            return None
        offset = entries.offset[slot]
        return decode_message(memoryview(data)[offset : offset + entries.length[slot]])

    def in_memory(self, slot: int) -> Message | None:
        """The message in this slot, waiting or in flight; None: it is on disk alone."""
        message = self.resident.get(slot)
        if message is None and slot in self.flying and self.flying[slot].message is not SPILLED:
            message = self.flying[slot].message
        return message

    def _read_ahead(self, slot: int) -> None:
        entries = self.entries
        octets, last = 0, entries.row[slot]
        for following in entries.slots(slot):
            octets += entries.length[following]
            if octets > READ_AHEAD_OCTETS:
                return
            row = entries.row[following]
            if row != last and row:
                last = row
                self.ledger.body(row)

    def rank(self, change: int = 0) -> None:
        """Consumers with a priority of their own came or left, or the policy is another."""
        self._prioritized += change
        self.ranks = self.policy.single_active or bool(self._prioritized)

    def _tiers(self) -> Iterator[list[QueueSubscription]]:
        """Those with credit, each tier to be served before the next."""
        ranked = sorted(self.subscriptions, key=_priority, reverse=True)  # equal ones by arrival
        if self.policy.single_active:
            holding = [one for one in (*self._leaving, *ranked) if one.held]
            # Another takes over only when nothing is in flight, so that the order is kept.
            if ranked and all(one is ranked[0] for one in holding) and ranked[0].has_credit():
                yield ranked[:1]
            return
        for _, same in groupby(ranked, _priority):
            if active := [subscription for subscription in same if subscription.has_credit()]:
                yield active

    def dispatch(self, now: float) -> int:
        """Hands out what is ready, one message a consumer in turn, as far as credit and bodies go, some at a time.
        Returns at how many entries it has looked."""
        self._cut_short = False
        looked = 0
        if self.ranks:
            looked = sum([self._hand_out(tier, now) for tier in self._tiers()])
        elif active := [subscription for subscription in self.subscriptions if subscription.has_credit()]:
            looked = self._hand_out(active, now)
        if not self._cut_short and (self._now_or_never or self._crowded):
            looked += self._end_moment()
        return looked

    def _end_moment(self) -> int:
        """What came for whoever was ready, and nobody was, leaves: what expires some of it now and, if it is much, the
        rest soon. Returns how many were looked at."""
        missed, self._now_or_never = self._now_or_never, set()
        for slot in islice(missed, EXPIRED_AT_ONCE):
            if not self._stays(slot) and slot not in self.doomed:
                self._expire(slot)
        if self._crowded:
            self.evict()
        return min(len(missed), EXPIRED_AT_ONCE)

    def _hand_out(self, active: list[QueueSubscription], now: float) -> int:
        """To these consumers, all of which have credit, and whoever was served longest ago comes first."""
        competing = len(active) > 1
        if competing:
            active.sort(key=_served)
        ledger = self.ledger
        ids = ledger.deliveries
        entries, order, flying, memory = self.entries, self.order, self.flying, self._memory
        policy = self.policy
        grouped = self.group_template is not None
        batches: dict[QueueSubscription, list[Delivery]] = {}
        turn = 0
        left = EXPIRED_AT_ONCE
        for _ in range(HANDED_OUT_AT_ONCE):
            if not active:
                break
            if turn >= len(active):
                turn = 0
            subscription = active[turn]
            if competing and subscription.pools and not subscription.has_credit():
                del active[turn]  # another took the last of a pool they share
                continue
            slot = order.peek(subscription, now)
            if not slot:
                if not grouped:
                    break
                del active[turn]  # another consumer may hold a group that has more
                continue
            expires = entries.expires[slot]
            is_late = expires and expires <= now and slot not in self._begun and slot not in self._now_or_never
            if is_late or (self.doomed and slot in self.doomed):
                if not left:
                    self.ledger.wake(self)
                    self._cut_short = True
                    break
                left -= 1
            if self.doomed and slot in self.doomed:
                self._put_off(slot, subscription, now)
                continue
            if is_late:
                if not self._expire(slot):
                    self._put_off(slot, subscription, now)
                continue
            message = self.resident.pop(slot, None)
            length = entries.length[slot]
            if message is None:
                message = self.message(slot)
                if message is None:
                    if self.ledger.is_unreadable(entries.row[slot]):
                        self._put_off(slot, subscription, now)
                        continue
                    self._cut_short = True
                    break  # it keeps its place until its body is there
                memory.octets += length + RESIDENT_OCTETS
            order.take(slot, subscription)
            carried = entries.extra[slot]
            extra = ledger.extra(carried) if carried else NO_EXTRA
            attempts = self.attempts.get(slot) if self.attempts else None
            ident = entries.ident[slot]
            delivery = Delivery(
                next(ids),
                message,
                self.name,
                extra.options,
                slot,
                attempts or 0,
                attempts is not None or ident <= ledger.restored_ident,
                extra.deaths,
                expires or None,
                ident,
            )
            batch = batches.get(subscription)
            if batch is None:
                batches[subscription] = [delivery]
            else:
                batch.append(delivery)
            if memory.octets > memory.limit and ledger.may_spill(self, slot):
                # Who never settles must not fill the memory: should it come back, it is read again.
                delivery = structs.replace(delivery, message=SPILLED)
                memory.octets -= length + RESIDENT_OCTETS
            flying[slot] = delivery
            subscription.held[delivery.id] = delivery
            if policy.ack_timeout is not None:
                self._timeouts.watch(now + policy.ack_timeout, delivery, subscription)
            if subscription.take(length):
                turn += 1
            else:
                del active[turn]
        else:
            ledger.wake(self)
            self._cut_short = True
        looked = EXPIRED_AT_ONCE - left
        for subscription, batch in batches.items():
            looked += len(batch)
            subscription.served = batch[-1].id
            self.counters.delivered += len(batch)
            self._deliver(subscription, batch)
        return looked

    def _deliver(self, subscription: QueueSubscription, batch: list[Delivery]) -> None:
        try:
            subscription.consumer.deliver(batch)
        except Exception as error:  # a transport's fault stays its own: it loses its consumer, not a message
            self.ledger.consumer_failed(self, error)
            subscription.detach(lost=True)

    def deliver_live(self, batch: list[Delivery]) -> None:
        """QoS 0 to whoever is connected."""
        for subscription in list(self.subscriptions):
            if subscription.live:
                self.counters.delivered += len(batch)
                self._deliver(subscription, batch)

    # settlement

    def done(self, deliveries: Sequence[Delivery]) -> None:
        self.counters.settled += len(deliveries)
        self.remove([delivery.slot for delivery in deliveries], done=True)
        self.ledger.wake(self)

    def take_back(self, returns: Iterable[Return]) -> None:
        """What a consumer held goes back to its old place; the newest comes first."""
        self._returning += returns
        self._return_some()
        if self._returning:
            self.ledger.goes_on(self)

    def _return_some(self) -> None:
        returning, flying = self._returning, self.flying
        for _ in range(min(RETURNED_AT_ONCE, len(returning))):
            delivery, error, delayed = returning.popleft()
            if flying.get(delivery.slot) is not delivery:
                continue  # it has left meanwhile
            if error is None:
                self.give_back(delivery)
            else:
                self.fail(delivery, error, delayed)
        if not returning:
            self.ledger.wake(self)

    def give_back(self, delivery: Delivery) -> None:
        """RETURNED: to its old place, no attempt counted."""
        slot = delivery.slot
        self.counters.returned += 1
        self.attempts.setdefault(slot, 0)
        self._land(slot, 0)

    def fail(self, delivery: Delivery, error: str, delayed: bool) -> None:
        """An attempt failed: to its old place, or what `on_exhausted` says (ruling 14)."""
        slot = delivery.slot
        policy = self.policy
        attempts = self.attempts.get(slot, 0) + 1
        self.attempts[slot] = attempts
        if error:
            self.errors[slot] = error[:MAX_ERROR_CHARS]
        self.counters.retried += 1
        exhausted = policy.max_deliveries is not None and attempts >= policy.max_deliveries
        if exhausted and policy.on_exhausted == "skip" and self._bury(slot, Reason.EXHAUSTED, error):
            self.ledger.wake(self)
            return
        self.ledger.attempted(self, slot, attempts, error[:MAX_ERROR_CHARS])
        if exhausted and policy.on_exhausted == "skip":
            self._doom(slot, Reason.EXHAUSTED, error)
            return
        if exhausted and policy.on_exhausted == "park" and isinstance(self.order, Grouped):
            self._land(slot, 0)
            self.order.park(slot)
            return
        self._land(slot, self.ledger.now() + self._backoff(attempts) if delayed and policy.retry_delay else 0)

    def _backoff(self, attempts: int) -> float:
        low, high = self.policy.retry_delay or (0.0, 0.0)
        base = low * 2 ** min(attempts - 1, 40)
        return min(high, base * (1 + 0.2 * self.ledger.jitter())) if base < high else high

    def _land(self, slot: int, due: float) -> None:
        delivery = self.flying.pop(slot)
        if delivery.message is not SPILLED:
            self.resident[slot] = delivery.message
        self._placing.back(slot, due)
        if self.entries.row[slot]:
            self.ledger.spillable(self, slot)
        if self.entries.expires[slot] and self.entries.expires[slot] <= self.ledger.now():
            self.expiries.watch(slot)  # its moment came while it was in flight
        self.ledger.wake(self)

    # dead letters

    def bury_flying(self, slot: int, reason: Reason, error: str) -> None:
        """What is in flight becomes a dead letter, or waits at its place until it can."""
        if not self._bury(slot, reason, error):
            self._doom(slot, reason, error)
        self.ledger.wake(self)

    def _doom(self, slot: int, reason: Reason, error: str) -> None:
        self.doomed[slot] = (reason, error)
        self._try_again()
        self._land(slot, self._again)

    def _try_again(self) -> None:
        self._again = min(self._again, self.ledger.now() + RETRY_DEAD_LETTER_SECONDS)

    def _bury(self, slot: int, reason: Reason, error: str, decided: bool = False) -> bool:
        error = (error or self.errors.get(slot, ""))[:MAX_ERROR_CHARS]
        if not self.ledger.bury(self, slot, reason, self.attempts.get(slot, 0), error, decided):
            return False
        self.remove((slot,))
        return True

    def bury_waiting(self, slot: int, reason: Reason) -> bool:
        """An operator gives it up; False if its dead-letter queue refuses."""
        return self._bury(slot, reason, "", decided=True)

    def release(self, slot: int) -> None:
        """Lets the group that is parked for this entry go on; its attempts begin anew."""
        assert isinstance(self.order, Grouped)
        self.attempts[slot] = 0
        self.errors.pop(slot, None)
        self.ledger.attempted(self, slot, 0, "")
        self.order.release(self.entries.group[slot])
        if self.entries.expires[slot]:
            self.expiries.watch(slot)
        self.ledger.wake(self)

    def _expire(self, slot: int) -> bool:
        if not self._bury(slot, Reason.EXPIRED, ""):
            self.doomed[slot] = (Reason.EXPIRED, "")
            self._try_again()
            return False
        self.counters.expired += 1
        return True

    def _put_off(self, slot: int, holder: object, now: float) -> None:
        """A dead letter that can't be stored yet: it and its group wait a while."""
        self.order.take(slot, holder)
        self.order.back(slot, now + RETRY_DEAD_LETTER_SECONDS)

    # time

    def next_due(self) -> float:
        due = min(self.order.next_due(), self._again, self._timeouts.due(), self.expiries.due())
        if self.policy.expires is not None and not self.subscriptions:
            due = min(due, self.idle_since + self.policy.expires)
        return due

    def is_abandoned(self, now: float) -> bool:
        """Without a consumer for longer than `expires`."""
        expires = self.policy.expires
        return expires is not None and not self.subscriptions and now >= self.idle_since + expires

    def tick(self, now: float) -> int:
        """Timeouts, retries, delays and expiries that are due, some of each at a time; with more, `next_due` stays in
        the past. Returns how many it were."""
        count = 0
        for delivery, subscription in self._timeouts.take(now):
            count += 1
            # Its credit stays used until the consumer settles it or leaves (ruling 15).
            if subscription.held.pop(delivery.id, None) is not None:
                self.fail(delivery, "not settled within ack_timeout", delayed=True)
        count += self.order.tick(now)
        if self._again <= now:
            self._again = NEVER
            count += self._bury_doomed()
        for slot in self.expiries.take(now, EXPIRED_AT_ONCE):
            count += 1
            if self.unsure is not None:
                self.unsure.append((slot, self.entries.ident[slot]))
            elif not self._stays(slot) and not self._is_purged(slot):
                self._expire(slot)
        self.ledger.wake(self)
        return count

    def _bury_doomed(self) -> int:
        buried = False
        slots = list(islice(self.doomed, EXPIRED_AT_ONCE))
        for slot in slots:
            reason, error = self.doomed[slot] = self.doomed.pop(slot)  # behind those that were not tried now
            if slot in self.flying or self._is_purged(slot):
                continue
            if not self._bury(slot, reason, error):
                self._try_again()
                continue
            buried = True
            if reason is Reason.EXPIRED:
                self.counters.expired += 1
        if self.doomed and buried:
            self._again = self.ledger.now()  # there is room, and there are more
        elif self.doomed:
            self._try_again()
        if self._over:
            self.evict()
        return len(slots)

    def dues(self, slots: Iterable[int]) -> list[tuple[int, float]]:
        """(ident, time) of those that are delayed. What was delivered before, and waits for a retry or for room in
        its dead-letter queue, is not."""
        due, ident, delivered = self._placing.due, self.entries.ident, self.attempts.keys() | self.doomed.keys()
        return [(ident[slot], due(slot)) for slot in slots if slot not in delivered and due(slot)]

    # consumers

    @property
    def in_exclusive_use(self) -> bool:
        """A consumer has it for itself, so that is the only one."""
        return bool(self.subscriptions) and self.subscriptions[0].exclusive

    def attach(
        self, consumer: Consumer, pools: Sequence[Credit], live: bool, priority: int = 0, exclusive: bool = False
    ) -> QueueSubscription:
        """Raises ExclusiveUseError if another consumer has the queue for itself, or this one could not."""
        if self.in_exclusive_use or (exclusive and self.subscriptions):
            raise ExclusiveUseError(f"queue {self.name!r} is in exclusive use")
        subscription = QueueSubscription(self, consumer, tuple(pools), live, priority, exclusive)
        self.subscriptions.append(subscription)
        self.rank(1 if priority else 0)
        return subscription
