"""Owns how a profile is measured: contenders in turn within a round, several rounds, medians of them.

Its rule: contenders are interleaved, each in each round with a new store, so that what changes on the machine in the
meantime meets all of them.
"""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec

from benchmarks import brokers
from benchmarks.brokers import SINK, Broker, Layout
from benchmarks.messages import LoadError
from tests.harness.process import ServerError
from tests.harness.rabbitmq import RabbitMq


class Size(msgspec.Struct, frozen=True):
    """How much of something a profile uses; smoke: in a run that is to show only that it works."""

    full: int
    smoke: int
    about: str


class Figure(msgspec.Struct, frozen=True):
    """One thing that is measured. decimals: of what is shown. compared: the gateway's median is divided by that of
    each other contender. ceiling: it is a rate that the generator could limit."""

    key: str
    title: str
    decimals: int = 0
    compared: bool = False
    ceiling: bool = False


class Spread(msgspec.Struct, frozen=True):
    """Median and range of the rounds, and the rounds."""

    median: float
    lowest: float
    highest: float
    rounds: list[float]

    @classmethod
    def of(cls, rounds: Sequence[float]) -> Spread:
        return cls(statistics.median(rounds), min(rounds), max(rounds), list(rounds))


Found = dict[str, dict[str, dict[str, Spread]]]
"""By variant, contender and key of a figure."""
Measured = Mapping[str, float]
"""By key of a figure; one that a contender does not have is left out."""


class Bench:
    """What a profile's `measure` gets: sizes, the core of the generator, and brokers."""

    def __init__(self, folder: Path, sizes: Mapping[str, int], node: RabbitMq | None = None) -> None:
        """node: a RabbitMQ that runs already, to be used instead of new ones, and to be left running."""
        self.sizes = dict(sizes)
        self.core = brokers.load_core()
        self.settings: dict[str, None] = {}
        """Of each broker that was started, each once."""
        self._folder = folder
        self._node = node
        self._number = 0

    @contextmanager
    def broker(self, name: str, layout: Layout = brokers.FULL) -> Iterator[Broker]:
        """That broker, ready; its folder is removed after its end."""
        self._number += 1
        folder = self._folder / f"{self._number}-{name}"
        try:
            with brokers.started(name, folder, layout, self._node) as broker:
                self.settings[broker.settings] = None
                yield broker
        finally:
            shutil.rmtree(folder, ignore_errors=True)


class Profile(msgspec.Struct, frozen=True):
    """What is measured of whom. `measure(bench, contender, variant)` is one round of one; it raises LoadError unless
    all went right (the sink's deliveries are not looked at). smoke: the variants of a smoke run."""

    name: str
    title: str
    contenders: tuple[str, ...]
    variants: tuple[str, ...]
    sizes: dict[str, Size]
    figures: tuple[Figure, ...]
    measure: Callable[[Bench, str, str], Measured]
    smoke: tuple[str, ...] = ()
    remarks: Callable[[Found], list[str]] = lambda found: []


class Outcome(NamedTuple):
    """failures: why a contender has no numbers in a variant, one a line."""

    found: Found
    failures: list[str]


def run(profile: Profile, bench: Bench, rounds: int, variants: Sequence[str], contenders: Sequence[str]) -> Outcome:
    """Every contender in every variant, so many times. One that fails is left out of the variant from then on, and has
    no numbers in it; the others go on."""
    rates: dict[tuple[str, str], dict[str, list[float]]] = {(v, c): {} for v in variants for c in contenders}
    failures = []
    for number in range(rounds):
        for variant, contender in list(rates):
            at = f"round {number + 1}, {variant}, {contender}"
            try:
                measured = profile.measure(bench, contender, variant)
            except (LoadError, ServerError, OSError) as error:
                failures.append(f"{at} failed: {error}")
                print(failures[-1], flush=True)
                del rates[variant, contender]
                continue
            for key, value in measured.items():
                rates[variant, contender].setdefault(key, []).append(value)
            shown = ", ".join(
                f"{figure.title} {measured[figure.key]:,.{figure.decimals}f}"
                for figure in profile.figures
                if figure.key in measured
            )
            print(f"{at}: {shown}", flush=True)
    found: Found = {}
    for (variant, contender), figures in rates.items():
        spreads = {key: Spread.of(values) for key, values in figures.items()}
        found.setdefault(variant, {})[contender] = spreads
    return Outcome(found, failures)


def limits(profile: Profile, found: Found) -> list[str]:
    """Where the load generator, not the broker, may have been the limit."""
    notes = []
    for variant, contenders in found.items():
        ceilings = contenders.get(SINK, {})
        for contender, figures in contenders.items():
            if contender == SINK:
                continue
            for figure in profile.figures:
                if figure.ceiling and figure.key in figures and figure.key in ceilings:
                    share = figures[figure.key].median / ceilings[figure.key].median
                    if share > 0.7:
                        notes.append(
                            f"{variant}, {contender}: {figure.title} is {share:.0%} of what the generator reaches "
                            "against the sink; the generator may be the limit."
                        )
    return notes
