"""Circles of dead letters, the same ones here and at a RabbitMQ: what comes back, what is dropped, what x-death says.

A way to try again later: `m` dead-letters to `w`, where nobody consumes, and what expires there goes back to `m`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel

from tests.harness.daemon import Daemon
from tests.harness.process import Address
from tests.harness.rabbitmq import RabbitMq

WAITS = 30
"""Milliseconds that a message waits in a queue that nobody consumes."""
LONG = 20.0
SWEEPS = 12
"""So often nothing is found before it is gone."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    daemon = Daemon(tmp_path_factory.mktemp("circles"), {})
    try:
        yield daemon.start().address("amqp")
    finally:
        daemon.close()


class Circle:
    """Some queues, each of which sends its dead letters to the next, and the last to the first."""

    def __init__(self, channel: BlockingChannel, prefix: str, kind: str, by: str, *queues: dict[str, Any]) -> None:
        """kind: by which exchange they go on, `default`, `named`, or `two`: a named one that leads to a queue `log`
        besides. by: how messages are taken, `get` or `consume`."""
        self.channel = channel
        self.by = by
        self.prefix = prefix
        self.names = [f"{prefix}.{number}" for number in range(len(queues))]
        self.log = f"{prefix}.log"
        for name, following, arguments in zip(self.names, [*self.names[1:], self.names[0]], queues, strict=True):
            exchange = "" if kind == "default" else f"{name}.dead"
            if exchange:
                channel.exchange_declare(exchange, "direct")
            wanted = {"x-dead-letter-exchange": exchange, "x-dead-letter-routing-key": following}
            channel.queue_declare(name, durable=True, arguments=wanted | arguments)
        if kind == "two":
            channel.queue_declare(self.log, durable=True)
        for name, following in zip(self.names, [*self.names[1:], self.names[0]], strict=True):
            if kind != "default":
                channel.queue_bind(following, f"{name}.dead", following)
            if kind == "two":
                channel.queue_bind(self.log, f"{name}.dead", following)

    def publish(self, **properties: Any) -> None:
        self.channel.basic_publish("", self.names[0], b"x", pika.BasicProperties(delivery_mode=2, **properties))

    def take(self, requeue: bool | None = None, place: int = 0) -> list[tuple[str, str, int]]:
        """The next message of that queue, whose history it returns; then it is rejected, or acknowledged."""
        name = self.names[place]
        method, properties = self._get(name) if self.by == "get" else self._consume(name)
        if requeue is None:
            self.channel.basic_ack(method.delivery_tag)
        else:
            self.channel.basic_reject(method.delivery_tag, requeue)
        return self.history(properties)

    def _get(self, name: str) -> tuple[Any, Any]:
        until = time.monotonic() + LONG
        while time.monotonic() < until:
            method, properties, _ = self.channel.basic_get(name)
            if method is not None:
                return method, properties
            self.channel.connection.sleep(0.01)
        raise TimeoutError(f"nothing comes back to {name}")

    def _consume(self, name: str) -> tuple[Any, Any]:
        found: list[tuple[Any, Any]] = []
        self.channel.basic_qos(prefetch_count=1)
        tag = self.channel.basic_consume(name, lambda _, method, properties, __: found.append((method, properties)))
        until = time.monotonic() + LONG
        while not found and time.monotonic() < until:
            self.channel.connection.process_data_events(0.1)
        self.channel.basic_cancel(tag)
        assert found, f"nothing comes back to {name}"
        return found[0]

    def history(self, properties: Any) -> list[tuple[str, str, int]]:
        """In the order of the names: RabbitMQ 3.10 mixes up its own from the third entry on."""
        deaths = (properties.headers or {}).get("x-death", [])
        names = [(death["queue"].removeprefix(self.prefix + "."), death["reason"], death["count"]) for death in deaths]
        return sorted(names)

    def logged(self) -> list[list[tuple[str, str, int]]]:
        """What the queue `log` got, by history."""
        found = []
        while True:
            method, properties, _ = self.channel.basic_get(self.log, auto_ack=True)
            if method is None:
                return found
            found.append(self.history(properties))

    def is_gone(self) -> bool:
        """Whether no message goes round any more; False when one stays in the first queue."""
        empty = 0
        until = time.monotonic() + LONG
        while empty < SWEEPS and time.monotonic() < until:
            depths = [self.channel.queue_declare(name, passive=True).method.message_count for name in self.names]
            empty = 0 if any(depths) else empty + 1
            self.channel.connection.sleep(WAITS / 1000)
        return empty >= SWEEPS


