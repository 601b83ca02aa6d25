"""What two connections of one client id know of its session, the one that ends and the one that goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from gateway.transport import Message, Outcome, StateChange
from tests.unit.test_mqtt_connection import House, Peer, house, run
from transports.mqtt.packets import V5, Ack, ConnAck, Connect, Disconnect, Property, Publish, Reason, Type
from transports.mqtt.session import OWNER

EXPIRY = {Property.SESSION_EXPIRY_INTERVAL: 100}


class Answers:
    """Stands between the connections and the gateway: a message's Outcome comes when a test says so."""

    def __init__(self, it: House, monkeypatch: pytest.MonkeyPatch) -> None:
        self.waiting: dict[bytes, asyncio.Future[Sequence[Outcome]]] = {}
        self.offered: list[bytes] = []
        accept = it.gateway.accept

        def offer(batch: Sequence[Message], *rest: Any) -> asyncio.Future[Sequence[Outcome]]:
            if not batch:
                return accept(batch, *rest)
            (message,) = batch
            self.offered.append(message.body)
            self.waiting[message.body] = asyncio.get_running_loop().create_future()
            return self.waiting[message.body]

        monkeypatch.setattr(it.gateway, "accept", offer)

    async def tell(self, body: bytes, outcome: Outcome) -> None:
        self.waiting.pop(body).set_result([outcome])
        await asyncio.sleep(0)


async def connect(it: House, clean: bool = False) -> Peer:
    """The client's next connection, which takes over; its socket stays open when another does."""
    peer = Peer(it.shared, V5)
    peer.transport.lingers = True
    peer.send(Connect("a", V5, clean, properties=EXPIRY))
    await it.settle_down()
    return peer


async def connected(it: House, clean: bool = False) -> Peer:
    """Behind CONNACK, with which nothing else comes."""
    peer = await connect(it, clean)
    (answer,) = peer.received()
    assert isinstance(answer, ConnAck) and answer.reason == Reason.SUCCESS
    return peer


@run
async def test_a_refused_message_is_not_known_to_the_next_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while the first one's answer to it still waits for that of another message."""
    async with house() as it:
        answers = Answers(it, monkeypatch)
        old = await connected(it)
        old.send(Publish("t", b"slow", 1, packet_id=1))
        old.send(Publish("t", b"x", 2, packet_id=2))
        await answers.tell(b"x", Outcome.REFUSED)
        new = await connected(it)
        new.send(Publish("t", b"x", 2, False, True, 2))
        await it.settle_down()
        assert answers.offered == [b"slow", b"x", b"x"]
        await answers.tell(b"x", Outcome.STORED)
        await it.settle_down()
        assert new.received() == [Ack(Type.PUBREC, 2)]
        await answers.tell(b"slow", Outcome.STORED)
        new.send(Publish("t", b"x", 2, False, True, 2))
        await it.settle_down()
        assert new.received() == [Ack(Type.PUBREC, 2)]
        assert answers.offered == [b"slow", b"x", b"x"]


@pytest.mark.parametrize("takes_over", [False, True])
@run
async def test_an_identifier_is_released_once_however_often_that_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, takes_over: bool
) -> None:
    async with house() as it:
        one = await connected(it)
        one.send(Publish("t", b"x", 2, packet_id=5))
        await it.settle_down()
        assert [answer.type for answer in one.received()] == [Type.PUBREC]
        puts: list[asyncio.Future[bool]] = []
        put = it.gateway.put

        def hold(changes: Sequence[StateChange] = ()) -> asyncio.Future[bool]:
            if not changes or not changes[0].key.startswith("received/"):
                return put(changes)
            puts.append(asyncio.get_running_loop().create_future())
            return puts[-1]

        monkeypatch.setattr(it.gateway, "put", hold)
        one.send(Ack(Type.PUBREL, 5))
        if takes_over:
            one = await connected(it)
        one.send(Ack(Type.PUBREL, 5))
        puts[0].set_result(True)
        await it.settle_down()
        answers = one.received()
        assert answers and all(answer == Ack(Type.PUBCOMP, 5) for answer in answers)
        one.send(Publish("t", b"y", 2, packet_id=5))  # a new message
        for late in puts[1:]:
            late.set_result(True)
        await it.settle_down()
        session = one.connection._session
        assert session is not None and session.received == {5}


