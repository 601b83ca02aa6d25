"""Owns reading a YAML file as nodes that know their line, with the environment put in.

Its rule: nothing is guessed and nothing stops at the first fault: each fault is kept with file, line and key.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import cast

import yaml

from gateway.errors import ConfigError

# Plain scalars follow YAML 1.2's core schema: `on`, `1:30` and `2026-01-01` are text, as everybody expects.
_INT = re.compile(r"[-+]?[0-9]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS: dict[str, bool | None] = {
    "": None, "~": None, "null": None, "Null": None, "NULL": None,
    "true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False,
}  # fmt: skip
_VARIABLE = re.compile(r"\$\$\{|\$\{([^}]*)(\}?)")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_YAML_TAG = "tag:yaml.org,2002:"
_TAGS = frozenset(
    _YAML_TAG + name for name in ("null", "bool", "int", "float", "str", "timestamp", "value", "merge", "map", "seq")
)
_MAX_DEPTH = 50

Scalar = str | int | float | bool | None


class Node:
    """A value of the file: a scalar, a list of nodes or a dict of nodes by key.

    line: where its key stands, or the value itself in a list; counted from 1.
    text: what the environment was put into, before it was read as a number or a word; None elsewhere.
    faulty: its value could not be read, and that is noted already.
    """

    __slots__ = ("faulty", "line", "text", "value")

    def __init__(self, line: int, value: Scalar | list[Node] | dict[str, Node], text: str | None = None) -> None:
        self.line = line
        self.value = value
        self.text = text
        self.faulty = False

    def plain(self) -> object:
        """The same without places."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value

    def child(self, *keys: str) -> Node:
        """The node at these keys, or the nearest one above it that is there."""
        node = self
        for key in keys:
            if not isinstance(node.value, dict) or key not in node.value:
                break
            node = node.value[key]
        return node

    def keys(self, key: str) -> list[str]:
        """The keys of the mapping at `key`; none if there is no such mapping."""
        found = self.value.get(key) if isinstance(self.value, dict) else None
        return list(found.value) if found is not None and isinstance(found.value, dict) else []

    def says(self, key: str) -> bool:
        """The file itself gives this key (no default did)."""
        return isinstance(self.value, dict) and key in self.value


class Faults:
    """All that is wrong with one file."""

    def __init__(self, file: str) -> None:
        self.file = file
        self._found: list[tuple[int, str]] = []

    def __len__(self) -> int:
        return len(self._found)

    def add(self, line: int, key: str, text: str) -> None:
        place = f"{self.file}:{line}: " if line else f"{self.file}: "
        self._found.append((line, f"{place}{key}: {text}" if key else place + text))

    def include(self, other: Faults) -> None:
        """Takes over the faults of another file, behind its own."""
        self._found += [(1 << 60, text) for _, text in other._found]

    def lines(self) -> list[str]:
        """Each once, in the order of the file."""
        return list(dict.fromkeys(text for _, text in sorted(self._found, key=lambda f: f[0])))

    def check(self) -> None:
        """Raises ConfigError with all faults, one a line, in the order of the file."""
        if self._found:
            raise ConfigError("\n".join(self.lines()))


def nearest(word: str, known: Iterable[str], kind: str = "") -> str:
    """`; did you mean "x"?`, or the list of what is known when nothing is near."""
    names = sorted(set(known))
    near = difflib.get_close_matches(word, names, 1, 0.6)
    if near:
        return f'; did you mean "{near[0]}"?'
    if not names:
        return f"; there are no {kind}" if kind else ""
    shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    return f"; known{' ' + kind if kind else ''}: {shown}"


def read(path: Path, environ: Mapping[str, str], faults: Faults) -> Node:
    """The file's one document; an empty file is an empty mapping. Raises ConfigError if it is no YAML at all."""
    try:
        text = path.read_bytes().decode()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text (byte {error.start})") from error
    return parse(text, environ, faults)


