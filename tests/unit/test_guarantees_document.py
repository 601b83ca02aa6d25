"""docs/guarantees.md is honest: every test and every command that it names is there. And a promise about sources."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.documents import ROOT, TEST, check_tests, files_of

DOCUMENT = (ROOT / "docs" / "guarantees.md").read_text()
COMMAND = re.compile(r"`make ([a-z]+)")
ROW = re.compile(r"^\| (?!promise \|)(.+) \| (.+) \|$", re.MULTILINE)
PROMISES, _, REST = DOCUMENT.partition("\n## Not promised")
READERS = {"gateway/config/document.py", "gateway/model/policy.py", "gateway/config/schema.py"}
"""What reads the configuration: numbers, durations, sizes, variables, and what its types say of a fault."""
PATTERN_MODULES = {"re", "regex", "fnmatch", "glob"}


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name.partition(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield (node.module or "").partition(".")[0]


@pytest.mark.parametrize("file", files_of(DOCUMENT))
def test_every_test_that_the_document_names_is_there(file: str) -> None:
    check_tests("docs/guarantees.md", DOCUMENT, file)


def test_every_promise_names_its_test() -> None:
    rows = ROW.findall(PROMISES)
    assert len(rows) > 90
    assert [promise for promise, proof in rows if not TEST.fullmatch(proof.split(", ")[0])] == []


def test_every_command_that_the_document_names_is_there() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(COMMAND.findall(REST))
    assert "kills" in named and named <= targets, f"not in the Makefile: {', '.join(sorted(named - targets))}"


def test_regular_expressions_read_the_configuration_alone() -> None:
    """No client can send what makes one run long."""
    sources = [path for package in ("gateway", "transports", "plugins") for path in (ROOT / package).rglob("*.py")]
    assert len(sources) > 50
    found = {str(path.relative_to(ROOT)) for path in sources if PATTERN_MODULES & set(imports(path))}
    assert found == READERS
