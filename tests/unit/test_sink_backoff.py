"""How `drive` sits out the time in which a sink raises."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from gateway.model.message import Message
from gateway.transport import Delivery, Outcome, Verdict, sink
from gateway.transport.sink import drive
from tests.harness.local import local_gateway

pytestmark = pytest.mark.anyio


class Away:
    """A peer that can't be reached by its first sends."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.sent: list[bytes] = []
        self.done = 0
        self.changed = asyncio.Event()

    async def send(self, batch: Sequence[Delivery]) -> list[Verdict]:
        self.sent += [delivery.message.body for delivery in batch]
        self.changed.set()
        await asyncio.sleep(0)  # so that those of one turn fail together
        if self.failures > 0:
            self.failures -= 1
            raise ConnectionError("nobody there")
        self.done += len(batch)
        self.changed.set()
        return [Verdict.DONE] * len(batch)

    async def until_done(self, count: int) -> None:
        while self.done < count:
            self.changed.clear()
            await self.changed.wait()


async def end(task: asyncio.Task[None]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_sends_that_fail_together_are_one_failure() -> None:
    """Ten sends that a short outage ends must not cost ten doublings of the pause."""
    async with local_gateway('queues: {q: }\nroutes: [{from: "#", to: q}]') as (gateway, _):
        assert set(await gateway.accept([Message("a", b"%d" % n) for n in range(10)])) == {Outcome.STORED}
        peer = Away(failures=10)
        task = asyncio.create_task(drive(gateway, "q", peer, batch=1, in_flight=10))
        async with asyncio.timeout(2):
            await peer.until_done(10)
        await end(task)


async def test_what_waits_for_the_end_of_a_pause_is_not_timed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sink, "FIRST_PAUSE", 1.0)
    policy = "{ack_timeout: 150ms, max_deliveries: 3}"
    async with local_gateway(f'queues: {{q: {policy}}}\nroutes: [{{from: "#", to: q}}]') as (gateway, operator):
        await gateway.accept([Message("a", b"%d" % n) for n in range(10)])
        peer = Away(failures=1)
        task = asyncio.create_task(drive(gateway, "q", peer, batch=2, in_flight=10))
        async with asyncio.timeout(10):
            await peer.until_done(10)
        assert sorted(peer.sent) == sorted(b"%d" % n for n in (0, 1, *range(10)))  # the first two twice
        stats = {one.name: one for one in await operator.stats()}
        assert stats["dead-letters"].depth == 0
        assert stats["q"].retried == 2
        await end(task)


async def test_others_get_what_a_paused_sink_does_not_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sink, "FIRST_PAUSE", 30.0)
    async with local_gateway('queues: {q: }\nroutes: [{from: "#", to: q}]') as (gateway, _):
        await gateway.accept([Message("a", b"%d" % n) for n in range(10)])
        peer, other = Away(failures=1_000), Away(failures=0)
        first = asyncio.create_task(drive(gateway, "q", peer, batch=1, in_flight=10))
        await peer.changed.wait()
        second = asyncio.create_task(drive(gateway, "q", other, batch=1, in_flight=1))
        async with asyncio.timeout(5):
            await other.until_done(10)
        await end(first)
        await end(second)


async def test_a_slow_start_sends_one_and_then_one_more_with_each_that_is_done() -> None:
    """So that a message over which the peer ends the connection is soon sent alone."""
    sizes: list[int] = []

    class Peer(Away):
        async def send(self, batch: Sequence[Delivery]) -> list[Verdict]:
            sizes.append(len(batch))
            return await super().send(batch)

    async with local_gateway('queues: {q: }\nroutes: [{from: "#", to: q}]') as (gateway, _):
        await gateway.accept([Message("a", b"%d" % n) for n in range(20)])
        peer = Peer(failures=0)
        task = asyncio.create_task(drive(gateway, "q", peer, batch=8, in_flight=8, slow_start=True))
        async with asyncio.timeout(5):
            await peer.until_done(20)
        await end(task)
    assert sizes == [1, 2, 4, 8, 5]
