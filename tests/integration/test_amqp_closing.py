"""Both ends close at once: a channel or a connection, in each order of close and close-ok, with publishes between them.

As raw frames, which RabbitMQ takes in the same way, and with the clients that applications use.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import aio_pika
import amqp
import amqpstorm
import pika
import pika.exceptions
import pika.spec
import pytest
from pamqp import body, commands, header
from pika.adapters.asyncio_connection import AsyncioConnection

from tests.harness.crossing import Crossing
from tests.harness.daemon import Daemon
from tests.harness.node import Node
from tests.harness.process import Address
from tests.integration.amqp_calls import put
from tests.integration.amqp_raw import Raw

Basic, Channel, Connection, Queue = commands.Basic, commands.Channel, commands.Connection, commands.Queue
SECONDS = 20


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path_factory.mktemp("closing"), {"queues": {"orders": {}}})
    try:
        yield daemon.start()
    finally:
        daemon.close()


@pytest.fixture
def server(gateway: Daemon) -> Address:
    return gateway.address("amqp")


@pytest.fixture
def client(both: Address) -> Iterator[Raw]:
    """With confirms, and a queue of its own, `queue`."""
    raw = Raw(both)
    raw.login()
    raw.call(commands.Confirm.Select(), commands.Confirm.SelectOk)
    yield raw
    raw.close()


@pytest.fixture
def queue(client: Raw) -> str:
    return str(client.call(Queue.Declare(exclusive=True), Queue.DeclareOk).queue)


# raw frames. FAULT ends the channel, HARD the connection; PUBLISH goes to the queue. What the server says is read last.

FAULT = Queue.Declare(queue="closing.nothing", passive=True)
HARD = Basic.Qos(prefetch_size=1)
CLOSE, CLOSE_OK = Channel.Close(200, "bye", 0, 0), Channel.CloseOk()
PUBLISH = "publish"

CHANNELS: dict[str, tuple[list[Any], list[type[Any]]]] = {
    "the server alone": ([FAULT, CLOSE_OK], [Channel.Close]),
    "the client alone": ([CLOSE], [Channel.CloseOk]),
    "they cross": ([FAULT, CLOSE, CLOSE_OK], [Channel.Close, Channel.CloseOk]),
    "they cross, publishes before": ([FAULT, PUBLISH, PUBLISH, CLOSE, CLOSE_OK], [Channel.Close, Channel.CloseOk]),
    "they cross, publishes between": ([FAULT, CLOSE, PUBLISH, PUBLISH, CLOSE_OK], [Channel.Close, Channel.CloseOk]),
    "publishes until the answer": ([FAULT, PUBLISH, PUBLISH, CLOSE_OK], [Channel.Close]),
    "a second fault": ([FAULT, FAULT, HARD, CLOSE, FAULT, CLOSE_OK], [Channel.Close, Channel.CloseOk]),
    "the client closes twice": ([FAULT, CLOSE, CLOSE, CLOSE_OK], [Channel.Close, Channel.CloseOk, Channel.CloseOk]),
}


def say(raw: Raw, said: list[Any], queue: str, number: int = 1) -> None:
    """In one piece: the client can't have heard anything meanwhile."""
    frames: list[Any] = []
    for one in said:
        if one == PUBLISH:
            frames += (Basic.Publish(routing_key=queue), header.ContentHeader(0, 1), body.ContentBody(b"x"))
        else:
            frames.append(one)
    raw.send(*frames, channel=number)


@pytest.mark.parametrize("order", CHANNELS)
def test_a_channel_is_over_after_each_close_has_its_answer(client: Raw, queue: str, order: str) -> None:
    said, heard = CHANNELS[order]
    put(client, queue, b"before")
    say(client, said, queue)
    for kind in heard:
        client.expect(kind)
    # Its number is free, all of its state is new, and what came in between was passed over.
    client.call(Channel.Open(), Channel.OpenOk)
    client.call(commands.Confirm.Select(), commands.Confirm.SelectOk)
    assert client.call(Queue.Declare(queue=queue, passive=True), Queue.DeclareOk).message_count == 1
    client.publish(b"after", queue)
    assert client.expect(Basic.Ack).delivery_tag == 1


@pytest.mark.parametrize("order", CHANNELS)
def test_the_other_channels_go_on_meanwhile(client: Raw, queue: str, order: str) -> None:
    said, heard = CHANNELS[order]
    client.send(Channel.Open(), channel=2)
    client.expect(Channel.OpenOk)
    say(client, said, queue, 2)
    for kind in heard:
        client.expect(kind)
    put(client, queue, b"x")
    client.send(Channel.Open(), channel=2)
    client.expect(Channel.OpenOk)


