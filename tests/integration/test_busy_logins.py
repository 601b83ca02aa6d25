"""Password checks that take long: who gives up costs nothing, and who can't be checked now hears that, over sockets."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from argon2 import PasswordHasher
from pamqp import commands

from gateway.address import Address as Listen
from gateway.admin.api import NAME, Admin
from gateway.auth import users as access
from gateway.config.settings import AdminSettings
from gateway.engine.gateway import LocalGateway
from gateway.model.policy import Seconds
from gateway.net.websocket import WebSocketSettings
from plugins.http import Http, HttpSettings
from tests.harness.local import local_gateway
from tests.harness.process import Address
from tests.integration.amqp_raw import Raw
from tests.integration.mqtt_raw import RawClient
from transports.amqp.listener import AmqpListener, AmqpSettings
from transports.mqtt.encoding import encode
from transports.mqtt.listener import MqttListener
from transports.mqtt.packets import V5, V311, ConnAck, Connect, Publish, Reason
from transports.mqtt.settings import MqttSettings

pytestmark = pytest.mark.anyio
ANN = PasswordHasher(time_cost=1, memory_cost=64, parallelism=1).hash("secret")
LOOPBACK = Listen.parse("127.0.0.1:0")


class Place:
    """A gateway in this process with a listener of each kind."""

    def __init__(self, gateway: LocalGateway) -> None:
        self.gateway = gateway

    def url(self, name: str) -> str:
        return self.gateway.addresses[name][0]

    def address(self, name: str) -> Address:
        host, port = self.url(name).partition("://")[2].partition("/")[0].split(":")
        return Address(host, int(port))


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    users = {"ann": ANN, "bob": ANN}
    async with local_gateway("queues: {work: {}}", users, drain_timeout=1.0) as (gateway, operator):
        made: dict[str, Any] = {
            "mqtt": MqttListener("mqtt", MqttSettings(listen=LOOPBACK, connect_timeout=Seconds(1))),
            "ws": MqttListener("ws", MqttSettings(listen=LOOPBACK, websocket=WebSocketSettings())),
            "amqp": AmqpListener("amqp", AmqpSettings(listen=LOOPBACK, connect_timeout=Seconds(1))),
            "http": Http("http", HttpSettings(type="http", listen=LOOPBACK)),
            NAME: Admin(AdminSettings(listen=LOOPBACK), operator),
        }
        up = asyncio.Event()
        gateway.on_started = lambda: up.set() if len(gateway.addresses) == len(made) else None
        running = [asyncio.create_task(one.run(gateway)) for one in made.values()]
        await up.wait()
        try:
            yield Place(gateway)
        finally:
            for task in running:
                task.cancel()
            await asyncio.wait(running)


class Gate:
    """No check is over before `open`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.checks: list[bytes] = []
        self._open = threading.Event()
        monkeypatch.setattr(access, "argon2_check", self._check)

    def _check(self, password_hash: str, password: bytes) -> bool:
        self.checks.append(password)
        self._open.wait(30)
        return password == b"secret"

    def open(self) -> None:
        self._open.set()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Any:
    found = Gate(monkeypatch)
    yield found
    found.open()


async def until(claim: Any) -> None:
    deadline = time.monotonic() + 20
    while not claim():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


def start(place: Place, transport: str, password: str) -> socket.socket:
    """A client that has said who it is, and hears nothing yet."""
    if transport == "amqp":
        raw = Raw(place.address("amqp"))
        raw.socket.sendall(b"AMQP\0\0\x09\x01")
        raw.expect(commands.Connection.Start)
        raw.send(commands.Connection.StartOk({}, "PLAIN", f"\0ann\0{password}"), channel=0)
        return raw.socket
    one = socket.create_connection(place.address(transport), timeout=8)
    if transport == "mqtt":
        # What follows at once must wait for the login, and not hide that its sender has gone.
        later = encode(Publish("$queue/work", b"x" * 100, 1, packet_id=1), V5)
        one.sendall(encode(Connect("", username="ann", password=password.encode()), V5) + later)
    else:
        header = httpx.BasicAuth("ann", password)._auth_header
        path = "/topics/a" if transport == "http" else "/api/v1/purge"
        one.sendall(
            f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: {header}\r\ncontent-length: 0\r\n\r\n".encode()
        )
    return one


def leave(one: socket.socket, how: str) -> None:
    if how == "reset":
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    one.close()


