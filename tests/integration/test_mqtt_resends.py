"""What was sent to a session and not acknowledged comes again, also when it has expired, its queue is full or the
daemon was killed: in its order, under its identifier where that is kept, and each retained message once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from tests.harness.daemon import Daemon
from tests.integration.mqtt_raw import RawClient, unique
from transports.mqtt.packets import V5, Ack, PingReq, PingResp, Property, Publish, Reason, Request, Type

EXPIRY = {Property.SESSION_EXPIRY_INTERVAL: 100}
Make = Callable[..., Daemon]
with_and_without_a_kill = pytest.mark.parametrize("kill", [False, True], ids=["reconnect", "kill"])
both_qos = pytest.mark.parametrize("qos", [1, 2])


class Device:
    """A client with a lasting session, and the publisher that it listens to."""

    def __init__(self, daemon: Daemon, stack: ExitStack) -> None:
        self.daemon = daemon
        self._stack = stack
        self.client: RawClient
        self._released: list[int] = []
        self.connect(present=False)

    def connect(self, present: bool = True, **properties: int) -> None:
        self._released.clear()
        self._there = True
        self.client = self._stack.enter_context(RawClient(self.daemon.address("mqtt"), V5))
        asked = {**EXPIRY, **{Property[name]: value for name, value in properties.items()}}
        assert self.client.connect("device", clean=not present, properties=asked).session_present is present

    def back(self, kill: bool = False, **properties: int) -> None:
        if kill:
            if self._there:
                self.nothing_comes()  # all that the client has sent is done
            self.barrier()
            self.daemon.restart()
        self.cut()
        self.connect(**properties)

    def cut(self) -> None:
        self.client.cut()
        self._there = False

    def barrier(self) -> None:
        """What was to be stored is stored."""
        with RawClient(self.daemon.address("mqtt")) as other:
            other.connect(unique())
            other.publish("nowhere")

    def say(self, topic: str, *bodies: bytes, qos: int = 2, retain: bool = False, **properties: int) -> None:
        told = {Property[name]: value for name, value in properties.items()}
        with RawClient(self.daemon.address("mqtt")) as other:
            other.connect(unique())
            for n, body in enumerate(bodies, 1):
                other.send(Publish(topic, body, qos, retain, False, n, told))
                assert other.expect(Ack).reason < Reason.UNSPECIFIED_ERROR

    def receive(self) -> Any:
        """The next packet. A PUBREL is answered already."""
        while isinstance(packet := self.client.receive(), Ack) and packet.packet_id in self._released:
            self._released.remove(packet.packet_id)
        return packet

    def take(self, count: int = 1) -> list[Publish]:
        found = [self.receive() for _ in range(count)]
        assert all(isinstance(packet, Publish) for packet in found), found
        return found

    def ack(self, *publishes: Publish) -> None:
        """With all that its QoS asks for; the client waits for nothing meanwhile."""
        for publish in publishes:
            if publish.qos == 1:
                self.client.send(Ack(Type.PUBACK, publish.packet_id))
            else:
                self._released.append(publish.packet_id)
                self.client.send(Ack(Type.PUBREC, publish.packet_id), Ack(Type.PUBCOMP, publish.packet_id))

    def get(self, count: int = 1) -> list[bytes]:
        """The next bodies, acknowledged."""
        bodies = []
        for _ in range(count):
            bodies += self.take()
            self.ack(bodies[-1])
        return [publish.payload for publish in bodies]

    def nothing_comes(self) -> None:
        self.client.send(PingReq())
        assert isinstance(self.receive(), PingResp)

    def depth(self) -> int:
        queues: list[dict[str, Any]] = httpx.get(self.daemon.url("admin") + "/api/v1/queues").json()["queues"]
        return int(next(one["depth"] for one in queues if one["name"] == "mqtt.device"))


@pytest.fixture
def device(daemon: Make) -> Iterator[Device]:
    with ExitStack() as stack:
        mqtt = {"type": "mqtt", "listen": "127.0.0.1:0", "max_messages": 3}
        yield Device(daemon({"transports": {"mqtt": mqtt}}), stack)


def ids(publishes: list[Publish]) -> list[tuple[bytes, int]]:
    return [(publish.payload, publish.packet_id) for publish in publishes]


@pytest.mark.parametrize(("qos", "kill"), [(1, False), (2, False), (2, True)])
def test_what_was_sent_does_not_expire(device: Device, qos: int, kill: bool) -> None:
    device.client.subscribe(Request("t", qos))
    device.say("t", b"first")
    device.say("t", b"second", MESSAGE_EXPIRY_INTERVAL=1)
    sent = device.take(2)
    device.cut()
    device.say("t", b"waits", MESSAGE_EXPIRY_INTERVAL=1)
    device.say("t", b"lasts")
    while device.depth() > 3:  # the one that waits expires, and no other
        pass
    device.back(kill)
    again = device.take(2)
    assert ids(again) == ids(sent) and all(publish.dup for publish in again)
    assert again[1].properties[Property.MESSAGE_EXPIRY_INTERVAL] == 1
    device.ack(*again)
    assert device.get() == [b"lasts"]
    device.nothing_comes()


@both_qos
def test_what_was_sent_is_not_dropped_for_newer_ones(device: Device, qos: int) -> None:
    device.client.subscribe(Request("t", qos))
    device.say("t", b"0", b"1", b"2")
    sent = device.take(3)
    device.cut()
    device.say("t", b"3", b"4", b"5", b"6")
    device.back()
    again = device.take(3)
    assert ids(again) == ids(sent)
    device.ack(*again)
    assert device.get(3) == [b"4", b"5", b"6"], "the limit holds for what waits"


def test_what_is_gone_is_released_as_soon_as_the_client_is_back(device: Device) -> None:
    device.client.subscribe(Request("t", 2))
    device.say("t", b"0")
    (sent,) = device.take()
    device.cut()
    device.barrier()  # the loss is known, so nothing is in flight, which a purge leaves
    httpx.post(device.daemon.url("admin") + "/api/v1/purge", json={"queue": "mqtt.device"}).raise_for_status()
    device.back()
    assert device.client.expect(Ack) == Ack(Type.PUBREL, sent.packet_id)


@both_qos
@with_and_without_a_kill
def test_retained_messages_in_flight_and_owed_come_after_a_restart(device: Device, qos: int, kill: bool) -> None:
    for n in range(5):
        device.say(f"r/{n}", b"%d" % n, qos=qos, retain=True)
    device.back(RECEIVE_MAXIMUM=2)
    device.client.subscribe(Request("r/+", qos))
    sent = device.take(2)
    device.ack(sent[0])
    sent += device.take(1)
    assert [publish.payload for publish in sent] == [b"0", b"1", b"2"]
    device.back(kill, RECEIVE_MAXIMUM=2)
    again = device.take(2)
    assert ids(again) == ids(sent[1:]) and all(publish.dup and publish.retain for publish in again)
    device.ack(*again)
    assert device.get(2) == [b"3", b"4"], "the first came once, and the others are not forgotten"
    device.back(kill)
    device.nothing_comes()


@with_and_without_a_kill
def test_a_retained_message_that_was_replaced_while_it_was_in_flight(device: Device, kill: bool) -> None:
    device.say("r", b"old", retain=True)
    device.client.subscribe(Request("r", 2))
    (old,) = device.take()
    device.cut()
    device.say("r", b"new", retain=True)
    device.back(kill)
    if kill:  # the store has it no more, and the client may have it
        assert device.client.expect(Ack) == Ack(Type.PUBREL, old.packet_id)
    else:
        assert ids(device.take()) == [(b"old", old.packet_id)]
    assert device.take()[0].payload == b"new"


def test_an_expired_retained_message_in_flight_comes_again(device: Device) -> None:
    device.say("r", b"brief", retain=True, MESSAGE_EXPIRY_INTERVAL=1)
    device.client.subscribe(Request("r", 2))
    sent = device.take()
    device.cut()
    with RawClient(device.daemon.address("mqtt")) as other:
        other.connect(unique())
        while other.subscribe(Request("r", 1)) and other_has(other):
            other.unsubscribe("r")
    device.back()
    assert ids(device.take()) == ids(sent)


def other_has(client: RawClient) -> bool:
    """Whether a new subscription got the retained message."""
    client.send(Publish("$queue/none", b"", 1, packet_id=9))
    packet = client.receive()
    if isinstance(packet, Ack):
        return False
    client.ack(packet)
    client.expect(Ack)
    return True


def test_resends_keep_their_order_among_retained_messages(device: Device) -> None:
    """Those that are retained and those that are not."""
    device.say("t/kept", b"kept", retain=True)
    device.client.subscribe(Request("t/#", 2, retain_handling=2))
    device.say("t/a", b"a")
    sent = device.take()
    device.client.subscribe(Request("t/kept", 2))
    sent += device.take()
    device.say("t/b", b"b")
    sent += device.take()
    assert [publish.payload for publish in sent] == [b"a", b"kept", b"b"]
    device.back()
    assert ids(device.take(3)) == ids(sent)
    device.back(RECEIVE_MAXIMUM=2)
    again = device.take(2)
    assert ids(again) == ids(sent[:2])
    device.nothing_comes()
    device.ack(again[0])
    assert ids(device.take()) == ids(sent[2:])


def test_a_subscription_that_ends_is_owed_nothing_after_a_restart(device: Device) -> None:
    for n in range(3):
        device.say(f"r/{n}", b"%d" % n, qos=1, retain=True)
    device.back(RECEIVE_MAXIMUM=1)
    device.client.subscribe("r/+")
    (sent,) = device.take()
    device.client.unsubscribe("r/+")
    device.back(kill=True)
    assert ids(device.take()) == [(b"0", sent.packet_id)]
    device.nothing_comes()
