"""The MQTT listener of a running daemon, packet by packet: delivery, sessions, shares, queues, wills."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.harness.daemon import Daemon
from tests.integration.mqtt_raw import RawClient, unique
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
    Will,
)

EXPIRY = {Property.SESSION_EXPIRY_INTERVAL: 100}
both = pytest.mark.parametrize("version", [V311, V5])


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One daemon for all tests here: each uses topics, queues and client ids of its own."""
    folder: Path = tmp_path_factory.mktemp("mqtt")
    queues = {name: {"retry_delay": "0s", "max_deliveries": 3} for name in ("work", "work2", "work3", "work4")}
    queues["small"] = {"max_messages": 2}
    queues["order"] = {"group": "{topic[1]}"}
    routes = [{"from": "small/#", "to": "small"}, {"from": "order/+", "to": "order"}]
    daemon = Daemon(folder, {"queues": queues, "routes": routes})
    yield daemon.start()
    daemon.close()


@pytest.fixture
def client(gateway: Daemon) -> Iterator[Callable[..., RawClient]]:
    """`client(version)` is connected to nothing but the port; all are closed at the end."""
    with ExitStack() as stack:

        def open(version: int = V5) -> RawClient:
            return stack.enter_context(RawClient(gateway.address("mqtt"), version))

        yield open


@pytest.fixture
def connected(client: Callable[..., RawClient]) -> Callable[..., RawClient]:
    """`connected(version, client_id, clean, properties)`."""

    def connect(version: int = V5, client_id: str = "", clean: bool = True, **options: Any) -> RawClient:
        one = client(version)
        assert one.connect(client_id or unique(), clean, **options).reason == Reason.SUCCESS
        return one

    return connect


Connected = Callable[..., RawClient]


# connecting


def test_connack_tells_an_mqtt5_client_what_is_there(client: Connected) -> None:
    one = client(V5)
    told = one.connect("", True, {Property.SESSION_EXPIRY_INTERVAL: 0xFFFF_FFFF})
    assert Property.MAXIMUM_QOS not in told.properties, "QoS 2"
    assert told.properties[Property.RECEIVE_MAXIMUM] == 1000
    assert told.properties[Property.MAXIMUM_PACKET_SIZE] == 1 << 20
    assert told.properties[Property.ASSIGNED_CLIENT_IDENTIFIER].startswith("auto-")
    assert told.properties[Property.SESSION_EXPIRY_INTERVAL] == 7 * 86400


def test_a_client_without_id_and_with_a_session_is_refused(client: Connected) -> None:
    one = client(V311)
    assert one.connect("", clean=False).reason == Reason.CLIENT_IDENTIFIER_NOT_VALID
    assert one.receive() is None


def test_a_share_is_no_client_id(client: Connected) -> None:
    assert client(V5).connect("$share/a/b").reason == Reason.CLIENT_IDENTIFIER_NOT_VALID


@both
def test_take_over_closes_the_first_connection(connected: Connected, version: int) -> None:
    name = unique()
    first = connected(version, name)
    second = connected(version, name)
    if version == V5:
        assert first.expect(Disconnect).reason == Reason.SESSION_TAKEN_OVER
    assert first.receive() is None
    second.nothing_comes()


def test_keep_alive_ends_a_silent_connection_and_publishes_its_will(connected: Connected) -> None:
    topic = unique("will")
    watcher = connected()
    watcher.subscribe(topic)
    silent = connected(keep_alive=1, will=Will(topic, b"gone", 1))
    assert watcher.take() == (topic, b"gone")
    assert silent.expect(Disconnect).reason == Reason.KEEP_ALIVE_TIMEOUT
    assert silent.receive() is None


# publish and subscribe


