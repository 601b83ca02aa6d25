"""What a start brings back, and the log that is copied forward so that it stays short (rulings 4, 13, 27)."""

from __future__ import annotations

import random

import msgspec
import pytest

from gateway.engine import recovery as replay
from gateway.engine.recovery import Refresh, live_octets, snapshot
from gateway.errors import StoreError
from gateway.model.policy import DedupPolicy, QueuePolicy, Seconds, SecondsRange
from gateway.model.state import StateChange
from gateway.storage.journal import Commit
from gateway.storage.memory import MemoryJournal
from gateway.storage.records import Record, decode, encode, pack, unpack
from gateway.transport import Binding, Credit, ExchangeBinding, HeadersMatch, Options, Outcome
from tests.harness.kernel import GROUP, KEY, Kernel, grouped, on, to

FIFO = QueuePolicy(group=GROUP, dedup=DedupPolicy(KEY, Seconds(1000)))


@pytest.fixture(autouse=True)
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "SLICE_ENTRIES", 3)


def state(kernel: Kernel) -> dict[str, list[object]]:
    """All that must be the same after a restart."""
    found: dict[str, list[object]] = {}
    for queue in kernel.core.queues.values():
        entries = queue.entries
        bodies = kernel.content(queue.name)
        found[queue.name] = [
            (
                entries.ident[slot],
                body,
                queue.groups.name(entries.group[slot]),
                kernel.core.extras[entries.extra[slot]],
                queue.attempts.get(slot, 0),
                entries.expires[slot],
                entries.accepted[slot],
            )
            for slot, body in zip(entries.slots(), bodies, strict=True)
        ]
    return found


# a start


def test_everything_is_back_after_a_restart_and_what_was_in_flight_waits_again() -> None:
    kernel = Kernel({"q": FIFO, "plain": QueuePolicy()})
    kernel.accept(*[grouped("q", f"{number}", "abc"[number % 3], f"k{number}") for number in range(20)])
    kernel.accept(*[to("plain", str(number), ttl=100.0 + number) for number in range(5)])
    worker = kernel.worker("q", 3)
    kernel.run()
    worker.done("0")
    worker.retry("1", error="no")
    worker.dead("2")
    kernel.run()
    after = kernel.crash()
    assert state(after) == state(kernel)
    assert after.queue("q").in_flight == 0
    assert after.restored.time >= kernel.clock.now - 1


def test_after_a_restart_only_what_is_new_is_said_to_be_seen_for_the_first_time() -> None:
    kernel = Kernel({"q": QueuePolicy()})
    kernel.send("q", "in flight", "waiting")
    worker = kernel.worker("q", 1)
    kernel.run()
    assert worker.bodies == ["in flight"]
    after = kernel.crash()
    after.send("q", "new")
    worker = after.worker("q")
    after.run()
    assert [(seen.message.body, seen.redelivered) for seen in worker.seen] == [
        (b"in flight", True),
        (b"waiting", True),  # it may have been in flight, for all that the journal says
        (b"new", False),
    ]


def test_a_start_reads_no_body() -> None:
    class Watched(MemoryJournal):
        reads = 0

        def read(self, rows: object) -> dict[int, bytes]:
            self.reads += 1
            return super().read(rows)  # type: ignore[arg-type]

    journal = Watched()
    kernel = Kernel({"q": FIFO}, journal=journal)
    kernel.accept(*[grouped("q", str(number), "a", str(number)) for number in range(50)])
    kernel.run()
    journal.reads = 0
    after = kernel.crash()
    assert after.queue("q").entries.count == 50
    assert journal.reads == 0


