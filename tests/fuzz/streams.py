"""Owns what peers may send, for Hypothesis: valid packets of both protocols, in any order, whole or damaged.

Its rule: names and numbers are few, so that packets mean each other's sessions, queues, channels and packet ids.
"""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from pamqp import commands as amqp
from pamqp.commands import INDEX_MAPPING

from tests.wire.mqtt_strategies import packets, sections
from transports.amqp.codec import BODY, HEARTBEAT_FRAME, PROTOCOL_HEADER, append_content, encode_method
from transports.mqtt.encoding import encode
from transports.mqtt.packets import V5, V311, Ack, Connect, Disconnect, Publish, Request, Subscribe, Type, Unsubscribe

# MQTT

_topics = st.sampled_from(["jobs/1", "lines/1", "a", "a/b", "$queue/jobs", "$queue/lines", "$queue/mqtt.me", "$SYS/x"])
_filters = st.sampled_from(
    [
        "#",
        "+/1",
        "a",
        "jobs/#",
        "$queue/jobs",
        "$queue/lines",
        "$queue/none",
        "$share/s/#",
        "$share/s/a",
        "$share//a",
        "a#",
    ]
)
_ids = st.integers(1, 5)
_bodies = st.sampled_from([b"", b"x", b"y", b"z" * 300])


def _likely(version: int) -> st.SearchStrategy[Any]:
    """Packets that do something."""
    reasons = st.sampled_from([0, 0x80, 0x97]) if version == V5 else st.just(0)
    requests = st.builds(Request, _filters, st.integers(0, 1))
    return st.one_of(
        st.builds(Publish, _topics, _bodies, st.just(1), st.booleans(), st.booleans(), _ids),
        st.builds(Publish, _topics, _bodies, st.just(0), st.booleans()),
        st.builds(
            Publish, _topics, _bodies, st.just(1), st.booleans(), st.just(False), _ids, sections(version, Type.PUBLISH)
        ),
        st.builds(Subscribe, _ids, st.lists(requests, min_size=1, max_size=4).map(tuple)),
        st.builds(Unsubscribe, _ids, st.lists(_filters, min_size=1, max_size=2).map(tuple)),
        st.builds(Ack, st.just(Type.PUBACK), _ids, reasons),
        st.builds(Disconnect),
    )


@st.composite
def mqtt_packets(draw: st.DrawFn) -> list[bytes]:
    """A session, from its CONNECT on; now and then something that no client sends."""
    version = draw(st.sampled_from([V311, V5]))
    connect = Connect("me", version, draw(st.booleans()), properties=draw(sections(version, Type.CONNECT)))
    rest = draw(st.lists(_likely(version) | _likely(version) | packets(version), max_size=15))
    return [encode(packet, version) for packet in (connect, *rest)]


# AMQP

_names = st.sampled_from(
    ["jobs", "lines", "q1", "q2", "", "a", "mqtt.x", "link.x", "amq.topic", "amq.gen-1", "amq.rabbitmq.reply-to"]
)
_tables = st.sampled_from(
    [
        {},
        {"x-max-length": 2},
        {"x-expires": 1000},
        {"x-dead-letter-exchange": ""},
        {"x-group": True},
        {"x-dedup-window": 1000, "x-delay": 1},
        {"x-max-priority": 3},
        {"x-single-active-consumer": True},
        {"alternate-exchange": "a"},
        {"a": {"b": [1, None, "x"]}},
        {"x": -1},
    ]
)
_values: dict[str, st.SearchStrategy[Any]] = {
    "bit": st.booleans(),
    "octet": st.integers(0, 255),
    "short": st.sampled_from([0, 1, 2, 65_535]),
    "long": st.sampled_from([0, 1, 4096, 0xFFFF_FFFF]),
    "longlong": st.integers(0, 6) | st.just((1 << 64) - 1),
    "table": _tables,
    "shortstr": _names | st.sampled_from(["topic", "direct", "fanout", "headers", "PLAIN", "a.b", "#", "*.x"]),
    "longstr": st.sampled_from([b"", b"x", b"\0guest\0guest"]),
}
_FOR_SERVERS = """
    Basic.Ack Basic.Cancel Basic.Consume Basic.Get Basic.Nack Basic.Publish Basic.Qos Basic.Recover Basic.Reject
    Channel.Close Channel.Flow Channel.Open Confirm.Select
    Exchange.Bind Exchange.Declare Exchange.Delete Exchange.Unbind
    Queue.Bind Queue.Declare Queue.Delete Queue.Purge Queue.Unbind Tx.Commit Tx.Rollback Tx.Select
""".split()
_KINDS = sorted(INDEX_MAPPING.values(), key=lambda kind: kind.index)
_LIKELY = [kind for kind in _KINDS if kind.name in _FOR_SERVERS]


