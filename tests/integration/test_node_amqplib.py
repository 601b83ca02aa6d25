"""Node's amqplib as it comes, against the daemon: each example is in tests/node/amqplib.js."""

from __future__ import annotations

from collections.abc import Iterator

import pika
import pytest

from tests.harness.daemon import Daemon
from tests.harness.node import Node

EXAMPLES = "amqplib.js"


@pytest.fixture(scope="module")
def daemon_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One daemon for all: each example has queues of its own."""
    daemon = Daemon(tmp_path_factory.mktemp("node"), {})
    try:
        address = daemon.start().address("amqp")
        yield f"amqp://guest:guest@{address.host}:{address.port}/"
    finally:
        daemon.close()


@pytest.mark.parametrize("example", ["confirms", "refused", "returned"])
def test_a_confirm_channel(node: Node, daemon_url: str, example: str) -> None:
    node.run(EXAMPLES, example, daemon_url)


def test_direct_reply_to(node: Node, daemon_url: str) -> None:
    node.run(EXAMPLES, "rpc", daemon_url)


def test_nack_requeues_and_dead_letters(node: Node, daemon_url: str) -> None:
    node.run(EXAMPLES, "nack", daemon_url)


def test_prefetch_is_the_most_that_comes(node: Node, daemon_url: str) -> None:
    node.run(EXAMPLES, "prefetch", daemon_url)


def test_a_channel_is_told_of_its_errors(node: Node, daemon_url: str) -> None:
    node.run(EXAMPLES, "errors", daemon_url)


def test_exchanges_and_bindings(node: Node, daemon_url: str) -> None:
    node.run(EXAMPLES, "exchanges", daemon_url)


def test_it_is_told_when_its_queue_is_deleted(node: Node, daemon_url: str) -> None:
    client = node.start(EXAMPLES, "cancelled", daemon_url, "node.gone")
    try:
        client.wait_for_line("consuming", 20)
        with pika.BlockingConnection(pika.URLParameters(daemon_url)) as other:
            other.channel().queue_delete("node.gone")
        assert client.wait(20) == 0, client.tail()
    finally:
        client.close()


def test_it_is_told_when_the_daemon_stops(node: Node, tmp_path_factory: pytest.TempPathFactory) -> None:
    daemon = Daemon(tmp_path_factory.mktemp("goodbye"), {})
    try:
        address = daemon.start().address("amqp")
        client = node.start(EXAMPLES, "goodbye", f"amqp://{address.host}:{address.port}/")
        try:
            client.wait_for_line("connected", 20)
            assert daemon.stop() == 0
            assert "320" in client.wait_for_line("closed:", 20)
            assert client.wait(20) == 0, client.tail()
        finally:
            client.close()
    finally:
        daemon.close()
