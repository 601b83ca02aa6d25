"""TLS on the listeners: who is let in, by whose certificate, and what a reload changes."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiomqtt
import paho.mqtt.client as paho
import pika
import pika.exceptions
import pytest
import trustme
from paho.mqtt.enums import CallbackAPIVersion
from pika.credentials import ExternalCredentials

from gateway.auth.users import hash_password
from tests.faults.abuse import metric
from tests.harness.daemon import Daemon
from tests.integration.mqtt_raw import unique

Make = Callable[..., Daemon]


class Authority:
    """Signs certificates, in files below `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca = trustme.CA()
        self.path = folder / "ca.pem"
        self.ca.cert_pem.write_to_path(self.path)

    def sign(self, name: str) -> dict[str, str]:
        """Writes `server.pem` and `server.key`; returns them as settings."""
        found = self.ca.issue_cert(name)
        found.cert_chain_pems[0].write_to_path(self.folder / "server.pem")
        found.private_key_pem.write_to_path(self.folder / "server.key")
        return {"cert": str(self.folder / "server.pem"), "key": str(self.folder / "server.key")}

    def client(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.path))
        context.check_hostname = False
        return context


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def config(tls: dict[str, str], **settings: Any) -> dict[str, Any]:
    return {
        "queues": {"work": {}},
        "transports": {
            "plain": {"type": "mqtt", "listen": "127.0.0.1:0"},
            "mqtts": {"type": "mqtt", "listen": "127.0.0.1:0", "tls": tls, "connect_timeout": "2s", **settings},
            "wss": {"type": "mqtt", "listen": "127.0.0.1:0", "tls": tls, "websocket": {}},
            "amqps": {"type": "amqp", "listen": "127.0.0.1:0", "tls": tls},
        },
    }


def shown(daemon: Daemon, context: ssl.SSLContext, name: str = "mqtts") -> int:
    """The serial number of the certificate that a new connection sees."""
    address = daemon.address(name)
    with socket.create_connection((address.host, address.port), timeout=8) as raw:
        with context.wrap_socket(raw) as secured:
            assert secured.version() in ("TLSv1.2", "TLSv1.3")
            found = secured.getpeercert()
            assert found is not None
            return int(str(found["serialNumber"]), 16)


@pytest.mark.parametrize("name", ["mqtts", "wss"])
def test_paho_and_aiomqtt_by_tls(daemon: Make, authority: Authority, name: str) -> None:
    server = daemon(config(authority.sign("localhost")))
    assert server.url(name).startswith(f"{name}://127.0.0.1:")
    address = server.address(name)
    transport: Any = "websockets" if name == "wss" else "tcp"
    one = paho.Client(CallbackAPIVersion.VERSION2, unique(), transport=transport, protocol=paho.MQTTv5)
    if name == "wss":
        one.ws_set_options(path="/mqtt")
    one.tls_set_context(authority.client())
    one.connect(address.host, address.port)
    one.loop_start()
    try:
        sent = [one.publish("$queue/work", b"%d" % n + b"x" * 3000, 1 + n % 2) for n in range(100)]
        for each in sent:
            each.wait_for_publish(8)
            assert each.is_published()
    finally:
        one.disconnect()
        one.loop_stop()

    async def take() -> list[int]:
        options: dict[str, Any] = {"websocket_path": "/mqtt"} if name == "wss" else {}
        async with aiomqtt.Client(
            address.host, address.port, transport=transport, tls_context=authority.client(), **options
        ) as client:
            await client.subscribe("$queue/work", qos=1)
            found = []
            async for message in client.messages:
                assert isinstance(message.payload, bytes)
                found.append(int(message.payload.rstrip(b"x")))
                if len(found) == 100:
                    return found
            return found

    assert asyncio.run(take()) == list(range(100))


def test_a_reload_brings_new_certificates_and_keeps_the_old_if_they_are_none(
    daemon: Make, authority: Authority
) -> None:
    tls = authority.sign("localhost")
    server = daemon(config(tls))
    context = authority.client()
    first = shown(server, context)
    with contextlib.ExitStack() as stack:
        address = server.address("mqtts")
        raw = stack.enter_context(socket.create_connection((address.host, address.port), timeout=8))
        old = stack.enter_context(context.wrap_socket(raw))
        old.sendall(b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x00\x00\x01a")
        assert old.recv(10) == b"\x20\x02\x00\x00"
        authority.sign("localhost")
        server.hup()
        server.wait_for("reloaded")
        second = shown(server, context)
        assert second != first
        assert shown(server, context, "amqps") == second == shown(server, context, "wss")
        old.sendall(b"\xc0\x00")
        assert old.recv(10) == b"\xd0\x00", "who is connected stays"
        Path(tls["key"]).write_text("no key")
        server.hup()
        said = server.wait_for("the old certificate stays")
        assert tls["key"] in said["error"]
        assert shown(server, context) == second


def test_clients_may_have_to_show_a_certificate(daemon: Make, authority: Authority, tmp_path: Path) -> None:
    server = daemon(config({**authority.sign("localhost"), "client_ca": str(authority.path)}))
    context = authority.client()
    mine = authority.ca.issue_cert("device-7")
    mine.private_key_and_cert_chain_pem.write_to_path(tmp_path / "mine.pem")
    context.load_cert_chain(tmp_path / "mine.pem")
    assert shown(server, context)

    (tmp_path / "others").mkdir()
    others = trustme.CA().issue_cert("device-7")
    others.private_key_and_cert_chain_pem.write_to_path(tmp_path / "others" / "mine.pem")
    stranger = authority.client()
    stranger.load_cert_chain(tmp_path / "others" / "mine.pem")
    address = server.address("mqtts")
    for wrong in (stranger, authority.client()):
        with socket.create_connection((address.host, address.port), timeout=8) as raw:
            with pytest.raises((ssl.SSLError, ConnectionError)), wrong.wrap_socket(raw) as secured:
                secured.sendall(b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x00\x00\x01a")
                assert not secured.recv(10)
                raise ConnectionError("it was not let in")
    assert shown(server, context)


@pytest.mark.parametrize(("name", "let_in"), [("device-7", True), ("nobody", False)])
def test_an_amqp_client_is_the_user_that_its_certificate_names(
    daemon: Make, authority: Authority, tmp_path: Path, name: str, let_in: bool
) -> None:
    tls = {**authority.sign("localhost"), "client_ca": str(authority.path)}
    server = daemon({**config(tls), "users": {"device-7": {"password_hash": hash_password("not used")}}})
    context = authority.client()
    mine = authority.ca.issue_cert("localhost", common_name=name)
    mine.private_key_and_cert_chain_pem.write_to_path(tmp_path / "mine.pem")
    context.load_cert_chain(tmp_path / "mine.pem")
    address = server.address("amqps")
    parameters = pika.ConnectionParameters(
        address.host, address.port, ssl_options=pika.SSLOptions(context), credentials=ExternalCredentials()
    )
    if let_in:
        with pika.BlockingConnection(parameters) as connection:
            connection.channel().queue_declare("mine")
    else:
        with pytest.raises(pika.exceptions.AMQPConnectionError):
            pika.BlockingConnection(parameters)


@pytest.mark.parametrize("said", [b"", b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x00\x00\x01a", b"\x16\x03\x01\x02\x00\x01"])
def test_what_is_no_handshake_is_cut_off(daemon: Make, authority: Authority, said: bytes) -> None:
    server = daemon(config(authority.sign("localhost")))
    address = server.address("mqtts")
    with socket.create_connection((address.host, address.port), timeout=8) as raw:
        raw.sendall(said)
        while raw.recv(1000):
            pass
    assert metric(server, "gateway_transport_connections", transport="mqtts") == 0
    assert "Traceback" not in server.text()


@pytest.mark.parametrize(("broken", "expected"), [("missing", "No such file"), ("mixed", "key values mismatch")])
def test_a_start_with_files_that_do_not_fit_says_which(
    daemon: Make, authority: Authority, broken: str, expected: str
) -> None:
    tls = authority.sign("localhost")
    key = Path(tls["key"])
    if broken == "missing":
        key.unlink()
    else:
        authority.ca.issue_cert("other").private_key_pem.write_to_path(key)
    with pytest.raises(Exception, match=expected) as error:
        daemon(config(tls))
    assert str(key) in str(error.value) and "transport mqtts" in str(error.value)
