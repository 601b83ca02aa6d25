"""What delivery and settlement promise: verdicts, attempts, ack_timeout, credit, the end of consuming, groups
(rulings 13 to 18)."""

from __future__ import annotations

import pytest

from gateway.model.policy import QueuePolicy, Seconds, SecondsRange
from gateway.transport import Credit, Delivery, Verdict
from tests.harness.kernel import GROUP, Kernel, Worker, grouped, to

FIFO = QueuePolicy(group=GROUP)


def groups(kernel: Kernel, queue: str, *names: str) -> None:
    """`a1` is message a1 of group a; all committed and delivered."""
    kernel.accept(*[grouped(queue, name, name[0]) for name in names])
    kernel.run()


# verdicts (ruling 13)


def test_settling_takes_effect_at_once_and_the_next_of_the_group_does_not_wait_for_the_disk() -> None:
    kernel = Kernel({"q": FIFO})
    worker = kernel.worker("q")
    groups(kernel, "q", "a1", "a2")
    worker.done("a1")
    kernel.dispatch()
    assert worker.bodies == ["a1", "a2"]


def test_after_a_crash_a_group_begins_again_at_its_first_message_without_a_durable_settlement() -> None:
    kernel = Kernel({"q": FIFO})
    worker = kernel.worker("q")
    groups(kernel, "q", "a1", "a2", "a3")
    worker.done("a1")
    kernel.commit()
    kernel.dispatch()
    worker.done("a2")
    after = kernel.crash()
    taker = after.worker("q")
    after.run()
    assert taker.bodies == ["a2"]


def test_every_settlement_before_an_accept_is_durable_once_its_outcome_is_seen() -> None:
    kernel = Kernel({"q": QueuePolicy(), "other": QueuePolicy()})
    kernel.send("q", "1")
    worker = kernel.worker("q")
    kernel.run()
    worker.done()
    answer = kernel.accept(to("other"))
    kernel.commit()
    assert answer.outcomes is not None
    assert kernel.crash().content("q") == []


def test_done_removes_retry_dead_and_returned_do_what_they_say() -> None:
    kernel = Kernel({"q": QueuePolicy()})
    kernel.send("q", "done", "retry", "dead", "returned")
    worker = kernel.worker("q", 4)
    kernel.run()
    for verdict in Verdict:
        worker.settle(verdict, verdict.value, error="why")
    kernel.run()
    assert kernel.content("q") == ["retry", "returned"]
    assert kernel.deaths("dead-letters") == [("q", "rejected", 0, "why")]
    worker.grant(2)
    kernel.run()
    assert [(seen.message.body, seen.attempts, seen.redelivered) for seen in worker.seen[4:]] == [
        (b"retry", 1, True),
        (b"returned", 0, True),
    ]
    counters = kernel.queue("q").counters
    assert (counters.settled, counters.retried, counters.dead_lettered, counters.returned) == (1, 1, 1, 1)


def test_what_is_no_longer_held_can_not_be_settled_and_is_counted() -> None:
    kernel = Kernel({"q": QueuePolicy()})
    kernel.send("q", "1")
    first = kernel.worker("q", 1)
    kernel.run()
    id = next(iter(first.held))
    first.detach()
    second = kernel.worker("q", 1)
    kernel.run()
    assert first.subscription.settle([id], Verdict.DONE) == 0
    assert second.subscription.settle([id], Verdict.DONE) == 0
    kernel.run()
    assert (kernel.content("q"), kernel.queue("q").counters.stale) == (["1"], 2)


def test_a_delivery_is_registered_before_its_consumer_hears_of_it() -> None:
    kernel = Kernel({"q": QueuePolicy()})

    class AtOnce(Worker):
        def deliver(self, batch: object) -> None:
            super().deliver(batch)  # type: ignore[arg-type]
            assert self.subscription.unsettled == len(self.held)
            self.done()

    worker = AtOnce()
    worker.subscription = kernel.core.attach("q", worker, (), False)
    worker.grant(10)
    kernel.send("q", "1", "2", "3")
    kernel.run()
    assert worker.bodies == ["1", "2", "3"]
    assert kernel.leaks() == []


