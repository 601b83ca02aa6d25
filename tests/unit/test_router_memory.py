"""What the router keeps of topics it has seen: bounded, whatever the topics look like."""

from __future__ import annotations

import random
import tracemalloc

import pytest

from gateway.model.message import Message
from gateway.routing.router import FORGOTTEN_SINGLY, Router
from gateway.transport import Binding

CACHE_OCTETS = 4 << 20


@pytest.mark.parametrize("levels", [1, 3, 128])
def test_topics_of_any_depth_take_no_more_memory_than_the_cache_may_have(levels: int) -> None:
    rng = random.Random(levels)
    router: Router[str] = Router(CACHE_OCTETS)
    router.add_queue("q", "q")
    router.bind(Binding(queue="q", filter="#", owner="config"))
    tracemalloc.start()
    try:
        highest = 0
        for _ in range(40_000 // levels):
            router.route(Message("/".join(f"{rng.getrandbits(40):x}" for _ in range(levels)), b""))
            highest = max(highest, tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert highest < 2 * CACHE_OCTETS


def test_what_is_forgotten_is_counted_as_it_was_remembered() -> None:
    router: Router[str] = Router(CACHE_OCTETS)
    router.add_queue("q", "q")
    for n in range(100):
        router.route(Message(f"a/{n % 7}/{n}", b""))
    binding = Binding(queue="q", filter="a/#", owner="config")
    router.bind(binding)  # forgets them all
    assert router._cached == 0


def test_an_edit_that_affects_many_answers_forgets_all_and_counts_right() -> None:
    router: Router[str] = Router(CACHE_OCTETS)
    for name in ("q", "other"):
        router.add_queue(name, name)
    router.bind(Binding(queue="q", filter="b/#", owner="config"))
    topics = [f"{first}/{n}" for first in "ab" for n in range(FORGOTTEN_SINGLY + 1)]
    assert {len(router.route(Message(topic, b""))) for topic in topics} == {0, 1}
    router.route(Message("q", b"", ""))  # of another exchange, which is left alone
    rest = router._cached - router._exchanges["amq.topic"].octets
    assert 0 < rest < router._cached
    router.bind(Binding(queue="other", filter="a/#", owner="config"))
    assert router._cached == rest
    assert {router.route(Message(topic, b""))[0][0] for topic in topics[:10]} == {"other"}
    assert {router.route(Message(topic, b""))[0][0] for topic in topics[-10:]} == {"q"}
