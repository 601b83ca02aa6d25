"""The committer on a journal that can be held, filled and broken: order of answers, barriers, recovery, the end
(rulings 1, 2, 22)."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from gateway.broker.core import Core
from gateway.broker.definitions import configure
from gateway.engine import body_reader as reading
from gateway.engine import committer as committing
from gateway.engine import recovery as replay
from gateway.engine.committer import Committer
from gateway.engine.recovery import restore
from gateway.errors import StoreError, StoreFailedError, StoreFullError
from gateway.model.credit import Pressure
from gateway.model.policy import DedupPolicy, QueuePolicy
from gateway.model.state import StateChange
from gateway.storage.journal import Commit, Content, Rebuilt
from gateway.storage.memory import MemoryJournal
from gateway.transport import Binding, Options, Outcome
from tests.harness.kernel import Clock, Kernel, Worker, on, to

STORED, REFUSED = Outcome.STORED, Outcome.REFUSED
pytestmark = pytest.mark.anyio


class Faulty(MemoryJournal):
    """Commits wait while `gate` is closed, and raise what stands in `errors`."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()
        self.reached = threading.Event()
        self.errors: list[StoreError] = []
        self.rebuild_errors: list[StoreError] = []
        self.rebuilds = 0
        self.commits: list[Commit] = []
        self.free = 1 << 40
        self.closed = False

    def commit(self, commit: Commit) -> int:
        self.reached.set()
        assert self.gate.wait(10)
        if self.errors:
            raise self.errors.pop(0)
        self.commits.append(commit)
        return super().commit(commit)

    def rebuild(self, content: Content, salvage: bool = False) -> Rebuilt:
        if self.rebuild_errors:
            raise self.rebuild_errors.pop(0)
        self.rebuilds += 1
        return super().rebuild(content, salvage)

    def room(self) -> int:
        return self.free

    def close(self) -> None:
        self.closed = True


class Bench:
    """A committer in the test's loop."""

    def __init__(self, max_backlog: int = 64 << 20) -> None:
        self.clock = Clock()
        self.journal = Faulty()
        self.core = Core(self.clock, b"s" * 32)
        self.pressure = Pressure()
        self.committer = Committer(self.core, self.journal, self.pressure, max_backlog)
        restored = restore(self.core, self.journal)
        self.policies = {
            "q": QueuePolicy(),
            "live": QueuePolicy(durable=False),
            "once": QueuePolicy(dedup=DedupPolicy("sha256")),
        }
        configure(self.core, self.policies, [])
        self.committer.start(restored)

    def worker(self, queue: str, credit: int = 1000) -> Worker:
        worker = Worker()
        worker.subscription = self.core.attach(queue, worker, (), False)
        worker.grant(credit)
        return worker

    def restart(self) -> Kernel:
        """What another run finds on the disk."""
        return Kernel(self.policies, journal=self.journal, clock=self.clock)

    async def until(self, what: Callable[[], object]) -> None:
        async with asyncio.timeout(10):
            while not what():  # noqa: ASYNC110 - it is asked of the core, which has no event for it
                await asyncio.sleep(0.005)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(committing, "RETRY_SECONDS", 0.02)
    monkeypatch.setattr(reading, "REREAD_SECONDS", 0.02)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    yield made
    made.journal.gate.set()
    await made.committer.close()


async def outcomes(future: Awaitable[object]) -> object:
    async with asyncio.timeout(10):
        return await future


# order and barriers


async def test_answers_come_in_the_order_of_accept_whatever_needs_the_disk(bench: Bench) -> None:
    order: list[int] = []
    futures = []
    for number, queue in enumerate(["q", "live", "q", "live", "nobody"]):
        future = bench.committer.accept([to(queue)])
        future.add_done_callback(lambda _, number=number: order.append(number))
        futures.append(future)
        await asyncio.sleep(0)
    await asyncio.gather(*futures)
    await asyncio.sleep(0)
    assert order == [0, 1, 2, 3, 4]


