"""What a link publishes and what it takes: properties come back as they were, and what RabbitMQ would close the channel
over is not sent."""

from __future__ import annotations

import asyncio
import struct
from typing import Any

import msgspec
import pytest
from aiormq.connection import FrameReceiver
from hypothesis import given
from pamqp import commands, frame
from pamqp.header import ContentHeader

from gateway.model.message import Message, Properties
from gateway.model.topics import swap
from gateway.transport import Delivery, Options
from gateway.transport.source import HOPS, hops
from tests.wire.test_amqp_properties import canonical as any_properties
from transports.amqp.link.mapping import USER_ID, incoming, outgoing
from transports.amqp.link.settings import address
from transports.amqp.link.wire import Wire, _Frames, unwrap, wrap
from transports.amqp.properties import message_id

METHOD = commands.Basic.Deliver("c", 1, False, "feed", "up.1")


def out(message: Message, target: str | None = "out/site/1", **delivery: Any) -> Any:
    options = Options(target=target)
    return outgoing(Delivery(1, message, "link.rabbit", options, **delivery), "me", "made-1", False, 100.0)


def back(properties: bytes, method: commands.Basic.Deliver = METHOD) -> Message:
    return incoming("rabbit", "q", method, properties, b"")


@given(any_properties)
def test_properties_come_back_as_they_were(said: Properties) -> None:
    sent = out(Message("down/1", b"", properties=said))
    found = back(sent.properties)
    assert hops(found.properties) == hops(said) + 1
    wanted = said if said.message_id is not None else msgspec.structs.replace(said, message_id="made-1")
    others = tuple(pair for pair in found.properties.headers if pair[0] != HOPS)
    before = tuple(pair for pair in wanted.headers if pair[0] != HOPS)
    assert msgspec.structs.replace(found.properties, headers=others) == msgspec.structs.replace(wanted, headers=before)
    assert message_id(sent.properties) == sent.message_id


def test_a_user_id_that_is_not_ours_travels_in_a_header() -> None:
    """RabbitMQ closes the channel over a user id that is not the connection's."""
    other = out(Message("x", b"", properties=Properties(user_id="device")))
    assert USER_ID.encode() in other.properties
    assert back(other.properties).properties.user_id == "device"
    assert USER_ID.encode() not in out(Message("x", b"", properties=Properties(user_id="me"))).properties


def test_copies_are_not_made_twice() -> None:
    """CC and BCC were followed here; a CC that is no list of keys would close the channel."""
    for value in (["a", "b"], "a device's own"):
        said = Properties(headers=(("CC", value), ("b", 1), ("a", 2)))
        sent = out(Message("x", b"", properties=said)).properties
        assert b"\x02CC" not in sent.partition(b"x-mqtt-user-properties")[0]
        assert b"x-gateway-cc" in sent
        kept = [pair for pair in back(sent).properties.headers if pair[0] not in (HOPS, "x-amqp-types")]
        assert kept == list(said.headers)


def test_a_number_that_rabbitmq_can_not_read_keeps_its_value() -> None:
    table = b"\x01aL" + struct.pack(">q", 7) + b"\x01bA\x00\x00\x00\x09L" + struct.pack(">q", 8)
    raw = b"\x20\x00" + struct.pack(">I", len(table)) + table
    came = back(raw)
    sent = out(came).properties
    assert b"aL" not in sent and b"L" + struct.pack(">q", 8) not in sent
    assert [back(sent).header(name) for name in "ab"] == [7, [8]]


def test_an_expiration_is_what_is_left_of_it_unless_rabbitmq_does_not_count_so_far() -> None:
    assert back(out(Message("x", b""), expires=101.5).properties).ttl == 1.5
    assert back(out(Message("x", b""), expires=99.0).properties).ttl == 0
    assert back(out(Message("x", b""), expires=100.0 + 50 * 86400).properties).ttl is None


def test_everything_goes_out_persistent() -> None:
    assert [back(out(Message("x", b"", qos=qos)).properties).qos for qos in (0, 1, 2)] == [1, 1, 2]


