"""What only the store on disk promises: it survives its process, keeps others out, and says what is wrong."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from gateway.errors import StoreError
from gateway.model.state import StateChange
from gateway.storage import database, salvage
from gateway.storage import sqlite as store
from gateway.storage.journal import Commit, Content
from gateway.storage.sqlite import SqliteJournal

ROOT = Path(__file__).parents[2]

COMMIT_FOR_EVER = """
import sys
from pathlib import Path
from gateway.storage.journal import Commit, StateChange
from gateway.storage.sqlite import SqliteJournal

journal = SqliteJournal(Path(sys.argv[1]), reserve=0)
journal.open()
row = max((row for row, _ in journal.rows()), default=0)
while True:
    row += 1
    body = row.to_bytes(8, "big") * 2500
    id = journal.commit(
        Commit(b"%d" % row, [(row, body)], [row - 30], [StateChange("row", "newest", b"%d" % row)], row - 100)
    )
    sys.stdout.write(f"{id} {row}\\n")
    sys.stdout.flush()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def opened(path: Path) -> Iterator[Callable[..., SqliteJournal]]:
    """`opened()` is a journal on `path`; the one before it is closed first."""
    journals: list[SqliteJournal] = []

    def make(reserve: int = 0) -> SqliteJournal:
        if journals:
            journals.pop().close()
        journal = SqliteJournal(path, reserve)
        journal.open()
        journals.append(journal)
        return journal

    yield make
    for journal in journals:
        journal.close()


def file(path: Path) -> Path:
    return path / "gateway-1.db"


def test_everything_is_there_after_a_restart(opened: Callable[..., SqliteJournal]) -> None:
    journal = opened()
    id = journal.commit(Commit(b"record", [(1, b"one"), (5, bytes(300_000))], [], [StateChange("a", "k", b"v")]))
    journal = opened()
    assert list(journal.records()) == [(id, b"record")]
    assert list(journal.rows()) == [(1, 3), (5, 300_000)]
    assert journal.read([1, 5]) == {1: b"one", 5: bytes(300_000)}
    assert list(journal.states()) == [StateChange("a", "k", b"v")]


def test_ids_go_on_after_the_whole_log_was_trimmed_and_the_store_reopened(opened: Callable[..., SqliteJournal]) -> None:
    last = [opened().commit(Commit(record=b"x")) for _ in range(1)][-1]
    journal = opened()
    journal.commit(Commit(trim=last + 1))
    journal = opened()
    assert list(journal.records()) == []
    assert journal.commit(Commit(record=b"y")) == last + 1


def test_what_was_committed_survives_kill_9(path: Path) -> None:
    """Three lives; each is killed while it commits, and the next one starts on what it left."""
    promised = (0, 0)
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", COMMIT_FOR_EVER, str(path)], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        assert process.stdout is not None
        with process:
            lines = [process.stdout.readline() for _ in range(150)]
            process.send_signal(signal.SIGKILL)
            lines += process.stdout.read().splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n")]
        id, row = map(int, whole[-1].split())
        assert (id, row) > promised
        promised = (id, row)

        journal = SqliteJournal(path, reserve=0)
        journal.open()
        with closing(journal):
            records = list(journal.records())
            newest = records[-1][0]
            # The one that was under way may be there too, whole.
            assert newest in (id, id + 1)
            assert [(id, b"%d" % id) for id in range(records[0][0], newest + 1)] == records
            rows = [found for found, _ in journal.rows()]
            assert rows == list(range(newest - 29, newest + 1))
            assert journal.read(rows) == {found: found.to_bytes(8, "big") * 2500 for found in rows}
            assert list(journal.states()) == [StateChange("row", "newest", b"%d" % newest)]
        assert salvage.check(path).problems == ()


def test_a_second_opener_is_told_who_has_it(path: Path, opened: Callable[..., SqliteJournal]) -> None:
    first = opened()
    second = SqliteJournal(path)
    with pytest.raises(StoreError, match=f"in use by process {os.getpid()}"):
        second.open()
    second.close()
    with pytest.raises(StoreError, match="in use"):
        salvage.check(path)
    first.commit(Commit(record=b"still ours"))
    first.close()
    second.open()
    second.close()


