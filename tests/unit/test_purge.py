"""Purging and deleting: at once for whoever looks, in slices for whoever else wants the daemon's time."""

from __future__ import annotations

import pytest

from gateway.model.policy import DEAD_LETTERS, QueuePolicy, Seconds
from gateway.queueing.purge import PURGED_AT_ONCE
from tests.harness.kernel import GROUP, Kernel, Worker, grouped, to

MANY = 3 * PURGED_AT_ONCE
"""More than one turn removes."""


def filled(count: int, policy: QueuePolicy | None = None) -> Kernel:
    kernel = Kernel({"q": policy or QueuePolicy(), DEAD_LETTERS: QueuePolicy(dead_letter="none")})
    kernel.accept(*[to("q", str(number)) for number in range(count)])
    kernel.run()
    return kernel


def turns(kernel: Kernel) -> int:
    """How many it takes until nothing is left to do."""
    count = 0
    while kernel.core.is_dirty:
        kernel.dispatch()
        count += 1
    kernel.run()
    return count


def test_a_turn_removes_some_of_many_and_the_end_is_told() -> None:
    kernel, ends = filled(MANY), []
    assert kernel.queue("q").purge(lambda: ends.append(kernel.queue("q").depth)) == MANY
    kernel.dispatch()
    assert kernel.queue("q").depth == MANY - PURGED_AT_ONCE
    assert kernel.core.is_dirty and not ends
    assert turns(kernel) == 2
    assert ends == [0]
    assert kernel.leaks() == []


def test_a_second_purge_tells_of_what_the_first_has_not() -> None:
    kernel, ends = filled(MANY), []
    worker = kernel.worker("q", credit=2)
    kernel.run()
    queue = kernel.queue("q")
    assert queue.purge(lambda: ends.append(1)) == MANY - 2
    assert queue.purge(lambda: ends.append(2)) == 0
    kernel.dispatch()
    worker.subscription.detach()  # what it gives back was spared by the first
    kernel.accept(to("q", "later"))
    kernel.commit()
    assert queue.purge(lambda: ends.append(3)) == 3
    turns(kernel)
    assert (ends, queue.depth) == ([1, 2, 3], 0)
    assert kernel.leaks() == []


def test_an_empty_queue_is_purged_at_once() -> None:
    kernel, ends = filled(0), []
    assert kernel.queue("q").purge(lambda: ends.append(True)) == 0
    kernel.dispatch()
    assert ends == [True]
    assert not kernel.core.is_dirty


def test_nothing_that_is_purged_is_delivered_and_what_comes_later_is() -> None:
    kernel = filled(MANY)
    worker = kernel.worker("q")
    kernel.queue("q").purge()
    kernel.accept(to("q", "later"))
    kernel.commit()
    kernel.dispatch()
    assert not worker.seen, "it waits until the queue is purged"
    kernel.run()
    assert worker.bodies == ["later"]
    worker.done()
    kernel.run()
    assert kernel.leaks() == []


@pytest.mark.parametrize("policy", [QueuePolicy(), QueuePolicy(group=GROUP, group_in_flight=5)])
def test_what_is_in_flight_is_spared_also_when_it_comes_back_meanwhile(policy: QueuePolicy) -> None:
    kernel = Kernel({"q": policy})
    kernel.accept(*[grouped("q", str(number), "one") for number in range(MANY)])
    kernel.run()
    worker = kernel.worker("q", 3)
    kernel.run()
    assert worker.holding == ["0", "1", "2"]
    kernel.queue("q").purge()
    worker.give_back("0")
    kernel.dispatch()
    worker.retry("1")
    kernel.run()
    assert kernel.content("q") == ["0", "1", "2"]
    worker.done("2")
    worker.grant(2)
    kernel.run()
    assert worker.holding == ["0", "1"]
    worker.done()
    kernel.run()
    assert kernel.leaks() == []


