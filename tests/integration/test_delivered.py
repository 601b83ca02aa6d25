"""`ack: delivered`: a sender is answered when a link's remote has the message, with a real Mosquitto as the remote."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pamqp import commands

from tests.faults.abuse import metric
from tests.harness.amqp import AmqpPeer
from tests.harness.daemon import LISTENERS, Daemon
from tests.harness.link import GROUPS, SECONDS, UNLIMITED, Broker, Peer, Start, check_order, is_up, wait_for
from tests.harness.mosquitto import Mosquitto
from tests.harness.mqtt import MqttPeer
from tests.integration.mqtt_raw import RawClient, unique
from transports.mqtt.packets import V311, Ack, Property, Publish, Reason, Request, Type

MakePeer = Callable[..., Peer]
DELIVERED = "link.plant:delivered"


def config(broker: Mosquitto, within: str = "30s", **more: Any) -> dict[str, Any]:
    """`t/#` goes to the remote under the same topic, and `q/#` to a queue."""
    link = {"type": "mqtt-client", "url": broker.url, "reconnect": "50ms..200ms", "keep_alive": "10s"}
    return {
        "transports": {**LISTENERS, "plant": link},
        "queues": {"q": {}},
        "routes": [
            {"from": "t/#", "to": "plant:{topic}", "ack": "delivered", "deliver_within": within},
            {"from": "q/#", "to": "q"},
        ],
        **more,
    }


@contextlib.contextmanager
def paused(broker: Mosquitto) -> Iterator[None]:
    os.kill(broker.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(broker.pid, signal.SIGCONT)


def in_flight(gateway: Daemon) -> float:
    return metric(gateway, "gateway_queue_in_flight_messages", queue=DELIVERED)


@pytest.fixture
def broker(mosquitto: Broker) -> Mosquitto:
    return mosquitto(UNLIMITED)


@pytest.fixture
def gateway(daemon: Start, broker: Mosquitto) -> Daemon:
    started = daemon(config(broker))
    is_up(started)
    return started


@pytest.fixture
def device(gateway: Daemon) -> Iterator[RawClient]:
    with RawClient(gateway.address("mqtt")) as client:
        client.connect(unique())
        yield client


def test_acknowledgements_wait_for_the_remotes_in_the_order_of_their_messages(
    gateway: Daemon, broker: Mosquitto, device: RawClient, peer: MakePeer
) -> None:
    observer = peer(broker.address, "observer", "t/#")
    with paused(broker):
        device.send(
            Publish("t/1", b"a", 1, packet_id=1),
            Publish("q/1", b"b", 1, packet_id=2),
            Publish("nobody", b"", 1, packet_id=3),
            Publish("t/2", b"c", 2, packet_id=4),
            Publish("q/1", b"d", 2, packet_id=5),
        )
        device.nothing_comes()
        device.send(Publish("q/1", b"e", 1, packet_id=6))
        device.nothing_comes()
        with RawClient(gateway.address("mqtt")) as other:
            other.connect(unique())
            assert other.publish("q/1", b"f").reason == 0  # another client's does not wait
    found = [device.expect(Ack) for _ in range(6)]
    assert [(ack.type, ack.packet_id, ack.reason) for ack in found] == [
        (Type.PUBACK, 1, 0),
        (Type.PUBACK, 2, 0),
        (Type.PUBACK, 3, Reason.NO_MATCHING_SUBSCRIBERS),
        (Type.PUBREC, 4, 0),
        (Type.PUBREC, 5, 0),
        (Type.PUBACK, 6, 0),
    ]
    assert sorted(observer.wait_until(lambda bodies: len(bodies) == 2)) == [b"a", b"c"]
    assert metric(gateway, "gateway_queue_settled", queue=DELIVERED) == 2
    assert metric(gateway, "gateway_queue_messages", queue="q") == 4


def test_what_a_link_that_is_down_can_not_deliver_is_refused_and_never_sent(
    daemon: Start, broker: Mosquitto, peer: MakePeer
) -> None:
    gateway = daemon(config(broker, "300ms"))
    is_up(gateway)
    broker.stop()
    gateway.wait_for("link is down")
    with RawClient(gateway.address("mqtt")) as device, RawClient(gateway.address("mqtt"), V311) as old:
        device.connect(unique())
        old.connect(unique())
        assert device.publish("t/1", b"refused").reason == Reason.QUOTA_EXCEEDED
        old.send(Publish("t/1", b"refused", 1, packet_id=1))
        assert old.receive() is None  # 3.1.1 has no word for it
        assert metric(gateway, "gateway_queue_expired", queue=DELIVERED) == 2
        assert metric(gateway, "gateway_queue_messages", queue=DELIVERED) == 0
        seen = len(gateway.log)
        broker.start()
        observer = peer(broker.address, "observer", "t/#")
        is_up(gateway, after=seen)
        assert device.publish("t/1", b"delivered").reason == 0
        observer.take(b"delivered")


def test_what_the_remote_does_not_answer_in_time_is_refused_and_may_have_come(
    daemon: Start, broker: Mosquitto, peer: MakePeer
) -> None:
    gateway = daemon(config(broker, "300ms"))
    is_up(gateway)
    observer = peer(broker.address, "observer", "t/#")
    with RawClient(gateway.address("mqtt")) as device:
        device.connect(unique())
        with paused(broker):
            assert device.publish("t/1", b"unknown").reason == Reason.QUOTA_EXCEEDED
        observer.take(b"unknown")
        assert device.publish("t/1", b"next").reason == 0
        observer.take(b"unknown", b"next")
    wait_for(lambda: metric(gateway, "gateway_queue_stale_settlements", queue=DELIVERED) == 1, "it came too late")


def test_what_the_remote_refuses_is_the_senders_again(daemon: Start, mosquitto: Broker) -> None:
    broker = mosquitto("max_packet_size 2000")
    gateway = daemon(config(broker))
    is_up(gateway)
    with RawClient(gateway.address("mqtt")) as device:
        device.connect(unique())
        assert device.publish("t/1", b"x" * 3000).reason == Reason.QUOTA_EXCEEDED
        assert device.publish("t/1", b"x").reason == 0
    assert metric(gateway, "gateway_queue_refused", queue=DELIVERED) == 1
    assert metric(gateway, "gateway_queue_messages", queue="dead-letters") == 0


def test_a_qos_2_message_that_comes_again_meanwhile_is_not_answered_early(
    gateway: Daemon, broker: Mosquitto, peer: MakePeer
) -> None:
    observer = peer(broker.address, "observer", "t/#")
    name, kept = unique(), {Property.SESSION_EXPIRY_INTERVAL: 600}
    with paused(broker):
        with RawClient(gateway.address("mqtt")) as first:
            first.connect(name, False, kept)
            first.send(Publish("t/1", b"once", 2, packet_id=9))
            first.nothing_comes()
        with RawClient(gateway.address("mqtt")) as second:
            assert second.connect(name, False, kept).session_present
            second.send(Publish("t/1", b"once", 2, dup=True, packet_id=9))
            second.nothing_comes()
            os.kill(broker.pid, signal.SIGCONT)
            assert second.expect(Ack) == Ack(Type.PUBREC, 9)
            second.send(Ack(Type.PUBREL, 9))
            assert second.expect(Ack) == Ack(Type.PUBCOMP, 9)
    observer.take(b"once")


def test_nobody_waits_for_qos_0(gateway: Daemon, broker: Mosquitto, device: RawClient, peer: MakePeer) -> None:
    observer = peer(broker.address, "observer", "t/#")
    with paused(broker):
        device.send(Publish("t/1", b"a"), Publish("q/1", b"b", 1, packet_id=1), Publish("t/1", b"c"))
        assert device.expect(Ack) == Ack(Type.PUBACK, 1)
    observer.take(b"a", b"c")


async def confirms(gateway: Daemon, broker: Mosquitto, within: bool) -> list[tuple[Any, bool]]:
    """Of three messages, the first of which the remote must have; it is paused until two round trips later, or until
    the time is over."""
    found: list[tuple[Any, bool]] = []
    complete = asyncio.Event()

    def confirmed(token: Any, stored: bool) -> None:
        found.append((token, stored))
        if len(found) == 3:
            complete.set()

    client = await AmqpPeer.connect(gateway.address("amqp"))
    client.on_confirm = confirmed
    with paused(broker):
        for token, key in enumerate(("t.1", "q.1", "nobody")):
            client.publish(key, b"x", token)
            await client.call(commands.Basic.Qos(), commands.Basic.QosOk)
        assert found == []
        if not within:
            async with asyncio.timeout(SECONDS):
                await complete.wait()
    async with asyncio.timeout(SECONDS):
        await complete.wait()
    await client.close()
    return found


@pytest.mark.anyio
@pytest.mark.parametrize("within", [True, False])
async def test_confirms_wait_for_it_and_speak_for_no_other(daemon: Start, broker: Mosquitto, within: bool) -> None:
    gateway = daemon(config(broker, "30s" if within else "500ms"))
    is_up(gateway)
    assert await confirms(gateway, broker, within) == [(0, within), (1, True), (2, True)]


@pytest.mark.anyio
async def test_a_transaction_is_committed_when_it_is_delivered(gateway: Daemon, broker: Mosquitto) -> None:
    client = await AmqpPeer.connect(gateway.address("amqp"), confirm=False)
    await client.call(commands.Tx.Select(), commands.Tx.SelectOk)
    client.publish("t.1", b"x")
    client.publish("q.1", b"x")
    with paused(broker):
        commit = asyncio.ensure_future(client.call(commands.Tx.Commit(), commands.Tx.CommitOk))
        other = await AmqpPeer.connect(gateway.address("amqp"))  # some round trips
        assert await other.depth("q") == 1
        assert not commit.done()
        await other.close()
    async with asyncio.timeout(SECONDS):
        await commit
    await client.close()


def test_what_something_else_would_keep_is_refused(gateway: Daemon, device: RawClient) -> None:
    with RawClient(gateway.address("mqtt")) as careful, RawClient(gateway.address("mqtt")) as live:
        for client in (careful, live):
            client.connect(unique())
        live.subscribe(Request("t/#", 0))
        assert device.publish("t/1", b"1").reason == 0
        assert live.take() == ("t/1", b"1")
        careful.subscribe("t/#")
        assert device.publish("t/1", b"2").reason == Reason.QUOTA_EXCEEDED
        careful.unsubscribe("t/#")
        assert device.publish("t/1", b"3").reason == 0
        assert live.take() == ("t/1", b"3")
    assert metric(gateway, "gateway_refused", reason="delivered-and-stored") == 1


def test_a_stop_answers_what_is_in_flight_and_refuses_the_rest_at_once(
    gateway: Daemon, broker: Mosquitto, device: RawClient
) -> None:
    with paused(broker):
        device.send(Publish("t/1", b"a", 1, packet_id=1), Publish("t/1", b"b", 1, packet_id=2))
        device.nothing_comes()
        wait_for(lambda: in_flight(gateway) == 1, "the first is at the remote")
        gateway.process.signal(signal.SIGTERM)
        gateway.wait_for("draining")
    found = [device.expect(Ack) for _ in range(2)]
    assert [(ack.packet_id, ack.reason) for ack in found] == [(1, 0), (2, Reason.QUOTA_EXCEEDED)]
    device.cut()
    assert gateway.exit_status() == 0


def test_a_stop_does_not_wait_for_a_link_that_is_down(gateway: Daemon, broker: Mosquitto, device: RawClient) -> None:
    broker.stop()
    gateway.wait_for("link is down")
    device.send(Publish("t/1", b"a", 1, packet_id=1))
    device.nothing_comes()
    began = time.monotonic()
    gateway.process.signal(signal.SIGTERM)
    assert device.expect(Ack).reason == Reason.QUOTA_EXCEEDED
    assert time.monotonic() - began < 5  # the half of drain_timeout, and much less than deliver_within
    device.cut()
    assert gateway.exit_status() == 0


def test_a_reload_takes_the_route_away_and_gives_it_back(
    gateway: Daemon, broker: Mosquitto, device: RawClient, peer: MakePeer
) -> None:
    observer = peer(broker.address, "observer", "t/#")
    with paused(broker):
        device.send(Publish("t/1", b"taken", 1, packet_id=1))
        device.nothing_comes()
        gateway.configure(config(broker, routes=[]))
        gateway.hup()
        gateway.wait_for("reloaded")
    assert device.expect(Ack) == Ack(Type.PUBACK, 1)
    assert device.publish("t/1").reason == Reason.NO_MATCHING_SUBSCRIBERS
    seen = len(gateway.log)
    gateway.configure(config(broker))
    gateway.hup()
    gateway.wait_for("reloaded", after=seen)
    assert device.publish("t/1", b"again").reason == 0
    observer.take(b"taken", b"again")


# under load


@pytest.mark.anyio
async def test_whatever_was_acknowledged_is_at_the_remote_when_the_gateway_is_killed(
    daemon: Start, broker: Mosquitto, peer: MakePeer
) -> None:
    observer = peer(broker.address, "observer", "t/#")
    gateway = daemon(config(broker))
    acknowledged: set[bytes] = set()
    sent = 0

    async def publish_and_kill(life: int) -> None:
        is_up(gateway)
        device = await MqttPeer.connect(gateway.address("mqtt"), f"device{life}")
        start, enough = len(acknowledged), asyncio.Event()

        def send() -> None:
            nonlocal sent
            body = b"%d" % sent
            device.publish(f"t/{sent % 50}", body, body)
            sent += 1

        def answered(body: bytes) -> None:
            acknowledged.add(body)
            send()  # so that some are on their way at any time
            if len(acknowledged) >= start + 200:
                enough.set()

        device.on_answer = answered
        for _ in range(500):
            send()
        async with asyncio.timeout(SECONDS):
            await enough.wait()
        gateway.kill()
        await device.close()
        gateway.start()

    for life in range(3):
        await publish_and_kill(life)
    assert metric(gateway, "gateway_queue_messages", queue=DELIVERED) == 0, "nothing is stored here"
    await asyncio.to_thread(observer.wait_until, lambda bodies: acknowledged <= set(bodies))
    assert 600 <= len(acknowledged) < sent


def test_a_link_to_a_link_holds_nothing_and_loses_nothing(daemon: Start, mosquitto: Broker, peer: MakePeer) -> None:
    """From one broker to another: what comes over the first link is acknowledged there when the second one has it."""
    near, far = mosquitto("max_queued_messages 0"), mosquitto(UNLIMITED)
    settings = config(far, "300ms")
    settings["transports"]["field"] = {**settings["transports"]["plant"], "url": near.url, "subscribe": ["up/#"]}
    route = {"from": "up/#", "source": "field", "to": "plant:{topic}", "ack": "delivered", "deliver_within": "300ms"}
    settings["routes"] = [route]
    gateway = daemon(settings)
    for link in ("plant", "field"):
        gateway.wait_for("link is up", lambda record, link=link: record["link"] == link)
    observer = peer(far.address, "observer", "up/#")
    feeder = peer(near.address, "feeder")

    def feed() -> None:
        for number in range(600):
            feeder.publish(f"up/{number % GROUPS}", b"%d" % number)

    feeding = threading.Thread(target=feed, daemon=True)
    feeding.start()
    observer.wait_until(lambda bodies: len(bodies) >= 100)
    far.stop()
    gateway.wait_for("link is down")
    far.start()
    observer.wait_until(lambda bodies: len(set(bodies)) >= 300)
    gateway.kill()
    gateway.start()
    check_order(observer.wait_until(lambda bodies: len(set(bodies)) >= 600), 600)
    feeding.join(SECONDS)
    wait_for(lambda: metric(gateway, "gateway_queue_messages") == 0, "nothing is left here")
