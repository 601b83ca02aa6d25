"""Properties both ways: canonical -> AMQP -> canonical and AMQP -> canonical -> AMQP are the identity."""

from __future__ import annotations

import struct
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pamqp import commands as amqp

from gateway.model.message import DEFAULT_EXCHANGE, NO_PROPERTIES, Message, Properties
from gateway.model.topics import MAX_HASHES, swap
from gateway.routing.router import Router
from gateway.transport import Binding
from transports.amqp import properties as subject
from transports.amqp.errors import AmqpError
from transports.amqp.fields import decode_table, encode_table
from transports.amqp.names import reply_to_key, reply_to_topic, to_filter, to_pattern

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
names = text | st.sampled_from(sorted(subject._RESTORING)) | st.sampled_from(["a" * 200, "ä" * 100, subject.TYPES])
long_text = text | st.sampled_from(["x" * 255, "x" * 256, "ä" * 128])
topics = st.lists(st.sampled_from(["shop", "7", "a.b", "", "$queue", "$topic", "+"]), min_size=1).map("/".join)
scalars = (
    text
    | st.binary(max_size=20)
    | st.booleans()
    | st.none()
    | st.integers(-(1 << 63), (1 << 63) - 1)
    | st.floats(allow_nan=False)
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3), max_leaves=6
)


def optional(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


canonical = st.builds(
    Properties,
    # The hints come last where there are any; only what AMQP wrote has them.
    headers=st.lists(st.tuples(names, values), max_size=6)
    .map(tuple)
    .filter(lambda items: not items or items[-1][0] != subject.TYPES or not isinstance(items[-1][1], dict)),
    content_type=optional(long_text),
    correlation_id=optional(st.binary(max_size=300)),
    reply_to=optional(topics | topics.map("$queue/".__add__) | st.just("t" * 300)),
    payload_format=optional(st.integers(0, 1)),
    content_encoding=optional(long_text),
    priority=optional(st.integers(-1, 300)),
    message_id=optional(long_text),
    timestamp=optional(st.integers(0, (1 << 64) - 1)),
    type=optional(long_text),
    user_id=optional(text),
    app_id=optional(text),
    cluster_id=optional(text),
)
messages = st.builds(
    Message,
    topic=topics | st.just("a/b." * 100),
    body=st.just(b""),
    exchange=st.sampled_from(["amq.topic", "logs", DEFAULT_EXCHANGE]),
    qos=st.integers(0, 2),
    retain=st.booleans(),
    properties=canonical,
    ttl=optional(st.integers(0, subject.MAX_EXPIRATION).map(lambda ms: ms / 1000)),
)


def through(message: Message, native: bool = False) -> Message:
    """Out to an AMQP client and back in again, as a worker that republishes what it got."""
    data = subject.encode(message, native, message.ttl)
    key = subject.routing_key(message).decode()
    content = subject.decode(data, 0, len(data), not key)
    topic = content.topic or (key if message.exchange == DEFAULT_EXCHANGE else swap(key))
    return msgspec.structs.replace(
        message, topic=topic, qos=content.qos, retain=content.retain, properties=content.properties, ttl=content.ttl
    )


@given(messages)
@example(Message("a", b"", properties=Properties(headers=(("x-mqtt-retain", True), ("x-mqtt-retain", "1")))))
@example(Message("a", b"", properties=Properties(headers=(("b", "1"), ("a", "2"), ("b", "3")))))
@example(Message("a", b"", properties=Properties(headers=((subject.TYPES, {"a": "b"}), ("a", 1)))))
def test_what_goes_out_by_amqp_comes_back_the_same(message: Message) -> None:
    # As bytes, so that 1 is not true.
    assert msgspec.msgpack.encode(through(message)) == msgspec.msgpack.encode(message)


@given(messages.filter(lambda m: not any(name in subject._RESTORING for name, _ in m.properties.headers)))
def test_what_a_worker_restored_goes_out_again(message: Message) -> None:
    """It came by AMQP last, and may still hold what only MQTT can say."""
    assert msgspec.msgpack.encode(through(message, native=True)) == msgspec.msgpack.encode(message)


def test_a_message_that_says_nothing_takes_three_bytes() -> None:
    assert subject.encode(Message("a", b""), False) == subject.PERSISTENT
    assert subject.encode(Message("a", b"", qos=0), True) == subject.TRANSIENT
    assert subject.decode(b"\0\0", 0, 2) is subject.NOTHING_SAID
    assert subject.NOTHING_SAID.delay is None and subject.NOTHING_SAID.ttl is None
    assert subject.encode(Message("a", b"", qos=0, properties=subject.NOTHING_SAID.properties), True) == b"\0\0"
    content = subject.decode(subject.PERSISTENT, 0, 3)
    assert content == subject.Content(NO_PROPERTIES, 1, False, None, None)


# what a client can send


def field(letter: str, form: str, numbers: st.SearchStrategy[Any]) -> st.SearchStrategy[bytes]:
    return numbers.map(lambda number: letter.encode() + struct.pack(form, number))


def sized(letter: bytes, raw: bytes) -> bytes:
    return letter + struct.pack(">I", len(raw)) + raw


def short(raw: bytes) -> bytes:
    return bytes((len(raw),)) + raw


wire_scalars = st.one_of(
    st.booleans().map(lambda flag: b"t\1" if flag else b"t\0"),
    st.just(b"V"),
    st.binary(max_size=20).map(lambda raw: sized(b"S", raw)),
    st.binary(max_size=20).map(lambda raw: sized(b"x", raw)),
    *(
        field(letter, ">" + form, st.integers(low, high))
        for letter, form, low, high in (
            ("b", "b", -128, 127),
            ("B", "B", 0, 255),
            ("s", "h", -(1 << 15), (1 << 15) - 1),
            ("u", "H", 0, (1 << 16) - 1),
            ("I", "i", -(1 << 31), (1 << 31) - 1),
            ("i", "I", 0, (1 << 32) - 1),
            ("l", "q", -(1 << 63), (1 << 63) - 1),
            ("L", "q", -(1 << 63), (1 << 63) - 1),
            ("T", "Q", 0, (1 << 64) - 1),
        )
    ),
    field("f", ">f", st.floats(width=32, allow_nan=False)),
    field("d", ">d", st.floats(allow_nan=False)),
    st.builds(
        lambda s, n: b"D" + struct.pack(">Bi", s, n), st.integers(0, 255), st.integers(-(1 << 31), (1 << 31) - 1)
    ),
)


def wire_table(items: dict[str, bytes]) -> bytes:
    raw = b"".join(short(name.encode()) + value for name, value in items.items())
    return struct.pack(">I", len(raw)) + raw


wire_values = st.recursive(
    wire_scalars,
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda parts: sized(b"A", b"".join(parts)))
        | st.dictionaries(text, inner, max_size=3).map(lambda items: b"F" + wire_table(items))
    ),
    max_leaves=6,
)
wire_headers = st.dictionaries(text | st.just(subject.TYPES), wire_values, min_size=1, max_size=5)
shorts = text.map(str.encode).filter(lambda raw: len(raw) < 256).map(short)


