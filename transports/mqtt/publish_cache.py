"""Owns PublishCache: PUBLISHes that were encoded lately.

Its rule: a message that goes to many clients in one form is encoded once; what is kept is bounded in octets.
"""

from __future__ import annotations

from gateway.model.message import Message
from transports.mqtt.encoding import EncodedPublish
from transports.mqtt.packets import NO_PROPERTIES5, V5, Property, ProtocolError
from transports.mqtt.properties import is_topic_name, to_wire

_ENCODED_OCTETS = 700
"""What a cached PUBLISH and its message take beside their bytes, about."""


class PublishCache:
    """PUBLISHes that were encoded lately, so that a fan-out encodes once. Shared by all connections; bounded."""

    __slots__ = ("_encoded", "_octets", "max_octets")

    def __init__(self, max_octets: int = 4 << 20) -> None:
        self.max_octets = max_octets
        self._encoded: dict[tuple[object, ...], tuple[Message, EncodedPublish]] = {}
        self._octets = 0

    def encode(
        self,
        message: Message,
        topic: str,
        version: int,
        qos: int,
        retain: bool,
        ids: tuple[int, ...],
        expiry: int,
        alias: int = 0,
    ) -> EncodedPublish | None:
        """None if no PUBLISH can hold it; a routing key of AMQP, for one, need be no topic name. expiry: seconds that
        are left, -1 for no limit; `ids` are subscription identifiers. topic: "" if the alias stands for it."""
        if version != V5:
            ids, expiry = (), -1
        # A message is known by its identity: the entry keeps it alive, so its id is not used again meanwhile.
        key = (id(message), topic, version, qos, retain, ids, expiry, alias)
        found = self._encoded.get(key)
        if found is not None:
            return found[1]
        if not (is_topic_name(topic) or (alias and not topic)):
            return None
        properties = NO_PROPERTIES5
        if version == V5:
            properties = to_wire(message.properties)
            if expiry >= 0:
                properties = {**properties, Property.MESSAGE_EXPIRY_INTERVAL: expiry}
            if ids:
                properties = {**properties, Property.SUBSCRIPTION_IDENTIFIER: list(ids)}
            if alias:
                properties = {**properties, Property.TOPIC_ALIAS: alias}
        try:
            encoded = EncodedPublish(version, topic.encode(), message.body, qos, retain, properties)
        except (ProtocolError, UnicodeEncodeError):  # more than 256 MB, or a text that UTF-8 can't say
            return None
        cost = 2 * encoded.size + _ENCODED_OCTETS
        if self._octets + cost > self.max_octets:
            self._encoded.clear()
            self._octets = 0
        self._encoded[key] = (message, encoded)
        self._octets += cost
        return encoded
