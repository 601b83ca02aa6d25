"""A link to a real RabbitMQ: what goes over it, and what is not taken at one of its ends."""

from __future__ import annotations

from collections.abc import Callable

import paho.mqtt.client as paho
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from tests.faults.abuse import metric
from tests.harness.daemon import LISTENERS
from tests.harness.link import GROUPS, Start, check_order, deaths, readiness, wait_for
from tests.harness.rabbitmq import RabbitMq
from tests.integration.rabbit_link import (
    MakePeer,
    Observer,
    config,
    depth,
    drained,
    impaired,
    is_up,
    there,
)

# one message


def test_a_message_goes_out_and_one_comes_in(
    daemon: Start, rabbitmq: RabbitMq, name: str, peer: MakePeer, observe: Callable[..., Observer]
) -> None:
    gateway = daemon(config(rabbitmq, name))
    is_up(gateway)
    observer = observe(rabbitmq, f"{name}.seen")
    worker = peer(gateway.address("mqtt"), "worker", "$queue/in")
    peer(gateway.address("mqtt"), "device").publish("down/7", b"out")
    ((key, properties, _),) = observer.take(b"out")
    assert (key, properties.delivery_mode) == ("site.7", 2)
    assert properties.message_id
    with there(rabbitmq) as channel:
        channel.basic_publish(f"{name}.feed", "up.a/b.3", b"in")
    assert worker.take(b"in")[0].topic == "up/a.b/3"
    wait_for(lambda: metric(gateway, "gateway_transport_messages_out", transport="rabbit") == 1, "the message counts")
    assert metric(gateway, "gateway_transport_messages_in", transport="rabbit") == 1
    assert metric(gateway, "gateway_transport_connections", transport="rabbit") == 2
    wait_for(lambda: depth(gateway) == 0, "it was settled")
    assert readiness(gateway) == (200, {"ready": True, "reasons": [], "impaired": {}})


def test_properties_go_over_the_link_and_come_back(
    daemon: Start, rabbitmq: RabbitMq, name: str, peer: MakePeer, observe: Callable[..., Observer]
) -> None:
    """A worker there that republishes what it got, with the properties it got, has changed nothing but the hops."""
    gateway = daemon(config(rabbitmq, name, max_hops=3))
    is_up(gateway)
    observer = observe(rabbitmq, f"{name}.seen")
    worker = peer(gateway.address("mqtt"), "worker", "$queue/in", version=paho.MQTTv5)
    device = peer(gateway.address("mqtt"), "device", version=paho.MQTTv5)
    said = Properties(PacketTypes.PUBLISH)
    said.ContentType = "text/plain"
    said.ResponseTopic = "answers/7"
    said.CorrelationData = b"\x00\xff"
    said.PayloadFormatIndicator = 1
    said.MessageExpiryInterval = 1000
    said.UserProperty = [("b", "1"), ("a", "2"), ("b", "3")]
    device.publish("down/7", b"there", properties=said)
    properties = observer.take(b"there")[0][1]
    assert (properties.content_type, properties.reply_to) == ("text/plain", "$topic/answers.7")
    assert 990_000 <= int(properties.expiration) <= 1_000_000
    assert (properties.headers["a"], properties.headers["x-gateway-hops"]) == ("2", "1")
    with there(rabbitmq) as channel:
        channel.basic_publish(f"{name}.feed", "up.1", b"back", properties)
        properties.headers["x-gateway-hops"] = "3"
        channel.basic_publish(f"{name}.feed", "up.1", b"too far", properties)
    came = worker.take(b"back")[0].properties
    assert (came.ContentType, came.ResponseTopic, came.CorrelationData) == ("text/plain", "answers/7", b"\x00\xff")
    assert came.PayloadFormatIndicator == 1
    said_by_us = [pair for pair in came.UserProperty if pair[0] in ("x-gateway-hops", "x-amqp-message-id")]
    assert [pair for pair in came.UserProperty if pair not in said_by_us] == [("b", "1"), ("a", "2"), ("b", "3")]
    assert sorted(said_by_us) == [("x-amqp-message-id", properties.message_id), ("x-gateway-hops", "1")]
    dropped = {"transport": "rabbit", "reason": "max-hops"}
    wait_for(lambda: metric(gateway, "gateway_transport_dropped_messages", **dropped) == 1, "the last one is dropped")


