"""Owns AmqpListener: the socket that takes AMQP 0-9-1 clients, and the end of all their connections.

Its rule: stopping is a drain: no new clients, no new deliveries, time to settle, then connection.close 320.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
from typing import Annotated, ClassVar
from weakref import WeakKeyDictionary

import anyio
import msgspec

from gateway.address import Address
from gateway.errors import StoreError
from gateway.model.policy import Octets, Seconds
from gateway.net.connection_limits import Crowd
from gateway.net.door import Door
from gateway.net.sockets import open_port, urls
from gateway.net.tls import TlsSettings
from gateway.transport import Gateway
from transports.amqp.channel import Places
from transports.amqp.connection import AmqpConnection
from transports.amqp.names import MAX_SHORT
from transports.amqp.native import natives
from transports.amqp.topology import OWNER, Topology
from transports.amqp.vhost import Vhost

DISTRIBUTION = "mqtt-amqp-gateway"
CLOSE_SECONDS = 1.0
"""How long clients have to answer connection.close at the end of a drain."""

_topologies: WeakKeyDictionary[Gateway, Topology] = WeakKeyDictionary()
"""All listeners of a daemon share what clients have declared."""


class AmqpSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """listen: address. vhosts: virtual hosts besides `/`, each with queues and exchanges of its own; a queue `q` of the
    virtual host `blue` is `vhost.blue/q` to all but its clients. allow_anonymous: guest/guest may come in although
    users are configured, and the address may be beyond loopback although none are; without users guest/guest alone
    may come in.
    heartbeat: seconds proposed to clients, 0 for none. frame_max: bytes of the largest frame, at least 4096.
    channel_max: open channels of a connection, whatever their numbers. max_message_size: bytes of a body; above it
    channel error 311.
    connect_timeout: seconds from the TCP connection to connection.open. tcp_keep_alive: seconds of silence after which
    the kernel asks whether a client is still there, 0 for never; for those without heartbeats.
    max_connections: of this listener; beyond it connection.open is refused with 530, and of those that never come so
    far the earliest is cut off. max_unfinished: bytes of frames and bodies that have begun and are not whole, of all
    connections together; beyond it the connection is closed with 506 that has taken longest.
    max_all_channels: open at one time, of all connections of this listener together.
    max_queues, max_exchanges: that AMQP clients may declare, all together. max_queues_per_user, max_exchanges_per_user:
    of these one user, so that others have room; without `users` it does not count. max_bindings: of one queue, and of
    all exchanges to each other.
    max_unconfirmed: messages of a connection that wait for their commit before reading pauses, and of a
    transaction.
    max_unacked: deliveries of a channel that wait for their settlement, whatever its prefetch.
    max_consumers: of one connection. max_all_consumers: of all AMQP clients together.
    tls: encrypts (`amqps`). With `client_ca`, a client may log in by EXTERNAL: its certificate's common name is the
    user."""

    type: str = "amqp"
    listen: Address = Address.parse("127.0.0.1:5672")
    vhosts: tuple[str, ...] = ()
    tls: TlsSettings | None = None
    allow_anonymous: bool = False
    heartbeat: Seconds = Seconds(60)
    frame_max: Octets = Octets(131_072)
    channel_max: Annotated[int, msgspec.Meta(ge=1, le=65_535)] = 2047
    max_message_size: Octets = Octets(16 << 20)
    connect_timeout: Seconds = Seconds(10)
    tcp_keep_alive: Seconds = Seconds(60)
    max_connections: Annotated[int, msgspec.Meta(ge=1)] = 10_000
    max_unfinished: Octets = Octets(64 << 20)
    max_unconfirmed: Annotated[int, msgspec.Meta(ge=1)] = 20_000
    max_unacked: Annotated[int, msgspec.Meta(ge=1)] = 100_000
    max_all_channels: Annotated[int, msgspec.Meta(ge=1)] = 100_000
    max_consumers: Annotated[int, msgspec.Meta(ge=1)] = 1000
    max_all_consumers: Annotated[int, msgspec.Meta(ge=1)] = 100_000
    max_queues: Annotated[int, msgspec.Meta(ge=1)] = 10_000
    max_queues_per_user: Annotated[int, msgspec.Meta(ge=1)] = 5000
    max_exchanges: Annotated[int, msgspec.Meta(ge=1)] = 1000
    max_exchanges_per_user: Annotated[int, msgspec.Meta(ge=1)] = 500
    max_bindings: Annotated[int, msgspec.Meta(ge=1)] = 10_000

    def __post_init__(self) -> None:
        if not 4096 <= self.frame_max <= 1 << 24:
            raise ValueError("frame_max must be from 4096 to 16MB")
        if self.max_unfinished < max(self.frame_max, self.max_message_size):
            raise ValueError("max_unfinished must be at least frame_max and max_message_size")
        for name in self.vhosts:
            if not name or len(name.encode()) > MAX_SHORT or set(name) & set("/+#"):
                raise ValueError(f"vhosts: {name!r} is empty, too long or has one of / + #")
        if self.connect_timeout <= 0:
            raise ValueError("connect_timeout must be above 0")
        if self.heartbeat > 65_535:
            raise ValueError("heartbeat must be at most 65535 seconds")


class AmqpListener:
    """The transport type `amqp`."""

    Settings: ClassVar[type[msgspec.Struct]] = AmqpSettings

    def __init__(self, name: str, settings: AmqpSettings) -> None:
        self.name = name
        self.settings = settings
        self.connections: set[AmqpConnection] = set()

    async def run(self, gateway: Gateway) -> None:
        """Until cancelled. Raises ListenError, or StoreError if the kept state is not readable."""
        topology = _topology(gateway)
        topology.natives.add(self.name)
        for name in self.settings.vhosts:
            topology.add_vhost(Vhost(name))
        counters = gateway.counters(self.name)
        version = _version()
        crowd = Crowd(self.settings.max_connections, self.settings.max_unfinished, counters)
        places = Places(self.settings.max_all_channels)
        loop = asyncio.get_running_loop()

        def connect() -> AmqpConnection:
            return AmqpConnection(
                gateway, counters, crowd, topology, self.settings, self.name, version, self.connections, places
            )

        settings = self.settings
        door = Door(gateway, self.name, crowd, settings.connect_timeout)
        port = await open_port(gateway, door, settings.listen, connect, settings.tls, settings.tcp_keep_alive)
        try:
            gateway.started(self.name, urls(port, "amqp" if settings.tls is None else "amqps"))
            await loop.create_future()  # until cancelled
        finally:
            port.close()
            with anyio.CancelScope(shield=True):  # the drain must have its time although the caller is cancelled
                await self._drain(gateway)

    async def _drain(self, gateway: Gateway) -> None:
        if not self.connections:
            return
        waits = [connection.drain() for connection in self.connections]
        await asyncio.wait(waits, timeout=gateway.drain_timeout)
        for connection in list(self.connections):
            connection.end_forced()
        if self.connections:
            await asyncio.wait([c.gone for c in self.connections], timeout=CLOSE_SECONDS)
        for connection in list(self.connections):
            connection.abort()


def _topology(gateway: Gateway) -> Topology:
    topology = _topologies.get(gateway)
    if topology is None:
        try:
            topology = Topology(gateway.state(OWNER))
        except msgspec.MsgspecError as error:
            raise StoreError(f"what AMQP clients have declared can't be read: {error}") from error
        topology.natives = natives(gateway)
        stale = topology.stale(gateway.queues())
        for view in list(gateway.queues()):
            for binding in gateway.bindings(view.name):
                # A durable queue keeps its binding to an exchange that did not survive.
                if binding.owner == OWNER and not topology.may_have(binding.exchange):
                    gateway.unbind(binding)
        for onward in gateway.exchange_bindings():
            known = onward.otherwise or topology.may_have(onward.to)
            if onward.owner == OWNER and not (known and topology.may_have(onward.exchange)):
                gateway.unbind_exchange(onward)
        if stale:
            gateway.keep(stale)
        _topologies[gateway] = topology
    return topology


def _version() -> str:
    try:
        return importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
