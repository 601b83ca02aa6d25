"""Numbers for what entries carry: after a crash, and of what is in memory alone."""

from __future__ import annotations

from gateway.queueing.interning import Extras
from gateway.storage.records import Extra

VALUE, OTHER = Extra(group="a"), Extra(group="b")


def test_a_value_that_a_crash_left_with_two_numbers_loses_one_after_the_other() -> None:
    extras = Extras()
    extras.restore(1, VALUE)
    extras.restore(2, VALUE)
    extras.restored({1: 1, 2: 1})
    extras.drop(1)
    assert extras.named(0, extras.top) == [(2, VALUE)]
    assert extras.use(VALUE) == (2, False)
    extras.drop(2)
    extras.drop(2)
    assert extras.in_use == []


def test_the_journal_never_hears_of_what_is_in_memory_alone() -> None:
    extras = Extras()
    assert extras.use(VALUE, durable=False) == (1, False)
    assert extras.use(VALUE) == (2, True)
    assert extras.use(OTHER, durable=False) == (3, False)
    assert extras.named(0, extras.top) == [(2, VALUE)]
    for number in (1, 2, 3):
        extras.drop(number)
    assert extras.in_use == []
