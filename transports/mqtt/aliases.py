"""Owns topic aliases, of both directions of one connection [MQTT-3.3.2.3.4].

Its rule: an alias means what was said last, on this connection alone; what a client may have us keep is bounded.
"""

from __future__ import annotations

import msgspec

from transports.mqtt.packets import ProtocolError, Publish, Reason

MAX_OCTETS = 16 << 10
"""What the topics of one client's aliases may take together."""


class ClientAliases:
    """Those that a client has given. most: the Topic Alias Maximum of our CONNACK."""

    __slots__ = ("_most", "_octets", "_topics")

    def __init__(self, most: int) -> None:
        self._most = most
        self._topics: dict[int, str] = {}
        self._octets = 0

    def resolve(self, publish: Publish, alias: int) -> Publish:
        """With the topic that it means. Raises ProtocolError."""
        if not 0 < alias <= self._most:  # [MQTT-3.3.2-8], [MQTT-3.3.2-9]
            raise ProtocolError(Reason.TOPIC_ALIAS_INVALID, f"topic alias {alias}; from 1 to {self._most} are allowed")
        known = self._topics.get(alias)
        if not publish.topic:
            if known is None:
                raise ProtocolError(Reason.PROTOCOL_ERROR, f"topic alias {alias} stands for nothing yet")
            return msgspec.structs.replace(publish, topic=known)
        self._octets += len(publish.topic) - len(known or "")
        if self._octets > MAX_OCTETS:
            raise ProtocolError(Reason.QUOTA_EXCEEDED, f"topics of aliases take more than {MAX_OCTETS} bytes")
        self._topics[alias] = publish.topic
        return publish


class ServerAliases:
    """Those that we give to a client: to the first topics that it gets. most: its Topic Alias Maximum."""

    __slots__ = ("_aliases", "_most")

    def __init__(self, most: int) -> None:
        self._most = most
        self._aliases: dict[str, int] = {}

    def find(self, topic: str) -> tuple[str, int]:
        """The topic and the alias to write; 0 for none."""
        alias = self._aliases.get(topic)
        if alias is not None:
            return "", alias
        return topic, len(self._aliases) + 1 if len(self._aliases) < self._most else 0

    def given(self, topic: str, alias: int) -> None:
        """That PUBLISH is on its way, before any that uses its alias."""
        if topic and alias:
            self._aliases[topic] = alias
