"""The MQTT listener against clients that break rules or limits: that connection ends, and no other notices."""

from __future__ import annotations

import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.harness.daemon import Daemon
from tests.integration.mqtt_raw import RawClient, unique
from transports.mqtt.encoding import encode
from transports.mqtt.packets import (
    V5,
    V311,
    Ack,
    Auth,
    ConnAck,
    Connect,
    Disconnect,
    PingResp,
    Property,
    Publish,
    Reason,
    Request,
    Subscribe,
    Unsubscribe,
    Will,
)

LIMITS = {
    "type": "mqtt",
    "listen": "127.0.0.1:0",
    "connect_timeout": "1s",
    "max_keep_alive": "5m",
    "max_packet_size": "4KB",
    "receive_maximum": 5,
    "max_session_expiry": "1h",
    "max_messages": 3,
    "max_buffered": "64KB",
    "max_subscriptions": 2,
    "max_topic_levels": 4,
}
Open = Callable[..., RawClient]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    transports = {
        "mqtt": LIMITS,
        "few": {"type": "mqtt", "listen": "127.0.0.1:0", "max_connections": 1},
        "second": {"type": "mqtt", "listen": "127.0.0.1:0"},
    }
    daemon = Daemon(tmp_path_factory.mktemp("limits"), {"transports": transports})
    yield daemon.start()
    daemon.close()


@pytest.fixture
def client(gateway: Daemon) -> Iterator[Open]:
    with ExitStack() as stack:

        def open(version: int = V5, transport: str = "mqtt") -> RawClient:
            return stack.enter_context(RawClient(gateway.address(transport), version))

        yield open


def counter(gateway: Daemon, name: str, reason: str, transport: str = "mqtt") -> float:
    """A counter of the metrics page; 0 if it is not there yet."""
    with urllib.request.urlopen(f"{gateway.url('admin')}/metrics", timeout=5) as page:
        for line in page.read().decode().splitlines():
            if line.startswith(name) and f'reason="{reason}"' in line and f'transport="{transport}"' in line:
                return float(line.rpartition(" ")[2])
    return 0.0


CONNECT_AGAIN = encode(Connect("again"), V5)
BIG = encode(Publish("a", b"x" * 5000), V5)
MALFORMED = Reason.MALFORMED_PACKET
BAD = [
    pytest.param(b"\x00\x00", Reason.MALFORMED_PACKET, id="packet type 0"),
    pytest.param(b"\x36\x05\x00\x01a\x00\x01", Reason.MALFORMED_PACKET, id="QoS 3"),
    pytest.param(b"\x38\x04\x00\x01a\x00", Reason.MALFORMED_PACKET, id="DUP at QoS 0"),
    pytest.param(b"\x32\x07\x00\x01a\x00\x00\x00x", Reason.PROTOCOL_ERROR, id="packet identifier 0"),
    pytest.param(b"\x30\xff\xff\xff\xff\x01", Reason.MALFORMED_PACKET, id="a length of five bytes"),
    pytest.param(b"\x30\x05\x00\x09a\x00x", Reason.MALFORMED_PACKET, id="a topic beyond the packet"),
    pytest.param(b"\x30\x05\x00\x02\xc3\x28\x00", Reason.MALFORMED_PACKET, id="a topic that is no UTF-8"),
    pytest.param(b"\x30\x05\x00\x02a\x00\x00", Reason.MALFORMED_PACKET, id="a topic with NUL"),
    pytest.param(b"\x30\x05\x00\x02a#\x00", Reason.MALFORMED_PACKET, id="a topic with a wildcard"),
    pytest.param(b"\x30\x03\x00\x00\x00", Reason.PROTOCOL_ERROR, id="an empty topic"),
    pytest.param(b"\x80\x06\x00\x01\x00\x00\x01a", Reason.MALFORMED_PACKET, id="SUBSCRIBE with flags 0"),
    pytest.param(b"\x82\x03\x00\x01\x00", Reason.PROTOCOL_ERROR, id="SUBSCRIBE without a filter"),
    pytest.param(b"\xa2\x03\x00\x01\x00", Reason.PROTOCOL_ERROR, id="UNSUBSCRIBE without a filter"),
    pytest.param(encode(Subscribe(1, (Request("a", 1), Request("", 1))), V5), MALFORMED, id="SUBSCRIBE to nothing"),
    pytest.param(encode(Unsubscribe(1, ("a", "")), V5), MALFORMED, id="UNSUBSCRIBE from nothing"),
    pytest.param(CONNECT_AGAIN, Reason.PROTOCOL_ERROR, id="a second CONNECT"),
    pytest.param(encode(ConnAck(), V5), Reason.PROTOCOL_ERROR, id="a server's packet"),
    pytest.param(encode(Auth(0x19), V5), Reason.PROTOCOL_ERROR, id="AUTH without a method"),
    pytest.param(BIG, Reason.PACKET_TOO_LARGE, id="a packet too large"),
    pytest.param(BIG[:8], Reason.PACKET_TOO_LARGE, id="only the start of a packet too large"),
    pytest.param(
        encode(Publish("a", b"", properties={Property.SUBSCRIPTION_IDENTIFIER: [1]}), V5),
        Reason.PROTOCOL_ERROR,
        id="a subscription identifier from a client",
    ),
    pytest.param(
        encode(Publish("a", b"", properties={Property.RESPONSE_TOPIC: "a/#"}), V5),
        Reason.PROTOCOL_ERROR,
        id="a response topic with a wildcard",
    ),
    pytest.param(encode(Publish("a/b/c/d/e", b""), V5), Reason.TOPIC_NAME_INVALID, id="too many levels"),
    pytest.param(
        encode(Subscribe(1, (Request("$share/a/b", 1, no_local=True),)), V5),
        Reason.PROTOCOL_ERROR,
        id="no local on a share",
    ),
]


