"""Writes and fsyncs that fail, one after the other in every place where one can: what the store then says and keeps."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from gateway.errors import StoreError, StoreFailedError, StoreFullError
from gateway.model.state import StateChange
from gateway.storage import salvage
from gateway.storage import sqlite as store
from gateway.storage.journal import Commit, Content
from gateway.storage.sqlite import SqliteJournal
from tests.faults.disk import FULL, IOERR_FSYNC, IOERR_WRITE, OK, Disk, Event

ROOT = Path(__file__).parents[2]
FIRST = Commit(b"first", [(1, b"one" * 9000), (2, b"two")], [], [StateChange("a", "k", b"1")])
SECOND = Commit(b"second" * 9000, [(3, b"three" * 50_000)], [1], [StateChange("a", "k", b"2")])
BEFORE = ([b"first"], {1: b"one" * 9000, 2: b"two"}, [StateChange("a", "k", b"1")])
AFTER = ([b"first", b"second" * 9000], {2: b"two", 3: b"three" * 50_000}, [StateChange("a", "k", b"2")])


@pytest.fixture
def disk() -> Iterator[Disk]:
    with Disk().watched() as disk:
        yield disk


@pytest.fixture
def journals(tmp_path: Path) -> Iterator[Callable[[int], SqliteJournal]]:
    """`journals(n)` is an open journal on folder n that holds FIRST."""
    made: list[SqliteJournal] = []

    def make(number: int) -> SqliteJournal:
        journal = SqliteJournal(tmp_path / str(number), reserve=0)
        journal.open()
        journal.commit(FIRST)
        made.append(journal)
        return journal

    yield make
    for journal in made:
        journal.close()


def state_of(journal: SqliteJournal) -> tuple[list[bytes], dict[int, bytes], list[StateChange]]:
    rows = [row for row, _ in journal.rows()]
    return [record for _, record in journal.records()], journal.read(rows), list(journal.states())


def reopened(journal: SqliteJournal, path: Path) -> SqliteJournal:
    journal.close()
    assert salvage.check(path).problems == ()
    journal = SqliteJournal(path, reserve=0)
    journal.open()
    return journal


def fail_at(place: int, code: int, kinds: tuple[str, ...] = ("write", "sync", "truncate")) -> Callable[[Event], int]:
    """A fault for the operation of these kinds at that place, counted from 0, and every one after it: a disk that is
    full or broken stays so."""
    seen = -1

    def fault(event: Event) -> int:
        nonlocal seen
        seen += event.kind in kinds
        return code if event.kind in kinds and seen >= place else OK

    return fault


def places(disk: Disk, kinds: tuple[str, ...], work: Callable[[], object]) -> int:
    """How many operations of these kinds that work takes."""
    before = len(disk.events)
    work()
    return sum(event.kind in kinds for event in disk.events[before:])


def test_a_full_disk_rolls_back_wherever_it_is_met(
    disk: Disk, journals: Callable[[int], SqliteJournal], tmp_path: Path
) -> None:
    count = places(disk, ("write",), partial(journals(1000).commit, SECOND))
    assert count > 20
    for place in range(count):
        journal = journals(place)
        disk.fault = fail_at(place, FULL, ("write",))
        for _ in range(2):
            with pytest.raises(StoreFullError, match="the disk is full"):
                journal.commit(SECOND)
        disk.fault = lambda event: OK
        assert state_of(journal) == BEFORE
        assert journal.commit(SECOND) == 2
        assert state_of(journal) == AFTER
        journal = reopened(journal, tmp_path / str(place))
        assert state_of(journal) == AFTER
        journal.close()


def test_what_a_full_disk_refused_is_gone_after_a_restart(
    disk: Disk, journals: Callable[[int], SqliteJournal], tmp_path: Path
) -> None:
    for place in range(places(disk, ("write",), partial(journals(1000).commit, SECOND))):
        journal = journals(place)
        disk.fault = fail_at(place, FULL, ("write",))
        with pytest.raises(StoreFullError):
            journal.commit(SECOND)
        disk.fault = lambda event: OK
        journal = reopened(journal, tmp_path / str(place))
        assert state_of(journal) == BEFORE
        journal.close()


@pytest.mark.parametrize(("kind", "code"), [("sync", IOERR_FSYNC), ("write", IOERR_WRITE)])
def test_after_an_error_the_file_is_never_written_again_and_a_rebuild_heals(
    disk: Disk, journals: Callable[[int], SqliteJournal], tmp_path: Path, kind: str, code: int
) -> None:
    for place in range(places(disk, (kind,), partial(journals(1000).commit, SECOND))):
        journal = journals(place)
        disk.fault = fail_at(place, code, (kind,))
        with pytest.raises(StoreFailedError, match="nothing more is written to this file"):
            journal.commit(SECOND)
        disk.fault = lambda event: OK  # even though the disk is well again (a later fsync may lie)
        failed_at = len(disk.events)
        for call in (partial(journal.commit, SECOND), partial(journal.commit, Commit()), journal.tidy):
            with pytest.raises(StoreFailedError):
                call()
        assert state_of(journal) == BEFORE
        assert journal.rebuild(Content([b"first"], [1, 2], [StateChange("a", "k", b"1")])).last_id > 1
        assert {event.name for event in disk.events[failed_at:]}.isdisjoint({"gateway-1.db", "gateway-1.db-wal"})
        assert state_of(journal) == BEFORE
        journal.commit(SECOND)
        journal = reopened(journal, tmp_path / str(place))
        assert state_of(journal) == AFTER
        journal.close()


def test_a_process_that_ends_after_an_error_leaves_all_of_the_commit_or_none(
    disk: Disk, journals: Callable[[int], SqliteJournal], tmp_path: Path
) -> None:
    for place in range(places(disk, ("write", "sync"), partial(journals(1000).commit, SECOND))):
        journal = journals(place)
        disk.fault = fail_at(place, IOERR_FSYNC, ("write", "sync"))
        with pytest.raises(StoreFailedError):
            journal.commit(SECOND)
        disk.fault = lambda event: OK
        failed_at = len(disk.events)
        journal.close()
        assert disk.events[failed_at:] == []  # not even a checkpoint
        journal = reopened(journal, tmp_path / str(place))
        assert state_of(journal) in (BEFORE, AFTER)
        journal.close()


def test_a_rebuild_that_fails_anywhere_leaves_the_old_file_and_may_be_tried_again(
    disk: Disk, journals: Callable[[int], SqliteJournal], tmp_path: Path
) -> None:
    content = Content([b"first"], [1, 2], [StateChange("a", "k", b"1")])
    count = places(disk, ("write", "sync"), partial(journals(1000).rebuild, content))
    assert count > 20
    for place in range(count):
        journal = journals(place)
        disk.fault = fail_at(0, IOERR_FSYNC, ("sync",))
        with pytest.raises(StoreFailedError):
            journal.commit(SECOND)
        disk.fault = fail_at(place, FULL if place % 2 else IOERR_FSYNC, ("write", "sync"))
        with pytest.raises(StoreError, match="the store can't be used"):
            journal.rebuild(content)
        disk.fault = lambda event: OK
        with pytest.raises(StoreFailedError):
            journal.commit(SECOND)
        assert state_of(journal) == BEFORE
        assert [found.name for found in (tmp_path / str(place)).glob("gateway-*.db")] == ["gateway-1.db"]
        journal.rebuild(content)
        journal.commit(SECOND)
        journal = reopened(journal, tmp_path / str(place))
        assert state_of(journal) == AFTER
        journal.close()


def test_a_rebuild_whose_directory_or_file_can_not_be_synced_fails(
    journals: Callable[[int], SqliteJournal], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really, left = os.fsync, 0

    def fsync(fd: int) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        really(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    for place in (1, 2, 3):  # the new file, its rename, its write-ahead log
        journal = journals(place)
        left = place
        with pytest.raises(StoreError, match="Input/output error"):
            journal.rebuild(Content([b"first"], [1, 2], [StateChange("a", "k", b"1")]))
        assert left == 0
        assert journal.commit(SECOND) == 2
        journal = reopened(journal, tmp_path / str(place))
        assert state_of(journal) == AFTER
        journal.close()


def test_a_checkpoint_whose_fsync_fails_fails_the_store_and_loses_nothing(
    disk: Disk, journals: Callable[[int], SqliteJournal], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in range(2):  # the log's own fsync, and the database's
        monkeypatch.setattr(store, "WAL_LIMIT", 1 << 20)
        journal = journals(place)
        monkeypatch.setattr(store, "WAL_LIMIT", 1)
        disk.fault = fail_at(place, IOERR_FSYNC, ("sync",))
        with pytest.raises(StoreFailedError):
            journal.commit(SECOND)
        disk.fault = lambda event: OK
        assert state_of(journal) == BEFORE
        journal.rebuild(Content([b"first"], [1, 2], [StateChange("a", "k", b"1")]))
        journal.commit(SECOND)
        journal = reopened(journal, tmp_path / str(place))
        assert state_of(journal) == AFTER
        journal.close()


def test_a_checkpoint_that_finds_no_room_waits_while_commits_go_on(
    disk: Disk, journals: Callable[[int], SqliteJournal], monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = journals(1)
    monkeypatch.setattr(store, "WAL_LIMIT", 1)
    disk.fault = lambda event: FULL if event.name == "gateway-1.db" else OK
    for n in range(5):
        journal.commit(Commit(b"%d" % n))
    disk.fault = lambda event: OK
    before = len(disk.events)
    journal.commit(Commit(b"5"))
    assert any(event.kind == "sync" and event.name == "gateway-1.db" for event in disk.events[before:])
    assert [record for _, record in journal.records()] == [b"first", *(b"%d" % n for n in range(6))]


def test_the_reserve_is_spent_on_settlements_alone_and_taken_again_later(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "data"
    journal = SqliteJournal(path, reserve=1 << 20)
    journal.open()
    journal.commit(FIRST)
    disk.fault = lambda event: FULL if (path / "reserve").exists() else OK
    with pytest.raises(StoreFullError):
        journal.commit(SECOND)
    assert (path / "reserve").exists()
    assert journal.commit(Commit(b"settled", dropped=[1])) == 2
    assert not (path / "reserve").exists()
    monkeypatch.setattr(store, "WAL_LIMIT", 1)
    disk.fault = lambda event: OK
    journal.commit(Commit(b"there is room again"))
    assert (path / "reserve").stat().st_size == 1 << 20
    journal.close()


def test_a_new_file_that_finds_no_room_gets_the_reserve(disk: Disk, tmp_path: Path) -> None:
    path = tmp_path / "data"
    journal = SqliteJournal(path, reserve=1 << 20)
    journal.open()
    journal.commit(FIRST)
    disk.fault = fail_at(0, IOERR_FSYNC, ("sync",))
    with pytest.raises(StoreFailedError):
        journal.commit(SECOND)
    disk.fault = lambda event: FULL if (path / "reserve").exists() and event.kind == "write" else OK
    with pytest.raises(StoreError, match="the store can't be used"):
        journal.rebuild(Content([b"first"], [1, 2], [StateChange("a", "k", b"1")]))
    assert not (path / "building.db").exists()  # which took room
    journal.rebuild(Content([b"first"], [1, 2], [StateChange("a", "k", b"1")]))
    assert state_of(journal) == BEFORE
    journal.close()


def test_a_start_that_can_not_empty_the_log_says_so(
    disk: Disk, journals: Callable[[int], SqliteJournal], tmp_path: Path
) -> None:
    journal = journals(1)
    disk.fault = fail_at(0, IOERR_FSYNC, ("sync",))
    with pytest.raises(StoreFailedError):
        journal.commit(SECOND)
    journal.close()  # with the log left as it is
    with pytest.raises(StoreError, match=r"gateway-1\.db"):
        SqliteJournal(tmp_path / "1", reserve=0).open()
    disk.fault = lambda event: OK
    journal = SqliteJournal(tmp_path / "1", reserve=0)
    before = len(disk.events)
    journal.open()
    kinds = [(event.kind, event.name) for event in disk.events[before:]]
    assert ("sync", "gateway-1.db") in kinds  # checkpointed and fsynced before the first commit
    assert state_of(journal) in (BEFORE, AFTER)
    journal.close()


FILL = """
import sys
from pathlib import Path
from gateway.errors import StoreFullError
from gateway.storage.salvage import check
from gateway.storage.journal import Commit
from gateway.storage.sqlite import SqliteJournal

