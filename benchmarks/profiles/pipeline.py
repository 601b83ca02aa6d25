"""MQTT in, durable queue, AMQP out, side by side with RabbitMQ.

10 publishers with a window of 200 send QoS 1 messages with a JSON field over MQTT; one AMQP consumer with manual ack
and prefetch 2000 takes them while they are sent. The gateway has a route, 1,000 groups and dedup by that field, and
answers each message after an fsync; RabbitMQ has a durable classic queue bound to amq.topic, and no such features.
Rounds are interleaved, each with a new store. The rate is of all messages from the first octet sent until the last
delivery; both sides are checked for losses, repeats and order within groups.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks import brokers, load, wire
from benchmarks.report import Report, Spread

PUBLISHERS = 10
WINDOW = 200
PREFETCH = 2000
GROUPS = 1000
BODY_SIZE = 64


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--messages", type=int, default=300_000, help="in each round (default 300,000)")
    parser.add_argument("--rounds", type=int, default=3, help="for each broker (default 3)")
    parser.add_argument("--only", choices=sorted(brokers.BROKERS), help="measure one broker alone")


def run(options: argparse.Namespace, folder: Path) -> Report:
    packets = [wire.publishes(i, PUBLISHERS, options.messages, GROUPS, BODY_SIZE) for i in range(PUBLISHERS)]
    core = 1 if brokers.cores() > 1 else None
    ceiling = measure_ceiling(packets, options.messages, core)
    print(f"the load generator alone, against a sink: {ceiling:,.0f} msg/s", flush=True)
    names = [options.only] if options.only else ["gateway", "rabbitmq"]
    delivered: dict[str, list[float]] = {name: [] for name in names}
    answered: dict[str, list[float]] = {name: [] for name in names}
    busy: dict[str, list[float]] = {name: [] for name in names}
    for number in range(options.rounds):
        for name in names:
            timing = measure(name, folder / f"{name}{number}", packets, options.messages, core)
            assert timing.delivered
            delivered[name].append(options.messages / timing.delivered)
            answered[name].append(options.messages / timing.answered)
            busy[name].append(timing.busy)
            print(f"round {number + 1}, {name}: {delivered[name][-1]:,.0f} msg/s end to end", flush=True)
    rates = {name: Spread.of(rounds) for name, rounds in delivered.items()}
    rows = [
        [
            name,
            str(rates[name]),
            str(Spread.of(answered[name])),
            f"{max(busy[name]):.0%}",
            f"{rates[name].median / rates[names[-1]].median:.1f}",
        ]
        for name in names
    ]
    return Report(
        "pipeline",
        f"{PUBLISHERS} MQTT publishers, window {WINDOW}, {BODY_SIZE} B, QoS 1, {GROUPS} groups -> durable queue -> "
        f"1 AMQP consumer, prefetch {PREFETCH}: {options.messages:,} messages, {options.rounds} rounds",
        ["broker", "end to end, msg/s", "answered, msg/s", "generator busy", f"x {names[-1]}"],
        rows,
        {
            "messages": options.messages,
            "end_to_end": delivered,
            "answered": answered,
            "generator_busy": busy,
            "median": {name: rate.median for name, rate in rates.items()},
            "ratio": rates[names[0]].median / rates[names[-1]].median,
            "generator_ceiling": ceiling,
        },
        [
            f"Medians, lowest and highest of the rounds. The generator alone reaches {ceiling:,.0f} msg/s.",
            "Every message came once and in order within its group, on both sides.",
        ],
    )


def measure(name: str, folder: Path, packets: list[wire.Packets], total: int, core: int | None) -> load.Timing:
    """One round with one broker. Raises LoadError unless each message came once and in order."""
    with brokers.started(name, folder) as broker:
        consumer = load.Consumer(*wire.AmqpSetup(broker.amqp).consume(brokers.QUEUE, PREFETCH))
        publishers = [load.Publisher(broker.mqtt, p, WINDOW, f"bench{i}") for i, p in enumerate(packets)]
        try:
            consumer.expect(total)
            timing = load.run(publishers, consumer, core)
            consumer.check(0, total, GROUPS)
            for publisher in publishers:
                publisher.check()
        finally:
            load.close(*publishers, consumer)
    return timing


def measure_ceiling(packets: list[wire.Packets], total: int, core: int | None) -> float:
    """Messages a second that the generator can send, count and receive when nothing else is done with them."""
    with brokers.sink(packets[0].size, BODY_SIZE) as (mqtt, amqp):
        consumer = load.Consumer(load.connect(amqp))
        publishers = [load.Publisher(mqtt, p, WINDOW, None) for p in packets]
        try:
            consumer.expect(total)
            timing = load.run(publishers, consumer, core)
        finally:
            load.close(*publishers, consumer)
    assert timing.delivered
    return total / timing.delivered