async def test_while_a_commit_runs_the_next_one_gathers(bench: Bench) -> None:
    await bench.committer.put()
    before = len(bench.journal.commits)
    bench.journal.gate.clear()
    bench.journal.reached.clear()
    first = bench.committer.accept([to("q", "0")])
    await bench.until(bench.journal.reached.is_set)
    rest = [bench.committer.accept([to("q", str(number))]) for number in range(1, 100)]
    await asyncio.sleep(0.02)
    assert not first.done()
    bench.journal.gate.set()
    await asyncio.gather(first, *rest)
    assert len(bench.journal.commits) - before == 2


async def test_a_cancelled_future_does_not_cancel_its_commit(bench: Bench) -> None:
    bench.committer.accept([to("q", "1")]).cancel()
    await bench.committer.put()
    assert bench.restart().content("q") == ["1"]


async def test_put_resolves_after_all_that_was_accepted_declared_or_settled_before_it(bench: Bench) -> None:
    worker = bench.worker("q")
    await bench.committer.accept([to("q", "1"), to("q", "2")])
    await bench.until(lambda: worker.held)
    worker.done("1")
    bench.core.declare("mine", QueuePolicy(), "amqp")
    accepted = bench.committer.accept([to("q", "3")])
    assert await bench.committer.put([StateChange("mqtt", "a", b"1")])
    assert accepted.done()
    found = bench.restart()
    assert (found.content("q"), "mine" in found.core.queues) == (["2", "3"], True)
    assert found.restored.states == {"mqtt": {"a": b"1"}}


async def test_an_empty_put_is_a_barrier_for_volatile_things_too(bench: Bench) -> None:
    future = bench.committer.accept([to("live")])
    assert await bench.committer.put()
    assert future.done()


async def test_settlements_alone_wait_for_company_and_are_committed_soon(bench: Bench) -> None:
    worker = bench.worker("q")
    await bench.committer.accept([to("q", str(number)) for number in range(10)])
    await bench.until(lambda: len(worker.held) == 10)
    await bench.committer.put()
    before = len(bench.journal.commits)
    for number in range(10):
        worker.done(str(number))
        await asyncio.sleep(0)
    await bench.until(lambda: not list(bench.journal.rows()))
    assert len(bench.journal.commits) - before <= 2


async def test_state_shows_what_was_put_and_committed(bench: Bench) -> None:
    future = bench.committer.put([StateChange("mqtt", "a", b"1"), StateChange("mqtt", "b", b"1")])
    await future
    await bench.committer.put([StateChange("mqtt", "b", None)])
    assert bench.committer.state("mqtt") == {"a": b"1"}
    bench.journal.errors.append(StoreFullError("full"))
    assert not await bench.committer.put([StateChange("mqtt", "c", b"1")])
    assert bench.committer.state("mqtt") == {"a": b"1"}


# pressure (ruling 22)


async def test_pressure_rises_with_the_backlog_and_falls_with_the_commit() -> None:
    bench = Bench(max_backlog=10_000)
    await bench.committer.put()
    bench.journal.gate.clear()
    future = bench.committer.accept([to("q", "x" * 11_000)])
    assert bench.pressure.high
    more = bench.committer.accept([to("q", "x" * 11_000)])
    refused = bench.committer.accept([to("q", "too much")])
    bench.journal.gate.set()
    assert [await future, await more, await refused] == [[STORED], [STORED], [REFUSED]]
    assert not bench.pressure.high
    await bench.committer.close()


async def test_pressure_falls_again_when_only_memory_was_needed() -> None:
    bench = Bench(max_backlog=10_000)
    await bench.committer.put()
    resumed: list[bool] = []
    future = bench.committer.accept([to("live", "x" * 11_000)])
    assert bench.pressure.high
    bench.pressure.on_low(lambda: resumed.append(True))
    assert await future == [STORED]
    await asyncio.sleep(0)
    assert resumed == [True]
    await bench.committer.close()


# a full disk


async def test_a_full_disk_refuses_rolls_back_and_recovers(bench: Bench) -> None:
    await bench.committer.put()
    bench.journal.errors.append(StoreFullError("full"))
    assert await outcomes(bench.committer.accept([to("once", "1")])) == [REFUSED]
    assert bench.core.refusing
    await bench.until(lambda: not bench.core.refusing)
    assert await outcomes(bench.committer.accept([to("once", "1")])) == [STORED]
    assert bench.restart().content("once") == ["1"]


