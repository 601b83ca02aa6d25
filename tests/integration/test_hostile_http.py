"""HTTP clients, webhooks and the command line at their worst, against a running daemon."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.harness.daemon import Daemon
from tests.integration.mqtt_raw import RawClient

Make = Callable[..., Daemon]
LISTENERS: dict[str, Any] = {
    "mqtt": {"type": "mqtt", "listen": "127.0.0.1:0"},
    "web": {"type": "http", "listen": "127.0.0.1:0"},
}
CONFIG: dict[str, Any] = {"transports": LISTENERS, "queues": {"q": {}}, "routes": [{"from": "q/#", "to": "q"}]}


def depth(server: Daemon, queue: str = "q") -> int:
    found = httpx.get(f"{server.url('admin')}/api/v1/queues", trust_env=False).json()["queues"]
    return int(next(one for one in found if one["name"] == queue)["depth"])


@pytest.mark.parametrize("topic", ["$queue/mqtt.device", "$queue/link.rabbit", "$SYS/broker", "$queue/", "$queue"])
def test_nobody_publishes_into_a_session_or_a_link_or_what_is_the_servers(daemon: Make, topic: str) -> None:
    server = daemon(CONFIG)
    with RawClient(server.address("mqtt")) as device:
        device.connect("device")
        for url, sent in (
            (f"{server.url('web')}/topics/{topic}", {"content": b"x"}),
            (f"{server.url('admin')}/api/v1/publish", {"json": {"topic": topic, "body": "x"}}),
        ):
            assert httpx.post(url, trust_env=False, **sent).status_code == 400
        device.nothing_comes()


def test_a_client_that_leaves_before_its_answer_disturbs_nobody(daemon: Make) -> None:
    server = daemon(CONFIG)
    address = server.address("web")
    whole = b"POST /topics/q/x HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n\r\ny"
    for cut in (1, 20, len(whole) - 1, len(whole)):
        for _ in range(20):
            with socket.create_connection(address) as client:
                client.sendall(whole[:cut])
    answer = httpx.post(f"{server.url('web')}/topics/q/last", content=b"z", trust_env=False)
    assert answer.status_code == 201
    # A whole request may have been taken before its client was seen to be gone, a part of one never.
    assert 1 <= depth(server) <= 21
    assert not [record for record in server.log if record.get("level") == "error"]


def test_a_consume_that_is_interrupted_gives_back_what_it_has_not_settled(daemon: Make) -> None:
    server = daemon(CONFIG)
    for n in range(5):
        httpx.post(f"{server.url('web')}/topics/q/{n}", content=b"%d" % n, trust_env=False)
    body = {"queue": "q", "credit": 3}
    with httpx.stream("POST", f"{server.url('admin')}/api/v1/consume", json=body, trust_env=False) as stream:
        lines = stream.iter_lines()
        for _ in range(4):
            next(lines)
    deadline = time.monotonic() + 5
    while depth(server) != 5:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    command = [sys.executable, "-m", "gateway", "consume", "q", "--count", "5"]
    environment = {"GATEWAY_ADMIN": server.url("admin"), "PYTHONPATH": ":".join(sys.path), "PATH": ""}
    found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=True)
    assert [n for n in range(5) if str(n) in found.stdout] == list(range(5))
    assert depth(server) == 0
