"""Owns what the tests of documents share: which tests a document names, and whether they are there.

Its rule: a file is read and never imported, so that asking runs nothing of it.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEST = re.compile(r"`([\w/]+\.py)::(\w+)`")
"""File below `tests/` and function."""
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def functions_of(path: Path) -> set[str]:
    """The names of the functions in a file."""
    return {one.name for one in ast.parse(path.read_text()).body if isinstance(one, FUNCTIONS)}


def files_of(text: str) -> list[str]:
    return sorted({file for file, _ in TEST.findall(text)})


def check_tests(document: str, text: str, file: str) -> None:
    """All that the text names of that file is there, and is a test."""
    named = {name for found, name in TEST.findall(text) if found == file}
    path = ROOT / "tests" / file
    assert path.is_file(), f"{document} names tests/{file}, which is not there"
    assert path.name.startswith("test_") and all(name.startswith("test_") for name in named)
    assert named <= functions_of(path), f"not in tests/{file}: {', '.join(sorted(named - functions_of(path)))}"
