"""MQTT QoS 1 in from many devices with one message in flight each.

500 publishers each wait for the answer before they send the next message, 64 bytes, to a queue that nobody consumes.
The brokers have a plain durable queue, as in `ingest`. Each message is a read and a write of its own on both sides, so
the generator's ceiling is near; look at it.
"""

from __future__ import annotations

from benchmarks import brokers, transfer
from benchmarks.brokers import GATEWAY, MOSQUITTO, RABBITMQ, SINK
from benchmarks.messages import Flow
from benchmarks.rounds import Bench, Measured, Profile, Size


def measure(bench: Bench, contender: str, variant: str) -> Measured:
    devices = bench.sizes["devices"]
    flow = Flow(bench.sizes["messages"], publishers=devices, groups=devices, body_size=64)
    with bench.broker(contender, brokers.queue_layout()) as broker:
        return transfer.ingest(broker, flow, 1, bench.core, stored=contender != MOSQUITTO)


PROFILE = Profile(
    name="devices",
    title="MQTT devices, QoS 1, one message of 64 B in flight each",
    contenders=(GATEWAY, MOSQUITTO, RABBITMQ, SINK),
    variants=("one in flight",),
    sizes={"devices": Size(500, 50, "connections"), "messages": Size(200_000, 2_000, "in each round")},
    figures=(transfer.ANSWERED, transfer.BUSY),
    measure=measure,
)
