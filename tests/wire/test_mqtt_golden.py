"""MQTT packets as the specifications write them, byte for byte, both ways; and every truncation of each."""

from __future__ import annotations

import pytest

from transports.mqtt.codec import Decoder, TopicNames
from transports.mqtt.encoding import encode
from transports.mqtt.packets import (
    V5,
    V311,
    Ack,
    Auth,
    ConnAck,
    Connect,
    Disconnect,
    Fault,
    Packet,
    PingReq,
    PingResp,
    Property,
    Publish,
    Reason,
    Request,
    SubAck,
    Subscribe,
    Type,
    UnsubAck,
    Unsubscribe,
    Will,
)

P = Property
GOLDEN: list[tuple[str, int, str, Packet]] = [
    ("connect, least", V311, "10 0c 0004 4d515454 04 02 003c 0000", Connect("", V311, True, 60)),
    (
        "connect, all",
        V311,
        "10 1b 0004 4d515454 04 ee 000a 0001 61 0001 77 0002 6869 0001 75 0002 7077",
        Connect("a", V311, True, 10, Will("w", b"hi", 1, True), "u", b"pw"),
    ),
    ("connect, least", V5, "10 0d 0004 4d515454 05 02 0000 00 0000", Connect("")),
    (
        "connect, all",
        V5,
        "10 2d 0004 4d515454 05 c4 000a 08 11 00000064 21 0014 0001 61"
        "0a 18 0000000a 02 00000005 0001 77 0001 68 0001 75 0001 70",
        Connect(
            "a",
            V5,
            False,
            10,
            Will("w", b"h", 0, False, {P.WILL_DELAY_INTERVAL: 10, P.MESSAGE_EXPIRY_INTERVAL: 5}),
            "u",
            b"p",
            {P.SESSION_EXPIRY_INTERVAL: 100, P.RECEIVE_MAXIMUM: 20},
        ),
    ),
    ("connack", V311, "20 02 01 00", ConnAck(Reason.SUCCESS, True)),
    (
        "connect, a bridge",
        V311,
        "10 0d 0004 4d515454 84 02 003c 0001 61",
        Connect("a", V311, keep_alive=60, bridge=True),
    ),
    ("connack, refused", V311, "20 02 00 04", ConnAck(Reason.BAD_USER_NAME_OR_PASSWORD)),
    ("connack", V5, "20 03 00 00 00", ConnAck()),
    (
        "connack, told",
        V5,
        "20 0f 00 00 0c 24 01 12 0002 7879 13 000a 2a 00",
        ConnAck(
            properties={
                P.MAXIMUM_QOS: 1,
                P.ASSIGNED_CLIENT_IDENTIFIER: "xy",
                P.SERVER_KEEP_ALIVE: 10,
                P.SHARED_SUBSCRIPTION_AVAILABLE: 0,
            }
        ),
    ),
    ("publish, QoS 0", V311, "30 06 0003 612f62 78", Publish("a/b", b"x")),
    ("publish, QoS 1", V311, "32 08 0003 612f62 000a 78", Publish("a/b", b"x", 1, packet_id=10)),
    ("publish, all flags", V311, "3d 08 0003 612f62 ffff 78", Publish("a/b", b"x", 2, True, True, 0xFFFF)),
    ("publish, no payload", V311, "31 05 0003 612f62", Publish("a/b", b"", retain=True)),
    ("publish, QoS 0", V5, "30 07 0003 612f62 00 78", Publish("a/b", b"x")),
    ("publish, U+FEFF", V311, "30 07 0004 efbbbf61 78", Publish("\ufeffa", b"x")),
    ("publish, U+FEFF", V5, "30 08 0004 efbbbf61 00 78", Publish("\ufeffa", b"x")),
    (
        "publish, properties",
        V5,
        "32 1b 0001 74 0005 14 01 01 02 00000001 23 0002 26 0001 6b 0001 76 0b 8001 78",
        Publish(
            "t",
            b"x",
            1,
            packet_id=5,
            properties={
                P.PAYLOAD_FORMAT_INDICATOR: 1,
                P.MESSAGE_EXPIRY_INTERVAL: 1,
                P.TOPIC_ALIAS: 2,
                P.USER_PROPERTY: [("k", "v")],
                P.SUBSCRIPTION_IDENTIFIER: [128],
            },
        ),
    ),
    ("publish, QoS 2", V5, "34 09 0003 612f62 000a 00 78", Publish("a/b", b"x", 2, packet_id=10)),
    ("publish, alias alone", V5, "30 06 0000 03 23 0001", Publish("", b"", properties={P.TOPIC_ALIAS: 1})),
    ("puback", V311, "40 02 0001", Ack(Type.PUBACK, 1)),
    ("puback", V5, "40 02 0001", Ack(Type.PUBACK, 1)),
    ("puback, reason", V5, "40 03 0001 10", Ack(Type.PUBACK, 1, 0x10)),
    ("puback, told", V5, "40 08 0001 97 04 1f 0001 78", Ack(Type.PUBACK, 1, 0x97, {P.REASON_STRING: "x"})),
    ("pubrec", V311, "50 02 0102", Ack(Type.PUBREC, 258)),
    ("pubrec", V5, "50 02 0102", Ack(Type.PUBREC, 258)),
    ("pubrec, told", V5, "50 08 0102 97 04 1f 0001 78", Ack(Type.PUBREC, 258, 0x97, {P.REASON_STRING: "x"})),
    ("pubrel", V311, "62 02 0102", Ack(Type.PUBREL, 258)),
    ("pubrel", V5, "62 02 0102", Ack(Type.PUBREL, 258)),
    ("pubrel, reason", V5, "62 03 0102 92", Ack(Type.PUBREL, 258, 0x92)),
    ("pubcomp", V311, "70 02 0102", Ack(Type.PUBCOMP, 258)),
    ("pubcomp", V5, "70 02 0102", Ack(Type.PUBCOMP, 258)),
    ("pubcomp, reason", V5, "70 03 0102 92", Ack(Type.PUBCOMP, 258, 0x92)),
    ("subscribe", V311, "82 0b 000a 0001 61 01 0002 622f 00", Subscribe(10, (Request("a", 1), Request("b/")))),
    (
        "subscribe, options",
        V5,
        "82 09 000a 02 0b 05 0001 23 2d",
        Subscribe(10, (Request("#", 1, True, True, 2),), {P.SUBSCRIPTION_IDENTIFIER: [5]}),
    ),
    ("suback", V311, "90 05 000a 01 00 80", SubAck(10, (1, 0, 0x80))),
    ("suback", V5, "90 05 000a 00 01 8f", SubAck(10, (1, 0x8F))),
    ("suback, told", V5, "90 08 000a 04 1f 0001 78 01", SubAck(10, (1,), {P.REASON_STRING: "x"})),
    ("unsubscribe", V311, "a2 05 000a 0001 61", Unsubscribe(10, ("a",))),
    ("unsubscribe", V5, "a2 06 000a 00 0001 61", Unsubscribe(10, ("a",))),
    ("unsuback", V311, "b0 02 000a", UnsubAck(10)),
    ("unsuback", V5, "b0 05 000a 00 00 11", UnsubAck(10, (0, 0x11))),
    ("unsuback, told", V5, "b0 08 000a 04 1f 0001 78 00", UnsubAck(10, (0,), {P.REASON_STRING: "x"})),
    ("pingreq", V311, "c0 00", PingReq()),
    ("pingreq", V5, "c0 00", PingReq()),
    ("pingresp", V311, "d0 00", PingResp()),
    ("pingresp", V5, "d0 00", PingResp()),
    ("disconnect", V311, "e0 00", Disconnect()),
    ("disconnect", V5, "e0 00", Disconnect()),
    ("disconnect, will", V5, "e0 01 04", Disconnect(4)),
    (
        "disconnect, expiry",
        V5,
        "e0 07 00 05 11 00000000",
        Disconnect(0, {P.SESSION_EXPIRY_INTERVAL: 0}),
    ),
    ("disconnect, told", V5, "e0 06 8d 04 1f 0001 78", Disconnect(0x8D, {P.REASON_STRING: "x"})),
    ("auth", V5, "f0 08 18 06 15 0003 61 62 63", Auth(0x18, {P.AUTHENTICATION_METHOD: "abc"})),
    (
        "auth, data",
        V5,
        "f0 0c 18 0a 15 0003 616263 16 0001 78",
        Auth(0x18, {P.AUTHENTICATION_METHOD: "abc", P.AUTHENTICATION_DATA: b"x"}),
    ),
]
table = pytest.mark.parametrize(
    ("version", "text", "packet"), [row[1:] for row in GOLDEN], ids=[f"{row[0]} {row[1]}" for row in GOLDEN]
)


