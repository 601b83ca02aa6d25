"""Owns the fixtures of tests that share a RabbitMQ: names of their own there, and clients that end with the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count

import pytest

from tests.harness.rabbitmq import RabbitMq
from tests.integration.rabbit_link import Observer

_numbers = count(1)


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