def test_many_in_flight_do_not_make_a_turn_longer() -> None:
    flying = 12 * PURGED_AT_ONCE
    kernel = filled(flying + MANY)
    worker = kernel.worker("q", flying)
    kernel.run()
    queue = kernel.queue("q")
    queue.purge()
    kernel.dispatch()
    assert queue.depth == MANY, "it has passed some of what is in flight, and not all"
    worker.done(*map(str, range(flying // 2)))
    kernel.run()
    assert (queue.depth, queue.in_flight) == (0, flying // 2)
    worker.done()
    kernel.run()
    assert kernel.leaks() == []


def test_queues_that_are_purged_take_turns() -> None:
    kernel = Kernel({"long": QueuePolicy(), "short": QueuePolicy()})
    kernel.accept(*[to("long", str(number)) for number in range(MANY)], to("short"))
    kernel.run()
    ends: list[str] = []
    for name in ("long", "short"):
        kernel.queue(name).purge(lambda name=name: ends.append(name))  # type: ignore[misc]
    kernel.run()
    assert ends == ["short", "long"]
    assert kernel.leaks() == []


def test_a_second_purge_takes_what_came_after_the_first() -> None:
    kernel, ends = filled(MANY), []
    queue = kernel.queue("q")
    queue.purge(lambda: ends.append(1))
    kernel.dispatch()
    kernel.accept(to("q", "later"))
    kernel.commit()
    queue.purge(lambda: ends.append(2))
    kernel.run()
    assert ends == [1, 2]
    assert kernel.content("q") == []


def test_what_is_purged_becomes_no_dead_letter() -> None:
    """Neither because it expires meanwhile, nor because its queue is too full."""
    policy = QueuePolicy(ttl=Seconds(5), max_messages=MANY, overflow="dead-letter", dead_letter=DEAD_LETTERS)
    kernel = filled(MANY, policy)
    kernel.queue("q").purge()
    kernel.accept(*[to("q", f"later {number}") for number in range(3)])
    kernel.commit()
    kernel.clock.now += 100
    kernel.core.tick()
    kernel.run()
    kernel.advance(1)
    kernel.run()
    assert sorted(kernel.content(DEAD_LETTERS)) == ["later 0", "later 1", "later 2"]
    assert kernel.queue("q").counters.dead_lettered == 3
    assert kernel.content("q") == []


def test_a_limit_holds_again_when_the_purge_is_over() -> None:
    kernel = filled(MANY, QueuePolicy(max_messages=MANY, overflow="drop-oldest"))
    kernel.queue("q").purge()
    kernel.accept(*[to("q", f"later {number}") for number in range(MANY + 5)])
    kernel.commit()
    kernel.run()
    assert kernel.queue("q").entries.count == MANY
    assert kernel.queue("q").counters.dropped == 5
    assert kernel.content("q")[0] == "later 5"


def test_a_crash_amid_a_purge_leaves_what_was_not_removed_yet() -> None:
    kernel, ends = filled(MANY), []
    kernel.queue("q").purge(lambda: ends.append(True))
    kernel.dispatch()
    kernel.commit()
    left = kernel.queue("q").depth
    kernel = kernel.crash()
    assert not ends
    assert kernel.queue("q").depth == left
    kernel.queue("q").purge()
    kernel.run()
    assert kernel.leaks() == []


def test_a_deleted_queue_s_name_is_free_at_once_and_its_messages_go_in_slices() -> None:
    kernel = filled(MANY)
    worker = kernel.worker("q", 5)
    kernel.run()
    assert kernel.core.delete("q") == MANY
    assert worker.ends and "q" not in kernel.core.queues
    kernel.core.declare("q", QueuePolicy(), "test")
    kernel.accept(to("q", "new"))
    kernel.commit()
    kernel.dispatch()
    assert kernel.core.memory.octets > MANY, "the old ones are still on their way out"
    assert kernel.content("q") == ["new"]
    assert turns(kernel) >= 1
    taker: Worker = kernel.worker("q")
    kernel.run()
    taker.done()
    kernel.run()
    assert taker.bodies == ["new"]
    assert kernel.leaks() == []


@pytest.mark.parametrize("slices", [0, 1])
def test_a_crash_amid_a_deletion_brings_nothing_back(slices: int) -> None:
    kernel = filled(MANY)
    kernel.core.delete("q")
    for _ in range(slices):
        kernel.dispatch()
    kernel.commit()
    kernel.policies.pop("q")
    kernel = kernel.crash()
    kernel.run()
    assert "q" not in kernel.core.queues
    assert kernel.leaks() == []


def test_a_purge_that_is_overtaken_by_a_deletion_ends_with_it() -> None:
    kernel, ends = filled(MANY), []
    kernel.queue("q").purge(lambda: ends.append(True))
    kernel.dispatch()
    kernel.core.delete("q")
    kernel.run()
    assert ends == [True]
    assert kernel.leaks() == []
