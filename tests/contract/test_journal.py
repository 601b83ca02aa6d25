"""What every Journal promises, asked of each store through the contract alone."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, precondition, rule

from gateway.errors import StoreFailedError
from gateway.model.state import StateChange
from gateway.storage.journal import Commit, Content, Journal
from gateway.storage.memory import MemoryJournal
from gateway.storage.sqlite import SqliteJournal

KINDS = ("memory", "sqlite")


def make(kind: str, path: Path) -> Journal:
    return MemoryJournal() if kind == "memory" else SqliteJournal(path, reserve=0)


@pytest.fixture(params=KINDS)
def journal(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Journal]:
    journal = make(request.param, tmp_path / "data")
    journal.open()
    yield journal
    journal.close()


def states(journal: Journal) -> dict[tuple[str, str], bytes | None]:
    return {(change.owner, change.key): change.value for change in journal.states()}


def test_a_new_store_is_empty(journal: Journal) -> None:
    assert list(journal.records()) == []
    assert list(journal.states()) == []
    assert list(journal.rows()) == []
    assert list(journal.expiring()) == []
    assert journal.read([1, 2]) == {}
    assert journal.room() > 0


def test_records_come_back_in_the_order_of_their_commits(journal: Journal) -> None:
    ids = [journal.commit(Commit(record=b"%d" % n)) for n in range(200)]
    assert ids == sorted(set(ids)) and ids[0] > 0
    assert list(journal.records()) == [(id, b"%d" % n) for n, id in enumerate(ids)]


def test_a_commit_without_a_record_has_id_0_and_appends_nothing(journal: Journal) -> None:
    assert journal.commit(Commit()) == 0
    assert journal.commit(Commit(bodies=[(1, b"x")])) == 0
    assert list(journal.records()) == []


def test_bodies_are_read_by_row_and_absent_ones_are_left_out(journal: Journal) -> None:
    big = bytes(range(256)) * 1024
    journal.commit(Commit(bodies=[(3, b"three"), (7, big), (9, b"")]))
    assert list(journal.rows()) == [(3, 5), (7, len(big)), (9, 0)]
    assert journal.read([7, 8, 3, 9]) == {7: big, 3: b"three", 9: b""}
    journal.commit(Commit(dropped=[7, 8]))
    assert list(journal.rows()) == [(3, 5), (9, 0)]
    assert journal.read([3, 7]) == {3: b"three"}


def test_a_body_dropped_in_its_own_commit_is_gone(journal: Journal) -> None:
    journal.commit(Commit(bodies=[(1, b"x"), (2, b"y")], dropped=[1]))
    assert list(journal.rows()) == [(2, 1)]


def test_state_changes_are_applied_in_order_and_none_removes(journal: Journal) -> None:
    journal.commit(Commit(state=[StateChange("a", "k", b"1"), StateChange("b", "k", b"2"), StateChange("a", "", b"")]))
    assert states(journal) == {("a", "k"): b"1", ("b", "k"): b"2", ("a", ""): b""}
    changes = [("a", "k", None), ("a", "k", b"3"), ("b", "k", b"4"), ("b", "k", None), ("c", "none", None)]
    journal.commit(Commit(state=[StateChange(*change) for change in changes]))
    assert states(journal) == {("a", "k"): b"3", ("a", ""): b""}


def test_what_expires_stays_until_its_time_is_given(journal: Journal) -> None:
    journal.commit(Commit(expiring=[(20.5, b"b"), (10.0, b"a")]))
    journal.commit(Commit(expiring=[(20.5, b"b"), (15.0, b"c")]))
    assert list(journal.expiring()) == [(10.0, b"a"), (15.0, b"c"), (20.5, b"b"), (20.5, b"b")]
    journal.commit(Commit(expired=15.0, expiring=[(1.0, b"d")]))
    assert list(journal.expiring()) == [(1.0, b"d"), (20.5, b"b"), (20.5, b"b")]
    journal.commit(Commit(expired=20.4))
    assert list(journal.expiring()) == [(20.5, b"b"), (20.5, b"b")]


def test_more_pieces_than_one_read_takes_that_end_at_one_time(journal: Journal) -> None:
    pieces = [(7.0, b"%d" % number) for number in range(200)]
    journal.commit(Commit(expiring=pieces))
    assert sorted(journal.expiring()) == sorted(pieces)


def test_names_of_states_may_be_any_text(journal: Journal) -> None:
    names = ["", "\0", "a\0b", "a", "ä", "\U0001f600", "'", "%", "A"]
    journal.commit(Commit(state=[StateChange(a, b, (a + b).encode()) for a, b in itertools.product(names, names)]))
    assert states(journal) == {(a, b): (a + b).encode() for a, b in itertools.product(names, names)}


def test_trim_removes_what_precedes_and_ids_are_never_used_again(journal: Journal) -> None:
    ids = [journal.commit(Commit(record=b"%d" % n)) for n in range(5)]
    journal.commit(Commit(trim=ids[2]))
    assert [id for id, _ in journal.records()] == ids[2:]
    journal.commit(Commit(trim=ids[-1] + 1))
    assert list(journal.records()) == []
    assert journal.commit(Commit(record=b"next")) > ids[-1]


def test_a_commit_never_trims_its_own_record(journal: Journal) -> None:
    first = journal.commit(Commit(record=b"old"))
    second = journal.commit(Commit(record=b"snapshot", trim=first + 100))
    assert list(journal.records()) == [(second, b"snapshot")]


def test_a_row_that_is_written_twice_fails_the_store_and_changes_nothing(journal: Journal) -> None:
    journal.commit(Commit(record=b"first", bodies=[(1, b"one")]))
    with pytest.raises(StoreFailedError):
        journal.commit(Commit(record=b"x", bodies=[(2, b"two"), (1, b"other")], state=[StateChange("a", "k", b"")]))
    with pytest.raises(StoreFailedError):
        journal.commit(Commit(record=b"y"))
    assert [record for _, record in journal.records()] == [b"first"]
    assert journal.read([1, 2]) == {1: b"one"}
    assert states(journal) == {}


def test_rebuild_keeps_exactly_what_it_is_given_and_heals(journal: Journal) -> None:
    last = journal.commit(Commit(record=b"old", bodies=[(1, b"one"), (2, b"two")], state=[StateChange("a", "k", b"")]))
    journal.commit(Commit(expiring=[(9.0, b"old")]))
    with pytest.raises(StoreFailedError):
        journal.commit(Commit(bodies=[(1, b"twice")]))
    changes = [StateChange("b", "x", b"1"), StateChange("b", "y", b"2"), StateChange("b", "x", None)]
    journal_expiring = [(5.0, b"key"), (6.0, b"key")]
    id = journal.rebuild(
        Content(iter([b"new 1", b"new 2"]), iter([2]), iter(changes), (), iter(journal_expiring))
    ).last_id
    records = list(journal.records())
    assert [record for _, record in records] == [b"new 1", b"new 2"]
    assert records[-1][0] == id and records[0][0] > last
    assert list(journal.rows()) == [(2, 3)]
    assert journal.read([1, 2]) == {2: b"two"}
    assert states(journal) == {("b", "y"): b"2"}
    assert list(journal.expiring()) == journal_expiring
    assert journal.commit(Commit(record=b"more", bodies=[(1, b"again")])) > id
    assert journal.read([1]) == {1: b"again"}


def test_rebuild_to_nothing_keeps_ids_growing(journal: Journal) -> None:
    last = journal.commit(Commit(record=b"old"))
    assert journal.rebuild(Content()).last_id == 0
    assert list(journal.records()) == []
    assert journal.commit(Commit(record=b"new")) > last


def test_rebuild_leaves_out_what_is_missing_and_says_so(journal: Journal) -> None:
    journal.commit(Commit(record=b"old", bodies=[(1, b"one")]))
    assert journal.rebuild(Content([b"new"], [1, 5])).left_out == [5]
    assert [record for _, record in journal.records()] == [b"new"]
    assert journal.read([1, 5]) == {1: b"one"}
    assert journal.commit(Commit(record=b"on")) > 0


def test_a_reader_thread_sees_whole_commits_while_they_are_made(journal: Journal) -> None:
    """Each commit replaces its forerunner's row, so a reader finds a body whole or not at all."""
    newest = [1]
    journal.commit(Commit(bodies=[(1, bytes([1]) * 50_000)]))
    faults: list[Any] = []
    stop = threading.Event()

    def read() -> None:
        found = 0
        while not stop.is_set() or not found:
            row = newest[0]
            for id, data in journal.read([row, row + 1]).items():
                found += 1
                if data != bytes([id % 256]) * 50_000:
                    faults.append(id)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for row in range(2, 200):
            journal.commit(Commit(record=b"r", bodies=[(row, bytes([row % 256]) * 50_000)], dropped=[row - 1]))
            newest[0] = row
    finally:
        stop.set()
        reader.join()
    assert faults == []
    assert list(journal.rows()) == [(199, 50_000)]