def decode(data: bytes, version: int, max_packet_size: int = 1 << 20) -> tuple[list[Packet | Fault], int]:
    return Decoder(max_packet_size, TopicNames(), version).decode(bytearray(data))


def before(packet: Packet, version: int) -> int:
    """The decoder's version when the packet comes: a CONNECT sets it."""
    return 0 if isinstance(packet, Connect) else version


@table
def test_encode(version: int, text: str, packet: Packet) -> None:
    assert encode(packet, version).hex() == text.replace(" ", "")


@table
def test_decode(version: int, text: str, packet: Packet) -> None:
    data = bytes.fromhex(text)
    assert decode(data, before(packet, version)) == ([packet], len(data))


@table
def test_the_start_of_a_packet_waits_for_the_rest(version: int, text: str, packet: Packet) -> None:
    data = bytes.fromhex(text)
    for stop in range(len(data)):
        assert decode(data[:stop], before(packet, version)) == ([], 0)


@table
def test_a_packet_cut_short_is_a_shorter_packet_or_a_fault(version: int, text: str, packet: Packet) -> None:
    data = bytes.fromhex(text)
    for stop in range(2, len(data)):
        found, _ = decode(data[:1] + bytes((stop - 2,)) + data[2:stop], before(packet, version))
        assert len(found) == 1 and found[0] != packet


