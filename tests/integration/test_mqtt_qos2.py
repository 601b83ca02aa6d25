"""QoS 2: exactly one message each way, whatever connection, client or daemon is lost between its four packets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from tests.harness.daemon import Daemon
from tests.integration.mqtt_raw import RawClient, unique
from transports.mqtt.packets import V5, V311, Ack, ConnAck, Disconnect, Property, Publish, Reason, Request, Type, Will

EXPIRY = {Property.SESSION_EXPIRY_INTERVAL: 100}
CONFIG: dict[str, Any] = {"queues": {"work": {}, "full": {"max_messages": 1}}}
Make = Callable[..., Daemon]
both = pytest.mark.parametrize("version", [V311, V5])
with_and_without_a_kill = pytest.mark.parametrize("kill", [False, True], ids=["reconnect", "kill"])


class Life:
    """One daemon, and the clients of one test."""

    def __init__(self, daemon: Daemon, stack: ExitStack) -> None:
        self.daemon = daemon
        self._stack = stack

    def client(
        self, client_id: str = "", version: int = V5, clean: bool = True, present: bool | None = None, **options: Any
    ) -> RawClient:
        one = self._stack.enter_context(RawClient(self.daemon.address("mqtt"), version))
        if client_id and version == V5:
            options["properties"] = {**EXPIRY, **options.get("properties", {})}
        told: ConnAck = one.connect(client_id or unique(), clean, **options)
        assert told.reason == Reason.SUCCESS
        assert present is None or told.session_present is present
        return one

    def back(self, before: RawClient, client_id: str, kill: bool, version: int = V5, **options: Any) -> RawClient:
        """The client again, after its connection broke or the daemon was killed."""
        if kill:
            self.daemon.restart()
        before.cut()
        return self.client(client_id, version, clean=False, present=True, **options)

    def depth(self, queue: str = "work") -> int:
        with RawClient(self.daemon.address("mqtt")) as barrier:
            barrier.connect(unique())
            barrier.publish("nowhere")
        found: list[dict[str, Any]] = httpx.get(self.api + "queues").json()["queues"]
        return int(next(one["depth"] for one in found if one["name"] == queue))

    @property
    def api(self) -> str:
        return self.daemon.url("admin") + "/api/v1/"


@pytest.fixture
def life(daemon: Make) -> Iterator[Life]:
    with ExitStack() as stack:
        yield Life(daemon(CONFIG), stack)


def publish(topic: str = "$queue/work", body: bytes = b"x", packet_id: int = 1, dup: bool = False) -> Publish:
    return Publish(topic, body, 2, False, dup, packet_id)


def ack(type: Type, packet_id: int = 1, reason: int = 0) -> Ack:
    return Ack(type, packet_id, reason)


def send(client: RawClient, packet: Any) -> Ack:
    """And the answer to it, without its words."""
    client.send(packet)
    found = client.expect(Ack)
    return Ack(found.type, found.packet_id, found.reason)


# from a client


@both
@with_and_without_a_kill
def test_a_publish_that_comes_again_is_stored_once(life: Life, version: int, kill: bool) -> None:
    one = life.client("device", version, clean=False)
    assert send(one, publish(body=b"1")) == ack(Type.PUBREC)
    one = life.back(one, "device", kill, version)
    assert send(one, publish(body=b"1", dup=True)) == ack(Type.PUBREC)
    assert life.depth() == 1
    assert send(one, ack(Type.PUBREL)) == ack(Type.PUBCOMP)
    one = life.back(one, "device", kill, version)
    not_found = Reason.PACKET_IDENTIFIER_NOT_FOUND if version == V5 else 0
    assert send(one, ack(Type.PUBREL)) == ack(Type.PUBCOMP, 1, not_found)
    assert send(one, publish(body=b"2")) == ack(Type.PUBREC), "the identifier stands for another message now"
    assert life.depth() == 2


def test_a_release_is_answered_on_the_connection_that_it_comes_by(life: Life) -> None:
    one = life.client("device")
    assert send(one, publish()) == ack(Type.PUBREC)
    one = life.back(one, "device", False)
    assert send(one, ack(Type.PUBREL)) == ack(Type.PUBCOMP)
    assert send(one, publish()) == ack(Type.PUBREC)
    assert life.depth() == 2


def test_what_was_sent_and_not_answered_is_stored_once_after_a_kill(life: Life) -> None:
    """Whether the kill comes before or after the commit."""
    for n in range(1, 6):
        one = life.client("device", clean=False)
        one.send(publish(packet_id=n))
        one = life.back(one, "device", True)
        assert send(one, publish(packet_id=n, dup=True)) == ack(Type.PUBREC, n)
        assert send(one, ack(Type.PUBREL, n)) == ack(Type.PUBCOMP, n)
        assert life.depth() == n
        one.disconnect()


def test_pubrecs_come_in_the_order_of_the_publishes_among_pubacks(life: Life) -> None:
    one = life.client()
    packets = [Publish("$queue/work", b"", 1 + n % 2, packet_id=n) for n in range(1, 50)]
    one.send(*packets)
    answers = [one.expect(Ack) for _ in packets]
    assert answers == [ack(Type.PUBREC if n % 2 else Type.PUBACK, n) for n in range(1, 50)]
    one.send(*[ack(Type.PUBREL, n) for n in range(1, 50, 2)])
    assert [one.expect(Ack) for _ in range(1, 50, 2)] == [ack(Type.PUBCOMP, n) for n in range(1, 50, 2)]


def test_a_refused_message_is_told_and_its_identifier_free(life: Life) -> None:
    one = life.client("device")
    assert send(one, publish("$queue/full")) == ack(Type.PUBREC)
    assert send(one, publish("$queue/full", packet_id=2)) == ack(Type.PUBREC, 2, Reason.QUOTA_EXCEEDED)
    assert send(one, publish("$queue/work", packet_id=2)) == ack(Type.PUBREC, 2)
    assert send(one, publish("no/one", packet_id=3)) == ack(Type.PUBREC, 3, Reason.NO_MATCHING_SUBSCRIBERS)
    one = life.back(one, "device", True)
    assert send(one, publish("$queue/full", packet_id=4)) == ack(Type.PUBREC, 4, Reason.QUOTA_EXCEEDED)
    assert send(one, publish("$queue/work", packet_id=2, dup=True)) == ack(Type.PUBREC, 2)
    assert (life.depth(), life.depth("full")) == (1, 1)


def test_a_refused_message_ends_a_311_connection_without_pubrec(life: Life) -> None:
    one = life.client(version=V311)
    assert send(one, publish("$queue/full")) == ack(Type.PUBREC)
    one.send(publish("$queue/full", packet_id=2))
    assert one.receive() is None


def test_a_clean_start_knows_no_identifier(life: Life) -> None:
    one = life.client("device")
    assert send(one, publish()) == ack(Type.PUBREC)
    one.cut()
    one = life.client("device", clean=True)
    assert send(one, publish()) == ack(Type.PUBREC)
    assert life.depth() == 2
    one = life.back(one, "device", True)
    assert send(one, publish(dup=True)) == ack(Type.PUBREC)
    assert life.depth() == 2


def test_a_session_that_ends_leaves_no_identifier_in_the_store(life: Life) -> None:
    """Also if it lasts no longer than the connection by which its identifiers are released."""
    one = life.client("device")
    one.send(publish(packet_id=1), publish(packet_id=2))
    assert [one.expect(Ack).packet_id for _ in range(2)] == [1, 2]
    one.cut()
    one = life.client("device", clean=False, present=True, properties={Property.SESSION_EXPIRY_INTERVAL: 0})
    assert send(one, ack(Type.PUBREL)) == ack(Type.PUBCOMP)
    one.disconnect()
    life.client().publish("nowhere")
    life.daemon.restart()
    one = life.client("device", clean=False, present=False)
    for n in (1, 2):
        assert send(one, publish(packet_id=n)) == ack(Type.PUBREC, n)
    assert life.depth() == 4


def test_a_311_client_may_send_many_ahead_of_its_releases(daemon: Make) -> None:
    mqtt = {"type": "mqtt", "listen": "127.0.0.1:0", "receive_maximum": 2}
    with ExitStack() as stack:
        life = Life(daemon({**CONFIG, "transports": {"mqtt": mqtt}}), stack)
        one = life.client(version=V311)
        one.send(*[publish(packet_id=n) for n in range(1, 30)])
        assert [one.expect(Ack) for _ in range(1, 30)] == [ack(Type.PUBREC, n) for n in range(1, 30)]
        one.send(*[ack(Type.PUBREL, n) for n in range(1, 30)])
        assert [one.expect(Ack) for _ in range(1, 30)] == [ack(Type.PUBCOMP, n) for n in range(1, 30)]
        assert life.depth() == 29


def test_what_is_not_released_counts_to_receive_maximum(daemon: Make) -> None:
    mqtt = {"type": "mqtt", "listen": "127.0.0.1:0", "receive_maximum": 2}
    with ExitStack() as stack:
        life = Life(daemon({**CONFIG, "transports": {"mqtt": mqtt}}), stack)
        one = life.client("device")
        for n in (1, 2, 3):
            assert send(one, publish(packet_id=n)) == ack(Type.PUBREC, n)
            assert send(one, ack(Type.PUBREL, n)) == ack(Type.PUBCOMP, n)
        for n in (1, 2):
            assert send(one, publish(packet_id=n)) == ack(Type.PUBREC, n)
        one = life.back(one, "device", False)  # those are still there, and no longer of this connection
        for n in (1, 2):
            assert send(one, ack(Type.PUBREL, n)) == ack(Type.PUBCOMP, n)
        one.send(*[publish(packet_id=n) for n in (1, 2, 3)])
        for n in (1, 2):
            found = one.receive()
            if isinstance(found, Disconnect):
                break
            assert found == ack(Type.PUBREC, n)
        else:
            found = one.receive()
        assert isinstance(found, Disconnect) and found.reason == Reason.RECEIVE_MAXIMUM_EXCEEDED


# to a client


def subscribed(life: Life, name: str, version: int = V5, **options: Any) -> RawClient:
    one = life.client(name, version, clean=False, **options)
    assert one.subscribe(Request("t", 2)) == (2,)
    return one


def said(life: Life, *bodies: bytes) -> None:
    with RawClient(life.daemon.address("mqtt")) as publisher:
        publisher.connect(unique())
        for n, body in enumerate(bodies, 1):
            assert send(publisher, publish("t", body, n)) == ack(Type.PUBREC, n)


def taken(client: RawClient) -> tuple[bytes, int, bool]:
    found = client.expect(Publish)
    assert found.qos == 2
    return found.payload, found.packet_id, found.dup


@both
@with_and_without_a_kill
def test_a_delivery_keeps_its_identifier_until_it_is_complete(life: Life, version: int, kill: bool) -> None:
    one = subscribed(life, "device", version)
    said(life, b"a", b"b")
    first, second = taken(one), taken(one)
    assert (first, second) == ((b"a", first[1], False), (b"b", second[1], False))
    one = life.back(one, "device", kill, version)
    assert taken(one) == (b"a", first[1], True), "nothing was said to it: it comes again, as what it was"
    assert taken(one) == (b"b", second[1], True)
    assert send(one, ack(Type.PUBREC, first[1])) == ack(Type.PUBREL, first[1])
    one = life.back(one, "device", kill, version)
    assert one.expect(Ack) == ack(Type.PUBREL, first[1]), "it has the message, which does not come again"
    assert taken(one) == (b"b", second[1], True)
    assert send(one, ack(Type.PUBREC, second[1])) == ack(Type.PUBREL, second[1])
    one.send(ack(Type.PUBCOMP, second[1]), ack(Type.PUBCOMP, first[1]))
    one.publish("$queue/work")
    one = life.back(one, "device", kill, version)
    one.nothing_comes()


def test_releases_go_out_again_in_the_order_of_their_pubrecs(life: Life) -> None:
    one = subscribed(life, "device")
    said(life, b"a", b"b", b"c")
    ids = [taken(one)[1] for _ in range(3)]
    for packet_id in (ids[2], ids[0], ids[1]):
        assert send(one, ack(Type.PUBREC, packet_id)) == ack(Type.PUBREL, packet_id)
    one = life.back(one, "device", False)
    assert [one.expect(Ack).packet_id for _ in ids] == [ids[2], ids[0], ids[1]]


def test_the_window_opens_with_pubcomp(life: Life) -> None:
    one = subscribed(life, "device", properties={Property.RECEIVE_MAXIMUM: 1})
    said(life, b"a", b"b")
    _, packet_id, _ = taken(one)
    assert send(one, ack(Type.PUBREC, packet_id)) == ack(Type.PUBREL, packet_id)
    one.nothing_comes()
    one.send(ack(Type.PUBCOMP, packet_id))
    assert taken(one)[0] == b"b"


def test_a_negative_pubrec_ends_a_delivery(life: Life) -> None:
    one = subscribed(life, "device", properties={Property.RECEIVE_MAXIMUM: 1})
    said(life, b"a", b"b")
    one.send(ack(Type.PUBREC, taken(one)[1], Reason.QUOTA_EXCEEDED))
    body, packet_id, _ = taken(one)
    assert body == b"b"
    one = life.back(one, "device", True)
    assert taken(one) == (b"b", packet_id, True)


def test_identifiers_that_nobody_knows(life: Life) -> None:
    one = life.client()
    not_found = Reason.PACKET_IDENTIFIER_NOT_FOUND
    assert send(one, ack(Type.PUBREL, 9)) == ack(Type.PUBCOMP, 9, not_found)
    assert send(one, ack(Type.PUBREC, 9)) == ack(Type.PUBREL, 9, not_found)
    one.send(ack(Type.PUBREC, 9, Reason.UNSPECIFIED_ERROR), ack(Type.PUBCOMP, 9), ack(Type.PUBACK, 9))
    one.nothing_comes()


@both
@pytest.mark.parametrize("retained", [False, True])
@pytest.mark.parametrize(
    ("qos", "kind"), [(1, Type.PUBREC), (1, Type.PUBCOMP), (2, Type.PUBACK)], ids=["1 PUBREC", "1 PUBCOMP", "2 PUBACK"]
)
def test_an_acknowledgement_of_another_kind_than_the_qos_asks_for_ends_the_connection(
    life: Life, qos: int, kind: Type, retained: bool, version: int
) -> None:
    """What was acknowledged before it, counts; it and all behind it does not, and what they speak of comes again."""
    one = life.client("device", version, clean=False)
    bodies = [b"0", b"1", b"2"]
    if not retained:
        one.subscribe(Request("t/#", qos))
    with life.client() as other:
        for number, body in enumerate(bodies, 1):
            other.send(Publish(f"t/{number}", body, 2, retained, packet_id=number))
            assert other.expect(Ack).type is Type.PUBREC
    if retained:
        one.subscribe(Request("t/#", qos))
    sent = [one.expect(Publish) for _ in bodies]
    right = Type.PUBACK if qos == 1 else Type.PUBREC
    one.send(ack(right, sent[0].packet_id), ack(kind, sent[1].packet_id), ack(right, sent[2].packet_id))
    if version == V5:
        said = one.expect(Disconnect)
        assert said.reason == Reason.PROTOCOL_ERROR
        assert str(sent[1].packet_id) in said.properties[Property.REASON_STRING]
    assert one.receive() is None
    one = life.back(one, "device", False, version)
    if qos == 2:
        assert one.expect(Ack) == ack(Type.PUBREL, sent[0].packet_id)
    again = [one.expect(Publish) for _ in bodies[1:]]
    assert [(publish.payload, publish.packet_id, publish.dup) for publish in again] == [
        (publish.payload, publish.packet_id, True) for publish in sent[1:]
    ]


@with_and_without_a_kill
def test_what_is_gone_meanwhile_is_released(life: Life, kill: bool) -> None:
    """The client may have it, and would keep its identifier for ever."""
    single = {Property.RECEIVE_MAXIMUM: 1}
    one = subscribed(life, "device", properties=single)
    said(life, b"a")
    _, packet_id, _ = taken(one)
    one.cut()
    assert life.depth("mqtt.device") == 1  # a purge leaves what is in flight
    httpx.post(life.api + "purge", json={"queue": "mqtt.device"}).raise_for_status()
    one = life.back(one, "device", kill, properties=single)
    assert one.expect(Ack) == ack(Type.PUBREL, packet_id)
    said(life, b"b")
    one.nothing_comes()
    one.send(ack(Type.PUBCOMP, packet_id))
    assert taken(one)[0] == b"b"


def test_shares_and_queues_are_granted_qos_1(life: Life) -> None:
    one = life.client()
    assert one.subscribe(Request("$share/s/t", 2), Request("$queue/work", 2), Request("t", 2)) == (1, 1, 2)


@with_and_without_a_kill
def test_retained_messages_and_wills_of_qos_2(life: Life, kill: bool) -> None:
    one = life.client()
    assert send(one, Publish("t", b"kept", 2, True, False, 1)).type is Type.PUBREC
    one.cut()
    two = subscribed(life, "device")
    kept = two.expect(Publish)
    assert (kept.payload, kept.qos, kept.retain) == (b"kept", 2, True)
    assert send(two, ack(Type.PUBREC, kept.packet_id)) == ack(Type.PUBREL, kept.packet_id)
    two = life.back(two, "device", kill)
    assert two.expect(Ack) == ack(Type.PUBREL, kept.packet_id)
    two.send(ack(Type.PUBCOMP, kept.packet_id))
    life.client(will=Will("t", b"gone", 2)).cut()
    assert taken(two)[0] == b"gone"


def test_a_stopping_daemon_waits_for_what_is_not_complete(life: Life) -> None:
    one = subscribed(life, "device")
    said(life, b"a")
    _, packet_id, _ = taken(one)
    life.daemon.process.signal(15)
    assert send(one, ack(Type.PUBREC, packet_id)) == ack(Type.PUBREL, packet_id)
    one.send(ack(Type.PUBCOMP, packet_id))
    assert one.expect(Disconnect).reason == Reason.SERVER_SHUTTING_DOWN
