"""Owns the fixtures of tests that share a server: names of their own there, and clients that end with the test.

Their module has the fixture `server`, the address of its AMQP listener.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count

import pytest
from pamqp import commands

from tests.harness.process import Address
from tests.harness.rabbitmq import RabbitMq
from tests.integration.amqp_raw import Raw
from tests.integration.rabbit_link import Observer

_numbers = count(1)


@pytest.fixture
def raw(server: Address) -> Iterator[Raw]:
    """A client with confirms."""
    client = Raw(server)
    client.login()
    client.call(commands.Confirm.Select(), commands.Confirm.SelectOk)
    yield client
    client.close()


@pytest.fixture
def other(server: Address) -> Iterator[Raw]:
    """A second client, without confirms."""
    client = Raw(server)
    client.login()
    yield client
    client.close()


@pytest.fixture(params=["gateway", "rabbitmq"])
def both(request: pytest.FixtureRequest) -> Address:
    """The module's server, and RabbitMQ beside it: what a test sees is so in both."""
    if request.param == "gateway":
        server: Address = request.getfixturevalue("server")
        return server
    node: RabbitMq = request.getfixturevalue("rabbitmq")
    return node.amqp


@pytest.fixture
def name() -> str:
    """Begins the names of a test's queues and exchanges there."""
    return f"test{next(_numbers)}"


@pytest.fixture
def observe() -> Iterator[Callable[[RabbitMq, str], Observer]]:
    """`observe(node, queue)` gives a pika client that consumes the queue there, and comes back by itself."""
    observers: list[Observer] = []

    def start(node: RabbitMq, queue: str) -> Observer:
        observers.append(Observer(node, queue))
        return observers[-1]

    yield start
    for one in observers:
        one.closing.set()
    for one in observers:
        one.join(20)
