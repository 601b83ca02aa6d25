"""Statements of the MQTT specifications that no other test shows, each by raw packets (docs/mqtt-conformance.md)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.harness.daemon import Daemon
from tests.integration.mqtt_raw import RawClient, unique
from transports.mqtt.encoding import encode
from transports.mqtt.packets import (
    V5,
    V311,
    Ack,
    ConnAck,
    Connect,
    Disconnect,
    Property,
    Publish,
    Reason,
    Request,
    SubAck,
    Subscribe,
    Type,
    UnsubAck,
    Unsubscribe,
    Will,
)

Open = Callable[..., RawClient]
both = pytest.mark.parametrize("version", [V311, V5])
ALIAS, WORDS, PAIRS, IDS = (
    Property.TOPIC_ALIAS,
    Property.REASON_STRING,
    Property.USER_PROPERTY,
    Property.SUBSCRIPTION_IDENTIFIER,
)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    listen = {"type": "mqtt", "listen": "127.0.0.1:0"}
    transports = {"mqtt": listen, "bare": {**listen, "topic_alias_maximum": 0}}
    queues = {"work": {}, "full": {"max_messages": 1}}
    daemon = Daemon(tmp_path_factory.mktemp("statements"), {"transports": transports, "queues": queues})
    daemon.start()
    with RawClient(daemon.address("mqtt")) as one:
        one.connect()
        assert one.publish("$queue/full").reason == 0
    yield daemon
    daemon.close()


@pytest.fixture
def client(gateway: Daemon) -> Iterator[Open]:
    with ExitStack() as stack:

        def open(version: int = V5, transport: str = "mqtt", client_id: str = "", **options: Any) -> RawClient:
            one = stack.enter_context(RawClient(gateway.address(transport), version))
            assert one.connect(client_id or unique(), **options).reason == Reason.SUCCESS
            return one

        yield open


def barrier(client: RawClient) -> None:
    """All that this client has sent is done and delivered."""
    client.publish("nowhere", packet_id=99)


# wills


@both
def test_without_a_will_nothing_is_published(client: Open, version: int) -> None:
    watcher = client()
    watcher.subscribe(Request("#", 1, retain_handling=2))
    client(version).cut()
    other = client(version, will=Will(unique("w"), b"gone", 1))
    other.cut()
    assert watcher.take()[1] == b"gone"  # the only one
    watcher.nothing_comes()


@both
def test_a_will_without_the_retain_flag_is_not_retained(client: Open, version: int) -> None:
    topic = unique("w")
    watcher = client(version)
    watcher.subscribe(topic)
    client(version, will=Will(topic, b"gone", 1)).cut()
    assert watcher.expect(Publish).retain is False
    late = client(version)
    late.subscribe(topic)
    late.nothing_comes()


def test_user_properties_of_a_will_keep_their_order(client: Open) -> None:
    topic, pairs = unique("w"), [("b", "1"), ("a", "2"), ("b", "1"), ("", "")]
    watcher = client()
    watcher.subscribe(topic)
    client(will=Will(topic, b"", 1, properties={PAIRS: pairs})).cut()
    assert watcher.expect(Publish).properties[PAIRS] == pairs


# connecting


@both
def test_letters_and_digits_are_client_identifiers(client: Open, version: int) -> None:
    for name in ("0123456789abcdefghijklm", "nopqrstuvwxyzABCDEFGHIJ", "KLMNOPQRSTUVWXYZ", "7"):
        client(version, client_id=name).nothing_comes()


def test_a_311_client_gets_no_connack_where_no_return_code_fits(gateway: Daemon) -> None:
    bad = bytearray(encode(Connect("x", V311), V311))
    bad[9] |= 1  # the reserved flag
    for data in (bytes(bad), encode(Connect("x", V311, will=Will("a/#", b"")), V311)):
        with RawClient(gateway.address("mqtt"), V311) as one:
            one.send(data)
            assert one.receive() is None


def test_a_listener_that_takes_no_aliases_is_sent_none(client: Open) -> None:
    one = client(transport="bare")
    one.send(Publish("a", b"", properties={ALIAS: 1}))
    assert one.expect(Disconnect).reason == Reason.TOPIC_ALIAS_INVALID


# what answers carry


def test_no_answer_has_words_that_could_make_it_too_large(client: Open) -> None:
    """Success of each kind, by a client that asks for all words and takes the largest packets."""
    one = client(properties={Property.REQUEST_PROBLEM_INFORMATION: 1})
    topic = unique("t")
    one.send(Subscribe(1, (Request(topic, 2),)))
    answers: list[Any] = [one.expect(SubAck)]
    one.send(Publish(topic, b"", 2, packet_id=1))
    came: list[Any] = [one.receive(), one.receive()]
    answers += [packet for packet in came if isinstance(packet, Ack)]
    (delivery,) = [packet for packet in came if isinstance(packet, Publish)]
    for packet in (Ack(Type.PUBREL, 1), Ack(Type.PUBREC, delivery.packet_id), Ack(Type.PUBREL, 7)):
        one.send(packet)
        answers.append(one.expect(Ack))
    answers.append(one.publish("nowhere", packet_id=3))
    one.send(Unsubscribe(1, (topic, "other")))
    answers.append(one.expect(UnsubAck))
    kinds = {(type(packet), getattr(packet, "type", None)) for packet in answers}
    acks = {(Ack, kind) for kind in (Type.PUBACK, Type.PUBREC, Type.PUBREL, Type.PUBCOMP)}
    assert kinds == acks | {(SubAck, None), (UnsubAck, None)}
    for packet in answers:
        assert WORDS not in packet.properties and PAIRS not in packet.properties


def test_connack_has_no_words(gateway: Daemon) -> None:
    for name, reason in (("ok", Reason.SUCCESS), ("$share/x", Reason.CLIENT_IDENTIFIER_NOT_VALID)):
        with RawClient(gateway.address("mqtt")) as one:
            told: ConnAck = one.connect(name)
            assert told.reason == reason
            assert WORDS not in told.properties and PAIRS not in told.properties


def test_a_refusal_says_why_if_there_is_room(client: Open) -> None:
    for largest, has_words in ((25, False), (1000, True)):
        one = client(client_id="x", properties={Property.MAXIMUM_PACKET_SIZE: largest})
        for qos, kind in ((1, Type.PUBACK), (2, Type.PUBREC)):
            one.send(Publish("$queue/full", b"", qos, packet_id=qos))
            said = one.expect(Ack)
            assert (said.type, said.reason, WORDS in said.properties) == (kind, Reason.QUOTA_EXCEEDED, has_words)
            assert len(encode(said, V5)) <= largest and PAIRS not in said.properties


def test_disconnect_says_why_if_there_is_room(client: Open) -> None:
    for largest, has_words in ((25, False), (1000, True)):
        one = client(client_id="x", properties={Property.MAXIMUM_PACKET_SIZE: largest})
        one.send(Publish("a", b"", properties={Property.RESPONSE_TOPIC: "a/#"}))
        said = one.expect(Disconnect)
        assert (said.reason, WORDS in said.properties) == (Reason.PROTOCOL_ERROR, has_words)
        assert len(encode(said, V5)) <= largest
        assert not said.properties.keys() & {Property.SESSION_EXPIRY_INTERVAL, PAIRS}


# messages


def test_dup_of_a_publisher_is_its_own(client: Open) -> None:
    topic = unique("t")
    watcher, one = client(), client()
    watcher.subscribe(Request(topic, 2))
    for qos in (1, 2):
        one.send(Publish(topic, b"", qos, False, True, qos))
        found = watcher.expect(Publish)
        assert (found.qos, found.dup) == (qos, False)
        watcher.ack(found)


@both
def test_what_is_not_retained_changes_nothing_that_is(client: Open, version: int) -> None:
    topic = unique("r")
    one = client(version)
    one.publish(topic, b"kept", 1, retain=True)
    for body in (b"passing", b""):
        one.publish(topic, body, 2)
    late = client(version)
    late.subscribe(topic)
    assert late.take() == (topic, b"kept")


def test_each_copy_has_the_subscription_identifier_of_its_own(client: Open) -> None:
    topic = unique("t")
    one = client()
    one.subscribe(topic, properties={IDS: [1]})
    one.subscribe(f"$share/{unique('s')}/{topic}", properties={IDS: [2]})
    client().publish(topic)
    copies = [one.expect(Publish), one.expect(Publish)]
    assert sorted(copy.properties[IDS] for copy in copies) == [[1], [2]]
    one.nothing_comes()


def test_an_exchange_of_qos_2_goes_on_though_the_message_has_expired(client: Open) -> None:
    one = client()
    one.send(Publish("$queue/work", b"", 2, packet_id=1, properties={Property.MESSAGE_EXPIRY_INTERVAL: 0}))
    assert one.expect(Ack) == Ack(Type.PUBREC, 1)
    one.send(Ack(Type.PUBREL, 1))
    assert one.expect(Ack) == Ack(Type.PUBCOMP, 1)


@pytest.mark.parametrize("wanted", ["{0}", "$share/g/{0}"])
def test_what_expires_at_once_is_for_who_is_there(client: Open, wanted: str) -> None:
    topic, now = unique("t"), {Property.MESSAGE_EXPIRY_INTERVAL: 0}
    one, other = client(), client()
    one.subscribe(wanted.format(topic), topic + "/end")
    other.publish(topic, b"now", 1, now)
    came = one.expect(Publish)
    assert came.payload == b"now"
    one.ack(came)
    name = unique("away")
    lasting = client(client_id=name, properties={Property.SESSION_EXPIRY_INTERVAL: 100})
    lasting.subscribe("away/" + topic, "stays/" + topic)
    lasting.cut()
    other.publish("away/" + topic, b"away", 1, now)
    other.publish("stays/" + topic, b"stays", 1)
    assert client(client_id=name, clean=False).expect(Publish).payload == b"stays"


@both
def test_topics_are_compared_character_by_character(client: Open, version: int) -> None:
    root = unique("c")
    one, other = client(version), client(version)
    one.subscribe(*[f"{root}/{name}" for name in ("caf\N{LATIN SMALL LETTER E WITH ACUTE}", "A", "\ufeffx")])
    for name in ("cafe\N{COMBINING ACUTE ACCENT}", "a", "x", "\ufeffx"):
        other.publish(f"{root}/{name}", name.encode())
    assert one.take() == (f"{root}/\ufeffx", "\ufeffx".encode())
    one.nothing_comes()


# shares


@both
def test_a_member_of_a_share_gets_no_more_than_its_qos(client: Open, version: int) -> None:
    topic, share = unique("t"), unique("s")
    one = client(version)
    one.subscribe(Request(f"$share/{share}/{topic}", 0))
    client(version).publish(topic, b"x")
    assert one.expect(Publish).qos == 0


def test_what_a_member_refuses_goes_to_no_other(client: Open) -> None:
    topic, share = unique("t"), unique("s")
    one, other = client(), client()
    one.subscribe(f"$share/{share}/{topic}")
    client().publish(topic, b"refused")
    found = one.expect(Publish)
    other.subscribe(f"$share/{share}/{topic}")
    one.ack(found, Reason.UNSPECIFIED_ERROR)
    barrier(one)
    one.unsubscribe(f"$share/{share}/{topic}")
    barrier(other)
    other.nothing_comes()
