"""Power cuts: whatever the disk had not fsynced may be gone or torn, and every promised commit is still there."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.storage import database
from gateway.storage import sqlite as store
from gateway.storage.journal import Commit, StateChange
from gateway.storage.sqlite import SqliteJournal
from tests.faults.disk import Disk, after_power_cut

State = tuple[list[tuple[int, bytes]], dict[int, bytes], list[StateChange]]


def state_of(journal: SqliteJournal) -> State:
    rows = [row for row, _ in journal.rows()]
    return list(journal.records()), journal.read(rows), list(journal.states())


def commits() -> list[Commit]:
    """Small and large ones, with removals, trims and states, over several checkpoints."""
    made = []
    for n in range(1, 60):
        size = (10, 700, 9_000, 60_000)[n % 4]
        made.append(
            Commit(
                b"record %d " % n * (n % 7 + 1),
                [(2 * n, bytes([n]) * size), (2 * n + 1, b"%d" % n)],
                [2 * (n - 5), 2 * (n - 9) + 1],
                [StateChange("owner", f"key {n % 5}", b"%d" % n if n % 3 else None)],
                n - 10 if n % 8 == 0 else None,
            )
        )
    return made


class Recorded:
    """One run: the files at its start, all that was written, and the state after each commit."""

    def __init__(self, path: Path) -> None:
        self.disk = Disk()
        self.states: list[State] = []
        journal = SqliteJournal(path, reserve=0)
        with self.disk.watched():
            journal.open()
            self.before = {
                found.name: found.read_bytes() for found in path.iterdir() if found.suffix in (".db", ".db-wal")
            }
            self.disk.events.clear()
            self.states.append(state_of(journal))
            for number, commit in enumerate(commits(), 1):
                journal.commit(commit)
                self.disk.mark(number)
                self.states.append(state_of(journal))
                if number % 20 == 0:
                    while journal.tidy():
                        pass
            journal.close()


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "WAL_LIMIT", 300_000)
        patch.setattr(store, "WAL_IDLE", 100_000)
        patch.setattr(store, "FREE_LIMIT", 4)
        return Recorded(tmp_path_factory.mktemp("recorded") / "data")


def start_after(recorded: Recorded, cut: int, path: Path, fate: Any) -> None:
    """Cut the power after that many events, start on what is left, and hold it against what was promised."""
    events = recorded.disk.events[:cut]
    promised = max((event.number for event in events if event.kind == "mark"), default=0)
    path.mkdir()
    for name, data in after_power_cut(recorded.before, events, fate).items():
        (path / name).write_bytes(data)
    journal = SqliteJournal(path, reserve=0)
    journal.open()
    found = state_of(journal)
    # The commit that was under way may be there, whole.
    assert found in recorded.states[promised : promised + 2]
    journal.commit(Commit(b"goes on"))
    journal.close()
    assert database.check(path).problems == ()


def test_the_record_is_worth_cutting(recorded: Recorded) -> None:
    kinds = {(event.kind, event.name) for event in recorded.disk.events}
    assert {("write", "gateway-1.db"), ("sync", "gateway-1.db"), ("truncate", "gateway-1.db")} <= kinds
    assert {("write", "gateway-1.db-wal"), ("sync", "gateway-1.db-wal"), ("delete", "gateway-1.db-wal")} <= kinds
    assert sum(event == ("sync", "gateway-1.db", 0, b"") for event in recorded.disk.events) > 5


def test_nothing_unsynced_arrives(recorded: Recorded, tmp_path: Path) -> None:
    for cut in range(0, len(recorded.disk.events) + 1, 7):
        start_after(recorded, cut, tmp_path / str(cut), lambda event: 0)


def test_everything_unsynced_arrives(recorded: Recorded, tmp_path: Path) -> None:
    for cut in range(3, len(recorded.disk.events) + 1, 7):
        start_after(recorded, cut, tmp_path / str(cut), lambda event: 1)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_part_of_the_unsynced_arrives(recorded: Recorded, tmp_path_factory: Any, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(recorded.disk.events)), label="cut")
    fates = data.draw(st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.9, 1.0]), min_size=1, max_size=12), label="fates")
    each = itertools.cycle(fates)
    start_after(recorded, cut, tmp_path_factory.mktemp("cut") / "data", lambda event: next(each))
