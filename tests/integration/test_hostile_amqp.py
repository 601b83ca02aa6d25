"""AMQP clients and their neighbours at their worst, against a running daemon."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pamqp import body, frame, header
from pamqp.commands import Basic, Channel, Confirm, Connection, Exchange, Queue

from tests.harness.daemon import Daemon
from tests.harness.process import Address
from tests.integration.amqp_raw import Raw
from tests.integration.mqtt_raw import RawClient

Login = Callable[..., Raw]
CONFIG: dict[str, Any] = {
    "queues": {"jobs": {}, "slow": {"ack_timeout": "300ms", "max_deliveries": 100}, "lines": {"group": "{topic[1]}"}},
    "routes": [{"from": "lines/#", "to": "lines"}],
}


@pytest.fixture
def gateway(daemon: Callable[..., Daemon]) -> Daemon:
    return daemon({**CONFIG, "drain_timeout": "3s"})


@pytest.fixture
def login(gateway: Daemon) -> Iterator[Login]:
    made: list[Raw] = []

    def connect(address: Address | None = None, confirm: bool = False) -> Raw:
        made.append(Raw(address or gateway.address("amqp")))
        made[-1].login()
        if confirm:
            made[-1].call(Confirm.Select(), Confirm.SelectOk)
        return made[-1]

    yield connect
    for one in made:
        one.close()


def message(key: str, content: bytes = b"x", exchange: str = "", **properties: Any) -> list[Any]:
    return [
        Basic.Publish(exchange=exchange, routing_key=key),
        header.ContentHeader(0, len(content), Basic.Properties(delivery_mode=2, **properties)),
        *([body.ContentBody(content)] if content else []),
    ]


def content(raw: Raw) -> bytes:
    size = raw.expect(header.ContentHeader).body_size
    data = b""
    while len(data) < size:
        data += raw.expect(body.ContentBody).value
    return data


def delivered(raw: Raw) -> tuple[Any, bytes]:
    method = raw.read()
    assert isinstance(method, (Basic.Deliver, Basic.GetOk)), method
    return method, content(raw)


def depth(raw: Raw, queue: str) -> int:
    return int(raw.call(Queue.Declare(queue=queue, passive=True), Queue.DeclareOk).message_count)


def nothing_comes(raw: Raw) -> None:
    """But the answer to what is asked now."""
    raw.call(Exchange.Declare(exchange="amq.topic", passive=True), Exchange.DeclareOk)


# the order of what one channel does


def test_a_purge_takes_what_was_published_before_it(login: Login) -> None:
    raw = login()
    raw.send(*message("jobs"), *message("jobs"), Queue.Purge(queue="jobs"), *message("jobs", b"after"))
    assert raw.expect(Queue.PurgeOk).message_count == 2
    raw.send(Basic.Get(queue="jobs"))
    assert delivered(raw)[1] == b"after"


def test_a_declare_counts_what_was_published_before_it(login: Login) -> None:
    raw = login()
    raw.send(*message("jobs"), *message("jobs"))
    assert depth(raw, "jobs") == 2


def test_a_queue_is_not_empty_while_its_message_is_on_the_way_to_the_disk(login: Login) -> None:
    raw = login()
    raw.call(Queue.Declare(queue="mine", durable=True), Queue.DeclareOk)
    raw.send(*message("mine"), Queue.Delete(queue="mine", if_empty=True))
    assert raw.expect(Channel.Close).reply_code == 406
    assert depth(login(), "mine") == 1


def test_errors_behind_a_publish_name_their_method(login: Login) -> None:
    raw = login()
    raw.send(*message("jobs"), Queue.Purge(queue="nowhere"))
    closed = raw.expect(Channel.Close)
    assert (closed.reply_code, closed.class_id, closed.method_id) == (404, 50, 30)


def test_frames_behind_an_answer_that_waits_keep_their_order(login: Login) -> None:
    raw = login(confirm=True)
    frames: list[Any] = []
    for n in range(20):
        frames += [
            Queue.Declare(queue=f"order{n}", durable=True),
            *message(f"order{n}"),
            Queue.Purge(queue=f"order{n}"),
        ]
    raw.send(*frames)
    seen: list[tuple[str, object]] = []
    while len([one for one in seen if one[0] != "Basic.Ack"]) < 40:
        one = raw.read()
        seen.append((one.name, getattr(one, "queue", None) or getattr(one, "message_count", None)))
    answers = [one for one in seen if one[0] != "Basic.Ack"]
    assert answers == [
        one for n in range(20) for one in (("Queue.DeclareOk", f"order{n}"), ("Queue.PurgeOk", 1))
    ]  # fmt: skip


# confirms


def test_nothing_comes_on_a_channel_after_its_close_ok(login: Login) -> None:
    raw = login(confirm=True)
    for _ in range(20):
        raw.send(*message("jobs"), Channel.Close(200, "bye", 0, 0), Channel.Open())
        found = [raw.read()]
        while not isinstance(found[-1], Channel.OpenOk):
            found.append(raw.read())
        # A confirm may come before the close, never behind it: there it would be the next channel's.
        assert [type(one) for one in found[-2:]] == [Channel.CloseOk, Channel.OpenOk]
        nothing_comes(raw)
        raw.call(Confirm.Select(), Confirm.SelectOk)


def test_a_drain_confirms_all_that_it_took_and_ends_in_time(login: Login, gateway: Daemon) -> None:
    """A publisher that never stops must not keep the daemon, and what is stored is confirmed."""
    raw = login(confirm=True)
    batch = b"".join(frame.marshal(one, 1) for one in message("jobs", b"x" * 100)) * 100
    sent = acked = closed = 0

    def publish() -> None:
        nonlocal sent
        while not closed:
            try:
                raw.socket.sendall(batch)
            except OSError:
                return
            sent += 100

    def listen() -> None:
        nonlocal acked, closed
        while (one := raw.read()) is not None:
            if isinstance(one, Basic.Ack):
                acked = max(acked, one.delivery_tag)
            elif isinstance(one, Connection.Close):
                closed = int(one.reply_code or 0)
                raw.send(Connection.CloseOk(), 0)
                return

    threads = [threading.Thread(target=work) for work in (publish, listen)]
    for thread in threads:
        thread.start()
    while acked < 2000:
        time.sleep(0.01)
    began = time.monotonic()
    assert gateway.stop() == 0
    took = time.monotonic() - began
    for thread in threads:
        thread.join()
    assert closed == 320
    assert took < 2.5, "it should not have waited for the drain timeout"
    assert sent > acked
    gateway.start()
    assert depth(login(gateway.address("amqp")), "jobs") == acked


def test_a_drain_waits_for_the_ack_of_a_slow_worker(login: Login, gateway: Daemon) -> None:
    raw = login()
    raw.send(*message("jobs"), Basic.Consume(queue="jobs", consumer_tag="c"))
    raw.expect(Basic.ConsumeOk)
    taken, _ = delivered(raw)
    gateway.process.signal(15)
    gateway.wait_for("draining")
    time.sleep(1)
    assert gateway.running
    raw.send(Basic.Ack(taken.delivery_tag))
    assert raw.expect(Connection.Close).reply_code == 320
    raw.send(Connection.CloseOk(), 0)
    assert gateway.exit_status(3) == 0
    gateway.start()
    assert depth(login(gateway.address("amqp")), "jobs") == 0


# memory


def test_a_body_in_tiny_or_empty_frames_takes_no_more_than_its_bytes(login: Login, gateway: Daemon) -> None:
    raw = login()
    before = gateway.rss()
    raw.send(Basic.Publish(exchange="", routing_key="jobs"), header.ContentHeader(0, 2_000_001, Basic.Properties()))
    empty, two = frame.marshal(body.ContentBody(b""), 1), frame.marshal(body.ContentBody(b"ab"), 1)
    for _ in range(100):
        raw.socket.sendall((empty + two) * 10_000)
    raw.send(body.ContentBody(b"!"))
    assert depth(raw, "jobs") == 1
    assert gateway.rss() - before < 30 << 20


def test_a_topic_header_that_is_no_topic_name_is_a_header(login: Login, gateway: Daemon) -> None:
    raw = login(confirm=True)
    raw.call(Queue.Declare(queue="all"), Queue.DeclareOk)
    raw.call(Queue.Bind(queue="all", exchange="amq.topic", routing_key="#"), Queue.BindOk)
    before = gateway.rss()
    for n in range(20):
        raw.send(*message("", b"deep", "amq.topic", headers={"x-mqtt-topic": f"{n}" + "/a" * 60_000}))
        raw.expect(Basic.Ack)
    assert gateway.rss() - before < 40 << 20
    raw.send(Basic.Get(queue="all", no_ack=True))
    got = raw.expect(Basic.GetOk)
    assert got.routing_key == ""
    assert len(raw.expect(header.ContentHeader).properties.headers["x-mqtt-topic"]) == 120_001


def test_a_topic_header_opens_no_reserved_queue(login: Login, gateway: Daemon) -> None:
    client_id = "c" * 300
    with RawClient(gateway.address("mqtt")) as device:
        device.connect(client_id)
        raw = login()
        raw.send(*message("", b"not yours", "", headers={"x-mqtt-topic": "mqtt." + client_id}))
        assert raw.expect(Channel.Close).reply_code == 403
        device.nothing_comes()


def test_a_dead_letter_goes_to_no_reserved_queue(login: Login) -> None:
    raw = login()
    raw.send(Queue.Declare(arguments={"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "mqtt.victim"}))
    assert raw.expect(Channel.Close).reply_code == 406


# deliveries


def test_a_late_ack_frees_the_prefetch_and_changes_nothing_else(login: Login) -> None:
    raw, other = login(), login()
    raw.call(Basic.Qos(prefetch_count=2), Basic.QosOk)
    for n in range(3):
        raw.send(*message("slow", b"%d" % n))
    raw.call(Basic.Consume(queue="slow"), Basic.ConsumeOk)
    first = [delivered(raw) for _ in range(2)]
    time.sleep(0.7)
    nothing_comes(raw)  # its credit is still used
    for taken, _ in first:
        raw.send(Basic.Ack(taken.delivery_tag))
    again = [delivered(raw) for _ in range(2)]
    assert sorted(data for _, data in again) == [b"0", b"1"]
    for taken, _ in again:
        assert taken.redelivered
        raw.send(Basic.Ack(taken.delivery_tag))
    taken, data = delivered(raw)
    assert data == b"2"
    raw.send(Basic.Ack(taken.delivery_tag))
    nothing_comes(raw)
    assert depth(other, "slow") == 0


def test_what_was_handed_to_a_consumer_without_acks_does_not_come_again(login: Login) -> None:
    raw, other = login(), login()
    for _ in range(30):
        raw.send(*message("jobs"), Basic.Consume(queue="jobs", no_ack=True, nowait=True, consumer_tag="c"))
        raw.send(Channel.Close(200, "bye", 0, 0), Channel.Open())
        got = 0
        while not isinstance(one := raw.read(), Channel.OpenOk):
            got += isinstance(one, Basic.Deliver)
        left = other.call(Queue.Purge(queue="jobs"), Queue.PurgeOk).message_count
        assert got + left == 1


def test_get_finds_a_body_that_is_on_disk(daemon: Callable[..., Daemon], login: Login) -> None:
    server = daemon({**CONFIG, "max_memory": "1MB"})
    raw = login(server.address("amqp"), confirm=True)
    for n in range(20):
        raw.send(*message("jobs", b"%d" % n + bytes(100_000)))
    acked = 0
    while acked < 20:
        acked = raw.expect(Basic.Ack).delivery_tag
    for n in range(20):
        raw.send(Basic.Get(queue="jobs"))
        taken, data = delivered(raw)
        assert data.rstrip(b"\0") == b"%d" % n
        raw.send(Basic.Ack(taken.delivery_tag))
    raw.call(Basic.Get(queue="jobs"), Basic.GetEmpty)


def test_acks_of_a_queue_that_was_deleted_meanwhile_are_taken(login: Login) -> None:
    raw, other = login(), login()
    raw.call(Queue.Declare(queue="gone"), Queue.DeclareOk)
    raw.call(Basic.Qos(prefetch_count=2, global_=True), Basic.QosOk)
    raw.send(*message("gone"), *message("gone"), *message("jobs"))
    raw.call(Basic.Consume(queue="gone"), Basic.ConsumeOk)
    tags = [delivered(raw)[0].delivery_tag for _ in range(2)]
    assert other.call(Queue.Delete(queue="gone"), Queue.DeleteOk).message_count == 2
    raw.expect(Basic.Cancel)
    raw.call(Basic.Consume(queue="jobs"), Basic.ConsumeOk)
    nothing_comes(raw)  # the prefetch of the channel is used
    raw.send(Basic.Ack(tags[1], multiple=True))
    assert delivered(raw)[1] == b"x"


def test_a_consumer_that_was_cancelled_may_still_ack_and_then_frees_its_group(login: Login) -> None:
    raw, other = login(), login()
    raw.send(*message("lines.a", b"1", "amq.topic"), *message("lines.a", b"2", "amq.topic"))
    raw.call(Basic.Consume(queue="lines", consumer_tag="c"), Basic.ConsumeOk)
    taken, data = delivered(raw)
    assert data == b"1"
    raw.call(Basic.Cancel(consumer_tag="c"), Basic.CancelOk)
    other.call(Basic.Consume(queue="lines"), Basic.ConsumeOk)
    nothing_comes(other)
    raw.send(Basic.Ack(taken.delivery_tag))
    assert delivered(other)[1] == b"2"
    raw.send(Basic.Ack(taken.delivery_tag))
    assert raw.expect(Channel.Close).reply_code == 406


def test_one_byte_at_a_time(login: Login) -> None:
    raw = login()
    raw.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    frames = [Confirm.Select(), *message("jobs", b"slowly"), Basic.Get(queue="jobs")]
    for octet in b"".join(frame.marshal(one, 1) for one in frames):
        raw.socket.send(bytes((octet,)))
    raw.expect(Confirm.SelectOk)
    found = [raw.read() for _ in range(4)]
    assert [one.value for one in found if isinstance(one, body.ContentBody)] == [b"slowly"]
    assert any(isinstance(one, Basic.Ack) for one in found)
