"""Deliveries that are done with a batch: one commit has both, or neither is true."""

from __future__ import annotations

import pytest

from gateway.model.policy import QueuePolicy
from gateway.transport import Offer, Outcome, Subscription
from tests.harness.kernel import Kernel, Worker, to

STORED, REFUSED = Outcome.STORED, Outcome.REFUSED


def working(**policies: QueuePolicy) -> tuple[Kernel, Worker]:
    """A worker that holds the jobs `1` and `2`."""
    kernel = Kernel({"jobs": QueuePolicy(), "results": QueuePolicy(max_messages=2), **policies})
    kernel.send("jobs", "1", "2")
    worker = kernel.worker("jobs")
    kernel.run()
    return kernel, worker


def held(worker: Worker, *bodies: str) -> list[tuple[Subscription, list[int]]]:
    return [(worker.subscription, [id for id, one in worker.held.items() if one.message.body.decode() in bodies])]


def test_both_are_true_after_the_commit_and_neither_before() -> None:
    kernel, worker = working()
    answer = kernel.accept(to("results", "r"), offer=Offer(done=held(worker, "1")))
    assert kernel.content("jobs") == ["1", "2"]
    before = kernel.crash()
    assert before.content("jobs") == ["1", "2"] and before.content("results") == []
    kernel.commit()  # and no commit after it
    assert answer.outcomes == [STORED] and kernel.content("jobs") == ["2"]
    after = kernel.crash()
    assert after.content("jobs") == ["2"] and after.content("results") == ["r"]


def test_without_messages_deliveries_are_done_all_the_same() -> None:
    kernel, worker = working()
    kernel.accept(offer=Offer(done=held(worker, "1", "2")))
    kernel.commit()
    assert kernel.content("jobs") == [] and kernel.crash().content("jobs") == []
    kernel.run()
    assert worker.subscription.unsettled == 0 and not kernel.leaks()


def test_without_messages_they_are_done_whatever_becomes_of_the_commit() -> None:
    kernel, worker = working()
    kernel.accept(offer=Offer(done=held(worker, "1")))
    assert kernel.commit_fails()
    assert worker.subscription.unsettled == 1 and kernel.content("jobs") == ["2"]
    kernel.run()
    assert kernel.crash().content("jobs") == ["2"]


def test_a_refused_message_leaves_the_deliveries_open() -> None:
    kernel, worker = working()
    answer = kernel.accept(*(to("results", str(n)) for n in range(3)), offer=Offer(done=held(worker, "1")))
    kernel.run()
    assert answer.outcomes == [STORED, STORED, REFUSED]
    assert kernel.content("jobs") == ["1", "2"] and worker.subscription.unsettled == 2
    assert kernel.crash().content("jobs") == ["1", "2"]


def test_a_failed_commit_leaves_the_deliveries_open() -> None:
    kernel, worker = working()
    answer = kernel.accept(to("results", "r"), offer=Offer(done=held(worker, "1")))
    assert kernel.commit_fails()
    kernel.run()
    assert answer.outcomes == [REFUSED] and worker.subscription.unsettled == 2
    after = kernel.crash()
    assert after.content("jobs") == ["1", "2"] and after.content("results") == []


def test_what_comes_after_a_failed_commit_is_decided_again_with_its_deliveries() -> None:
    kernel, worker = working()
    kernel.accept(to("results", "lost"))
    assert kernel.begin() is not None
    answer = kernel.accept(to("results", "r"), offer=Offer(done=held(worker, "1")))
    kernel.fail()
    kernel.run()
    assert answer.outcomes == [STORED]
    after = kernel.crash()
    assert after.content("jobs") == ["2"] and after.content("results") == ["r"]


def test_what_is_given_back_meanwhile_comes_again() -> None:
    kernel, worker = working()
    kernel.accept(to("results", "r"), offer=Offer(done=held(worker, "1")))
    commit = kernel.begin()
    assert commit is not None
    worker.detach(lost=True)
    kernel.end(commit)
    other = kernel.worker("jobs")
    kernel.run()
    assert sorted(other.bodies) == ["1", "2"]
    other.done()
    kernel.run()
    assert kernel.crash().content("jobs") == []


def test_done_while_the_store_takes_nothing() -> None:
    kernel, worker = working(volatile=QueuePolicy(durable=False))
    kernel.core.refusing = "the disk is full"
    kernel.accept(to("volatile", "r"), offer=Offer(done=held(worker, "1")))
    kernel.core.take_volatile()
    assert kernel.content("volatile") == ["r"] and kernel.content("jobs") == ["2"]
    kernel.core.refusing = ""
    kernel.run()
    assert kernel.crash().content("jobs") == ["2"]


@pytest.mark.parametrize("durable", [True, False])
def test_a_deleted_queue_is_no_matter(durable: bool) -> None:
    kernel, worker = working(other=QueuePolicy(durable=durable))
    kernel.send("other", "x")
    taker = kernel.worker("other")
    kernel.run()
    kernel.core.delete("other")
    answer = kernel.accept(to("results", "r"), offer=Offer(done=held(taker, "x")))
    kernel.run()
    assert answer.outcomes == [STORED] and worker.subscription.unsettled == 2
