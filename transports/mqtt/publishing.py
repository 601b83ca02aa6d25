"""Owns what a client publishes: what is accepted, what is refused, and the PUBACKs, PUBRECs and PUBCOMPs.

Its rule: a PUBACK or PUBREC is made from an Outcome alone, and they go out in the order of their PUBLISHes
[MQTT-4.6.0-2], [MQTT-4.6.0-3]; a message of QoS 2 and the identifier that it is known by are in one commit.
"""

from __future__ import annotations

from asyncio import Future
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from gateway.model.message import NO_PROPERTIES, TOPIC_EXCHANGE, Message
from gateway.transport import PLAIN, Offer, Outcome
from gateway.transport.ordered_replies import Turns
from transports.mqtt.aliases import ClientAliases
from transports.mqtt.encoding import encode, positive_pubacks, puback
from transports.mqtt.inbound import message_of
from transports.mqtt.packets import V5, V311, Ack, Property, ProtocolError, Publish, Reason, Type

if TYPE_CHECKING:
    from transports.mqtt.connection import MqttConnection
    from transports.mqtt.session import Session

_UNHEARD = Offer(drops_qos0=True)
"""Of a batch in which there is QoS 0: its sender hears nothing of it, and nobody waits for it."""

_PUBACK_REASONS = {
    Outcome.STORED: Reason.SUCCESS,
    Outcome.DUPLICATE: Reason.SUCCESS,
    Outcome.UNROUTED: Reason.NO_MATCHING_SUBSCRIBERS,
    Outcome.REFUSED: Reason.QUOTA_EXCEEDED,
}

_WORDS = {
    Reason.QUOTA_EXCEEDED: "a queue that wants it, or the daemon, has no room for it now, or it was not delivered",
    Reason.TOPIC_NAME_INVALID: "messages are not published to such a topic",
    Reason.NOT_AUTHORIZED: "this queue is another client's, or the message says that another user has sent it",
    Reason.PAYLOAD_FORMAT_INVALID: "the payload is said to be UTF-8 text, and is none",
}