@both
@pytest.mark.parametrize("qos", [0, 1])
def test_a_message_reaches_live_subscribers_once(connected: Connected, version: int, qos: int) -> None:
    topic = unique("t")
    subscriber, publisher = connected(version), connected(version)
    assert subscriber.subscribe(Request(f"{topic}/#", qos), Request(f"{topic}/+/x", qos)) == (qos, qos)
    assert publisher.publish(f"{topic}/a/x", b"1").reason == Reason.SUCCESS
    publisher.send(Publish(f"{topic}/a/x", b"2"))
    assert subscriber.take() == (f"{topic}/a/x", b"1")
    assert subscriber.take() == (f"{topic}/a/x", b"2")
    subscriber.nothing_comes()


def test_pubacks_come_in_the_order_of_the_publishes_and_tell_the_outcome(connected: Connected) -> None:
    topic = unique("t")
    one = connected()
    one.subscribe(topic)
    sent = []
    for packet_id in range(1, 60):
        name = ("$SYS/x", topic, "nobody/here", "$queue/mqtt.me")[packet_id % 4]
        sent.append(Publish(name, b"", 1, False, False, packet_id))
    one.send(*sent)
    acks = []
    while len(acks) < len(sent):
        packet = one.receive()
        if isinstance(packet, Ack):
            acks.append((packet.packet_id, packet.reason))
    expected = (Reason.TOPIC_NAME_INVALID, Reason.SUCCESS, Reason.NO_MATCHING_SUBSCRIBERS, Reason.NOT_AUTHORIZED)
    assert acks == [(packet_id, expected[packet_id % 4]) for packet_id in range(1, 60)]


def test_a_full_queue_refuses_with_0x97_and_ends_a_311_connection(connected: Connected) -> None:
    five, three = connected(V5), connected(V311)
    assert [five.publish("small/a", b"", n).reason for n in (1, 2)] == [0, 0]
    told = five.publish("small/a", b"", 3)
    assert told.reason == Reason.QUOTA_EXCEEDED and "no room" in told.properties[Property.REASON_STRING]
    three.send(
        Publish("nobody/here", b"", 1, False, False, 1),
        Publish("small/a", b"", 1, False, False, 2),
        Publish("nobody/here", b"", 1, False, False, 3),
    )
    assert three.expect(Ack).packet_id == 1
    assert three.receive() is None


@pytest.mark.parametrize(
    "asked", [{Property.REQUEST_PROBLEM_INFORMATION: 0}, {Property.MAXIMUM_PACKET_SIZE: 20}], ids=["not asked", "small"]
)
def test_reasons_in_words_are_for_those_who_want_them_and_take_them(connected: Connected, asked: Any) -> None:
    one = connected(V5, properties=asked)
    told = one.publish("$SYS/x", b"")
    assert told.reason == Reason.TOPIC_NAME_INVALID and not told.properties
    assert connected(V5).publish("$SYS/x", b"").properties[Property.REASON_STRING]


def test_properties_and_subscription_identifiers_arrive(connected: Connected) -> None:
    topic = unique("t")
    one = connected()
    one.subscribe(f"{topic}/#", properties={Property.SUBSCRIPTION_IDENTIFIER: [5]})
    one.subscribe(f"{topic}/+", properties={Property.SUBSCRIPTION_IDENTIFIER: [3]})
    said = {
        Property.PAYLOAD_FORMAT_INDICATOR: 1,
        Property.CONTENT_TYPE: "text/plain",
        Property.RESPONSE_TOPIC: "back/here",
        Property.CORRELATION_DATA: b"\0\1",
        Property.USER_PROPERTY: [("b", "2"), ("a", "1"), ("b", "2")],
    }
    other = connected()
    other.publish(f"{topic}/x", b"hi", 1, {**said, Property.MESSAGE_EXPIRY_INTERVAL: 60})
    came = one.expect(Publish)
    assert {name: came.properties[name] for name in said} == said
    assert came.properties[Property.SUBSCRIPTION_IDENTIFIER] == [3, 5]
    assert 59 <= came.properties[Property.MESSAGE_EXPIRY_INTERVAL] <= 60


