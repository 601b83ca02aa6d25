"""Owns reading a YAML file as nodes that know their line, with the environment put in.

Its rule: nothing is guessed and nothing stops at the first fault: each fault is kept with file, line and key.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import yaml

from gateway.errors import ConfigError

# Plain scalars follow YAML 1.2's core schema: `on`, `1:30` and `2026-01-01` are text, as everybody expects. `010` is 8
# to some readers and 10 to others: it is text, too, and refused where a number is expected (`is_ambiguous`).
_INT = re.compile(r"[-+]?(0|[1-9][0-9]*)|0x[0-9a-fA-F]+")
_MAX_DIGITS = 100
_LEADING_ZERO = re.compile(r"[-+]?0[0-9]+")
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
_MAX_REPEATS = 100_000
"""Values that aliases may stand for, all together: a few lines of aliases of aliases stand for any number."""
USER_PREFIX = "x-"
"""Top-level keys that begin so are the user's own: a place for anchors."""

Scalar = str | int | float | bool | None


class Node:
    """A value of the file: a scalar, a list of nodes or a dict of nodes by key.

    line: where its key stands, or the value itself in a list; counted from 1.
    text: what the environment was put into, before it was read as a number or a word; None elsewhere.
    faulty: its value could not be read, and that is noted already.
    unread: settings of this section whose value could not be read, which is noted already; what is checked of them
    would be checked of a default.
    """

    __slots__ = ("faulty", "line", "text", "unread", "value")

    def __init__(self, line: int, value: Scalar | list[Node] | dict[str, Node], text: str | None = None) -> None:
        self.line = line
        self.value = value
        self.text = text
        self.faulty = False
        self.unread: set[str] = set()

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

    def is_unread(self, *keys: str) -> bool:
        """The file gives a value at these keys, or tries to, and it could not be read."""
        node = self
        for key in keys:
            if key in node.unread:
                return True
            if not isinstance(node.value, dict) or key not in node.value:
                return False
            node = node.value[key]
        return node.faulty

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
        """What keys and values hold can't begin a line of its own."""
        place = f"{self.file}:{line}: " if line else f"{self.file}: "
        whole = f"{place}{key}: {text}" if key else place + text
        if not whole.isprintable():
            whole = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in whole)
        self._found.append((line, whole))

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


def read(path: Path, environ: Mapping[str, str], faults: Faults) -> Node:
    """The file's one document. Raises ConfigError if it is no YAML at all, or empty."""
    try:
        octets = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
    try:
        text = octets.decode()
    except UnicodeDecodeError as error:
        line = octets.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: is not UTF-8 text (byte {error.start})") from error
    return parse(text, environ, faults)


def parse(text: str, environ: Mapping[str, str], faults: Faults) -> Node:
    """As `read`, from text."""
    loader = None
    try:
        loader = yaml.SafeLoader(text)
        try:
            root = loader.get_single_node()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, key, why = _explain(text, mark, error.problem or error.context or "")
        faults.add(line, key, why)
        faults.check()
        raise
    except (yaml.YAMLError, RecursionError, ValueError, OverflowError) as error:
        place = getattr(error, "position", None)  # of a character that no YAML may have
        line = text.count("\n", 0, place) + 1 if isinstance(place, int) else 0
        if not isinstance(error, yaml.YAMLError) and loader is not None:
            line = loader.line + 1  # of an escape or a directive that stands for no character or version
        faults.add(line, "", f"no valid YAML: {str(error).splitlines()[0]}")
        faults.check()
        raise
    if root is None or (isinstance(root, yaml.ScalarNode) and not root.value and not root.style):
        faults.add(1, "", "the file is empty; a configuration of defaults alone is written {}")
        faults.check()
        raise AssertionError
    return _Reader(environ, faults).node(root, "", 0)


# What people forget to quote, where YAML takes a brace for the begin of a mapping.
_UNQUOTED = re.compile(r"\$\{[^{}\n]*\}|\{(?:topic|client_id|header|body)\b[^{}\n]*\}")
_ENDS = " \t,[]{}\"'"


