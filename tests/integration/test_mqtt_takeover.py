"""A client that comes back before its old connection has ended: whatever becomes of the old socket, and whenever, the
new connection goes on as if the old one had never been."""

from __future__ import annotations

import itertools
import random
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.harness.daemon import Daemon
from tests.integration.mqtt_raw import RawClient, unique
from transports.mqtt.packets import (
    V5,
    V311,
    Ack,
    Disconnect,
    PingReq,
    PingResp,
    Property,
    Publish,
    Reason,
    Request,
    Type,
    Will,
)

WINDOW = 4
"""Deliveries in flight to one client, by the listener's limit."""
MESSAGES = [b"%d" % number for number in range(12)]
GROUPS = 3
EXPIRY = {Property.SESSION_EXPIRY_INTERVAL: 100}
KINDS = ["own-1", "own-2", "retained-1", "retained-2", "share", "plain", "group", "priority"]
QUEUES: dict[str, dict[str, Any]] = {"plain": {}, "group": {"group": "{topic[1]}"}, "priority": {"max_priority": 3}}
SECONDS = 20.0
"""How long an end may take to be seen."""
ALL = [(kind, version) for kind in KINDS for version in (V5, V311)]
each_kind = pytest.mark.parametrize(("kind", "version"), ALL, ids=[f"{kind} {version}" for kind, version in ALL])
_numbers = itertools.count()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """`$queue/` consumers have a queue for each test, of each kind."""
    folder: Path = tmp_path_factory.mktemp("takeover")
    queues = {f"{kind}{n}": policy for kind, policy in QUEUES.items() for n in range(40)}
    routes = [{"from": f"{name}/+", "to": name} for name in queues]
    listener = {"type": "mqtt", "listen": "127.0.0.1:0", "max_in_flight": WINDOW}
    daemon = Daemon(folder, {"transports": {"mqtt": listener}, "queues": queues, "routes": routes})
    yield daemon.start()
    daemon.close()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