WAIT = {"x-message-ttl": WAITS}


def lives(channel: BlockingChannel, prefix: str, kind: str, by: str) -> dict[str, Any]:
    """What becomes of messages in several circles."""
    seen: dict[str, Any] = {}
    found: list[Any]
    circles: list[Circle] = []

    def circle(name: str, *queues: dict[str, Any]) -> Circle:
        made = Circle(channel, f"{prefix}.{name}", kind, by, *queues)
        circles.append(made)
        return made

    for name, queues in (("two", [{}, WAIT]), ("alone", [{}])):
        again = circle(f"rejected in {name}", *queues)
        again.publish()
        found = [again.take(False) for _ in range(4)]
        found.append(again.take())
        seen[again.prefix] = found
    for name, queues in (("three", [{}, WAIT, WAIT]), ("two in three", [{}, {}, WAIT])):
        once = circle(f"rejected once in {name}", *queues)
        once.publish()
        found = [once.take(False)]
        if name != "three":
            found.append(once.take(False, place=1))
        found.append(once.take())
        seen[once.prefix] = found
    for name, queues in (("two", [WAIT, WAIT]), ("three", [WAIT, WAIT, WAIT]), ("alone", [WAIT])):
        expired = circle(f"expired in {name}", *queues)
        expired.publish()
        seen[expired.prefix] = expired.is_gone()
    for name, queues in (("two", [{}, WAIT]), ("three", [{}, WAIT, WAIT])):
        mixed = circle(f"expired and then rejected in {name}", {}, *[WAIT] * (len(queues) - 1))
        mixed.publish(expiration="1")
        found = [mixed.is_gone()]  # it never comes to anybody
        mixed.publish()
        found.append(mixed.take(False))
        found.append(mixed.take())
        seen[mixed.prefix] = found
    limit = circle("limit", {"x-queue-type": "quorum", "x-delivery-limit": 1}, WAIT)
    limit.publish()
    limit.take(True)
    limit.take(True)
    seen[limit.prefix] = limit.is_gone()
    full = circle("full", {"x-max-length": 1}, WAIT)
    full.publish()
    full.publish()
    full.publish()
    seen[full.prefix] = (full.take(), full.is_gone())
    if kind == "two":
        for one in circles:
            seen[one.log] = one.logged()
    return {name.removeprefix(prefix): what for name, what in seen.items()}


def looked_at(address: Address, prefix: str, kind: str, by: str) -> dict[str, Any]:
    connection = pika.BlockingConnection(pika.ConnectionParameters(address.host, address.port))
    try:
        channel = connection.channel()
        channel.confirm_delivery()
        return lives(channel, prefix, kind, by)
    finally:
        connection.close()


@pytest.mark.timeout(180)
@pytest.mark.parametrize("by", ["get", "consume"])
@pytest.mark.parametrize("kind", ["default", "named", "two"])
def test_circles_end_or_go_on_as_in_rabbitmq(server: Address, rabbitmq: RabbitMq, kind: str, by: str) -> None:
    prefix = f"{kind}-{by}"
    ours, theirs = looked_at(server, prefix, kind, by), looked_at(rabbitmq.amqp, prefix, kind, by)
    assert ours == theirs
    assert ours[".rejected in two"][-1] == [("0", "rejected", 4), ("1", "expired", 4)]
    assert ours[".expired in two"] is True


def given_up(address: Address) -> dict[str, Any]:
    """What becomes of messages that no consumer rejects for good: each gives them back until their attempts are used
    up (`delivery_limit`), and that alone sends them on."""
    limit = {"x-queue-type": "quorum", "x-delivery-limit": 1}
    shapes = {"alone": [limit], "waits": [limit, WAIT], "both": [limit, limit]}
    seen: dict[str, Any] = {}
    connection = pika.BlockingConnection(pika.ConnectionParameters(address.host, address.port))
    try:
        channel = connection.channel()
        channel.confirm_delivery()
        for name, queues in shapes.items():
            circle = Circle(channel, f"limit.{name}", "default", "consume", *queues)
            circle.publish()
            rounds = [circle.take(True, 0), circle.take(True, 0)]
            if name == "both":
                rounds += [circle.take(True, 1), circle.take(True, 1)]
            seen[name] = rounds, circle.is_gone()
    finally:
        connection.close()
    return seen


