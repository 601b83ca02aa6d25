"""Owns the socket side of a connection: receive buffer, coalesced writes, flow control.

Its rule: one `data_received` handles every whole packet in the buffer, one turn of the loop makes one write.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable
from typing import Any, cast

from gateway.model.counters import TransportCounters
from gateway.net.connection_limits import SMALL_OCTETS, Crowd
from gateway.net.roles import Host

HIGH_WATER = 1 << 20
LOW_WATER = 1 << 18
UNREAD_OCTETS = 8 << 20
"""Answers that a peer does not read before reading from it pauses; deliveries have their own, lower limit."""
STALL_SECONDS = 30.0
"""A peer that is paused for that and takes nothing for so long is cut off."""
TURN_OCTETS = 1 << 18
"""So much of one connection is handled before the others have their turn,"""
TURN_PACKETS = 4096
"""and of tiny packets no more than that."""
MAX_PARTS = 1024
"""Buffers of one write; more are joined: the kernel takes no more at once, and libuv fails at millions."""
POSTPONED_OCTETS = 4096
"""So much of what waits for a login, or less, does not keep the end of its connection from being seen."""
LINGER_SECONDS = 5.0
"""How long a closing connection waits for its peer to take the last bytes."""


class TcpConnection(asyncio.Protocol):
    """A connection of a listener. A protocol's class overrides `received`, `lost` and, if it wants,
    `writable_changed` and `flushed`; it never touches the transport itself."""

    __slots__ = (
        "_buffer",
        "_ended",
        "_flushing",
        "_holding",
        "_linger",
        "_out",
        "_out_octets",
        "_pauses",
        "_postponed",
        "_stall",
        "_turn",
        "closing",
        "counters",
        "crowd",
        "gateway",
        "loop",
        "more",
        "peer",
        "transport",
        "writable",
    )

    def __init__(self, gateway: Host, counters: TransportCounters, crowd: Crowd) -> None:
        self.gateway = gateway
        self.counters = counters
        self.crowd = crowd
        self.loop = asyncio.get_running_loop()
        self.transport: asyncio.Transport | None = None
        self.peer = ""
        self.closing = False
        self.writable = True
        """False from the moment the write buffer passes HIGH_WATER until it is below LOW_WATER."""
        self._buffer = bytearray()
        self._out: list[bytes] = []
        self._out_octets = 0
        self._flushing = False
        self._linger: asyncio.TimerHandle | None = None
        self._pauses: set[str] = set()
        self._postponed: set[str] = set()
        """Those of `_pauses` for which the socket is read all the same."""
        self._turn = 0
        """Bytes handled since the others had their turn."""
        self._stall: asyncio.TimerHandle | None = None
        self._ended = False
        """The end of our stream is said; nothing may follow it."""
        self.more = False
        """Set by `received`: it has left whole packets in the buffer, for the others to have their turn."""
        self._holding = False
        """The crowd counts what is unfinished here."""

    # what a protocol overrides

    def received(self, buffer: bytearray) -> int:
        """Handle the whole packets in `buffer`, all or, with `more`, as many as may be handled in one turn; returns
        how many bytes of it are used up. Must not raise."""
        raise NotImplementedError

    def lost(self, error: Exception | None) -> None:
        """The connection is gone, whoever ended it. Called once."""

    def writable_changed(self) -> None:
        """`writable` has changed."""

    def flushed(self) -> None:
        """What was queued is written, or in the write buffer if the peer is slow (see `writable`)."""

    def unfinished(self) -> int:
        """Bytes that are held for what is not whole yet."""
        return len(self._buffer)

    def cut_off(self, why: str) -> None:
        """It had to go for the sake of the others: see `Crowd`."""
        self.abort()

    # what a protocol uses

    def send(self, data: bytes) -> None:
        """Queue for the one write of this turn of the loop."""
        self._out.append(data)
        self._out_octets += len(data)
        if not self._flushing:
            self._flushing = True
            self.loop.call_soon(self._flush)

    def send_all(self, parts: list[bytes]) -> None:
        """As `send`, for many parts."""
        self._out += parts
        self._out_octets += sum(map(len, parts))
        if not self._flushing:
            self._flushing = True
            self.loop.call_soon(self._flush)

    def buffered(self) -> int:
        """Bytes that the peer has not taken yet."""
        return self._out_octets + (self.transport.get_write_buffer_size() if self.transport else 0)

    def close(self) -> None:
        """Write what is queued and end the stream; a peer that does not end its own is cut off after LINGER_SECONDS.
        What arrives meanwhile is read and passed over: closing a socket with unread bytes is a reset, which may
        take from the peer what it was told last."""
        if self.closing:
            return
        self.closing = True
        self.crowd.part(self)
        self._flush()
        self._buffer.clear()
        self._ended = True
        if self.transport and not self.transport.is_closing():
            if self._pauses:
                self.transport.resume_reading()
            if self.transport.can_write_eof():
                self.transport.write_eof()
            else:
                self.transport.close()
            self._linger = self.loop.call_later(LINGER_SECONDS, self.transport.abort)

    def abort(self) -> None:
        """Close at once, whatever is queued."""
        self.closing = True
        self.crowd.part(self)
        self._buffer.clear()
        if self.transport:
            self.transport.abort()

    def pause(self, reason: str) -> None:
        """Stop reading until `resume` was called for each reason."""
        if self.closing:
            return  # what comes now is passed over
        if not self._pauses - self._postponed and self.transport and not self.transport.is_closing():
            self.transport.pause_reading()
        self._pauses.add(reason)
        self._postponed.discard(reason)

    def postpone(self, reason: str) -> None:
        """As `pause`, but the end of the connection is still noticed, unless its peer has sent much more: for what is
        not worth doing when the peer has gone. Whatever comes meanwhile waits."""
        if self.closing or reason in self._pauses:
            return
        if len(self._buffer) > POSTPONED_OCTETS:
            self.pause(reason)
            return
        self._pauses.add(reason)
        self._postponed.add(reason)

    def resume(self, reason: str) -> None:
        if reason not in self._pauses:
            return
        self._pauses.discard(reason)
        self._postponed.discard(reason)
        if self.transport and not self.closing and not self.transport.is_closing():
            if not self._pauses - self._postponed:
                self.transport.resume_reading()
            if not self._pauses and self._buffer:
                self.loop.call_soon(self._handle)

    @property
    def paused(self) -> bool:
        return bool(self._pauses)

    # what asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        if self.closing:  # it was over before it began
            self.transport.abort()
        self.transport.set_write_buffer_limits(high=HIGH_WATER, low=LOW_WATER)
        peer: Any = transport.get_extra_info("peername")
        self.peer = f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else str(peer or "")
        self.counters.connections += 1
        self.counters.connections_total += 1
        self.crowd.join(self)

    def data_received(self, data: bytes) -> None:
        self.counters.octets_in += len(data)
        if self.closing:
            return
        self._buffer += data
        if self._postponed and len(self._buffer) > POSTPONED_OCTETS:
            for reason in list(self._postponed):
                self.pause(reason)
        self._handle()
        if not self._pauses:
            self._count_unfinished()
        self._turn += len(data)
        if self._turn >= TURN_OCTETS:
            self._take_turns()
        if not self.writable and not self._stall and self.buffered() > UNREAD_OCTETS:
            self.pause("unread")
            self._stall = self.loop.call_later(STALL_SECONDS, self._stalled, self.buffered())

    def _handle(self) -> None:
        if self.closing or self._pauses or not self._buffer:
            return
        used = self.received(self._buffer)
        if used:
            del self._buffer[:used]
        if self.more:
            self._take_turns()

    def _take_turns(self) -> None:
        """The others first."""
        self._turn = 0
        self.more = False
        self.pause("turn")
        self.loop.call_soon(self._next_turn)

    def _next_turn(self) -> None:
        """Nothing is read before what was read is handled, or the buffer would grow without end."""
        if self._pauses == {"turn"} and self._buffer and not self.closing:
            used = self.received(self._buffer)
            del self._buffer[:used]
            if self.more:
                self._take_turns()
                return
        self.resume("turn")

    def _count_unfinished(self) -> None:
        """While it is paused nothing is its fault, so then this is not called."""
        octets = self.unfinished()
        if octets >= SMALL_OCTETS or self._holding:
            self._holding = octets >= SMALL_OCTETS
            self.crowd.hold(self, octets)

    def connection_lost(self, exc: Exception | None) -> None:
        self.closing = True
        self.crowd.leave(self)
        for timer in (self._linger, self._stall):
            if timer:
                timer.cancel()
        self.counters.connections -= 1
        self._out = []
        self._out_octets = 0
        self.lost(exc)

    def pause_writing(self) -> None:
        self.writable = False
        self.writable_changed()

    def resume_writing(self) -> None:
        self.writable = True
        if self._stall:
            self._stall.cancel()
            self._stall = None
            self.resume("unread")
        self.writable_changed()

    def _stalled(self, before: int) -> None:
        """It was paused because its peer reads no answers: that must go on."""
        left = self.buffered()
        if left < before:
            self._stall = self.loop.call_later(STALL_SECONDS, self._stalled, left)
        else:
            self.counters.refusals["stalled"] += 1
            self.abort()

    def _flush(self) -> None:
        self._flushing = False
        parts, self._out = self._out, []
        octets, self._out_octets = self._out_octets, 0
        if parts and self.transport and not self._ended and not self.transport.is_closing():
            self.counters.octets_out += octets
            if len(parts) > MAX_PARTS:
                parts = [b"".join(parts)]
            self.transport.writelines(parts)
            self.flushed()


def keep_alive(sockets: Iterable[socket.socket], seconds: float) -> None:
    """Whoever connects to these listening sockets is asked by the kernel whether it is still there when nothing came
    for so long, and again four times in as long; without an answer the connection is lost. 0 for never."""
    idle = max(1, round(seconds))
    for listener in sockets:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, int(seconds > 0))
        if seconds > 0:
            # Those that are accepted inherit it.
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle)
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, max(1, idle // 4))
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)
