"""Refusals: what the log says of refused clients, and how often."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest

from gateway.transport.refusals import LINES, MAX_TEXT, WINDOW_SECONDS, Refusals


class House:
    """A clock that is set, and what it calls."""

    def __init__(self) -> None:
        self.time = 1000.0
        self.calls: list[tuple[float, Callable[[], None]]] = []
        self.refusals = Refusals(lambda: self.time, self._later)

    def _later(self, seconds: float, call: Callable[[], None]) -> None:
        self.calls.append((self.time + seconds, call))

    def pass_time(self, seconds: float) -> None:
        self.time += seconds
        due, self.calls = [c for c in self.calls if c[0] <= self.time], [c for c in self.calls if c[0] > self.time]
        for _, call in due:
            call()


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], list[dict[str, Any]]]:
    caplog.set_level(logging.INFO, "gateway")
    return lambda: [{"event": r.getMessage(), **getattr(r, "fields", {})} for r in caplog.records]


def test_a_line_says_who_it_was_as_far_as_it_is_known(said: Callable[[], list[dict[str, Any]]]) -> None:
    house = House()
    house.refusals.say("mqtt", "bad-password", "192.0.2.1:5", "ann", "sensor", "wrong")
    house.refusals.say("mqtt", "tls", "192.0.2.1:6")
    house.refusals.say("mqtt", "long", "192.0.2.1:6", "x" * 5000)
    first, second, third = said()
    assert first == {
        "event": "client refused", "transport": "mqtt", "reason": "bad-password", "peer": "192.0.2.1:5", "user": "ann",
        "client_id": "sensor", "why": "wrong",
    }  # fmt: skip
    assert set(second) == {"event", "transport", "reason", "peer"}
    assert third["user"] == "x" * MAX_TEXT


def test_of_a_flood_the_first_have_a_line_and_the_rest_a_number(said: Callable[[], list[dict[str, Any]]]) -> None:
    house = House()
    for _ in range(500):
        house.refusals.say("mqtt", "bad-password", "192.0.2.1:5")
    house.refusals.say("amqp", "bad-password", "192.0.2.1:5")
    assert [line["transport"] for line in said()] == ["mqtt"] * LINES + ["amqp"]
    house.pass_time(WINDOW_SECONDS - 1)
    assert len(said()) == LINES + 1
    house.pass_time(1)
    assert said()[-1] == {
        "event": "more clients refused", "transport": "mqtt", "reason": "bad-password", "clients": 500 - LINES
    }  # fmt: skip
    house.refusals.say("mqtt", "bad-password", "192.0.2.1:5")
    assert said()[-1]["event"] == "client refused"


def test_a_new_minute_has_lines_of_its_own_and_an_old_call_ends_nothing_of_it(
    said: Callable[[], list[dict[str, Any]]],
) -> None:
    house = House()
    for _ in range(LINES + 1):
        house.refusals.say("mqtt", "x", "p")
    house.time += WINDOW_SECONDS  # before the timer is called
    house.refusals.say("mqtt", "x", "p")
    assert [line["event"] for line in said()[-2:]] == ["more clients refused", "client refused"]
    house.pass_time(0)
    for _ in range(LINES):
        house.refusals.say("mqtt", "x", "p")
    assert len([line for line in said() if line["event"] == "client refused"]) == 2 * LINES


def test_a_stop_says_what_was_not_said(said: Callable[[], list[dict[str, Any]]]) -> None:
    house = House()
    for _ in range(LINES + 3):
        house.refusals.say("mqtt", "x", "p")
    house.refusals.close()
    assert said()[-1]["clients"] == 3
    house.pass_time(WINDOW_SECONDS)
    assert said()[-1]["clients"] == 3