def test_delivery_ids_are_new_and_grow() -> None:
    kernel = Kernel({"q": QueuePolicy(max_deliveries=None)})
    kernel.send("q", "1", "2")
    worker = kernel.worker("q", 100)
    for _ in range(5):
        kernel.run()
        worker.retry()
    ids = [seen.id for seen in worker.seen]
    assert len(ids) == 10 and ids == sorted(set(ids)) and ids[0] > 0


# attempts (ruling 14)


def test_a_lost_connection_counts_an_attempt_for_its_oldest_unsettled_delivery_only() -> None:
    kernel = Kernel({"q": QueuePolicy()})
    kernel.send("q", "1", "2", "3", "4")
    worker = kernel.worker("q", 4)
    kernel.run()
    worker.done("1")
    worker.detach(lost=True)
    after = kernel.worker("q", 4)
    kernel.run()
    assert [(seen.message.body, seen.attempts) for seen in after.seen] == [(b"2", 1), (b"3", 0), (b"4", 0)]


def test_a_consumer_that_ends_in_order_gives_back_and_counts_no_attempt() -> None:
    kernel = Kernel({"q": QueuePolicy()})
    kernel.send("q", "1", "2")
    kernel.worker("q", 2)
    kernel.run()
    for subscription in list(kernel.queue("q").subscriptions):
        subscription.detach()
    after = kernel.worker("q", 2)
    kernel.run()
    assert [(seen.message.body, seen.attempts, seen.redelivered) for seen in after.seen] == [
        (b"1", 0, True),
        (b"2", 0, True),
    ]


def test_attempts_are_journaled_at_the_failure_with_the_error() -> None:
    kernel = Kernel({"q": QueuePolicy(max_deliveries=3)})
    kernel.send("q", "1")
    worker = kernel.worker("q")
    kernel.run()
    worker.retry(error="first")
    kernel.run()
    worker.retry(error="second")
    kernel.commit()
    after = kernel.crash()
    worker = after.worker("q")
    after.run()
    assert [seen.attempts for seen in worker.seen] == [2]
    worker.retry()
    after.run()
    assert after.deaths("dead-letters") == [("q", "exhausted", 3, "second")]


def test_a_crash_counts_no_attempt() -> None:
    kernel = Kernel({"q": QueuePolicy()})
    kernel.send("q", "1")
    kernel.worker("q")
    kernel.run()
    after = kernel.crash()
    worker = after.worker("q")
    after.run()
    assert [seen.attempts for seen in worker.seen] == [0]


def test_retry_delay_follows_retry_and_doubles_with_jitter_up_to_its_end() -> None:
    kernel = Kernel({"q": QueuePolicy(max_deliveries=None, retry_delay=SecondsRange((1.0, 5.0)))})
    kernel.send("q", "1")
    worker = kernel.worker("q")
    waits: list[float] = []
    for _ in range(5):
        kernel.run()
        worker.retry()
        kernel.dispatch()
        count, began = len(worker.seen), kernel.clock.now
        while len(worker.seen) == count:
            kernel.advance(0.01)
        waits.append(kernel.clock.now - began)
    bounds = [(1, 1.21), (2, 2.41), (4, 4.81), (5, 5.01), (5, 5.01)]
    assert all(low <= wait <= high + 0.01 for wait, (low, high) in zip(waits, bounds, strict=True)), waits


@pytest.mark.parametrize("lost", [True, False])
def test_a_loss_is_tried_again_at_once(lost: bool) -> None:
    kernel = Kernel({"q": QueuePolicy(retry_delay=SecondsRange((10.0, 60.0)))})
    kernel.send("q", "1")
    worker = kernel.worker("q")
    kernel.run()
    worker.detach(lost)
    after = kernel.worker("q")
    kernel.run()
    assert after.bodies == ["1"]


