"""Workers of one queue and of the same speed get the same share: AMQP's, MQTT's, and of both together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import aio_pika
import aiomqtt
import pytest

from tests.harness.daemon import Daemon

pytestmark = pytest.mark.anyio

MESSAGES, GROUPS = 300, 20
QUEUES: dict[str, dict[str, Any]] = {
    "plain": {},
    "fifo": {"group": "{topic[1]}"},
    "pairs": {"group": "{topic[1]}", "group_in_flight": 2},
    "ranked": {"max_priority": 5},
}


class Crew:
    """Counts what each worker did."""

    def __init__(self, workers: int) -> None:
        self.shares = [0] * workers
        self.over = asyncio.Event()

    def did_one(self, worker: int) -> None:
        self.shares[worker] += 1
        if sum(self.shares) >= MESSAGES:
            self.over.set()


async def amqp_worker(daemon: Daemon, queue: str, crew: Crew, worker: int, ready: asyncio.Event) -> None:
    address = daemon.address("amqp")
    connection = await aio_pika.connect(f"amqp://guest:guest@{address.host}:{address.port}/")
    async with connection:
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=100)
        taken = await channel.get_queue(queue, ensure=False)
        async with taken.iterator() as messages:
            ready.set()
            async for message in messages:
                await message.ack()
                crew.did_one(worker)


async def mqtt_worker(daemon: Daemon, queue: str, crew: Crew, worker: int, ready: asyncio.Event) -> None:
    address = daemon.address("mqtt")
    async with aiomqtt.Client(address.host, address.port, identifier=f"worker-{worker}") as client:
        await client.subscribe(f"$queue/{queue}", qos=1)
        ready.set()
        async for _ in client.messages:
            crew.did_one(worker)


KINDS = {"amqp": (amqp_worker, amqp_worker), "mqtt": (mqtt_worker,) * 5, "both": (amqp_worker, mqtt_worker)}


@pytest.mark.parametrize("queue", QUEUES)
@pytest.mark.parametrize("workers", KINDS)
async def test_workers_of_the_same_speed_get_the_same_share(
    daemon: Callable[..., Daemon], queue: str, workers: str
) -> None:
    server = daemon({"queues": QUEUES, "routes": [{"from": f"{name}/+", "to": name} for name in QUEUES]})
    address = server.address("mqtt")
    kinds = KINDS[workers]
    crew = Crew(len(kinds))
    ready = [asyncio.Event() for _ in kinds]
    async with asyncio.timeout(60), aiomqtt.Client(address.host, address.port) as sender:
        started = [
            asyncio.create_task(kind(server, queue, crew, worker, ready[worker])) for worker, kind in enumerate(kinds)
        ]
        for event in ready:
            await event.wait()
        for number in range(MESSAGES):
            await sender.publish(f"{queue}/{number % GROUPS}", str(number), qos=1)
        await crew.over.wait()
        for task in started:
            task.cancel()
        await asyncio.gather(*started, return_exceptions=True)
    fair = MESSAGES / len(kinds)
    assert sum(crew.shares) == MESSAGES
    assert all(share >= 0.5 * fair for share in crew.shares), crew.shares


async def test_a_reload_of_the_ordering_repeats_nothing_that_workers_hold(daemon: Callable[..., Daemon]) -> None:
    routes = [{"from": "work/+", "to": "work"}]
    server = daemon({"queues": {"work": {}}, "routes": routes})
    address = server.address("amqp")
    connection = await aio_pika.connect(f"amqp://guest:guest@{address.host}:{address.port}/")
    async with connection, asyncio.timeout(60):
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=50)
        queue = await channel.get_queue("work", ensure=False)
        topics = await channel.get_exchange("amq.topic", ensure=False)
        held: asyncio.Queue[Any] = asyncio.Queue()
        await queue.consume(held.put)
        for number in range(200):
            await topics.publish(aio_pika.Message(str(number).encode()), f"work.{number % GROUPS}")
        seen: list[int] = []
        for policy in ({"group": "{topic[1]}"}, {"max_priority": 5}, {"group": "{topic[1]}", "group_in_flight": 3}, {}):
            server.configure({"queues": {"work": policy}, "routes": routes})
            server.hup()
            server.wait_for("reloaded")
            for _ in range(50):
                message = await held.get()
                assert not message.redelivered
                seen.append(int(message.body))
                await message.ack()
        assert sorted(seen) == list(range(200))
