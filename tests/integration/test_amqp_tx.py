"""Transactions: nothing before tx.commit, everything after it, and nothing after tx.rollback."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pamqp import commands

from tests.harness.daemon import Daemon
from tests.harness.process import Address
from tests.integration.amqp_calls import bodies, consume, content, declare, delivery, depth, get, refused, sync
from tests.integration.amqp_raw import Raw

Basic, Channel, Queue, Tx = commands.Basic, commands.Channel, commands.Queue, commands.Tx
CONFIG: dict[str, Any] = {
    "queues": {"jobs": {"dead_letter": "dead"}, "dead": {}, "results": {}, "small": {"max_messages": 1}},
    "transports": {"amqp": {"type": "amqp", "listen": "127.0.0.1:0", "max_unconfirmed": 50, "max_unacked": 60}},
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    """One daemon for all: each test has queues of its own, or empties what it uses."""
    daemon = Daemon(tmp_path_factory.mktemp("amqp"), CONFIG)
    try:
        yield daemon.start().address("amqp")
    finally:
        daemon.close()


@pytest.fixture
def connect(server: Address) -> Iterator[Callable[..., Raw]]:
    clients: list[Raw] = []

    def make() -> Raw:
        clients.append(Raw(server))
        clients[-1].login()
        return clients[-1]

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def raw(connect: Callable[..., Raw]) -> Raw:
    client = connect()
    client.call(Tx.Select(), Tx.SelectOk)
    return client


@pytest.fixture
def other(connect: Callable[..., Raw]) -> Raw:
    return connect()


def commit(raw: Raw) -> None:
    raw.call(Tx.Commit(), Tx.CommitOk)


def rollback(raw: Raw) -> None:
    raw.call(Tx.Rollback(), Tx.RollbackOk)


def test_what_is_published_is_there_after_the_commit(raw: Raw) -> None:
    queue = declare(raw)
    for body in (b"1", b"2"):
        raw.publish(body, queue)
    assert depth(raw, queue) == 0
    commit(raw)
    assert depth(raw, queue) == 2
    raw.publish(b"3", queue)
    rollback(raw)
    commit(raw)  # of nothing
    assert depth(raw, queue) == 2


def test_what_is_acknowledged_comes_again_after_a_rollback_and_a_close(raw: Raw, other: Raw) -> None:
    queue = declare(raw, exclusive=False)
    for body in (b"1", b"2", b"3"):
        other.publish(body, queue)
    sync(other)
    consume(raw, queue, prefetch=2)
    assert bodies(raw, 2) == [b"1", b"2"]
    raw.send(Basic.Ack(delivery_tag=2, multiple=True))
    sync(raw)  # no third: the credit is free after the commit alone
    rollback(raw)
    raw.send(Basic.Ack(delivery_tag=1))  # it is open again, and so is the other
    commit(raw)
    assert bodies(raw, 1) == [b"3"]
    raw.send(Basic.Ack(delivery_tag=2))
    raw.call(Channel.Close(0, "", 0, 0), Channel.CloseOk)
    assert sorted(found[2] for _ in range(2) if (found := get(other, queue))) == [b"2", b"3"]
    other.call(Queue.Delete(queue=queue), Queue.DeleteOk)


def test_an_acknowledgement_of_nothing_is_406_at_once(raw: Raw) -> None:
    raw.send(Basic.Ack(delivery_tag=7))
    refused(raw, 406, "unknown delivery tag")


def test_a_delivery_is_settled_once(raw: Raw, other: Raw) -> None:
    queue = declare(raw)
    raw.publish(b"1", queue)
    commit(raw)
    consume(raw, queue)
    assert bodies(raw, 1) == [b"1"]
    raw.send(Basic.Ack(delivery_tag=1), Basic.Ack(delivery_tag=1))
    refused(raw, 406, "unknown delivery tag 1")


def test_rejected_deliveries_take_effect_with_the_commit(raw: Raw, other: Raw) -> None:
    for body in (b"again", b"dead"):
        other.publish(body, "jobs")
    sync(other)
    consume(raw, "jobs")
    assert bodies(raw, 2) == [b"again", b"dead"]
    raw.send(Basic.Reject(delivery_tag=1, requeue=True), Basic.Nack(delivery_tag=2, requeue=False))
    sync(raw)
    assert depth(other, "dead") == 0
    raw.send(Tx.Commit())
    found = [raw.read()]
    while not isinstance(found[-1], Tx.CommitOk):
        found.append(raw.read())
    again = found[0] if isinstance(found[0], Basic.Deliver) else delivery(raw)[0]
    assert again.redelivered
    assert depth(other, "dead") == 1
    raw.send(Basic.Ack(delivery_tag=again.delivery_tag))
    commit(raw)
    assert get(other, "dead") is not None and get(other, "jobs") is None


def test_what_is_unroutable_comes_back_before_commit_ok(raw: Raw) -> None:
    raw.publish(b"x", "nobody", mandatory=True)
    raw.send(Tx.Commit())
    assert raw.expect(Basic.Return).reply_code == 312
    assert content(raw)[1] == b"x"
    raw.expect(Tx.CommitOk)


def test_a_refused_message_fails_the_commit_and_acknowledges_nothing(raw: Raw, other: Raw) -> None:
    other.publish(b"job", "jobs")
    sync(other)
    consume(raw, "jobs")
    assert bodies(raw, 1) == [b"job"]
    for body in (b"1", b"2"):
        raw.publish(body, "small")
    raw.send(Basic.Ack(delivery_tag=1), Tx.Commit())
    refused(raw, 406, "partial tx completion")
    assert get(other, "small") is not None and get(other, "small") is None
    assert get(other, "jobs") is not None


def test_copies_and_delays_are_those_of_each_message(raw: Raw) -> None:
    first, second = declare(raw), declare(raw)
    for body in (b"1", b"2", b"3"):
        raw.publish(body, first, properties={"headers": {"BCC": [second]}} if body == b"2" else {})
    commit(raw)
    found = get(raw, second)
    assert found is not None and found[2] == b"2" and depth(raw, first) == 3


def test_a_transaction_has_its_limit(raw: Raw, other: Raw) -> None:
    for _ in range(51):
        raw.publish(b"x", "results")
    assert raw.expect(commands.Connection.Close).reply_code == 506
    assert other.is_alive()


def test_what_is_acknowledged_and_not_committed_counts_as_unacknowledged(raw: Raw, other: Raw) -> None:
    for _ in range(61):
        other.publish(b"job", "jobs")
    sync(other)
    for tag in range(1, 61):
        assert get(raw, "jobs", no_ack=False) is not None
        raw.send(Basic.Ack(delivery_tag=tag))
    raw.send(Basic.Get(queue="jobs"))
    refused(raw, 406, "60 deliveries are unacknowledged")
    other.call(Queue.Purge(queue="jobs"), Queue.PurgeOk)


@pytest.mark.parametrize("first", ["tx", "confirm"])
def test_a_channel_has_transactions_or_confirms(other: Raw, first: str) -> None:
    tx, confirm = (Tx.Select(), Tx.SelectOk), (commands.Confirm.Select(), commands.Confirm.SelectOk)
    other.call(*(tx if first == "tx" else confirm))
    other.send((confirm if first == "tx" else tx)[0])
    refused(other, 406, "cannot switch")


@pytest.mark.parametrize("publishes", [True, False])
def test_a_stopping_daemon_waits_for_the_commit(daemon: Callable[..., Daemon], publishes: bool) -> None:
    server = daemon({**CONFIG, "drain_timeout": "10s"})
    raw = Raw(server.address("amqp"))
    raw.login()
    raw.publish(b"job", "jobs")
    raw.call(Tx.Select(), Tx.SelectOk)
    consume(raw, "jobs")
    assert bodies(raw, 1) == [b"job"]
    if publishes:
        raw.publish(b"result", "results")
    raw.send(Basic.Ack(delivery_tag=1))
    sync(raw)
    server.process.signal(15)
    server.wait_for("draining")
    commit(raw)
    assert raw.expect(commands.Connection.Close).reply_code == 320
    raw.send(commands.Connection.CloseOk(), 0)
    assert server.exit_status() == 0
    raw.close()
    server.start()
    again = Raw(server.address("amqp"))
    again.login()
    assert get(again, "jobs") is None and (get(again, "results") is not None) == publishes
    again.close()


def test_a_commit_outlives_a_kill_and_what_is_not_committed_does_not(daemon: Callable[..., Daemon]) -> None:
    server = daemon(CONFIG)
    raw, other = Raw(server.address("amqp")), Raw(server.address("amqp"))
    for client in (raw, other):
        client.login()
    raw.call(Tx.Select(), Tx.SelectOk)
    for body in (b"1", b"2"):
        other.publish(body, "jobs")
    sync(other)
    consume(raw, "jobs")
    assert bodies(raw, 2) == [b"1", b"2"]
    for result, tag in ((b"r1", 1), (b"r2", 2)):
        raw.publish(result, "results")
        raw.send(Basic.Ack(delivery_tag=tag))
        if tag == 1:
            commit(raw)
    sync(raw)
    for client in (raw, other):
        client.close()
    server.kill()
    server.start()
    again = Raw(server.address("amqp"))
    again.login()
    found = [get(again, queue) for queue in ("jobs", "jobs", "results", "results")]
    assert [one and one[2] for one in found] == [b"2", None, b"r1", None]
    again.close()