async def test_while_it_is_full_transient_queues_go_on_and_it_recovers_all_the_same(bench: Bench) -> None:
    await bench.committer.put()
    bench.journal.errors += [StoreFullError("full")]
    assert await outcomes(bench.committer.accept([to("q", "1")])) == [REFUSED]
    while bench.core.refusing:
        assert await outcomes(bench.committer.accept([to("live", "2"), to("q", "3")])) in (
            [STORED, REFUSED],
            [STORED, STORED],
        )
    assert await outcomes(bench.committer.accept([to("q", "4")])) == [STORED]


async def test_while_it_is_full_links_deliver_what_is_acknowledged_then(bench: Bench) -> None:
    bench.core.bind(Binding(queue="live", filter="t/#", options=Options(target="x", within=10.0)))
    worker = bench.worker("live")
    await bench.committer.put()
    bench.journal.errors += [StoreFullError("full")] * 1000
    assert await outcomes(bench.committer.accept([to("q", "1")])) == [REFUSED]
    # With a change, as QoS 2 has one: that is stored when it can be, and its sender does not wait for it.
    change = StateChange("mqtt", "received/c/1", b"1")
    plain, other = bench.committer.accept([on("t/1", "1")]), bench.committer.accept([on("t/2", "2")], [change])
    await bench.until(lambda: len(worker.seen) == 2)
    assert not (plain.done() or other.done())
    worker.done()
    assert await outcomes(plain) == [STORED]
    assert await outcomes(other) == [STORED]
    assert bench.core.refusing
    bench.journal.errors.clear()
    await bench.until(lambda: not bench.core.refusing)
    assert change in list(bench.journal.states())


async def test_who_waits_for_a_link_at_the_end_is_answered() -> None:
    bench = Bench()
    bench.core.bind(Binding(queue="live", filter="t/#", options=Options(target="x", within=10.0)))
    worker = bench.worker("live")
    done, lost = bench.committer.accept([on("t/1", "1")]), bench.committer.accept([on("t/2", "2")])
    await bench.until(lambda: len(worker.seen) == 2)
    worker.done("1")
    assert await outcomes(done) == [STORED]
    await bench.committer.close()
    assert await outcomes(lost) == [REFUSED]
    assert await outcomes(bench.committer.accept([on("t/3", "3")])) == [REFUSED]


async def test_barriers_while_it_is_full_do_not_stop_the_recovery(bench: Bench) -> None:
    await bench.committer.put()
    bench.journal.errors += [StoreFullError("full")] * 3
    first = bench.committer.accept([to("q", "1")])
    assert await outcomes(first) == [REFUSED]
    for _ in range(5):
        await outcomes(bench.committer.put())
    await bench.until(lambda: not bench.core.refusing)


async def test_settlements_survive_a_full_disk(bench: Bench) -> None:
    worker = bench.worker("q")
    await bench.committer.accept([to("q", "1"), to("q", "2")])
    await bench.until(lambda: len(worker.held) == 2)
    bench.journal.errors += [StoreFullError("full")] * 2
    worker.done("1")
    worker.dead("2")
    await bench.until(lambda: not bench.journal.errors and not bench.core.refusing and bench.core.gather.is_empty())
    found = bench.restart()
    assert (found.content("q"), found.content("dead-letters")) == ([], ["2"])


async def test_near_the_end_of_the_disk_messages_are_refused_and_settlements_go_on(bench: Bench) -> None:
    worker = bench.worker("q")
    await bench.committer.accept([to("q", "1")])
    await bench.until(lambda: worker.held)
    bench.journal.free = 0
    assert await outcomes(bench.committer.accept([to("q", "2")])) == [STORED]
    await bench.until(lambda: bench.core.refusing)
    assert await outcomes(bench.committer.accept([to("q", "3")])) == [REFUSED]
    worker.done()
    await bench.until(lambda: bench.restart().content("q") == [])
    assert bench.core.refusing
    bench.journal.free = 1 << 40
    await bench.until(lambda: not bench.core.refusing)
    assert await outcomes(bench.committer.accept([to("q", "4")])) == [STORED]


