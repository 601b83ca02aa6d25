"""Enhanced authentication of MQTT 5 by SCRAM-SHA-256."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from gateway.auth.scram import METHOD, make_verifier
from gateway.auth.users import hash_password
from tests.harness.daemon import Daemon
from tests.integration.mqtt_raw import RawClient
from tests.unit.test_scram import answer
from transports.mqtt.encoding import encode
from transports.mqtt.packets import (
    V5,
    Auth,
    ConnAck,
    Connect,
    Disconnect,
    Packet,
    PingReq,
    Property,
    Publish,
    Reason,
    Request,
    Subscribe,
)

Make = Callable[..., Daemon]
DATA, NAMED = Property.AUTHENTICATION_DATA, Property.AUTHENTICATION_METHOD
FIRST = b"n,,n=ann,r=abcdef"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Any:
    users = {
        "ann": {"password_hash": hash_password("secret"), "scram": str(make_verifier("secret", 4096))},
        "bob": {"password_hash": hash_password("other")},
    }
    running = Daemon(tmp_path_factory.mktemp("auth"), {"users": users, "queues": {"work": {}}})
    yield running.start()
    running.close()


def accepted(server: Daemon) -> float:
    """How many messages the queue has taken."""
    found = httpx.get(server.url("admin") + "/api/v1/queues", auth=("bob", "other")).json()["queues"]
    return float(next(one["accepted"] for one in found if one["name"] == "work"))


def connect(data: bytes | None = FIRST, method: str = METHOD, client_id: str = "") -> Connect:
    properties: dict[int, Any] = {NAMED: method}
    if data is not None:
        properties[DATA] = data
    return Connect(client_id, properties=properties)


def proof(challenge: Auth, password: str = "secret", first: bytes = FIRST) -> tuple[Auth, bytes]:
    assert challenge.reason == Reason.CONTINUE_AUTHENTICATION and challenge.properties[NAMED] == METHOD
    data, expected = answer(password, first, challenge.properties[DATA])
    return Auth(Reason.CONTINUE_AUTHENTICATION, {NAMED: METHOD, DATA: data}), expected


def proven(one: RawClient, **options: Any) -> None:
    one.send(connect(**options))
    said, expected = proof(one.expect(Auth))
    one.send(said)
    told = one.expect(ConnAck)
    assert told.reason == Reason.SUCCESS
    assert (told.properties[NAMED], told.properties[DATA]) == (METHOD, expected)


def test_who_knows_the_password_proves_it_and_hears_that_the_server_does(server: Daemon) -> None:
    with RawClient(server.address("mqtt")) as one:
        proven(one)
        assert one.publish("$queue/work", b"x").reason == 0


@pytest.mark.parametrize(
    ("first", "password", "reason"),
    [
        (connect(), "wrong", Reason.NOT_AUTHORIZED),
        (connect(b"n,,n=bob,r=abcdef"), "other", Reason.NOT_AUTHORIZED),
        (connect(b"n,,n=nobody,r=abcdef"), "secret", Reason.NOT_AUTHORIZED),
    ],
)
def test_who_does_not_is_turned_away(server: Daemon, first: Connect, password: str, reason: Reason) -> None:
    with RawClient(server.address("mqtt")) as one:
        one.send(first)
        one.send(proof(one.expect(Auth), password, first.properties[DATA])[0])
        assert one.expect(ConnAck).reason == reason
        assert one.receive() is None


@pytest.mark.parametrize(
    ("first", "reason"),
    [
        (connect(method="SCRAM-SHA-1"), Reason.BAD_AUTHENTICATION_METHOD),
        (connect(None), Reason.NOT_AUTHORIZED),
        (connect(b"\xff"), Reason.NOT_AUTHORIZED),
    ],
)
def test_a_first_message_that_makes_no_sense(server: Daemon, first: Connect, reason: Reason) -> None:
    with RawClient(server.address("mqtt")) as one:
        one.send(first)
        assert one.expect(ConnAck).reason == reason
        assert one.receive() is None


@pytest.mark.parametrize(
    "early",
    [
        Publish("$queue/work", b"stolen", 1, packet_id=1),
        Publish("$queue/work", b"stolen", 0),
        Publish("$queue/work", b"stolen", 2, packet_id=1),
        Subscribe(1, (Request("#", 0),)),
        PingReq(),
        Auth(Reason.SUCCESS, {NAMED: METHOD}),
        Auth(Reason.CONTINUE_AUTHENTICATION, {NAMED: "OTHER"}),
        Auth(Reason.REAUTHENTICATE, {NAMED: METHOD, DATA: FIRST}),
    ],
)
@pytest.mark.parametrize("together", [False, True])
def test_nothing_is_done_for_a_client_before_its_proof(server: Daemon, early: Packet, together: bool) -> None:
    before = accepted(server)
    with RawClient(server.address("mqtt")) as one:
        if together:
            one.send(encode(connect(), V5) + encode(early, V5))
            one.expect(Auth)
        else:
            one.send(connect())
            one.expect(Auth)
            one.send(early)
        assert one.expect(ConnAck).reason == Reason.PROTOCOL_ERROR
        assert one.receive() is None
    assert accepted(server) == before


def test_what_is_sent_with_the_proof_is_too_early_too(server: Daemon) -> None:
    before = accepted(server)
    with RawClient(server.address("mqtt")) as one:
        one.send(connect(client_id="lasting"))
        said, _ = proof(one.expect(Auth), "wrong")
        one.send(encode(said, V5) + encode(Publish("$queue/work", b"stolen", 1, packet_id=1), V5))
        assert one.expect(ConnAck).reason == Reason.NOT_AUTHORIZED
        assert one.receive() is None
    assert accepted(server) == before


def test_a_client_may_prove_it_again(server: Daemon) -> None:
    with RawClient(server.address("mqtt")) as one:
        proven(one)
        for password in ("secret", "secret", "wrong"):
            one.send(Auth(Reason.REAUTHENTICATE, {NAMED: METHOD, DATA: FIRST}))
            said, expected = proof(one.expect(Auth), password)
            assert one.publish("$queue/work", b"meanwhile").reason == 0
            one.send(said)
            if password == "secret":
                found = one.expect(Auth)
                assert (found.reason, found.properties) == (Reason.SUCCESS, {NAMED: METHOD, DATA: expected})
            else:
                assert one.expect(Disconnect).reason == Reason.NOT_AUTHORIZED
                assert one.receive() is None


def test_a_client_that_came_by_password_can_not_begin_a_proof(server: Daemon) -> None:
    with RawClient(server.address("mqtt")) as one:
        one.send(Connect("", username="bob", password=b"other"))
        assert one.expect(ConnAck).reason == Reason.SUCCESS
        one.send(Auth(Reason.REAUTHENTICATE, {NAMED: METHOD, DATA: FIRST}))
        assert one.expect(Disconnect).reason == Reason.PROTOCOL_ERROR


def test_who_names_no_method_hears_of_none(server: Daemon) -> None:
    with RawClient(server.address("mqtt")) as one:
        one.send(Connect("", username="ann", password=b"secret"))
        told = one.expect(ConnAck)
        assert told.reason == Reason.SUCCESS and not told.properties.keys() & {NAMED, DATA}
        one.nothing_comes()


def test_who_leaves_amid_the_proof_leaves_nothing(server: Daemon) -> None:
    with RawClient(server.address("mqtt")) as one:
        one.send(connect())
        one.expect(Auth)
        one.send(Disconnect())
        assert one.receive() is None
    assert "MQTT connection failed" not in server.text()
