"""Owns the picture of a soak: memory, depth, commit latency and rates over time, restarts as lines.

Its rule: it draws what the samples say and judges nothing. It needs matplotlib (the extra `soak`).
"""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Sequence
from pathlib import Path

from tests.soak.samples import Sample


def available() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


def draw(path: Path, samples: Sequence[Sample], title: str) -> None:
    """Writes a PNG. Raises ImportError without matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 13), layout="constrained")
    FigureCanvasAgg(figure)
    memory, depth, latency, rates = figure.subplots(4, 1, sharex=True)
    _lines(memory, samples, {"RSS": "rss", "store on disk": "store"}, 1 / (1 << 20), "MB")
    _lines(depth, samples, {"messages in all queues": "depth"}, 1, "messages")
    _lines(latency, samples, {"p50": "p50", "p99": "p99"}, 1000, "ms a commit, with fsync")
    _lines(rates, samples, {"accepted": "accepted", "delivered": "delivered"}, 1, "messages a second")
    restarts = [after.seconds for before, after in itertools.pairwise(samples) if before.run != after.run]
    for axes in (memory, depth, latency, rates):
        for seconds in restarts:
            axes.axvline(seconds / 60, color="tab:red", linewidth=0.6, alpha=0.5)
    rates.set_xlabel("minutes; red: killed and started again")
    figure.suptitle(title)
    figure.savefig(path)


def _lines(axes: object, samples: Sequence[Sample], names: dict[str, str], factor: float, unit: str) -> None:
    from matplotlib.axes import Axes

    assert isinstance(axes, Axes)
    for number, (label, name) in enumerate(names.items()):
        # No line leads over a restart.
        for run, points in itertools.groupby(samples, key=lambda sample: sample.run):
            drawn = [(sample.seconds / 60, getattr(sample, name) * factor) for sample in points]
            once = label if run == samples[0].run else None
            axes.plot(*zip(*drawn, strict=True), label=once, linewidth=1, color=f"C{number}")
    axes.set_ylabel(unit)
    axes.set_ylim(bottom=0)
    axes.legend(loc="upper left")
    axes.grid(alpha=0.3)
