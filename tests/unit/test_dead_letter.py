"""What dead letters promise (design section 4, ruling 20)."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from gateway.broker.dead_letters import MAX_DEATHS, MAX_UNDECIDED, died
from gateway.model.delivery import Reason
from gateway.model.policy import DISCARD, ExchangeTarget, QueuePolicy, Seconds
from gateway.storage.records import NO_EXTRA
from gateway.transport import Binding, Verdict
from tests.harness.kernel import GROUP, Kernel, grouped, on, to


def deaths(kernel: Kernel, queue: str) -> list[list[tuple[str, str]]]:
    found = kernel.queue(queue)
    extras = [kernel.core.extras[found.entries.extra[slot]] for slot in found.entries.slots()]
    return [[(death.queue, death.reason) for death in extra.deaths] for extra in extras]


def test_a_dead_letter_keeps_the_message_as_it_was_and_tells_its_history() -> None:
    kernel = Kernel({"q": QueuePolicy(max_deliveries=2)}, [("a/b", "q")])
    message = on("a/b", "1", ttl=3600.0, client_id="c", source="mqtt", qos=2)
    began = kernel.clock.now
    kernel.accept(message)
    worker = kernel.worker("q")
    kernel.run()
    worker.retry(error="first")
    kernel.advance(5)
    worker.retry(error="second")
    kernel.run()
    taker = kernel.worker("dead-letters")
    kernel.run()
    (seen,) = taker.seen
    assert seen.message == message
    (death,) = seen.deaths
    assert (death.queue, death.reason, death.attempts, death.error) == ("q", "exhausted", 2, "second")
    assert (death.first, death.last) == (began, began + 5)


def test_the_history_tells_of_earlier_deaths_the_latest_first() -> None:
    kernel = Kernel({"a": QueuePolicy(dead_letter="b"), "b": QueuePolicy(dead_letter="c"), "c": QueuePolicy()})
    kernel.send("a", "1")
    for name in "ab":
        worker = kernel.worker(name)
        kernel.run()
        worker.dead(error=f"in {name}")
        kernel.run()
    assert deaths(kernel, "c") == [[("b", "rejected"), ("a", "rejected")]]
    assert deaths(kernel.crash(), "c") == deaths(kernel, "c")


def test_a_queue_without_dead_letter_uses_the_built_in_one() -> None:
    kernel = Kernel({"q": QueuePolicy()})
    kernel.send("q", "1")
    worker = kernel.worker("q")
    kernel.run()
    worker.dead()
    kernel.run()
    assert kernel.content("dead-letters") == ["1"]


def test_dead_letter_none_discards_and_counts() -> None:
    kernel = Kernel({"q": QueuePolicy(dead_letter=DISCARD)})
    kernel.send("q", "1")
    worker = kernel.worker("q")
    kernel.run()
    worker.dead()
    kernel.run()
    assert kernel.queue("q").counters.dropped == 1
    assert kernel.leaks() == []


def test_dead_in_a_dead_letter_queue_discards_and_counts() -> None:
    kernel = Kernel()
    kernel.send("dead-letters", "1")
    worker = kernel.worker("dead-letters")
    for _ in range(20):
        kernel.run()
        worker.retry()
    kernel.run()
    worker.dead()
    kernel.run()
    assert kernel.queue("dead-letters").counters.dropped == 1
    assert kernel.leaks() == []


def test_dead_letters_carry_no_ttl_and_no_delay() -> None:
    kernel = Kernel({"q": QueuePolicy(delay=Seconds(1))})
    kernel.accept(to("q", "1", ttl=5.0, delay=2.0))
    worker = kernel.worker("q")
    kernel.run()
    kernel.advance(2)
    worker.dead()
    kernel.run()
    taker = kernel.worker("dead-letters")
    kernel.run()
    assert taker.bodies == ["1"]
    taker.give_back()
    taker.cancel()
    kernel.advance(100)
    assert kernel.content("dead-letters") == ["1"]


def test_what_no_consumer_can_take_does_not_go_round_in_a_circle() -> None:
    """A consumer's own word may lead through an exchange back to its queue; nobody has said one here."""
    kernel = Kernel({"q": QueuePolicy(dead_letter=ExchangeTarget("", "q"))})
    kernel.send("q", "1")
    worker = kernel.worker("q")
    kernel.run()
    worker.dead(error="no")
    kernel.run()
    assert deaths(kernel, "q") == [[("q", "rejected")]]
    assert worker.settle(Verdict.INVALID, error="too large") == 1
    kernel.run()
    assert deaths(kernel, "q") == []
    assert kernel.queue("q").counters.dropped == 1