@given(wire_headers)
def test_every_field_type_comes_back_as_it_was_sent(items: dict[str, bytes]) -> None:
    data = wire_table(items)
    values, hints, end = decode_table(data, 0, len(data))
    assert end == len(data)
    assert encode_table(values.items(), hints) == data
    # What the journal keeps is the same: hints and values are what msgpack can hold.
    kept = msgspec.msgpack.decode(msgspec.msgpack.encode([values, hints]))
    assert encode_table(kept[0].items(), kept[1]) == data


@given(
    st.dictionaries(
        st.sampled_from([0x8000, 0x4000, 0x0400, 0x0200, 0x0080, 0x0020, 0x0010, 0x0008, 0x0004]), shorts, max_size=9
    ),
    optional(wire_headers | st.just({})),
    st.sampled_from([None, b"\1", b"\2"]),
    optional(st.integers(0, 255)),
    optional(st.integers(0, (1 << 32) - 1)),
    optional(st.integers(0, (1 << 64) - 1)),
)
def test_what_came_in_by_amqp_goes_out_the_same(
    strings: dict[int, bytes],
    headers: dict[str, bytes] | None,
    mode: bytes | None,
    priority: int | None,
    expiration: int | None,
    timestamp: int | None,
) -> None:
    parts = {**strings} if mode is None else {**strings, 0x1000: mode}
    if headers is not None:
        parts[0x2000] = wire_table(headers)
    if priority is not None:
        parts[0x0800] = bytes((priority,))
    if expiration is not None:
        parts[0x0100] = short(str(expiration).encode())
    if timestamp is not None:
        parts[0x0040] = struct.pack(">Q", timestamp)
    data = struct.pack(">H", sum(parts)) + b"".join(parts[bit] for bit in sorted(parts, reverse=True))
    content = subject.decode(data, 0, len(data))
    message = Message("a", b"", "amq.topic", content.qos, content.retain, content.properties, content.ttl)
    assert subject.encode(message, True, message.ttl) == data


def test_a_header_of_pamqp_is_a_plain_number_for_templates() -> None:
    data = amqp.Basic.Properties(headers={"order-id": 7}, delivery_mode=2).marshal()
    content = subject.decode(data, 0, len(data))
    assert dict(content.properties.headers)["order-id"] == 7


