"""Owns AmqpClientSettings: what the configuration can say about a link to a RabbitMQ, with every default.

Its rule: settings are data, checked when they are read; a secret in them is never shown.
"""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple
from urllib.parse import unquote, urlsplit

import msgspec

from gateway.address import port_of
from gateway.model.policy import Seconds, SecondsRange
from gateway.model.topics import swap
from gateway.net.remote_tls import RemoteTls
from gateway.transport.outbox import OutboxPolicy
from transports.amqp.names import MAX_SHORT

PORTS = {"amqp": 5672, "amqps": 5671}


class Place(NamedTuple):
    """Where a RabbitMQ is, as its URL says."""

    host: str
    port: int
    vhost: str
    encrypted: bool
    username: str | None
    password: str | None

    @classmethod
    def parse(cls, url: str) -> Place:
        """Raises ValueError, in words that do not repeat what may be a secret."""
        parts = urlsplit(url)
        if parts.scheme not in PORTS or not parts.hostname:
            raise ValueError("url: expected amqp:// or amqps:// and a host, as in amqps://rabbit.example/vhost")
        port = port_of(parts, PORTS[parts.scheme])
        vhost = parts.path[1:]
        if "/" in vhost:
            raise ValueError("url: a virtual host is one word behind the host; a slash in its name is written %2F")
        if parts.query:
            raise ValueError("url: what stands behind the ? is a setting of its own, as in heartbeat: 30s")
        return cls(
            parts.hostname,
            port,
            unquote(vhost) or "/",
            parts.scheme == "amqps",
            unquote(parts.username) if parts.username is not None else None,
            unquote(parts.password) if parts.password is not None else None,
        )

    def __str__(self) -> str:
        """Without user and password, which may be secrets."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        vhost = "" if self.vhost == "/" else f"/{self.vhost}"
        return f"amqp{'s' if self.encrypted else ''}://{host}:{self.port}{vhost}"


class RemoteExchange(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An exchange there. type: direct, fanout, topic, headers or one that a plugin brings."""

    type: str = "topic"
    durable: bool = True
    auto_delete: bool = False
    internal: bool = False
    arguments: dict[str, Any] = {}