def test_queues_that_clients_declared_come_back_with_their_bindings() -> None:
    kernel = Kernel()
    core = kernel.core
    policy = QueuePolicy(group="{topic[1]|none}", max_messages=5, overflow="drop-oldest", ttl=Seconds(60))
    core.declare("mine", policy, "amqp")
    binding = Binding(
        queue="mine",
        filter="a/#",
        exchange="own",
        match=HeadersMatch((("x", 1),), any=True),
        owner="amqp",
        options=Options(1, (3, 4), True),
    )
    core.bind(binding)
    core.bind(Binding(queue="mine", filter="gone", owner="amqp"))
    core.unbind(Binding(queue="mine", filter="gone", owner="amqp"))
    core.declare("volatile", QueuePolicy(durable=False), "amqp")
    core.bind(Binding(queue="volatile", filter="x", owner="amqp"))
    kernel.run()
    after = kernel.crash()
    found = after.queue("mine")
    assert (found.policy, found.owner) == (policy, "amqp")
    assert after.core.router.bindings("mine") == [binding]
    assert "volatile" not in after.core.queues


def test_bindings_between_exchanges_come_back_if_they_are_durable() -> None:
    kernel = Kernel()
    durable = ExchangeBinding(
        exchange="a", to="b", filter="x/#", match=HeadersMatch((("h", 1),)), durable=True, owner="amqp"
    )
    for binding in (
        durable,
        ExchangeBinding(exchange="a", to="c", owner="amqp"),
        ExchangeBinding(exchange="a", to="d", durable=True),
    ):
        kernel.core.bind_exchange(binding)
    kernel.core.unbind_exchange(ExchangeBinding(exchange="a", to="d"))
    kernel.run()
    after = kernel.crash()
    assert after.core.router.exchange_bindings() == [durable]


def test_transport_states_come_back_the_last_write_wins() -> None:
    kernel = Kernel()
    kernel.put(StateChange("mqtt", "a", b"1"), StateChange("mqtt", "b", b"2"), StateChange("amqp", "a", b"3"))
    kernel.run()
    kernel.put(StateChange("mqtt", "a", b"4"), StateChange("mqtt", "b", None))
    kernel.run()
    assert kernel.crash().restored.states == {"mqtt": {"a": b"4"}, "amqp": {"a": b"3"}}


def test_idents_and_queue_numbers_never_come_again() -> None:
    kernel = Kernel({"q": QueuePolicy()})
    kernel.send("q", "1", "2", "3")
    worker = kernel.worker("q")
    kernel.run()
    worker.done()
    kernel.run()
    while kernel.copy_forward():
        pass
    after = kernel.crash()
    after.run()
    after.send("q", *[str(number) for number in range(10)])
    again = after.crash()
    assert again.content("q") == [str(number) for number in range(10)]


def test_a_message_is_not_taken_for_one_that_was_settled_before_the_log_was_trimmed() -> None:
    kernel = Kernel({"q": QueuePolicy()})
    worker = kernel.worker("q")
    for number in range(30):
        kernel.send("q", str(number))
    kernel.commit()
    refresh = Refresh(kernel.core, kernel.last_id + 1)
    worker.done()
    kernel.commit()
    last = False
    while not last:
        record, last = refresh.next_slice()
        kernel.journal.commit(Commit(record=record, trim=refresh.first_kept if last else None))
    for _ in range(2):
        kernel = kernel.crash()
        kernel.run()
    kernel.send("q", *[str(number) for number in range(40)])
    assert kernel.crash().content("q") == [str(number) for number in range(40)]


def test_body_rows_that_nothing_refers_to_are_dropped_at_a_start() -> None:
    kernel = Kernel({"q": QueuePolicy()})
    kernel.send("q", "1")
    kernel.journal.commit(Commit(bodies=[(500, b"left over")]))
    after = kernel.crash()
    after.run()
    assert 500 not in [row for row, _ in after.journal.rows()]
    assert after.content("q") == ["1"]
    assert after.core.rows.next > 500


def test_a_missing_body_does_not_stop_the_others_and_comes_back_when_it_can_be_read() -> None:
    kernel = Kernel({"q": QueuePolicy()}, max_memory=0)
    kernel.send("q", "1")
    kernel.send("q", "2")
    lost = dict(kernel.journal.read([kernel.queue("q").entries.row[kernel.queue("q").entries.first]]))
    kernel.journal.commit(Commit(dropped=list(lost)))
    after = kernel.crash()
    worker = after.worker("q")
    after.run()
    assert worker.bodies == ["2"]
    assert after.queue("q").entries.count == 2
    after.journal.commit(Commit(bodies=list(lost.items())))
    after.core.rows.unreadable.clear()
    after.advance(5)
    assert worker.bodies == ["2", "1"]


