"""Which consumer of a queue is served: priorities, and a single active one."""

from __future__ import annotations

from gateway.model.policy import QueuePolicy
from gateway.transport import Credit
from tests.harness.kernel import GROUP, Kernel, Worker, grouped


def worker(kernel: Kernel, priority: int = 0, credit: int = 1 << 30) -> Worker:
    made = Worker()
    made.subscription = kernel.core.attach("q", made, (), False, priority)
    return made.grant(credit)


def single(**fields: object) -> Kernel:
    return Kernel({"q": QueuePolicy(single_active=True, **fields)})  # type: ignore[arg-type]


def test_the_higher_priority_is_served_while_it_has_credit() -> None:
    kernel = Kernel({"q": QueuePolicy()})
    low, high = worker(kernel), worker(kernel, 5, credit=2)
    kernel.send("q", "1", "2", "3")
    assert (high.bodies, low.bodies) == (["1", "2"], ["3"])
    high.done("1")
    high.grant(1)
    kernel.send("q", "4", "5")
    assert (high.bodies, low.bodies) == (["1", "2", "4"], ["3", "5"])


def test_equal_priorities_take_turns_and_no_priority_is_above_a_negative_one() -> None:
    kernel = Kernel({"q": QueuePolicy()})
    workers = [worker(kernel, -1), worker(kernel, 3, credit=2), worker(kernel, 3, credit=2), worker(kernel, 0, 1)]
    kernel.send("q", *"123456")
    assert [len(one.bodies) for one in workers] == [1, 2, 2, 1]
    assert workers[0].bodies == ["6"] and workers[3].bodies == ["5"]


def test_without_priorities_all_take_turns_again() -> None:
    kernel = Kernel({"q": QueuePolicy()})
    first, second, high = worker(kernel), worker(kernel), worker(kernel, 1)
    high.detach()
    assert not kernel.queue("q").ranks
    kernel.send("q", "1", "2")
    assert (first.bodies, second.bodies) == (["1"], ["2"])


def test_a_pool_that_is_spent_counts_as_no_credit() -> None:
    kernel = Kernel({"q": QueuePolicy()})
    pool = Credit(1)
    high = Worker()
    high.subscription = kernel.core.attach("q", high, (pool,), False, 9)
    high.grant(10)
    low = worker(kernel)
    kernel.send("q", "1", "2")
    assert (high.bodies, low.bodies) == (["1"], ["2"])
    pool.grant(1)
    kernel.send("q", "3")
    assert high.bodies == ["1", "3"]


def test_a_low_priority_takes_the_groups_that_others_do_not_hold() -> None:
    kernel = Kernel({"q": QueuePolicy(group=GROUP)})
    low, high = worker(kernel), worker(kernel, 1, credit=1)
    kernel.accept(*(grouped("q", group + number, group) for number in "12" for group in "ab"))
    kernel.run()
    assert (high.bodies, low.bodies) == (["a1"], ["b1"])


def test_a_single_active_consumer_gets_all_until_it_has_left() -> None:
    kernel = single()
    first, second = worker(kernel), worker(kernel)
    kernel.send("q", "1", "2", "3")
    assert (first.bodies, second.bodies) == (["1", "2", "3"], [])
    first.done("1")
    first.detach()
    kernel.run()
    assert second.bodies == ["2", "3"]


def test_another_takes_over_only_when_nothing_is_in_flight() -> None:
    kernel = single()
    first, second = worker(kernel, credit=2), worker(kernel)
    kernel.send("q", "1", "2", "3")
    first.cancel()
    kernel.run()
    assert (first.bodies, second.bodies) == (["1", "2"], [])
    first.done("1")
    kernel.run()
    assert second.bodies == []
    first.retry("2")
    kernel.run()
    assert second.bodies == ["2", "3"]


def test_a_single_active_consumer_without_credit_is_waited_for() -> None:
    kernel = single()
    first, second = worker(kernel, credit=1), worker(kernel)
    kernel.send("q", "1", "2")
    assert (first.bodies, second.bodies) == (["1"], [])
    first.done()
    first.grant(1)
    kernel.run()
    assert (first.bodies, second.bodies) == (["1", "2"], [])


def test_a_higher_priority_becomes_the_active_one_when_nothing_is_in_flight() -> None:
    kernel = single()
    first = worker(kernel)
    kernel.send("q", "1")
    high = worker(kernel, 1)
    kernel.send("q", "2")
    assert (first.bodies, high.bodies) == (["1"], [])
    first.done()
    kernel.run()
    assert (first.bodies, high.bodies) == (["1"], ["2"])


def test_a_reload_may_make_it_single() -> None:
    kernel = Kernel({"q": QueuePolicy()})
    first, second = worker(kernel), worker(kernel)
    kernel.policies["q"] = QueuePolicy(single_active=True)
    kernel.configure()
    kernel.send("q", "1", "2")
    assert (first.bodies, second.bodies) == (["1", "2"], [])
