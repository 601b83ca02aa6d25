"""Owns the brokers that are measured: each started anew in a folder of its own, with the queue `orders` ready.

Its rule: both keep each message in a durable queue, and neither is tuned.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import psutil

from benchmarks import wire
from tests.harness.daemon import Daemon
from tests.harness.process import Address, ServerProcess
from tests.harness.rabbitmq import RabbitMq

QUEUE = "orders"
GATEWAY: dict[str, Any] = {
    "queues": {QUEUE: {"group": "{topic[1]}", "dedup": {"key": "{body.id}", "window": "5m"}}},
    "routes": [{"from": "bench/+/orders", "to": QUEUE}],
}


class Broker(Protocol):
    """A running broker."""

    mqtt: Address
    amqp: Address

    def prepare(self) -> None:
        """Makes the queue and its binding, where the configuration does not."""

    def rss(self) -> int:
        """Resident memory in bytes of all its processes."""
        ...

    def close(self) -> None: ...


class Gateway:
    """The gateway from this tree, with a route, groups by topic and dedup by a JSON field."""

    def __init__(self, folder: Path) -> None:
        self.daemon = Daemon(folder, GATEWAY)
        self.start()

    def start(self, timeout: float = 120) -> None:
        self.daemon.start(timeout)
        self.mqtt, self.amqp = self.daemon.address("mqtt"), self.daemon.address("amqp")

    def prepare(self) -> None:
        pass

    def rss(self) -> int:
        return self.daemon.rss()

    def peak_rss(self) -> int:
        """The most it ever was, in bytes."""
        with open(f"/proc/{self.daemon.pid}/status") as status:
            line = next(line for line in status if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024

    def close(self) -> None:
        self.daemon.close()


class Rabbit:
    """Debian's RabbitMQ: MQTT plugin, a durable classic queue bound to amq.topic; no groups, no dedup: it has none."""

    def __init__(self, folder: Path) -> None:
        self.node = RabbitMq(folder)
        try:
            self.node.start()
        except BaseException:
            self.node.close()
            raise
        self.mqtt, self.amqp = self.node.mqtt, self.node.amqp

    def prepare(self) -> None:
        setup = wire.AmqpSetup(self.amqp)
        setup.declare_bound(QUEUE, "bench.*.orders")
        setup.socket.close()

    def rss(self) -> int:
        processes = [psutil.Process(self.node.pid)]
        return sum(p.memory_info().rss for p in processes + processes[0].children(recursive=True))

    def close(self) -> None:
        self.node.close()


BROKERS: dict[str, type[Gateway] | type[Rabbit]] = {"gateway": Gateway, "rabbitmq": Rabbit}


@contextmanager
def started(name: str, folder: Path) -> Iterator[Gateway | Rabbit]:
    """That broker, ready, in a new folder below `folder`; ended on leaving."""
    folder.mkdir(parents=True)
    broker = BROKERS[name](folder)
    try:
        broker.prepare()
        yield broker
    finally:
        broker.close()


@contextmanager
def sink(packet_size: int, body_size: int) -> Iterator[tuple[Address, Address]]:
    """The addresses of a sink for publishers and for a consumer; on the first core if there are two."""
    core = ["0"] if cores() > 1 else []
    command = [sys.executable, "-m", "benchmarks.sink", str(packet_size), str(body_size), *core]
    process = ServerProcess(command, cwd=Path(__file__).resolve().parents[1])
    try:
        ports = json.loads(process.wait_for(lambda: next(iter(process.output), None), "the ports of the sink", 20))
        yield Address("127.0.0.1", ports["mqtt"]), Address("127.0.0.1", ports["amqp"])
    finally:
        process.close()


def cores() -> int:
    return len(os.sched_getaffinity(0))
