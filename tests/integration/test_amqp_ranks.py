"""Consumers that are not equal: priorities and x-single-active-consumer, as RabbitMQ has them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pamqp import commands

from tests.harness.daemon import Daemon
from tests.harness.process import Address
from tests.integration.amqp_calls import bodies, consume, declare, put, refused, sync
from tests.integration.amqp_raw import Raw

Basic, Queue = commands.Basic, commands.Queue


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    """One daemon for all: each test has queues of its own."""
    daemon = Daemon(tmp_path_factory.mktemp("amqp"), {"queues": {"only": {"single_active": True}}})
    try:
        yield daemon.start().address("amqp")
    finally:
        daemon.close()


def shared(raw: Raw, name: str, **arguments: object) -> str:
    raw.call(Queue.Declare(queue=name, arguments=arguments), Queue.DeclareOk)
    return name


def test_the_higher_priority_is_served_first(raw: Raw, other: Raw) -> None:
    queue = shared(raw, "prioritized")
    consume(other, queue)
    consume(raw, queue, prefetch=1, arguments={"x-priority": 10})
    raw.publish(b"1", queue)
    found = {type(raw.read()) for _ in range(4)}
    assert {Basic.Deliver, Basic.Ack} <= found
    raw.publish(b"2", queue)
    assert bodies(other, 1) == [b"2"]


def test_one_consumer_is_active_and_the_next_takes_over(raw: Raw, other: Raw) -> None:
    queue = shared(raw, "single", **{"x-single-active-consumer": True})
    tag = consume(other, queue)
    consume(raw, queue, prefetch=10)
    for body in (b"1", b"2"):
        raw.publish(body, queue)
    assert bodies(other, 2) == [b"1", b"2"]
    other.call(Basic.Cancel(consumer_tag=tag), Basic.CancelOk)
    other.send(Basic.Ack(delivery_tag=1))
    sync(other)
    other.send(Basic.Reject(delivery_tag=2, requeue=True))
    found = raw.read()
    while not isinstance(found, Basic.Deliver):
        assert isinstance(found, Basic.Ack)
        found = raw.read()
    assert found.redelivered


@pytest.mark.parametrize("queue", ["only", "single.too"])
def test_basic_get_is_no_active_consumer(raw: Raw, queue: str) -> None:
    if queue != "only":
        shared(raw, queue, **{"x-single-active-consumer": True})
    raw.send(Basic.Get(queue=queue))
    refused(raw, 405, "single active consumer")


def test_an_exclusive_consumer_of_a_single_active_queue_is_403(raw: Raw) -> None:
    raw.send(Basic.Consume(queue="only", exclusive=True))
    refused(raw, 403, "in exclusive use")


def test_single_active_is_part_of_a_queue(raw: Raw) -> None:
    queue = declare(raw, {"x-single-active-consumer": True})
    declare(raw, {"x-single-active-consumer": True}, queue=queue)
    raw.send(Queue.Declare(queue=queue, exclusive=True))
    refused(raw, 406, "x-single-active-consumer")
    raw.call(Queue.Declare(queue="only", durable=True, arguments={"x-single-active-consumer": True}), Queue.DeclareOk)


def test_a_higher_priority_of_a_message_is_delivered_first(raw: Raw) -> None:
    queue = declare(raw, {"x-max-priority": 10})
    for body, priority in ((b"low", 1), (b"none", None), (b"high", 9), (b"above", 200), (b"most", 10)):
        put(raw, queue, body, **({} if priority is None else {"priority": priority}))
    consume(raw, queue)
    assert bodies(raw, 5) == [b"above", b"most", b"high", b"low", b"none"]


def test_the_prefetch_of_a_channel_and_of_its_consumers_hold_both(raw: Raw) -> None:
    first, second = declare(raw), declare(raw)
    for queue in (first, second):
        put(raw, queue, *(b"%d" % number for number in range(5)))
    raw.call(Basic.Qos(prefetch_count=3, global_=True), Basic.QosOk)
    raw.call(Basic.Qos(prefetch_count=2), Basic.QosOk)
    raw.prefetch = 2
    for queue in (first, second):
        raw.send(Basic.Consume(queue=queue, nowait=True))
    assert bodies(raw, 3) == [b"0", b"1", b"0"]
    sync(raw)  # no fourth
    raw.send(Basic.Ack(delivery_tag=1))
    assert len(bodies(raw, 1)) == 1
    sync(raw)
