"""Owns what a client publishes: what is accepted, what is refused, and the PUBACKs.

Its rule: a PUBACK is made from an Outcome alone, and PUBACKs go out in the order of their PUBLISHes [MQTT-4.6.0-2].
"""

from __future__ import annotations

from asyncio import Future
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from gateway.message import NO_PROPERTIES, TOPIC_EXCHANGE, Message
from gateway.transport import Outcome
from transports.mqtt.encoding import positive_pubacks, pubacks
from transports.mqtt.inbound import message_of
from transports.mqtt.packets import V5, V311, ProtocolError, Publish, Reason

if TYPE_CHECKING:
    from transports.mqtt.connection import MqttConnection

_PUBACK_REASONS = {
    Outcome.STORED: Reason.SUCCESS,
    Outcome.DUPLICATE: Reason.SUCCESS,
    Outcome.UNROUTED: Reason.NO_MATCHING_SUBSCRIBERS,
    Outcome.REFUSED: Reason.QUOTA_EXCEEDED,
}


class Publishing:
    """The publishing half of one connection."""

    __slots__ = ("connection", "counters", "gateway", "limit", "source", "unacked")

    def __init__(self, connection: MqttConnection) -> None:
        self.connection = connection
        self.gateway = connection.gateway
        self.counters = connection.counters
        self.source = connection.shared.name
        self.limit = connection.shared.settings.receive_maximum
        self.unacked = 0
        """Messages of QoS 1 whose PUBACK is still to be written."""

    def take(self, publishes: Sequence[Publish]) -> None:
        """One batch, in order; one `accept` unless something in between is refused."""
        connection, source = self.connection, self.source
        client_id = connection.client_id
        messages: list[Message] = []
        packet_ids: list[int] = []
        if self.gateway.pressure.high and connection.has_unsettled:
            # It is not paused, so that its PUBACKs still come; it is refused instead (ruling 22).
            self._refuse(publishes, Reason.QUOTA_EXCEEDED)
            return
        for publish in publishes:
            if publish.qos == 2:
                self._accept(messages, packet_ids)
                connection.fail(Reason.QOS_NOT_SUPPORTED, "QoS 2 is not supported")  # [MQTT-3.2.2-11]
                return
            topic = publish.topic
            if publish.properties or topic[0] == "$":
                try:
                    message = message_of(publish, source, client_id)
                except ProtocolError as error:
                    self._accept(messages, packet_ids)
                    connection.fail(error.reason, error.why)
                    return
                if isinstance(message, Reason):
                    self._accept(messages, packet_ids)
                    messages, packet_ids = [], []
                    self._refuse([publish], message)
                    continue
                if publish.retain and not message.retain:
                    self.counters.dropped["retain-on-queue"] += 1
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
        future = self.gateway.accept(messages)
        future.add_done_callback(partial(self._accepted, packet_ids))
        pressure = self.gateway.pressure
        if pressure.high and not connection.has_unsettled:
            connection.pause("pressure")
            pressure.on_low(partial(connection.resume, "pressure"))

    def _count_unacked(self, packet_ids: Sequence[int]) -> bool:
        """False if these are more than the client may send ahead [MQTT-3.3.4-9]. 3.1.1 has no such limit: its
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
        answers: list[tuple[int, int]] = []
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
            if packet_id:
                answers.append((packet_id, _PUBACK_REASONS[outcome]))
        self._answer(len(packet_ids) - packet_ids.count(0), pubacks(answers, connection.version))
        if refused:
            connection.refuse("a message was refused")

    def _refuse(self, publishes: Sequence[Publish], reason: Reason) -> None:
        """Not accepted, for a reason of this transport; answered behind all that came before."""
        connection = self.connection
        packet_ids = [publish.packet_id for publish in publishes if publish.packet_id]
        if len(packet_ids) < len(publishes):
            self.counters.dropped[f"qos0-{reason.label}"] += len(publishes) - len(packet_ids)
        if not packet_ids or connection.closing or not self._count_unacked(packet_ids):
            return
        self.counters.refusals[reason.label] += len(packet_ids)

        def answer(barrier: Future[bool]) -> None:
            if connection.version == V311:
                connection.refuse(f"a message was refused: {reason.label}")
            else:
                self._answer(len(packet_ids), pubacks([(one, reason) for one in packet_ids], V5))

        self.gateway.put().add_done_callback(answer)

    def _answer(self, count: int, data: bytes) -> None:
        self.unacked -= count
        if self.unacked <= self.limit:
            self.connection.resume("unacked")
        self.connection.answered(data)
