"""Owns what goes out to one client: consumers of its queues, retained messages, credit and acknowledgements.

Its rule: a delivery is in flight before its bytes are written, and leaves by PUBACK, PUBREC or with the connection; of
QoS 2 nothing is said to the client before the store has it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from gateway.flow import Credit
from gateway.message import DEFAULT_EXCHANGE, QUEUE_PREFIX, Message
from gateway.transport import (
    Binding,
    Delivery,
    Gateway,
    Options,
    StateChange,
    Subscription,
    TransportCounters,
    Verdict,
)
from transports.mqtt.aliases import ServerAliases
from transports.mqtt.encoding import EncodedPublish, encode
from transports.mqtt.packets import NO_PROPERTIES5, V5, Ack, Property, ProtocolError, Reason, Type
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
        "_aliases",
        "_lasts",
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
        topic_aliases: int = 0,
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
        self._aliases = ServerAliases(topic_aliases) if topic_aliases else None
        self.pool = Credit(window, OCTETS_AHEAD)
        self._lasts = session.recorded
        """What QoS 2 has come to outlives the daemon."""
        self.consumers: dict[str, MqttConsumer] = {}
        """By membership's filter; "" is the session's own queue."""
        self._leaving: list[MqttConsumer] = []
        self._open = True
        self._stopped = False

    # consumers

    def resume(self) -> None:
        """Takes up the session: resends what needs it, attaches to its queues, goes on with retained messages."""
        for packet_id in self.session.released:  # [MQTT-4.4.0-1]
            self.pool.messages -= 1
            self.write([self._pubrel(packet_id)])
        left_over: list[Retained] = []
        for packet_id, retained in self.session.retained_in_flight():
            if self.pool.messages > 0:
                self._send_retained(retained, packet_id)
            else:  # this time the client takes fewer at once
                self._give_up(packet_id)
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
        session, version, cache, aliases = self.session, self.version, self.cache, self._aliases
        own = consumer.kind is Kind.OWN
        parts: list[bytes] = []
        assured: list[tuple[int, int, Sequence[bytes]]] = []
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
                qos = min(message.qos, options.qos)
                topic = message.topic
            retain = message.retain and options.retain_as_published
            alias = 0
            if aliases is not None and qos < 2:  # a PUBLISH of QoS 2 may be overtaken
                topic, alias = aliases.find(topic)
            encoded = cache.encode(
                message, topic, version, qos, retain, options.subscription_ids, self._expiry(delivery), alias
            )
            if alias and topic and encoded is not None and encoded.size > self.max_packet_size:
                alias = 0  # it may be small enough without
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
                ident = delivery.ident
                packet_id = session.take(Held(consumer, id, ident, qos), delivery.redelivered)
                # A retry from a shared queue is a new PUBLISH; only a session's own are resent (ruling 26).
                publish = encoded.parts(packet_id, delivery.redelivered and own)
                if qos == 2:
                    assured.append((packet_id, ident, publish))
                else:
                    parts += publish
            if alias and aliases is not None:
                aliases.given(topic, alias)
        refused = sum(map(len, invalid.values()))
        self.counters.messages_out += len(batch) - refused - dropped
        if parts:
            self.write(parts)
        if assured:
            self._write_assured(assured)
        if session.abandoned:
            self._release_abandoned()
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
            if held is None or held.qos == 2 or (consumer is not None and consumer.outbound is not self):
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

    # QoS 2

    def _write_assured(self, publishes: Sequence[tuple[int, int, Sequence[bytes]]]) -> None:
        """(packet identifier, ident, PUBLISH) of QoS 2: the identifier is durable before the client hears of it
        (ruling 5)."""
        changes = [self.session.sent_change(packet_id, ident) for packet_id, ident, _ in publishes]
        self._write_behind([part for _, _, parts in publishes for part in parts], changes)

    def _write_behind(self, parts: list[bytes], changes: Sequence[StateChange] = ()) -> None:
        """Writes when these changes, and all before them, are durable; at once for a session that does not last. If
        the store takes nothing it is written all the same, so that a client can have its messages."""

        def write(_: object = None) -> None:
            if self._open:
                self.write(parts)

        if self._lasts:
            self.gateway.put(changes).add_done_callback(write)
        else:
            write()

    def received(self, packet_id: int, reason: int) -> None:
        """PUBREC: the client has the message, or does not want it, and in either case it is done with [MQTT-4.3.3]."""
        session = self.session
        held = session.in_flight.get(packet_id)
        if held is None or held.qos != 2:
            self.counters.refusals["unknown-packet-identifier"] += 1
            if reason < Reason.UNSPECIFIED_ERROR:  # else there is nothing to release
                self.write([self._pubrel(packet_id, Reason.PACKET_IDENTIFIER_NOT_FOUND)])
            return
        if held.released:
            self._release(packet_id)
            return
        consumer = held.consumer
        if held.retained is None and (consumer is None or consumer.outbound is not self):
            return  # to what it got on an earlier connection; that comes again, and is answered again
        if reason >= Reason.UNSPECIFIED_ERROR:
            self._free(packet_id)
        else:
            session.release(packet_id)
        if consumer is not None:
            self._settle(consumer, [held.delivery_id])
        if reason < Reason.UNSPECIFIED_ERROR:
            self._release(packet_id)

    def _release(self, packet_id: int) -> None:
        """PUBREL, once the settlement is durable, with which the store hears of it: a resend after the client has
        forgotten the identifier would be a second message."""
        if self._lasts:
            self.gateway.keep([self.session.sent_change(packet_id, 0)])
        self._write_behind([self._pubrel(packet_id)])

    def _give_up(self, packet_id: int) -> None:
        """A resend that does not take place. Of QoS 2 the client may have it, and then waits for the release."""
        if self.session.in_flight[packet_id].qos == 2:
            self.session.release(packet_id)
            self.pool.messages -= 1
            self._release(packet_id)
        else:
            del self.session.in_flight[packet_id]

    def _release_abandoned(self) -> None:
        abandoned, self.session.abandoned = self.session.abandoned, ()
        for packet_id in abandoned:
            self.pool.messages -= 1  # until PUBCOMP, as if it had been sent on this connection
            self._release(packet_id)

    def _pubrel(self, packet_id: int, reason: int = 0) -> bytes:
        return encode(Ack(Type.PUBREL, packet_id, reason), self.version)

    def completed(self, packet_id: int) -> None:
        """PUBCOMP: the identifier is free."""
        held = self.session.in_flight.get(packet_id)
        if held is None or not held.released:
            self.counters.refusals["unknown-packet-identifier"] += 1
        else:
            self._free(packet_id)

    def _free(self, packet_id: int) -> None:
        del self.session.in_flight[packet_id]
        if self._lasts:
            self.gateway.keep([self.session.sent_change(packet_id, None)])
        self.pool.grant(messages=1)

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
        have_waited = True
        while self._open and not self._stopped:
            while waiting:
                retained = waiting[-1]
                if have_waited and not self._is_current(retained.message):
                    waiting.pop()  # what has replaced it comes by itself, and must not come before it [MQTT-4.6.0-5]
                    continue
                qos = min(retained.message.qos, retained.options.qos)
                if self.pool.octets <= 0 or (qos and self.pool.messages <= 0):
                    self.pool.wakes[self.read_retained] = None
                    return
                waiting.pop()
                self._send_retained(retained, 0)
            if not owed:
                return
            waiting += reversed(self._find_retained(owed.pop(next(iter(owed)))))
            have_waited = False

    def _is_current(self, message: Message) -> bool:
        # A message that expires is told each time with what is left of its time; its body stays the same object.
        return any(found.body is message.body for found in self.gateway.retained(message.topic))

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
        qos = min(message.qos, options.qos)
        left = -1 if expires is None else math.ceil(expires - self.gateway.now())
        if expires is not None and left <= 0:
            if packet_id:
                self._give_up(packet_id)
            return
        encoded = self.cache.encode(message, message.topic, self.version, qos, True, options.subscription_ids, left)
        if encoded is None or encoded.size > self.max_packet_size:
            self.counters.dropped["packet-too-large" if encoded is not None else "no-mqtt-message"] += 1
            if packet_id:
                self._give_up(packet_id)
            return
        dup = packet_id != 0
        if qos:
            packet_id = packet_id or self.session.take(Held(None, 0, 0, qos, retained), False)
            self.pool.messages -= 1
        self.pool.octets -= encoded.size
        self.counters.messages_out += 1
        publish = encoded.parts(packet_id, dup)
        if qos == 2:
            self._write_assured([(packet_id, 0, publish)])
        else:
            self.write(list(publish))


def _topic_name(delivery: Delivery) -> str:
    """The topic under which a queue's consumer gets a message (ruling 9)."""
    message = delivery.message
    topic = QUEUE_PREFIX + message.topic if message.exchange == DEFAULT_EXCHANGE else message.topic
    return topic if is_topic_name(topic) else QUEUE_PREFIX + delivery.queue