def test_no_local_keeps_a_clients_own_messages_away(connected: Connected) -> None:
    topic = unique("t")
    one = connected()
    one.subscribe(Request(topic, 1, no_local=True))
    assert one.publish(topic, b"mine").reason == Reason.NO_MATCHING_SUBSCRIBERS
    connected().publish(topic, b"other")
    assert one.take() == (topic, b"other")


def test_unsubscribe_ends_delivery(connected: Connected) -> None:
    topic = unique("t")
    one = connected()
    one.subscribe(topic)
    assert one.unsubscribe(topic, topic).reasons == (Reason.SUCCESS, Reason.NO_SUBSCRIPTION_EXISTED)
    assert one.publish(topic).reason == Reason.NO_MATCHING_SUBSCRIBERS


@both
def test_the_client_gets_no_more_than_its_receive_maximum(connected: Connected, version: int) -> None:
    topic = unique("t")
    limit = {Property.RECEIVE_MAXIMUM: 2} if version == V5 else {}
    one, other = connected(version, properties=limit), connected(version)
    one.subscribe(topic)
    for n in range(4):
        other.publish(topic, b"%d" % n, n + 1)
    if version == V311:
        assert [one.take()[1] for _ in range(4)] == [b"0", b"1", b"2", b"3"]
        return
    first, second = one.expect(Publish), one.expect(Publish)
    one.nothing_comes()
    one.ack(second)
    third = one.expect(Publish)
    one.nothing_comes()
    one.ack(first)
    fourth = one.expect(Publish)
    assert [p.payload for p in (first, second, third, fourth)] == [b"0", b"1", b"2", b"3"]


def test_a_message_too_large_for_the_subscriber_is_left_out(connected: Connected) -> None:
    topic = unique("t")
    one = connected(properties={Property.MAXIMUM_PACKET_SIZE: 100, Property.RECEIVE_MAXIMUM: 1})
    one.subscribe(topic)
    other = connected()
    other.publish(topic, b"x" * 200, 1)
    other.publish(topic, b"y", 2)
    assert one.take() == (topic, b"y")


# retained messages


@both
def test_retained_messages_reach_new_subscriptions(connected: Connected, version: int) -> None:
    topic = unique("r")
    publisher = connected(version)
    for n in range(3):
        publisher.publish(f"{topic}/{n}", b"%d" % n, 1, retain=True)
    publisher.publish(f"{topic}/1", b"", 1, retain=True)  # cleared
    one = connected(version)
    one.subscribe(f"{topic}/+")
    came = [one.expect(Publish) for _ in range(2)]
    assert [(p.topic, p.payload, p.retain) for p in came] == [(f"{topic}/0", b"0", True), (f"{topic}/2", b"2", True)]
    publisher.publish(f"{topic}/0", b"live", 1, retain=True)
    assert one.expect(Publish).retain is False
    one.nothing_comes()


def test_retain_handling_and_retain_as_published(connected: Connected) -> None:
    topic = unique("r")
    publisher = connected()
    publisher.publish(topic, b"kept", 1, retain=True)
    one = connected()
    one.subscribe(Request(topic, 1, retain_handling=2))
    one.nothing_comes()
    one.subscribe(Request(topic, 1, retain_handling=1))  # the subscription is not new
    one.nothing_comes()
    one.unsubscribe(topic)
    one.subscribe(Request(topic, 1, retain_handling=1, retain_as_published=True))
    assert one.take() == (topic, b"kept")
    publisher.publish(topic, b"live", 1, retain=True)
    assert one.expect(Publish).retain is True


def test_retained_messages_come_as_the_credit_allows(connected: Connected) -> None:
    topic = unique("r")
    publisher = connected()
    for n in range(5):
        publisher.publish(f"{topic}/{n}", b"%d" % n, 1, retain=True)
    one = connected(properties={Property.RECEIVE_MAXIMUM: 2})
    one.subscribe(f"{topic}/#")
    came = [one.expect(Publish), one.expect(Publish)]
    one.nothing_comes()
    for _ in range(3):
        one.ack(came[-1])
        came.append(one.expect(Publish))
    assert [p.payload for p in came] == [b"0", b"1", b"2", b"3", b"4"]


