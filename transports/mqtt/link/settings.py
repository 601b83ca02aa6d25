"""Owns MqttClientSettings: what the configuration can say about a link to a remote MQTT broker, with every default.

Its rule: settings are data, checked when they are read; a secret in them is never shown.
"""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple
from urllib.parse import unquote, urlsplit

import msgspec

from gateway.address import port_of
from gateway.model.policy import Octets, Seconds, SecondsRange
from gateway.model.topics import check_filter
from gateway.net.remote_tls import RemoteTls
from gateway.transport.outbox import OutboxPolicy

PORTS = {"mqtt": 1883, "mqtts": 8883, "ws": 80, "wss": 443}
DEFAULT_PATH = "/mqtt"
SHARE_PREFIX = "$share/"


class Place(NamedTuple):
    """Where a remote broker is, as its URL says. `path` is that of a WebSocket, "" for plain MQTT."""

    host: str
    port: int
    path: str
    encrypted: bool
    username: str | None
    password: str | None

    @classmethod
    def parse(cls, url: str) -> Place:
        """Raises ValueError, in words that do not repeat what may be a secret."""
        parts = urlsplit(url)
        if parts.scheme not in PORTS or not parts.hostname:
            raise ValueError("url: expected mqtt://, mqtts://, ws:// or wss:// and a host, as in mqtts://plant.example")
        port = port_of(parts, PORTS[parts.scheme])
        over_websocket = parts.scheme in ("ws", "wss")
        if not over_websocket and parts.path not in ("", "/"):
            raise ValueError("url: a path has a meaning for ws:// and wss:// only")
        path = (parts.path or DEFAULT_PATH) if over_websocket else ""
        if path and parts.query:
            path += f"?{parts.query}"
        return cls(
            parts.hostname,
            port,
            path,
            parts.scheme in ("mqtts", "wss"),
            unquote(parts.username) if parts.username is not None else None,
            unquote(parts.password) if parts.password is not None else None,
        )

    def __str__(self) -> str:
        """Without user, password and query, which may be secrets."""
        scheme = ("ws" if self.path else "mqtt") + ("s" if self.encrypted else "")
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{scheme}://{host}:{self.port}{self.path.partition('?')[0]}"


class MqttClientSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A link to a remote MQTT broker. It takes what `subscribe` matches there, and sends what routes have for it:
    `to: "LINK:TEMPLATE"`, where the template gives the topic there.

    url: mqtt, mqtts, ws or wss, host, port, for WebSockets a path; may hold user and password.
    version: 5, or 3.1.1, which has no properties, no hop count and no way to keep our own messages from coming back.
    client_id: without it one is made and kept in the store. username, password: before those of `url`.
    subscribe: topic filters, also `$share/NAME/FILTER`, in a session that the remote keeps for `session_expiry`.
    subscribe_qos: with 0 the remote keeps nothing while the link is down. unroutable: a queue for what no route takes;
    otherwise it is acknowledged and counted.
    qos: of what is published. 2 needs a link without `subscribe`. retain: the flag as the message has it, or always or
    never. outbox: the policy of the queue `link.NAME`, which holds what is to be published.
    max_in_flight: messages sent ahead of their PUBACKs; less if the remote takes less at one time.
    receive_maximum: messages that the remote may send ahead of our PUBACKs. max_packet_size: larger messages the remote
    does not send (both MQTT 5).
    max_hops: links that a message may have come by; what came by more is acknowledged, dropped and counted (MQTT 5).
    keep_alive: seconds after which a silent remote is asked whether it is there; after as long again it is not.
    connect_timeout: for each step of connecting. reconnect: pause before the next attempt, doubled from the first to
    the last, with jitter. required: /readyz says no while the link is down.
    """

    type: str = "mqtt-client"
    url: str
    version: Literal[5, "3.1.1"] = 5
    client_id: str = ""
    username: str | None = None
    password: str | None = None
    tls: RemoteTls | None = None
    subscribe: tuple[str, ...] = ()
    subscribe_qos: Literal[0, 1] = 1
    session_expiry: Seconds = Seconds(7 * 86400)
    unroutable: str | None = None
    qos: Literal[0, 1, 2] = 1
    retain: Literal["keep", "always", "never"] = "keep"
    outbox: OutboxPolicy = OutboxPolicy()
    max_in_flight: Annotated[int, msgspec.Meta(ge=1, le=16_384)] = 1000
    receive_maximum: Annotated[int, msgspec.Meta(ge=1, le=65_535)] = 100
    max_packet_size: Octets = Octets(1 << 20)
    max_hops: Annotated[int, msgspec.Meta(ge=1, le=100)] = 8
    keep_alive: Seconds = Seconds(30)
    connect_timeout: Seconds = Seconds(10)
    reconnect: SecondsRange = SecondsRange((1.0, 60.0))
    required: bool = False

    def __post_init__(self) -> None:
        place = Place.parse(self.url)
        if self.tls is not None and not place.encrypted:
            raise ValueError("tls: the url says no TLS; write mqtts:// or wss://")
        if self.password is not None and self.username is None and place.username is None:
            raise ValueError("password: needs a username")
        for number, filter in enumerate(self.subscribe):
            if why := check_filter(filter, mqtt=True):
                raise ValueError(f"subscribe[{number}]: {filter!r} {why}")
        if len(set(self.subscribe)) < len(self.subscribe):
            raise ValueError("subscribe: a filter stands twice")
        if self.qos == 2 and self.subscribe:
            raise ValueError(
                "qos: 2 needs a link of its own, without subscribe: in the session that subscriptions need, the remote "
                "would take a packet identifier that it remembers, used again after our restart, for the same message"
            )
        if not 1 <= self.keep_alive <= 65_535:
            raise ValueError("keep_alive: must be from 1s to 65535s")
        if self.connect_timeout <= 0 or self.reconnect[0] <= 0:
            raise ValueError("connect_timeout and reconnect must be above 0")
        if not 1024 <= self.max_packet_size < 1 << 28:  # what paho can say
            raise ValueError("max_packet_size must be from 1KB to below 256MB")
        if not 0 < self.session_expiry < (1 << 32) - 1:
            raise ValueError("session_expiry must be above 0 and below 136 years")

    @property
    def place(self) -> Place:
        return Place.parse(self.url)