@pytest.mark.parametrize(("data", "reason"), BAD)
def test_what_an_mqtt5_client_may_not_send_ends_its_connection(
    gateway: Daemon, client: Open, data: bytes, reason: Reason
) -> None:
    other, one = client(), client()
    other.connect(unique())
    one.connect(unique())
    before = counter(gateway, "gateway_transport_protocol_errors", reason.label)
    one.send(data)
    said = one.expect(Disconnect)
    assert said.reason == reason
    assert said.properties[Property.REASON_STRING]
    assert one.receive() is None
    assert counter(gateway, "gateway_transport_protocol_errors", reason.label) == before + 1
    other.nothing_comes()


@pytest.mark.parametrize(
    "data",
    [
        b"\x00\x00",
        b"\x36\x05\x00\x01a\x00\x01",
        encode(Connect("again", V311), V311),
        encode(Publish("$SYS/x", b"", 1, packet_id=1), V311),
        encode(Subscribe(1, (Request("a", 1), Request("", 1))), V311),
        encode(Unsubscribe(1, ("a", "")), V311),
        b"\xf0\x00",
    ],
)
def test_what_a_311_client_may_not_send_closes_its_connection(client: Open, data: bytes) -> None:
    one = client(V311)
    one.connect(unique())
    one.send(data)
    assert one.receive() is None


@pytest.mark.parametrize(
    ("hello", "answer"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b""),
        (b"AMQP\x00\x00\x09\x01", b""),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b""),
        (encode(Publish("a", b""), V5), b""),
        (b"\x10\x0d\x00\x04MQTX\x05\x02\x00\x00\x00\x00\x00", b""),
        (b"\x10\x0e\x00\x06MQIsdp\x03\x02\x00\x00\x00\x00", b"\x20\x02\x00\x01"),
        (b"\x10\x0d\x00\x04MQTT\x06\x02\x00\x00\x00\x00\x00", b"\x20\x03\x00\x84\x00"),
        (b"\x10\x0c\x00\x04MQTT\x04\x03\x00\x00\x00\x00", b""),
        (b"\x10\x0c\x00\x04MQTT\x04\x42\x00\x00\x00\x00", b""),
        (encode(Connect("a", V311, will=Will("", b"x")), V311), b""),
    ],
)
def test_another_protocol_on_the_port_is_closed(client: Open, hello: bytes, answer: bytes) -> None:
    one = client()
    one.socket.sendall(hello)
    came = b""
    while True:
        try:
            data = one.socket.recv(100)
        except ConnectionResetError:
            break
        if not data:
            break
        came += data
    assert came == answer


def test_a_connection_that_says_nothing_is_closed(gateway: Daemon, client: Open) -> None:
    one = client()
    one.send(b"\x10")  # part of a packet is not enough
    assert one.receive() is None
    assert counter(gateway, "gateway_transport_protocol_errors", "maximum-connect-time") >= 1


def test_a_long_keep_alive_is_cut(client: Open) -> None:
    assert client().connect(unique(), keep_alive=60_000).properties[Property.SERVER_KEEP_ALIVE] == 300
    assert client().connect(unique(), keep_alive=0).properties[Property.SERVER_KEEP_ALIVE] == 300
    assert Property.SERVER_KEEP_ALIVE not in client().connect(unique(), keep_alive=60).properties


def test_more_than_the_receive_maximum_ends_the_connection(client: Open) -> None:
    one = client()
    assert one.connect(unique()).properties[Property.RECEIVE_MAXIMUM] == 5
    one.send(*[Publish("a", b"", 1, packet_id=n) for n in range(1, 7)])
    assert one.expect(Disconnect).reason == Reason.RECEIVE_MAXIMUM_EXCEEDED


def test_a_311_client_may_send_more_and_waits(client: Open) -> None:
    one = client(V311)
    one.connect(unique())
    one.send(*[Publish("a", b"", 1, packet_id=n) for n in range(1, 200)])
    one.send(*[Publish("a", b"", 1, packet_id=n) for n in range(200, 300)])
    assert [one.expect(Ack).packet_id for _ in range(299)] == list(range(1, 300))


