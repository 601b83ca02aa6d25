"""Owns one AMQP connection: its handshake, its frames, its heartbeats and its end.

Its rule: frames of a channel take effect in their order; a frame that has to wait for the disk stops its own channel
and no other, and whatever a client sends ends at most its connection, with the code that says why.
"""

from __future__ import annotations

import asyncio
import enum
from asyncio import Future
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from pamqp import commands as amqp
from pamqp.base import Frame

from gateway.logs import log
from gateway.transport import Gateway, StateChange, TransportCounters, User
from transports.amqp.channel import Channel
from transports.amqp.codec import (
    ACK,
    BODY,
    HEADER,
    HEARTBEAT,
    HEARTBEAT_FRAME,
    METHOD,
    MIN_FRAME,
    PROTOCOL_HEADER,
    PUBLISH,
    decode_ack,
    decode_method,
    encode_method,
    method_index,
    split,
)
from transports.amqp.consuming import Consuming
from transports.amqp.declarations import Answer, Declarations
from transports.amqp.errors import (
    ACCESS_REFUSED,
    CHANNEL_ERROR,
    COMMAND_INVALID,
    CONNECTION_FORCED,
    FRAME_ERROR,
    NOT_ALLOWED,
    NOT_IMPLEMENTED,
    RESOURCE_ERROR,
    UNEXPECTED_FRAME,
    AmqpError,
    reply_name,
)
from transports.amqp.publishing import Publishing
from transports.amqp.topology import Topology
from transports.tcp import TcpConnection

if TYPE_CHECKING:
    from transports.amqp.listener import AmqpSettings

CLOSE_SECONDS = 5.0
"""How long a client has to answer connection.close."""
BACKLOG_OCTETS = 1 << 20
"""Frames that wait behind an unanswered method before reading pauses."""
CAPABILITIES = {
    "publisher_confirms": True,
    "basic.nack": True,
    "consumer_cancel_notify": True,
    "exchange_exchange_bindings": False,
    "per_consumer_qos": True,
    "authentication_failure_close": True,
    "connection.blocked": True,
}


class State(enum.Enum):
    """How far the connection has come [AMQP 2.2.4]."""

    HEADER = enum.auto()
    START = enum.auto()
    LOGIN = enum.auto()
    TUNE = enum.auto()
    OPEN = enum.auto()
    RUNNING = enum.auto()
    CLOSING = enum.auto()
    """connection.close was sent; all but its answer is passed over [AMQP 1.4.2.9]."""


