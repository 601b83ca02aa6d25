"""How `drive` takes from an outbox and from what stands beside it, by one window."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from gateway.model.message import Message
from gateway.transport import Delivery, Outcome, Verdict
from gateway.transport.sink import drive
from tests.harness.local import local_gateway

pytestmark = pytest.mark.anyio

CONFIG = """
transports: {plant: {type: mqtt-client, url: "mqtt://nowhere.example"}}
routes:
  - {from: "stored/#", to: "plant:{topic}"}
  - {from: "t/#", to: "plant:{topic}", ack: delivered, deliver_within: 150ms}
"""


class Held:
    """A peer that answers when it is told to."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.gate = asyncio.Event()
        self.changed = asyncio.Event()

    async def send(self, batch: Sequence[Delivery]) -> list[Verdict]:
        self.sent += [delivery.message.topic for delivery in batch]
        self.changed.set()
        await self.gate.wait()
        return [Verdict.DONE] * len(batch)

    async def until_sent(self, count: int) -> None:
        async with asyncio.timeout(10):
            while len(self.sent) < count:
                self.changed.clear()
                await self.changed.wait()


async def end(task: asyncio.Task[None]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_both_are_sent_and_together_no_more_than_the_window() -> None:
    async with local_gateway(CONFIG) as (gateway, _):
        await gateway.accept([Message(f"stored/{n}", b"") for n in range(20)])
        awaited = gateway.accept([Message(f"t/{n}", b"") for n in range(20)])
        assert await gateway.put()  # both are there
        peer = Held()
        task = asyncio.create_task(drive(gateway, "link.plant", peer, batch=1, in_flight=10))
        await peer.until_sent(10)
        assert len(peer.sent) == 10
        peer.gate.set()
        await peer.until_sent(40)
        assert {topic.partition("/")[0] for topic in peer.sent[:20]} == {"stored", "t"}, "they take turns"
        assert await awaited == [Outcome.STORED] * 20
        await end(task)


async def test_what_timed_out_while_it_waited_to_be_sent_is_not_sent() -> None:
    async with local_gateway(CONFIG) as (gateway, _):
        peer = Held()
        task = asyncio.create_task(drive(gateway, "link.plant", peer, batch=1, in_flight=2))
        awaited = [gateway.accept([Message(f"t/{n}", b"")]) for n in range(5)]
        await peer.until_sent(2)
        assert [await one for one in awaited] == [[Outcome.REFUSED]] * 5
        later = gateway.accept([Message("t/later", b"")])
        peer.gate.set()
        assert await later == [Outcome.STORED]
        assert sorted(peer.sent) == ["t/0", "t/1", "t/later"]
        await end(task)


async def test_what_was_handed_over_and_timed_out_before_its_send_is_left_out() -> None:
    """One send at a time, so that more is handed over than sent."""
    config = CONFIG.replace('nowhere.example"', 'nowhere.example", outbox: {group_in_flight: 10}')
    async with local_gateway(config) as (gateway, _):
        peer = Held()
        task = asyncio.create_task(drive(gateway, "link.plant", peer, batch=1, in_flight=10))
        awaited = [gateway.accept([Message("t/1", b"")]) for _ in range(5)]
        await peer.until_sent(1)
        view = gateway.queue("link.plant:delivered")
        assert view is not None
        assert view.in_flight == 5
        assert [await one for one in awaited] == [[Outcome.REFUSED]] * 5
        later = gateway.accept([Message("t/later", b"")])
        peer.gate.set()
        assert await later == [Outcome.STORED]
        assert peer.sent == ["t/1", "t/later"]
        await end(task)
