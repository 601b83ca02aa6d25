"""Owns AmqpPeer: an AMQP 0-9-1 client of one channel that shows all that happens, and can vanish.

Its rule: it hides nothing. It sends what a test says and calls back in the order in which frames came.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from pamqp import base, body, commands, frame, header, heartbeat

from tests.harness.process import Address

T = TypeVar("T", bound=base.Frame)
SECONDS = 20.0
CHANNEL = 1


class Delivered(NamedTuple):
    tag: int
    redelivered: bool
    routing_key: str
    headers: dict[str, Any]
    body: bytes


class AmqpPeer(asyncio.Protocol):
    """Made by `connect`. `on_delivery` gets each delivery, `on_confirm` the token of each confirmed publish and
    whether it was an ack; both may use the peer."""

    def __init__(self) -> None:
        self.on_delivery: Callable[[Delivered], None] = lambda delivered: None
        self.on_confirm: Callable[[Any, bool], None] = lambda token, stored: None
        self.lost = asyncio.Event()
        self._transport: asyncio.WriteTransport | None = None
        self._buffer = bytearray()
        self._answers: asyncio.Queue[Any] = asyncio.Queue()
        self._method: commands.Basic.Deliver | None = None
        self._header: header.ContentHeader | None = None
        self._body = b""
        self._published = 0
        self._unconfirmed: dict[int, Any] = {}

    @classmethod
    async def connect(cls, address: Address, confirm: bool = True) -> AmqpPeer:
        """With channel 1 open, in confirm mode unless told otherwise."""
        loop = asyncio.get_running_loop()
        _, peer = await loop.create_connection(cls, *address)
        peer._write(b"AMQP\x00\x00\x09\x01")
        await peer._answer(commands.Connection.Start)
        peer._send(commands.Connection.StartOk({}, "PLAIN", "\x00guest\x00guest", "en_US"), 0)
        tune = await peer._answer(commands.Connection.Tune)
        peer._send(commands.Connection.TuneOk(tune.channel_max, tune.frame_max, 0), 0)
        peer._send(commands.Connection.Open("/"), 0)
        await peer._answer(commands.Connection.OpenOk)
        await peer.call(commands.Channel.Open(), commands.Channel.OpenOk)
        if confirm:
            await peer.call(commands.Confirm.Select(), commands.Confirm.SelectOk)
        return peer

    async def call(self, method: base.Frame, answer: type[T]) -> T:
        """Sends a method on the channel and gives its answer. Raises ConnectionError for any other answer."""
        self._send(method, CHANNEL)
        return await self._answer(answer)

    async def consume(self, queue: str, prefetch: int, **options: Any) -> None:
        await self.call(commands.Basic.Qos(prefetch_count=prefetch), commands.Basic.QosOk)
        await self.call(commands.Basic.Consume(queue=queue, **options), commands.Basic.ConsumeOk)

    async def depth(self, queue: str) -> int:
        """Messages that wait there, not those in flight."""
        ok = await self.call(commands.Queue.Declare(queue=queue, passive=True), commands.Queue.DeclareOk)
        assert ok.message_count is not None
        return ok.message_count

    def publish(self, routing_key: str, content: bytes, token: Any = None, exchange: str = "amq.topic") -> None:
        """Persistent; `token` comes back with its confirm."""
        self._published += 1
        self._unconfirmed[self._published] = token
        properties = commands.Basic.Properties(delivery_mode=2)
        self._write(
            frame.marshal(commands.Basic.Publish(exchange=exchange, routing_key=routing_key), CHANNEL)
            + frame.marshal(header.ContentHeader(0, len(content), properties), CHANNEL)
            + frame.marshal(body.ContentBody(content), CHANNEL)
        )

    def ack(self, tag: int, multiple: bool = False) -> None:
        self._write(struct.pack("!BHIHHQBB", 1, CHANNEL, 13, 60, 80, tag, multiple, 0xCE))

    def nack(self, tag: int, requeue: bool) -> None:
        self._send(commands.Basic.Nack(tag, False, requeue), CHANNEL)

    def vanish(self) -> None:
        """As a process that was killed: no close, no goodbye."""
        if self._transport:
            self._transport.abort()

    async def close(self) -> None:
        """In good order; also for a peer that is gone."""
        if self._transport and not self._transport.is_closing() and not self.lost.is_set():
            self._send(commands.Connection.Close(200, "bye", 0, 0), 0)
            async with asyncio.timeout(SECONDS):
                await self.lost.wait()
        self.vanish()

    # what comes in

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set()
        self._answers.put_nowait(None)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        start = 0
        while len(self._buffer) - start >= 7:
            end = start + 8 + int.from_bytes(self._buffer[start + 3 : start + 7], "big")
            if len(self._buffer) < end:
                break
            _, _, value = frame.unmarshal(bytes(self._buffer[start:end]))
            start = end
            self._frame(value)
        del self._buffer[:start]

    def _frame(self, value: Any) -> None:
        if isinstance(value, commands.Basic.Deliver):
            self._method, self._body = value, b""
        elif isinstance(value, header.ContentHeader):
            self._header = value
            self._complete()
        elif isinstance(value, body.ContentBody):
            self._body += value.value
            self._complete()
        elif isinstance(value, (commands.Basic.Ack, commands.Basic.Nack)):
            self._confirmed(value.delivery_tag, value.multiple, isinstance(value, commands.Basic.Ack))
        elif isinstance(value, commands.Connection.CloseOk):
            self.vanish()
        elif not isinstance(value, heartbeat.Heartbeat):
            self._answers.put_nowait(value)

    def _complete(self) -> None:
        method, head = self._method, self._header
        if method and head and len(self._body) >= head.body_size:
            self._method = self._header = None
            assert method.delivery_tag is not None and method.routing_key is not None
            headers = dict(head.properties.headers or {})
            redelivered = bool(method.redelivered)
            self.on_delivery(Delivered(method.delivery_tag, redelivered, method.routing_key, headers, self._body))

    def _confirmed(self, tag: int, multiple: bool, stored: bool) -> None:
        tags = [t for t in self._unconfirmed if t <= tag] if multiple else [tag]
        for each in tags:
            self.on_confirm(self._unconfirmed.pop(each), stored)

    async def _answer(self, kind: type[T]) -> T:
        async with asyncio.timeout(SECONDS):
            value = await self._answers.get()
        if not isinstance(value, kind):
            raise ConnectionError(f"expected {kind.__name__}, got {dict(value) if value else 'the end'} {value!r}")
        return value

    def _send(self, method: base.Frame, channel: int) -> None:
        self._write(frame.marshal(method, channel))

    def _write(self, data: bytes) -> None:
        if self._transport and not self._transport.is_closing():
            self._transport.write(data)
