"""Owns the counters and how Prometheus reads them.

Its rule: counting is a plain integer addition; everything else happens when somebody scrapes.
"""

from __future__ import annotations

from collections import Counter


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
