"""Owns one AMQP connection: the order of its frames, its heartbeats, its pauses and its end.

Its rule: frames of a channel take effect in their order; a frame that has to wait for the disk stops its own channel
and no other, and whatever a client sends ends at most its connection, with the code that says why.
"""

from __future__ import annotations

import asyncio
from asyncio import Future
from typing import TYPE_CHECKING

from pamqp import commands as amqp

from gateway.logs import log
from gateway.net.connection_limits import Crowd
from gateway.net.tcp import TURN_PACKETS, TcpConnection
from gateway.transport import Gateway, TransportCounters
from transports.amqp.bindings import Bindings
from transports.amqp.channel import Channel, Places
from transports.amqp.codec import (
    ACK,
    BODY,
    HEADER,
    HEARTBEAT,
    HEARTBEAT_FRAME,
    METHOD,
    PUBLISH,
    decode_ack,
    decode_method,
    encode_method,
    lacks,
    method_index,
    split,
)
from transports.amqp.consuming import Consuming
from transports.amqp.declarations import Declarations
from transports.amqp.errors import (
    ACCESS_REFUSED,
    CHANNEL_ERROR,
    COMMAND_INVALID,
    CONNECTION_FORCED,
    FRAME_ERROR,
    NOT_ALLOWED,
    RESOURCE_ERROR,
    UNEXPECTED_FRAME,
    AmqpError,
    reply_name,
)
from transports.amqp.handshake import Handshake, Step
from transports.amqp.methods import HANDLERS
from transports.amqp.publishing import Publishing
from transports.amqp.topology import Topology
from transports.amqp.waiting import Waiting

if TYPE_CHECKING:
    from transports.amqp.listener import AmqpSettings

CLOSE_SECONDS = 5.0
"""How long a client has to answer connection.close."""


