"""Owns what one connection consumes: its deliveries on their way out and the settlements on their way back.

Its rule: what the socket has not taken is bounded by one window of octets for the whole connection, whatever
prefetch its consumers have.
"""

from __future__ import annotations

import asyncio
import secrets
from asyncio import Future, TimerHandle
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from pamqp import commands as amqp

from gateway.errors import ExclusiveUseError
from gateway.model.credit import Credit
from gateway.model.message import NO_PROPERTIES, Message, Properties
from gateway.slices import Slices
from gateway.transport import Delivery, QueueView, Subscription, Verdict
from transports.amqp.arguments import consumer_priority
from transports.amqp.channel import Channel
from transports.amqp.codec import (
    END,
    OVERHEAD,
    append_content,
    content_fits,
    content_head,
    encode_method,
    encode_tag,
    short,
)
from transports.amqp.consumer import AmqpConsumer, Get
from transports.amqp.deaths import delivery_headers
from transports.amqp.errors import (
    ACCESS_REFUSED,
    NOT_ALLOWED,
    NOT_FOUND,
    NOT_IMPLEMENTED,
    PRECONDITION_FAILED,
    RESOURCE_ERROR,
    RESOURCE_LOCKED,
    AmqpError,
)
from transports.amqp.properties import NO_MODE, encode, routing_key

if TYPE_CHECKING:
    from transports.amqp.connection import AmqpConnection
    from transports.amqp.vhost import Vhost

WINDOW = 1 << 20
"""Octets on their way to one connection beyond what its write buffer holds."""
CACHED = 1024
"""Entries of each cache; a full one is emptied."""
SHORT_TOPIC = 63
"""Characters, which are at most 252 bytes: such a topic is always a routing key."""
GET_SECONDS = 0.5
"""A basic.get waits that long for a queue that holds messages of which none comes: they are delayed or blocked, or
a body is being read from the disk."""

SETTLED_AT_ONCE = 1000
"""With more in one turn, the rest is settled in slices."""
REJECTED = "rejected by its consumer"


