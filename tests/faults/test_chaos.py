"""Publishers and consumers of both protocols that do everything they may, at random: nothing is lost, nothing stays
in flight, no credit leaks, no error is logged.

GATEWAY_SEED repeats the choices of one run, GATEWAY_CHAOS sets its seconds.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from pamqp import commands
from pamqp.commands import Basic, Channel

from tests.harness.amqp import AmqpPeer, Delivered
from tests.harness.daemon import Daemon
from tests.harness.mqtt import MqttPeer

SECONDS = float(os.environ.get("GATEWAY_CHAOS", "5"))
SEED = int(os.environ.get("GATEWAY_SEED", random.SystemRandom().randrange(1 << 32)))
QUEUES: dict[str, dict[str, Any]] = {
    "fifo": {"group": "{body.group}", "max_deliveries": None, "ack_timeout": "700ms"},
    "wide": {"group": "{body.group}", "group_in_flight": 3, "max_deliveries": None},
    "short": {"max_deliveries": 3, "retry_delay": "10ms..50ms", "ack_timeout": "500ms"},
    "plain": {},
}
CONFIG = {
    "max_memory": "1MB",  # so that most bodies come from the disk
    "queues": QUEUES,
    "routes": [{"from": f"{name}/#", "to": name} for name in QUEUES],
}

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(90 + SECONDS)]


class Chaos:
    def __init__(self, daemon: Daemon, rng: random.Random) -> None:
        self.daemon = daemon
        self.rng = rng
        self.ends = time.monotonic() + SECONDS
        self.number = 0
        self.accepted: dict[str, set[int]] = {name: set() for name in QUEUES}
        self.done: dict[str, set[int]] = {name: set() for name in QUEUES}

    @property
    def over(self) -> bool:
        return time.monotonic() > self.ends

    def stats(self) -> dict[str, dict[str, Any]]:
        found = httpx.get(f"{self.daemon.url('admin')}/api/v1/queues", trust_env=False)
        return {one["name"]: one for one in found.json()["queues"]}

    def finished(self, queue: str, body: bytes) -> None:
        self.done[queue].add(json.loads(body)["number"])

    def answered(self, token: tuple[str, int]) -> None:
        self.accepted[token[0]].add(token[1])

    def next(self) -> tuple[str, tuple[str, int], bytes]:
        queue = self.rng.choice(list(QUEUES))
        self.number += 1
        pad = "x" * self.rng.choice((0, 100, 20_000))
        body = json.dumps({"group": self.rng.randrange(5), "number": self.number, "pad": pad})
        return queue, (queue, self.number), body.encode()

    async def pause(self, seconds: float) -> None:
        await asyncio.sleep(self.rng.random() * seconds)

    # publishers

    async def publish_mqtt(self, name: str) -> None:
        peer = await MqttPeer.connect(self.daemon.address("mqtt"), name)
        peer.on_answer = self.answered
        while not self.over:
            for _ in range(self.rng.randrange(20)):
                queue, token, body = self.next()
                peer.publish(f"{queue}/{name}", body, token)
            await self.pause(0.05)
        await peer.close()

    async def publish_amqp(self, name: str) -> None:
        peer = await AmqpPeer.connect(self.daemon.address("amqp"))
        peer.on_confirm = lambda token, stored: self.answered(token)
        while not self.over:
            for _ in range(self.rng.randrange(20)):
                queue, token, body = self.next()
                peer.publish(f"{queue}.{name}", body, token)
            await self.pause(0.05)
        await peer.close()

    # workers

    async def work_amqp(self) -> None:
        while not self.over:
            peer = await AmqpPeer.connect(self.daemon.address("amqp"), confirm=False)
            try:
                await self._work_amqp(peer)
            except ConnectionError:
                pass  # a tag that the recover or the end of its channel had taken back already
            if self.rng.random() < 0.5:
                peer.vanish()
            else:
                await peer.close()

    async def _work_amqp(self, peer: AmqpPeer) -> None:
        rng = self.rng
        held: list[Delivered] = []

        def settle(delivered: Delivered, share_done: float) -> None:
            if rng.random() < share_done:
                self.finished(delivered.routing_key.partition(".")[0], delivered.body)
                peer.ack(delivered.tag)
            else:
                peer.nack(delivered.tag, requeue=True)

        def on_delivery(delivered: Delivered) -> None:
            if rng.random() < 0.6:
                settle(delivered, 0.85)
            else:
                held.append(delivered)

        peer.on_delivery = on_delivery
        for number in range(rng.randrange(1, 3)):
            window = Basic.Qos(prefetch_count=rng.choice((0, 1, 5, 50)), global_=rng.random() < 0.3)
            await peer.call(window, Basic.QosOk)
            consume = Basic.Consume(queue=rng.choice(list(QUEUES)), consumer_tag=f"tag{number}")
            await peer.call(consume, Basic.ConsumeOk)
        for _ in range(rng.randrange(30)):
            await self.pause(0.1)
            rng.shuffle(held)
            for _ in range(rng.randrange(len(held) + 1)):
                settle(held.pop(), 0.8)
            choice = rng.random()
            if choice < 0.05:
                await peer.call(Basic.Cancel(consumer_tag="tag0"), Basic.CancelOk)
            elif choice < 0.08:
                held.clear()
                await peer.call(Basic.Recover(requeue=True), Basic.RecoverOk)
            elif choice < 0.12:
                await peer.call(Channel.Flow(active=False), Channel.FlowOk)
                await self.pause(0.05)
                await peer.call(Channel.Flow(active=True), Channel.FlowOk)

    async def work_mqtt(self, name: str) -> None:
        """Several use the same client id, so they also take over from each other."""
        while not self.over:
            try:
                peer = await MqttPeer.connect(self.daemon.address("mqtt"), name, clean=self.rng.random() < 0.5)
                await self._work_mqtt(peer)
            except ConnectionError:
                continue
            if self.rng.random() < 0.7:
                peer.vanish()
            else:
                await peer.close()

    async def _work_mqtt(self, peer: MqttPeer) -> None:
        held: list[tuple[str, bytes, int]] = []

        def settle(topic: str, body: bytes, packet_id: int) -> None:
            self.finished(topic.partition("/")[0], body)
            peer.ack(packet_id)

        def on_message(topic: str, body: bytes, packet_id: int) -> None:
            if self.rng.random() < 0.5:
                settle(topic, body, packet_id)
            else:
                held.append((topic, body, packet_id))

        peer.on_message = on_message
        for _ in range(self.rng.randrange(1, 3)):
            await peer.subscribe("$queue/" + self.rng.choice(list(QUEUES)))
        for _ in range(self.rng.randrange(30)):
            await self.pause(0.1)
            self.rng.shuffle(held)
            for _ in range(self.rng.randrange(len(held) + 1)):
                settle(*held.pop())

    # the end

    async def drain(self) -> dict[str, dict[str, Any]]:
        """One good worker takes what is left."""
        peer = await AmqpPeer.connect(self.daemon.address("amqp"), confirm=False)

        def on_delivery(delivered: Delivered) -> None:
            self.finished(delivered.routing_key.partition(".")[0], delivered.body)
            peer.ack(delivered.tag)

        peer.on_delivery = on_delivery
        for name in QUEUES:
            await peer.call(Basic.Qos(prefetch_count=100), Basic.QosOk)
            await peer.call(Basic.Consume(queue=name), commands.Basic.ConsumeOk)
        deadline = time.monotonic() + 30
        while True:
            stats = await asyncio.to_thread(self.stats)
            left = {name: (stats[name]["depth"], stats[name]["in_flight"]) for name in QUEUES}
            if not any(map(sum, left.values())):
                break
            assert time.monotonic() < deadline, f"seed {SEED}: (depth, in flight) of what is stuck: {left}"
            await asyncio.sleep(0.1)
        await peer.close()
        return stats


async def test_nothing_is_lost_or_stuck_whatever_clients_do(daemon: Callable[..., Daemon]) -> None:
    chaos = Chaos(daemon(CONFIG), random.Random(SEED))
    await asyncio.gather(
        *(chaos.publish_mqtt(f"m{n}") for n in range(2)),
        *(chaos.publish_amqp(f"a{n}") for n in range(2)),
        *(chaos.work_amqp() for _ in range(4)),
        *(chaos.work_mqtt(f"worker{n % 2}") for n in range(4)),
    )
    assert chaos.number > 500
    stats = await chaos.drain()
    buried = stats["dead-letters"]["depth"]
    missing = {name: len(chaos.accepted[name] - chaos.done[name]) for name in QUEUES}
    assert (missing["fifo"], missing["wide"]) == (0, 0), f"seed {SEED}"
    assert missing["short"] + missing["plain"] <= buried, f"seed {SEED}: {missing}, {buried} in the dead letters"
    assert "error" not in {record.get("level") for record in chaos.daemon.log}, f"seed {SEED}"
    assert chaos.daemon.rss() < 300 << 20
    assert chaos.daemon.stop() == 0
