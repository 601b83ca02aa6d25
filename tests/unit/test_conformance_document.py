"""docs/mqtt-conformance.md is honest: every test and every place in the code that it names is there, and no
statement is left out or stands twice."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.unit.documents import FUNCTIONS, ROOT, TEST, check_tests, files_of, functions_of

CODE = ROOT
TEXT = (ROOT / "docs" / "mqtt-conformance.md").read_text()
PLACE = re.compile(r"`([\w./]+\.py):([A-Za-z_][\w.]*)`")
_NUMBER = r"\d+\.\d+\.\d+-\d+"
STATEMENT = re.compile(rf"(?:3\.1\.1: )?{_NUMBER}\??(?: \(3\.1\.1: {_NUMBER}(?:, {_NUMBER})*\))?")
NUMBER = re.compile(r"(\d+\.\d+\.\d+)-(\d+)")
MISSING = {"2.2.1": {1}}
"""Numbers that MQTT 5.0 leaves out."""


def tables() -> dict[str, list[list[str]]]:
    """The rows of each section that has a table, as cells."""
    found: dict[str, list[list[str]]] = {}
    for section in TEXT.split("\n## ")[1:]:
        heading, _, rest = section.partition("\n")
        rows = [line.strip().strip("|").split("|") for line in rest.splitlines() if line.startswith("| ")]
        if rows:
            assert [cell.strip() for cell in rows[0]] == ["statement", "what it asks", "where", "test"], heading
            found[heading] = [[cell.strip() for cell in row] for row in rows[1:]]
    return found


TABLES = tables()
ROWS = [row for rows in TABLES.values() for row in rows]


def places_of(path: Path) -> set[str]:
    """`function`, `Class` and `Class.method`."""
    found = functions_of(path)
    for one in ast.parse(path.read_text()).body:
        if isinstance(one, ast.ClassDef):
            found |= {one.name, *(f"{one.name}.{inner.name}" for inner in one.body if isinstance(inner, FUNCTIONS))}
    return found


@pytest.mark.parametrize("file", files_of(TEXT))
def test_every_test_that_the_document_names_is_there(file: str) -> None:
    check_tests("docs/mqtt-conformance.md", TEXT, file)


@pytest.mark.parametrize("file", sorted({file for file, _ in PLACE.findall(TEXT)}))
def test_every_place_in_the_code_that_the_document_names_is_there(file: str) -> None:
    named = {name for found, name in PLACE.findall(TEXT) if found == file}
    path = CODE / file
    assert path.is_file(), f"docs/mqtt-conformance.md names transports/{file}, which is not there"
    assert named <= places_of(path), f"not in transports/{file}: {', '.join(sorted(named - places_of(path)))}"


def test_every_row_is_whole() -> None:
    assert len(ROWS) > 240
    for row in ROWS:
        assert len(row) == 4, row
        statement, asks, where, test = row
        assert STATEMENT.fullmatch(statement), statement
        assert asks.endswith("."), statement
        assert PLACE.match(where), statement
        assert test == "none" or TEST.match(test), statement


@pytest.mark.parametrize("heading", sorted(TABLES))
def test_no_statement_stands_twice_in_a_table(heading: str) -> None:
    own = [row[0].partition(" (")[0] for row in TABLES[heading]]
    assert sorted({one for one in own if own.count(one) > 1}) == []


@pytest.mark.parametrize("version", ["5.0", "3.1.1"])
def test_no_statement_is_left_out(version: str) -> None:
    """In each section they are numbered from 1 on."""
    alone = TEXT.partition("\n## What binds a client alone\n")[2]
    texts = [line for line in alone.splitlines() if line.startswith(f"- {version}: ")]
    assert len(texts) == 1
    for row in ROWS:
        own, _, older = row[0].partition("3.1.1: ")
        texts.append(own if version == "5.0" else older)
    found: dict[str, set[int]] = {}
    for section, number in NUMBER.findall("\n".join(texts)):
        found.setdefault(section, set()).add(int(number))
    for section, numbers in found.items():
        missing = MISSING.get(section, set()) if version == "5.0" else set()
        assert numbers == set(range(1, max(numbers) + 1)) - missing, section