@pytest.mark.parametrize("data", [b"", b"\x00", b"\xc1", b"not msgpack", encode(Record(1.0, idents=b"123"))])
def test_a_record_that_makes_no_sense_is_an_error_with_a_reason(data: bytes) -> None:
    kernel = Kernel()
    kernel.run()
    kernel.journal._log[99] = data
    with pytest.raises(StoreError, match="makes no sense"):
        kernel.crash()


def test_a_state_that_makes_no_sense_is_an_error_with_a_reason() -> None:
    for key in ("queue/x", "bind/x"):
        journal = MemoryJournal()
        journal.commit(Commit(state=[StateChange("core", key, b"\xc1")]))
        with pytest.raises(StoreError, match="makes no sense"):
            Kernel(journal=journal)


def test_records_are_little_endian_and_mean_what_they_meant() -> None:
    assert pack("q", [1, -2]) == bytes([1, 0, 0, 0, 0, 0, 0, 0]) + bytes([0xFE] + [0xFF] * 7)
    assert list(unpack("d", pack("d", [1.5, 0.0]))) == [1.5, 0.0]
    record = Record(5.0, settled=pack("q", [7]), attempts=[(1, 2, "x")], refresh=3, dues=[(1, 2.0)])
    assert decode(encode(record)) == record
    short = msgspec.msgpack.encode([5.0, b"12345678"])
    assert decode(short) == Record(5.0, b"12345678")


# copying forward


def fill(kernel: Kernel, count: int = 12) -> None:
    kernel.accept(*[grouped("q", f"m{number}", "ab"[number % 2], f"k{number}", ttl=5000.0) for number in range(count)])
    kernel.run()


def test_the_log_is_short_again_and_says_the_same() -> None:
    kernel = Kernel({"q": FIFO, "plain": QueuePolicy()})
    worker = kernel.worker("q", 1)
    fill(kernel)
    for _ in range(40):
        kernel.send("plain", "x")
    taker = kernel.worker("plain")
    kernel.run()
    taker.done()
    worker.retry()
    kernel.accept(to("plain", "late", delay=500.0))
    kernel.run()
    before = state(kernel)
    keys = dict(kernel.core.dedup.live(kernel.clock.now))
    while kernel.copy_forward():
        pass
    records = [decode(data) for _, data in kernel.journal.records()]
    assert len(records) < 20
    after = kernel.crash()
    assert state(after) == before
    assert dict(after.core.dedup.live(after.clock.now)) == keys
    late = after.worker("plain")
    after.advance(499)
    assert "late" not in late.bodies
    after.advance(2)
    assert "late" in late.bodies


@pytest.mark.parametrize("seed", range(8))
def test_a_crash_after_any_commit_of_it_loses_and_doubles_nothing(seed: int) -> None:
    """Between the slices messages come, are settled, retried, dead-lettered and redriven."""
    rng = random.Random(seed)
    kernel = Kernel({"q": FIFO}, max_memory=rng.choice([0, 1 << 30]))
    worker = kernel.worker("q", 4)
    fill(kernel, 30)
    for step in range(80):
        kernel.copy_forward()
        action = rng.choice(["done", "retry", "dead", "new", "redrive", "nothing"])
        if worker.held and action in ("done", "retry", "dead"):
            body = rng.choice(worker.holding)
            {"done": worker.done, "retry": worker.retry, "dead": worker.dead}[action](body)
            worker.grant(1)
        elif action == "new":
            kernel.accept(grouped("q", f"new{step}", "abc"[step % 3], f"new{step}"))
        elif action == "redrive":
            kernel.redrive("dead-letters")
        if rng.random() < 0.7:
            kernel.run()
            assert state(kernel.crash()) == state(kernel)
        if rng.random() < 0.1:
            kernel.run()
            kernel = kernel.crash()
            kernel.run()
            worker = kernel.worker("q", 4)
            kernel.run()