class Consuming:
    """All consumers of one connection. Methods raise AmqpError for what the client may not do."""

    __slots__ = (
        "_addresses",
        "_gets",
        "_handed",
        "_heads",
        "_settling",
        "_spent",
        "_starved",
        "connection",
        "done",
        "gateway",
        "notices",
        "octets",
        "topology",
    )

    def __init__(self, connection: AmqpConnection) -> None:
        self.connection = connection
        self.gateway = connection.gateway
        self.topology = connection.topology
        self.octets = Credit(octets=WINDOW)
        self.done: dict[AmqpConsumer, list[int]] = {}
        """Acknowledged and not yet settled: one call for each subscription and turn."""
        self.notices: list[bytes] | None = None
        """While this connection deletes a queue: its consumers hear of it after the answer, as clients expect."""
        self._handed: dict[AmqpConsumer, list[int]] = {}
        self._starved: dict[AmqpConsumer, None] = {}
        self._addresses: dict[tuple[str, str], bytes] = {}
        self._heads: dict[tuple[object, ...], tuple[Properties, bytes]] = {}
        self._gets: dict[Get, TimerHandle] = {}
        self._spent = 0
        """So many were settled in this turn by frames that may mean many."""
        self._settling: dict[Channel, Future[None]] = {}
        """What settles very many for a channel."""

    @property
    def vhost(self) -> Vhost:
        return self.connection.declarations.vhost

    def unsettled(self) -> bool:
        """Something was delivered whose acknowledgement may still come."""
        return any(channel.unsettled for channel in self.connection.channels.values())

    # basic.consume, basic.cancel, basic.qos

    def consume(self, channel: Channel, view: QueueView, method: amqp.Basic.Consume) -> None:
        tag = method.consumer_tag or "amq.ctag-" + secrets.token_urlsafe(16)
        if tag in channel.consumers:
            raise AmqpError(NOT_ALLOWED, f"attempt to reuse consumer tag {tag!r}")
        if method.no_local:
            raise AmqpError(NOT_IMPLEMENTED, "no_local is not implemented")
        priority = consumer_priority(method.arguments or {})
        most = self.connection.settings.max_consumers
        if sum(len(other.consumers) for other in self.connection.channels.values()) >= most:
            raise AmqpError(RESOURCE_ERROR, f"a connection may have {most} consumers")
        if self.topology.consuming >= self.connection.settings.max_all_consumers:
            raise AmqpError(
                RESOURCE_ERROR, f"there are {self.topology.consuming} consumers already, of all connections"
            )
        if method.exclusive and view.policy.single_active:
            raise self._in_use(view.name)
        consumer = AmqpConsumer(self, channel, tag, view.name, method.no_ack)
        pools = (self.octets, channel.gate if method.no_ack else channel.window)
        actor, exclusive = self.connection.declarations.actor, bool(method.exclusive)
        try:
            consumer.subscription = self.gateway.attach(
                view.name, consumer, pools, priority=priority, actor=actor, exclusive=exclusive
            )
        except ExclusiveUseError as error:
            raise self._in_use(view.name) from error
        channel.consumers[tag] = consumer
        self.topology.add_consumer(view.name, consumer)
        if not method.nowait:
            self.connection.send(encode_method(channel.id, amqp.Basic.ConsumeOk, consumer_tag=tag))
        consumer.start()

    def _in_use(self, queue: str) -> AmqpError:
        return AmqpError(ACCESS_REFUSED, f"{self.vhost.tell('queue', queue)} in exclusive use")

    def consume_replies(self, channel: Channel, method: amqp.Basic.Consume) -> None:
        """Direct replies: a queue of the channel's own, which no other can name, and goes with this consumer."""
        if not method.no_ack:
            raise AmqpError(PRECONDITION_FAILED, "reply consumer cannot acknowledge")
        if channel.replies:
            raise AmqpError(PRECONDITION_FAILED, "reply consumer already set")
        view = self.connection.declarations.make_replies()
        try:
            self.consume(channel, view, method)
        except AmqpError:
            self.gateway.delete(view.name)
            raise
        channel.replies = view.name

    def cancel(self, channel: Channel, method: amqp.Basic.Cancel) -> None:
        tag = method.consumer_tag or ""
        consumer = channel.consumers.pop(tag, None)
        if consumer is not None:
            self._end_consumer(consumer)
        if not method.nowait:
            self.connection.send(encode_method(channel.id, amqp.Basic.CancelOk, consumer_tag=tag))

    def _end_consumer(self, consumer: AmqpConsumer) -> None:
        """Ends delivery; what is in flight may still be settled (ruling 17)."""
        consumer.subscription.cancel()
        self._starved.pop(consumer, None)
        consumer.channel.leaving.add(consumer)
        consumer.leave_when_settled()
        if consumer.queue == consumer.channel.replies:
            consumer.channel.replies = ""
        self.connection.waiting.keep(self.connection.declarations.consumer_left(consumer.queue, consumer))

    def queue_gone(self, consumer: AmqpConsumer) -> None:
        """The core has detached it already: tell the client, if it understands that."""
        channel = consumer.channel
        self._starved.pop(consumer, None)
        self.topology.remove_consumer(consumer.queue, consumer)
        if consumer.queue == channel.replies:
            channel.replies = ""
        if channel.consumers.get(consumer.tag) is not consumer:
            return
        del channel.consumers[consumer.tag]
        if self.connection.client_can("consumer_cancel_notify"):
            notice = encode_method(channel.id, amqp.Basic.Cancel, consumer_tag=consumer.tag, nowait=True)
            if self.notices is not None:
                self.notices.append(notice)
            else:
                self.connection.send(notice)

    def qos(self, channel: Channel, method: amqp.Basic.Qos) -> None:
        """As RabbitMQ has it: `global` is the whole channel, without it each consumer that comes later."""
        if method.prefetch_size:
            raise AmqpError(NOT_IMPLEMENTED, "prefetch_size is not implemented")
        if method.global_:
            channel.set_window(method.prefetch_count)
        else:
            channel.prefetch = method.prefetch_count
        self.connection.send(encode_method(channel.id, amqp.Basic.QosOk))

    # deliveries out

    def deliver(self, consumer: AmqpConsumer, batch: Sequence[Delivery]) -> None:
        """One turn's deliveries to one consumer, as one piece of bytes."""
        channel, no_ack = consumer.channel, consumer.no_ack
        number, frame_max = channel.id, self.connection.frame_max
        addresses, heads, room = self._addresses, consumer.heads, frame_max - OVERHEAD
        parts: list[bytes] = []
        handed: list[int] = []
        invalid: dict[int, str] = {}
        for delivery in batch:
            message = delivery.message
            body = message.body
            content = self._head(number, delivery) if len(body) <= room else self._encode(delivery)
            if isinstance(content, str):
                invalid[delivery.id] = content
                continue
            if no_ack:
                tag = channel.pass_tag()
                handed.append(delivery.id)
            else:
                tag = channel.register(consumer, delivery.id)
            address = addresses.get((message.exchange, message.topic)) or self._address(message)
            head = heads.get(len(address)) or consumer.head(len(address))
            if len(body) <= room:
                parts += (head, encode_tag(tag, delivery.redelivered), address, END, content, body, END)
            else:
                parts += (head, encode_tag(tag, delivery.redelivered), address, END)
                append_content(parts, number, content, body, frame_max)
        if handed:
            self._handed.setdefault(consumer, []).extend(handed)
        if parts:
            self.connection.send(b"".join(parts))
            self.connection.counters.messages_out += len(batch) - len(invalid)
        else:
            # Nothing will be written, so nothing will be flushed.
            self.connection.loop.call_soon(self.written)
        if not consumer.prefetch:
            consumer.taken += len(batch)
            self._starved[consumer] = None
        self.connection.unsettled_now()
        for id, error in invalid.items():
            consumer.settle([id], Verdict.INVALID, error)

    def _address(self, message: Message) -> bytes:
        if len(self._addresses) >= CACHED:
            self._addresses.clear()
        address = short(self.vhost.own(message.exchange).encode()) + short(routing_key(message, self.vhost.prefix))
        if len(message.topic) < 1024:
            self._addresses[message.exchange, message.topic] = address
        return address

    def _head(self, channel: int, delivery: Delivery) -> bytes | str:
        """Its content up to the octets of a body that fits into one frame, or why it can't be sent."""
        message = delivery.message
        body, properties = message.body, message.properties
        # A long topic may have to stand among the headers, so its properties are not another's.
        ttl = delivery.expires is not None or message.ttl is not None
        if ttl or delivery.attempts or delivery.deaths or len(message.topic) > SHORT_TOPIC:
            encoded = self._encode(delivery)
            return encoded if isinstance(encoded, str) else content_head(channel, encoded, len(body))
        if properties is not NO_PROPERTIES and properties is not NO_MODE:  # it may have been read from the disk
            properties = next((one for one in (NO_PROPERTIES, NO_MODE) if properties == one), properties)
        key = (id(properties), message.qos, message.retain, message.source, len(body), channel)
        known = self._heads.get(key)
        if known is not None and known[0] is properties:
            return known[1]
        encoded = self._encode(delivery)
        if isinstance(encoded, str):
            return encoded
        head = content_head(channel, encoded, len(body))
        if len(head) <= 512:
            if len(self._heads) >= CACHED:
                self._heads.clear()
            self._heads[key] = (properties, head)
        return head

    def _encode(self, delivery: Delivery) -> bytes | str:
        """The properties as they go out, or why they can't."""
        message = delivery.message
        native = message.source in self.topology.natives
        if native:  # as it was published; a dead letter has none any more
            remaining = None if delivery.deaths else message.ttl
        else:
            remaining = None if delivery.expires is None else delivery.expires - self.gateway.now()
        try:
            headers = delivery_headers(delivery, self.vhost)
            encoded = encode(message, native, remaining, headers, self.vhost.prefix)
        except ValueError as error:
            return str(error)
        if not content_fits(encoded, self.connection.frame_max):
            return f"its properties need {len(encoded)} bytes, above the consumer's frame-max"
        return encoded

    def written(self) -> None:
        """The socket or its buffer has what was sent: deliveries without acknowledgement are settled."""
        if self.connection.ended:
            return
        handed, self._handed = self._handed, {}
        for consumer, ids in handed.items():
            consumer.settle(ids, Verdict.DONE)
        if self.connection.writable:
            self.replenish()
        if handed:
            self.connection.check_idle()

    def replenish(self) -> None:
        """The socket takes more: what has been used of the window comes back."""
        starved, self._starved = self._starved, {}
        for consumer in starved:
            taken, consumer.taken = consumer.taken, 0
            consumer.subscription.grant(taken)
        missing = WINDOW - self.octets.octets
        if missing > 0:
            self.octets.grant(octets=missing)

    # settlements in

    def ack(self, channel: Channel, tag: int, multiple: bool) -> None:
        if channel.transaction is not None:
            channel.transaction.settle(channel, tag, multiple, Verdict.DONE)
            return
        if multiple and self._is_much(channel, tag):
            self._settle_later(channel, tag, multiple, Verdict.DONE, "")
            return
        done = self.done
        taken = channel.settled(tag, multiple)
        if multiple:
            self._spent += len(taken)
        for consumer, id in taken:
            ids = done.get(consumer)
            if ids is None:
                done[consumer] = [id]
            else:
                ids.append(id)

    def flush(self) -> None:
        """Settles what was acknowledged."""
        done, self.done = self.done, {}
        for consumer, ids in done.items():
            consumer.settle(ids, Verdict.DONE)

    def reject(self, channel: Channel, tag: int, multiple: bool, requeue: bool) -> None:
        verdict = Verdict.RETRY if requeue else Verdict.DEAD
        if channel.transaction is not None:
            channel.transaction.settle(channel, tag, multiple, verdict)
            return
        self._settle_all(channel, tag, multiple, verdict, "" if requeue else REJECTED)

    def recover(self, channel: Channel) -> None:
        """All of the channel that is unsettled is given back and comes again."""
        self._settle_all(channel, 0, True, Verdict.RETURNED, "")

    def turn_ends(self) -> None:
        """As much as ever may be settled at once again."""
        self._spent = 0

    def _settle_all(self, channel: Channel, tag: int, multiple: bool, verdict: Verdict, error: str) -> None:
        if self._spent >= SETTLED_AT_ONCE or (multiple and self._is_much(channel, tag)):
            self._settle_later(channel, tag, multiple, verdict, error)
            return
        taken = channel.settled(tag, multiple)
        self._spent += len(taken)
        self._settle(taken, verdict, error)

    def _is_much(self, channel: Channel, tag: int) -> bool:
        """Whether `multiple` with this tag may be more than can be settled in this turn."""
        tags = (tag or channel.next_tag - 1) - channel.oldest
        return min(tags, len(channel.unacked)) + self._spent >= SETTLED_AT_ONCE

    def _settle_later(self, channel: Channel, tag: int, multiple: bool, verdict: Verdict, error: str) -> None:
        """In slices. What follows on the channel waits for that, so it finds all of it settled (ruling 13). Raises
        AmqpError for a tag that is not open."""
        last = tag or channel.next_tag - 1 if multiple else 0
        taken = channel.settled(tag, multiple, SETTLED_AT_ONCE)
        settling = asyncio.ensure_future(self._settle_in_slices(channel, taken, last, verdict, error))
        self._settling[channel] = settling
        self.connection.waiting.wait(channel, settling, lambda _: None)

    async def _settle_in_slices(
        self, channel: Channel, taken: list[tuple[AmqpConsumer, int]], last: int, verdict: Verdict, error: str
    ) -> None:
        """These, then all up to the tag `last`; also if the channel ends meanwhile."""
        slices = Slices()
        try:
            while taken:
                await slices.pause()
                self._settle(taken, verdict, error)
                taken = channel.settled(last, True, SETTLED_AT_ONCE) if channel.reaches(last) else []
        finally:
            self._settling.pop(channel, None)

    def _settle(self, taken: list[tuple[AmqpConsumer, int]], verdict: Verdict, error: str) -> None:
        by_consumer: dict[AmqpConsumer, list[int]] = {}
        for consumer, id in taken:
            by_consumer.setdefault(consumer, []).append(id)
        for consumer, ids in by_consumer.items():
            consumer.settle(ids, verdict, error)

    # basic.get

    def get(self, channel: Channel, view: QueueView, no_ack: bool) -> None:
        """Answers when what was published before on this channel is there."""
        if view.policy.single_active:
            raise AmqpError(
                RESOURCE_LOCKED,
                f"cannot obtain access to locked {self.vhost.tell('queue', view.name)}: it has a single "
                "active consumer, and basic.get is none",
            )
        if channel.unsettled >= channel.max_unacked:
            raise AmqpError(PRECONDITION_FAILED, f"{channel.unsettled} deliveries are unacknowledged")
        get = Get(self, channel, view.name, no_ack)
        self.connection.waiting.wait(channel, self.gateway.put(), lambda made: self._look(get, made))

    def _look(self, get: Get, made: bool) -> Future[Any] | None:
        view = self.gateway.queue(get.queue)
        if view is None:
            raise AmqpError(NOT_FOUND, f"no {self.vhost.tell('queue', get.queue)}", amqp.Basic.Get.index)
        if not view.depth or view.in_exclusive_use:
            self.connection.send(encode_method(get.channel.id, amqp.Basic.GetEmpty))
            return None
        answered: Future[Any] = self.connection.loop.create_future()
        get.answered = lambda: None if answered.done() else answered.set_result(None)
        pools = (self.octets, get.channel.gate)
        get.subscription = self.gateway.attach(get.queue, get, pools, actor=self.connection.declarations.actor)
        self._gets[get] = self.connection.loop.call_later(GET_SECONDS, self.got_nothing, get)
        get.subscription.grant(1)
        return answered

    def deliver_got(self, get: Get, delivery: Delivery) -> None:
        channel = get.channel
        self._gets.pop(get).cancel()
        get.subscription.cancel()
        channel.leaving.add(get)
        properties = self._encode(delivery)
        if isinstance(properties, str):
            get.settle([delivery.id], Verdict.INVALID, properties)
            self._answer_empty(get)
            return
        message = delivery.message
        tag = channel.pass_tag() if get.no_ack else channel.register(get, delivery.id)
        view = self.gateway.queue(get.queue)
        head = encode_method(
            channel.id,
            amqp.Basic.GetOk,
            delivery_tag=tag,
            redelivered=delivery.redelivered,
            exchange=self.vhost.own(message.exchange),
            routing_key=routing_key(message, self.vhost.prefix).decode(),
            message_count=view.depth if view is not None else 0,
        )
        parts = [head]
        append_content(parts, channel.id, properties, message.body, self.connection.frame_max)
        self.connection.send(b"".join(parts))
        self.connection.counters.messages_out += 1
        if get.no_ack:
            self._handed.setdefault(get, []).append(delivery.id)
        self.connection.unsettled_now()
        if get.answered is not None:
            get.answered()

    def got_nothing(self, get: Get) -> None:
        """None came, or the queue is gone."""
        timer = self._gets.pop(get, None)
        if timer is None:
            return
        timer.cancel()
        get.subscription.detach()
        self._answer_empty(get)

    def _answer_empty(self, get: Get) -> None:
        self.connection.send(encode_method(get.channel.id, amqp.Basic.GetEmpty))
        if get.answered is not None:
            get.answered()

    # the end

    def stop(self) -> None:
        """No more deliveries; settlements are still taken."""
        for channel in self.connection.channels.values():
            for consumer in channel.consumers.values():
                consumer.subscription.cancel()

    def leave(self, channel: Channel, lost: bool = False) -> None:
        """The channel is over: what is unsettled goes back to its place. `lost` as in `Subscription.detach`."""
        self.flush()
        for get, timer in list(self._gets.items()):
            if get.channel is channel:
                timer.cancel()
                del self._gets[get]
                get.subscription.detach()
        consumers = list(channel.consumers.values())
        channel.consumers.clear()
        leaving, channel.leaving = channel.leaving, set()
        settling = self._settling.pop(channel, None)
        if settling is None:
            channel.unacked.clear()
        for consumer in (*consumers, *leaving):
            self._starved.pop(consumer, None)
            handed = self._handed.pop(consumer, None)
            # They stand before the answer in what is about to be written, unless the socket is gone.
            if handed and (not lost or self.connection.refused):
                consumer.subscription.settle(handed, Verdict.DONE)
            if settling is None:
                consumer.subscription.detach(lost)
            else:
                consumer.subscription.cancel()
                settling.add_done_callback(partial(_detach, consumer.subscription, lost))
        for consumer in consumers:
            self.connection.waiting.keep(self.connection.declarations.consumer_left(consumer.queue, consumer))


def _detach(subscription: Subscription, lost: bool, _: Future[None]) -> None:
    """All that its channel had settled is so."""
    subscription.detach(lost)
