"""Templates: what a text gets from a message, and what it says when there is nothing (ruling 10)."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import example, given

from gateway.model.message import Message, Properties, to_topic
from gateway.routing.templates import MAX_VALUE_BYTES, Fields, MissingValueError, Template


def render(text: str, message: Message) -> str:
    return Template(text).render(Fields(message))


BODY = json.dumps({"order": {"id": 7, "lines": [{"sku": "x"}]}, "ok": True, "no": False, "f": 1.5, "n": None, "s": "t"})
MESSAGE = Message(
    "shop/7/orders", BODY.encode(), client_id="dev", properties=Properties(headers=(("h", "v"), ("h", "w"), ("i", 3)))
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{topic}", "shop/7/orders"),
        ("{topic[0]}-{topic[2]}", "shop-orders"),
        ("{client_id}", "dev"),
        ("{header[h]}", "v"),
        ("{header[i]}", "3"),
        ("{body.order.id}", "7"),
        ("{body.order.lines.0.sku}", "x"),
        ("{body.ok}{body.no}", "truefalse"),
        ("{body.f}", "1.5"),
        ("{body.missing|none}", "none"),
        ("{topic[9]|}", ""),
        ("{{{topic[1]}}}", "{7}"),
        ("plain", "plain"),
        ("", ""),
    ],
)
def test_values(text: str, value: str) -> None:
    assert render(text, MESSAGE) == value


@pytest.mark.parametrize(
    "text",
    [
        "{topic[3]}",
        "{header[x]}",
        "{body.missing}",
        "{body.n}",
        "{body.order}",
        "{body.order.lines.5.sku}",
        "{body.s.t}",
    ],
)
def test_what_is_missing_or_no_scalar_has_no_value(text: str) -> None:
    with pytest.raises(MissingValueError, match=r"missing|no text"):
        render(text, MESSAGE)


def test_topic_is_missing_for_what_was_sent_straight_to_a_queue() -> None:
    for text in ("{topic}", "{topic[0]}"):
        with pytest.raises(MissingValueError):
            render(text, to_topic("$queue/q", b""))


def test_a_message_without_client_id_or_json_has_none() -> None:
    for text in ("{client_id}", "{body.a}"):
        with pytest.raises(MissingValueError):
            render(text, Message("t", b"not json"))


def test_a_value_above_1_kib_is_none() -> None:
    assert render("{header[h]}", header("x" * MAX_VALUE_BYTES))
    for long in ("x" * (MAX_VALUE_BYTES + 1), "é" * (MAX_VALUE_BYTES // 2 + 1)):
        with pytest.raises(MissingValueError, match="longer"):
            render("{header[h]}", header(long))


def header(value: Any) -> Message:
    return Message("t", b"", properties=Properties(headers=(("h", value),)))


@pytest.mark.parametrize("value", [b"bytes", [1], {"a": 1}, None])
def test_a_header_that_is_no_scalar_has_no_value(value: Any) -> None:
    with pytest.raises(MissingValueError):
        render("{header[h]}", header(value))


@pytest.mark.parametrize(
    "text",
    ["{", "}", "{x}", "{topic[x]}", "{topic[-1]}", "{topic[]}", "{header[]}", "{body.}", "{body.a..b}", "{body}", "{}"],
)
def test_a_text_that_is_no_template_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"[{]"):
        Template(text)


TEXTS = ["{topic[1]}", "{topic}", "{body.a}", "{body.a.b.0}", "{header[h]}", "{client_id|x}{body.a|y}"]
scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary())


@given(
    st.sampled_from(TEXTS),
    st.one_of(st.binary(), st.recursive(scalars.filter(lambda v: not isinstance(v, bytes)), st.lists).map(json.dumps)),
    scalars,
    st.text(),
)
@example("{body.a}", '{"a": "\\ud800"}', None, "t")
@example("{body.a}", '{"a": ' + "9" * 5000 + "}", None, "t")
@example("{body.a}", "[" * 100_000, None, "t")
@example("{body.a}", '{"a": 1e999}', None, "t")
@example("{header[h]}", "", 1 << 20_000, "t")
def test_no_message_makes_a_template_raise_anything_else(text: str, body: str | bytes, value: Any, topic: str) -> None:
    data = body if isinstance(body, bytes) else body.encode()
    message = Message(topic, data, properties=Properties(headers=(("h", value),)))
    with contextlib.suppress(MissingValueError):
        result = render(text, message)
        assert len(result.encode("utf-8", "surrogatepass")) <= MAX_VALUE_BYTES


@given(st.text())
def test_no_text_makes_a_template_raise_anything_but_value_error(text: str) -> None:
    with contextlib.suppress(ValueError):
        Template(text)


@given(st.text(alphabet="ab/é{}", max_size=20))
def test_literal_braces_come_back(text: str) -> None:
    assert render(text.replace("{", "{{").replace("}", "}}"), MESSAGE) == text
