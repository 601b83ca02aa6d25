"""Owns topic names and filters: what is valid, what matches, and the two trees.

Its rule: matching walks a tree level by level; no regular expression runs on what a client sent.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Generic, TypeVar

MAX_LEVELS = 128
MAX_HASHES = 4
"""`#` may stand at any level of a filter (AMQP needs it), but at most this often (ruling 9)."""
MAX_BINDING_LEVELS = 256
"""Of a binding: what the 255 bytes of a binding key can hold."""

_SWAP = str.maketrans("/.", "./")

T = TypeVar("T")


def swap(name: str) -> str:
    """Topic to routing key, and routing key to topic: `/` and `.` change places (ruling 9). The routing key of the
    default exchange is a queue's name, which is the same in both."""
    return name.translate(_SWAP)


def check_name(topic: str) -> str | None:
    """Why this is no topic name to publish to, or None if it is one [MQTT-4.7.1-1, MQTT-4.7.3-1..3]."""
    if not topic:
        return "is empty"
    if "+" in topic or "#" in topic:
        return "has a wildcard"
    return _check_text(topic)


def is_name(topic: str) -> bool:
    """Whether MQTT can say it as a topic name, whatever its length: routing keys may be empty or have wildcards."""
    return bool(topic) and "+" not in topic and "#" not in topic and "\0" not in topic


def check_filter(filter: str, mqtt: bool = False) -> str | None:
    """Why this is no topic filter, or None if it is one. `mqtt`: `#` only as the last level [MQTT-4.7.1-1]."""
    if not filter:
        return "is empty"
    levels = filter.split("/")
    for place, level in enumerate(levels):
        if ("+" in level or "#" in level) and len(level) > 1:
            return f"has a wildcard beside other characters in level {level!r}"  # [MQTT-4.7.1-2, MQTT-4.7.1-3]
        if mqtt and level == "#" and place != len(levels) - 1:
            return "has # before its last level"
    if levels.count("#") > MAX_HASHES:
        return f"has more than {MAX_HASHES} times #"
    return _check_text(filter)


def check_binding(filter: str) -> str | None:
    """Why no binding can have this filter, or None. Bindings are more than the filters of `check_filter`, for not all
    come from MQTT: `+` and `#` beside other characters are text, and so is the `+` of a level `\\+`."""
    if filter.count("/") >= MAX_BINDING_LEVELS:
        return f"has more than {MAX_BINDING_LEVELS} levels"
    if filter.split("/").count("#") > MAX_HASHES:
        return f"has more than {MAX_HASHES} times #"
    return None


def levels_of(text: str) -> list[str]:
    """The levels of a name or filter; an empty one (the empty routing key of AMQP) has none."""
    return text.split("/") if text else []


def literal_level(text: str) -> str:
    """How a filter writes a level that is this text: `+` alone would be the wildcard, so it is written `\\+`, and what
    looks like that has one backslash more. A level that is `#` alone can't be written; nobody can ask for it."""
    return "\\" + text if text.endswith("+") and text.lstrip("\\") == "+" else text


def level_text(level: str) -> str:
    """The text of a level that is no wildcard; the inverse of `literal_level`."""
    return level[1:] if level.endswith("+") and level.startswith("\\") and level.lstrip("\\") == "+" else level


def overlap(first: str, second: str) -> bool:
    """Whether some name of the shared topic space may match both filters."""
    one, two = first.split("/"), second.split("/")
    hides = {one[0], two[0]} & {"+", "#"}

    def may_be(level: str, starts: bool) -> bool:
        return not (starts and hides and level.startswith("$"))  # [MQTT-4.7.2-1]

    @cache
    def rest(place: int, other: int, starts: bool) -> bool:
        """starts: none of the name's levels is behind."""
        mine = one[place] if place < len(one) else None
        theirs = two[other] if other < len(two) else None
        if starts and mine == theirs == "#" and rest(place, other, False):
            return True  # a level that both take
        if mine == "#":
            takes = theirs is not None and may_be(theirs, starts)
            return rest(place + 1, other, starts) or (takes and rest(place, other + 1, starts and theirs == "#"))
        if theirs == "#":
            takes = mine is not None and may_be(mine, starts)
            return rest(place, other + 1, starts) or (takes and rest(place + 1, other, False))
        if mine is None or theirs is None:
            return mine is theirs
        if not (may_be(mine, starts) and may_be(theirs, starts)):
            return False
        return (mine == theirs or "+" in (mine, theirs)) and rest(place + 1, other + 1, False)

    return rest(0, 0, True)


