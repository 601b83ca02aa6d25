"""MQTT in, durable queue, AMQP out.

10 publishers with a window of 200 send QoS 1 messages of 64 bytes with a JSON field over MQTT; one AMQP consumer with
manual ack and prefetch 2000 takes them while they are sent. The gateway has a route, 1,000 groups and dedup by that
field, and answers each message after an fsync; RabbitMQ has a durable classic or quorum queue bound to amq.topic, and
no such features. `end to end` is from the first octet sent until the last delivery.
"""

from __future__ import annotations

from benchmarks import transfer
from benchmarks.brokers import GATEWAY, QUORUM, RABBITMQ, SINK
from benchmarks.messages import Flow
from benchmarks.rounds import Bench, Measured, Profile, Size

WINDOW = 200
PREFETCH = 2000


def measure(bench: Bench, contender: str, variant: str) -> Measured:
    flow = Flow(bench.sizes["messages"], publishers=10, groups=1000, body_size=64)
    with bench.broker(contender) as broker:
        publishers = transfer.mqtt_publishers(broker.mqtt, flow, WINDOW)
        return transfer.whole(broker, publishers, flow, PREFETCH, bench.core)


PROFILE = Profile(
    name="pipeline",
    title=f"10 MQTT publishers, QoS 1, window {WINDOW}, 64 B, 1,000 groups -> durable queue -> "
    f"1 AMQP consumer, prefetch {PREFETCH}",
    contenders=(GATEWAY, RABBITMQ, QUORUM, SINK),
    variants=("MQTT to AMQP",),
    sizes={"messages": Size(300_000, 3_000, "in each round")},
    figures=(transfer.DELIVERED, transfer.ANSWERED, transfer.BUSY),
    measure=measure,
)
