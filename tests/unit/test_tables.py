"""Every table of the command line, at every width: names survive, no number is cut, what weighs less goes first."""

from __future__ import annotations

import ast
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from typer.testing import CliRunner

from gateway.__main__ import app
from gateway.admin import explain
from gateway.admin.operations import Step
from gateway.admin.views import Body, DeathView, MessageView, StoredView
from gateway.cli import commands, tables
from gateway.cli import dead_letters as redrive
from gateway.cli.commands import Answer
from gateway.cli.tables import Column
from gateway.engine import inspection
from gateway.logs import printable
from gateway.storage.salvage import Report

SOURCES = Path(tables.__file__).parents[1]
CONFIG = SOURCES.parent / "config" / "gateway.yaml"
WIDTHS = [60, 80, 100, 120, 200]
T = TypeVar("T")

counts = st.integers(0, 10**6) | st.integers(0, 2**63 - 1)
letters = st.characters(
    codec="utf-8", exclude_categories=["Cc", "Cs", "Mn", "Me", "Mc", "Cf", "Zs", "Zl", "Zp"]
).filter(
    # What takes no cell can't be told by cells to be on this side of a column's edge or on that.
    lambda char: cell_len(char) > 0
)
names = st.text("abcdefghij./-", min_size=1, max_size=24) | st.text(letters, min_size=1, max_size=255)
words = st.text(letters | st.sampled_from(" \t\n\x1b[]"), max_size=300)


def squeezed(text: str) -> str:
    """Without blanks, which a fold may take away."""
    return "".join(text.split())


def cut(line: str, start: int, end: int) -> str:
    """What stands in these cells of a terminal's line."""
    found, at = "", 0
    for char in line:
        if start <= at < end:
            found += char
        at += cell_len(char)
    return found


def judge(columns: Sequence[Column], rows: Sequence[Sequence[Any]], printed: str, width: int) -> None:
    """Whether a table shows what it must at that width."""
    cells = [[printable("" if cell is None else str(cell)) for cell in row] for row in rows]
    longest = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
    shown = tables.fit(columns, longest, width)
    lines = printed.rstrip("\n").splitlines()
    assert max(map(cell_len, lines)) <= width
    gone = [place for place in range(len(columns)) if place not in shown and longest[place]]
    if gone:
        note = next(place for place, line in enumerate(lines) if line.startswith("no room for: "))
        told = squeezed("".join(lines[note:]))
        assert all(squeezed(columns[place].title) in told for place in gone), "what is left out is said"
        lines = lines[:note]
    if any(column.title for column in columns):
        head = next(place for place, line in enumerate(lines) if line.strip("─ ") == "" and "─" in line)
        titles, lines = lines[:head], lines[head + 1 :]
    start = 0
    for place, size in shown.items():
        column, wanted = columns[place], [row[place] for row in cells]
        pieces = [cut(line, start, start + size) for line in lines]
        assert squeezed("".join(pieces)) == squeezed("".join(wanted)), f"{column.title}: a value is cut"
        if column.title:
            assert squeezed("".join(cut(line, start, start + size) for line in titles)) == squeezed(column.title)
        if column.whole:
            assert [piece.strip() for piece in pieces if piece.strip()] == [
                value.strip() for value in wanted if value.strip()
            ], f"{column.title}: a value does not stand on one line"
        start += size + tables.GAP
    for place in gone:
        weight = columns[place].weight
        assert weight is not None, f"{columns[place].title} was left out"
        heavier = [columns[other].weight for other in shown if longest[other]]
        assert all(other is None or other >= weight for other in heavier), "what weighs more went first"
    assert len(tables.fit(columns, longest, 100_000)) == len(columns), "with room for all, all are there"