@table
def test_bytes_behind_the_last_field_are_no_other_packet(version: int, text: str, packet: Packet) -> None:
    data = bytes.fromhex(text)
    found, _ = decode(data[:1] + bytes((data[1] + 1,)) + data[2:] + b"\xff", before(packet, version))
    assert len(found) == 1
    if not isinstance(packet, Publish):  # there it belongs to the payload
        assert isinstance(found[0], Fault)


def test_a_bridge_of_3_1_is_read_as_one_of_3_1_1() -> None:
    data = bytes.fromhex("10 0f 0006 4d5149736470 83 02 003c 0001 61")
    assert decode(data, 0) == ([Connect("a", V311, keep_alive=60, bridge=True)], len(data))


@pytest.mark.parametrize(
    ("version", "text", "reason"),
    [
        (V5, "32 05 0001 61 0001", Reason.MALFORMED_PACKET),  # no property section
        (V5, "30 06 0001 61 02 0b 00", Reason.PROTOCOL_ERROR),  # subscription identifier 0
        (V5, "30 08 0001 61 04 01 00 01 00", Reason.PROTOCOL_ERROR),  # a property twice
        (V5, "30 06 0001 61 02 01 02", Reason.PROTOCOL_ERROR),  # payload format 2
        (V5, "30 06 0001 61 02 11 00", Reason.MALFORMED_PACKET),  # a property of other packets
        (V5, "30 06 0001 61 02 7f 00", Reason.MALFORMED_PACKET),  # no property at all
        (V5, "30 05 0001 61 8000", Reason.MALFORMED_PACKET),  # a length that is not the shortest
        (V5, "30 80 00", Reason.MALFORMED_PACKET),
        (V5, "40 03 0001 05", Reason.MALFORMED_PACKET),  # no such reason
        (V5, "82 07 0001 00 0001 61 40", Reason.MALFORMED_PACKET),  # reserved option bits
        (V5, "82 07 0001 00 0001 61 03", Reason.MALFORMED_PACKET),
        (V5, "82 07 0001 00 0001 61 30", Reason.MALFORMED_PACKET),
        (V311, "82 06 0001 0001 61 04", Reason.MALFORMED_PACKET),  # options of MQTT 5
        (V5, "60 02 0001", Reason.MALFORMED_PACKET),  # PUBREL with flags 0
        (V5, "c1 00", Reason.MALFORMED_PACKET),
        (V311, "f0 00", Reason.MALFORMED_PACKET),  # AUTH in 3.1.1
        (V311, "e0 01 00", Reason.MALFORMED_PACKET),
        (V5, "30 06 0003 eda080 00", Reason.MALFORMED_PACKET),  # a surrogate
        (0, "c0 00", Reason.PROTOCOL_ERROR),  # not CONNECT first
        (0, "10 0d 0004 4d515454 05 03 0000 00 0000", Reason.MALFORMED_PACKET),  # reserved flag
        (0, "10 0d 0004 4d515454 05 1a 0000 00 0000", Reason.MALFORMED_PACKET),  # will QoS without a will
        (0, "10 11 0004 4d515454 05 02 0000 04 16 0001 61 0000", Reason.PROTOCOL_ERROR),  # data without method
        (0, "10 10 0004 4d515454 05 02 0000 03 21 0000 0000", Reason.PROTOCOL_ERROR),  # receive maximum 0
        (0, "10 0c 0004 4d515454 03 02 0000 0000", Reason.UNSUPPORTED_PROTOCOL_VERSION),
        (0, "10 0c 0004 4d515454 83 02 0000 0000", Reason.UNSUPPORTED_PROTOCOL_VERSION),  # bridges of no version
        (0, "10 0d 0004 4d515454 85 02 0000 00 0000", Reason.UNSUPPORTED_PROTOCOL_VERSION),
        (0, "10 0e 0006 4d5149736470 84 02 0000 0000", Reason.UNSUPPORTED_PROTOCOL_VERSION),
        (0, "10 0e 0006 4d5149736470 03 02 0000 0000", Reason.UNSUPPORTED_PROTOCOL_VERSION),  # MQTT 3.1
        (0, "10 0c 0004 4d515454 04 0a 0000 0000", Reason.MALFORMED_PACKET),  # will QoS without a will, 3.1.1
        (0, "10 0d 0004 4d515454 05 22 0000 00 0000", Reason.MALFORMED_PACKET),  # will retain without a will
        (0, "10 0c 0004 4d515454 04 22 0000 0000", Reason.MALFORMED_PACKET),
        (0, "10 12 0004 4d515454 05 1e 0000 00 0000 00 0000 0000", Reason.MALFORMED_PACKET),  # will QoS 3
        (0, "10 10 0004 4d515454 04 1e 0000 0000 0000 0000", Reason.MALFORMED_PACKET),
        (0, "10 0e 0004 4d515454 04 42 0000 0000 0000", Reason.MALFORMED_PACKET),  # a password without a user name
        (0, "10 0d 0004 4d515454 04 02 0000 0001 ff", Reason.MALFORMED_PACKET),  # texts that are no UTF-8: a client id
        (0, "10 0e 0004 4d515454 05 02 0000 00 0001 ff", Reason.MALFORMED_PACKET),
        (0, "10 11 0004 4d515454 04 06 0000 0000 0001 ff 0000", Reason.MALFORMED_PACKET),  # the topic of a will
        (0, "10 0f 0004 4d515454 04 82 0000 0000 0001 ff", Reason.MALFORMED_PACKET),  # a user name
        (V5, "30 08 0001 61 04 08 0001 ff", Reason.MALFORMED_PACKET),  # a response topic
        (V5, "30 08 0001 61 04 03 0001 ff", Reason.MALFORMED_PACKET),  # a content type
        (V5, "30 0b 0001 61 07 26 0001 6b 0001 ff", Reason.MALFORMED_PACKET),  # the value of a user property
        (V5, "30 0b 0001 61 07 26 0001 ff 0001 76", Reason.MALFORMED_PACKET),  # its name
        (V5, "82 07 0001 00 0001 ff 00", Reason.MALFORMED_PACKET),  # filters
        (V311, "82 06 0001 0001 ff 00", Reason.MALFORMED_PACKET),
        (V5, "a2 06 0001 00 0001 ff", Reason.MALFORMED_PACKET),
        (V311, "a2 05 0001 0001 ff", Reason.MALFORMED_PACKET),
        (V5, "a0 06 0001 00 0001 61", Reason.MALFORMED_PACKET),  # reserved flags: of UNSUBSCRIBE
        (V311, "a1 05 0001 0001 61", Reason.MALFORMED_PACKET),
        (V5, "e2 00", Reason.MALFORMED_PACKET),  # of DISCONNECT
        (V311, "e1 00", Reason.MALFORMED_PACKET),
        (V5, "f1 08 18 06 15 0003 61 62 63", Reason.MALFORMED_PACKET),  # of AUTH
    ],
)
def test_faults(version: int, text: str, reason: Reason) -> None:
    found, _ = decode(bytes.fromhex(text), version)
    (fault,) = found
    assert isinstance(fault, Fault)
    assert fault.reason == reason


