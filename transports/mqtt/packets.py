"""Owns the vocabulary of the wire: packet types, reason codes, properties, and one struct for each packet.

Its rule: a packet is data, the same for 3.1.1 and 5.0; what a version can't hold stays at its default.
"""

from __future__ import annotations

import enum
from typing import Any

import msgspec

from gateway.errors import GatewayError

V311 = 4
V5 = 5
BRIDGE = 0x80
"""Added to the protocol level by a bridge that speaks 3.1.1 or 3.1; 5.0 has options for what a bridge needs."""

Properties5 = dict[int, Any]
"""MQTT 5 properties of one packet by identifier; USER_PROPERTY holds a list of (name, value) in their order,
SUBSCRIPTION_IDENTIFIER a list of int."""
NO_PROPERTIES5: Properties5 = {}
"""Shared by all packets without properties; never changed."""


class Type(enum.IntEnum):
    """Control packet types [MQTT-2.1.2]."""

    CONNECT = 1
    CONNACK = 2
    PUBLISH = 3
    PUBACK = 4
    PUBREC = 5
    PUBREL = 6
    PUBCOMP = 7
    SUBSCRIBE = 8
    SUBACK = 9
    UNSUBSCRIBE = 10
    UNSUBACK = 11
    PINGREQ = 12
    PINGRESP = 13
    DISCONNECT = 14
    AUTH = 15


WILL = 16
"""Stands for the will's own property section where a packet type is asked for."""


class Reason(enum.IntEnum):
    """Reason codes of MQTT 5 [MQTT-2.4]; 3.1.1 has its own, see `RETURN_CODES`."""

    SUCCESS = 0x00
    GRANTED_QOS_1 = 0x01
    GRANTED_QOS_2 = 0x02
    DISCONNECT_WITH_WILL = 0x04
    NO_MATCHING_SUBSCRIBERS = 0x10
    NO_SUBSCRIPTION_EXISTED = 0x11
    CONTINUE_AUTHENTICATION = 0x18
    REAUTHENTICATE = 0x19
    UNSPECIFIED_ERROR = 0x80
    MALFORMED_PACKET = 0x81
    PROTOCOL_ERROR = 0x82
    IMPLEMENTATION_SPECIFIC_ERROR = 0x83
    UNSUPPORTED_PROTOCOL_VERSION = 0x84
    CLIENT_IDENTIFIER_NOT_VALID = 0x85
    BAD_USER_NAME_OR_PASSWORD = 0x86
    NOT_AUTHORIZED = 0x87
    SERVER_UNAVAILABLE = 0x88
    SERVER_BUSY = 0x89
    BANNED = 0x8A
    SERVER_SHUTTING_DOWN = 0x8B
    BAD_AUTHENTICATION_METHOD = 0x8C
    KEEP_ALIVE_TIMEOUT = 0x8D
    SESSION_TAKEN_OVER = 0x8E
    TOPIC_FILTER_INVALID = 0x8F
    TOPIC_NAME_INVALID = 0x90
    PACKET_IDENTIFIER_IN_USE = 0x91
    PACKET_IDENTIFIER_NOT_FOUND = 0x92
    RECEIVE_MAXIMUM_EXCEEDED = 0x93
    TOPIC_ALIAS_INVALID = 0x94
    PACKET_TOO_LARGE = 0x95
    MESSAGE_RATE_TOO_HIGH = 0x96
    QUOTA_EXCEEDED = 0x97
    ADMINISTRATIVE_ACTION = 0x98
    PAYLOAD_FORMAT_INVALID = 0x99
    RETAIN_NOT_SUPPORTED = 0x9A
    QOS_NOT_SUPPORTED = 0x9B
    USE_ANOTHER_SERVER = 0x9C
    SERVER_MOVED = 0x9D
    SHARED_SUBSCRIPTIONS_NOT_SUPPORTED = 0x9E
    CONNECTION_RATE_EXCEEDED = 0x9F
    MAXIMUM_CONNECT_TIME = 0xA0
    SUBSCRIPTION_IDENTIFIERS_NOT_SUPPORTED = 0xA1
    WILDCARD_SUBSCRIPTIONS_NOT_SUPPORTED = 0xA2

    @property
    def label(self) -> str:
        """As it stands in counters and logs: `packet-too-large`."""
        return self.name.lower().replace("_", "-")


RETURN_CODES: dict[Reason, int] = {
    Reason.SUCCESS: 0,
    Reason.UNSUPPORTED_PROTOCOL_VERSION: 1,
    Reason.CLIENT_IDENTIFIER_NOT_VALID: 2,
    Reason.BAD_USER_NAME_OR_PASSWORD: 4,
    Reason.BAD_AUTHENTICATION_METHOD: 5,
    Reason.NOT_AUTHORIZED: 5,
}
"""What CONNACK says to a 3.1.1 client [MQTT-3.2.2-4 of 3.1.1]; every other reason is 3, server unavailable."""
SERVER_UNAVAILABLE_311 = 3
FAILURE_311 = 0x80
"""The one failure that SUBACK has in 3.1.1."""


