"""AMQP frames: golden bytes, agreement with pamqp, and that nothing a peer sends raises anything but AmqpError."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import commands as amqp
from pamqp import frame as pamqp_frame
from pamqp.base import Frame
from pamqp.commands import INDEX_MAPPING

from transports.amqp import codec
from transports.amqp.errors import AmqpError
from transports.amqp.properties import decode

TUNE = bytes.fromhex("01 0000 0000000c 000a 001e 07ff 00020000 003c ce")
ACK = bytes.fromhex("01 0003 0000000d 003c 0050 0000000000000007 01 ce")
DELIVER = bytes.fromhex("01 0001 00000018 003c 003c 02 6374 0000000000000009 01 03 6c6f67 03 612e62 ce")
CONTENT = bytes.fromhex("02 0001 0000000f 003c 0000 0000000000000005 1000 02 ce 03 0001 00000005 68656c6c6f ce")
PUBLISH = bytes.fromhex("003c 0028 0000 03 6c6f67 03 612e62 01")


def method_of(data: bytes) -> Frame:
    [(kind, _, begin, end)], used, broken = codec.split(data, 1 << 20)
    assert (kind, used, broken) == (codec.METHOD, len(data), None)
    return codec.decode_method(data, begin, end)


def test_golden_frames_out() -> None:
    assert codec.encode_method(0, amqp.Connection.Tune, channel_max=2047, frame_max=131072, heartbeat=60) == TUNE
    assert codec.encode_ack(3, 7, True) == ACK
    address = codec.short(b"log") + codec.short(b"a.b")
    head = codec.deliver_head(1, codec.short(b"ct"), len(address))
    assert head + codec.encode_tag(9, True) + address + codec.END == DELIVER
    parts: list[bytes] = []
    codec.append_content(parts, 1, b"\x10\x00\x02", b"hello", 4096)
    assert b"".join(parts) == CONTENT


def test_golden_frames_in() -> None:
    publish = codec.decode_publish(PUBLISH, 0, len(PUBLISH))
    assert publish == codec.Publish("log", "a.b", True, False)
    assert codec.decode_ack(ACK, 7, len(ACK) - 1) == (7, True)
    tune = method_of(TUNE)
    assert isinstance(tune, amqp.Connection.Tune)
    assert (tune.channel_max, tune.frame_max, tune.heartbeat) == (2047, 131072, 60)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:pamqp")
@pytest.mark.parametrize("kind", sorted(INDEX_MAPPING.values(), key=lambda kind: kind.index), ids=lambda k: str(k.name))
def test_every_method_reads_as_pamqp_writes_it(kind: type[Frame]) -> None:
    values = {"bit": True, "octet": 7, "short": 300, "long": 70_000, "longlong": 1 << 40, "table": {"a": 1}}
    method = kind()
    wanted_by_pamqp = {"ticket": 0, "virtual_host": "/", "insist": False, "out_of_band": "0", "channel_id": "0"}
    for name in kind.attributes():
        text = "" if name in ("capabilities", "cluster_id", "known_hosts") else "some-text"
        setattr(method, name, wanted_by_pamqp.get(name, values.get(kind.amqp_type(name), text)))
    theirs = pamqp_frame.marshal(method, 5)
    arguments = {name: getattr(method, name) for name in kind.attributes()}
    mine = codec.encode_method(5, kind, **arguments)
    read = method_of(theirs)
    for name, value in arguments.items():
        expected = value.encode() if kind.amqp_type(name) == "longstr" else value
        assert getattr(read, name) == expected, name
        assert getattr(method_of(mine), name) == expected, name
    assert pamqp_frame.unmarshal(mine)[1] == 5


def test_names_that_pamqp_refuses_are_taken() -> None:
    name = "größe & more (1)"
    assert method_of(codec.encode_method(1, amqp.Queue.Declare, queue=name)).queue == name  # type: ignore[attr-defined]


@pytest.mark.parametrize("size", [0, 1, 4088, 4089, 8176, 10_000])
def test_a_body_is_cut_into_frames_of_frame_max(size: int) -> None:
    body = bytes(size)
    parts: list[bytes] = []
    codec.append_content(parts, 1, b"\x10\x00\x01", body, 4096)
    frames, _, broken = codec.split(data := b"".join(parts), 4096)
    assert broken is None
    assert b"".join(data[begin:end] for kind, _, begin, end in frames if kind == codec.BODY) == body
    assert len(frames) == 1 + -(-size // 4088)


def test_a_frame_above_the_limit_is_refused_before_it_is_there() -> None:
    head = bytes.fromhex("03 0001 00010000")
    frames, used, broken = codec.split(TUNE + head + b"x", 4096)
    assert len(frames) == 1 and used == len(TUNE)
    assert broken is not None and broken.code == 501 and broken.hard


def test_a_frame_without_its_end_is_refused() -> None:
    _, _, broken = codec.split(TUNE[:-1] + b"\0", 4096)
    assert broken is not None and broken.code == 501


@given(st.integers(min_value=0, max_value=len(TUNE + ACK + DELIVER)))
def test_half_a_frame_is_waited_for(cut: int) -> None:
    data = TUNE + ACK + DELIVER
    frames, used, broken = codec.split(data[:cut], 4096)
    assert broken is None
    assert used == max(at for at in (0, len(TUNE), len(TUNE + ACK), len(data)) if at <= cut)
    rest, _, _ = codec.split(data[used:], 4096)
    assert len(frames) + len(rest) == 3


@given(st.sampled_from(sorted(INDEX_MAPPING)), st.binary(max_size=200))
def test_garbage_in_a_method_is_an_amqp_error(index: int, payload: bytes) -> None:
    data = index.to_bytes(4, "big") + payload
    for reader in (codec.decode_method, codec.decode_publish, codec.decode_ack, codec.decode_content_header):
        try:
            reader(data, 0, len(data))
        except AmqpError as error:
            assert error.hard


@given(st.binary(max_size=400))
def test_garbage_in_properties_is_an_amqp_error(data: bytes) -> None:
    try:
        decode(data, 0, len(data))
    except AmqpError:
        pass


@given(st.binary(max_size=300), st.integers(min_value=8, max_value=64))
def test_garbage_is_split_or_refused(data: bytes, limit: int) -> None:
    frames, used, broken = codec.split(data, limit)
    assert used <= len(data)
    assert all(end - begin + codec.OVERHEAD <= limit for _, _, begin, end in frames)
    assert broken is None or broken.code == 501