class Case:
    """One client id with its messages, and the connections that it has had."""

    def __init__(self, gateway: Daemon, stack: ExitStack, kind: str, version: int) -> None:
        self.gateway = gateway
        self._stack = stack
        self.kind, _, qos = kind.partition("-")
        self.version = version
        self.qos = int(qos or 1)
        self.client_id = unique("device")
        number = next(_numbers) % 40
        self.root = f"{self.kind}{number}" if self.kind in QUEUES else unique("root")
        self.filter = {"share": f"$share/g/{self.root}/#"}.get(self.kind, f"{self.root}/#")
        self.queue = {"share": f"mqtt.$share/g/{self.root}/#"}.get(self.kind, f"mqtt.{self.client_id}")
        if self.kind in QUEUES:
            self.filter, self.queue = f"$queue/{self.root}", self.root
        self.at_once = GROUPS if self.kind == "group" else WINDOW
        self.clients: list[RawClient] = []
        self.received = 0
        """Identifier of a delivery that is released, and that only PUBCOMP is missing of."""

    @property
    def client(self) -> RawClient:
        return self.clients[-1]

    def connect(self, clean: bool = False, present: bool = True, will: Will | None = None) -> RawClient:
        one = self._stack.enter_context(RawClient(self.gateway.address("mqtt"), self.version))
        properties = EXPIRY if self.version == V5 else {}
        assert one.connect(self.client_id, clean, properties, will=will).session_present is present
        self.clients.append(one)
        return one

    def begin(self) -> None:
        """The first connection, with all in flight that there may be."""
        self.connect(present=False)
        if self.kind == "retained":
            self.publish()
        assert self.client.subscribe(Request(self.filter, self.qos)) == (self.qos,)
        if self.kind != "retained":
            self.publish()
        self.take()

    def publish(self, bodies: Sequence[bytes] = MESSAGES) -> None:
        with RawClient(self.gateway.address("mqtt")) as other:
            other.connect(unique())
            for number, body in enumerate(bodies):
                topic = f"{self.root}/{number % GROUPS if self.kind == 'group' else number}"
                other.send(Publish(topic, body, 2, self.kind == "retained", False, number + 1))
                answer = other.expect(Ack)
                assert answer.type is Type.PUBREC and answer.reason < Reason.UNSPECIFIED_ERROR
                other.send(Ack(Type.PUBREL, number + 1))
                assert other.expect(Ack).type is Type.PUBCOMP

    def take(self) -> list[Publish]:
        """As many as may be in flight, and no more."""
        found = [self.client.expect(Publish) for _ in range(self.at_once)]
        assert all(publish.qos == self.qos for publish in found)
        self.client.nothing_comes()
        return found

    def take_over(self) -> list[Publish]:
        old = self.client
        self.connect()
        if self.version == V5:
            assert old.expect(Disconnect).reason == Reason.SESSION_TAKEN_OVER
        assert old.receive() is None
        return self.take()

    def receive(self, publish: Publish) -> None:
        """The first half of its acknowledgement, if it has two: the second is sent by `finish`."""
        if self.qos == 2:
            self.received = publish.packet_id
            self.client.send(Ack(Type.PUBREC, publish.packet_id))
            assert self.client.expect(Ack) == Ack(Type.PUBREL, publish.packet_id)

    def finish(self, taken: Sequence[Publish]) -> None:
        """All is acknowledged, and each came once more after the take-over."""
        waiting, bodies = list(taken), []
        while waiting:
            publish = waiting.pop(0)
            if publish.packet_id == self.received:
                self.client.send(Ack(Type.PUBCOMP, publish.packet_id))
                self.received = 0
            else:
                self.client.ack(publish)
            bodies.append(publish.payload)
            if len(bodies) + len(waiting) < len(MESSAGES):
                waiting.append(self.client.expect(Publish))
        assert sorted(bodies) == sorted(MESSAGES)
        self.nothing_is_left()

    def nothing_is_left(self) -> None:
        self.client.nothing_comes()
        listed: list[dict[str, Any]] = httpx.get(self.gateway.url("admin") + "/api/v1/queues").json()["queues"]
        (found,) = [one for one in listed if one["name"] == self.queue]
        assert (found["depth"], found["in_flight"]) == (0, 0)
        self.client.cut()
        self.connect()
        self.client.nothing_comes()


def end(gateway: Daemon, old: RawClient, how: str, left: int) -> None:
    """The socket ends, and the daemon has seen it: it has so many left, or fewer, since it ends by itself those that
    stay silent. In silence that is what is waited for."""
    if how == "RST":
        old.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    if how != "silence":
        old.socket.close()
    deadline = time.monotonic() + SECONDS
    while connections(gateway) > left:
        assert time.monotonic() < deadline, f"{connections(gateway)} connections are left, not {left}"
        time.sleep(0.02)


def connections(gateway: Daemon) -> int:
    page = httpx.get(gateway.url("admin") + "/metrics").text
    (line,) = [line for line in page.splitlines() if line.startswith('gateway_transport_connections{transport="mqtt"}')]
    return int(float(line.rpartition(" ")[2]))


@pytest.mark.parametrize("how", ["FIN", "RST"])
@each_kind
def test_the_end_of_the_old_connection_is_nothing_to_the_new_one(
    gateway: Daemon, stack: ExitStack, kind: str, version: int, how: str
) -> None:
    case = Case(gateway, stack, kind, version)
    case.begin()
    taken = case.take_over()
    case.receive(taken[0])
    end(gateway, case.clients[0], how, 1)
    case.client.nothing_comes()
    case.finish(taken)