def test_a_refused_dead_letter_stays_at_its_place_its_group_waits_and_it_is_tried_again() -> None:
    kernel = Kernel({"q": QueuePolicy(group=GROUP, dead_letter="bin"), "bin": QueuePolicy(max_messages=1)})
    kernel.send("bin", "full")
    kernel.accept(grouped("q", "a1", "a"), grouped("q", "a2", "a"), grouped("q", "b1", "b"))
    worker = kernel.worker("q")
    kernel.run()
    worker.dead("a1", error="no")
    kernel.advance(10)
    assert worker.bodies == ["a1", "b1"]
    assert kernel.content("q") == ["a1", "a2", "b1"]
    taker = kernel.worker("bin", 1)
    kernel.run()
    taker.done()
    kernel.advance(2)
    kernel.run()
    assert kernel.deaths("bin") == [("q", "rejected", 0, "no")]
    assert worker.bodies == ["a1", "b1", "a2"]


def test_a_refused_dead_letter_is_tried_again_also_without_a_consumer() -> None:
    kernel = Kernel({"q": QueuePolicy(dead_letter="bin", ttl=Seconds(1)), "bin": QueuePolicy(max_messages=1)})
    kernel.send("bin", "full")
    kernel.send("q", "1")
    kernel.advance(10)
    assert kernel.content("q") == ["1"]
    taker = kernel.worker("bin", 1)
    kernel.run()
    taker.done()
    kernel.run()
    kernel.advance(2)
    kernel.run()
    assert (kernel.content("q"), kernel.content("bin")) == ([], ["1"])
    assert kernel.queue("q").counters.expired == 1


def test_a_refused_dead_letter_is_neither_lost_nor_doubled_by_a_crash() -> None:
    kernel = Kernel({"q": QueuePolicy(dead_letter="bin", max_deliveries=2), "bin": QueuePolicy(max_messages=1)})
    kernel.send("bin", "full")
    kernel.send("q", "1")
    worker = kernel.worker("q")
    kernel.run()
    worker.retry()
    kernel.run()
    worker.retry()
    kernel.run()
    after = kernel.crash()
    assert after.content("q") == ["1"]
    assert after.queue("q").attempts == {after.queue("q").entries.first: 2}


def test_removal_and_storing_are_one_record() -> None:
    kernel = Kernel({"q": QueuePolicy()})
    kernel.send("q", "1")
    worker = kernel.worker("q")
    kernel.run()
    worker.dead()
    commit = kernel.begin()
    assert commit is not None
    assert (kernel.crash().content("q"), kernel.crash().content("dead-letters")) == (["1"], [])
    kernel.journal.commit(commit)
    assert (kernel.crash().content("q"), kernel.crash().content("dead-letters")) == ([], ["1"])


def test_a_transient_queue_s_dead_letter_becomes_durable() -> None:
    kernel = Kernel({"q": QueuePolicy(durable=False)})
    kernel.send("q", "1")
    worker = kernel.worker("q")
    kernel.run()
    worker.dead()
    kernel.run()
    after = kernel.crash()
    assert after.content("dead-letters") == ["1"]


def test_a_dead_letter_in_a_transient_queue_is_gone_after_a_restart_with_its_body() -> None:
    kernel = Kernel({"q": QueuePolicy(dead_letter="bin"), "bin": QueuePolicy(durable=False)})
    kernel.send("q", "1")
    worker = kernel.worker("q")
    kernel.run()
    worker.dead()
    kernel.run()
    assert kernel.content("bin") == ["1"]
    after = kernel.crash()
    after.run()
    assert after.leaks() == []


