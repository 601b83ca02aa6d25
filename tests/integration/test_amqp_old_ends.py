"""An AMQP connection that is over while its socket still stands: however that ends, nothing is taken from the
connection that has the same queues, consumer tags and channel numbers since."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from pamqp.commands import Basic, Channel, Connection, Queue

from tests.harness.daemon import Daemon
from tests.integration.amqp_raw import Raw

PREFETCH = 4
MESSAGES = [b"%d" % number for number in range(12)]
KINDS = ["exclusive", "auto-delete", "transient", "plain", "group", "priority"]
GROUP = {"group": "{header[none]|all}", "group_in_flight": PREFETCH}
CONFIG: dict[str, Any] = {"queues": {"plain": {}, "group": GROUP, "priority": {"max_priority": 3}}}
ANY_END = 20.0
"""Seconds that an end may take to be seen."""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    folder: Path = tmp_path_factory.mktemp("ends")
    daemon = Daemon(folder, CONFIG)
    yield daemon.start()
    daemon.close()


def connections(gateway: Daemon) -> int:
    page = httpx.get(gateway.url("admin") + "/metrics").text
    (line,) = [line for line in page.splitlines() if line.startswith('gateway_transport_connections{transport="amqp"}')]
    return int(float(line.rpartition(" ")[2]))


def connect(gateway: Daemon, stack: ExitStack) -> Raw:
    one = stack.enter_context(closing(Raw(gateway.address("amqp"))))
    one.login()
    return one


def consuming(gateway: Daemon, stack: ExitStack, queue: str) -> Raw:
    """A connection that has as many deliveries in flight as it may, as soon as there are so many."""
    one = connect(gateway, stack)
    flags: dict[str, dict[str, bool]] = {
        "exclusive": {"exclusive": True},
        "auto-delete": {"auto_delete": True},
        "transient": {},
    }
    if queue in flags:
        one.call(Queue.Declare(queue=queue, **flags[queue]), Queue.DeclareOk)
    one.call(Basic.Qos(prefetch_count=PREFETCH), Basic.QosOk)
    one.call(Basic.Consume(queue=queue, consumer_tag="tag"), Basic.ConsumeOk)
    return one


def delivered(one: Raw) -> tuple[int, bytes]:
    deliver = one.expect(Basic.Deliver)
    one.read()
    return deliver.delivery_tag, one.read().value


def nothing_comes(one: Raw) -> None:
    one.call(Basic.Qos(prefetch_count=PREFETCH), Basic.QosOk)


@pytest.mark.parametrize("socket_ends", ["FIN", "RST", "silence"])
@pytest.mark.parametrize("over", ["close", "error"])
def test_the_end_of_an_old_connection_takes_nothing_from_the_new_one(
    gateway: Daemon, over: str, socket_ends: str
) -> None:
    with ExitStack() as stack:
        run(gateway, stack, over, socket_ends)


def run(gateway: Daemon, stack: ExitStack, over: str, socket_ends: str) -> None:
    ends = []
    pairs: list[tuple[str, Raw, list[tuple[int, bytes]]]] = []
    for queue in KINDS:
        old = consuming(gateway, stack, queue)
        publisher = connect(gateway, stack)
        source = old if queue == "exclusive" else publisher
        for body in MESSAGES[:PREFETCH]:
            source.publish(body, queue)
        assert sorted(delivered(old)[1] for _ in range(PREFETCH)) == sorted(MESSAGES[:PREFETCH])
        old.send(Connection.Close(0, "", 0, 0) if over == "close" else Channel.Open(), 0)
        old.expect(Connection.CloseOk if over == "close" else Connection.Close)
        # What it held alone is gone with it; what is there still has its messages again.
        new = consuming(gateway, stack, queue)
        source = new if queue == "exclusive" else publisher
        kept = PREFETCH if queue in CONFIG["queues"] or queue == "transient" else 0
        for body in MESSAGES[kept:]:
            source.publish(body, queue)
        held = [delivered(new) for _ in range(PREFETCH)]
        publisher.send(Connection.Close(0, "", 0, 0), 0)
        publisher.socket.close()
        pairs.append((queue, new, held))
        ends.append(old)
    for old in ends:
        if socket_ends == "RST":
            old.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if socket_ends != "silence":
            old.socket.close()
    deadline = time.monotonic() + ANY_END
    while connections(gateway) > len(pairs):
        assert time.monotonic() < deadline, f"{connections(gateway)} connections are left"
        time.sleep(0.02)
    for queue, new, held in pairs:
        nothing_comes(new)
        bodies = []
        while held:
            tag, body = held.pop(0)
            bodies.append(body)
            new.send(Basic.Ack(tag))
            if len(bodies) + len(held) < len(MESSAGES):
                held.append(delivered(new))
        assert sorted(bodies) == sorted(MESSAGES), queue
        nothing_comes(new)
        answer = new.call(Queue.Declare(queue=queue, passive=True), Queue.DeclareOk)
        assert (answer.message_count, answer.consumer_count) == (0, 1)
        new.close()