def _check_text(text: str) -> str | None:
    if "\0" in text:
        return "has a NUL character"  # [MQTT-4.7.3-2]
    if text.count("/") >= MAX_LEVELS:
        return f"has more than {MAX_LEVELS} levels"
    if len(text) > 65_535 or len(text.encode("utf-8", "surrogatepass")) > 65_535:
        return "is longer than 65,535 bytes"  # [MQTT-4.7.3-3]
    return None


class _Name(Generic[T]):
    """A level of names."""

    __slots__ = ("children", "value")

    def __init__(self) -> None:
        self.children: dict[str, _Name[T]] = {}
        self.value: T | None = None


class _Node(Generic[T]):
    """A level of filters. The wildcards stand apart from the levels that are text, so that no text is taken for one."""

    __slots__ = ("children", "hash", "is_hash", "plus", "values")

    def __init__(self, is_hash: bool = False) -> None:
        self.children: dict[str, _Node[T]] = {}
        self.plus: _Node[T] | None = None
        self.hash: _Node[T] | None = None
        self.values: dict[object, T] | None = None
        self.is_hash = is_hash

    def child(self, level: str) -> _Node[T] | None:
        """Below it, for this level of a filter."""
        if level == "+":
            return self.plus
        return self.hash if level == "#" else self.children.get(level_text(level))

    def make(self, level: str) -> _Node[T]:
        made: _Node[T] = _Node(level == "#")
        if level == "+":
            self.plus = made
        elif level == "#":
            self.hash = made
        else:
            self.children[level_text(level)] = made
        return made

    def drop(self, level: str) -> None:
        if level == "+":
            self.plus = None
        elif level == "#":
            self.hash = None
        else:
            del self.children[level_text(level)]

    @property
    def is_empty(self) -> bool:
        return self.values is None and not self.children and self.plus is None and self.hash is None


class FilterTree(Generic[T]):
    """Filters of bindings (`check_binding`) with values; answers which values' filters match a name. The time of a
    match depends on the levels of the name and the branches it meets, not on the number of filters.

    hide: a wildcard in the first level does not match `$...` [MQTT-4.7.2-1], as in the shared topic space.
    """

    __slots__ = ("_hide", "_root")

    def __init__(self, hide: bool = True) -> None:
        self._root: _Node[T] = _Node()
        self._hide = hide

    @property
    def is_empty(self) -> bool:
        return self._root.is_empty

    def put(self, filter: str, key: object, value: T) -> int:
        """Replaces the value that `key` had under this filter. Returns how many nodes it took."""
        node = self._root
        made = 0
        for level in levels_of(filter):
            child = node.child(level)
            if child is None:
                child = node.make(level)
                made += 1
            node = child
        if node.values is None:
            node.values = {}
        node.values[key] = value
        return made

    def remove(self, filter: str, key: object) -> int:
        """Does nothing if it is not there. Returns how many nodes it freed."""
        path = [self._root]
        levels = levels_of(filter)
        for level in levels:
            child = path[-1].child(level)
            if child is None:
                return 0
            path.append(child)
        last = path[-1]
        if last.values is not None:
            last.values.pop(key, None)
            if not last.values:
                last.values = None
        freed = 0
        for node, parent, level in zip(reversed(path[1:]), reversed(path[:-1]), reversed(levels), strict=True):
            if not node.is_empty:
                break
            parent.drop(level)
            freed += 1
        return freed

    def match(self, topic: str) -> Iterator[T]:
        """The values whose filter matches; `#` stands for any number of levels, none included."""
        root = self._root
        active: dict[_Node[T], None] = {root: None}
        hidden = self._hide and topic.startswith("$")
        node = None if hidden else root.hash
        while node is not None:
            active[node] = None
            node = node.hash
        for place, level in enumerate(levels_of(topic)):
            following: dict[_Node[T], None] = {}
            plus_allowed = place > 0 or not hidden
            for node in active:
                if node.is_hash:
                    following[node] = None
                for child in (node.children.get(level), node.plus if plus_allowed else None):
                    while child is not None:
                        following[child] = None
                        child = child.hash
            active = following
            if not active:
                return
        for node in active:
            if node.values is not None:
                yield from node.values.values()


