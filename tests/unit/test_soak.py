"""What judges a soak: growth is found in the undisturbed run alone, and a trail knows what did not arrive."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.soak.features import Trail, body_of, number_of
from tests.soak.growth import LEAST_SECONDS, growth
from tests.soak.samples import Sample, quantile, read_csv, write_csv

MB = 1 << 20
LONG = int(LEAST_SECONDS * 5)


def soak(seconds: int = LONG, run: int = 1, begin: int = 0, **values: Callable[[float], float]) -> list[Sample]:
    """A sample each second; `values`: functions of how far the run is, from 0 to 1, for what is not level."""
    level = {"rss": 80 * MB, "store": 20 * MB, "depth": 100, "accepted": 500.0, "delivered": 500.0}
    made = []
    for second in range(seconds + 1):
        found = level | {"p50": 0.001, "p99": 0.01} | {name: of(second / seconds) for name, of in values.items()}
        made.append(Sample(seconds=begin + second, run=run, **found))  # type: ignore[arg-type]
    return made


def test_what_is_level_has_not_grown() -> None:
    assert growth(soak()) == []
    assert growth([]) == []


def test_warming_up_is_no_growth() -> None:
    assert growth(soak(rss=lambda far: (40 + 60 * min(far * 5, 1)) * MB)) == []


def test_peaks_are_no_growth() -> None:
    assert growth(soak(rss=lambda far: (200 if int(far * 100) % 5 == 0 else 80) * MB)) == []


@pytest.mark.parametrize(
    ("name", "grows"),
    [
        ("rss", lambda far: (80 + 40 * far) * MB),
        ("store", lambda far: (20 + 200 * far) * MB),
        ("depth", lambda far: 100 + 9_000 * far),
        ("p99", lambda far: 0.01 + 0.2 * far),
    ],
)
def test_growth_is_named_with_both_medians(name: str, grows: Callable[[float], float]) -> None:
    (found,) = growth(soak(**{name: grows}))
    assert found.startswith(f"{name} grew from ") and "which lasted 600 s" in found


def test_growth_within_the_amount_or_the_share_is_none() -> None:
    assert growth(soak(rss=lambda far: (40 + 10 * far) * MB)) == []
    assert growth(soak(rss=lambda far: (200 + 25 * far) * MB)) == []


def test_earlier_runs_do_not_count_for_growth_and_do_for_the_ceiling() -> None:
    before = soak(LONG, run=1, rss=lambda far: (40 + 200 * far) * MB)
    assert growth([*before, *soak(run=2, begin=LONG)]) == []
    before = soak(LONG, run=1, rss=lambda far: (40 + 300 * far) * MB)
    assert growth([*before, *soak(run=2, begin=LONG)]) == ["rss reached 340.0 MB, the ceiling is 300.0 MB"]


def test_a_short_run_is_judged_by_the_ceilings_alone() -> None:
    assert growth(soak(int(LEAST_SECONDS) - 1, rss=lambda far: (40 + 100 * far) * MB)) == []
    assert growth(soak(10, depth=lambda far: 60_000)) == [
        "depth reached 60000.0 messages, the ceiling is 50000.0 messages"
    ]


def test_quantiles_of_a_histogram() -> None:
    inf = float("inf")
    assert quantile([(1, 0), (2, 100), (inf, 100)], 0.5) == 1.5
    assert quantile([(1, 50), (2, 100), (inf, 100)], 0.99) == pytest.approx(1.98)
    assert quantile([(1, 1), (2, 1), (inf, 100)], 0.99) == 2
    assert quantile([(1, 0), (inf, 0)], 0.5) == 0
    assert quantile([], 0.5) == 0


def test_samples_are_read_as_they_were_written(tmp_path: Path) -> None:
    samples = soak(20)
    write_csv(tmp_path / "soak.csv", samples)
    assert read_csv(tmp_path / "soak.csv") == samples


def test_a_trail_knows_what_did_not_arrive() -> None:
    trail = Trail()
    one, two, three = trail.issue(), trail.issue(), trail.issue()
    trail.answered(one)
    trail.arrived(two)  # before its answer
    trail.answered(two)
    assert (trail.awaited, list(trail.unanswered)) == ({one}, [three])
    trail.arrived(one)
    trail.arrived(one)  # once more
    trail.answered(one)
    assert trail.awaited == set() and trail.faults == []
    trail.arrived(4)
    assert trail.faults == ["message 4 was never sent"]


def test_a_damaged_body_is_nobodys() -> None:
    assert number_of(body_of(35)) == 35
    assert number_of(body_of(35).replace(b"x", b"y", 1)) == -1
