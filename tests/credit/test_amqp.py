"""AMQP consumers on the real channel layer: whatever they do, credit and its use add up, and nothing is lost or
doubled."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule
from pamqp import commands as amqp
from pamqp import frame
from pamqp.body import ContentBody
from pamqp.header import ContentHeader

from gateway.address import Address
from gateway.model.credit import UNLIMITED
from gateway.net.connection_limits import Crowd
from tests.credit.house import LIVES, POLICIES, Entry, Holder, House, Wire
from transports.amqp import consuming
from transports.amqp.channel import Channel, Places
from transports.amqp.codec import PROTOCOL_HEADER, encode_method
from transports.amqp.connection import AmqpConnection
from transports.amqp.consumer import SLICE
from transports.amqp.listener import AmqpSettings
from transports.amqp.topology import Topology

MAX_UNACKED = 6
LOGIN = PROTOCOL_HEADER + encode_method(
    0,
    amqp.Connection.StartOk,
    client_properties={"capabilities": {"consumer_cancel_notify": True}},
    mechanism="PLAIN",
    response="\0guest\0guest",
    locale="en_US",
)
OPEN = encode_method(0, amqp.Connection.TuneOk, channel_max=10, frame_max=131_072, heartbeat=0) + encode_method(
    0, amqp.Connection.Open, virtual_host="/"
)


class Taker:
    """A consumer or a basic.get, as its client knows it. prefetch: 0 for none."""

    def __init__(self, tag: str, queue: str, prefetch: int, no_ack: bool) -> None:
        self.tag = tag
        self.queue = queue
        self.prefetch = prefetch
        self.no_ack = no_ack

    def __repr__(self) -> str:
        return f"{self.tag or 'get'} of {self.queue}"


class Side:
    """The client's side of one channel. unacked: what it got and has not settled, by delivery tag."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.window = MAX_UNACKED
        self.prefetch = 0
        self.flowing = True
        self.takers: dict[str, Taker] = {}
        self.every: set[object] = set()
        """All that it ever had."""
        self.unacked: dict[int, tuple[Taker, Entry]] = {}
        self.getting: Taker | None = None

    def used(self) -> int:
        """What counts to the window."""
        return sum(bool(taker.tag) for taker, _ in self.unacked.values())


class Peer:
    """One connection with two channels."""

    def __init__(self, house: Amqp) -> None:
        self.house = house
        listener = house.listener
        self.connection = AmqpConnection(
            house.gateway, house.counters, house.crowd, house.topology, listener, "it", "0", set(), Places(1000)
        )
        self.sides: dict[int, Side] = {}
        self.wire = Wire(self.connection, self.read)
        self.connection.connection_made(self.wire)
        self._method: Any = None
        self._header: ContentHeader | None = None
        self._parts: list[bytes] = []

    def send(self, *data: bytes) -> None:
        self.connection.data_received(b"".join(data))

    def call(self, side: Side, kind: Any, **arguments: Any) -> None:
        self.send(encode_method(side.number, kind, **arguments))

    def open(self, number: int) -> None:
        self.sides[number] = Side(number)
        self.send(encode_method(number, amqp.Channel.Open))

    def read(self, data: bytearray) -> int:
        """What the daemon writes; returns how much of it was whole."""
        at = len(PROTOCOL_HEADER) if data.startswith(b"AMQP") else 0
        while at < len(data):
            used, number, value = frame.unmarshal(bytes(data[at:]))
            at += used
            side = self.sides.get(number)
            if side is not None:
                self._frame(side, value)
            elif isinstance(value, amqp.Connection.Close) and self in self.house.peers:
                raise AssertionError(value.reply_text)
        return at

    def _frame(self, side: Side, value: Any) -> None:
        if isinstance(value, (amqp.Basic.Deliver, amqp.Basic.GetOk)):
            self._method, self._parts = value, []
        elif isinstance(value, ContentHeader):
            self._header = value
            self._complete(side)
        elif isinstance(value, ContentBody):
            self._parts.append(value.value)
            self._complete(side)
        elif isinstance(value, amqp.Basic.GetEmpty):
            side.getting = None
        elif isinstance(value, amqp.Basic.Cancel):
            del side.takers[value.consumer_tag]
        else:
            assert not isinstance(value, amqp.Channel.Close), value.reply_text

    def _complete(self, side: Side) -> None:
        assert self._header is not None
        body = b"".join(self._parts)
        if len(body) < (self._header.body_size or 0):
            return
        method, self._header = self._method, None
        taker: Taker | None
        if isinstance(method, amqp.Basic.GetOk):
            taker, side.getting = side.getting, None
            assert taker is not None, "an answer to no basic.get"
        else:
            assert side.flowing, "a delivery while the flow was off"
            taker = side.takers[method.consumer_tag]
        entry = self.house.came(body, Holder(taker, method.delivery_tag))
        assert entry.queue == taker.queue
        if taker.no_ack:
            self.house.done(entry, Holder(taker, method.delivery_tag))
            return
        side.unacked[method.delivery_tag] = (taker, entry)
        mine = sum(one is taker for one, _ in side.unacked.values())
        assert not taker.prefetch or mine <= taker.prefetch, f"{taker} has {mine}"
        assert not taker.tag or side.used() <= min(side.window, MAX_UNACKED), f"{side.unacked} above {side.window}"

    def gone(self, sides: Iterable[Side]) -> None:
        for side in sides:
            self.house.all_back(side.every)


