"""Whatever a peer sends: nothing raises out of its connection, loops, stays behind or disturbs who stands beside.

`make fuzz TARGET=amqp SECONDS=300` searches by coverage; the inputs that it has found are in `corpus`, and are tried
here each time.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pamqp import commands as amqp

from tests.fuzz.stage import PROTOCOLS, cut, play, stage
from tests.fuzz.streams import HANDSHAKE, damaged, streams
from transports.amqp.codec import HEARTBEAT_FRAME, encode_method
from transports.mqtt.encoding import encode
from transports.mqtt.packets import V5, Connect, Publish, Request, Subscribe

CORPUS = Path(__file__).parent / "corpus"
OPENINGS = {"mqtt": [encode(Connect("me"), V5)], "amqp": HANDSHAKE}
protocols = pytest.mark.parametrize("protocol", sorted(PROTOCOLS))
many = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
some = settings(many, max_examples=30)
"""Sessions take long to make up."""


@protocols
@many
@given(data=st.data())
def test_arbitrary_bytes(protocol: str, data: st.DataObject) -> None:
    start = OPENINGS[protocol] if data.draw(st.booleans()) else []
    play(protocol, [*start, *data.draw(st.lists(st.binary(min_size=1, max_size=200), max_size=4))])


@protocols
@some
@given(data=st.data())
def test_valid_packets_in_any_order(protocol: str, data: st.DataObject) -> None:
    play(protocol, data.draw(streams[protocol]))


@protocols
@some
@given(data=st.data(), step=st.sampled_from([1, 5, 64, 1 << 20]))
def test_damaged_packets_in_pieces(protocol: str, data: st.DataObject, step: int) -> None:
    whole = b"".join(data.draw(damaged(streams[protocol])))
    play(protocol, [whole[at : at + step] for at in range(0, len(whole), step)])


@pytest.mark.parametrize("path", sorted(CORPUS.glob("*/*")), ids=lambda path: f"{path.parent.name}-{path.name}")
def test_what_was_found_before(path: Path) -> None:
    play(path.parent.name, cut(path.read_bytes()))


# The stage itself: what it plays gets through, and what is wrong is seen.

CONSUMED = {
    "mqtt": [
        encode(Subscribe(1, (Request("$queue/jobs", 1), Request("$share/s/a", 1), Request("a", 1))), V5),
        encode(Publish("jobs/1", b"x", 1, packet_id=1), V5),
    ],
    "amqp": [
        encode_method(1, amqp.Basic.Consume, queue="jobs"),
        encode_method(1, amqp.Basic.Publish, routing_key="jobs"),
        bytes.fromhex("02 0001 0000000e 003c 0000 0000000000000000 0000 ce"),
    ],
}


@protocols
def test_what_is_played_gets_through(protocol: str) -> None:
    async def run() -> None:
        async with stage(protocol) as it:
            for piece in OPENINGS[protocol] + CONSUMED[protocol]:
                assert await it.feed(piece)
            await it.settle_down()
            await it.settle_down()
            assert it.gateway.core.queues["jobs"].in_flight == 1
            await it.end()
            assert it.gateway.core.queues["jobs"].depth == 1

    asyncio.run(run())


@protocols
def test_what_raises_is_seen(protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*given: object) -> None:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr("transports.mqtt.connection._HANDLERS", {Connect: broken})
    monkeypatch.setattr("transports.amqp.handshake.Handshake.method", broken)
    with pytest.raises(AssertionError, match="something raised"):
        play(protocol, OPENINGS[protocol])


@protocols
def test_what_is_left_behind_is_seen(protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.queueing.subscription.QueueSubscription.detach", lambda self, lost=False: None)
    with pytest.raises(AssertionError, match="still with the connection"):
        play(protocol, OPENINGS[protocol] + CONSUMED[protocol])


@pytest.mark.parametrize(("protocol", "tiny"), [("mqtt", b"\xc0\x00"), ("amqp", HEARTBEAT_FRAME)])
def test_what_comes_behind_very_many_tiny_packets_has_its_turn(protocol: str, tiny: bytes) -> None:
    async def run() -> None:
        async with stage(protocol) as it:
            for piece in OPENINGS[protocol]:
                assert await it.feed(piece)
            await it.feed(tiny * 20_000 + CONSUMED[protocol][0])
            jobs = it.gateway.core.queues["jobs"]
            assert jobs.consumers == 0 and not it.socket.reading
            for _ in range(10):
                await it.settle_down()
            assert jobs.consumers == 1 and it.socket.reading
            await it.end()

    asyncio.run(run())
