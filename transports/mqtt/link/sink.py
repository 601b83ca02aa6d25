"""Owns RemoteSink: how what an outbox holds becomes PUBLISHes on one connection of a link; a Sink.

Its rule: DONE comes from the remote's PUBACK or PUBCOMP alone (QoS 0: from the bytes handed to the system). What the
remote could not take in any case is never sent, as it would cost the connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from gateway.model.counters import TransportCounters
from gateway.transport import Delivery, Verdict
from gateway.transport.source import HOPS, hops
from transports.mqtt.link.remote import LostError, Remote
from transports.mqtt.link.settings import MqttClientSettings
from transports.mqtt.packets import Properties5, Property, Reason
from transports.mqtt.properties import is_topic_name, to_wire

REJECTED = {Reason.NOT_AUTHORIZED, Reason.TOPIC_NAME_INVALID, Reason.PAYLOAD_FORMAT_INVALID}
"""Reasons that would be the same the next time: dead letters. Others are tried again by the outbox's policy, but
QUOTA_EXCEEDED, which is no fault of the message: it is tried again for ever."""
_NAMES = {
    Property.PAYLOAD_FORMAT_INDICATOR: "PayloadFormatIndicator",
    Property.CONTENT_TYPE: "ContentType",
    Property.RESPONSE_TOPIC: "ResponseTopic",
    Property.CORRELATION_DATA: "CorrelationData",
    Property.USER_PROPERTY: "UserProperty",
}
"""What paho calls the properties of a PUBLISH that a message keeps."""
MAX_EXPIRY = (1 << 32) - 1
_FIXED_OCTETS = 9
"""Fixed header, length of the topic and packet identifier, at most."""

Answer = Verdict | tuple[Verdict, str]


class RemoteSink:
    """Of one connection."""

    def __init__(
        self,
        settings: MqttClientSettings,
        remote: Remote,
        counters: TransportCounters,
        now: Callable[[], float],
    ) -> None:
        self._remote = remote
        self._counters = counters
        self._now = now
        self._qos = min(settings.qos, remote.terms.maximum_qos)
        self._retain = settings.retain

    async def send(self, batch: Sequence[Delivery]) -> list[Answer | None]:
        """In the order of the batch. What had no answer when the connection was lost: None if it may be the cause,
        otherwise RETURNED."""
        sent = [self._publish(delivery) for delivery in batch]
        waiting = [answer for answer in sent if isinstance(answer, asyncio.Future)]
        if waiting:
            await asyncio.wait(waiting)
        return [
            self._verdict(answer, delivery) if isinstance(answer, asyncio.Future) else answer
            for answer, delivery in zip(sent, batch, strict=True)
        ]

    def _publish(self, delivery: Delivery) -> asyncio.Future[int] | Answer:
        message, topic, terms = delivery.message, delivery.options.target, self._remote.terms
        if topic is None:
            return Verdict.INVALID, "it has no topic at the remote: no route sent it here"
        if not is_topic_name(topic):
            return Verdict.INVALID, f"{topic!r} is no topic name"
        properties = self._properties(delivery) if self._remote.v5 else None
        octets = _FIXED_OCTETS + len(topic.encode()) + len(message.body)
        octets += len(properties.pack()) if properties is not None else 0
        if octets > terms.max_packet_size:
            return Verdict.INVALID, f"it takes {octets} bytes, and the remote takes at most {terms.max_packet_size}"
        wanted = message.retain if self._retain == "keep" else self._retain == "always"
        return self._remote.send(topic, message.body, self._qos, wanted and terms.retain_available, properties)

    def _properties(self, delivery: Delivery) -> Properties:
        found: Properties5 = dict(to_wire(delivery.message.properties))
        user = [pair for pair in found.get(Property.USER_PROPERTY, ()) if pair[0] != HOPS]
        found[Property.USER_PROPERTY] = [*user, (HOPS, str(hops(delivery.message.properties) + 1))]
        properties = Properties(PacketTypes.PUBLISH)
        for key, value in found.items():
            setattr(properties, _NAMES[Property(key)], value)
        if delivery.expires is not None:
            rest = delivery.expires - self._now()
            properties.MessageExpiryInterval = max(1, min(int(rest), MAX_EXPIRY))
        return properties

    def _verdict(self, answer: asyncio.Future[int], delivery: Delivery) -> Answer | None:
        try:
            code = answer.result()
        except LostError as lost:
            return None if lost.suspicious else Verdict.RETURNED
        if code < Reason.UNSPECIFIED_ERROR:
            self._counters.messages_out += 1
            self._counters.octets_out += len(delivery.message.body)
            return Verdict.DONE
        reason = Reason(code)
        if reason is Reason.QUOTA_EXCEEDED:
            return Verdict.RETURNED
        return Verdict.DEAD if reason in REJECTED else Verdict.RETRY, f"the remote refused it: {reason.label}"
