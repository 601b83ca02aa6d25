"""MQTT connections on a real core and a transport that only records: pressure, credit, clocks, what is written."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import wraps
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.address import Address
from gateway.model.credit import Pressure
from gateway.model.message import Message
from gateway.model.policy import QueuePolicy, Seconds
from gateway.net.tcp import HIGH_WATER
from gateway.transport import Binding
from tests.harness.local import local_gateway
from tests.harness.socket import NoSocket
from tests.wire.mqtt_strategies import packets
from transports.mqtt.codec import Decoder, TopicNames
from transports.mqtt.connection import MqttConnection, Shared
from transports.mqtt.encoding import EncodedPublish, encode
from transports.mqtt.packets import (
    V5,
    V311,
    Ack,
    ConnAck,
    Connect,
    Disconnect,
    PingReq,
    PingResp,
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
from transports.mqtt.sessions import Sessions
from transports.mqtt.settings import MqttSettings


class Peer:
    """The client's end of one connection."""

    def __init__(self, shared: Shared, version: int) -> None:
        self.version = version
        self.connection = MqttConnection(shared)
        self.transport = NoSocket(self.connection)
        self.connection.connection_made(self.transport)
        self._decoder = Decoder(1 << 28, TopicNames(), version)

    def send(self, *packets: Any) -> None:
        """As one piece; nothing arrives while reading is paused."""
        assert self.transport.reading
        self.connection.data_received(b"".join(encode(packet, self.version) for packet in packets))

    def received(self) -> list[Any]:
        """What came since the last call."""
        found, used = self._decoder.decode(self.transport.data)
        del self.transport.data[:used]
        return list(found)


class House:
    def __init__(self, shared: Shared) -> None:
        self.shared = shared
        self.gateway = shared.gateway
        self.pressure = shared.gateway.pressure

    async def settle_down(self) -> None:
        """Everything that was begun is done."""
        for _ in range(3):
            await self.gateway.put()
            for _ in range(5):
                await asyncio.sleep(0)

    async def connect(self, version: int = V5, client_id: str = "a", **fields: Any) -> Peer:
        peer = Peer(self.shared, version)
        peer.send(Connect(client_id, version, **fields))
        await self.settle_down()
        (answer,) = peer.received()
        assert isinstance(answer, ConnAck) and answer.reason == Reason.SUCCESS
        return peer

    async def subscribe(self, peer: Peer, *filters: str, qos: int = 1) -> None:
        peer.send(Subscribe(1, tuple(Request(filter, qos) for filter in filters)))
        await self.settle_down()
        assert any(isinstance(packet, SubAck) for packet in peer.received())


@asynccontextmanager
async def house(**limits: Any) -> AsyncIterator[House]:
    async with local_gateway() as (gateway, _):
        gateway.pressure = Pressure()  # which only the test changes
        listener = MqttSettings(listen=Address.parse("127.0.0.1:0"), **limits)
        shared = Shared("mqtt", listener, gateway, Sessions(gateway))
        yield House(shared)
        for connection in list(shared.connections):
            connection.abort()
        await asyncio.sleep(0)