class NameTree(Generic[T]):
    """Topic names with one value each; answers which names the filter of a binding matches (retained messages, cached
    routes). hide: as in FilterTree."""

    __slots__ = ("_hide", "_root")

    def __init__(self, hide: bool = True) -> None:
        self._root: _Name[T] = _Name()
        self._hide = hide

    @property
    def is_empty(self) -> bool:
        return self._root.value is None and not self._root.children

    def put(self, topic: str, value: T) -> int:
        """Returns how many nodes it took."""
        node = self._root
        made = 0
        for level in levels_of(topic):
            child = node.children.get(level)
            if child is None:
                child = node.children[level] = _Name()
                made += 1
            node = child
        node.value = value
        return made

    def remove(self, topic: str) -> int:
        """Returns how many nodes it freed."""
        path = [self._root]
        levels = levels_of(topic)
        for level in levels:
            child = path[-1].children.get(level)
            if child is None:
                return 0
            path.append(child)
        path[-1].value = None
        freed = 0
        for parent, level in zip(reversed(path[:-1]), reversed(levels), strict=True):
            child = parent.children[level]
            if child.value is not None or child.children:
                break
            del parent.children[level]
            freed += 1
        return freed

    def match(self, filter: str) -> Iterator[T]:
        """The values of all names that the filter matches, in no stated order, each once."""
        return (value for value in self.walk(filter) if value is not None)

    def walk(self, filter: str) -> Iterator[T | None]:
        """As `match`, one small step at a time, with None for each that finds nothing. Names may come and go between
        two steps: what is there all the while is found."""
        levels = levels_of(filter)
        end = len(levels)
        hides = self._hide and levels[:1] in (["+"], ["#"])
        moves: dict[tuple[int, ...], tuple[tuple[int, ...], dict[str, tuple[int, ...]]]] = {}
        places = _places(levels, (0,))
        stack: list[Iterator[tuple[_Name[T], tuple[int, ...]]]] = [iter(((self._root, places),))]
        while stack:
            found = next(stack[-1], None)
            if found is None:
                stack.pop()
                continue
            node, places = found
            yield node.value if end in places else None
            if node.children:
                move = moves.get(places)
                if move is None:
                    move = moves[places] = _moves(levels, places)
                stack.append(_below(node, *move, hides and len(stack) == 1))


def _places(levels: list[str], places: Iterable[int]) -> tuple[int, ...]:
    """Where in a filter one is who is at these places: `#` may be passed without a level of the name."""
    found: dict[int, None] = {}
    for place in places:
        found[place] = None
        while place < len(levels) and levels[place] == "#":
            place += 1
            found[place] = None
    return tuple(sorted(found))


def _moves(levels: list[str], places: tuple[int, ...]) -> tuple[tuple[int, ...], dict[str, tuple[int, ...]]]:
    """Where in a filter one is from these places after any level of a name, and after certain ones."""
    wide = [place + (levels[place] == "+") for place in places if levels[place : place + 1] in (["+"], ["#"])]
    plain = [place for place in places if place < len(levels) and levels[place] not in ("+", "#")]
    texts = {level_text(levels[place]) for place in plain}
    led = {text: [place + 1 for place in plain if level_text(levels[place]) == text] for text in texts}
    return _places(levels, wide), {text: _places(levels, [*wide, *after]) for text, after in led.items()}


def _below(
    node: _Name[T], wide: tuple[int, ...], led: Mapping[str, tuple[int, ...]], hides: bool
) -> Iterator[tuple[_Name[T], tuple[int, ...]]]:
    """The children that a filter may match, each with the places where it then is."""
    if not wide:
        for text, places in led.items():
            child = node.children.get(text)
            if child is not None:
                yield child, places
        return
    for name, child in list(node.children.items()):
        if not (hides and name.startswith("$")):
            yield child, led.get(name, wide)


def matches(filter: str, topic: str) -> bool:
    """Whether one filter matches one name."""
    tree: FilterTree[bool] = FilterTree()
    tree.put(filter, None, True)
    return any(tree.match(topic))
