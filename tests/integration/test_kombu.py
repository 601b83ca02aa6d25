"""kombu over py-amqp as they come, against the daemon: what Celery and its kin are made of."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import amqp
import kombu
import kombu.pidbox
import pytest
from amqp.exceptions import MessageNacked

from tests.harness.daemon import Daemon

SECONDS = 20
CONFIG: dict[str, Any] = {
    "max_backlog": "64KB",
    "queues": {"jobs": {"max_deliveries": 2, "dead_letter": "jobs.dead"}, "jobs.dead": {}},
}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One daemon for all: each test has queues of its own."""
    daemon = Daemon(tmp_path_factory.mktemp("kombu"), CONFIG)
    try:
        address = daemon.start().address("amqp")
        yield f"amqp://guest:guest@{address.host}:{address.port}//"
    finally:
        daemon.close()


@pytest.fixture
def connection(url: str) -> Iterator[kombu.Connection]:
    with kombu.Connection(url, transport_options={"confirm_publish": True}) as connection:
        yield connection


def deliveries(connection: kombu.Connection, queue: kombu.Queue, count: int) -> Iterator[kombu.Message]:
    """So many, one at a time, from one consumer."""
    got: list[kombu.Message] = []
    with connection.Consumer([queue], on_message=got.append, prefetch_count=1):
        for _ in range(count):
            while not got:
                connection.drain_events(timeout=SECONDS)
            yield got.pop()


def test_confirms(connection: kombu.Connection) -> None:
    queue = kombu.Queue("kombu.full", max_length=1, queue_arguments={"x-overflow": "reject-publish"}, auto_delete=True)
    producer = connection.Producer()
    producer.publish({"n": 1}, routing_key=queue.name, declare=[queue])
    # The confirm has come: another connection sees it.
    with connection.clone() as other:
        assert queue(other.channel()).queue_declare(passive=True).message_count == 1
    with pytest.raises(MessageNacked):
        producer.publish({"n": 2}, routing_key=queue.name)
    queue(connection.default_channel).delete()


def test_ack_requeue_and_reject(connection: kombu.Connection) -> None:
    jobs, dead = kombu.Queue("jobs", no_declare=True), kombu.Queue("jobs.dead", no_declare=True)
    producer = connection.Producer()
    for name in ("done", "again", "rejected"):
        producer.publish({"name": name}, routing_key="jobs", serializer="json", headers={"kept": name})
    seen: list[tuple[str, bool]] = []
    for message in deliveries(connection, jobs, 4):
        name = message.decode()["name"]
        redelivered = bool(message.delivery_info["redelivered"])
        seen.append((name, redelivered))
        if name == "rejected":
            message.reject()
        elif name == "again" and not redelivered:
            message.requeue()
        else:
            message.ack()
    assert seen == [("done", False), ("again", False), ("again", True), ("rejected", False)]
    (died,) = deliveries(connection, dead, 1)
    assert died.headers["kept"] == "rejected" and died.headers["x-death"][0]["reason"] == "rejected"
    died.ack()


def test_a_message_that_fails_too_often_is_dead(connection: kombu.Connection) -> None:
    connection.Producer().publish("poison", routing_key="jobs")
    for message in deliveries(connection, kombu.Queue("jobs", no_declare=True), 2):
        message.requeue()
    (died,) = deliveries(connection, kombu.Queue("jobs.dead", no_declare=True), 1)
    assert (died.decode(), died.headers["x-death"][0]["reason"]) == ("poison", "delivery_limit")
    died.ack()


def test_heartbeats(url: str) -> None:
    """Who sends them stays; who is silent is disconnected."""
    with kombu.Connection(url, heartbeat=1) as alive, kombu.Connection(url, heartbeat=1) as silent:
        alive.connect()
        silent.connect()
        assert alive.get_heartbeat_interval() == 1
        wire = silent.connection.transport.sock
        wire.settimeout(SECONDS)
        over = threading.Event()

        def read() -> None:
            # Reads and never writes: what comes is heartbeats, and then the end.
            with contextlib.suppress(ConnectionResetError):
                while wire.recv(4096):
                    pass
            over.set()

        reader = threading.Thread(target=read)
        reader.start()
        started = time.monotonic()
        while not over.is_set():
            assert time.monotonic() - started < SECONDS
            with contextlib.suppress(socket.timeout):
                alive.drain_events(timeout=0.2)
            alive.heartbeat_check(rate=4)
        reader.join()
        assert alive.default_channel.queue_declare("kombu.alive", auto_delete=True).queue == "kombu.alive"
        silent.collect()


def test_simple_queues(connection: kombu.Connection) -> None:
    with contextlib.closing(connection.SimpleQueue("kombu.simple")) as queue:
        for n in range(5):
            queue.put({"n": n}, serializer="json", compression="zlib")
        assert queue.qsize() == 5
        for n in range(5):
            message = queue.get(block=True, timeout=SECONDS)
            assert message.payload == {"n": n}
            message.ack()
        assert queue.qsize() == 0
        with pytest.raises(queue.Empty):
            queue.get_nowait()
    buffer = connection.SimpleBuffer("kombu.buffer")
    with contextlib.closing(buffer):
        buffer.put("transient")
        assert buffer.get(timeout=SECONDS).payload == "transient"


def test_a_mailbox(connection: kombu.Connection, url: str) -> None:
    """The remote control of Celery: a fanout exchange, exclusive queues that expire, and answers."""
    mailbox = kombu.pidbox.Mailbox("kombu.mailbox", type="fanout", accept=["json"])
    stop, ready = threading.Event(), threading.Barrier(3)

    def serve(name: str) -> None:
        with kombu.Connection(url) as own:
            node = mailbox(own).Node(name, state={"name": name})
            node.handlers["who"] = lambda state, **arguments: {"me": state["name"], **arguments}
            with own.channel() as channel:
                node.channel = channel
                consumer = node.listen(callback=node.handle_message)
                ready.wait(SECONDS)
                while not stop.is_set():
                    with contextlib.suppress(socket.timeout):
                        own.drain_events(timeout=0.1)
                consumer.cancel()

    nodes = [threading.Thread(target=serve, args=(name,)) for name in ("one", "two")]
    for node in nodes:
        node.start()
    try:
        ready.wait(SECONDS)
        box = mailbox(connection)
        answers = box.multi_call("who", {"n": 7}, timeout=SECONDS, limit=2)
        assert sorted(answers, key=str) == [{"one": {"me": "one", "n": 7}}, {"two": {"me": "two", "n": 7}}]
        assert box.call(["two"], "who", timeout=SECONDS) == [{"two": {"me": "two"}}]
    finally:
        stop.set()
        for node in nodes:
            node.join()


def test_py_amqp_is_told_that_it_is_blocked(url: str) -> None:
    told: list[str] = []
    address = kombu.Connection(url)
    with amqp.Connection(
        f"{address.hostname}:{address.port}",
        on_blocked=lambda reason: told.append("blocked"),
        on_unblocked=lambda: told.append("unblocked"),
    ) as connection:
        channel = connection.channel()
        channel.confirm_select()
        queue = channel.queue_declare("kombu.blocked", exclusive=True).queue
        # More at once than may wait for the disk.
        for _ in range(20):
            channel.basic_publish(amqp.Message(bytes(60_000)), routing_key=queue)
        while told.count("unblocked") == 0 or told.count("unblocked") < told.count("blocked"):
            connection.drain_events(timeout=SECONDS)
        assert told[:2] == ["blocked", "unblocked"]
        # What was published meanwhile is there.
        found = 0
        while channel.basic_get(queue, no_ack=True) is not None:
            found += 1
        assert found == 20