@pytest.mark.parametrize("how", ["closed", "reset"])
@pytest.mark.parametrize("transport", ["mqtt", "amqp", "http", NAME])
async def test_who_gives_up_costs_nothing(place: Place, gate: Gate, transport: str, how: str) -> None:
    counters = place.gateway.counters(transport)
    for number in range(150):
        one = await asyncio.to_thread(start, place, transport, f"wrong {number}")
        if number < access.THREADS:
            await until(lambda: len(gate.checks) == number + 1)  # noqa: B023
        leave(one, how)
    await until(lambda: counters.connections_total == 150 and not counters.connections)
    good = await asyncio.to_thread(RawClient, place.address("mqtt"))
    good.send(Connect("", username="bob", password=b"secret"))
    gate.open()
    assert (await asyncio.to_thread(good.expect, ConnAck)).reason == Reason.SUCCESS
    good.cut()
    assert gate.checks[access.THREADS :] == [b"secret"]


async def test_what_a_client_sends_before_it_is_checked_takes_effect_afterwards(place: Place, gate: Gate) -> None:
    one = await asyncio.to_thread(RawClient, place.address("mqtt"))
    publishes = [Publish("$queue/work", b"x" * 10_000, 1, packet_id=number) for number in range(1, 101)]
    one.send(Connect("", username="ann", password=b"secret"), *publishes[:50])
    await until(lambda: gate.checks)
    await asyncio.to_thread(one.send, *publishes[50:])
    assert place.gateway.core.queues["work"].depth == 0
    gate.open()
    assert (await asyncio.to_thread(one.expect, ConnAck)).reason == Reason.SUCCESS
    for number in range(1, 101):
        ack = await asyncio.to_thread(one.receive)
        assert (ack.packet_id, ack.reason) == (number, Reason.SUCCESS)
    one.cut()
    assert place.gateway.core.queues["work"].depth == 100


@pytest.mark.parametrize("password", ["secret", "wrong"])
async def test_busy_is_said_as_busy(place: Place, monkeypatch: pytest.MonkeyPatch, password: str) -> None:
    monkeypatch.setattr(access, "MAX_WAITING", 0)
    for version in (V5, V311):
        one = await asyncio.to_thread(RawClient, place.address("mqtt"), version)
        one.send(encode(Connect("", version, username="ann", password=password.encode()), version))
        data = await asyncio.to_thread(one.socket.recv, 100)
        assert data[3] == (0x89 if version == V5 else 3)
        one.cut()
    raw = await asyncio.to_thread(Raw, place.address("amqp"))
    raw.socket.sendall(b"AMQP\0\0\x09\x01")
    await asyncio.to_thread(raw.expect, commands.Connection.Start)
    raw.send(commands.Connection.StartOk({}, "PLAIN", f"\0ann\0{password}"), channel=0)
    close = await asyncio.to_thread(raw.expect, commands.Connection.Close)
    assert close.reply_code == 320 and "busy: too many logins" in close.reply_text
    raw.close()
    async with httpx.AsyncClient(trust_env=False, auth=("ann", password)) as http:
        for url in (place.url("http") + "/topics/a", place.url(NAME) + "/api/v1/purge"):
            answer = await http.post(url, content=b"")
            assert answer.status_code == 503 and answer.headers["retry-after"] == "1"
            assert "try again later" in answer.json()["error"]
        ready = await http.get(place.url(NAME) + "/readyz")
        assert (ready.status_code, ready.json()) == (200, {"ready": True})
    refusals = {name: dict(place.gateway.counters(name).refusals) for name in ("mqtt", "amqp", "http", NAME)}
    assert refusals == {
        "mqtt": {"server-busy": 2}, "amqp": {"login-busy": 1}, "http": {"login-busy": 1}, NAME: {"login-busy": 2}
    }  # fmt: skip


@pytest.mark.parametrize("transport", ["mqtt", "amqp"])
async def test_the_wait_for_a_check_is_not_the_clients_time(place: Place, gate: Gate, transport: str) -> None:
    """It may take longer than a client has for its handshake."""
    one = await asyncio.to_thread(start, place, transport, "secret")
    await until(lambda: gate.checks)
    silent = await asyncio.to_thread(socket.create_connection, place.address(transport), 8)
    assert await asyncio.to_thread(silent.recv, 100) == b"", "it came later and is out of time"
    silent.close()
    gate.open()
    assert await asyncio.to_thread(one.recv, 100)
    one.close()