class AmqpConnection(TcpConnection):
    """A client's connection. `connections` is its listener's set, which it stands in as long as it lives."""

    gateway: Gateway

    __slots__ = (
        "_asked",
        "_beat_timer",
        "_close_timer",
        "_heard",
        "_silent",
        "_spoke",
        "bindings",
        "channel_max",
        "channels",
        "connections",
        "consuming",
        "declarations",
        "draining",
        "ended",
        "frame_max",
        "gone",
        "handshake",
        "held",
        "idle",
        "name",
        "places",
        "publishing",
        "refused",
        "settings",
        "topology",
        "version",
        "waiting",
    )

    def __init__(
        self,
        gateway: Gateway,
        counters: TransportCounters,
        crowd: Crowd,
        topology: Topology,
        settings: AmqpSettings,
        name: str,
        version: str,
        connections: set[AmqpConnection],
        places: Places,
    ) -> None:
        super().__init__(gateway, counters, crowd)
        self.topology = topology
        self.settings = settings
        self.name = name
        self.version = version
        self.connections = connections
        self.places = places
        self.refused = False
        """connection.close was sent; all but its answer is passed over [AMQP 1.4.2.9]."""
        self.ended = False
        """Its consumers are detached and nothing of it is left with the core."""
        self.draining = False
        self.held = False
        """Reading is paused because the daemon's buffers are full."""
        self.gone: Future[None] = self.loop.create_future()
        self.idle: Future[None] = self.loop.create_future()
        """Done when a draining connection has nothing left to wait for."""
        self.frame_max = int(settings.frame_max)
        self.channel_max = settings.channel_max
        self.channels: dict[int, Channel] = {}
        self.handshake = Handshake(self)
        self.consuming = Consuming(self)
        self.publishing = Publishing(self)
        self.declarations = Declarations(gateway, topology, self, settings)
        self.bindings = Bindings(self.declarations)
        self.waiting = Waiting(self)
        self._asked = False
        """It is called when the pressure is gone."""
        self._heard = True
        self._silent = 0
        self._spoke = False
        self._close_timer: asyncio.TimerHandle | None = None
        self._beat_timer: asyncio.TimerHandle | None = None

    # the socket

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.connections.add(self)
        self.handshake.begin()

    def lost(self, error: Exception | None) -> None:
        self.connections.discard(self)
        self.handshake.leave()
        for timer in (self._close_timer, self._beat_timer):
            if timer is not None:
                timer.cancel()
        try:
            self._end(lost=True)
        finally:
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

    def unfinished(self) -> int:
        return super().unfinished() + self.publishing.unfinished + self.publishing.held_back

    def cut_off(self, why: str) -> None:
        if self.handshake.step is Step.DONE and not (self.refused or self.closing):
            self.fail(AmqpError(RESOURCE_ERROR, f"closed for the sake of the others: {why}"))
        else:
            self.abort()

    # frames in

    def received(self, buffer: bytearray) -> int:
        self._heard = True
        if self.handshake.step is not Step.HEADER and lacks(buffer, self.frame_max):
            return 0
        data = bytes(buffer)
        used = 0
        try:
            if self.handshake.step is Step.HEADER:
                used = self.handshake.protocol_header(data)
                if self.handshake.step is Step.HEADER or len(data) == used:
                    return used
                data = data[used:]
            return used + self._frames(data)
        except Exception as error:
            self.broke(error)
            return len(buffer)

    def broke(self, error: Exception) -> None:
        """The border: a fault of ours ends this connection and no other."""
        log.fault("AMQP connection failed", error, transport=self.name, peer=self.peer)
        self.counters.protocol_errors["internal"] += 1
        self._end(lost=False)
        self.abort()

    def _frames(self, data: bytes) -> int:
        frames, used, broken = split(data, self.frame_max, TURN_PACKETS)
        self.more = len(frames) >= TURN_PACKETS
        for kind, number, begin, end in frames:
            if self.closing:
                return len(data)
            self.frame(kind, number, data, begin, end)
        if broken is not None:
            self.failed(broken, None)
            used = len(data)
        self.flush_all()
        self.check_idle()
        return used

    def frame(self, kind: int, number: int, data: bytes, begin: int, end: int) -> None:
        """One frame, whose payload stands in `data` from `begin` to `end`."""
        channel = self.channels.get(number)
        try:
            if channel is None:
                self._without_channel(kind, number, data, begin, end)
            elif channel.waiting is not None:
                self.waiting.postpone(channel, kind, data[begin:end])
            elif channel.closing:
                self._while_closing(channel, kind, data, begin, end)
            else:
                self._on_channel(channel, kind, data, begin, end)
        except AmqpError as error:
            if not error.method and kind in (HEADER, BODY) and channel is not None and channel.assembling:
                error.method = PUBLISH  # its content is a part of it
            self.failed(error, channel)

    def flush_all(self) -> None:
        """Offers the publishes and settles the acks that were gathered."""
        if self.publishing.batch:
            self.publishing.flush()
        if self.consuming.done:
            self.consuming.flush()
        self.consuming.turn_ends()

    def _on_channel(self, channel: Channel, kind: int, data: bytes, begin: int, end: int) -> None:
        """A frame of an open channel. Publishes and acks are gathered, but keep their order among each other: what
        was acknowledged before a publish is settled before it is offered (ruling 13), and the other way round."""
        if kind == BODY:
            self.publishing.body(channel, data[begin:end])
            return
        if kind == HEADER:
            self.publishing.header(channel, data, begin, end)
            return
        if kind != METHOD:  # [AMQP 4.2.7]: heartbeats, too, are the connection's
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
            handler = HANDLERS.get(index)
            if handler is None:
                raise AmqpError(COMMAND_INVALID, f"{method.name} is not for a server's channel", index)
            handler(self, channel, method)
        except AmqpError as error:
            error.method = index
            raise

    def _while_closing(self, channel: Channel, kind: int, data: bytes, begin: int, end: int) -> None:
        """channel.close was sent. All is passed over but the client's own close, which has crossed it and is answered,
        and close-ok, which alone ends the channel: it comes after a close that crossed, too [AMQP 1.5.2.5]."""
        if kind != METHOD:
            return
        index = method_index(data, begin, end)
        if index == amqp.Channel.Close.index:
            self.send(encode_method(channel.id, amqp.Channel.CloseOk))
        elif index == amqp.Channel.CloseOk.index:
            self.forget(channel)
        elif index == amqp.Channel.Open.index:  # whoever sends that waits for an answer, which can't come
            raise AmqpError(CHANNEL_ERROR, f"channel {channel.id} is closed by channel.close-ok only", index)

    def _without_channel(self, kind: int, number: int, data: bytes, begin: int, end: int) -> None:
        """A frame of the connection itself, or of a channel that is not open."""
        if kind == HEARTBEAT:
            if number or end > begin:
                raise AmqpError(FRAME_ERROR, "a heartbeat is empty and on channel 0")  # [AMQP 4.2.7]
            return
        if kind not in (METHOD, HEADER, BODY):
            raise AmqpError(FRAME_ERROR, f"no frame type {kind}")
        index = method_index(data, begin, end) if kind == METHOD else 0
        if self.refused:
            # A close that crossed ours is answered, and its sender's close-ok is still to come [AMQP 1.4.2.9].
            if index == amqp.Connection.Close.index and not number:
                self.send(encode_method(0, amqp.Connection.CloseOk))
            elif index == amqp.Connection.CloseOk.index and not number:
                self.close()
            return
        if not number:
            if kind != METHOD:
                raise AmqpError(UNEXPECTED_FRAME, "content on channel 0")
            try:
                method = decode_method(data, begin, end)
                if isinstance(method, amqp.Connection.Close):
                    self._leave_all()
                else:
                    self.handshake.method(method)
            except AmqpError as error:
                error.method = index
                raise
            return
        if self.handshake.step is not Step.DONE:
            raise AmqpError(UNEXPECTED_FRAME, "the connection is not open", index)
        if kind != METHOD:
            raise AmqpError(UNEXPECTED_FRAME, f"content on channel {number}, which is not open")
        if index != amqp.Channel.Open.index:
            raise AmqpError(CHANNEL_ERROR, f"channel {number} is not open", index)
        if len(self.channels) >= self.channel_max:  # which counts channels, as in RabbitMQ; their numbers are free
            raise AmqpError(NOT_ALLOWED, f"there are {self.channel_max} channels already: channel_max", index)
        if not self.places.left:
            most = self.settings.max_all_channels
            raise AmqpError(RESOURCE_ERROR, f"there are {most} channels already, of all connections", index)
        self.places.left -= 1
        self.channels[number] = Channel(number, self.settings.max_unacked)
        self.send(encode_method(number, amqp.Channel.OpenOk))

    def forget(self, channel: Channel) -> None:
        """It is closed on both sides; its number is free."""
        del self.channels[channel.id]
        self.places.left += 1

    def client_can(self, capability: str) -> bool:
        """What the client said of itself in start-ok."""
        return self.handshake.capabilities.get(capability) is True

    # heartbeats

    def beat_every(self, half: float) -> None:
        """From now on, in seconds: half of what was negotiated [AMQP 4.2.7]."""
        self._beat_timer = self.loop.call_later(half, self._beat, half)

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
        if self._silent >= 4:  # two whole intervals
            self.counters.protocol_errors["heartbeat"] += 1
            log.info("AMQP client fell silent", transport=self.name, peer=self.peer)
            self.abort()
            return
        self.beat_every(half)

    # pressure

    def hold(self) -> None:
        """The daemon's buffers are full: nothing more is read until they are not (ruling 22)."""
        if self.held:
            return
        self.held = True
        self.pause("pressure")
        if self.client_can("connection.blocked"):
            self.send(encode_method(0, amqp.Connection.Blocked, reason="the store is behind"))
        if not self._asked:
            self._asked = True
            self.gateway.pressure.on_low(self._relieved)

    def _relieved(self) -> None:
        self._asked = False
        self._release()

    def _release(self) -> None:
        if self.held and not self.ended:
            self.held = False
            self.resume("pressure")
            if self.client_can("connection.blocked"):
                self.send(encode_method(0, amqp.Connection.Unblocked))

    def unsettled_now(self) -> None:
        """It has something to settle, so its acks must be read."""
        if self.held:
            self._release()

    # the end

    def failed(self, error: AmqpError, channel: Channel | None) -> None:
        """Ends the channel, or the connection if the error is hard or no channel's."""
        if error.hard or channel is None:
            self.fail(error)
            return
        self.counters.refusals[reply_name(error.code).lower().replace("_", "-")] += 1
        self.flush_all()
        self.publishing.confirm()
        self.leave(channel)
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

    def leave(self, channel: Channel) -> None:
        """Whatever the channel had under way is given back or forgotten."""
        self.consuming.leave(channel)
        self.publishing.leave(channel)
        self.declarations.last_queue.pop(channel.id, None)

    def fail(self, error: AmqpError) -> None:
        """A hard error: connection.close, then only its answer is taken. One of the client's counts as a loss does: a
        message that makes its consumer send nonsense must run out of attempts."""
        if self.refused or self.closing:
            return
        faulty = error.code not in (CONNECTION_FORCED, ACCESS_REFUSED)
        if faulty:
            self.counters.protocol_errors[reply_name(error.code).lower().replace("_", "-")] += 1
            log.info("AMQP connection closed", transport=self.name, peer=self.peer, reason=error.text)
        self.flush_all()
        self.publishing.confirm()  # what is known by now; the rest the client must publish again
        self.refused = True
        self._end(lost=faulty)
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
        self.handshake.leave()
        self.crowd.part(self)
        self._close_timer = self.loop.call_later(CLOSE_SECONDS, self.abort)
        for reason in ("login", "backlog", "pressure", "unconfirmed"):
            self.resume(reason)

    def _leave_all(self) -> None:
        """The client has closed the connection."""
        self.flush_all()
        self._end(lost=False)
        self.send(encode_method(0, amqp.Connection.CloseOk))
        self.close()

    def _end(self, lost: bool) -> None:
        """Takes leave of the core; a second call does nothing."""
        if self.ended:
            return
        self.flush_all()
        for channel in self.channels.values():
            self.consuming.leave(channel, lost)
        self.ended = True
        self.places.left += len(self.channels)
        self.channels.clear()
        self.publishing.unfinished = self.publishing.held_back = 0
        self.waiting.keep(self.declarations.end())

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
        if self.handshake.step is Step.DONE:
            self.fail(AmqpError(CONNECTION_FORCED, "the gateway is stopping"))
        else:
            self.close()
