"""Consuming and settling by AMQP: order, prefetch, redelivery, dead letters, restarts, and the end of connections."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import pika
import pika.exceptions
import pytest
from pamqp import body, commands, header
from pika.adapters.blocking_connection import BlockingChannel

from tests.harness.daemon import Daemon
from tests.harness.process import Address
from tests.integration.amqp_calls import bind, bodies, consume, content, declare, delivery, depth, get, put, sync
from tests.integration.amqp_raw import Raw

Basic, Queue = commands.Basic, commands.Queue
CONFIG: dict[str, Any] = {
    "queues": {"jobs": {"group": "{topic[1]}", "max_deliveries": 2}, "once": {"max_deliveries": 1}},
    "routes": [{"from": "jobs/+", "to": "jobs"}],
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    """One daemon for all: each test has queues of its own or empties what it uses."""
    daemon = Daemon(tmp_path_factory.mktemp("amqp"), CONFIG)
    try:
        yield daemon.start().address("amqp")
    finally:
        daemon.close()


# prefetch and acknowledgement


def test_prefetch_of_a_consumer_is_what_is_in_flight(raw: Raw) -> None:
    queue = declare(raw)
    put(raw, queue, *(b"%d" % n for n in range(10)))
    consume(raw, queue, prefetch=3)
    assert bodies(raw, 3) == [b"0", b"1", b"2"]
    sync(raw)  # no fourth
    raw.send(Basic.Ack(delivery_tag=2, multiple=True))
    assert bodies(raw, 2) == [b"3", b"4"]
    sync(raw)
    raw.send(Basic.Ack(delivery_tag=0, multiple=True))
    assert bodies(raw, 3) == [b"5", b"6", b"7"]
    assert depth(raw, queue) == 2


def test_prefetch_of_a_channel_is_shared_by_its_consumers(raw: Raw) -> None:
    first, second = declare(raw), declare(raw)
    put(raw, first, b"a", b"b", b"c")
    put(raw, second, b"a", b"b", b"c")
    raw.call(Basic.Qos(prefetch_count=4, global_=True), Basic.QosOk)
    for queue in (first, second):
        raw.send(Basic.Consume(queue=queue))
    seen = []
    while len([m for m in seen if isinstance(m, Basic.Deliver)]) < 4:
        seen.append(raw.read())
    tail = [raw.read(), raw.read()]
    assert isinstance(tail[-1], body.ContentBody)
    raw.send(commands.Channel.Flow(active=True))
    assert isinstance(raw.read(), commands.Channel.FlowOk)  # no fifth


def test_unlimited_prefetch_takes_everything(raw: Raw, other: Raw) -> None:
    queue = declare(raw, exclusive=False, auto_delete=True)
    put(raw, queue, *(b"%d" % n for n in range(5000)))
    consume(other, queue)
    assert bodies(other, 5000) == [b"%d" % n for n in range(5000)]
    assert depth(raw, queue) == 0


def test_no_ack_settles_at_once(raw: Raw) -> None:
    queue = declare(raw)
    put(raw, queue, b"1", b"2")
    consume(raw, queue, prefetch=1, no_ack=True)
    assert bodies(raw, 2) == [b"1", b"2"]
    raw.send(Basic.Ack(delivery_tag=1))
    assert raw.expect(commands.Channel.Close).reply_code == 406


def test_requeue_comes_again_first_and_counts(raw: Raw) -> None:
    queue = declare(raw)
    put(raw, queue, b"1", b"2", b"3")
    consume(raw, queue, prefetch=2)
    assert bodies(raw, 2) == [b"1", b"2"]
    raw.send(Basic.Nack(delivery_tag=2, multiple=True, requeue=True))
    (first, headers, one), (second, _, two) = delivery(raw), delivery(raw)
    assert (one, two) == (b"1", b"2")
    assert first.redelivered and second.redelivered and headers == {"x-delivery-count": 1}
    raw.send(Basic.Reject(delivery_tag=3, requeue=False), Basic.Ack(delivery_tag=4))
    assert bodies(raw, 1) == [b"3"]


def test_recover_brings_back_what_is_unacknowledged(raw: Raw) -> None:
    queue = declare(raw)
    put(raw, queue, b"1", b"2")
    consume(raw, queue)
    assert bodies(raw, 2) == [b"1", b"2"]
    raw.call(Basic.Recover(requeue=True), Basic.RecoverOk)
    again = [delivery(raw), delivery(raw)]
    assert [one[2] for one in again] == [b"1", b"2"]
    assert all(method.redelivered and not headers for method, headers, _ in again)


def test_channel_flow_stops_deliveries(raw: Raw) -> None:
    queue = declare(raw)
    consume(raw, queue)
    raw.call(commands.Channel.Flow(active=False), commands.Channel.FlowOk)
    put(raw, queue, b"1")
    sync(raw)
    raw.call(commands.Channel.Flow(active=True), commands.Channel.FlowOk)
    assert bodies(raw, 1) == [b"1"]


def test_cancel_keeps_what_is_in_flight(raw: Raw) -> None:
    queue = declare(raw)
    put(raw, queue, b"1", b"2")
    tag = consume(raw, queue, prefetch=1)
    assert bodies(raw, 1) == [b"1"]
    raw.call(Basic.Cancel(consumer_tag=tag), Basic.CancelOk)
    raw.send(Basic.Ack(delivery_tag=1))
    assert depth(raw, queue) == 1
    found = get(raw, queue)
    assert found is not None and found[2] == b"2" and not found[0].redelivered


# basic.get


def test_get_takes_one_and_says_how_many_are_left(raw: Raw) -> None:
    queue = declare(raw)
    assert get(raw, queue) is None
    put(raw, queue, b"1", b"2", b"3")
    found = get(raw, queue, no_ack=False)
    assert found is not None
    assert (found[2], found[0].message_count, found[0].routing_key) == (b"1", 2, queue)
    raw.send(Basic.Nack(delivery_tag=found[0].delivery_tag, requeue=True))
    again = get(raw, queue)
    assert again is not None and again[2] == b"1" and again[0].redelivered


def test_get_sees_what_was_published_before_it_on_its_channel(raw: Raw, other: Raw) -> None:
    queue = declare(other)
    other.publish(b"x" * 20_000, queue)
    other.send(Basic.Get(queue=queue, no_ack=True))
    assert delivery(other)[2] == b"x" * 20_000


def test_get_from_a_blocked_group_is_empty(raw: Raw) -> None:
    raw.call(Queue.Purge(queue="jobs"), Queue.PurgeOk)
    put(raw, "jobs.g", b"1", b"2", exchange="amq.topic")
    found = get(raw, "jobs", no_ack=False)
    assert found is not None and found[2] == b"1"
    assert get(raw, "jobs") is None
    raw.send(Basic.Ack(delivery_tag=found[0].delivery_tag))
    found = get(raw, "jobs")
    assert found is not None and found[2] == b"2"


# publishing


def test_a_return_comes_before_its_confirm(raw: Raw) -> None:
    raw.publish(b"body", "nobody", mandatory=True, properties={"headers": {"a": 1}})
    returned = raw.expect(Basic.Return)
    assert (returned.reply_code, returned.routing_key, returned.exchange) == (312, "nobody", "")
    assert content(raw) == ({"a": 1}, b"body")
    assert raw.expect(Basic.Ack).delivery_tag == 1


def test_a_refused_publish_is_nacked_and_the_others_are_not(raw: Raw) -> None:
    queue = declare(raw, {"x-max-length": 2, "x-overflow": "reject-publish"})
    for number in range(4):
        raw.publish(b"%d" % number, queue)
    fates: dict[int, str] = {}
    while len(fates) < 4:
        answer = raw.read()
        tags = range(1, answer.delivery_tag + 1) if answer.multiple else [answer.delivery_tag]
        for tag in tags:
            fates.setdefault(tag, answer.name)
    assert fates == {1: "Basic.Ack", 2: "Basic.Ack", 3: "Basic.Nack", 4: "Basic.Nack"}


def test_a_refused_publish_is_a_dead_letter_besides(raw: Raw) -> None:
    dead = declare(raw)
    arguments = {"x-max-length": 1, "x-overflow": "reject-publish-dlx", "x-dead-letter-exchange": ""}
    queue = declare(raw, {**arguments, "x-dead-letter-routing-key": dead})
    put(raw, queue, b"1")
    raw.publish(b"2", queue)
    assert raw.expect(Basic.Nack).delivery_tag == 2
    found = get(raw, dead)
    assert found is not None and found[2] == b"2"
    [death] = found[1]["x-death"]
    assert (death["queue"], death["reason"], death["routing-keys"]) == (queue, "maxlen", [queue])
    assert depth(raw, queue) == 1


def test_a_full_queue_drops_its_head(raw: Raw) -> None:
    queue = declare(raw, {"x-max-length": 2})
    put(raw, queue, b"1", b"2", b"3")
    consume(raw, queue)
    assert bodies(raw, 2) == [b"2", b"3"]


@pytest.mark.parametrize("size", [0, 1, 131_064, 131_065, 1_000_000])
def test_bodies_of_any_size(raw: Raw, size: int) -> None:
    queue = declare(raw)
    data = bytes(range(256)) * (size // 256 + 1)
    raw.send(Basic.Publish(routing_key=queue), header.ContentHeader(0, size))
    for start in range(0, size, 100_000):
        raw.send(body.ContentBody(data[start : min(size, start + 100_000)]))
    raw.expect(Basic.Ack)
    consume(raw, queue)
    assert delivery(raw)[2] == data[:size]


@pytest.mark.parametrize(
    ("kind", "binding", "key", "hit"),
    [
        ("direct", "a.b", "a.b", True),
        ("direct", "a.*", "a.b", False),
        ("direct", "", "", True),
        ("topic", "a.*.c", "a.b.c", True),
        ("topic", "a.#", "a", True),
        ("topic", "#.c", "$a.b.c", True),
        ("topic", "*.c", "a.b.c", False),
        ("topic", "a/b.*", "a/b.c", True),
        ("fanout", "x", "", True),
        ("fanout", "", "y.z", True),
    ],
)
def test_exchanges_route(raw: Raw, kind: str, binding: str, key: str, hit: bool) -> None:
    exchange = f"ex.{kind}"
    raw.call(commands.Exchange.Declare(exchange=exchange, exchange_type=kind), commands.Exchange.DeclareOk)
    queue = declare(raw)
    raw.call(Queue.Bind(queue=queue, exchange=exchange, routing_key=binding), Queue.BindOk)
    raw.publish(b"x", key, exchange, mandatory=True)
    first = raw.read()
    assert isinstance(first, Basic.Ack if hit else Basic.Return)
    if hit:
        found = get(raw, queue)
        assert found is not None and (found[0].exchange, found[0].routing_key) == (exchange, key)


@pytest.mark.parametrize(
    ("arguments", "headers", "hit"),
    [
        ({"x-match": "all", "a": 1, "b": "x"}, {"a": 1, "b": "x", "c": 2}, True),
        ({"x-match": "all", "a": 1, "b": "x"}, {"a": 1}, False),
        ({"x-match": "any", "a": 1, "b": "x"}, {"b": "x"}, True),
        ({"x-match": "any", "a": 1}, {"a": 2}, False),
        ({"a": None}, {"a": "whatever"}, True),
        ({}, {}, True),
        ({"x-match": "any"}, {"a": 1}, False),
    ],
)
def test_a_headers_exchange_compares(raw: Raw, arguments: Any, headers: Any, hit: bool) -> None:
    queue = declare(raw)
    raw.call(Queue.Bind(queue=queue, exchange="amq.headers", arguments=arguments), Queue.BindOk)
    raw.publish(b"x", "any.key", "amq.headers", mandatory=True, properties={"headers": headers})
    assert isinstance(raw.read(), Basic.Ack if hit else Basic.Return)


def test_unbind_and_delete_of_exchanges(raw: Raw) -> None:
    raw.call(commands.Exchange.Declare(exchange="auto", auto_delete=True), commands.Exchange.DeclareOk)
    raw.call(commands.Exchange.Declare(exchange="used"), commands.Exchange.DeclareOk)
    queue = declare(raw)
    for exchange in ("auto", "used"):
        raw.call(Queue.Bind(queue=queue, exchange=exchange, routing_key="k"), Queue.BindOk)
    raw.call(Queue.Unbind(queue=queue, exchange="auto", routing_key="k"), Queue.UnbindOk)
    raw.send(commands.Exchange.Declare(exchange="auto", passive=True))
    assert raw.expect(commands.Channel.Close).reply_code == 404
    raw.send(commands.Channel.CloseOk())
    raw.call(commands.Channel.Open(), commands.Channel.OpenOk)
    raw.send(commands.Exchange.Delete(exchange="used", if_unused=True))
    assert raw.expect(commands.Channel.Close).reply_code == 406
    raw.send(commands.Channel.CloseOk())
    raw.call(commands.Channel.Open(), commands.Channel.OpenOk)
    raw.call(commands.Exchange.Delete(exchange="used"), commands.Exchange.DeleteOk)
    raw.call(Queue.Delete(queue=queue), Queue.DeleteOk)


# expiry and dead letters


def test_x_death_tells_of_the_queue_and_why(raw: Raw) -> None:
    dead = declare(raw)
    queue = declare(raw, {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": dead, "x-delivery-limit": 1})
    put(raw, queue, b"poison")
    consume(raw, queue)
    for _ in range(2):
        raw.send(Basic.Nack(delivery_tag=delivery(raw)[0].delivery_tag, requeue=True))
    found = None
    while found is None:
        found = get(raw, dead)
    [death] = found[1]["x-death"]
    assert (death["queue"], death["reason"], death["count"]) == (queue, "delivery_limit", 1)
    assert found[1]["x-first-death-queue"] == queue and found[1]["x-last-death-reason"] == "delivery_limit"
    assert death["time"].timestamp() == pytest.approx(time.time(), abs=60)


@pytest.mark.parametrize("way", ["consume", "get"])
def test_properties_too_large_for_the_frames_of_the_consumer_are_invalid(server: Address, raw: Raw, way: str) -> None:
    dead = declare(raw)
    narrow = Raw(server)
    narrow.login(frame_max=4096)
    own = declare(narrow, {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": dead})
    put(raw, own, b"large", headers={"x": "y" * 5000})
    put(raw, own, b"small")
    if way == "get":
        assert get(narrow, own) is None
        found = get(narrow, own)
        assert found is not None and found[2] == b"small"
    else:
        consume(narrow, own)
        assert bodies(narrow, 1) == [b"small"]
    narrow.close()
    found = get(raw, dead)
    assert found is not None
    _, headers, content = found
    assert content == b"large"
    [death] = headers["x-death"]
    assert (death["queue"], death["reason"]) == (own, "invalid")


def test_expired_messages_are_dead_letters(raw: Raw) -> None:
    dead = declare(raw)
    arguments = {"x-dead-letter-exchange": "amq.direct", "x-dead-letter-routing-key": "dead", "x-message-ttl": 1}
    queue = declare(raw, arguments)
    raw.call(Queue.Bind(queue=dead, exchange="amq.direct", routing_key="dead"), Queue.BindOk)
    consume(raw, dead)
    raw.publish(b"old", queue)
    while not isinstance(raw.read(), Basic.Deliver):
        pass
    headers, data = content(raw)
    assert data == b"old" and headers["x-death"][0]["reason"] == "expired"
    assert "original-expiration" not in headers["x-death"][0]


def test_a_dead_letter_keeps_its_routing_key_from_and_to_the_default_exchange(raw: Raw) -> None:
    dead = declare(raw)
    first = declare(raw, {"x-dead-letter-exchange": "amq.direct"}, queue="dead.letter.first")
    bind(raw, dead, "amq.direct", first)
    second = declare(raw, {"x-dead-letter-exchange": ""})
    bind(raw, second, "amq.topic", dead)
    put(raw, first, b"from")
    put(raw, dead, b"to", exchange="amq.topic")
    for queue in (first, second):
        found = get(raw, queue, no_ack=False)
        assert found is not None
        raw.send(Basic.Reject(delivery_tag=found[0].delivery_tag, requeue=False))
    sync(raw)
    consume(raw, dead)
    got = [delivery(raw) for _ in range(2)]
    assert sorted((method.exchange, method.routing_key, data) for method, _, data in got) == [
        ("", dead, b"to"),
        ("amq.direct", first, b"from"),
    ]


def test_x_death_tells_where_each_time_it_had_been_sent(raw: Raw) -> None:
    last = declare(raw)
    middle = declare(raw, {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": last})
    first = declare(raw, {"x-dead-letter-exchange": "amq.direct", "x-dead-letter-routing-key": "deaths.middle"})
    bind(raw, middle, "amq.direct", "deaths.middle")
    bind(raw, first, "amq.topic", "deaths.#")
    raw.publish(b"x", "deaths.one", "amq.topic", properties={"expiration": "1"})
    raw.expect(Basic.Ack)
    consume(raw, middle)
    raw.send(Basic.Reject(delivery_tag=delivery(raw)[0].delivery_tag, requeue=False))
    found = None
    while found is None:
        found = get(raw, last)
    deaths = [(d["queue"], d["reason"], d["exchange"], d["routing-keys"]) for d in found[1]["x-death"]]
    assert deaths == [
        (middle, "rejected", "amq.direct", ["deaths.middle"]),
        (first, "expired", "amq.topic", ["deaths.one"]),
    ]
    assert [d.get("original-expiration") for d in found[1]["x-death"]] == [None, "1"]
    assert (found[1]["x-first-death-exchange"], found[1]["x-last-death-exchange"]) == ("amq.topic", "amq.direct")


# the end of consumers, channels and connections


def test_a_lost_connection_gives_back_and_counts_one_attempt(raw: Raw, other: Raw) -> None:
    queue = declare(raw, {"x-delivery-limit": 5}, exclusive=False, auto_delete=True)
    put(raw, queue, b"1", b"2", b"3")
    consume(other, queue)
    assert bodies(other, 3) == [b"1", b"2", b"3"]
    consume(raw, queue)
    other.close()
    got = [delivery(raw) for _ in range(3)]
    assert [data for _, _, data in got] == [b"1", b"2", b"3"]
    assert [headers.get("x-delivery-count", 0) for _, headers, _ in got] == [1, 0, 0]
    assert all(method.redelivered for method, _, _ in got)


@pytest.mark.parametrize("what", ["channel", "connection"])
def test_a_closed_channel_gives_back_and_counts_nothing(raw: Raw, other: Raw, what: str) -> None:
    queue = declare(raw, exclusive=False, auto_delete=True)
    put(raw, queue, b"1", b"2")
    consume(other, queue)
    assert bodies(other, 2) == [b"1", b"2"]
    consume(raw, queue)
    if what == "channel":
        other.call(commands.Channel.Close(200, "", 0, 0), commands.Channel.CloseOk)
    else:
        other.send(commands.Connection.Close(200, "", 0, 0), 0)
        other.expect(commands.Connection.CloseOk)
    got = [delivery(raw) for _ in range(2)]
    assert [(data, headers) for _, headers, data in got] == [(b"1", {}), (b"2", {})]


def test_an_auto_delete_queue_goes_with_its_last_consumer(raw: Raw, other: Raw) -> None:
    queue = declare(raw, exclusive=False, auto_delete=True)
    tags = [consume(raw, queue), consume(raw, queue)]
    raw.call(Basic.Cancel(consumer_tag=tags[0]), Basic.CancelOk)
    assert depth(raw, queue) == 0
    raw.call(Basic.Cancel(consumer_tag=tags[1]), Basic.CancelOk)
    raw.send(Queue.Declare(queue=queue, passive=True))
    assert raw.expect(commands.Channel.Close).reply_code == 404


def test_a_deleted_queue_cancels_its_consumers(raw: Raw, other: Raw) -> None:
    queue = declare(raw, exclusive=False)
    put(raw, queue, b"1")
    tag = consume(other, queue)
    assert bodies(other, 1) == [b"1"]
    raw.send(Queue.Delete(queue=queue, if_unused=True))
    assert raw.expect(commands.Channel.Close).reply_code == 406
    raw.send(commands.Channel.CloseOk())
    raw.call(commands.Channel.Open(), commands.Channel.OpenOk)
    assert raw.call(Queue.Delete(queue=queue), Queue.DeleteOk).message_count == 1
    assert other.expect(Basic.Cancel).consumer_tag == tag
    other.send(Basic.Ack(delivery_tag=1))  # late, and harmless
    sync(other)


def test_a_client_that_reads_nothing_is_bounded_and_hinders_nobody(raw: Raw, other: Raw) -> None:
    queue = declare(raw, exclusive=False, auto_delete=True)
    other.call(Basic.Qos(prefetch_count=0), Basic.QosOk)
    other.send(Basic.Consume(queue=queue))
    for _ in range(40):
        put(raw, queue, *[bytes(100_000)] * 10)
    # 40 MB were published; sockets and buffers hold a few of them.
    assert depth(raw, queue) > 150


def test_returns_that_nobody_reads_are_bounded(raw: Raw, other: Raw) -> None:
    other.socket.settimeout(2)
    sent = 0
    with pytest.raises(TimeoutError):
        while sent < 2000:
            other.publish(bytes(100_000), "nobody", mandatory=True)
            sent += 1
    assert sent * 100_000 < 60 << 20  # returned or in the sockets, and then the daemon stopped to read
    sync(raw)


# restarts


@pytest.fixture
def channel_of(daemon: Callable[..., Daemon]) -> Iterator[Callable[[Daemon], BlockingChannel]]:
    connections: list[pika.BlockingConnection] = []

    def connect(target: Daemon) -> BlockingChannel:
        host, port = target.address("amqp")
        connections.append(pika.BlockingConnection(pika.ConnectionParameters(host, port)))
        channel = connections[-1].channel()
        channel.confirm_delivery()
        return channel

    yield connect
    for connection in connections:
        with contextlib.suppress(pika.exceptions.AMQPError):  # the daemon was killed under it
            connection.close()


def test_what_is_durable_survives_kill(
    daemon: Callable[..., Daemon], channel_of: Callable[[Daemon], BlockingChannel]
) -> None:
    server = daemon()
    channel = channel_of(server)
    channel.exchange_declare("kept", "topic", durable=True)
    channel.exchange_declare("lost", "topic")
    arguments = {"x-message-ttl": 600_000, "x-queue-type": "quorum"}
    channel.queue_declare("kept", durable=True, arguments=arguments)
    channel.queue_declare("lost")
    channel.queue_bind("kept", "kept", "a.*")
    channel.queue_bind("kept", "lost", "a.*")
    channel.basic_publish("kept", "a.b", b"body", pika.BasicProperties(delivery_mode=2))
    server.kill()
    server.start()
    channel = channel_of(server)
    assert channel.queue_declare("kept", durable=True, arguments=arguments).method.message_count == 1
    channel.exchange_declare("kept", "topic", durable=True)
    channel.basic_publish("kept", "a.c", b"more", mandatory=True)
    assert [channel.basic_get("kept", auto_ack=True)[2] for _ in range(2)] == [b"body", b"more"]
    for exchange, queue in (("lost", ""), ("", "lost")):
        fresh = channel_of(server)
        with pytest.raises(pika.exceptions.ChannelClosedByBroker) as raised:
            if exchange:
                fresh.exchange_declare(exchange, passive=True)
            else:
                fresh.queue_declare(queue, passive=True)
        assert raised.value.reply_code == 404
    with pytest.raises(pika.exceptions.ChannelClosedByBroker) as raised:
        channel.queue_declare("kept", durable=True)
    assert raised.value.reply_code == 406 and "x-message-ttl" in raised.value.reply_text


def test_stopping_waits_for_acks_and_says_320(daemon: Callable[..., Daemon]) -> None:
    server = daemon({**CONFIG, "drain_timeout": "10s"})
    idle, busy = Raw(server.address("amqp")), Raw(server.address("amqp"))
    for client in (idle, busy):
        client.login()
    busy.publish(b"1", "once")
    consume(busy, "once", prefetch=1)
    assert bodies(busy, 1) == [b"1"]
    busy.publish(b"2", "once")
    sync(busy)
    server.process.signal(15)
    assert idle.expect(commands.Connection.Close).reply_code == 320
    idle.send(commands.Connection.CloseOk(), 0)
    busy.send(Basic.Ack(delivery_tag=1))
    assert busy.expect(commands.Connection.Close).reply_code == 320  # and no second delivery
    busy.send(commands.Connection.CloseOk(), 0)
    assert server.exit_status() == 0
    for client in (idle, busy):
        client.close()
    server.start()
    again = Raw(server.address("amqp"))
    again.login()
    found = get(again, "once")
    assert found is not None and found[2] == b"2"
    again.close()


def test_all_listeners_of_a_daemon_share_what_is_declared(daemon: Callable[..., Daemon]) -> None:
    one_more = {"type": "amqp", "listen": "127.0.0.1:0"}
    server = daemon({"transports": {"amqp": one_more, "second": one_more}})
    first, second = Raw(server.address("amqp")), Raw(server.address("second"))
    for client in (first, second):
        client.login()
    first.call(commands.Exchange.Declare(exchange="shared"), commands.Exchange.DeclareOk)
    queue = declare(first)
    first.call(Queue.Bind(queue=queue, exchange="shared", routing_key="k"), Queue.BindOk)
    second.publish(b"x", "k", "shared", properties={"headers": {"b": 1, "a": 2}})
    consume(first, queue)
    _, headers, data = delivery(first)
    assert (headers, data) == ({"b": 1, "a": 2}, b"x")
    second.send(Queue.Declare(queue=queue, exclusive=True))
    assert second.expect(commands.Channel.Close).reply_code == 405
    for client in (first, second):
        client.close()
