"""Owns how messages and bindings look in JSON: what the admin API, its clients and the webhook show and read.

Its rule: a body is text when it is UTF-8 and base64 otherwise, and a field says which; nothing else is lost either.
"""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any, Literal

import msgspec

from gateway.admin.operations import StoredMessage
from gateway.model.binding import Binding, ExchangeBinding
from gateway.model.delivery import Delivery
from gateway.model.message import (
    DEFAULT_EXCHANGE,
    QUEUE_PREFIX,
    TOPIC_EXCHANGE,
    Message,
    Properties,
    check_destination,
    to_topic,
)

MAX_HEADERS = 1_000


class Body(msgspec.Struct, frozen=True):
    """encoding: `utf-8` or `base64`."""

    text: str
    encoding: Literal["utf-8", "base64"] = "utf-8"

    @classmethod
    def of(cls, octets: bytes) -> Body:
        try:
            return cls(octets.decode())
        except UnicodeDecodeError:
            return cls(base64.b64encode(octets).decode(), "base64")

    def octets(self) -> bytes:
        """Raises ValueError for text that is no base64."""
        if self.encoding == "utf-8":
            return self.text.encode()
        try:
            return base64.b64decode(self.text, validate=True)
        except (binascii.Error, ValueError) as error:
            raise ValueError("body: is no base64") from error


