"""Owns random MQTT packets for property tests.

Its rule: every packet it makes is valid in its version.
"""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from gateway.model.message import Properties
from transports.mqtt.fields import allowed_properties
from transports.mqtt.packets import (
    RETURN_CODES,
    V5,
    WILL,
    Ack,
    Auth,
    ConnAck,
    Connect,
    Disconnect,
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

texts = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=12)
nonempty_texts = texts.filter(bool)
topics = st.text(st.characters(exclude_characters="\0+#", codec="utf-8"), min_size=1, max_size=20)
payloads = st.binary(max_size=200)
packet_ids = st.integers(1, 65_535)
reasons = st.sampled_from(sorted(Reason))
_P = Property
_flags = st.integers(0, 1)
_short = st.integers(0, 65_535)
_long = st.integers(0, 0xFFFF_FFFF)
_VALUES: dict[Property, st.SearchStrategy[Any]] = {
    _P.PAYLOAD_FORMAT_INDICATOR: _flags,
    _P.MESSAGE_EXPIRY_INTERVAL: _long,
    _P.CONTENT_TYPE: texts,
    _P.RESPONSE_TOPIC: texts,
    _P.CORRELATION_DATA: st.binary(max_size=20),
    _P.SUBSCRIPTION_IDENTIFIER: st.lists(st.integers(1, 268_435_455), min_size=1, max_size=1),
    _P.SESSION_EXPIRY_INTERVAL: _long,
    _P.ASSIGNED_CLIENT_IDENTIFIER: texts,
    _P.SERVER_KEEP_ALIVE: _short,
    _P.AUTHENTICATION_METHOD: texts,
    _P.AUTHENTICATION_DATA: st.binary(max_size=20),
    _P.REQUEST_PROBLEM_INFORMATION: _flags,
    _P.WILL_DELAY_INTERVAL: _long,
    _P.REQUEST_RESPONSE_INFORMATION: _flags,
    _P.RESPONSE_INFORMATION: texts,
    _P.SERVER_REFERENCE: texts,
    _P.REASON_STRING: texts,
    _P.RECEIVE_MAXIMUM: st.integers(1, 65_535),
    _P.TOPIC_ALIAS_MAXIMUM: _short,
    _P.TOPIC_ALIAS: _short,
    _P.MAXIMUM_QOS: _flags,
    _P.RETAIN_AVAILABLE: _flags,
    _P.USER_PROPERTY: st.lists(st.tuples(texts, texts), min_size=1, max_size=3),
    _P.MAXIMUM_PACKET_SIZE: st.integers(1, 0xFFFF_FFFF),
    _P.WILDCARD_SUBSCRIPTION_AVAILABLE: _flags,
    _P.SUBSCRIPTION_IDENTIFIER_AVAILABLE: _flags,
    _P.SHARED_SUBSCRIPTION_AVAILABLE: _flags,
}


def sections(version: int, place: int) -> st.SearchStrategy[dict[int, Any]]:
    if version != V5:
        return st.just({})
    optional = {name: _VALUES[_P(name)] for name in allowed_properties(place)}
    found = st.fixed_dictionaries({}, optional=optional)
    if place == Type.CONNECT:  # data without a method is a protocol error
        return found.filter(lambda p: _P.AUTHENTICATION_DATA not in p or _P.AUTHENTICATION_METHOD in p)
    return found


def _publishes(version: int) -> st.SearchStrategy[Publish]:
    section = sections(version, Type.PUBLISH)
    plain = st.builds(Publish, topics, payloads, st.just(0), st.booleans(), st.just(False), st.just(0), section)
    counted = st.builds(Publish, topics, payloads, st.integers(1, 2), st.booleans(), st.booleans(), packet_ids, section)
    return plain | counted


def _requests(version: int) -> st.SearchStrategy[Request]:
    if version != V5:
        return st.builds(Request, nonempty_texts, st.integers(0, 2))
    return st.builds(Request, nonempty_texts, st.integers(0, 2), st.booleans(), st.booleans(), st.integers(0, 2))


