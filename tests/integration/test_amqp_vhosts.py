"""Virtual hosts: the same name in two of them is two things, and a client sees the names of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pamqp import commands

from tests.harness.daemon import Daemon
from tests.integration.amqp_calls import bind, consume, declare, delivery, depth, exchange, get, put, refused, sync
from tests.integration.amqp_raw import Raw

Basic, Exchange, Queue = commands.Basic, commands.Exchange, commands.Queue
CONFIG: dict[str, Any] = {
    "queues": {"vhost.blue/configured": {}},
    "routes": [{"from": "plant/#", "to": "vhost.blue/configured"}],
    "transports": {
        "mqtt": {"type": "mqtt", "listen": "127.0.0.1:0"},
        "amqp": {"type": "amqp", "listen": "127.0.0.1:0", "vhosts": ["blue", "green"]},
    },
}
Connect = Callable[[str], Raw]


def login(server: Daemon, vhost: str) -> Raw:
    raw = Raw(server.address("amqp"))
    raw.login(vhost=vhost)
    raw.call(commands.Confirm.Select(), commands.Confirm.SelectOk)
    return raw


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path_factory.mktemp("vhosts"), CONFIG)
    try:
        yield daemon.start()
    finally:
        daemon.close()


@pytest.fixture
def connect(server: Daemon) -> Iterator[Connect]:
    clients: list[Raw] = []

    def make(vhost: str) -> Raw:
        clients.append(login(server, vhost))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def root(connect: Connect) -> Raw:
    return connect("/")


@pytest.fixture
def blue(connect: Connect) -> Raw:
    return connect("blue")


def test_another_virtual_host_is_530(server: Daemon) -> None:
    raw = Raw(server.address("amqp"))
    with pytest.raises(AssertionError, match=r"vhost .red. not found"):
        raw.login(vhost="red")
    raw.close()


def test_queues_of_one_name_are_two(root: Raw, blue: Raw, connect: Connect) -> None:
    green = connect("green")
    for raw in (root, blue):
        declare(raw, queue="jobs")
    put(root, "jobs", b"root")
    put(blue, "jobs", b"blue", b"blue")
    assert (depth(root, "jobs"), depth(blue, "jobs")) == (1, 2)
    found = get(blue, "jobs")
    assert found is not None and found[2] == b"blue"
    assert (found[0].exchange, found[0].routing_key) == ("", "jobs")
    blue.call(Queue.Delete(queue="jobs"), Queue.DeleteOk)
    assert depth(root, "jobs") == 1
    for method in (
        Queue.Declare(queue="jobs", passive=True),
        Queue.Purge(queue="jobs"),
        Queue.Bind(queue="jobs", exchange="amq.topic"),
        Basic.Consume(queue="jobs"),
        Basic.Get(queue="jobs"),
    ):
        green.send(method)
        refused(green, 404, "no queue 'jobs' in vhost 'green'")
    green.publish(b"x", "jobs", mandatory=True)
    assert green.expect(Basic.Return).routing_key == "jobs"


def test_a_name_that_the_server_makes_is_the_client_s(blue: Raw) -> None:
    queue = declare(blue)
    assert queue.startswith("amq.gen-")
    put(blue, queue, b"x")
    consume(blue, "")
    assert delivery(blue)[0].routing_key == queue


def test_exchanges_of_one_name_are_two(root: Raw, blue: Raw) -> None:
    for raw in (root, blue):
        exchange(raw, "events", "fanout", auto_delete=True)
        exchange(raw, "behind", "direct", auto_delete=True)
        bind(raw, declare(raw, queue="all"), "events")
        bind(raw, declare(raw, queue="some"), "behind", "a.b")
        bind(raw, "some", "amq.topic", "shop.*")
        raw.call(Exchange.Bind(source="events", destination="behind", routing_key="a.b"), Exchange.BindOk)
    put(blue, "a.b", b"1", exchange="events")
    put(blue, "shop.x", b"2", exchange="amq.topic")
    assert (depth(root, "all"), depth(root, "some")) == (0, 0)
    found = [get(blue, "all"), get(blue, "some"), get(blue, "some")]
    assert [(one[0].exchange, one[0].routing_key) for one in found if one] == [
        ("events", "a.b"),
        ("events", "a.b"),
        ("amq.topic", "shop.x"),
    ]
    put(root, "shop.y", b"3", exchange="amq.topic")
    assert (depth(root, "some"), depth(blue, "some")) == (1, 0)
    blue.send(Exchange.Declare(exchange="events", exchange_type="direct"))
    refused(blue, 406, "exchange 'events' in vhost 'blue'")
    blue.send(Exchange.Delete(exchange="amq.topic"))
    refused(blue, 403)


def test_an_alternate_is_in_the_same_virtual_host(root: Raw, blue: Raw) -> None:
    for raw in (root, blue):
        exchange(raw, "lost", "fanout")
        bind(raw, declare(raw, queue="lost"), "lost")
    arguments = {"alternate-exchange": "lost"}
    exchange(blue, "narrow", "direct", arguments=arguments)
    exchange(blue, "narrow", "direct", arguments=arguments)
    put(blue, "x", b"1", exchange="narrow")
    assert (depth(root, "lost"), depth(blue, "lost")) == (0, 1)
    blue.send(Exchange.Declare(exchange="narrow", exchange_type="direct"))
    assert "current is 'lost'" in refused(blue, 406, "alternate-exchange")
    for raw, names in ((root, ("lost",)), (blue, ("narrow", "lost"))):
        for name in names:
            raw.call(Exchange.Delete(exchange=name), Exchange.DeleteOk)


@pytest.mark.parametrize("key", [None, "dead"])
@pytest.mark.parametrize("through", ["", "amq.direct"])
def test_dead_letters_stay_and_tell_the_client_s_names(root: Raw, blue: Raw, through: str, key: str | None) -> None:
    target = key or "first.jobs"
    arguments = {"x-dead-letter-exchange": through} | ({"x-dead-letter-routing-key": key} if key else {})
    for raw in (root, blue):
        declare(raw, queue="dead")
        if through:
            bind(raw, "dead", through, target)
    queue = declare(blue, arguments, queue="first.jobs" if through else "first")
    declare(blue, arguments, queue="first.jobs" if through else "first")  # once more is no other
    if not through and key is None:
        target = "dead"
        bind(blue, queue, "amq.topic", "dead")
        put(blue, "dead", b"x", exchange="amq.topic")
    else:
        put(blue, queue, b"x")
    found = get(blue, queue, no_ack=False)
    assert found is not None
    blue.send(Basic.Reject(delivery_tag=found[0].delivery_tag, requeue=False))
    sync(blue)
    consume(blue, "dead")
    method, headers, _ = delivery(blue)
    assert (method.exchange, method.routing_key) == (through, target)
    [death] = headers["x-death"]
    sent = ("amq.topic", ["dead"]) if not through and key is None else ("", [queue])
    assert (death["queue"], death["exchange"], death["routing-keys"]) == (queue, *sent)
    assert (headers["x-first-death-queue"], headers["x-first-death-exchange"]) == (queue, sent[0])
    assert depth(root, "dead") == 0


def test_an_answer_comes_back_within_the_virtual_host(blue: Raw, connect: Connect) -> None:
    worker = connect("blue")
    declare(worker, queue="rpc")
    consume(worker, "rpc", no_ack=True)
    own = declare(blue, queue="answers")
    consume(blue, "amq.rabbitmq.reply-to", no_ack=True)
    blue.call(Basic.Consume(queue=own, no_ack=True), Basic.ConsumeOk)
    for reply_to in ("amq.rabbitmq.reply-to", own):
        blue.publish(b"?", "rpc", properties={"reply_to": reply_to})
        assert isinstance(blue.read(), Basic.Ack)
        worker.expect(Basic.Deliver)
        asked = worker.read().properties
        worker.read()
        assert asked.reply_to.startswith(reply_to)
        put(worker, asked.reply_to, b"!")
        method, _, body = delivery(blue)
        assert (method.routing_key, body) == (asked.reply_to, b"!")


def test_copies_stay_too(root: Raw, blue: Raw) -> None:
    for raw in (root, blue):
        declare(raw, queue="copy")
    put(blue, declare(blue), b"x", headers={"BCC": ["copy"]})
    assert (depth(root, "copy"), depth(blue, "copy")) == (0, 1)


@pytest.mark.parametrize("vhost", ["/", "blue", "green"])
def test_the_whole_names_are_nobody_s(connect: Connect, vhost: str) -> None:
    raw = connect(vhost)
    for method in (
        Queue.Declare(queue="vhost.blue/configured", passive=True),
        Queue.Declare(queue="vhost.blue/mine"),
        Queue.Declare(queue="x", arguments={"x-dead-letter-exchange": "vhost.blue/amq.topic"}),
        Queue.Declare(
            queue="x", arguments={"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "vhost.blue/configured"}
        ),
        Exchange.Declare(exchange="vhost.blue/mine"),
        Exchange.Declare(exchange="mine", arguments={"alternate-exchange": "vhost.blue/amq.topic"}),
        Exchange.Bind(source="vhost.blue/amq.topic", destination="amq.fanout"),
        Basic.Consume(queue="vhost.blue/configured"),
    ):
        raw.send(method)
        refused(raw, 403, "vhost.")
    for exchange_name, key, headers in (
        ("", "vhost.blue/configured", {}),
        ("vhost.blue/amq.topic", "x", {}),
        ("", "nobody", {"CC": ["vhost.blue/configured"]}),
    ):
        raw.publish(b"x", key, exchange_name, properties={"headers": headers})
        refused(raw, 403)
    assert raw.is_alive()


def test_a_queue_of_the_configuration_may_be_in_one(blue: Raw, root: Raw) -> None:
    raw_queue = declare(root)
    bind(root, raw_queue, "amq.topic", "plant.#")
    put(root, "plant.1", b"by route", exchange="amq.topic")
    assert (depth(blue, "configured"), depth(root, raw_queue)) == (1, 1)
    found = get(blue, "configured")
    assert found is not None and (found[0].exchange, found[0].routing_key) == ("amq.topic", "plant.1")
    blue.send(Queue.Delete(queue="configured"))
    refused(blue, 403, "queue 'configured'")


def test_what_is_durable_comes_back(daemon: Callable[..., Daemon]) -> None:
    server = daemon(CONFIG)
    raw = login(server, "blue")
    declare(raw, queue="kept", durable=True, exclusive=False)
    exchange(raw, "kept", "fanout", durable=True)
    bind(raw, "kept", "amq.direct", "k")
    raw.call(Exchange.Bind(source="kept", destination="amq.direct", routing_key=""), Exchange.BindOk)
    put(raw, "kept", b"1")
    raw.close()
    server.kill()
    server.start()
    raw = login(server, "blue")
    put(raw, "k", b"2", exchange="amq.direct")
    put(raw, "k", b"3", exchange="kept")
    assert depth(raw, "kept") == 3
    root = login(server, "/")
    root.send(Queue.Declare(queue="kept", passive=True))
    refused(root, 404, "no queue 'kept' in vhost '/'")
    for client in (raw, root):
        client.close()
