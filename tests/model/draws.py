"""Owns what the machine draws: policies, messages, queues.

Its rule: what is rare in a life (a delay, a limit, a missing group) is rare here, so that the rest is not hidden by it.
"""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st

from gateway.model.policy import DEAD_LETTERS, DedupPolicy, ExchangeTarget, Octets, QueuePolicy, Seconds, SecondsRange
from tests.harness.kernel import GROUP, KEY

DEAD_EXCHANGE = "dead"

maybe = st.booleans()
overflows = st.sampled_from(["refuse", "drop-oldest", "dead-letter", "dead-letter"])
dedups = st.builds(
    DedupPolicy, st.just(KEY), st.sampled_from([Seconds(10), Seconds(30)]), st.sampled_from(["queue", "group"])
)
common: dict[str, st.SearchStrategy[Any]] = {
    "dedup": dedups,
    "ack_timeout": st.sampled_from([None, Seconds(3), Seconds(7)]),
    "max_deliveries": st.sampled_from([2, 1, 1, 3, None]),
    "retry_delay": st.sampled_from([None, SecondsRange((1.0, 5.0))]),
    "ttl": st.sampled_from([None, None, Seconds(20.5)]),
    "max_messages": st.sampled_from([None, None, 2, 4, 6]),
    "max_bytes": st.sampled_from([None, None, None, Octets(450)]),
    "overflow": overflows,
}
by_exchange = ExchangeTarget(DEAD_EXCHANGE)
nowhere = ExchangeTarget(DEAD_EXCHANGE, "nowhere")
fifos = st.builds(
    QueuePolicy,
    group=st.sampled_from([GROUP, GROUP, GROUP, GROUP, KEY, None]),
    group_in_flight=st.sampled_from([1, 2, 3, 3]),
    on_exhausted=st.sampled_from(["park", "park", "skip", "block"]),
    dead_letter=st.sampled_from(["bin", "bin", "bin", "bin", "none", by_exchange, nowhere]),
    **common,
)
plains = st.builds(
    QueuePolicy,
    delay=st.sampled_from([Seconds(0), Seconds(2)]),
    dead_letter=st.sampled_from([DEAD_LETTERS, DEAD_LETTERS, by_exchange]),
    **common,
)
briefs = st.builds(
    QueuePolicy,
    durable=st.just(False),
    group=st.sampled_from([None, GROUP]),
    dead_letter=st.sampled_from(["bin", "none", by_exchange]),
    **common,
)
bins = st.builds(
    QueuePolicy,
    max_deliveries=st.none(),
    dead_letter=st.just("none"),
    max_messages=st.sampled_from([None, 1, 1, 3]),
    overflow=st.sampled_from(["refuse", "refuse", "drop-oldest"]),
)
messages = st.tuples(
    st.sampled_from(["fifo", "fifo", "fifo", "plain", "brief", "both", "nowhere"]),
    st.sampled_from(["a", "a", "a", "a", "a", "a", "b", "b", None]),
    st.sampled_from(["own", "own", "k1", "k2", "k3"]),
    st.sampled_from([None, None, None, None, None, 3.5, 15.5]),
    st.sampled_from([None, None, None, None, 0.0, 5.0]),
    st.sampled_from([1, 1, 0]),
)
queues = st.sampled_from(["fifo", "fifo", "fifo", "plain", "brief", "bin", DEAD_LETTERS])
