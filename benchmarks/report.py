"""Owns how results are shown: a table for people, JSON for programs, and the machine they are of.

Its rule: every number stands with the rounds that it is the median of, every peer with its settings, and beside each
result what the load generator reaches alone.
"""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from benchmarks.brokers import GATEWAY, SINK
from benchmarks.disk import Disk
from benchmarks.rounds import Bench, Found, Outcome, Profile, Spread, limits


class Machine(msgspec.Struct, frozen=True):
    """What the numbers were measured on."""

    cpu: str
    cores: int
    memory_mb: int
    kernel: str
    python: str
    disk: Disk


class Report(msgspec.Struct, frozen=True):
    """What a profile found. found: by variant, contender and figure. ratios: the gateway's median divided by the
    contender's, by variant, contender and figure. smoke: sizes were tiny, so the numbers say nothing."""

    profile: str
    title: str
    date: str
    command: str
    smoke: bool
    sizes: dict[str, int]
    rounds: int
    machine: Machine
    settings: list[str]
    found: Found
    ratios: dict[str, dict[str, dict[str, float]]]
    remarks: list[str]
    failures: list[str]


def machine(disk: Disk) -> Machine:
    with open("/proc/cpuinfo") as info:
        model = next((line.partition(":")[2].strip() for line in info if line.startswith("model name")), "unknown")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
    cores = len(os.sched_getaffinity(0))
    return Machine(model, cores, memory, platform.release(), platform.python_version(), disk)


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def console() -> Console:
    return Console(width=None if os.isatty(1) else 200, highlight=False, markup=False)


def about(on: Machine) -> str:
    """In one line."""
    return (
        f"{on.cores} x {on.cpu}, {on.memory_mb:,} MB, Linux {on.kernel}, Python {on.python}; stores on "
        f"{on.disk.file_system}, fsync p50 {on.disk.fsync_p50:.2f} ms, p99 {on.disk.fsync_p99:.2f} ms"
    )


def make(
    profile: Profile, bench: Bench, outcome: Outcome, rounds: int, smoke: bool, command: str, disk: Disk
) -> Report:
    found = outcome.found
    return Report(
        profile.name,
        profile.title,
        now(),
        command,
        smoke,
        bench.sizes,
        rounds,
        machine(disk),
        list(bench.settings),
        found,
        ratios(profile, found),
        profile.remarks(found) + limits(profile, found),
        outcome.failures,
    )


def ratios(profile: Profile, found: Found) -> dict[str, dict[str, dict[str, float]]]:
    """Of the figures that are compared, to each contender that has them."""
    compared = [figure.key for figure in profile.figures if figure.compared]
    return {
        variant: {
            contender: {
                key: contenders[GATEWAY][key].median / figures[key].median
                for key in compared
                if key in figures and key in contenders[GATEWAY] and figures[key].median
            }
            for contender, figures in contenders.items()
            if contender != GATEWAY
        }
        for variant, contenders in found.items()
        if GATEWAY in contenders
    }


def show(report: Report, profile: Profile) -> None:
    """To standard output: a line for each figure, a column for each contender."""
    sizes = ", ".join(f"{name} {value:,}" for name, value in report.sizes.items())
    table = Table(title=f"{report.title}\n{sizes}; rounds {report.rounds}", title_justify="left")
    names = list(dict.fromkeys(name for contenders in report.found.values() for name in contenders))
    peers = [name for name in names if name not in (GATEWAY, SINK)] if GATEWAY in names else []
    for name in ("", "", *names, *(f"gateway / {peer}" for peer in peers)):
        table.add_column(name, justify="right" if name else "left")
    for variant, contenders in report.found.items():
        label = variant
        for figure in profile.figures:
            spreads = [contenders.get(name, {}).get(figure.key) for name in names]
            if any(spreads):
                quotients = [report.ratios.get(variant, {}).get(peer, {}).get(figure.key) for peer in peers]
                table.add_row(
                    label,
                    figure.title,
                    *(cell(spread, figure.decimals) for spread in spreads),
                    *("" if quotient is None else f"{quotient:.2f}" for quotient in quotients),
                )
                label = ""
        table.add_section()
    screen = console()
    screen.print(table)
    for line in notes(report):
        screen.print(line)


def cell(spread: Spread | None, decimals: int) -> str:
    if spread is None:
        return "-"
    if len(spread.rounds) == 1:
        return f"{spread.median:,.{decimals}f}"
    return f"{spread.median:,.{decimals}f} ({spread.lowest:,.{decimals}f}-{spread.highest:,.{decimals}f})"


def notes(report: Report) -> Sequence[str]:
    return [
        *(["A smoke run: it shows that everything runs and counts right; its numbers say nothing."] * report.smoke),
        "Medians (lowest-highest of the rounds). The column `sink` is what the load generator reaches alone.",
        *report.failures,
        *report.remarks,
        *report.settings,
        about(report.machine),
        f"{report.date}  {report.command}",
    ]


def save(report: Report, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