# a failed file


async def test_room_that_only_housekeeping_gives_back_ends_the_refusing(bench: Bench) -> None:
    """Nothing is left to commit, so nothing else would ask the journal for it."""
    journal = bench.journal

    def tidy() -> bool:
        if bench.core.refusing:
            journal.free = 1 << 40
        return False

    journal.tidy = tidy  # type: ignore[method-assign]
    journal.free = 0
    assert await bench.committer.accept([to("q")]) == [STORED]
    await bench.until(lambda: bench.core.refusing)
    await bench.until(lambda: not bench.core.refusing)
    assert await bench.committer.accept([to("q")]) == [STORED]


async def test_after_a_failed_fsync_everything_live_stands_in_a_new_file(bench: Bench) -> None:
    worker = bench.worker("q", 2)
    await bench.committer.accept([to("q", str(number)) for number in range(4)])
    await bench.committer.accept([on("r", "kept", retain=True)])
    await bench.committer.put([StateChange("mqtt", "a", b"1")])
    await bench.until(lambda: len(worker.held) == 2)
    bench.journal.errors.append(StoreFailedError("fsync"))
    worker.done("0")
    worker.dead("1")
    assert await outcomes(bench.committer.accept([to("q", "lost")])) == [REFUSED]
    await bench.until(lambda: bench.journal.rebuilds)
    found = bench.restart()
    assert (found.content("q"), found.content("dead-letters")) == (["2", "3"], ["1"])
    assert found.restored.states == {"mqtt": {"a": b"1"}}
    assert len(found.core.retained) == 1
    await bench.until(lambda: not bench.core.refusing)
    assert await outcomes(bench.committer.accept([to("q", "5")])) == [STORED]
    await bench.committer.put()
    found = bench.restart()
    assert (found.content("q"), found.content("dead-letters")) == (["2", "3", "5"], ["1"])


async def test_a_dead_letter_whose_body_is_written_anew_is_in_the_new_file(bench: Bench) -> None:
    worker = bench.worker("live")
    await bench.committer.accept([to("live", "1")])
    await bench.until(lambda: worker.held)
    await bench.committer.put()
    bench.journal.errors.append(StoreFailedError("fsync"))
    worker.dead("1")
    await bench.until(lambda: bench.journal.rebuilds)
    assert bench.restart().content("dead-letters") == ["1"]
    await bench.until(lambda: not bench.core.refusing)
    await bench.committer.put()
    assert bench.restart().content("dead-letters") == ["1"]
    assert bench.journal.rebuilds == 1


async def test_a_new_file_that_can_not_be_written_is_tried_again(bench: Bench) -> None:
    worker = bench.worker("q")
    await bench.committer.accept([to("q", "1"), to("q", "2")])
    await bench.until(lambda: len(worker.held) == 2)
    await bench.committer.put()
    bench.journal.errors.append(StoreFailedError("fsync"))
    bench.journal.rebuild_errors += [StoreError("no room"), StoreError("no room")]
    worker.dead("1")
    await bench.until(lambda: bench.core.refusing)
    assert await outcomes(bench.committer.accept([to("q", "3")])) == [REFUSED]
    worker.dead("2")
    await bench.until(lambda: bench.journal.rebuilds and not bench.core.refusing)
    await bench.committer.put()
    found = bench.restart()
    assert (found.content("q"), found.content("dead-letters")) == ([], ["1", "2"])


