"""Owns the runs that several profiles make: messages into a queue, through it, and out of it.

Its rule: what is returned was checked: every message answered once, stored, delivered once and in order.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks import amqp, load, mqtt
from benchmarks.brokers import QUEUE, Broker
from benchmarks.consumer import Consumer
from benchmarks.messages import Flow, LoadError
from benchmarks.publisher import Publisher, check_answers
from benchmarks.rounds import Figure
from tests.harness.process import Address

ANSWERED = Figure("answered", "answered, msg/s", compared=True, ceiling=True)
DELIVERED = Figure("delivered", "end to end, msg/s", compared=True, ceiling=True)
BUSY = Figure("busy", "generator busy, %")


def mqtt_publishers(address: Address, flow: Flow, window: int) -> list[Publisher]:
    packets = [mqtt.publishes(flow, number) for number in range(flow.publishers)]
    return [Publisher.mqtt(address, each, window, f"bench{number}") for number, each in enumerate(packets)]


def amqp_publishers(address: Address, flow: Flow, window: int) -> list[Publisher]:
    packets = [amqp.publishes(flow, number, QUEUE) for number in range(flow.publishers)]
    return [Publisher.amqp(address, each, window) for each in packets]


def ingest(broker: Broker, flow: Flow, window: int, core: int | None, stored: bool) -> dict[str, float]:
    """MQTT messages that nobody consumes. stored: the broker's queue must hold exactly these afterwards."""
    publishers = mqtt_publishers(broker.mqtt, flow, window)
    with load.closing(publishers):
        timing = load.run(publishers, core)
        if broker.honest:
            check_answers(publishers)
    if stored and broker.honest and (depth := broker.depth()) != flow.total:
        raise LoadError(f"{flow.total} messages were answered, {depth} are in the queue")
    return {ANSWERED.key: flow.total / timing.until(publishers), BUSY.key: 100 * timing.busy}


def through(
    broker: Broker, publishers: Sequence[Publisher], consumer: Consumer, flow: Flow, core: int | None
) -> dict[str, float]:
    """Messages that the consumer gets while they are published."""
    timing = load.run([consumer, *publishers], core)
    if broker.honest:
        check_answers(publishers)
    return {
        DELIVERED.key: flow.total / timing.until([consumer]),
        ANSWERED.key: flow.total / timing.until(publishers),
        BUSY.key: 100 * timing.busy,
    }


def whole(
    broker: Broker, publishers: Sequence[Publisher], flow: Flow, prefetch: int, core: int | None
) -> dict[str, float]:
    """All messages of a new queue, through it to one consumer."""
    consumer = Consumer.of(broker.amqp, QUEUE, prefetch)
    with load.closing([consumer, *publishers]):
        consumer.expect(flow.total)
        measured = through(broker, publishers, consumer, flow, core)
        if broker.honest:
            consumer.check(flow.first, flow.total, flow.groups)
    return measured


def drain(broker: Broker, flow: Flow, prefetch: int, core: int | None) -> float:
    """Messages a second that one consumer gets of what was stored before."""
    consumer = Consumer.of(broker.amqp, QUEUE, prefetch)
    with load.closing([consumer]):
        consumer.expect(flow.total)
        timing = load.run([consumer], core)
        if broker.honest:
            consumer.check(flow.first, flow.total, flow.groups)
    return flow.total / timing.until([consumer])
