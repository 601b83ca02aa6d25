"""Owns Message, the one immutable value that every transport makes and every queue keeps.

Its rule: a message says what its sender said, and never what a binding, a queue or a consumer added;
that is `Options` (a binding's) and `Delivery` (a consumer's).
"""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.model.names import is_reserved
from gateway.model.topics import check_name

TOPIC_EXCHANGE = "amq.topic"
"""The shared topic space: MQTT, routes, HTTP and the AMQP exchange of that name."""
DEFAULT_EXCHANGE = ""
"""Reaches one queue by its name: `$queue/NAME` in MQTT, the default exchange in AMQP."""
QUEUE_PREFIX = "$queue/"
MAX_TOPIC_BYTES = 65_535


class Properties(msgspec.Struct, frozen=True, array_like=True, gc=False, kw_only=True):
    """The union of what MQTT 5 and AMQP 0-9-1 can say about a message; None means "not said".

    `headers` keeps order and repeats. A header's value is what msgpack can hold: str, bytes, int, float, bool,
    None, and lists and dicts of them; AMQP's field types beyond these are the AMQP transport's to wrap.
    `reply_to` is a topic name in MQTT form, `$queue/NAME` for a queue. `timestamp` is in seconds since 1970.
    `delivery_mode` is 0 if it came by AMQP without one; otherwise the message's QoS says it.
    """

    headers: tuple[tuple[str, Any], ...] = ()
    content_type: str | None = None
    correlation_id: bytes | None = None
    reply_to: str | None = None
    payload_format: int | None = None
    content_encoding: str | None = None
    priority: int | None = None
    message_id: str | None = None
    timestamp: int | None = None
    type: str | None = None
    user_id: str | None = None
    app_id: str | None = None
    cluster_id: str | None = None
    delivery_mode: int | None = None


NO_PROPERTIES = Properties()


class Message(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A message as its sender made it.

    topic: in MQTT form, whichever way it came; for the default exchange, the queue's name alone.
    exchange: the exchange it was sent to; `amq.topic` is the shared topic space.
    qos: 0, 1 or 2 as sent; AMQP's delivery_mode 2 is QoS 1, any other is QoS 0.
    ttl: seconds from accept until the message expires, None for never; 0 expires unless delivered at once.
    delay: seconds from accept until it may be delivered, bounded by the queue's `max_delay`; 0 for at once, also where
    the queue has a delay of its own, and None for what the queue says.
    source: name of the transport that accepted it; client_id: the sender's id there ("" if it has none).
    """

    topic: str
    body: bytes
    exchange: str = TOPIC_EXCHANGE
    qos: int = 1
    retain: bool = False
    properties: Properties = NO_PROPERTIES
    ttl: float | None = None
    delay: float | None = None
    source: str = ""
    client_id: str = ""

    def header(self, name: str) -> Any:
        """The first header of that name, or None."""
        for key, value in self.properties.headers:
            if key == name:
                return value
        return None


def to_topic(topic: str, body: bytes, **fields: Any) -> Message:
    """A message to `topic` as MQTT and HTTP name it: `$queue/NAME` goes to that queue alone (ruling 7)."""
    if topic.startswith(QUEUE_PREFIX):
        return Message(topic[len(QUEUE_PREFIX) :], body, DEFAULT_EXCHANGE, **fields)
    return Message(topic, body, **fields)


def retains(message: Message) -> bool:
    """It is kept as its topic's retained message, or clears that one, also when no binding matches (UNROUTED). Not
    where it is sent straight to a queue, or to another exchange than MQTT's topics are in."""
    return message.retain and message.exchange == TOPIC_EXCHANGE


def check_destination(topic: str) -> str | None:
    """Why no client may publish to this topic, as MQTT and HTTP name it, or None if one may."""
    if not topic.startswith("$"):
        return check_name(topic)
    queue = topic.removeprefix(QUEUE_PREFIX)
    if queue == topic:
        return f"begins with $ and is not {QUEUE_PREFIX}NAME"
    if is_reserved(queue):
        return "is the queue of a session, a share or a link, which has no other sender"
    return check_name(queue)