def run(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @wraps(test)
    def inner(*args: Any, **kwargs: Any) -> None:
        asyncio.run(test(*args, **kwargs))

    return inner


@run
async def test_under_pressure_a_publisher_is_not_read_and_its_clock_stands_still() -> None:
    async with house() as it:
        one = await it.connect(keep_alive=10)
        it.pressure.set(True)
        one.send(Publish("t", b"", 1, packet_id=1), PingReq())
        assert not one.transport.reading
        await it.settle_down()
        # What was read already is handled; nothing more is.
        assert one.received() == [PingResp(), Ack(Type.PUBACK, 1, Reason.NO_MATCHING_SUBSCRIBERS)]
        one.connection.tick(1000)
        one.connection.tick(1000)
        assert one.received() == []
        it.pressure.set(False)
        assert one.transport.reading
        one.connection.tick(14)
        assert one.received() == []
        one.connection.tick(2)  # more than one and a half keep-alives
        await it.settle_down()
        assert one.received()[0].reason == Reason.KEEP_ALIVE_TIMEOUT


@run
async def test_under_pressure_a_client_with_deliveries_is_read_and_its_publishes_refused() -> None:
    async with house() as it:
        five, three = await it.connect(V5, "five"), await it.connect(V311, "three")
        await it.subscribe(five, "t")
        await it.subscribe(three, "t")
        it.gateway.accept([Message("t", b"x")])
        await it.settle_down()
        (mine,), (yours,) = five.received(), three.received()
        it.pressure.set(True)
        five.send(Publish("t", b"", 1, packet_id=1), Publish("t", b""))
        three.send(Publish("t", b"", 1, packet_id=1))
        assert five.transport.reading
        await it.settle_down()
        (refused,) = five.received()
        assert (refused.type, refused.packet_id, refused.reason) == (Type.PUBACK, 1, Reason.QUOTA_EXCEEDED)
        assert three.transport.ended
        assert five.connection.counters.dropped["qos0-quota-exceeded"] == 1
        assert yours.payload == b"x"
        # With its PUBACK it holds nothing more, so its publish is taken, and then it waits.
        five.send(Ack(Type.PUBACK, mine.packet_id), Publish("t", b"y", 1, packet_id=2))
        assert not five.transport.reading
        await it.settle_down()
        assert Ack(Type.PUBACK, 2) in five.received()
        it.pressure.set(False)


@run
async def test_an_alias_counts_also_if_its_message_is_refused() -> None:
    async with house() as it:
        five = await it.connect(V5, "five")
        await it.subscribe(five, "t")
        it.gateway.accept([Message("t", b"x")])
        await it.settle_down()
        (mine,) = five.received()
        it.pressure.set(True)
        five.send(Publish("t", b"", 1, packet_id=1, properties={Property.TOPIC_ALIAS: 1}))
        await it.settle_down()
        (refused,) = five.received()
        assert refused.reason == Reason.QUOTA_EXCEEDED
        it.pressure.set(False)
        five.send(Ack(Type.PUBACK, mine.packet_id))
        five.send(Publish("", b"again", 1, packet_id=2, properties={Property.TOPIC_ALIAS: 1}))
        await it.settle_down()
        assert {type(packet) for packet in five.received()} == {Ack, Publish}


@run
async def test_deliveries_stop_while_the_client_takes_no_bytes_and_go_on_after() -> None:
    async with house(max_in_flight=10_000) as it:
        slow = await it.connect()
        await it.subscribe(slow, "t")
        slow.transport.stuck = True
        for _ in range(100):
            it.gateway.accept([Message("t", b"x" * 50_000)])
        await it.settle_down()
        assert HIGH_WATER < slow.transport.held < 2 * HIGH_WATER
        came = slow.received()
        assert 20 < len(came) < 40
        slow.transport.release()
        for _ in range(20):
            await it.settle_down()
        assert len(came) + len(slow.received()) == 100


@run
async def test_one_turn_makes_one_write() -> None:
    async with house() as it:
        one = await it.connect()
        await it.subscribe(one, "t")
        before = one.transport.writes
        one.send(*[Publish("t", b"%d" % n, 1, packet_id=n + 1) for n in range(200)])
        await it.settle_down()
        assert len(one.received()) == 400
        assert one.transport.writes - before <= 3


@run
async def test_a_fan_out_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    class Counted(EncodedPublish):
        def __init__(self, *args: Any) -> None:
            made.append(args)
            super().__init__(*args)

    monkeypatch.setattr("transports.mqtt.publish_cache.EncodedPublish", Counted)
    async with house() as it:
        peers = [await it.connect(version, f"{version}-{n}") for version in (V311, V5) for n in range(10)]
        for peer in peers:
            await it.subscribe(peer, "t")
        it.gateway.accept([Message("t", b"x", qos=1), Message("t", b"y", qos=0)])
        await it.settle_down()
        for peer in peers:
            assert [(p.payload, p.qos) for p in peer.received()] == [(b"y", 0), (b"x", 1)]
        assert len(made) == 4


@run
async def test_what_is_kept_encoded_is_bounded() -> None:
    async with house() as it:
        one = await it.connect()
        await it.subscribe(one, "t", qos=0)
        cache = it.shared.cache
        for n in range(100):
            it.gateway.accept([Message("t", b"%d" % n * 100_000, qos=0)])
            await it.settle_down()
        kept = sum(encoded.size for _, encoded in cache._encoded.values())
        assert kept <= cache.max_octets


@run
async def test_a_connection_that_breaks_counts_an_attempt_for_its_oldest_delivery_alone() -> None:
    async with house() as it:
        policy = QueuePolicy(max_deliveries=2, dead_letter="none")
        it.gateway.declare("q", policy, "config")
        it.gateway.accept([Message("q", b"%d" % n, "") for n in range(3)])
        for _ in range(2):
            worker = await it.connect()
            await it.subscribe(worker, "$queue/q")
            worker.connection.connection_lost(OSError("reset"))
            await it.settle_down()
        worker = await it.connect()
        worker.send(Subscribe(1, (Request("$queue/q", 1),)))
        await it.settle_down()
        assert [p.payload for p in worker.received() if isinstance(p, Publish)] == [b"1", b"2"]
        worker.send(Disconnect())
        for _ in range(3):  # a goodbye counts nothing
            worker = await it.connect()
            await it.subscribe(worker, "$queue/q")
            worker.send(Disconnect())
            await it.settle_down()
        assert it.gateway.queue("q").depth == 2


@run
async def test_a_deleted_queue_ends_its_consumers_and_a_deleted_session_its_connection() -> None:
    async with house() as it:
        it.gateway.declare("q", QueuePolicy(), "config")
        one = await it.connect(client_id="a", properties={Property.SESSION_EXPIRY_INTERVAL: 100})
        await it.subscribe(one, "$queue/q", "t")
        it.gateway.accept([Message("q", b"x", "")])
        await it.settle_down()
        (came,) = one.received()
        it.gateway.delete("q")
        one.send(Ack(Type.PUBACK, came.packet_id), PingReq())
        await it.settle_down()
        assert one.received() == [PingResp()]
        it.gateway.delete("mqtt.a")
        await it.settle_down()
        (goodbye,) = one.received()
        assert goodbye.reason == Reason.ADMINISTRATIVE_ACTION
        again = Peer(it.shared, V5)
        again.send(Connect("a", V5, False, properties={Property.SESSION_EXPIRY_INTERVAL: 100}))
        await it.settle_down()
        assert again.received()[0].session_present is False


@run
async def test_a_client_that_leaves_while_it_connects_leaves_nothing() -> None:
    async with house() as it:
        one = Peer(it.shared, V5)
        one.send(Connect("a", properties={Property.SESSION_EXPIRY_INTERVAL: 100}, will=Will("t", b"", 1)))
        one.connection.connection_lost(None)
        two = Peer(it.shared, V5)
        two.send(Connect("b"))
        two.connection.connection_lost(None)
        await it.settle_down()
        assert it.shared.connections == set()
        assert [queue.name for queue in it.gateway.queues() if queue.name.startswith("mqtt.")] == ["mqtt.a"]


@run
async def test_packet_identifiers_stay_unique_over_reconnects_and_shares() -> None:
    expiry = {Property.SESSION_EXPIRY_INTERVAL: 100}
    async with house() as it:
        one = await it.connect(client_id="a", properties=expiry)
        await it.subscribe(one, "t/#", "$share/s/t/#")
        it.gateway.accept([Message(f"t/{n}", b"") for n in range(20)])
        await it.settle_down()
        first = one.received()
        assert len({p.packet_id for p in first}) == 40
        one.connection.connection_lost(None)
        it.gateway.accept([Message(f"t/x{n}", b"") for n in range(20)])
        again = Peer(it.shared, V5)
        again.send(Connect("a", V5, False, properties=expiry))
        await it.settle_down()
        came = [p for p in again.received() if isinstance(p, Publish)]
        assert len(came) == 80
        assert len({p.packet_id for p in came}) == 80
        resent = {(p.topic, p.packet_id) for p in came if p.dup}
        assert len(resent) == 20 and resent <= {(p.topic, p.packet_id) for p in first}


@run
async def test_a_puback_for_what_will_be_resent_frees_nothing() -> None:
    expiry = {Property.SESSION_EXPIRY_INTERVAL: 100, Property.RECEIVE_MAXIMUM: 1}
    async with house() as it:
        one = await it.connect(client_id="a", properties=expiry)
        await it.subscribe(one, "t")
        it.gateway.accept([Message("t", b"0"), Message("t", b"1")])
        await it.settle_down()
        (came,) = one.received()
        one.connection.connection_lost(None)
        again = Peer(it.shared, V5)
        again.send(Connect("a", V5, False, properties=expiry))
        await it.settle_down()
        _, resent = again.received()
        assert (resent.packet_id, resent.dup) == (came.packet_id, True)
        again.send(Ack(Type.PUBACK, came.packet_id), Ack(Type.PUBACK, came.packet_id))
        await it.settle_down()
        assert [p.payload for p in again.received()] == [b"1"]


@run
async def test_a_route_to_a_full_queue_does_not_stop_the_others() -> None:
    async with house() as it:
        it.gateway.declare("small", QueuePolicy(max_messages=1), "config")
        it.gateway.bind(Binding(queue="small", filter="small", owner="config"))
        one = await it.connect()
        one.send(*[Publish(topic, b"", 1, packet_id=n) for n, topic in enumerate(("small", "small", "x"), 1)])
        one.send(Publish("small", b""))
        await it.settle_down()
        assert [p.reason for p in one.received()] == [0, Reason.QUOTA_EXCEEDED, Reason.NO_MATCHING_SUBSCRIBERS]
        assert one.connection.counters.dropped["qos0-refused"] == 1


@run
async def test_qos_0_from_a_share_is_settled_as_it_is_written_and_costs_no_window() -> None:
    async with house(max_in_flight=3) as it:
        one = await it.connect()
        await it.subscribe(one, "$share/s/t")
        for n in range(50):
            it.gateway.accept([Message("t", b"%d" % n, qos=0)])
        for _ in range(30):
            await it.settle_down()
        assert [(p.payload, p.qos) for p in one.received()] == [(b"%d" % n, 0) for n in range(50)]
        share = it.gateway.queue("mqtt.$share/s/t")
        assert (share.depth, share.in_flight) == (0, 0)


@run
async def test_a_message_that_mqtt_cannot_name_reaches_queue_consumers_under_the_queues_name() -> None:
    async with house() as it:
        it.gateway.declare("q", QueuePolicy(), "config")
        it.gateway.bind(Binding(queue="q", filter="#", exchange="logs", owner="config"))
        one = await it.connect()
        await it.subscribe(one, "$queue/q", "#")
        it.gateway.accept([Message("a/+/b", b"1", "logs"), Message("a/b", b"2", "logs"), Message("q", b"3", "")])
        await it.settle_down()
        assert [(p.topic, p.payload) for p in one.received()] == [("$queue/q", b"1"), ("a/b", b"2"), ("$queue/q", b"3")]


@run
async def test_what_the_wire_cannot_hold_is_given_up_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transports.mqtt.fields.MAX_SIZE", 1000)
    async with house() as it:
        one = await it.connect(properties={Property.RECEIVE_MAXIMUM: 1})
        await it.subscribe(one, "t")
        it.gateway.accept([Message("t", b"x" * 2000), Message("t", b"x" * 2000, qos=0), Message("t", b"y")])
        for _ in range(5):
            await it.settle_down()
        assert [p.payload for p in one.received()] == [b"y"]
        assert one.connection.counters.dropped["no-mqtt-message"] == 1


@pytest.mark.parametrize("version", [V311, V5])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_sequence_of_packets_raises_or_touches_another_client(data: st.DataObject, version: int) -> None:
    sequence = data.draw(st.lists(packets(version), max_size=12))

    @run
    async def play() -> None:
        async with house() as it:
            other, one = await it.connect(V5, "other"), await it.connect(version, "one")
            await it.subscribe(other, "watched")
            for packet in sequence:
                if one.transport.ended or not one.transport.reading:
                    break
                one.send(packet)
                await it.settle_down()
            other.received()
            it.gateway.accept([Message("watched", b"x")])
            await it.settle_down()
            assert [packet.payload for packet in other.received()] == [b"x"]

    play()


@run
async def test_a_session_stays_while_its_client_is_connected(monkeypatch: pytest.MonkeyPatch) -> None:
    async with house() as it:
        short = {Property.SESSION_EXPIRY_INTERVAL: 1}
        here, gone = await it.connect(V5, "here", properties=short), await it.connect(V5, "gone", properties=short)
        gone.send(Disconnect())
        later = it.gateway.now() + 1000.0
        monkeypatch.setattr(it.gateway, "now", lambda: later)
        it.shared.sessions.sweep()
        assert len(it.shared.sessions) == 1
        await it.subscribe(here, "t")


@run
async def test_there_are_no_more_sessions_than_allowed() -> None:
    async with house(max_sessions=1) as it:
        await it.connect(client_id="a")
        peer = Peer(it.shared, V5)
        peer.send(Connect("b"))
        await it.settle_down()
        assert peer.received()[0].reason == Reason.QUOTA_EXCEEDED
        assert peer.transport.ended
        await it.connect(client_id="a")


@run
async def test_what_an_operator_deleted_is_made_again() -> None:
    expiry = {Property.SESSION_EXPIRY_INTERVAL: 100}
    async with house() as it:
        one = await it.connect(client_id="a", properties=expiry)
        await it.subscribe(one, "t", "$share/s/x")
        it.gateway.delete("mqtt.$share/s/x")
        await it.subscribe(one, "$share/s/x")
        it.gateway.accept([Message("x", b"again")])
        await it.settle_down()
        assert [p.payload for p in one.received()] == [b"again"]
        one.send(Disconnect())
        await it.settle_down()
        it.gateway.delete("mqtt.a")
        again = Peer(it.shared, V5)
        again.send(Connect("a", V5, False, properties=expiry))
        await it.settle_down()
        (hello,) = again.received()
        assert (hello.reason, hello.session_present) == (Reason.SUCCESS, False)


@run
async def test_unsubscribing_from_a_queue_keeps_what_is_in_flight() -> None:
    async with house() as it:
        queue = it.gateway.declare("q", QueuePolicy(), "config")
        one = await it.connect()
        await it.subscribe(one, "$queue/q")
        it.gateway.accept([Message("q", b"1", ""), Message("q", b"2", "")])
        await it.settle_down()
        first, second = one.received()
        one.send(Unsubscribe(2, ("$queue/q",)))
        it.gateway.accept([Message("q", b"3", "")])
        await it.settle_down()
        assert [type(packet) for packet in one.received()] == [UnsubAck]
        one.send(Ack(Type.PUBACK, first.packet_id))
        await it.settle_down()
        assert (queue.depth, queue.in_flight) == (1, 1)
        one.send(Ack(Type.PUBACK, second.packet_id, Reason.UNSPECIFIED_ERROR))
        await it.settle_down()
        assert (queue.depth, queue.in_flight) == (2, 0)


@run
async def test_a_consumer_that_left_and_let_its_time_run_out_is_forgotten() -> None:
    async with house() as it:
        core = it.gateway.core
        queue = core.declare("jobs", QueuePolicy(ack_timeout=Seconds(0.001)), "config")
        one = await it.connect()
        for number in range(20):
            it.gateway.accept([Message("jobs", b"%d" % number, "")])
            one.send(Subscribe(1, (Request("$queue/jobs", 1),)))
            await it.settle_down()
            one.send(Unsubscribe(2, ("$queue/jobs",)))
            while queue.in_flight:
                core.tick()
                await it.settle_down()
        assert len(queue._leaving) <= 1
        # Its identifiers stay in use until they are acknowledged or the connection ends (ruling 15).
        late = [packet.packet_id for packet in one.received() if isinstance(packet, Publish)]
        assert len(late) == len(set(late)) >= 20
        one.send(*[Ack(Type.PUBACK, packet_id) for packet_id in late])
        await it.settle_down()
        assert not one.connection.has_unsettled
        assert not queue._leaving


@run
async def test_retain_on_a_queue_is_cleared_and_counted() -> None:
    async with house() as it:
        it.gateway.declare("q", QueuePolicy(), "config")
        one = await it.connect()
        one.send(Publish("$queue/q", b"", 1, True, False, 1))
        await it.subscribe(one, "$queue/q")
        assert one.connection.counters.dropped["retain-on-queue"] == 1
        assert list(it.gateway.retained("#")) == []


@run
async def test_a_client_that_waits_for_pressure_is_read_again_when_it_gets_a_delivery() -> None:
    async with house() as it:
        one = await it.connect()
        await it.subscribe(one, "t")
        it.pressure.set(True)
        one.send(Publish("other", b"", 1, packet_id=1))
        assert not one.transport.reading
        it.gateway.accept([Message("t", b"x")])
        await it.settle_down()
        assert one.transport.reading
        delivery = one.received()[-1]
        one.send(Ack(Type.PUBACK, delivery.packet_id))
        assert not one.connection.has_unsettled
        it.pressure.set(False)


async def acknowledge_all(it: House, one: Peer) -> list[bytes]:
    """The payloads of all that comes, until nothing does any more."""
    came: list[bytes] = []
    while publishes := [packet for packet in one.received() if isinstance(packet, Publish)]:
        came += [packet.payload for packet in publishes]
        one.send(*[Ack(Type.PUBACK, packet.packet_id) for packet in publishes])
        await it.settle_down()
    return came


@run
async def test_retained_messages_are_owed_once_for_each_subscription_however_often_it_is_made() -> None:
    async with house() as it:
        for name in "abc":
            it.gateway.accept([Message(f"r/{name}", name.encode(), qos=1, retain=True)])
        one = await it.connect(V5, "one", properties={Property.RECEIVE_MAXIMUM: 1})
        for _ in range(20):
            one.send(*[Subscribe(number + 1, (Request("r/+", 1),)) for number in range(50)])
            await it.settle_down()
        # What it had got already, and all of them once more.
        assert await acknowledge_all(it, one) == [b"a", b"a", b"b", b"c"]


@run
async def test_what_has_replaced_a_retained_message_is_the_last_that_a_slow_client_hears_of_its_topic() -> None:
    async with house() as it:
        for name in "abc":
            it.gateway.accept([Message(f"r/{name}", b"old " + name.encode(), qos=1, retain=True, ttl=100.0)])
        one = await it.connect(V5, "one", properties={Property.RECEIVE_MAXIMUM: 1})
        one.send(Subscribe(1, (Request("r/+", 1),)))
        await it.settle_down()
        it.gateway.accept([Message("r/b", b"new b", qos=0, retain=True)])
        await it.settle_down()
        assert await acknowledge_all(it, one) == [b"old a", b"new b", b"old c"]


LOST = Reason.QUOTA_EXCEEDED
SAME = [
    ((1, 1), (True, True), (1, 1), 1),
    ((1, 1), (True, False), (1, 1), 1),
    ((1, 1), (False, True), (LOST, LOST), 0),
    ((1, 1), (False, False), (LOST, LOST), 0),
]
OTHER = [
    ((1, 2), (True, True), (1, 2), 2),
    ((1, 2), (True, False), (1, LOST), 1),
    ((1, 2), (False, True), (LOST, 2), 2),
    ((1, 2), (False, False), (LOST, LOST), 0),
]


@pytest.mark.parametrize(
    ("filter", "asked", "kept", "answers", "left"),
    [*[("t", *row) for row in (*SAME, *OTHER)], *[("$share/s/t", *row) for row in SAME]],
)
@run
async def test_suback_and_the_subscription_agree_whatever_the_store_takes(
    monkeypatch: pytest.MonkeyPatch,
    filter: str,
    asked: tuple[int, int],
    kept: tuple[bool, bool],
    answers: tuple[int, int],
    left: int,
) -> None:
    """Two changes of one subscription, the second before the first is durable."""
    async with house() as it:
        one = await it.connect(V5, "one", properties={Property.SESSION_EXPIRY_INTERVAL: 100})
        await it.subscribe(one, filter, qos=0)
        puts: list[asyncio.Future[bool]] = []

        def put(changes: object = ()) -> asyncio.Future[bool]:
            puts.append(asyncio.get_running_loop().create_future())
            return puts[-1]

        with monkeypatch.context() as patched:
            patched.setattr(it.gateway, "put", put)
            one.send(*[Subscribe(n, (Request(filter, qos),)) for n, qos in enumerate(asked, 1)])
            for future, result in zip(puts, kept, strict=True):
                future.set_result(result)
                await asyncio.sleep(0)
                await asyncio.sleep(0)
        assert [packet.reasons for packet in one.received()] == [(reason,) for reason in answers]
        session = one.connection._session
        assert session is not None
        held = session.bindings.get(filter) or session.memberships[filter]
        assert held.options.qos == left
        await it.settle_down()


@run
async def test_no_retained_messages_are_owed_to_a_subscription_that_ended() -> None:
    async with house() as it:
        it.gateway.accept([Message("r/a", b"a", qos=1, retain=True), Message("s", b"s", qos=1, retain=True)])
        one = await it.connect(V5, "one", properties={Property.RECEIVE_MAXIMUM: 1})
        one.send(Subscribe(1, (Request("s", 1), Request("s/#", 1))))
        await it.settle_down()
        for number in range(100):
            filter = ("r/+", "r/a", "r/#")[number % 3]
            for packet in (Subscribe(1, (Request(filter, 1),)), Unsubscribe(2, (filter,))):
                one.send(packet)
                await it.settle_down()
        assert b"a" not in await acknowledge_all(it, one)


@run
async def test_a_client_that_is_stopped_gets_nothing_from_what_it_has_just_subscribed_to() -> None:
    async with house() as it:
        it.gateway.declare("q", QueuePolicy(), "test")
        one = await it.connect()
        await it.subscribe(one, "t")
        it.gateway.accept([Message("t", b"x"), Message("q", b"y", "")])
        await it.settle_down()
        (held,) = one.received()
        one.send(Subscribe(2, (Request("$queue/q", 1),)), Publish("t", b"", 0))
        one.connection.drain()
        one.send(Publish("t", b"", 0))
        await it.settle_down()
        assert [type(packet) for packet in one.received()] == [SubAck]
        assert one.connection.counters.dropped["qos0-stopping"] == 1
        one.send(Ack(Type.PUBACK, held.packet_id))
        await it.settle_down()
        assert isinstance(one.received()[-1], Disconnect)


@run
async def test_the_will_of_a_client_that_was_never_let_in_is_not_published() -> None:
    async with house() as it:
        watcher = await it.connect(client_id="watcher")
        await it.subscribe(watcher, "will")
        lasting = {Property.SESSION_EXPIRY_INTERVAL: 100}
        one = Peer(it.shared, V5)
        one.send(Connect("one", V5, will=Will("will", b"x", 1), properties=lasting))
        assert one.received() == []  # its session is not durable yet
        one.connection.abort()
        await it.settle_down()
        assert watcher.received() == []


@run
async def test_a_fault_of_ours_ends_the_connection_that_met_it_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    async with house() as it:
        one, two = await it.connect(client_id="one"), await it.connect(client_id="two")

        def fail(*args: object) -> None:
            raise RuntimeError("a fault")

        with monkeypatch.context() as patch:
            patch.setattr(type(one.connection.publishing), "take", fail)
            one.send(Publish("t", b"x", 1, packet_id=1))
        await it.settle_down()
        assert one.transport.ended
        assert one.connection.counters.protocol_errors["internal"] == 1
        two.send(PingReq())
        await it.settle_down()
        assert two.received() == [PingResp()]


@run
async def test_tiny_packets_take_turns_with_those_of_others() -> None:
    async with house() as it:
        one, other = await it.connect(client_id="one"), await it.connect(client_id="other")
        one.connection.data_received(b"\xc0\x00" * 20_000)
        other.send(PingReq())
        await asyncio.sleep(0)
        assert other.received() == [PingResp()]
        answered = len(one.received())
        assert 0 < answered < 10_000
        assert not one.transport.reading, "the buffer would grow while it waits for its turn"
        for _ in range(20):
            await asyncio.sleep(0)
        assert one.transport.reading
        assert answered + len(one.received()) == 20_000
        one.send(PingReq())
        await it.settle_down()
        assert one.received() == [PingResp()]
