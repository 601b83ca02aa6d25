"""How much room the store on disk says it has."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.storage.directory import StoreDirectory
from gateway.storage.journal import Commit
from gateway.storage.sqlite import SqliteJournal

ROW = 256 * 1024
ROWS = 40
LEFT = 5 << 20


def test_what_is_free_in_the_file_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full but for the room that delivered messages have left in the file takes messages again."""
    journal = SqliteJournal(tmp_path / "store", reserve=0)
    journal.open()
    try:
        monkeypatch.setattr(StoreDirectory, "room", lambda self: LEFT)
        journal.commit(Commit(bodies=[(row, bytes(ROW)) for row in range(1, ROWS + 1)]))
        journal.tidy()
        assert LEFT <= journal.room() < LEFT + ROW
        journal.commit(Commit(dropped=list(range(1, ROWS + 1))))
        journal.tidy()
        assert LEFT + (ROWS - 2) * ROW < journal.room() < LEFT + (ROWS + 2) * ROW
    finally:
        journal.close()