def test_after_max_deliveries_skip_dead_letters_and_the_group_goes_on() -> None:
    kernel = Kernel({"q": QueuePolicy(group=GROUP, max_deliveries=2)})
    worker = kernel.worker("q")
    groups(kernel, "q", "a1", "a2")
    for _ in range(2):
        worker.retry("a1", error="no")
        kernel.run()
    assert worker.bodies == ["a1", "a1", "a2"]
    assert kernel.deaths("dead-letters") == [("q", "exhausted", 2, "no")]


def test_block_retries_for_ever() -> None:
    kernel = Kernel({"q": QueuePolicy(group=GROUP, max_deliveries=2, on_exhausted="block")})
    worker = kernel.worker("q")
    groups(kernel, "q", "a1", "a2")
    for _ in range(20):
        worker.retry()
        kernel.run()
    assert worker.bodies == ["a1"] * 21
    assert kernel.content("dead-letters") == []


def test_park_holds_the_whole_group_with_the_message_at_its_head_over_a_restart() -> None:
    policy = QueuePolicy(group=GROUP, max_deliveries=2, on_exhausted="park")
    kernel = Kernel({"q": policy})
    worker = kernel.worker("q")
    groups(kernel, "q", "a1", "a2", "b1")
    for _ in range(2):
        worker.retry("a1")
        kernel.run()
    worker.done("b1")
    kernel.run()
    assert worker.bodies == ["a1", "b1", "a1"]
    after = kernel.crash()
    again = after.worker("q")
    groups(after, "q", "a3", "b2")
    after.advance(1000)
    assert again.bodies == ["b2"]
    assert after.content("q") == ["a1", "a2", "a3", "b2"]


def test_a_queue_without_max_deliveries_never_gives_up() -> None:
    kernel = Kernel({"q": QueuePolicy(max_deliveries=None)})
    kernel.send("q", "1")
    worker = kernel.worker("q")
    for _ in range(50):
        kernel.run()
        worker.retry()
    assert len(worker.seen) == 50


# ack_timeout (ruling 15)


def test_ack_timeout_runs_from_the_delivery_counts_an_attempt_and_follows_retry_delay() -> None:
    kernel = Kernel({"q": QueuePolicy(ack_timeout=Seconds(30), retry_delay=SecondsRange((5.0, 5.0)))})
    kernel.send("q", "1")
    worker = kernel.worker("q", 2)
    kernel.advance(100)
    assert [seen.attempts for seen in worker.seen] == [0, 1]


def test_after_its_ack_timeout_a_delivery_uses_its_credit_until_the_consumer_settles_or_leaves() -> None:
    kernel = Kernel({"q": QueuePolicy(ack_timeout=Seconds(30))})
    kernel.send("q", "1")
    stuck = kernel.worker("q", 1)
    kernel.run()
    old = next(iter(stuck.held))
    kernel.advance(31)
    assert len(stuck.seen) == 1
    second = kernel.worker("q", 1)
    kernel.run()
    assert second.bodies == ["1"]
    assert stuck.subscription.settle([old], Verdict.DONE) == 0
    kernel.run()
    assert kernel.content("q") == ["1"]
    assert second.done() == 1
    kernel.run()
    assert kernel.leaks() == []


def test_without_ack_timeout_a_delivery_may_take_for_ever() -> None:
    kernel = Kernel({"q": QueuePolicy()})
    kernel.send("q", "1")
    worker = kernel.worker("q")
    kernel.advance(1e6)
    assert len(worker.seen) == 1
    assert worker.done() == 1