async def test_a_row_that_is_lost_when_the_file_fails_is_stored_again_from_memory(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.worker("q", 1)
    await bench.committer.accept([to("q", "in flight"), to("q", "in memory")])
    await bench.committer.accept([to("once", "on the disk alone")])
    queue = bench.core.get("once")
    queue.spill(queue.entries.first, queue.entries.ident[queue.entries.first])
    await bench.committer.put()
    bench.journal.commit(Commit(dropped=list(bench.core.rows.uses)))
    bench.journal.errors.append(StoreFailedError("fsync"))
    assert await outcomes(bench.committer.accept([to("q", "refused")])) == [REFUSED]
    await bench.until(lambda: not bench.core.refusing)
    await bench.committer.put()
    found = bench.restart()
    assert found.content("q") == ["in flight", "in memory"]
    assert len(found.core.rows.unreadable) == 1  # of queue "once": its messages wait, and nothing else does
    assert "the store has lost bodies" in caplog.text


async def test_an_error_that_nobody_expected_refuses_and_is_tried_again(bench: Bench) -> None:
    await bench.committer.put()
    bench.journal.errors.append(ValueError("what?"))  # type: ignore[arg-type]
    assert await outcomes(bench.committer.accept([to("q", "1")])) == [REFUSED]
    await bench.until(lambda: not bench.core.refusing)
    assert await outcomes(bench.committer.accept([to("q", "2")])) == [STORED]


# the log is copied forward


async def test_a_copy_that_fails_does_not_undo_the_commit_before_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.committer._log_slack = 1000
    monkeypatch.setattr(replay, "SLICE_ENTRIES", 2)
    bench.committer._next_check = 0
    worker = bench.worker("q")

    original = bench.journal.commit
    failing = [True]

    def commit(commit: Commit) -> int:
        if failing and commit.record and is_copy(commit):
            failing.clear()
            raise StoreFullError("full")
        return original(commit)

    monkeypatch.setattr(bench.journal, "commit", commit)
    for number in range(200):
        answer = await outcomes(bench.committer.accept([to("q", str(number))]))
        if answer == [REFUSED]:
            await bench.until(lambda: not bench.core.refusing)
        else:
            await bench.until(lambda: worker.held)
            worker.done()
    assert not failing
    await bench.committer.accept([to("q", "last")])
    await bench.committer.put()
    assert bench.restart().content("q") == ["last"]


def is_copy(commit: Commit) -> bool:
    record = replay.decode(commit.record)
    return bool(record.refresh or commit.trim is not None)


async def test_the_log_stays_short_under_a_steady_load(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.committer._log_slack = 2000
    monkeypatch.setattr(replay, "SLICE_ENTRIES", 5)
    bench.committer._next_check = 0
    worker = bench.worker("q")
    for number in range(400):
        await bench.committer.accept([to("q", str(number))])
        await bench.until(lambda: worker.held)
        worker.done()
    await bench.committer.put()
    assert sum(len(data) for _, data in bench.journal.records()) < 20_000
    assert bench.restart().content("q") == []


# bodies


async def test_bodies_are_read_by_the_reader_while_commits_go_on(bench: Bench) -> None:
    bench.core.memory.limit = 0
    for number in range(20):
        await bench.committer.accept([to("q", f"{number:02}" + "x" * 50_000)])
    await bench.until(lambda: not bench.core.memory.octets)
    worker = bench.worker("q", 3)
    while len(worker.seen) < 20:
        await bench.until(lambda: worker.held)
        worker.grant(worker.done())
    assert [body[:2] for body in worker.bodies] == [f"{number:02}" for number in range(20)]


# the end


async def test_close_commits_what_waits_and_refuses_what_comes_later() -> None:
    bench = Bench()
    worker = bench.worker("q")
    await bench.committer.accept([to("q", "1"), to("q", "2")])
    await bench.until(lambda: len(worker.held) == 2)
    worker.done("1")
    accepted = bench.committer.accept([to("q", "3")])
    await bench.committer.close()
    assert await accepted == [STORED]
    assert bench.journal.closed
    late = bench.committer.accept([to("q", "4")])
    assert await outcomes(late) == [REFUSED]
    assert not await outcomes(bench.committer.put())
    assert bench.restart().content("q") == ["2", "3"]


async def test_close_under_load_answers_everyone() -> None:
    bench = Bench()
    futures = []
    stop = False

    async def load() -> None:
        while not stop:
            futures.append(bench.committer.accept([to("q", str(len(futures)))]))
            await asyncio.sleep(0)

    task = asyncio.create_task(load())
    await asyncio.sleep(0.05)
    async with asyncio.timeout(10):
        await bench.committer.close()
    stop = True
    await task
    async with asyncio.timeout(10):
        answers = await asyncio.gather(*futures)
    stored = [str(number) for number, answer in enumerate(answers) if answer == [STORED]]
    assert bench.restart().content("q") == stored


async def test_close_while_the_store_refuses_ends_and_answers() -> None:
    bench = Bench()
    await bench.committer.put()
    bench.journal.errors += [StoreFullError("full")] * 1000
    first = bench.committer.accept([to("q", "1")])
    assert await outcomes(first) == [REFUSED]
    waiting = [bench.committer.put([StateChange("a", "b", b"c")]), bench.committer.accept([to("live"), to("q")])]
    async with asyncio.timeout(10):
        await bench.committer.close()
        assert await waiting[0] is False
        assert (await waiting[1])[1] is REFUSED  # type: ignore[index]


@pytest.mark.parametrize("error", [StoreFullError("full"), StoreFailedError("fsync")])
async def test_what_was_settled_while_the_disk_refused_is_tried_once_more_at_the_end(error: StoreError) -> None:
    bench = Bench()
    worker = bench.worker("q")
    await bench.committer.accept([to("q", "1"), to("q", "2")])
    await bench.until(lambda: len(worker.held) == 2)
    await bench.committer.put()
    bench.journal.errors.append(error)
    bench.journal.rebuild_errors.append(StoreError("no room"))
    assert await outcomes(bench.committer.accept([to("q", "3")])) == [REFUSED]
    worker.done("1")
    await bench.committer.close()
    assert bench.restart().content("q") == ["2"]


async def test_before_the_replay_is_over_everything_is_refused() -> None:
    core = Core(Clock(), b"s")
    committer = Committer(core, Faulty(), Pressure())
    future = committer.accept([to("q")])
    committer.start(restore(core, committer.journal))
    assert await outcomes(future) == [REFUSED]
    await committer.close()


async def test_time_is_kept_by_one_timer(bench: Bench) -> None:
    bench.policies["soon"] = QueuePolicy()
    configure(bench.core, bench.policies, [])
    worker = bench.worker("soon")
    await bench.committer.accept([to("soon", "late", delay=0.05), to("soon", "now")])
    await bench.until(lambda: worker.bodies == ["now"])
    bench.clock.now += 0.06
    await bench.until(lambda: worker.bodies == ["now", "late"])


# clients while the store takes nothing


async def test_a_failed_store_answers_everything_at_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(committing, "RETRY_SECONDS", 60.0)
    worker = bench.worker("live")
    await bench.committer.put()
    bench.journal.errors.append(StoreFailedError("fsync"))
    bench.journal.rebuild_errors.append(StoreError("no room"))
    assert await outcomes(bench.committer.accept([to("q", "1")])) == [REFUSED]
    order: list[int] = []
    futures: list[asyncio.Future[object]] = []
    for number, call in enumerate(
        (
            lambda: bench.committer.accept([to("live", "2")]),
            lambda: bench.committer.put([StateChange("mqtt", "new", b"")]),
            lambda: bench.committer.accept([to("q", "3")]),
            lambda: bench.committer.accept([to("live", "4")], [StateChange("mqtt", "with", b"4")]),
            bench.committer.put,
        )
    ):
        futures.append(call())  # type: ignore[arg-type]
        futures[-1].add_done_callback(lambda _, number=number: order.append(number))
    assert await outcomes(asyncio.gather(*futures)) == [[STORED], False, [REFUSED], [STORED], False]
    assert order == [0, 1, 2, 3, 4]
    await bench.until(lambda: worker.bodies == ["2", "4"])
    assert bench.committer.state("mqtt") == {"with": b"4"}  # made with its message, which is refused no more


async def test_what_insists_is_stored_as_soon_as_it_can_be_and_the_last_counts(bench: Bench) -> None:
    bench.journal.errors += [StoreFullError("full"), StoreFailedError("fsync")]
    bench.journal.rebuild_errors.append(StoreError("no room"))
    put = bench.committer.put([StateChange("mqtt", "a", b"put")])
    bench.committer.keep([StateChange("mqtt", "a", b"kept"), StateChange("mqtt", "b", b"1")])
    assert await outcomes(put) is False
    bench.committer.keep([StateChange("mqtt", "b", b"2")])
    await bench.until(lambda: bench.journal.rebuilds and not bench.core.refusing)
    bench.committer.keep([StateChange("mqtt", "b", b"3")])
    assert await outcomes(bench.committer.put([StateChange("mqtt", "c", b"4")])) is True
    assert bench.restart().restored.states == {"mqtt": {"a": b"kept", "b": b"3", "c": b"4"}}
    assert bench.committer.state("mqtt") == {"a": b"kept", "b": b"3", "c": b"4"}


async def test_what_insists_takes_no_more_room_than_its_keys(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(committing, "RETRY_SECONDS", 60.0)
    bench.journal.errors.append(StoreFullError("full"))
    assert await outcomes(bench.committer.accept([to("q")])) == [REFUSED]
    for number in range(1000):
        bench.committer.keep([StateChange("mqtt", "a", b"%d" % number)])
    assert await outcomes(bench.committer.put()) is False
    assert list(bench.core.gather.insisted.values()) == [StateChange("mqtt", "a", b"999")]
    assert not bench.core.gather.accepts and not bench.core.gather.states


# bodies that the new file lacks


@pytest.mark.parametrize("second", [StoreFailedError("fsync"), StoreFullError("full"), ValueError("what?")], ids=repr)
async def test_what_was_in_memory_when_the_file_failed_outlives_a_second_failure(
    bench: Bench, second: StoreError
) -> None:
    """The rows can't be read, so the new file lacks them; the commit that stores them again fails as well; and all the
    while the memory is full, and consumers give back what they hold."""
    worker = bench.worker("q", 3)
    # In a row each: given back amid the first failure, given back before the second, held; never delivered.
    for name in ("amid", "before", "held", "waiting"):
        await bench.committer.accept([to("q", name)])
    await bench.until(lambda: len(worker.held) == 3)
    await bench.committer.put()
    bench.journal.commit(Commit(dropped=list(bench.core.rows.uses)))
    bench.core.memory.limit = 0

    bench.journal.errors.append(StoreFailedError("fsync"))
    bench.journal.rebuild_errors.append(StoreError("no room"))
    assert await outcomes(bench.committer.accept([to("q", "refused")])) == [REFUSED]
    worker.give_back("amid")
    assert await outcomes(bench.committer.put()) is False
    bench.journal.gate.clear()
    bench.journal.reached.clear()
    await bench.until(bench.journal.reached.is_set)  # by what stores them again
    assert bench.journal.rebuilds == 1
    bench.journal.errors.append(second)
    worker.give_back("before")
    await asyncio.sleep(0.05)  # dispatched, and spilled if that were allowed
    bench.journal.gate.set()
    await bench.until(lambda: bench.committer.stats.failures == 2 and not bench.core.refusing)
    assert await outcomes(bench.committer.accept([to("q", "last")])) == [STORED]
    found = bench.restart()
    assert found.content("q") == ["amid", "before", "held", "waiting", "last"]
    assert not found.core.rows.unreadable
    # What there was no memory for has left it, now that it is on the disk.
    resident = bench.core.get("q").resident
    await bench.until(lambda: [message.body for message in resident.values()] == [b"waiting"])


async def test_what_is_read_from_a_failed_file_may_leave_the_memory(bench: Bench) -> None:
    """Otherwise who takes messages and gives them back would bring the whole store into it."""
    await bench.committer.accept([to("q", "1")])
    queue = bench.core.get("q")
    queue.spill(queue.entries.first, queue.entries.ident[queue.entries.first])
    await bench.committer.put()
    bench.core.memory.limit = 0
    bench.journal.errors.append(StoreFailedError("fsync"))
    bench.journal.rebuild_errors += [StoreError("no room")] * 3
    assert await outcomes(bench.committer.accept([to("q", "refused")])) == [REFUSED]
    worker = bench.worker("q", 1)
    await bench.until(lambda: worker.held)
    worker.give_back()
    await bench.until(lambda: not bench.core.is_dirty)
    assert bench.core.refusing and not queue.resident
