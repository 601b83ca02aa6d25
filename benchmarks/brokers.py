"""Owns the brokers that are measured: each started anew on loopback in a folder of its own, one at a time.

Its rule: none is tuned; what each is set to, and what it keeps of a message, stands in its `settings`, which the
report prints.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from benchmarks import amqp
from tests.harness.daemon import Daemon
from tests.harness.mosquitto import Mosquitto, executable
from tests.harness.process import Address, ServerProcess
from tests.harness.rabbitmq import RabbitMq

ROOT = Path(__file__).resolve().parents[1]
QUEUE = "orders"
PATTERN = "bench/+/orders"
START_SECONDS = 600.0


class Layout(NamedTuple):
    """What a profile wants to be there. gateway: the gateway's configuration. queue: RabbitMQ gets a durable queue,
    bound to what `PATTERN` matches. about: what the gateway's configuration says, for the report."""

    gateway: Mapping[str, Any]
    queue: bool
    about: str


def queue_layout(group: str | None = None, dedup: str | None = None, **settings: Any) -> Layout:
    """The queue, a route to it, and in the gateway groups by that template and dedup by the body's id for that time;
    further keyword arguments are the gateway's settings."""
    policy: dict[str, Any] = {}
    about = ["durable queue"]
    if group is not None:
        policy["group"] = group
        about.append(f"group {group}")
    if dedup is not None:
        policy["dedup"] = {"key": "{body.id}", "window": dedup}
        about.append(f"dedup by {{body.id}} for {dedup}")
    config = {"queues": {QUEUE: policy}, "routes": [{"from": PATTERN, "to": QUEUE}], **settings}
    return Layout(config, True, ", ".join(about))


FULL = queue_layout(group="{topic[1]}", dedup="5m")
"""What most profiles use: all that the gateway is for."""


class Broker(ABC):
    """One that runs. settings: its version, and what it is set to. honest: its answers and deliveries are of what it
    got, so they can be checked."""

    honest = True
    settings: str
    mqtt: Address
    amqp: Address
    store: Path

    @abstractmethod
    def pids(self) -> list[int]:
        """Its processes."""

    @abstractmethod
    def restart(self) -> float:
        """kill -9, and seconds from the new start until it says that it is ready."""

    @abstractmethod
    def close(self) -> None:
        """Ends it."""

    def rss(self) -> int:
        """Resident memory in bytes of all its processes."""
        return sum(_memory(pid, "VmRSS:") for pid in self.pids())

    def peak_rss(self) -> int:
        """The most that it ever was in this run of it, in bytes."""
        return sum(_memory(pid, "VmHWM:") for pid in self.pids())

    def depth(self) -> int:
        """Messages in the queue."""
        with _setup(self.amqp) as setup:
            return setup.depth(QUEUE)

    def stored(self) -> int:
        """Bytes of its files."""
        return sum(file.stat().st_size for file in self.store.rglob("*") if file.is_file())


class Gateway(Broker):
    """The gateway from this tree."""

    def __init__(self, folder: Path, layout: Layout) -> None:
        self.daemon = Daemon(folder, dict(layout.gateway))
        self.store = self.daemon.store
        self.settings = f"gateway {_commit()}: fsync before each acknowledgement; {layout.about}"
        self._start()

    def _start(self) -> None:
        self.daemon.start(START_SECONDS)
        self.mqtt, self.amqp = self.daemon.address("mqtt"), self.daemon.address("amqp")

    def pids(self) -> list[int]:
        return [self.daemon.pid]

    def restart(self) -> float:
        self.daemon.kill()
        began = time.perf_counter()
        self._start()
        return time.perf_counter() - began

    def close(self) -> None:
        self.daemon.close()


