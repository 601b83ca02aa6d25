"""A consumer that has left: whatever it still does, nothing changes for those that have its messages, or its queue's
name, by then."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from gateway.model.credit import Credit
from gateway.model.policy import DEAD_LETTERS, QueuePolicy, Seconds
from gateway.transport import Verdict
from tests.harness.kernel import GROUP, Kernel, Worker, grouped

POLICIES = {
    "plain": QueuePolicy(),
    "transient": QueuePolicy(durable=False),
    "group": QueuePolicy(group=GROUP, group_in_flight=4),
    "priority": QueuePolicy(max_priority=3),
    "single active": QueuePolicy(single_active=True),
    "timed": QueuePolicy(ack_timeout=Seconds(60)),
}


def settles(verdict: Verdict) -> Callable[[Worker, list[int]], object]:
    return lambda worker, ids: worker.subscription.settle(ids, verdict)


CALLS: dict[str, Callable[[Worker, list[int]], object]] = {
    "detach": lambda worker, ids: worker.subscription.detach(),
    "detach as lost": lambda worker, ids: worker.subscription.detach(lost=True),
    "cancel": lambda worker, ids: worker.subscription.cancel(),
    "grant": lambda worker, ids: worker.subscription.grant(100),
    "revoke": lambda worker, ids: worker.subscription.revoke(),
    **{verdict.name: settles(verdict) for verdict in Verdict},
}


def left_over(kernel: Kernel) -> list[str]:
    """But for the numbers of priorities, of which there are few, and which stay."""
    return [what for what in kernel.leaks() if kernel.queue("q").policy.max_priority is None or "groups" not in what]


@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("policy", POLICIES)
def test_a_consumer_that_has_left_changes_nothing(policy: str, call: str, lost: bool) -> None:
    kernel = Kernel({"q": POLICIES[policy], DEAD_LETTERS: QueuePolicy(dead_letter="none")})
    kernel.accept(*[grouped("q", str(number), "a") for number in range(6)])
    pool = Credit(messages=4)
    old = kernel.worker("q", pools=(pool,))
    kernel.run()
    ids = list(old.held)
    assert len(ids) == 4
    old.subscription.detach(lost)
    new = kernel.worker("q", credit=4)
    kernel.run()
    assert len(new.holding) == 4
    queue = kernel.queue("q")
    before = (queue.depth, queue.in_flight, dict(queue.attempts), queue.counters.retried, pool.messages)
    for _ in range(2):
        CALLS[call](old, ids)
        pool.grant(messages=4)
        pool.messages -= 4
        kernel.run()
    assert (queue.depth, queue.in_flight, dict(queue.attempts), queue.counters.retried, pool.messages) == before
    assert old.subscription.unsettled == 0 and len(old.seen) == 4
    while new.held:
        new.grant(new.done())
        kernel.run()
    assert (queue.depth, queue.in_flight, queue.consumers) == (0, 0, 1)
    assert left_over(kernel) == []


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("policy", POLICIES)
def test_a_consumer_of_a_deleted_queue_changes_nothing_in_the_next_one_of_that_name(policy: str, call: str) -> None:
    kernel = Kernel({"q": POLICIES[policy], DEAD_LETTERS: QueuePolicy(dead_letter="none")})
    kernel.accept(*[grouped("q", str(number), "a") for number in range(4)])
    old = kernel.worker("q", credit=2)
    kernel.run()
    ids = list(old.held)
    kernel.core.delete("q")
    kernel.core.declare("q", POLICIES[policy], "config")
    kernel.accept(*[grouped("q", f"new {number}", "a") for number in range(4)])
    new = kernel.worker("q", credit=2)
    kernel.run()
    queue = kernel.queue("q")
    for _ in range(2):
        CALLS[call](old, ids)
        kernel.run()
    assert (queue.depth, queue.in_flight, queue.consumers) == (2, 2, 1)
    assert len(old.seen) == 2 and not queue.attempts
    while new.held:
        new.grant(new.done())
        kernel.run()
    assert new.bodies == [f"new {number}" for number in range(4)]
    assert left_over(kernel) == []
