"""SIGTERM and SIGHUP while publishers send and consumers settle: in time, status 0, and nothing lost.

GATEWAY_SEED repeats the choices of one run.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.faults.test_kill import (
    AMQP_PUBLISHERS,
    CONFIG,
    MOST_IN_A_RUN,
    MQTT_PUBLISHERS,
    SEED,
    AmqpSender,
    MqttSender,
    Sender,
    all_lost,
    begin,
    drain,
)
from tests.harness.daemon import Daemon
from tests.harness.history import History

STOPS = 3
DRAIN_SECONDS = 2
SPARE_SECONDS = 2.0
"""How much longer a stop may take than its drain."""

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]


def crowd(history: History) -> list[Sender]:
    mqtt: list[Sender] = [MqttSender(f"m{i}", history) for i in range(MQTT_PUBLISHERS)]
    return mqtt + [AmqpSender(f"a{i}", history) for i in range(AMQP_PUBLISHERS)]


async def finish(daemon: Daemon, history: History, senders: list[Sender], workers: list[Any]) -> None:
    await drain(daemon, history, senders, workers)
    for peer in [worker.peer for worker in workers] + [sender.peer for sender in senders]:
        assert peer
        await peer.close()
    assert daemon.stop() == 0
    faults = history.check()
    assert not faults, f"seed {SEED}, {len(faults)} faults:\n" + "\n".join(faults[:30])


async def test_a_stop_under_load_ends_in_time_and_loses_nothing(make_daemon: Callable[..., Daemon]) -> None:
    choices = random.Random(SEED)
    history = History()
    senders = crowd(history)
    daemon = make_daemon({**CONFIG, "drain_timeout": f"{DRAIN_SECONDS}s"})
    cut_off = 0
    for _ in range(STOPS):
        workers = await begin(daemon, history, senders, choices, MOST_IN_A_RUN)
        await asyncio.sleep(choices.uniform(0.4, 1.2))
        began = time.monotonic()
        assert await asyncio.to_thread(daemon.stop) == 0
        assert time.monotonic() - began < DRAIN_SECONDS + SPARE_SECONDS
        cut_off += sum(len(sender.unanswered) for sender in senders)
        await all_lost(senders, workers)
        assert "error" not in {record.get("level") for record in daemon.log}, daemon.text()
    assert cut_off, "no stop came amid publishes"
    workers = await begin(daemon, history, senders, choices, 0)
    await finish(daemon, history, senders, workers)


async def test_reloads_under_load_disturb_nobody(make_daemon: Callable[..., Daemon]) -> None:
    choices = random.Random(SEED)
    history = History()
    senders = crowd(history)
    daemon = make_daemon(CONFIG)
    workers = await begin(daemon, history, senders, choices, MOST_IN_A_RUN)
    for n in range(10):
        await asyncio.sleep(0.15)
        seen = len(daemon.log)
        more = {"queues": {**CONFIG["queues"], f"more{n}": {}}}
        routes = [*CONFIG["routes"], {"from": "load/+", "to": f"more{n}"}] if n % 2 else CONFIG["routes"]
        daemon.configure({**CONFIG, **more, "routes": routes})
        daemon.hup()
        await asyncio.to_thread(daemon.wait_for, "reloaded", lambda record: True, 10, seen)
    for sender in senders:
        assert sender.peer and not sender.peer.lost.is_set()
        sender.left = 0
    for worker in workers:
        assert worker.peer and not worker.peer.lost.is_set()
    await finish(daemon, history, senders, workers)