def test_what_was_settled_in_time_is_not_timed_out_and_its_slot_may_be_another_s() -> None:
    kernel = Kernel({"q": QueuePolicy(ack_timeout=Seconds(30))})
    worker = kernel.worker("q", 10)
    kernel.send("q", "1")
    kernel.advance(20)
    worker.done("1")
    kernel.send("q", "2")
    kernel.advance(15)
    assert kernel.queue("q").counters.retried == 0
    kernel.advance(20)
    assert kernel.queue("q").counters.retried == 1


# credit (ruling 16)


def test_never_more_is_delivered_than_granted_and_revoke_takes_back_the_unused() -> None:
    kernel = Kernel({"q": QueuePolicy()})
    kernel.send("q", *"123456")
    worker = kernel.worker("q", 0)
    kernel.run()
    assert worker.bodies == []
    worker.grant(2)
    kernel.run()
    assert worker.bodies == ["1", "2"]
    worker.done()
    kernel.run()
    assert worker.bodies == ["1", "2"]
    worker.grant(1)
    assert worker.subscription.revoke() == 1
    kernel.run()
    assert worker.bodies == ["1", "2"]


def test_octet_credit_may_be_overdrawn_by_one_message_only() -> None:
    kernel = Kernel({"q": QueuePolicy()})
    kernel.send("q", *["x" * 100] * 5)
    pool = Credit(octets=150)
    worker = kernel.worker("q", 10, [pool])
    kernel.run()
    assert len(worker.seen) == 2
    pool.grant(octets=-pool.octets + 1)
    kernel.run()
    assert len(worker.seen) == 3


def test_a_pool_is_shared_by_consumers_of_one_queue_and_never_overdrawn() -> None:
    kernel = Kernel({"q": QueuePolicy()})
    kernel.send("q", *"123456")
    pool = Credit(messages=3)
    workers = [kernel.worker("q", 10, [pool]) for _ in range(3)]
    kernel.run()
    assert sum(len(worker.seen) for worker in workers) == 3
    assert pool.messages == 0
    pool.grant(2)
    kernel.run()
    assert sum(len(worker.seen) for worker in workers) == 5


def test_a_pool_is_shared_by_queues_in_turn() -> None:
    kernel = Kernel({"a": QueuePolicy(), "b": QueuePolicy()})
    kernel.send("a", *"1234")
    kernel.send("b", *"1234")
    pool = Credit(messages=0)
    workers = [kernel.worker(name, 10, [pool]) for name in "ab"]
    kernel.run()
    for _ in range(4):
        pool.grant(1)
        kernel.run()
    assert [len(worker.seen) for worker in workers] == [2, 2]


def test_consumers_of_a_queue_take_turns() -> None:
    kernel = Kernel({"q": QueuePolicy()})
    workers = [kernel.worker("q", 10) for _ in range(3)]
    kernel.send("q", *"123456")
    assert [worker.bodies for worker in workers] == [["1", "4"], ["2", "5"], ["3", "6"]]


def test_credit_that_comes_while_the_queue_is_empty_is_not_forgotten() -> None:
    kernel = Kernel({"q": QueuePolicy()})
    pool = Credit(messages=0)
    worker = kernel.worker("q", 1, [pool])
    kernel.run()
    pool.grant(1)
    kernel.run()
    kernel.send("q", "1")
    assert worker.bodies == ["1"]


def test_whatever_may_be_delivered_pokes() -> None:
    kernel = Kernel({"q": QueuePolicy()})
    kernel.send("q", "1", "2", "3")
    pool = Credit(messages=0)
    worker = kernel.worker("q", 0, [pool])
    kernel.run()
    before = kernel.pokes
    worker.grant(2)
    assert kernel.pokes == before + 1
    kernel.run()
    pool.grant(2)
    assert kernel.pokes == before + 2
    kernel.run()
    worker.give_back("1")
    assert kernel.pokes == before + 3


# the end of consuming (ruling 17)


