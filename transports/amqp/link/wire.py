"""Owns Wire: the octets between a link's connection and aiormq, the library below aio-pika.

Its rule: what the library would lose or hide is told here, frame by frame. Properties reach us as they are on the wire:
pamqp forgets the widths and types of numbers. It also gives up a connection for a text that is no UTF-8, so that one
message could stop a link for ever: in an address such octets are replaced. connection.blocked and connection.unblocked
are heard: aiormq keeps them to itself.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import struct
from collections.abc import Callable
from typing import Any

from aiormq.connection import TransportFactory
from aiormq.exceptions import AMQPConnectionError
from pamqp import commands
from pamqp.header import ContentHeader
from yarl import URL

from transports.amqp.codec import HEADER, METHOD

FRAME_LIMIT = 16 << 20
"""Octets of a frame: a remote that announces more is no RabbitMQ that we can talk to."""
_HEAD = struct.Struct(">BHI")
_LENGTH = struct.Struct(">I")
_FIXED = 12
"""Octets of a content header before its properties: class, weight and size of the body."""
_HEADERS = 0x2000
_NAME = "raw"
_FIELD = bytes((len(_NAME),)) + _NAME.encode() + b"x"
_BLOCKED: bytes = commands.Connection.Blocked.index.to_bytes(4, "big")
_DELIVER: bytes = commands.Basic.Deliver.index.to_bytes(4, "big")
_UNBLOCKED: bytes = commands.Connection.Unblocked.index.to_bytes(4, "big")


UNREADABLE = b"\0"
"""In place of a routing key that is no UTF-8. It is no topic, so the message gets its topic as all those have it whose
key is none."""


def wrap(properties: bytes) -> bytes:
    """Properties of which pamqp makes one header, a byte array: these."""
    field = _FIELD + _LENGTH.pack(len(properties)) + properties
    return _HEADERS.to_bytes(2, "big") + _LENGTH.pack(len(field)) + field


def unwrap(header: ContentHeader) -> bytes:
    """The properties as they came."""
    headers: Any = header.properties.headers
    return bytes(headers[_NAME])


class Wire(TransportFactory):
    """Of one connection. `blocked` is told why RabbitMQ takes no messages from us at present, and "" when it does."""

    def __init__(self, tls: ssl.SSLContext | None, blocked: Callable[[str], None]) -> None:
        self._tls = tls
        self._blocked = blocked
        self._writer: asyncio.StreamWriter | None = None

    async def create(self, url: URL, **kwargs: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        try:
            reader, self._writer = await asyncio.open_connection(url.host, url.port, ssl=self._tls)
        except OSError as error:
            # Where the remote is stands in the log alone.
            raise AMQPConnectionError(_why(error)) from error
        frames: Any = _Frames(reader, self._blocked)  # all of a StreamReader that aiormq uses
        return frames, self._writer

    def abort(self) -> None:
        """Nothing more is sent or read; also for a connection that is closed."""
        if self._writer is not None:
            self._writer.transport.abort()


def _readable(deliver: bytes) -> bytes:
    """With UNREADABLE in place of an exchange or a routing key that is no UTF-8: aiormq would end the connection."""
    exchange = 4 + 1 + deliver[4] + 9
    key = exchange + 1 + deliver[exchange]
    parts = [deliver[:exchange]]
    for at in (exchange, key):
        raw = deliver[at + 1 : at + 1 + deliver[at]]
        try:
            raw.decode()
        except UnicodeDecodeError:
            raw = UNREADABLE
        parts.append(bytes((len(raw),)) + raw)
    return b"".join(parts) + deliver[-1:]


def _why(error: OSError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"TLS: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS: {(error.reason or 'failed').lower().replace('_', ' ')}"
    if error.errno is not None and error.errno > 0:
        return os.strerror(error.errno)
    return error.strerror or "no address of it can be reached"


class _Frames:
    """A StreamReader of whole frames."""

    def __init__(self, reader: asyncio.StreamReader, blocked: Callable[[str], None]) -> None:
        self._reader = reader
        self._blocked = blocked
        self._rest = b""

    def at_eof(self) -> bool:
        return not self._rest and self._reader.at_eof()

    async def read(self) -> bytes:
        rest, self._rest = self._rest, b""
        return rest + await self._reader.read()

    async def readexactly(self, count: int) -> bytes:
        if not self._rest:
            self._rest = await self._frame()
        piece, self._rest = self._rest[:count], self._rest[count:]
        return piece

    async def _frame(self) -> bytes:
        head = await self._reader.readexactly(_HEAD.size)
        if head.startswith(b"AMQP"):  # a server of another version says its own; aiormq tells so
            return head
        kind, channel, size = _HEAD.unpack(head)
        if size > FRAME_LIMIT:
            raise ConnectionError(f"the remote announced a frame of {size} bytes")
        payload = await self._reader.readexactly(size + 1)
        if kind == HEADER and size >= _FIXED:
            properties = wrap(payload[_FIXED:-1])
            head = _HEAD.pack(kind, channel, _FIXED + len(properties))
            return head + payload[:_FIXED] + properties + payload[-1:]
        if kind == METHOD and payload.startswith(_DELIVER):
            payload = _readable(payload)
            head = _HEAD.pack(kind, channel, len(payload) - 1)
        elif kind == METHOD and channel == 0:
            if payload.startswith(_BLOCKED):
                self._blocked(payload[5 : 5 + payload[4]].decode(errors="replace") or "no reason given")
            elif payload.startswith(_UNBLOCKED):
                self._blocked("")
        return head + payload
