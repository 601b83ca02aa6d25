"""Topic names and filters: what is valid and what matches, against a naive matcher (ruling 9)."""

from __future__ import annotations

from itertools import product

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from gateway.model.topics import (
    MAX_BINDING_LEVELS,
    MAX_HASHES,
    MAX_LEVELS,
    FilterTree,
    NameTree,
    check_binding,
    check_filter,
    check_name,
    level_text,
    literal_level,
    matches,
    overlap,
)

level = st.sampled_from(["a", "b", "", "$SYS", "$x"])
odd = st.sampled_from(["+", "#", "a+", "C#", "*", "\\+", "\\\\+", "\0"])
"""Words of routing keys that are no levels of MQTT topics, and those that look like what they are written as."""
names = st.lists(st.one_of(level, odd), max_size=5).map("/".join)
filters = st.lists(
    st.one_of(level, st.sampled_from(["+", "#"]), odd.filter(lambda text: text != "#").map(literal_level)), max_size=6
).map("/".join)


def levels(text: str) -> list[str]:
    return text.split("/") if text else []


def naive(filter: list[str], topic: list[str]) -> bool:
    if not filter:
        return not topic
    if filter[0] == "#":
        return any(naive(filter[1:], topic[place:]) for place in range(len(topic) + 1))
    wants = bool(topic) and (filter[0] == "+" or filter[0] == literal_level(topic[0]))
    return wants and naive(filter[1:], topic[1:])


def expected(filter: str, topic: str, hide: bool = True) -> bool:
    if hide and topic.startswith("$") and levels(filter)[:1] in (["+"], ["#"]):
        return False
    return naive(levels(filter), levels(topic))


@given(st.one_of(odd, st.text()))
def test_a_level_that_is_text_is_written_so_that_it_is_no_wildcard(text: str) -> None:
    assert level_text(literal_level(text)) == text
    assert literal_level(text) != "+"


@given(filters, names)
def test_matches_is_the_naive_matcher(filter: str, topic: str) -> None:
    assert matches(filter, topic) == expected(filter, topic)


short = st.lists(st.sampled_from(["a", "$x", "+", "#"]), min_size=1, max_size=3).map("/".join)
ALL_SHORT_NAMES = ["/".join(levels) for size in range(1, 6) for levels in product(("a", "b", "$x"), repeat=size)]


@settings(max_examples=60)
@given(short, short)
def test_filters_overlap_if_a_name_matches_both(first: str, second: str) -> None:
    assert overlap(first, second) == any(expected(first, name) and expected(second, name) for name in ALL_SHORT_NAMES)


@given(filters, filters, names)
def test_filters_that_do_not_overlap_share_no_name(first: str, second: str, name: str) -> None:
    assert overlap(first, second) or not (expected(first, name) and expected(second, name))


edits = st.lists(st.tuples(st.booleans(), filters, st.integers(0, 2)), max_size=25)


@given(edits, st.lists(names, min_size=1, max_size=6), st.booleans())
def test_the_filter_tree_answers_as_a_list_of_filters_would(
    edits: list[tuple[bool, str, int]], topics: list[str], hide: bool
) -> None:
    tree: FilterTree[tuple[str, int]] = FilterTree(hide)
    kept: set[tuple[str, int]] = set()
    for add, filter, key in edits:
        if add:
            tree.put(filter, key, (filter, key))
            kept.add((filter, key))
        else:
            tree.remove(filter, key)
            kept.discard((filter, key))
    for topic in topics:
        found = list(tree.match(topic))
        assert len(found) == len(set(found))
        assert set(found) == {item for item in kept if expected(item[0], topic, hide)}
    for filter, key in kept:
        tree.remove(filter, key)
    assert tree.is_empty


@given(st.lists(st.tuples(st.booleans(), names), max_size=25), st.lists(filters, min_size=1, max_size=6), st.booleans())
def test_the_name_tree_answers_as_a_list_of_names_would(
    edits: list[tuple[bool, str]], asked: list[str], hide: bool
) -> None:
    tree: NameTree[str] = NameTree(hide)
    kept: set[str] = set()
    for add, name in edits:
        if add:
            tree.put(name, name)
            kept.add(name)
        else:
            tree.remove(name)
            kept.discard(name)
    for filter in asked:
        found = list(tree.match(filter))
        assert len(found) == len(set(found))
        assert set(found) == {name for name in kept if expected(filter, name, hide)}
    for name in kept:
        tree.remove(name)
    assert tree.is_empty


@pytest.mark.parametrize(
    ("filter", "topic", "matching"),
    [
        ("sport/tennis/player1/#", "sport/tennis/player1", True),
        ("sport/#", "sport", True),
        ("#", "/", True),
        ("sport/+", "sport", False),
        ("sport/+", "sport/", True),
        ("+/+", "/finance", True),
        ("/+", "/finance", True),
        ("+", "/finance", False),
        ("#", "$SYS/x", False),
        ("+/monitor/Clients", "$SYS/monitor/Clients", False),
        ("$SYS/#", "$SYS/monitor", True),
        ("a/#/b", "a/b", True),
        ("a/#/b", "a/x/y/b", True),
        ("#/b", "a/b", True),
        ("#/#", "a", True),
        ("#/b", "$SYS/b", False),
        ("+", "", False),
        ("#", "", True),
        ("", "", True),
        ("a+", "a+", True),
        ("a+", "ab", False),
        ("\\+", "+", True),
        ("\\+", "a", False),
    ],
)
def test_examples_of_the_specifications(filter: str, topic: str, matching: bool) -> None:
    assert matches(filter, topic) is matching


@pytest.mark.parametrize("name", ["a", "/", "a//b", "$x", " ", "é" * 32_767, "/".join("a" * MAX_LEVELS)])
def test_valid_names(name: str) -> None:
    assert check_name(name) is None
    assert check_filter(name) is None


@pytest.mark.parametrize("name", ["", "a/+", "#", "a\0b", "é" * 32_768, "x" * 65_536, "/".join("a" * (MAX_LEVELS + 1))])
def test_invalid_names(name: str) -> None:
    assert check_name(name) is not None


@pytest.mark.parametrize("filter", ["", "a+", "a/b#", "#a", "a\0", "/".join("#" * (MAX_HASHES + 1)), "x" * 65_536])
def test_invalid_filters(filter: str) -> None:
    assert check_filter(filter) is not None


@pytest.mark.parametrize("filter", ["", "a+", "a/b#", "#a", "a\0", "/".join("#" * MAX_HASHES), "/" * 255])
def test_a_binding_may_have_text_that_is_no_filter_of_mqtt(filter: str) -> None:
    assert check_binding(filter) is None


@pytest.mark.parametrize("filter", ["/".join("#" * (MAX_HASHES + 1)), "/" * MAX_BINDING_LEVELS])
def test_invalid_filters_of_bindings(filter: str) -> None:
    assert check_binding(filter) is not None


def test_mqtt_allows_hash_only_as_the_last_level() -> None:
    assert check_filter("a/#/b") is None
    assert check_filter("a/#/b", mqtt=True) is not None
    assert check_filter("a/#", mqtt=True) is None


def test_a_match_does_not_grow_with_the_number_of_filters() -> None:
    tree: FilterTree[int] = FilterTree()
    for number in range(20_000):
        tree.put(f"dev/{number}/+", None, number)
    assert list(tree.match("dev/777/x")) == [777]
    hard: FilterTree[int] = FilterTree()
    hard.put("#/a/#/a/#/a/#", None, 1)
    assert list(hard.match("/".join("a" * MAX_LEVELS))) == [1]
