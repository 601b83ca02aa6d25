"""Source and RemoteSink: when a link acknowledges, what it holds, and what an answer of the remote means."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import hypothesis
import msgspec
import pytest

from gateway.model.message import Message
from gateway.model.message import Properties as MessageProperties
from gateway.transport import NO_OPTIONS, Delivery, Options, Outcome, Verdict
from gateway.transport.source import HOPS, hops
from tests.harness.local import local_gateway
from tests.wire.mqtt_strategies import message_properties
from transports.mqtt.fields import read_properties
from transports.mqtt.link import source as link_source
from transports.mqtt.link.remote import LostError, Terms, Unreadable
from transports.mqtt.link.settings import MqttClientSettings
from transports.mqtt.link.sink import RemoteSink
from transports.mqtt.link.source import Source
from transports.mqtt.packets import Publish, Reason, Type
from transports.mqtt.properties import from_wire, to_wire

pytestmark = pytest.mark.anyio
SETTINGS = MqttClientSettings(url="mqtt://plant.example")
CONFIG = "queues: {q: {max_messages: 2}}\nroutes: [{from: 'up/#', to: q}]"


def packet(packet_id: int, topic: str = "up/1", qos: int = 1, body: bytes = b"") -> Publish:
    return Publish(topic, body or b"%d" % packet_id, qos, packet_id=packet_id)


class Held:
    """A gateway whose commits end when the test says so."""

    def __init__(self, gateway: Any) -> None:
        self._gateway = gateway
        self.calls: asyncio.Queue[tuple[list[bytes], asyncio.Future[Any]]] = asyncio.Queue()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._gateway, name)

    def accept(self, batch: Sequence[Message], changes: Any = (), offer: Any = None) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.calls.put_nowait(([message.body for message in batch], future))
        return future


class Link:
    """A Source that runs, and what it acknowledged."""

    def __init__(self, gateway: Any, **settings: Any) -> None:
        self.acks: list[int] = []
        self.acked_qos: list[int] = []
        self.acked = asyncio.Event()
        self.reports: list[str] = []
        self.source = Source("plant", msgspec.structs.replace(SETTINGS, **settings), gateway, self.reports.append)
        self.task = asyncio.create_task(self.source.run(self._acknowledge))

    def _acknowledge(self, mid: int, qos: int) -> None:
        self.acks.append(mid)
        self.acked_qos.append(qos)
        self.acked.set()

    def come(self, *packets: Publish | Unreadable) -> None:
        for one in packets:
            self.source.receive(one)

    async def until(self, count: int) -> list[int]:
        async with asyncio.timeout(5):
            while len(self.acks) < count:
                self.acked.clear()
                await self.acked.wait()
        return self.acks

    async def stop(self) -> None:
        self.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await self.task


async def test_nothing_is_acknowledged_before_its_commit_and_all_of_it_in_order():
    async with local_gateway(CONFIG) as (gateway, _):
        held = Held(gateway)
        link = Link(held)
        link.come(packet(1), packet(2, qos=0), packet(3))
        bodies, commit = await held.calls.get()
        link.come(packet(4))
        assert (bodies, link.acks) == ([b"1", b"2", b"3"], [])
        commit.set_result([Outcome.STORED, Outcome.STORED, Outcome.DUPLICATE])
        bodies, commit = await held.calls.get()
        assert (bodies, link.acks) == ([b"4"], [1, 3])
        commit.set_result([Outcome.UNROUTED])
        assert await link.until(3) == [1, 3, 4]
        assert gateway.counters("plant").dropped["unroutable"] == 1
        await link.stop()


async def test_what_is_being_committed_as_the_link_stops_is_still_acknowledged():
    async with local_gateway(CONFIG) as (gateway, _):
        held = Held(gateway)
        link = Link(held)
        link.come(packet(1))
        _, commit = await held.calls.get()
        link.task.cancel()
        asyncio.get_running_loop().call_soon(commit.set_result, [Outcome.STORED])
        await link.stop()
        assert link.acks == [1]


async def test_what_is_refused_is_held_with_all_behind_it_and_offered_again(monkeypatch):
    monkeypatch.setattr("gateway.transport.source.FIRST_PAUSE", 0.001)
    async with local_gateway(CONFIG) as (gateway, _):
        held = Held(gateway)
        link = Link(held)
        link.come(packet(1), packet(2), packet(3, qos=0), packet(4))
        _, commit = await held.calls.get()
        commit.set_result([Outcome.STORED, Outcome.REFUSED, Outcome.REFUSED, Outcome.REFUSED])
        for _ in range(2):
            bodies, commit = await held.calls.get()
            assert (bodies, link.acks) == ([b"2", b"3", b"4"], [1])
            commit.set_result([Outcome.REFUSED] * 3)
        bodies, commit = await held.calls.get()
        assert "is full" in link.reports[-1]
        commit.set_result([Outcome.STORED, Outcome.REFUSED, Outcome.STORED])
        assert await link.until(3) == [1, 2, 4]
        assert gateway.counters("plant").dropped["qos0-refused"] == 1
        await link.stop()
        assert link.reports[-1] == ""


async def test_a_full_queue_of_ours_drains_in_order(monkeypatch):
    monkeypatch.setattr("gateway.transport.source.FIRST_PAUSE", 0.001)
    async with local_gateway(CONFIG) as (gateway, _):
        link = Link(gateway)
        link.come(*[packet(mid) for mid in range(1, 8)])
        assert await link.until(2) == [1, 2]
        taken: list[bytes] = []

        class Worker:
            def deliver(self, batch: Sequence[Delivery]) -> None:
                taken.extend(delivery.message.body for delivery in batch)
                subscription.settle([delivery.id for delivery in batch], Verdict.DONE)

            def closed(self, reason: str) -> None: ...

        subscription = gateway.attach("q", Worker())
        subscription.grant(100)
        assert await link.until(7) == list(range(1, 8))
        await gateway.put()
        assert taken == [b"%d" % mid for mid in range(1, 8)]
        await link.stop()


async def test_what_no_route_may_have_is_acknowledged_in_its_turn_and_dropped():
    async with local_gateway(CONFIG) as (gateway, _):
        held = Held(gateway)
        link = Link(held)
        link.come(packet(1), packet(2, "$queue/q"), packet(3))
        bodies, commit = await held.calls.get()
        assert (bodies, link.acks) == ([b"1", b"3"], [])
        commit.set_result([Outcome.STORED, Outcome.STORED])
        assert await link.until(3) == [1, 2, 3]
        assert gateway.counters("plant").dropped["topic-name-invalid"] == 1
        await link.stop()


@pytest.mark.parametrize("version", [5, "3.1.1"])
async def test_what_is_more_than_may_be_held_comes_over_the_next_connection(monkeypatch, version):
    """And nothing behind it is taken, or it would overtake."""
    monkeypatch.setattr(link_source, "MAX_HELD_OCTETS", 3 * link_source.WEIGHT)
    async with local_gateway(CONFIG) as (gateway, _):
        held = Held(gateway)
        link = Link(held, version=version, receive_maximum=1)  # which not every remote keeps to
        link.come(packet(1), packet(2), packet(3), packet(4, qos=0), packet(5))
        assert gateway.counters("plant").dropped["qos0-refused"] == 1
        bodies, commit = await held.calls.get()
        link.come(packet(6))
        assert (bodies, link.acks) == ([b"1", b"2", b"3"], [])
        commit.set_result([Outcome.STORED] * 3)
        async with asyncio.timeout(5):
            await link.task
        assert link.acks == [1, 2, 3]


async def test_what_cannot_be_read_is_acknowledged_in_its_turn_and_dropped():
    async with local_gateway(CONFIG) as (gateway, _):
        link = Link(gateway)
        link.come(packet(1), Unreadable(2, 1, "why"), Unreadable(0, 0, "why"), packet(3, qos=2))
        assert await link.until(3) == [1, 2, 3]
        assert gateway.counters("plant").dropped["malformed-packet"] == 2
        await link.stop()


async def test_an_acknowledgement_is_of_the_qos_of_its_message():
    """QoS 2 is never asked for, but a session that another client began may have it."""
    async with local_gateway(CONFIG) as (gateway, _):
        link = Link(gateway)
        link.come(packet(1), packet(2, qos=2))
        await link.until(2)
        assert link.acked_qos == [1, 2]
        await link.stop()


# the way out


class Remote:
    """Answers with the codes that it was given; a bool is a lost connection, True one that may be our fault."""

    v5 = False
    terms = Terms(max_packet_size=100)

    def __init__(self, *codes: int | bool) -> None:
        self.codes = list(codes)
        self.topics: list[str] = []

    def send(self, topic: str, *_: Any) -> asyncio.Future[int]:
        self.topics.append(topic)
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        code = self.codes.pop(0)
        if isinstance(code, bool):
            answer.set_exception(LostError(code))
        else:
            answer.set_result(code)
        return answer


def delivery(target: str | None, body: bytes = b"") -> Delivery:
    options = Options(target=target) if target is not None else NO_OPTIONS
    return Delivery(1, Message("down/1", body), "link.plant", options)


async def send(remote: Remote, *deliveries: Delivery) -> tuple[list[Verdict | None], Any]:
    counters = SimpleNamespace(messages_out=0, octets_out=0)
    sink = RemoteSink(SETTINGS, remote, counters, lambda: 0.0)  # type: ignore[arg-type]
    answers = await sink.send(deliveries)
    return [answer[0] if isinstance(answer, tuple) else answer for answer in answers], counters


async def test_an_answer_decides():
    codes = [0, Reason.NO_MATCHING_SUBSCRIBERS, Reason.QUOTA_EXCEEDED, Reason.NOT_AUTHORIZED, Reason.UNSPECIFIED_ERROR]
    verdicts, counters = await send(Remote(*codes), *[delivery("a")] * 5)
    assert verdicts == [Verdict.DONE, Verdict.DONE, Verdict.RETURNED, Verdict.DEAD, Verdict.RETRY]
    assert counters.messages_out == 2


async def test_what_had_no_answer_when_the_connection_was_lost_has_a_verdict_only_if_it_is_not_the_cause():
    verdicts, _ = await send(Remote(0, True, 0, True), *[delivery("a")] * 4)
    assert verdicts == [Verdict.DONE, None, Verdict.DONE, None]
    verdicts, _ = await send(Remote(0, False), *[delivery("a")] * 2)
    assert verdicts == [Verdict.DONE, Verdict.RETURNED]


async def test_what_would_cost_the_connection_is_not_sent():
    remote = Remote(0)
    wrong = [delivery("a/+"), delivery(""), delivery(None), delivery("a", b"x" * 100), delivery("x\0")]
    wrong += [delivery("x" * 65_536), delivery("#"), delivery("é" * 40_000)]
    verdicts, _ = await send(remote, *wrong, delivery("good"))
    assert verdicts == [Verdict.INVALID] * 8 + [Verdict.DONE]
    assert remote.topics == ["good"]


class Far:
    """A remote of MQTT 5 that keeps the octets of the properties of what it was sent."""

    v5 = True
    terms = Terms()

    def __init__(self) -> None:
        self.octets: list[bytes] = []

    def send(self, topic: str, body: bytes, qos: int, retain: bool, properties: Any) -> asyncio.Future[int]:
        self.octets.append(properties.pack())
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        answer.set_result(0)
        return answer


@hypothesis.given(message_properties)
def test_properties_pass_a_link_without_loss(properties: MessageProperties) -> None:
    """Out over one link and in over another, by paho's hand; the hop alone is added."""

    async def passed() -> Message:
        remote = Far()
        verdicts, _ = await send(
            remote, Delivery(1, Message("a", b"", properties=properties), "q", Options(target="a"))
        )
        assert verdicts == [Verdict.DONE]
        found, _ = read_properties(remote.octets[0], 0, len(remote.octets[0]), Type.PUBLISH)
        came = Publish("up/1", b"1", 1, packet_id=1, properties=found)
        taken: list[Message] = []
        stored: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        stored.set_result([Outcome.STORED])
        counters = SimpleNamespace(messages_in=0, octets_in=0)
        gateway = SimpleNamespace(
            counters=lambda _: counters, accept=lambda batch, *_: taken.extend(batch) or stored, drain_timeout=1.0
        )
        link = Link(gateway, max_hops=1000)
        link.come(came)
        await link.until(1)
        await link.stop()
        return taken[0]

    expected = from_wire(to_wire(properties))
    others = tuple(pair for pair in expected.headers if pair[0] != HOPS)
    hop = (HOPS, str(hops(properties) + 1))
    assert asyncio.run(passed()).properties == msgspec.structs.replace(expected, headers=(*others, hop))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("mqtt://plant.example", "mqtt://plant.example:1883"),
        ("mqtts://user:secret@plant.example", "mqtts://plant.example:8883"),
        ("wss://plant.example/mqtt?token=secret", "wss://plant.example:443/mqtt"),
        ("ws://[::1]:9001", "ws://[::1]:9001/mqtt"),
    ],
)
def test_where_a_remote_is_shows_no_secret(url: str, shown: str) -> None:
    settings = msgspec.structs.replace(SETTINGS, url=url)
    assert str(settings.place) == shown
