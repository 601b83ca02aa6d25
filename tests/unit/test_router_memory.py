"""What the router keeps of topics it has seen: bounded, whatever the topics look like."""

from __future__ import annotations

import random
import tracemalloc

import pytest

from gateway.message import Message
from gateway.router import Router
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
