"""A deep queue: how fast it fills, what it costs in memory, how soon it is back after a kill, how fast it drains.

1,000,000 messages of 200 bytes are published over MQTT (10 publishers, window 200, QoS 1) to a queue that nobody
consumes, with a route, 1,000 groups and dedup by a JSON field, each answered after an fsync. Then the daemon is killed
(SIGKILL) and started on the same store, and one AMQP consumer with prefetch 2000 takes everything.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from benchmarks import brokers, load, wire
from benchmarks.report import Report

PUBLISHERS = 10
WINDOW = 200
PREFETCH = 2000
GROUPS = 1000
BODY_SIZE = 200
MB = 1 << 20


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--messages", type=int, default=1_000_000, help="queued (default 1,000,000)")


def run(options: argparse.Namespace, folder: Path) -> Report:
    total: int = options.messages
    core = 1 if brokers.cores() > 1 else None
    values: dict[str, float] = {"messages": total}
    with brokers.started("gateway", folder / "gateway") as gateway:
        assert isinstance(gateway, brokers.Gateway)
        values["empty_rss_mb"] = gateway.rss() / MB
        values["ingest_rate"] = total / ingest(gateway, total, core)
        print(f"filled at {values['ingest_rate']:,.0f} msg/s", flush=True)
        values["full_rss_mb"], values["full_peak_rss_mb"] = gateway.rss() / MB, gateway.peak_rss() / MB
        values["store_mb"] = sum(f.stat().st_size for f in gateway.daemon.store.rglob("*") if f.is_file()) / MB
        gateway.daemon.kill()
        began = time.perf_counter()
        gateway.start()
        values["ready_seconds"] = time.perf_counter() - began
        values["ready_rss_mb"] = gateway.rss() / MB
        print(f"ready {values['ready_seconds']:.2f} s after the start", flush=True)
        values["drain_rate"] = total / drain(gateway, total, core)
        values["drained_rss_mb"], values["restarted_peak_rss_mb"] = gateway.rss() / MB, gateway.peak_rss() / MB
    rows = [
        ["filled at", f"{values['ingest_rate']:,.0f} msg/s"],
        ["memory (RSS) empty", f"{values['empty_rss_mb']:,.0f} MB"],
        ["memory full (highest)", f"{values['full_rss_mb']:,.0f} MB ({values['full_peak_rss_mb']:,.0f} MB)"],
        ["store on disk", f"{values['store_mb']:,.0f} MB"],
        ["ready after kill -9", f"{values['ready_seconds']:.2f} s"],
        ["memory when ready", f"{values['ready_rss_mb']:,.0f} MB"],
        ["drained at", f"{values['drain_rate']:,.0f} msg/s"],
        ["memory drained (highest since restart)",
         f"{values['drained_rss_mb']:,.0f} MB ({values['restarted_peak_rss_mb']:,.0f} MB)"],
    ]  # fmt: skip
    title = f"{total:,} queued messages of {BODY_SIZE} B, {GROUPS} groups, dedup on"
    notes = ["Every message came once and in order within its group."]
    return Report("backlog", title, ["", "gateway"], rows, dict(values), notes)


def ingest(gateway: brokers.Gateway, total: int, core: int | None) -> float:
    """Seconds until all were answered."""
    packets = [wire.publishes(i, PUBLISHERS, total, GROUPS, BODY_SIZE) for i in range(PUBLISHERS)]
    publishers = [load.Publisher(gateway.mqtt, p, WINDOW, f"bench{i}") for i, p in enumerate(packets)]
    try:
        timing = load.run(publishers, None, core)
        for publisher in publishers:
            publisher.check()
    finally:
        load.close(*publishers)
    return timing.answered


def drain(gateway: brokers.Gateway, total: int, core: int | None) -> float:
    """Seconds until one consumer had all."""
    consumer = load.Consumer(*wire.AmqpSetup(gateway.amqp).consume(brokers.QUEUE, PREFETCH))
    try:
        consumer.expect(total)
        timing = load.run([], consumer, core)
        consumer.check(0, total, GROUPS)
    finally:
        consumer.close()
    assert timing.delivered
    return timing.delivered
