"""AMQP in, durable queue, AMQP out.

10 publishers with up to 200 unconfirmed messages send persistent ones of 64 bytes to one durable queue by the default
exchange; one consumer with manual ack and prefetch 2000 takes them while they are sent. The gateway's queue has no
groups and no dedup, as RabbitMQ's has none; order is checked for each publisher.
"""

from __future__ import annotations

from benchmarks import brokers, transfer
from benchmarks.brokers import GATEWAY, QUORUM, RABBITMQ, SINK
from benchmarks.messages import Flow
from benchmarks.rounds import Bench, Measured, Profile, Size

PUBLISHERS = 10
WINDOW = 200
PREFETCH = 2000
LAYOUT = brokers.queue_layout()


def measure(bench: Bench, contender: str, variant: str) -> Measured:
    flow = Flow(bench.sizes["messages"], PUBLISHERS, groups=PUBLISHERS, body_size=64)
    with bench.broker(contender, LAYOUT) as broker:
        publishers = transfer.amqp_publishers(broker.amqp, flow, WINDOW)
        return transfer.whole(broker, publishers, flow, PREFETCH, bench.core)


PROFILE = Profile(
    name="amqp",
    title=f"{PUBLISHERS} AMQP publishers, persistent, {WINDOW} unconfirmed, 64 B -> durable queue -> "
    f"1 consumer, prefetch {PREFETCH}",
    contenders=(GATEWAY, RABBITMQ, QUORUM, SINK),
    variants=("AMQP to AMQP",),
    sizes={"messages": Size(300_000, 3_000, "in each round")},
    figures=(transfer.DELIVERED, transfer.ANSWERED, transfer.BUSY),
    measure=measure,
)