@pytest.mark.parametrize(
    ("said", "heard", "wrong"),
    [
        ([CLOSE], [Channel.CloseOk], CLOSE_OK),
        ([CLOSE], [Channel.CloseOk], CLOSE),
        ([CLOSE], [Channel.CloseOk], PUBLISH),
        ([FAULT, CLOSE_OK], [Channel.Close], CLOSE_OK),
        ([FAULT, CLOSE_OK], [Channel.Close], CLOSE),
        ([FAULT, CLOSE_OK], [Channel.Close], PUBLISH),
        ([FAULT, CLOSE, CLOSE_OK], [Channel.Close, Channel.CloseOk], CLOSE_OK),
        ([FAULT], [Channel.Close], Channel.Open()),
        ([FAULT, CLOSE], [Channel.Close, Channel.CloseOk], Channel.Open()),
    ],
)
def test_what_no_close_ok_has_made_possible_is_504(
    client: Raw, queue: str, said: list[Any], heard: list[type[Any]], wrong: Any
) -> None:
    say(client, said, queue)
    for kind in heard:
        client.expect(kind)
    say(client, [wrong], queue)
    assert client.expect(Connection.Close).reply_code == 504


def test_a_close_ok_that_nobody_waits_for_is_503(client: Raw) -> None:
    client.send(CLOSE_OK)
    assert client.expect(Connection.Close).reply_code == 503


LEAVE, LEAVE_OK = Connection.Close(200, "bye", 0, 0), Connection.CloseOk()
CONNECTIONS: dict[str, tuple[list[tuple[Any, int]], list[type[Any]]]] = {
    "the server alone": ([(HARD, 1), (LEAVE_OK, 0)], [Connection.Close]),
    "they cross": ([(HARD, 1), (LEAVE, 0), (LEAVE_OK, 0)], [Connection.Close, Connection.CloseOk]),
    "publishes between": (
        [(HARD, 1), (PUBLISH, 1), (LEAVE, 0), (PUBLISH, 1), (LEAVE_OK, 0)],
        [Connection.Close, Connection.CloseOk],
    ),
    "the client closes twice": (
        [(HARD, 1), (LEAVE, 0), (LEAVE, 0), (LEAVE_OK, 0)],
        [Connection.Close, Connection.CloseOk, Connection.CloseOk],
    ),
    "close of a channel crosses": ([(HARD, 1), (CLOSE, 1), (LEAVE_OK, 0)], [Connection.Close]),
    "close-ok of a channel crosses": (
        [(FAULT, 1), (HARD, 2), (CLOSE_OK, 1), (CLOSE, 1), (LEAVE_OK, 0)],
        [Channel.Close, Connection.Close],
    ),
    "the client alone": ([(LEAVE, 0)], [Connection.CloseOk]),
    "the client alone, its channel closed": ([(FAULT, 1), (LEAVE, 0)], [Channel.Close, Connection.CloseOk]),
    "the client alone, both crossing": (
        [(FAULT, 1), (CLOSE, 1), (LEAVE, 0)],
        [Channel.Close, Channel.CloseOk, Connection.CloseOk],
    ),
}


@pytest.mark.parametrize("order", CONNECTIONS)
def test_a_connection_is_over_after_each_close_has_its_answer(client: Raw, both: Address, order: str) -> None:
    said, heard = CONNECTIONS[order]
    other = Raw(both)
    other.login()
    name = f"closing.{order}"
    other.call(Queue.Declare(queue=name), Queue.DeclareOk)
    client.send(Channel.Open(), channel=2)
    client.expect(Channel.OpenOk)
    put(client, name, b"before")
    *first, (last, number) = said
    for one, at in first:
        say(client, [one], name, at)
    if last is LEAVE_OK:  # until then the server waits for it
        for kind in heard:
            client.expect(kind)
        client.send(last, channel=number)
    else:
        client.send(last, channel=number)
        for kind in heard:
            client.expect(kind)
        client.socket.shutdown(1)
    with contextlib.suppress(ConnectionResetError):  # RabbitMQ ends so
        assert client.read() is None
    assert other.call(Queue.Declare(queue=name, passive=True), Queue.DeclareOk).message_count == 1
    other.call(Queue.Delete(queue=name), Queue.DeleteOk)
    other.close()


def test_who_never_answers_is_cut_off(server: Address) -> None:
    raw = Raw(server)
    raw.login()
    raw.send(HARD)
    raw.send(LEAVE, channel=0)
    raw.expect(Connection.Close)
    raw.expect(Connection.CloseOk)
    with contextlib.suppress(ConnectionResetError):
        assert raw.read() is None  # within the socket's 10 s
    raw.close()


# clients


@pytest.fixture
def crossing(server: Address) -> Iterator[Callable[..., Crossing]]:
    """`crossing(fault, *closes)` gives a way to the gateway on which these two cross."""
    relays: list[Crossing] = []

    def make(fault: Any, *closes: Any) -> Crossing:
        relays.append(Crossing(server, fault, *closes))
        return relays[-1]

    yield make
    for relay in relays:
        assert relay.crossed.is_set()
        relay.close_port()


