"""How a queue shares its messages among workers of the same speed: in turn, whatever its kind of ordering."""

from __future__ import annotations

import random

import pytest

from gateway.model.message import Properties
from gateway.model.policy import QueuePolicy
from gateway.transport import Verdict
from tests.harness.kernel import GROUP, Kernel, Worker, grouped, to

GROUPS = 20
KINDS = {
    "plain": QueuePolicy(),
    "transient": QueuePolicy(durable=False),
    "group": QueuePolicy(group=GROUP),
    "group of 2 in flight": QueuePolicy(group=GROUP, group_in_flight=2),
    "group of 8 in flight": QueuePolicy(group=GROUP, group_in_flight=8),
    "priority": QueuePolicy(max_priority=5),
}
kinds = pytest.mark.parametrize("kind", KINDS)


def feed(kernel: Kernel, count: int) -> None:
    """So many messages, of all groups and priorities in turn."""
    for number in range(count):
        if kernel.queue("q").policy.group:
            kernel.accept(grouped("q", str(number), f"g{number % GROUPS}"))
        else:
            kernel.accept(to("q", str(number), properties=Properties(priority=number % 3)))
    kernel.run()


def work(kernel: Kernel, workers: list[Worker], rounds: int, rng: random.Random) -> list[int]:
    """Each settles one message in each round, the oldest that it holds. Returns how many each settled."""
    shares = [0] * len(workers)
    for _ in range(rounds):
        for place in rng.sample(range(len(workers)), len(workers)):
            worker = workers[place]
            if worker.held:
                id = next(iter(worker.held))
                del worker.held[id]
                shares[place] += worker.subscription.settle([id], Verdict.DONE)
                worker.grant()
            kernel.run()
    return shares


def assert_even(shares: list[int]) -> None:
    fair = sum(shares) / len(shares)
    assert fair > 0
    assert all(0.75 * fair <= share <= 1.25 * fair for share in shares), shares


@kinds
@pytest.mark.parametrize("workers", [2, 5])
@pytest.mark.parametrize("prefetch", [1, 3, GROUPS, 500])
def test_workers_share_a_backlog(kind: str, workers: int, prefetch: int) -> None:
    kernel = Kernel({"q": KINDS[kind]})
    feed(kernel, 100 * workers)
    crew = [kernel.worker("q", prefetch) for _ in range(workers)]
    kernel.run()
    assert_even(work(kernel, crew, 80, random.Random(1)))


@kinds
@pytest.mark.parametrize("workers", [2, 5])
def test_workers_share_what_comes_one_at_a_time(kind: str, workers: int) -> None:
    kernel = Kernel({"q": KINDS[kind]})
    crew = [kernel.worker("q", 500) for _ in range(workers)]
    for number in range(40 * workers):
        body = str(number)
        kernel.accept(grouped("q", body, body) if kernel.queue("q").policy.group else to("q", body))
        kernel.run()
        for worker in crew:
            worker.done()
        kernel.run()
    assert [len(worker.seen) for worker in crew] == [40] * workers


@kinds
@pytest.mark.parametrize("prefetches", [(1, 500), (2, 500, 2, 500, 5)])
def test_a_small_prefetch_has_its_share_while_it_has_credit(kind: str, prefetches: tuple[int, ...]) -> None:
    """What counts is who has credit, not how much of it. With several of a group in flight, a group stays with a large
    prefetch until all of these are settled, so there a small one gets less, and never nothing."""
    kernel = Kernel({"q": KINDS[kind]})
    crew = [kernel.worker("q", prefetch) for prefetch in prefetches]
    feed(kernel, sum(prefetches) + 60 * len(crew))
    shares = work(kernel, crew, 60, random.Random(2))
    if KINDS[kind].group_in_flight == 1:
        assert_even(shares)
    else:
        assert min(shares) > 0, shares


@kinds
def test_who_comes_later_gets_a_share_too(kind: str) -> None:
    kernel = Kernel({"q": KINDS[kind]})
    first = kernel.worker("q", 6)
    feed(kernel, 1000)
    rng = random.Random(3)
    work(kernel, [first], 20, rng)
    crew = [first, kernel.worker("q", 6), kernel.worker("q", 6)]
    kernel.run()
    work(kernel, crew, 40, rng)
    assert_even(work(kernel, crew, 100, rng))
    crew.pop(1).detach()
    kernel.run()
    work(kernel, crew, 10, rng)
    assert_even(work(kernel, crew, 100, rng))


@pytest.mark.parametrize("limit", [2, 8])
def test_a_group_is_handed_over_only_when_none_of_it_is_in_flight(limit: int) -> None:
    """Also while others come and go, and take over groups from who has most of them."""
    kernel = Kernel({"q": QueuePolicy(group=GROUP, group_in_flight=limit)})
    feed(kernel, 800)
    rng = random.Random(4)
    crew = [kernel.worker("q", 500)]
    last: dict[str, int] = {}
    for step in range(600):
        if step % 50 == 20:
            crew.append(kernel.worker("q", rng.choice([1, 7, 500])))
        if step % 100 == 90:
            crew.pop(rng.randrange(len(crew))).detach()
        kernel.run()
        holders: dict[str, set[int]] = {}
        for place, worker in enumerate(crew):
            for delivery in worker.held.values():
                group = f"g{int(delivery.message.body) % GROUPS}"
                holders.setdefault(group, set()).add(place)
        assert all(len(places) == 1 for places in holders.values())
        worker = rng.choice(crew)
        if worker.held:
            id, delivery = next(iter(worker.held.items()))
            number = int(delivery.message.body)
            group = f"g{number % GROUPS}"
            assert number > last.get(group, -1), "out of order"
            last[group] = number
            del worker.held[id]
            worker.subscription.settle([id], Verdict.DONE)
            worker.grant()


def test_a_consumer_that_can_take_nothing_leaves_others_their_groups() -> None:
    """One that found nothing, and has spent its credit elsewhere since, costs a group one hand-over at most."""
    kernel = Kernel({"q": QueuePolicy(group=GROUP, group_in_flight=4)})
    busy = kernel.worker("q", 500)
    idle = kernel.worker("q", 1)
    kernel.run()
    idle.subscription.revoke()
    feed(kernel, 200)
    for _ in range(20):
        busy.done()
        kernel.run()
    assert len(busy.seen) == 200