class RemoteQueue(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A queue there. arguments: as its clients write them, for example `x-queue-type: quorum`."""

    durable: bool = True
    auto_delete: bool = False
    arguments: dict[str, Any] = {}


class RemoteBinding(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """From an exchange there to a queue, or to another exchange. key: as RabbitMQ writes it, with dots."""

    exchange: str
    queue: str | None = None
    to_exchange: str | None = None
    key: str = ""
    arguments: dict[str, Any] = {}

    def __post_init__(self) -> None:
        if (self.queue is None) == (self.to_exchange is None):
            raise ValueError("a binding leads to a queue or to_exchange, one of them")


class RemoteTopology(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is declared there after each connection, before anything is consumed or published."""

    exchanges: dict[str, RemoteExchange] = {}
    queues: dict[str, RemoteQueue] = {}
    bindings: tuple[RemoteBinding, ...] = ()


class AmqpClientSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A link to a RabbitMQ. It consumes the queues that `consume` names, and publishes what routes have for it:
    `to: "LINK:EXCHANGE/TOPIC"`, a template. Up to its first slash it is the exchange; the rest is the routing key in
    the form of a topic: `rabbit:telemetry/line/{topic[1]}` publishes to the exchange `telemetry` with the key `line.7`.
    Without an exchange, `rabbit:/commands`, it is the name of a queue, as it is.

    url: amqp or amqps, host, port, virtual host (`%2F` for a slash in its name); may hold user and password.
    username, password: before those of `url`; guest and guest without either.
    topology: exchanges, queues and bindings to declare there after each connection. One that is there with other
    properties stops this link until it is changed on one of the two sides.
    consume: queues; each has a consumer and a channel of its own. prefetch: messages that each of them may send ahead
    of our acknowledgements. unroutable: a queue of ours for what no route takes; otherwise it is acknowledged and
    counted.
    outbox: the policy of the queue `link.NAME`, which holds what is to be published.
    max_in_flight: messages published ahead of their confirms. confirm_timeout: after so long without a confirm the
    connection is given up, and what had none is published again with the same message id; while RabbitMQ blocks
    publishers (memory or disk alarm) this time stands still.
    max_hops: links that a message may have come by; what came by more is rejected without requeue, and counted.
    heartbeat: seconds of silence after which the peer is asked whether it is there; it is lost after three times that.
    connect_timeout: for all of connecting, and for each answer of RabbitMQ to a declaration or a consume.
    reconnect: pause before the next attempt, doubled from the first to the last, with jitter; after a mismatch of the
    topology it is the last at once. required: /readyz says no while the link, or one of its consumers, is down.
    """

    type: str = "amqp-client"
    url: str
    username: str | None = None
    password: str | None = None
    tls: RemoteTls | None = None
    topology: RemoteTopology = RemoteTopology()
    consume: tuple[str, ...] = ()
    prefetch: Annotated[int, msgspec.Meta(ge=1, le=65_535)] = 200
    unroutable: str | None = None
    outbox: OutboxPolicy = OutboxPolicy()
    max_in_flight: Annotated[int, msgspec.Meta(ge=1, le=65_535)] = 1000
    confirm_timeout: Seconds = Seconds(30)
    max_hops: Annotated[int, msgspec.Meta(ge=1, le=100)] = 8
    heartbeat: Seconds = Seconds(10)
    connect_timeout: Seconds = Seconds(10)
    reconnect: SecondsRange = SecondsRange((1.0, 60.0))
    required: bool = False

    def __post_init__(self) -> None:
        place = Place.parse(self.url)
        if self.tls is not None and not place.encrypted:
            raise ValueError("tls: the url says no TLS; write amqps://")
        if self.password is not None and self.username is None and place.username is None:
            raise ValueError("password: needs a username")
        for number, queue in enumerate(self.consume):
            if not 0 < len(queue.encode()) <= MAX_SHORT:
                raise ValueError(f"consume[{number}]: the name of a queue has 1 to {MAX_SHORT} bytes")
        if len(set(self.consume)) < len(self.consume):
            raise ValueError("consume: a queue stands twice")
        if not 1 <= self.heartbeat <= 3600 or self.heartbeat % 1:
            raise ValueError("heartbeat: must be whole seconds from 1s to 1h")
        if min(self.connect_timeout, self.confirm_timeout, self.reconnect[0]) <= 0:
            raise ValueError("connect_timeout, confirm_timeout and reconnect must be above 0")

    @property
    def place(self) -> Place:
        return Place.parse(self.url)

    @property
    def login(self) -> tuple[str, str]:
        """User and password."""
        place = self.place
        username = self.username if self.username is not None else place.username
        password = self.password if self.password is not None else place.password
        return "guest" if username is None else username, "guest" if password is None else password


def check_target(template: str) -> str:
    """Why this is no place at a RabbitMQ, or ""."""
    exchange, slash, key = _without_variables(template).partition("/")
    if not slash:
        return 'says no exchange; write EXCHANGE/KEY, as in "telemetry/{topic}", or /QUEUE'
    if not exchange:
        return "" if key else "says no queue; write /QUEUE, or EXCHANGE/KEY"
    if "." in key:
        return "separate the words of a routing key by slashes, as in a topic; they go out as dots"
    return ""


def address(target: str) -> tuple[str, str]:
    """Exchange and routing key of a target whose template is filled in."""
    exchange, _, topic = target.partition("/")
    # The name of a queue is no topic: nothing in it changes places.
    return exchange, swap(topic) if exchange else topic


def _without_variables(template: str) -> str:
    """Each of them is one character, which is no slash and no dot."""
    text, inside = "", False
    for char in template.replace("{{", "_").replace("}}", "_"):
        if char == "}":
            inside = False
        elif char == "{":
            inside = True
            text += "_"
        elif not inside:
            text += char
    return text