def test_tidy_ends(journal: Journal) -> None:
    journal.commit(Commit(bodies=[(row, bytes(200_000)) for row in range(1, 200)]))
    journal.commit(Commit(dropped=list(range(1, 199))))
    assert any(not journal.tidy() for _ in range(1000))
    assert list(journal.rows()) == [(199, 200_000)]


def test_close_twice(journal: Journal) -> None:
    journal.close()
    journal.close()


class JournalMachine(RuleBasedStateMachine):
    """Any sequence of calls, held against a model of three plain containers."""

    kind: str
    directory: Callable[[], Path]
    records_made = Bundle("records_made")

    def __init__(self) -> None:
        super().__init__()
        self.path = self.directory()
        self.log: dict[int, bytes] = {}
        self.bodies: dict[int, bytes] = {}
        self.states: dict[tuple[str, str], bytes] = {}
        self.expiring: list[tuple[float, bytes]] = []
        self.last = 0
        self.next_row = 1

    @initialize()
    def start(self) -> None:
        self.journal = make(self.kind, self.path)
        self.journal.open()

    @rule(
        record=st.binary(max_size=40),
        sizes=st.lists(st.sampled_from([0, 1, 500, 9_000, 40_000]), max_size=4),
        drop=st.lists(st.integers(0, 30), max_size=5),
        changes=st.lists(
            st.tuples(st.sampled_from("ab"), st.sampled_from("xyz"), st.none() | st.binary(max_size=9)), max_size=5
        ),
        trim=st.none() | st.floats(0, 1),
        expiring=st.lists(st.tuples(st.floats(0, 10), st.binary(max_size=40)), max_size=3),
        expired=st.none() | st.floats(0, 10),
    )
    def commit(
        self,
        record: bytes,
        sizes: list[int],
        drop: list[int],
        changes: list[Any],
        trim: float | None,
        expiring: list[tuple[float, bytes]],
        expired: float | None,
    ) -> None:
        new = [(self.next_row + n, bytes([n + 1]) * size) for n, size in enumerate(sizes)]
        self.next_row += len(new)
        dropped = [row for back in drop if (row := self.next_row - back) > 0]
        before = None if trim is None else round(trim * (self.last + 1))
        commit = Commit(record, new, dropped, [StateChange(*change) for change in changes], before, expiring, expired)
        id = self.journal.commit(commit)
        if before is not None:
            self.log = {id: kept for id, kept in self.log.items() if id >= before}
        if record:
            assert id > self.last
            self.log[id] = record
            self.last = id
        else:
            assert id == 0
        self.expiring = [item for item in self.expiring if expired is None or item[0] > expired] + expiring
        self.bodies.update(new)
        for row in dropped:
            self.bodies.pop(row, None)
        self._change(changes)

    @precondition(lambda self: self.kind == "sqlite")
    @rule()
    def reopen(self) -> None:
        self.journal.close()
        self.start()

    @rule(keep=st.booleans(), changes=st.lists(st.tuples(st.just("c"), st.sampled_from("xy"), st.binary()), max_size=2))
    def rebuild(self, keep: bool, changes: list[Any]) -> None:
        records = list(self.log.values()) if keep else []
        rows = [row for row in self.bodies if keep or row % 2]
        self.expiring = self.expiring if keep else []
        content = Content(records, rows, [StateChange(*change) for change in changes], (), self.expiring)
        id = self.journal.rebuild(content).last_id
        self.log = dict(zip(range(id - len(records) + 1, id + 1), records, strict=True))
        assert all(new > self.last for new in self.log)
        self.last = max(self.last, id)
        self.bodies = {row: self.bodies[row] for row in rows}
        self.states = {}
        self._change(changes)

    @rule()
    def tidy(self) -> None:
        self.journal.tidy()

    @invariant()
    def equal(self) -> None:
        assert list(self.journal.records()) == list(self.log.items())
        assert list(self.journal.rows()) == [(row, len(self.bodies[row])) for row in sorted(self.bodies)]
        assert self.journal.read(range(1, self.next_row)) == self.bodies
        assert states(self.journal) == self.states
        found = list(self.journal.expiring())
        assert [until for until, _ in found] == sorted(until for until, _ in found)
        assert sorted(found) == sorted(self.expiring)

    def teardown(self) -> None:
        if hasattr(self, "journal"):
            self.journal.close()

    def _change(self, changes: list[Any]) -> None:
        for owner, key, value in changes:
            self.states.pop((owner, key), None)
            if value is not None:
                self.states[owner, key] = value


@pytest.mark.parametrize("kind", KINDS)
def test_any_sequence_of_calls(kind: str, tmp_path: Path) -> None:
    from hypothesis.stateful import run_state_machine_as_test

    number = itertools.count()
    machine = type("Machine", (JournalMachine,), {"kind": kind, "directory": lambda _: tmp_path / str(next(number))})
    run_state_machine_as_test(machine, settings=settings(max_examples=40, stateful_step_count=25, deadline=None))