def test_a_crash_in_the_middle_leaves_the_old_log_in_force() -> None:
    kernel = Kernel({"q": FIFO})
    fill(kernel)
    for _ in range(4):
        assert kernel.copy_forward()
    worker = kernel.worker("q")
    kernel.run()
    worker.done("m0")
    kernel.run()
    after = kernel.crash()
    assert state(after) == state(kernel)
    while after.copy_forward():
        pass
    assert state(after.crash()) == state(kernel)


def test_a_second_copy_replaces_the_first() -> None:
    kernel = Kernel({"q": FIFO})
    fill(kernel)
    for _ in range(3):
        while kernel.copy_forward():
            pass
        kernel.accept(grouped("q", "one more", "c", str(kernel.last_id)))
        kernel.run()
    assert state(kernel.crash()) == state(kernel)
    assert len(kernel.queue("q").groups) == 3


def test_a_group_number_that_is_used_again_during_the_copy_means_the_new_group() -> None:
    kernel = Kernel({"q": QueuePolicy(group=GROUP)})
    kernel.accept(*[grouped("q", f"{name}", name) for name in "abcdefgh"])
    kernel.run()
    refresh = Refresh(kernel.core, kernel.last_id + 1)
    worker = kernel.worker("q")
    last, step = False, 0
    while not last:
        kernel.commit()
        record, last = refresh.next_slice()
        kernel.journal.commit(Commit(record=record, trim=refresh.first_kept if last else None))
        kernel.run()
        worker.done()
        kernel.accept(grouped("q", f"new{step}", f"new{step}"))
        kernel.run()
        step += 1
    after = kernel.crash()
    found = after.queue("q")
    names = [found.groups.name(found.entries.group[slot]) for slot in found.entries.slots()]
    assert names == after.content("q")


def test_only_durable_queues_are_copied() -> None:
    kernel = Kernel({"q": QueuePolicy(dead_letter="bin"), "bin": QueuePolicy(durable=False)})
    kernel.send("q", "1")
    worker = kernel.worker("q")
    kernel.run()
    worker.dead()
    kernel.send("bin", "2")
    while kernel.copy_forward():
        pass
    after = kernel.crash()
    after.run()
    assert after.content("bin") == []
    assert after.leaks() == []


def test_what_a_transient_queue_held_before_it_became_durable_is_not_promised_and_harms_nothing() -> None:
    kernel = Kernel({"q": QueuePolicy(durable=False)})
    kernel.send("q", "old")
    kernel.policies["q"] = QueuePolicy()
    kernel.configure()
    kernel.send("q", "new")
    while kernel.copy_forward():
        pass
    after = kernel.crash()
    assert after.content("q") == ["new"]
    worker = kernel.worker("q")
    kernel.run()
    worker.done()
    kernel.run()
    assert kernel.leaks() == []


def test_a_snapshot_for_a_new_file_says_everything_also_what_moves_at_the_moment() -> None:
    kernel = Kernel({"q": FIFO})
    worker = kernel.worker("q", 3)
    fill(kernel)
    kernel.accept(on("r", "kept", retain=True))
    kernel.run()
    worker.retry("m0", error="no")
    worker.dead("m1")
    found = snapshot(kernel.core, {"mqtt": {"a": b"1"}}, Commit())
    journal = MemoryJournal()
    bodies = kernel.journal.read([row for row, _ in kernel.journal.rows()])
    journal.commit(Commit(state=list(found.state), bodies=sorted(bodies.items()), expiring=list(found.expiring)))
    for record in found.records:
        journal.commit(Commit(record=record))
    after = Kernel(kernel.policies, journal=journal, clock=kernel.clock)
    kernel.run()
    assert state(after) == state(kernel)
    assert after.restored.states == {"mqtt": {"a": b"1"}}
    assert [message.body for _, message in after.core.retained.find("#", after.clock())] == [b"kept"]
    assert after.core.dedup.secret == kernel.core.dedup.secret
    now = kernel.clock.now
    assert dict(after.core.dedup.live(now)) == dict(kernel.core.dedup.live(now)) != {}


