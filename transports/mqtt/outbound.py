"""Owns what goes out to one client: consumers of its queues, retained messages, credit and acknowledgements.

Its rule: a delivery is in flight before its bytes are written, and leaves by PUBACK or with the connection.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from gateway.flow import Credit
from gateway.message import DEFAULT_EXCHANGE, QUEUE_PREFIX, Message
from gateway.transport import Binding, Delivery, Gateway, Options, Subscription, TransportCounters, Verdict
from transports.mqtt.encoding import EncodedPublish
from transports.mqtt.packets import NO_PROPERTIES5, V5, Ack, Property, ProtocolError, Reason
from transports.mqtt.properties import is_topic_name, to_wire
from transports.mqtt.session import Held, Kind, Retained, Session

OCTETS_AHEAD = 256 << 10
"""How much may be delivered before it was written: credit in octets."""
UNLIMITED_MESSAGES = 1 << 62
_INVALID = {
    "packet-too-large": "larger than the client's Maximum Packet Size",
    "no-mqtt-message": "its topic is no MQTT topic name, or it is larger than any MQTT packet",
}
"""Why a delivery can't go to this client, by the counter's label (ruling 9)."""

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
        self, message: Message, topic: str, version: int, qos: int, retain: bool, ids: tuple[int, ...], expiry: int
    ) -> EncodedPublish | None:
        """None if no PUBLISH can hold it; a routing key of AMQP, for one, need be no topic name. expiry: seconds that
        are left, -1 for no limit; `ids` are subscription identifiers."""
        if version != V5:
            ids, expiry = (), -1
        # A message is known by its identity: the entry keeps it alive, so its id is not used again meanwhile.
        key = (id(message), topic, version, qos, retain, ids, expiry)
        found = self._encoded.get(key)
        if found is not None:
            return found[1]
        if not is_topic_name(topic):
            return None
        properties = NO_PROPERTIES5
        if version == V5:
            properties = to_wire(message.properties)
            if expiry >= 0:
                properties = {**properties, Property.MESSAGE_EXPIRY_INTERVAL: expiry}
            if ids:
                properties = {**properties, Property.SUBSCRIPTION_IDENTIFIER: list(ids)}
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


class MqttConsumer:
    """The consumer of one queue for one client. `options` are those of a membership; the own queue's come with
    each delivery."""

    __slots__ = ("kind", "leaving", "options", "outbound", "subscription")

    subscription: Subscription

    def __init__(self, outbound: Outbound, kind: Kind, options: Options) -> None:
        self.outbound = outbound
        self.kind = kind
        self.options = options
        self.leaving = False

    def deliver(self, batch: Sequence[Delivery]) -> None:
        self.outbound.deliver(self, batch)

    def closed(self, reason: str) -> None:
        self.outbound.queue_gone(self)

    def leave(self) -> None:
        """No more deliveries; what is in flight may still be acknowledged (ruling 17)."""
        self.leaving = True
        self.subscription.cancel()
        self.settled()

    def settled(self) -> None:
        if self.leaving and not self.subscription.unsettled:
            self.subscription.detach()


class Outbound:
    """All that goes to one connected client. `write` queues bytes, `buffered` tells what the client has not taken,
    `session_gone` is called when somebody deleted the session's queue."""

    __slots__ = (
        "_leaving",
        "_open",
        "_stopped",
        "buffered",
        "cache",
        "consumers",
        "counters",
        "gateway",
        "max_buffered",
        "max_packet_size",
        "pool",
        "session",
        "session_gone",
        "version",
        "write",
    )

    def __init__(
        self,
        gateway: Gateway,
        session: Session,
        version: int,
        window: int,
        max_packet_size: int,
        max_buffered: int,
        cache: PublishCache,
        counters: TransportCounters,
        write: Callable[[list[bytes]], None],
        buffered: Callable[[], int],
        session_gone: Callable[[], None],
    ) -> None:
        self.gateway = gateway
        self.session = session
        self.version = version
        self.max_packet_size = max_packet_size
        self.max_buffered = max_buffered
        self.cache = cache
        self.counters = counters
        self.write = write
        self.buffered = buffered
        self.session_gone = session_gone
        self.pool = Credit(window, OCTETS_AHEAD)
        self.consumers: dict[str, MqttConsumer] = {}
        """By membership's filter; "" is the session's own queue."""
        self._leaving: list[MqttConsumer] = []
        self._open = True
        self._stopped = False

    # consumers

    def resume(self) -> None:
        """Takes up the session: resends what needs it, attaches to its queues, goes on with retained messages."""
        left_over: list[Retained] = []
        for packet_id, retained in self.session.retained_in_flight():
            if self.pool.messages > 0:
                self._send_retained(retained, packet_id)
            else:  # this time the client takes fewer at once
                del self.session.in_flight[packet_id]
                left_over.append(retained)
        self.session.retained += reversed(left_over)
        self._attach("", Kind.OWN, self.session.queue, Options())
        self.read_retained()

    def join(self, filter: str, kind: Kind, queue: str, options: Options) -> None:
        """Consume a queue that is shared with others; again with other options changes those. Raises
        UnknownQueueError."""
        consumer = self.consumers.get(filter)
        if consumer is not None:
            consumer.options = options
        elif not self._stopped:
            self._attach(filter, kind, queue, options)

    def _attach(self, filter: str, kind: Kind, queue: str, options: Options) -> None:
        consumer = MqttConsumer(self, kind, options)
        consumer.subscription = self.gateway.attach(queue, consumer, (self.pool,), live=kind is Kind.OWN)
        self.consumers[filter] = consumer
        consumer.subscription.grant(UNLIMITED_MESSAGES)

    def leave(self, filter: str) -> None:
        consumer = self.consumers.pop(filter, None)
        if consumer is not None:
            consumer.leave()
            for one in self._leaving:
                one.settled()  # also those whose time has run out
            self._leaving = [one for one in self._leaving if one.subscription.unsettled]
            self._leaving.append(consumer)

    def queue_gone(self, consumer: MqttConsumer) -> None:
        """Its queue was deleted. A session without its queue can't go on."""
        for filter, one in list(self.consumers.items()):
            if one is consumer:
                del self.consumers[filter]
                if self._open and consumer.kind is Kind.OWN:
                    self.session_gone()

    def stop(self) -> None:
        """No more deliveries; acknowledgements still count."""
        self._stopped = True
        self.session.retained.clear()
        self.session.owed.clear()
        for consumer in self.consumers.values():
            consumer.subscription.cancel()

    def close(self, lost: bool) -> None:
        """The connection is gone: everything unsettled goes back (ruling 14)."""
        self._open = False
        self.pool.wakes.pop(self.read_retained, None)
        for consumer in (*self.consumers.values(), *self._leaving):
            consumer.subscription.detach(lost)
        self.consumers.clear()
        self._leaving.clear()
        self.session.lose_connection()

    # deliveries

    def deliver(self, consumer: MqttConsumer, batch: Sequence[Delivery]) -> None:
        session, version, cache = self.session, self.version, self.cache
        own = consumer.kind is Kind.OWN
        parts: list[bytes] = []
        written: list[int] = []
        dropped = 0
        invalid: dict[str, list[int]] = {}
        room = -1
        for delivery in batch:
            message = delivery.message
            options = delivery.options if own else consumer.options
            id = delivery.id
            if consumer.kind is Kind.QUEUE:
                qos = 1  # a PUBACK settles it, whatever it was sent with (ruling 12)
                topic = _topic_name(delivery)
            else:
                qos = min(message.qos, options.qos, 1)
                topic = message.topic
            retain = message.retain and options.retain_as_published
            encoded = cache.encode(
                message, topic, version, qos, retain, options.subscription_ids, self._expiry(delivery)
            )
            if encoded is None or encoded.size > self.max_packet_size:  # [MQTT-3.1.2-24]
                why = "packet-too-large" if encoded is not None else "no-mqtt-message"
                if id:
                    invalid.setdefault(why, []).append(id)
                else:
                    self.counters.dropped[why] += 1
                    dropped += 1
                continue
            if not id:
                if room < 0:
                    room = max(0, self.max_buffered - self.buffered())
                if encoded.size > room:
                    self.counters.dropped["qos0-slow-reader"] += 1
                    dropped += 1
                    continue
                room -= encoded.size
                parts.append(encoded.head)
            elif not qos:
                parts.append(encoded.head)
                written.append(id)
            else:
                packet_id = session.take(Held(consumer, id, delivery.slot), delivery.redelivered)
                # A retry from a shared queue is a new PUBLISH; only a session's own are resent (ruling 26).
                parts += encoded.parts(packet_id, delivery.redelivered and own)
        refused = sum(map(len, invalid.values()))
        self.counters.messages_out += len(batch) - refused - dropped
        if parts:
            self.write(parts)
        if written:
            consumer.subscription.settle(written, Verdict.DONE)
        for why, ids in invalid.items():
            consumer.subscription.settle(ids, Verdict.INVALID, _INVALID[why])
        if invalid:
            self.refill()
        if written or invalid:
            self.pool.grant(messages=len(written) + refused)

    def _expiry(self, delivery: Delivery) -> int:
        """Whole seconds that are left, rounded up, so that what is delivered never says 0; -1 for no limit."""
        if delivery.expires is not None:
            return max(1, math.ceil(delivery.expires - self.gateway.now()))
        if not delivery.id and delivery.message.ttl is not None:
            return math.ceil(delivery.message.ttl)
        return -1

    def refill(self) -> None:
        """What was delivered is written: there is room again."""
        missing = OCTETS_AHEAD - self.pool.octets
        if missing > 0:
            self.pool.grant(octets=missing)

    def acknowledge(self, acks: Sequence[Ack]) -> None:
        """PUBACKs, in their order."""
        in_flight = self.session.in_flight
        freed = 0
        ids: list[int] = []
        current: MqttConsumer | None = None
        for ack in acks:
            held = in_flight.get(ack.packet_id)
            consumer = held.consumer if held is not None else None
            if held is None or (consumer is not None and consumer.outbound is not self):
                # A client's mistake, or it acknowledges to this connection what it got on an earlier one: that
                # keeps its identifier and comes again.
                self.counters.refusals["unknown-packet-identifier"] += 1
                continue
            del in_flight[ack.packet_id]
            freed += 1
            if consumer is None:
                continue
            # Elsewhere every PUBACK means done: for $share that is [MQTT-4.8.2-6].
            retry = ack.reason >= 0x80 and consumer.kind is Kind.QUEUE
            if consumer is not current or retry:
                self._settle(current, ids)
                current, ids = consumer, []
            if retry:
                text = ack.properties.get(Property.REASON_STRING) or Reason(ack.reason).label
                consumer.subscription.settle((held.delivery_id,), Verdict.RETRY, text)
                consumer.settled()
            else:
                ids.append(held.delivery_id)
        self._settle(current, ids)
        if freed:
            self.pool.grant(messages=freed)

    @staticmethod
    def _settle(consumer: MqttConsumer | None, ids: list[int]) -> None:
        if consumer is not None and ids:
            consumer.subscription.settle(ids, Verdict.DONE)
            if consumer.leaving:
                consumer.settled()

    # retained messages

    def owe_retained(self, binding: Binding) -> None:
        """What matches a new subscription, behind what others get."""
        owed = self.session.owed
        owed.pop(binding.filter, None)
        owed[binding.filter] = binding
        self.read_retained()

    def read_retained(self) -> None:
        """Sends retained messages as far as the credit goes; called again when there is more."""
        waiting, owed = self.session.retained, self.session.owed
        while self._open and not self._stopped:
            while waiting:
                retained = waiting[-1]
                qos = min(retained.message.qos, retained.options.qos, 1)
                if self.pool.octets <= 0 or (qos and self.pool.messages <= 0):
                    self.pool.wakes[self.read_retained] = None
                    return
                waiting.pop()
                self._send_retained(retained, 0)
            if not owed:
                return
            waiting += reversed(self._find_retained(owed.pop(next(iter(owed)))))

    def _find_retained(self, binding: Binding) -> list[Retained]:
        now = self.gateway.now()
        return [
            Retained(message, binding.options, None if message.ttl is None else now + message.ttl)
            for message in self.gateway.retained(binding.filter)
            if binding.not_from is None or message.client_id != binding.not_from
        ]

    def _send_retained(self, retained: Retained, packet_id: int) -> None:
        """packet_id: of a resend, otherwise 0."""
        message, options, expires = retained
        qos = min(message.qos, options.qos, 1)
        left = -1 if expires is None else math.ceil(expires - self.gateway.now())
        if expires is not None and left <= 0:
            if packet_id:
                del self.session.in_flight[packet_id]
            return
        encoded = self.cache.encode(message, message.topic, self.version, qos, True, options.subscription_ids, left)
        if encoded is None or encoded.size > self.max_packet_size:
            self.counters.dropped["packet-too-large" if encoded is not None else "no-mqtt-message"] += 1
            if packet_id:
                del self.session.in_flight[packet_id]
            return
        dup = packet_id != 0
        if qos:
            packet_id = packet_id or self.session.take(Held(None, 0, 0, retained), False)
            self.pool.messages -= 1
        self.pool.octets -= encoded.size
        self.counters.messages_out += 1
        self.write(list(encoded.parts(packet_id, dup)))


def _topic_name(delivery: Delivery) -> str:
    """The topic under which a queue's consumer gets a message (ruling 9)."""
    message = delivery.message
    topic = QUEUE_PREFIX + message.topic if message.exchange == DEFAULT_EXCHANGE else message.topic
    return topic if is_topic_name(topic) else QUEUE_PREFIX + delivery.queue
