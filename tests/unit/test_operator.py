"""What an operator can see and do: groups, release, browse, redrive, purge, delete (rulings 18, 21, 24)."""

from __future__ import annotations

import asyncio

import pytest

from gateway.admin.operations import GroupView, QueueStats, RedriveProgress, Selection, StoredMessage
from gateway.admin.service import Operator, _stats
from gateway.errors import GatewayError, UnknownQueueError
from gateway.model.message import Message
from gateway.model.policy import DedupPolicy, QueuePolicy, Seconds, SecondsRange
from gateway.queueing.queue import Queue
from gateway.transport import Binding, HeadersMatch
from tests.harness import kernel as kernel_module
from tests.harness.kernel import GROUP, KEY, Kernel, Worker, grouped, on, to
from tests.harness.local import local_gateway

FIFO = QueuePolicy(group=GROUP, dead_letter="bin")
BIN = QueuePolicy(max_deliveries=None, dead_letter="none")


def dead(kernel: Kernel, *bodies: str) -> None:
    """These, of all that the queue `q` has, are rejected in this order; the rest waits."""
    worker = kernel.worker("q")
    kernel.run()
    for body in bodies:
        worker.dead(body)
        kernel.run()
    worker.detach()
    kernel.run()


def made(policy: QueuePolicy = FIFO, **others: QueuePolicy) -> Kernel:
    return Kernel({"q": policy, "bin": BIN, **others})


def put(kernel: Kernel, *names: str) -> None:
    kernel.accept(*[grouped("q", name, name[0]) for name in names])
    kernel.run()


# redrive


def test_redrive_puts_everything_back_behind_what_the_group_holds_with_attempts_0_and_its_history() -> None:
    kernel = made(QueuePolicy(group=GROUP, dead_letter="bin", max_deliveries=1))
    put(kernel, "a1", "a2", "b1")
    worker = kernel.worker("q")
    kernel.run()
    worker.retry("a1", error="no")
    kernel.run()
    worker.detach()
    assert kernel.redrive("bin") == RedriveProgress(1, 1)
    kernel.run()
    assert kernel.content("q") == ["a2", "b1", "a1"]
    after = kernel.crash()
    assert (after.content("q"), after.content("bin")) == (["a2", "b1", "a1"], [])
    again = after.worker("q")
    after.run()
    again.done("a2")
    after.run()
    seen = next(seen for seen in again.seen if seen.message.body == b"a1")
    assert seen.attempts == 0
    assert seen.redelivered  # nobody knows what was delivered before the restart
    assert [(death.queue, death.reason) for death in seen.deaths] == [("q", "exhausted")]


def test_redrive_keeps_the_order_of_the_group_whatever_the_order_of_the_deaths() -> None:
    kernel = made(QueuePolicy(group=GROUP, group_in_flight=3, dead_letter="bin"))
    put(kernel, "a1", "a2", "a3")
    dead(kernel, "a3", "a1", "a2")
    assert kernel.content("bin") == ["a3", "a1", "a2"]
    kernel.redrive("bin")
    kernel.run()
    assert kernel.content("q") == ["a1", "a2", "a3"]


def test_redrive_of_a_selection() -> None:
    kernel = made(QueuePolicy(dead_letter="bin"), r=QueuePolicy(dead_letter="bin", ttl=Seconds(1)))
    kernel.core.router.bind(Binding(queue="q", filter="#"))
    kernel.accept(*[on(f"t/{number}", str(number)) for number in range(4)])
    dead(kernel, "0", "1", "2", "3")
    kernel.send("r", "old")
    kernel.advance(5)
    kernel.run()
    ids = [kernel.queue("bin").entries.ident[slot] for slot in kernel.queue("bin").entries.slots()]
    now = kernel.clock.now
    for selection, count in [
        (Selection(), 5),
        (Selection(ids=(ids[1], ids[3], 999)), 2),
        (Selection(queue="r"), 1),
        (Selection(reason="rejected"), 4),
        (Selection(topic="t/+"), 4),
        (Selection(topic="t/2"), 1),
        (Selection(before=now - 4), 4),
        (Selection(limit=2), 2),
        (Selection(queue="q", reason="expired"), 0),
    ]:
        assert kernel.redrive("bin", selection, dry_run=True).total == count, selection
    assert kernel.redrive("bin", Selection(topic="t/2")) == RedriveProgress(1, 1)
    kernel.run()
    assert (kernel.content("q"), kernel.content("bin")) == (["2"], ["0", "1", "3", "old"])