@st.composite
def _method(draw: st.DrawFn, kinds: list[Any]) -> bytes:
    kind = draw(st.sampled_from(kinds))
    arguments = {name: draw(_values[kind.amqp_type(name)]) for name in kind.attributes()}
    channel = draw(st.sampled_from([1, 1, 1, 1, 2, 0]))
    if kind is amqp.Basic.Consume:
        arguments["arguments"] = draw(st.sampled_from([{}, {}, {"x-priority": 1}]))
    return encode_method(channel, kind, **arguments)


_PROPERTIES = [
    b"\0\0",
    b"\x10\0\x02",
    b"\x10\0\xff",
    amqp.Basic.Properties(reply_to="amq.rabbitmq.reply-to").marshal(),
    amqp.Basic.Properties(headers={"CC": ["jobs", "q1"], "BCC": ["lines"]}).marshal(),
    amqp.Basic.Properties(headers={"x-delay": 5, "group": "g", "x-deduplication-header": "k"}, priority=2).marshal(),
]


@st.composite
def _content(draw: st.DrawFn) -> bytes:
    """A whole publish, or only its header and body."""
    parts: list[bytes] = []
    channel = draw(st.sampled_from([1, 1, 1, 2]))
    if draw(st.booleans()):
        exchange, key = draw(
            st.sampled_from([("", "jobs"), ("", "lines"), ("amq.topic", "jobs.1"), ("amq.topic", "a")])
        )
        mandatory = draw(st.booleans())
        parts.append(
            encode_method(channel, amqp.Basic.Publish, exchange=exchange, routing_key=key, mandatory=mandatory)
        )
    body = draw(_bodies)
    append_content(parts, channel, draw(st.sampled_from(_PROPERTIES)), body, 4096)
    return b"".join(parts)


_junk = st.builds(
    lambda kind, channel, payload: bytes((kind, 0, channel)) + len(payload).to_bytes(4, "big") + payload + b"\xce",
    st.sampled_from([0, 1, 2, BODY, 4, 8]),
    st.integers(0, 2),
    st.binary(max_size=20),
)

HANDSHAKE = [
    PROTOCOL_HEADER,
    encode_method(0, amqp.Connection.StartOk, mechanism="PLAIN", response=b"\0guest\0guest", locale="en_US"),
    encode_method(0, amqp.Connection.TuneOk),
    encode_method(0, amqp.Connection.Open, virtual_host="/"),
    encode_method(1, amqp.Channel.Open),
]


@st.composite
def amqp_frames(draw: st.DrawFn) -> list[bytes]:
    """A connection, from its header on, usually let in; now and then something that no client sends."""
    start = HANDSHAKE if draw(st.integers(0, 9)) else draw(st.permutations(HANDSHAKE))
    likely = _method(_LIKELY)
    rest = st.one_of(likely, likely, likely, _content(), _content(), _method(_KINDS), st.just(HEARTBEAT_FRAME), _junk)
    return [*start, *draw(st.lists(rest, max_size=15))]


# damage

_edits = st.lists(
    st.tuples(
        st.sampled_from(["set", "drop", "insert", "repeat", "cut"]), st.integers(0, 1 << 16), st.binary(max_size=6)
    ),
    min_size=1,
    max_size=4,
)


@st.composite
def damaged(draw: st.DrawFn, streams: st.SearchStrategy[list[bytes]]) -> list[bytes]:
    """One piece of the stream is not as it was."""
    pieces = draw(streams)
    place = draw(st.integers(0, len(pieces) - 1))
    data = bytearray(pieces[place])
    for how, at, octets in draw(_edits):
        at %= len(data) + 1
        if how == "set":
            data[at : at + len(octets)] = octets
        elif how == "drop":
            del data[at : at + len(octets)]
        elif how == "insert":
            data[at:at] = octets
        elif how == "repeat":
            data[at:at] = data[at : at + 64] * 3
        else:
            del data[at:]
    pieces[place] = bytes(data)
    return pieces


streams = {"mqtt": mqtt_packets(), "amqp": amqp_frames()}