def test_a_new_file_has_no_keys_of_queues_that_it_does_not_keep() -> None:
    policy = QueuePolicy(durable=False, dedup=DedupPolicy(KEY))
    kernel = Kernel({"brief": policy})
    message = grouped("brief", "1", "a", "k")
    assert kernel.send("brief", "1", properties=message.properties) == [Outcome.STORED]
    kernel.journal.rebuild(snapshot(kernel.core, {}, Commit()))
    after = kernel.crash()
    # Its message is gone, so whoever sends it again must not hear that it is there.
    assert after.send("brief", "1", properties=message.properties) == [Outcome.STORED]


def test_a_retry_time_is_not_kept_by_a_copy_of_the_log_and_a_delay_is() -> None:
    kernel = Kernel({"q": QueuePolicy(retry_delay=SecondsRange((50.0, 50.0)))})
    worker = kernel.worker("q")
    kernel.send("q", "retried")
    kernel.send("q", "delayed", delay=50.0)
    worker.retry("retried")
    kernel.run()
    while kernel.copy_forward():
        pass
    after = kernel.crash()
    worker = after.worker("q")
    after.run()
    assert worker.bodies == ["retried"]
    after.advance(50)
    assert worker.bodies == ["retried", "delayed"]


def test_moves_that_a_new_file_has_already_are_not_doubled_by_the_commit_that_follows() -> None:
    kernel = Kernel({"q": QueuePolicy()})
    kernel.send("q", "1", "2")
    worker = kernel.worker("q")
    kernel.run()
    worker.dead("1")
    found = snapshot(kernel.core, {}, Commit())
    journal = MemoryJournal()
    bodies = kernel.journal.read([row for row, _ in kernel.journal.rows()])
    journal.commit(Commit(state=list(found.state), bodies=sorted(bodies.items())))
    for record in found.records:
        journal.commit(Commit(record=record))
    kernel.journal = journal
    kernel.run()
    after = kernel.crash()
    assert (after.content("q"), after.content("dead-letters")) == (["2"], ["1"])


def test_live_octets_follow_what_is_live() -> None:
    kernel = Kernel({"q": FIFO})
    assert live_octets(kernel.core) == 0
    fill(kernel, 10)
    assert live_octets(kernel.core) > 500


def test_a_reading_worker_survives_the_end_of_its_row() -> None:
    """A row is read ahead and let go before anybody needs it."""
    kernel = Kernel({"q": QueuePolicy()}, max_memory=0)
    for number in range(6):
        kernel.send("q", f"{number}" + "x" * 300_000)
    pool = Credit(messages=1)
    worker = kernel.worker("q", 100, [pool])
    kernel.run()
    kernel.queue("q").purge()
    kernel.run()
    assert [body[0] for body in worker.bodies] == ["0"]
    worker.done()
    kernel.run()
    assert kernel.leaks() == []


def test_a_key_stays_for_its_window_over_copies_and_restarts() -> None:
    kernel = Kernel({"q": QueuePolicy(dedup=DedupPolicy(KEY, Seconds(100)))})
    kernel.accept(grouped("q", "1", "a", "k"))
    kernel.run()
    for _ in range(3):
        while kernel.copy_forward():
            pass
        kernel = kernel.crash()
        kernel.run()
        kernel.clock.now += 30
        answer = kernel.accept(grouped("q", "2", "a", "k"))
        kernel.run()
        assert answer.outcomes == [Outcome.DUPLICATE]
    kernel.clock.now += 10
    answer = kernel.accept(grouped("q", "3", "a", "k"))
    kernel.run()
    assert answer.outcomes == [Outcome.STORED]


def test_a_dead_letter_that_waits_for_room_is_not_delayed_after_a_restart() -> None:
    full = QueuePolicy(max_messages=1, dead_letter="none")
    kernel = Kernel({"q": QueuePolicy(dead_letter="bin"), "bin": full})
    kernel.send("bin", "first")
    kernel.send("q", "x")
    worker = kernel.worker("q")
    kernel.run()
    worker.dead("x")
    while kernel.copy_forward():
        pass
    after = kernel.crash()
    worker = after.worker("q")
    after.run()
    assert worker.bodies == ["x"]