def test_a_missing_dead_letter_queue_is_replaced_by_the_built_in_one() -> None:
    kernel = Kernel()
    kernel.core.declare("q", QueuePolicy(dead_letter="gone"), "amqp")
    kernel.send("q", "1")
    worker = kernel.worker("q")
    kernel.run()
    worker.dead()
    kernel.run()
    assert kernel.content("dead-letters") == ["1"]


# exchanges of AMQP clients


def exchange(kernel: Kernel, queue: str, topic: str | None = None, **policy: object) -> None:
    kernel.core.declare(queue, QueuePolicy(dead_letter=ExchangeTarget("dlx", topic), **policy), "amqp")  # type: ignore[arg-type]


def test_an_exchange_gets_dead_letters_under_its_own_routing_key() -> None:
    kernel = Kernel({"one": QueuePolicy(), "two": QueuePolicy()})
    exchange(kernel, "q", "dead/key")
    for name, filter in [("one", "dead/+"), ("two", "dead/key")]:
        kernel.core.bind(Binding(queue=name, filter=filter, exchange="dlx", owner="amqp"))
    kernel.send("q", "1")
    worker = kernel.worker("q")
    kernel.run()
    worker.dead()
    kernel.run()
    takers = [kernel.worker("one"), kernel.worker("two")]
    kernel.run()
    assert [(seen.message.topic, seen.message.exchange) for taker in takers for seen in taker.seen] == [
        ("dead/key", "dlx")
    ] * 2
    for taker in takers:
        taker.done()
    kernel.run()
    assert kernel.leaks() == []


def test_an_exchange_without_a_key_gets_the_message_s_own() -> None:
    kernel = Kernel({"bin": QueuePolicy()})
    exchange(kernel, "q")
    kernel.core.bind(Binding(queue="bin", filter="q", exchange="dlx", owner="amqp"))
    kernel.send("q", "1")
    worker = kernel.worker("q")
    kernel.run()
    worker.dead()
    kernel.run()
    assert kernel.content("bin") == ["1"]
    assert kernel.crash().content("bin") == ["1"]


def test_an_exchange_that_leads_nowhere_discards_and_counts() -> None:
    kernel = Kernel()
    exchange(kernel, "q")
    kernel.send("q", "1")
    worker = kernel.worker("q")
    kernel.run()
    worker.dead()
    kernel.run()
    assert kernel.queue("q").counters.dropped == 1
    assert kernel.leaks() == []


def test_an_expired_message_whose_body_is_on_disk_reaches_its_exchange() -> None:
    kernel = Kernel({"bin": QueuePolicy()}, max_memory=0)
    exchange(kernel, "q", "dead", ttl=Seconds(5))
    kernel.core.bind(Binding(queue="bin", filter="dead", exchange="dlx", owner="amqp"))
    kernel.send("q", "1", "2")
    assert not kernel.queue("q").resident
    kernel.advance(20)
    kernel.run()
    assert (kernel.content("q"), kernel.content("bin")) == ([], ["1", "2"])


def test_a_circle_of_dead_letter_exchanges_ends() -> None:
    kernel = Kernel()
    exchange(kernel, "q", "again", ttl=Seconds(1))
    kernel.core.bind(Binding(queue="q", filter="again", exchange="dlx", owner="amqp"))
    kernel.send("q", "1")
    kernel.advance(100)
    kernel.run()
    assert kernel.leaks() == []


def test_rejected_messages_may_go_round() -> None:
    kernel = Kernel()
    exchange(kernel, "q", "again")
    kernel.core.bind(Binding(queue="q", filter="again", exchange="dlx", owner="amqp"))
    kernel.send("q", "1")
    worker = kernel.worker("q")
    for _ in range(3):
        kernel.run()
        worker.dead()
    kernel.run()
    assert kernel.content("q") == ["1"]
    assert deaths(kernel, "q") == [[("q", "rejected")] * 3]


def test_many_deaths_keep_the_latest_and_the_first() -> None:
    extra = NO_EXTRA
    for number in range(100):
        extra = died(extra, f"q{number}", Reason.REJECTED, 0, "", number, number, None)
    assert len(extra.deaths) == MAX_DEATHS
    assert [death.queue for death in extra.deaths] == [
        f"q{number}" for number in range(99, 99 - MAX_DEATHS + 1, -1)
    ] + ["q0"]


