"""A channel's own state: contents in their order, delivery tags, credit."""

from __future__ import annotations

from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.model.message import NO_PROPERTIES
from transports.amqp.channel import Channel, Route
from transports.amqp.codec import Publish
from transports.amqp.consumer import AmqpConsumer
from transports.amqp.errors import AmqpError
from transports.amqp.properties import Content

ROUTE = Route(Publish("", "q", False, False), "", "q")
CONTENT = Content(NO_PROPERTIES, 1, False, None, None)
CONSUMER = cast(AmqpConsumer, object())


@given(st.lists(st.binary(min_size=1, max_size=5), max_size=6))
def test_a_content_is_what_its_frames_hold(chunks: list[bytes]) -> None:
    channel = Channel(1, 10)
    channel.begin(ROUTE)
    whole = channel.header(CONTENT, sum(map(len, chunks)), 1000)
    for chunk in chunks:
        assert not whole
        whole = channel.body(chunk)
    assert whole
    assert channel.take() == (ROUTE, CONTENT, b"".join(chunks))
    assert not channel.assembling


@pytest.mark.parametrize(
    ("steps", "code"),
    [
        ("h", 505),
        ("b", 505),
        ("mm", 505),
        ("mb", 505),
        ("mhh", 505),
        ("mhm", 505),
        ("mhbb", 505),
    ],
)
def test_frames_out_of_order_are_refused(steps: str, code: int) -> None:
    channel = Channel(1, 10)

    def header() -> Any:
        assert channel.expects_header
        channel.header(CONTENT, 3, 1000)

    step = {"m": lambda: channel.begin(ROUTE), "h": header, "b": lambda: channel.body(b"xx")}
    for name in steps[:-1]:
        step[name]()
    with pytest.raises(AmqpError) as raised:
        step[steps[-1]]()
    assert raised.value.code == code and raised.value.hard


def test_a_body_above_the_limit_is_refused_at_its_header() -> None:
    channel = Channel(1, 10)
    channel.begin(ROUTE)
    with pytest.raises(AmqpError) as raised:
        channel.header(CONTENT, 1001, 1000)
    assert raised.value.code == 311 and not raised.value.hard


acks = st.lists(st.tuples(st.integers(0, 60), st.booleans()), max_size=40)


@given(st.integers(0, 50), acks)
def test_tags_settle_once_and_in_order(deliveries: int, acks: list[tuple[int, bool]]) -> None:
    """Against the plainest model: a set of open tags."""
    channel = Channel(1, 100)
    for id in range(1, deliveries + 1):
        assert channel.register(CONSUMER, id + 1000) == id
    open_tags = set(range(1, deliveries + 1))
    for tag, multiple in acks:
        if multiple:
            expected = sorted(one for one in open_tags if one <= tag or not tag)
            known = (expected or not tag) and tag <= deliveries
        else:
            expected = [tag] if tag in open_tags else []
            known = bool(expected)
        if known:
            assert channel.settled(tag, multiple) == [(CONSUMER, one + 1000) for one in expected]
            open_tags -= set(expected)
        else:
            with pytest.raises(AmqpError, match="unknown delivery tag"):
                channel.settled(tag, multiple)
        assert set(channel.unacked) == open_tags


def test_the_window_is_the_prefetch_and_never_above_max_unacked() -> None:
    channel = Channel(1, 100)
    assert channel.window.messages == 100
    channel.window.messages -= 30  # as the core takes it
    channel.set_window(40)
    assert channel.window.messages == 10
    channel.set_window(20)
    assert channel.window.messages == -10 and channel.window.spent
    channel.set_window(0)
    assert channel.window.messages == 70
    channel.set_window(65_535)
    assert channel.window.messages == 70


def test_flow_takes_all_credit_and_gives_it_back() -> None:
    channel = Channel(1, 100)
    for credit in (channel.gate, channel.window):
        woken: list[bool] = []
        credit.messages -= 5
        before = credit.messages
        channel.set_flow(False)
        channel.set_flow(False)
        assert credit.spent
        credit.grant(messages=3)  # what is settled meanwhile
        assert credit.spent
        credit.wakes[lambda woken=woken: woken.append(True)] = None
        channel.set_flow(True)
        assert credit.messages == before + 3 and woken == [True]
