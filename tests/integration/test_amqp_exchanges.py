"""Exchanges that lead to exchanges: bindings between them, alternates, delayed exchanges; also over a restart."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from pamqp import commands

from tests.harness.daemon import Daemon
from tests.harness.process import Address
from tests.integration.amqp_calls import bind, bodies, consume, declare, depth, exchange, get, put, refused, sync
from tests.integration.amqp_raw import Raw

Basic, Exchange, Queue = commands.Basic, commands.Exchange, commands.Queue


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    """One daemon for all: each test has exchanges of its own."""
    daemon = Daemon(tmp_path_factory.mktemp("amqp"), {})
    try:
        yield daemon.start().address("amqp")
    finally:
        daemon.close()


@pytest.fixture
def raw(server: Address) -> Iterator[Raw]:
    client = login(server)
    yield client
    client.close()


def login(server: Address) -> Raw:
    client = Raw(server)
    client.login()
    client.call(commands.Confirm.Select(), commands.Confirm.SelectOk)
    return client


def bind_exchange(raw: Raw, source: str, destination: str, key: str = "", **options: object) -> None:
    method = Exchange.Bind(destination=destination, source=source, routing_key=key, **options)  # type: ignore[arg-type]
    raw.call(method, Exchange.BindOk)


def test_a_message_goes_on_from_exchange_to_exchange(raw: Raw) -> None:
    first, second, queue = exchange(raw, "on.1", "topic"), exchange(raw, "on.2", "direct"), declare(raw)
    bind_exchange(raw, first, second, "a.*")
    bind(raw, queue, second, "a.b")
    put(raw, "a.b", b"1", exchange=first)
    put(raw, "b.b", b"2", exchange=first)
    put(raw, "a.c", b"3", exchange=first)
    consume(raw, queue, no_ack=True)
    assert bodies(raw, 1) == [b"1"]
    raw.call(Exchange.Unbind(destination=second, source=first, routing_key="a.*"), Exchange.UnbindOk)
    put(raw, "a.b", b"4", exchange=first)
    sync(raw)


def test_what_comes_twice_is_one_message(raw: Raw) -> None:
    first, second, queue = exchange(raw, "twice.1"), exchange(raw, "twice.2"), declare(raw)
    bind_exchange(raw, first, second)
    bind_exchange(raw, second, first)
    for source in (first, second):
        bind(raw, queue, source)
    put(raw, "", b"1", exchange=first)
    put(raw, "", b"2", exchange=second)
    assert depth(raw, queue) == 2


def test_the_shared_topics_lead_on_too(raw: Raw) -> None:
    own, queue = exchange(raw, "shared.own", "fanout"), declare(raw)
    bind_exchange(raw, "amq.topic", own, "shared.*")
    bind(raw, queue, own)
    put(raw, "shared.x", b"1", exchange="amq.topic")
    found = get(raw, queue)
    assert found is not None and (found[0].exchange, found[0].routing_key) == ("amq.topic", "shared.x")


def test_headers_decide_what_goes_on_to_another_exchange(raw: Raw) -> None:
    first, second, queue = exchange(raw, "headed.1", "headers"), exchange(raw, "headed.2"), declare(raw)
    bind_exchange(raw, first, second, arguments={"x-match": "all", "kind": "a"})
    bind(raw, queue, second)
    put(raw, "", b"1", exchange=first, headers={"kind": "b"})
    put(raw, "", b"2", exchange=first, headers={"kind": "a"})
    assert depth(raw, queue) == 1


def test_what_an_exchange_leads_nowhere_goes_to_its_alternate(raw: Raw) -> None:
    rest, queue, lost = exchange(raw, "rest"), declare(raw), declare(raw)
    first = exchange(raw, "first", "direct", arguments={"alternate-exchange": rest})
    bind(raw, queue, first, "k")
    bind(raw, lost, rest)
    put(raw, "k", b"1", exchange=first)
    raw.publish(b"2", "other", first, mandatory=True)
    raw.expect(Basic.Ack)  # and no basic.return
    assert (depth(raw, queue), depth(raw, lost)) == (1, 1)
    raw.call(Queue.Unbind(queue=lost, exchange=rest), Queue.UnbindOk)
    raw.publish(b"3", "other", first, mandatory=True)
    assert raw.expect(Basic.Return).reply_code == 312


def test_an_alternate_may_come_later_and_again(raw: Raw) -> None:
    first, queue = exchange(raw, "early", "direct", arguments={"alternate-exchange": "late"}), declare(raw)
    for _ in range(2):
        bind(raw, queue, exchange(raw, "late"))
        put(raw, "x", b"1", exchange=first)
        raw.call(Exchange.Delete(exchange="late"), Exchange.DeleteOk)
        put(raw, "x", b"gone", exchange=first)
    assert depth(raw, queue) == 2


def test_an_exchange_that_goes_takes_its_bindings_along(raw: Raw) -> None:
    first, second = exchange(raw, "goes.1", auto_delete=True), exchange(raw, "goes.2")
    bind_exchange(raw, first, second)
    raw.send(Exchange.Delete(exchange=first, if_unused=True))
    refused(raw, 406, "in use")
    raw.call(Exchange.Delete(exchange=second), Exchange.DeleteOk)
    raw.send(Exchange.Declare(exchange=first, passive=True))  # it went with its last binding
    refused(raw, 404)


def test_a_delayed_exchange_is_one_of_its_type(raw: Raw) -> None:
    arguments = {"x-delayed-type": "direct"}
    name, queue = exchange(raw, "slow", "x-delayed-message", arguments=arguments), declare(raw)
    bind(raw, queue, name, "k")
    put(raw, "other", b"1", exchange=name)
    put(raw, "k", b"2", exchange=name, headers={"x-delay": 50})
    consume(raw, queue, no_ack=True)
    assert bodies(raw, 1) == [b"2"]


def test_a_redeclared_exchange_has_the_same_alternate(raw: Raw) -> None:
    for _ in range(2):
        exchange(raw, "same", arguments={"alternate-exchange": "a"})
    raw.send(Exchange.Declare(exchange="same", exchange_type="fanout", arguments={"alternate-exchange": "b"}))
    refused(raw, 406, "alternate-exchange")


def test_bindings_between_exchanges_survive_a_kill_if_both_ends_do(daemon: Callable[..., Daemon]) -> None:
    server = daemon({})
    raw = login(server.address("amqp"))
    exchange(raw, "source", "direct", durable=True, arguments={"alternate-exchange": "rest"})
    for name, durable in (("kept", True), ("rest", True), ("volatile", False)):
        exchange(raw, name, durable=durable)
        raw.call(Queue.Declare(queue=name, durable=True), Queue.DeclareOk)
        bind(raw, name, name)
    for _ in range(2):
        bind_exchange(raw, "source", "kept", "k")
    bind_exchange(raw, "source", "volatile", "k")
    raw.close()
    server.kill()
    server.start()
    raw = login(server.address("amqp"))
    put(raw, "k", b"1", exchange="source")
    put(raw, "other", b"2", exchange="source")
    assert [depth(raw, name) for name in ("kept", "rest", "volatile")] == [1, 1, 0]
    raw.close()