def test_a_longer_address_does_not_take_a_dead_letter_queue_above_its_limit() -> None:
    policies = {"q": QueuePolicy(dead_letter=ExchangeTarget("dead letters", "long/long/way")), "bin": QueuePolicy()}
    kernel = Kernel(policies)
    kernel.core.bind(Binding(queue="bin", exchange="dead letters", filter="#", owner="amqp"))
    kernel.send("q", "1", "2")
    worker = kernel.worker("q")
    kernel.run()
    worker.dead("1")
    kernel.run()
    limit = 2 * kernel.queue("bin").entries.octets - 1
    kernel.policies["bin"] = QueuePolicy(max_bytes=limit, dead_letter="none")
    kernel.configure()
    worker.dead("2")
    kernel.run()
    assert kernel.queue("bin").entries.octets <= limit
    assert kernel.queue("q").entries.count == 1


def test_a_history_that_is_shortened_still_counts() -> None:
    extra = NO_EXTRA
    for number in range(200):
        extra = died(
            extra, "w" if number % 2 else "m", Reason.EXPIRED if number % 2 else Reason.REJECTED, 0, "", 0, 0, None
        )
    assert len(extra.deaths) == MAX_DEATHS
    counts = {name: sum(death.count for death in extra.deaths if death.queue == name) for name in "mw"}
    assert counts == {"m": 100, "w": 100}


# circles (ruling 30)


def retry_circle(length: int, by_exchange: bool, second: bool = False, **policy: Any) -> Kernel:
    """`q0` leads to `q1`, which after a second leads on, and the last one back to `q0`; or each besides to `log`."""
    names = [f"q{number}" for number in range(length)]
    policies = {"log": QueuePolicy()}
    for name, following in zip(names, [*names[1:], names[0]], strict=True):
        target: str | ExchangeTarget = ExchangeTarget("dlx", following) if by_exchange else following
        policies[name] = QueuePolicy(dead_letter=target, ttl=None if name == "q0" else Seconds(1), **policy)
    kernel = Kernel(policies)
    for name in names if by_exchange else ():
        kernel.core.bind(Binding(queue=name, exchange="dlx", filter=name, literal=True, owner="amqp"))
        if second:
            kernel.core.bind(Binding(queue="log", exchange="dlx", filter=name, literal=True, owner="amqp"))
    return kernel


circles = pytest.mark.parametrize(
    ("length", "by_exchange"), [(1, False), (2, False), (3, False), (1, True), (2, True), (3, True), (50, True)]
)


@circles
@pytest.mark.parametrize(
    "policy",
    [{}, {"durable": False}, {"group": "{client_id|}"}, {"max_priority": 2}],
    ids=["plain", "transient", "group", "priority"],
)
def test_a_rejected_message_goes_round_as_often_as_it_is_rejected(
    length: int, by_exchange: bool, policy: dict[str, Any]
) -> None:
    kernel = retry_circle(length, by_exchange, **policy)
    kernel.send("q0", "1")
    worker = kernel.worker("q0")
    for _ in range(40):
        kernel.run()
        assert worker.dead() == 1
        for _ in range(length):
            kernel.run()
            kernel.advance(2)
    kernel.run()
    assert len(worker.seen) == 41
    assert [worker.seen[-1].deaths[-1].queue, kernel.queue("q0").counters.dropped] == ["q0", 0]
    worker.done()
    kernel.run()
    # The names of priorities stay.
    assert [leak for leak in kernel.leaks() if "max_priority" not in policy or "groups" not in leak] == []


@circles
def test_a_circle_that_nobody_rejects_ends_where_it_began(length: int, by_exchange: bool) -> None:
    """Wherever a message has entered it, and whether a consumer rejected it before."""
    kernel = retry_circle(length, by_exchange)
    kernel.accept(to("q0", "1", ttl=1.0))
    for _ in range(2 * length):
        kernel.run()
        kernel.advance(2)
    assert [kernel.content(name) for name in kernel.policies if name != "log"] == [[]] * length
    assert sum(kernel.queue(name).counters.circled for name in kernel.policies) == 1
    assert sum(kernel.queue(name).counters.dropped for name in kernel.policies) == 1
    assert kernel.leaks() == []


