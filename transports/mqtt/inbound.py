"""Owns what a client's packets mean: the message of a PUBLISH or a will, and the terms of a connection.

Its rule: pure; a client gets either what it asked for or the reason why not.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import msgspec

from gateway.model.message import NO_PROPERTIES, QUEUE_PREFIX, Message, to_topic
from gateway.model.names import NOBODY, Actor, is_reserved
from gateway.model.topics import check_name
from transports.mqtt.packets import V5, Connect, Properties5, Property, ProtocolError, Publish, Reason, Will
from transports.mqtt.properties import from_wire, is_topic_name
from transports.mqtt.session import NEVER, CarriedWill, is_client_id
from transports.mqtt.settings import MqttSettings

MAX_WINDOW = 65_535
_BRIDGE_STATE = ("$SYS/broker/connection/", "/state")
"""Begin and end of the topics on which Mosquitto's bridges say whether they are connected: the only ones below `$SYS`
that a client may publish to, as at Mosquitto."""


class Terms(msgspec.Struct, frozen=True):
    """What holds for one connection. Seconds; `expiry` is inf for never; `keep_alive` 0 is none."""

    client_id: str
    assigned: bool
    keep_alive: int
    expiry: float
    window: int
    """How many messages of QoS 1 and 2 may be on their way to the client."""
    max_packet_size: int
    carried_will: CarriedWill | None
    topic_aliases: int
    """How many we may use."""


def negotiate(connect: Connect, settings: MqttSettings, source: str, new_id: Callable[[], str]) -> Terms | Reason:
    """The terms that a client gets, or why it gets none. Raises ProtocolError."""
    v5 = connect.version == V5
    asked = connect.properties
    client_id = connect.client_id
    if not client_id and not v5 and not connect.clean_start:  # [MQTT-3.1.3-8 of 3.1.1]
        return Reason.CLIENT_IDENTIFIER_NOT_VALID
    if not is_client_id(client_id):
        return Reason.CLIENT_IDENTIFIER_NOT_VALID
    assigned = not client_id
    if assigned:
        client_id = new_id()
    if v5:
        expiry = float(asked.get(Property.SESSION_EXPIRY_INTERVAL, 0))
        expiry = math.inf if expiry == NEVER else expiry
    else:
        expiry = 0.0 if connect.clean_start else math.inf
    carried_will: CarriedWill | None = None
    if connect.will is not None:
        found = will_message(connect.will, source, client_id)
        if isinstance(found, Reason):
            return found
        delay = connect.will.properties.get(Property.WILL_DELAY_INTERVAL, 0)
        carried_will = CarriedWill(found, float(delay))
    return Terms(
        client_id,
        assigned,
        _keep_alive(connect, settings),
        min(expiry, float(settings.max_session_expiry)),
        min(asked.get(Property.RECEIVE_MAXIMUM, MAX_WINDOW), settings.max_in_flight),
        asked.get(Property.MAXIMUM_PACKET_SIZE, 1 << 32),
        carried_will,
        min(asked.get(Property.TOPIC_ALIAS_MAXIMUM, 0), settings.topic_alias_maximum),
    )


def _keep_alive(connect: Connect, settings: MqttSettings) -> int:
    longest = int(settings.max_keep_alive)
    if connect.version == V5 and longest and not 0 < connect.keep_alive <= longest:
        return longest
    return connect.keep_alive


def capabilities(connect: Connect, terms: Terms, settings: MqttSettings) -> Properties5:
    """What CONNACK tells an MQTT 5 client. Retained messages, wildcards, shared subscriptions and subscription
    identifiers are there and need no word, nor does QoS 2."""
    told: Properties5 = {
        Property.RECEIVE_MAXIMUM: settings.receive_maximum,
        Property.MAXIMUM_PACKET_SIZE: int(settings.max_packet_size),
    }
    if settings.topic_alias_maximum:
        told[Property.TOPIC_ALIAS_MAXIMUM] = settings.topic_alias_maximum
    asked = connect.properties.get(Property.SESSION_EXPIRY_INTERVAL, 0)
    granted = NEVER if terms.expiry == math.inf else int(terms.expiry)
    if asked != granted:  # [MQTT-3.2.2.3.2]: then the client must use this one
        told[Property.SESSION_EXPIRY_INTERVAL] = granted
    if settings.response_information and connect.properties.get(Property.REQUEST_RESPONSE_INFORMATION):
        told[Property.RESPONSE_INFORMATION] = settings.response_information  # [MQTT-3.1.2-28]
    if terms.assigned:  # [MQTT-3.2.2-16]
        told[Property.ASSIGNED_CLIENT_IDENTIFIER] = terms.client_id
    if terms.keep_alive != connect.keep_alive:  # [MQTT-3.2.2-21]
        told[Property.SERVER_KEEP_ALIVE] = terms.keep_alive
    return told


def message_of(
    publish: Publish, source: str, client_id: str, check_format: bool, actor: Actor = NOBODY
) -> Message | Reason:
    """The message of a PUBLISH, or why it is refused. Raises ProtocolError for what ends the connection.
    check_format: text must be text. actor: who sends it, and may not say that somebody else does."""
    properties = publish.properties
    if properties:
        if check_format and properties.get(Property.PAYLOAD_FORMAT_INDICATOR) == 1 and not _is_text(publish.payload):
            return Reason.PAYLOAD_FORMAT_INVALID
        if Property.SUBSCRIPTION_IDENTIFIER in properties:  # [MQTT-3.3.4-6]
            raise ProtocolError(Reason.PROTOCOL_ERROR, "a client's PUBLISH has a subscription identifier")
        _check_response_topic(properties)
    found = _message(publish.topic, publish.payload, publish.qos, publish.retain, properties, source, client_id)
    if properties and isinstance(found, Message) and actor.forges(found.properties.user_id):
        return Reason.NOT_AUTHORIZED
    return found


def _is_text(payload: bytes) -> bool:
    try:
        payload.decode()
    except UnicodeDecodeError:
        return False
    return True


def will_message(will: Will, source: str, client_id: str) -> Message | Reason:
    """The message of a will. Raises ProtocolError."""
    if not will.topic:  # [MQTT-4.7.3-1]
        raise ProtocolError(Reason.MALFORMED_PACKET, "the topic of the will is empty")
    if check_name(will.topic):
        return Reason.TOPIC_NAME_INVALID
    _check_response_topic(will.properties)
    return _message(will.topic, will.payload, will.qos, will.retain, will.properties, source, client_id)


def _check_response_topic(properties: Properties5) -> None:
    response = properties.get(Property.RESPONSE_TOPIC)
    if response is not None and not is_topic_name(response):  # [MQTT-3.3.2-14]
        raise ProtocolError(Reason.PROTOCOL_ERROR, "the response topic is no topic name")


def _message(
    topic: str, payload: bytes, qos: int, retain: bool, properties: Properties5, source: str, client_id: str
) -> Message | Reason:
    if topic.startswith("$") and not _is_bridge_state(topic):
        if not topic.startswith(QUEUE_PREFIX) or topic == QUEUE_PREFIX:
            return Reason.TOPIC_NAME_INVALID
        if is_reserved(topic[len(QUEUE_PREFIX) :]):
            return Reason.NOT_AUTHORIZED
        retain = False  # ruling 26
    expiry = properties.get(Property.MESSAGE_EXPIRY_INTERVAL)
    return to_topic(
        topic,
        payload,
        qos=qos,
        retain=retain,
        properties=from_wire(properties) if properties else NO_PROPERTIES,
        ttl=None if expiry is None else float(expiry),
        source=source,
        client_id=client_id,
    )


def _is_bridge_state(topic: str) -> bool:
    begin, end = _BRIDGE_STATE
    return topic.startswith(begin) and topic.endswith(end) and len(topic) > len(begin) + len(end)