@run
async def test_the_end_of_a_session_forgets_no_identifier_of_the_one_that_follows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its message is still on its way then, and what it leaves in the store is to be cleared when that is there."""
    async with house() as it:
        answers = Answers(it, monkeypatch)
        kept: list[StateChange] = []
        monkeypatch.setattr(it.gateway, "keep", kept.extend)
        for used in (False, True):
            old = await connected(it)
            old.send(Publish("t", b"old", 2, packet_id=5))
            new = await connected(it, clean=True)
            if used:
                new.send(Publish("t", b"new", 2, packet_id=5))
                await answers.tell(b"new", Outcome.STORED)
            kept.clear()
            await answers.tell(b"old", Outcome.STORED)
            await it.settle_down()
            assert (StateChange(OWNER, "received/a/5", None) in kept) is not used
            new.send(Disconnect(properties={Property.SESSION_EXPIRY_INTERVAL: 0}))
            await it.settle_down()


@run
async def test_a_connection_that_was_let_in_too_late_keeps_no_record_of_a_session_that_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The store answers with a refusal when another has begun the session anew."""
    async with house() as it:
        (await connected(it)).send(Disconnect())
        puts: list[asyncio.Future[bool]] = []

        def hold(changes: object = ()) -> asyncio.Future[bool]:
            puts.append(asyncio.get_running_loop().create_future())
            return puts[-1]

        kept: list[StateChange] = []
        with monkeypatch.context() as patched:
            patched.setattr(it.gateway, "put", hold)
            patched.setattr(it.gateway, "keep", kept.extend)
            one, other = Peer(it.shared, V5), Peer(it.shared, V5)
            one.send(Connect("a", V5, False, properties=EXPIRY))
            other.send(Connect("a", V5, True, properties=EXPIRY))
            kept.clear()
            puts[0].set_result(False)
            await asyncio.sleep(0)
            assert not kept
            puts[1].set_result(True)
            await asyncio.sleep(0)
        await it.settle_down()
        (answer,) = other.received()
        assert isinstance(answer, ConnAck) and answer.reason == Reason.SUCCESS


@pytest.mark.parametrize("ends", ["silence", "keep-alive", "a wrong packet", "more packets", "drain", "abort"])
@run
async def test_what_an_old_socket_still_brings_or_suffers_is_nothing_to_the_new_connection(ends: str) -> None:
    async with house() as it:
        old = await connected(it)
        await it.subscribe(old, "t", qos=2)
        it.gateway.accept([Message("t", b"%d" % number, qos=2) for number in range(3)])
        await it.settle_down()
        sent = [packet for packet in old.received() if isinstance(packet, Publish)]
        new = await connect(it)
        resent = [packet for packet in new.received() if isinstance(packet, Publish)]
        assert [(one.packet_id, one.dup) for one in resent] == [(one.packet_id, True) for one in sent]
        session = new.connection._session
        assert session is not None
        before = dict(session.in_flight)
        if ends == "keep-alive":
            old.connection.tick(1000.0)
        elif ends == "a wrong packet":
            old.connection.data_received(b"\x00\x00")
        elif ends == "more packets":
            old.send(*[Ack(Type.PUBREC, one.packet_id) for one in sent], Disconnect(), Publish("t", b"late"))
        elif ends == "drain":
            old.connection.drain()
        elif ends == "abort":
            old.connection.abort()
        await it.settle_down()
        for _ in range(2):
            old.connection.connection_lost(None)
            old.connection.lost(ConnectionResetError())
        await it.settle_down()
        assert session.in_flight == before and not session.resend_idents and session.client is new.connection
        assert new.received() == []
        for one in resent:
            new.send(Ack(Type.PUBREC, one.packet_id))
            await it.settle_down()
            new.send(Ack(Type.PUBCOMP, one.packet_id))
        await it.settle_down()
        assert not session.in_flight and not it.gateway.core.get(session.queue).entries.count
