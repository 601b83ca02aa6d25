"""What a queue here can and RabbitMQ's can't, asked for by AMQP arguments and headers: groups, dedup, delays."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from pamqp import commands

from tests.harness.daemon import Daemon
from tests.harness.process import Address
from tests.integration.amqp_calls import bodies, consume, declare, delivery, depth, get, put, refused, sync
from tests.integration.amqp_raw import Raw

Basic, Queue = commands.Basic, commands.Queue


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    """One daemon for all: each test has queues of its own."""
    daemon = Daemon(tmp_path_factory.mktemp("amqp"), {})
    try:
        yield daemon.start().address("amqp")
    finally:
        daemon.close()


@pytest.mark.parametrize("argument", [True, "{header[group]}"])
def test_a_group_has_one_message_in_flight_and_keeps_its_order(raw: Raw, argument: object) -> None:
    queue = declare(raw, {"x-group": argument})
    for group, body in ((b"a", b"a1"), (b"a", b"a2"), (b"b", b"b1"), (b"b", b"b2")):
        put(raw, queue, body, headers={"group": group.decode()})
    consume(raw, queue, prefetch=10)
    assert bodies(raw, 2) == [b"a1", b"b1"]
    sync(raw)  # no third
    raw.send(Basic.Reject(delivery_tag=1, requeue=True))
    assert bodies(raw, 1) == [b"a1"]
    raw.send(Basic.Ack(delivery_tag=0, multiple=True))
    assert sorted(bodies(raw, 2)) == [b"a2", b"b2"]


def test_a_group_may_come_from_the_routing_key(raw: Raw) -> None:
    queue = declare(raw, {"x-group": "{topic[1]}"})
    raw.call(Queue.Bind(queue=queue, exchange="amq.topic", routing_key="powers.*"), Queue.BindOk)
    for key, body in (("powers.a", b"1"), ("powers.a", b"2"), ("powers.b", b"3")):
        put(raw, key, body, exchange="amq.topic")
    consume(raw, queue)
    assert bodies(raw, 2) == [b"1", b"3"]
    sync(raw)


def test_messages_without_the_header_are_one_group(raw: Raw) -> None:
    queue = declare(raw, {"x-group": True})
    put(raw, queue, b"1", b"2")
    consume(raw, queue)
    assert bodies(raw, 1) == [b"1"]
    sync(raw)


def test_a_second_message_with_the_deduplication_header_is_confirmed_and_not_stored(raw: Raw) -> None:
    queue = declare(raw, {"x-dedup-window": 60_000})
    for body, key in ((b"1", "k"), (b"2", "k"), (b"3", "other")):
        put(raw, queue, body, headers={"x-deduplication-header": key})
    put(raw, queue, b"4", b"5")  # without the header nothing is a duplicate
    assert depth(raw, queue) == 4
    consume(raw, queue, no_ack=True)
    assert bodies(raw, 4) == [b"1", b"3", b"4", b"5"]


def test_a_deduplication_window_ends(raw: Raw) -> None:
    queue = declare(raw, {"x-dedup-window": 1})
    put(raw, queue, b"1", headers={"x-deduplication-header": "k"})
    time.sleep(0.01)  # the window itself
    put(raw, queue, b"2", headers={"x-deduplication-header": "k"})
    assert depth(raw, queue) == 2


@pytest.mark.parametrize("way", ["argument", "header"])
def test_a_delayed_message_comes_later(raw: Raw, way: str) -> None:
    queue = declare(raw, {"x-delay": 200} if way == "argument" else {})
    begin = time.monotonic()
    put(raw, queue, b"late", headers={"x-delay": 200} if way == "header" else {})
    consume(raw, queue, no_ack=True)
    assert delivery(raw)[2] == b"late"
    assert time.monotonic() - begin >= 0.2


def test_the_header_of_a_message_goes_before_the_delay_of_its_queue(raw: Raw) -> None:
    queue = declare(raw, {"x-delay": 3600_000})
    put(raw, queue, b"soon", headers={"x-delay": 1})
    consume(raw, queue, no_ack=True)
    assert delivery(raw)[2] == b"soon"


def test_a_delay_that_is_no_number_is_406(raw: Raw) -> None:
    raw.publish(b"x", "q", properties={"headers": {"x-delay": 1.5}})
    refused(raw, 406, "x-delay")


def test_a_delivery_that_failed_says_how_often(raw: Raw) -> None:
    queue = declare(raw)
    put(raw, queue, b"x")
    found = get(raw, queue, no_ack=False)
    assert found is not None and "x-delivery-count" not in found[1]
    raw.send(Basic.Reject(delivery_tag=1, requeue=True))
    found = get(raw, queue, no_ack=False)
    assert found is not None and found[1]["x-delivery-count"] == 1 and found[0].redelivered


@pytest.mark.parametrize(
    ("argument", "other"), [("x-group", "{topic[2]}"), ("x-dedup-window", 2), ("x-delay", 2), ("x-delay", None)]
)
def test_another_value_is_another_queue(raw: Raw, argument: str, other: object) -> None:
    first = {"x-group": "{topic[1]}", "x-dedup-window": 1, "x-delay": 1}[argument]
    queue = declare(raw, {argument: first})
    raw.send(Queue.Declare(queue=queue, exclusive=True, arguments={} if other is None else {argument: other}))
    refused(raw, 406, argument)
