"""What a queue's limits, ttl and delay promise (design section 4, ruling 18)."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from gateway.model.policy import DISCARD, ExchangeTarget, Octets, QueuePolicy, Seconds
from gateway.queueing.queue import EXPIRED_AT_ONCE
from gateway.transport import Binding, Message, Outcome
from tests.harness.kernel import GROUP, Clock, Kernel, grouped, to

STORED, REFUSED = Outcome.STORED, Outcome.REFUSED


# overflow


def test_refuse_counts_what_waits_for_its_commit_and_what_is_in_flight() -> None:
    kernel = Kernel({"q": QueuePolicy(max_messages=2)})
    answer = kernel.accept(to("q", "1"), to("q", "2"), to("q", "3"))
    kernel.run()
    assert answer.outcomes == [STORED, STORED, REFUSED]
    worker = kernel.worker("q", 1)
    kernel.run()
    assert kernel.send("q", "4") == [REFUSED]
    worker.done()
    assert kernel.send("q", "5") == [STORED]
    assert kernel.queue("q").counters.refused == 2


def test_what_is_refused_may_be_a_dead_letter_in_the_same_commit() -> None:
    policy = QueuePolicy(max_messages=1, overflow="refuse-dead-letter", dead_letter="dead")
    kernel = Kernel({"q": policy, "other": QueuePolicy(), "dead": QueuePolicy(max_messages=1, dead_letter=DISCARD)})
    kernel.core.bind(Binding(queue="q", filter="t", owner="a"))
    kernel.core.bind(Binding(queue="other", filter="t", owner="a"))
    answers = [kernel.accept(Message("t", body)) for body in (b"1", b"2", b"3")]
    assert kernel.commit_fails()
    kernel.run()
    assert [answer.outcomes for answer in answers] == [[REFUSED]] * 3 and kernel.content("dead") == []
    answers = [kernel.accept(Message("t", body)) for body in (b"1", b"2", b"3")]
    kernel.run()
    assert [answer.outcomes for answer in answers] == [[STORED], [REFUSED], [REFUSED]]
    after = kernel.crash()
    assert after.content("q") == after.content("other") == ["1"]
    assert after.content("dead") == ["2"] and after.deaths("dead") == [("q", "overflow", 0, "")]


def test_max_bytes_refuses() -> None:
    kernel = Kernel({"q": QueuePolicy(max_bytes=Octets(1000))})
    assert kernel.send("q", "x" * 400, "x" * 700, "x") == [STORED, REFUSED, STORED]


def test_drop_oldest_drops_the_oldest_that_is_not_in_flight_and_counts() -> None:
    kernel = Kernel({"q": QueuePolicy(max_messages=3, overflow="drop-oldest")})
    kernel.send("q", "1", "2")
    kernel.worker("q", 1)
    kernel.run()
    assert kernel.send("q", "3", "4", "5") == [STORED] * 3
    assert kernel.content("q") == ["1", "4", "5"]
    assert kernel.queue("q").counters.dropped == 2
    assert kernel.crash().content("q") == ["1", "4", "5"]


def test_drop_oldest_refuses_if_all_is_in_flight() -> None:
    kernel = Kernel({"q": QueuePolicy(max_messages=2, overflow="drop-oldest")})
    kernel.send("q", "1", "2")
    kernel.worker("q", 2)
    kernel.run()
    assert kernel.send("q", "3") == [REFUSED]


def test_drop_oldest_refuses_if_only_a_parked_head_and_deliveries_in_flight_are_there() -> None:
    policy = QueuePolicy(group=GROUP, max_messages=2, overflow="drop-oldest", max_deliveries=1, on_exhausted="park")
    kernel = Kernel({"q": policy})
    worker = kernel.worker("q")
    kernel.accept(grouped("q", "a1", "a"), grouped("q", "b1", "b"))
    kernel.run()
    worker.retry("a1")
    kernel.run()
    answer = kernel.accept(grouped("q", "c1", "c"))
    kernel.run()
    assert answer.outcomes == [REFUSED]
    assert kernel.content("q") == ["a1", "b1"]


def test_overflow_to_dead_letters_moves_the_oldest_with_its_reason() -> None:
    kernel = Kernel({"q": QueuePolicy(max_messages=2, overflow="dead-letter")})
    kernel.send("q", "1", "2", "3")
    assert kernel.content("q") == ["2", "3"]
    assert kernel.deaths("dead-letters") == [("q", "overflow", 0, "")]
    assert kernel.crash().content("dead-letters") == ["1"]


def test_overflow_to_full_dead_letters_refuses_instead_of_growing() -> None:
    kernel = Kernel(
        {
            "q": QueuePolicy(max_messages=2, overflow="dead-letter", dead_letter="bin"),
            "bin": QueuePolicy(max_messages=1),
        }
    )
    assert kernel.send("q", "1", "2", "3") == [STORED] * 3
    assert kernel.send("q", "4") == [REFUSED]
    assert (kernel.content("q"), kernel.content("bin")) == (["2", "3"], ["1"])


def test_overflow_dead_letters_the_oldest_also_when_its_body_is_on_disk() -> None:
    kernel = Kernel({"bin": QueuePolicy()}, max_memory=0)
    target = ExchangeTarget("dlx", "dead")
    kernel.core.declare("q", QueuePolicy(max_messages=2, overflow="dead-letter", dead_letter=target), "amqp")
    kernel.core.bind(Binding(queue="bin", filter="dead", exchange="dlx", owner="amqp"))
    kernel.send("q", "1", "2")
    assert not kernel.queue("q").resident
    kernel.send("q", "3", "4")
    kernel.advance(10)
    kernel.run()
    assert (kernel.content("q"), kernel.content("bin")) == (["3", "4"], ["1", "2"])


def test_overflow_with_dead_letter_none_drops_and_counts() -> None:
    kernel = Kernel({"q": QueuePolicy(max_messages=1, overflow="dead-letter", dead_letter=DISCARD)})
    kernel.send("q", "1", "2")
    assert kernel.content("q") == ["2"]
    assert kernel.queue("q").counters.dropped == 1


def test_drop_oldest_in_a_group_keeps_the_order_of_the_rest() -> None:
    kernel = Kernel({"q": QueuePolicy(group=GROUP, max_messages=3, overflow="drop-oldest")})
    worker = kernel.worker("q", 1)
    kernel.accept(*[grouped("q", f"a{number}", "a") for number in range(6)])
    kernel.run()
    for _ in range(4):
        worker.done()
        worker.grant(1)
        kernel.run()
    assert worker.bodies == ["a3", "a4", "a5"]
    kernel.run()
    assert kernel.leaks() == []


# ttl


def test_a_message_is_never_delivered_expired_and_goes_to_the_dead_letters() -> None:
    kernel = Kernel({"q": QueuePolicy(ttl=Seconds(10))})
    kernel.send("q", "1")
    kernel.advance(10.5)
    worker = kernel.worker("q")
    kernel.run()
    assert worker.bodies == []
    assert kernel.deaths("dead-letters") == [("q", "expired", 0, "")]
    assert kernel.queue("q").counters.expired == 1


def test_a_message_expires_even_if_nobody_asks_for_it() -> None:
    kernel = Kernel({"q": QueuePolicy()})
    kernel.accept(to("q", "1", ttl=5.0), to("q", "2", ttl=50.0), to("q", "3"))
    kernel.run()
    kernel.advance(7)
    kernel.run()
    assert (kernel.content("q"), kernel.content("dead-letters")) == (["2", "3"], ["1"])


def test_the_shorter_of_message_ttl_and_queue_ttl_holds_and_counts_over_a_restart() -> None:
    kernel = Kernel({"q": QueuePolicy(ttl=Seconds(20))})
    kernel.accept(to("q", "1", ttl=5.0), to("q", "2", ttl=50.0))
    kernel.run()
    kernel.advance(3)
    after = kernel.crash()
    after.advance(4)
    assert after.content("q") == ["2"]
    after.advance(20)
    assert after.content("q") == []


def test_a_later_message_of_a_group_may_expire_before_its_head() -> None:
    kernel = Kernel({"q": QueuePolicy(group=GROUP, dead_letter=DISCARD)})
    kernel.accept(grouped("q", "a1", "a"), grouped("q", "a2", "a", ttl=5.0), grouped("q", "a3", "a"))
    kernel.run()
    worker = kernel.worker("q", 1)
    kernel.advance(10)
    worker.done()
    worker.grant(1)
    kernel.run()
    assert worker.bodies == ["a1", "a3"]


def test_what_is_in_flight_does_not_expire_and_what_comes_back_too_late_does() -> None:
    kernel = Kernel({"q": QueuePolicy()})
    kernel.accept(to("q", "1", ttl=5.0), to("q", "2", ttl=5.0))
    kernel.run()
    worker = kernel.worker("q", 2)
    kernel.advance(20)
    worker.done("1")
    worker.detach()
    kernel.advance(2)
    kernel.run()
    assert kernel.queue("q").counters.settled == 1
    assert (kernel.content("q"), kernel.content("dead-letters")) == ([], ["2"])


def test_a_parked_head_does_not_expire() -> None:
    kernel = Kernel({"q": QueuePolicy(group=GROUP, max_deliveries=1, on_exhausted="park")})
    worker = kernel.worker("q")
    kernel.accept(grouped("q", "a1", "a", ttl=5.0), grouped("q", "a2", "a", ttl=5.0))
    kernel.run()
    worker.retry("a1")
    kernel.advance(20)
    assert kernel.content("q") == ["a1"]


def test_a_parked_message_that_is_not_the_head_does_not_expire_or_drop_either() -> None:
    policy = QueuePolicy(group=GROUP, group_in_flight=2, max_deliveries=1, on_exhausted="park")
    kernel = Kernel({"q": policy})
    worker = kernel.worker("q")
    kernel.accept(grouped("q", "a1", "a"), grouped("q", "a2", "a", ttl=5.0))
    kernel.run()
    worker.retry("a2")
    worker.give_back("a1")
    kernel.advance(20)
    assert kernel.content("q") == ["a1", "a2"]


def test_going_back_and_forth_does_not_pile_up_expiries() -> None:
    kernel = Kernel({"q": QueuePolicy(ttl=Seconds(86400), max_deliveries=None)})
    kernel.send("q", "1")
    worker = kernel.worker("q")
    for _ in range(1000):
        kernel.run()
        worker.give_back()
    kernel.run()
    assert kernel.queue("q").expiries.count == 1


def test_many_times_of_one_queue_do_not_pile_up() -> None:
    kernel = Kernel({"q": QueuePolicy(ttl=Seconds(86400), ack_timeout=Seconds(1), max_deliveries=None)})
    kernel.send("q", "1")
    kernel.worker("q", 1 << 30)
    kernel.advance(1000)
    assert len(kernel.core._timers) < 200


def test_expiry_after_a_deep_queue_was_drained() -> None:
    kernel = Kernel({"q": QueuePolicy()})
    kernel.accept(*[to("q", str(number), ttl=5.0) for number in range(9000)])
    kernel.run()
    worker = kernel.worker("q")
    kernel.run()
    worker.done()
    kernel.run()
    kernel.advance(10)
    assert kernel.leaks() == []


class RunningClock(Clock):
    """Time goes on with each look at it, as it does on a machine."""

    def __call__(self) -> float:
        self.now += 0.001
        return self.now


kinds = pytest.mark.parametrize(
    "policy",
    [
        QueuePolicy(),
        QueuePolicy(durable=False),
        QueuePolicy(group="{client_id|}"),
        QueuePolicy(max_priority=3),
        QueuePolicy(single_active=True),
    ],
    ids=["plain", "transient", "group", "priority", "single active"],
)


@kinds
@pytest.mark.parametrize("by_queue", [False, True])
def test_ttl_0_means_to_a_consumer_that_is_waiting_now_or_never(policy: QueuePolicy, by_queue: bool) -> None:
    ttl = None if by_queue else 0.0
    policy = msgspec.structs.replace(policy, ttl=Seconds(0) if by_queue else None, dead_letter="bin")
    policy = msgspec.structs.replace(policy, group_in_flight=5) if policy.group else policy
    kernel = Kernel({"q": policy, "bin": QueuePolicy()}, clock=RunningClock())
    worker = kernel.worker("q", 2)
    kernel.accept(*[to("q", body, ttl=ttl) for body in "123"])
    kernel.run()
    assert worker.bodies == ["1", "2"]
    assert (kernel.content("q"), kernel.content("bin")) == (["1", "2"], ["3"])
    assert [death[:2] for death in kernel.deaths("bin")] == [("q", "expired")]
    late = kernel.worker("q", 5)
    worker.give_back("2")
    worker.done("1")
    kernel.advance(1)
    kernel.run()
    assert (worker.bodies, late.bodies) == (["1", "2"], [])
    assert (kernel.content("q"), kernel.content("bin")) == ([], ["3", "2"])


@kinds
def test_ttl_0_with_nobody_waiting_is_over_at_once(policy: QueuePolicy) -> None:
    kernel = Kernel({"q": msgspec.structs.replace(policy, dead_letter="bin"), "bin": QueuePolicy()})
    kernel.send("q", "now", ttl=0.0)
    kernel.send("q", "some time", ttl=0.001)
    kernel.send("q", "never")
    assert (kernel.content("q"), kernel.content("bin")) == (["some time", "never"], ["now"])
    assert (kernel.content("q"), kernel.queue("q").counters.expired) == (["some time", "never"], 1)


def test_many_with_ttl_0_are_given_up_in_slices_and_none_is_delivered_later() -> None:
    kernel = Kernel({"q": QueuePolicy(dead_letter=DISCARD)}, clock=RunningClock())
    kernel.accept(*[to("q", ttl=0.0)] * (3 * EXPIRED_AT_ONCE))
    kernel.dispatch()
    kernel.commit()
    kernel.core.dispatch()
    assert kernel.queue("q").counters.expired == EXPIRED_AT_ONCE
    worker = kernel.worker("q")
    kernel.advance(1)
    kernel.run()
    assert (worker.bodies, kernel.queue("q").counters.expired) == ([], 3 * EXPIRED_AT_ONCE)
    assert kernel.leaks() == []


def test_a_dead_letter_whose_body_is_on_disk_waits_for_it_in_a_queue_with_ttl_0() -> None:
    policies = {"q": QueuePolicy(dead_letter="w", ttl=Seconds(5)), "w": QueuePolicy(dead_letter="none", ttl=Seconds(0))}
    kernel = Kernel(policies, max_memory=0)
    worker = kernel.worker("w", 1)
    kernel.send("q", "1", "2")
    kernel.advance(20)
    kernel.run()
    assert worker.bodies == ["1"]
    assert kernel.content("w") == ["1"]


def test_a_delivery_that_comes_back_after_its_time_expires_also_within_the_second() -> None:
    kernel = Kernel({"q": QueuePolicy(dead_letter="bin"), "bin": QueuePolicy()})
    worker = kernel.worker("q", 1)
    kernel.send("q", "1", ttl=0.1)
    kernel.advance(0.5)
    assert worker.bodies == ["1"]
    worker.detach()
    kernel.advance(0.1)
    kernel.run()
    assert (kernel.content("q"), kernel.content("bin")) == ([], ["1"])


# delay


def test_delay_counts_from_accept_and_is_kept_over_a_restart() -> None:
    kernel = Kernel({"q": QueuePolicy()})
    kernel.accept(to("q", "late", delay=10.0), to("q", "now"))
    kernel.run()
    kernel.advance(4)
    after = kernel.crash()
    worker = after.worker("q")
    after.advance(5)
    assert worker.bodies == ["now"]
    after.advance(2)
    assert worker.bodies == ["now", "late"]


def test_the_queue_s_delay_holds_for_messages_without_one_and_max_delay_bounds() -> None:
    kernel = Kernel({"q": QueuePolicy(delay=Seconds(5), max_delay=Seconds(20))})
    worker = kernel.worker("q")
    kernel.accept(to("q", "long", delay=1000.0), to("q", "own"))
    kernel.run()
    kernel.advance(4.9)
    assert worker.bodies == []
    kernel.advance(0.2)
    assert worker.bodies == ["own"]
    kernel.advance(15)
    assert worker.bodies == ["own", "long"]


def test_a_delayed_message_may_expire_first() -> None:
    kernel = Kernel({"q": QueuePolicy(dead_letter=DISCARD)})
    worker = kernel.worker("q")
    kernel.accept(to("q", "1", delay=10.0, ttl=5.0), to("q", "2"))
    kernel.run()
    kernel.advance(20)
    assert worker.bodies == ["2"]
    worker.done()
    kernel.run()
    assert kernel.leaks() == []


def test_a_group_does_not_wait_for_the_delay_of_a_head_that_is_gone() -> None:
    kernel = Kernel({"q": QueuePolicy(group=GROUP, dead_letter=DISCARD)})
    worker = kernel.worker("q")
    kernel.accept(grouped("q", "a1", "a", delay=3600.0, ttl=5.0), grouped("q", "a2", "a"))
    kernel.run()
    assert worker.bodies == []
    kernel.advance(10)
    assert worker.bodies == ["a2"]


# expires


def test_a_queue_without_a_consumer_for_its_time_is_deleted_and_one_with_a_consumer_is_not() -> None:
    kernel = Kernel()
    kernel.core.declare("q", QueuePolicy(expires=Seconds(10)), "amqp")
    worker = kernel.worker("q")
    kernel.advance(50)
    assert "q" in kernel.core.queues
    worker.detach()
    kernel.send("q", "1")
    kernel.advance(9)
    assert "q" in kernel.core.queues
    kernel.advance(2)
    assert "q" not in kernel.core.queues
    kernel.run()
    assert "q" not in kernel.crash().core.queues
    assert kernel.leaks() == []


# memory


def test_bodies_beyond_max_memory_are_on_disk_only_and_order_is_kept() -> None:
    kernel = Kernel({"q": QueuePolicy(group=GROUP)}, max_memory=2000)
    kernel.accept(*[grouped("q", f"{number % 7}-{number:03}" + "x" * 100, str(number % 7)) for number in range(300)])
    kernel.run()
    assert kernel.core.memory.octets <= 2000 + 200
    worker = kernel.worker("q", 50)
    kernel.run()
    while worker.held:
        count = worker.done()
        worker.grant(count)
        kernel.run()
    for group in range(7):
        mine = [body for body in worker.bodies if body.startswith(f"{group}-")]
        assert mine == sorted(mine)
    assert len(worker.bodies) == 300
    assert kernel.leaks() == []


def test_what_goes_back_is_spilled_again() -> None:
    kernel = Kernel({"q": QueuePolicy()}, max_memory=0)
    kernel.send("q", *["x" * 1000] * 20)
    worker = kernel.worker("q", 20)
    kernel.run()
    worker.detach()
    kernel.run()
    assert kernel.core.memory.octets == 0
    again = kernel.worker("q", 20)
    kernel.run()
    assert len(again.seen) == 20


def test_very_many_that_expire_at_once_leave_in_short_steps() -> None:
    kernel = Kernel({"q": QueuePolicy(dead_letter=DISCARD)})
    kernel.accept(*[to("q", str(number), ttl=5.0) for number in range(1000)], to("q", "stays"))
    kernel.run()
    kernel.clock.now += 10
    kernel.core.tick()
    kernel.core.dispatch()
    assert 0 < kernel.queue("q").counters.expired <= EXPIRED_AT_ONCE
    assert kernel.core.next_due() <= kernel.clock.now
    worker = kernel.worker("q", 1)
    kernel.advance(0)
    assert worker.bodies == ["stays"]
    assert kernel.queue("q").counters.expired == 1000


def test_what_a_full_queue_of_dead_letters_refuses_keeps_nothing_behind_it_waiting() -> None:
    kernel = Kernel({"q": QueuePolicy(dead_letter="bin"), "bin": QueuePolicy(max_messages=1, max_deliveries=None)})
    kernel.accept(*[to("q", str(number), ttl=5.0) for number in range(1000)], to("q", "stays"))
    kernel.run()
    worker = kernel.worker("q", 1)
    kernel.clock.now += 10
    kernel.advance(3)
    assert worker.bodies == ["stays"]
    assert kernel.queue("bin").entries.count + kernel.queue("bin").pending_count == 1
    kernel.policies["bin"] = QueuePolicy(max_deliveries=None)
    kernel.configure()
    kernel.advance(2)
    kernel.run()
    assert kernel.queue("bin").entries.count == 1000
    assert kernel.content("q") == ["stays"]


# a limit of 0


@kinds
@pytest.mark.parametrize("limit", [{"max_messages": 0}, {"max_bytes": Octets(0)}], ids=["messages", "bytes"])
@pytest.mark.parametrize("overflow", ["drop-oldest", "dead-letter"])
def test_a_limit_of_0_keeps_nothing_waiting(policy: QueuePolicy, limit: dict[str, Any], overflow: Any) -> None:
    """Not the same as no limit: what no consumer takes at once is dropped, or a dead letter."""
    policy = msgspec.structs.replace(policy, overflow=overflow, dead_letter="bin", **limit)
    policy = msgspec.structs.replace(policy, group_in_flight=5) if policy.group else policy
    kernel = Kernel({"q": policy, "bin": QueuePolicy()})
    assert kernel.send("q", "nobody") == [STORED]
    worker = kernel.worker("q", 2)
    assert kernel.send("q", "1", "2", "3") == [STORED] * 3
    assert worker.bodies == ["1", "2"]
    assert kernel.content("q") == ["1", "2"]
    assert kernel.content("bin") == (["nobody", "3"] if overflow == "dead-letter" else [])
    assert kernel.queue("q").counters.dropped == (0 if overflow == "dead-letter" else 2)


@pytest.mark.parametrize("limit", [{"max_messages": 0}, {"max_bytes": Octets(0)}], ids=["messages", "bytes"])
def test_a_limit_of_0_that_refuses_takes_nothing(limit: dict[str, Any]) -> None:
    kernel = Kernel({"q": QueuePolicy(**limit)})
    kernel.worker("q")
    assert kernel.send("q", "1") == [REFUSED]


# a delay of 0


@pytest.mark.parametrize(("delay", "comes"), [(None, []), (0.0, ["1"]), (1.0, [])])
def test_a_message_s_delay_of_0_is_not_the_same_as_none(delay: float | None, comes: list[str]) -> None:
    kernel = Kernel({"q": QueuePolicy(delay=Seconds(5))})
    worker = kernel.worker("q")
    kernel.send("q", "1", delay=delay)
    assert worker.bodies == comes
    kernel.advance(5)
    assert worker.bodies == ["1"]