def test_an_old_connection_that_stays_silent_is_ended_and_is_nothing_to_the_new_one(
    gateway: Daemon, stack: ExitStack
) -> None:
    cases = [Case(gateway, stack, kind, version) for kind, version in ALL]
    for case in cases:
        case.begin()
    taken = [case.take_over() for case in cases]
    for case, publishes in zip(cases, taken, strict=True):
        case.receive(publishes[0])
    end(gateway, cases[0].clients[0], "silence", len(cases))
    for case, publishes in zip(cases, taken, strict=True):
        case.finish(publishes)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["first in, first out", "last in, first out"])
@each_kind
def test_a_third_connection_goes_on_whichever_of_the_others_ends_first(
    gateway: Daemon, stack: ExitStack, kind: str, version: int, order: tuple[int, int]
) -> None:
    case = Case(gateway, stack, kind, version)
    case.begin()
    case.take_over()
    taken = case.take_over()
    end(gateway, case.clients[order[0]], "FIN", 2)
    case.receive(taken[0])
    end(gateway, case.clients[order[1]], "RST", 1)
    case.finish(taken)


@pytest.mark.parametrize("how", ["FIN", "RST"])
@pytest.mark.parametrize("version", [V5, V311])
@pytest.mark.parametrize("kind", ["own-1", "own-2", "share", "plain", "group", "priority"])
def test_the_end_of_the_old_connection_leaves_a_session_that_began_anew_alone(
    gateway: Daemon, stack: ExitStack, kind: str, version: int, how: str
) -> None:
    """As it would if it ended what has the same client id: the session, its share, its queue."""
    case = Case(gateway, stack, kind, version)
    case.begin()
    old = case.client
    if version == V5:
        case.connect(clean=True, present=False)
    else:  # such a session ends with its connection, so a third one begins one that lasts
        case.connect(clean=True, present=False)
        case.client.disconnect()
        case.connect(present=False)
    assert case.client.subscribe(Request(case.filter, case.qos)) == (case.qos,)
    if kind in ("own-1", "own-2", "share"):  # what the old session had is gone with it
        case.publish()
    taken = case.take()
    end(gateway, old, how, 1)
    case.finish(taken)


@pytest.mark.parametrize("version", [V5, V311])
def test_each_connection_leaves_its_own_will_and_leaves_it_once(
    gateway: Daemon, stack: ExitStack, version: int
) -> None:
    topic = unique("will")
    watch = stack.enter_context(RawClient(gateway.address("mqtt")))
    watch.connect(unique())
    watch.subscribe(topic)
    case = Case(gateway, stack, "own-1", version)
    case.connect(present=False, will=Will(topic, b"first", 1))
    case.connect(will=Will(topic, b"second", 1))
    assert watch.take() == (topic, b"first")
    end(gateway, case.clients[0], "RST", 2)
    watch.nothing_comes()
    end(gateway, case.client, "RST", 1)
    assert watch.take() == (topic, b"second")


@pytest.mark.parametrize("how", ["FIN", "RST"])
@pytest.mark.parametrize("version", [V5, V311])
def test_what_was_published_with_qos_2_goes_on_over_the_new_connection(
    gateway: Daemon, stack: ExitStack, version: int, how: str
) -> None:
    topic = unique("in")
    watch = stack.enter_context(RawClient(gateway.address("mqtt")))
    watch.connect(unique())
    watch.subscribe(topic)
    case = Case(gateway, stack, "own-2", version)
    old = case.connect(present=False)
    old.send(Publish(topic, b"known", 2, packet_id=1), Publish(topic, b"released", 2, packet_id=2))
    assert [old.expect(Ack).type for _ in range(2)] == [Type.PUBREC, Type.PUBREC]
    old.send(Ack(Type.PUBREL, 2))  # whose PUBCOMP may be on its way when the other comes
    new = case.connect()
    new.send(Publish(topic, b"known", 2, False, True, 1), Ack(Type.PUBREL, 2))
    answers = [new.expect(Ack) for _ in range(2)]
    assert sorted((answer.type, answer.packet_id) for answer in answers) == [(Type.PUBREC, 1), (Type.PUBCOMP, 2)]
    new.send(Publish(topic, b"later", 2, packet_id=2))
    assert new.expect(Ack) == Ack(Type.PUBREC, 2)
    end(gateway, old, how, 2)
    new.send(Publish(topic, b"later", 2, False, True, 2), Ack(Type.PUBREL, 1), Ack(Type.PUBREL, 2))
    assert [(answer.type, answer.packet_id) for answer in (new.expect(Ack) for _ in range(3))] == [
        (Type.PUBREC, 2),
        (Type.PUBCOMP, 1),
        (Type.PUBCOMP, 2),
    ]
    assert [watch.take()[1] for _ in range(3)] == [b"known", b"released", b"later"]
    watch.nothing_comes()


