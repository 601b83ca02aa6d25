"""Owns the budget: microseconds of a message at each stage of the daemon, under the load of the profile `pipeline`.

Its rule: how long a message takes is measured by clocks; samples only say how that is shared out.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from rich.table import Table

from benchmarks import brokers, disk, load, report, transfer
from benchmarks.brokers import QUEUE
from benchmarks.consumer import Consumer
from benchmarks.messages import Flow, LoadError
from benchmarks.publisher import check_answers
from benchmarks.rounds import Spread
from benchmarks.sampler import BEGIN, END
from benchmarks.stages import OTHER, STAGES
from tests.harness.daemon import Daemon
from tests.harness.process import ServerError
from tests.harness.rabbitmq import RabbitMq

GROUPS = 1000
WINDOW = 200
PREFETCH = 2000


class Sampled(msgspec.Struct):
    """What the sampler prints at the end: samples by stage, CPU seconds of the main thread and of the others by name,
    and the functions that most of the samples without a stage were in."""

    samples: dict[str, int]
    main: float
    others: dict[str, float]
    unnamed: dict[str, int]


class Budget(msgspec.Struct, frozen=True):
    """Microseconds for each message, of CPU but for `elapsed`; shares are of the main thread."""

    messages: int
    samples: int
    stages: dict[str, Spread]
    main: Spread
    others: dict[str, Spread]
    elapsed: Spread
    unnamed: dict[str, int]
    date: str
    machine: report.Machine


def arguments(choices: Any) -> None:
    """Adds the command `budget`."""
    chosen: argparse.ArgumentParser = choices.add_parser(
        "budget", help="microseconds of a message at each stage of the gateway", description=__doc__
    )
    chosen.add_argument("--messages", type=int, default=1_000_000, help="in each round (default 1,000,000)")
    chosen.add_argument("--rounds", type=int, default=3, help="default 3")
    chosen.add_argument("--folder", type=Path, default=disk.FOLDER, help="where the store is made, and budget.json")
    chosen.set_defaults(run=run)


def run(options: argparse.Namespace, command: str, node: RabbitMq | None) -> int:
    under = disk.measure(options.folder)
    found: list[tuple[Sampled, float]] = []
    for number in range(options.rounds):
        folder = Path(tempfile.mkdtemp(prefix="budget", dir=options.folder))
        try:
            found.append(measure(folder, options.messages))
        except (LoadError, ServerError) as error:
            print(f"budget: {error}", file=sys.stderr)
            return 1
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        print(f"round {number + 1}: {1e6 * found[-1][1] / options.messages:.2f} us for each message", flush=True)
    budget = make(found, options.messages, under)
    show(budget, command)
    path = options.folder / "budget.json"
    path.write_bytes(msgspec.json.format(msgspec.json.encode(budget), indent=2) + b"\n")
    print(f"written to {path}")
    return 0


def measure(folder: Path, messages: int) -> tuple[Sampled, float]:
    """One round: some messages unmeasured, then `messages` sampled; with the seconds that these took."""
    first = max(GROUPS, messages // 10 // GROUPS * GROUPS)
    with sampled_daemon(folder) as daemon:
        consumer = Consumer.of(daemon.address("amqp"), QUEUE, PREFETCH)
        with load.closing([consumer]):
            send(daemon, consumer, Flow(first, 10, GROUPS, body_size=64))
            daemon.process.signal(BEGIN)
            daemon.wait_for("sampling")
            seconds = send(daemon, consumer, Flow(messages, 10, GROUPS, body_size=64, first=first))
            daemon.process.signal(END)
            told = daemon.wait_for("sampled")
            consumer.check(0, first + messages, GROUPS)
    return msgspec.convert(told, Sampled), seconds


@contextlib.contextmanager
def sampled_daemon(folder: Path) -> Iterator[Daemon]:
    """The gateway with the sampler in it."""
    sampler = [sys.executable, str(Path(__file__).with_name("sampler.py"))]
    daemon = Daemon(folder, dict(brokers.FULL.gateway), wrapper=sampler)
    try:
        yield daemon.start()
    finally:
        daemon.close()


def send(daemon: Daemon, consumer: Consumer, flow: Flow) -> float:
    """Seconds from the first octet to the last delivery."""
    publishers = transfer.mqtt_publishers(daemon.address("mqtt"), flow, WINDOW)
    with load.closing(publishers):
        consumer.expect(flow.first + flow.total)
        timing = load.run([consumer, *publishers], brokers.load_core())
        check_answers(publishers)
    return timing.until([consumer])


def make(found: list[tuple[Sampled, float]], messages: int, under: disk.Disk) -> Budget:
    """Each round's CPU time of the main thread, shared out by its samples; medians of the rounds."""
    micro = 1e6 / messages
    stages = {
        stage: Spread.of(
            [sampled.main * micro * sampled.samples.get(stage, 0) / total(sampled) for sampled, _ in found]
        )
        for stage in (*STAGES, OTHER)
    }
    threads = {name: None for sampled, _ in found for name in sampled.others}
    return Budget(
        messages,
        sum(total(sampled) for sampled, _ in found),
        stages,
        Spread.of([sampled.main * micro for sampled, _ in found]),
        {name: Spread.of([sampled.others.get(name, 0.0) * micro for sampled, _ in found]) for name in threads},
        Spread.of([seconds * micro for _, seconds in found]),
        found[-1][0].unnamed,
        report.now(),
        report.machine(under),
    )


def total(sampled: Sampled) -> int:
    return max(1, sum(sampled.samples.values()))


def show(budget: Budget, command: str) -> None:
    """To standard output."""
    table = Table(title="Microseconds for each message, MQTT -> queue -> AMQP", title_justify="left")
    for title in ("stage", "us", "share"):
        table.add_column(title, justify="left" if title == "stage" else "right")
    for stage, spread in budget.stages.items():
        share = spread.median / budget.main.median if budget.main.median else 0.0
        table.add_row(stage, report.cell(spread, 2), f"{share:.0%}")
    table.add_section()
    table.add_row("main thread, CPU", report.cell(budget.main, 2), "")
    for name, spread in budget.others.items():
        table.add_row(f"thread {name}, CPU", report.cell(spread, 2), "")
    table.add_row("elapsed", report.cell(budget.elapsed, 2), "")
    console = report.console()
    console.print(table)
    console.print(
        f"Medians (lowest-highest of the rounds) of {budget.messages:,} messages; {budget.samples:,} samples."
    )
    console.print(f"Most of what `{OTHER}` is: {', '.join(budget.unnamed)}")
    console.print(report.about(budget.machine))
    console.print(f"{budget.date}  {command}")
