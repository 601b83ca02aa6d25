"""Random steps against a core and against the reference model: whatever happens, in whatever order, they agree.

Router, queues and journal are the real ones, driven as the committer drives them. GATEWAY_MODEL_EXAMPLES sets how
many lives the machine leads, each of up to GATEWAY_MODEL_STEPS steps; `--hypothesis-seed=N` repeats a run.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
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

from gateway.engine import recovery as replay
from gateway.errors import GatewayError
from gateway.model.message import DEFAULT_EXCHANGE, TOPIC_EXCHANGE, Message, Properties
from gateway.model.policy import DEAD_LETTER_POLICY, DEAD_LETTERS, QueuePolicy
from gateway.model.state import StateChange
from gateway.queueing import queue as queue_module
from gateway.queueing import reordering
from gateway.storage.journal import Commit
from gateway.transport import Binding, Credit, Delivery, Verdict
from tests.harness.kernel import Answer, Clock, Kernel, Worker, on, to
from tests.model.draws import DEAD_EXCHANGE, bins, briefs, fifos, maybe, messages, plains, queues
from tests.model.facts import COMMITTED, COMMITTING, Call, Entry
from tests.model.reference import Reference
from tests.model.witness import Store, Witness

EXAMPLES = int(os.environ.get("GATEWAY_MODEL_EXAMPLES", "200"))
STEPS = int(os.environ.get("GATEWAY_MODEL_STEPS", "50"))
DAY = 86400.0
OWNER = "session"
# In the order of the queues' names, as a store that is opened again has them.
ROUTES = {
    **{(DEFAULT_EXCHANGE, queue): [queue] for queue in ("fifo", "plain", "brief")},
    (TOPIC_EXCHANGE, "both"): ["fifo", "plain"],
    (DEAD_EXCHANGE, "fifo"): ["bin", "plain"],
    (DEAD_EXCHANGE, "plain"): ["fifo"],
    (DEAD_EXCHANGE, "both"): ["bin"],
    (DEAD_EXCHANGE, "brief"): ["bin", "plain"],
}
POOL = 3
Item = tuple[str, str | None, str, float | None, float, int]


class Even(random.Random):
    """Jitter that can be foretold."""

    def random(self) -> float:
        return 0.5


class Consumer(Worker):
    """Holds each delivery against the model as it comes. pool: credit that it shares with others."""

    def __init__(self, machine: Machine, queue: str, pool: Credit | None, live: bool) -> None:
        super().__init__()
        self.machine = machine
        self.queue = queue
        self.credit = 0
        self.pool = pool
        self.live = live
        self.passed: list[Message] = []
        """Of QoS 0, since it was looked at."""
        self.cancelled = False
        self.entries: dict[int, Entry] = {}

    def may_take(self) -> bool:
        return not self.cancelled and self.credit > 0 and (self.pool is None or self.machine.pool_left > 0)

    def deliver(self, batch: Sequence[Delivery]) -> None:
        machine = self.machine
        self.passed += [delivery.message for delivery in batch if not delivery.id]
        stored = [delivery for delivery in batch if delivery.id]
        if not stored:
            return
        machine.reference.observe()
        for delivery in stored:
            assert self.may_take(), "delivered without credit"
            self.credit -= 1
            machine.pool_left -= self.pool is not None
            id = machine.witness.id_of(delivery)
            entry = machine.reference.deliver(self, id, delivery.id)
            assert delivery.message == entry.message, "the message was altered"
            assert delivery.redelivered == entry.seen
            assert delivery.attempts == entry.attempts
            assert (delivery.expires or 0.0) == entry.expires
            assert tuple((one.queue, one.reason, one.attempts) for one in delivery.deaths) == entry.deaths
            self.entries[delivery.id] = entry
        super().deliver(stored)


class Machine(RuleBasedStateMachine):
    kernel: Kernel
    folder: Path

    @initialize(
        fifo=fifos,
        plain=plains,
        brief=briefs,
        bin=bins,
        max_memory=st.sampled_from([0, 2000, 1 << 30]),
        on_disk=st.sampled_from([False, False, False, True]),
    )
    def start(
        self,
        fifo: QueuePolicy,
        plain: QueuePolicy,
        brief: QueuePolicy,
        bin: QueuePolicy,
        max_memory: int,
        on_disk: bool,
    ) -> None:
        policies = {"bin": bin, "brief": brief, "fifo": fifo, "plain": plain}
        self.store = Store(Path(tempfile.mkdtemp(dir=self.folder)) if on_disk else None)
        self.kernel = Kernel(
            policies,
            [("both", "fifo"), ("both", "plain")],
            max_memory=max_memory,
            journal=self.store.journal,
            rng=Even(),
        )
        self.clock: Clock = self.kernel.clock
        self.witness = Witness(self.kernel)
        for exchange, topic in ROUTES:
            if exchange == DEAD_EXCHANGE:
                for queue in ROUTES[exchange, topic]:
                    self.kernel.core.bind(Binding(queue=queue, filter=topic, exchange=exchange, owner="client"))
        known = {DEAD_LETTERS: DEAD_LETTER_POLICY, **policies}
        self.reference = Reference(self.clock, known, ROUTES, self.witness)
        self.pool = Credit(POOL)
        self.pool_left = POOL
        self.consumers: list[Consumer] = []
        self.answers: list[Answer] = []
        """Of the calls that the model has not answered."""
        self.commit: Commit | None = None
        self.count = 0
        self.run()
        self.attach("fifo", 6, False, False)
        self.attach("plain", 2, True, False)

    @property
    def committing(self) -> bool:
        return self.kernel.core.committing is not None

    # what comes in

    @rule(items=st.lists(messages, min_size=1, max_size=6), value=st.sampled_from([None, None, b"1", b"2", b""]))
    def accept(self, items: list[Item], value: bytes | None) -> None:
        batch: list[Message] = []
        for where, group, key, ttl, delay, qos in items:
            self.count += 1
            body = f"m{self.count}"
            headers: list[tuple[str, Any]] = [("key", body if key == "own" else key)]
            if group is not None:
                headers.append(("group", group))
            send = on if where in ("both", "nowhere") else to
            properties = Properties(headers=tuple(headers))
            batch.append(send(where, body, properties=properties, ttl=ttl, delay=delay, qos=qos))
        changes = {} if value is None else {"state": value or None}
        self.answers.append(self.kernel.accept(*batch, changes=[StateChange(OWNER, *item) for item in changes.items()]))
        self.reference.accept(batch, changes)

    def hear(self, answered: Sequence[Call]) -> None:
        """The model has these answered; so must the core, in this order, and no others."""
        for call in answered:
            assert self.answers.pop(0).outcomes == call.outcomes, [message.body.decode() for message in call.messages]
        assert all(answer.outcomes is None for answer in self.answers), "answered early"

    # commits

    @rule()
    @precondition(lambda self: not self.committing)
    def begin(self) -> None:
        self.reference.begin()
        self.commit = self.kernel.begin()

    @rule(dispatch=maybe)
    @precondition(lambda self: self.committing)
    def end(self, dispatch: bool) -> None:
        assert self.commit is not None
        self.kernel.end(self.commit)
        self.succeed()
        if dispatch:
            self.dispatch()

    def succeed(self) -> None:
        self.kernel.core.refusing, self.reference.refusing = "", False
        passing = [(queue, message) for queue, message, stage in self.reference.passing if stage == COMMITTING]
        for consumer in self.consumers:
            if consumer.live and not consumer.cancelled:
                expected = [message for queue, message in passing if queue == consumer.queue]
                assert consumer.passed == expected, f"{consumer.passed} and not {expected}"
                self.reference.counters[consumer.queue, "delivered"] += len(expected)
            consumer.passed.clear()
        self.hear(self.reference.succeed())

    @rule(refuses=maybe)
    @precondition(lambda self: self.committing)
    def fail(self, refuses: bool) -> None:
        """The commit was rolled back; perhaps all is refused until one succeeds."""
        if refuses:
            self.kernel.core.refusing, self.reference.refusing = "the store is full", True
        self.kernel.fail()
        self.hear(self.reference.fail())

    @rule()
    @precondition(lambda self: self.reference.refusing and not self.committing)
    def answer_refused(self) -> None:
        for accept in self.kernel.core.take_refused():
            accept.resolve(accept.outcomes, True)
        pairs = zip(self.answers, self.reference.calls, strict=True)
        early = [call for answer, call in pairs if answer.outcomes is not None]
        assert not any(entry.stage != COMMITTED and not entry.moved for entry in self.reference.entries) or not early
        for call in early:
            self.reference.answer(call)
        self.hear(early)

    @rule(fate=st.sampled_from(["end", "end", "fail", "refuse"]), between=st.lists(messages, max_size=3))
    @precondition(lambda self: not self.committing)
    def commit_and(self, fate: str, between: list[Any]) -> None:
        """One whole commit, and perhaps something that comes while it runs."""
        self.begin()
        if self.commit is None:
            return
        if between:
            self.accept(between, None)
        if fate == "end":
            self.end(True)
        else:
            self.fail(fate == "refuse")

    @rule()
    def run(self) -> None:
        """Until nothing is left to do now."""
        if self.committing:
            self.end(True)
        self.dispatch()
        self.begin()
        while self.commit is not None:
            self.end(True)
            self.begin()

    @rule()
    @precondition(lambda self: not self.committing)
    def rebuild(self) -> None:
        """After a failed fsync everything live stands in a new file."""
        kernel = self.kernel
        self.begin()
        waiting = self.commit or Commit()
        content = replay.snapshot(kernel.core, {OWNER: _present(self.reference.states)}, waiting)
        rebuilt = kernel.journal.rebuild(content)
        assert not rebuilt.left_out
        kernel.last_id = rebuilt.last_id or kernel.last_id
        kernel.refresh = None
        if self.commit is not None:
            kernel._answer(kernel.core.committed(), True)
            self.succeed()

    @rule(slices=st.integers(1, 12), fails=maybe)
    @precondition(lambda self: not self.committing)
    def copy_forward(self, slices: int, fails: bool) -> None:
        """Slices of the log are copied, each after what has gathered; perhaps the last of them can't be written."""
        kernel = self.kernel
        if kernel.refresh is None:
            self.run()
            kernel.refresh = replay.Refresh(kernel.core, kernel.last_id + 1)
        for left in reversed(range(slices)):
            self.begin()
            record, last = kernel.refresh.next_slice()
            if self.commit is not None:
                self.end(False)
            if fails and not left:
                kernel.refresh = None
                return
            trim = kernel.refresh.first_kept if last else None
            kernel.last_id = max(kernel.last_id, kernel.journal.commit(Commit(record=record, trim=trim)))
            if last:
                kernel.refresh = None
                return

    @rule()
    @precondition(lambda self: not self.committing)
    def compact(self) -> None:
        """All rows that are on the disk are taken for mostly dead."""
        rows = self.kernel.core.rows
        on_disk = {row for row, _ in self.kernel.journal.rows()}
        rows.sparse |= on_disk & rows.uses.keys()
        self.kernel.compact()

    @rule(written=maybe, wall=st.sampled_from([0.0, 0.0, 0.0, 4.0, 15.0, DAY, -15.0, -DAY]))
    def crash(self, written: bool, wall: float) -> None:
        """The power goes; what was being committed is perhaps on the disk, and nobody heard of it. Until the next
        start the wall clock moves, or jumps."""
        was_written = written and self.committing
        if was_written:
            assert self.commit is not None
            self.kernel.journal.commit(self.commit)
        latest = max((entry.accepted for entry in self.reference.disk.entries), default=0.0)
        before = self.clock.now
        self.clock.now += wall
        self.kernel = self.kernel.crash(self.store.cut_power())
        assert self.clock.now >= latest, "time ran backwards"
        self.witness = Witness(self.kernel)
        self.reference.crash(was_written, self.witness, before)
        self.reference.next_id = self.kernel.core.next_ident
        assert self.kernel.restored.states.get(OWNER, {}) == _present(self.reference.states)
        self.pool, self.pool_left = Credit(POOL), POOL
        self.consumers, self.answers, self.commit = [], [], None
        self.attach("fifo", 4, False, False)

    # consumers

    @rule(queue=queues, credit=st.sampled_from([0, 1, 2, 6, 6]), shares=maybe, live=maybe)
    @precondition(lambda self: len(self.consumers) < 6)
    def attach(self, queue: str, credit: int, shares: bool, live: bool) -> None:
        live = live and queue in ("plain", "brief")
        consumer = Consumer(self, queue, self.pool if shares else None, live)
        consumer.subscription = self.kernel.core.attach(queue, consumer, [self.pool] if shares else [], live)
        self.give(consumer, credit, 0)
        self.reference.live |= {queue} if live else set()
        self.consumers.append(consumer)

    def pick(self, which: int, holding: bool = False) -> Consumer:
        found = [consumer for consumer in self.consumers if consumer.held or not holding]
        return found[which % len(found)]

    @rule(which=st.integers(0, 9), credit=st.integers(1, 4))
    @precondition(lambda self: self.consumers)
    def grant(self, which: int, credit: int) -> None:
        self.give(self.pick(which), credit, 0)

    def give(self, consumer: Consumer, credit: int, shared: int) -> None:
        consumer.credit += credit
        consumer.grant(credit)
        self.share(consumer, shared)

    def share(self, consumer: Consumer, credit: int) -> None:
        if consumer.pool is not None:
            self.pool_left += credit
            consumer.pool.grant(credit)

    @rule(
        which=st.integers(0, 9),
        verdicts=st.lists(st.sampled_from([*Verdict, Verdict.DONE]), min_size=1, max_size=4),
        first=st.sampled_from([0, 0, 1, 2]),
        dispatch=maybe,
    )
    @precondition(lambda self: any(consumer.held for consumer in self.consumers))
    def settle(self, which: int, verdicts: list[Verdict], first: int, dispatch: bool) -> None:
        """One after the other, and each as soon as the last is settled, or all before anything more goes out."""
        consumer = self.pick(which, holding=True)
        for verdict in verdicts:
            if not consumer.held:
                return
            ids = list(consumer.held)
            self.settle_one(consumer, ids[first % len(ids)], verdict)
            self.give(consumer, 1, 1)
            if dispatch:
                self.dispatch()

    def settle_one(self, consumer: Consumer, id: int, verdict: Verdict) -> None:
        del consumer.held[id]
        found = consumer.subscription.settle([id], verdict, "why")
        assert found == self.reference.settle(consumer, consumer.entries.pop(id), id, verdict)

    @rule(
        items=st.lists(messages, min_size=1, max_size=8),
        verdicts=st.lists(st.sampled_from([*Verdict, Verdict.RETRY, Verdict.DONE]), min_size=1, max_size=6),
        which=st.integers(0, 9),
    )
    def work(self, items: list[Any], verdicts: list[Verdict], which: int) -> None:
        """What most lives are made of: messages come, go out, and are settled one way or another."""
        self.accept(items, None)
        self.run()
        for turn, verdict in enumerate(verdicts):
            if any(consumer.held for consumer in self.consumers):
                self.settle(which + turn, [verdict], turn % 2, True)
        self.run()

    @rule(which=st.integers(0, 9), lost=maybe)
    @precondition(lambda self: self.consumers)
    def detach(self, which: int, lost: bool) -> None:
        consumer = self.pick(which)
        self.consumers.remove(consumer)
        unsettled = len(consumer.held)
        consumer.detach(lost)
        self.reference.detach(consumer, lost)
        self.share(consumer, unsettled)

    @rule(which=st.integers(0, 9))
    @precondition(lambda self: self.consumers)
    def cancel(self, which: int) -> None:
        consumer = self.pick(which)
        consumer.cancel()
        consumer.cancelled = True
        self.reference.cancel(consumer)

    @rule()
    def dispatch(self) -> None:
        """Whatever is due is done, and whoever has credit gets all that he may have."""
        core, reference = self.kernel.core, self.reference
        self.kernel.dispatch()
        while core.is_dirty:
            self.kernel.dispatch()
        reference.observe()
        while core.next_due() <= self.clock.now:
            core.tick()
            reference.tick()
            self.kernel.dispatch()
            reference.observe()
        reference.rest()
        left = list(reference.idle_work(self.consumers))
        assert not left, f"ready, and somebody had credit for it: {left}"

    # time and operators

    @rule(seconds=st.sampled_from([1.0, 8.0, 25.0, DAY]))
    def stall(self, seconds: float) -> None:
        """The process gets no turn, and then all that was due is late."""
        self.clock.now += seconds
        self.dispatch()

    @rule(seconds=st.sampled_from([0.5, 1.0, 3.0, 8.0, 25.0]))
    def time_passes(self, seconds: float) -> None:
        """With every timer at its moment."""
        core, clock = self.kernel.core, self.clock
        self.dispatch()
        end = clock.now + seconds
        while core.next_due() <= end:
            clock.now = core.next_due()
            self.dispatch()
        clock.now = end
        self.dispatch()

    @rule(source=st.sampled_from(["bin", DEAD_LETTERS]), to=st.sampled_from([None, None, "plain", "fifo"]))
    def redrive(self, source: str, to: str | None) -> None:
        moved = self.kernel.redrive(source, to=to).moved
        assert moved == self.reference.redrive(source, to)

    @rule(queue=queues)
    def purge(self, queue: str) -> None:
        assert self.kernel.queue(queue).purge() == self.reference.purge(queue)
        self.dispatch()

    @rule(which=st.integers(0, 9), dead=maybe, restart=maybe)
    @precondition(lambda self: self.reference.parked)
    def release(self, which: int, dead: bool, restart: bool) -> None:
        parked = list(self.reference.parked)
        queue, group = place = parked[which % len(parked)]
        try:
            released = self.kernel.release(queue, group, dead)
        except GatewayError as error:
            assert "takes nothing now" in str(error)
            released = False
        assert released == self.reference.release(place, dead)
        if restart and not self.committing:
            # What an operator has said holds from then on.
            self.begin()
            if self.commit is not None:
                self.end(False)
            self.crash(False, 0.0)

    @rule(queue=st.sampled_from(["fifo", "plain", "brief"]), drawn=st.data())
    def reload(self, queue: str, drawn: st.DataObject) -> None:
        policy = drawn.draw({"fifo": fifos, "plain": plains, "brief": briefs}[queue])
        self.kernel.policies[queue] = policy
        self.kernel.configure()
        self.reference.reload(queue, policy)

    # what must always hold

    @invariant()
    def they_agree(self) -> None:
        if not hasattr(self, "kernel"):
            return
        reference, witness = self.reference, self.witness
        for name in reference.policies:
            seen, expected = list(witness.entries(name).values()), [entry.show() for entry in reference.of(name)]
            assert seen == expected, f"{name} holds {seen}, not {expected}"
        assert witness.pending() == sorted(entry.id for entry in reference.entries if entry.stage != COMMITTED)
        assert witness.parked() == {entry.id for entry in reference.parked.values()}
        counted = {key: count for key, count in reference.counters.items() if count}
        told, expected = _by_daemon(witness.counters()), _by_daemon(counted)
        assert told == expected, f"counted {told - expected} too much and {expected - told} too little"

    def teardown(self) -> None:
        if not hasattr(self, "kernel"):
            return
        try:
            if sys.exc_info()[0] is None:  # else a step has failed, and that is what should be told
                self.empty()
        finally:
            self.store.close()

    def finish(self) -> None:
        for consumer in self.consumers:
            for id in list(consumer.held):
                self.settle_one(consumer, id, Verdict.DONE)

    def empty(self) -> None:
        """Everything can be had, and then nothing is left, in memory or on the disk."""
        self.run()
        for _ in list(self.consumers):
            self.detach(0, False)
        for _ in range(4):
            for place in list(self.reference.parked):
                self.kernel.release(*place)
                self.reference.release(place, False)
            for name in ("bin", DEAD_LETTERS, "plain", "brief", "fifo"):
                self.attach(name, 1 << 30, False, False)
            for _ in range(60):
                self.time_passes(1.0)
                self.finish()
                self.run()
                if not self.reference.entries:
                    break
            for _ in list(self.consumers):
                self.detach(0, False)
        assert not self.reference.entries, f"never seen again: {self.reference.entries}"
        # The names of groups that never came to be are given up with the next commit.
        for name in ("fifo", "brief"):
            self.attach(name, 1, False, False)
            self.accept([(name, "a", "own", None, 0.0, 1)], None)
        self.run()
        self.finish()
        for _ in list(self.consumers):
            self.detach(0, False)
        self.they_agree()
        self.kernel.run()
        assert not (leaks := self.kernel.leaks()), leaks
        after = self.kernel.crash(self.store.cut_power())
        after.run()
        assert not (leaks := after.leaks()), leaks


def _present(states: Mapping[str, bytes | None]) -> dict[str, bytes]:
    return {key: value for key, value in states.items() if value is not None}


def _by_daemon(counters: Mapping[tuple[str, str], int]) -> Counter[tuple[str, str]]:
    """Of several queues that refuse one message, any one may count it."""
    found: Counter[tuple[str, str]] = Counter()
    for (queue, name), count in counters.items():
        found["" if name == "refused" else queue, name] += count
    return found


@pytest.mark.timeout(0)
def test_the_core_does_what_the_model_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(replay, "SLICE_ENTRIES", 2)
    monkeypatch.setattr(queue_module, "EXPIRED_AT_ONCE", 2)
    monkeypatch.setattr(reordering, "REORDERED_AT_ONCE", 2)
    Machine.folder = tmp_path
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            # The same lives in each test run, so that red means a change; the long form leads others.
            derandomize="GATEWAY_MODEL_EXAMPLES" not in os.environ,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )
