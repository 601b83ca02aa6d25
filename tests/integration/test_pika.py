"""pika as it comes, against the daemon: the asyncio adapter, and of the blocking one what RabbitMQ adds to AMQP."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pika
import pika.exceptions
import pytest
from pika.adapters.asyncio_connection import AsyncioConnection

from tests.harness.daemon import Daemon
from tests.harness.process import Address

SECONDS = 20


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    """One daemon for all: each test has queues of its own."""
    daemon = Daemon(tmp_path_factory.mktemp("pika"), {"max_backlog": "64KB"})
    try:
        yield daemon.start().address("amqp")
    finally:
        daemon.close()


# the asyncio adapter


async def called(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """What a function of pika gives to its `callback`."""
    answer = asyncio.get_running_loop().create_future()
    function(*arguments, callback=answer.set_result, **options)
    return await asyncio.wait_for(answer, SECONDS)


async def connected(server: Address) -> AsyncioConnection:
    up = asyncio.get_running_loop().create_future()
    AsyncioConnection(
        pika.ConnectionParameters(server.host, server.port),
        on_open_callback=up.set_result,
        on_open_error_callback=lambda connection, error: up.set_exception(error),
    )
    connection: AsyncioConnection = await asyncio.wait_for(up, SECONDS)
    return connection


async def channel_of(connection: AsyncioConnection) -> Any:
    opened = asyncio.get_running_loop().create_future()
    connection.channel(on_open_callback=opened.set_result)
    return await asyncio.wait_for(opened, SECONDS)


async def close(connection: AsyncioConnection) -> None:
    closed = asyncio.get_running_loop().create_future()
    connection.add_on_close_callback(lambda connection, reason: closed.set_result(reason))
    connection.close()
    await asyncio.wait_for(closed, SECONDS)


@pytest.mark.anyio
async def test_asyncio_publishes_with_confirms_and_gets_back_what_nobody_wants(server: Address) -> None:
    connection = await connected(server)
    channel = await channel_of(connection)
    confirmed: asyncio.Queue[tuple[str, int, bool]] = asyncio.Queue()
    returned: asyncio.Queue[tuple[int, bytes]] = asyncio.Queue()
    channel.add_on_return_callback(lambda ch, method, properties, body: returned.put_nowait((method.reply_code, body)))

    def on_confirm(frame: Any) -> None:
        confirmed.put_nowait((frame.method.NAME, frame.method.delivery_tag, frame.method.multiple))

    selected = asyncio.get_running_loop().create_future()
    channel.confirm_delivery(on_confirm, callback=selected.set_result)
    await asyncio.wait_for(selected, SECONDS)
    declared = await called(
        channel.queue_declare,
        "pika.async.full",
        exclusive=True,
        arguments={"x-max-length": 1, "x-overflow": "reject-publish"},
    )
    queue = declared.method.queue
    channel.basic_publish("", queue, b"1", mandatory=True)
    channel.basic_publish("", "pika.nobody", b"2", mandatory=True)
    channel.basic_publish("", queue, b"3")
    verdicts: dict[int, str] = {}
    while len(verdicts) < 3:
        name, tag, multiple = await asyncio.wait_for(confirmed.get(), SECONDS)
        verdicts |= {each: name for each in range(1, tag + 1) if each == tag or (multiple and each not in verdicts)}
    assert verdicts == {1: "Basic.Ack", 2: "Basic.Ack", 3: "Basic.Nack"}
    assert returned.get_nowait() == (312, b"2")
    await close(connection)


@pytest.mark.anyio
async def test_asyncio_consumes_and_nacks(server: Address) -> None:
    connection = await connected(server)
    channel = await channel_of(connection)
    await called(channel.queue_declare, "pika.async.dead", exclusive=True)
    await called(
        channel.queue_declare,
        "pika.async",
        exclusive=True,
        arguments={"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "pika.async.dead"},
    )
    await called(channel.basic_qos, prefetch_count=10)
    taken: asyncio.Queue[tuple[Any, bytes]] = asyncio.Queue()
    tag = channel.basic_consume("pika.async", lambda ch, method, properties, body: taken.put_nowait((method, body)))
    for body in (b"1", b"2"):
        channel.basic_publish("", "pika.async", body)

    async def take() -> tuple[Any, bytes]:
        return await asyncio.wait_for(taken.get(), SECONDS)

    first, second = await take(), await take()
    assert [(method.redelivered, body) for method, body in (first, second)] == [(False, b"1"), (False, b"2")]
    channel.basic_nack(second[0].delivery_tag, multiple=True, requeue=True)
    again = [await take(), await take()]
    assert [(method.redelivered, body) for method, body in again] == [(True, b"1"), (True, b"2")]
    channel.basic_nack(again[0][0].delivery_tag, requeue=False)
    channel.basic_ack(again[1][0].delivery_tag)
    await called(channel.basic_cancel, tag)
    channel.basic_consume("pika.async.dead", lambda ch, method, properties, body: taken.put_nowait((properties, body)))
    properties, body = await take()
    assert body == b"1" and properties.headers["x-death"][0]["reason"] == "rejected"
    await close(connection)


# the blocking adapter


@pytest.fixture
def connect(server: Address) -> Iterator[Callable[[], pika.BlockingConnection]]:
    connections: list[pika.BlockingConnection] = []

    def connect() -> pika.BlockingConnection:
        connections.append(pika.BlockingConnection(pika.ConnectionParameters(server.host, server.port)))
        return connections[-1]

    yield connect
    for connection in connections:
        if connection.is_open:
            connection.close()


Connect = Callable[[], pika.BlockingConnection]


def test_transactions(connect: Connect) -> None:
    channel, other = connect().channel(), connect().channel()
    queue = channel.queue_declare("pika.tx", auto_delete=True).method.queue
    channel.tx_select()
    channel.basic_publish("", queue, b"1")
    channel.tx_rollback()
    channel.basic_publish("", queue, b"2")
    assert other.basic_get(queue) == (None, None, None)
    channel.tx_commit()
    method, _, body = channel.basic_get(queue)
    assert method is not None and body == b"2"
    channel.basic_ack(method.delivery_tag)
    channel.tx_rollback()
    assert other.queue_declare(queue, passive=True).method.message_count == 0, "it is still held"
    channel.basic_ack(method.delivery_tag)
    channel.tx_commit()
    channel.close()
    assert other.basic_get(queue) == (None, None, None)


def test_exchanges_are_bound_to_each_other(connect: Connect) -> None:
    channel = connect().channel()
    channel.exchange_declare("pika.in", "topic", auto_delete=True)
    channel.exchange_declare("pika.out", "fanout", auto_delete=True)
    queue = channel.queue_declare("", exclusive=True).method.queue
    channel.queue_bind(queue, "pika.out")
    channel.exchange_bind("pika.out", "pika.in", "shop.*")
    channel.basic_publish("pika.in", "shop.7", b"1")
    channel.basic_publish("pika.in", "stock.7", b"2")
    assert channel.basic_get(queue, auto_ack=True)[2] == b"1"
    channel.exchange_unbind("pika.out", "pika.in", "shop.*")
    channel.exchange_declare("pika.in", "topic", auto_delete=True)  # it went with its last binding
    channel.basic_publish("pika.in", "shop.7", b"3")
    assert channel.basic_get(queue) == (None, None, None)


def test_direct_reply_to(connect: Connect) -> None:
    client, worker = connect().channel(), connect().channel()
    queue = worker.queue_declare("pika.rpc", exclusive=True).method.queue
    answers: list[tuple[str | None, bytes]] = []
    client.basic_consume(
        "amq.rabbitmq.reply-to",
        lambda ch, method, properties, body: answers.append((properties.correlation_id, body)),
        auto_ack=True,
    )
    asked = pika.BasicProperties(reply_to="amq.rabbitmq.reply-to", correlation_id="7")
    # The answer goes to a channel of this connection: its queue is exclusive to the worker, and yet anybody publishes.
    client.basic_publish("", queue, b"ab", asked)
    for method, properties, body in worker.consume(queue, inactivity_timeout=SECONDS):
        assert method is not None and properties is not None and body is not None and properties.reply_to is not None
        answer = pika.BasicProperties(correlation_id=properties.correlation_id)
        worker.basic_publish("", properties.reply_to, body * 2, answer)
        worker.basic_ack(method.delivery_tag)
        break
    client.connection.process_data_events(time_limit=SECONDS)
    assert answers == [("7", b"abab")]


def test_one_consumer_is_active_the_next_takes_over_and_both_hear_of_the_end(connect: Connect) -> None:
    first, second, other = connect().channel(), connect().channel(), connect().channel()
    queue = other.queue_declare("pika.single", arguments={"x-single-active-consumer": True}).method.queue
    took: dict[str, list[bytes]] = {"first": [], "second": []}
    cancelled: list[str] = []
    tags: dict[str, str] = {}
    for name, channel in (("first", first), ("second", second)):

        def take(ch: Any, method: Any, properties: Any, body: bytes, name: str = name) -> None:
            took[name].append(body)
            ch.basic_ack(method.delivery_tag)

        channel.add_on_cancel_callback(lambda frame, name=name: cancelled.append(name))
        tags[name] = channel.basic_consume(queue, take)

    def publish(body: bytes, to: str, channel: Any) -> None:
        other.basic_publish("", queue, body)
        while body not in took[to]:
            channel.connection.process_data_events(time_limit=SECONDS)

    publish(b"1", "first", first)
    publish(b"2", "first", first)
    first.basic_cancel(tags["first"])
    publish(b"3", "second", second)
    assert took == {"first": [b"1", b"2"], "second": [b"3"]}
    tags["first"] = first.basic_consume(queue, lambda *delivery: None)
    other.queue_delete(queue)
    for name, channel in (("first", first), ("second", second)):
        while name not in cancelled:
            channel.connection.process_data_events(time_limit=SECONDS)
    assert cancelled == ["first", "second"]
    assert first.is_open and second.is_open


def test_it_is_told_that_it_is_blocked(connect: Connect) -> None:
    connection = connect()
    told: list[str] = []
    connection.add_on_connection_blocked_callback(lambda connection, method: told.append("blocked"))
    connection.add_on_connection_unblocked_callback(lambda connection, method: told.append("unblocked"))
    channel = connection.channel()
    queue = channel.queue_declare("", exclusive=True).method.queue
    # More at once than may wait for the disk.
    for _ in range(40):
        channel.basic_publish("", queue, bytes(60_000))
    while "unblocked" not in told:
        connection.process_data_events(time_limit=SECONDS)
    assert told[:2] == ["blocked", "unblocked"]
    assert channel.queue_declare(queue, passive=True).method.message_count == 40