# sessions


@both
def test_a_session_keeps_subscriptions_and_messages(connected: Connected, client: Connected, version: int) -> None:
    name, topic = unique(), unique("t")
    lasting: dict[str, Any] = {"clean": False, "properties": EXPIRY if version == V5 else {}}
    first = client(version)
    assert first.connect(name, **lasting).session_present is False
    first.subscribe(topic)
    first.disconnect()
    publisher = connected(version)
    publisher.send(Publish(topic, b"qos 0 is not kept"))
    for n in range(3):
        publisher.publish(topic, b"%d" % n, n + 1)
    second = client(version)
    assert second.connect(name, **lasting).session_present is True
    assert [second.take()[1] for _ in range(3)] == [b"0", b"1", b"2"]
    second.nothing_comes()
    third = client(version)
    assert third.connect(name, clean=True).session_present is False
    assert publisher.publish(topic).reason == (Reason.NO_MATCHING_SUBSCRIBERS if version == V5 else 0)


def test_what_was_not_acknowledged_comes_again_with_its_identifier_and_dup(
    connected: Connected, client: Connected
) -> None:
    name, topic = unique(), unique("t")
    first = connected(V5, name, properties=EXPIRY)
    first.subscribe(topic)
    publisher = connected()
    for n in range(4):
        publisher.publish(topic, b"%d" % n, n + 1)
    came = [first.expect(Publish) for _ in range(4)]
    first.ack(came[1])
    first.nothing_comes()
    first.cut()
    publisher.publish(topic, b"4", 9)
    second = client(V5)
    assert second.connect(name, False, EXPIRY).session_present is True
    again = [second.expect(Publish) for _ in range(4)]
    assert [(p.payload, p.dup) for p in again] == [(b"0", True), (b"2", True), (b"3", True), (b"4", False)]
    assert [p.packet_id for p in again[:3]] == [came[0].packet_id, came[2].packet_id, came[3].packet_id]
    assert again[3].packet_id not in [p.packet_id for p in again[:3]]


def test_a_retained_message_in_flight_comes_again(connected: Connected, client: Connected) -> None:
    name, topic = unique(), unique("r")
    connected().publish(topic, b"kept", 1, retain=True)
    first = connected(V5, name, properties=EXPIRY)
    first.subscribe(topic)
    came = first.expect(Publish)
    first.cut()
    second = client(V5)
    second.connect(name, False, EXPIRY)
    again = second.expect(Publish)
    assert (again.packet_id, again.dup, again.retain, again.payload) == (came.packet_id, True, True, b"kept")


def test_a_session_expires(connected: Connected, client: Connected) -> None:
    name, topic = unique(), unique("t")
    first = connected(V5, name, properties={Property.SESSION_EXPIRY_INTERVAL: 1})
    first.subscribe(topic)
    watcher = connected()
    watcher.subscribe(topic + "/will")
    first.disconnect()
    # Its will, delayed far beyond the session, comes with the session's end.
    name = unique()
    will = Will(topic + "/will", b"", 1, properties={Property.WILL_DELAY_INTERVAL: 600})
    second = connected(V5, name, properties={Property.SESSION_EXPIRY_INTERVAL: 1}, will=will)
    second.cut()
    assert watcher.take()[0] == topic + "/will"
    assert client(V5).connect(name, False, EXPIRY).session_present is False


def test_disconnect_may_change_the_expiry_but_not_give_one(connected: Connected, client: Connected) -> None:
    name = unique()
    connected(V5, name, properties=EXPIRY).disconnect(properties={Property.SESSION_EXPIRY_INTERVAL: 0})
    assert client(V5).connect(name, False, EXPIRY).session_present is False
    one = connected(V5)
    one.send(Disconnect(0, {Property.SESSION_EXPIRY_INTERVAL: 5}))
    assert one.expect(Disconnect).reason == Reason.PROTOCOL_ERROR


# wills