class Publishing:
    """The publishing half of one connection."""

    __slots__ = (
        "_aliases",
        "_checks_format",
        "_turns",
        "_unreleased",
        "connection",
        "counters",
        "gateway",
        "limit",
        "session",
        "source",
        "unacked",
    )

    def __init__(self, connection: MqttConnection) -> None:
        self.connection = connection
        self.gateway = connection.gateway
        self.counters = connection.counters
        self.source = connection.shared.name
        self.limit = connection.shared.settings.receive_maximum
        self.session: Session | None = None
        self._aliases: ClientAliases | None = None
        self._checks_format = connection.shared.settings.check_payload_format
        self._turns = Turns()
        self.unacked = 0
        """Messages of QoS 1 whose PUBACK is still to be written, and of QoS 2 without PUBCOMP (3.1.1: PUBREC)."""
        self._unreleased: set[int] | None = None
        """The identifiers of these; None before the first."""

    def take(self, publishes: Sequence[Publish]) -> None:
        """One batch, in order; one `accept` unless something in between is refused."""
        connection, source = self.connection, self.source
        client_id = connection.client_id
        messages: list[Message] = []
        packet_ids: list[int] = []
        # It is not paused then, so that its PUBACKs still come; it is refused instead (ruling 22).
        refuses = self.gateway.pressure.high and connection.has_unsettled
        for publish in publishes:
            topic = publish.topic
            if publish.properties or topic[0] == "$":
                try:
                    alias = publish.properties.get(Property.TOPIC_ALIAS)
                    if alias is not None:
                        if self._aliases is None:
                            self._aliases = ClientAliases(connection.shared.settings.topic_alias_maximum)
                        publish = self._aliases.resolve(publish, alias)
                    message = message_of(publish, source, client_id, self._checks_format, connection.actor)
                except ProtocolError as error:
                    self._accept(messages, packet_ids)
                    connection.fail(error.reason, error.why)
                    return
                if isinstance(message, Reason):
                    self._accept(messages, packet_ids)
                    messages, packet_ids = [], []
                    self._refuse([publish], message)
                    continue
                if refuses:
                    self._refuse([publish], Reason.QUOTA_EXCEEDED)
                    continue
                if publish.retain and not message.retain:
                    self.counters.dropped["retain-on-queue"] += 1
            elif refuses:
                self._refuse([publish], Reason.QUOTA_EXCEEDED)
                continue
            else:
                message = Message(
                    topic,
                    publish.payload,
                    TOPIC_EXCHANGE,
                    publish.qos,
                    publish.retain,
                    NO_PROPERTIES,
                    None,
                    0.0,
                    source,
                    client_id,
                )
            if publish.qos == 2:
                self._accept(messages, packet_ids)
                messages, packet_ids = [], []
                self._accept_once(message, publish.packet_id)
                continue
            messages.append(message)
            packet_ids.append(publish.packet_id)
        self._accept(messages, packet_ids)

    def _accept(self, messages: list[Message], packet_ids: list[int]) -> None:
        """packet_ids: 0 for messages of QoS 0."""
        connection = self.connection
        if not messages or connection.closing:
            return
        if not self._count_unacked(packet_ids):
            return
        self.counters.messages_in += len(messages)
        future = self.gateway.accept(messages, (), PLAIN if all(packet_ids) else _UNHEARD)
        self._turns.add(future, partial(self._accepted, packet_ids))
        self._feel_pressure()

    def _feel_pressure(self) -> None:
        connection, pressure = self.connection, self.gateway.pressure
        if pressure.high and not connection.has_unsettled:
            connection.pause("pressure")
            pressure.on_low(partial(connection.resume, "pressure"))

    def _count_unacked(self, packet_ids: Sequence[int]) -> bool:
        """False if these are more than the client may send ahead [MQTT-3.3.4-7]. 3.1.1 has no such limit: its
        clients wait."""
        connection = self.connection
        self.unacked += len(packet_ids) - packet_ids.count(0)
        if self.unacked > self.limit:
            if connection.version == V5:
                connection.fail(Reason.RECEIVE_MAXIMUM_EXCEEDED, f"more than {self.limit} messages without PUBACK")
                return False
            connection.pause("unacked")
        return True

    def _accepted(self, packet_ids: list[int], future: Future[Sequence[Outcome]]) -> None:
        connection = self.connection
        if future.cancelled():
            return
        outcomes = future.result()
        stored = outcomes.count(Outcome.STORED) == len(outcomes)
        if stored and 0 not in packet_ids:
            self._answer(len(packet_ids), positive_pubacks(packet_ids))
            return
        answers: list[bytes] = []
        refused = False
        for packet_id, outcome in zip(packet_ids, outcomes, strict=True):
            if outcome is Outcome.REFUSED:
                if not packet_id:
                    self.counters.dropped["qos0-refused"] += 1
                    continue
                self.counters.refusals["queue-full"] += 1
                if connection.version == V311:
                    refused = True
                    break
                answers.append(self._negative(Type.PUBACK, packet_id, Reason.QUOTA_EXCEEDED))
            elif packet_id:
                answers.append(puback(packet_id, _PUBACK_REASONS[outcome], connection.version))
        self._answer(len(packet_ids) - packet_ids.count(0), b"".join(answers))
        if refused:
            connection.refuse("a message was refused")

    # QoS 2

    def _accept_once(self, message: Message, packet_id: int) -> None:
        """Alone, so that its identifier is known if and only if it is stored (ruling 5)."""
        connection, session = self.connection, self.session
        if session is None or connection.closing or not self._count_unreleased(packet_id):
            return
        if packet_id in session.received:  # [MQTT-4.3.3-10]: again, for its PUBREC was lost
            known = session.receiving.get(packet_id)  # and it may not be stored or delivered yet
            self._turns.add(self.gateway.put() if known is None else known, partial(self._received, session, packet_id))
            return
        session.receive(packet_id)
        self.counters.messages_in += 1
        changes = [session.received_change(packet_id, True)] if session.recorded else []
        future = self.gateway.accept((message,), changes)
        session.receive_until(packet_id, future)
        self._turns.add(future, partial(self._received, session, packet_id))
        self._feel_pressure()

    def _count_unreleased(self, packet_id: int) -> bool:
        if self._unreleased is None:
            self._unreleased = set()
        if packet_id in self._unreleased:
            return True
        self._unreleased.add(packet_id)
        return self._count_unacked((packet_id,))

    def _received(self, session: Session, packet_id: int, future: Future[Any]) -> None:
        """PUBREC, from the message's Outcome, or for a message that was known."""
        if future.cancelled():
            return
        connection, found = self.connection, future.result()
        if isinstance(found, bool):  # what it repeats was refused meanwhile, or is stored
            reason = Reason.SUCCESS if packet_id in session.received else Reason.QUOTA_EXCEEDED
        else:
            reason = _PUBACK_REASONS[found[0]]
        if reason is Reason.QUOTA_EXCEEDED:
            self.counters.refusals["queue-full"] += 1
            if connection.version == V311:
                connection.refuse("a message was refused")
            else:
                self._complete(packet_id, self._negative(Type.PUBREC, packet_id, reason))  # [MQTT-4.3.3-9]
            return
        data = self._ack(Type.PUBREC, packet_id, reason)
        if connection.version == V311:  # if it were paused until PUBCOMP it could not send its PUBRELs
            self._complete(packet_id, data)
        else:
            connection.answered(data)

    def release(self, packet_id: int) -> None:
        """PUBREL: the identifier may stand for another message, once the store knows that it may."""
        connection, session = self.connection, self.session
        assert session is not None
        if packet_id not in session.received:
            self._complete(packet_id, self._ack(Type.PUBCOMP, packet_id, Reason.PACKET_IDENTIFIER_NOT_FOUND))
            return

        def released(done: Future[bool]) -> None:
            if done.cancelled():
                return
            if done.result():
                self._complete(packet_id, self._ack(Type.PUBCOMP, packet_id))
            else:  # after a crash the store would take the identifier's next message for this one
                connection.refuse("a message could not be released")

        if not session.recorded:
            session.forget(packet_id)
            self._complete(packet_id, self._ack(Type.PUBCOMP, packet_id))
            return
        future = session.forgetting.get(packet_id)
        if future is None:
            future = self.gateway.put([session.received_change(packet_id, False)])
            session.forget_until(packet_id, future)
        future.add_done_callback(released)

    def _complete(self, packet_id: int, data: bytes) -> None:
        counted = 0
        if self._unreleased is not None and packet_id in self._unreleased:
            self._unreleased.discard(packet_id)
            counted = 1
        self._answer(counted, data)

    # refusals

    def _refuse(self, publishes: Sequence[Publish], reason: Reason) -> None:
        """Not accepted, for a reason of this transport; answered behind all that came before."""
        connection, known = self.connection, self.session.received if self.session is not None else ()
        packet_ids: list[int] = []
        answers: list[bytes] = []
        refused = 0
        for publish in publishes:
            packet_id = publish.packet_id
            if not publish.qos:
                self.counters.dropped[f"qos0-{reason.label}"] += 1
                continue
            packet_ids.append(packet_id)
            if publish.qos == 2 and packet_id in known:  # it is stored already
                answers.append(self._ack(Type.PUBREC, packet_id))
            else:
                refused += 1
                answers.append(self._negative(Type.PUBREC if publish.qos == 2 else Type.PUBACK, packet_id, reason))
        if not packet_ids or connection.closing or not self._count_unacked(packet_ids):
            return
        self.counters.refusals[reason.label] += refused

        def answer(barrier: Future[bool]) -> None:
            if barrier.cancelled():
                return
            if connection.version == V311 and refused:
                connection.refuse(f"a message was refused: {reason.label}")
            else:
                self._answer(len(packet_ids), b"".join(answers))

        self._turns.add(self.gateway.put(), answer)

    def _negative(self, type: Type, packet_id: int, reason: Reason) -> bytes:
        """With the reason in words, if the client wants them and takes so large a packet [MQTT-3.1.2-29],
        [MQTT-3.4.2-2]."""
        connection = self.connection
        if connection.wants_reasons:
            why = _WORDS.get(reason, "")
            told = encode(Ack(type, packet_id, reason, {Property.REASON_STRING: why}), connection.version)
            if why and len(told) <= connection.max_packet_size:
                return told
        return self._ack(type, packet_id, reason)

    def _ack(self, type: Type, packet_id: int, reason: int = 0) -> bytes:
        return encode(Ack(type, packet_id, reason), self.connection.version)

    def _answer(self, count: int, data: bytes) -> None:
        self.unacked -= count
        if self.unacked <= self.limit:
            self.connection.resume("unacked")
        self.connection.answered(data)
