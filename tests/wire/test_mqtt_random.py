"""Random packets, random cuts and random bytes through the MQTT codec; random properties through the mapping."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from gateway.model.message import Properties
from tests.wire.mqtt_strategies import message_properties, packets, topics
from transports.mqtt.codec import Decoder, TopicNames
from transports.mqtt.encoding import EncodedPublish, encode, positive_pubacks, puback
from transports.mqtt.fields import write_properties
from transports.mqtt.packets import NO_PROPERTIES5, V5, V311, Ack, Connect, Fault, Property, Publish, Type
from transports.mqtt.properties import from_wire, to_wire

versions = st.sampled_from([V311, V5])


def decode_all(data: bytes, version: int, step: int = 1 << 20) -> list[object]:
    """What a decoder makes of `data` that arrives in pieces of `step` bytes."""
    decoder = Decoder(1 << 28, TopicNames(), version)
    buffer = bytearray()
    found: list[object] = []
    for at in range(0, len(data), step):
        buffer += data[at : at + step]
        used = -1
        while used and not (found and isinstance(found[-1], Fault)):
            some, used = decoder.decode(buffer)
            del buffer[:used]
            found += some
    return found


@given(st.data(), versions)
def test_every_packet_comes_back_as_it_was(data: st.DataObject, version: int) -> None:
    packet = data.draw(packets(version))
    fresh = 0 if isinstance(packet, Connect) else version
    assert decode_all(encode(packet, version), fresh) == [packet]


@given(st.data(), versions, st.integers(1, 64))
def test_a_stream_may_be_cut_anywhere(data: st.DataObject, version: int, step: int) -> None:
    sent = data.draw(st.lists(packets(version).filter(lambda packet: not isinstance(packet, Connect)), max_size=8))
    stream = b"".join(encode(packet, version) for packet in sent)
    assert decode_all(stream, version, step) == sent


@given(st.data(), versions)
def test_every_truncation_waits_or_is_a_fault_that_ends_the_stream(data: st.DataObject, version: int) -> None:
    """A packet cut short waits for more; one whose length was cut to match is whole or a fault, never an error."""
    packet = data.draw(packets(version).filter(lambda packet: not isinstance(packet, Connect)))
    whole = encode(packet, version)
    for stop in range(len(whole)):
        assert decode_all(whole[:stop], version) == []
        if 2 <= stop <= 129 and len(whole) <= 129:
            found = decode_all(whole[:1] + bytes((stop - 2,)) + whole[2:stop], version)
            assert len(found) == 1


@given(st.binary(max_size=300), st.sampled_from([0, V311, V5]), st.integers(1, 300))
def test_garbage_never_raises(data: bytes, version: int, step: int) -> None:
    faults = [found for found in decode_all(data, version, step) if isinstance(found, Fault)]
    assert len(faults) <= 1


@given(st.data(), versions, st.binary(min_size=1, max_size=4), st.integers(0, 1000))
def test_a_damaged_packet_never_raises(data: st.DataObject, version: int, damage: bytes, at: int) -> None:
    whole = bytearray(encode(data.draw(packets(version)), version))
    at %= len(whole)
    whole[at : at + len(damage)] = damage
    decode_all(bytes(whole), version)


@given(st.data(), versions, st.integers(0, 1), st.booleans(), st.booleans())
def test_a_publish_for_many_is_the_same_as_one(
    data: st.DataObject, version: int, qos: int, retain: bool, dup: bool
) -> None:
    topic = data.draw(topics)
    payload = data.draw(st.binary(max_size=100) | st.just(b"x" * 5000))
    encoded = EncodedPublish(version, topic.encode(), payload, qos, retain, NO_PROPERTIES5)
    dup = dup and qos > 0
    packet_id = data.draw(st.integers(1, 65_535)) if qos else 0
    one = encode(Publish(topic, payload, qos, retain, dup, packet_id), version)
    assert b"".join(encoded.parts(packet_id, dup)) == one
    assert encoded.size == len(one)


@given(st.lists(st.tuples(st.integers(1, 65_535), st.sampled_from([0, 0x10, 0x97])), max_size=20), versions)
def test_joined_pubacks_are_single_ones(answers: list[tuple[int, int]], version: int) -> None:
    expected = [Ack(Type.PUBACK, packet_id, reason if version == V5 else 0) for packet_id, reason in answers]
    assert decode_all(b"".join([puback(*answer, version) for answer in answers]), version) == expected
    assert decode_all(positive_pubacks([one for one, _ in answers]), version) == [
        Ack(Type.PUBACK, packet_id) for packet_id, _ in answers
    ]


@given(message_properties)
def test_all_properties_survive_the_way_over_the_wire(properties: Properties) -> None:
    section = to_wire(properties)
    packet = Publish("t", b"", properties=section)
    (seen,) = decode_all(encode(packet, V5), V5)
    assert isinstance(seen, Publish)
    back = from_wire(seen.properties)
    # As bytes, so that 1, 1.0 and True are not the same.
    assert msgspec.msgpack.encode(back) == msgspec.msgpack.encode(properties)


_hostile = st.sampled_from(
    ["priority", "timestamp", "type", "int:a", "float:a", "bool:a", "null:a", "bytes:a", "packed:a", "str:a",
     "part", "all", "str:x-amqp-int:a", "reply-to", ":", "what:a", ""]
).map("x-amqp-".__add__)  # fmt: skip
_junk = st.sampled_from(
    ["", "5", "05", "-1", "1_0", "٣", "nan", "1e5", "true", "AA==", "kQ==", "\U0001f600", "a/b", "#"]
)


@given(st.lists(st.tuples(_hostile, _junk | st.text(max_size=6).filter(lambda t: "\0" not in t)), max_size=8))
def test_hostile_user_properties_are_headers_and_never_raise(user: list[tuple[str, str]]) -> None:
    properties = from_wire({Property.USER_PROPERTY: user} if user else {})
    write_properties(to_wire(properties))
    assert from_wire(to_wire(properties)) == properties or "nan" in str(user)
    if properties.priority is not None:
        assert ("x-amqp-priority", str(properties.priority)) in user
