"""Owns the fixtures that start servers: each lives as long as its test (RabbitMQ: as the run) and leaves nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests.harness.daemon import Daemon
from tests.harness.link import Peer
from tests.harness.mosquitto import Mosquitto
from tests.harness.node import Node
from tests.harness.rabbitmq import RabbitMq
from tests.harness.scripted import ScriptedRemote

# How fast an example runs is the machine's affair.
hypothesis.settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any machine")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def make_daemon(tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    """`make_daemon(config)` gives a Daemon with a folder of its own that was not started."""
    daemons: list[Daemon] = []

    def make(config: Mapping[str, Any] | str = {}, env: Mapping[str, str] | None = None) -> Daemon:
        folder = tmp_path / f"daemon{len(daemons)}"
        folder.mkdir()
        daemons.append(Daemon(folder, config, env))
        return daemons[-1]

    yield make
    for daemon in daemons:
        daemon.close()


@pytest.fixture
def daemon(make_daemon: Callable[..., Daemon]) -> Callable[..., Daemon]:
    """`daemon(config)` gives a Daemon that is ready: `daemon({"queues": {...}}).address("mqtt")`."""

    def start(config: Mapping[str, Any] | str = {}, env: Mapping[str, str] | None = None) -> Daemon:
        return make_daemon(config, env).start()

    return start


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[Callable[..., Mosquitto]]:
    """`mosquitto()` gives a running broker; `settings=` adds lines to its configuration."""
    brokers: list[Mosquitto] = []

    def start(settings: str = "") -> Mosquitto:
        folder = tmp_path / f"mosquitto{len(brokers)}"
        folder.mkdir()
        brokers.append(Mosquitto(folder, settings=settings))
        return brokers[-1].start()

    yield start
    for broker in brokers:
        broker.close()


@pytest.fixture(scope="session")
def rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMq]:
    """One running node for the whole run, as it takes seconds to start: use names of your own in it."""
    node = RabbitMq(tmp_path_factory.mktemp("rabbitmq"))
    try:
        yield node.start()
    finally:
        node.close()


@pytest.fixture(scope="session")
def node() -> Node:
    """`node.run("amqplib.js", "rpc", url)`: a client in JavaScript. Its packages are installed once."""
    return Node()


@pytest.fixture
def peer() -> Iterator[Callable[..., Peer]]:
    """`peer(address, client_id, *filters)` gives a paho client that comes back by itself."""
    peers: list[Peer] = []

    def connect(*arguments: Any, **options: Any) -> Peer:
        peers.append(Peer(*arguments, **options))
        return peers[-1]

    yield connect
    for one in peers:
        one.close()


@pytest.fixture
def scripted() -> Iterator[Callable[..., ScriptedRemote]]:
    """`scripted(answer)` gives a ScriptedRemote."""
    remotes: list[ScriptedRemote] = []

    def start(*arguments: Any, **options: Any) -> ScriptedRemote:
        remotes.append(ScriptedRemote(*arguments, **options))
        return remotes[-1]

    yield start
    for one in remotes:
        one.close()
