"""Clients that are refused: a trace in the log, a count by reason, however they come; and what strangers are told."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme
from argon2 import PasswordHasher
from pamqp import commands

from gateway.auth.scram import METHOD, make_verifier
from gateway.net.connection_limits import SPARE
from gateway.transport.refusals import LINES
from tests.harness.daemon import Daemon
from tests.harness.link import wait_for
from tests.integration.amqp_raw import Raw
from tests.integration.mqtt_raw import RawClient
from tests.integration.test_mqtt_auth import proof
from tests.integration.test_tls import Authority
from tests.unit.test_proxy_header import of
from transports.mqtt.encoding import encode
from transports.mqtt.packets import V5, V311, Auth, ConnAck, Connect, Property, Reason

Make = Callable[..., Daemon]
CHEAP = PasswordHasher(time_cost=1, memory_cost=64, parallelism=1)
USERS = {"ann": {"password_hash": CHEAP.hash("secret"), "scram": str(make_verifier("secret", 4096))}}
LOOPBACK = "127.0.0.1:0"
WRONG = "hunter2-is-wrong"


def config(**more: Any) -> dict[str, Any]:
    return {
        "users": USERS,
        "queues": {"work": {}},
        "transports": {
            "mqtt": {"type": "mqtt", "listen": LOOPBACK},
            "amqp": {"type": "amqp", "listen": LOOPBACK},
            "http": {"type": "http", "listen": LOOPBACK},
            **more,
        },
    }


def count(server: Daemon, transport: str, reason: str, name: str = "refusals") -> float:
    text = httpx.get(server.url("admin") + "/metrics", auth=("ann", "secret"), trust_env=False).text
    line = f'gateway_transport_{name}_total{{reason="{reason}",transport="{transport}"}} '
    return float(next((one.removeprefix(line) for one in text.splitlines() if one.startswith(line)), 0))


def by_mqtt(server: Daemon, version: int) -> None:
    with RawClient(server.address("mqtt"), version) as one:
        one.send(Connect("sensor-7", version, username="ann", password=WRONG.encode()))
        assert one.expect(ConnAck).reason == Reason.BAD_USER_NAME_OR_PASSWORD


def by_scram(server: Daemon) -> None:
    first = b"n,,n=ann,r=abcdef"
    with RawClient(server.address("mqtt")) as one:
        asked = {Property.AUTHENTICATION_METHOD: METHOD, Property.AUTHENTICATION_DATA: first}
        one.send(Connect("sensor-7", properties=asked))
        one.send(proof(one.expect(Auth), WRONG, first)[0])
        assert one.expect(ConnAck).reason == Reason.NOT_AUTHORIZED


def by_amqp(server: Daemon) -> None:
    one = Raw(server.address("amqp"))
    one.socket.sendall(b"AMQP\0\0\x09\x01")
    one.expect(commands.Connection.Start)
    capabilities = {"capabilities": {"authentication_failure_close": True}}
    one.send(commands.Connection.StartOk(capabilities, "PLAIN", f"\0ann\0{WRONG}"), channel=0)
    assert one.expect(commands.Connection.Close).reply_code == 403
    one.close()


def by_http(server: Daemon) -> None:
    answer = httpx.post(server.url("http") + "/topics/a", content=b"x", auth=("ann", WRONG), trust_env=False)
    assert answer.status_code == 401


def by_admin(server: Daemon) -> None:
    answer = httpx.get(server.url("admin") + "/api/v1/queues", auth=("ann", WRONG), trust_env=False)
    assert answer.status_code == 401


@pytest.mark.parametrize(
    ("transport", "reason", "client_id", "comes"),
    [
        ("mqtt", "bad-user-name-or-password", "sensor-7", lambda server: by_mqtt(server, V5)),
        ("mqtt", "bad-user-name-or-password", "sensor-7", lambda server: by_mqtt(server, V311)),
        ("mqtt", "not-authorized", "sensor-7", by_scram),
        ("amqp", "bad-credentials", None, by_amqp),
        ("http", "bad-credentials", None, by_http),
        ("admin", "bad-credentials", None, by_admin),
    ],
)
def test_a_wrong_password_leaves_a_trace_without_itself(
    daemon: Make, transport: str, reason: str, client_id: str | None, comes: Callable[[Daemon], None]
) -> None:
    server = daemon(config())
    comes(server)
    said = server.wait_for("client refused")
    assert (said["transport"], said["reason"], said["user"]) == (transport, reason, "ann")
    assert said["peer"].startswith("127.0.0.1:") and said.get("client_id") == client_id
    assert count(server, transport, reason) == 1
    for _ in range(2 * LINES):
        comes(server)
    assert count(server, transport, reason) == 1 + 2 * LINES
    server.stop()
    lines = [line for line in server.log if line.get("event") == "client refused"]
    assert len(lines) == LINES
    assert server.wait_for("more clients refused")["clients"] == LINES + 1
    assert WRONG not in server.text()


def test_who_speaks_another_protocol_leaves_a_trace(daemon: Make) -> None:
    server = daemon(config())
    with socket.create_connection(server.address("amqp"), timeout=8) as one:
        one.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert one.recv(8) == b"AMQP\0\0\x09\x01"
    assert "GET" in server.wait_for("client refused", lambda line: line["reason"] == "wrong-protocol")["why"]


# before the handshake is over


def tls_config(authority: Authority, **more: Any) -> dict[str, Any]:
    tls = {**authority.sign("localhost"), **more}
    secured = {"listen": LOOPBACK, "tls": tls, "connect_timeout": "3s", "max_connections": 10}
    return config(secured={"type": "mqtt", **secured}, amqps={"type": "amqp", **secured})


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def until_closed(one: socket.socket) -> None:
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while one.recv(1000):
            pass


@pytest.mark.parametrize("name", ["secured", "amqps"])
@pytest.mark.parametrize(
    "said", [encode(Connect("a", V5), V5), b"AMQP\0\0\x09\x01", b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"]
)
def test_plain_text_on_a_tls_port_leaves_a_trace(daemon: Make, authority: Authority, name: str, said: bytes) -> None:
    server = daemon(tls_config(authority))
    with socket.create_connection(server.address(name), timeout=8) as one:
        one.sendall(said)
        until_closed(one)
    line = server.wait_for("client refused")
    assert (line["transport"], line["reason"]) == (name, "tls-plain-text")
    assert line["peer"].startswith("127.0.0.1:")
    assert count(server, name, "tls-plain-text") == 1


@pytest.mark.parametrize("name", ["secured", "amqps"])
@pytest.mark.parametrize("reason", ["tls-no-certificate", "tls-foreign-certificate"])
def test_a_missing_or_foreign_certificate_leaves_a_trace(
    daemon: Make, authority: Authority, tmp_path: Path, name: str, reason: str
) -> None:
    server = daemon(tls_config(authority, client_ca=str(authority.path)))
    context = authority.client()
    if reason == "tls-foreign-certificate":
        trustme.CA().issue_cert("device").private_key_and_cert_chain_pem.write_to_path(tmp_path / "foreign.pem")
        context.load_cert_chain(tmp_path / "foreign.pem")
    with socket.create_connection(server.address(name), timeout=8) as raw:
        with contextlib.suppress(ssl.SSLError, ConnectionError), context.wrap_socket(raw) as one:
            until_closed(one)
    line = server.wait_for("client refused")
    assert (line["transport"], line["reason"]) == (name, reason)
    assert line["why"]
    assert count(server, name, reason) == 1


def test_a_client_that_does_not_trust_us_or_goes_leaves_a_trace(daemon: Make, authority: Authority) -> None:
    server = daemon(tls_config(authority))
    with socket.create_connection(server.address("secured"), timeout=8) as raw, pytest.raises(ssl.SSLError):
        ssl.create_default_context().wrap_socket(raw, server_hostname="localhost")
    server.wait_for("client refused", lambda line: line["reason"] in ("tls-ended", "tls-handshake"))
    assert count(server, "secured", "tls-ended") + count(server, "secured", "tls-handshake") == 1


@pytest.mark.parametrize("name", ["secured", "amqps", "proxied"])
def test_who_is_silent_before_the_handshake_counts_and_runs_out_of_time(
    daemon: Make, authority: Authority, name: str
) -> None:
    made = tls_config(authority)
    made["transports"]["proxied"] = {
        "type": "mqtt", "listen": LOOPBACK, "proxy_protocol": True, "connect_timeout": "3s", "max_connections": 10,
    }  # fmt: skip
    server = daemon(made)
    silent = 300
    with contextlib.ExitStack() as stack:
        crowd = [stack.enter_context(socket.create_connection(server.address(name), timeout=8)) for _ in range(silent)]
        wait_for(lambda: count(server, name, "crowded-out") == silent - 10 - SPARE, "those beyond the limit are gone")
        for one in crowd:  # and then the rest
            until_closed(one)
    kind = ("proxy-header", "protocol_errors") if name == "proxied" else ("tls-timeout", "refusals")
    wait_for(lambda: count(server, name, *kind) == 10 + SPARE, "all are over")
    text = httpx.get(server.url("admin") + "/metrics", auth=("ann", "secret"), trust_env=False).text
    assert f'gateway_transport_connections{{transport="{name}"}} 0.0' in text
    assert server.stop() == 0
    assert "Traceback" not in server.text() and "never retrieved" not in server.text()


def test_a_tls_port_comes_to_its_end_with_clients_at_the_door(daemon: Make, authority: Authority) -> None:
    made = tls_config(authority)
    made["transports"]["secured"]["connect_timeout"] = "1h"
    server = daemon(made)
    with contextlib.ExitStack() as stack:
        crowd = [stack.enter_context(socket.create_connection(server.address("secured"))) for _ in range(20)]
        crowd[0].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        crowd[0].close()
        server.wait_for("client refused", lambda line: line["reason"] == "tls-ended")
        assert server.stop() == 0
    assert "Traceback" not in server.text() and "never retrieved" not in server.text()


@pytest.mark.parametrize(("trusted", "let_in"), [(["192.0.2.0/24"], False), (["192.0.2.7", "127.0.0.1"], True)])
def test_only_trusted_proxies_may_say_whose_connection_it_is(daemon: Make, trusted: list[str], let_in: bool) -> None:
    proxied = {"type": "mqtt", "listen": LOOPBACK, "proxy_protocol": True, "trusted_proxies": trusted}
    server = daemon(config(proxied=proxied))
    with RawClient(server.address("proxied")) as one:
        with contextlib.suppress(ConnectionError):
            one.send(of("203.0.113.9", 4711) + encode(Connect("", username="ann", password=b"secret"), V5))
        answer = one.receive()
    if let_in:
        assert answer.reason == Reason.SUCCESS
    else:
        assert answer is None
        line = server.wait_for("client refused")
        assert line["reason"] == "untrusted-proxy" and line["peer"].startswith("127.0.0.1:")
        assert count(server, "proxied", "untrusted-proxy") == 1


# what strangers are told


def test_strangers_hear_that_it_is_not_ready_and_users_hear_why(daemon: Make) -> None:
    plant = {"type": "mqtt-client", "url": "mqtt://127.0.0.1:1", "subscribe": ["secret/place/#"], "required": True}
    server = daemon(config(plant=plant))
    url = server.url("admin") + "/readyz"
    wait_for(lambda: httpx.get(url, trust_env=False).status_code == 503, "it is not ready")
    for auth in (None, ("ann", WRONG), ("nobody", "x")):
        answer = httpx.get(url, trust_env=False, auth=auth)
        assert (answer.status_code, answer.json()) == (503, {"ready": False})
    told = httpx.get(url, trust_env=False, auth=("ann", "secret"))
    assert told.status_code == 503
    assert "plant" in told.json()["impaired"] and any("plant" in reason for reason in told.json()["reasons"])
    assert count(server, "admin", "bad-credentials") == 2


def test_without_users_a_page_under_a_name_of_its_own_is_a_stranger(daemon: Make) -> None:
    server = daemon({})
    url = server.url("admin") + "/readyz"
    assert httpx.get(url, trust_env=False).json() == {"ready": True, "reasons": [], "impaired": {}}
    assert httpx.get(url, trust_env=False, headers={"host": "evil.example"}).json() == {"ready": True}
