"""The YAML document: places, the environment, scalars, and what is no YAML."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from gateway.document import Faults, Node, parse
from gateway.errors import ConfigError


def read(text: str, **environ: str) -> Node:
    faults = Faults("f.yaml")
    node = parse(text, environ, faults)
    faults.check()
    return node


def fault(text: str, **environ: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read(text, **environ)
    return str(caught.value)


def test_each_value_knows_the_line_of_its_key():
    root = read("a: 1\nb:\n  c:\n    - x\n    - y\n  d: |\n    text\n")
    assert root.child("a").line == 1
    assert root.child("b", "c").line == 3
    assert [item.line for item in root.child("b", "c").value] == [4, 5]
    assert root.child("b", "d").line == 6
    assert root.child("b", "nope").line == 2


@pytest.mark.parametrize(
    ("text", "value"),
    [("1", 1), ("0x10", 16), ("017", 17), ("1.5", 1.5), ("1e3", "1e3"), ("true", True), ("~", None), ("", None),
     ("on", "on"), ("yes", "yes"), ("1:30", "1:30"), ("2026-01-01", "2026-01-01"), ("'1'", "1"), ('"true"', "true")],
)  # fmt: skip
def test_scalars_are_what_everybody_expects(text, value):
    assert read(f"a: {text}").plain() == {"a": value}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("${A}", "x y"),
        ("pre-${A}-post", "pre-x y-post"),
        ("${N}", 5),
        ("'${N}'", "5"),
        ("${NOPE:-7}", 7),
        ("'${NOPE:-}'", ""),
        ("${EMPTY:-full}", "full"),
        ("$${A}", "${A}"),
        ("'{topic[1]}'", "{topic[1]}"),
        ('\'{"a": "$5"}\'', '{"a": "$5"}'),
    ],
)
def test_environment(text, value):
    assert read(f"a: {text}", A="x y", N="5", EMPTY="").plain() == {"a": value}


def test_what_the_environment_says_is_never_read_as_yaml():
    assert read("a: ${A}", A="{b: [1]}\nc: 2").plain() == {"a": "{b: [1]}\nc: 2"}
    assert read("a: ${A}", A="${B}", B="no").plain() == {"a": "${B}"}


def test_environment_faults():
    assert fault("x: 1\na: ${NOPE}") == (
        "f.yaml:2: a: environment variable NOPE is not set; set it or write ${NOPE:-default}"
    )
    assert "is no variable" in fault("a: ${1x}")
    assert "is no variable" in fault("a: '${A'")


def test_duplicate_keys():
    assert fault("a: 1\nb: {c: 1,\n c: 2}\na: 2") == (
        "f.yaml:3: b.c: key stands twice; first in line 2\nf.yaml:4: a: key stands twice; first in line 1"
    )


def test_anchors_and_merges():
    root = read("x: &x {a: 1, b: 2}\ny:\n  <<: *x\n  b: 3\nz: *x")
    assert root.plain() == {"x": {"a": 1, "b": 2}, "y": {"a": 1, "b": 3}, "z": {"a": 1, "b": 2}}
    assert fault("a: {<<: 5}") == "f.yaml:1: a.<<: only a mapping can be merged"


def test_an_alias_that_holds_itself_ends():
    assert "nested deeper" in fault("a: &a [*a]")
    assert "nested deeper" in fault("a: &a {b: *a}")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [1", "f.yaml:1: no valid YAML"),
        ("a: 1\n b: 2", "f.yaml:2: no valid YAML"),
        ("a: 1\n---\nb: 2", "f.yaml:2: no valid YAML"),
        ("a: !!python/object:os.system x", "unknown tag"),
        ("a: !env X", "unknown tag"),
        ("[a]: 1", "a key must be text"),
        ("a: \x00", "no valid YAML"),
        ("a: " + "[" * 2000, "no valid YAML"),
    ],
)
def test_no_yaml(text, said):
    assert said in fault(text)


scalars = st.none() | st.booleans() | st.integers() | st.text(st.characters(codec="utf-8", exclude_characters="$"))
documents = st.dictionaries(
    st.text(min_size=1),
    st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(min_size=1), inner), max_leaves=10),
)


@given(documents)
def test_agrees_with_what_was_written(value):
    assert read(yaml.safe_dump(value)).plain() == value


@given(st.text())
def test_any_text_is_read_or_refused_as_configuration(text):
    try:
        read(text)
    except ConfigError as error:
        assert str(error).startswith("f.yaml:")