def test_cancel_ends_delivery_and_keeps_what_is_in_flight() -> None:
    kernel = Kernel({"q": QueuePolicy()})
    kernel.send("q", "1", "2", "3")
    worker = kernel.worker("q", 2)
    kernel.run()
    worker.cancel()
    worker.grant(5)
    kernel.run()
    assert worker.holding == ["1", "2"]
    assert worker.done("1") == 1
    worker.detach()
    other = kernel.worker("q")
    kernel.run()
    assert other.bodies == ["2", "3"]


def test_a_get_is_a_consumer_with_one_credit() -> None:
    kernel = Kernel({"q": FIFO})
    groups(kernel, "q", "a1", "a2", "b1")
    for wanted in ("a1", "b1"):
        worker = kernel.worker("q", 1)
        kernel.run()
        worker.cancel()
        assert worker.bodies == [wanted]


def test_deleting_a_queue_takes_everything_back_even_from_cancelled_consumers() -> None:
    kernel = Kernel({"other": QueuePolicy()})
    kernel.core.declare("q", QueuePolicy(), "amqp")
    kernel.run()
    kernel.send("q", "1", "2", "3")
    cancelled = kernel.worker("q", 1)
    kernel.run()
    cancelled.cancel()
    active = kernel.worker("q", 1)
    kernel.run()
    ids = [*cancelled.held, *active.held]
    assert kernel.core.delete("q") == 3
    assert len(active.ends) == 1
    kernel.run()
    for worker in (cancelled, active):
        assert worker.subscription.settle(ids, Verdict.DEAD) == 0
        worker.detach(lost=True)
    kernel.run()
    assert kernel.leaks() == []
    after = kernel.crash()
    after.run()
    assert after.leaks() == []


def test_a_deleted_queue_takes_its_uncommitted_messages_with_it() -> None:
    kernel = Kernel()
    kernel.core.declare("q", QueuePolicy(group=GROUP), "amqp")
    kernel.run()
    answer = kernel.accept(grouped("q", "1", "a"))
    commit = kernel.begin()
    kernel.accept(grouped("q", "2", "a"))
    kernel.core.delete("q")
    assert commit is not None
    kernel.end(commit)
    kernel.run()
    assert answer.outcomes is not None
    assert kernel.leaks() == []
    after = kernel.crash()
    after.run()
    assert after.leaks() == []


def test_a_new_queue_never_inherits_the_messages_of_a_deleted_one() -> None:
    kernel = Kernel()
    kernel.core.declare("old", QueuePolicy(), "amqp")
    kernel.run()
    kernel.accept(to("old", "1"))
    kernel.core.delete("old")
    kernel.commit()
    after = kernel.crash()
    after.core.declare("new", QueuePolicy(), "amqp")
    after.run()
    assert after.crash().content("new") == []


# groups (ruling 18)


def test_messages_of_a_group_go_out_one_at_a_time_in_commit_order_and_groups_are_independent() -> None:
    kernel = Kernel({"q": FIFO})
    worker = kernel.worker("q")
    groups(kernel, "q", "a1", "a2", "b1", "a3", "c1", "b2")
    assert worker.holding == ["a1", "b1", "c1"]
    worker.done("b1")
    kernel.run()
    assert worker.holding == ["a1", "c1", "b2"]
    worker.done("a1")
    kernel.run()
    worker.done("a2")
    kernel.run()
    assert worker.bodies == ["a1", "b1", "c1", "b2", "a2", "a3"]


@pytest.mark.parametrize("how", ["retry", "return", "detach", "lose", "timeout"])
def test_what_goes_back_blocks_its_group_alone_and_is_not_overtaken(how: str) -> None:
    policy = QueuePolicy(group=GROUP, retry_delay=SecondsRange((10.0, 10.0)), ack_timeout=Seconds(10))
    kernel = Kernel({"q": policy})
    worker = kernel.worker("q", 2)
    groups(kernel, "q", "a1", "b1", "a2", "b2")
    other = kernel.worker("q")
    if how == "retry":
        worker.retry("a1")
    elif how == "return":
        worker.give_back("a1")
    elif how == "timeout":
        worker.done("b1")
        kernel.advance(15)
    else:
        worker.done("b1")
        worker.detach(lost=how == "lose")
    for _ in range(10):
        kernel.advance(5)
        other.done()
    assert [body for body in other.bodies if body[0] == "a"][:2] == ["a1", "a2"]


