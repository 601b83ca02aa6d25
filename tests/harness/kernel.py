"""Owns a core without a daemon: a clock that is set by hand, a journal, and commits made step by step.

Its rule: nothing happens unless the test says so; `settle_down` is the only thing that loops.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Sequence
from types import SimpleNamespace

from gateway.admin.operations import RedriveProgress, Selection
from gateway.admin.service import Operator
from gateway.broker.commit_batch import Accept
from gateway.broker.core import Core
from gateway.broker.definitions import configure, secret_state
from gateway.engine.compaction import Compaction
from gateway.engine.recovery import Refresh, Restored, restore
from gateway.model.message import Message, Properties
from gateway.model.names import OPERATOR
from gateway.model.policy import QueuePolicy
from gateway.model.state import StateChange
from gateway.queueing.ordering import Grouped
from gateway.queueing.queue import Queue
from gateway.queueing.subscription import QueueSubscription
from gateway.storage.journal import Commit, Journal
from gateway.storage.memory import MemoryJournal
from gateway.transport import PLAIN, Binding, Credit, Delivery, Offer, Outcome, Verdict

START = 1_000_000.0
ALL = Selection()


class Clock:
    """Seconds, moved by hand."""

    def __init__(self, now: float = START) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def not_before(self, last: float) -> None:
        """As gateway.clock's."""
        self.now = max(self.now, last)


class Answer:
    """What came of one call of `accept` or `put`; outcomes is None until it is answered."""

    def __init__(self, order: list[Answer]) -> None:
        self.outcomes: Sequence[Outcome] | None = None
        self.ok: bool | None = None
        self._order = order

    def resolve(self, outcomes: Sequence[Outcome], ok: bool) -> None:
        self.outcomes = list(outcomes)
        self.ok = ok
        self._order.append(self)


class Worker:
    """A consumer that keeps what it gets until told what to do with it."""

    def __init__(self) -> None:
        self.subscription: QueueSubscription
        self.seen: list[Delivery] = []
        """All that ever came, in order."""
        self.held: dict[int, Delivery] = {}
        self.batches: list[int] = []
        self.ends: list[str] = []

    def deliver(self, batch: Sequence[Delivery]) -> None:
        self.batches.append(len(batch))
        for delivery in batch:
            self.seen.append(delivery)
            if delivery.id:
                self.held[delivery.id] = delivery

    def closed(self, reason: str) -> None:
        self.ends.append(reason)

    @property
    def bodies(self) -> list[str]:
        """Of all that ever came."""
        return [delivery.message.body.decode() for delivery in self.seen]

    @property
    def holding(self) -> list[str]:
        return [delivery.message.body.decode() for delivery in self.held.values()]

    def grant(self, messages: int = 1, octets: int = 0) -> Worker:
        self.subscription.grant(messages, octets)
        return self

    def settle(self, verdict: Verdict, *bodies: str, error: str = "") -> int:
        """Those it holds with these bodies, or all."""
        ids = [id for id, held in self.held.items() if not bodies or held.message.body.decode() in bodies]
        for id in ids:
            del self.held[id]
        return self.subscription.settle(ids, verdict, error)

    def done(self, *bodies: str) -> int:
        return self.settle(Verdict.DONE, *bodies)

    def retry(self, *bodies: str, error: str = "") -> int:
        return self.settle(Verdict.RETRY, *bodies, error=error)

    def dead(self, *bodies: str, error: str = "") -> int:
        return self.settle(Verdict.DEAD, *bodies, error=error)

    def give_back(self, *bodies: str) -> int:
        return self.settle(Verdict.RETURNED, *bodies)

    def cancel(self) -> None:
        self.subscription.cancel()

    def detach(self, lost: bool = False) -> None:
        self.held.clear()
        self.subscription.detach(lost)