def test_a_rejection_counts_only_since_the_message_was_last_there() -> None:
    """It went round once, since a consumer rejected it; then it expired, and had expired in the next queue since."""
    kernel = retry_circle(2, True)
    kernel.policies["q0"] = msgspec.structs.replace(kernel.policies["q0"], ttl=Seconds(10))
    kernel.configure()
    kernel.send("q0", "1")
    worker = kernel.worker("q0", 1)
    kernel.run()
    worker.dead()
    kernel.run()
    kernel.advance(2)
    kernel.run()
    assert kernel.content("q0") == ["1"]
    kernel.advance(11)
    kernel.run()
    assert (kernel.content("q0"), kernel.content("q1")) == ([], [])
    assert kernel.queue("q0").counters.circled == 1


def test_of_several_targets_only_those_that_close_a_circle_are_left_out() -> None:
    kernel = retry_circle(2, True, second=True)
    kernel.accept(to("q0", "1", ttl=1.0))
    for _ in range(4):
        kernel.run()
        kernel.advance(2)
    assert deaths(kernel, "log") == [[("q0", "expired")], [("q1", "expired"), ("q0", "expired")]]
    assert (kernel.content("q0"), kernel.content("q1")) == ([], [])
    counters = kernel.queue("q1").counters
    assert (counters.circled, counters.dropped, counters.dead_lettered) == (1, 0, 1)


def test_a_circle_goes_on_after_a_crash() -> None:
    kernel = retry_circle(2, True)
    kernel.send("q0", "1")
    for _ in range(3):
        worker = kernel.worker("q0")
        kernel.run()
        worker.dead()
        kernel.run()
        kernel = kernel.crash()
        kernel.core.bind(Binding(queue="q0", exchange="dlx", filter="q0", literal=True, owner="amqp"))
        kernel.core.bind(Binding(queue="q1", exchange="dlx", filter="q1", literal=True, owner="amqp"))
        kernel.advance(2)
        kernel.run()
    assert kernel.content("q0") == ["1"]
    assert deaths(kernel, "q0") == [[("q1", "expired"), ("q0", "rejected")] * 3]


def test_what_an_operator_redrives_may_go_the_same_way_again() -> None:
    policies = {
        "q": QueuePolicy(max_deliveries=1, dead_letter="w"),
        "w": QueuePolicy(ttl=Seconds(1), dead_letter="bin"),
        "bin": QueuePolicy(),
    }
    kernel = Kernel(policies)
    kernel.send("q", "1")
    for _ in range(3):
        worker = kernel.worker("q")
        kernel.run()
        worker.retry()
        kernel.run()
        worker.detach()
        kernel.advance(2)
        kernel.run()
        assert kernel.content("bin") == ["1"]
        assert kernel.redrive("bin", to="q").moved == 1
        kernel.run()
    assert kernel.content("q") == ["1"]


def test_no_message_dies_without_end_by_itself() -> None:
    names = [f"q{number}" for number in range(2 * MAX_UNDECIDED)]
    policies = {
        name: QueuePolicy(ttl=Seconds(1), dead_letter=n) for name, n in zip(names, [*names[1:], "bin"], strict=True)
    }
    kernel = Kernel(policies | {"bin": QueuePolicy()})
    kernel.send("q0", "1")
    for _ in names:
        kernel.advance(2)
        kernel.run()
    assert sum(kernel.queue(name).counters.circled for name in names) == 1
    assert kernel.queue(f"q{MAX_UNDECIDED}").counters.dropped == 1


def test_a_full_queue_takes_back_its_own_rejected_message() -> None:
    kernel = Kernel({"q": QueuePolicy(max_messages=1, dead_letter="q")})
    kernel.send("q", "1")
    worker = kernel.worker("q")
    for _ in range(3):
        kernel.run()
        worker.dead()
    kernel.run()
    assert kernel.content("q") == ["1"]
    assert not kernel.queue("q").doomed
