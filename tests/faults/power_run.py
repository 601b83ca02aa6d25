"""Owns the run whose power is cut: the real core, committer and store, at work in a process of its own.

Its rule: what it was promised it says at that moment, as a mark in the trace, in JSON. The limits of the store are
small here, so that a short run has every kind of housekeeping.

Usage: python -m tests.faults.power_run STORE FIRST BATCHES END, where END is `stop`, `crash`, or `broken` for a process
that dies after an fsync that failed.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gateway.broker import commit_batch as gather
from gateway.broker.core import Core
from gateway.broker.definitions import configure, secret_state
from gateway.clock import Clock
from gateway.engine import body_reader as reading
from gateway.engine import committer as committing
from gateway.engine import compaction
from gateway.engine import recovery as replay
from gateway.engine.committer import Committer
from gateway.engine.recovery import restore
from gateway.model.credit import Pressure
from gateway.model.message import Message, Properties
from gateway.model.policy import DedupPolicy, QueuePolicy, Seconds
from gateway.model.state import StateChange
from gateway.storage import sqlite as store
from gateway.storage.journal import Commit, Content, Rebuilt
from gateway.storage.records import decode
from gateway.storage.sqlite import SqliteJournal
from gateway.transport import Binding, Delivery, Outcome, Subscription, Verdict
from tests.faults.shim import Rules

POLICIES = {
    "fifo": QueuePolicy(group="{header[group]}", dedup=DedupPolicy("{header[key]}", window=Seconds(86_400))),
    "copy": QueuePolicy(),
    "dead-letters": QueuePolicy(),
}
ROUTES = (("both", "fifo"), ("both", "copy"), ("one", "fifo"))
BATCH = 6
GROUPS = 7


def message(number: int) -> Message:
    """The same for the same number, in any run."""
    size = (10, 300, 2_500, 9_000)[number % 4] if number % 50 else 60_000
    headers = (("group", f"g{number % GROUPS}"), ("key", str(number)))
    topic = "both" if number % 3 == 0 else "one"
    return Message(topic, (b"%d:" % number).ljust(size, bytes([number % 256])), properties=Properties(headers=headers))


def number_of(found: Message) -> int:
    return int(found.body.partition(b":")[0])


def stays(number: int) -> bool:
    """No consumer ever settles it."""
    return number % 11 == 0


def dies(number: int) -> bool:
    """Its consumer rejects it."""
    return number % 13 == 0


class Watched(SqliteJournal):
    """Counts what the housekeeping did."""

    did = {"copied forward": 0, "bodies moved": 0, "rebuilt": 0}

    def commit(self, commit: Commit) -> int:
        result = super().commit(commit)
        self.did["copied forward"] += commit.trim is not None
        self.did["bodies moved"] += bool(commit.record and decode(commit.record).moved_idents)
        return result

    def rebuild(self, content: Content, salvage: bool = False) -> Rebuilt:
        result = super().rebuild(content, salvage)
        self.did["rebuilt"] += 1
        return result


class Worker:
    """Settles what may be settled, at once."""

    def __init__(self, run: Run, core: Core, queue: str) -> None:
        self.run = run
        self.queue = queue
        self.subscription: Subscription = core.attach(queue, self, (), False)
        self.subscription.grant(1 << 20)

    def deliver(self, batch: Sequence[Delivery]) -> None:
        asyncio.get_running_loop().call_soon(self.settle, batch)

    def settle(self, batch: Sequence[Delivery]) -> None:
        for delivery in batch:
            number = number_of(delivery.message)
            if stays(number):
                continue
            verdict = Verdict.DEAD if dies(number) else Verdict.DONE
            self.run.mark(**{"burying" if dies(number) else "settling": [[self.queue, number]]})
            self.subscription.settle([delivery.id], verdict)
            self.run.settled.append([self.queue, number])

    def closed(self, reason: str) -> None:
        raise AssertionError(reason)


class Run:
    def __init__(self, path: Path) -> None:
        self.rules = Rules(Path(os.environ["SHIM_CONTROL"]))
        self.shim = ctypes.CDLL(None)
        self.settled: list[list[Any]] = []
        self.core = Core(Clock(), b"s" * 32, max_memory=100_000)
        self.journal = Watched(path, reserve=0)
        self.committer = Committer(self.core, self.journal, Pressure(), log_slack=1_000)

    def mark(self, **promise: Any) -> None:
        data = json.dumps(promise).encode()
        self.shim.shim_mark(data, ctypes.c_size_t(len(data)))

    async def start(self) -> None:
        self.journal.open()
        restored = restore(self.core, self.journal)
        self.core.gather.forced_states.append(secret_state(self.core))
        configure(self.core, POLICIES, [Binding(queue=to, filter=filter, owner="config") for filter, to in ROUTES])
        self.committer.start(restored)
        for queue in ("fifo", "copy"):
            Worker(self, self.core, queue)
        assert await self.committer.put()

    async def send(self, numbers: Sequence[int]) -> None:
        """One call; what it is answered counts from that moment, and so do the settlements before it (ruling 13)."""
        self.mark(sent=list(numbers))
        settled, self.settled = self.settled, []
        change = StateChange("run", "latest", b"%d" % numbers[-1])
        outcomes = await self.committer.accept([message(number) for number in numbers], [change])
        stored = [number for number, outcome in zip(numbers, outcomes, strict=True) if outcome is Outcome.STORED]
        if stored:
            self.mark(stored=stored, settled=settled, latest=numbers[-1])
        else:
            self.settled = settled + self.settled

    async def work(self, first: int, batches: int) -> None:
        for turn in range(batches):
            start = first + turn * BATCH
            if turn % 60 == 50:
                self.rules.fail(("sync",), errno.EIO, "*-wal", after=1, times=1)
            elif turn % 60 == 25:
                self.rules.fail(("write",), errno.ENOSPC, "*", after=5, times=4)
            await asyncio.gather(self.send(range(start, start + 4)), self.send(range(start + 4, start + BATCH)))
            while self.core.refusing:  # noqa: ASYNC110 - it has no event for it
                await asyncio.sleep(0.005)
            if turn % 10 == 0:
                await asyncio.sleep(0.02)  # what is done when there is nothing to commit


async def main(path: Path, first: int, batches: int, end: str) -> None:
    store.WAL_LIMIT, store.WAL_IDLE, store.FREE_LIMIT, store.FREE_SLICE = 400_000, 100_000, 4, 8
    replay.SLICE_ENTRIES = 20
    committing.RETRY_SECONDS, committing.IDLE_TIDY_SECONDS, reading.COMPACTION_PAUSE_SECONDS = 0.01, 0.001, 0
    compaction.FEW_ROWS, compaction.STEP_OCTETS, gather.ROW_OCTETS = 3, 30_000, 32_768
    run = Run(path)
    await run.start()
    await run.work(first, batches)
    if end == "broken":
        run.rules.fail(("sync",), errno.EIO)
        await run.send(range(first + batches * BATCH, first + batches * BATCH + 60))
    if end == "stop":
        await run.committer.close()
    print(json.dumps(run.journal.did), flush=True)
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]))
