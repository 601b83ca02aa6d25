"""Owns the core: what becomes of each message, from accept to its last settlement.

Its rule: it is a pure state machine. Time is passed in, it opens nothing, and nothing is deliverable before the commit
that holds it; what was decided and not committed can be undone and decided again (rulings 1 to 3).
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from heapq import heapify, heappop, heappush
from operator import attrgetter
from typing import cast

from gateway.broker.commit_batch import Accept, Gather
from gateway.broker.dead_letters import DeadLetters
from gateway.broker.deferred_replies import Awaited
from gateway.broker.definitions import CONFIG, binding_state, exchange_binding_state, queue_state
from gateway.broker.publish import Intake
from gateway.broker.retained import Retained
from gateway.errors import BindingsFullError, GatewayError, UnknownQueueError
from gateway.model.binding import Binding, ExchangeBinding, Options
from gateway.model.credit import Credit
from gateway.model.delivery import Delivery, Reason
from gateway.model.message import Message
from gateway.model.names import NOBODY, Actor, check_owner, check_use
from gateway.model.outcome import Outcome
from gateway.model.policy import MAX_RETAINED_OCTETS, QueuePolicy
from gateway.queueing.dedup import MAX_KEYS, SWEEP_KEYS, Dedup
from gateway.queueing.host import RESIDENT_OCTETS, Counters, Memory
from gateway.queueing.interning import Extras
from gateway.queueing.ordering import NEVER, Grouped
from gateway.queueing.pending import Pending
from gateway.queueing.queue import Queue
from gateway.queueing.subscription import QueueSubscription
from gateway.routing.router import MAX_BINDINGS_OCTETS, Router
from gateway.storage.body_rows import Rows, runs
from gateway.storage.journal import Commit
from gateway.storage.records import Extra
from gateway.transport import Consumer

_queue_of: Callable[[Pending], Queue] = attrgetter("queue")

MAX_ROUNDS = 16
"""A consumer that gives back what it gets, and wants it again, is served once in each of so many rounds; then the
rest of the daemon has its turn."""
SERVED_IN_A_TURN = 4000
"""So many queues, and entries of theirs, are served in one turn of the loop,"""
DUE_IN_A_TURN = 1000
"""and so much that was waiting for its time is looked at."""


class Core:
    """Router, queues, dedup, dead letters and what waits for the next commit. A Ledger to its queues.

    clock: the daemon's one time. effects: `wanted` rows of bodies, and what `begin_commit` returns.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        secret: bytes,
        max_memory: int = 256 << 20,
        rng: random.Random | None = None,
        max_retained: int = MAX_RETAINED_OCTETS,
        max_dedup_keys: int = MAX_KEYS,
        max_bindings: int = MAX_BINDINGS_OCTETS,
    ) -> None:
        self.now = clock
        self.max_dedup_keys = max_dedup_keys
        self.max_bindings = max_bindings
        self.router: Router[Queue] = Router()
        self.queues: dict[str, Queue] = {}
        self.by_number: dict[int, Queue] = {}
        self.dedup = Dedup(secret)
        self.retained = Retained(max_retained)
        self.intake = Intake(self)
        self.counts: list[tuple[Counters, str]] = []
        """What the call that is being decided will count, once it is answered."""
        self.dead_letters = DeadLetters(self)
        self.extras = Extras()
        self.awaited = Awaited()
        self.gather = Gather()
        self.committing: Gather | None = None
        self.refusing = ""
        """Why everything durable is refused at present, or ""."""
        self.overloaded = False
        """More is accepted than the disk can take: everything is refused."""
        self.poke: Callable[[], None] = _nobody
        """Called when there is something to dispatch or to commit."""
        self.report: Callable[[str, Exception], None] = _unreported
        """Told of what should not have been."""
        self.refused: Counter[str] = Counter()
        """Messages refused at a limit of the whole daemon, by what there was too much of."""
        self.ended_sessions: dict[str, Counters] = {}
        """What sessions counted that are no more, by owner: sums of them must not fall when one ends."""
        self.next_ident = 1
        self.committed_ident = 0
        self.keys_until = 0.0
        """When the last key in the journal is over; 0 if it has none."""
        self.restored_ident = 0
        self.next_queue = 1
        self.rows = Rows()
        self.memory = Memory(max_memory)
        self._rng = rng or random.Random()
        self.deliveries: Iterator[int] = itertools.count(1)
        self._dirty: dict[Queue, None] = {}
        self._busy: dict[Queue, None] = {}
        """One of them has its turn in each `dispatch`."""
        self._fresh: list[tuple[Queue, int, int]] = []
        self._unsafe: dict[tuple[Queue, int], int] = {}
        """Idents of what stays in memory until its body is safe on the disk."""
        self._timers: list[tuple[float, int, Queue]] = []
        self._scheduled: dict[Queue, float] = {}

    # accept

    def accept(self, accept: Accept) -> None:
        """Decides at once; what becomes true with the next commit stands in `accept.outcomes`."""
        accept.outcomes = self.intake.take(accept.messages, accept.offer)
        accept.counts, self.counts = self.counts, []
        accept.invalid = self.intake.take_invalid() if self.intake.invalid else ()
        gather = self.gather
        gather.accepts.append(accept)
        if self.intake.waits:
            self.awaited.add(accept, self.intake.take_waits(accept))
            return
        if accept.changes and not accept.is_refused():
            gather.states += accept.changes
        if accept.offer.done and accept.settles():
            for subscription, ids in accept.offer.done:
                gather.done += cast(QueueSubscription, subscription).journaled(ids)

    def group_number(self, queue: Queue, group: str, ident: int) -> int:
        number, is_new = queue.groups.number(group, ident)
        if is_new and queue.policy.durable:
            self.gather.groups.append((queue.number, number, group))
        return number

    def extra_number(self, extra: Extra, durable: bool) -> int:
        """For an entry of a durable queue, or of another."""
        number, is_new = self.extras.use(extra, durable)
        if is_new:
            self.gather.extras.append((number, extra))
        return number

    # commit

    def begin_commit(self) -> Commit | None:
        """What must be made durable now; None if nothing waits. One commit at a time; end it with `committed` or
        `failed`."""
        if self.committing is not None or self.gather.is_empty():
            return None
        gather = self.committing = self.gather
        self.gather = Gather()
        for row, count in runs([entry.row for entry in gather.pending]):
            self.rows.refer(row, count)
        return gather.commit(self.now())

    def committed(self) -> Sequence[Accept]:
        """The commit is durable: its entries are deliverable, its calls may be answered, in order; but those that wait
        for a link are told by `take_delivered`."""
        gather, self.committing = self.committing, None
        assert gather is not None
        self._make_true(gather)
        idents = [entries[-1].ident for entries in (gather.pending, gather.moved) if entries]
        self.committed_ident = max(self.committed_ident, *idents, 0)
        return self._answerable(gather.accepts)

    def take_volatile(self) -> Sequence[Accept]:
        """While the store takes nothing: nothing durable is accepted, and everything else is true at once. The calls
        may be answered now, in order, and no change of theirs is durable."""
        gather = self.gather.take_volatile()
        self._make_true(gather)
        return self._answerable(gather.accepts)

    def _answerable(self, accepts: Sequence[Accept]) -> Sequence[Accept]:
        answerable = self.awaited.committed(accepts)
        if self.awaited.over:
            self.poke()
        return answerable

    def take_delivered(self) -> list[Accept]:
        """Calls whose messages were all delivered by their links, or not in time; they may be answered now. What such
        a call changes and settles is true now, and it is answered when a commit has that."""
        over, self.awaited.over = self.awaited.over, []
        answered: list[Accept] = []
        for accept in over:
            accept.settle()
            if (accept.changes or accept.offer.done) and not accept.is_refused():
                self.accept(Accept((), accept.changes, _behind(accept), insists=bool(accept.changes)))
            else:
                answered.append(accept)
        return answered

    def drain(self) -> None:
        """Links take nothing more: what waits for them is refused, but what is in flight."""
        self.awaited.draining = True
        self.poke()

    def _make_true(self, gather: Gather) -> None:
        now = self.now()
        limited: dict[Queue, None] = {}
        crowded = self.memory.octets + 2 * gather.octets + RESIDENT_OCTETS * len(gather.pending) > self.memory.limit
        for queue, same in itertools.groupby(gather.entries(), _queue_of):
            stored = list(same)
            queue.pending_count -= len(stored)
            queue.pending_octets -= sum([entry.length for entry in stored])
            if queue.deleted:
                self._give_up(queue, stored)
                continue
            slots = queue.store(stored)
            if self.awaited and not queue.policy.durable:
                self.awaited.stored(slots, stored)
            queue.counters.accepted += len(stored)
            self._dirty[queue] = None
            if crowded:
                fresh = zip(slots, stored, strict=True)
                self._fresh += [(queue, slot, entry.ident) for slot, entry in fresh if entry.row]
            if not queue.policy.refuses:
                limited[queue] = None
        for queue in limited:
            queue.evict_stored()
        for move in gather.relocations:
            entries = move.queue.entries
            if entries.holds(move.slot, move.ident) and entries.row[move.slot] == move.old_row:
                entries.row[move.slot], entries.offset[move.slot] = move.row, move.offset
                self.rows.refer(move.row)
                self._release_row(move.old_row)
                ident = self._unsafe.pop((move.queue, move.slot), 0)
                if ident == move.ident:
                    self._fresh.append((move.queue, move.slot, ident))
        for row, _ in gather.copied_bodies.full:
            if row not in self.rows:
                self.gather.dropped.append(row)
        for message, at in gather.retained:
            self.retained.apply(message, at)
        if gather.live:
            self._deliver_live(gather.live)
        for keys in gather.keys.values():
            self.keys_until = max(self.keys_until, keys[-1][1])
        self.dedup.sweep(now, max(SWEEP_KEYS, 2 * len(gather.pending)))
        for accept in gather.accepts:
            accept.count()
            if not accept.waits:
                accept.settle()

    def _deliver_live(self, live: Sequence[tuple[Queue, Message, Options]]) -> None:
        batches: dict[Queue, list[Delivery]] = {}
        for queue, message, options in live:
            batches.setdefault(queue, []).append(Delivery(0, message, queue.name, options))
        for queue, batch in batches.items():
            queue.deliver_live(batch)

    def failed(self) -> list[Accept]:
        """The commit, if there is one, was rolled back: its calls are REFUSED; what came after it is decided again, in
        order."""
        gather, self.committing = self.committing or Gather(), None
        later, self.gather = self.gather, Gather()
        for row in {entry.row for entry in gather.pending if entry.row}:
            self.rows.undo(row)
        for undone in (gather, later):
            self._undo(undone)
            self.rows.sparse |= self.rows.living(move.old_row for move in undone.relocations) - self.rows.left_out
        for accept in gather.accepts:
            if accept.insists:
                gather.insist(accept.changes)
        self.gather.carry(later)
        self.gather.carry(gather)
        for accept in gather.accepts:
            accept.outcomes = [Outcome.REFUSED] * len(accept.messages)
            accept.settle()
        for accept in (*gather.accepts, *later.accepts):
            self.awaited.undo(accept)
        for accept in later.accepts:
            self.accept(accept)
        return gather.accepts

    def _undo(self, gather: Gather) -> None:
        for entry in gather.pending:
            entry.queue.pending_count -= 1
            entry.queue.pending_octets -= entry.length
            self.extras.drop(entry.extra)
            if entry.group:
                entry.queue.groups.empty((entry.group,))
        for keys in gather.keys.values():
            for digest, _ in keys:
                self.dedup.forget(digest)
        for digest in gather.volatile_keys:
            self.dedup.forget(digest)
        for _, at in gather.retained:
            self.retained.undo(at)
        undone = {entry.ident for entry in gather.pending}
        gather.dues = [(ident, due) for ident, due in gather.dues if ident not in undone]

    # what queues ask of their ledger

    def removed(self, queue: Queue, slots: Sequence[int], done: bool) -> None:
        entries = queue.entries
        if self.awaited and not queue.policy.durable:
            self._left([entries.ident[slot] for slot in slots], done)
        rows = [entries.row[slot] for slot in slots]
        if queue.policy.durable and not queue.deleted:
            ident = entries.ident
            self.gather.settled += [ident[slot] for slot, row in zip(slots, rows, strict=True) if row]
        for row, count in runs(rows):
            self._release_row(row, count)
        extras = entries.extra
        for slot in slots:
            if extras[slot]:
                self.extras.drop(extras[slot])

    def _left(self, idents: Iterable[int], done: bool) -> None:
        if self.awaited.left(idents, done):
            self.poke()

    def _release_row(self, row: int, count: int = 1) -> None:
        if self.rows.release(row, count):
            self.gather.dropped.append(row)

    def _give_up(self, queue: Queue, entries: Sequence[Pending]) -> None:
        """Committed for a queue that is deleted."""
        self._left([entry.ident for entry in entries], False)
        for entry in entries:
            self.extras.drop(entry.extra)
            if entry.row:
                self._release_row(entry.row)
                if queue.policy.durable:
                    self.gather.settled.append(entry.ident)

    def goes_on(self, queue: Queue) -> None:
        if not self._busy:
            self.poke()
        self._busy[queue] = None

    def attempted(self, queue: Queue, slot: int, attempts: int, error: str) -> None:
        if queue.policy.durable:
            self.gather.attempts.append((queue.entries.ident[slot], attempts, error))

    def bury(self, queue: Queue, slot: int, reason: Reason, attempts: int, error: str, decided: bool = False) -> bool:
        if self.awaited and not queue.policy.durable and self.awaited.answers(queue.entries.ident[slot]):
            queue.counters.refused += 1  # its sender still has it
            return True
        return self.dead_letters.bury(queue, slot, reason, attempts, error, decided)

    def extra(self, number: int) -> Extra:
        return self.extras[number]

    def wake(self, queue: Queue) -> None:
        if not self._dirty:
            self.poke()
        self._dirty[queue] = None

    def jitter(self) -> float:
        return self._rng.random()

    def is_unreadable(self, row: int) -> bool:
        return row in self.rows.unreadable

    def may_spill(self, queue: Queue, slot: int) -> bool:
        row = queue.entries.row[slot]
        if not row or self.rows.is_safe(row):
            return bool(row)
        self._unsafe[queue, slot] = queue.entries.ident[slot]
        return False

    def spillable(self, queue: Queue, slot: int) -> None:
        self._fresh.append((queue, slot, queue.entries.ident[slot]))

    def consumer_failed(self, queue: Queue, error: Exception) -> None:
        self.report(f"a consumer of queue {queue.name} failed and lost its subscription", error)

    def body(self, row: int) -> bytes | None:
        return self.rows.data(row)

    def take_refused(self) -> list[Accept]:
        """While nothing can be stored: calls that were refused whole, up to the first that still hopes for a commit,
        may be answered without one."""
        accepts = self.gather.accepts
        count = 0
        if not (self.gather.pending or self.gather.states):
            for accept in accepts:
                if not accept.messages:
                    break
                count += 1
        taken, self.gather.accepts = accepts[:count], accepts[count:]
        for accept in taken:
            accept.count()
        return taken

    # bodies from the disk

    def trust_file(self, left_out: Iterable[int]) -> set[int]:
        """A new file stands in the place of one that failed, and lacks these rows. Returns those of them that entries
        refer to."""
        missing = self.rows.trust(left_out)
        for (queue, slot), ident in list(self._unsafe.items()):
            if not queue.entries.holds(slot, ident):
                del self._unsafe[queue, slot]
            elif self.rows.is_safe(queue.entries.row[slot]):
                del self._unsafe[queue, slot]
                self._fresh.append((queue, slot, ident))
        return missing

    def loaded(self, rows: Mapping[int, bytes]) -> None:
        """What was read; queues that waited may go on."""
        self.rows.keep(rows)
        self.wake_all()

    def wake_all(self) -> None:
        """Every queue with work and consumers is looked at again."""
        for queue in self.queues.values():
            if queue.subscriptions and queue.depth:
                self.wake(queue)

    # delivery and time

    def dispatch(self) -> None:
        """Delivers what credit allows (if `is_dirty` there is more, and `poke` was called), then lets go of the bodies
        that memory has no room for."""
        now = self.now()
        if self.awaited:
            self.awaited.sweep()
        if self._busy:
            self._go_on()
        left = SERVED_IN_A_TURN
        for _ in range(MAX_ROUNDS):
            if not self._dirty or left <= 0:
                break
            dirty, self._dirty = self._dirty, {}
            queues = iter(dirty)
            for queue in queues:
                left -= 1
                if not (queue.deleted or queue.is_busy):
                    left -= self._serve(queue, now)
                if left <= 0:
                    self._dirty = dict.fromkeys(queues) | self._dirty
                    break
        if self._dirty:
            self.poke()
        if self._fresh:
            fresh, self._fresh = self._fresh, []
            if self.memory.octets > self.memory.limit:
                for queue, slot, ident in fresh:
                    queue.spill(slot, ident)
        self.rows.trim()

    def _serve(self, queue: Queue, now: float) -> int:
        """Returns at how many of its entries it has looked."""
        count = queue.dispatch(now)
        order = queue.order
        if isinstance(order, Grouped) and (order.emptied or queue.groups.idle):
            queue.groups.empty(order.emptied)
            order.emptied.clear()
            queue.groups.free_idle(order.heads, self.committed_ident)
        elif queue.groups.count and queue.group_template is None and queue.is_empty:
            queue.groups.restored(())  # those of the time when it had groups
        if queue.removed and queue.is_empty:
            self.delete(queue.name)
        else:
            self._schedule(queue)
        return count

    def _go_on(self) -> None:
        queue = next(iter(self._busy))
        del self._busy[queue]
        if queue.go_on():
            self._busy[queue] = None  # behind the others
        if self._busy:
            self.poke()

    @property
    def is_dirty(self) -> bool:
        return bool(self._dirty or self._busy)

    def _schedule(self, queue: Queue) -> None:
        due = queue.next_due()
        if due < self._scheduled.get(queue, NEVER):
            self._scheduled[queue] = due
            heappush(self._timers, (due, queue.number, queue))
            if len(self._timers) > 2 * len(self._scheduled) + 64:
                # Earlier times have taken the place of most of these.
                self._timers = [(due, queue.number, queue) for queue, due in self._scheduled.items()]
                heapify(self._timers)

    def next_due(self) -> float:
        """When `tick` has something to do, or infinity."""
        return min(self._timers[0][0] if self._timers else NEVER, self.dedup.due, self.awaited.due())

    def tick(self) -> None:
        """What time has brought, or some of it: then `next_due` stays in the past. Follow it with `dispatch`."""
        now = self.now()
        if self.dedup.due <= now:
            self.dedup.expire(now)
            if self.keys_until:
                self.gather.expired = now
                if self.keys_until <= now:
                    self.keys_until = 0.0
        self.awaited.tick(now)
        left = DUE_IN_A_TURN
        while left > 0 and self._timers and self._timers[0][0] <= now:
            left -= 1
            due, _, queue = heappop(self._timers)
            if self._scheduled.get(queue) == due:
                del self._scheduled[queue]
            if queue.deleted:
                continue
            if queue.is_abandoned(now):
                self.delete(queue.name)
                continue
            left -= queue.tick(now)

    # queues and bindings

    def declare(self, name: str, policy: QueuePolicy, owner: str, holder: Actor | None = None) -> Queue:
        """The queue of that name, made if there is none; then its policy stays. Raises ReservedNameError, and
        GatewayError for a policy whose templates are none."""
        queue = self.queues.get(name)
        if queue is None:
            check_owner(name, owner)
            try:
                queue = Queue(name, self.next_queue, policy, owner, self)
            except ValueError as error:
                raise GatewayError(f"queue {name}: {error}") from error
            queue.holder = holder
            self.next_queue += 1
            self.add(queue)
            self.journal_queue(queue)
        return queue

    def add(self, queue: Queue) -> None:
        self.queues[queue.name] = queue
        self.by_number[queue.number] = queue
        self.router.add_queue(queue.name, queue)
        self._dirty[queue] = None

    def journal_queue(self, queue: Queue) -> None:
        """Puts its present definition in the next commit."""
        if queue.policy.durable:
            self.gather.forced_states.append(queue_state(queue))

    def get(self, name: str) -> Queue:
        """Raises UnknownQueueError."""
        queue = self.queues.get(name)
        if queue is None:
            raise UnknownQueueError(f"there is no queue {name!r}")
        return queue

    def delete(self, name: str) -> int:
        queue = self.get(name)
        count = queue.entries.count
        for binding in self.router.bindings(name):
            self._journal_binding(binding, False)
        self.router.remove_queue(name)
        subscriptions = list(queue.subscriptions)
        queue.end()
        for subscription in subscriptions:
            subscription.detach()
        if queue.live:
            self.ended_sessions.setdefault(queue.owner, Counters()).include(queue.counters)
        del self.queues[name]
        del self.by_number[queue.number]
        self._scheduled.pop(queue, None)
        self._dirty.pop(queue, None)
        if queue.policy.durable:
            self.gather.forced_states.append(queue_state(queue))
        for subscription in subscriptions:
            subscription.consumer.closed(f"queue {name} was deleted")
        return count

    def bind(self, binding: Binding) -> None:
        self.get(binding.queue)
        check_owner(binding.queue, binding.owner)
        self._check_bindings()
        self.router.bind(binding)
        self._journal_binding(binding, True)

    def unbind(self, binding: Binding) -> bool:
        if not self.router.unbind(binding):
            return False
        self._journal_binding(binding, False)
        return True

    def _journal_binding(self, binding: Binding, bound: bool) -> None:
        if binding.owner != CONFIG and self.queues[binding.queue].policy.durable:
            self.gather.forced_states.append(binding_state(binding, bound))

    def bind_exchange(self, binding: ExchangeBinding) -> None:
        self._check_bindings()
        self.router.bind_exchange(binding)
        if binding.durable:
            self.gather.forced_states.append(exchange_binding_state(binding, True))

    def unbind_exchange(self, binding: ExchangeBinding) -> bool:
        old = self.router.unbind_exchange(binding)
        if old is not None and old.durable:
            self.gather.forced_states.append(exchange_binding_state(old, False))
        return old is not None

    def _check_bindings(self) -> None:
        if self.router.octets > self.max_bindings:
            self.refused["bindings"] += 1
            raise BindingsFullError(f"all bindings take {self.router.octets} bytes, above {self.max_bindings}")

    def attach(
        self,
        name: str,
        consumer: Consumer,
        pools: Sequence[Credit],
        live: bool,
        priority: int = 0,
        actor: Actor = NOBODY,
        exclusive: bool = False,
    ) -> QueueSubscription:
        queue = self.get(name)
        check_use(queue, actor)
        if live and not queue.live:
            queue.live = True
            self.journal_queue(queue)
        return queue.attach(consumer, pools, live, priority, exclusive)


def _behind(first: Accept) -> Callable[[Sequence[Outcome], bool], None]:
    """Answers a call when another, which makes what it changes, is answered."""
    return lambda outcomes, ok: first.resolve(first.outcomes, ok)


def _nobody() -> None:
    pass


def _unreported(what: str, error: Exception) -> None:
    raise error
