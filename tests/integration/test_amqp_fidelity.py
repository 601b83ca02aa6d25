"""What goes through as it came, and what a binding matches: the same questions to us and to RabbitMQ."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from typing import Any

import amqp
import pytest
from pamqp import commands

from tests.harness.daemon import Daemon
from tests.harness.process import Address
from tests.harness.rabbitmq import RabbitMq
from tests.integration.amqp_calls import declare, refused, sync
from tests.integration.amqp_raw import Raw
from tests.integration.mqtt_raw import RawClient, unique
from transports.amqp.fields import encode_table
from transports.amqp.properties import decode
from transports.mqtt.packets import V5, Property, Publish

Basic, Exchange, Queue = commands.Basic, commands.Exchange, commands.Queue


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One daemon for all: each test has queues of its own."""
    daemon = Daemon(tmp_path_factory.mktemp("fidelity"), {"queues": {"answers": {}}})
    try:
        yield daemon.start()
    finally:
        daemon.close()


@pytest.fixture(params=["gateway", "rabbitmq"])
def address(request: pytest.FixtureRequest) -> Address:
    """Of each of the two."""
    server: Daemon | RabbitMq = request.getfixturevalue(request.param)
    return server.amqp if isinstance(server, RabbitMq) else server.address("amqp")


@pytest.fixture
def raw(address: Address) -> Iterator[Raw]:
    client = Raw(address)
    client.login()
    yield client
    client.close()


def short(text: str) -> bytes:
    return bytes((len(text.encode()),)) + text.encode()


def flags(*fields: tuple[int, bytes]) -> bytes:
    return struct.pack(">H", sum(bit for bit, _ in fields)) + b"".join(value for _, value in fields)


PROPERTIES = {
    "none": flags(),
    "an empty table": flags((0x2000, encode_table([]))),
    "headers and no delivery mode": flags((0x2000, encode_table([("a", 1)]))),
    "delivery mode 1": flags((0x1000, b"\1")),
    "delivery mode 2": flags((0x1000, b"\2")),
    "expiration": flags((0x0100, short("60000"))),
    "persistent with expiration": flags((0x1000, b"\2"), (0x0100, short("3600000"))),
    "all": flags(
        (0x8000, short("text/plain")),
        (0x4000, short("gzip")),
        (0x2000, encode_table([("a", 1), ("b", True), ("c", 1.5), ("d", b"\xff"), ("e", None), ("f", [1, {"g": ""}])])),
        (0x0800, b"\7"),
        (0x0400, short("c")),
        (0x0200, short("r")),
        (0x0100, short("60000")),
        (0x0080, short("m")),
        (0x0040, struct.pack(">Q", 1_700_000_000)),
        (0x0020, short("t")),
        (0x0010, short("guest")),
        (0x0008, short("a")),
    ),
}
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "transient": ({}, {"exclusive": True}),
    "durable": ({}, {"durable": True, "exclusive": False}),
    "with a TTL": ({"x-message-ttl": 3_000_000}, {}),
    "priorities": ({"x-max-priority": 9}, {}),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["consume", "get"])
def test_properties_go_out_byte_for_byte(raw: Raw, kind: str, way: str) -> None:
    arguments, options = KINDS[kind]
    queue = declare(raw, arguments, queue=unique("fidelity"), **options)
    for properties in PROPERTIES.values():
        raw.publish_raw("", queue, properties, b"body")
    found: list[bytes] = []
    if way == "consume":
        raw.call(Basic.Consume(queue=queue, no_ack=True), Basic.ConsumeOk)
        found = [raw.delivered_raw()[1] for _ in PROPERTIES]
    else:
        while len(found) < len(PROPERTIES):
            raw.send(Basic.Get(queue=queue, no_ack=True))
            if not isinstance(raw.read(), Basic.GetEmpty):
                found.append(raw._payload()[12:])
                raw._payload()
    if kind == "priorities":  # the one that has a priority comes first
        assert sorted(found) == sorted(PROPERTIES.values())
    else:
        assert dict(zip(PROPERTIES, found, strict=True)) == PROPERTIES


def test_an_expiration_is_delivered_as_it_was_published_however_long_it_waited(raw: Raw) -> None:
    queue = declare(raw)
    raw.publish_raw("", queue, flags((0x0100, short("60000"))), b"x")
    began = time.monotonic()
    while time.monotonic() < began + 0.05:  # so long that what is left is another number
        sync(raw)
    raw.call(Basic.Consume(queue=queue), Basic.ConsumeOk)
    assert raw.delivered_raw()[1] == flags((0x0100, short("60000")))