class Wanderer(Case):
    """A client that comes back again and again, while its old sockets end some time later or never."""

    def __init__(self, gateway: Daemon, stack: ExitStack, kind: str, version: int) -> None:
        super().__init__(gateway, stack, kind, version)
        self.held: dict[int, Publish] = {}
        """What came over the present connection and is not acknowledged, by identifier."""
        self.done: list[bytes] = []
        self.sent = 0

    def comes_back(self, present: bool = True) -> None:
        self.connect(present=present)
        self.held.clear()
        self.hear()

    def hear(self, until: Ack | PingResp | None = None) -> None:
        """All that has come until this one; until a ping is answered."""
        if until is None:
            until = PingResp()
            self.client.send(PingReq())
        while (packet := self.client.receive()) != until:
            assert isinstance(packet, Publish), packet
            assert packet.packet_id not in self.held
            assert packet.payload not in self.done, f"{packet.payload!r} came again"
            self.held[packet.packet_id] = packet
            assert len(self.held) <= WINDOW

    def acknowledges(self, packet_id: int) -> None:
        """And waits until the daemon has heard of it."""
        self.done.append(self.held[packet_id].payload)
        if self.qos == 2:
            self.client.send(Ack(Type.PUBREC, packet_id))
            self.hear(Ack(Type.PUBREL, packet_id))
            self.client.send(Ack(Type.PUBCOMP, packet_id))
        else:
            self.client.send(Ack(Type.PUBACK, packet_id))
        del self.held[packet_id]
        self.hear()

    def says(self, count: int) -> None:
        self.publish([b"%d" % number for number in range(self.sent, self.sent + count)])
        self.sent += count


@pytest.mark.parametrize("version", [V5, V311])
@pytest.mark.parametrize("kind", ["own-1", "own-2", "share", "plain", "group", "priority"])
def test_a_client_that_comes_back_again_and_again_gets_each_message_once(
    gateway: Daemon, stack: ExitStack, kind: str, version: int
) -> None:
    chance = random.Random(f"{kind} {version}")
    one = Wanderer(gateway, stack, kind, version)
    one.comes_back(present=False)
    one.client.subscribe(Request(one.filter, one.qos))
    old: list[RawClient] = []
    for _ in range(40):
        step = chance.choice(["says", "acknowledges", "acknowledges", "acknowledges", "comes back", "an old one ends"])
        if step == "says":
            one.says(chance.randint(1, 5))
        elif step == "acknowledges" and one.held:
            one.acknowledges(chance.choice([*one.held]))
        elif step == "comes back":
            old.append(one.client)
            one.comes_back()
        elif step == "an old one ends" and old:
            end(gateway, old.pop(chance.randrange(len(old))), chance.choice(["FIN", "RST"]), len(old) + 1)
        one.hear()
    while old:
        end(gateway, old.pop(), "FIN", len(old) + 1)
    while len(one.done) < one.sent:
        one.hear()
        for packet_id in list(one.held):
            one.acknowledges(packet_id)
    assert sorted(one.done) == sorted(b"%d" % number for number in range(one.sent))
    one.nothing_is_left()
