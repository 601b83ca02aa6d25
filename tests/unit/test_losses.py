"""What the log says of dropped messages."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace

from gateway.engine.drop_log import Losses
from gateway.model.message import Message
from gateway.model.policy import QueuePolicy, Seconds
from tests.harness.daemon import ROOT, Daemon
from tests.harness.kernel import Kernel
from tests.harness.local import local_gateway

CONFIG = """
queues:
  last: {max_messages: 1, overflow: drop-oldest}
routes:
  - {from: "#", to: last}
"""


def lines(caplog: pytest.LogCaptureFixture, event: str = "messages dropped") -> list[dict[str, Any]]:
    found = [vars(record)["fields"] for record in caplog.records if record.getMessage() == event]
    caplog.clear()
    return found


@pytest.mark.anyio
async def test_each_place_has_a_line_with_what_it_dropped_since_the_last(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="gateway")
    async with local_gateway(CONFIG) as (gateway, _):
        losses = Losses(gateway)
        losses.look()
        assert lines(caplog) == []
        await gateway.accept([Message("a", b"%d" % number) for number in range(4)])
        gateway.counters("mqtt").dropped["qos0-slow-reader"] += 7
        losses.look()
        slow = {"transport": "mqtt", "reason": "qos0-slow-reader", "messages": 7}
        assert lines(caplog) == [{"queue": "last", "messages": 3}, slow]
        losses.look()
        assert lines(caplog) == []
        await gateway.accept([Message("a", b"more")])
        gateway.delete("last")
        losses.look()
        losses.look()
        assert lines(caplog) == [{"queue": "last", "messages": 1}]


def test_a_daemon_says_it_before_it_ends(tmp_path: Path) -> None:
    queues = {"last": {"max_messages": 1, "overflow": "drop-oldest"}}
    config = {"queues": queues, "routes": [{"from": "#", "to": "last"}], "transports": {}}
    daemon = Daemon(tmp_path, config).start()
    try:
        words = [sys.executable, "-m", "gateway", "publish", "--admin", daemon.url("admin"), "t", "x"]
        for _ in range(3):
            subprocess.run(words, cwd=ROOT, check=True, capture_output=True)
        daemon.stop()
        said = [record for record in daemon.log if record.get("event") == "messages dropped"]
        assert sum(record["messages"] for record in said) == 2
        assert {(record["queue"], record["level"]) for record in said} == {("last", "warning")}
    finally:
        daemon.close()


INVALID = """
queues:
  orders: {group: "{header[shop]}", dead_letter: bin}
  bin: {}
  round: {dead_letter: round, ttl: 0}
routes:
  - {from: "orders/#", to: orders}
  - {from: "round", to: round}
"""


@pytest.mark.anyio
async def test_what_is_dead_as_it_comes_is_said_once_a_minute_with_its_number(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.WARNING, logger="gateway")
    event = "messages were dead letters as they came"
    async with local_gateway(INVALID) as (gateway, _):
        losses, now = Losses(gateway), gateway.now()
        monkeypatch.setattr(gateway, "now", lambda: now)
        await gateway.accept([Message("orders/1", b"x")] * 3)
        losses.look()
        assert lines(caplog, event) == [{"queue": "orders", "reason": "invalid", "messages": 3}]
        await gateway.accept([Message("orders/1", b"x")] * 5)
        now += 59
        losses.look()
        assert lines(caplog, event) == []
        now += 1
        losses.look()
        losses.look()
        assert lines(caplog, event) == [{"queue": "orders", "reason": "invalid", "messages": 5}]
        await gateway.accept([Message("orders/1", b"x")])
        losses.look(last=True)
        assert lines(caplog, event) == [{"queue": "orders", "reason": "invalid", "messages": 1}]


@pytest.mark.anyio
async def test_what_would_go_round_in_a_circle_is_said(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="gateway")
    async with local_gateway(INVALID) as (gateway, _):
        losses = Losses(gateway)
        await gateway.accept([Message("round", b"x")] * 2)
        await gateway.put()
        losses.look()
        said = lines(caplog, "dead letters dropped that would go round in a circle")
        assert said == [{"queue": "round", "messages": 2}]


def test_full_queues_that_wait_for_each_other_s_room_say_so_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    """Each has a dead letter for the other, which refuses it; nothing is lost, and an operator can see why."""
    caplog.set_level(logging.WARNING, logger="gateway")
    full = QueuePolicy(max_messages=1)
    kernel = Kernel(
        {"one": replace(full, dead_letter="two", ttl=Seconds(5.0)), "two": replace(full, dead_letter="one")}
    )
    losses = Losses(SimpleNamespace(now=kernel.clock, core=kernel.core, all_counters={}))  # type: ignore[arg-type]
    kernel.send("two", "x")
    kernel.send("one", "y")
    kernel.advance(6)
    event = "dead letters wait, since the queue they should go to refuses them"
    for expected in ([{"queue": "one", "messages": 1}], [], []):
        losses.look()
        assert lines(caplog, event) == expected
        kernel.advance(25)
    losses.look()
    assert lines(caplog, event) == [{"queue": "one", "messages": 1}]
    assert kernel.content("one") == ["y"] and kernel.content("two") == ["x"]
    worker = kernel.worker("two")
    kernel.run()
    worker.done()
    kernel.advance(2)
    assert kernel.content("one") == []
    losses.look()
    assert lines(caplog, event) == []
