"""aio-pika, pika and py-amqp as they come, without a setting of ours, against the daemon."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import aio_pika
import amqp
import pika
import pika.exceptions
import pytest

from tests.harness.daemon import Daemon
from tests.harness.process import Address

CONFIG: dict[str, Any] = {
    "queues": {"orders": {"group": "{topic[1]}"}},
    "routes": [{"from": "shop/+/orders", "to": "orders"}],
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    """One daemon for all: each test has queues of its own."""
    daemon = Daemon(tmp_path_factory.mktemp("amqp"), CONFIG)
    try:
        yield daemon.start().address("amqp")
    finally:
        daemon.close()


# aio-pika


@pytest.mark.anyio
async def test_aio_pika_round(server: Address) -> None:
    connection = await aio_pika.connect(f"amqp://guest:guest@{server.host}:{server.port}/")
    async with connection, asyncio.timeout(20):
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=5)
        exchange = await channel.declare_exchange("aio.logs", aio_pika.ExchangeType.TOPIC, durable=True)
        queue = await channel.declare_queue("aio.work", durable=True)
        await queue.bind(exchange, "logs.*.error")
        sent = aio_pika.Message(b"body", headers={"n": 1}, delivery_mode=2, correlation_id="c", message_id="m")
        await exchange.publish(sent, "logs.web.error")
        await exchange.publish(sent, "logs.web.info", mandatory=False)
        async with queue.iterator() as messages:
            async for message in messages:
                async with message.process():
                    assert (message.body, message.routing_key) == (b"body", "logs.web.error")
                    assert message.headers == {"n": 1} and message.correlation_id == "c"
                    assert message.delivery_mode == 2 and not message.redelivered
                break
        assert (await queue.purge()).message_count == 0
        await queue.delete()
        await exchange.delete()


@pytest.mark.anyio
async def test_aio_pika_returns_what_nobody_wants(server: Address) -> None:
    connection = await aio_pika.connect(f"amqp://guest:guest@{server.host}:{server.port}/")
    async with connection, asyncio.timeout(20):
        channel = await connection.channel(on_return_raises=True)
        with pytest.raises(aio_pika.exceptions.PublishError):
            await channel.default_exchange.publish(aio_pika.Message(b"x"), "nobody")


@pytest.mark.anyio
async def test_aio_pika_robust_worker_of_a_yaml_queue_gets_its_groups_in_order(server: Address) -> None:
    connection = await aio_pika.connect_robust(f"amqp://{server.host}:{server.port}/")
    async with connection, asyncio.timeout(20):
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=100)
        queue = await channel.declare_queue("orders", durable=True)
        topics = await channel.get_exchange("amq.topic")
        got: dict[str, list[int]] = {}
        async with queue.iterator() as messages:
            for number in range(30):
                await topics.publish(aio_pika.Message(b"%d" % number), f"shop.{number % 3}.orders")
            left = 30
            async for message in messages:
                got.setdefault(message.routing_key or "", []).append(int(message.body))
                await message.ack()
                left -= 1
                if not left:
                    break
        assert got == {f"shop.{shop}.orders": list(range(shop, 30, 3)) for shop in range(3)}


@pytest.mark.anyio
async def test_aio_pika_rpc(server: Address) -> None:
    """The pattern of RabbitMQ's tutorial: an exclusive answer queue and reply_to."""
    connection = await aio_pika.connect(f"amqp://{server.host}:{server.port}/")
    async with connection, asyncio.timeout(20):
        channel = await connection.channel()
        answers = await channel.declare_queue(exclusive=True)
        assert answers.name.startswith("amq.gen-")
        work = await channel.declare_queue("aio.rpc", auto_delete=True)

        async def answer(request: aio_pika.abc.AbstractIncomingMessage) -> None:
            async with request.process():
                reply = aio_pika.Message(request.body * 2, correlation_id=request.correlation_id)
                await channel.default_exchange.publish(reply, request.reply_to or "")

        await work.consume(answer)
        request = aio_pika.Message(b"ab", reply_to=answers.name, correlation_id="7")
        await channel.default_exchange.publish(request, work.name)
        got: asyncio.Queue[aio_pika.abc.AbstractIncomingMessage] = asyncio.Queue()
        await answers.consume(got.put, no_ack=True)
        message = await got.get()
        assert (message.body, message.correlation_id) == (b"abab", "7")


# pika


@pytest.fixture
def blocking(server: Address) -> Iterator[pika.BlockingConnection]:
    connection = pika.BlockingConnection(pika.ConnectionParameters(server.host, server.port))
    yield connection
    if connection.is_open:
        connection.close()