class AmqpConnection(TcpConnection):
    """A client's connection. `connections` is its listener's set, which it stands in as long as it lives."""

    def __init__(
        self,
        gateway: Gateway,
        counters: TransportCounters,
        topology: Topology,
        settings: AmqpSettings,
        name: str,
        version: str,
        connections: set[AmqpConnection],
    ) -> None:
        super().__init__(gateway, counters)
        self.topology = topology
        self.settings = settings
        self.name = name
        self.version = version
        self.connections = connections
        self.state = State.HEADER
        self.ended = False
        """Its consumers are detached and nothing of it is left with the core."""
        self.draining = False
        self.gone: Future[None] = self.loop.create_future()
        self.idle: Future[None] = self.loop.create_future()
        """Done when a draining connection has nothing left to wait for."""
        self.frame_max = int(settings.frame_max)
        self.channel_max = settings.channel_max
        self.channels: dict[int, Channel] = {}
        self.consuming = Consuming(self)
        self.publishing = Publishing(self)
        self.declarations = Declarations(gateway, topology, self)
        self._capabilities: dict[str, Any] = {}
        self._backlog_octets = 0
        self._heard = True
        self._silent = 0
        self._spoke = False
        self._timer: asyncio.TimerHandle | None = None
        self._beat_timer: asyncio.TimerHandle | None = None
        self._login: asyncio.Task[None] | None = None

    # the socket

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.connections.add(self)
        if len(self.connections) > self.settings.max_connections:
            self.counters.refusals["max-connections"] += 1
            self.abort()
            return
        self._timer = self.loop.call_later(self.settings.connect_timeout, self._too_slow)

    def lost(self, error: Exception | None) -> None:
        self._end(lost=True)
        for timer in (self._timer, self._beat_timer):
            if timer is not None:
                timer.cancel()
        if self._login is not None:
            self._login.cancel()
        self.connections.discard(self)
        for future in (self.gone, self.idle):
            if not future.done():
                future.set_result(None)

    def send(self, data: bytes) -> None:
        self._spoke = True
        super().send(data)

    def flushed(self) -> None:
        self.consuming.written()

    def writable_changed(self) -> None:
        if self.writable and not self.ended:
            self.consuming.replenish()

    def _too_slow(self) -> None:
        self.counters.protocol_errors["connect-timeout"] += 1
        self.abort()

    # frames in

    def received(self, buffer: bytearray) -> int:
        self._heard = True
        data = bytes(buffer)
        if self.state is State.HEADER:
            return self._protocol_header(data)
        try:
            return self._frames(data)
        except Exception as error:  # the border: a fault of ours ends this connection and no other
            log.fault("AMQP connection failed", error, transport=self.name, peer=self.peer)
            self.counters.protocol_errors["internal"] += 1
            self._end(lost=False)
            self.abort()
            return len(data)

    def _protocol_header(self, data: bytes) -> int:
        if not PROTOCOL_HEADER.startswith(data[:8]):
            self.counters.protocol_errors["wrong-protocol"] += 1
            self.send(PROTOCOL_HEADER)  # [AMQP 4.2.2]
            self.close()
            return len(data)
        if len(data) < 8:
            return 0
        self.state = State.START
        properties = {
            "product": "mqtt-amqp-gateway",
            "version": self.version,
            "platform": "Python",
            "capabilities": CAPABILITIES,
        }
        self.send(
            encode_method(
                0,
                amqp.Connection.Start,
                version_minor=9,
                server_properties=properties,
                mechanisms="PLAIN",
                locales="en_US",
            )
        )
        return 8

    def _frames(self, data: bytes) -> int:
        frames, used, broken = split(data, self.frame_max)
        for kind, number, begin, end in frames:
            if self.closing:
                return len(data)
            self._frame(kind, number, data, begin, end)
        if broken is not None:
            self._failed(broken, None)
            used = len(data)
        self._flush_all()
        self.check_idle()
        return used

    def _frame(self, kind: int, number: int, data: bytes, begin: int, end: int) -> None:
        channel = self.channels.get(number)
        try:
            if channel is None:
                self._without_channel(kind, number, data, begin, end)
            elif channel.waiting:
                self._postpone(channel, kind, data[begin:end])
            elif channel.closing:
                self._while_closing(channel, kind, data, begin, end)
            else:
                self._on_channel(channel, kind, data, begin, end)
        except AmqpError as error:
            self._failed(error, channel)

    def _flush_all(self) -> None:
        if self.publishing.batch:
            self.publishing.flush()
        if self.consuming.done:
            self.consuming.flush()

    def _on_channel(self, channel: Channel, kind: int, data: bytes, begin: int, end: int) -> None:
        """A frame of an open channel. Publishes and acks are gathered, but keep their order among each other: what
        was acknowledged before a publish is settled before it is offered (ruling 13), and the other way round."""
        if kind == BODY:
            self.publishing.body(channel, data[begin:end])
            return
        if kind == HEADER:
            self.publishing.header(channel, data, begin, end)
            return
        if kind != METHOD:
            raise AmqpError(FRAME_ERROR, f"no frame of type {kind} on a channel")
        index = method_index(data, begin, end)
        if index == PUBLISH:
            if self.consuming.done:
                self.consuming.flush()
            self.publishing.method(channel, data, begin, end)
            return
        if channel.assembling:
            raise AmqpError(UNEXPECTED_FRAME, "a content was not finished", index)
        if self.publishing.batch:
            self.publishing.flush()
        try:
            if index == ACK:
                self.consuming.ack(channel, *decode_ack(data, begin, end))
                return
            if self.consuming.done:
                self.consuming.flush()
            method = decode_method(data, begin, end)
            handler = _METHODS.get(index)
            if handler is None:
                raise AmqpError(COMMAND_INVALID, f"{method.name} is not for a server's channel", index)
            handler(self, channel, method)
        except AmqpError as error:
            error.method = index
            raise

    def _postpone(self, channel: Channel, kind: int, payload: bytes) -> None:
        channel.backlog.append((kind, payload))
        self._backlog_octets += len(payload) + 64
        if self._backlog_octets > BACKLOG_OCTETS:
            self.pause("backlog")

    def _while_closing(self, channel: Channel, kind: int, data: bytes, begin: int, end: int) -> None:
        if kind != METHOD:
            return
        index = method_index(data, begin, end)
        if index == amqp.Channel.Close.index:
            self.send(encode_method(channel.id, amqp.Channel.CloseOk))
        if index in (amqp.Channel.Close.index, amqp.Channel.CloseOk.index):
            del self.channels[channel.id]

    def _without_channel(self, kind: int, number: int, data: bytes, begin: int, end: int) -> None:
        """A frame of the connection itself, or of a channel that is not open."""
        if kind == HEARTBEAT:
            if number:
                raise AmqpError(COMMAND_INVALID, "a heartbeat on a channel")  # [AMQP 4.2.7]
            return
        if kind not in (METHOD, HEADER, BODY):
            raise AmqpError(FRAME_ERROR, f"no frame type {kind}")
        index = method_index(data, begin, end) if kind == METHOD else 0
        if self.state is State.CLOSING:
            if index == amqp.Connection.Close.index and not number:
                self.send(encode_method(0, amqp.Connection.CloseOk))
            if index in (amqp.Connection.CloseOk.index, amqp.Connection.Close.index) and not number:
                self.close()
            return
        if not number:
            if kind != METHOD:
                raise AmqpError(UNEXPECTED_FRAME, "content on channel 0")
            try:
                self._connection_method(decode_method(data, begin, end))
            except AmqpError as error:
                error.method = index
                raise
            return
        if self.state is not State.RUNNING:
            raise AmqpError(COMMAND_INVALID, "the connection is not open", index)
        if number > self.channel_max:
            raise AmqpError(CHANNEL_ERROR, f"channel {number} is above the negotiated {self.channel_max}", index)
        if index != amqp.Channel.Open.index:
            raise AmqpError(CHANNEL_ERROR, f"channel {number} is not open", index)
        self.channels[number] = Channel(number, self.settings.max_unacked)
        self.send(encode_method(number, amqp.Channel.OpenOk))

    # the handshake

    def _connection_method(self, method: Frame) -> None:
        if isinstance(method, amqp.Connection.Close):
            self._flush_all()
            self._end(lost=False)
            self.send(encode_method(0, amqp.Connection.CloseOk))
            self.close()
        elif isinstance(method, amqp.Connection.StartOk) and self.state is State.START:
            self._start_ok(method)
        elif isinstance(method, amqp.Connection.TuneOk) and self.state is State.TUNE:
            self._tune_ok(method)
        elif isinstance(method, amqp.Connection.Open) and self.state is State.OPEN:
            if method.virtual_host != "/":
                raise AmqpError(NOT_ALLOWED, f"vhost {method.virtual_host!r} not found")
            self.state = State.RUNNING
            if self._timer is not None:
                self._timer.cancel()
            self.send(encode_method(0, amqp.Connection.OpenOk))
        elif isinstance(method, amqp.Connection.UpdateSecret):
            raise AmqpError(NOT_IMPLEMENTED, "connection.update-secret is not implemented")
        else:
            raise AmqpError(COMMAND_INVALID, f"{method.name} is not expected now")

    def _start_ok(self, method: amqp.Connection.StartOk) -> None:
        capabilities = method.client_properties.get("capabilities")
        self._capabilities = capabilities if isinstance(capabilities, dict) else {}
        response: Any = method.response
        parts = response.split(b"\0")
        if method.mechanism != "PLAIN" or len(parts) != 3:
            self._refuse_login(f"mechanism {method.mechanism[:32]!r} is not supported or its response is no such one")
            return
        try:
            name = parts[1].decode()
        except UnicodeDecodeError:
            self._refuse_login("the user's name is no UTF-8")
            return
        self.state = State.LOGIN
        self.pause("login")
        self._login = self.loop.create_task(self._authenticate(name, parts[2]))

    async def _authenticate(self, name: str, password: bytes) -> None:
        user = await self.gateway.authenticate(name, password)
        if user is None and self.settings.allow_anonymous and (name, password) == ("guest", b"guest"):
            user = User("")
        self.resume("login")
        if self.closing or self.ended or self.state is not State.LOGIN:
            return
        if user is None:
            self._refuse_login(f"login was refused for user {name[:64]!r} using mechanism PLAIN")
            return
        self.state = State.TUNE
        self.send(
            encode_method(
                0,
                amqp.Connection.Tune,
                channel_max=self.channel_max,
                frame_max=self.frame_max,
                heartbeat=int(self.settings.heartbeat),
            )
        )

    def _refuse_login(self, why: str) -> None:
        self.counters.refusals["bad-credentials"] += 1
        if self._capabilities.get("authentication_failure_close") is True:
            self._close(AmqpError(ACCESS_REFUSED, why))
        else:
            self._end(lost=False)
            self.close()  # [AMQP 1.4.2.2]: without that capability, closing is all that may be said

    def _tune_ok(self, method: amqp.Connection.TuneOk) -> None:
        frame_max, channel_max = method.frame_max or self.frame_max, method.channel_max or self.channel_max
        if frame_max < MIN_FRAME or frame_max > self.frame_max:
            raise AmqpError(
                NOT_ALLOWED, f"negotiated frame_max {frame_max} is not from {MIN_FRAME} to {self.frame_max}"
            )
        if channel_max > self.channel_max:
            raise AmqpError(NOT_ALLOWED, f"negotiated channel_max {channel_max} is above {self.channel_max}")
        self.frame_max, self.channel_max = frame_max, channel_max
        self.state = State.OPEN
        if method.heartbeat:
            self._beat_timer = self.loop.call_later(method.heartbeat / 2, self._beat, method.heartbeat / 2)

    def client_can(self, capability: str) -> bool:
        """What the client said of itself in start-ok."""
        return self._capabilities.get(capability) is True

    # heartbeats

    def _beat(self, half: float) -> None:
        """Every half interval: speak if nothing was said, and count the halves in which nothing was heard."""
        if self.closing:
            return
        if not self._spoke:
            self.send(HEARTBEAT_FRAME)
        self._spoke = False
        # While reading is paused the silence is ours (ruling 22).
        self._silent = 0 if self._heard or self.paused else self._silent + 1
        self._heard = False
        if self._silent >= 4:  # two intervals [AMQP 4.2.7]
            self.counters.protocol_errors["heartbeat"] += 1
            log.info("AMQP client fell silent", transport=self.name, peer=self.peer)
            self.abort()
            return
        self._beat_timer = self.loop.call_later(half, self._beat, half)

    # answers that wait for the disk

    def wait(self, channel: Channel, future: Future[bool], then: Callable[[bool], Future[Any] | None]) -> None:
        """Frames of the channel are kept back until `then` has run and the Future it may return is done too."""
        channel.waiting = True
        future.add_done_callback(partial(self._made, channel, then))

    def _made(self, channel: Channel, then: Callable[[bool], Future[Any] | None], future: Future[bool]) -> None:
        if future.cancelled() or self.ended or self.channels.get(channel.id) is not channel:
            return
        try:
            more = then(future.result())
        except AmqpError as error:
            channel.waiting = False
            self._failed(error, channel)
            more = None
        if more is None:
            self._go_on(channel)
        else:
            more.add_done_callback(lambda _: self._go_on(channel))

    def _go_on(self, channel: Channel) -> None:
        channel.waiting = False
        while channel.backlog and not channel.waiting and not self.ended:
            kind, payload = channel.backlog.popleft()
            self._backlog_octets -= len(payload) + 64
            self._frame(kind, channel.id, payload, 0, len(payload))
        self._flush_all()
        if self._backlog_octets <= BACKLOG_OCTETS // 2:
            self.resume("backlog")
        self.check_idle()

    def answer(self, channel: Channel, answer: Answer) -> None:
        """Sends it, after its changes are durable if it has any."""
        if answer.changes is None:
            if answer.frame:
                self.send(answer.frame)
            return

        def durable(made: bool) -> None:
            if not made:
                if answer.undo is not None:
                    answer.undo()
                raise AmqpError(RESOURCE_ERROR, "the store takes no changes at present")
            if answer.frame:
                self.send(answer.frame)

        self.wait(channel, self.gateway.put(answer.changes), durable)

    def keep(self, changes: Sequence[StateChange]) -> None:
        """Makes durable what no client waits for. If the store refuses, the next start finds a declaration without
        its queue and forgets it."""
        if changes:
            self.gateway.put(changes)

    # pressure

    def hold(self) -> None:
        """The daemon's buffers are full: nothing more is read until they are not (ruling 22)."""
        self.pause("pressure")
        if self.client_can("connection.blocked"):
            self.send(encode_method(0, amqp.Connection.Blocked, reason="the store is behind"))
        self.gateway.pressure.on_low(self._release)

    def _release(self) -> None:
        if "pressure" in self._pauses and not self.ended:
            self.resume("pressure")
            if self.client_can("connection.blocked"):
                self.send(encode_method(0, amqp.Connection.Unblocked))

    def unsettled_now(self) -> None:
        """It has something to settle, so its acks must be read."""
        if self._pauses:
            self._release()

    # methods of a channel

    def _channel_open(self, channel: Channel, method: Any) -> None:
        raise AmqpError(CHANNEL_ERROR, f"channel {channel.id} is open already")

    def _channel_close(self, channel: Channel, method: Any) -> None:
        self._leave(channel)
        self.send(encode_method(channel.id, amqp.Channel.CloseOk))
        del self.channels[channel.id]

    def _channel_flow(self, channel: Channel, method: amqp.Channel.Flow) -> None:
        channel.set_flow(bool(method.active))
        self.send(encode_method(channel.id, amqp.Channel.FlowOk, active=method.active))

    def _channel_flow_ok(self, channel: Channel, method: Any) -> None:
        """Nothing waits for it."""

    def _exchange_declare(self, channel: Channel, method: Any) -> None:
        self.answer(channel, self.declarations.exchange_declare(channel.id, method))

    def _exchange_delete(self, channel: Channel, method: Any) -> None:
        self.answer(channel, self.declarations.exchange_delete(channel.id, method))

    def _queue_declare(self, channel: Channel, method: Any) -> None:
        self.answer(channel, self.declarations.queue_declare(channel.id, method))

    def _queue_delete(self, channel: Channel, method: Any) -> None:
        notices: list[bytes] = []
        self.consuming.notices = notices
        try:
            answer = self.declarations.queue_delete(channel.id, method)
        finally:
            self.consuming.notices = None
        self.answer(channel, answer._replace(frame=answer.frame + b"".join(notices)))

    def _queue_purge(self, channel: Channel, method: Any) -> None:
        self.answer(channel, self.declarations.queue_purge(channel.id, method))

    def _queue_bind(self, channel: Channel, method: Any) -> None:
        self.answer(channel, self.declarations.queue_bind(channel.id, method))

    def _queue_unbind(self, channel: Channel, method: Any) -> None:
        self.answer(channel, self.declarations.queue_unbind(channel.id, method))

    def _basic_qos(self, channel: Channel, method: amqp.Basic.Qos) -> None:
        self.consuming.qos(channel, method)

    def _basic_consume(self, channel: Channel, method: amqp.Basic.Consume) -> None:
        self._not_draining()
        self.consuming.consume(channel, self.declarations.queue(channel.id, method.queue), method)

    def _basic_cancel(self, channel: Channel, method: amqp.Basic.Cancel) -> None:
        self.consuming.cancel(channel, method)

    def _basic_cancel_ok(self, channel: Channel, method: Any) -> None:
        """Some clients answer a cancel notification, which asks for no answer."""

    def _basic_get(self, channel: Channel, method: amqp.Basic.Get) -> None:
        self._not_draining()
        self.consuming.get(channel, self.declarations.queue(channel.id, method.queue), method.no_ack)

    def _basic_nack(self, channel: Channel, method: amqp.Basic.Nack) -> None:
        self.consuming.reject(channel, method.delivery_tag, method.multiple, method.requeue)

    def _basic_reject(self, channel: Channel, method: amqp.Basic.Reject) -> None:
        self.consuming.reject(channel, method.delivery_tag or 0, False, method.requeue)

    def _basic_recover(self, channel: Channel, method: amqp.Basic.Recover) -> None:
        if not method.requeue:
            raise AmqpError(NOT_IMPLEMENTED, "basic.recover without requeue is not implemented")
        self.consuming.recover(channel)
        if isinstance(method, amqp.Basic.Recover):
            self.send(encode_method(channel.id, amqp.Basic.RecoverOk))

    def _confirm_select(self, channel: Channel, method: amqp.Confirm.Select) -> None:
        channel.confirming = True
        if not method.nowait:
            self.send(encode_method(channel.id, amqp.Confirm.SelectOk))

    def _not_implemented(self, channel: Channel, method: Frame) -> None:
        raise AmqpError(NOT_IMPLEMENTED, f"{method.name} is not implemented")

    def _not_draining(self) -> None:
        if self.draining:
            raise AmqpError(CONNECTION_FORCED, "the gateway is stopping")

    # the end

    def _failed(self, error: AmqpError, channel: Channel | None) -> None:
        if error.hard or channel is None:
            self._close(error)
            return
        self.counters.refusals[reply_name(error.code).lower().replace("_", "-")] += 1
        self._flush_all()
        self._leave(channel)
        channel.closing = True
        method = error.method
        self.send(
            encode_method(
                channel.id,
                amqp.Channel.Close,
                reply_code=error.code,
                reply_text=error.text,
                class_id=method >> 16,
                method_id=method & 0xFFFF,
            )
        )

    def _leave(self, channel: Channel) -> None:
        self.consuming.leave(channel)
        self.declarations.last_queue.pop(channel.id, None)

    def _close(self, error: AmqpError) -> None:
        """A hard error: connection.close, then only its answer is taken."""
        if self.state is State.CLOSING or self.closing:
            return
        if error.code not in (CONNECTION_FORCED, ACCESS_REFUSED):
            self.counters.protocol_errors[reply_name(error.code).lower().replace("_", "-")] += 1
            log.info("AMQP connection closed", transport=self.name, peer=self.peer, reason=error.text)
        self._flush_all()
        self._end(lost=False)
        self.state = State.CLOSING
        self.send(
            encode_method(
                0,
                amqp.Connection.Close,
                reply_code=error.code,
                reply_text=error.text,
                class_id=error.method >> 16,
                method_id=error.method & 0xFFFF,
            )
        )
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(CLOSE_SECONDS, self.abort)
        for reason in list(self._pauses):
            self.resume(reason)

    def _end(self, lost: bool) -> None:
        """Takes leave of the core; a second call does nothing."""
        if self.ended:
            return
        self._flush_all()
        for channel in self.channels.values():
            self.consuming.leave(channel, lost)
        self.ended = True
        self.channels.clear()
        self._backlog_octets = 0
        self.keep(self.declarations.end())

    # drain

    def drain(self) -> Future[None]:
        """No more deliveries. Done when what was delivered is settled and what was published is answered."""
        self.draining = True
        self.consuming.stop()
        self.check_idle()
        return self.idle

    def check_idle(self) -> None:
        """Ends a draining connection as soon as nothing is left to wait for."""
        if self.draining and not self.publishing.unresolved and not self.consuming.unsettled():
            self.end_forced()

    def end_forced(self) -> None:
        """The daemon stops: connection.close 320."""
        if not self.idle.done():
            self.idle.set_result(None)
        self._close(AmqpError(CONNECTION_FORCED, "the gateway is stopping"))


