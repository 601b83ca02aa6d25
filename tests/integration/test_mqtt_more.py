"""Settings of an MQTT listener that few need: PROXY headers, checked text, response information, server reference."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import pytest

from tests.faults.abuse import metric
from tests.harness.daemon import Daemon
from tests.integration.mqtt_raw import RawClient, unique
from tests.unit.test_proxy_header import header, of
from transports.mqtt.encoding import encode
from transports.mqtt.packets import V5, V311, Connect, Disconnect, Property, Publish, Reason

Make = Callable[..., Daemon]
INDICATOR = Property.PAYLOAD_FORMAT_INDICATOR


def config(**settings: Any) -> dict[str, Any]:
    mqtt = {"type": "mqtt", "listen": "127.0.0.1:0", "connect_timeout": "2s", **settings}
    return {"queues": {"work": {}}, "transports": {"mqtt": mqtt}, "log": {"level": "debug"}}


class Behind(RawClient):
    """A client behind a proxy that says `said` first."""

    def __init__(self, daemon: Daemon, said: bytes) -> None:
        super().__init__(daemon.address("mqtt"))
        self.socket.sendall(said)


@pytest.mark.parametrize(
    ("said", "peer"),
    [
        (of("203.0.113.9", 4711), "203.0.113.9:4711"),
        (of("2001:db8::9", 4711), "2001:db8::9"),
        (header(0, b"", 0x20), "127.0.0.1"),
    ],
)
def test_a_proxy_says_whose_connection_it_is(daemon: Make, said: bytes, peer: str) -> None:
    server = daemon(config(proxy_protocol=True))
    with Behind(server, said + encode(Connect(unique()), V5)) as one:
        assert one.receive().reason == Reason.SUCCESS
        assert one.publish("$queue/work", b"x" * 10_000).reason == 0
        one.send(b"\x00\x00")
        assert one.expect(Disconnect).reason == Reason.MALFORMED_PACKET
    assert peer in server.wait_for("connection closed")["peer"]


@pytest.mark.parametrize("said", [b"", of("203.0.113.9", 1)[:20], encode(Connect("direct"), V5), b"\0" * 5000])
def test_who_comes_without_the_proxy_is_cut_off(daemon: Make, said: bytes) -> None:
    server = daemon(config(proxy_protocol=True))
    one = Behind(server, said)
    try:
        assert one.socket.recv(100) == b""
    except ConnectionResetError:
        pass
    one.cut()
    assert metric(server, "gateway_transport_protocol_errors", reason="proxy-header") == 1
    assert server.stop() == 0, "it is not waited for"


def test_one_octet_of_the_header_at_a_time(daemon: Make) -> None:
    server = daemon(config(proxy_protocol=True))
    with RawClient(server.address("mqtt")) as one:
        one.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for octet in of("203.0.113.9", 4711, b"more") + encode(Connect("slow"), V5):
            one.socket.send(bytes((octet,)))
        assert one.receive().reason == Reason.SUCCESS


@pytest.mark.parametrize("checked", [False, True])
def test_text_is_checked_if_the_setting_says_so(daemon: Make, checked: bool) -> None:
    server = daemon(config(check_payload_format=checked))
    with RawClient(server.address("mqtt")) as one:
        one.connect()
        text: dict[int, Any] = {INDICATOR: 1}
        refused = Reason.PAYLOAD_FORMAT_INVALID if checked else 0
        assert one.publish("$queue/work", b"\xff", 1, text).reason == refused
        assert one.publish("$queue/work", "\N{SNOWMAN}".encode(), 2, text).reason == 0
        assert one.publish("$queue/work", b"\xff", 3, {INDICATOR: 0}).reason == 0
        one.send(Publish("$queue/work", b"\xff", 2, packet_id=4, properties=text))
        assert one.receive().reason == refused


def test_response_information_is_for_those_who_ask(daemon: Make) -> None:
    server = daemon(config(response_information="answers/"))
    for asks, told in ((1, "answers/"), (0, None)):
        with RawClient(server.address("mqtt")) as one:
            found = one.connect(properties={Property.REQUEST_RESPONSE_INFORMATION: asks})
            assert found.properties.get(Property.RESPONSE_INFORMATION) == told


def test_a_stopping_daemon_may_send_its_clients_elsewhere(daemon: Make) -> None:
    server = daemon(config(server_reference="other.example:1883"))
    with RawClient(server.address("mqtt")) as one, RawClient(server.address("mqtt"), V311) as old:
        one.connect()
        old.connect()
        assert server.stop() == 0
        told = one.expect(Disconnect)
        assert told.reason == Reason.USE_ANOTHER_SERVER
        assert told.properties[Property.SERVER_REFERENCE] == "other.example:1883"
        assert old.receive() is None