def test_pika_blocking_round(blocking: pika.BlockingConnection) -> None:
    channel = blocking.channel()
    channel.confirm_delivery()
    channel.queue_declare("pika.work", durable=True)
    for number in range(10):
        channel.basic_publish("", "pika.work", b"%d" % number, pika.BasicProperties(headers={"n": number, "t": "x"}))
    channel.basic_qos(prefetch_count=3)
    got = []
    for method, properties, body in channel.consume("pika.work", inactivity_timeout=20):
        assert method is not None and properties is not None and body is not None
        got.append((int(body), properties.headers))
        channel.basic_ack(method.delivery_tag)
        if len(got) == 10:
            break
    assert got == [(number, {"n": number, "t": "x"}) for number in range(10)]
    assert channel.cancel() == 0
    channel.queue_delete("pika.work")


def test_pika_get_and_unroutable(blocking: pika.BlockingConnection) -> None:
    channel = blocking.channel()
    channel.confirm_delivery()
    queue = channel.queue_declare("", exclusive=True).method.queue
    assert channel.basic_get(queue) == (None, None, None)
    channel.basic_publish("", queue, b"one", mandatory=True)
    method, _, body = channel.basic_get(queue, auto_ack=True)
    assert method is not None and (body, method.message_count) == (b"one", 0)
    with pytest.raises(pika.exceptions.UnroutableError):
        channel.basic_publish("", "nobody", b"x", mandatory=True)
    channel.basic_publish("", "nobody", b"x")


def test_pika_a_full_queue_nacks(blocking: pika.BlockingConnection) -> None:
    channel = blocking.channel()
    channel.confirm_delivery()
    queue = channel.queue_declare(
        "", exclusive=True, arguments={"x-max-length": 1, "x-overflow": "reject-publish"}
    ).method.queue
    channel.basic_publish("", queue, b"1")
    with pytest.raises(pika.exceptions.NackError):
        channel.basic_publish("", queue, b"2")


def test_pika_channel_errors_are_exceptions(blocking: pika.BlockingConnection) -> None:
    with pytest.raises(pika.exceptions.ChannelClosedByBroker) as raised:
        blocking.channel().queue_declare("orders", durable=False)
    assert raised.value.reply_code == 406 and "durable" in raised.value.reply_text
    with pytest.raises(pika.exceptions.ChannelClosedByBroker) as raised:
        blocking.channel().queue_delete("orders")
    assert raised.value.reply_code == 403
    assert blocking.is_open


def test_pika_is_told_when_its_queue_is_deleted(server: Address, blocking: pika.BlockingConnection) -> None:
    channel = blocking.channel()
    channel.queue_declare("pika.gone")
    deleter = threading.Timer(0, lambda: _delete(server, "pika.gone"))
    consumed = channel.consume("pika.gone", inactivity_timeout=20)
    deleter.start()
    assert list(consumed) == []  # ends when the server cancels; inactivity would give a None
    deleter.join()


def _delete(server: Address, queue: str) -> None:
    with pika.BlockingConnection(pika.ConnectionParameters(server.host, server.port)) as other:
        other.channel().queue_delete(queue)


# py-amqp


def test_py_amqp_round(server: Address) -> None:
    with amqp.Connection(f"{server.host}:{server.port}", confirm_publish=True) as connection:
        channel = connection.channel()
        channel.exchange_declare("py.fan", "fanout", durable=True, auto_delete=False)
        queue, _, _ = channel.queue_declare("py.work", durable=True, auto_delete=False)
        channel.queue_bind(queue, "py.fan")
        headers = {"n": 1 << 40, "list": [1, "a", None], "float": 1.5}
        channel.basic_publish(amqp.Message("hello", application_headers=headers, priority=3), "py.fan")
        got: list[Any] = []
        tag = channel.basic_consume(queue, callback=got.append)
        while not got:
            connection.drain_events(timeout=20)
        assert got[0].body == "hello"
        assert got[0].headers == headers and got[0].properties["priority"] == 3
        channel.basic_ack(got[0].delivery_tag)
        channel.basic_cancel(tag)
        assert channel.basic_get(queue) is None
        channel.queue_unbind(queue, "py.fan")
        channel.queue_delete(queue)
        channel.exchange_delete("py.fan")


def test_py_amqp_not_found(server: Address) -> None:
    with amqp.Connection(f"{server.host}:{server.port}") as connection:
        with pytest.raises(amqp.exceptions.NotFound):
            connection.channel().queue_declare("py.nothing", passive=True)
        channel = connection.channel()
        with pytest.raises(amqp.exceptions.PreconditionFailed):
            channel.queue_declare("py.stream", arguments={"x-queue-type": "stream"})