def test_what_stands_before_a_fault_is_still_there() -> None:
    data = encode(Publish("a", b"1"), V5) + b"\xc0\x00" + b"\x00\x00" + encode(Publish("a", b"2"), V5)
    found, _ = decode(data, V5)
    assert found[:2] == [Publish("a", b"1"), PingReq()]
    assert isinstance(found[2], Fault) and len(found) == 3


def test_a_packet_is_too_large_as_soon_as_its_length_is_there() -> None:
    whole = encode(Publish("a", b"x" * 2000), V5)
    assert decode(whole, V5, len(whole))[0] == [Publish("a", b"x" * 2000)]
    (fault,) = decode(whole[:3], V5, len(whole) - 1)[0]
    assert isinstance(fault, Fault) and fault.reason == Reason.PACKET_TOO_LARGE


def test_decoding_stops_behind_connect() -> None:
    hello = encode(Connect("a"), V5)
    found, used = decode(hello + b"\xc0\x00", 0)
    assert (found, used) == ([Connect("a")], len(hello))


def test_topic_names_that_are_kept_stay_bounded() -> None:
    topics = TopicNames()
    decoder = Decoder(1 << 20, topics, V311)
    for n in range(20_000):
        decoder.decode(bytearray(encode(Publish(f"t/{n}", b""), V311)))
    assert 0 < len(topics.known) <= 16_384
    decoder.decode(bytearray(encode(Publish("x" * 1000, b""), V311)))
    assert b"x" * 1000 not in topics.known