path = Path(sys.argv[1])
(path / "other").write_bytes(bytes(8 << 20))
journal = SqliteJournal(path / "data", reserve=16 << 20)
journal.open()
stored = 0
try:
    while True:
        journal.commit(Commit(b"m", [(stored + 1, bytes([stored % 256]) * 100_000)]))
        stored += 1
except StoreFullError:
    assert journal.room() < 200_000, journal.room()
with open(path / "other", "ab", buffering=0) as other:  # something else takes what is left
    try:
        while other.write(bytes(4096)):
            pass
    except OSError:
        pass
assert journal.room() == 0
assert (path / "data/reserve").exists()
settled = 0
while settled < stored:  # settlements still have the reserve
    settled += 1
    journal.commit(Commit(b"settled", dropped=[settled]))
full = 0
try:
    while True:
        journal.commit(Commit(b"f", [(stored + full + 1, bytes(100_000))]))
        full += 1
except StoreFullError:
    pass
(path / "other").unlink()
journal.commit(Commit(b"room again", [(stored + full + 1, bytes(100_000))]))
rows = [row for row, _ in journal.rows()]
assert rows == list(range(stored + 1, stored + full + 2)), rows
journal.close()
assert check(path / "data").problems == ()
print("stored", stored, "full", full)
"""


def test_a_file_system_that_is_really_full(tmp_path: Path) -> None:
    """In a namespace of its own, where anyone may mount a small one."""
    own = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-ec"]
    mount = 'mount -t tmpfs -o size=48m none "$1"'
    if subprocess.run([*own, mount, "sh", str(tmp_path)], capture_output=True, check=False).returncode:
        pytest.skip("this machine lets no user mount a file system")
    script = mount + '; shift; exec "$@"'
    found = subprocess.run(
        [*own, script, "sh", str(tmp_path), sys.executable, "-c", FILL, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert "stored" in found.stdout
