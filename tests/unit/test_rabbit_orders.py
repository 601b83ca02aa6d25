"""RabbitSink and QueueSource over a broker that answers as a test says: what a confirm, a return, a closed channel and
a lost connection mean, and in which order."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import aiormq
import msgspec
import pytest
from aiormq.abc import ChannelFrame
from pamqp import commands, frame
from pamqp.body import ContentBody
from pamqp.header import ContentHeader

from gateway.model.counters import TransportCounters
from gateway.model.message import Message, Properties
from gateway.transport import NO_OPTIONS, Delivery, Options, Outcome, Verdict
from gateway.transport.outbox import awaited, outbox
from tests.harness.local import local_gateway
from transports.amqp.link import source as link_source
from transports.amqp.link.settings import AmqpClientSettings
from transports.amqp.link.sink import RabbitSink
from transports.amqp.link.source import QueueSource
from transports.amqp.link.wire import wrap
from transports.amqp.properties import encode

pytestmark = pytest.mark.anyio
OUTBOX = outbox("rabbit")
SETTINGS = AmqpClientSettings(url="amqp://rabbit.example", consume=("q",))
PREPARED = {
    commands.Channel.Open: commands.Channel.OpenOk,
    commands.Channel.Close: commands.Channel.CloseOk,
    commands.Confirm.Select: commands.Confirm.SelectOk,
    commands.Basic.Qos: commands.Basic.QosOk,
}


class Broker:
    """The other end of an aiormq connection, in memory; stands for its Remote. What needs no thought it answers."""

    def __init__(self) -> None:
        self.connection: Any = aiormq.Connection("amqp://rabbit.example")
        self.connection.connection_tune = commands.Connection.Tune(frame_max=4096)
        self.connection.server_properties = {"capabilities": {"publisher_confirms": True, "basic.nack": True}}
        self.connection.write_queue = self
        self.channel = 0
        self.published: list[tuple[str, str, str, bytes]] = []
        """Exchange, routing key, message id and body, of all channels."""
        self.frames: list[Any] = []
        """What else it got."""
        self.on_publish: Callable[[int], None] = lambda tag: None
        self.consumers = 1
        self.tags = 0
        self.blocked = ""
        self.why = ""
        self.suspicious = False
        self._content: list[Any] = []

    # as Remote

    @property
    def is_lost(self) -> bool:
        return bool(self.why)

    def lose(self, why: str) -> None:
        self.why = why
        asyncio.get_running_loop().create_task(self.connection.close(aiormq.exceptions.ConnectionClosed(0, why)))

    # as aiormq's queue of what is to be written

    async def put(self, written: ChannelFrame) -> None:
        data = written.payload
        while data:
            size, channel, found = frame.unmarshal(data)
            data = data[size:]
            self._hear(channel, found)
        await asyncio.sleep(0)

    def _hear(self, channel: int, found: Any) -> None:
        if isinstance(found, commands.Channel.Open):
            self.channel, self.tags = channel, 0
        if isinstance(found, commands.Basic.Publish):
            self._content = [found]
        elif isinstance(found, ContentHeader):
            self._content += [found, b""]
            self._take()
        elif isinstance(found, ContentBody):
            self._content[2] += found.value
            self._take()
        elif isinstance(found, commands.Basic.Consume):
            self.say(commands.Basic.ConsumeOk(found.consumer_tag))
        elif isinstance(found, commands.Queue.Declare):
            self.say(commands.Queue.DeclareOk(found.queue, 0, self.consumers))
        elif type(found) in PREPARED:
            self.say(PREPARED[type(found)]())
        else:
            self.frames.append(found)

    def _take(self) -> None:
        method, header, body = self._content
        if len(body) == header.body_size:
            self.published.append((method.exchange, method.routing_key, header.properties.message_id, body))
            self.tags += 1
            self.on_publish(self.tags)

    # what a test lets it say

    def say(self, *frames: Any) -> None:
        """On the channel that was opened last."""
        for one in frames:
            self.connection.channels[self.channel].frames.put_nowait((0, one))

    def give_back(self, place: int) -> None:
        """Returns what was published as that."""
        exchange, key, message_id, body = self.published[place]
        properties = encode(Message("", b"", properties=Properties(message_id=message_id)), True)
        self.say(commands.Basic.Return(312, "NO_ROUTE", exchange, key), *content(properties, body))

    def close_channel(self) -> None:
        self.say(commands.Channel.Close(404, "NOT_FOUND - no exchange 'gone'", 60, 40))


def content(properties: bytes, body: bytes) -> list[Any]:
    header = ContentHeader(0, len(body))
    header.unmarshal(b"\0\x3c\0\0" + len(body).to_bytes(8, "big") + wrap(properties))
    return [header, *([ContentBody(body)] if body else [])]


class Link:
    """A RabbitSink on a Broker."""

    def __init__(self, broker: Broker, **settings: Any) -> None:
        self.broker = broker
        self.counters = TransportCounters()
        self.reports: list[str] = []
        self.sink = RabbitSink(
            msgspec.structs.replace(SETTINGS, **settings),
            broker,  # type: ignore[arg-type]
            self.counters,
            {OUTBOX: "made", awaited(OUTBOX): "unstored"},
            (),
            lambda: 0.0,
            self.reports.append,
        )

    def send(self, *deliveries: Delivery) -> asyncio.Task[list[Any]]:
        return asyncio.create_task(self._send(deliveries))

    async def _send(self, deliveries: Sequence[Delivery]) -> list[Any]:
        async with asyncio.timeout(5):
            found = await self.sink.send(deliveries)
        return [answer[0] if isinstance(answer, tuple) else answer for answer in found]


@contextlib.asynccontextmanager
async def link(**settings: Any) -> AsyncIterator[Link]:
    broker = Broker()
    found = Link(broker, **settings)
    await found.sink.open()
    try:
        yield found
    finally:
        for channel in list(broker.connection.channels.values()):
            await channel.close(aiormq.exceptions.ConnectionClosed(0, "end"))


def delivery(number: int, target: str | None = "out/site/1", **properties: Any) -> Delivery:
    options = Options(target=target) if target is not None else NO_OPTIONS
    message = Message("down/1", b"%d" % number, properties=Properties(**properties))
    return Delivery(number, message, OUTBOX, options, ident=number)


async def settled(ready: Callable[[], bool]) -> None:
    for _ in range(5000):
        if ready():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it does not come to that")


# the way out


async def test_a_confirm_decides_and_one_may_be_for_many():
    async with link() as found:
        answers = found.send(*[delivery(number) for number in range(1, 6)])
        await settled(lambda: len(found.broker.published) == 5)
        found.broker.say(commands.Basic.Ack(3, True), commands.Basic.Nack(5, False), commands.Basic.Ack(4, False))
        assert await answers == [Verdict.DONE, Verdict.DONE, Verdict.DONE, Verdict.DONE, Verdict.RETRY]
        assert found.counters.messages_out == 4
        assert [body for *_, body in found.broker.published] == [b"1", b"2", b"3", b"4", b"5"]
        assert found.broker.published[0][:3] == ("out", "site.1", "made-1")


async def test_what_is_in_memory_alone_has_other_ids_than_what_is_stored():
    """Its numbers come again after a restart, and a receiver would take another message for the old one."""
    async with link() as found:
        unstored = msgspec.structs.replace(delivery(1), queue=awaited(OUTBOX))
        answers = found.send(delivery(1), unstored)
        await settled(lambda: len(found.broker.published) == 2)
        found.broker.say(commands.Basic.Ack(2, True))
        assert await answers == [Verdict.DONE, Verdict.DONE]
        assert [message_id for _, _, message_id, _ in found.broker.published] == ["made-1", "unstored-1"]


async def test_a_body_above_the_frame_size_goes_in_parts():
    async with link() as found:
        big = msgspec.structs.replace(delivery(1), message=Message("down/1", bytes(range(256)) * 50))
        answers = found.send(big)
        await settled(lambda: len(found.broker.published) == 1)
        found.broker.say(commands.Basic.Ack(1))
        assert await answers == [Verdict.DONE]
        assert found.broker.published[0][3] == bytes(range(256)) * 50


async def test_what_is_returned_is_dead_and_nothing_else():
    async with link() as found:
        answers = found.send(delivery(1), delivery(2), delivery(3))
        await settled(lambda: len(found.broker.published) == 3)
        found.broker.give_back(1)
        found.broker.say(commands.Basic.Ack(3, True))
        assert await answers == [Verdict.DONE, Verdict.DEAD, Verdict.DONE]


async def test_messages_that_a_return_could_not_tell_apart_are_not_in_flight_together():
    async with link() as found:
        same = {"message_id": "7"}
        answers = found.send(delivery(1, **same), delivery(2, **same), delivery(3, "out/site/2", **same))
        await settled(lambda: len(found.broker.published) == 1)
        for _ in range(20):
            await asyncio.sleep(0)
        assert [body for *_, body in found.broker.published] == [b"1"]
        found.broker.say(commands.Basic.Ack(1))
        await settled(lambda: len(found.broker.published) == 3)
        found.broker.give_back(1)
        found.broker.say(commands.Basic.Ack(3, True))
        assert await answers == [Verdict.DONE, Verdict.DEAD, Verdict.DONE]


async def test_the_one_over_which_the_channel_is_closed_is_found():
    """Three are in flight as it happens: none of them is blamed until it was alone."""
    async with link() as found:
        first = [delivery(1), delivery(2, "gone/x"), delivery(3)]
        answers = found.send(*first)
        await settled(lambda: len(found.broker.published) == 3)
        found.broker.close_channel()
        assert await answers == [Verdict.RETURNED] * 3
        assert found.reports == []
        found.broker.published.clear()

        def answer(tag: int) -> None:
            if found.broker.published[-1][0] == "gone":
                found.broker.close_channel()
            else:
                found.broker.say(commands.Basic.Ack(tag))

        found.broker.on_publish = answer
        assert await found.send(*first) == [Verdict.DONE, Verdict.RETRY, Verdict.DONE]
        assert [body for *_, body in found.broker.published] == [b"1", b"2", b"3"]
        assert found.reports == ["the remote closed the channel: NOT_FOUND - no exchange 'gone'", ""]
        assert found.counters.refusals["channel-closed"] == 1


async def test_suspects_go_one_by_one_and_what_follows_them_together():
    async with link() as found:
        answers = found.send(delivery(1), delivery(2))
        await settled(lambda: len(found.broker.published) == 2)
        found.broker.close_channel()
        await answers
        found.broker.published.clear()
        answers = found.send(*[delivery(number) for number in range(1, 6)])
        for confirmed in (1, 2):
            await settled(lambda seen=confirmed: len(found.broker.published) == seen)
            for _ in range(20):
                await asyncio.sleep(0)
            assert len(found.broker.published) == confirmed
            found.broker.say(commands.Basic.Ack(confirmed))
        await settled(lambda: len(found.broker.published) == 5)
        found.broker.say(commands.Basic.Ack(5, True))
        assert await answers == [Verdict.DONE] * 5


@pytest.mark.parametrize(("suspicious", "verdict"), [(True, None), (False, Verdict.RETURNED)])
async def test_what_had_no_answer_when_the_connection_was_lost_goes_back(suspicious: bool, verdict: Verdict | None):
    """Uncounted, unless RabbitMQ ended the connection over what we sent."""
    async with link() as found:
        found.broker.suspicious = suspicious
        answers = found.send(delivery(1), delivery(2), delivery(3))
        await settled(lambda: len(found.broker.published) == 3)
        found.broker.say(commands.Basic.Ack(2))
        await settled(lambda: len(found.sink._channel._pending) == 2)
        found.broker.lose("gone")
        for channel in list(found.broker.connection.channels.values()):
            await channel.close(aiormq.exceptions.ConnectionClosed(0, "gone"))
        assert await answers == [verdict, Verdict.DONE, verdict]
        assert await found.send(delivery(4)) == [Verdict.RETURNED]


async def test_nothing_is_published_while_the_remote_is_blocked():
    async with link() as found:
        found.broker.blocked = "low on memory"
        found.sink.changed()
        answers = found.send(delivery(1))
        for _ in range(20):
            await asyncio.sleep(0)
        assert found.broker.published == []
        found.broker.blocked = ""
        found.sink.changed()
        await settled(lambda: len(found.broker.published) == 1)
        found.broker.say(commands.Basic.Ack(1))
        assert await answers == [Verdict.DONE]


async def test_a_connection_without_confirms_is_given_up_but_not_while_it_is_blocked():
    async with link(confirm_timeout=0.05) as found:
        watch = asyncio.create_task(found.sink.watch())
        found.send(delivery(1)).add_done_callback(lambda task: task.exception())
        await settled(lambda: len(found.broker.published) == 1)
        found.broker.blocked = "low on memory"
        await asyncio.sleep(0.15)
        assert found.broker.why == ""
        found.broker.blocked = ""
        await settled(lambda: bool(found.broker.why))
        assert found.broker.why == "no confirm within 0.05 s"
        assert found.counters.refusals["confirm-timeout"] == 1
        watch.cancel()


async def test_what_can_never_go_is_not_sent():
    async with link() as found:
        nested: list[Any] = []
        for _ in range(40):
            nested = [nested]
        wrong = [
            delivery(1, None),
            delivery(2, "out/" + "x" * 256),
            delivery(3, headers=(("a", "x" * 5000),)),
            delivery(4, headers=(("a", nested),)),
        ]
        answers = found.send(*wrong, delivery(5))
        await settled(lambda: len(found.broker.published) == 1)
        found.broker.say(commands.Basic.Ack(1))
        assert await answers == [Verdict.INVALID] * 4 + [Verdict.DONE]
        assert found.broker.published[-1][3] == b"5"


# the way in


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


class Consumer:
    """A QueueSource on a Broker, over a gateway whose commits the test ends."""

    def __init__(self, gateway: Any, **settings: Any) -> None:
        self.broker = Broker()
        self.gateway = Held(gateway)
        self.reports: list[str] = []
        changed = msgspec.structs.replace(SETTINGS, **settings)
        source = QueueSource("rabbit", "q", changed, self.gateway, self.reports.append)  # type: ignore[arg-type]
        self.task = asyncio.create_task(source.run(self.broker))  # type: ignore[arg-type]
        self.tags = 0

    async def started(self) -> None:
        await settled(lambda: self.reports == [""])

    def come(self, *headers: tuple[tuple[str, Any], ...]) -> None:
        for one in headers:
            self.tags += 1
            properties = encode(Message("", b"", properties=Properties(headers=one)), True)
            body = b"%d" % self.tags
            self.broker.say(commands.Basic.Deliver("c", self.tags, False, "feed", "up.1"), *content(properties, body))

    async def end(self) -> str:
        async with asyncio.timeout(5):
            return await self.task


@contextlib.asynccontextmanager
async def consumer(**settings: Any) -> AsyncIterator[Consumer]:
    async with local_gateway("queues: {q: {}}") as (gateway, _):
        found = Consumer(gateway, **settings)
        await found.started()
        yield found
        found.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await found.task


def answers(broker: Broker) -> list[tuple[str, int]]:
    return [(one.name, one.delivery_tag) for one in broker.frames if one.name != "Channel.CloseOk"]


async def test_nothing_is_acknowledged_before_its_commit_and_then_all_at_once():
    async with consumer() as found:
        found.come((), (("x-gateway-hops", "8"),), ())
        await settled(lambda: not found.gateway.calls.empty())
        bodies, commit = found.gateway.calls.get_nowait()
        if len(bodies) < 2:  # they came in two batches
            commit.set_result([Outcome.STORED] * len(bodies))
            bodies, commit = await found.gateway.calls.get()
        commit.set_result([Outcome.STORED] * len(bodies))
        await settled(lambda: ("Basic.Ack", 3) in answers(found.broker))
        assert ("Basic.Reject", 2) in answers(found.broker)
        assert all(one.multiple for one in found.broker.frames if one.name == "Basic.Ack")


async def test_what_is_refused_is_held_and_offered_again(monkeypatch):
    monkeypatch.setattr("gateway.transport.source.FIRST_PAUSE", 0.001)
    async with consumer() as found:
        found.come(())
        bodies, commit = await found.gateway.calls.get()
        commit.set_result([Outcome.REFUSED])
        bodies, commit = await found.gateway.calls.get()
        assert (bodies, answers(found.broker)) == ([b"1"], [])
        assert "is refused here" in found.reports[-1]
        commit.set_result([Outcome.DUPLICATE])
        await settled(lambda: answers(found.broker) == [("Basic.Ack", 1)])
        await settled(lambda: found.reports[-1] == "")


async def test_a_consumer_that_the_remote_cancels_is_over():
    async with consumer() as found:
        found.broker.say(commands.Basic.Cancel(consumer_tag="c", nowait=True))
        assert (await found.end()).startswith("the remote cancelled the consumer")


async def test_a_channel_that_is_closed_is_over():
    async with consumer() as found:
        found.broker.say(commands.Channel.Close(406, "PRECONDITION_FAILED - delivery acknowledgement timed out", 0, 0))
        assert await found.end() == "PRECONDITION_FAILED - delivery acknowledgement timed out"


async def test_nothing_is_sent_on_a_channel_that_the_remote_closes():
    """What came behind its close-ok would cost the connection."""
    async with consumer() as found:
        found.come(())
        _, commit = await found.gateway.calls.get()
        found.broker.say(commands.Channel.Close(406, "PRECONDITION_FAILED - delivery acknowledgement timed out", 0, 0))
        channel = found.broker.connection.channels[found.broker.channel]
        for _ in range(100):
            if channel.over:
                break
            await asyncio.sleep(0)  # no longer: it is closed soon after
        assert not channel.is_closed
        commit.set_result([Outcome.STORED])
        await found.end()
        assert answers(found.broker) == []


async def test_a_remote_that_has_forgotten_the_consumer_is_found_out(monkeypatch):
    monkeypatch.setattr(link_source, "VERIFY_SECONDS", 0.01)
    async with consumer() as found:
        await asyncio.sleep(0.05)
        assert not found.task.done()
        found.broker.consumers = 0
        assert await found.end() == "the remote knows of no consumer"


async def test_a_remote_that_sends_more_than_the_prefetch_is_cut_off():
    async with consumer(prefetch=2) as found:
        found.come((), (), ())
        _, commit = await found.gateway.calls.get()
        commit.set_result([Outcome.STORED] * 2)
        assert "more than 2 messages ahead of our acks" in await found.end()


async def test_properties_that_can_not_be_read_are_rejected_and_hold_up_nothing():
    async with consumer() as found:
        found.come((("x-delay", True),))
        await settled(lambda: answers(found.broker) == [("Basic.Reject", 1)])
        assert found.gateway.counters("rabbit").dropped["properties-invalid"] == 1