class Kernel:
    """One run of a core on a journal; `crash` gives the next run on the same journal."""

    def __init__(
        self,
        queues: dict[str, QueuePolicy] | None = None,
        routes: Iterable[tuple[str, str]] = (),
        *,
        max_memory: int = 1 << 30,
        journal: Journal | None = None,
        clock: Clock | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self.clock = clock or Clock()
        self.journal: Journal = journal or MemoryJournal()
        self.rng = rng or random.Random(1)
        self.max_memory = max_memory
        self.pokes = 0
        self.answers: list[Answer] = []
        """In the order in which they were given."""
        self.core = Core(self.clock, b"s" * 32, max_memory, self.rng)
        self.core.poke = self._poked
        self.restored: Restored = restore(self.core, self.journal)
        for queue in self.core.queues.values():
            if queue.live:
                queue.begun(())  # as its transport says at the start
        self.clock.not_before(self.restored.time)
        self.last_id = self.restored.last_id
        self.refresh: Refresh | None = None
        self.core.gather.forced_states.append(secret_state(self.core))
        self.policies = dict(queues or {})
        self.routes = list(routes)
        self.notes = self.configure()

    def _poked(self) -> None:
        self.pokes += 1

    def configure(self) -> list[str]:
        """`policies` and `routes` hold from now on."""
        bindings = [Binding(queue=queue, filter=filter, owner="config") for filter, queue in self.routes]
        return configure(self.core, self.policies, bindings)

    def crash(self, journal: Journal | None = None) -> Kernel:
        """What comes up after a power cut: only what was committed to the journal, perhaps opened anew."""
        return Kernel(
            self.policies,
            self.routes,
            max_memory=self.max_memory,
            journal=journal or self.journal,
            clock=self.clock,
            rng=self.rng,
        )

    # what comes in

    def accept(self, *messages: Message, changes: Sequence[StateChange] = (), offer: Offer = PLAIN) -> Answer:
        answer = Answer(self.answers)
        self.core.accept(Accept(messages, changes, answer.resolve, offer=offer))
        return answer

    def put(self, *changes: StateChange) -> Answer:
        return self.accept(changes=changes)

    def send(self, queue: str, *bodies: str, **fields: object) -> list[Outcome]:
        """Straight to a queue, committed and dispatched."""
        answer = self.accept(*[to(queue, body, **fields) for body in bodies])
        self.run()
        assert answer.outcomes is not None
        return list(answer.outcomes)

    # steps

    def begin(self) -> Commit | None:
        return self.core.begin_commit()

    def end(self, commit: Commit) -> None:
        """The commit is on the disk."""
        self.last_id = max(self.last_id, self.journal.commit(commit))
        self._answer(self.core.committed(), True)

    def fail(self) -> None:
        """The commit could not be made."""
        self._answer(self.core.failed(), False)

    def _answer(self, accepts: Iterable[Accept], ok: bool) -> None:
        for accept in accepts:
            accept.resolve(accept.outcomes, ok)

    def commit(self) -> bool:
        """One commit with all that waits; False if nothing did."""
        commit = self.begin()
        if commit is None:
            return False
        self.end(commit)
        return True

    def commit_fails(self) -> bool:
        """One commit with all that waits, rolled back."""
        if self.begin() is None:
            return False
        self.fail()
        return True

    def dispatch(self) -> None:
        """Delivers, and reads the bodies that are asked for, until nothing is."""
        self.core.dispatch()
        while rows := self.core.rows.take_wanted():
            self.core.loaded(self.journal.read(rows))
            self.core.dispatch()
        self._answer(self.core.take_delivered(), True)

    def run(self) -> None:
        """Commits and delivers until nothing is left to do now."""
        self.dispatch()
        while self.commit() or self.core.is_dirty:
            self.dispatch()

    def advance(self, seconds: float) -> None:
        """Time passes, with every timer at its moment."""
        self.dispatch()
        end = self.clock.now + seconds
        while self.core.next_due() <= end:
            self.clock.now = max(self.clock.now, self.core.next_due())
            self.core.tick()
            self.dispatch()
        self.clock.now = end
        self.dispatch()

    def copy_forward(self) -> bool:
        """One slice of a refresh, as the committer makes it: what has gathered first. False at the end of the walk."""
        if self.refresh is None:
            self.commit()
            self.refresh = Refresh(self.core, self.last_id + 1)
        commit = self.begin()
        record, last = self.refresh.next_slice()
        copied = Commit(record=record, trim=self.refresh.first_kept if last else None)
        if commit is not None:
            self.end(commit)
        self.last_id = max(self.last_id, self.journal.commit(copied))
        if last:
            self.refresh = None
        return not last

    def compact(self) -> None:
        """One whole pass over the sparse rows; the new places stand in the next commit."""
        compaction = Compaction(self.core)
        while not compaction.scanned:
            compaction.step()
        while rows := compaction.next_rows():
            compaction.copy(self.journal.read(rows))

    # what an operator does

    def operator(self) -> Operator:
        operator = Operator()
        # An operator needs no more of a gateway than this.
        operator._gateway = SimpleNamespace(committer=_Steps(self), core=self.core)  # type: ignore[assignment]
        return operator

    def redrive(
        self, queue: str, selection: Selection = ALL, to: str | None = None, dry_run: bool = False
    ) -> RedriveProgress:
        """The end of it."""

        async def drive() -> RedriveProgress:
            steps = [step async for step in self.operator().redrive(queue, selection, to, dry_run=dry_run)]
            return steps[-1]

        return asyncio.run(drive())

    def release(self, queue: str, group: str, dead: bool = False) -> bool:
        return asyncio.run(self.operator().release(queue, group, dead))

    # who takes

    def worker(self, queue: str, credit: int = 1 << 30, pools: Sequence[Credit] = (), live: bool = False) -> Worker:
        """Attached, with that credit; nothing is delivered before the next step."""
        worker = Worker()
        worker.subscription = self.core.attach(queue, worker, pools, live, actor=OPERATOR)
        if credit:
            worker.grant(credit)
        return worker

    def queue(self, name: str) -> Queue:
        return self.core.get(name)

    def content(self, queue: str) -> list[str]:
        """The bodies of all that the queue holds, by arrival, in flight included."""
        found = self.core.get(queue)
        bodies: list[str] = []
        for slot in list(found.entries.slots()):
            message = found.message(slot)
            if message is None:
                self.core.loaded(self.journal.read(self.core.rows.take_wanted()))
                message = found.message(slot)
            assert message is not None
            bodies.append(message.body.decode())
        return bodies

    def deaths(self, queue: str) -> list[tuple[str, str, int, str]]:
        """(queue, reason, attempts, error) of each dead letter's latest death, by arrival."""
        found = self.core.get(queue)
        latest = [self.core.extras[found.entries.extra[slot]].deaths[0] for slot in found.entries.slots()]
        return [(death.queue, death.reason, death.attempts, death.error) for death in latest]

    def leaks(self) -> list[str]:
        """What is still kept although every queue is empty and everything is committed; [] if all is well."""
        core = self.core
        found: list[str] = []
        if core.rows.uses:
            found.append(f"rows {core.rows.uses}")
        if core.memory.octets:
            found.append(f"octets in memory {core.memory.octets}")
        if core.memory.volatile:
            found.append(f"volatile octets {core.memory.volatile}")
        if extras := core.extras.in_use:
            found.append(f"extras {extras}")
        if waits := len(core.awaited):
            found.append(f"{waits} messages are awaited")
        if not core.gather.is_empty() or core.committing is not None:
            found.append("the gather is not empty")
        if bodies := list(self.journal.rows()):
            found.append(f"bodies in the journal: {bodies}")
        for queue in core.queues.values():
            parts = {
                "entries": queue.entries.count,
                "octets": queue.entries.octets,
                "resident": len(queue.resident),
                "flying": len(queue.flying),
                "attempts": len(queue.attempts),
                "errors": len(queue.errors),
                "doomed": len(queue.doomed),
                "pending": queue.pending_count,
                "pending octets": queue.pending_octets,
                "groups": len(queue.groups),
            }
            if isinstance(queue.order, Grouped):
                parts["heads"] = len(queue.order.heads)
                parts["parked"] = len(queue.order.parked)
                parts["blocked"] = len(queue.order.blocked)
            found += [f"{queue.name}: {name} {count}" for name, count in parts.items() if count]
        return found


class _Steps:
    """What an operator needs of a committer; nothing is committed by it."""

    def __init__(self, kernel: Kernel) -> None:
        self.core = kernel.core
        self.reader = self
        self._journal = kernel.journal

    async def message(self, queue: Queue, slot: int) -> Message | None:
        if queue.message(slot) is None:
            self.core.loaded(self._journal.read(self.core.rows.take_wanted()))
        return queue.message(slot)

    async def put(self) -> bool:
        return True


# `fields` are those of a Message; mypy can't check them through **.


def to(queue: str, body: str = "x", **fields: object) -> Message:
    """A message straight to that queue."""
    return Message(queue, body.encode(), "", **fields)  # type: ignore[arg-type]


def on(topic: str, body: str = "x", **fields: object) -> Message:
    """A message to that topic."""
    return Message(topic, body.encode(), **fields)  # type: ignore[arg-type]


def grouped(queue: str, body: str, group: str, key: str | None = None, **fields: object) -> Message:
    """Straight to a queue whose group is `{header[group]}` and whose dedup key is `{header[key]}`."""
    headers = [("group", group)] if key is None else [("group", group), ("key", key)]
    return to(queue, body, properties=Properties(headers=tuple(headers)), **fields)


GROUP = "{header[group]}"
KEY = "{header[key]}"
