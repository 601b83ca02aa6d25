"""Two gateways that store nothing, side by side in front of one RabbitMQ with a quorum queue: one is killed, and
nothing that a device has an acknowledgement for is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pika
import pytest

from tests.faults.abuse import metric
from tests.harness.daemon import LISTENERS, Daemon
from tests.harness.mqtt import MqttPeer
from tests.harness.rabbitmq import RabbitMq

SECONDS = 60.0
QUEUE = "two-gateways"
WINDOW = 100


def config(node: RabbitMq) -> dict[str, Any]:
    link = {
        "type": "amqp-client",
        "url": node.url,
        "topology": {"queues": {QUEUE: {"arguments": {"x-queue-type": "quorum"}}}},
    }
    return {
        "transports": {**LISTENERS, "rabbit": link},
        "routes": [{"from": "sensors/#", "to": f"rabbit:/{QUEUE}", "ack": "delivered"}],
    }


class Device:
    """Publishes with a window, each topic in its order, until told to stop; remembers what was acknowledged."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.acknowledged: list[bytes] = []
        self.wanted = 0
        self.enough = asyncio.Event()
        self.sent = 0
        self.peer: MqttPeer

    async def start(self, gateway: Daemon) -> None:
        self.peer = await MqttPeer.connect(gateway.address("mqtt"), self.name)
        self.peer.on_answer = self._answered
        for _ in range(WINDOW):
            self._send()

    def _send(self) -> None:
        body = f"{self.name}/{self.sent}".encode()
        self.peer.publish(f"sensors/{self.name}/{self.sent % 20}", body, body)
        self.sent += 1

    def _answered(self, body: bytes) -> None:
        self.acknowledged.append(body)
        if len(self.acknowledged) >= self.wanted:
            self.enough.set()
        self._send()

    async def reach(self, count: int) -> None:
        self.wanted, self.enough = count, asyncio.Event()
        async with asyncio.timeout(SECONDS):
            await self.enough.wait()


def take_all(node: RabbitMq) -> list[bytes]:
    """What the quorum queue holds, in its order; it is gone then."""
    bodies: list[bytes] = []
    with pika.BlockingConnection(pika.URLParameters(node.url)) as connection:
        channel = connection.channel()
        for method, _, body in channel.consume(QUEUE, inactivity_timeout=2):
            if method is None:
                break
            bodies.append(body)
            channel.basic_ack(method.delivery_tag)
        channel.cancel()
        channel.queue_delete(QUEUE)
    return bodies


@pytest.mark.anyio
async def test_one_of_two_is_killed_and_nothing_acknowledged_is_lost(
    daemon: Callable[..., Daemon], rabbitmq: RabbitMq
) -> None:
    first, second = (daemon(config(rabbitmq)) for _ in range(2))
    devices = [Device("a"), Device("b")]
    for gateway, device in zip((first, second), devices, strict=True):
        gateway.wait_for("link is up")
        await device.start(gateway)
    for device in devices:
        await device.reach(500)
    first.kill()
    await devices[0].peer.close()
    await devices[1].reach(len(devices[1].acknowledged) + 500)  # who is left goes on
    assert metric(second, "gateway_commit_bytes_sum") < 10_000, "a few states, and no message"
    second.stop()
    await devices[1].peer.close()
    first.start()
    assert metric(first, "gateway_queue_messages") == 0
    first.stop()
    found = await asyncio.to_thread(take_all, rabbitmq)
    acknowledged = {body for device in devices for body in device.acknowledged}
    assert len(acknowledged) >= 1500
    assert acknowledged <= set(found)
    for device in devices:
        for topic in range(20):
            own = [body for body in found if body.startswith(f"{device.name}/".encode())]
            numbers = [number for number in (int(body.split(b"/")[1]) for body in own) if number % 20 == topic]
            firsts = list(dict.fromkeys(numbers))
            assert firsts == sorted(firsts), "each topic keeps its order"
