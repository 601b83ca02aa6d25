"""Owns how results are shown: a summary of rounds, a table for people, JSON for programs, and the machine they are of.

Its rule: every number stands with the rounds that it is the median of.
"""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table


class Spread(msgspec.Struct, frozen=True):
    """Median and range of the rounds."""

    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, rounds: Sequence[float]) -> Spread:
        return cls(statistics.median(rounds), min(rounds), max(rounds))

    def __str__(self) -> str:
        return f"{self.median:,.0f} ({self.lowest:,.0f}-{self.highest:,.0f})"


class Report(msgspec.Struct):
    """What a profile found. `values` is everything, for programs; the table is what people read first."""

    profile: str
    title: str
    columns: list[str]
    rows: list[list[str]]
    values: dict[str, Any]
    notes: list[str] = []


def machine() -> dict[str, Any]:
    """What the numbers were measured on, besides the disk."""
    model = "unknown"
    with open("/proc/cpuinfo") as info:
        model = next((line.partition(":")[2].strip() for line in info if line.startswith("model name")), model)
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def show(report: Report) -> None:
    """The table, to standard output."""
    console = Console(width=None if os.isatty(1) else 160, highlight=False)
    table = Table(title=report.title, title_justify="left")
    for number, column in enumerate(report.columns):
        table.add_column(column, justify="right" if number else "left")
    for row in report.rows:
        table.add_row(*row)
    console.print(table)
    for note in report.notes:
        console.print(note)


def save(report: Report, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