@pytest.mark.parametrize(
    ("exchange", "key", "topic"),
    [
        ("feed", "up.a/b", "up/a.b"),
        ("", "q", "q"),
        ("amq.fanout", "", "q"),
        ("feed", "up.#", "q"),
        ("feed", "$queue.secret", "q"),
    ],
)
def test_the_topic_is_the_routing_key_s_or_the_queue_s(exchange: str, key: str, topic: str) -> None:
    sent = out(Message("x", b"")).properties
    assert back(sent, commands.Basic.Deliver("c", 1, False, exchange, key)).topic == topic


@pytest.mark.parametrize(
    ("target", "place"),
    [
        ("telemetry/line/7", ("telemetry", "line.7")),
        ("telemetry/v1.2", ("telemetry", "v1/2")),
        ("/orders.dead", ("", "orders.dead")),
        ("fanout/", ("fanout", "")),
    ],
)
def test_a_target_is_an_exchange_and_a_key(target: str, place: tuple[str, str]) -> None:
    assert address(target) == place


# the wire


def read(data: bytes) -> tuple[list[Any], list[str]]:
    """What aiormq makes of these octets, and what was heard of blocking."""

    async def run() -> tuple[list[Any], list[str]]:
        heard: list[str] = []
        stream = asyncio.StreamReader()
        stream.feed_data(data)
        stream.feed_eof()
        frames: Any = _Frames(stream, heard.append)
        return [found async for _, _, found in FrameReceiver(frames)], heard

    return asyncio.run(run())


def test_properties_pass_the_library_as_they_are_on_the_wire() -> None:
    """A table with a type that pamqp does not know, and a text that is no UTF-8."""
    odd = b"\xa0\x00" + b"\x02\xff\xfe" + b"\x00\x00\x00\x07" + b"\x01a" + b"?" + b"\0\0\0\0"
    header = struct.pack(">HHQ", 60, 0, 3) + odd
    data = struct.pack(">BHI", 2, 1, len(header)) + header + b"\xce" + frame.marshal(commands.Channel.CloseOk(), 1)
    (first, second), heard = read(data)
    assert isinstance(first, ContentHeader)
    assert (first.body_size, unwrap(first), heard) == (3, odd, [])
    assert isinstance(second, commands.Channel.CloseOk)
    assert wrap(b"\0\0") != wrap(b"")


@pytest.mark.parametrize(
    ("key", "read_as"),
    [(b"up.1", "up.1"), ("größe".encode(), "größe"), (b"up.\xff", "\0"), (b"\xff" * 255, "\0")],
)
@pytest.mark.parametrize("tag", [1, 0xFF])
def test_a_routing_key_that_is_no_text_does_not_end_the_connection(key: bytes, read_as: str, tag: int) -> None:
    method = struct.pack(">HH", 60, 60) + b"\x01c" + struct.pack(">QB", tag, 1) + b"\x04feed" + bytes((len(key),)) + key
    data = struct.pack(">BHI", 1, 1, len(method)) + method + b"\xce" + frame.marshal(commands.Channel.CloseOk(), 1)
    (found, _), _ = read(data)
    said = (found.consumer_tag, found.delivery_tag, found.redelivered, found.exchange, found.routing_key)
    assert said == ("c", tag, True, "feed", read_as)
    topic = incoming("link", "queue", found, b"\0\0", b"").topic
    assert topic == ("queue" if read_as == "\0" else swap(key.decode()))  # never another text than was sent


def test_blocking_is_heard() -> None:
    blocked, unblocked = commands.Connection.Blocked("low on memory"), commands.Connection.Unblocked()
    _, heard = read(frame.marshal(blocked, 0) + frame.marshal(unblocked, 0) + frame.marshal(commands.Channel.Open(), 1))
    assert heard == ["low on memory", ""]


def test_a_frame_that_is_far_too_large_is_not_waited_for() -> None:
    with pytest.raises(Exception, match="a frame of 4294967295 bytes"):
        read(b"\x03\x00\x01\xff\xff\xff\xff")


def test_a_wire_that_was_never_made_can_be_aborted() -> None:
    Wire(None, lambda why: None).abort()
