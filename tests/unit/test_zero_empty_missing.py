"""Zero, empty and missing are three things: in what the configuration says, in templates, and in what comes by MQTT and
goes on by HTTP or a link."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.address import Address
from gateway.config.settings import load
from gateway.errors import ConfigError
from gateway.model.message import DEFAULT_EXCHANGE, Message, Properties
from gateway.model.policy import DedupPolicy, QueuePolicy
from gateway.routing.templates import Fields, MissingValueError, Template
from gateway.transport import Delivery, Options, Outcome
from plugins.http import Webhook, WebhookSettings, _headers, _read_fields
from tests.harness.kernel import Kernel
from transports.amqp.link.settings import AmqpClientSettings
from transports.amqp.listener import AmqpSettings
from transports.mqtt.inbound import capabilities, message_of, negotiate
from transports.mqtt.link.settings import DEFAULT_PATH, MqttClientSettings
from transports.mqtt.packets import V5, Connect, Property, ProtocolError, Publish, Will
from transports.mqtt.properties import from_wire, to_wire
from transports.mqtt.session import NEVER
from transports.mqtt.settings import MqttSettings

LISTEN = Address.parse("127.0.0.1:0")


def fault(tmp_path: Path, text: str) -> str:
    """What `gateway check` says of this configuration; "" if nothing."""
    path = tmp_path / "gateway.yaml"
    path.write_text(text)
    try:
        load(path, {})
    except ConfigError as error:
        return str(error)
    return ""


# addresses


@pytest.mark.parametrize("scheme", ["mqtt", "mqtts", "ws", "wss", "amqp", "amqps", "http", "https"])
@pytest.mark.parametrize(("port", "taken"), [("", True), (":", True), (":1", True), (":65535", True), (":0", False),
                                             (":00", False), (":65536", False), (":x", False)])  # fmt: skip
def test_a_port_of_0_is_no_port_to_connect_to_and_none_is_the_schemes_own(scheme: str, port: str, taken: bool) -> None:
    url = f"{scheme}://there.example{port}"

    def make() -> Any:
        if scheme.startswith("http"):
            return Webhook("w", WebhookSettings(type="webhook", queue="q", url=url))
        made = (AmqpClientSettings if scheme.startswith("amqp") else MqttClientSettings)(url=url)
        return made.place.port

    if not taken:
        with pytest.raises(ValueError, match=r"url: the port is a number from 1 to 65535"):
            make()
    elif not scheme.startswith("http"):
        own = {"mqtt": 1883, "mqtts": 8883, "ws": 80, "wss": 443, "amqp": 5672, "amqps": 5671}[scheme]
        assert make() == (own if port in ("", ":") else int(port[1:]))
    else:
        make()


@pytest.mark.parametrize(
    ("rest", "path"),
    [("", DEFAULT_PATH), ("/", "/"), ("/a", "/a"), ("/?x=1", "/?x=1"), ("?x=1", f"{DEFAULT_PATH}?x=1")],
)
def test_the_root_is_a_path_and_none_is_the_usual_one(rest: str, path: str) -> None:
    assert MqttClientSettings(url=f"ws://there.example{rest}").place.path == path


@pytest.mark.parametrize(
    ("url", "username", "password"),
    [("{}://there", None, None), ("{}://a@there", "a", None), ("{}://a:@there", "a", ""), ("{}://:p@there", "", "p")],
)
def test_an_empty_name_or_password_in_a_url_is_one(url: str, username: str | None, password: str | None) -> None:
    for scheme, settings in (("mqtt", MqttClientSettings), ("amqp", AmqpClientSettings)):
        place = settings(url=url.format(scheme)).place
        assert (place.username, place.password) == (username, password)
    amqp = AmqpClientSettings(url=url.format("amqp"))
    assert amqp.login == ("guest" if username is None else username, "guest" if password is None else password)
    assert AmqpClientSettings(url="amqp://a:b@there", username="", password="").login == ("", "")


# settings


@pytest.mark.parametrize(
    ("settings", "keys"),
    [
        (MqttSettings, ["connect_timeout", "max_bytes", "max_buffered"]),
        (AmqpSettings, ["connect_timeout"]),
        (MqttClientSettings, ["connect_timeout", "session_expiry", "keep_alive"]),
        (AmqpClientSettings, ["connect_timeout", "confirm_timeout", "heartbeat"]),
    ],
)
def test_a_time_or_size_of_0_that_would_let_nothing_through_is_refused(
    settings: type[msgspec.Struct], keys: list[str]
) -> None:
    there = {"url": "mqtt://there" if settings is MqttClientSettings else "amqp://there"}
    fields: dict[str, Any] = {"listen": LISTEN} if settings in (MqttSettings, AmqpSettings) else there
    for key in keys:
        with pytest.raises(ValueError, match=key):
            settings(**fields, **{key: 0})


@pytest.mark.parametrize("key", ["''", "all", "'{{}}'", "order-1"])
def test_a_dedup_key_that_is_the_same_for_all_messages_is_refused(tmp_path: Path, key: str) -> None:
    """After the first message every other would be answered as stored, and dropped."""
    places = (
        f"queues:\n  q: {{dedup: {{key: {key}}}}}",
        f"queues: {{}}\ntransports:\n  l: {{type: mqtt-client, url: 'mqtt://x', outbox: {{dedup: {{key: {key}}}}}}}",
    )
    for place, text in zip(("queues.q", "transports.l.outbox"), places, strict=True):
        said = fault(tmp_path, text)
        assert f"{place}.dedup.key" in said and "is the same for every message" in said
        assert ":2:" in said or ":3:" in said


@pytest.mark.parametrize("key", ["sha256", "'{topic}'", "'a{header[h]|}'", "'{client_id|}'"])
def test_a_dedup_key_that_differs_is_taken(tmp_path: Path, key: str) -> None:
    assert fault(tmp_path, f"queues:\n  q: {{dedup: {{key: {key}}}}}") == ""


# templates

MISSING = object()


def message(header: Any = MISSING, topic: str = "t", exchange: str = "amq.topic", client_id: str = "") -> Message:
    headers = () if header is MISSING else (("h", header),)
    return Message(topic, b"{}", exchange, client_id=client_id, properties=Properties(headers=headers))


@pytest.mark.parametrize(
    ("text", "given", "found"),
    [
        ("{header[h]}", message(), MISSING),
        ("{header[h]}", message(None), MISSING),
        ("{header[h]}", message(""), ""),
        ("{header[h]}", message(0), "0"),
        ("{header[h]}", message(0.0), "0.0"),
        ("{header[h]}", message(False), "false"),
        ("{header[h]|}", message(), ""),
        ("{header[h]|}", message(""), ""),
        ("{header[h]|x}", message(), "x"),
        ("{header[h]|x}", message(""), ""),
        ("{header[h]|x}", message(0), "0"),
        ("{topic}", message(topic=""), ""),
        ("{topic}", message(topic="", exchange="other"), ""),
        ("{topic[0]}", message(topic="", exchange="other"), ""),
        ("{topic[1]}", message(topic="", exchange="other"), MISSING),
        ("{topic[0]|x}", message(topic="", exchange="other"), ""),
        ("{topic[1]|x}", message(topic="", exchange="other"), "x"),
        ("{topic[0]}", message(topic="/a", exchange="other"), ""),
        ("{topic[0]}", message(topic="q", exchange=DEFAULT_EXCHANGE), MISSING),
        ("{topic|}", message(topic="q", exchange=DEFAULT_EXCHANGE), ""),
        ("{client_id}", message(), MISSING),
        ("{client_id|}", message(), ""),
        ("", message(), ""),
    ],
)
def test_a_template_tells_an_empty_value_from_a_missing_one(text: str, given: Message, found: Any) -> None:
    template = Template(text)
    for _ in range(2):  # also when it is remembered
        if found is MISSING:
            with pytest.raises(MissingValueError):
                template.render(Fields(given))
            assert template.find(Fields(given)) is None
        else:
            assert template.render(Fields(given)) == template.find(Fields(given)) == found


def test_an_empty_group_is_a_group_and_an_empty_key_a_key() -> None:
    policy = QueuePolicy(group="{header[h]}", dedup=DedupPolicy("{header[h]}", scope="group"))
    kernel = Kernel({"q": policy}, [("t", "q")])
    answers = [kernel.accept(message(*said)) for said in ([""], [""], ["0"], [])]
    kernel.run()
    stored = [[Outcome.STORED], [Outcome.DUPLICATE], [Outcome.STORED], [Outcome.STORED]]
    assert [answer.outcomes for answer in answers] == stored
    assert [reason for _, reason, *_ in kernel.deaths("dead-letters")] == ["invalid"]
    worker = kernel.worker("q")
    kernel.run()
    assert [seen.message.header("h") for seen in worker.seen] == ["", "0"]


# MQTT

WIRE: list[tuple[Property, list[Any], str]] = [
    (Property.PAYLOAD_FORMAT_INDICATOR, [0, 1], "payload_format"),
    (Property.CONTENT_TYPE, ["", "a"], "content_type"),
    (Property.CORRELATION_DATA, [b"", b"\0", b"a"], "correlation_id"),
]


@pytest.mark.parametrize(("wire", "values", "field"), WIRE, ids=[wire.name for wire, _, _ in WIRE])
def test_an_mqtt_property_is_as_it_was_said(wire: Property, values: list[Any], field: str) -> None:
    assert getattr(from_wire({}), field) is None
    assert wire not in to_wire(Properties())
    for value in values:
        kept = from_wire({wire: value})
        assert getattr(kept, field) == value
        assert to_wire(kept)[wire] == value


TEXTS = ["content_encoding", "message_id", "type", "user_id", "app_id", "cluster_id", "reply_to"]
NUMBERS = ["priority", "timestamp"]


@pytest.mark.parametrize(("field", "value"), [*[(name, "") for name in TEXTS], *[(name, 0) for name in NUMBERS]])
def test_what_mqtt_has_no_property_for_comes_back_empty_or_0(field: str, value: Any) -> None:
    assert getattr(from_wire(to_wire(Properties(**{field: value}))), field) == value
    assert getattr(from_wire(to_wire(Properties())), field) is None


@pytest.mark.parametrize("value", ["", 0, 0.0, False, None, b"", [], {}])
def test_a_header_comes_back_as_it_was(value: Any) -> None:
    (pair,) = from_wire(to_wire(Properties(headers=(("h", value),)))).headers
    assert pair == ("h", value) and type(pair[1]) is type(value)


def test_a_response_topic_that_is_empty_is_an_error_and_none_is_none() -> None:
    with pytest.raises(ProtocolError):
        message_of(Publish("t", b"", properties={Property.RESPONSE_TOPIC: ""}), "m", "c", True)
    found = message_of(Publish("t", b""), "m", "c", True)
    assert isinstance(found, Message) and found.properties.reply_to is None


@pytest.mark.parametrize(("said", "ttl"), [(None, None), (0, 0.0), (1, 1.0), (NEVER, float(NEVER))])
def test_a_message_expiry_of_0_is_none_of_never(said: int | None, ttl: float | None) -> None:
    found = message_of(
        Publish("t", b"", properties={} if said is None else {Property.MESSAGE_EXPIRY_INTERVAL: said}), "m", "c", True
    )
    assert isinstance(found, Message) and found.ttl == ttl


def terms(
    *, properties: dict[Property, Any] | None = None, will: Will | None = None, keep_alive: int = 0, **settings: Any
) -> Any:
    connect = Connect("c", V5, True, keep_alive, will, properties=properties or {})
    limits = MqttSettings(listen=LISTEN, **settings)
    found = negotiate(connect, limits, "m", str)
    return found, capabilities(connect, found, limits)


@pytest.mark.parametrize("most", [0, 50, math.inf])
@pytest.mark.parametrize("said", [None, 0, 10, NEVER])
def test_a_session_expiry_of_0_ends_it_with_its_connection(said: int | None, most: float) -> None:
    found, told = terms(
        properties={} if said is None else {Property.SESSION_EXPIRY_INTERVAL: said},
        max_session_expiry=msgspec.convert(min(most, 1e9), float),
    )
    asked = math.inf if said == NEVER else said or 0
    assert found.expiry == min(asked, min(most, 1e9))
    assert (Property.SESSION_EXPIRY_INTERVAL in told) is (found.expiry != asked)


@pytest.mark.parametrize(("said", "longest", "holds"), [(0, 0, 0), (9, 0, 9), (0, 5, 5), (9, 5, 5), (3, 5, 3)])
def test_a_keep_alive_of_0_is_none(said: int, longest: int, holds: int) -> None:
    found, told = terms(keep_alive=said, max_keep_alive=float(longest))
    assert found.keep_alive == holds
    assert told.get(Property.SERVER_KEEP_ALIVE) == (None if said == holds else holds)


@pytest.mark.parametrize(("said", "delay"), [(None, 0.0), (0, 0.0), (7, 7.0)])
def test_a_will_delay_of_0_is_none(said: int | None, delay: float) -> None:
    will = Will("t", b"", 0, False, {} if said is None else {Property.WILL_DELAY_INTERVAL: said})
    assert terms(will=will)[0].carried_will.delay == delay


@pytest.mark.parametrize("aliases", [0, 4])
@pytest.mark.parametrize("said", [None, 0, 2])
def test_topic_aliases_of_0_are_none(said: int | None, aliases: int) -> None:
    properties = {} if said is None else {Property.TOPIC_ALIAS_MAXIMUM: said}
    found, told = terms(properties=properties, topic_alias_maximum=aliases)
    assert found.topic_aliases == min(said or 0, aliases)
    assert told.get(Property.TOPIC_ALIAS_MAXIMUM, 0) == aliases


# HTTP

HTTP: list[tuple[str, str, Any]] = [
    ("content-type", "content_type", ""),
    ("content-encoding", "content_encoding", ""),
    ("x-message-correlation-id", "correlation_id", b""),
    ("x-message-id", "message_id", ""),
    ("x-message-type", "type", ""),
    ("x-message-app-id", "app_id", ""),
    ("x-message-cluster-id", "cluster_id", ""),
    ("x-message-reply-to", "reply_to", ""),
    ("x-message-priority", "priority", 0),
    ("x-message-timestamp", "timestamp", 0),
    ("x-message-payload-format", "payload_format", 0),
]


def posted(**properties: Any) -> dict[str, str]:
    return dict(_headers(Delivery(1, Message("t", b"", properties=Properties(**properties)), "q", Options())))


@pytest.mark.parametrize(("name", "field", "value"), HTTP, ids=[name for name, _, _ in HTTP])
def test_a_property_is_in_http_as_it_was_said(name: str, field: str, value: Any) -> None:
    said = str(value) if value == 0 else ""
    assert getattr(_read_fields([(name, said)])["properties"], field) == value
    assert getattr(_read_fields([])["properties"], field) is None
    assert posted(**{field: value})[name] == said
    if name != "content-type":  # HTTP needs one
        assert name not in posted()


@pytest.mark.parametrize("name", ["ttl", "delay"])
def test_a_time_of_0_by_http_is_0(name: str) -> None:
    assert _read_fields([(f"x-message-{name}", "0")])[name] == 0.0
    assert name not in _read_fields([])
    with pytest.raises(Exception, match="expected a whole number"):
        _read_fields([(f"x-message-{name}", "")])
