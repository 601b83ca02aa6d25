"""What has left a queue leaves nothing behind, though its time is far and nobody consumes."""

from __future__ import annotations

import gc
import tracemalloc

import pytest

from gateway.model.policy import DISCARD, QueuePolicy
from tests.harness.kernel import GROUP, Kernel, grouped
from tests.harness.kernel import to as plain

ROUND = 50


def passes_through(kernel: Kernel, rounds: int, fields: dict[str, float]) -> None:
    """Each round drops the one before it."""
    for number in range(rounds):
        later = {name: seconds + number for name, seconds in fields.items()}
        make = grouped if kernel.policies["q"].group else lambda queue, body, _, **rest: plain(queue, body, **rest)
        kernel.accept(*[make("q", "x", f"{number}.{place}", **later) for place in range(ROUND)])
        kernel.run()
        kernel.core.tick()
        kernel.answers.clear()


@pytest.mark.parametrize("group", [None, GROUP])
@pytest.mark.parametrize("fields", [{}, {"ttl": 1e6}, {"delay": 1e5}], ids=["plain", "ttl", "delay"])
def test_what_was_dropped_takes_no_memory(group: str | None, fields: dict[str, float]) -> None:
    policy = QueuePolicy(
        durable=False, group=group, max_messages=ROUND, overflow="drop-oldest", dead_letter=DISCARD, max_delay=1e9
    )
    kernel = Kernel({"q": policy})
    kernel.worker("q", 0)
    passes_through(kernel, 10, fields)
    tracemalloc.start()
    try:
        passes_through(kernel, 10, fields)
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        passes_through(kernel, 40, fields)
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 8_000, f"{after - before} bytes for 2,000 messages that are gone"
    taker = kernel.worker("q")
    kernel.advance(2e5)
    assert len(taker.seen) == ROUND
