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
    whole = b"POST /topics/q/x HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1\r\n\r\ny"
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


# time and places


def metric(server: Daemon, name: str, reason: str = "") -> float:
    page = httpx.get(f"{server.url('admin')}/metrics", trust_env=False).text
    wanted = [line for line in page.splitlines() if line.startswith(name) and f'reason="{reason}"' in line]
    return sum(float(line.rpartition(" ")[2]) for line in wanted)


def until_closed(client: socket.socket) -> bytes:
    client.settimeout(5)
    came = b""
    try:
        while data := client.recv(1 << 16):
            came += data
    except ConnectionResetError:
        pass
    return came


HEAD = b"POST /topics/q/x HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n"
IMPATIENT = {**CONFIG, "transports": {**LISTENERS, "web": {**LISTENERS["web"], "request_timeout": "700ms"}}}


@pytest.mark.parametrize(
    ("said", "answer"),
    [(b"", b"HTTP/1.1 408"), (b"POST /topics/q/x HTTP/1.1\r\nho", b"HTTP/1.1 408"), (HEAD + b"x", b"")],
)
def test_a_request_must_be_whole_in_time_however_it_drips(daemon: Make, said: bytes, answer: bytes) -> None:
    server = daemon(IMPATIENT)
    began = time.monotonic()
    with socket.create_connection(server.address("web")) as client:
        client.sendall(said)
        if said:
            for _ in range(3):
                time.sleep(0.15)
                client.sendall(b"x")
        assert until_closed(client).startswith(answer)
    assert 0.6 < time.monotonic() - began < 3
    assert metric(server, "gateway_transport_protocol_errors_total", "request-timeout") == 1
    assert depth(server) == 0


def test_a_body_that_goes_on_after_its_answer_is_ended_too(daemon: Make) -> None:
    server = daemon(IMPATIENT)
    with socket.create_connection(server.address("web")) as client:
        client.sendall(b"POST /nowhere HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000\r\n\r\nx")
        assert client.recv(12) == b"HTTP/1.1 404"
        client.sendall(b"x")
        began = time.monotonic()
        until_closed(client)
        assert time.monotonic() - began < 3


def test_a_connection_that_is_kept_is_asked_anew_after_longer_than_a_request_may_take(daemon: Make) -> None:
    server = daemon(IMPATIENT)
    with socket.create_connection(server.address("web")) as client:
        for n in range(3):
            client.sendall(HEAD.replace(b"100", b"1") + b"%d" % n)
            came = b""
            while b'"stored"' not in came:
                data = client.recv(1000)
                assert data, "it was closed"
                came += data
            time.sleep(0.9)
    assert depth(server) == 3


def test_the_admin_listener_answers_though_thousands_of_idle_connections_are_there(daemon: Make) -> None:
    server = daemon({**CONFIG, "admin": {"listen": "127.0.0.1:0", "max_connections": 50}})
    heads = [b"", b"GET /rea", HEAD, HEAD + b"x" * 99]
    idle: list[socket.socket] = []
    for n in range(400):
        idle.append(socket.create_connection(server.address("admin")))
        idle[-1].sendall(heads[n % 4])
        if n % 50 == 49:
            began = time.monotonic()
            assert httpx.get(f"{server.url('admin')}/readyz", trust_env=False).status_code == 200
            assert time.monotonic() - began < 1
    assert metric(server, "gateway_transport_refusals_total", "crowded-out") >= 200
    for one in idle:
        one.close()


def test_more_whole_requests_than_allowed_are_told_so(daemon: Make) -> None:
    server = daemon({**CONFIG, "admin": {"listen": "127.0.0.1:0", "max_connections": 1}})
    url = server.url("admin")
    with httpx.stream("POST", f"{url}/api/v1/consume", json={"queue": "q"}, trust_env=False) as stream:
        lines = stream.iter_lines()
        next(lines)
        answer = httpx.get(f"{url}/readyz", trust_env=False)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    deadline = time.monotonic() + 5
    while httpx.get(f"{url}/readyz", trust_env=False).status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_bytes_in_and_out_are_counted(daemon: Make) -> None:
    server = daemon(CONFIG)
    body = httpx.post(f"{server.url('web')}/topics/q/1", content=b"x" * 5000, trust_env=False).content
    page = httpx.get(f"{server.url('admin')}/metrics", trust_env=False)
    again = httpx.get(f"{server.url('admin')}/metrics", trust_env=False).text

    def counted(name: str, transport: str) -> float:
        line = next(one for one in again.splitlines() if one.startswith(f'{name}{{transport="{transport}"}}'))
        return float(line.rpartition(" ")[2])

    assert counted("gateway_transport_bytes_in_total", "web") > 5000
    assert len(body) < counted("gateway_transport_bytes_out_total", "web") < 1000
    assert counted("gateway_transport_bytes_out_total", "admin") > len(page.content)
