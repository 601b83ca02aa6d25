"""Random steps against a core: whatever happens, in whatever order, nothing is lost, doubled or overtaken.

Three witnesses watch it: the outcomes that were answered, what the workers got and settled, and what a restart finds.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from gateway import replay
from gateway.gather import Accept, Gather, Pending
from gateway.message import Message, Properties
from gateway.order import Grouped
from gateway.policy import DedupPolicy, Octets, QueuePolicy, Seconds, SecondsRange
from gateway.queue import decode_message
from gateway.storage.journal import Commit
from gateway.transport import Credit, Delivery, Outcome, Verdict
from tests.harness.kernel import GROUP, KEY, Answer, Kernel, Worker, to

WINDOW = 10.0
QUEUES = ("fifo", "plain", "live")

policies = st.fixed_dictionaries(
    {
        "group_in_flight": st.integers(1, 3),
        "ack_timeout": st.sampled_from([None, Seconds(7)]),
        "max_deliveries": st.sampled_from([None, 1, 2]),
        "retry_delay": st.sampled_from([None, SecondsRange((1.0, 5.0))]),
        "on_exhausted": st.sampled_from(["skip", "park", "block"]),
        "ttl": st.sampled_from([None, None, Seconds(20)]),
        "max_messages": st.sampled_from([None, None, 5]),
        "overflow": st.sampled_from(["refuse", "drop-oldest", "dead-letter"]),
        "scope": st.sampled_from(["queue", "group"]),
    }
)


def fifo_policy(drawn: dict[str, Any]) -> QueuePolicy:
    drawn = dict(drawn)
    dedup = DedupPolicy(KEY, Seconds(WINDOW), drawn.pop("scope"))
    return QueuePolicy(group=GROUP, dedup=dedup, dead_letter="bin", **drawn)


class Place:
    """Where a message that was answered STORED is believed to be, in one of its queues."""

    def __init__(self, queue: str, body: str, group: str | None) -> None:
        self.queue = queue
        self.body = body
        self.group = group
        self.done = ""
        """"" | memory | commit | disk: how far its DONE has come."""


class CheckedWorker(Worker):
    """Sees to it, at each delivery, that nothing is overtaken and no limit is passed."""

    def __init__(self, machine: Machine, queue: str) -> None:
        super().__init__()
        self.machine = machine
        self.name = queue
        self.credit = 0
        self.cancelled = False

    def deliver(self, batch: Sequence[Delivery]) -> None:
        self.credit -= len(batch)
        assert self.credit >= 0, "more was delivered than granted"
        assert not self.cancelled, "a delivery after cancel"
        super().deliver(batch)
        self.machine.delivered += len(batch)
        self.machine.check_order(self, batch)


class Machine(RuleBasedStateMachine):
    kernel: Kernel

    @initialize(
        drawn=policies,
        max_memory=st.sampled_from([0, 2000, 1 << 30]),
        bin_limit=st.sampled_from([None, None, 3]),
        durable=st.booleans(),
    )
    def start(self, drawn: dict[str, Any], max_memory: int, bin_limit: int | None, durable: bool) -> None:
        queues = {
            "fifo": fifo_policy(drawn),
            "plain": QueuePolicy(max_deliveries=2, retry_delay=SecondsRange((1.0, 4.0)), max_bytes=Octets(1 << 20)),
            "live": QueuePolicy(durable=durable, dead_letter="none"),
            "bin": QueuePolicy(max_deliveries=None, dead_letter="none", max_messages=bin_limit),
        }
        self.kernel = Kernel(queues, [("both", "fifo"), ("both", "plain")], max_memory=max_memory)
        self.kernel.run()
        self.workers: list[CheckedWorker] = []
        self.count = 0
        self.waiting: list[tuple[Answer, Accept, list[Message], float]] = []
        self.places: dict[tuple[str, str], Place] = {}
        self.keys: dict[tuple[str, str], float] = {}
        self.dropped: set[tuple[str, str]] = set()
        self.drops = 0
        """As the counters of this run say."""
        self.delivered = 0
        self.on_disk = self.image()
        self.in_commit: Any = None

    # what is said

    @rule(
        items=st.lists(
            st.tuples(
                st.sampled_from(["fifo", "fifo", "fifo", "plain", "live", "both"]),
                st.sampled_from("aab"),
                st.sampled_from([None, None, 0, 1, 2]),
                st.sampled_from([None, None, None, 3.0, 15.0]),
                st.sampled_from([0.0, 0.0, 0.0, 5.0]),
            ),
            min_size=1,
            max_size=8,
        )
    )
    def accept(self, items: list[tuple[str, str, int | None, float | None, float]]) -> None:
        messages: list[Message] = []
        for where, group, key, ttl, delay in items:
            self.count += 1
            body = f"m{self.count}"
            name = f"own{self.count}" if key is None or where == "both" else f"k{key}"
            properties = Properties(headers=(("group", group), ("key", name)))
            if where == "both":
                messages.append(Message("both", body.encode(), properties=properties, ttl=ttl, delay=delay))
            else:
                messages.append(to(where, body, properties=properties, ttl=ttl, delay=delay))
        answer = Answer(self.kernel.answers)
        accept = Accept(messages, (), answer.resolve)
        self.kernel.core.accept(accept)
        self.waiting.append((answer, accept, messages, self.kernel.clock.now))

    def hear(self) -> None:
        """Takes in what was answered, and holds it against what it knows."""
        while self.waiting and self.waiting[0][0].outcomes is not None:
            answer, _, messages, at = self.waiting.pop(0)
            for message, outcome in zip(messages, answer.outcomes or (), strict=True):
                self.take_in(message, outcome, at)
        assert all(answer.outcomes is None for answer, *_ in self.waiting), "answered out of order"

    def take_in(self, message: Message, outcome: Outcome, at: float) -> None:
        body = message.body.decode()
        queues = ("fifo", "plain") if message.topic == "both" else (message.topic,)
        scope = self.kernel.policies["fifo"].dedup
        group = message.header("group")
        key = (message.header("key"), group if scope is not None and scope.scope == "group" else "")
        if message.topic == "fifo":
            seen = self.keys.get(key, 0.0) > at
            if outcome is Outcome.STORED:
                assert not seen, f"{body} was stored in the window of its key"
            elif outcome is Outcome.DUPLICATE:
                assert seen, f"{body} was called a duplicate of nothing"
        if outcome is not Outcome.STORED:
            return
        if "fifo" in queues:
            self.keys[key] = at + WINDOW
        for queue in queues:
            self.places[queue, body] = Place(queue, body, group if queue == "fifo" else None)

    # commits

    @rule()
    @precondition(lambda self: self.kernel.core.committing is None)
    def begin(self) -> None:
        self.commit = self.kernel.begin()
        if self.commit is None:
            return
        self.in_commit = self.image()
        for place in self.places.values():
            if place.done == "memory":
                place.done = "commit"

    @rule(dispatch=st.booleans())
    @precondition(lambda self: self.kernel.core.committing is not None)
    def end(self, dispatch: bool) -> None:
        assert self.commit is not None
        self.kernel.end(self.commit)
        self.now_on_disk()
        self.hear()
        if dispatch:
            self.kernel.dispatch()

    def now_on_disk(self) -> None:
        self.on_disk = self.in_commit
        for place in self.places.values():
            if place.done == "commit":
                place.done = "disk"

    @rule()
    @precondition(lambda self: self.kernel.core.committing is not None)
    def fail(self) -> None:
        self.kernel.fail()
        for place in self.places.values():
            if place.done == "commit":
                place.done = "memory"
        # What came after it is decided again, now.
        now = self.kernel.clock.now
        self.waiting = [
            (answer, accept, messages, at if answer.outcomes is not None else now)
            for answer, accept, messages, at in self.waiting
        ]
        self.hear()

    @rule()
    def run(self) -> None:
        if self.kernel.core.committing is not None:
            self.end(False)
        self.kernel.dispatch()
        while True:
            self.begin()
            if self.commit is None:
                break
            self.end(True)

    @rule()
    def dispatch(self) -> None:
        self.kernel.dispatch()
        core = self.kernel.core
        for queue in core.queues.values():
            for subscription in queue.subscriptions:
                if subscription.has_credit():
                    slot = queue.order.peek(subscription, core.now())
                    assert not slot, f"{queue.name} was not woken for what it could deliver"

    @rule(fate=st.sampled_from(["end", "end", "end", "fail", "fail", "fail late", "crash", "crash written"]))
    @precondition(lambda self: self.kernel.core.committing is None)
    def commit_and(self, fate: str) -> None:
        self.begin()
        if self.commit is None:
            return
        if fate == "end":
            self.end(True)
        elif fate == "fail":
            self.fail()
        elif fate == "fail late":
            for worker in self.workers:
                worker.credit += 2
                worker.grant(2)
            self.kernel.dispatch()
            self.fail()
        else:
            self.crash(fate == "crash written")

    @rule(slices=st.integers(1, 12))
    @precondition(lambda self: self.kernel.core.committing is None)
    def copy_all_forward(self, slices: int) -> None:
        for _ in range(slices):
            self.copy_forward(False)

    @rule(fails=st.booleans())
    @precondition(lambda self: self.kernel.core.committing is None)
    def copy_forward(self, fails: bool) -> None:
        """A slice of the log is copied, after what has gathered; perhaps the copy alone can't be written."""
        kernel = self.kernel
        if kernel.refresh is None:
            self.run()
            kernel.refresh = replay.Refresh(kernel.core, kernel.last_id + 1)
        self.begin()
        record, last = kernel.refresh.next_slice()
        if self.commit is not None:
            self.end(False)
        if fails:
            kernel.refresh = None
            return
        trim = kernel.refresh.first_kept if last else None
        kernel.last_id = max(kernel.last_id, kernel.journal.commit(Commit(record=record, trim=trim)))
        if last:
            kernel.refresh = None

    @rule()
    @precondition(lambda self: self.kernel.core.committing is None)
    def compact(self) -> None:
        self.kernel.core.rows.sparse.update(self.kernel.core.rows.uses)
        self.kernel.core.rows.sparse -= {row for row, _ in self.kernel.core.gather.bodies.full}
        self.kernel.core.rows.sparse &= {row for row, _ in self.kernel.journal.rows()}
        self.kernel.compact()

    @rule(written=st.booleans())
    def crash(self, written: bool) -> None:
        """The power goes; perhaps what was being committed is on the disk and nobody heard of it."""
        kernel = self.kernel
        self.note_dropped()
        committing = kernel.core.committing
        if committing is not None and written:
            assert self.commit is not None
            kernel.journal.commit(self.commit)
            kernel._answer(committing.accepts, True)
            self.now_on_disk()
            self.hear()
        self.kernel = kernel.crash()
        self.drops = 0
        self.workers = []
        self.waiting = []
        self.commit = None
        for place in self.places.values():
            if place.done != "disk":
                place.done = ""
        transient = {key for key, place in self.places.items() if not self.kernel.policies[place.queue].durable}
        for key in transient:
            del self.places[key]
        self.dropped &= self.places.keys()
        # A drop that was not yet durable is undone.
        self.dropped -= self.present().keys()
        assert self.image() == self.on_disk
        self.hire("fifo", 4)

    # workers

    @rule(queue=st.sampled_from([*QUEUES, "fifo", "fifo", "fifo", "bin"]), credit=st.sampled_from([0, 1, 2, 6, 6, 6]))
    @precondition(lambda self: len(self.workers) < 5)
    def attach(self, queue: str, credit: int) -> None:
        self.hire(queue, credit)

    def hire(self, queue: str, credit: int) -> None:
        worker = CheckedWorker(self, queue)
        worker.credit = credit
        worker.subscription = self.kernel.core.attach(queue, worker, [Credit()], False)
        worker.grant(credit)
        self.workers.append(worker)

    def pick(self, which: int) -> CheckedWorker:
        return self.workers[which % len(self.workers)]

    @rule(which=st.integers(0, 99), credit=st.integers(1, 4))
    @precondition(lambda self: self.workers)
    def grant(self, which: int, credit: int) -> None:
        worker = self.pick(which)
        worker.credit += credit
        worker.grant(credit)

    @rule(
        which=st.integers(0, 99), verdicts=st.lists(st.sampled_from([*Verdict, Verdict.DONE]), min_size=1, max_size=4)
    )
    @precondition(lambda self: any(worker.held for worker in self.workers))
    def settle_some(self, which: int, verdicts: list[Verdict]) -> None:
        for verdict in verdicts:
            self.settle(which, verdict, 1)
            self.kernel.dispatch()

    @rule(which=st.integers(0, 99), verdict=st.sampled_from([*Verdict, Verdict.DONE]), count=st.integers(1, 4))
    @precondition(lambda self: any(worker.held for worker in self.workers))
    def settle(self, which: int, verdict: Verdict, count: int) -> None:
        holders = [worker for worker in self.workers if worker.held]
        if not holders:
            return
        worker = holders[which % len(holders)]
        ids = sorted(worker.held)
        ids = [*ids[which % len(ids) :], *ids[: which % len(ids)]][:count]
        held = [worker.held.pop(id) for id in ids]
        found = 0
        for delivery in held:
            is_ours = worker.subscription.settle([delivery.id], verdict, "why")
            found += is_ours
            if is_ours and verdict is Verdict.DONE:
                self.settled(delivery)
        worker.credit += len(held)
        worker.grant(len(held))

    def settled(self, delivery: Delivery) -> None:
        origin = delivery.deaths[-1].queue if delivery.deaths else delivery.queue
        place = self.places.get((origin, delivery.message.body.decode()))
        assert place is not None, f"{delivery.message.body!r} was delivered from {origin} before it was answered"
        assert not place.done, f"{place.body} was done twice"
        place.done = "memory"

    @rule(which=st.integers(0, 99), lost=st.booleans())
    @precondition(lambda self: self.workers)
    def detach(self, which: int, lost: bool) -> None:
        worker = self.pick(which)
        self.workers.remove(worker)
        worker.detach(lost)

    @rule(which=st.integers(0, 99))
    @precondition(lambda self: self.workers)
    def cancel(self, which: int) -> None:
        worker = self.pick(which)
        worker.cancelled = True
        worker.cancel()

    # time, operators

    @rule(seconds=st.sampled_from([0.5, 1.0, 3.0, 8.0, 25.0]))
    def time_passes(self, seconds: float) -> None:
        self.kernel.advance(seconds)

    @rule(source=st.sampled_from(["bin", "dead-letters"]), to=st.sampled_from([None, None, "plain"]))
    def redrive(self, source: str, to: str | None) -> None:
        self.kernel.redrive(source, to=to)

    @rule(dead=st.booleans())
    def release(self, dead: bool) -> None:
        fifo = self.kernel.queue("fifo")
        order = fifo.order
        assert isinstance(order, Grouped)
        for number in list(order.parked):
            try:
                self.kernel.release("fifo", fifo.groups.name(number) or "", dead)
            except Exception as error:
                assert "takes nothing now" in str(error)

    @rule(limit=st.integers(1, 3), most=st.sampled_from([None, 5]))
    def reload(self, limit: int, most: int | None) -> None:
        old = self.kernel.policies["fifo"]
        self.kernel.policies["fifo"] = msgspec.structs.replace(old, group_in_flight=limit, max_messages=most)
        self.kernel.configure()

    # what must always hold

    def check_order(self, worker: CheckedWorker, batch: Sequence[Delivery]) -> None:
        if worker.name != "fifo":
            return
        fifo = self.kernel.queue("fifo")
        entries = fifo.entries
        limit = max(3, fifo.policy.group_in_flight)
        for delivery in batch:
            assert delivery.expires is None or delivery.expires >= self.kernel.clock.now, "delivered expired"
            flying = 0
            for slot in entries.slots():
                if entries.group[slot] != entries.group[delivery.slot]:
                    continue
                flying += slot in fifo.flying
                if entries.ident[slot] < entries.ident[delivery.slot]:
                    assert slot in fifo.flying, f"{delivery.message.body!r} overtook an earlier one of its group"
                if slot in fifo.flying:
                    assert fifo.flying[slot].id in worker.held, "a group is with two consumers"
            assert flying <= limit

    def image(self) -> Any:
        """What a restart must find: all entries of durable queues, those on their way to the disk included."""
        core = self.kernel.core
        found: dict[str, list[Any]] = {}
        gathers: list[Gather] = [core.committing] if core.committing is not None else []
        for queue in core.queues.values():
            if not queue.policy.durable:
                continue
            entries = queue.entries
            rows = found[queue.name] = []
            for slot in entries.slots():
                message = queue.message(slot)
                if message is None:
                    core.loaded(self.kernel.journal.read(core.rows.take_wanted()))
                    message = queue.message(slot)
                assert message is not None
                rows.append(
                    (
                        entries.ident[slot],
                        message.body,
                        queue.groups.name(entries.group[slot]),
                        core.extras[entries.extra[slot]],
                        queue.attempts.get(slot, 0),
                        entries.accepted[slot],
                        entries.expires[slot],
                    )
                )
            for gather in gathers:
                for entry in gather.entries():
                    if entry.queue is queue:
                        name, extra = queue.groups.name(entry.group), core.extras[entry.extra]
                        rows.append((entry.ident, self.body(entry), name, extra, 0, entry.accepted, entry.expires))
        return found

    def body(self, entry: Pending) -> bytes:
        """Of what is on its way to the disk; what moves may be there already."""
        if entry.message is not None:
            return entry.message.body
        data = self.kernel.journal.read([entry.row])[entry.row]
        return decode_message(data[entry.offset : entry.offset + entry.length]).body

    def present(self) -> Counter[tuple[str, str]]:
        """(queue it was sent to, body) of all that is anywhere."""
        core = self.kernel.core
        found: Counter[tuple[str, str]] = Counter()
        for queue in core.queues.values():
            for slot in queue.entries.slots():
                message = queue.message(slot)
                if message is None:
                    core.loaded(self.kernel.journal.read(core.rows.take_wanted()))
                    message = queue.message(slot)
                assert message is not None
                deaths = core.extras[queue.entries.extra[slot]].deaths
                found[deaths[-1].queue if deaths else queue.name, message.body.decode()] += 1
        for gather in (core.gather, core.committing):
            for entry in gather.moved if gather is not None else ():
                deaths = core.extras[entry.extra].deaths
                found[deaths[-1].queue, self.body(entry).decode()] += 1
        return found

    def note_dropped(self) -> None:
        """What a stated policy dropped: no more than the counters say."""
        present = self.present()
        drops = sum(queue.counters.dropped for queue in self.kernel.core.queues.values())
        missing = {
            key
            for key, place in self.places.items()
            if not place.done and key not in present and key not in self.dropped
        }
        assert len(missing) <= drops - self.drops, f"gone: {sorted(missing)}"
        self.drops = drops
        self.dropped |= missing

    @invariant()
    def nothing_is_lost_or_doubled(self) -> None:
        if not hasattr(self, "kernel"):
            return
        self.note_dropped()
        for key, times in self.present().items():
            assert times == 1, f"{key} is in {times} places"
            place = self.places.get(key)
            assert place is None or not place.done, f"{key} is done and still there"

    @invariant()
    def counters_add_up(self) -> None:
        if not hasattr(self, "kernel"):
            return
        core = self.kernel.core
        for queue in core.queues.values():
            assert queue.entries.count == len(list(queue.entries.slots()))
            assert queue.depth >= 0 and queue.pending_count >= 0
            pending = [*core.gather.entries(), *(core.committing.entries() if core.committing is not None else ())]
            mine = [entry for entry in pending if entry.queue is queue]
            assert queue.pending_count == len(mine)
            assert queue.pending_octets == sum(entry.length for entry in mine)
            assert set(queue.flying) == {
                delivery.slot
                for subscription in (*queue.subscriptions, *queue._leaving)
                for delivery in subscription.held.values()
            }

    def teardown(self) -> None:
        if not hasattr(self, "kernel"):
            return
        self.run()
        for worker in list(self.workers):
            worker.detach()
        self.workers = []
        for _ in range(4):
            self.release(False)
            for name in ("bin", *QUEUES, "dead-letters"):
                worker = CheckedWorker(self, name)
                worker.credit = 1 << 30
                worker.subscription = self.kernel.core.attach(name, worker, (), False)
                worker.grant(1 << 30)
                self.workers.append(worker)
            for _ in range(60):
                self.kernel.advance(1)
                for worker in self.workers:
                    for id in list(worker.held):
                        delivery = worker.held.pop(id)
                        if worker.subscription.settle([id], Verdict.DONE):
                            self.settled(delivery)
                self.run()
                if not any(queue.entries.count for queue in self.kernel.core.queues.values()):
                    break
            for worker in self.workers:
                worker.detach()
            self.workers = []
        self.kernel.clock.now += WINDOW * 2
        self.note_dropped()
        lasts = [self.kernel.worker("live"), self.kernel.worker("fifo")]
        own = Properties(headers=(("group", "last"), ("key", "last")))
        self.kernel.accept(to("live", "last", properties=own), to("fifo", "last", properties=own))
        self.kernel.run()
        for last in lasts:
            assert last.done() == 1
        self.kernel.run()
        left = [key for key, place in self.places.items() if not place.done and key not in self.dropped]
        assert not left, f"never seen again: {left}"
        assert self.kernel.leaks() == []
        after = self.kernel.crash()
        after.run()
        assert after.leaks() == []


