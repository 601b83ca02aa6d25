"""Who a message says has sent it, by every way in: nobody sends as somebody else, with users and without."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from pamqp import commands

from gateway.auth.users import hash_password
from tests.harness.daemon import Daemon
from tests.integration.amqp_raw import Raw
from tests.integration.mqtt_raw import RawClient, unique
from transports.mqtt.packets import V5, ConnAck, Connect, Property, Reason, Will

LOOPBACK = {"listen": "127.0.0.1:0"}
USERS = {name: {"password_hash": hash_password(name)} for name in ("guest", "root")}


@pytest.fixture(scope="module", params=[True, False], ids=["users", "no-users"])
def daemon(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Daemon]:
    config = {
        "queues": {"q": {}},
        "routes": [{"from": "#", "to": "q"}],
        "transports": {
            "mqtt": {"type": "mqtt", **LOOPBACK},
            "amqp": {"type": "amqp", **LOOPBACK},
            "web": {"type": "http", **LOOPBACK},
        },
        **({"users": USERS} if request.param else {}),
    }
    made = Daemon(tmp_path_factory.mktemp("forged"), config)
    try:
        yield made.start()
    finally:
        made.close()


def has_users(daemon: Daemon) -> bool:
    return "users:" in daemon.config.read_text()


def claims(user_id: str) -> dict[int, list[tuple[str, str]]]:
    return {Property.USER_PROPERTY: [("x-amqp-user-id", user_id)]}


def connect(daemon: Daemon, will: Will | None = None) -> tuple[RawClient, int]:
    client = RawClient(daemon.address("mqtt"))
    client.send(Connect(unique(), V5, True, 0, will, "guest", b"guest", {}))
    return client, client.expect(ConnAck).reason


@pytest.mark.parametrize(("user_id", "reason"), [("guest", Reason.SUCCESS), ("root", Reason.NOT_AUTHORIZED)])
def test_mqtt(daemon: Daemon, user_id: str, reason: Reason) -> None:
    client, _ = connect(daemon)
    with client:
        assert client.publish("a/b", properties=claims(user_id)).reason == reason
        assert client.publish("a/b", packet_id=2).reason == Reason.SUCCESS


@pytest.mark.parametrize(("user_id", "reason"), [("guest", Reason.SUCCESS), ("root", Reason.NOT_AUTHORIZED)])
def test_a_will(daemon: Daemon, user_id: str, reason: Reason) -> None:
    client, answered = connect(daemon, Will("a/b", b"x", 1, False, claims(user_id)))
    with client:
        assert answered == reason


@pytest.mark.parametrize(("user_id", "kind"), [("guest", commands.Basic.Ack), ("root", commands.Channel.Close)])
def test_amqp(daemon: Daemon, user_id: str, kind: type) -> None:
    raw = Raw(daemon.address("amqp"))
    raw.login()
    raw.call(commands.Confirm.Select(), commands.Confirm.SelectOk)
    raw.publish(b"x", "q", properties={"user_id": user_id})
    raw.expect(kind)
    raw.close()


@pytest.mark.parametrize(("user_id", "status"), [("guest", 201), ("root", 403)])
def test_http(daemon: Daemon, user_id: str, status: int) -> None:
    """Without users whoever asks gives a name or none; it is what he may say."""
    headers = {"x-message-user-id": user_id}
    url = f"{daemon.url('web')}/topics/a/b"
    assert httpx.post(url, headers=headers, auth=("guest", "guest"), trust_env=False).status_code == status
    assert httpx.post(url, auth=("guest", "guest"), trust_env=False).status_code == 201


@pytest.mark.parametrize(("user_id", "status"), [("guest", 201), ("root", 403)])
def test_the_admin_api(daemon: Daemon, user_id: str, status: int) -> None:
    url = f"{daemon.url('admin')}/api/v1/publish"
    asked = {"topic": "a/b", "user_id": user_id}
    assert httpx.post(url, json=asked, auth=("guest", "guest"), trust_env=False).status_code == status


def test_who_gives_no_name_is_nobody(daemon: Daemon) -> None:
    if has_users(daemon):
        assert httpx.post(f"{daemon.url('web')}/topics/a/b", trust_env=False).status_code == 401
        return
    for user_id, status in (("guest", 403), (None, 201)):
        headers = {} if user_id is None else {"x-message-user-id": user_id}
        assert httpx.post(f"{daemon.url('web')}/topics/a/b", headers=headers, trust_env=False).status_code == status
    with RawClient(daemon.address("mqtt")) as client:
        client.connect(unique())
        assert client.publish("a/b", properties=claims("guest")).reason == Reason.NOT_AUTHORIZED
