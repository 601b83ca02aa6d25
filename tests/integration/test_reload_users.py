"""Reloads that take users away: what runs stays guarded, and whose login rests on nothing any more is put out."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pika
import pika.exceptions
import pytest
from argon2 import PasswordHasher
from pamqp import commands

from gateway.auth.scram import make_verifier
from tests.harness.daemon import Daemon
from tests.harness.link import wait_for
from tests.integration.amqp_raw import Raw
from tests.integration.mqtt_raw import RawClient, unique
from tests.integration.test_mqtt_auth import METHOD, proven
from tests.integration.test_mqtt_websocket import WebClient
from transports.mqtt.encoding import encode
from transports.mqtt.packets import V5, V311, ConnAck, Connect, Disconnect, PingReq, PingResp, Reason, Will

Make = Callable[..., Daemon]
CHEAP = PasswordHasher(time_cost=1, memory_cost=64, parallelism=1)
ANN, BOB, NEW = CHEAP.hash("secret"), CHEAP.hash("other"), CHEAP.hash("new")
LOOPBACK, ALL = "127.0.0.1:0", "0.0.0.0:0"


def config(users: dict[str, Any], listen: str = LOOPBACK, admin: str = LOOPBACK, **mqtt: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "queues": {"work": {}},
        "routes": [{"from": "#", "to": "work"}],
        "admin": {"listen": admin},
        "transports": {
            "mqtt": {"type": "mqtt", "listen": listen, **mqtt},
            "ws": {"type": "mqtt", "listen": LOOPBACK, "websocket": {}},
            "amqp": {"type": "amqp", "listen": LOOPBACK},
            "http": {"type": "http", "listen": LOOPBACK},
        },
    }
    return found | ({"users": users} if users else {})


def user(password_hash: str, **more: str) -> dict[str, str]:
    return {"password_hash": password_hash, **more}


def reload(server: Daemon, new: dict[str, Any], event: str = "reloaded") -> dict[str, Any]:
    server.configure(new)
    before = len(server.log)
    server.hup()
    return server.wait_for(event, after=before)


@pytest.mark.parametrize("open_one", ["mqtt", "admin"])
def test_a_reload_does_not_open_a_listener_that_runs(daemon: Make, open_one: str) -> None:
    users = {"ann": user(ANN)}
    server = daemon(config(users, **({"listen": ALL} if open_one == "mqtt" else {"admin": ALL})))
    said = reload(server, config({}), "reload refused, the old configuration stays")
    assert ("transports.mqtt" if open_one == "mqtt" else "admin") in said["error"] and "0.0.0.0:0" in said["error"]
    port = server.address("mqtt").port, server.address("admin").port
    with socket.create_connection(("127.0.0.1", port[0]), timeout=8) as one:
        one.sendall(encode(Connect("stranger", V311), V311))
        assert one.recv(4)[3:] == b"\x04"
    assert httpx.get(f"http://127.0.0.1:{port[1]}/api/v1/queues", trust_env=False).status_code == 401
    assert reload(server, config(users))["queues"] == 1


def test_a_listener_that_says_so_may_be_opened(daemon: Make) -> None:
    server = daemon(config({"ann": user(ANN)}, ALL, allow_anonymous=True))
    reload(server, config({}))
    with socket.create_connection(("127.0.0.1", server.address("mqtt").port), timeout=8) as one:
        one.sendall(encode(Connect("somebody", V311), V311))
        assert one.recv(4)[3:] == b"\0"


class InAs:
    """One client of each kind that has logged in as `name`."""

    def __init__(self, server: Daemon, name: str, password: str, stack: contextlib.ExitStack) -> None:
        self.name = name
        self.mqtt = {}
        for version in (V5, V311):
            one = self.mqtt[version] = stack.enter_context(RawClient(server.address("mqtt"), version))
            one.send(Connect(unique(), version, username=name, password=password.encode()))
            assert one.expect(ConnAck).reason == Reason.SUCCESS
        self.web = WebClient(server)
        stack.callback(self.web.socket.close)
        self.web.open()
        self.web.say(Connect(unique(), username=name, password=password.encode()))
        assert self.web.packet().reason == Reason.SUCCESS
        self.amqp = Raw(server.address("amqp"))
        stack.callback(self.amqp.close)
        self.amqp.socket.sendall(b"AMQP\0\0\x09\x01")
        self.amqp.expect(commands.Connection.Start)
        self.amqp.send(commands.Connection.StartOk({}, "PLAIN", f"\0{name}\0{password}"), channel=0)
        tune = self.amqp.expect(commands.Connection.Tune)
        self.amqp.send(commands.Connection.TuneOk(tune.channel_max, tune.frame_max, 0), channel=0)
        self.amqp.send(commands.Connection.Open(), channel=0)
        self.amqp.expect(commands.Connection.OpenOk)
        self.http = httpx.Client(trust_env=False, timeout=8, auth=(name, password))
        stack.callback(self.http.close)
        self.feed = stack.enter_context(
            self.http.stream("POST", server.url("admin") + "/api/v1/consume", json={"queue": "work"})
        )
        self.lines = self.feed.iter_lines()
        assert "consumer" in json.loads(next(self.lines))
        address = server.address("http")
        self.upload = stack.enter_context(socket.create_connection((address.host, address.port), timeout=8))
        auth = httpx.BasicAuth(name, password)._auth_header
        self.upload.sendall(
            f"POST /topics/a HTTP/1.1\r\nhost: x\r\nauthorization: {auth}\r\ncontent-length: 4\r\n\r\nab".encode()
        )

    def is_in(self) -> None:
        for one in self.mqtt.values():
            one.nothing_comes()
        self.amqp.call(commands.Channel.Open(), commands.Channel.OpenOk)
        self.upload.sendall(b"cd")
        assert b" 201 " in self.upload.recv(1000)

    def is_put_out(self) -> None:
        assert self.mqtt[V5].expect(Disconnect).reason == Reason.NOT_AUTHORIZED
        for one in self.mqtt.values():
            assert one.receive() is None
        assert self.web.packet().reason == Reason.NOT_AUTHORIZED
        assert self.amqp.expect(commands.Connection.Close).reply_code == 320
        with pytest.raises(httpx.TransportError):
            for _ in self.lines:
                pass
        with contextlib.suppress(ConnectionError):
            assert self.upload.recv(1000) == b""


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as found:
        yield found


@pytest.mark.parametrize("after", [{}, {"ann": user(NEW)}], ids=["removed", "another password"])
def test_who_is_removed_or_has_another_password_is_put_out_and_nobody_else(
    daemon: Make, stack: contextlib.ExitStack, after: dict[str, Any]
) -> None:
    server = daemon(config({"ann": user(ANN), "bob": user(BOB)}))
    ann, bob = InAs(server, "ann", "secret", stack), InAs(server, "bob", "other", stack)
    reload(server, config({"bob": user(BOB), **after}))
    ann.is_put_out()
    bob.is_in()
    text = httpx.get(server.url("admin") + "/metrics", auth=("bob", "other"), trust_env=False).text
    for transport, count in (("mqtt", 2), ("ws", 1), ("amqp", 1), ("http", 1), ("admin", 1)):
        assert f'reason="login-revoked",transport="{transport}"}} {count}.0' in text


def test_a_login_by_scram_rests_on_its_verifier(daemon: Make) -> None:
    first, second = str(make_verifier("secret", 4096)), str(make_verifier("new", 4096))
    server = daemon(config({"ann": user(ANN, scram=first)}))
    with RawClient(server.address("mqtt")) as one:
        proven(one)
        reload(server, config({"ann": user(NEW, scram=first)}))
        one.nothing_comes()
        reload(server, config({"ann": user(NEW, scram=second)}))
        assert one.expect(Disconnect).reason == Reason.NOT_AUTHORIZED
    assert METHOD not in server.text()


def test_users_that_come_put_out_who_came_in_without(daemon: Make) -> None:
    server = daemon(config({}))
    parameters = pika.ConnectionParameters(*server.address("amqp"))
    with RawClient(server.address("mqtt")) as one:
        one.connect()
        connection = pika.BlockingConnection(parameters)
        reload(server, config({"ann": user(ANN)}))
        assert one.expect(Disconnect).reason == Reason.NOT_AUTHORIZED
        with pytest.raises(pika.exceptions.ConnectionClosedByBroker, match="320"):
            while True:
                connection.process_data_events(1)


def guest(server: Daemon, listener: str = "amqp") -> Raw:
    raw = Raw(server.address(listener))
    raw.login()
    return raw


def claims_another_name(server: Daemon) -> RawClient:
    one = RawClient(server.address("mqtt"))
    one.send(Connect(unique(), username="cleo", password=b"any"))
    assert one.expect(ConnAck).reason == Reason.SUCCESS
    return one


def is_in(one: RawClient | Raw) -> bool:
    if isinstance(one, Raw):
        one.send(commands.Basic.Qos(prefetch_count=1))
        return isinstance(one.read(), commands.Basic.QosOk)
    one.send(PingReq())
    return isinstance(one.receive(), PingResp)


def is_told_to_go(one: RawClient | Raw) -> bool:
    """A reload is said to be done a moment before those that it puts out are told."""
    if isinstance(one, Raw):
        return isinstance(one.read(), commands.Connection.Close)
    return isinstance(one.receive(), Disconnect)


@pytest.mark.parametrize(
    ("before", "anonymous"),
    [({}, False), ({}, True), ({"bob": user(BOB)}, True)],
    ids=["no users", "no users, allow_anonymous", "users, allow_anonymous"],
)
def test_who_is_let_in_by_the_listener_alone_stays_as_long_as_it_lets_in(
    daemon: Make, before: dict[str, Any], anonymous: bool
) -> None:
    """MQTT without a user name and AMQP's guest, alike: by `allow_anonymous` they stay, whatever users come and go; by
    there being no users they stay until there are some."""

    def with_users(users: dict[str, Any]) -> dict[str, Any]:
        made = config(users)
        for name in ("mqtt", "amqp"):
            made["transports"][name]["allow_anonymous"] = anonymous
        return made

    def come() -> list[RawClient | Raw]:
        plain, raw = stack.enter_context(RawClient(server.address("mqtt"))), guest(server)
        stack.callback(raw.close)
        plain.connect()
        return [plain, raw]

    server = daemon(with_users(before))
    with contextlib.ExitStack() as stack:
        clients = come()
        named = None if before else stack.enter_context(claims_another_name(server))
        reload(server, with_users({"ann": user(ANN)}))
        if named is not None:
            assert is_told_to_go(named), "a name that no user has is refused by each listener now"
        if not anonymous:
            assert all(is_told_to_go(one) for one in clients)
        else:
            assert all(is_in(one) for one in clients)
            clients += come()
            for users in ({"bob": user(BOB)}, {}, {"ann": user(ANN), "bob": user(BOB)}):
                reload(server, with_users(users))
                assert all(is_in(one) for one in clients)


def test_a_guest_whose_name_is_given_to_a_user_is_put_out(daemon: Make) -> None:
    """It never showed that it is that user."""

    def with_users(users: dict[str, Any]) -> dict[str, Any]:
        made = config(users)
        made["transports"]["amqp"]["allow_anonymous"] = True
        return made

    server = daemon(with_users({}))
    raw = guest(server)
    reload(server, with_users({"guest": user(NEW)}))
    assert is_told_to_go(raw)
    raw.close()
    raw = guest(server)
    assert is_in(raw)
    raw.close()


def test_what_a_removed_user_leaves_is_as_of_any_that_is_cut_off(daemon: Make) -> None:
    """Its session stays, its will is published."""
    server = daemon(config({"ann": user(ANN), "bob": user(BOB)}))
    with RawClient(server.address("mqtt")) as one:
        will = Will("gone", b"ann", 1)
        one.send(Connect("lasting", clean_start=True, will=will, username="ann", password=b"secret"))
        assert one.expect(ConnAck).reason == Reason.SUCCESS
        reload(server, config({"bob": user(BOB)}))
        assert one.expect(Disconnect).reason == Reason.NOT_AUTHORIZED

    def depth() -> int:
        found = httpx.get(server.url("admin") + "/api/v1/queues", auth=("bob", "other"), trust_env=False).json()
        return int(next(queue["depth"] for queue in found["queues"] if queue["name"] == "work"))

    wait_for(lambda: depth() == 1, "the will is there")
