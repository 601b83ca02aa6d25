"""When entries expire, against a list of them."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given, settings

from gateway.queueing.entries import Entries
from gateway.queueing.ordering import NEVER
from gateway.queueing.timers import PARTS, Expiries

START = 1_700_000_000.0


@settings(max_examples=300)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("add"), st.floats(0.001, 4.0)),
            st.tuples(st.just("remove"), st.floats(0.0, 1.0)),
            st.tuples(st.just("pass"), st.floats(0.001, 1.5)),
        ),
        max_size=60,
    ),
    st.integers(1, 5),
)
def test_every_entry_is_reported_at_its_time(steps: list[tuple[str, float]], most: int) -> None:
    """Never before, at most a part of a second later, and not when it has left."""
    entries, now, ident = Entries(), START, 0
    expiries = Expiries(entries)
    here: dict[int, float] = {}

    def run(until: float) -> None:
        nonlocal now
        while (due := expiries.due()) <= until:
            now = max(now, due)
            for slot in expiries.take(now, most):
                expires = here.pop(slot)
                assert expires <= now <= expires + 1 / PARTS
                expiries.forget(slot)
                entries.remove(slot)
        now = until
        assert all(now < expires + 1 / PARTS for expires in here.values())

    for what, value in steps:
        if what == "add":
            ident += 1
            slot = entries.add(ident, 0, 0, 1, now + value, now, 0, 0)
            here[slot] = now + value
            expiries.watch(slot)
        elif what == "remove" and here:
            slot = sorted(here)[int(value * (len(here) - 1))]
            del here[slot]
            expiries.forget(slot)
            entries.remove(slot)
        elif what == "pass":
            run(now + value)
    run(now + 10)
    assert not here and expiries.due() == NEVER and expiries.count == 0
