"""`gateway check --store`: where a store is damaged, what can be saved of it, and saving it."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.model.policy import DedupPolicy, QueuePolicy
from gateway.storage.sqlite import SqliteJournal
from tests.harness.kernel import Clock, Kernel, grouped, to

ROOT = Path(__file__).resolve().parents[2]
POLICIES = {
    "orders": QueuePolicy(group="{header[group]}", dedup=DedupPolicy("{header[key]}")),
    "plain": QueuePolicy(),
}


def check(path: Path, *options: str) -> tuple[int, Any, str]:
    """Status, JSON on standard output or text, and standard error."""
    config = path.parent / "gateway.yaml"
    config.write_text(f"store: {{path: {path}}}\n")
    command = [sys.executable, "-m", "gateway", "check", str(config), "--store", *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    return ran.returncode, json.loads(ran.stdout) if "--json" in options and ran.stdout else ran.stdout, ran.stderr


def content(path: Path) -> dict[str, list[str]]:
    journal = SqliteJournal(path, reserve=0)
    journal.open()
    kernel = Kernel(POLICIES, journal=journal, clock=Clock(time.time()))
    found = {name: kernel.content(name) for name in POLICIES}
    journal.close()
    return found


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Thirty messages in two queues, a commit each, five of them settled."""
    path = tmp_path / "store"
    journal = SqliteJournal(path, reserve=0)
    journal.open()
    kernel = Kernel(POLICIES, journal=journal, clock=Clock(time.time()))
    for number in range(20):
        kernel.accept(grouped("orders", f"order {number:02} ".ljust(30_000, "o"), f"g{number % 4}", str(number)))
        kernel.commit()
    for number in range(10):
        kernel.accept(to("plain", f"plain {number:02} ".ljust(300, "p")))
        kernel.commit()
    worker = kernel.worker("plain")
    kernel.dispatch()
    worker.done(*[f"plain {number:02} ".ljust(300, "p") for number in range(5)])
    kernel.commit()
    journal.close()
    return path


def damage(path: Path, find: Callable[[bytes], int]) -> None:
    file = path / "gateway-1.db"
    data = bytearray(file.read_bytes())
    data[find(bytes(data))] ^= 1
    file.write_bytes(data)


def queues(found: dict[str, Any]) -> dict[str, tuple[int, int]]:
    return {one["queue"]: (one["messages"], one["lost"]) for one in found["queues"]}


def test_a_sound_store(store: Path) -> None:
    before = (store / "gateway-1.db").read_bytes()
    status, found, _ = check(store, "--json")
    assert status == 0
    assert queues(found) == {"dead-letters": (0, 0), "orders": (20, 0), "plain": (5, 0)}
    assert found["keys"] == 20
    assert found["report"]["problems"] == []
    status, text, _ = check(store)
    assert status == 0 and "the store is sound" in text
    assert (store / "gateway-1.db").read_bytes() == before


def test_a_damaged_body_costs_its_messages_alone(store: Path, tmp_path: Path) -> None:
    damage(store, lambda data: data.index(b"order 07 ooo") + 20_000)
    status, found, _ = check(store, "--json")
    assert status == 2
    assert (queues(found)["orders"], queues(found)["plain"]) == ((19, 1), (5, 0))
    (problem,) = found["report"]["problems"]
    assert problem.startswith("bodies: row ") and problem.endswith(" is not what was written")
    status, _, errors = check(store)
    assert "damaged: bodies: row" in errors and "--save-to" in errors

    saved = tmp_path / "saved"
    status, text, _ = check(store, "--save-to", str(saved))
    assert status == 2 and f"set store.path to {saved}" in text
    status, found, _ = check(saved, "--json")
    assert found["report"]["problems"] == []
    assert (queues(found)["orders"], found["keys"]) == ((19, 1), 20)
    assert check(store, "--save-to", str(saved))[0] == 2
    assert "there is a store already" in check(store, "--save-to", str(saved))[2]


def test_a_damaged_record_costs_what_it_said_alone(store: Path, tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(store / "gateway-1.db")) as database:
        # It names a group that others belong to.
        ((record,),) = database.execute(
            "SELECT record FROM log WHERE instr(record, CAST('g3' AS BLOB)) ORDER BY id LIMIT 1"
        )
    damage(store, lambda data: data.index(record) + 10)
    status, found, _ = check(store, "--json")
    assert status == 2
    assert any(problem.startswith("log: id ") for problem in found["report"]["problems"])
    assert sum(queues(found)["orders"]) == 19
    saved = tmp_path / "saved"
    check(store, "--save-to", str(saved))
    bodies = content(saved)
    assert len(bodies["orders"]) == 19 and len(bodies["plain"]) == 5


def test_damaged_pages_cost_what_is_on_them(store: Path, tmp_path: Path) -> None:
    file = store / "gateway-1.db"
    data = bytearray(file.read_bytes())
    # The leaf that holds the small bodies: their tree is broken there.
    page = data.index(b"plain 07 ") // 8192 * 8192
    data[page : page + 8192] = b"\xff" * 8192
    file.write_bytes(data)
    status, found, _ = check(store, "--json")
    assert status == 2
    assert any("can't be read" in problem for problem in found["report"]["problems"])
    saved = tmp_path / "saved"
    check(store, "--save-to", str(saved))
    status, found, _ = check(saved, "--json")
    assert found["report"]["problems"] == []
    messages, lost = queues(found)["orders"]
    assert messages + lost == 20 and messages >= 15


def test_what_is_no_store(tmp_path: Path) -> None:
    status, _, errors = check(tmp_path / "none")
    assert status == 2 and "there is no store here" in errors


def test_a_store_in_use_is_left_alone(store: Path) -> None:
    journal = SqliteJournal(store, reserve=0)
    journal.open()
    status, _, errors = check(store)
    journal.close()
    assert status == 2 and "in use by process" in errors
