"""The YAML document: places, the environment, scalars, and what is no YAML."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from gateway.config.document import Faults, Node, parse
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
    [("1", 1), ("0x10", 16), ("017", "017"), ("-08", "-08"), ("0", 0),
     ("-7", -7), ("0.5", 0.5), ("01.5", 1.5), ("9" * 25, "9" * 25), ("9" * 5000, "9" * 5000),
     ("1.5", 1.5), ("1e3", "1e3"), ("true", True), ("~", None), ("", None),
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
    for text in ("a: &a [*a]", "a: &a {b: *a}", "a: &a [*a, *a, *a, *a]", "a: &a {<<: *a}", "a: &a {<<: [*a, *a]}"):
        assert "an alias stands in what it stands for" in fault(text), text


def test_nesting_ends():
    assert "nested deeper than 50 levels" in fault("a: " + "[" * 60 + "]" * 60)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [1", "f.yaml:1: a[0]: no valid YAML"),
        ("a: 1\n b: 2", "f.yaml:2: a: no valid YAML: no key can stand here"),
        ("q:\n  a:\n    - {b: c,\n\td: [}", "f.yaml:4: q.a[0]: no valid YAML: a tab; indent with blanks"),
        ("q:\n  a: @x", "f.yaml:2: q.a: no valid YAML: a value that begins with @ must be put in quotes"),
        ("a: 1\n---\nb: 2", "f.yaml:2: a configuration is one document, and --- begins a second one"),
        ("a: !!python/object:os.system x", "unknown tag"),
        ("a: !env X", "unknown tag"),
        ("[a]: 1", "a key must be text"),
        ("a: \x00", "no valid YAML"),
        ("a: " + "[" * 2000, "no valid YAML"),
    ],
)
def test_no_yaml(text, said):
    assert said in fault(text)


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63) + 1, 2**63 - 1)
    | st.text(st.characters(codec="utf-8", exclude_characters="$"))
)
documents = st.dictionaries(
    st.text(min_size=1),
    st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(min_size=1), inner), max_leaves=10),
)


@given(documents)
def test_agrees_with_what_was_written(value):
    assert read(yaml.safe_dump(value)).plain() == {k: v for k, v in value.items() if not k.startswith("x-")}


@given(st.text())
def test_any_text_is_read_or_refused_as_configuration(text):
    try:
        read(text)
    except ConfigError as error:
        assert str(error).startswith("f.yaml:")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("q: {o: {group: {topic[1]}}}",
         '1: q.o.group: {topic[1]} must be put in quotes here: "{topic[1]}"; without them its { begins a mapping'),
        ("q:\n  o:\n    group: {header[id]}",
         '3: q.o.group: {header[id]} must be put in quotes here: "{header[id]}"; without them its { begins a mapping'),
        ("routes:\n  - {from: a, to: link:{topic[1]}}",
         '2: routes[0].to: link:{topic[1]} must be put in quotes here: "link:{topic[1]}"; without them its { begins '
         "a mapping"),
        ("t:\n  r: {type: x, url: ${URL}}",
         '2: t.r.url: ${URL} must be put in quotes here: "${URL}"; without them its { begins a mapping'),
        ("t: {r: {url: amqp://${HOST:-h}/v}}",
         '1: t.r.url: amqp://${HOST:-h} must be put in quotes here: "amqp://${HOST:-h}"; without them its { begins a '
         "mapping"),
        ("to: [a, ${B}]", '1: to[1]: ${B} must be put in quotes here: "${B}"; without them its { begins a mapping'),
    ],
)  # fmt: skip
def test_what_needs_quotes_is_told_so(text, said):
    assert fault(text, URL="u", HOST="h", B="b") == f"f.yaml:{said}"


def test_an_empty_file_is_no_configuration():
    for text in ("", "\n", "# nothing but this\n", "---\n"):
        said = "f.yaml:1: the file is empty; a configuration of defaults alone is written {}"
        assert fault(text) == said, text


def bomb(levels: int, of: str) -> str:
    lines = ["x-0: &a0 {k: v}"]
    for level in range(1, levels):
        inner = ", ".join([f"*a{level - 1}"] * 9)
        inner = {"lists": f"[{inner}]", "merges": "{<<: [" + inner + "]}"}[of]
        lines.append(f"x-{level}: &a{level} {inner}")
    return "\n".join([*lines, f"queues: *a{levels - 1}"])


@pytest.mark.parametrize("of", ["lists", "merges"])
def test_aliases_of_aliases_are_bounded(of, monkeypatch):
    made = 0

    def count(self, *given):
        nonlocal made
        made += 1
        original(self, *given)

    original = Node.__init__
    monkeypatch.setattr(Node, "__init__", count)
    assert fault(bomb(9, of)).endswith("aliases stand for more than 100000 values in this file")
    assert made < 200_000


def test_ordinary_anchors_are_no_bomb():
    queues = "".join(f"  q{n}: {{<<: *d, ttl: {n}}}\n" for n in range(3000))
    root = read("x-d: &d {a: 1, b: 2, c: [3, 4]}\nqueues:\n" + queues)
    assert len(root.keys("queues")) == 3000


def test_what_begins_with_x_at_the_top_is_not_read():
    root = read('x-d: &d {a: 1, b: "${NOPE}"}\nx-e: {k: 1, k: !odd 2}\nq: {<<: *d, b: 2}', NOPE="x")
    assert root.plain() == {"q": {"a": 1, "b": 2}}
    assert fault('x-d: &d\n  b: "${NOPE}"\nq: *d').startswith("f.yaml:2: q.b: environment variable NOPE is not set")
    assert read('x-d: {b: "${NOPE}"}\nq: 1').plain() == {"q": 1}


def test_halves_of_surrogates_are_no_text():
    assert fault('a: "\\ud800"') == "f.yaml:1: a: has half of a surrogate pair, which is no text"
    assert fault("a: ${A}", A="\udcff") == "f.yaml:1: a: environment variable A is not UTF-8 text"
    assert fault("a: ${A:-x}", A="\udcff") == "f.yaml:1: a: environment variable A is not UTF-8 text"