@pytest.mark.timeout(180)
def test_attempts_that_are_used_up_drive_no_circle_as_in_rabbitmq(server: Address, rabbitmq: RabbitMq) -> None:
    ours = given_up(server)
    assert ours == given_up(rabbitmq.amqp)
    assert ours["both"] == ([[], [], [("0", "delivery_limit", 1)], [("0", "delivery_limit", 1)]], True)


@pytest.mark.parametrize("length", [3, 4, 40])
@pytest.mark.parametrize("kind", ["default", "named", "two"])
def test_a_longer_circle_goes_on_for_as_long_as_a_consumer_rejects(server: Address, kind: str, length: int) -> None:
    """RabbitMQ 3.10 goes by the order of x-death, which it mixes up from the third entry on, and drops the message when
    it has been round once: it is not asked here."""
    connection = pika.BlockingConnection(pika.ConnectionParameters(server.host, server.port))
    try:
        channel = connection.channel()
        channel.confirm_delivery()
        long = Circle(channel, f"long-{kind}-{length}", kind, "get", {}, *[{"x-message-ttl": 1}] * (length - 1))
        long.publish()
        for _ in range(4):
            long.take(False)
        assert ("0", "rejected", 4) in long.take()
        alone = Circle(channel, f"alone-{kind}-{length}", kind, "get", *[{"x-message-ttl": 1}] * length)
        alone.publish()
        assert alone.is_gone()
    finally:
        connection.close()


def who_waits(address: Address, name: str, arguments: dict[str, Any], **properties: Any) -> list[Any]:
    """What consumers and the dead letters get of a queue that keeps nothing."""
    connection = pika.BlockingConnection(pika.ConnectionParameters(address.host, address.port))
    try:
        channel = connection.channel()
        channel.confirm_delivery()
        dead, taken = f"{name}.dead", list[tuple[int, bytes]]()
        channel.queue_declare(dead)
        arguments = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": dead, **arguments}
        channel.queue_declare(name, durable=True, arguments=arguments)

        def next_dead() -> tuple[bytes, str]:
            until = time.monotonic() + LONG
            while time.monotonic() < until:
                method, found, body = channel.basic_get(dead, auto_ack=True)
                if method is not None:
                    return body, found.headers["x-death"][0]["reason"]
                connection.sleep(0.01)
            raise TimeoutError(f"nothing comes to {dead}")

        def publish(body: bytes) -> None:
            channel.basic_publish("", name, body, pika.BasicProperties(**properties))

        publish(b"nobody waits")
        found: list[Any] = [next_dead()]
        channel.basic_qos(prefetch_count=1)
        tag = channel.basic_consume(name, lambda _, method, __, body: taken.append((method.delivery_tag, body)))
        publish(b"now")
        publish(b"too late")
        found.append(next_dead())
        while not taken:
            connection.process_data_events(0.1)
        channel.basic_cancel(tag)
        channel.basic_reject(taken[0][0], requeue="x-max-length" in arguments)
        found.append([body for _, body in taken])
        if "x-max-length" not in arguments:
            found.append(next_dead())
        return found
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("kind", "arguments", "properties"),
    [
        ("queue", {"x-message-ttl": 0}, {}),
        ("message", {}, {"expiration": "0"}),
        ("both", {"x-message-ttl": 60_000}, {"expiration": "0"}),
        ("length", {"x-max-length": 0}, {}),
        ("bytes", {"x-max-length": 5, "x-max-length-bytes": 0}, {}),
        ("priority", {"x-message-ttl": 0, "x-max-priority": 5}, {"priority": 3}),
        ("single", {"x-message-ttl": 0, "x-single-active-consumer": True}, {}),
    ],
)
def test_ttl_0_and_a_limit_of_0_are_for_who_waits_as_in_rabbitmq(
    server: Address, rabbitmq: RabbitMq, kind: str, arguments: dict[str, Any], properties: dict[str, Any]
) -> None:
    ours, theirs = (who_waits(one, f"zero-{kind}", arguments, **properties) for one in (server, rabbitmq.amqp))
    assert ours == theirs
    assert ours[1][0] == b"too late" and ours[2] == [b"now"]
