"""SIGKILL while publishers send and consumers settle: what was answered for is delivered, once settled it stays so.

GATEWAY_KILLS sets how often the daemon is killed, GATEWAY_SEED repeats the choices of one run.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from tests.harness.amqp import AmqpPeer, Delivered
from tests.harness.daemon import Daemon
from tests.harness.history import History, Key
from tests.harness.mqtt import MqttPeer

KILLS = int(os.environ.get("GATEWAY_KILLS", "4"))
SEED = int(os.environ.get("GATEWAY_SEED", random.SystemRandom().randrange(1 << 32)))
MQTT_PUBLISHERS, AMQP_PUBLISHERS, CONSUMERS = 20, 4, 5
GROUPS_EACH = 3
WINDOW = 20
MOST_IN_A_RUN = 5000
RESENT_ACKNOWLEDGED = 10
MARK_EVERY = 15
CONFIG: dict[str, Any] = {
    "queues": {
        "load": {
            "group": "{body.group}",
            "dedup": {"key": "{body.id}", "window": "1h"},
            "max_deliveries": None,
        },
        "marks": {"max_messages": 100, "overflow": "drop-oldest", "dead_letter": "none"},
    },
    "routes": [{"from": "load/+", "to": "load"}],
}

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60 + 15 * KILLS)]


class Sender:
    """A publisher with its own groups. After a kill it sends again what was not acknowledged, in order, and before
    that some of what was: those must not be stored a second time."""

    def __init__(self, name: str, history: History) -> None:
        self.name = name
        self.history = history
        self.unanswered: dict[Key, None] = {}
        self.latest: list[Key] = []
        self.next = dict.fromkeys((f"{name}.{i}" for i in range(GROUPS_EACH)), 0)
        self.left = 0
        self.answered = asyncio.Event()
        self.peer: MqttPeer | AmqpPeer | None = None

    async def connect(self, daemon: Daemon) -> None:
        raise NotImplementedError

    def write(self, key: Key) -> None:
        raise NotImplementedError

    def begin(self, more: int) -> None:
        """First what may have been lost, then `more` new messages."""
        for key in self.latest[-RESENT_ACKNOWLEDGED:] + list(self.unanswered):
            self.write(key)
        self.left = more
        self._fill()

    def on_answer(self, key: Key) -> None:
        self.history.acknowledged.add(key)
        if key in self.unanswered:
            del self.unanswered[key]
            self.latest.append(key)
        self._fill()

    def _fill(self) -> None:
        while self.left and len(self.unanswered) < WINDOW:
            self.left -= 1
            group = min(self.next, key=lambda name: self.next[name])
            key = Key(group, self.next[group])
            self.next[group] += 1
            self.history.sent.add(key)
            self.unanswered[key] = None
            self.write(key)
        if not self.unanswered:
            self.answered.set()
        else:
            self.answered.clear()

    @staticmethod
    def body(key: Key) -> bytes:
        return json.dumps({"id": key.id, "group": key.group, "number": key.number}).encode()


class MqttSender(Sender):
    async def connect(self, daemon: Daemon) -> None:
        self.peer = self.mqtt = await MqttPeer.connect(daemon.address("mqtt"), self.name)
        self.mqtt.on_answer = self.on_answer

    def write(self, key: Key) -> None:
        self.mqtt.publish(f"load/{self.name}", self.body(key), key)


class AmqpSender(Sender):
    async def connect(self, daemon: Daemon) -> None:
        self.peer = self.amqp = await AmqpPeer.connect(daemon.address("amqp"))
        self.amqp.on_confirm = self._on_confirm

    def _on_confirm(self, key: Key, stored: bool) -> None:
        assert stored, f"{key.id} was refused"
        self.on_answer(key)

    def write(self, key: Key) -> None:
        self.amqp.publish(f"load.{self.name}", self.body(key), key)


class Worker:
    """A consumer that mostly acks, sometimes nacks, holds or vanishes. From time to time it publishes with confirm:
    what it had acked before is durable when that is confirmed (ruling 13)."""

    def __init__(self, history: History, choices: random.Random) -> None:
        self.history = history
        self.choices = choices
        self.held: dict[int, Key] = {}
        self.acked: list[Key] = []
        self.peer: AmqpPeer | None = None

    async def connect(self, daemon: Daemon) -> None:
        self.peer = await AmqpPeer.connect(daemon.address("amqp"))
        self.peer.on_delivery = self._on_delivery
        self.peer.on_confirm = self._on_confirm
        await self.peer.consume("load", prefetch=10)

    def vanish(self) -> None:
        assert self.peer
        self.peer.on_delivery = lambda delivered: None
        self.peer.on_confirm = lambda token, stored: None
        for key in self.held.values():
            self.history.gave_back(key)
        self.held.clear()
        self.acked.clear()
        self.peer.vanish()

    def settle_all(self) -> None:
        for tag in list(self.held):
            self._done(tag)
        self._mark()

    def _on_delivery(self, delivered: Delivered) -> None:
        body = json.loads(delivered.body)
        key = Key(body["group"], body["number"])
        self.history.saw(key, self)
        self.held[delivered.tag] = key
        choice = self.choices.random()
        if choice < 0.06:
            assert self.peer
            self.history.gave_back(self.held.pop(delivered.tag))
            self.peer.nack(delivered.tag, requeue=True)
        elif choice < 0.12 and len(self.held) < 6:
            pass  # settled later, or never
        else:
            self._done(delivered.tag)
            if len(self.held) > 3:
                self._done(self.choices.choice(list(self.held)))

    def _done(self, tag: int) -> None:
        assert self.peer
        key = self.held.pop(tag)
        self.history.finished(key)
        self.peer.ack(tag)
        self.acked.append(key)
        if len(self.acked) >= MARK_EVERY:
            self._mark()

    def _mark(self) -> None:
        assert self.peer
        if self.acked:
            keys, self.acked = self.acked, []
            self.peer.publish("marks", b"mark", keys, exchange="")

    def _on_confirm(self, keys: Sequence[Key], stored: bool) -> None:
        assert stored
        self.history.durable.update(keys)


async def test_kill_9_loses_nothing_and_repeats_nothing_settled(make_daemon: Callable[..., Daemon]) -> None:
    choices = random.Random(SEED)
    history = History()
    senders: list[Sender] = [MqttSender(f"m{i}", history) for i in range(MQTT_PUBLISHERS)]
    senders += [AmqpSender(f"a{i}", history) for i in range(AMQP_PUBLISHERS)]
    daemon = make_daemon(CONFIG)
    cut_off = 0
    for _ in range(KILLS):
        workers = await begin(daemon, history, senders, choices, MOST_IN_A_RUN)
        async with asyncio.TaskGroup() as group:
            vanishing = group.create_task(vanish_now_and_then(daemon, workers, choices))
            await asyncio.sleep(choices.uniform(0.4, 1.6))
            daemon.kill()
            vanishing.cancel()
        cut_off += sum(len(sender.unanswered) for sender in senders)
        await all_lost(senders, workers)

    workers = await begin(daemon, history, senders, choices, 0)
    await drain(daemon, history, senders, workers)
    assert workers[0].peer
    assert await workers[0].peer.depth("load") == 0
    for peer in [worker.peer for worker in workers] + [sender.peer for sender in senders]:
        assert peer
        await peer.close()
    assert daemon.stop() == 0

    faults = history.check()
    assert not faults, f"seed {SEED}, {len(faults)} faults:\n" + "\n".join(faults[:30])
    # The test itself must have been hard enough.
    assert len(history.acknowledged) > 1000 and len(history.durable) > 500
    assert cut_off and history.again, "no kill came between a message and its answer"

    daemon.restart()
    peer = await AmqpPeer.connect(daemon.address("amqp"))
    assert await peer.depth("load") == 0, "what was settled is back"
    await peer.close()


async def begin(
    daemon: Daemon, history: History, senders: Sequence[Sender], choices: random.Random, more: int
) -> list[Worker]:
    await asyncio.to_thread(daemon.start)
    history.began()
    workers = [Worker(history, choices) for _ in range(CONSUMERS)]
    for peer in (*workers, *senders):
        await peer.connect(daemon)
    for sender in senders:
        sender.begin(more)
    return workers


async def drain(daemon: Daemon, history: History, senders: Sequence[Sender], workers: Sequence[Worker]) -> None:
    """Until all is acknowledged and settled."""
    try:
        async with asyncio.timeout(60):
            for sender in senders:
                await sender.answered.wait()
            # What is held or was nacked comes again only when it is settled, so no single event says "drained".
            while not (history.acknowledged <= history.done and history.delivered <= history.done):
                for worker in workers:
                    worker.settle_all()
                await asyncio.sleep(0.05)
    except TimeoutError:
        unanswered = sum(len(sender.unanswered) for sender in senders)
        missing = sorted(history.acknowledged - history.done)
        held = sum(len(worker.held) for worker in workers)
        pytest.fail(
            f"seed {SEED}: not drained: {unanswered} unanswered, {held} held, {len(missing)} missing, the first of"
            f" them {missing[:5]}; {history.faults[:10]}; the daemon said:\n{daemon.process.tail()}"
        )


async def vanish_now_and_then(daemon: Daemon, workers: list[Worker], choices: random.Random) -> None:
    while True:
        await asyncio.sleep(choices.uniform(0.1, 0.3))
        worker = choices.choice(workers)
        worker.vanish()
        try:
            await worker.connect(daemon)
        except (ConnectionError, OSError):
            return  # the kill came first


async def all_lost(senders: Sequence[Sender], workers: Sequence[Worker]) -> None:
    """Everything that the daemon had written was read."""
    async with asyncio.timeout(10):
        for peer in [sender.peer for sender in senders] + [worker.peer for worker in workers]:
            if peer:
                await peer.lost.wait()
