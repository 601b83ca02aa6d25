"""Owns topic names and filters: what is valid, what matches, and the two trees.

Its rule: matching walks a tree level by level; no regular expression runs on what a client sent.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Generic, TypeVar

MAX_LEVELS = 128
MAX_HASHES = 4
"""`#` may stand at any level of a filter (AMQP needs it), but at most this often (ruling 9)."""

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


class _Node(Generic[T]):
    __slots__ = ("children", "is_hash", "values")

    def __init__(self, is_hash: bool = False) -> None:
        self.children: dict[str, _Node[T]] = {}
        self.values: dict[object, T] | None = None
        self.is_hash = is_hash


class FilterTree(Generic[T]):
    """Filters with values; answers which values' filters match a name. The time of a match depends on the levels of
    the name and the branches it meets, not on the number of filters.

    hide: a wildcard in the first level does not match `$...` [MQTT-4.7.2-1], as in the shared topic space.
    """

    __slots__ = ("_hide", "_root")

    def __init__(self, hide: bool = True) -> None:
        self._root: _Node[T] = _Node()
        self._hide = hide

    def put(self, filter: str, key: object, value: T) -> int:
        """Replaces the value that `key` had under this filter. Returns how many nodes it took."""
        node = self._root
        made = 0
        for level in filter.split("/"):
            child = node.children.get(level)
            if child is None:
                child = node.children[level] = _Node(level == "#")
                made += 1
            node = child
        if node.values is None:
            node.values = {}
        node.values[key] = value
        return made

    def remove(self, filter: str, key: object) -> int:
        """Does nothing if it is not there. Returns how many nodes it freed."""
        path = [self._root]
        levels = filter.split("/")
        for level in levels:
            child = path[-1].children.get(level)
            if child is None:
                return 0
            path.append(child)
        if path[-1].values is not None:
            path[-1].values.pop(key, None)
            if not path[-1].values:
                path[-1].values = None
        freed = 0
        for parent, level in zip(reversed(path[:-1]), reversed(levels), strict=True):
            child = parent.children[level]
            if child.values is None and not child.children:
                del parent.children[level]
                freed += 1
        return freed

    def match(self, topic: str) -> Iterator[T]:
        """The values whose filter matches; `#` stands for any number of levels, none included."""
        root = self._root
        levels = topic.split("/")
        active: dict[_Node[T], None] = {root: None}
        hidden = self._hide and topic.startswith("$")
        node = None if hidden else root.children.get("#")
        while node is not None:
            active[node] = None
            node = node.children.get("#")
        for place, level in enumerate(levels):
            following: dict[_Node[T], None] = {}
            plus_allowed = place > 0 or not hidden
            for node in active:
                if node.is_hash:
                    following[node] = None
                children = node.children
                for name in (level, "+") if plus_allowed else (level,):
                    child = children.get(name)
                    if child is not None and not child.is_hash:
                        following[child] = None
                        hash_child = child.children.get("#")
                        while hash_child is not None:
                            following[hash_child] = None
                            hash_child = hash_child.children.get("#")
            active = following
            if not active:
                return
        for node in active:
            if node.values is not None:
                yield from node.values.values()


class NameTree(Generic[T]):
    """Topic names with one value each; answers which names a filter matches (retained messages, cached routes).
    hide: as in FilterTree."""

    __slots__ = ("_hide", "_root")

    def __init__(self, hide: bool = True) -> None:
        self._root: _Node[T] = _Node()
        self._hide = hide

    def put(self, topic: str, value: T) -> int:
        """Returns how many nodes it took."""
        node = self._root
        made = 0
        for level in topic.split("/"):
            child = node.children.get(level)
            if child is None:
                child = node.children[level] = _Node()
                made += 1
            node = child
        node.values = {None: value}
        return made

    def remove(self, topic: str) -> int:
        """Returns how many nodes it freed."""
        path = [self._root]
        levels = topic.split("/")
        for level in levels:
            child = path[-1].children.get(level)
            if child is None:
                return 0
            path.append(child)
        path[-1].values = None
        freed = 0
        for parent, level in zip(reversed(path[:-1]), reversed(levels), strict=True):
            child = parent.children[level]
            if child.values is not None or child.children:
                break
            del parent.children[level]
            freed += 1
        return freed

    def match(self, filter: str) -> Iterator[T]:
        """The values of all names that the filter matches, in no stated order, each once."""
        levels = filter.split("/")
        root = self._root
        hidden = self._hide and levels[0] in ("+", "#")
        active: dict[_Node[T], None] = {root: None}
        for level in levels:
            following: dict[_Node[T], None] = {}
            for node in active:
                hides = hidden and node is root
                if level == "#":
                    self._add_below(node, following, hides)
                elif level == "+":
                    for name, child in node.children.items():
                        if not (hides and name.startswith("$")):
                            following[child] = None
                elif not (hides and level.startswith("$")) and (found := node.children.get(level)) is not None:
                    following[found] = None
            active = following
        for node in active:
            if node.values is not None:
                yield from node.values.values()

    def _add_below(self, node: _Node[T], into: dict[_Node[T], None], hides: bool) -> None:
        into[node] = None
        stack = [child for name, child in node.children.items() if not (hides and name.startswith("$"))]
        while stack:
            found = stack.pop()
            into[found] = None
            stack += found.children.values()


def matches(filter: str, topic: str) -> bool:
    """Whether one filter matches one name."""
    tree: FilterTree[bool] = FilterTree()
    tree.put(filter, None, True)
    return any(tree.match(topic))