@pytest.fixture
def way(crossing: Callable[..., Crossing]) -> Address:
    """A publish to no exchange, and the client's channel.close."""
    return crossing(Basic.Publish, Channel.Close).address


@pytest.fixture
def wrong_way(crossing: Callable[..., Crossing]) -> Address:
    """An immediate publish, which ends the connection, and whichever the client closes first."""
    return crossing(Basic.Publish, Channel.Close, Connection.Close).address


def test_pika_keeps_its_connection(way: Address) -> None:
    with pika.BlockingConnection(pika.ConnectionParameters(*way)) as connection:
        channel = connection.channel()
        channel.basic_publish("closing.nowhere", "k", b"x")
        with pytest.raises(pika.exceptions.ChannelClosedByBroker, match="404"):
            channel.close()
        again = connection.channel()
        assert again.queue_declare("orders", passive=True).method.message_count == 0
        assert connection.is_open


@pytest.mark.anyio
async def test_pika_ends(wrong_way: Address) -> None:
    """It closes its channels before the connection."""
    loop = asyncio.get_running_loop()
    opened, channel, closed = loop.create_future(), loop.create_future(), loop.create_future()
    connection = AsyncioConnection(pika.ConnectionParameters(*wrong_way), on_open_callback=opened.set_result)
    async with asyncio.timeout(SECONDS):
        await opened
        connection.channel(on_open_callback=channel.set_result)
        immediate = pika.spec.Basic.Publish(exchange="amq.direct", routing_key="k", immediate=True)
        (await channel)._send_method(immediate, (pika.BasicProperties(), b"x"))  # basic_publish has it no more
        connection.add_on_close_callback(lambda connection, reason: closed.set_result(reason))
        connection.close()
        await closed
    assert connection.is_closed


def test_py_amqp_keeps_its_connection(way: Address) -> None:
    with amqp.Connection(f"{way.host}:{way.port}") as connection:
        channel = connection.channel()
        channel.basic_publish(amqp.Message("x"), "closing.nowhere", "k")
        channel.close()
        assert connection.channel().queue_declare("orders", passive=True).message_count == 0
        assert connection.connected


def test_py_amqp_ends(wrong_way: Address) -> None:
    connection = amqp.Connection(f"{wrong_way.host}:{wrong_way.port}")
    connection.connect()
    connection.channel().basic_publish(amqp.Message("x"), "amq.direct", "k", immediate=True)
    with pytest.raises(amqp.exceptions.AMQPNotImplementedError, match="immediate"):
        connection.close()
    assert not connection.connected


def storm(address: Address, **options: Any) -> amqpstorm.Connection:
    return amqpstorm.Connection(address.host, "guest", "guest", port=address.port, timeout=SECONDS, **options)


def test_amqpstorm_keeps_its_connection(way: Address) -> None:
    with storm(way) as connection:
        channel = connection.channel()
        channel.basic.publish(b"x", "k", "closing.nowhere")
        with contextlib.suppress(amqpstorm.AMQPChannelError):  # which of the two it sees first
            channel.close()
        assert connection.channel().queue.declare("orders", passive=True)["message_count"] == 0
        assert connection.is_open


def test_amqpstorm_ends(wrong_way: Address) -> None:
    connection = storm(wrong_way)
    connection.channel().basic.publish(b"x", "k", "amq.direct", immediate=True)
    connection.close()
    assert connection.is_closed


@pytest.mark.anyio
async def test_aio_pika_keeps_its_connection(way: Address) -> None:
    connection = await aio_pika.connect(f"amqp://guest:guest@{way.host}:{way.port}/")
    async with connection, asyncio.timeout(SECONDS):
        channel = await connection.channel(publisher_confirms=False)
        exchange = await channel.get_exchange("closing.nowhere", ensure=False)
        await exchange.publish(aio_pika.Message(b"x"), "k")
        await channel.close()
        again = await connection.channel()
        queue = await again.declare_queue("orders", passive=True)
        assert queue.declaration_result.message_count == 0
        assert not connection.is_closed


@pytest.mark.anyio
async def test_aio_pika_ends(wrong_way: Address) -> None:
    connection = await aio_pika.connect(f"amqp://guest:guest@{wrong_way.host}:{wrong_way.port}/")
    async with asyncio.timeout(SECONDS):
        channel = await connection.channel(publisher_confirms=False)
        exchange = await channel.get_exchange("amq.direct", ensure=False)
        await exchange.publish(aio_pika.Message(b"x"), "k", immediate=True)
        await connection.close()
    assert connection.is_closed


def test_node_keeps_its_connection(node: Node, way: Address) -> None:
    node.run("amqplib.js", "crossing", f"amqp://guest:guest@{way.host}:{way.port}/")


def test_node_ends(node: Node, crossing: Callable[..., Crossing]) -> None:
    way = crossing(Basic.Consume, Connection.Close).address
    node.run("amqplib.js", "ending", f"amqp://guest:guest@{way.host}:{way.port}/")
