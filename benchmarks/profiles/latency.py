"""Latency from publish to receive at a fixed rate.

10 pairs of a publisher and a subscriber, QoS 1, 64 bytes, 2,000 and 10,000 messages a second in all. Each message is
due at its time whatever became of those before, and its latency counts from then (open loop, no coordinated omission);
the first tenth is left out. The subscribers' sessions are lasting ones: the gateway has each message on disk before it
delivers it, RabbitMQ has durable queues, Mosquitto keeps them in memory.
"""

from __future__ import annotations

import contextlib

from benchmarks.brokers import GATEWAY, MOSQUITTO, RABBITMQ, SINK, Layout
from benchmarks.messages import Flow
from benchmarks.rounds import Bench, Figure, Measured, Profile, Size
from benchmarks.schedule import Schedule, percentile

RATES = {"2,000 msg/s": 2_000, "10,000 msg/s": 10_000}
PAIRS = 10
TOPIC = b"latency/%04d/pair"
LAYOUT = Layout({}, queue=False, about="no queue but those of the lasting sessions")
FIGURES = (
    Figure("p50", "p50, ms", 2),
    Figure("p99", "p99, ms", 2, compared=True),
    Figure("p99.9", "p99.9, ms", 2),
    Figure("highest", "highest, ms", 2),
)
SHARES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999, "highest": 1.0}


def measure(bench: Bench, contender: str, variant: str) -> Measured:
    rate = RATES[variant]
    total = rate * bench.sizes["seconds"]
    flow = Flow(total, PAIRS, groups=PAIRS, body_size=64, topic=TOPIC)
    with bench.broker(contender, LAYOUT) as broker:
        schedule = Schedule(broker.mqtt, flow, rate, lasting=True)
        with contextlib.closing(schedule):
            schedule.run(bench.core)
            if broker.honest:
                schedule.check()
    found = schedule.latencies(warm_up=total // 10)
    return {key: 1000 * percentile(found, share) for key, share in SHARES.items()}


PROFILE = Profile(
    name="latency",
    title=f"{PAIRS} pairs of an MQTT publisher and a subscriber with a lasting session, QoS 1, 64 B",
    contenders=(GATEWAY, MOSQUITTO, RABBITMQ, SINK),
    variants=tuple(RATES),
    smoke=("2,000 msg/s",),
    sizes={"seconds": Size(10, 1, "of each rate")},
    figures=FIGURES,
    measure=measure,
)
