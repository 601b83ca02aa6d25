"""A deep queue: how fast it fills, what it costs in memory, how soon it is back after a kill, how fast it drains.

5,000,000 messages of 200 bytes are published over MQTT (10 publishers, window 200, QoS 1) to a queue that nobody
consumes; the gateway's has 1,000 groups (`keys` shows what dedup keys cost besides). Then the broker is killed by
SIGKILL and started on the same store, and one AMQP consumer with prefetch 2000 takes everything: once, and in order
within groups. This takes RabbitMQ many minutes; `--messages` makes it shorter.
"""

from __future__ import annotations

from benchmarks import brokers, transfer
from benchmarks.brokers import GATEWAY, RABBITMQ, SINK
from benchmarks.messages import Flow
from benchmarks.rounds import Bench, Figure, Measured, Profile, Size

WINDOW = 200
PREFETCH = 2000
MB = 1 << 20


def measure(bench: Bench, contender: str, variant: str) -> Measured:
    flow = Flow(bench.sizes["messages"], publishers=10, groups=1000, body_size=200)
    measured: dict[str, float] = {}
    with bench.broker(contender, brokers.queue_layout("{topic[1]}")) as broker:
        if broker.honest:
            measured["empty"] = broker.rss() / MB
        measured["filled"] = transfer.ingest(broker, flow, WINDOW, bench.core, stored=True)["answered"]
        if broker.honest:
            measured |= {"full": broker.rss() / MB, "peak": broker.peak_rss() / MB, "stored": broker.stored() / MB}
            measured["ready"] = broker.restart()
            measured["again"] = broker.rss() / MB
        measured["drained"] = transfer.drain(broker, flow, PREFETCH, bench.core)
        if broker.honest:
            measured["peak_again"] = broker.peak_rss() / MB
    return measured


PROFILE = Profile(
    name="backlog",
    title="Messages of 200 B into a queue that nobody reads, kill -9, restart, drain",
    contenders=(GATEWAY, RABBITMQ, SINK),
    variants=("backlog",),
    sizes={"messages": Size(5_000_000, 3_000, "queued")},
    figures=(
        Figure("filled", "filled, msg/s", compared=True, ceiling=True),
        Figure("empty", "memory empty, MB"),
        Figure("full", "memory full, MB", compared=True),
        Figure("peak", "highest until then, MB"),
        Figure("stored", "on disk, MB"),
        Figure("ready", "ready after, s", 2, compared=True),
        Figure("again", "memory then, MB"),
        Figure("drained", "drained, msg/s", compared=True, ceiling=True),
        Figure("peak_again", "highest since, MB"),
    ),
    measure=measure,
)