class MessageView(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """A message. topic: in MQTT form, `$queue/NAME` for one that goes straight to a queue. headers: [name, value]
    in their order, repeats included. correlation_id: text, or base64 as its encoding says. ttl, delay: seconds.
    exchange: another than the shared topic space."""

    topic: str
    body: Body = Body("")
    exchange: str | None = None
    qos: Annotated[int, msgspec.Meta(ge=0, le=2)] = 1
    retain: bool = False
    headers: Annotated[list[tuple[str, Any]], msgspec.Meta(max_length=MAX_HEADERS)] = []
    content_type: str | None = None
    correlation_id: Body | None = None
    reply_to: str | None = None
    payload_format: Annotated[int, msgspec.Meta(ge=0, le=1)] | None = None
    content_encoding: str | None = None
    priority: Annotated[int, msgspec.Meta(ge=0, le=255)] | None = None
    message_id: str | None = None
    timestamp: Annotated[int, msgspec.Meta(ge=0)] | None = None
    type: str | None = None
    user_id: str | None = None
    app_id: str | None = None
    cluster_id: str | None = None
    ttl: Annotated[float, msgspec.Meta(ge=0)] | None = None
    delay: Annotated[float, msgspec.Meta(ge=0)] | None = None
    source: str = ""
    client_id: str = ""


_SAME = (
    "content_type", "reply_to", "payload_format", "content_encoding", "priority", "message_id", "timestamp", "type",
    "user_id", "app_id", "cluster_id",
)  # fmt: skip


def _cut(body: bytes, size: int) -> bytes:
    """Its begin, without half a character at the end of a text."""
    begin = body[:size]
    for end in range(size, max(size - 4, -1), -1):
        try:
            body[:end].decode()
        except UnicodeDecodeError:
            continue
        return body[:end]
    return begin


def show(message: Message, body: bytes | None = None) -> MessageView:
    """body: what to show in place of its own."""
    properties = message.properties
    straight = message.exchange == DEFAULT_EXCHANGE
    return MessageView(
        topic=QUEUE_PREFIX + message.topic if straight else message.topic,
        body=Body.of(message.body if body is None else body),
        exchange=None if straight or message.exchange == TOPIC_EXCHANGE else message.exchange,
        qos=message.qos,
        retain=message.retain,
        headers=[(name, plain(value)) for name, value in properties.headers],
        correlation_id=None if properties.correlation_id is None else Body.of(properties.correlation_id),
        ttl=message.ttl,
        delay=message.delay,
        source=message.source,
        client_id=message.client_id,
        **{name: getattr(properties, name) for name in _SAME},
    )


def build(view: MessageView, source: str, client_id: str) -> Message:
    """The message that a client of ours describes. Raises ValueError that says which field is wrong."""
    if why := check_destination(view.topic):
        raise ValueError(f"topic: {why}")
    if view.exchange is not None:
        raise ValueError("exchange: can't be chosen here; publish to a topic or to $queue/NAME")
    for name, value in view.headers:
        check_numbers(f"headers: {name!r}", value)
    properties = Properties(
        headers=tuple(view.headers),
        correlation_id=None if view.correlation_id is None else view.correlation_id.octets(),
        **{name: getattr(view, name) for name in _SAME},
    )
    return to_topic(
        view.topic,
        view.body.octets(),
        qos=view.qos,
        retain=view.retain,
        properties=properties,
        ttl=view.ttl,
        delay=view.delay,
        source=source,
        client_id=view.client_id or client_id,
    )


def check_numbers(where: str, value: Any) -> None:
    """Raises ValueError for a whole number that no store and no protocol holds."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            check_numbers(where, item)
    elif isinstance(value, int) and not -(1 << 63) <= value < 1 << 64:
        raise ValueError(f"{where}: a whole number has at most 64 bits")


def plain(value: Any) -> Any:
    """A header's value as JSON can hold it."""
    if isinstance(value, bytes):
        return Body.of(value)
    if isinstance(value, dict):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


class DeathView(msgspec.Struct, frozen=True):
    """One time that a queue gave the message up; see Death."""

    queue: str
    reason: str
    attempts: int
    error: str
    first: float
    last: float
    count: int = 1


class StoredView(msgspec.Struct, frozen=True):
    """A message in a queue; see StoredMessage. size: of its body in bytes; cut: the body shown is only its begin."""

    id: int
    queue: str
    size: int
    cut: bool
    message: MessageView
    accepted: float
    attempts: int
    in_flight: bool
    group: str | None = None
    expires: float | None = None
    deaths: tuple[DeathView, ...] = ()


def show_stored(stored: StoredMessage, max_body: int | None = None) -> StoredView:
    message = stored.message
    cut = max_body is not None and len(message.body) > max_body
    return StoredView(
        id=stored.id,
        queue=stored.queue,
        size=len(message.body),
        cut=cut,
        message=show(message, _cut(message.body, max_body or 0) if cut else None),
        accepted=stored.accepted,
        attempts=stored.attempts,
        in_flight=stored.in_flight,
        group=stored.group,
        expires=stored.expires,
        deaths=tuple(
            DeathView(d.queue, d.reason, d.attempts, d.error, d.first, d.last, d.count) for d in stored.deaths
        ),
    )


class DeliveryView(msgspec.Struct, frozen=True):
    """A message on its way to a consumer of the admin API, to be settled by its id."""

    id: int
    queue: str
    message: MessageView
    attempts: int
    redelivered: bool


def show_delivery(delivery: Delivery) -> DeliveryView:
    return DeliveryView(
        id=delivery.id,
        queue=delivery.queue,
        message=show(delivery.message),
        attempts=delivery.attempts,
        redelivered=delivery.redelivered,
    )


class BindingView(msgspec.Struct, frozen=True):
    """What leads from an exchange to a queue, or to another exchange.

    filter: in MQTT form, `\\+` for a plus; literal: all of it is plain text. condition: what is asked
    of a message besides. target: where a link sends it. owner: `config` for a route, otherwise what made it.
    """

    exchange: str
    filter: str
    owner: str
    queue: str | None = None
    to_exchange: str | None = None
    literal: bool = False
    condition: str = ""
    target: str | None = None


def show_binding(binding: Binding | ExchangeBinding) -> BindingView:
    leads: dict[str, str | None] = {}
    if isinstance(binding, ExchangeBinding):
        leads["to_exchange"] = binding.to
    else:
        leads = {"queue": binding.queue, "target": binding.options.target}
    asked = condition(binding)
    return BindingView(
        binding.exchange, binding.filter, binding.owner, literal=binding.literal, condition=asked, **leads
    )


def condition(binding: Binding | ExchangeBinding) -> str:
    """What it asks of a message besides its topic, in words; "" for nothing."""
    parts: list[str] = []
    if isinstance(binding, ExchangeBinding):
        if binding.otherwise:
            parts.append("what nothing else matches")
    elif binding.source is not None:
        parts.append(f"by {binding.source}")
    if binding.match is not None:
        wanted = ", ".join(f"{name}={value}" for name, value in binding.match.headers)
        parts.append(f"with {'any' if binding.match.any else 'all'} of the headers {wanted}")
    return " ".join(parts)
