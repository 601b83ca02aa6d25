"""Owns what one connection publishes: from whole contents to one `accept` a turn, and from Outcomes to confirms.

Its rule: a confirm is only ever made from an Outcome, and the last one of a turn speaks for all before it.
"""

from __future__ import annotations

from asyncio import Future
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from msgspec import structs
from pamqp import commands as amqp

from gateway.model.message import DEFAULT_EXCHANGE, QUEUE_PREFIX, TOPIC_EXCHANGE, Message, Properties
from gateway.model.names import is_reserved
from gateway.model.topics import swap
from gateway.transport import PLAIN, Offer, Outcome
from gateway.transport.ordered_replies import Turns
from transports.amqp.channel import Channel, Route
from transports.amqp.codec import (
    PUBLISH,
    Publish,
    append_content,
    decode_content_header,
    decode_publish,
    encode_ack,
    encode_method,
)
from transports.amqp.errors import (
    ACCESS_REFUSED,
    NO_ROUTE,
    NOT_IMPLEMENTED,
    PRECONDITION_FAILED,
    RESOURCE_ERROR,
    AmqpError,
)
from transports.amqp.names import TOPIC_PREFIX
from transports.amqp.properties import Content, decode, encode
from transports.amqp.transaction import Transaction

if TYPE_CHECKING:
    from transports.amqp.connection import AmqpConnection

CACHED = 1024
"""Entries of each cache; a full one is emptied."""
PARTIAL_BODIES = 2
"""So many bodies of the largest size may be under way on all channels of a connection together."""
CACHED_OCTETS = 128
"""Longer keys are not kept: they hardly come twice."""

Entry = tuple[Channel, int, Route | None, Message | None]
"""Of one accepted message: its channel, its number there (0 without confirms); route and message if mandatory."""