def test_what_rabbitmq_returns_is_a_dead_letter_with_the_reason(
    daemon: Start, rabbitmq: RabbitMq, name: str, peer: MakePeer, observe: Callable[..., Observer]
) -> None:
    """One exchange leads nowhere for its key, one is not there at all, and the others do not suffer."""
    settings = config(rabbitmq, name, outbox={"retry_delay": "10ms..20ms", "max_deliveries": 2})
    settings["routes"] += [
        {"from": "stray", "to": f"rabbit:{name}.out/nowhere"},
        {"from": "void", "to": f"rabbit:{name}.no-such-exchange/x"},
        {"from": "direct/+", "to": f"rabbit:/{name}.seen"},
    ]
    gateway = daemon(settings)
    is_up(gateway)
    device = peer(gateway.address("mqtt"), "device")
    device.publish("stray", b"stray")
    for number in range(10):
        device.client.publish(f"down/{number}", b"%d" % number, 1)
    device.client.publish("void", b"void", 1)
    for number in range(10, 20):
        device.client.publish(f"down/{number}", b"%d" % number, 1)
    device.publish("direct/1", b"20")
    observer = observe(rabbitmq, f"{name}.seen")
    assert {int(body) for body in observer.wait_until(lambda found: len(set(found)) >= 21)} == set(range(21))
    wait_for(lambda: depth(gateway, "dead-letters") == 2, "two dead letters")
    found = dict(deaths(gateway))
    assert (found["stray"]["reason"], found["stray"]["error"]) == ("rejected", "the remote returned it: 312 NO_ROUTE")
    assert found["void"]["reason"] == "exhausted"
    assert "no-such-exchange" in found["void"]["error"]
    device.publish("down/1", b"21")
    wait_for(lambda: depth(gateway) == 0, "the outbox drains")
    wait_for(lambda: impaired(gateway) == "", "what it refused was no fault of the link")
    assert metric(gateway, "gateway_transport_connections_opened", transport="rabbit") == 2


def test_a_queue_that_is_full_there_takes_the_rest_as_soon_as_it_has_room(
    daemon: Start, rabbitmq: RabbitMq, name: str, peer: MakePeer, observe: Callable[..., Observer]
) -> None:
    """It nacks until then."""
    settings = config(rabbitmq, name, outbox={"retry_delay": "10ms..50ms", "max_deliveries": None})
    full = {"x-max-length": 5, "x-overflow": "reject-publish"}
    settings["transports"]["rabbit"]["topology"]["queues"][f"{name}.seen"]["arguments"] = full
    gateway = daemon(settings)
    is_up(gateway)
    device = peer(gateway.address("mqtt"), "device")
    for number in range(20):
        device.publish(f"down/{number % GROUPS}", b"%d" % number)
    wait_for(lambda: metric(gateway, "gateway_queue_retried", queue="link.rabbit") > 0, "some are nacked")
    check_order(observe(rabbitmq, f"{name}.seen").wait_until(lambda found: len(set(found)) >= 20), 20)
    drained(gateway)


def test_a_group_may_have_many_on_their_way(
    daemon: Start, rabbitmq: RabbitMq, name: str, peer: MakePeer, observe: Callable[..., Observer]
) -> None:
    gateway = daemon(config(rabbitmq, name, outbox={"group": "one", "group_in_flight": 100}))
    is_up(gateway)
    observer = observe(rabbitmq, f"{name}.seen")
    device = peer(gateway.address("mqtt"), "device")
    for number in range(300):
        device.client.publish(f"down/{number % 7}", b"%d" % number, 1)
    observer.take(*[b"%d" % number for number in range(300)])


def test_a_message_that_is_refused_here_waits_there(
    daemon: Start, rabbitmq: RabbitMq, name: str, peer: MakePeer
) -> None:
    settings = config(rabbitmq, name, prefetch=10)
    settings["queues"]["in"]["max_messages"] = 5
    gateway = daemon(settings)
    is_up(gateway)
    with there(rabbitmq) as channel:
        for number in range(50):
            channel.basic_publish(f"{name}.feed", "up.1", b"%d" % number)
        wait_for(lambda: "is full" in impaired(gateway), "/readyz tells it")
        assert depth(gateway, "in") == 5
        gateway.restart()  # killed: what it held was not acknowledged, and comes again
        worker = peer(gateway.address("mqtt"), "worker", "$queue/in")
        bodies = worker.wait_until(lambda found: len(set(found)) >= 50)
        assert list(dict.fromkeys(bodies)) == [b"%d" % number for number in range(50)]
        wait_for(lambda: impaired(gateway) == "", "/readyz tells that it is over")
        wait_for(lambda: not channel.queue_declare(f"{name}.in", passive=True).method.message_count, "all is taken")


