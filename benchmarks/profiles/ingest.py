"""MQTT QoS 1 in, as fast as it is answered.

10 publishers with a window of 200 send messages of 64 and of 256 bytes to a queue that nobody consumes: the gateway has
a durable one and answers after an fsync; RabbitMQ has a durable classic queue bound to amq.topic; Mosquitto has nobody
to deliver to and stores nothing, which is the least that it can do. Once more the gateway's queue has 1,000 groups and
dedup by a JSON field, which the others lack.
"""

from __future__ import annotations

from benchmarks import brokers, transfer
from benchmarks.brokers import GATEWAY, MOSQUITTO, RABBITMQ, SINK
from benchmarks.messages import Flow
from benchmarks.rounds import Bench, Measured, Profile, Size

PLAIN = brokers.queue_layout()
VARIANTS = {"64 B": (64, PLAIN), "256 B": (256, PLAIN), "64 B, groups and dedup": (64, brokers.FULL)}
WINDOW = 200


def measure(bench: Bench, contender: str, variant: str) -> Measured:
    body_size, layout = VARIANTS[variant]
    flow = Flow(bench.sizes["messages"], publishers=10, groups=1000, body_size=body_size)
    with bench.broker(contender, layout) as broker:
        return transfer.ingest(broker, flow, WINDOW, bench.core, stored=contender != MOSQUITTO)


PROFILE = Profile(
    name="ingest",
    title=f"10 MQTT publishers, QoS 1, window {WINDOW}",
    contenders=(GATEWAY, MOSQUITTO, RABBITMQ, SINK),
    variants=tuple(VARIANTS),
    smoke=("64 B",),
    sizes={"messages": Size(500_000, 3_000, "in each round")},
    figures=(transfer.ANSWERED, transfer.BUSY),
    measure=measure,
)