def test_headers_that_a_worker_sorted_are_put_in_order_again() -> None:
    message = Message("a", b"", properties=Properties(headers=(("z", "1"), ("a", "2"), ("z", "3"))))
    data = subject.encode(message, False)
    table, _, _ = decode_table(data, 2, len(data))
    table["a"] = "changed"
    table["new"] = "n"
    sorted_by_client = dict(sorted(table.items()))
    again = struct.pack(">H", 0x3000) + encode_table(sorted_by_client.items()) + b"\2"
    content = subject.decode(again, 0, len(again))
    assert content.properties.headers == (("z", "1"), ("a", "changed"), ("z", "3"), ("new", "n"))


def as_a_client(value: Any, change: str) -> Any:
    """What some client library makes of it that reads a table and writes it again."""
    if isinstance(value, dict):
        return {name: as_a_client(one, change) for name, one in value.items()}
    if isinstance(value, list):
        return [as_a_client(one, change) for one in value]
    if isinstance(value, bytes) and change == "bytes are text":
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value
    if isinstance(value, str) and change == "text is bytes":
        return value.encode()
    if isinstance(value, bool) and change == "true is 1":
        return int(value)
    if (
        isinstance(value, int)
        and not isinstance(value, bool)
        and abs(value) < 1 << 53
        and change == "numbers are floats"
    ):
        return float(value)
    return value


@given(
    messages.filter(lambda message: not message.properties.headers),
    st.sampled_from(["bytes are text", "text is bytes", "true is 1", "numbers are floats"]),
    optional(st.lists(st.tuples(names, text), max_size=4).map(tuple)),
)
@example(Message("a", b"", properties=Properties(correlation_id=b"c" * 300)), "bytes are text", None)
def test_the_way_back_does_not_depend_on_types_that_clients_change(
    message: Message, change: str, headers: tuple[tuple[str, Any], ...] | None
) -> None:
    if headers and change != "text is bytes":  # whose values are the sender's, and are what the client made of them
        said = msgspec.structs.replace(message.properties, headers=headers)
        message = msgspec.structs.replace(message, properties=said)
    data = subject.encode(message, False, message.ttl)
    flags = int.from_bytes(data[:2], "big")
    at = 2
    for bit in (0x8000, 0x4000):
        at += 1 + data[at] if flags & bit else 0
    if flags & 0x2000:
        table, _, end = decode_table(data, at, len(data))
        data = data[:at] + encode_table(as_a_client(table, change).items()) + data[end:]
    key = subject.routing_key(message).decode()
    content = subject.decode(data, 0, len(data), not key)
    assert msgspec.msgpack.encode(content.properties) == msgspec.msgpack.encode(message.properties)
    assert (content.qos, content.retain, content.ttl) == (message.qos, message.retain, message.ttl)
    assert content.topic == (message.topic if not key and message.topic else None)


def test_a_list_of_headers_keeps_what_the_client_changed_though_python_calls_it_equal() -> None:
    message = Message("a", b"", properties=Properties(headers=(("z", 1), ("a", [True]), ("z", "3"))))
    table, _, _ = decode_table(data := subject.encode(message, False), 2, len(data))
    table |= {"z": True, "a": [1]}
    again = struct.pack(">H", 0x3000) + encode_table(table.items()) + b"\2"
    headers = subject.decode(again, 0, len(again)).properties.headers
    assert headers[0][1] is True and headers[1][1][0] is not True


def test_a_hint_that_no_longer_fits_is_passed_over() -> None:
    assert encode_table([("a", "text")], {"a": "T"}) == encode_table([("a", "text")])
    assert encode_table([("a", 1e300)], {"a": "f"}) == encode_table([("a", 1e300)])


@pytest.mark.parametrize("expiration", ["-1", "", "1.5", "ten", "9" * 20, "²"])
def test_an_expiration_that_is_no_number_is_406(expiration: str) -> None:
    data = struct.pack(">H", 0x0100) + short(expiration.encode())
    with pytest.raises(AmqpError, match="PRECONDITION_FAILED"):
        subject.decode(data, 0, len(data))


@pytest.mark.parametrize("mode", [0, 3, 255])
def test_a_delivery_mode_that_is_none_is_406(mode: int) -> None:
    with pytest.raises(AmqpError, match="PRECONDITION_FAILED - invalid delivery mode"):
        subject.decode(struct.pack(">HB", 0x1000, mode), 0, 3)


@pytest.mark.parametrize(("value", "seconds"), [(1500, 1.5), (0, 0.0), (-1500, None)])
def test_x_delay_is_in_milliseconds_and_stays_a_header(value: int, seconds: float | None) -> None:
    data = amqp.Basic.Properties(headers={"x-delay": value}).marshal()
    content = subject.decode(data, 0, len(data))
    assert content.delay == seconds and dict(content.properties.headers)["x-delay"] == value


