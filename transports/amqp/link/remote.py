"""Owns Remote: one connection to a RabbitMQ, made with aio-pika, and what is declared there.

Its rule: it is up only when all that the configuration names has been declared on it, and it is never used again once
it is lost: the next one is a new Remote. (aio-pika's robust connection comes back by itself, and may do so without its
consumers.)
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import logging
from collections.abc import Callable

import aio_pika
import aiormq
import anyio
import anyio.to_thread
from aio_pika.connection import make_url
from aiormq.abc import AbstractConnection
from aiormq.exceptions import ChannelInvalidStateError
from pamqp.common import FieldTable

from gateway.logs import log
from gateway.net.remote_tls import remote_context
from gateway.net.tls import TlsError
from transports.amqp.link.channel import CLOSE_SECONDS
from transports.amqp.link.settings import AmqpClientSettings, RemoteTopology
from transports.amqp.link.wire import Wire

DISTRIBUTION = "mqtt-amqp-gateway"
for _library in ("aio_pika", "aiormq"):
    # What they log (a refused connection, a closed channel) is told here, by the name of the link.
    logging.getLogger(_library).setLevel(logging.CRITICAL)
ERRORS = (aiormq.AMQPError, ChannelInvalidStateError, TlsError, OSError, TimeoutError)
"""What may be wrong with a remote; anything else is a fault of ours."""
REFUSALS = (
    aiormq.exceptions.AuthenticationError,
    aiormq.exceptions.ProbableAuthenticationError,
    aiormq.exceptions.ConnectionClosed,
    aiormq.exceptions.AMQPChannelError,
    TlsError,
)
"""Of these, what a remote says that can be reached."""


class MismatchError(aiormq.exceptions.AMQPChannelError):
    """Something is there with other properties than the configuration says; the text names both."""


class Remote:
    """blocked: why the remote takes no messages from us at present, or "". why: the connection is lost, or "".
    changed: called when one of these has. suspicious: the remote ended the connection over what we sent."""

    def __init__(self, link: str, part: str, settings: AmqpClientSettings) -> None:
        self.blocked = ""
        self.why = ""
        self.suspicious = False
        self.changed: Callable[[], None] = lambda: None
        self._link = link
        self._part = part
        self._settings = settings
        self._wire: Wire | None = None
        self._client: aio_pika.Connection | None = None
        self._connection: AbstractConnection | None = None
        self._lost = asyncio.Event()

    @property
    def connection(self) -> AbstractConnection:
        """aiormq's, for channels of our own."""
        assert self._connection is not None, "it was opened"
        return self._connection

    async def open(self) -> None:
        """Raises one of ERRORS, and MismatchError."""
        settings, place = self._settings, self._settings.place
        tls = await anyio.to_thread.run_sync(remote_context, settings.tls) if place.encrypted else None
        self._wire = Wire(tls, self._on_blocked)
        username, password = settings.login
        url = make_url(
            host=place.host,
            port=place.port,
            login=username,
            password=password,
            virtualhost=place.vhost,
            ssl=place.encrypted,
            heartbeat=int(settings.heartbeat),
        )
        properties: FieldTable = {
            "connection_name": f"{self._link} ({self._part})",
            "product": DISTRIBUTION,
            "version": importlib.metadata.version(DISTRIBUTION),
            "information": "",
        }
        client = aio_pika.Connection(url, client_properties=properties)
        self._client = client
        client.kwargs["transport_factory"] = self._wire
        try:
            async with asyncio.timeout(float(settings.connect_timeout)):
                await client.connect()
        except TimeoutError:
            raise TimeoutError(f"no connection within {float(settings.connect_timeout):g} s") from None
        assert client.transport is not None
        self._connection = client.transport.connection
        self._connection.closing.add_done_callback(self._on_closing)
        await self.declare()

    async def declare(self) -> None:
        """All that the configuration names there. Raises one of ERRORS, and MismatchError."""
        topology = self._settings.topology
        if topology == RemoteTopology():
            return
        assert self._client is not None
        try:
            async with asyncio.timeout(float(self._settings.connect_timeout)):
                async with self._client.channel(publisher_confirms=False) as channel:
                    await _declare(channel, topology)
        except aiormq.exceptions.ChannelPreconditionFailed as error:
            raise MismatchError(f"the topology differs from what is there: {error}") from error
        except TimeoutError:
            raise TimeoutError("no answer to a declaration") from None

    async def lost(self) -> str:
        """Waits until the connection is lost; returns why."""
        await self._lost.wait()
        return self.why

    def lose(self, why: str) -> None:
        """Gives the connection up, as one that may hang: nothing more is sent or read."""
        if not self.why:
            self.why = why
            self._lost.set()
            self.changed()
        if self._wire is not None:
            self._wire.abort()

    @property
    def is_lost(self) -> bool:
        # The connection is closed before its channels are told, and what they answer depends on it.
        return bool(self.why) or self.connection.is_closed

    async def close(self) -> None:
        """With connection.close, if the remote still takes it; also when cancelled."""
        with anyio.CancelScope(shield=True):
            try:
                if self._client is not None:
                    async with asyncio.timeout(CLOSE_SECONDS):
                        await self._client.close()
            except ERRORS as error:
                log.debug("no clean end of a link", link=self._link, error=str(error))
            finally:
                if self._wire is not None:
                    self._wire.abort()

    # what is heard

    def _on_blocked(self, why: str) -> None:
        self.blocked = why
        self.changed()

    def _on_closing(self, closing: asyncio.Future[None]) -> None:
        error = None if closing.cancelled() else closing.exception()
        if isinstance(error, aiormq.exceptions.ConnectionClosed):
            # 320: it shuts down, or an operator ends the connection.
            self.suspicious = error.args[:1] not in ((320,), (0,))
        self.lose(
            f"connection lost: {str(error) or type(error).__name__}" if error is not None else "connection closed"
        )


async def _declare(channel: aio_pika.abc.AbstractChannel, topology: RemoteTopology) -> None:
    exchanges = {
        name: await channel.declare_exchange(
            name,
            exchange.type,
            durable=exchange.durable,
            auto_delete=exchange.auto_delete,
            internal=exchange.internal,
            arguments=exchange.arguments,
        )
        for name, exchange in topology.exchanges.items()
    }
    queues = {
        name: await channel.declare_queue(
            name, durable=queue.durable, auto_delete=queue.auto_delete, arguments=queue.arguments
        )
        for name, queue in topology.queues.items()
    }
    for binding in topology.bindings:
        # Bindings may lead from and to what others have declared.
        if binding.queue is not None:
            queue = queues.get(binding.queue) or await channel.get_queue(binding.queue, ensure=False)
            await queue.bind(binding.exchange, binding.key, arguments=binding.arguments)
        elif binding.to_exchange is not None:
            known = exchanges.get(binding.to_exchange)
            exchange = known or await channel.get_exchange(binding.to_exchange, ensure=False)
            await exchange.bind(binding.exchange, binding.key, arguments=binding.arguments)