def test_a_lost_consumer_s_messages_go_back_to_the_head_of_their_groups_in_order() -> None:
    kernel = Kernel({"q": QueuePolicy(group=GROUP, group_in_flight=3)})
    worker = kernel.worker("q", 5)
    groups(kernel, "q", "a1", "a2", "a3", "a4", "b1", "b2")
    assert sorted(worker.holding) == ["a1", "a2", "a3", "b1", "b2"]
    worker.detach(lost=True)
    other = kernel.worker("q")
    kernel.run()
    for _ in range(6):
        other.done()
        kernel.run()
    assert [body for body in other.bodies if body[0] == "a"] == ["a1", "a2", "a3", "a4"]
    assert [body for body in other.bodies if body[0] == "b"] == ["b1", "b2"]
    assert sum(seen.attempts for seen in other.seen) == 1


def test_group_in_flight_allows_as_many_of_a_group_to_one_and_the_same_consumer() -> None:
    kernel = Kernel({"q": QueuePolicy(group=GROUP, group_in_flight=2)})
    workers = [kernel.worker("q", 10), kernel.worker("q", 10)]
    groups(kernel, "q", "a1", "a2", "a3", "b1", "b2", "b3")
    assert sorted(worker.holding for worker in workers) == [["a1", "a2"], ["b1", "b2"]]
    owner = next(worker for worker in workers if "a1" in worker.holding)
    owner.done("a2")
    kernel.run()
    assert owner.holding == ["a1", "a3"]


def test_a_group_changes_its_consumer_only_with_none_in_flight() -> None:
    kernel = Kernel({"q": QueuePolicy(group=GROUP, group_in_flight=2)})
    first = kernel.worker("q", 1)
    groups(kernel, "q", "a1", "a2")
    second = kernel.worker("q", 10)
    kernel.run()
    assert (first.bodies, second.bodies) == (["a1"], [])
    first.done()
    kernel.run()
    assert second.bodies == ["a2"]


def test_after_a_retry_nothing_more_of_the_group_goes_out_until_what_is_in_flight_is_settled() -> None:
    kernel = Kernel({"q": QueuePolicy(group=GROUP, group_in_flight=3)})
    worker = kernel.worker("q")
    groups(kernel, "q", "a1", "a2", "a3", "a4")
    worker.retry("a2")
    kernel.run()
    worker.done("a1")
    kernel.run()
    assert worker.bodies == ["a1", "a2", "a3"]
    worker.done("a3")
    kernel.run()
    assert worker.bodies == ["a1", "a2", "a3", "a2", "a4"]


def test_a_retry_waits_its_time_also_when_the_one_before_it_is_gone_meanwhile() -> None:
    policy = QueuePolicy(group=GROUP, group_in_flight=2, retry_delay=SecondsRange((5.0, 5.0)), dead_letter="none")
    kernel = Kernel({"q": policy})
    worker = kernel.worker("q", credit=2)
    kernel.accept(grouped("q", "1", "a", ttl=3.0), grouped("q", "2", "a"))
    kernel.run()
    worker.retry("2")
    worker.give_back("1")
    kernel.advance(4)
    worker.grant(2)
    kernel.run()
    assert (kernel.content("q"), worker.bodies) == (["2"], ["1", "2"])
    kernel.advance(1)
    assert worker.bodies == ["1", "2", "2"]


