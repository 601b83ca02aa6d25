"""Owns how a message becomes what a link publishes at a RabbitMQ, and what it consumes there becomes a message.

Its rule: properties go over as `properties` maps them, and come back as they were. What RabbitMQ would act on or close
the channel over goes another way: a user id that is not ours, and CC and BCC, whose copies were made here, travel in
headers of ours; an expiration above what it counts is left out, and so is a type of number that it does not know.
"""

from __future__ import annotations

from typing import Any

import msgspec
from pamqp import commands

from gateway.model.message import QUEUE_PREFIX, Message, Properties
from gateway.model.topics import check_name, swap
from gateway.transport import Delivery
from gateway.transport.source import HOPS, USER_ID, hops
from transports.amqp.link.channel import Content
from transports.amqp.link.settings import address
from transports.amqp.names import MAX_SHORT
from transports.amqp.properties import TYPES, as_text, decode, encode

_THERE = {"CC": "x-gateway-cc", "BCC": "x-gateway-bcc"}
_HERE = {there: here for here, there in _THERE.items()}
MAX_EXPIRATION = ((1 << 32) - 1) / 1000
"""Seconds: RabbitMQ closes the channel over more. Such a message stays until somebody takes it."""


def outgoing(delivery: Delivery, username: str, made_id: str, native: bool, now: float) -> Content | str:
    """Or why it can't go. made_id: the message id of one that has none. native: its headers are an AMQP table."""
    message, target = delivery.message, delivery.options.target
    if target is None:
        return "it has no address at the remote: no route sent it here"
    exchange, key = address(target)
    if max(len(exchange.encode()), len(key.encode())) > MAX_SHORT:
        return f"its exchange or routing key has more than {MAX_SHORT} bytes"
    properties = _renamed(message.properties, _THERE)
    added = [(HOPS, str(hops(message.properties) + 1))]
    if properties.user_id is not None and properties.user_id != username:
        added.append((USER_ID, properties.user_id))
        properties = msgspec.structs.replace(properties, user_id=None)
    if properties.message_id is None:
        properties = msgspec.structs.replace(properties, message_id=made_id)
    remaining = None if delivery.expires is None else max(delivery.expires - now, 0.0)
    if remaining is not None and remaining > MAX_EXPIRATION:
        remaining = None
    # Without its topic, whose place is the routing key; persistent, since the outbox kept it whatever its QoS was.
    properties = msgspec.structs.replace(properties, delivery_mode=None)
    bare = msgspec.structs.replace(message, topic="", qos=max(message.qos, 1), properties=properties)
    try:
        encoded = encode(bare, native, remaining, added)
    except ValueError as error:
        return str(error)
    fits = len((properties.message_id or "").encode()) <= MAX_SHORT  # otherwise it is a header
    return Content(exchange, key, (properties.message_id or "") if fits else "", encoded, message.body)


def incoming(link: str, queue: str, method: commands.Basic.Deliver, properties: bytes, body: bytes) -> Message:
    """Its topic is its routing key's, or the name of the queue if that is no topic (a fanout needs none). Raises
    AmqpError for properties that can't be read."""
    key = method.routing_key or ""
    content = decode(properties, 0, len(properties), not key)
    topic = content.topic or (swap(key) if method.exchange else key)
    if topic.startswith(QUEUE_PREFIX) or check_name(topic):
        topic = queue
    return Message(
        topic,
        body,
        qos=content.qos,
        retain=content.retain,
        properties=_with_user(_renamed(content.properties, _HERE)),
        ttl=content.ttl,
        source=link,
    )


def _renamed(properties: Properties, names: dict[str, str]) -> Properties:
    """With other names for some headers, the hints of their types included."""
    if not any(name in names or name == TYPES for name, _ in properties.headers):
        return properties
    headers = [(names.get(name, name), value) for name, value in properties.headers]
    name, hints = headers[-1]
    if name == TYPES and isinstance(hints, dict):
        headers[-1] = (name, {names.get(name, name): _known(hint) for name, hint in hints.items()})
    return msgspec.structs.replace(properties, headers=tuple(headers))


def _known(hint: Any) -> Any:
    """Without `L`, a number that RabbitMQ can't read: it ends the connection."""
    if isinstance(hint, dict):
        return {name: _known(inner) for name, inner in hint.items()}
    return None if hint == "L" else hint


def _with_user(properties: Properties) -> Properties:
    headers = properties.headers
    user = next((text for name, value in headers if name == USER_ID and (text := as_text(value)) is not None), None)
    if user is None or properties.user_id is not None:
        return properties
    others = tuple(pair for pair in headers if pair[0] != USER_ID)
    return msgspec.structs.replace(properties, user_id=user, headers=others)
