"""Clients that keep to the protocol and ask for too much: subscriptions, groups, keys, retained topics, channels.

Each thing has a limit that is said to the client and counted, the daemon's memory is bounded, and a good client is
served within a second all the while. `make abuse` runs them at full scale.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from pamqp import frame
from pamqp.body import ContentBody
from pamqp.commands import Basic, Channel, Connection, Exchange, Queue
from pamqp.header import ContentHeader

from tests.faults.abuse import FULL, MB, metric, scaled, serving
from tests.harness.daemon import Daemon
from tests.integration.amqp_raw import Raw
from tests.integration.mqtt_raw import RawClient
from transports.mqtt.packets import Ack, Disconnect, Publish, Reason, Request, SubAck, Subscribe, Unsubscribe

pytestmark = pytest.mark.timeout(600 if FULL else 60)
Make = Callable[..., Daemon]
BURST = 100
CONFIG: dict[str, Any] = {
    "queues": {
        "good": {},
        "lines": {"group": "{topic[1]}", "max_groups": scaled(1_000_000, 8000)},
        "once": {"dedup": {"key": "{topic[1]}", "window": "1h"}},
    },
    "routes": [{"from": f"{name}/#", "to": name} for name in ("good", "lines", "once")],
    "max_dedup_keys": scaled(1_000_000, 8000),
}


def login(server: Daemon) -> Raw:
    raw = Raw(server.address("amqp"))
    raw.login()
    return raw


def publish_many(client: RawClient, topics: list[str], content: bytes = b"x", retain: bool = False) -> list[int]:
    """At QoS 1, many ahead; the reasons of all PUBACKs."""
    reasons: list[int] = []
    for at in range(0, len(topics), BURST):
        some = topics[at : at + BURST]
        client.send(*[Publish(topic, content, 1, retain, False, n) for n, topic in enumerate(some, 1)])
        reasons += [client.expect(Ack).reason for _ in some]
    return reasons


# subscriptions and topics


def test_100_000_subscriptions_on_one_connection(daemon: Make) -> None:
    """Always in full: 1,000 are granted."""
    server = daemon(CONFIG)
    with serving(server, 30 * MB), RawClient(server.address("mqtt")) as client:
        client.connect("greedy")
        granted = refused = 0
        for at in range(0, 100_000, 500):
            client.send(Subscribe(1, tuple(Request(f"greedy/{n}/+/x", 1) for n in range(at, at + 500))))
            reasons = client.expect(SubAck).reasons
            granted += reasons.count(1)
            refused += reasons.count(Reason.QUOTA_EXCEEDED)
        assert (granted, refused) == (1000, 99_000)
        assert metric(server, "gateway_transport_refusals", transport="mqtt", reason="subscriptions") == 99_000


def test_subscriptions_as_large_as_they_can_be_have_one_limit_for_all_clients(daemon: Make) -> None:
    server = daemon({**CONFIG, "max_bindings": "20MB"})
    level = "/" + "l" * 500
    with serving(server, 60 * MB):
        clients = [RawClient(server.address("mqtt")) for _ in range(3)]
        reasons: list[int] = []
        for number, client in enumerate(clients):
            client.connect(f"greedy{number}")
            for n in range(100):
                reasons += client.subscribe(f"{number}-{n}" + level * 126)
        assert 50 < reasons.count(1) < 120
        assert reasons.count(Reason.QUOTA_EXCEEDED) == len(reasons) - reasons.count(1)
        assert metric(server, "gateway_refused", reason="bindings") == reasons.count(Reason.QUOTA_EXCEEDED)
        for client in clients:
            client.cut()
        with RawClient(server.address("mqtt")) as later:
            later.connect("later")
            deadline = time.monotonic() + 5
            while later.subscribe("a/b") != (1,):
                assert time.monotonic() < deadline, "what the others had is not given back"


def test_topics_of_10_000_levels(daemon: Make) -> None:
    server = daemon(CONFIG)
    deep = "/".join(["l"] * 10_000)
    with serving(server, 20 * MB):
        for n in range(scaled(1000, 50)):
            with RawClient(server.address("mqtt")) as client:
                client.connect()
                assert client.subscribe(f"{n}/{deep}") == (Reason.TOPIC_FILTER_INVALID,)
                assert client.unsubscribe(f"{n}/{deep}").reasons == (Reason.NO_SUBSCRIPTION_EXISTED,)
                client.send(Publish(f"{n}/{deep}", b"x", 1, packet_id=1))
                assert client.expect(Disconnect).reason == Reason.TOPIC_NAME_INVALID
    reason = Reason.TOPIC_NAME_INVALID.label
    refused = metric(server, "gateway_transport_protocol_errors", transport="mqtt", reason=reason)
    assert refused == scaled(1000, 50)


def test_subscribing_and_leaving_for_ever_leaves_nothing(daemon: Make) -> None:
    server = daemon(CONFIG)
    with serving(server, 20 * MB), RawClient(server.address("mqtt")) as client:
        client.connect("restless")
        for n in range(scaled(2000, 60)):
            filters = tuple(f"{n}/{m}/" + "d/" * 20 for m in range(100))
            client.send(Subscribe(1, tuple(Request(one, 1) for one in filters)), Unsubscribe(2, filters))
            client.receive()
            client.receive()


# names that messages make


@pytest.mark.parametrize(("queue", "reason"), [("lines", "groups"), ("once", "dedup-keys")])
def test_a_million_groups_and_a_million_dedup_keys(daemon: Make, queue: str, reason: str) -> None:
    """Full scale: 1,000,000 are taken, 1,000 more refused."""
    most, more = scaled(1_000_000, 8000), 1000
    server = daemon({**CONFIG, "max_memory": "32MB"})
    with serving(server, scaled(700, 60) * MB), RawClient(server.address("mqtt")) as client:
        client.connect("many")
        reasons = publish_many(client, [f"{queue}/{n}" for n in range(most + more)])
        assert reasons.count(0) == most
        assert reasons[most:] == [Reason.QUOTA_EXCEEDED] * more
        assert publish_many(client, [f"{queue}/7"]) == [0], "a name that is known is no new one"
        assert metric(server, "gateway_refused", reason=reason) == more
        assert metric(server, "gateway_queue_refused", queue=queue) == more


def test_a_flood_of_retained_topics(daemon: Make) -> None:
    """Full scale: 1,000,000 of 1 KB at the default limit of 64 MB."""
    count = scaled(1_000_000, 6000)
    limit = scaled(64, 4)
    server = daemon({**CONFIG, "max_retained": f"{limit}MB"})
    with serving(server, (2 * limit + 40) * MB), RawClient(server.address("mqtt")) as client:
        client.connect("keeper")
        topics = [f"kept/{n % 100}/{n}" for n in range(count)]
        reasons = publish_many(client, topics, b"x" * 1000, retain=True)
        kept = reasons.count(Reason.NO_MATCHING_SUBSCRIBERS)
        assert limit * 200 < kept < limit * 600
        assert reasons.count(Reason.QUOTA_EXCEEDED) == count - kept
        assert metric(server, "gateway_refused", reason="retained") == count - kept
        assert metric(server, "gateway_retained_messages") == kept
        assert metric(server, "gateway_retained_bytes") <= limit * MB
        assert publish_many(client, [topics[0], topics[-1]], b"", retain=True) == [Reason.NO_MATCHING_SUBSCRIBERS] * 2
        with RawClient(server.address("mqtt")) as reader:  # and a subscription gets them as it takes them
            reader.connect("reader")
            reader.subscribe("kept/7/+")
            found = {reader.take()[0] for _ in range(5)}
            assert len(found) == 5


def test_a_flood_of_a_queue_that_is_in_memory_alone(daemon: Make) -> None:
    server = daemon({**CONFIG, "queues": {**CONFIG["queues"], "ram": {"durable": False}}, "max_memory": "16MB"})
    with serving(server, 60 * MB), RawClient(server.address("mqtt")) as client:
        client.connect("flood")
        reasons = publish_many(client, ["$queue/ram"] * scaled(100_000, 3000), bytes(10_000))
        assert 1000 < reasons.count(0) < 1800
        assert reasons.count(Reason.QUOTA_EXCEEDED) == len(reasons) - reasons.count(0)
        assert metric(server, "gateway_queue_refused", queue="ram") == reasons.count(Reason.QUOTA_EXCEEDED)


# AMQP


def test_channels_by_the_thousand(daemon: Make) -> None:
    server = daemon(CONFIG)
    connections = [login(server) for _ in range(scaled(100, 5))]
    with serving(server, scaled(600, 40) * MB):
        for raw in connections:
            raw.socket.sendall(b"".join(frame.marshal(Channel.Open(), number) for number in range(2, 2049)))
            for _ in range(2, 2048):
                raw.expect(Channel.OpenOk)
            assert raw.expect(Connection.Close).reply_code == 530
            raw.send(Connection.CloseOk(), 0)
            assert raw.read() is None
            raw.close()
    assert metric(server, "gateway_transport_protocol_errors", reason="not-allowed") == len(connections)


def test_consumers_by_the_thousand(daemon: Make) -> None:
    server = daemon(CONFIG)
    with serving(server, 40 * MB):
        for _ in range(scaled(20, 2)):
            raw = login(server)
            raw.send(Channel.Open(), channel=2)
            raw.expect(Channel.OpenOk)
            for n in range(1000):
                raw.send(Basic.Consume(queue="lines", consumer_tag=f"c{n}", nowait=True), channel=n % 2 + 1)
            raw.send(Basic.Consume(queue="lines", consumer_tag="more"))
            assert raw.expect(Connection.Close).reply_code == 506
            raw.close()
    assert metric(server, "gateway_transport_protocol_errors", reason="resource-error") == scaled(20, 2)


def test_queues_exchanges_and_bindings_without_end(daemon: Make) -> None:
    """Full scale: the default limits of 10,000 queues, 1,000 exchanges, 10,000 bindings of one queue."""
    limits = {} if FULL else {"max_queues": 300, "max_exchanges": 100, "max_bindings": 200}
    own = {"type": "amqp", "listen": "127.0.0.1:0"}
    mqtt = {"type": "mqtt", "listen": "127.0.0.1:0"}
    transports = {"mqtt": mqtt, "amqp": {**own, **limits}, "good": own}
    server = daemon({**CONFIG, "transports": transports})
    queues, exchanges, bindings = (10_000, 1000, 10_000) if FULL else (300, 100, 200)
    floods = [
        (queues, lambda n: Queue.Declare(queue=f"q{n}", nowait=True)),
        (exchanges, lambda n: Exchange.Declare(exchange=f"e{n}", exchange_type="topic", nowait=True)),
        (bindings, lambda n: Queue.Bind(queue="good", exchange="amq.topic", routing_key=f"{n}.a.b", nowait=True)),
    ]
    with serving(server, scaled(200, 30) * MB, "mqtt", "good"):
        for most, make in floods:
            raw = login(server)
            raw.socket.settimeout(120)  # each binding of a durable queue waits for the disk
            most += -1 if make is floods[2][1] else 0  # the route is one of its bindings
            for at in range(0, most, 50):
                raw.send(*[make(n) for n in range(at, min(most, at + 50))])
            assert isinstance(raw.call(Queue.Declare(queue="good", passive=True), Queue.DeclareOk), Queue.DeclareOk)
            raw.send(make(most + 1))
            closed = raw.expect(Connection.Close)
            assert closed.reply_code == 506, closed.reply_text
            raw.close()
        raw = login(server)
        raw.send(Queue.Delete(queue="q0", nowait=True), Queue.Declare(queue="another"))
        assert raw.expect(Queue.DeclareOk).queue == "another", "one that is deleted makes room"
        raw.close()


def test_a_long_queue_is_purged_and_deleted_while_others_are_served(daemon: Make) -> None:
    """Full scale: 1,000,000 messages in each of two."""
    count = scaled(1_000_000, 20_000)
    server = daemon({**CONFIG, "max_memory": "32MB"})
    raw = login(server)
    for name in ("purged", "deleted"):
        raw.call(Queue.Declare(queue=name, durable=True), Queue.DeclareOk)
        raw.call(Queue.Bind(queue=name, exchange="amq.topic", routing_key="bulk.#"), Queue.BindOk)
    with RawClient(server.address("mqtt")) as client:
        client.connect("many")
        assert publish_many(client, [f"bulk/{n}" for n in range(count)]).count(0) == count
    raw.socket.settimeout(60)
    with serving(server, scaled(200, 20) * MB):
        assert raw.call(Queue.Purge(queue="purged"), Queue.PurgeOk).message_count == count
        assert raw.call(Queue.Delete(queue="deleted"), Queue.DeleteOk).message_count == count
        assert raw.call(Queue.Declare(queue="purged", passive=True), Queue.DeclareOk).message_count == 0
    raw.close()
    server.kill()
    server.start()
    raw = login(server)
    assert raw.call(Queue.Declare(queue="purged", passive=True), Queue.DeclareOk).message_count == 0
    assert raw.call(Queue.Declare(queue="deleted", durable=True), Queue.DeclareOk).message_count == 0
    raw.close()


def test_the_largest_publish_that_memory_allows_and_one_byte_more(daemon: Make) -> None:
    """16 MB by default; it goes out whole, in frames."""
    server = daemon(CONFIG)
    with serving(server, 250 * MB):
        raw = login(server)
        whole = bytes(range(256)) * (16 * MB // 256)
        raw.call(Queue.Declare(queue="big", durable=True), Queue.DeclareOk)
        head = frame.marshal(Basic.Publish(routing_key="big"), 1)
        raw.socket.settimeout(30)
        for content, code in ((whole, 0), (whole + b"!", 311)):
            raw.socket.sendall(
                head + frame.marshal(ContentHeader(0, len(content), Basic.Properties(delivery_mode=2)), 1)
            )
            if code:
                assert raw.expect(Channel.Close).reply_code == code
                break
            for at in range(0, len(content), 131_064):
                raw.socket.sendall(frame.marshal(ContentBody(content[at : at + 131_064]), 1))
            raw.send(Basic.Get(queue="big", no_ack=True))
            raw.expect(Basic.GetOk)
            size, came = raw.read().body_size, bytearray()
            while len(came) < size:
                came += raw.read().value
            assert bytes(came) == whole
        raw.close()
