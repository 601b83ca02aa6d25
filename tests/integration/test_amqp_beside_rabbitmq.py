"""What a client of RabbitMQ finds here as it is there: each test runs against both."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import amqpstorm
import pytest
from pamqp import body, commands, header

from tests.harness.daemon import Daemon
from tests.harness.process import Address
from tests.integration.amqp_calls import declare, exchange
from tests.integration.amqp_raw import Raw

Basic, Channel, Connection, Exchange, Queue = (
    commands.Basic,
    commands.Channel,
    commands.Connection,
    commands.Exchange,
    commands.Queue,
)
Connect = Callable[..., Raw]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    daemon = Daemon(tmp_path_factory.mktemp("beside"), {})
    try:
        yield daemon.start().address("amqp")
    finally:
        daemon.close()


@pytest.fixture
def connect(both: Address) -> Iterator[Connect]:
    clients: list[Raw] = []

    def make(**tune: int) -> Raw:
        clients.append(Raw(both))
        clients[-1].login(**tune)
        return clients[-1]

    yield make
    for client in clients:
        client.close()


def told(raw: Raw, method: Any) -> int:
    """The code with which it is refused, which names the method; 0 if it is answered. The channel is open again."""
    raw.send(method)
    answer = raw.read()
    if not isinstance(answer, Channel.Close):
        assert answer.name == method.name + "Ok", answer
        return 0
    assert answer.class_id is not None and answer.class_id << 16 | (answer.method_id or 0) == method.index
    raw.send(Channel.CloseOk(), Channel.Open())
    raw.expect(Channel.OpenOk)
    return int(answer.reply_code or 0)


# declaring again

BOOLS = (False, True)


@pytest.mark.parametrize("exclusive", BOOLS)
@pytest.mark.parametrize("auto_delete", BOOLS)
@pytest.mark.parametrize("durable", BOOLS)
def test_declaring_a_queue_again(
    connect: Connect, name: str, durable: bool, auto_delete: bool, exclusive: bool
) -> None:
    """An exclusive queue is 405 to others whatever the flags, and so is a flag `exclusive` that differs. What else
    differs is 406; but an exclusive queue is never durable."""
    mine, other = connect(), connect()
    declare(mine, queue=name, durable=durable, auto_delete=auto_delete, exclusive=exclusive)
    for raw, d, a, e, limit, passive in product((mine, other), BOOLS, BOOLS, BOOLS, (None, 5), BOOLS):
        arguments = {} if limit is None else {"x-max-length": limit}
        method = Queue.Declare(queue=name, durable=d, auto_delete=a, exclusive=e, arguments=arguments, passive=passive)
        expected = 0
        if exclusive and raw is other:
            expected = 405
        elif passive:
            expected = 0
        elif e != exclusive:
            expected = 405
        elif (not exclusive and d != durable) or a != auto_delete or limit:
            expected = 406
        assert told(raw, method) == expected, dict(method)
    mine.call(Queue.Delete(queue=name), Queue.DeleteOk)


# removing what is gone


def test_what_is_not_bound_is_unbound_already(connect: Connect, name: str) -> None:
    raw, other = connect(), connect()
    source, to = exchange(raw, f"{name}.source", "topic"), exchange(raw, f"{name}.to")
    queue, theirs = declare(raw), declare(other)
    for a, b in product(
        (queue, f"{name}.gone", theirs, "amq.rabbitmq.reply-to"), (source, f"{name}.gone", "amq.topic")
    ):
        for _ in range(2):
            assert told(raw, Queue.Unbind(queue=a, exchange=b, routing_key="k")) == 0, (a, b)
    for a, b in product((to, f"{name}.gone", "amq.fanout"), (source, f"{name}.gone", "amq.topic")):
        for _ in range(2):
            assert told(raw, Exchange.Unbind(destination=a, source=b, routing_key="k")) == 0, (a, b)
    for method in (Queue.Delete(queue=f"{name}.gone"), Exchange.Delete(exchange=f"{name}.gone")):
        assert told(raw, method) == 0
    assert told(raw, Basic.Cancel(consumer_tag="gone")) == 0
    raw.call(Exchange.Delete(exchange=source), Exchange.DeleteOk)
    raw.call(Exchange.Delete(exchange=to), Exchange.DeleteOk)


@pytest.mark.parametrize("first", ["queue", "exchange"])
def test_one_end_may_go_before_the_binding(connect: Connect, name: str, first: str) -> None:
    raw = connect()
    source, queue = exchange(raw, f"{name}.{first}", "direct"), declare(raw)
    raw.call(Queue.Bind(queue=queue, exchange=source, routing_key="k"), Queue.BindOk)
    removals = [
        (Queue.Delete(queue=queue), Queue.DeleteOk),
        (Exchange.Delete(exchange=source), Exchange.DeleteOk),
    ]
    if first == "exchange":
        removals.reverse()
    raw.call(*removals[0])
    assert told(raw, Queue.Unbind(queue=queue, exchange=source, routing_key="k")) == 0
    raw.call(*removals[1])
    assert told(raw, Queue.Unbind(queue=queue, exchange=source, routing_key="k")) == 0


def test_a_binding_of_anothers_exclusive_queue_stays(connect: Connect) -> None:
    raw, other = connect(), connect()
    queue = declare(other)
    other.call(Queue.Bind(queue=queue, exchange="amq.fanout"), Queue.BindOk)
    assert told(raw, Queue.Unbind(queue=queue, exchange="amq.fanout")) == 405
    raw.publish(b"x", "", "amq.fanout")
    raw.call(Basic.Qos(), Basic.QosOk)
    assert other.call(Queue.Purge(queue=queue), Queue.PurgeOk).message_count == 1


@pytest.mark.parametrize(
    ("method", "code"),
    [
        (Queue.Unbind(queue="no", exchange="", routing_key="no"), 403),
        (Queue.Bind(queue="no", exchange="", routing_key="no"), 403),
        (Queue.Bind(queue="no", exchange="amq.direct"), 404),
        (Exchange.Unbind(destination="no", source=""), 403),
        (Exchange.Unbind(destination="", source="no"), 403),
        (Exchange.Bind(destination="", source="no"), 403),
        (Exchange.Bind(destination="no", source="amq.direct"), 404),
        (Exchange.Declare(exchange="", passive=True), 403),
        (Exchange.Declare(exchange="", exchange_type="topic", passive=True), 403),
        (Exchange.Declare(exchange=""), 403),
        (Exchange.Declare(exchange="amq.topic", exchange_type="headers", passive=True), 0),
        (Exchange.Declare(exchange="amq.none", passive=True), 404),
        (Exchange.Delete(exchange=""), 403),
        (Queue.Unbind(exchange="amq.direct"), 404),
        (Queue.Purge(queue="no"), 404),
    ],
)
def test_codes(connect: Connect, method: Any, code: int) -> None:
    assert told(connect(), method) == code


def test_an_immediate_publish_is_540_by_its_name(connect: Connect) -> None:
    raw = connect()
    raw.send(Basic.Publish(exchange="amq.direct", routing_key="k", immediate=True), header.ContentHeader(0, 0))
    close = raw.expect(Connection.Close)
    assert (close.reply_code, close.class_id, close.method_id) == (540, 60, 40)
    assert "immediate=true" in close.reply_text


# limits


def test_channels_are_counted_and_their_numbers_are_free(connect: Connect) -> None:
    raw = connect(channel_max=3)
    for number in (65_535, 40_000):
        raw.send(Channel.Open(), channel=number)
        raw.expect(Channel.OpenOk)
        raw.send(Queue.Declare(exclusive=True), channel=number)
        raw.expect(Queue.DeclareOk)
    raw.send(Channel.Close(200, "", 0, 0), channel=40_000)
    raw.expect(Channel.CloseOk)
    raw.send(Channel.Open(), channel=7)  # one has gone
    raw.expect(Channel.OpenOk)
    raw.send(Channel.Open(), channel=2)
    close = raw.expect(Connection.Close)
    assert close.reply_code == 530 and "channel_max" in close.reply_text


def test_a_channel_counts_until_its_close_is_answered(connect: Connect) -> None:
    raw = connect(channel_max=2)
    raw.send(Channel.Open(), channel=2)
    raw.expect(Channel.OpenOk)
    raw.send(Queue.Declare(queue="no", passive=True), channel=2)
    raw.expect(Channel.Close)
    raw.send(Channel.CloseOk(), Channel.Open(), channel=2)
    raw.expect(Channel.OpenOk)
    raw.send(Queue.Declare(queue="no", passive=True), channel=2)
    raw.expect(Channel.Close)
    raw.send(Channel.Open(), channel=3)
    assert raw.expect(Connection.Close).reply_code == 530


FRAME_MAX = (4096, 131_072)


@pytest.mark.parametrize("frame_max", FRAME_MAX)
@pytest.mark.parametrize("beyond", [-1, 0, 1, 8])
def test_a_frame_may_have_8_bytes_more_than_frame_max(connect: Connect, frame_max: int, beyond: int) -> None:
    raw = connect(frame_max=frame_max)
    queue = declare(raw)
    room = frame_max - 8 + beyond
    # A body, and a content header: 14 octets, the header table's length, and one entry in it.
    long = {"long": "x" * (room - 14 - 4 - 5 - 1 - 4)}
    filled = header.ContentHeader(0, 2 * room, Basic.Properties(headers=long))
    raw.send(Basic.Publish(routing_key=queue), filled, body.ContentBody(bytes(room)), body.ContentBody(bytes(room)))
    raw.call(Queue.Declare(exclusive=True), Queue.DeclareOk)
    assert raw.call(Queue.Purge(queue=queue), Queue.PurgeOk).message_count == 1


@pytest.mark.parametrize("frame_max", FRAME_MAX)
@pytest.mark.parametrize("whole", BOOLS)
def test_9_bytes_more_are_501(connect: Connect, frame_max: int, whole: bool) -> None:
    raw = connect(frame_max=frame_max)
    raw.send(Basic.Publish(routing_key="x"), header.ContentHeader(0, frame_max + 1))
    if whole:
        raw.send(body.ContentBody(bytes(frame_max + 1)))
    else:  # it is not waited for
        raw.socket.sendall(b"\x03\x00\x01" + (frame_max + 1).to_bytes(4, "big"))
    assert raw.expect(Connection.Close).reply_code == 501


@pytest.mark.parametrize("size", [131_064, 131_065, 131_072, 131_073, 262_144, 5_000_000])
def test_large_messages_of_amqpstorm(both: Address, name: str, size: int) -> None:
    """It fills frames up to frame_max and counts their heads besides."""
    sent = bytes(range(256)) * (size // 256 + 1)
    with amqpstorm.Connection(both.host, "guest", "guest", port=both.port) as connection:
        channel = connection.channel()
        channel.confirm_deliveries()
        channel.queue.declare(name, exclusive=True)
        assert channel.basic.publish(sent[:size], name) is True
        message = channel.basic.get(name, auto_decode=False)
        assert message is not None and message.body == sent[:size]
        message.ack()
        assert connection.is_open