def test_a_dead_letter_has_no_expiration_any_more(raw: Raw) -> None:
    dead = declare(raw)
    queue = declare(raw, {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": dead})
    raw.publish_raw("", queue, flags((0x0100, short("1"))), b"x")
    raw.call(Basic.Consume(queue=dead), Basic.ConsumeOk)
    properties = raw.delivered_raw()[1]
    assert struct.unpack_from(">H", properties)[0] == 0x2000 and b"original-expiration" in properties


@pytest.mark.parametrize("mode", [0, 3])
def test_a_delivery_mode_that_is_none_is_refused(raw: Raw, mode: int) -> None:
    raw.publish_raw("", declare(raw), flags((0x1000, bytes((mode,)))), b"x")
    refused(raw, 406)


def test_mqtt_keeps_its_own_rules(gateway: Daemon) -> None:
    """It gets what is left of an expiration, QoS 0 for no delivery mode, and what it has sent counts down in AMQP."""
    client, raw = RawClient(gateway.address("mqtt"), V5), Raw(gateway.address("amqp"))
    raw.login()
    client.connect(unique())
    client.subscribe("own/#")
    raw.publish_raw("amq.topic", "own.1", flags((0x0100, short("60000"))), b"x")
    came = client.expect(Publish)
    assert came.qos == 0 and set(came.properties) == {Property.MESSAGE_EXPIRY_INTERVAL}
    assert 0 < came.properties[Property.MESSAGE_EXPIRY_INTERVAL] <= 60
    queue = declare(raw)
    raw.call(Queue.Bind(queue=queue, exchange="amq.topic", routing_key="back.#"), Queue.BindOk)
    client.publish("back/1", properties={Property.MESSAGE_EXPIRY_INTERVAL: 60})
    began = time.monotonic()
    while time.monotonic() < began + 0.05:
        sync(raw)
    raw.call(Basic.Consume(queue=queue), Basic.ConsumeOk)
    content = decode(properties := raw.delivered_raw()[1], 0, len(properties))
    assert content.qos == 1 and content.ttl is not None and 0 < content.ttl < 60
    raw.close()
    client.cut()


KEYS = ["", ".", "a", "a.", ".a", "a.b", "a.+.b", "a.*.b", "a.#.b", "sms.+49123", "C#", "*", "+", "#", "a/b", "x.\\+"]
PATTERNS = [
    "#",
    "*",
    "+",
    "*.*",
    "a.*",
    "a.+.b",
    "a.*.b",
    "a.#.b",
    "sms.+49123",
    "sms.*",
    "C#",
    "#.C#",
    "a/b",
    "x.\\+",
    "x.\\\\+",
    "\\*",
    "#.*",
    "*.#",
    "#.+.#",
    "a*",
]


def words(text: str) -> list[str]:
    return text.split(".") if text else []


def matches(pattern: list[str], key: list[str]) -> bool:
    if not pattern:
        return not key
    if pattern[0] == "#":
        return any(matches(pattern[1:], key[place:]) for place in range(len(key) + 1))
    return bool(key) and pattern[0] in ("*", key[0]) and matches(pattern[1:], key[1:])


@pytest.mark.parametrize("over", ["a queue", "another exchange"])
def test_a_binding_key_is_text_but_for_whole_stars_and_hashes(raw: Raw, over: str) -> None:
    exchange = unique("keys")
    raw.call(Exchange.Declare(exchange=exchange, exchange_type="topic", auto_delete=False), Exchange.DeclareOk)
    queues: dict[str, str] = {}
    for number, pattern in enumerate(PATTERNS):
        queue = queues[pattern] = declare(raw)
        if over == "a queue":
            raw.call(Queue.Bind(queue=queue, exchange=exchange, routing_key=pattern), Queue.BindOk)
            continue
        onward = f"{exchange}.{number}"
        raw.call(Exchange.Declare(exchange=onward, exchange_type="fanout"), Exchange.DeclareOk)
        raw.call(Exchange.Bind(destination=onward, source=exchange, routing_key=pattern), Exchange.BindOk)
        raw.call(Queue.Bind(queue=queue, exchange=onward), Queue.BindOk)
    for _ in range(2):  # the second time they are known
        for key in KEYS:
            raw.publish(key.encode(), key, exchange)
    found = {pattern: taken(raw, queue) for pattern, queue in queues.items()}
    wanted = {pattern: [key for key in KEYS if matches(words(pattern), words(key))] * 2 for pattern in PATTERNS}
    assert found == wanted
    if over == "a queue":
        for pattern, queue in queues.items():
            raw.call(Queue.Unbind(queue=queue, exchange=exchange, routing_key=pattern), Queue.UnbindOk)
        for key in KEYS:
            raw.publish(key.encode(), key, exchange)
        assert all(taken(raw, queue) == [] for queue in queues.values())
    raw.call(Exchange.Delete(exchange=exchange), Exchange.DeleteOk)


@pytest.mark.parametrize("filter", ["{}/#", "$share/group/{}/#"])
def test_a_key_that_is_no_topic_name_reaches_queues_and_no_subscription(gateway: Daemon, filter: str) -> None:
    client, raw, first = RawClient(gateway.address("mqtt"), V5), Raw(gateway.address("amqp")), unique("keys")
    raw.login()
    client.connect(unique())
    client.subscribe(filter.format(first))
    raw.publish(b"nobody", f"{first}.+49123", "amq.topic", mandatory=True)
    assert raw.expect(Basic.Return).reply_code == 312
    raw._payload(), raw._payload()
    queue = declare(raw)
    raw.call(Queue.Bind(queue=queue, exchange="amq.topic", routing_key=f"{first}.+49123"), Queue.BindOk)
    raw.publish(b"odd", f"{first}.+49123", "amq.topic")
    raw.publish(b"plain", f"{first}.49123", "amq.topic")
    assert client.take() == (f"{first}/49123", b"plain")
    assert taken(raw, queue) == ["odd"]
    raw.close()
    client.cut()


def taken(raw: Raw, queue: str) -> list[str]:
    """The bodies that wait there."""
    found: list[str] = []
    while True:
        raw.send(Basic.Get(queue=queue, no_ack=True))
        if isinstance(raw.read(), Basic.GetEmpty):
            return found
        size = struct.unpack_from(">Q", raw._payload(), 4)[0]
        found.append(raw._payload().decode() if size else "")


def test_true_and_1_are_two_values_in_a_headers_exchange(raw: Raw) -> None:
    queues = {}
    for value in (True, 1, [True], [1], {"a": True}, {"a": 1}, "1"):
        queue = queues[repr(value)] = declare(raw)
        arguments = {"h": value, "x-match": "all"}
        raw.call(Queue.Bind(queue=queue, exchange="amq.headers", arguments=arguments), Queue.BindOk)  # type: ignore[arg-type]
    both = declare(raw)
    for value in (1, True):
        raw.call(Queue.Bind(queue=both, exchange="amq.headers", arguments={"h": value}), Queue.BindOk)
    for value in (True, 1, [True], [1], {"a": True}, {"a": 1}, "1"):
        raw.publish(repr(value).encode(), "", "amq.headers", properties={"headers": {"h": value}})
    assert {name: taken(raw, queue) for name, queue in queues.items()} == {name: [name] for name in queues}
    assert sorted(taken(raw, both)) == ["1", "True"]
    raw.call(Queue.Unbind(queue=both, exchange="amq.headers", arguments={"h": 1}), Queue.UnbindOk)
    for value in (1, True):
        raw.publish(repr(value).encode(), "", "amq.headers", properties={"headers": {"h": value}})
    assert taken(raw, both) == ["True"]


def test_1_and_1_0_are_two_values_here(gateway: Daemon) -> None:
    raw = Raw(gateway.address("amqp"))
    raw.login()
    whole, real, text, raw_bytes = (declare(raw) for _ in range(4))
    values: dict[str, Any] = {whole: 1, real: 1.0, text: "1", raw_bytes: bytearray(b"1")}
    for queue, value in values.items():
        raw.call(Queue.Bind(queue=queue, exchange="amq.match", arguments={"h": value}), Queue.BindOk)
    for number, value in enumerate(values.values()):
        raw.publish(b"%d" % number, "", "amq.match", properties={"headers": {"h": value}})
    raw.publish(b"wide", "", "amq.match", properties={"headers": {"h": 1 << 40}})
    assert [taken(raw, queue) for queue in values] == [["0"], ["1"], ["2"], ["3"]]
    raw.close()


@pytest.mark.parametrize(
    ("argument", "first", "second"),
    [("x-single-active-consumer", True, 1), ("x-message-ttl", 1000, 1000.0), ("x-expires", 60_000, 60_000.0)],
)
def test_an_argument_of_another_type_is_another_argument(raw: Raw, argument: str, first: Any, second: Any) -> None:
    queue = declare(raw, {argument: first}, queue=unique("argument"))
    declare(raw, {argument: first}, queue=queue)
    raw.send(Queue.Declare(queue=queue, exclusive=True, arguments={argument: second}))
    refused(raw, 406, argument)


def test_an_answer_of_a_py_amqp_worker_has_its_correlation_data_again(gateway: Daemon) -> None:
    """py-amqp writes as text what it has read as bytes."""
    correlation = ("ü" * 150).encode()
    device = RawClient(gateway.address("mqtt"), V5)
    device.connect(unique())
    device.subscribe("dev/7/reply")
    answered: list[amqp.Message] = []
    with amqp.Connection(f"{gateway.address('amqp').host}:{gateway.address('amqp').port}") as connection:
        channel = connection.channel()
        queue = channel.queue_declare(exclusive=True).queue
        channel.queue_bind(queue, "amq.topic", "ask.#")

        def answer(message: amqp.Message) -> None:
            properties = {**message.properties}
            channel.basic_publish(
                amqp.Message(message.body, **{**properties, "application_headers": message.headers}),
                routing_key=properties["reply_to"],
            )
            answered.append(message)

        channel.basic_consume(queue, no_ack=True, callback=answer)
        said = {
            Property.RESPONSE_TOPIC: "dev/7/reply",
            Property.CORRELATION_DATA: correlation,
            Property.PAYLOAD_FORMAT_INDICATOR: 1,
            Property.CONTENT_TYPE: "x" * 300,
            Property.USER_PROPERTY: [("z", "1"), ("a", "2"), ("z", "3")],
        }
        device.publish("ask/1", b"?", properties=said)
        while not answered:
            connection.drain_events(timeout=10)
    came = device.expect(Publish)
    assert came.payload == b"?" and came.properties == said
    device.cut()