@st.composite
def table(draw: st.DrawFn) -> tuple[list[Column], list[list[Any]]]:
    columns: list[Column] = [tables.name("queue")]
    values: list[st.SearchStrategy[Any]] = [names]
    kinds: list[tuple[Callable[..., Column], st.SearchStrategy[Any]]] = [
        (tables.number, counts), (tables.text, words), (tables.word, st.sampled_from(["ready", "in-flight", ""])),
    ]  # fmt: skip
    if draw(st.booleans()):
        columns.append(tables.number("id", None))
        values.append(counts)
    if draw(st.booleans()):
        columns.append(tables.name("topic of it"))
        values.append(names)
    weights = draw(st.lists(st.integers(1, 1000), max_size=14, unique=True))
    for weight in weights:
        make, what = draw(st.sampled_from(kinds))
        columns.append(make(draw(st.sampled_from(["waiting", "in flight", "duplicates", "x"])), weight))
        values.append(what)
    order = draw(st.permutations(range(len(columns))))
    columns, values = [columns[place] for place in order], [values[place] for place in order]
    rows = draw(st.lists(st.tuples(*values), min_size=1, max_size=4))
    return columns, [list(row) for row in rows]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(table(), st.sampled_from(WIDTHS))
def test_any_table_at_any_width(capsys, monkeypatch, drawn, width):
    columns, rows = drawn
    monkeypatch.setenv("COLUMNS", str(width))
    capsys.readouterr()
    tables.show(columns, rows, "nothing")
    judge(columns, rows, capsys.readouterr().out, width)


# every table there is, by the commands that print it

Shown = tuple[Sequence[Column], list[Sequence[Any]]]


class Client:
    """Answers as a daemon's admin API would."""

    def __init__(self, answers: dict[str, Any]) -> None:
        self.answers = answers

    def get(self, path: str, gives: type[T], **query: Any) -> T:
        return msgspec.convert(msgspec.to_builtins(self.answers[path]), gives)


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Shown]]:
    """What was given to be shown."""
    found: list[Shown] = []
    original = tables.show

    def show(columns: Sequence[Column], rows: Any, empty: str) -> None:
        given = list(rows)
        found.append((columns, given))
        original(columns, given, empty)

    monkeypatch.setattr(tables, "show", show)
    yield found


def numbered(draw: st.DrawFn, **fields: st.SearchStrategy[Any]) -> dict[str, Any]:
    return {name: draw(value) for name, value in fields.items()}


@st.composite
def answers(draw: st.DrawFn) -> dict[str, Any]:
    ages = st.floats(0, 10**9)
    queue = numbered(draw, name=names.filter(lambda n: not n.startswith(("mqtt.", "link."))), octets=counts,
                     oldest_age_seconds=ages, removed=st.booleans(), dead_letter=st.just("q"),
                     **{name: counts for name in (
                         "depth", "in_flight", "consumers", "groups", "parked_groups", "accepted", "duplicates",
                         "settled", "retried", "dead_lettered")})  # fmt: skip
    group = numbered(draw, group=names, state=st.sampled_from(["ready", "in-flight"]), depth=counts, in_flight=counts,
                     head_age_seconds=ages, attempts=counts, error=words)  # fmt: skip
    binding = numbered(draw, exchange=names, filter=names, queue=names, to_exchange=names | st.none(),
                       target=names | st.none(), condition=words, owner=words)  # fmt: skip
    death = DeathView(draw(names), "rejected", draw(counts), draw(words), 0, draw(st.floats(0, 4e9)))
    message = MessageView(draw(names), Body(draw(words)), headers=[(draw(names), draw(words))], client_id=draw(words))
    stored = StoredView(draw(counts), draw(names), 1, False, message, 0, 1, False, deaths=(death,))
    return {
        "queues": Answer(queues=[queue]), "groups": Answer(groups=[group]), "bindings": Answer(bindings=[binding]),
        "messages": Answer(messages=[stored]), "message": stored,
        "steps": [Step(draw(names), (draw(names),), draw(names), draw(words) or None, target=draw(names | st.none()))],
        "store": inspection.Inspection(
            Report("f", 1, 1, 1, 1, ()), (inspection.QueueContent(draw(names), draw(counts), draw(counts)),), 0, ""),
    }  # fmt: skip


