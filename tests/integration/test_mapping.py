"""MQTT 5 -> AMQP -> MQTT 5 and AMQP -> MQTT 5 -> AMQP through the daemon, with clients that people use: a worker that
republishes what it got, with the properties it got, has changed nothing."""

from __future__ import annotations

import queue
import struct
from collections.abc import Iterator
from typing import Any

import pika
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from paho.mqtt import client as paho
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from pika.adapters.blocking_connection import BlockingChannel

from tests.harness.daemon import Daemon
from tests.integration.amqp_raw import Raw
from transports.amqp.fields import encode_table
from transports.amqp.properties import decode

SECONDS = 20.0
through_daemon = settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
text = st.text(st.characters(exclude_categories=["Cs", "Cc", "Cn"]), max_size=20)
topics = st.lists(st.sampled_from(["shop", "7", "a.b", "", "*", "größe", "x" * 300]), min_size=1, max_size=4).map(
    lambda levels: "m/" + "/".join(levels)
)


class Mqtt:
    """A paho client that keeps what it gets."""

    def __init__(self, daemon: Daemon, filter: str) -> None:
        self.got: queue.Queue[paho.MQTTMessage] = queue.Queue()
        subscribed: queue.Queue[None] = queue.Queue()
        self.client = paho.Client(paho.CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
        self.client.on_message = lambda client, userdata, message: self.got.put(message)
        self.client.on_subscribe = lambda *args: subscribed.put(None)
        self.client.username_pw_set("guest")  # what it sends on may name that user as its sender
        self.client.connect(*daemon.address("mqtt"))
        self.client.loop_start()
        options = paho.SubscribeOptions(qos=1, retainAsPublished=True, retainHandling=2)
        self.client.subscribe(filter, options=options)
        subscribed.get(timeout=SECONDS)

    def publish(self, topic: str, payload: bytes, qos: int, retain: bool, properties: Properties) -> None:
        self.client.publish(topic, payload, qos, retain, properties).wait_for_publish(SECONDS)

    def read(self) -> paho.MQTTMessage:
        return self.got.get(timeout=SECONDS)

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path_factory.mktemp("mapping"), {})
    try:
        yield daemon.start()
    finally:
        daemon.close()


@pytest.fixture
def device(both: Daemon) -> Iterator[Mqtt]:
    client = Mqtt(both, "m/#")
    yield client
    client.close()


@pytest.fixture
def worker(both: Daemon) -> Iterator[BlockingChannel]:
    """A queue `all` gets what goes to m.#."""
    host, port = both.address("amqp")
    connection = pika.BlockingConnection(pika.ConnectionParameters(host, port))
    channel = connection.channel()
    channel.confirm_delivery()
    channel.queue_declare("all", exclusive=True)
    channel.queue_bind("all", "amq.topic", "m.#")
    yield channel
    connection.close()


def seen(message: paho.MQTTMessage) -> dict[str, Any]:
    """All that a subscriber is told; the time left to live in steps of a minute."""
    told = message.properties.json() if message.properties else {}
    if "MessageExpiryInterval" in told:
        told["MessageExpiryInterval"] = -(-told["MessageExpiryInterval"] // 60)
    return {
        "topic": message.topic,
        "payload": message.payload,
        "qos": message.qos,
        "retain": message.retain,
        **{name: value for name, value in told.items() if name != "SubscriptionIdentifier"},
    }


def mqtt_properties(**values: Any) -> Properties:
    properties = Properties(PacketTypes.PUBLISH)
    for name, value in values.items():
        if value is not None:
            setattr(properties, name, value)
    return properties


said_by_devices = st.builds(
    mqtt_properties,
    UserProperty=st.none()
    | st.lists(st.tuples(text | st.sampled_from(["a", "b", "x-mqtt-retain", "n" * 300]), text), min_size=1, max_size=5),
    ContentType=st.none() | text | st.just("c" * 300),
    ResponseTopic=st.none() | topics | st.just("$queue/answers"),
    CorrelationData=st.none() | st.binary(max_size=300),
    PayloadFormatIndicator=st.none() | st.integers(0, 1),
    MessageExpiryInterval=st.none() | st.integers(1, 60).map(lambda minutes: minutes * 60),
)


@through_daemon
@given(
    topic=topics,
    payload=st.binary(max_size=200),
    qos=st.integers(0, 1),
    retain=st.booleans(),
    properties=said_by_devices,
)
@example("m/1", b"x", 1, False, mqtt_properties(UserProperty=[("b", "1"), ("a", "2"), ("b", "3")]))
def test_mqtt_to_amqp_to_mqtt(
    device: Mqtt, worker: BlockingChannel, topic: str, payload: bytes, qos: int, retain: bool, properties: Properties
) -> None:
    device.publish(topic, payload, qos, retain, properties)
    first = device.read()
    method, said, body = take(worker)
    worker.basic_publish(method.exchange, method.routing_key, body, said)
    take(worker)  # its own copy
    assert seen(device.read()) == seen(first)


def take(channel: BlockingChannel) -> tuple[Any, Any, bytes]:
    """The next message of `all`: one has been accepted, so at most its commit is waited for."""
    while True:
        method, properties, body = channel.basic_get("all", auto_ack=True)
        if method is not None and body is not None:
            return method, properties, body


# AMQP -> MQTT 5 -> AMQP

scalars = (
    text
    | st.binary(max_size=20)
    | st.booleans()
    | st.none()
    | st.integers(-(1 << 63), (1 << 63) - 1)
    | st.floats(allow_nan=False)
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3), max_leaves=5
)
hints = st.sampled_from([None, "b", "B", "s", "u", "i", "l", "L", "f", "T", "D", "S"])
wire_headers = st.dictionaries(text, st.tuples(values, hints), min_size=1, max_size=5).map(
    lambda items: encode_table(
        [(name, value) for name, (value, _) in items.items()], {name: hint for name, (_, hint) in items.items() if hint}
    )
)


