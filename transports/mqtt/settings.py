"""Owns MqttSettings: what the configuration can say about an MQTT listener, with every default.

Its rule: settings are data, checked when they are read.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from gateway.address import Address
from gateway.model.policy import DISCARD, Octets, QueuePolicy, Seconds
from gateway.net.proxy import ProxiedBy
from gateway.net.tls import TlsSettings
from gateway.net.websocket import WebSocketSettings


class MqttSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An MQTT listener, 3.1.1 and 5.0 on one port.

    listen: host:port. allow_anonymous: clients without a user name are let in although there are users, and the
    listener may be reached from elsewhere although there are none.
    connect_timeout: seconds until CONNECT must be whole. max_keep_alive: seconds; longer ones of MQTT 5 clients
    are cut to it (Server Keep Alive), 0 leaves all as they are. tcp_keep_alive: seconds of silence after which the
    kernel asks whether a client is still there, 0 for never; for those without a keep-alive of their own.
    max_packet_size: the largest packet a client may send. receive_maximum: how many QoS 1 messages a client may
    send ahead of their PUBACKs. max_in_flight: how many we send ahead of a client's PUBACKs.
    topic_alias_maximum: how many topic aliases a client may give, and how many we give to it if it takes so many.
    max_session_expiry: seconds a session is kept for an absent client; 3.1.1 sessions without clean session are
    kept so long. max_messages, max_bytes: of one session's or share's queue, which then drops its oldest.
    max_buffered: bytes that wait for a slow reader; beyond it QoS 0 messages are dropped.
    max_connections: clients at one time; beyond it CONNACK says so, and of those that never say who they are the
    earliest is cut off. max_unfinished: bytes of packets that have begun and are not whole, of all clients together;
    beyond it the client is cut off that has taken longest.
    max_subscriptions: of one client. max_topic_levels: of a topic name that a client publishes to.
    check_payload_format: a payload that its PUBLISH calls UTF-8 text, and that is none, is refused.
    response_information: what CONNACK says to an MQTT 5 client that asks for it, e.g. where answers should go; "":
    nothing. server_reference: where a stopping daemon sends MQTT 5 clients: host:port; "": nowhere else.
    proxy_protocol: every connection comes from a proxy that says whose it is (PROXY protocol, version 2); not together
    with tls, which then is the proxy's. trusted_proxies: addresses and networks of these proxies, as in
    [192.0.2.7, "2001:db8::/64"]; by default only those on this machine. Anybody else is cut off.
    tls: encrypts (`mqtts`, `wss`). websocket: packets come in WebSocket messages (`ws`, `wss`); the port serves nothing
    else.
    """

    type: str = "mqtt"
    listen: Address = Address.parse("127.0.0.1:1883")
    tls: TlsSettings | None = None
    websocket: WebSocketSettings | None = None
    allow_anonymous: bool = False
    connect_timeout: Seconds = Seconds(10)
    max_keep_alive: Seconds = Seconds(0)
    tcp_keep_alive: Seconds = Seconds(60)
    max_packet_size: Octets = Octets(1 << 20)
    receive_maximum: Annotated[int, msgspec.Meta(ge=1, le=65_535)] = 1000
    max_in_flight: Annotated[int, msgspec.Meta(ge=1, le=16_384)] = 1000
    max_session_expiry: Seconds = Seconds(7 * 86400)
    max_messages: Annotated[int, msgspec.Meta(ge=1)] = 100_000
    max_bytes: Octets = Octets(64 << 20)
    max_buffered: Octets = Octets(1 << 20)
    max_connections: Annotated[int, msgspec.Meta(ge=1)] = 10_000
    max_unfinished: Octets = Octets(64 << 20)
    max_sessions: Annotated[int, msgspec.Meta(ge=1)] = 100_000
    topic_alias_maximum: Annotated[int, msgspec.Meta(ge=0, le=65_535)] = 16
    check_payload_format: bool = False
    response_information: str = ""
    server_reference: str = ""
    proxy_protocol: bool = False
    trusted_proxies: tuple[str, ...] = ("127.0.0.0/8", "::1")
    max_subscriptions: Annotated[int, msgspec.Meta(ge=1)] = 1000
    max_topic_levels: Annotated[int, msgspec.Meta(ge=1, le=128)] = 128

    def __post_init__(self) -> None:
        if not 1024 <= self.max_packet_size <= 268_435_460:
            raise ValueError("max_packet_size must be from 1KB to 256MB")
        if self.max_unfinished < self.max_packet_size:
            raise ValueError("max_unfinished must be at least max_packet_size")
        if self.max_keep_alive > 65_535:
            raise ValueError("max_keep_alive must be at most 65535s")
        if self.proxy_protocol and self.tls is not None:
            raise ValueError("proxy_protocol and tls do not go together; let the proxy have the certificate")
        try:
            ProxiedBy(self.trusted_proxies)
        except ValueError as error:
            raise ValueError(f"trusted_proxies: {error}; write an address, or a network as 192.0.2.0/24") from error
        for key in ("connect_timeout", "max_bytes", "max_buffered"):
            if getattr(self, key) <= 0:
                raise ValueError(f"{key} must be above 0")

    def session_policy(self, durable: bool) -> QueuePolicy:
        """What the queue of a session or a share promises (rulings 12, 14 and 20)."""
        return QueuePolicy(
            durable=durable,
            max_deliveries=None,
            dead_letter=DISCARD,
            max_messages=self.max_messages,
            max_bytes=self.max_bytes,
            overflow="drop-oldest",
        )