numbers = st.integers(0, 11)
queues = st.sampled_from([*POLICIES])
yes = st.booleans()


class Amqp(House):
    def __init__(self) -> None:
        self.peers: list[Peer] = []
        self.named = 0
        super().__init__()
        self.listener = AmqpSettings(listen=Address.parse("127.0.0.1:0"), max_unacked=MAX_UNACKED)
        self.topology = Topology()
        self.topology.natives.add("it")
        self.counters = self.gateway.counters("it")
        self.crowd = Crowd(100, 1 << 26, self.counters)

    def is_busy(self) -> bool:
        connections = [peer.connection for peer in self.peers]
        waiting = any(channel.waiting for connection in connections for channel in connection.channels.values())
        return waiting or any(connection._flushing for connection in connections)

    def check_credit(self) -> None:
        for peer in self.peers:
            consuming = peer.connection.consuming
            if peer.connection.writable:
                assert consuming.octets.octets == 1 << 20
            for side in peer.sides.values():
                channel: Channel = peer.connection.channels[side.number]
                assert set(channel.unacked) == set(side.unacked)
                left = channel.window.messages + (0 if side.flowing else UNLIMITED)
                assert left == side.window - side.used(), f"{left} of {side.window} are left, {side.unacked} are not"
                assert set(channel.consumers) == set(side.takers)
                for tag, taker in side.takers.items():
                    consumer: Any = channel.consumers[tag]
                    unused = consumer.subscription.messages
                    if taker.prefetch and not taker.no_ack:
                        mine = sum(one is taker for one, _ in side.unacked.values())
                        assert unused == taker.prefetch - mine, f"{taker} has {unused} of {taker.prefetch} left"
                    else:
                        assert unused + consumer.taken == SLICE

    async def connect(self) -> None:
        peer = Peer(self)
        self.peers.append(peer)
        for piece in (LOGIN, OPEN):
            peer.send(piece)
            await self.settle_down()
        for number in (1, 2):
            peer.open(number)
        await self.settle_down()

    def choose(self, number: int, have: str = "number") -> tuple[Peer, Side]:
        """A channel, one that has such if there is any."""
        sides = [(peer, side) for peer in self.peers for side in peer.sides.values()]
        sides = [found for found in sides if getattr(found[1], have)] or sides
        return sides[number % len(sides)]

    # what may happen

    @initialize()
    def begin(self) -> None:
        self.run(self.connect())
        self.run(self.connect())
        for where, queue in enumerate(POLICIES):
            self.publishes(queue, "a", 3, 0)
            self.publishes(queue, "b", 3, 0)
            self.consume(where, queue, 3, False)

    @rule(queue=queues, group=st.sampled_from("ab"), count=st.integers(1, 5), octets=st.sampled_from([0, 0, 300_000]))
    def publishes(self, queue: str, group: str, count: int, octets: int) -> None:
        self.run(self.publish(queue, group, count, octets))

    @rule(
        where=numbers,
        queue=queues,
        prefetch=st.sampled_from([0, 1, 2, 3, 10]),
        no_ack=st.sampled_from([False, False, False, True]),
    )
    def consume(self, where: int, queue: str, prefetch: int, no_ack: bool) -> None:
        peer, side = self.choose(where)
        self.named += 1
        taker = Taker(f"c{self.named}", queue, prefetch, no_ack)
        side.takers[taker.tag] = taker
        side.every.add(taker)
        peer.call(side, amqp.Basic.Qos, prefetch_count=prefetch)
        peer.call(side, amqp.Basic.Consume, queue=queue, consumer_tag=taker.tag, no_ack=taker.no_ack)
        self.run(self.settle_down())

    @rule(where=numbers, which=numbers)
    def cancel(self, where: int, which: int) -> None:
        peer, side = self.choose(where, "takers")
        if side.takers:
            tag = sorted(side.takers)[which % len(side.takers)]
            del side.takers[tag]
            peer.call(side, amqp.Basic.Cancel, consumer_tag=tag)
            self.run(self.settle_down())

    @rule(where=numbers, prefetch=st.sampled_from([0, 1, 2, 4, 100]))
    def window(self, where: int, prefetch: int) -> None:
        """basic.qos for the whole channel, with whatever is in flight."""
        peer, side = self.choose(where, "unacked")
        side.window = min(prefetch or MAX_UNACKED, MAX_UNACKED)
        peer.call(side, amqp.Basic.Qos, prefetch_count=prefetch, global_=True)
        self.run(self.settle_down())

    @rule(where=numbers, active=yes)
    def flow(self, where: int, active: bool) -> None:
        peer, side = self.choose(where)
        if active != side.flowing:
            side.flowing = active
            peer.call(side, amqp.Channel.Flow, active=active)
            self.run(self.settle_down())

    @rule(queue=queues, groups=st.text("ab", min_size=1, max_size=6))
    def publishes_some(self, queue: str, groups: str) -> None:
        for group in groups:
            self.publishes(queue, group, 1, 0)

    @rule(where=numbers, which=numbers, multiple=yes)
    def ack(self, where: int, which: int, multiple: bool) -> None:
        self.settle(where, which, multiple, "ack")

    @rule(where=numbers, which=numbers, multiple=yes, how=st.sampled_from(["nack", "dead"]))
    def refuse(self, where: int, which: int, multiple: bool, how: str) -> None:
        self.settle(where, which, multiple, how)

    def settle(self, where: int, which: int, multiple: bool, how: str) -> None:
        peer, side = self.choose(where, "unacked")
        if not side.unacked:
            return
        tag = sorted(side.unacked)[which % len(side.unacked)]
        for one in [one for one in side.unacked if one == tag or (multiple and one < tag)]:
            taker, entry = side.unacked.pop(one)
            (self.back if how == "nack" else self.done)(entry, Holder(taker, one))
        if how == "ack":
            peer.call(side, amqp.Basic.Ack, delivery_tag=tag, multiple=multiple)
        else:
            peer.call(side, amqp.Basic.Nack, delivery_tag=tag, multiple=multiple, requeue=how == "nack")
        self.run(self.settle_down())

    @rule(where=numbers)
    def recover(self, where: int) -> None:
        peer, side = self.choose(where, "unacked")
        self.all_back(side.every)
        side.unacked.clear()
        peer.call(side, amqp.Basic.Recover, requeue=True)
        self.run(self.settle_down())

    @rule(where=numbers, queue=queues, no_ack=yes)
    def get(self, where: int, queue: str, no_ack: bool) -> None:
        peer, side = self.choose(where)
        if len(side.unacked) < MAX_UNACKED:
            side.getting = Taker("", queue, 0, no_ack)
            side.every.add(side.getting)
            peer.call(side, amqp.Basic.Get, queue=queue, no_ack=no_ack)
            self.run(self.settle_down())
            assert side.getting is None, "basic.get was not answered"

    @rule(seconds=st.sampled_from([1.0, 4.0, 6.0, 11.0]))
    def passes(self, seconds: float) -> None:
        self.run(self.pass_time(seconds))

    @rule()
    def deletes(self) -> None:
        self.run(self.delete("brief"))

    @rule(in_flight=st.integers(1, 3))
    def reloads(self, in_flight: int) -> None:
        self.run(self.allow(in_flight))

    @rule(where=numbers, stuck=yes)
    def reads(self, where: int, stuck: bool) -> None:
        """The client takes no bytes for a while."""
        peer, _ = self.choose(where)
        if stuck:
            peer.wire.stuck = True
        elif peer.wire.stuck:
            peer.wire.release()
        self.run(self.settle_down())

    @rule(where=numbers)
    def close_channel(self, where: int) -> None:
        peer, side = self.choose(where)
        peer.gone([side])
        peer.call(side, amqp.Channel.Close, reply_code=200, reply_text="", class_id=0, method_id=0)
        self.run(self.settle_down_without(peer, side))

    async def settle_down_without(self, peer: Peer, side: Side) -> None:
        del peer.sides[side.number]
        await self.settle_down()
        peer.open(side.number)
        await self.settle_down()

    @rule(where=numbers, how=st.sampled_from(["vanishes", "closes", "errs"]))
    def ends(self, where: int, how: str) -> None:
        peer, _ = self.choose(where)
        self.run(self.replace(peer, how))

    async def replace(self, peer: Peer, how: str) -> None:
        self.peers.remove(peer)
        peer.gone(peer.sides.values())
        peer.sides.clear()
        if how == "vanishes":
            peer.wire.abort()
        elif how == "closes":
            peer.send(encode_method(0, amqp.Connection.Close, reply_code=200, reply_text="", class_id=0, method_id=0))
        else:
            peer.send(encode_method(1, amqp.Connection.Open, virtual_host="/"))
        await self.settle_down()
        peer.wire.abort()
        await self.connect()

    # the end

    async def finish(self) -> None:
        for peer in self.peers:
            if peer.wire.stuck:
                peer.wire.release()
            for side in peer.sides.values():
                if not side.flowing:
                    side.flowing = True
                    peer.call(side, amqp.Channel.Flow, active=True)
        await self.connect()
        last = self.peers[-1]
        side = last.sides[1]
        for queue in POLICIES:
            side.takers[queue] = taker = Taker(queue, queue, 1, False)
            side.every.add(taker)
            last.call(side, amqp.Basic.Qos, prefetch_count=1)
            last.call(side, amqp.Basic.Consume, queue=queue, consumer_tag=queue)
        await self.settle_down()
        for _ in range(5 * len(self.entries) + 20):
            if not any(entry.open for entry in self.entries.values()):
                break
            for peer in self.peers:
                for one in peer.sides.values():
                    for tag, (taker, entry) in list(one.unacked.items()):
                        del one.unacked[tag]
                        self.done(entry, Holder(taker, tag))
                        peer.call(one, amqp.Basic.Ack, delivery_tag=tag)
            await self.pass_time(1.0)
        for peer in self.peers:
            for one in peer.sides.values():
                if one.unacked:
                    peer.call(one, amqp.Basic.Ack, delivery_tag=0, multiple=True)
                    one.unacked.clear()
        await self.settle_down()

    async def leave(self) -> None:
        for peer in self.peers:
            peer.wire.abort()
        self.peers.clear()
        await self.gateway.put()


TestAmqpCredit = Amqp.TestCase
TestAmqpCredit.settings = LIVES


@pytest.fixture(autouse=True, scope="module")
def short_gets() -> Any:
    """A basic.get that finds nothing to take waits no longer than it must."""
    before = consuming.GET_SECONDS
    consuming.GET_SECONDS = 0.01
    yield
    consuming.GET_SECONDS = before