class Publishing:
    """All publishes of one connection."""

    __slots__ = (
        "_confirmed",
        "_contents",
        "_entries",
        "_routes",
        "_turns",
        "_version",
        "also",
        "batch",
        "connection",
        "gateway",
        "held_back",
        "topology",
        "unfinished",
        "unresolved",
    )

    def __init__(self, connection: AmqpConnection) -> None:
        self.connection = connection
        self.gateway = connection.gateway
        self.topology = connection.topology
        self.batch: list[Message] = []
        self.also: dict[int, tuple[str, ...]] = {}
        """Further topics of those in the batch, by their places."""
        self.unresolved = 0
        """Messages accepted whose Outcome is not there yet."""
        self.unfinished = 0
        """Octets of unfinished bodies on all channels."""
        self.held_back = 0
        """Octets of transactions that are not committed."""
        self._turns = Turns()
        self._entries: list[Entry] = []
        self._routes: dict[bytes, Route] = {}
        self._version = self.topology.version
        self._contents: dict[bytes, Content] = {}
        self._confirmed: dict[Channel, None] = {}

    # content in

    def method(self, channel: Channel, data: bytes, begin: int, end: int) -> None:
        """A basic.publish frame."""
        if self._version != self.topology.version:
            self._routes.clear()
            self._version = self.topology.version
        raw = data[begin:end]
        route = self._routes.get(raw)
        if route is None:
            try:
                route = self._route(decode_publish(data, begin, end))
            except AmqpError as error:
                error.method = PUBLISH
                raise
            if len(raw) <= CACHED_OCTETS and not route.publish.routing_key.startswith(TOPIC_PREFIX):
                if len(self._routes) >= CACHED:
                    self._routes.clear()
                self._routes[raw] = route
        channel.begin(route)

    def _route(self, publish: Publish) -> Route:
        if publish.immediate:
            raise AmqpError(NOT_IMPLEMENTED, "immediate=true is not implemented")
        vhost = self.connection.declarations.vhost
        name, key = publish.exchange, publish.routing_key
        if name == DEFAULT_EXCHANGE:
            queue = vhost.full(key)
            if is_reserved(queue):
                raise AmqpError(ACCESS_REFUSED, f"{vhost.tell('queue', queue)} has a reserved name")
            if queue.startswith(TOPIC_PREFIX) and self.gateway.queue(queue) is None:
                return Route(publish, TOPIC_EXCHANGE, swap(key[len(TOPIC_PREFIX) :]))
            return Route(publish, name, queue)
        exchange = self.connection.declarations.exchange(name)
        if exchange.internal:
            raise AmqpError(ACCESS_REFUSED, f"cannot publish to internal {vhost.tell('exchange', exchange.name)}")
        return Route(publish, exchange.name, swap(key))

    def header(self, channel: Channel, data: bytes, begin: int, end: int) -> None:
        """A content header frame."""
        route = channel.expects_header
        size, at = decode_content_header(data, begin, end)
        raw = data[at:end]
        content = self._contents.get(raw)
        if content is None:
            empty_key = not route.publish.routing_key
            content = decode(data, at, end, empty_key, self.connection.declarations.vhost.prefix)
            self._check_user(content.properties.user_id)
            if len(raw) <= CACHED_OCTETS and not empty_key:
                if len(self._contents) >= CACHED:
                    self._contents.clear()
                self._contents[raw] = content
        if channel.header(content, size, self.connection.settings.max_message_size):
            self._add(channel)

    def _check_user(self, claimed: str | None) -> None:
        """A message may say of nobody else that he has sent it."""
        actor = self.connection.declarations.actor
        if claimed is not None and actor.forges(claimed):
            name = actor.user
            why = f"user_id property set to {claimed[:64]!r} but authenticated user was {name[:64]!r}"
            raise AmqpError(PRECONDITION_FAILED, why, PUBLISH)

    def body(self, channel: Channel, chunk: bytes) -> None:
        """A body frame."""
        before = channel.partial
        if channel.body(chunk):
            self.unfinished -= before
            self._add(channel)
            return
        self.unfinished += channel.partial - before
        if self.unfinished > PARTIAL_BODIES * self.connection.settings.max_message_size:
            raise AmqpError(RESOURCE_ERROR, f"{self.unfinished} bytes of contents are not finished", PUBLISH)

    def leave(self, channel: Channel) -> None:
        """The channel is over, and with it a content or a transaction that was not finished."""
        self.unfinished -= channel.partial
        if channel.transaction is not None:
            self.held_back -= channel.transaction.octets

    def _add(self, channel: Channel) -> None:
        route, content, body = channel.take()
        topic, properties = route.topic, content.properties
        if not content.is_plain:
            topic, properties = self._addressed(channel, route, content)
        message = Message(
            topic,
            body,
            route.exchange,
            content.qos,
            content.retain,
            properties,
            content.ttl,
            content.delay,
            self.connection.name,
        )
        number = 0
        if channel.confirming:
            channel.published = number = channel.published + 1
        elif channel.transaction is not None:
            self._hold_back(channel.transaction, message, route, self._copies(route, content))
            return
        self.batch.append(message)
        if route.publish.mandatory:
            self._entries.append((channel, number, route, message))
        else:
            self._entries.append((channel, number, None, None))

    def _addressed(self, channel: Channel, route: Route, content: Content) -> tuple[str, Properties]:
        """Topic and properties of a message whose header says more of where it goes, or of where its answer does."""
        topic, properties = route.topic, content.properties
        by_name = route.exchange == DEFAULT_EXCHANGE
        if content.replies:
            if not channel.replies:
                raise AmqpError(PRECONDITION_FAILED, "fast reply consumer does not exist", PUBLISH)
            properties = structs.replace(properties, reply_to=QUEUE_PREFIX + channel.replies)
        if content.topic is not None:
            topic = self.connection.declarations.vhost.full(content.topic) if by_name else content.topic
        if by_name and any(map(is_reserved, (topic, *content.copies))):
            raise AmqpError(ACCESS_REFUSED, "the queue that a header names has a reserved name", PUBLISH)
        if content.copies and channel.transaction is None:
            self.also[len(self.batch)] = self._copies(route, content)
        return topic, properties

    def _copies(self, route: Route, content: Content) -> tuple[str, ...]:
        """The further topics that a header names."""
        by_name = route.exchange == DEFAULT_EXCHANGE
        return tuple(map(self.connection.declarations.vhost.full if by_name else swap, content.copies))

    # transactions

    def _hold_back(self, transaction: Transaction, message: Message, route: Route, copies: tuple[str, ...]) -> None:
        most = self.connection.settings.max_unconfirmed
        if len(transaction.messages) >= most:
            raise AmqpError(RESOURCE_ERROR, f"a transaction may have {most} messages", PUBLISH)
        self.held_back -= transaction.octets
        transaction.publish(message, route, copies)
        self.held_back += transaction.octets

    def commit(self, channel: Channel, transaction: Transaction) -> Future[Sequence[Outcome]]:
        """Offers its messages together with its acknowledgements; a new one begins."""
        connection = self.connection
        self.renew(channel, transaction)
        connection.counters.messages_in += len(transaction.messages)
        self.unresolved += len(transaction.messages) + 1  # also a commit of acknowledgements alone is to be answered
        future = self.gateway.accept(transaction.messages, (), Offer(also=transaction.also, done=transaction.done()))
        if self.gateway.pressure.high and not connection.consuming.unsettled():
            connection.hold()
        return future

    def renew(self, channel: Channel, transaction: Transaction) -> None:
        """This one is over, one way or the other."""
        self.held_back -= transaction.octets
        channel.transaction = Transaction()

    def committed(self, channel: Channel, transaction: Transaction, outcomes: Sequence[Outcome]) -> None:
        """Returns what is unroutable. Raises AmqpError if a queue refused anything: what the others took stays, and
        nothing is acknowledged."""
        self.unresolved -= len(outcomes) + 1
        for place, route in transaction.routes.items():
            if outcomes[place] is Outcome.UNROUTED:
                self._return(channel, route, transaction.messages[place])
        refused = sum(outcome is Outcome.REFUSED for outcome in outcomes)
        if refused:
            self.connection.counters.refusals["publish"] += refused
            raise AmqpError(PRECONDITION_FAILED, f"partial tx completion: {refused} messages were refused")

    # accept

    def flush(self) -> None:
        """Offers what has come; call it before anything that must not overtake it."""
        batch, entries, also = self.batch, self._entries, self.also
        if not batch:
            return
        self.batch, self._entries = [], []
        if also:
            self.also = {}
        connection = self.connection
        if connection.draining:
            # No confirm is sent for these, and connection.close comes: the client publishes them again elsewhere.
            connection.counters.dropped["stopping"] += sum(not entry[1] for entry in entries)
            return
        connection.counters.messages_in += len(batch)
        self.unresolved += len(batch)
        pressure = self.gateway.pressure
        if pressure.high and connection.consuming.unsettled():
            # Its acks must get through, so it is not paused, but refused (ruling 22): behind what came before.
            self._turns.add(self.gateway.accept(()), partial(self._resolved, entries, True))
        else:
            future = self.gateway.accept(batch, (), Offer(also=also) if also else PLAIN)
            self._turns.add(future, partial(self._resolved, entries, False))
            if pressure.high and not connection.consuming.unsettled():
                connection.hold()
        if self.unresolved >= connection.settings.max_unconfirmed:
            connection.pause("unconfirmed")

    def _resolved(self, entries: list[Entry], refused: bool, future: Future[Sequence[Outcome]]) -> None:
        self.unresolved -= len(entries)
        if future.cancelled() or self.connection.ended:
            return
        try:
            self._resolve(entries, [Outcome.REFUSED] * len(entries) if refused else future.result())
        except Exception as error:
            self.connection.broke(error)
            return
        if self.unresolved < self.connection.settings.max_unconfirmed:
            self.connection.resume("unconfirmed")
        self.connection.check_idle()

    def _resolve(self, entries: list[Entry], outcomes: Sequence[Outcome]) -> None:
        confirmed = self._confirmed
        waiting = bool(confirmed)
        for entry, outcome in zip(entries, outcomes, strict=True):
            channel, number, route, message = entry
            if outcome is Outcome.REFUSED:
                self._refuse(channel, number)
                continue
            if route is not None and message is not None and outcome is Outcome.UNROUTED and not channel.closing:
                self._return(channel, route, message)
            if number:
                channel.confirmed = number
                confirmed[channel] = None
        if confirmed and not waiting:
            # After all Outcomes of this commit: one confirm for each channel.
            self.connection.loop.call_soon(self.confirm)

    def confirm(self) -> None:
        """Sends the confirms that are due."""
        confirmed, self._confirmed = self._confirmed, {}
        for channel in confirmed:
            self._confirm_channel(channel)

    def _confirm_channel(self, channel: Channel) -> None:
        number = channel.confirmed
        if number > channel.acked and not channel.closing and not self.connection.ended:
            self.connection.send(encode_ack(channel.id, number, number != channel.acked + 1))
            channel.acked = number

    def _refuse(self, channel: Channel, number: int) -> None:
        counters = self.connection.counters
        if not number:
            counters.dropped["refused"] += 1
            return
        counters.refusals["publish"] += 1
        if channel.closing or self.connection.ended:
            return
        self._confirm_channel(channel)  # the earlier ones, so that no later ack speaks for this one
        self.connection.send(encode_method(channel.id, amqp.Basic.Nack, delivery_tag=number))
        channel.acked = channel.confirmed = number

    def _return(self, channel: Channel, route: Route, message: Message) -> None:
        """A mandatory message that no queue wanted, before its confirm."""
        head = encode_method(
            channel.id,
            amqp.Basic.Return,
            reply_code=NO_ROUTE,
            reply_text="NO_ROUTE",
            exchange=route.publish.exchange,
            routing_key=route.publish.routing_key,
        )
        parts = [head]
        properties = encode(message, True, message.ttl, prefix=self.connection.declarations.vhost.prefix)
        append_content(parts, channel.id, properties, message.body, self.connection.frame_max)
        self.connection.send(b"".join(parts))