_Handler = Callable[[AmqpConnection, Channel, Any], None]
_METHODS: dict[int, _Handler] = {
    amqp.Channel.Open.index: AmqpConnection._channel_open,
    amqp.Channel.Close.index: AmqpConnection._channel_close,
    amqp.Channel.Flow.index: AmqpConnection._channel_flow,
    amqp.Channel.FlowOk.index: AmqpConnection._channel_flow_ok,
    amqp.Exchange.Declare.index: AmqpConnection._exchange_declare,
    amqp.Exchange.Delete.index: AmqpConnection._exchange_delete,
    amqp.Exchange.Bind.index: AmqpConnection._not_implemented,
    amqp.Exchange.Unbind.index: AmqpConnection._not_implemented,
    amqp.Queue.Declare.index: AmqpConnection._queue_declare,
    amqp.Queue.Delete.index: AmqpConnection._queue_delete,
    amqp.Queue.Purge.index: AmqpConnection._queue_purge,
    amqp.Queue.Bind.index: AmqpConnection._queue_bind,
    amqp.Queue.Unbind.index: AmqpConnection._queue_unbind,
    amqp.Basic.Qos.index: AmqpConnection._basic_qos,
    amqp.Basic.Consume.index: AmqpConnection._basic_consume,
    amqp.Basic.Cancel.index: AmqpConnection._basic_cancel,
    0x3C001F: AmqpConnection._basic_cancel_ok,
    amqp.Basic.Get.index: AmqpConnection._basic_get,
    amqp.Basic.Nack.index: AmqpConnection._basic_nack,
    amqp.Basic.Reject.index: AmqpConnection._basic_reject,
    amqp.Basic.Recover.index: AmqpConnection._basic_recover,
    amqp.Basic.RecoverAsync.index: AmqpConnection._basic_recover,
    amqp.Confirm.Select.index: AmqpConnection._confirm_select,
    amqp.Tx.Select.index: AmqpConnection._not_implemented,
    amqp.Tx.Commit.index: AmqpConnection._not_implemented,
    amqp.Tx.Rollback.index: AmqpConnection._not_implemented,
}
