"""A consumer that dies with deliveries in flight: they go back to their places, and one attempt is counted, not one
for each. With `max_deliveries: 1` an attempt shows: the message that it was counted for is dead."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from pamqp import commands

from tests.harness.amqp import AmqpPeer
from tests.harness.daemon import Daemon
from tests.harness.mqtt import MqttPeer

CONFIG: dict[str, Any] = {
    "queues": {
        "work": {"group": "{topic[1]}", "group_in_flight": 3, "max_deliveries": 1, "dead_letter": "dead"},
        "dead": {},
    },
    "routes": [{"from": "work/+", "to": "work"}],
}
SECONDS = 20.0
MESSAGES = [(group, number) for number in range(4) for group in ("a", "b")]
FIRST = [("a", 0), ("a", 1), ("a", 2), ("b", 0), ("b", 1), ("b", 2)]
"""What may be in flight at once: the first three of each group."""

pytestmark = pytest.mark.anyio


class Inbox:
    """Deliveries of one consumer, as (group, number)."""

    def __init__(self) -> None:
        self.got: list[tuple[str, int]] = []
        self.tags: list[int] = []
        self._changed = asyncio.Event()

    def add(self, topic: str, body: bytes, tag: int) -> None:
        self.got.append((topic.replace(".", "/").split("/")[1], int(body)))
        self.tags.append(tag)
        self._changed.set()

    async def wait_for(self, count: int) -> list[tuple[str, int]]:
        """The deliveries, once there are so many."""
        async with asyncio.timeout(SECONDS):
            while len(self.got) < count:
                self._changed.clear()
                await self._changed.wait()
        return self.got


async def consumer(daemon: Daemon, queue: str = "work", prefetch: int = 100) -> tuple[AmqpPeer, Inbox]:
    peer, inbox = await AmqpPeer.connect(daemon.address("amqp")), Inbox()
    peer.on_delivery = lambda delivered: inbox.add(delivered.routing_key, delivered.body, delivered.tag)
    await peer.consume(queue, prefetch)
    return peer, inbox


async def fill(daemon: Daemon) -> None:
    peer, confirmed = await AmqpPeer.connect(daemon.address("amqp")), asyncio.Event()
    left = list(MESSAGES)

    def on_confirm(token: tuple[str, int], stored: bool) -> None:
        assert stored
        left.remove(token)
        if not left:
            confirmed.set()

    peer.on_confirm = on_confirm
    for group, number in MESSAGES:
        peer.publish(f"work.{group}", str(number).encode(), (group, number))
    async with asyncio.timeout(SECONDS):
        await confirmed.wait()
    await peer.close()


def by_group(got: list[tuple[str, int]]) -> dict[str, list[int]]:
    return {group: [number for name, number in got if name == group] for group in ("a", "b")}


async def take(daemon: Daemon, count: int) -> list[tuple[str, int]]:
    """The next `count` deliveries of a new consumer, each acked when it came; nothing is left then."""
    peer, inbox = await AmqpPeer.connect(daemon.address("amqp")), Inbox()

    def on_delivery(delivered: Any) -> None:
        inbox.add(delivered.routing_key, delivered.body, delivered.tag)
        peer.ack(delivered.tag)

    peer.on_delivery = on_delivery
    await peer.consume("work", 100)
    await inbox.wait_for(count)
    assert await peer.depth("work") == 0
    await peer.close()
    return inbox.got


async def test_a_lost_connection_counts_one_attempt_for_the_oldest_delivery(daemon: Callable[..., Daemon]) -> None:
    gateway = daemon(CONFIG)
    await fill(gateway)
    peer, inbox = await consumer(gateway)
    assert sorted(await inbox.wait_for(6)) == FIRST
    oldest = inbox.got[0]
    peer.vanish()
    dead, deaths = await consumer(gateway, "dead")
    assert await deaths.wait_for(1) == [oldest]
    dead.ack(deaths.tags[0])
    await dead.close()

    got = await take(gateway, 7)
    expected = by_group([message for message in MESSAGES if message != oldest])
    assert by_group(got) == expected, "all others came again, in order, and none of them is dead"


async def test_an_mqtt_consumer_that_is_lost_counts_one_attempt_too(daemon: Callable[..., Daemon]) -> None:
    gateway = daemon(CONFIG)
    peer, inbox = await MqttPeer.connect(gateway.address("mqtt"), "worker"), Inbox()
    peer.on_message = inbox.add
    assert await peer.subscribe("$queue/work") == 1
    await fill(gateway)
    assert sorted(await inbox.wait_for(6)) == FIRST
    oldest = inbox.got[0]
    peer.vanish()
    dead, deaths = await consumer(gateway, "dead")
    assert await deaths.wait_for(1) == [oldest]
    dead.ack(deaths.tags[0])
    await dead.close()
    got = await take(gateway, 7)
    assert by_group(got) == by_group([message for message in MESSAGES if message != oldest])


@pytest.mark.parametrize("leave", ["channel", "connection", "kill", "stop"])
async def test_no_other_end_counts_an_attempt(daemon: Callable[..., Daemon], leave: str) -> None:
    gateway = daemon(CONFIG)
    await fill(gateway)
    peer, inbox = await consumer(gateway)
    await inbox.wait_for(6)
    if leave == "channel":
        await peer.call(commands.Channel.Close(200, "bye", 0, 0), commands.Channel.CloseOk)
    elif leave == "connection":
        await peer.close()
    elif leave == "kill":
        gateway.kill()
        await asyncio.to_thread(gateway.start)
    else:
        assert await asyncio.to_thread(gateway.stop) == 0
        await asyncio.to_thread(gateway.start)
    got = await take(gateway, 8)
    assert by_group(got) == by_group(MESSAGES)
    await peer.close()


async def test_what_was_acked_before_the_end_stays_acked(daemon: Callable[..., Daemon]) -> None:
    gateway = daemon(CONFIG)
    await fill(gateway)
    peer, inbox = await consumer(gateway, prefetch=1)
    first = (await inbox.wait_for(1))[0]
    peer.ack(inbox.tags[0])
    await inbox.wait_for(2)  # the credit came back, so the ack was heard
    await peer.close()
    got = await take(gateway, 7)
    assert by_group(got) == by_group([message for message in MESSAGES if message != first])