def _explain(text: str, mark: yaml.Mark | None, problem: str) -> tuple[int, str, str]:
    """Line, key and cause of what made a text no YAML, in the words of a configuration."""
    if mark is None:
        return 0, "", f"no valid YAML: {problem}"
    line, key = mark.line + 1, _key_at(text, (mark.line, mark.column))
    lines = text.splitlines()
    shown = lines[mark.line] if mark.line < len(lines) else ""
    for found in _UNQUOTED.finditer(shown):
        begin = found.start()
        while begin and shown[begin - 1] not in _ENDS:
            begin -= 1
        if begin <= mark.column <= found.end() + 1:
            value = shown[begin : found.end()]
            key = _key_at(text, (mark.line, begin))
            return line, key, f'{value} must be put in quotes here: "{value}"; without them its {{ begins a mapping'
    char = shown[mark.column : mark.column + 1]
    if char == "\t":
        return line, key, "no valid YAML: a tab; indent with blanks"
    if char and char in "@`%*&!":
        return line, key, f"no valid YAML: a value that begins with {char} must be put in quotes"
    if problem == "but found another document":
        return line, "", "a configuration is one document, and --- begins a second one"
    if problem.startswith("mapping values are not allowed"):
        problem = (
            "no key can stand here; its line is indented otherwise than its neighbours, or text with `: ` in it "
            "has no quotes"
        )
    return line, key, f"no valid YAML: {problem}"


def _key_at(text: str, end: tuple[int, int]) -> str:
    """The last key before that line and column of a text that is no YAML from there on, as in `queues.orders.group`."""
    path: list[str | int] = []
    """Of each collection that is open: the key or the number that is read now; "" for a key that is to come."""
    awaits_value: list[bool] = []

    def begun() -> None:
        if path and isinstance(path[-1], int):
            path[-1] += 1

    def ended() -> None:
        if awaits_value:
            awaits_value[-1] = False

    loader = yaml.SafeLoader(text)
    try:
        while loader.check_event():
            event: yaml.Event = loader.get_event()  # type: ignore[no-untyped-call]
            if (mark := event.start_mark) is not None and (mark.line, mark.column) >= end:
                begun()
                break
            if isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
                begun()
                path.append(-1 if isinstance(event, yaml.SequenceStartEvent) else "")
                awaits_value.append(False)
            elif isinstance(event, yaml.CollectionEndEvent):
                path.pop()
                awaits_value.pop()
                ended()
            elif isinstance(event, (yaml.ScalarEvent, yaml.AliasEvent)):
                begun()
                if path and not isinstance(path[-1], int) and not awaits_value[-1]:
                    path[-1] = event.value if isinstance(event, yaml.ScalarEvent) else ""
                    awaits_value[-1] = True
                else:
                    ended()
    except (yaml.YAMLError, RecursionError):
        pass  # which is why we are here
    finally:
        loader.dispose()
    found = ""
    for part in path:
        if isinstance(part, int):
            found += f"[{max(part, 0)}]"
        elif part:
            found += f".{part}" if found else part
    return found


