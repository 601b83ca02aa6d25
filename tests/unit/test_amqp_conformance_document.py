"""docs/amqp-conformance.md is honest: every test that it names is there, no method and no argument is left out, and
what it calls refused is refused."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from pamqp.commands import INDEX_MAPPING

from transports.amqp.arguments import policy_of
from transports.amqp.errors import AmqpError

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
TEXT = (ROOT / "docs" / "amqp-conformance.md").read_text()
TEST = re.compile(r"`([\w/]+\.py)::(\w+)`")
NAME = re.compile(r"`([\w.-]+)`")
ARGUMENT = re.compile(r'"(x-[a-z-]+)"')


def rows(heading: str) -> list[list[str]]:
    """Of the table in that section, as cells."""
    section = TEXT.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]


METHODS, QUEUES = rows("Methods"), rows("Arguments of queues")
ROWS = [*METHODS, *QUEUES, *rows("Other arguments"), *rows("Properties and headers")]


def test_every_row_is_whole() -> None:
    for row in ROWS:
        assert len(row) == 4, row
        assert row[1] in ("supported", "mapped", "refused"), row
        assert row[2].endswith(".") and TEST.search(row[3]), row


@pytest.mark.parametrize("file", sorted({file for file, _ in TEST.findall(TEXT)}))
def test_every_test_that_the_document_names_is_there(file: str) -> None:
    named = {name for found, name in TEST.findall(TEXT) if found == file}
    body = ast.parse((TESTS / file).read_text()).body
    there = {one.name for one in body if isinstance(one, (ast.FunctionDef, ast.AsyncFunctionDef))}
    assert named <= there, f"not in tests/{file}: {', '.join(sorted(named - there))}"


def test_every_method_stands_there_once() -> None:
    named = [name for row in METHODS for name in NAME.findall(row[0])]
    known = [re.sub(r"(?<=[a-z])(?=[A-Z])", "-", kind.name).lower() for kind in INDEX_MAPPING.values()]
    assert sorted(named) == sorted(known)


def test_every_argument_that_a_queue_takes_stands_there() -> None:
    code = (ROOT / "transports" / "amqp" / "arguments.py").read_text()
    taken = {name for row in QUEUES if row[1] != "refused" for name in NAME.findall(row[0])}
    assert taken == set(ARGUMENT.findall(code)) - {"x-priority"}


@pytest.mark.parametrize("name", [name for row in QUEUES if row[1] == "refused" for name in NAME.findall(row[0])])
def test_what_the_document_calls_refused_is(name: str) -> None:
    with pytest.raises(AmqpError) as raised:
        policy_of({name: "1"}, durable=True)
    assert raised.value.code == 406 and repr(name) in str(raised.value)
