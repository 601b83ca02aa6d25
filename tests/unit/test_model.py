"""The values that the core is made of: messages, credit, pressure (rulings 16, 22)."""

from __future__ import annotations

import pytest

from gateway.model.credit import UNLIMITED, Credit, Pressure
from gateway.model.message import DEFAULT_EXCHANGE, TOPIC_EXCHANGE, Message, Properties, to_topic


def test_a_message_is_immutable_and_says_what_its_sender_said() -> None:
    message = Message("a/b", b"x", properties=Properties(headers=(("h", 1), ("h", 2), ("g", None))))
    assert (message.header("h"), message.header("g"), message.header("none")) == (1, None, None)
    with pytest.raises(AttributeError):
        message.topic = "other"  # type: ignore[misc]


def test_dollar_queue_topics_reach_one_queue_by_its_name() -> None:
    straight, shared = to_topic("$queue/a/b", b"x", qos=0), to_topic("$queues/a", b"x")
    assert (straight.exchange, straight.topic, straight.qos) == (DEFAULT_EXCHANGE, "a/b", 0)
    assert (shared.exchange, shared.topic) == (TOPIC_EXCHANGE, "$queues/a")


def test_credit_wakes_once_each_and_only_when_there_is_some() -> None:
    woken: list[str] = []
    pool = Credit(messages=0, octets=0)

    def one() -> None:
        woken.append("one")

    def two() -> None:
        woken.append("two")
        pool.wakes[two] = None

    pool.wakes.update({one: None, two: None})
    pool.grant(messages=5)
    assert woken == [] and pool.spent
    pool.grant(octets=1)
    assert woken == ["one", "two"] and not pool.spent
    pool.grant(1)
    assert woken == ["one", "two", "two"]


def test_who_took_the_last_credit_comes_last() -> None:
    woken: list[str] = []
    pool = Credit(messages=0)
    wakes = {name: (lambda name=name: woken.append(name)) for name in "abc"}
    pool.wakes.update(dict.fromkeys(wakes.values()))
    pool.taker = wakes["a"]
    pool.grant(1)
    assert woken == ["b", "c", "a"]
    pool.taker = wakes["b"]
    pool.grant(1)
    assert woken == ["b", "c", "a"]


def test_credit_is_unlimited_unless_said() -> None:
    assert not Credit().spent
    assert Credit().messages == UNLIMITED


def test_pressure_resumes_everyone_once_when_it_is_over() -> None:
    pressure = Pressure()
    resumed: list[int] = []

    def again() -> None:
        resumed.append(2)
        pressure.set(True)
        pressure.on_low(lambda: resumed.append(3))

    pressure.on_low(lambda: resumed.append(0))
    assert resumed == [0]
    pressure.set(True)
    pressure.on_low(lambda: resumed.append(1))
    pressure.on_low(again)
    assert resumed == [0]
    pressure.set(True)
    assert resumed == [0]
    pressure.set(False)
    assert resumed == [0, 1, 2]
    pressure.set(False)
    assert resumed == [0, 1, 2, 3]