class _Reader:
    def __init__(self, environ: Mapping[str, str], faults: Faults) -> None:
        self.environ = environ
        self.faults = faults
        self._open: set[yaml.Node] = set()
        self._seen: set[yaml.Node] = set()
        self._repeats = 0

    def node(self, found: yaml.Node, key: str, depth: int) -> Node:
        line = found.start_mark.line + 1
        if isinstance(found, yaml.ScalarNode):
            if found.tag not in _TAGS:
                self.faults.add(line, key, f"unknown tag {found.tag!r}")
            return self._scalar(found, key, line)
        if not self._enter(found, key, depth):
            made = Node(line, None)
            made.faulty = True
            return made
        if isinstance(found, yaml.MappingNode):
            made = Node(line, self._mapping(found, key, depth))
        else:
            items = [self.node(item, f"{key}[{n}]", depth + 1) for n, item in enumerate(found.value)]
            made = Node(line, items)
        self._open.discard(found)
        return made

    def _enter(self, found: yaml.Node, key: str, depth: int) -> bool:
        """Whether a collection can be read here; the caller takes it out of `_open` behind it. Raises ConfigError
        where aliases stand for more than anybody writes: then there is no tree to look at."""
        line = found.start_mark.line + 1
        if found.tag not in _TAGS:
            self.faults.add(line, key, f"unknown tag {found.tag!r}")
        if found in self._open:
            self.faults.add(line, key, "an alias stands in what it stands for, and would never end")
            return False
        if depth > _MAX_DEPTH:
            self.faults.add(line, key, f"nested deeper than {_MAX_DEPTH} levels")
            return False
        if found in self._seen:
            self._repeats += 1 + len(found.value)
            if self._repeats > _MAX_REPEATS:
                self.faults.add(line, key, f"aliases stand for more than {_MAX_REPEATS} values in this file")
                self.faults.check()
        self._seen.add(found)
        self._open.add(found)
        return True

    def _mapping(self, found: yaml.MappingNode, key: str, depth: int) -> dict[str, Node]:
        own: dict[str, Node] = {}
        merged: dict[str, Node] = {}
        for name, item in found.value:
            line = name.start_mark.line + 1
            if not isinstance(name, yaml.ScalarNode) or not _is_text(name.value):
                self.faults.add(line, key, "a key must be text")
                continue
            path = f"{key}.{name.value}" if key else name.value
            if name.tag == _YAML_TAG + "merge":
                parts = item.value if isinstance(item, yaml.SequenceNode) else [item]
                for part in parts:  # the first one that says a key wins, and the mapping's own keys win over all
                    if not isinstance(part, yaml.MappingNode):
                        self.faults.add(line, path, "only a mapping can be merged")
                    elif self._enter(part, path, depth + 1):
                        merged = self._mapping(part, key, depth + 1) | merged
                        self._open.discard(part)
                continue
            if depth == 0 and name.value.startswith(USER_PREFIX):
                continue  # only what stands elsewhere by its anchors counts
            if name.value in own:
                self.faults.add(line, path, f"key stands twice; first in line {own[name.value].line}")
                continue
            child = self.node(item, path, depth + 1)
            child.line = line
            own[name.value] = child
        return merged | own

    def _scalar(self, found: yaml.ScalarNode, key: str, line: int) -> Node:
        text: str = found.value
        if not _is_text(text):
            self.faults.add(line, key, "has half of a surrogate pair, which is no text")
            node = Node(line, None)
            node.faulty = True
            return node
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
        if value is not None and not _is_text(value):
            self.faults.add(line, key, f"environment variable {name} is not UTF-8 text")
            return ""
        if dash:
            return value or default
        if value is None:
            self.faults.add(line, key, f"environment variable {name} is not set; set it or write ${{{name}:-default}}")
            return ""
        return value


def _is_text(text: str) -> bool:
    """Without lone surrogates: those of escapes in YAML, and those by which Python shows octets that are no UTF-8."""
    return not any("\ud800" <= char <= "\udfff" for char in text) if not text.isascii() else True


def is_ambiguous(value: object) -> bool:
    """A number with a leading zero, which is octal to some readers of YAML and decimal to others."""
    return isinstance(value, str) and _LEADING_ZERO.fullmatch(value) is not None


def resolve(text: str) -> Scalar:
    """What a plain scalar means."""
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        number = int(text, 16) if text.startswith("0x") else int(text[:_MAX_DIGITS])
        # What no setting and no journal could hold is left as it stands.
        return number if len(text) < _MAX_DIGITS and abs(number) < 1 << 63 else text
    if not _LEADING_ZERO.fullmatch(text) and _FLOAT.fullmatch(text):
        return float(text)
    return text