def test_what_no_route_takes_is_kept_where_unroutable_says(
    daemon: Start, rabbitmq: RabbitMq, name: str, peer: MakePeer
) -> None:
    """A message without a routing key has the name of its queue for a topic."""
    gateway = daemon(config(rabbitmq, name, unroutable="lost"))
    is_up(gateway)
    worker = peer(gateway.address("mqtt"), "worker", "$queue/lost")
    with there(rabbitmq) as channel:
        channel.queue_bind(f"{name}.in", "amq.fanout")
        channel.basic_publish("amq.fanout", "", b"this")
        channel.queue_unbind(f"{name}.in", "amq.fanout")
    assert worker.take(b"this")[0].topic == f"{name}.in"


def test_a_topology_that_differs_stops_this_link_alone(
    daemon: Start, rabbitmq: RabbitMq, name: str, peer: MakePeer, observe: Callable[..., Observer]
) -> None:
    settings = config(rabbitmq, name)
    settings["transports"]["other"] = config(rabbitmq, f"{name}x")["transports"]["rabbit"]
    settings["routes"].append({"from": "other/+", "to": f"other:{name}x.out/site/{{topic[1]}}"})
    with there(rabbitmq) as channel:
        channel.queue_declare(f"{name}.seen", durable=True, arguments={"x-max-length": 5})
        gateway = daemon(settings)
        wait_for(lambda: "PRECONDITION_FAILED" in impaired(gateway), "/readyz tells it")
        down = gateway.wait_for("link is down", lambda record: record["link"] == "rabbit")
        assert "x-max-length" in down["reason"] and down["again_in_seconds"] > 0.3
        gateway.wait_for("link consumes", lambda record: record["link"] == "other")
        device = peer(gateway.address("mqtt"), "device")
        device.publish("other/1", b"other")
        observe(rabbitmq, f"{name}x.seen").take(b"other")
        device.publish("down/1", b"waits")
        channel.queue_delete(f"{name}.seen")
        is_up(gateway)
        observe(rabbitmq, f"{name}.seen").take(b"waits")
    wait_for(lambda: readiness(gateway)[1]["impaired"] == {}, "/readyz tells that it is over")


def test_the_other_end_may_be_a_gateway(daemon: Start, peer: MakePeer) -> None:
    """With a queue of its configuration, and routes; a return and an exchange that is not there are as RabbitMQ's."""
    there = daemon({"queues": {"work": {}, "seen": {}}, "routes": [{"from": "site/+/x", "to": "seen"}]})
    rabbit = {"type": "amqp-client", "url": there.url("amqp"), "consume": ["work"], "reconnect": "50ms"}
    settings = {
        "transports": {**LISTENERS, "rabbit": {**rabbit, "outbox": {"max_deliveries": 1}}},
        "queues": {"in": {}},
        "routes": [
            {"from": "work", "source": "rabbit", "to": "in"},
            {"from": "down/+", "to": "rabbit:amq.topic/site/{topic[1]}/x"},
            {"from": "stray", "to": "rabbit:amq.topic/nowhere"},
            {"from": "void", "to": "rabbit:void/x"},
        ],
    }
    gateway = daemon(settings)
    is_up(gateway)
    device = peer(gateway.address("mqtt"), "device")
    for topic in ("stray", "void", "down/a.b"):
        device.publish(topic, topic.encode())
    assert peer(there.address("mqtt"), "seen", "$queue/seen").take(b"down/a.b")[0].topic == "site/a.b/x"
    peer(there.address("mqtt"), "feeder").publish("$queue/work", b"in")
    peer(gateway.address("mqtt"), "worker", "$queue/in").take(b"in")
    wait_for(lambda: depth(gateway, "dead-letters") == 2, "two dead letters")
    reasons = {topic: (death["reason"], "NO_ROUTE" in death["error"]) for topic, death in deaths(gateway)}
    assert reasons == {"stray": ("rejected", True), "void": ("exhausted", False)}
