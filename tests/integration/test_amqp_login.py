"""Without `users` the daemon knows guest with the password guest, as a new RabbitMQ does, and nobody else: a wrong
password is a wrong password."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import aio_pika
import amqp
import pika
import pika.exceptions
import pytest
from aiormq.exceptions import ProbableAuthenticationError
from pamqp import commands
from pamqp.encode import field_table

from tests.faults.abuse import metric
from tests.harness.daemon import Daemon
from tests.harness.process import Address
from tests.integration.amqp_raw import HELLO, Raw

Connection = commands.Connection


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path_factory.mktemp("login"), {})
    try:
        yield daemon.start()
    finally:
        daemon.close()


@pytest.fixture
def server(gateway: Daemon) -> Address:
    return gateway.address("amqp")


def response(mechanism: str, name: str, password: str) -> str:
    if mechanism == "PLAIN":
        return f"\0{name}\0{password}"
    return field_table({"LOGIN": name, "PASSWORD": password})[4:].decode()


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("mechanism", ["PLAIN", "AMQPLAIN"])
@pytest.mark.parametrize(
    ("name", "password", "let_in"),
    [
        ("guest", "guest", True),
        ("guest", "wrong", False),
        ("guest", "guest ", False),
        ("guest", "Guest", False),
        ("guest", "", False),
        ("Guest", "guest", False),
        ("bob", "bob", False),
        ("bob", "guest", False),
        ("", "", False),
    ],
)
def test_guest_alone_is_let_in(
    server: Address, mechanism: str, name: str, password: str, let_in: bool, told: bool
) -> None:
    raw = Raw(server)
    raw.socket.sendall(HELLO)
    raw.expect(Connection.Start)
    capabilities = {"capabilities": {"authentication_failure_close": told}}
    raw.send(Connection.StartOk(capabilities, mechanism, response(mechanism, name, password)), 0)
    if let_in:
        raw.expect(Connection.Tune)
    elif told:
        assert raw.expect(Connection.Close).reply_code == 403
    else:
        with contextlib.suppress(ConnectionResetError):
            assert raw.read() is None
    raw.close()


def test_a_wrong_password_is_counted(gateway: Daemon, server: Address) -> None:
    def refused() -> float:
        return metric(gateway, "gateway_transport_refusals", transport="amqp", reason="bad-credentials")

    before = refused()
    with pytest.raises(pika.exceptions.ProbableAuthenticationError):
        pika.BlockingConnection(pika.ConnectionParameters(*server, credentials=pika.PlainCredentials("guest", "wrong")))
    assert refused() == before + 1


def test_py_amqp_is_refused(both: Address) -> None:
    """It logs in by AMQPLAIN."""
    connection = amqp.Connection(f"{both.host}:{both.port}", userid="guest", password="wrong")
    with pytest.raises(amqp.exceptions.AccessRefused):
        connection.connect()
    connection.collect()


@pytest.mark.anyio
async def test_aio_pika_is_refused(both: Address) -> None:
    with pytest.raises(ProbableAuthenticationError):
        await aio_pika.connect(f"amqp://guest:wrong@{both.host}:{both.port}/")


def test_a_new_secret_is_guests_too(server: Address) -> None:
    for secret, taken in (("guest", True), ("other", False)):
        raw = Raw(server)
        raw.login()
        raw.send(Connection.UpdateSecret(secret, "it expires"), 0)
        if taken:
            raw.expect(Connection.UpdateSecretOk)
        else:
            assert raw.expect(Connection.Close).reply_code == 530
        raw.close()