def test_no_more_subscriptions_than_allowed(client: Open) -> None:
    one = client()
    one.connect(unique())
    assert one.subscribe("a", "b", "c", "a") == (1, 1, Reason.QUOTA_EXCEEDED, 1)


def test_no_more_connections_than_allowed(client: Open) -> None:
    first = client(V5, "few")
    assert first.connect(unique()).reason == Reason.SUCCESS
    second = client(V5, "few")
    assert second.connect(unique()).reason == Reason.SERVER_BUSY
    third = client(V311, "few")
    assert third.connect(unique()).reason == Reason.SERVER_UNAVAILABLE


@pytest.mark.parametrize("version", [V5, V311])
def test_a_take_over_needs_no_second_place_and_an_end_gives_it_back_at_once(client: Open, version: int) -> None:
    """Also while the old socket is still there, because its peer has not seen the end."""
    name = unique()
    for _ in range(4):
        one = client(version, "few")
        assert one.connect(name, False).reason == Reason.SUCCESS
        other = client(V5, "few")
        assert other.connect(unique()).reason == Reason.SERVER_BUSY, "the one place is taken, and by one only"
    for _ in range(4):
        one.send(Disconnect())
        while one.receive() is not None:
            pass
        one = client(version, "few")
        assert one.connect(unique()).reason == Reason.SUCCESS
    one.send(b"\x00\x00")  # a fault of the client's ends it as well
    while one.receive() is not None:
        pass
    assert client(version, "few").connect(name).reason == Reason.SUCCESS


def test_a_session_on_another_listener_brings_no_place_with_it(client: Open) -> None:
    name = unique()
    elsewhere, first = client(), client(V5, "few")
    assert elsewhere.connect(name).reason == Reason.SUCCESS
    assert first.connect(unique()).reason == Reason.SUCCESS
    assert client(V5, "few").connect(name).reason == Reason.SERVER_BUSY
    elsewhere.nothing_comes()


def test_a_session_queue_drops_its_oldest(client: Open) -> None:
    name, topic = unique(), unique("t")
    expiry = {Property.SESSION_EXPIRY_INTERVAL: 100}
    one, publisher = client(), client()
    one.connect(name, properties=expiry)
    one.subscribe(topic)
    one.disconnect()
    publisher.connect(unique())
    for n in range(5):
        assert publisher.publish(topic, b"%d" % n, n + 1).reason == Reason.SUCCESS
    back = client()
    back.connect(name, False, expiry)
    assert [back.take()[1] for _ in range(3)] == [b"2", b"3", b"4"]


def test_a_slow_reader_loses_qos_0_and_nothing_else(gateway: Daemon, client: Open) -> None:
    topic = unique("t")
    slow, publisher = client(), client()
    slow.connect(unique())
    slow.subscribe(Request(topic, 1))
    publisher.connect(unique())
    sent = 0
    while not counter(gateway, "gateway_transport_dropped_messages", "qos0-slow-reader"):
        publisher.send(*[Publish(topic, b"x" * 4000) for _ in range(100)])
        publisher.nothing_comes()
        sent += 100
        assert sent < 20_000
    publisher.publish(topic, b"counted")
    payload, got = b"", 0
    while payload != b"counted":
        payload, got = slow.take()[1], got + 1
    assert got <= sent


def test_a_client_id_is_one_over_all_listeners(client: Open) -> None:
    name = unique()
    first = client()
    first.connect(name)
    assert client(V5, "second").connect(name).reason == Reason.SUCCESS
    assert first.expect(Disconnect).reason == Reason.SESSION_TAKEN_OVER


@pytest.mark.parametrize(
    ("connect", "reason"),
    [
        (Connect("a", will=Will("a/#", b"")), Reason.TOPIC_NAME_INVALID),
        (Connect("a", will=Will("$SYS/a", b"")), Reason.TOPIC_NAME_INVALID),
        (Connect("a", will=Will("", b"x")), Reason.MALFORMED_PACKET),
        (Connect("a", properties={Property.AUTHENTICATION_METHOD: "SCRAM"}), Reason.BAD_AUTHENTICATION_METHOD),
        (Connect("x" * 2000), Reason.CLIENT_IDENTIFIER_NOT_VALID),
    ],
)
def test_a_connect_that_asks_too_much_is_refused(client: Open, connect: Connect, reason: Reason) -> None:
    one = client()
    one.send(connect)
    assert one.expect(ConnAck).reason == reason
    assert one.receive() is None


def test_ping_is_answered_at_once_in_a_burst(client: Open) -> None:
    one = client()
    one.connect(unique())
    one.send(b"\xc0\x00" * 1000)
    for _ in range(1000):
        one.expect(PingResp)
