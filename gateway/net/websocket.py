"""Owns WebSocket for listeners: a connection whose octets come and go in binary messages (RFC 6455).

Its rule: the protocol inside sees an asyncio transport and knows nothing of frames; what is no WebSocket for it is
refused before it hears of an octet.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any, cast

import msgspec
from wsproto import ConnectionType, WSConnection
from wsproto.connection import ConnectionState
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Ping,
    RejectConnection,
    Request,
    TextMessage,
)
from wsproto.frame_protocol import CloseReason
from wsproto.utilities import RemoteProtocolError

from gateway.model.counters import TransportCounters
from gateway.net.origin import why_refused

MAX_UNREAD_PONGS = 64 << 10
"""With more octets on their way a ping is not answered: who does not read need not be told that we are here."""


class WebSocketSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """path: the only one that is served. origins: of the pages that may connect, as browsers tell them
    (`https://app.example.com`); empty: any, but where clients on loopback need not say who they are: there only those
    of this machine."""

    path: str = "/mqtt"
    origins: tuple[str, ...] = ()


class WebSocket(asyncio.Protocol):
    """One connection. `inside` is the protocol that talks through it. Whoever asks for another path or subprotocol,
    or comes from another origin, is counted in `counters.refusals` as `no-websocket`."""

    def __init__(
        self,
        inside: asyncio.Protocol,
        settings: WebSocketSettings,
        subprotocol: str,
        counters: TransportCounters,
        is_private: Callable[[], bool],
    ) -> None:
        self._inside = inside
        self._settings = settings
        self._subprotocol = subprotocol
        self._counters = counters
        self._is_private = is_private
        self._frames = WSConnection(ConnectionType.SERVER)
        self._socket: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._socket = cast(asyncio.Transport, transport)
        self._inside.connection_made(_Inner(self._socket, self))

    def connection_lost(self, exc: Exception | None) -> None:
        self._inside.connection_lost(exc)

    def pause_writing(self) -> None:
        self._inside.pause_writing()

    def resume_writing(self) -> None:
        self._inside.resume_writing()

    def data_received(self, data: bytes) -> None:
        try:
            self._frames.receive_data(data)
            for event in self._frames.events():
                self._on(event)
                if self._socket.is_closing():
                    return
        except RemoteProtocolError as error:
            self._counters.protocol_errors["websocket"] += 1
            if error.event_hint is not None:
                self._send(error.event_hint)
            self._socket.close()

    def _on(self, event: Event) -> None:
        if isinstance(event, BytesMessage):
            self._inside.data_received(bytes(event.data))
        elif isinstance(event, Request):
            self._on_request(event)
        elif isinstance(event, Ping):
            if self._socket.get_write_buffer_size() <= MAX_UNREAD_PONGS:
                self._send(event.response())
        elif isinstance(event, CloseConnection):
            if self._frames.state is ConnectionState.REMOTE_CLOSING:
                self._send(event.response())
            elif self._frames.state is ConnectionState.OPEN:  # the peer has said nothing of it: its frames are wrong
                self._counters.protocol_errors["websocket"] += 1
                self._send(CloseConnection(event.code, event.reason))
            self._socket.close()
        elif isinstance(event, TextMessage):  # [MQTT-6.0.0-1]
            self._counters.protocol_errors["websocket"] += 1
            self._send(CloseConnection(CloseReason.UNSUPPORTED_DATA, "binary messages only"))
            self._socket.close()

    def _on_request(self, request: Request) -> None:
        # One that is no ASCII is no origin [RFC 6454]; it must not pass for a request without one.
        said = next((value for name, value in request.extra_headers if name == b"origin"), None)
        origin = None if said is None else said.decode("ascii", "backslashreplace")
        status = 0
        if request.target.partition("?")[0] != self._settings.path:
            status = 404
        elif self._settings.origins:
            status = 0 if origin in self._settings.origins else 403
        elif self._is_private() and why_refused(None, origin):
            status = 403
        if not status and self._subprotocol not in request.subprotocols:  # [MQTT-6.0.0-3]
            status = 400
        if not status:
            self._send(AcceptConnection(subprotocol=self._subprotocol))  # [MQTT-6.0.0-4]
            return
        self._counters.refusals["no-websocket"] += 1
        self._send(RejectConnection(status_code=status, headers=[(b"content-length", b"0"), (b"connection", b"close")]))
        self._socket.close()

    def _send(self, event: Event) -> None:
        self._socket.write(self._frames.send(event))

    # what the protocol inside asks for

    def write(self, data: bytes) -> None:
        if self._frames.state is ConnectionState.OPEN:
            self._send(BytesMessage(data=data))

    def end(self) -> None:
        """Says that nothing more follows; the peer then ends the connection."""
        if self._frames.state is ConnectionState.OPEN:
            self._send(CloseConnection(CloseReason.NORMAL_CLOSURE))
        else:
            self._socket.close()


class _Inner(asyncio.Transport):
    """The transport that the protocol inside sees."""

    def __init__(self, socket: asyncio.Transport, websocket: WebSocket) -> None:
        super().__init__()
        self._socket = socket
        self._websocket = websocket

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._socket.get_extra_info(name, default)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._websocket.write(bytes(data))

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        self._websocket.write(b"".join(list_of_data))

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self._websocket.end()

    def close(self) -> None:
        self._websocket.end()

    def abort(self) -> None:
        self._socket.abort()

    def is_closing(self) -> bool:
        return self._socket.is_closing()

    def pause_reading(self) -> None:
        self._socket.pause_reading()

    def resume_reading(self) -> None:
        self._socket.resume_reading()

    def is_reading(self) -> bool:
        return self._socket.is_reading()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._socket.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        return self._socket.get_write_buffer_size()


def wrapped(
    make: Callable[[], asyncio.Protocol],
    settings: WebSocketSettings | None,
    subprotocol: str,
    counters: TransportCounters,
    is_private: Callable[[], bool],
) -> Callable[[], asyncio.Protocol]:
    """`make`, or with settings the same inside of WebSockets. is_private: see `gateway.net.origin`."""
    if settings is None:
        return make
    return lambda: WebSocket(make(), settings, subprotocol, counters, is_private)
