"""A store stays near the size of what lives in it, though a few messages of each commit stay unsettled (ruling 27)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from gateway.broker.core import Core
from gateway.broker.definitions import configure
from gateway.clock import Clock
from gateway.engine import body_reader as reading
from gateway.engine import compaction
from gateway.engine.committer import Committer
from gateway.engine.recovery import restore
from gateway.model.credit import Pressure
from gateway.model.message import Message
from gateway.model.policy import QueuePolicy
from gateway.storage.sqlite import SqliteJournal
from gateway.transport import Binding, Delivery, Outcome, Subscription, Verdict

BODY = b"x" * 2000


class Keeper:
    """Settles all but every hundredth."""

    def __init__(self, keep_every: int = 0) -> None:
        self.seen = 0
        self.keep_every = keep_every
        self.kept: list[bytes] = []
        self.settled: list[bytes] = []
        self.subscription: Subscription
        self.changed = asyncio.Event()

    def deliver(self, batch: Sequence[Delivery]) -> None:
        done = []
        for delivery in batch:
            self.seen += 1
            if self.keep_every and self.seen % self.keep_every == 0:
                self.kept.append(delivery.message.body)
            else:
                self.settled.append(delivery.message.body)
                done.append(delivery.id)
        self.subscription.settle(done, Verdict.DONE)
        self.subscription.grant(len(batch))
        self.changed.set()

    def closed(self, reason: str) -> None:
        pytest.fail(reason)


def start(folder: Path) -> tuple[Core, Committer]:
    core = Core(Clock(), b"s" * 32, max_memory=1 << 20)
    journal = SqliteJournal(folder)
    journal.open()
    committer = Committer(core, journal, Pressure())
    committer.start(restore(core, journal))
    configure(core, {"q": QueuePolicy()}, [Binding(queue="q", filter="a/#", owner="config")])
    return core, committer


def consume(core: Core, consumer: Keeper) -> None:
    consumer.subscription = core.attach("q", consumer, (), False)
    consumer.subscription.grant(500)


def test_rows_that_are_mostly_dead_are_written_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "COMPACTION_PAUSE_SECONDS", 0)

    async def scenario() -> None:
        core, committer = start(tmp_path)
        keeper = Keeper(keep_every=100)
        consume(core, keeper)
        for commit in range(300):
            batch = [Message("a/b", b"%d " % (100 * commit + place) + BODY) for place in range(100)]
            assert set(await committer.accept(batch)) == {Outcome.STORED}
        while core.rows.sparse and compaction.is_due(core):
            await committer.put()
        await committer.put()
        assert len(keeper.kept) == 300
        rows, size = len(core.rows.uses), committer.journal.size()
        await committer.close()
        # 60 MB went through, 0.6 MB live; without compaction each of the 300 commits would hold a row for ever.
        assert rows < 100
        assert size < 32 << 20

        core, committer = start(tmp_path)
        assert core.queues["q"].depth == 300
        assert not core.rows.unreadable
        reader = Keeper()
        consume(core, reader)
        while len(reader.settled) < 300:
            reader.changed.clear()
            await reader.changed.wait()
        assert reader.settled == keeper.kept
        await committer.put()
        assert core.rows.uses == {}
        assert core.memory.octets == 0
        await committer.close()

    asyncio.run(scenario())
