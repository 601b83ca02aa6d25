"""Owns what goes out to one client: consumers of its queues, credit and acknowledgements.

Its rule: a delivery is in flight before its bytes are written, and leaves by PUBACK, PUBREC or with the connection; of
QoS 2 nothing is said to the client before the store has it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from gateway.model.credit import Credit
from gateway.model.message import DEFAULT_EXCHANGE, QUEUE_PREFIX
from gateway.model.names import NOBODY, Actor
from gateway.transport import (
    Delivery,
    Gateway,
    Options,
    StateChange,
    TransportCounters,
    Verdict,
)
from transports.mqtt.aliases import ServerAliases
from transports.mqtt.consumer import MqttConsumer
from transports.mqtt.encoding import encode
from transports.mqtt.packets import Ack, Property, ProtocolError, Reason, Type
from transports.mqtt.properties import is_topic_name
from transports.mqtt.publish_cache import PublishCache
from transports.mqtt.retaining import Retaining
from transports.mqtt.session import SESSIONS, Held, Kind, Session

OCTETS_AHEAD = 256 << 10
"""How much may be delivered before it was written: credit in octets."""
UNLIMITED_MESSAGES = 1 << 62
_INVALID = {
    "packet-too-large": "larger than the client's Maximum Packet Size",
    "no-mqtt-message": "its topic is no MQTT topic name, or it is larger than any MQTT packet",
}
"""Why a delivery can't go to this client, by the counter's label (ruling 9)."""


class Outbound:
    """All that goes to one connected client. `write` queues bytes, `buffered` tells what the client has not taken,
    `session_gone` is called when somebody deleted the session's queue."""

    __slots__ = (
        "_aliases",
        "_leaving",
        "_open",
        "_stopped",
        "actor",
        "broke",
        "buffered",
        "cache",
        "consumers",
        "counters",
        "gateway",
        "lasts",
        "max_buffered",
        "max_packet_size",
        "pool",
        "retaining",
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
        broke: Callable[[Exception], None],
        topic_aliases: int = 0,
        actor: Actor = NOBODY,
    ) -> None:
        self.gateway = gateway
        self.actor = actor
        self.session = session
        self.version = version
        self.max_packet_size = max_packet_size
        self.max_buffered = max_buffered
        self.cache = cache
        self.counters = counters
        self.write = write
        self.buffered = buffered
        self.session_gone = session_gone
        self.broke = broke
        self._aliases = ServerAliases(topic_aliases) if topic_aliases else None
        self.pool = Credit(window, OCTETS_AHEAD)
        self.lasts = session.recorded
        """What QoS 2 has come to outlives the daemon."""
        self.consumers: dict[str, MqttConsumer] = {}
        """By membership's filter; "" is the session's own queue."""
        self._leaving: list[MqttConsumer] = []
        self._open = True
        self._stopped = False
        self.retaining = Retaining(self)

    @property
    def is_sending(self) -> bool:
        return self._open and not self._stopped

    # consumers

    def resume(self) -> None:
        """Takes up the session: resends what needs it, attaches to its queues, goes on with retained messages."""
        for packet_id in self.session.released:  # [MQTT-4.4.0-1]
            self.pool.messages -= 1
            self.write([self._pubrel(packet_id)])
        self.retaining.resume()
        session = self.session
        if session.resend_idents:  # [MQTT-4.4.0-1]
            here = self.gateway.begun(session.queue, session.resend_idents)
            session.abandon(session.resend_idents - here)
            self._release_abandoned()
        self._attach("", Kind.OWN, session.queue, Options())
        self.retaining.read()

    def join(self, filter: str, kind: Kind, queue: str, options: Options) -> None:
        """Consume a queue that is shared with others; again with other options changes those. Raises
        UnknownQueueError and NameRefusedError."""
        consumer = self.consumers.get(filter)
        if consumer is not None:
            consumer.options = options
        elif not self._stopped:
            self._attach(filter, kind, queue, options)

    def _attach(self, filter: str, kind: Kind, queue: str, options: Options) -> None:
        consumer = MqttConsumer(self, kind, options)
        actor = self.actor if kind is Kind.QUEUE else SESSIONS
        consumer.subscription = self.gateway.attach(queue, consumer, (self.pool,), live=kind is Kind.OWN, actor=actor)
        self.consumers[filter] = consumer
        consumer.subscription.grant(UNLIMITED_MESSAGES)

    def change(self, filter: str, options: Options) -> None:
        """Other options hold for this subscription; retained messages may be owed again."""
        consumer = self.consumers.get(filter)
        if consumer is not None:
            consumer.options = options
        self.retaining.read()

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
        for consumer in self.consumers.values():
            consumer.subscription.cancel()

    def close(self, lost: bool) -> None:
        """The connection has ended, or lost its session to another: everything unsettled goes back (ruling 14). Only
        the first call does that, since by the next one the session may be another's."""
        if not self._open:
            return
        self._open = False
        self.retaining.close()
        for consumer in (*self.consumers.values(), *self._leaving):
            consumer.subscription.detach(lost)
        self.consumers.clear()
        self._leaving.clear()
        self.session.lose_connection()

    # deliveries

    def deliver(self, consumer: MqttConsumer, batch: Sequence[Delivery]) -> None:
        if not self.retaining.is_again or consumer.kind is not Kind.OWN:
            self._deliver(consumer, batch)
            return
        for delivery in batch:
            if delivery.id:
                self.retaining.before(delivery.ident)
            self._deliver(consumer, (delivery,))
        self.retaining.read()

    def _deliver(self, consumer: MqttConsumer, batch: Sequence[Delivery]) -> None:
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
                    if own and session.resend_of(delivery.ident):
                        session.abandon((delivery.ident,))  # as if it were complete [MQTT-3.1.2-25]
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
        """PUBACKs, in their order. Raises ProtocolError for one that answers a message of QoS 2."""
        in_flight = self.session.in_flight
        freed = 0
        ids: list[int] = []
        forgotten: list[StateChange] = []
        current: MqttConsumer | None = None
        wrong = 0
        for ack in acks:
            held = in_flight.get(ack.packet_id)
            consumer = held.consumer if held is not None else None
            if held is not None and held.qos == 2:
                wrong = ack.packet_id
                break
            if held is None or (consumer is not None and consumer.outbound is not self):
                # A client's mistake, or it acknowledges to this connection what it got on an earlier one: that
                # keeps its identifier and comes again.
                self.counters.refusals["unknown-packet-identifier"] += 1
                continue
            del in_flight[ack.packet_id]
            freed += 1
            if consumer is None:
                if held.retained is not None:
                    forgotten.append(self.session.sent_change(ack.packet_id, None))
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
        if forgotten and self.lasts:
            self.gateway.keep(forgotten)
        if freed:
            self.pool.grant(messages=freed)
        if wrong:  # [MQTT-4.3.3-3]
            raise ProtocolError(Reason.PROTOCOL_ERROR, f"PUBACK of message {wrong}, which was sent with QoS 2")

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
        self.write_behind([part for _, _, parts in publishes for part in parts], changes)

    def write_behind(self, parts: list[bytes], changes: Sequence[StateChange] = ()) -> None:
        """Writes when these changes, and all before them, are durable; at once for a session that does not last. If
        the store takes nothing it is written all the same, so that a client can have its messages."""

        def write(_: object = None) -> None:
            if self._open:
                self.write(parts)

        if self.lasts:
            self.gateway.put(changes).add_done_callback(write)
        else:
            write()

    def received(self, packet_id: int, reason: int) -> None:
        """PUBREC: the client has the message, or does not want it, and in either case it is done with [MQTT-4.3.3].
        Raises ProtocolError if it was not sent with QoS 2."""
        session = self.session
        held = session.in_flight.get(packet_id)
        if held is not None and held.qos != 2:  # [MQTT-4.3.2-3]
            raise ProtocolError(Reason.PROTOCOL_ERROR, f"PUBREC of message {packet_id}, which was sent with QoS 1")
        if held is None:
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
        if self.lasts:
            self.gateway.keep([self.session.sent_change(packet_id, 0)])
        self.write_behind([self._pubrel(packet_id)])

    def give_up(self, packet_id: int) -> None:
        """A retained message that has its credit and does not go out again. Of QoS 2 the client may have it, and then
        waits for the release."""
        if self.session.in_flight[packet_id].qos == 2:
            self.session.release(packet_id)
            self._release(packet_id)
            return
        del self.session.in_flight[packet_id]
        self.pool.messages += 1
        if self.lasts:
            self.gateway.keep([self.session.sent_change(packet_id, None)])

    def _release_abandoned(self) -> None:
        abandoned, self.session.abandoned = self.session.abandoned, ()
        for packet_id in abandoned:
            self.pool.messages -= 1  # until PUBCOMP, as if it had been sent on this connection
            self._release(packet_id)

    def _pubrel(self, packet_id: int, reason: int = 0) -> bytes:
        return encode(Ack(Type.PUBREL, packet_id, reason), self.version)

    def completed(self, packet_id: int) -> None:
        """PUBCOMP: the identifier is free. Raises ProtocolError if its message was not sent with QoS 2."""
        held = self.session.in_flight.get(packet_id)
        if held is not None and held.qos != 2:
            raise ProtocolError(Reason.PROTOCOL_ERROR, f"PUBCOMP of message {packet_id}, which was sent with QoS 1")
        if held is None or not held.released:
            self.counters.refusals["unknown-packet-identifier"] += 1
        else:
            self._free(packet_id)

    def _free(self, packet_id: int) -> None:
        del self.session.in_flight[packet_id]
        if self.lasts:
            self.gateway.keep([self.session.sent_change(packet_id, None)])
        self.pool.grant(messages=1)


def _topic_name(delivery: Delivery) -> str:
    """The topic under which a queue's consumer gets a message (ruling 9)."""
    message = delivery.message
    topic = QUEUE_PREFIX + message.topic if message.exchange == DEFAULT_EXCHANGE else message.topic
    return topic if is_topic_name(topic) else QUEUE_PREFIX + delivery.queue
