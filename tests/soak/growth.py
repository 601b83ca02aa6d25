"""Owns the judgement of growth: whether something that should stay level has grown over a soak.

Its rule: of the last run of the daemon, which nothing disturbs, the median of the last quarter is held against the
median of the second quarter (the first one warms up). Medians forgive peaks, and a leak shows in both halves. Growth
is more than the stated share of the earlier median and more than the stated amount, both at once exceeded.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

from tests.soak.samples import Sample

LEAST_SECONDS = 120.0
"""A shorter undisturbed run is all warming up: of it only the ceilings are judged."""


class Limit(NamedTuple):
    """share and amount: how much more it may be at the end. ceiling: what it may never exceed."""

    share: float
    amount: float
    ceiling: float
    unit: str
    divisor: float = 1.0


MB = float(1 << 20)
LIMITS = {
    "rss": Limit(0.08, 6 * MB, 300 * MB, "MB", MB),
    "store": Limit(0.25, 48 * MB, 1024 * MB, "MB", MB),
    "depth": Limit(0.5, 2_000, 50_000, "messages"),
    "p99": Limit(1.0, 0.03, 5.0, "ms", 0.001),
}


def growth(samples: Sequence[Sample]) -> list[str]:
    """What has grown or was too much, in words; nothing: all is well."""
    found = []
    last = [sample for sample in samples if sample.run == samples[-1].run] if samples else []
    length = last[-1].seconds - last[0].seconds if last else 0.0
    for name, limit in LIMITS.items():
        worst = max((getattr(sample, name) for sample in samples), default=0)
        if worst > limit.ceiling:
            found.append(f"{name} reached {_text(worst, limit)}, the ceiling is {_text(limit.ceiling, limit)}")
        if length < LEAST_SECONDS:
            continue
        early = median(_between(last, name, 0.25, 0.5))
        late = median(_between(last, name, 0.75, 1.0))
        if late - early > max(limit.amount, limit.share * early):
            found.append(
                f"{name} grew from {_text(early, limit)} (median of the second quarter of the last run, which lasted"
                f" {length:.0f} s) to {_text(late, limit)} (median of its last quarter); allowed are"
                f" {limit.share:.0%} and {_text(limit.amount, limit)}, whichever is more"
            )
    return found


def _between(samples: Sequence[Sample], name: str, first: float, last: float) -> list[float]:
    begin, length = samples[0].seconds, samples[-1].seconds - samples[0].seconds
    return [
        getattr(sample, name) for sample in samples if begin + first * length <= sample.seconds <= begin + last * length
    ]


def _text(value: float, limit: Limit) -> str:
    return f"{value / limit.divisor:.1f} {limit.unit}"
