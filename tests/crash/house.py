"""Owns the daemon's configuration in the crash harness: its queues, and where each stream of messages goes.

Its rule: what the configuration promises of a place and what History is told of it stand side by side.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.crash.history import Place
from tests.harness.process import quiet_port

FIFO, WIDE, PLAIN, LAG, BURIED, SHARED, EXACT = "fifo", "wide", "plain", "lag", "buried", "shared", "exact0"
SESSIONS = ("watcher0", "watcher1")
PLACES = (
    Place(FIFO, in_flight=1, dead=BURIED),
    Place(WIDE, in_flight=3),
    Place(PLAIN),
    Place(LAG, in_flight=1),
    Place(BURIED),
    Place(SHARED, dedup=False),
    *(Place(name, ordered=True, dedup=False) for name in SESSIONS),
    Place(EXACT, ordered=True, once=True),
)
ROUTES = {
    "fifo": (FIFO,),
    "wide": (WIDE,),
    "plain": (PLAIN,),
    "lag": (LAG, PLAIN),
    "live": SESSIONS,
    "crew": (SHARED,),
    "exact": (EXACT,),
}
"""The places of each stream: its topics begin with its name."""
WEIGHTS = {"fifo": 6, "wide": 3, "plain": 3, "lag": 1, "live": 1, "crew": 1}
"""How many of its groups each publisher has."""
EXACT_WEIGHTS = {"exact": 4}
"""And each that publishes with QoS 2."""
FILTERS = {"live": "live/#", "crew": "$share/crew/crew/#", "exact": "exact/#"}
WINDOW_SECONDS = 120
"""Longer than the daemon can be away, and so short that a soak sees the keys of its load come and go."""
DEDUP = {"key": "{body.id}", "window": f"{WINDOW_SECONDS}s"}
MARKS = "marks"
"""A queue for what a consumer publishes to make its settlements durable."""
LOG_SLACK = "64KB"
"""So small that the log is copied forward every few seconds."""


def merged(base: dict[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """`more` over `base`: mappings and lists are added to what is there."""
    whole = dict(base)
    for key, value in more.items():
        here = whole.get(key)
        if isinstance(here, dict):
            whole[key] = here | value
        elif isinstance(here, list):
            whole[key] = here + value
        else:
            whole[key] = value
    return whole


def configuration(store: Path) -> dict[str, Any]:
    """On ports that stay the same over every restart. Most bodies come from the disk."""
    forever = {"dedup": DEDUP, "max_deliveries": None}
    return {
        "store": {"path": str(store), "log_slack": LOG_SLACK},
        "max_memory": "256KB",
        "log": {"level": "debug", "format": "json"},
        "admin": {"listen": f"127.0.0.1:{quiet_port()}"},
        "transports": {name: {"type": name, "listen": f"127.0.0.1:{quiet_port()}"} for name in ("mqtt", "amqp")},
        "queues": {
            FIFO: {"group": "{body.group}", "dead_letter": BURIED, **forever},
            WIDE: {"group": "{topic}", "group_in_flight": 3, **forever},
            PLAIN: forever,
            LAG: {"group": "{body.group}", **forever},
            BURIED: {},
            MARKS: {"max_messages": 100, "overflow": "drop-oldest", "dead_letter": "none"},
        },
        "routes": [
            {"from": f"{stream}/#", "to": list(places)} for stream, places in ROUTES.items() if stream not in FILTERS
        ],
    }