class Rabbit(Broker):
    """Debian's RabbitMQ with its MQTT plugin; no groups, no dedup: it has none."""

    def __init__(self, folder: Path, layout: Layout, kind: str, node: RabbitMq | None) -> None:
        """node: one that runs already and is only borrowed."""
        self._borrowed = node is not None
        self._node = node or RabbitMq(folder)
        self.store = self._node.folder / "mnesia"
        try:
            if node is None:
                self._node.start(START_SECONDS)
            self.mqtt, self.amqp = self._node.mqtt, self._node.amqp
            self.settings = f"{self._version()}, MQTT plugin, as installed"
            self._has_queue = layout.queue
            if layout.queue:
                self.settings += f"; durable {kind} queue, persistent messages, no groups, no dedup"
                self._clear()
                with _setup(self.amqp) as setup:
                    setup.declare_bound(QUEUE, PATTERN.replace("/", ".").replace("+", "*"), kind)
        except BaseException:
            self.close()
            raise

    def _version(self) -> str:
        found = re.search(r"Starting (RabbitMQ \S+ on Erlang \S+)", self._node.output())
        return found[1] if found else "RabbitMQ"

    def _clear(self) -> None:
        with _setup(self.amqp) as setup:
            setup.delete(QUEUE)

    def pids(self) -> list[int]:
        node = psutil.Process(self._node.pid)
        return [node.pid, *(child.pid for child in node.children(recursive=True))]

    def restart(self) -> float:
        self._node.kill()
        began = time.perf_counter()
        self._node.start(START_SECONDS)
        return time.perf_counter() - began

    def close(self) -> None:
        if not self._borrowed:
            self._node.close()
        elif self._has_queue:
            self._clear()


class InMemoryMosquitto(Broker):
    """Debian's Mosquitto; messages for nobody are kept nowhere."""

    def __init__(self, folder: Path) -> None:
        self.store = folder
        self._server = Mosquitto(folder, settings="persistence false")
        self._server.start()
        self.mqtt = self._server.address
        version = subprocess.run([executable("mosquitto"), "-h"], capture_output=True, text=True, check=False).stdout
        self.settings = f"{version.partition(chr(10))[0]}: in memory, its default; stores nothing"

    def pids(self) -> list[int]:
        return [self._server.pid]

    def restart(self) -> float:
        raise NotImplementedError("it keeps nothing over a restart")

    def close(self) -> None:
        self._server.close()


class SinkProcess(Broker):
    """What only answers and delivers (`benchmarks.sink`), on the first core if there are two."""

    honest = False
    settings = "sink: no broker; looks at nothing and keeps nothing: the ceiling of the load generator"

    def __init__(self, folder: Path) -> None:
        self.store = folder
        core = ["0"] if load_core() is not None else []
        self._process = ServerProcess([sys.executable, "-m", "benchmarks.sink", *core], cwd=ROOT)
        ports = json.loads(
            self._process.wait_for(lambda: next(iter(self._process.output), None), "the ports of the sink", 20)
        )
        self.mqtt, self.amqp = Address("127.0.0.1", ports["mqtt"]), Address("127.0.0.1", ports["amqp"])

    def pids(self) -> list[int]:
        return [self._process.pid]

    def restart(self) -> float:
        return 0.0

    def close(self) -> None:
        self._process.close()


GATEWAY, MOSQUITTO, RABBITMQ, QUORUM, SINK = "gateway", "mosquitto", "rabbitmq", "rabbitmq-quorum", "sink"
ALL = (GATEWAY, MOSQUITTO, RABBITMQ, QUORUM, SINK)


@contextmanager
def started(name: str, folder: Path, layout: Layout, node: RabbitMq | None = None) -> Iterator[Broker]:
    """That broker, ready, in a new folder; ended on leaving."""
    folder.mkdir(parents=True)
    broker: Broker
    if name == GATEWAY:
        broker = Gateway(folder, layout)
    elif name == MOSQUITTO:
        broker = InMemoryMosquitto(folder)
    elif name in (RABBITMQ, QUORUM):
        broker = Rabbit(folder, layout, "quorum" if name == QUORUM else "classic", node)
    else:
        broker = SinkProcess(folder)
    try:
        yield broker
    finally:
        broker.close()


def load_core() -> int | None:
    """The core of the load generator: the second one, None if there is only one."""
    cores = sorted(os.sched_getaffinity(0))
    return cores[1] if len(cores) > 1 else None


@contextmanager
def _setup(address: Address) -> Iterator[amqp.AmqpSetup]:
    setup = amqp.AmqpSetup(address)
    try:
        yield setup
    finally:
        setup.socket.close()


def _memory(pid: int, field: str) -> int:
    """That field of the process's status, in bytes; 0 for one that has just ended: RabbitMQ has helpers that come and
    go."""
    try:
        with open(f"/proc/{pid}/status") as status:
            return next((int(line.split()[1]) * 1024 for line in status if line.startswith(field)), 0)
    except (FileNotFoundError, ProcessLookupError):
        return 0


def _commit() -> str:
    """What this tree is, as git says; `unknown` outside of a clone."""
    try:
        command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "of an unknown commit"
