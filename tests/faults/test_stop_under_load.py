"""SIGTERM and SIGHUP while publishers send and consumers settle: in time, status 0, and nothing lost.

GATEWAY_SEED repeats the choices of one run.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.crowd import Crowd

SEED = int(os.environ.get("GATEWAY_SEED", random.SystemRandom().randrange(1 << 32)))
STOPS = 3
STORED_BEFORE = 600
"""A stop, or a reload, comes when so many more messages at the most are confirmed."""
ENDLESS = 1 << 30
"""More than a publisher can send: there are always messages without an answer."""
DRAIN_SECONDS = 2
SPARE_SECONDS = 2.0
"""How much longer a stop may take than its drain."""

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(150)]


@pytest.fixture
def crowd(tmp_path: Path) -> Iterator[Crowd]:
    crowd = Crowd(tmp_path, random.Random(SEED), drain_timeout=f"{DRAIN_SECONDS}s")
    yield crowd
    crowd.daemon.close()


async def finish(crowd: Crowd) -> None:
    await crowd.drain()
    assert await asyncio.to_thread(crowd.daemon.stop) == 0
    faults = crowd.errors + crowd.history.check()
    assert not faults, f"seed {SEED}, {len(faults)} faults:\n" + "\n".join(faults[:30])
    assert crowd.history.stored > 1000


async def test_a_stop_under_load_ends_in_time_and_loses_nothing(crowd: Crowd) -> None:
    for _ in range(STOPS):
        await crowd.begin(ENDLESS)
        await crowd.until_stored(crowd.rng.randrange(400, STORED_BEFORE))
        began = time.monotonic()
        assert await asyncio.to_thread(crowd.daemon.stop) == 0
        assert time.monotonic() - began < DRAIN_SECONDS + SPARE_SECONDS
        assert await crowd.ended(), "the stop came after the last publish"
    await crowd.begin(0)
    await finish(crowd)


async def test_reloads_under_load_disturb_nobody(crowd: Crowd) -> None:
    await crowd.begin(ENDLESS)
    daemon, before = crowd.daemon, crowd.configuration
    for n in range(10):
        await crowd.until_stored(crowd.rng.randrange(STORED_BEFORE))
        seen = len(daemon.log)
        routes = [*before["routes"], {"from": "fifo/+", "to": f"more{n}"}] if n % 2 else before["routes"]
        daemon.configure({**before, "queues": {**before["queues"], f"more{n}": {}}, "routes": routes})
        daemon.hup()
        await asyncio.to_thread(daemon.wait_for, "reloaded", lambda record: True, 10, seen)
    assert not any(peer.lost.is_set() for peer in crowd.peers)
    await finish(crowd)
