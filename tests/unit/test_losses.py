"""What the log says of dropped messages."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gateway.losses import Losses
from gateway.message import Message
from tests.harness.daemon import ROOT, Daemon
from tests.harness.local import local_gateway

CONFIG = """
queues:
  last: {max_messages: 1, overflow: drop-oldest}
routes:
  - {from: "#", to: last}
"""


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    found = [vars(record)["fields"] for record in caplog.records if record.getMessage() == "messages dropped"]
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