def short(raw: bytes) -> bytes:
    return bytes((len(raw),)) + raw


def wire_properties(mode: int, strings: dict[int, bytes], headers: bytes | None, priority: int | None) -> bytes:
    parts = {**strings, 0x1000: bytes((mode,))}
    if headers is not None:
        parts[0x2000] = headers
    if priority is not None:
        parts[0x0800] = bytes((priority,))
    return struct.pack(">H", sum(parts)) + b"".join(parts[bit] for bit in sorted(parts, reverse=True))


said_by_workers = st.builds(
    wire_properties,
    st.integers(1, 2),
    st.dictionaries(
        st.sampled_from([0x8000, 0x4000, 0x0400, 0x0200, 0x0080, 0x0020, 0x0010, 0x0008, 0x0004]),
        (text | st.sampled_from(["$topic/m.7.reply", "answers"])).map(str.encode).map(short),
        max_size=9,
    ).map(lambda strings: strings | {0x0010: short(b"guest")} if 0x0010 in strings else strings),
    st.none() | wire_headers,
    st.none() | st.integers(0, 255),
)


@pytest.fixture
def wire(both: Daemon) -> Iterator[Raw]:
    """Gets what goes to m.# as bytes."""
    raw = Raw(both.address("amqp"))
    raw.login()
    raw.subscribe("m.#")
    yield raw
    raw.close()


@through_daemon
@given(
    key=topics.map(lambda topic: topic.translate(str.maketrans("/.", "./"))).filter(
        lambda key: len(key.encode()) < 256
    ),
    body=st.binary(max_size=200),
    properties=said_by_workers,
)
def test_amqp_to_mqtt_to_amqp(device: Mqtt, wire: Raw, key: str, body: bytes, properties: bytes) -> None:
    wire.publish_raw("amq.topic", key, properties, body)
    first = wire.delivered_raw()
    message = device.read()
    device.client.publish(message.topic, message.payload, message.qos, message.retain, message.properties)
    device.read()  # its own copy
    second = wire.delivered_raw()
    assert first == (key, properties, body)
    assert (second[0], second[2]) == (key, body)
    # Headers that are not sorted go out with their order beside them now, so it is the meaning that is compared.
    assert decode(second[1], 0, len(second[1])) == decode(properties, 0, len(properties))


# request and answer across both


def test_a_worker_answers_a_device_as_it_answers_anyone(both: Daemon, worker: BlockingChannel) -> None:
    asking = Mqtt(both, "dev/7/reply")
    worker.queue_declare("rpc", exclusive=True)
    ask = mqtt_properties(ResponseTopic="dev/7/reply", CorrelationData=b"\xff\x00")
    asking.publish("$queue/rpc", b"ping", 1, False, ask)
    method = None
    while method is None:
        method, properties, body = worker.basic_get("rpc", auto_ack=True)
    assert body == b"ping" and properties is not None
    answer = pika.BasicProperties(correlation_id=properties.correlation_id, headers=properties.headers)
    worker.basic_publish("", properties.reply_to, b"pong", answer, mandatory=True)
    got = asking.read()
    assert (got.topic, got.payload) == ("dev/7/reply", b"pong")
    assert got.properties is not None and got.properties.CorrelationData == b"\xff\x00"
    asking.close()


def test_a_device_answers_a_worker_in_its_queue(both: Daemon, worker: BlockingChannel) -> None:
    answering = Mqtt(both, "dev/8/ask")
    answers = worker.queue_declare("", exclusive=True).method.queue
    worker.basic_publish("amq.topic", "dev.8.ask", b"ping", pika.BasicProperties(reply_to=answers, correlation_id="9"))
    asked = answering.read()
    assert asked.properties is not None and asked.properties.ResponseTopic == f"$queue/{answers}"
    answer = mqtt_properties(CorrelationData=asked.properties.CorrelationData)
    answering.publish(asked.properties.ResponseTopic, b"pong", 1, False, answer)
    method = None
    while method is None:
        method, properties, body = worker.basic_get(answers, auto_ack=True)
    assert body == b"pong" and properties is not None and properties.correlation_id == "9"
    answering.close()


def test_a_device_answers_a_worker_directly(both: Daemon, worker: BlockingChannel) -> None:
    answering = Mqtt(both, "dev/9/ask")
    got: list[tuple[str | None, bytes]] = []
    tag = worker.basic_consume(
        "amq.rabbitmq.reply-to",
        lambda channel, method, properties, body: got.append((properties.correlation_id, body)),
        auto_ack=True,
    )
    asks = pika.BasicProperties(reply_to="amq.rabbitmq.reply-to", correlation_id="9")
    worker.basic_publish("amq.topic", "dev.9.ask", b"ping", asks)
    asked = answering.read()
    assert asked.properties is not None and asked.properties.ResponseTopic.startswith("$queue/amq.rabbitmq.reply-to.")
    answer = mqtt_properties(CorrelationData=asked.properties.CorrelationData)
    answering.publish(asked.properties.ResponseTopic, b"pong", 1, False, answer)
    while not got:
        worker.connection.process_data_events(SECONDS)
    assert got == [("9", b"pong")]
    worker.basic_cancel(tag)
    answering.close()
