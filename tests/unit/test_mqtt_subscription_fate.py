"""What becomes of a SUBSCRIBE or UNSUBSCRIBE that the store decides on later than its connection lives: the session is
as the store has it, for whichever connection has it by then."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from gateway.model.policy import QueuePolicy
from gateway.transport import StateChange
from tests.unit.test_mqtt_connection import House, Peer, house, run
from tests.unit.test_mqtt_session_owner import connect, connected
from transports.mqtt.packets import (
    Ack,
    Disconnect,
    Publish,
    Reason,
    Request,
    SubAck,
    Subscribe,
    Type,
    Unsubscribe,
)
from transports.mqtt.session import OWNER, Session

FILTERS = {"own": "news/+", "share": "$share/team/news/+", "queue": "$queue/work"}
TOPICS = {"own": "news/1", "share": "news/1", "queue": "$queue/work"}
THEN = ["stays", "leaves", "taken over", "taken over twice", "taken over and gone", "back later"]

each_kind = pytest.mark.parametrize("kind", FILTERS)
each_end = pytest.mark.parametrize("then", THEN)


class Store:
    """Says when a test wants it that it has taken what SUBSCRIBE asked of it, or not. It has it in both cases, as when
    a later commit has brought it: what was not granted must be taken back there too."""

    def __init__(self, it: House, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[asyncio.Future[bool]] = []
        self.holds = False
        put = it.gateway.put

        def ask(changes: Sequence[StateChange] = ()) -> asyncio.Future[bool]:
            answer = put(changes)
            if not self.holds or not changes:
                return answer
            self.asked.append(asyncio.get_running_loop().create_future())
            return self.asked[-1]

        monkeypatch.setattr(it.gateway, "put", ask)

    def decide(self, kept: bool) -> None:
        while self.asked:
            self.asked.pop(0).set_result(kept)


def session_of(it: House) -> Session:
    return it.shared.sessions._sessions["a"]


async def begin(it: House, kind: str, options: Request | None = None) -> Peer:
    it.gateway.declare("work", QueuePolicy(), "test")
    one = await connected(it)
    if options is not None:
        await subscribe(it, one, options)
        one.received()
    return one


async def subscribe(it: House, one: Peer, *requests: Request) -> None:
    one.send(Subscribe(1, requests))
    await it.settle_down()


async def go_on(it: House, store: Store, one: Peer, then: str) -> Peer | None:
    """What the connections do before the store has decided; the one that has the session afterwards."""
    store.holds = False
    one.received()
    if then == "stays":
        return one
    if then in ("leaves", "back later"):
        one.send(Disconnect())
        await it.settle_down()
    if then.startswith("taken over") or then == "back later":
        one = await connect(it)
    if then == "taken over twice":
        one = await connect(it)
    if then == "taken over and gone":
        one.send(Disconnect())
        await it.settle_down()
    one.received()
    return None if then in ("leaves", "taken over and gone") else one


async def comes(it: House, one: Peer, kind: str) -> list[Publish]:
    """What the client gets of a message that is published now."""
    other = await it.connect(client_id="other")
    other.send(Publish(TOPICS[kind], b"x", 1, packet_id=1))
    await it.settle_down()
    other.send(Disconnect())
    return [packet for packet in one.received() if isinstance(packet, Publish)]


def recorded(it: House) -> dict[str, int]:
    """The subscriptions with their QoS that the store has, as a restart would find them."""
    record = it.gateway.state(OWNER)["session/a"]
    session = Session.restored("a", record, [], 0.0)
    bindings = [binding for binding in it.gateway.bindings(session.queue) if binding.owner == OWNER]
    return {held.filter: held.options.qos for held in (*bindings, *session.memberships.values())}


async def look(it: House, one: Peer | None, kind: str, qos: int | None) -> None:
    """The session, the store and the client agree on it. qos: None if it is not subscribed."""
    filter = FILTERS[kind]
    session = session_of(it)
    held = session.bindings.get(filter) or session.memberships.get(filter)
    assert (None if held is None else held.options.qos) == qos
    await it.settle_down()
    assert recorded(it).get(filter) == qos
    shares = [queue.name for queue in it.gateway.queues() if "$share" in queue.name]
    assert bool(shares) is (kind == "share" and qos is not None)
    if one is None:
        one = await connect(it)
        one.received()
    found = await comes(it, one, kind)
    assert [publish.qos for publish in found] == ([] if qos is None else [qos])


@each_kind
@each_end
@pytest.mark.parametrize("kept", [True, False])
@run
async def test_a_new_subscription_holds_if_the_store_takes_it(
    monkeypatch: pytest.MonkeyPatch, kind: str, then: str, kept: bool
) -> None:
    async with house() as it:
        store = Store(it, monkeypatch)
        one = await begin(it, kind)
        store.holds = True
        await subscribe(it, one, Request(FILTERS[kind], 1))
        after = await go_on(it, store, one, then)
        store.decide(kept)
        await it.settle_down()
        if then == "stays":
            assert one.received() == [SubAck(1, (1 if kept else Reason.QUOTA_EXCEEDED,))]
        await look(it, after, kind, 1 if kept else None)


@pytest.mark.parametrize("kind", ["own", "share"])
@each_end
@pytest.mark.parametrize("kept", [True, False])
@run
async def test_other_options_hold_if_the_store_takes_them(
    monkeypatch: pytest.MonkeyPatch, kind: str, then: str, kept: bool
) -> None:
    async with house() as it:
        store = Store(it, monkeypatch)
        one = await begin(it, kind, Request(FILTERS[kind], 1))
        store.holds = True
        await subscribe(it, one, Request(FILTERS[kind], 0))
        after = await go_on(it, store, one, then)
        store.decide(kept)
        await it.settle_down()
        await look(it, after, kind, 0 if kept else 1)


@each_kind
@pytest.mark.parametrize("kept", [True, False])
@run
async def test_the_next_connection_is_told_what_the_store_says(
    monkeypatch: pytest.MonkeyPatch, kind: str, kept: bool
) -> None:
    """It asks for the same while the store has not decided yet: nobody may say that it is granted."""
    async with house() as it:
        store = Store(it, monkeypatch)
        one = await begin(it, kind)
        store.holds = True
        await subscribe(it, one, Request(FILTERS[kind], 1))
        first, store.asked = store.asked, []
        store.holds = False
        one = await connect(it)
        one.received()
        store.holds = True
        await subscribe(it, one, Request(FILTERS[kind], 1))
        assert one.received() == []
        store.asked[:0] = first
        store.holds = False
        store.decide(kept)
        await it.settle_down()
        (answer,) = one.received()
        assert answer == SubAck(1, (1 if kept else Reason.QUOTA_EXCEEDED,))
        await look(it, one, kind, 1 if kept else None)


@each_kind
@each_end
@run
async def test_what_is_unsubscribed_stays_so(monkeypatch: pytest.MonkeyPatch, kind: str, then: str) -> None:
    """Whatever the store says to it, and to a SUBSCRIBE before it that it has not decided on."""
    async with house() as it:
        store = Store(it, monkeypatch)
        one = await begin(it, kind, Request(FILTERS[kind], 1))
        store.holds = True
        await subscribe(it, one, Request(FILTERS[kind], 1, retain_as_published=True))
        one.send(Unsubscribe(2, (FILTERS[kind],)))
        after = await go_on(it, store, one, then)
        store.decide(False)
        await it.settle_down()
        await look(it, after, kind, None)


@each_kind
@run
async def test_a_session_that_has_ended_is_left_alone(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Its successor has subscribed to the same."""
    async with house() as it:
        store = Store(it, monkeypatch)
        one = await begin(it, kind)
        store.holds = True
        await subscribe(it, one, Request(FILTERS[kind], 1))
        store.holds = False
        one = await connected(it, clean=True)
        await subscribe(it, one, Request(FILTERS[kind], 1))
        assert one.received() == [SubAck(1, (1,))]
        store.decide(False)
        await it.settle_down()
        await look(it, one, kind, 1)


@pytest.mark.parametrize("then", ["stays", "taken over"])
@run
async def test_retained_messages_that_were_owed_before_still_come(monkeypatch: pytest.MonkeyPatch, then: str) -> None:
    """The client has no credit for them when it asks once more, and that is what the store does not take."""
    async with house(max_in_flight=1) as it:
        store = Store(it, monkeypatch)
        one = await begin(it, "own")
        for number in (1, 2):
            one.send(Publish(f"news/{number}", b"%d" % number, 1, True, packet_id=number))
        await it.settle_down()
        one.received()
        await subscribe(it, one, Request("news/+", 1))
        _, first = one.received()
        store.holds = True
        await subscribe(it, one, Request("news/+", 1, retain_as_published=True))
        store.holds = False
        if then == "taken over":
            one = await connect(it)
            first = one.received()[-1]
        store.decide(False)
        await it.settle_down()
        one.received()
        one.send(Ack(Type.PUBACK, first.packet_id))
        await it.settle_down()
        (second,) = one.received()
        assert {first.payload, second.payload} == {b"1", b"2"}