@st.composite
def _connects(draw: st.DrawFn, version: int) -> Connect:
    wills = st.builds(Will, nonempty_texts, payloads, st.integers(0, 2), st.booleans(), sections(version, WILL))
    username = draw(st.none() | texts)
    password = draw(st.none() | st.binary(max_size=20)) if username is not None or version == V5 else None
    return Connect(
        draw(texts),
        version,
        draw(st.booleans()),
        draw(_short),
        draw(st.none() | wills),
        username,
        password,
        draw(sections(version, Type.CONNECT)),
        version != V5 and draw(st.booleans()),
    )


def packets(version: int) -> st.SearchStrategy[Any]:
    """Any packet of either side."""

    def section(place: int) -> st.SearchStrategy[dict[int, Any]]:
        return sections(version, place)

    v5 = version == V5
    reason = reasons.map(int) if v5 else st.just(0)
    codes = st.lists(reasons.map(int) if v5 else st.sampled_from([0, 1, 2, 0x80]), max_size=4).map(tuple)
    returned = reasons if v5 else st.sampled_from([r for r in RETURN_CODES if r != Reason.BAD_AUTHENTICATION_METHOD])
    acks = [
        st.builds(Ack, st.just(type), packet_ids, reason, section(type))
        for type in (Type.PUBACK, Type.PUBREC, Type.PUBREL, Type.PUBCOMP)
    ]
    filters = st.lists(nonempty_texts, min_size=1, max_size=4).map(tuple)
    requests = st.lists(_requests(version), min_size=1, max_size=4).map(tuple)
    some = [
        _connects(version),
        _publishes(version),
        *acks,
        st.builds(ConnAck, returned, st.booleans(), section(Type.CONNACK)),
        st.builds(Subscribe, packet_ids, requests, section(Type.SUBSCRIBE)),
        st.builds(SubAck, packet_ids, codes, section(Type.SUBACK)),
        st.builds(Unsubscribe, packet_ids, filters, section(Type.UNSUBSCRIBE)),
        st.builds(UnsubAck, packet_ids, codes if v5 else st.just(()), section(Type.UNSUBACK)),
        st.just(PingReq()),
        st.just(PingResp()),
        st.builds(Disconnect, reason, section(Type.DISCONNECT)),
    ]
    if v5:
        some.append(st.builds(Auth, reason, section(Type.AUTH)))
    return st.one_of(some)


_any_text = st.text(st.characters(codec="utf-8"), max_size=12)
_prefixed = st.sampled_from(
    ["x-amqp-priority", "x-amqp-str:x", "x-amqp-int:n", "x-amqp-part", "x-amqp-all", "x-amqp-null:", "x-amqp-"]
)
_huge = st.integers(1, 3).map(lambda n: "ü" * (20_000 * n))
_scalars = (
    _any_text | st.binary(max_size=12) | st.integers(-(2**63), 2**64 - 1) | st.booleans() | st.none()
    | st.floats(allow_nan=False)
)  # fmt: skip
_values = st.recursive(
    _scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_any_text, inner, max_size=3), max_leaves=6
)
_headers = st.lists(
    st.tuples(_any_text | _prefixed, _values | _huge) | st.tuples(_prefixed, st.sampled_from(["5", "", "AA=="])),
    max_size=5,
).map(tuple)
_texts_or_none = st.none() | _any_text | _huge

message_properties = st.builds(
    Properties,
    headers=_headers,
    content_type=_texts_or_none,
    correlation_id=st.none() | st.binary(max_size=20) | st.just(b"\xff" * 70_000),
    reply_to=_texts_or_none,
    payload_format=st.none() | st.integers(0, 1),
    content_encoding=_texts_or_none,
    priority=st.none() | st.integers(0, 255),
    message_id=_texts_or_none,
    timestamp=st.none() | st.integers(0, 2**64 - 1),
    type=_texts_or_none,
    user_id=_texts_or_none,
    app_id=_texts_or_none,
    cluster_id=_texts_or_none,
)
"""All that Properties can say, with names and values that look like our own restoring ones among them."""