@pytest.mark.parametrize(("reason", "published"), [(None, True), (0, False), (4, True)])
def test_the_will_is_published_unless_the_client_says_goodbye(
    connected: Connected, reason: int | None, published: bool
) -> None:
    topic = unique("w")
    watcher = connected()
    watcher.subscribe(topic)
    one = connected(will=Will(topic, b"will", 1, True, {Property.CONTENT_TYPE: "x"}))
    if reason is None:
        one.cut()
    else:
        one.disconnect(reason)
    if published:
        came = watcher.expect(Publish)
        assert (came.payload, came.properties[Property.CONTENT_TYPE]) == (b"will", "x")
        late = connected()
        late.subscribe(topic)
        assert late.take() == (topic, b"will")
    else:
        connected().publish(topic, b"the first")
        assert watcher.take() == (topic, b"the first")


def test_a_delayed_will_is_taken_back_when_the_client_returns(connected: Connected) -> None:
    topic, name = unique("w"), unique()
    watcher = connected()
    watcher.subscribe(topic)
    will = Will(topic, b"will", 1, properties={Property.WILL_DELAY_INTERVAL: 1})
    connected(V5, name, properties=EXPIRY, will=will).cut()
    connected(V5, name, clean=False, properties=EXPIRY)
    other = connected(V5, unique(), properties=EXPIRY, will=Will(topic, b"other", 1))
    other.cut()
    assert watcher.take() == (topic, b"other")
    late = connected(V5, unique(), properties=EXPIRY, will=Will(topic, b"late", 1, properties=will.properties))
    late.cut()
    assert watcher.take() == (topic, b"late")


# shares and queues


@both
def test_a_share_gives_each_message_to_one_member(connected: Connected, version: int) -> None:
    topic = unique("s")
    members = [connected(version) for _ in range(2)]
    for one in members:
        assert one.subscribe(f"$share/team/{topic}/#") == (1,)
    publisher = connected(version)
    for n in range(10):
        publisher.publish(f"{topic}/x", b"%d" % n, n + 1)
    took = []
    for one in members:
        took += [one.take()[1] for _ in range(5)]
    assert sorted(took) == [b"%d" % n for n in range(10)]
    for one in members:
        one.nothing_comes()


def test_a_share_hands_a_leaving_members_messages_to_the_others(connected: Connected) -> None:
    topic = unique("s")
    first, second, publisher = connected(), connected(), connected()
    first.subscribe(f"$share/team/{topic}")
    publisher.publish(topic, b"0", 1)
    publisher.publish(topic, b"1", 2)
    assert [first.expect(Publish).payload for _ in range(2)] == [b"0", b"1"]
    second.subscribe(f"$share/team/{topic}")
    second.nothing_comes()
    first.cut()
    came = [second.expect(Publish) for _ in range(2)]
    assert [(p.payload, p.dup) for p in came] == [(b"0", False), (b"1", False)]


def test_the_last_member_takes_the_share_with_it(connected: Connected) -> None:
    topic = unique("s")
    one, publisher = connected(), connected()
    one.subscribe(f"$share/team/{topic}")
    assert publisher.publish(topic).reason == Reason.SUCCESS
    assert one.expect(Publish)
    one.unsubscribe(f"$share/team/{topic}")
    assert publisher.publish(topic).reason == Reason.NO_MATCHING_SUBSCRIBERS


def test_a_lasting_member_keeps_the_share_while_it_is_away(connected: Connected) -> None:
    topic, name = unique("s"), unique()
    one = connected(V5, name, properties=EXPIRY)
    one.subscribe(f"$share/team/{topic}")
    one.disconnect()
    assert connected().publish(topic, b"kept").reason == Reason.SUCCESS
    back = connected(V5, name, clean=False, properties=EXPIRY)
    assert back.take() == (topic, b"kept")


@pytest.mark.parametrize("filter", ["$share//a", "$share/a", "$share/a/", "$share/+/a", "$share/a/b#", "a/#/b", "a+"])
def test_an_invalid_filter_is_refused_alone(connected: Connected, filter: str) -> None:
    assert connected().subscribe(filter, unique("t")) == (Reason.TOPIC_FILTER_INVALID, 1)
    assert connected(V311).subscribe(filter, unique("t")) == (0x80, 1)


