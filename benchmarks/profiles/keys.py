"""A dedup window that holds 5,000,000 keys: what ingest costs then, and what a key takes.

10 MQTT publishers with a window of 200 send messages of 64 bytes with a JSON field that is the dedup key, one AMQP
consumer takes them as they come, so what is left are the keys. The rate is measured with the first messages, and again
when the window is full; in between some are sent a second time, of which nothing may be delivered. Memory for each key
is the difference of resident memory after the first messages and with the full window; the same without dedup is the
control, and what it shows is not the keys'.
"""

from __future__ import annotations

from benchmarks import brokers, load, transfer
from benchmarks.brokers import GATEWAY, QUEUE, SINK, Broker
from benchmarks.consumer import Consumer
from benchmarks.messages import Flow, LoadError
from benchmarks.rounds import Bench, Figure, Found, Measured, Profile, Size

PUBLISHERS = 10
GROUPS = 1000
WINDOW = 200
PREFETCH = 2000
DEDUP, CONTROL = "dedup", "no dedup"


def measure(bench: Bench, contender: str, variant: str) -> Measured:
    keys, messages = bench.sizes["keys"], bench.sizes["messages"]
    if messages % GROUPS or keys % GROUPS or keys < 2 * messages:
        raise LoadError(f"--messages and --keys are multiples of {GROUPS}, and keys at least twice the messages")
    settings = {"max_dedup_keys": keys + 2 * messages}
    layout = brokers.queue_layout("{topic[1]}", "12h" if variant == DEDUP else None, **settings)
    with bench.broker(contender, layout) as broker:
        consumer = Consumer.of(broker.amqp, QUEUE, PREFETCH)
        with load.closing([consumer]):
            first = send(bench, broker, consumer, 0, messages)
            before = broker.rss()
            send(bench, broker, consumer, messages, keys - messages)
            grown = broker.rss() - before
            if variant == DEDUP and broker.honest:
                send(bench, broker, consumer, 0, GROUPS, again=True)
            full = send(bench, broker, consumer, keys, messages)
            if broker.honest:
                consumer.check(0, keys + messages, GROUPS)
    measured = {"first": first["delivered"], "full": full["delivered"], "busy": full["busy"]}
    return measured | ({"octets": grown / (keys - messages)} if broker.honest else {})


def send(
    bench: Bench, broker: Broker, consumer: Consumer, first: int, total: int, again: bool = False
) -> dict[str, float]:
    """These messages through the queue. again: they are answered, and must not be delivered."""
    flow = Flow(total, PUBLISHERS, GROUPS, body_size=64, first=first)
    publishers = transfer.mqtt_publishers(broker.mqtt, flow, WINDOW)
    with load.closing(publishers):
        consumer.expect(len(consumer.ids) + (0 if again else total))
        return transfer.through(broker, publishers, consumer, flow, bench.core)


def remarks(found: Found) -> list[str]:
    """What a key takes beyond the control."""
    try:
        with_keys, without = (found[variant][GATEWAY]["octets"].median for variant in (DEDUP, CONTROL))
    except KeyError:
        return []
    return [f"A key takes {with_keys - without:.0f} bytes: {with_keys:.0f} with dedup, {without:.0f} without."]


PROFILE = Profile(
    name="keys",
    title="MQTT to AMQP with a dedup window that fills; the same without dedup",
    contenders=(GATEWAY, SINK),
    variants=(DEDUP, CONTROL),
    smoke=(DEDUP,),
    sizes={
        "keys": Size(5_000_000, 4_000, "in the window"),
        "messages": Size(300_000, 2_000, "of each measured rate"),
    },
    figures=(
        Figure("first", "first messages, msg/s", ceiling=True),
        Figure("full", "window full, msg/s", ceiling=True),
        Figure("octets", "memory for each key, B", 1),
        transfer.BUSY,
    ),
    measure=measure,
    remarks=remarks,
)