TABLES = [
    ["queues"], ["groups", "list", "q"], ["bindings", "--all"], ["dead-letters", "list", "--queue", "q"],
    ["dead-letters", "show", "1", "--queue", "q"], ["explain", str(CONFIG), "--topic", "a"],
    ["check", str(CONFIG), "--store"],
]  # fmt: skip


@pytest.mark.parametrize("words", TABLES, ids=lambda words: " ".join(words[:2]))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=answers(), width=st.sampled_from(WIDTHS))
def test_each_table_at_each_width(monkeypatch, shown, words, drawn, width):
    monkeypatch.setattr(commands, "connect", lambda *given: Client(drawn))
    monkeypatch.setattr(redrive, "connect", lambda *given: Client(drawn))
    monkeypatch.setattr(explain, "explain", lambda *given: drawn["steps"])
    monkeypatch.setattr(inspection, "inspect", lambda *given: drawn["store"])
    shown.clear()
    done = CliRunner().invoke(app, words, env={"COLUMNS": str(width)}, catch_exceptions=False)
    ((columns, rows),) = shown
    lines = done.stdout.splitlines()
    if "--store" in words:  # what is said before and behind it is no table
        head = next(place for place, line in enumerate(lines) if line.startswith("queue"))
        lines = [line for line in lines[head:] if line != "the store is sound" and not line.startswith("what is whole")]
    judge(columns, rows, "\n".join(lines), width)


def test_no_table_is_left_out_here():
    """Each place that shows a table is one of those above, and none is made in another way."""
    calls = 0
    for path in SOURCES.rglob("*.py"):
        text = path.read_text()
        if path.name != "tables.py":
            assert "rich.table" not in text, f"{path} makes a table of its own"
        calls += sum(
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and ast.unparse(node.func) == "tables.show"
            for node in ast.walk(ast.parse(text))
        )
    assert calls == len(TABLES)


def test_where_there_is_no_terminal_nothing_is_left_out_and_no_name_is_folded(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    queue = "q" * 255
    numbers = [10**18 + n for n in range(20)]
    columns = [tables.name("queue"), *(tables.number(f"n{n}", n) for n in range(20)), tables.text("body", 1)]
    tables.show(columns, [[queue, *numbers, "x" * 1000]], "nothing")
    out = capsys.readouterr().out
    assert queue in out and all(str(number) in out for number in numbers)
    assert out.count("x") == 1000 and "x" * 241 not in out


@pytest.mark.parametrize("width", WIDTHS)
def test_a_terminal_says_how_wide_it_is(width):
    """By a real terminal, whose size the process asks for."""
    code = (
        "from gateway.cli import tables, commands\n"
        "tables.show(commands.QUEUES, [['orders-of-shop-7', 4961, '1.5 MB', *[1234567] * 10]], '')"
    )
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    env = {"PATH": "/usr/bin:/bin", "TERM": "xterm", "PYTHONPATH": str(SOURCES.parent), "NO_COLOR": "1"}
    process = subprocess.Popen([sys.executable, "-c", code], stdin=slave, stdout=slave, stderr=slave, env=env)
    process.wait()
    os.close(slave)
    out = b""
    try:
        while part := os.read(master, 65536):
            out += part
    except OSError:  # the terminal's other side is closed
        pass
    os.close(master)
    printed = re.sub(r"\x1b\[[0-9;]*m", "", out.decode())
    lines = printed.splitlines()
    assert max(map(cell_len, lines)) <= width
    row = next(line for line in lines if "orders" in line)
    assert "orders-of-shop-7" in row and " 4961 " in row
    assert ("no room for" in printed) == (width < 150), printed
