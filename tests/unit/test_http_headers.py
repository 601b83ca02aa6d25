"""What a webhook says in its headers is what the http plugin reads from them: nothing is lost between two gateways."""

from __future__ import annotations

import h11
from hypothesis import given
from hypothesis import strategies as st

from gateway.model.message import Message, Properties
from gateway.net import http_server as web
from gateway.transport import Delivery, Options
from gateway.transport.source import USER_ID
from plugins.http import _headers, _read_fields

texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=30)
optional = st.none() | texts
properties = st.builds(
    Properties,
    headers=st.lists(st.tuples(texts.map(str.lower), texts)).map(tuple),
    content_type=st.none() | st.sampled_from(["text/plain; charset=utf-8", "application/json"]),
    content_encoding=st.none() | st.sampled_from(["gzip", "identity"]),
    correlation_id=st.none() | st.binary(min_size=1),
    reply_to=optional,
    payload_format=st.none() | st.integers(0, 1),
    priority=st.none() | st.integers(0, 255),
    message_id=optional,
    timestamp=st.none() | st.integers(0, 1 << 40),
    type=optional,
    user_id=optional,
    app_id=optional,
    cluster_id=optional,
)


def through_http(headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """As a real HTTP/1.1 server sees them: refused if they are no headers, names in small letters, Latin-1."""
    sender, receiver = h11.Connection(h11.CLIENT), h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    octets = sender.send(h11.Request(method="POST", target="/", headers=[("host", "x"), *headers]))
    assert octets is not None
    receiver.receive_data(octets)
    request = receiver.next_event()
    assert isinstance(request, h11.Request)
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in request.headers]


@given(properties, texts, texts)
def test_all_properties_come_through(given_properties, topic, client_id):
    message = Message(topic, b"", properties=given_properties, client_id=client_id)
    headers = _headers(Delivery(1, message, "q", Options()))
    fields = _read_fields(through_http(headers))
    found = fields["properties"]
    if given_properties.content_type is None:
        assert found.content_type == "application/octet-stream"
        found = Properties(
            **{name: getattr(found, name) for name in Properties.__struct_fields__ if name != "content_type"}
        )
    # Whom the sender was is not for this one to say: it stands among the headers.
    forwarded = [] if given_properties.user_id is None else [(USER_ID, given_properties.user_id)]
    sent = [*given_properties.headers, *forwarded]
    # HTTP gives headers of different names in no order; repeats of one name keep theirs.
    names = {name for name, _ in sent}
    for name in names:
        assert [v for n, v in found.headers if n == name] == [v for n, v in sent if n == name]
    assert len(found.headers) == len(sent)
    assert found.user_id is None
    for name in Properties.__struct_fields__:
        if name not in ("headers", "user_id"):
            assert getattr(found, name) == getattr(given_properties, name), name
    assert fields["client_id"] == client_id


@given(
    st.dictionaries(
        texts, st.none() | st.booleans() | st.integers() | st.floats() | st.binary() | st.lists(st.binary())
    )
)
def test_values_that_are_no_text_are_said_as_json(values):
    message = Message("t", b"", properties=Properties(headers=tuple(values.items())))
    assert len(through_http(_headers(Delivery(1, message, "q", Options())))) >= len(values)


@given(st.lists(st.tuples(st.sampled_from(["x-message-id", "x-message-ttl", "x-message-priority", "x-message-retain",
    "x-message-header-", "x-message-header-%zz", "x-message-correlation-id", "x-message-"]),
    st.text(st.characters(max_codepoint=255)))))  # fmt: skip
def test_any_headers_are_read_or_refused(pairs):
    try:
        _read_fields(pairs)
    except web.Refused as refused:
        assert refused.status_code == 400