def drive(seed: int, steps: int) -> None:
    """The same machine, driven by plain chance: many more steps for the time."""
    rng = random.Random(seed)
    machine = Machine()
    drawn = {
        "group_in_flight": rng.randint(1, 3),
        "ack_timeout": rng.choice([None, Seconds(7)]),
        "max_deliveries": rng.choice([None, 1, 2, 3]),
        "retry_delay": rng.choice([None, SecondsRange((1.0, 5.0))]),
        "on_exhausted": rng.choice(["skip", "park", "block"]),
        "ttl": rng.choice([None, None, Seconds(20)]),
        "max_messages": rng.choice([None, None, 12]),
        "overflow": rng.choice(["refuse", "drop-oldest", "dead-letter"]),
        "scope": rng.choice(["queue", "group"]),
    }
    machine.start(drawn, rng.choice([0, 2000, 1 << 30]), rng.choice([None, 3]), rng.random() < 0.5)
    machine.hire("fifo", 4)

    def items() -> list[tuple[str, str, int | None, float | None, float]]:
        return [
            (
                rng.choice(["fifo", "fifo", "fifo", "plain", "live", "both"]),
                rng.choice("aab"),
                rng.choice([None, None, rng.randint(0, 4)]),
                rng.choice([None, None, None, None, 3.0, 15.0]),
                rng.choice([0.0, 0.0, 0.0, 0.0, 5.0]),
            )
            for _ in range(rng.randint(1, 6))
        ]

    verdicts = [*Verdict, Verdict.DONE, Verdict.DONE]
    crashes = rng.choice([0.2, 1, 3])
    chances: list[tuple[float, Callable[[], object]]] = [
        (10, lambda: machine.accept(items())),
        (12, lambda: machine.settle(rng.randint(0, 99), rng.choice(verdicts), rng.randint(1, 3))),
        (8, machine.dispatch),
        (6, machine.run),
        (3, lambda: machine.kernel.core.committing is None and machine.begin()),
        (4, lambda: machine.kernel.core.committing is not None and machine.end(rng.random() < 0.5)),
        (2, lambda: machine.kernel.core.committing is not None and machine.fail()),
        (crashes, lambda: machine.crash(rng.random() < 0.5)),
        (4, lambda: machine.kernel.core.committing is None and machine.copy_forward(rng.random() < 0.1)),
        (1, lambda: machine.kernel.core.committing is None and machine.copy_all_forward(20)),
        (1, lambda: machine.kernel.core.committing is None and machine.compact()),
        (2, lambda: len(machine.workers) < 5 and machine.hire(rng.choice([*QUEUES, "fifo", "bin"]), rng.randint(0, 6))),
        (4, lambda: machine.workers and machine.grant(rng.randint(0, 99), rng.randint(1, 4))),
        (1, lambda: machine.workers and machine.detach(rng.randint(0, 99), rng.random() < 0.5)),
        (0.5, lambda: machine.workers and machine.cancel(rng.randint(0, 99))),
        (3, lambda: machine.time_passes(rng.choice([0.5, 1.0, 3.0, 8.0, 25.0]))),
        (1, lambda: machine.redrive(rng.choice(["bin", "dead-letters"]), rng.choice([None, None, "plain"]))),
        (1, lambda: machine.release(rng.random() < 0.5)),
        (0.5, lambda: machine.reload(rng.randint(1, 3), rng.choice([None, 12]))),
    ]
    weights, steps_of = [weight for weight, _ in chances], [step for _, step in chances]
    for step in rng.choices(steps_of, weights, k=steps):
        step()
        machine.nothing_is_lost_or_doubled()
        machine.counters_add_up()
    machine.teardown()


@pytest.mark.parametrize("seed", range(12))
def test_a_long_life_loses_doubles_and_overtakes_nothing(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "SLICE_ENTRIES", 2)
    drive(seed, 300)


def test_nothing_is_lost_doubled_or_overtaken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "SLICE_ENTRIES", 2)
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Machine,
        settings=settings(
            max_examples=60,
            stateful_step_count=40,
            deadline=None,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )
