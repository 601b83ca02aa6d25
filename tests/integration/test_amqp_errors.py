"""Every refusal with its code, its method and on its level, as raw frames against the daemon; and that a connection
which ends with one leaves the others alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pamqp import body, commands, header

from tests.harness.daemon import Daemon
from tests.harness.process import Address
from tests.integration.amqp_raw import CAPABILITIES, HELLO, Raw

CONFIG = {
    "queues": {"orders": {"max_messages": 100}},
    "routes": [{"from": "shop/+/orders", "to": "orders"}],
    "transports": {
        "mqtt": {"type": "mqtt", "listen": "127.0.0.1:0"},
        "amqp": {
            "type": "amqp",
            "listen": "127.0.0.1:0",
            "channel_max": 20,
            "max_message_size": "64KB",
            "connect_timeout": "300ms",
            "max_consumers": 3,
        },
    },
}


Connect = Callable[..., Raw]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    """One daemon for all: no test leaves anything in it."""
    daemon = Daemon(tmp_path_factory.mktemp("amqp"), CONFIG)
    try:
        yield daemon.start().address("amqp")
    finally:
        daemon.close()


@pytest.fixture
def connect(server: Address) -> Iterator[Connect]:
    clients: list[Raw] = []

    def make(address: Address = server, login: bool = True, **tune: int) -> Raw:
        clients.append(Raw(address))
        if login:
            clients[-1].login(**tune)
        return clients[-1]

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def raw(connect: Connect) -> Raw:
    return connect()


def declare(raw: Raw, queue: str = "q", **options: Any) -> None:
    raw.call(commands.Queue.Declare(queue=queue, **options), commands.Queue.DeclareOk)


# channel errors: the connection lives on

Basic, Exchange, Queue = commands.Basic, commands.Exchange, commands.Queue

CHANNEL_ERRORS: list[tuple[str, Any, int]] = [
    ("publish to no exchange", Basic.Publish(exchange="no"), 404),
    ("publish to a session", Basic.Publish(routing_key="mqtt.session.x"), 403),
    ("passive declare of no exchange", Exchange.Declare(exchange="no", passive=True), 404),
    ("exchange of another type", Exchange.Declare(exchange="amq.topic", exchange_type="direct", durable=True), 406),
    ("reserved exchange", Exchange.Declare(exchange="amq.mine"), 403),
    ("declare the default exchange", Exchange.Declare(exchange=""), 403),
    ("passive declare of the default exchange", Exchange.Declare(exchange="", passive=True), 403),
    ("exchange argument", Exchange.Declare(exchange="e", arguments={"x-nonsense": "x"}), 406),
    ("alternate that is none", Exchange.Declare(exchange="e", arguments={"alternate-exchange": 7}), 406),
    ("default exchange as alternate", Exchange.Declare(exchange="e", arguments={"alternate-exchange": ""}), 406),
    (
        "another alternate",
        Exchange.Declare(
            exchange="amq.fanout", exchange_type="fanout", durable=True, arguments={"alternate-exchange": "x"}
        ),
        406,
    ),
    ("delayed exchange of no type", Exchange.Declare(exchange="e", exchange_type="x-delayed-message"), 406),
    ("type argument of another exchange", Exchange.Declare(exchange="e", arguments={"x-delayed-type": "topic"}), 406),
    ("bind no exchange", Exchange.Bind(destination="no", source="amq.direct"), 404),
    ("bind to no exchange", Exchange.Bind(destination="amq.direct", source="no"), 404),
    ("bind the default exchange", Exchange.Bind(destination="", source="amq.direct"), 403),
    ("unbind from the default exchange", Exchange.Unbind(destination="amq.direct", source=""), 403),
    (
        "bad key between exchanges",
        Exchange.Bind(destination="amq.direct", source="amq.topic", routing_key="#.a.#.a.#.a.#.a.#"),
        406,
    ),
    ("delete a predeclared exchange", Exchange.Delete(exchange="amq.topic"), 403),
    ("passive declare of no queue", Queue.Declare(queue="no", passive=True), 404),
    ("passive declare of no last queue", Queue.Declare(passive=True), 404),
    ("YAML queue as transient", Queue.Declare(queue="orders"), 406),
    ("YAML queue as exclusive", Queue.Declare(queue="orders", durable=True, exclusive=True), 406),
    ("YAML queue, other limit", Queue.Declare(queue="orders", durable=True, arguments={"x-max-length": 99}), 406),
    ("reserved queue", Queue.Declare(queue="mqtt.x"), 403),
    ("reserved outbox", Queue.Declare(queue="link.x"), 403),
    ("reserved prefix", Queue.Declare(queue="amq.x"), 403),
    ("priority too high", Queue.Declare(queue="p", arguments={"x-max-priority": 256}), 406),
    ("priority and group", Queue.Declare(queue="p", arguments={"x-max-priority": 5, "x-group": True}), 406),
    ("single active consumer", Queue.Declare(queue="p", arguments={"x-single-active-consumer": "yes"}), 406),
    ("stream", Queue.Declare(queue="p", durable=True, arguments={"x-queue-type": "stream"}), 406),
    ("unknown argument", Queue.Declare(queue="p", arguments={"x-nonsense": 1}), 406),
    ("ttl as text", Queue.Declare(queue="p", arguments={"x-message-ttl": "10"}), 406),
    ("negative ttl", Queue.Declare(queue="p", arguments={"x-message-ttl": -1}), 406),
    ("unknown overflow", Queue.Declare(queue="p", arguments={"x-overflow": "block"}), 406),
    ("dead key alone", Queue.Declare(queue="p", arguments={"x-dead-letter-routing-key": "k"}), 406),
    ("delete a YAML queue", Queue.Delete(queue="orders"), 403),
    ("purge no queue", Queue.Purge(queue="no"), 404),
    ("bind no queue", Queue.Bind(queue="no", exchange="amq.topic", routing_key="a"), 404),
    ("bind to no exchange", Queue.Bind(queue="orders", exchange="no", routing_key="a"), 404),
    ("bind to the default exchange", Queue.Bind(queue="orders", exchange="", routing_key="a"), 403),
    ("binding key", Queue.Bind(queue="orders", exchange="amq.topic", routing_key="#.#.#.#.#"), 406),
    ("x-match", Queue.Bind(queue="orders", exchange="amq.headers", arguments={"x-match": "some"}), 406),
    ("unbind a YAML route", Queue.Unbind(queue="orders", exchange="amq.topic", routing_key="shop.*.orders"), 403),
    ("consume no queue", Basic.Consume(queue="no"), 404),
    ("consume a session", Basic.Consume(queue="mqtt.x"), 403),
    ("consumer argument", Basic.Consume(queue="orders", arguments={"x-stream-offset": 1}), 406),
    ("a second consumer argument", Basic.Consume(queue="orders", arguments={"x-priority": 1, "x-other": 1}), 406),
    ("priority as text", Basic.Consume(queue="orders", arguments={"x-priority": "1"}), 406),
    ("replies with acknowledgement", Basic.Consume(queue="amq.rabbitmq.reply-to"), 406),
    ("get of replies", Basic.Get(queue="amq.rabbitmq.reply-to"), 404),
    ("replies that nobody waits for", Queue.Declare(queue="amq.rabbitmq.reply-to.gone"), 404),
    ("commit without tx", commands.Tx.Commit(), 406),
    ("rollback without tx", commands.Tx.Rollback(), 406),
    ("get from no queue", Basic.Get(queue="no"), 404),
    ("ack of nothing", Basic.Ack(delivery_tag=7), 406),
    ("nack of nothing", Basic.Nack(delivery_tag=7, multiple=True), 406),
    ("reject of nothing", Basic.Reject(delivery_tag=7), 406),
]


@pytest.mark.parametrize(("method", "code"), [e[1:] for e in CHANNEL_ERRORS], ids=[e[0] for e in CHANNEL_ERRORS])
def test_a_channel_error(raw: Raw, method: Any, code: int) -> None:
    raw.send(method)
    close = raw.expect(commands.Channel.Close)
    assert (close.reply_code, close.class_id << 16 | close.method_id) == (code, method.index), close.reply_text
    # What comes until it is answered is passed over; then the number is free again.
    raw.send(commands.Basic.Qos(), header.ContentHeader(0, 1), body.ContentBody(b"x"), commands.Channel.CloseOk())
    raw.call(commands.Channel.Open(), commands.Channel.OpenOk)


CONNECTION_ERRORS: list[tuple[str, Any, int, int]] = [
    ("channel not open", Basic.Qos(), 3, 504),
    ("channel open twice", commands.Channel.Open(), 1, 504),
    ("channel method on 0", Basic.Qos(), 0, 504),
    ("channel.open on 0", commands.Channel.Open(), 0, 504),
    ("close-ok that nobody waits for", commands.Connection.CloseOk(), 0, 504),
    ("content on a channel that is not open", header.ContentHeader(0, 1), 3, 505),
    ("content on channel 0", header.ContentHeader(0, 1), 0, 505),
    ("connection method on a channel", commands.Connection.Open(), 1, 503),
    ("second connection.open", commands.Connection.Open(), 0, 504),
    ("a server's method", commands.Basic.GetEmpty(), 1, 503),
    ("unknown exchange type", Exchange.Declare(exchange="e", exchange_type="x-other"), 1, 503),
    ("immediate", Basic.Publish(immediate=True), 1, 540),
    ("prefetch_size", Basic.Qos(prefetch_size=1), 1, 540),
    ("no_local", Basic.Consume(queue="orders", no_local=True), 1, 540),
    ("recover without requeue", Basic.Recover(requeue=False), 1, 540),
    ("second step of a login", commands.Connection.SecureOk("x"), 0, 504),
    ("header without method", header.ContentHeader(0, 1), 1, 505),
    ("body without header", body.ContentBody(b"x"), 1, 505),
]


@pytest.mark.parametrize(
    ("sent", "channel", "code"), [e[1:] for e in CONNECTION_ERRORS], ids=[e[0] for e in CONNECTION_ERRORS]
)
def test_a_connection_error(connect: Connect, raw: Raw, sent: Any, channel: int, code: int) -> None:
    other = connect()
    raw.send(sent, channel)
    close = raw.expect(commands.Connection.Close)
    assert close.reply_code == code, close.reply_text
    if hasattr(sent, "index"):
        assert close.class_id << 16 | close.method_id == sent.index
    raw.send(commands.Channel.Open(), 9)  # passed over
    raw.send(commands.Connection.CloseOk(), 0)
    assert raw.read() is None
    assert other.is_alive()


def test_method_between_header_and_body(raw: Raw) -> None:
    raw.send(Basic.Publish(), header.ContentHeader(0, 5), Basic.Qos())
    assert raw.expect(commands.Connection.Close).reply_code == 505


def test_body_longer_than_its_header(raw: Raw) -> None:
    raw.send(Basic.Publish(), header.ContentHeader(0, 1), body.ContentBody(b"xx"))
    assert raw.expect(commands.Connection.Close).reply_code == 505


def test_consumer_tag_twice(raw: Raw) -> None:
    raw.call(Basic.Consume(queue="orders", consumer_tag="t"), Basic.ConsumeOk)
    raw.send(Basic.Consume(queue="orders", consumer_tag="t"))
    assert raw.expect(commands.Connection.Close).reply_code == 530


def test_body_above_max_message_size(raw: Raw) -> None:
    raw.send(Basic.Publish(), header.ContentHeader(0, 65537))
    assert raw.expect(commands.Channel.Close).reply_code == 311


def test_unfinished_bodies_of_all_channels_are_limited(raw: Raw) -> None:
    for number in range(2, 5):
        raw.send(commands.Channel.Open(), number)
        raw.expect(commands.Channel.OpenOk)
        raw.send(Basic.Publish(), header.ContentHeader(0, 65536), body.ContentBody(bytes(60_000)), channel=number)
    assert raw.expect(commands.Connection.Close).reply_code == 506


def test_bad_expiration(raw: Raw) -> None:
    raw.send(Basic.Publish(), header.ContentHeader(0, 0, commands.Basic.Properties(expiration="soon")))
    close = raw.expect(commands.Channel.Close)
    assert (close.reply_code, close.class_id, close.method_id) == (406, 60, 40)  # a content is its publish's


def test_a_message_names_its_own_user_or_none(raw: Raw) -> None:
    queue = raw.call(Queue.Declare(exclusive=True), Queue.DeclareOk).queue
    raw.publish(b"x", queue, properties={"user_id": "guest"})
    assert raw.call(Queue.Purge(queue=queue), Queue.PurgeOk).message_count == 1
    raw.publish(b"x", queue, properties={"user_id": "root"})
    close = raw.expect(commands.Channel.Close)
    assert (close.reply_code, close.class_id, close.method_id) == (406, 60, 40) and "'guest'" in close.reply_text


def test_consumers_of_a_connection_are_limited(raw: Raw) -> None:
    for tag in "abc":
        raw.call(Basic.Consume(queue="orders", consumer_tag=tag), Basic.ConsumeOk)
    raw.send(Basic.Consume(queue="orders", consumer_tag="d"))
    assert raw.expect(commands.Connection.Close).reply_code == 506


def test_exclusive_consumer(raw: Raw, connect: Connect) -> None:
    raw.call(Basic.Consume(queue="orders", exclusive=True), Basic.ConsumeOk)
    other = connect()
    other.send(Basic.Consume(queue="orders"))
    assert other.expect(commands.Channel.Close).reply_code == 403


def test_exclusive_queue_is_locked_to_others_and_ends_with_its_connection(raw: Raw, connect: Connect) -> None:
    declare(raw, "mine", exclusive=True)
    other = connect()
    for method in (
        Queue.Declare(queue="mine", exclusive=True),
        Basic.Consume(queue="mine"),
        Basic.Get(queue="mine"),
        Queue.Purge(queue="mine"),
        Queue.Delete(queue="mine"),
        Queue.Bind(queue="mine", exchange="amq.topic", routing_key="a"),
    ):
        other.send(method)
        assert other.expect(commands.Channel.Close).reply_code == 405, method
        other.send(commands.Channel.CloseOk())
        other.call(commands.Channel.Open(), commands.Channel.OpenOk)
    raw.send(commands.Connection.Close(200, "", 0, 0), 0)
    raw.expect(commands.Connection.CloseOk)
    other.send(Queue.Declare(queue="mine", passive=True))
    assert other.expect(commands.Channel.Close).reply_code == 404


# the frame layer and the handshake


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (bytes.fromhex("01 0001 00ffffff"), 501),
        (bytes.fromhex("01 0001 00000004 003c0050 00"), 501),
        (bytes.fromhex("07 0001 00000000 ce"), 501),
        (bytes.fromhex("01 0001 00000002 003c ce"), 502),
        (bytes.fromhex("01 0001 00000004 003c0050 ce"), 502),
        (bytes.fromhex("01 0001 00000004 00630001 ce"), 503),
        (bytes.fromhex("08 0001 00000000 ce"), 501),
        (bytes.fromhex("08 0009 00000000 ce"), 501),
        (bytes.fromhex("08 0000 00000001 00 ce"), 501),
    ],
    ids=[
        "too large",
        "no frame end",
        "frame type",
        "cut method",
        "cut ack",
        "unknown method",
        "heartbeat on a channel",
        "heartbeat on a channel that is not open",
        "heartbeat that is not empty",
    ],
)
def test_broken_frames(raw: Raw, data: bytes, code: int) -> None:
    raw.socket.sendall(data)
    assert raw.expect(commands.Connection.Close).reply_code == code


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n\r\n", b"AMQP\x01\x01\x00\x09", b"\x10\x0c\x00\x04MQTT", b"A!"])
def test_another_protocol_is_told_ours(connect: Connect, data: bytes) -> None:
    raw = connect(login=False)
    raw.socket.sendall(data)
    assert raw.socket.recv(100) == HELLO
    assert raw.socket.recv(100) == b""


def test_who_says_nothing_is_cut_off(connect: Connect) -> None:
    raw = connect(login=False)
    raw.socket.sendall(HELLO)
    raw.expect(commands.Connection.Start)
    assert raw.read() is None


def test_connections_are_limited(daemon: Callable[..., Daemon], connect: Connect) -> None:
    amqp = {"type": "amqp", "listen": "127.0.0.1:0", "max_connections": 2}
    address = daemon({"transports": {"amqp": amqp}}).address("amqp")
    clients = [connect(address) for _ in range(2)]
    with pytest.raises(AssertionError, match=r"Close.*connection limit \(2\) is reached"):
        connect(address)
    assert all(client.is_alive() for client in clients)


@pytest.mark.parametrize("way", ["closed", "error"])
def test_who_has_ended_holds_no_place(daemon: Callable[..., Daemon], connect: Connect, way: str) -> None:
    """Although its socket is still there: it has not answered the error, or not closed its side."""
    amqp = {"type": "amqp", "listen": "127.0.0.1:0", "max_connections": 1}
    address = daemon({"transports": {"amqp": amqp}}).address("amqp")
    for _ in range(4):
        raw = connect(address)
        if way == "closed":
            raw.send(commands.Connection.Close(200, "", 0, 0), 0)
            raw.expect(commands.Connection.CloseOk)
        else:
            raw.send(commands.Basic.Ack(99), 5)
            raw.expect(commands.Connection.Close)
    assert connect(address).is_alive()


@pytest.mark.parametrize(
    ("tune", "code"), [({"frame_max": 100}, 530), ({"frame_max": 1 << 20}, 530), ({"channel_max": 2000}, 530)]
)
def test_limits_beyond_what_was_offered(connect: Connect, tune: dict[str, int], code: int) -> None:
    with pytest.raises(AssertionError, match=r"Close.*negotiated"):
        connect(**tune)


def test_unknown_vhost_and_mechanism(connect: Connect) -> None:
    raw = connect(login=False)
    raw.socket.sendall(HELLO)
    raw.expect(commands.Connection.Start)
    raw.send(commands.Connection.StartOk({"capabilities": CAPABILITIES}, "EXTERNAL", ""), 0)
    assert raw.expect(commands.Connection.Close).reply_code == 403


def test_heartbeats_come_and_silence_ends_the_connection(connect: Connect) -> None:
    raw = connect(heartbeat=1)
    raw.socket.settimeout(5)
    beats = raw.socket.recv(8)
    assert beats == b"\x08\x00\x00\x00\x00\x00\x00\xce"
    data = beats
    try:
        while data:
            data = raw.socket.recv(100)
    except ConnectionResetError:
        pass


def test_a_client_that_sends_heartbeats_stays(connect: Connect) -> None:
    raw = connect(heartbeat=1)
    for _ in range(8):
        assert raw.socket.recv(8)
        raw.socket.sendall(b"\x08\x00\x00\x00\x00\x00\x00\xce")
    assert raw.is_alive()


def test_the_server_says_what_it_can(connect: Connect) -> None:
    raw = connect(login=False)
    raw.socket.sendall(HELLO)
    start = raw.expect(commands.Connection.Start)
    assert start.mechanisms == "PLAIN AMQPLAIN" and start.server_properties["product"] == "mqtt-amqp-gateway"
    assert start.server_properties["capabilities"]["publisher_confirms"] is True
    assert start.server_properties["capabilities"]["exchange_exchange_bindings"] is True