def test_what_went_back_goes_again_in_order() -> None:
    kernel = Kernel({"q": QueuePolicy(group=GROUP, group_in_flight=4)})
    worker = kernel.worker("q")
    groups(kernel, "q", "a1", "a2", "a3", "a4", "a5")
    for body in ("a3", "a1", "a4"):
        worker.retry(body)
        kernel.run()
    worker.done("a2")
    kernel.run()
    assert worker.bodies[4:] == ["a1", "a3", "a4", "a5"]


def test_a_delayed_head_holds_up_its_group_also_with_more_in_flight() -> None:
    kernel = Kernel({"q": QueuePolicy(group=GROUP, group_in_flight=3)})
    worker = kernel.worker("q")
    kernel.accept(
        grouped("q", "a1", "a"), grouped("q", "a2", "a", delay=10.0), grouped("q", "a3", "a"), grouped("q", "b1", "b")
    )
    kernel.run()
    assert worker.bodies == ["a1", "b1"]
    worker.done("a1")
    kernel.advance(9)
    assert worker.bodies == ["a1", "b1"]
    kernel.advance(2)
    assert worker.bodies == ["a1", "b1", "a2", "a3"]


def test_a_delayed_follower_does_not_stop_its_group_for_good() -> None:
    kernel = Kernel({"q": QueuePolicy(group=GROUP, group_in_flight=3)})
    worker = kernel.worker("q")
    kernel.accept(grouped("q", "a1", "a"), grouped("q", "a2", "a", delay=10.0))
    kernel.run()
    kernel.advance(20)
    worker.done("a1")
    kernel.run()
    assert worker.bodies == ["a1", "a2"]


def test_a_cancelled_consumer_leaves_nothing_behind_in_the_order() -> None:
    kernel = Kernel({"q": QueuePolicy(group=GROUP, group_in_flight=3)})
    worker = kernel.worker("q", 3)
    groups(kernel, "q", "a1", "a2", "a3", "a4", "a5")
    worker.cancel()
    worker.done("a1")
    kernel.run()
    other = kernel.worker("q")
    kernel.run()
    assert other.bodies == []
    worker.done("a2")
    worker.give_back("a3")
    kernel.run()
    assert other.bodies == ["a3", "a4", "a5"]
    order = kernel.queue("q").order
    assert worker.subscription not in order._held  # type: ignore[union-attr]


def test_a_thousand_blocked_groups_do_not_stand_before_a_ready_one() -> None:
    kernel = Kernel({"q": FIFO})
    slow = kernel.worker("q", 1000)
    kernel.accept(*[grouped("q", f"{number} {part}", f"g{number}") for number in range(1000) for part in range(3)])
    kernel.run()
    assert len(slow.held) == 1000
    fast = kernel.worker("q", 1)
    kernel.accept(grouped("q", "new", "new"))
    kernel.run()
    assert fast.bodies == ["new"]


# robustness


def test_a_consumer_that_raises_loses_its_subscription_and_no_message() -> None:
    kernel = Kernel({"q": QueuePolicy()})
    reports: list[str] = []
    kernel.core.report = lambda what, error: reports.append(what)
    kernel.send("q", "1", "2", "3")

    class Broken(Worker):
        def deliver(self, batch: object) -> None:
            raise RuntimeError("broken")

    broken = Broken()
    broken.subscription = kernel.core.attach("q", broken, (), False)
    broken.grant(2)
    healthy = kernel.worker("q", 1)
    kernel.run()
    healthy.grant(5)
    kernel.run()
    assert sorted(healthy.bodies) == ["1", "2", "3"]
    assert len(reports) == 1


def test_deliveries_tell_the_message_and_its_history() -> None:
    kernel = Kernel({"q": QueuePolicy()})
    kernel.accept(to("q", "1", ttl=60.0))
    kernel.run()
    worker = kernel.worker("q")
    kernel.run()
    (seen,) = worker.seen
    assert isinstance(seen, Delivery)
    assert (seen.queue, seen.attempts, seen.redelivered, seen.deaths) == ("q", 0, False, ())
    assert seen.expires == kernel.clock.now + 60
