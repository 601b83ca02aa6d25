"""Space: while messages pass and one in each commit stays for good, the store stays near the size of what lives in it.

GATEWAY_MESSAGES sets how many pass. `make space MESSAGES=10000000` is the long form, with the limits of the product;
the short one has them, and the bound, at a sixteenth.
"""

from __future__ import annotations

import asyncio
import gc
import os
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import uvloop

from gateway.broker.core import Core
from gateway.broker.definitions import configure, secret_state
from gateway.clock import Clock
from gateway.engine import committer as committing
from gateway.engine.committer import Committer
from gateway.engine.recovery import live_octets, restore
from gateway.model.credit import Pressure
from gateway.model.message import Message, Properties
from gateway.model.policy import DedupPolicy, QueuePolicy, Seconds
from gateway.storage import salvage
from gateway.storage import sqlite as store
from gateway.storage.sqlite import SqliteJournal
from gateway.transport import Binding, Delivery, Outcome, Subscription, Verdict

MESSAGES = int(os.environ.get("GATEWAY_MESSAGES", "0"))
SHORT_MESSAGES = 100_000
SHORT = 16
SLACK = 128 << 20
BATCH = 100
"""Messages of one call, of which one stays."""
CALLS_AHEAD = 4
WINDOW_SECONDS = 10.0
PAUSE_SECONDS = 0.1

pytestmark = pytest.mark.timeout(120 + MESSAGES // 5_000)


class Worker:
    """Settles what it gets, but for one in a hundred."""

    def __init__(self, core: Core, queue: str) -> None:
        self.settled = 0
        self.subscription: Subscription = core.attach(queue, self, (), False)
        self.subscription.grant(1 << 40)

    def deliver(self, batch: Sequence[Delivery]) -> None:
        done = [delivery.id for delivery in batch if not delivery.message.body.startswith(b"stays")]
        self.settled += len(done)
        self.subscription.settle(done, Verdict.DONE)

    def closed(self, reason: str) -> None:
        pytest.fail(reason)


class Pulse:
    """How long the event loop was busy at one time, at most."""

    def __init__(self) -> None:
        self.longest = 0.0
        self.gaps: list[float] = []
        self._loop = asyncio.get_running_loop()
        self._last = self._loop.time()
        self._beat()

    def _beat(self) -> None:
        now = self._loop.time()
        gap = now - self._last - 0.001
        self.longest = max(self.longest, gap)
        if gap > PAUSE_SECONDS / 2:
            self.gaps.append(gap)
        self._last = now
        self._timer = self._loop.call_later(0.001, self._beat)

    def stop(self) -> None:
        self._timer.cancel()


def batch(number: int) -> list[Message]:
    found = []
    for place in range(BATCH):
        # One that stays has a group of its own, so that it holds up no other.
        stays = place == number % BATCH
        group = f"s{number}" if stays else f"g{place % 20}"
        headers = (("group", group), ("key", f"{number}-{place}"))
        text = b"stays" if stays else b"%d" % number
        body = text.ljust(100 + number * 7 % 900, b".")
        found.append(Message("a/b", body, properties=Properties(headers=headers)))
    return found


async def pass_by(path: Path, messages: int, slack: int) -> dict[str, Any]:
    """Raises AssertionError when the store is above its bound at any time."""
    core = Core(Clock(), b"s" * 32, max_memory=8 << 20)
    journal = SqliteJournal(path, reserve=0)
    journal.open()
    committer = Committer(core, journal, Pressure(), log_slack=committing.LOG_SLACK)
    core.gather.forced_states.append(secret_state(core))
    committer.start(restore(core, journal))
    dedup = DedupPolicy("{header[key]}", window=Seconds(WINDOW_SECONDS))
    policies = {"keyed": QueuePolicy(group="{header[group]}", dedup=dedup), "plain": QueuePolicy()}
    bindings = [Binding(queue=queue, filter="a/#", owner="config") for queue in policies]
    configure(core, policies, bindings)
    workers = [Worker(core, queue) for queue in policies]
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)  # as the daemon does
    pulse = Pulse()
    worst = {"octets": 0, "live": 0, "share": 0.0}
    waiting: deque[asyncio.Future[Sequence[Outcome]]] = deque()
    began = time.monotonic()
    for number in range(messages // BATCH):
        waiting.append(committer.accept(batch(number)))
        if len(waiting) >= CALLS_AHEAD:
            assert set(await waiting.popleft()) == {Outcome.STORED}
        if number % 20 == 0:
            live = live_octets(core) + len(core.dedup) * 24
            live += sum(queue.entries.octets for queue in core.queues.values())
            octets = journal.size()
            assert octets < 3 * live + slack, f"after {number * BATCH} messages: {octets} bytes for {live} that live"
            share = octets / (3 * live + slack)
            if share > worst["share"]:
                worst = {"octets": octets, "live": live, "share": round(share, 3)}
    while waiting:
        await waiting.popleft()
    seconds = time.monotonic() - began
    pulse.stop()
    await committer.put()
    kept = messages // BATCH
    assert [queue.entries.count for queue in map(core.get, policies)] == [kept, kept]
    assert [worker.settled for worker in workers] == [messages - kept] * 2
    size = journal.size()
    await committer.close()
    return {
        "messages": messages,
        "seconds": round(seconds, 1),
        "kept in each of 2 queues": kept,
        "store at the end": size,
        "worst": worst,
        "longest pause": round(pulse.longest, 4),
        "pauses above 50 ms": len(pulse.gaps),
    }


def test_settled_messages_give_their_space_back(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    slack = SLACK
    if not MESSAGES:
        slack //= SHORT
        for owner, name in ((store, "WAL_LIMIT"), (store, "FREE_LIMIT"), (store, "FREE_SLICE")):
            monkeypatch.setattr(owner, name, getattr(owner, name) // SHORT)
        monkeypatch.setattr(committing, "LOG_SLACK", committing.LOG_SLACK // SHORT)
    frozen = gc.get_threshold()
    try:
        report = uvloop.run(pass_by(tmp_path, MESSAGES or SHORT_MESSAGES, slack))
    finally:
        gc.set_threshold(*frozen)
        gc.unfreeze()
    with capsys.disabled():
        print(f"\n{report}")
    assert salvage.check(tmp_path).problems == ()
    if MESSAGES:
        assert report["longest pause"] < PAUSE_SECONDS
    again = SqliteJournal(tmp_path, reserve=0)
    again.open()
    core = Core(Clock(), b"s" * 32)
    restore(core, again)
    assert core.get("keyed").entries.count == report["kept in each of 2 queues"]
    assert not core.rows.unreadable
    again.close()