@pytest.mark.parametrize("name", ["x-delay", "CC", "BCC"])
def test_a_text_is_a_header_like_any_other(name: str) -> None:
    data = amqp.Basic.Properties(headers={name: "1500"}).marshal()
    content = subject.decode(data, 0, len(data))
    assert content.is_plain and content.delay is None
    assert dict(content.properties.headers) == {name: "1500"}


@pytest.mark.parametrize("value", [True, 1.5, 1 << 60])
def test_an_x_delay_that_is_no_number_is_406(value: Any) -> None:
    data = amqp.Basic.Properties(headers={"x-delay": value}).marshal()
    with pytest.raises(AmqpError, match="x-delay"):
        subject.decode(data, 0, len(data))


anything = st.recursive(
    scalars | st.integers() | st.datetimes(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text | st.integers(), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(st.tuples(names, anything), max_size=5), anything, st.booleans())
def test_what_amqp_cannot_hold_is_a_value_error_and_nothing_else(
    headers: list[tuple[str, Any]], hints: Any, native: bool
) -> None:
    """Headers can come from anywhere; a delivery must not stumble over them."""
    said = Properties(headers=(*headers, (subject.TYPES, hints)), timestamp=-1, priority=1 << 80)
    try:
        subject.encode(Message("a", b"", properties=said), native)
    except ValueError:
        pass


def test_nesting_has_a_limit() -> None:
    data = b""
    for _ in range(1000):
        data = b"A" + struct.pack(">I", len(data)) + data
    table = struct.pack(">I", len(data) + 2) + short(b"a") + data
    with pytest.raises(AmqpError, match="too deep"):
        decode_table(table, 0, len(table))


def test_a_name_that_stands_twice_is_refused() -> None:
    raw = short(b"a") + b"V" + short(b"a") + b"V"
    with pytest.raises(AmqpError, match="twice"):
        decode_table(struct.pack(">I", len(raw)) + raw, 0, len(raw) + 4)


# names


@given(text | topics)
def test_a_swap_is_its_own_inverse(name: str) -> None:
    assert swap(swap(name)) == name


words = st.lists(
    st.sampled_from(["+", "*", "#", "a/b", "c", "", "a+", "C#", "\\+", "\\\\+", "x*", "\0"]), min_size=1, max_size=6
).map(".".join)


@given(words)
def test_patterns_come_back(pattern: str) -> None:
    assert to_pattern(to_filter(pattern)) == pattern


def amqp_matches(pattern: list[str], key: list[str]) -> bool:
    """As RabbitMQ has it: an empty key has no words."""
    if not pattern:
        return not key
    if pattern[0] == "#":
        return any(amqp_matches(pattern[1:], key[place:]) for place in range(len(key) + 1))
    return bool(key) and pattern[0] in ("*", key[0]) and amqp_matches(pattern[1:], key[1:])


@given(words.filter(lambda pattern: pattern.split(".").count("#") <= MAX_HASHES), words | st.just(""))
@example("*", "")
@example("#", "")
@example("a.+.b", "a.+.b")
@example("a.+.b", "a.*.b")
@example("sms.+49123", "sms.+49123")
def test_a_binding_key_matches_what_it_does_in_rabbitmq(pattern: str, key: str) -> None:
    router: Router[str] = Router()
    router.add_queue("q", "q")
    router.bind(Binding(queue="q", filter=to_filter(pattern), exchange="own"))
    matching = bool(router.route(Message(swap(key), b"", "own")))
    assert matching == amqp_matches(pattern.split(".") if pattern else [], key.split(".") if key else [])


@pytest.mark.parametrize(
    ("pattern", "filter"),
    [("shop.*.orders", "shop/+/orders"), ("#", "#"), ("a.#.b", "a/#/b"), ("a/b.*", "a.b/+"), ("a*.+", "a*/\\+")],
)
def test_patterns_as_design_says(pattern: str, filter: str) -> None:
    assert to_filter(pattern) == filter


@given(topics | topics.map("$queue/".__add__) | topics.map("$queue/$topic/".__add__))
def test_a_reply_topic_comes_back_or_is_not_written(topic: str) -> None:
    key = reply_to_key(topic)
    assert key is None or reply_to_topic(key) == topic


@given(text | text.map("$topic/".__add__))
def test_an_amqp_reply_to_comes_back(reply_to: str) -> None:
    assert reply_to_key(reply_to_topic(reply_to)) == reply_to


def test_reply_to_as_workers_use_it() -> None:
    assert reply_to_topic("answers") == "$queue/answers"
    assert reply_to_key("dev/7/reply") == "$topic/dev.7.reply"