class Property(enum.IntEnum):
    """Property identifiers of MQTT 5 [MQTT-2.2.2.2]."""

    PAYLOAD_FORMAT_INDICATOR = 0x01
    MESSAGE_EXPIRY_INTERVAL = 0x02
    CONTENT_TYPE = 0x03
    RESPONSE_TOPIC = 0x08
    CORRELATION_DATA = 0x09
    SUBSCRIPTION_IDENTIFIER = 0x0B
    SESSION_EXPIRY_INTERVAL = 0x11
    ASSIGNED_CLIENT_IDENTIFIER = 0x12
    SERVER_KEEP_ALIVE = 0x13
    AUTHENTICATION_METHOD = 0x15
    AUTHENTICATION_DATA = 0x16
    REQUEST_PROBLEM_INFORMATION = 0x17
    WILL_DELAY_INTERVAL = 0x18
    REQUEST_RESPONSE_INFORMATION = 0x19
    RESPONSE_INFORMATION = 0x1A
    SERVER_REFERENCE = 0x1C
    REASON_STRING = 0x1F
    RECEIVE_MAXIMUM = 0x21
    TOPIC_ALIAS_MAXIMUM = 0x22
    TOPIC_ALIAS = 0x23
    MAXIMUM_QOS = 0x24
    RETAIN_AVAILABLE = 0x25
    USER_PROPERTY = 0x26
    MAXIMUM_PACKET_SIZE = 0x27
    WILDCARD_SUBSCRIPTION_AVAILABLE = 0x28
    SUBSCRIPTION_IDENTIFIER_AVAILABLE = 0x29
    SHARED_SUBSCRIPTION_AVAILABLE = 0x2A


class ProtocolError(GatewayError):
    """The peer sent what the protocol forbids; `reason` is what its connection is closed with."""

    def __init__(self, reason: Reason, why: str) -> None:
        super().__init__(why)
        self.reason = reason
        self.why = why


class _Struct(msgspec.Struct, frozen=True, gc=False):
    pass


class Will(_Struct, frozen=True):
    topic: str
    payload: bytes
    qos: int = 0
    retain: bool = False
    properties: Properties5 = NO_PROPERTIES5


class Connect(_Struct, frozen=True):
    client_id: str
    version: int = V5
    clean_start: bool = True
    keep_alive: int = 0
    """Seconds, 0 for none."""
    will: Will | None = None
    username: str | None = None
    password: bytes | None = None
    properties: Properties5 = NO_PROPERTIES5
    bridge: bool = False
    """Another broker: what it is sent says whether it was retained, and nothing comes back that it has sent."""


class ConnAck(_Struct, frozen=True):
    reason: Reason = Reason.SUCCESS
    session_present: bool = False
    properties: Properties5 = NO_PROPERTIES5


class Publish(_Struct, frozen=True):
    topic: str
    payload: bytes
    qos: int = 0
    retain: bool = False
    dup: bool = False
    packet_id: int = 0
    """0 for QoS 0, which has none."""
    properties: Properties5 = NO_PROPERTIES5


class Ack(_Struct, frozen=True):
    """PUBACK, PUBREC, PUBREL and PUBCOMP."""

    type: Type
    packet_id: int
    reason: int = 0
    properties: Properties5 = NO_PROPERTIES5


class Request(_Struct, frozen=True):
    """One topic filter of a SUBSCRIBE and its options."""

    filter: str
    qos: int = 0
    no_local: bool = False
    retain_as_published: bool = False
    retain_handling: int = 0
    """0: send retained messages, 1: only if the subscription is new, 2: don't."""


class Subscribe(_Struct, frozen=True):
    packet_id: int
    requests: tuple[Request, ...]
    properties: Properties5 = NO_PROPERTIES5


class SubAck(_Struct, frozen=True):
    packet_id: int
    reasons: tuple[int, ...]
    properties: Properties5 = NO_PROPERTIES5


class Unsubscribe(_Struct, frozen=True):
    packet_id: int
    filters: tuple[str, ...]
    properties: Properties5 = NO_PROPERTIES5


class UnsubAck(_Struct, frozen=True):
    packet_id: int
    reasons: tuple[int, ...] = ()
    """One for each filter; 3.1.1 sends none."""
    properties: Properties5 = NO_PROPERTIES5


class PingReq(_Struct, frozen=True):
    pass


class PingResp(_Struct, frozen=True):
    pass


class Disconnect(_Struct, frozen=True):
    reason: int = 0
    properties: Properties5 = NO_PROPERTIES5


class Auth(_Struct, frozen=True):
    reason: int = 0
    properties: Properties5 = NO_PROPERTIES5


class Fault(_Struct, frozen=True):
    """No packet: what the decoder found wrong at this place of the stream; nothing follows it."""

    reason: Reason
    why: str
    version: int = 0
    """The version to answer in; 0 if the peer speaks no MQTT and gets no answer."""


Packet = (
    Connect
    | ConnAck
    | Publish
    | Ack
    | Subscribe
    | SubAck
    | Unsubscribe
    | UnsubAck
    | PingReq
    | PingResp
    | Disconnect
    | Auth
)