def parse(text: str, environ: Mapping[str, str], faults: Faults) -> Node:
    """As `read`, from text."""
    try:
        loader = yaml.SafeLoader(text)
        try:
            root = loader.get_single_node()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        faults.add(mark.line + 1 if mark else 0, "", f"no valid YAML: {error.problem or error.context}")
        faults.check()
        raise
    except (yaml.YAMLError, RecursionError) as error:
        faults.add(0, "", f"no valid YAML: {str(error).splitlines()[0]}")
        faults.check()
        raise
    if root is None:
        return Node(1, {})
    return _Reader(environ, faults).node(root, "", 0)


class _Reader:
    def __init__(self, environ: Mapping[str, str], faults: Faults) -> None:
        self.environ = environ
        self.faults = faults

    def node(self, found: yaml.Node, key: str, depth: int) -> Node:
        line = found.start_mark.line + 1
        if depth > _MAX_DEPTH:  # also ends an alias that holds itself
            self.faults.add(line, key, f"nested deeper than {_MAX_DEPTH} levels")
            return Node(line, None)
        if found.tag not in _TAGS:
            self.faults.add(line, key, f"unknown tag {found.tag!r}")
        if isinstance(found, yaml.MappingNode):
            return Node(line, self._mapping(found, key, depth))
        if isinstance(found, yaml.SequenceNode):
            return Node(line, [self.node(item, f"{key}[{n}]", depth + 1) for n, item in enumerate(found.value)])
        return self._scalar(cast(yaml.ScalarNode, found), key, line)

    def _mapping(self, found: yaml.MappingNode, key: str, depth: int) -> dict[str, Node]:
        own: dict[str, Node] = {}
        merged: dict[str, Node] = {}
        for name, item in found.value:
            line = name.start_mark.line + 1
            if not isinstance(name, yaml.ScalarNode):
                self.faults.add(line, key, "a key must be text")
                continue
            path = f"{key}.{name.value}" if key else name.value
            if name.tag == _YAML_TAG + "merge":
                parts = item.value if isinstance(item, yaml.SequenceNode) else [item]
                for part in parts:  # the first one that says a key wins, and the mapping's own keys win over all
                    if isinstance(part, yaml.MappingNode):
                        merged = self._mapping(part, key, depth + 1) | merged if depth < _MAX_DEPTH else merged
                    else:
                        self.faults.add(line, path, "only a mapping can be merged")
                continue
            if name.value in own:
                self.faults.add(line, path, f"key stands twice; first in line {own[name.value].line}")
                continue
            child = self.node(item, path, depth + 1)
            child.line = line
            own[name.value] = child
        return merged | own

    def _scalar(self, found: yaml.ScalarNode, key: str, line: int) -> Node:
        text: str = found.value
        if "${" in text:
            before = len(self.faults)
            text = _VARIABLE.sub(lambda hit: self._variable(hit, key, line), text)
            node = Node(line, text if found.style else resolve(text), text)
            node.faulty = len(self.faults) > before
            return node
        if found.style or found.tag == _YAML_TAG + "str":
            return Node(line, text)
        return Node(line, resolve(text))

    def _variable(self, hit: re.Match[str], key: str, line: int) -> str:
        if hit[0] == "$${":
            return "${"
        name, dash, default = hit[1].partition(":-")
        if not hit[2] or not _NAME.fullmatch(name):
            self.faults.add(
                line, key, f"{hit[0]} is no variable; write ${{NAME}} or ${{NAME:-default}}, or $${{ for ${{"
            )
            return ""
        value = self.environ.get(name)
        if dash:
            return value or default
        if value is None:
            self.faults.add(line, key, f"environment variable {name} is not set; set it or write ${{{name}:-default}}")
            return ""
        return value


def resolve(text: str) -> Scalar:
    """What a plain scalar means."""
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text, 16) if text.startswith("0x") else int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    return text
