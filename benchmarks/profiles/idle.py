"""Very many connected devices that do nothing.

15,000 MQTT devices connect, at most 64 at a time, and stay; then one pair of a publisher and a subscriber exchanges 100
messages a second, QoS 1, open loop as in `latency`. Memory for each device is the difference of the broker's resident
memory before and after they connected, divided by their number.
"""

from __future__ import annotations

import contextlib

from benchmarks import load
from benchmarks.brokers import GATEWAY, MOSQUITTO, RABBITMQ, SINK, Layout
from benchmarks.crowd import Crowd
from benchmarks.messages import Flow
from benchmarks.rounds import Bench, Figure, Measured, Profile, Size
from benchmarks.schedule import Schedule, percentile

RATE = 100
TOPIC = b"idle/%04d/pair"


def measure(bench: Bench, contender: str, variant: str) -> Measured:
    devices = bench.sizes["devices"]
    load.need_descriptors(devices)
    flow = Flow(RATE * bench.sizes["seconds"], publishers=1, groups=1, body_size=64, topic=TOPIC)
    with bench.broker(contender, layout(devices)) as broker:
        schedule = Schedule(broker.mqtt, flow, RATE, lasting=True)
        crowd = Crowd(broker.mqtt, devices)
        with contextlib.closing(schedule), contextlib.closing(crowd):
            before = broker.rss()
            seconds = crowd.connect()
            grown = broker.rss() - before
            schedule.run(bench.core)
            crowd.check()
            if broker.honest:
                schedule.check()
    found = schedule.latencies(warm_up=flow.total // 10)
    return {
        "connected": devices / seconds,
        "octets": grown / devices,
        "p50": 1000 * percentile(found, 0.5),
        "p99": 1000 * percentile(found, 0.99),
    }


def layout(devices: int) -> Layout:
    """The gateway's listener takes 10,000 connections unless it is told otherwise; so it is."""
    listener = {"type": "mqtt", "listen": "127.0.0.1:0", "max_connections": devices + 100}
    about = f"no queue; max_connections {devices + 100:,}"
    return Layout({"transports": {"mqtt": listener, "amqp": {"type": "amqp", "listen": "127.0.0.1:0"}}}, False, about)


PROFILE = Profile(
    name="idle",
    title=f"Idle MQTT devices, and one pair at {RATE} msg/s",
    contenders=(GATEWAY, MOSQUITTO, RABBITMQ, SINK),
    variants=("connected",),
    sizes={"devices": Size(15_000, 100, "connections"), "seconds": Size(10, 1, "for the active pair")},
    figures=(
        Figure("connected", "connections/s", compared=True, ceiling=True),
        Figure("octets", "memory for each, B", compared=True),
        Figure("p50", "pair p50, ms", 2),
        Figure("p99", "pair p99, ms", 2, compared=True),
    ),
    measure=measure,
)
