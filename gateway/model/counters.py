"""Owns counters: what transports and commits count.

Its rule: counting is a plain integer addition; everything else happens when somebody scrapes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence


class TransportCounters:
    """What one transport counts; all but `connections` only grow."""

    __slots__ = (
        "connections",
        "connections_total",
        "dropped",
        "messages_in",
        "messages_out",
        "octets_in",
        "octets_out",
        "protocol_errors",
        "refusals",
    )

    def __init__(self) -> None:
        self.connections = 0
        self.connections_total = 0
        self.messages_in = 0
        self.messages_out = 0
        self.octets_in = 0
        self.octets_out = 0
        self.dropped: Counter[str] = Counter()
        """Messages dropped by a stated policy, by reason (e.g. `qos0-refused`, `qos0-slow-reader`)."""
        self.refusals: Counter[str] = Counter()
        """Connections and requests refused, by reason (e.g. `bad-credentials`, `queue-full`)."""
        self.protocol_errors: Counter[str] = Counter()
        """Connections closed because of what the peer sent, by reason."""


class Histogram:
    """How often a value fell into each of some fixed buckets; `bounds` are their upper ends, inclusive."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def cumulative(self) -> Iterator[tuple[str, int]]:
        """(upper end, how many were at most that), as Prometheus wants it; the last one is `+Inf`."""
        seen = 0
        for bound, count in zip((*self.bounds, float("inf")), self.counts, strict=True):
            seen += count
            yield ("+Inf" if bound == float("inf") else format(bound, "g")), seen


class CommitStats:
    """What the committer counts: once for each commit, never for a message."""

    __slots__ = ("failures", "messages", "octets", "seconds")

    def __init__(self) -> None:
        self.messages = Histogram((0, 1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000, 30_000))
        self.octets = Histogram([4**power for power in range(4, 14)])
        self.seconds = Histogram((0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5))
        self.failures = 0

    def observe(self, messages: int, octets: int, seconds: float) -> None:
        """A commit of so many messages and bytes that took so long, fsync included."""
        self.messages.observe(messages)
        self.octets.observe(octets)
        self.seconds.observe(seconds)
