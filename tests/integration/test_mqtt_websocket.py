"""MQTT in WebSocket messages, with clients that speak it and with frames made by hand."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Ping,
    Pong,
    RejectConnection,
    Request,
    TextMessage,
)

from tests.faults.abuse import metric
from tests.harness.daemon import Daemon
from tests.integration.mqtt_raw import RawClient, unique
from transports.mqtt.codec import Decoder, TopicNames
from transports.mqtt.encoding import encode
from transports.mqtt.packets import V5, Ack, ConnAck, Connect, PingReq, PingResp, Publish, Reason, SubAck, Subscribe
from transports.mqtt.packets import Request as Filter

LOOPBACK = {"listen": "127.0.0.1:0"}
Make = Callable[..., Daemon]


def config(**settings: Any) -> dict[str, Any]:
    return {
        "queues": {"work": {}},
        "transports": {
            "mqtt": {"type": "mqtt", **LOOPBACK},
            "ws": {"type": "mqtt", **LOOPBACK, "websocket": settings, "connect_timeout": "2s"},
        },
    }


class WebClient:
    """Sends and sees single events."""

    def __init__(self, daemon: Daemon) -> None:
        address = daemon.address("ws")
        self.socket = socket.create_connection((address.host, address.port), timeout=8)
        self.frames = WSConnection(ConnectionType.CLIENT)
        self._decoder = Decoder(1 << 28, TopicNames(), V5)
        self._packets: list[Any] = []
        self._octets = bytearray()

    def open(self, path: str = "/mqtt", subprotocols: list[str] | None = None, origin: str | None = None) -> Event:
        headers = [(b"origin", origin.encode())] if origin else []
        asked = ["mqtt"] if subprotocols is None else subprotocols
        self.send(Request(host="x", target=path, subprotocols=asked, extra_headers=headers))
        return self.event()

    def send(self, *events: Event) -> None:
        self.socket.sendall(b"".join(map(self.frames.send, events)))

    def event(self) -> Any:
        """None at the end of the stream."""
        while True:
            for event in self.frames.events():
                return event
            data = self.socket.recv(1 << 16)
            if not data:
                return None
            self.frames.receive_data(data)

    def packet(self) -> Any:
        while not self._packets:
            event = self.event()
            assert isinstance(event, BytesMessage), event
            self._octets += event.data
            self._packets, used = self._decoder.decode(self._octets)
            del self._octets[:used]
        return self._packets.pop(0)

    def say(self, *packets: Any) -> None:
        self.send(BytesMessage(data=b"".join(encode(one, V5) for one in packets)))


@pytest.fixture
def web(daemon: Make) -> Iterator[Callable[..., WebClient]]:
    opened: list[WebClient] = []
    running: list[Daemon] = []

    def make(**settings: Any) -> WebClient:
        if not running:
            running.append(daemon(config(**settings)))
        one = WebClient(running[0])
        one.daemon = running[0]  # type: ignore[attr-defined]
        opened.append(one)
        return one

    yield make
    for one in opened:
        one.socket.close()


Web = Callable[..., Any]


def test_it_is_one_broker_whatever_a_client_speaks(web: Web) -> None:
    one = web()
    accepted = one.open()
    assert isinstance(accepted, AcceptConnection) and accepted.subprotocol == "mqtt"
    one.say(Connect("browser"))
    assert one.packet().reason == Reason.SUCCESS
    one.say(Subscribe(1, (Filter("a/+", 1),)))
    assert one.packet() == SubAck(1, (1,))
    with RawClient(one.daemon.address("mqtt")) as plain:
        plain.connect(unique())
        assert plain.publish("a/b", b"x" * 100_000).reason == 0
    came = one.packet()
    assert (came.topic, len(came.payload)) == ("a/b", 100_000)
    one.say(Ack(4, came.packet_id))  # type: ignore[arg-type]
    one.say(Publish("$queue/work", b"from a page", 1, packet_id=9))
    assert one.packet() == Ack(4, 9)  # type: ignore[arg-type]
    assert metric(one.daemon, "gateway_transport_connections", transport="ws") == 1


def test_packets_and_frames_know_nothing_of_each_other(web: Web) -> None:
    """[MQTT-6.0.0-2]: one packet in many frames, fragments among pings, and many packets in one frame."""
    one = web()
    one.open()
    whole = encode(Connect("pieces"), V5) + encode(PingReq(), V5) * 3
    for at in range(len(whole) - 5):
        one.send(BytesMessage(data=whole[at : at + 1], message_finished=at % 2 == 1), Ping())
    one.send(BytesMessage(data=whole[-5:], message_finished=True))
    pongs, packets = 0, []
    while len(packets) < 4:
        event = one.event()
        if isinstance(event, Pong):
            pongs += 1
            continue
        one._octets += event.data
        found, used = one._decoder.decode(one._octets)
        del one._octets[:used]
        packets += found
    assert pongs == len(whole) - 5
    assert [type(packet) for packet in packets] == [ConnAck, PingResp, PingResp, PingResp]


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        ({"path": "/other"}, 404),
        ({"subprotocols": ["mqttv3.1"]}, 400),
        ({"subprotocols": []}, 400),
        ({"origin": "https://elsewhere.example"}, 403),
        ({}, 403),
    ],
)
def test_who_asks_for_something_else_is_refused(web: Web, asked: dict[str, Any], status: int) -> None:
    one = web(origins=["https://app.example"])
    if status != 403:
        asked = {"origin": "https://app.example", **asked}
    refused = one.open(**asked)
    assert isinstance(refused, RejectConnection) and refused.status_code == status
    assert metric(one.daemon, "gateway_transport_refusals", transport="ws", reason="no-websocket") == 1
    assert isinstance(web().open(origin="https://app.example"), AcceptConnection)


def test_a_text_message_ends_the_connection(web: Web) -> None:
    one = web()
    one.open()
    one.send(TextMessage(data="hello"))
    closed = one.event()
    assert isinstance(closed, CloseConnection) and closed.code == 1003
    assert one.socket.recv(100) == b""


@pytest.mark.parametrize(
    "garbage", [b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n", encode(Connect("plain"), V5), b"\0" * 70_000]
)
def test_what_is_no_websocket_is_sent_away(web: Web, garbage: bytes) -> None:
    one = web()
    one.socket.sendall(garbage)
    came = b""
    while data := one.socket.recv(1000):
        came += data
    assert came == b"" or came.startswith(b"HTTP/1.1 4")
    assert metric(one.daemon, "gateway_transport_protocol_errors", transport="ws", reason="websocket") == 1
    assert metric(one.daemon, "gateway_transport_connections", transport="ws") == 0


def test_a_frame_that_is_wrong_ends_the_connection(web: Web) -> None:
    one = web()
    one.open()
    one.socket.sendall(b"\x82\x01x")  # not masked
    closed = one.event()
    assert isinstance(closed, CloseConnection) and closed.code == 1002


@pytest.mark.parametrize("said", [b"", b"GET /mqtt HTTP/1.1\r\n"])
def test_who_says_nothing_whole_is_cut_off_in_time(web: Web, said: bytes) -> None:
    one = web()
    one.socket.sendall(said)
    assert one.socket.recv(100) == b""
    reason = Reason.MAXIMUM_CONNECT_TIME.label
    assert metric(one.daemon, "gateway_transport_protocol_errors", transport="ws", reason=reason) == 1


def test_both_sides_may_end_it(web: Web) -> None:
    one, other = web(), web()
    for each in (one, other):
        each.open()
        each.say(Connect("same"))
        assert each.packet().reason == Reason.SUCCESS
    assert one.packet().reason == Reason.SESSION_TAKEN_OVER
    closed = one.event()
    assert isinstance(closed, CloseConnection) and closed.code == 1000
    one.send(closed.response())
    assert one.socket.recv(100) == b""
    other.send(CloseConnection(1000))
    assert isinstance(other.event(), CloseConnection)
    assert other.socket.recv(100) == b""
