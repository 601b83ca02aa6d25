"""MQTT clients and their neighbours at their worst, against a running daemon."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from pamqp import body, commands, header

from tests.harness.daemon import Daemon
from tests.integration.amqp_raw import Raw
from tests.integration.mqtt_raw import RawClient

Connected = Callable[..., RawClient]


@pytest.fixture
def gateway(daemon: Callable[..., Daemon]) -> Daemon:
    return daemon({"queues": {"jobs": {}}, "routes": [{"from": "jobs/#", "to": "jobs"}]})


@pytest.fixture
def connected(gateway: Daemon) -> Iterator[Connected]:
    made: list[RawClient] = []

    def connect(client_id: str, version: int = 5) -> RawClient:
        made.append(RawClient(gateway.address("mqtt"), version))
        made[-1].connect(client_id)
        return made[-1]

    yield connect
    for one in made:
        one.cut()


@pytest.fixture
def amqp(gateway: Daemon) -> Iterator[Raw]:
    raw = Raw(gateway.address("amqp"))
    raw.login()
    raw.call(commands.Confirm.Select(), commands.Confirm.SelectOk)
    yield raw
    raw.close()


def put(raw: Raw, key: str, content: bytes, **headers: object) -> None:
    """Published to `amq.topic`, and confirmed."""
    properties = commands.Basic.Properties(delivery_mode=2, headers=headers)
    raw.send(
        commands.Basic.Publish(exchange="amq.topic", routing_key=key),
        header.ContentHeader(0, len(content), properties),
        body.ContentBody(content),
    )
    raw.expect(commands.Basic.Ack)


@pytest.mark.parametrize("version", [4, 5])
def test_a_routing_key_that_is_no_topic_name_disturbs_no_subscriber(
    connected: Connected, amqp: Raw, version: int
) -> None:
    plain, shared = connected("plain", version), connected("shared", version)
    plain.subscribe("#")
    shared.subscribe("$share/s/#")
    for key in ("a.+", "a.#.b", "nul.\0", ""):
        put(amqp, key, b"no")
    put(amqp, "", b"no", **{"x-mqtt-topic": "z" * 70_000})
    put(amqp, "good", b"yes")
    assert plain.take() == ("good", b"yes")
    assert shared.take() == ("good", b"yes")
    for one in (plain, shared):
        one.nothing_comes()