def test_files_are_for_their_user_alone(path: Path, opened: Callable[..., SqliteJournal]) -> None:
    opened(1 << 20).commit(Commit(record=b"x"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert {stat.S_IMODE(found.stat().st_mode) for found in path.iterdir()} == {0o600}


def test_a_path_that_is_a_file(path: Path) -> None:
    path.write_text("no directory")
    with pytest.raises(StoreError, match="the store can't be written"):
        SqliteJournal(path).open()


def test_a_directory_that_may_not_be_written() -> None:
    parent = Path(tempfile.mkdtemp(dir="/tmp"))  # pytest's own folders let nobody else in
    try:
        parent.chmod(0o555)
        child = os.fork()
        if child == 0:  # as nobody, for root may write anywhere
            status = 1
            try:
                if os.geteuid() == 0:
                    os.setuid(65534)
                SqliteJournal(parent / "data").open()
            except StoreError as error:
                status = 0 if "Permission denied" in str(error) and str(parent) in str(error) else 2
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        shutil.rmtree(parent)


@pytest.mark.parametrize(
    "content",
    [b"", b"x", b"SQLite format 3\0", bytes(100_000), b"not a database at all " * 1000],
    ids=["empty", "a byte", "a bare header", "zeros", "text"],
)
def test_a_file_that_is_no_database(path: Path, content: bytes) -> None:
    path.mkdir()
    file(path).write_bytes(content)
    with pytest.raises(StoreError, match=r"gateway-1\.db"):
        SqliteJournal(path, reserve=0).open()
    assert file(path).read_bytes() == content


def test_another_programs_database_is_left_alone(path: Path) -> None:
    path.mkdir()
    with closing(sqlite3.connect(file(path))) as other:
        other.execute("CREATE TABLE theirs (x)")
    before = file(path).read_bytes()
    with pytest.raises(StoreError, match=r"gateway-1\.db: this is no store of the gateway; move it away"):
        SqliteJournal(path, reserve=0).open()
    assert file(path).read_bytes() == before


def test_a_newer_format_is_refused_and_left_alone(path: Path, opened: Callable[..., SqliteJournal]) -> None:
    opened().close()
    with closing(sqlite3.connect(file(path))) as newer:
        newer.execute(f"PRAGMA user_version = {database.FORMAT + 1}")
    with pytest.raises(StoreError, match=f"has format {database.FORMAT + 1}, and this program reads"):
        SqliteJournal(path, reserve=0).open()


def test_a_cut_off_file_is_refused(path: Path, opened: Callable[..., SqliteJournal]) -> None:
    journal = opened()
    journal.commit(Commit(bodies=[(1, bytes(500_000))]))
    journal.close()
    os.truncate(file(path), file(path).stat().st_size - 200_000)
    with pytest.raises(StoreError, match="the store is damaged"):
        SqliteJournal(path, reserve=0).open()


def test_a_flipped_bit_in_a_record_or_a_body_is_found(path: Path, opened: Callable[..., SqliteJournal]) -> None:
    journal = opened()
    journal.commit(Commit(b"the record" * 10, [(1, b"the body" * 100_000), (2, b"sound")]))
    journal.close()
    data = bytearray(file(path).read_bytes())
    data[data.index(b"the record")] ^= 1
    data[data.rindex(b"the body")] ^= 1
    file(path).write_bytes(data)

    report = salvage.check(path)
    assert report.problems == ("log: id 1 is not what was written", "bodies: row 1 is not what was written")
    journal = opened()
    with pytest.raises(StoreError, match="log record 1 is not what was written"):
        list(journal.records())
    assert journal.read([2]) == {2: b"sound"}
    with pytest.raises(StoreError, match="body row 1 is not what was written"):
        journal.read([1])


def test_a_rebuild_saves_all_but_a_damaged_row_and_keeps_the_old_file(
    path: Path, opened: Callable[..., SqliteJournal]
) -> None:
    journal = opened()
    journal.commit(Commit(b"record", [(1, b"the body" * 100_000), (2, b"sound")]))
    journal.close()
    data = bytearray(file(path).read_bytes())
    data[data.rindex(b"the body")] ^= 1
    file(path).write_bytes(data)
    journal = opened()
    aside = path / "damaged-1.db"
    assert journal.rebuild(Content([b"new"], [1, 2], [])) == (2, [1], str(aside))
    assert journal.read([1, 2]) == {2: b"sound"}
    assert aside.read_bytes() == bytes(data)
    assert journal.rebuild(Content([b"newer"], [1, 2], [])) == (3, [1], "")  # it was lost before, and is no news
    journal.close()
    opened()
    assert sorted(found.name for found in path.glob("*.db")) == ["damaged-1.db", "gateway-3.db"]


def test_damaged_pages_are_refused_at_the_start(path: Path, opened: Callable[..., SqliteJournal]) -> None:
    journal = opened()
    for row in range(1, 200):
        journal.commit(Commit(b"r" * 1000, [(row, bytes(3_000))]))
    journal.close()
    data = bytearray(file(path).read_bytes())
    data[database.PAGE * 12 : database.PAGE * 12 + 64] = b"\xff" * 64
    file(path).write_bytes(data)
    with pytest.raises(StoreError, match="the store is damaged"):
        SqliteJournal(path, reserve=0).open()
    assert salvage.check(path).problems


@pytest.mark.parametrize(("table", "found"), [("log", True), ("bodies", False)])
def test_of_a_large_file_all_but_the_bodies_is_checked(
    path: Path, opened: Callable[..., SqliteJournal], monkeypatch: pytest.MonkeyPatch, table: str, found: bool
) -> None:
    journal = opened()
    for number in range(1, 60):
        journal.commit(Commit(b"%d " % number * 300, [(number, b"%d " % number * 300)]))
    journal.close()
    with closing(sqlite3.connect(file(path))) as connection:
        ((root,),) = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = ?", (table,))
    data = bytearray(file(path).read_bytes())
    leaf = int.from_bytes(data[(root - 1) * database.PAGE + 8 :][:4], "big")  # its last child
    data[(leaf - 1) * database.PAGE + 3 : (leaf - 1) * database.PAGE + 5] = (
        b"\0\1"  # as if its page had one record alone
    )
    file(path).write_bytes(data)
    monkeypatch.setattr(store, "CHECK_LIMIT", 0)
    if found:
        with pytest.raises(StoreError, match="the store is damaged"):
            opened()
    else:
        opened()


def test_check_counts_and_changes_nothing(path: Path, opened: Callable[..., SqliteJournal]) -> None:
    with pytest.raises(StoreError, match="there is no store here"):
        salvage.check(path)
    assert not path.exists()
    journal = opened()
    journal.commit(Commit(b"r", [(1, b"x"), (2, b"y")], [], [StateChange("a", "b", b"c")]))
    journal.close()
    before = file(path).read_bytes()
    report = salvage.check(path)
    assert (report.records, report.bodies, report.states, report.problems) == (1, 2, 1, ())
    assert report.file == str(file(path)) and report.octets >= len(before)
    assert file(path).read_bytes() == before


def test_the_size_of_a_body_is_known_without_reading_it(path: Path, opened: Callable[..., SqliteJournal]) -> None:
    journal = opened()
    for row in range(1, 81):
        journal.commit(Commit(bodies=[(row, bytes(256 << 10))]))
    journal = opened()

    def octets_read() -> int:
        line = next(line for line in Path("/proc/self/io").read_text().splitlines() if line.startswith("rchar"))
        return int(line.split()[1])

    before = octets_read()
    assert len(list(journal.rows())) == 80
    assert octets_read() - before < 1 << 20


def test_the_write_ahead_log_stays_small(path: Path, opened: Callable[..., SqliteJournal]) -> None:
    journal = opened()
    log = Path(f"{file(path)}-wal")
    for row in range(1, 300):
        journal.commit(Commit(b"r" * 60_000, [(row, bytes(200_000))], [row - 3], [], row - 5))
        assert log.stat().st_size < 2 * store.WAL_LIMIT
    assert journal.size() < 3 * store.WAL_LIMIT


def test_freed_space_is_used_again(opened: Callable[..., SqliteJournal]) -> None:
    journal = opened()
    for row in range(1, 101):
        journal.commit(Commit(bodies=[(row, bytes(100_000))]))
    before = journal.size()
    for row in range(101, 1001):
        journal.commit(Commit(bodies=[(row, bytes(100_000))], dropped=[row - 100]))
    assert journal.size() < before + 2 * store.WAL_LIMIT


def test_freed_space_beyond_the_bound_is_given_back(opened: Callable[..., SqliteJournal]) -> None:
    """3 x what is live + 128 MB, here with 64 MB less: that is the reserve's."""
    journal = opened()
    for row in range(1, 700):
        journal.commit(Commit(bodies=[(row, bytes(256 << 10))]))
    assert journal.size() > 150 << 20
    journal.commit(Commit(dropped=list(range(1, 698))))
    while journal.tidy():
        pass
    assert journal.size() < 3 * (512 << 10) + (64 << 20)
    assert journal.read([698]) == {698: bytes(256 << 10)}


def test_commits_alone_keep_the_bound_while_a_backlog_drains(opened: Callable[..., SqliteJournal]) -> None:
    journal = opened()
    for row in range(1, 801):
        journal.commit(Commit(bodies=[(row, bytes(256 << 10))]))
    for row in range(1, 801):
        journal.commit(Commit(b"settled", dropped=[row], trim=row))
        assert journal.size() < 3 * ((800 - row) << 18) + (64 << 20)


def test_rebuild_leaves_one_file_and_a_restart_finds_it(path: Path, opened: Callable[..., SqliteJournal]) -> None:
    journal = opened()
    journal.commit(Commit(b"old", [(1, b"one"), (2, bytes(300_000))], [], [StateChange("a", "k", b"v")]))
    journal.rebuild(Content([b"new"], [2], [StateChange("b", "k", b"w")]))
    journal.commit(Commit(b"after"))
    assert sorted(found.name for found in path.glob("*.db")) == ["gateway-2.db"]
    journal = opened()
    assert [record for _, record in journal.records()] == [b"new", b"after"]
    assert journal.read([1, 2]) == {2: bytes(300_000)}
    assert list(journal.states()) == [StateChange("b", "k", b"w")]


def test_what_a_rebuild_left_behind_when_it_was_killed_is_removed(
    path: Path, opened: Callable[..., SqliteJournal]
) -> None:
    journal = opened()
    journal.commit(Commit(b"kept"))
    journal.close()
    left = ["building.db", "building.db-journal", "gateway-2.db-wal", "gateway-3.db-shm"]
    for name in left:
        (path / name).write_bytes(b"half")
    (path / "gateway-2.db.txt").write_text("somebody's note")
    journal = opened()
    assert list(journal.records()) == [(1, b"kept")]
    assert not any((path / name).exists() for name in left)
    assert (path / "gateway-2.db.txt").exists()


def test_a_crash_after_a_rebuild_was_published_never_mixes_two_files(
    path: Path, opened: Callable[..., SqliteJournal]
) -> None:
    """The old file and its write-ahead log still stand beside the new one, as after a kill before their removal."""
    journal = opened()
    journal.commit(Commit(b"old", [(1, b"one")]))
    old = {name: (path / name).read_bytes() for name in ("gateway-1.db", "gateway-1.db-wal")}
    journal.rebuild(Content([b"new"], [1], []))
    journal.close()
    for name, data in old.items():
        (path / name).write_bytes(data)
    journal = opened()
    assert [record for _, record in journal.records()] == [b"new"]
    assert sorted(found.name for found in path.glob("*.db")) == ["gateway-2.db"]


def test_the_reserve_is_taken_at_the_start_and_given_back_at_the_end(path: Path) -> None:
    with closing(SqliteJournal(path, reserve=8 << 20)) as journal:
        journal.open()
        assert (path / "reserve").stat().st_size == 8 << 20
        found = os.statvfs(path)
        assert journal.room() == pytest.approx(found.f_bavail * found.f_frsize, abs=64 << 20)
        assert journal.size() < 1 << 20
    assert not (path / "reserve").exists()


def test_a_file_system_that_says_nothing_of_its_room_fails_no_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked behind each commit, which is durable by then."""

    def vanished(path: object) -> os.statvfs_result:
        raise FileNotFoundError(path)

    with closing(SqliteJournal(tmp_path / "store")) as journal:
        journal.open()
        monkeypatch.setattr(os, "statvfs", vanished)
        assert journal.room() == 0


def test_a_closed_store_says_so(opened: Callable[..., SqliteJournal]) -> None:
    journal = opened()
    journal.close()
    for call in (lambda: journal.commit(Commit(b"x")), lambda: journal.read([1]), lambda: journal.tidy()):
        with pytest.raises(StoreError, match="closed"):
            call()