def test_a_dry_run_counts_and_changes_nothing() -> None:
    kernel = made()
    put(kernel, "a1", "a2")
    dead(kernel, "a1")
    assert kernel.redrive("bin", dry_run=True) == RedriveProgress(1, 0)
    assert not kernel.commit()
    assert kernel.content("bin") == ["a1"]


def test_what_is_in_flight_is_left_out() -> None:
    kernel = made()
    put(kernel, "a1", "a2")
    dead(kernel, "a1", "a2")
    taker = kernel.worker("bin", 1)
    kernel.run()
    assert kernel.redrive("bin") == RedriveProgress(1, 1, skipped=1)
    assert taker.holding == ["a1"]
    kernel.run()
    assert (kernel.content("q"), kernel.content("bin")) == (["a2"], ["a1"])
    assert taker.done() == 1


@pytest.mark.parametrize("how", ["deleted", "full"])
def test_a_target_that_goes_or_fills_while_a_body_is_read_loses_nothing(
    monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    kernel = made(other=QueuePolicy(group="{topic[0]|none}", max_messages=1))
    put(kernel, "a1")
    dead(kernel, "a1")
    read = kernel_module._Steps.message

    async def slowly(steps: kernel_module._Steps, queue: Queue, slot: int) -> Message | None:
        if how == "deleted":
            kernel.core.delete("other")
        else:
            kernel.send("other", "first")
        return await read(steps, queue, slot)

    monkeypatch.setattr(kernel_module._Steps, "message", slowly)
    end = kernel.redrive("bin", to="other")
    assert end.moved == 0 and end.error
    kernel.run()
    assert kernel.content("bin") == ["a1"]


def test_redrive_stops_with_a_message_when_the_target_is_full() -> None:
    kernel = made(QueuePolicy(dead_letter="bin", max_messages=2))
    kernel.send("q", "1", "2")
    dead(kernel, "1", "2")
    kernel.send("q", "3")
    progress = kernel.redrive("bin")
    assert (progress.total, progress.moved) == (2, 1)
    assert "full" in progress.error
    kernel.run()
    assert (kernel.content("q"), kernel.content("bin")) == (["3", "1"], ["2"])


def test_redrive_stops_when_the_target_is_gone_and_to_names_another() -> None:
    kernel = Kernel({"bin": BIN, "other": QueuePolicy(group=GROUP)})
    kernel.core.declare("q", FIFO, "amqp")
    put(kernel, "a1", "b1")
    dead(kernel, "a1", "b1")
    kernel.core.delete("q")
    kernel.run()
    progress = kernel.redrive("bin")
    assert progress.moved == 0 and "no queue 'q'" in progress.error
    assert kernel.redrive("bin", to="other") == RedriveProgress(2, 2)
    kernel.run()
    other = kernel.queue("other")
    assert [other.groups.name(other.entries.group[slot]) for slot in other.entries.slots()] == ["a", "b"]


def test_redrive_to_a_queue_whose_template_has_no_value_stops_and_says_so() -> None:
    kernel = made(QueuePolicy(dead_letter="bin"), other=QueuePolicy(group=KEY))
    kernel.send("q", "1")
    dead(kernel, "1")
    progress = kernel.redrive("bin", to="other")
    assert progress.moved == 0 and "header[key]" in progress.error
    assert kernel.content("bin") == ["1"]


def test_redrive_into_itself_and_of_or_to_an_unknown_queue_is_an_error() -> None:
    kernel = made()
    put(kernel, "a1")
    dead(kernel, "a1")
    assert "itself" in kernel.redrive("bin", to="bin").error
    for queue, to_queue in [("nobody", None), ("bin", "nobody")]:
        with pytest.raises(UnknownQueueError):
            kernel.redrive(queue, to=to_queue)


def test_redrive_moves_bodies_that_are_on_disk_only() -> None:
    kernel = Kernel({"q": FIFO, "bin": BIN, "live": QueuePolicy(durable=False)}, max_memory=-1)
    put(kernel, "a1", "b1")
    dead(kernel, "a1", "b1")
    assert not kernel.queue("bin").resident
    kernel.redrive("bin", Selection(limit=1))
    kernel.redrive("bin", to="live")
    kernel.run()
    assert (kernel.content("q"), kernel.content("live")) == (["a1"], ["b1"])
    for name in ("q", "live"):
        worker = kernel.worker(name)
        kernel.run()
        worker.done()
    kernel.run()
    assert kernel.leaks() == []


def test_redrive_neither_reads_nor_writes_dedup_keys_and_takes_no_ttl_or_delay() -> None:
    kernel = made(QueuePolicy(dedup=DedupPolicy("sha256"), dead_letter="bin", delay=Seconds(100)))
    kernel.accept(to("q", "1", ttl=1000.0))
    kernel.run()
    kernel.advance(200)
    dead(kernel, "1")
    keys = len(kernel.core.dedup)
    assert kernel.redrive("bin") == RedriveProgress(1, 1)
    kernel.advance(2000)
    assert len(kernel.core.dedup) <= keys
    worker = kernel.worker("q")
    kernel.run()
    assert worker.bodies == ["1"]


def test_a_crash_in_the_middle_of_a_redrive_loses_and_doubles_nothing() -> None:
    kernel = made()
    put(kernel, "a1", "a2", "a3")
    dead(kernel, "a1", "a2", "a3")
    kernel.redrive("bin", Selection(limit=2))
    before = kernel.crash()
    assert (before.content("q"), before.content("bin")) == ([], ["a1", "a2", "a3"])
    kernel.commit()
    after = kernel.crash()
    assert (after.content("q"), after.content("bin")) == (["a1", "a2"], ["a3"])


# parked groups


def parked(**fields: object) -> tuple[Kernel, Worker]:
    policy = QueuePolicy(group=GROUP, max_deliveries=2, on_exhausted="park", dead_letter="bin", **fields)  # type: ignore[arg-type]
    kernel = made(policy)
    worker = kernel.worker("q")
    put(kernel, "a1", "a2", "b1")
    for _ in range(2):
        worker.retry("a1", error="poison")
        kernel.run()
    return kernel, worker


def test_release_lets_the_group_go_on_with_attempts_reset_also_over_a_restart() -> None:
    kernel, worker = parked()
    assert kernel.release("q", "a")
    kernel.run()
    assert [seen.attempts for seen in worker.seen if seen.message.body == b"a1"] == [0, 1, 0]
    after = kernel.crash()
    again = after.worker("q")
    after.run()
    assert sorted(again.bodies) == ["a1", "b1"]
    again.retry("a1")
    after.run()
    assert not after.release("q", "a")
    again.retry("a1")
    after.run()
    assert after.release("q", "a")


def test_release_dead_dead_letters_the_head_and_the_group_goes_on() -> None:
    kernel, worker = parked()
    assert kernel.release("q", "a", dead=True)
    kernel.run()
    assert kernel.deaths("bin") == [("q", "exhausted", 2, "poison")]
    assert worker.bodies[-1] == "a2"


def test_release_dead_lets_a_message_go_round_in_a_circle_as_a_rejection_does() -> None:
    """Its attempts are used up each time, as its deaths say; but that it goes is the operator's word."""
    policy = QueuePolicy(group=GROUP, max_deliveries=1, on_exhausted="park", dead_letter="wait")
    kernel = Kernel({"q": policy, "wait": QueuePolicy(ttl=Seconds(5), dead_letter="q")}, [("#", "q")])
    put(kernel, "a1")
    worker = kernel.worker("q")
    for times in range(1, 4):
        kernel.run()
        assert worker.bodies == ["a1"] * times
        worker.retry("a1", error="poison")
        kernel.run()
        assert kernel.release("q", "a", dead=True)
        kernel.run()
        assert kernel.deaths("wait")[0][:2] == ("q", "exhausted")
        kernel.advance(6)
    assert kernel.queue("q").counters.circled == 0


def test_release_of_a_group_that_is_not_parked_or_not_there() -> None:
    kernel, _ = parked()
    assert not kernel.release("q", "b")
    assert not kernel.release("q", "nobody")
    assert not kernel.release("bin", "a")
    with pytest.raises(UnknownQueueError):
        kernel.release("nobody", "a")


def test_release_dead_to_full_dead_letters_changes_nothing() -> None:
    kernel, _ = parked()
    kernel.policies["bin"] = QueuePolicy(max_messages=1, max_deliveries=None, dead_letter="none")
    kernel.configure()
    kernel.send("bin", "full")
    with pytest.raises(GatewayError, match="takes nothing now"):
        kernel.release("q", "a", dead=True)
    kernel.run()
    assert kernel.content("q")[0] == "a1"
    assert kernel.release("q", "a")


def test_a_parked_group_still_accepts_counts_and_dedups() -> None:
    kernel, _ = parked(max_messages=4)
    kernel.accept(grouped("q", "a3", "a"))
    answer = kernel.accept(grouped("q", "a4", "a"))
    kernel.run()
    assert answer.outcomes is not None and answer.outcomes[0].value == "refused"
    assert kernel.content("q") == ["a1", "a2", "b1", "a3"]


def test_purging_a_parked_head_lets_its_group_go_on() -> None:
    kernel, worker = parked()
    worker.done("b1")
    kernel.run()
    kernel.queue("q").purge()
    put(kernel, "a5")
    assert worker.bodies[-1] == "a5"
    worker.done()
    kernel.run()
    assert kernel.leaks() == []


# looking


def test_groups_tell_their_state() -> None:
    kernel = made(
        QueuePolicy(
            group=GROUP,
            max_deliveries=2,
            on_exhausted="park",
            dead_letter="bin",
            retry_delay=SecondsRange((10.0, 10.0)),
        )
    )
    worker = kernel.worker("q", 3)
    put(kernel, "a1", "b1", "c1")
    worker.retry("a1", error="poison")
    kernel.advance(11)
    worker.grant(1)
    kernel.run()
    worker.retry("a1", error="poison")
    worker.retry("c1")
    kernel.run()
    worker.subscription.revoke()
    put(kernel, "a2", "d1")
    kernel.advance(3)
    views = {view.group: view for view in asyncio.run(kernel.operator().groups("q"))}
    assert {name: view.state for name, view in views.items()} == {
        "a": "parked",
        "b": "in-flight",
        "c": "waiting",
        "d": "ready",
    }
    assert (views["a"].depth, views["a"].attempts, views["a"].error) == (2, 2, "poison")
    assert views["c"].until is not None and views["c"].until > kernel.clock.now
    assert [view.group for view in asyncio.run(kernel.operator().groups("q", parked=True))] == ["a"]
    assert len(asyncio.run(kernel.operator().groups("q", limit=2))) == 2
    assert asyncio.run(kernel.operator().groups("bin")) == []
    assert isinstance(views["a"], GroupView)


def test_browse_shows_the_oldest_after_an_id_without_touching_them() -> None:
    kernel = made()
    put(kernel, "a1", "b1", "a2")
    worker = kernel.worker("q", 1)
    kernel.run()
    stored = asyncio.run(kernel.operator().browse("q", limit=2))
    assert [(each.message.body, each.group, each.in_flight) for each in stored] == [
        (b"a1", "a", True),
        (b"b1", "b", False),
    ]
    rest = asyncio.run(kernel.operator().browse("q", after=stored[-1].id))
    assert [each.message.body for each in rest] == [b"a2"]
    assert isinstance(rest[0], StoredMessage)
    assert worker.holding == ["a1"]


def test_selection_says_the_same_of_a_stored_message() -> None:
    kernel = made()
    put(kernel, "a1", "a2")
    dead(kernel, "a1")
    (stored,) = asyncio.run(kernel.operator().browse("bin"))
    assert Selection(queue="q", reason="rejected").takes(stored)
    assert not Selection(reason="expired").takes(stored)
    assert not Selection(ids=(0,)).takes(stored)
    assert not Selection(before=stored.deaths[0].last).takes(stored)
    assert Selection(before=stored.deaths[0].last + 1, topic="q").takes(stored)


def test_stats_add_up() -> None:
    kernel = made(QueuePolicy(dead_letter="bin", max_messages=8))
    kernel.send("q", *"12345678")
    kernel.send("q", "9")
    worker = kernel.worker("q", 5)
    kernel.run()
    worker.done("1")
    worker.retry("2")
    worker.dead("3")
    worker.give_back("4")
    kernel.advance(7)
    kernel.run()
    core = kernel.core
    stats = _stats(core.get("q"), core.now())
    assert isinstance(stats, QueueStats)
    assert (stats.accepted, stats.refused, stats.delivered, stats.settled) == (8, 1, 5, 1)
    assert (stats.retried, stats.dead_lettered, stats.returned) == (1, 1, 1)
    assert (stats.depth, stats.in_flight, stats.consumers, stats.oldest_age_seconds) == (5, 1, 1, 7.0)
    assert stats.depth + stats.in_flight == stats.accepted - stats.settled - stats.dead_lettered


# on a running gateway

pytestmark = pytest.mark.anyio
CONFIG = """
queues:
  orders: {group: "{topic[1]}", dead_letter: orders.dead, max_deliveries: 1}
  orders.dead: {}
routes:
  - {from: "shop/+/orders", to: orders}
"""


async def test_a_redrive_keeps_its_rate_and_tells_its_progress() -> None:
    async with local_gateway(CONFIG) as (gateway, operator), asyncio.timeout(20):
        worker = Worker()
        worker.subscription = gateway.attach("orders", worker)  # type: ignore[assignment]
        worker.grant(100)
        await gateway.accept([Message(f"shop/{number}/orders", b"%d" % number) for number in range(6)])
        await gateway.put()
        while len(worker.held) < 6:  # noqa: ASYNC110 - deliveries come in later turns of the loop
            await asyncio.sleep(0)
        worker.dead()
        await gateway.put()
        worker.detach()
        began = asyncio.get_running_loop().time()
        steps = [step async for step in operator.redrive("orders.dead", Selection(), rate=20.0)]
        assert asyncio.get_running_loop().time() - began >= 5 / 20
        assert steps[0] == RedriveProgress(6, 0)
        assert steps[-1] == RedriveProgress(6, 6)
        assert [step.moved for step in steps] == sorted(step.moved for step in steps)
        assert {each.message.body for each in await operator.browse("orders")} == {b"%d" % n for n in range(6)}


async def test_purge_and_delete() -> None:
    async with local_gateway(CONFIG) as (gateway, operator):
        await gateway.accept([Message("shop/1/orders", b"1"), Message("shop/2/orders", b"2")])
        assert await operator.purge_queue("orders") == 2
        with pytest.raises(GatewayError, match="configured"):
            await operator.delete_queue("orders")
        gateway.declare("mine", QueuePolicy(), "amqp")
        await gateway.accept([to("mine", "1")])
        assert await operator.delete_queue("mine") == 1
        with pytest.raises(UnknownQueueError):
            await operator.purge_queue("mine")


async def test_explain_names_queues_bindings_group_key_and_what_is_invalid() -> None:
    async with local_gateway(
        'queues: {a: {group: "{topic[1]}", dedup: {key: "{header[k]}"}}, b: {dedup: {key: sha256}}}\n'
        'routes: [{from: "x/#", to: [a, b]}]'
    ) as (gateway, operator):
        binding = Binding(queue="b", filter="x/1", owner="amqp", match=HeadersMatch((("h", 1),)))
        gateway.bind(binding)
        steps = {step.queue: step for step in operator.explain(Message("x/1", b"body"))}
        assert (steps["a"].group, steps["a"].invalid) == ("1", "{header[k]} is missing")
        assert steps["b"].dedup_key is not None and len(steps["b"].dedup_key) == 64
        assert steps["b"].bindings == ("from x/# (route)",)
        assert operator.explain(Message("nowhere", b"")) == []
        assert operator.explain(to("b"))[0].bindings == ("sent straight to b",)


def test_before_the_replay_is_over_there_is_nothing_to_see() -> None:
    operator = Operator()
    assert asyncio.run(operator.stats()) == []
    assert not operator.readiness().ready
    with pytest.raises(GatewayError, match="replayed"):
        asyncio.run(operator.groups("q"))