def test_a_queue_is_consumed_with_puback_as_done_and_a_reason_as_retry(connected: Connected) -> None:
    worker, other, publisher = connected(), connected(), connected()
    assert worker.subscribe("$queue/work") == (1,)
    assert publisher.publish("$queue/work", b"job", 1, retain=True).reason == Reason.SUCCESS
    first = worker.expect(Publish)
    assert (first.topic, first.qos, first.retain, first.dup) == ("$queue/work", 1, False, False)
    worker.ack(first, Reason.UNSPECIFIED_ERROR)
    second = worker.expect(Publish)
    assert (second.payload, second.dup) == (b"job", False)
    assert second.packet_id != first.packet_id
    worker.ack(second)
    worker.nothing_comes()
    worker.unsubscribe("$queue/work")
    other.subscribe("$queue/work")
    other.nothing_comes()


def test_attempts_of_a_queue_are_counted_and_end_in_the_dead_letters(connected: Connected) -> None:
    worker, dead, publisher = connected(), connected(), connected()
    worker.subscribe("$queue/work2")
    dead.subscribe("$queue/dead-letters")
    publisher.publish("$queue/work2", b"poison")
    for _ in range(3):
        worker.ack(worker.expect(Publish), Reason.IMPLEMENTATION_SPECIFIC_ERROR)
    assert dead.take()[1] == b"poison"
    worker.nothing_comes()


def test_a_queue_message_of_qos_0_is_settled_by_puback_too(connected: Connected) -> None:
    worker, publisher = connected(), connected()
    publisher.send(Publish("$queue/work3", b"0"))
    worker.subscribe("$queue/work3")
    came = worker.expect(Publish)
    assert came.qos == 1
    worker.cut()
    again = connected()
    again.subscribe("$queue/work3")
    assert again.take() == ("$queue/work3", b"0")


def test_a_queue_is_refused_at_qos_0_if_unknown_and_if_it_is_a_sessions(connected: Connected) -> None:
    one = connected()
    refused = one.subscribe(Request("$queue/work4", 0), "$queue/nowhere", "$queue/mqtt.x")
    assert refused == (Reason.IMPLEMENTATION_SPECIFIC_ERROR, Reason.TOPIC_FILTER_INVALID, Reason.NOT_AUTHORIZED)
    assert one.subscribe(Request("$queue/work4", 1, no_local=True)) == (Reason.IMPLEMENTATION_SPECIFIC_ERROR,)


def test_a_group_is_delivered_in_order_to_several_consumers(connected: Connected) -> None:
    first, second, publisher = connected(), connected(), connected()
    first.subscribe("$queue/order")
    second.subscribe("$queue/order")
    for n in range(4):
        publisher.publish("order/a", b"%d" % n, n + 1)
    for n in range(4):
        taker, other = (first, second) if n % 2 == 0 else (second, first)
        came = taker.expect(Publish)
        assert came.payload == b"%d" % n
        other.nothing_comes()
        taker.ack(came)


def test_a_late_puback_is_ignored(connected: Connected) -> None:
    one = connected()
    one.send(Ack(Type.PUBACK, 77), Ack(Type.PUBACK, 78, Reason.UNSPECIFIED_ERROR))
    one.nothing_comes()


def test_connack_comes_before_everything_else(client: Connected) -> None:
    """What a client sends right behind its CONNECT waits, and is handled then."""
    topic = unique("t")
    one = client(V5)
    one.send(
        Connect(unique()),
        Subscribe(1, (Request(topic, 1),)),
        Publish(topic, b"mine", 1, False, False, 5),
    )
    kinds = {type(one.receive()) for _ in range(1)}
    assert kinds == {ConnAck}
    rest = {type(one.receive()) for _ in range(3)}
    assert rest == {SubAck, Ack, Publish}
