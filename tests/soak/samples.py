"""Owns Sampler: what /metrics and /proc say of the daemon, once every so often.

Its rule: a rate or a latency is of the time between two samples of one run of the daemon, never over a restart.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.harness.daemon import Daemon


class Sample(NamedTuple):
    """seconds: since the soak began. run: of the daemon. rss, store: bytes. depth: messages in all queues, in flight
    or not. accepted, delivered: messages a second, over all queues. p50, p99: seconds of a commit, fsync included."""

    seconds: float
    run: int
    rss: int
    store: int
    depth: int
    accepted: float
    delivered: float
    p50: float
    p99: float


class _Counts(NamedTuple):
    time: float
    run: int
    depth: int
    accepted: float
    delivered: float
    buckets: tuple[tuple[float, float], ...]
    """Upper end in seconds, and how many commits took at most that."""


class Sampler:
    """`take` adds to `samples`."""

    def __init__(self, daemon: Daemon, admin: str) -> None:
        """`admin`: the URL of its admin listener."""
        self.samples: list[Sample] = []
        self._daemon = daemon
        self._url = f"{admin}/metrics"
        self._began = time.monotonic()
        self._last: _Counts | None = None

    def take(self, run: int) -> None:
        """Blocks for one request. The first one of a run only starts the counting. Raises what httpx and /proc raise
        for a daemon that is gone."""
        answer = httpx.get(self._url, trust_env=False, timeout=30)
        answer.raise_for_status()
        now = _read(answer.text, time.monotonic(), run)
        last, self._last = self._last, now
        if last is None or last.run != run:
            return
        passed = now.time - last.time
        before = dict(last.buckets)
        commits = [(end, count - before.get(end, 0.0)) for end, count in now.buckets]
        self.samples.append(
            Sample(
                now.time - self._began,
                run,
                self._daemon.rss(),
                sum(found.stat().st_size for found in Path(self._daemon.store).glob("gateway-*")),
                now.depth,
                (now.accepted - last.accepted) / passed,
                (now.delivered - last.delivered) / passed,
                quantile(commits, 0.5),
                quantile(commits, 0.99),
            )
        )


def _read(text: str, when: float, run: int) -> _Counts:
    sums: dict[str, float] = {}
    buckets = []
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == "gateway_commit_seconds_bucket":
                buckets.append((float(sample.labels["le"]), sample.value))
            elif sample.name.startswith("gateway_queue_"):
                sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
    return _Counts(
        when,
        run,
        int(sums["gateway_queue_messages"] + sums["gateway_queue_in_flight_messages"]),
        sums["gateway_queue_accepted_total"],
        sums["gateway_queue_delivered_total"],
        tuple(sorted(buckets)),
    )


def quantile(buckets: Sequence[tuple[float, float]], share: float) -> float:
    """Of a cumulative histogram, linear within a bucket; the last finite end if it lies beyond; 0 if it is empty."""
    total = buckets[-1][1] if buckets else 0.0
    wanted = total * share
    start, below = 0.0, 0.0
    for end, count in buckets:
        if count >= wanted and count > below:
            if end == float("inf"):
                return start
            return start + (end - start) * (wanted - below) / (count - below)
        start, below = end, count
    return 0.0


def write_csv(path: Path, samples: Sequence[Sample]) -> None:
    """With a line of names at the top."""
    lines = [",".join(Sample._fields), *(",".join(map(str, sample)) for sample in samples)]
    path.write_text("\n".join(lines) + "\n")


def read_csv(path: Path) -> list[Sample]:
    """What `write_csv` wrote."""
    found = []
    for line in path.read_text().splitlines()[1:]:
        row: Mapping[str, str] = dict(zip(Sample._fields, line.split(","), strict=True))
        whole = {name: int(float(row[name])) for name in ("run", "rss", "store", "depth")}
        found.append(Sample(**{name: whole.get(name, float(text)) for name, text in row.items()}))  # type: ignore[arg-type]
    return found
