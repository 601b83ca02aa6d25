"""Rows of bodies that are read from the disk: each once, few at a time, first come first served."""

from __future__ import annotations

from gateway.storage.body_rows import ROWS_AT_ONCE, Rows


def made(count: int) -> Rows:
    rows = Rows()
    for row in range(1, count + 1):
        rows.refer(row)
    return rows


def test_a_row_that_is_being_read_is_not_asked_for_again() -> None:
    rows = made(2)
    assert rows.data(1) is None
    assert rows.take_wanted() == [1]
    for _ in range(1000):
        assert rows.data(1) is None
    assert rows.data(2) is None
    assert rows.take_wanted() == []  # one read at a time
    rows.keep({1: b"one"})
    assert rows.data(1) == b"one"
    assert rows.take_wanted() == [2]


def test_no_more_than_a_few_are_in_memory_at_once_and_who_asked_first_is_served_first() -> None:
    rows = made(3 * ROWS_AT_ONCE)
    for row in range(3 * ROWS_AT_ONCE, ROWS_AT_ONCE, -1):
        rows.data(row)
    rows.data(1)
    first = rows.take_wanted()
    assert first == list(range(2 * ROWS_AT_ONCE + 1, 3 * ROWS_AT_ONCE + 1))
    rows.keep({row: b"" for row in first})
    # A queue behind asks for earlier rows again and again; the others have their turn all the same.
    rows.data(2)
    second = rows.take_wanted()
    assert second == list(range(ROWS_AT_ONCE + 1, 2 * ROWS_AT_ONCE + 1))
    rows.keep({row: b"" for row in second})
    assert rows.take_wanted() == [1, 2]


def test_what_could_not_be_read_may_be_asked_for_again() -> None:
    rows = made(1)
    rows.data(1)
    rows.take_wanted()
    rows.keep({})
    rows.data(1)
    assert rows.take_wanted() == [1]
