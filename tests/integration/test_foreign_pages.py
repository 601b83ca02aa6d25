"""Pages in a browser on this machine: where nobody has to say who he is, those of elsewhere reach no listener."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, RejectConnection, Request

from gateway.auth.users import hash_password
from tests.harness.daemon import Daemon

LOOPBACK = {"listen": "127.0.0.1:0"}
CONFIG = {
    "queues": {"q": {}},
    "routes": [{"from": "#", "to": "q"}],
    "transports": {
        "ws": {"type": "mqtt", **LOOPBACK, "websocket": {}},
        "listed": {"type": "mqtt", **LOOPBACK, "websocket": {"origins": ["https://app.example"]}},
        "web": {"type": "http", **LOOPBACK},
    },
}
USERS = {"users": {"u": {"password_hash": hash_password("u")}}}
HERE = ("http://localhost", "http://localhost:3000", "http://127.0.0.1:8080", "https://[::1]:8443")
ELSEWHERE = (
    "https://evil.example",
    "http://localhost.evil.example",
    "http://127.0.0.1.evil.example",
    "http://192.168.0.7",
    "null",
    "file://",
    "localhost",
    "http://[broken",
)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    made = Daemon(tmp_path_factory.mktemp("pages"), CONFIG)
    try:
        yield made.start()
    finally:
        made.close()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """With users."""
    made = Daemon(tmp_path_factory.mktemp("guarded"), CONFIG | USERS)
    try:
        yield made.start()
    finally:
        made.close()


def by_http(daemon: Daemon, headers: dict[str, str]) -> int:
    """What a page may send without asking first: a POST of plain text."""
    kind = {"content-type": "text/plain"}
    return httpx.post(
        f"{daemon.url('web')}/topics/a", content=b"x", headers=headers | kind, auth=("u", "u"), trust_env=False
    ).status_code


def by_admin(daemon: Daemon, headers: dict[str, str]) -> int:
    return httpx.post(
        f"{daemon.url('admin')}/api/v1/publish", json={"topic": "a"}, headers=headers, auth=("u", "u"), trust_env=False
    ).status_code


def by_admin_get(daemon: Daemon, headers: dict[str, str]) -> int:
    found = httpx.get(f"{daemon.url('admin')}/metrics", headers=headers, auth=("u", "u"), trust_env=False)
    return 201 if found.status_code == 200 else found.status_code


def by_websocket(daemon: Daemon, headers: dict[str, str], listener: str = "ws") -> int:
    address = daemon.address(listener)
    frames = WSConnection(ConnectionType.CLIENT)
    others = [(name.encode(), value.encode()) for name, value in headers.items() if name != "host"]
    request = Request(
        host=headers.get("host", "127.0.0.1"), target="/mqtt", subprotocols=["mqtt"], extra_headers=others
    )
    with socket.create_connection((address.host, address.port), timeout=8) as client:
        client.sendall(frames.send(request))
        while True:
            for event in frames.events():
                if isinstance(event, RejectConnection):
                    return event.status_code
                assert isinstance(event, AcceptConnection)
                return 201
            frames.receive_data(client.recv(1 << 16))


WAYS = pytest.mark.parametrize("way", [by_http, by_admin, by_admin_get, by_websocket])
Way = Callable[[Daemon, dict[str, str]], int]


@WAYS
@pytest.mark.parametrize("origin", ELSEWHERE)
def test_a_page_of_elsewhere_is_refused(daemon: Daemon, way: Way, origin: str) -> None:
    assert way(daemon, {"origin": origin}) == 403


@WAYS
@pytest.mark.parametrize("origin", HERE)
def test_a_page_of_this_machine_is_served(daemon: Daemon, way: Way, origin: str) -> None:
    assert way(daemon, {"origin": origin}) == 201


@WAYS
def test_a_program_is_served(daemon: Daemon, way: Way) -> None:
    assert way(daemon, {}) == 201


@pytest.mark.parametrize("way", [by_http, by_admin, by_admin_get])
@pytest.mark.parametrize(("host", "status"), [("evil.example", 403), ("localhost:1", 201), ("[::1]", 201)])
def test_a_name_that_is_pointed_here_is_refused(daemon: Daemon, way: Way, host: str, status: int) -> None:
    assert way(daemon, {"host": host}) == status


@WAYS
def test_with_users_the_page_is_not_asked_for(guarded: Daemon, way: Way) -> None:
    assert way(guarded, {"origin": "https://evil.example", "host": "broker.example"}) == 201


def test_origins_that_are_listed_are_the_only_ones(daemon: Daemon) -> None:
    for origin, status in (("https://app.example", 201), ("http://localhost", 403), ("https://evil.example", 403)):
        assert by_websocket(daemon, {"origin": origin}, "listed") == status


def test_users_that_a_reload_takes_away_count_at_once(tmp_path: Path) -> None:
    made = Daemon(tmp_path, CONFIG | USERS)
    try:
        made.start()
        evil = {"origin": "https://evil.example"}
        assert by_websocket(made, evil) == 201
        made.configure(CONFIG)
        made.hup()
        made.wait_for("reloaded")
        assert [by_websocket(made, evil), by_http(made, evil)] == [403, 403]
    finally:
        made.close()
