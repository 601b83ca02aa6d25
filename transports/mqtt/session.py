"""Owns Session: what one client has beyond its connection, and what a topic filter asks for.

Its rule: pure data; a packet identifier is in flight from before its PUBLISH is written until its PUBACK or PUBCOMP
came, and survives a lost connection with the message it stands for.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable, Mapping, Sequence, Set
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import msgspec

from gateway.model.message import QUEUE_PREFIX, Message
from gateway.model.names import Actor, is_reserved
from gateway.model.topics import check_filter, check_name
from gateway.transport import Binding, Options, Outcome, StateChange
from transports.mqtt.packets import Reason

if TYPE_CHECKING:
    from transports.mqtt.consumer import MqttConsumer

OWNER = "mqtt"
"""Owns the queues and bindings of sessions and shares, and the state kept for them: `session/CLIENT`, `owed/CLIENT`
(retained messages), `sent/CLIENT/ID` (of QoS 2, and of retained messages) and `received/CLIENT/ID` (of QoS 2)."""
SESSIONS = Actor(OWNER)
"""As whom clients consume the queues of sessions and shares, which none of them may name."""
QUEUE_NAMES = "mqtt."
"""All queues of sessions and shares begin so; no other client may name them."""
SENT, RECEIVED, OWED = "sent/", "received/", "owed/"
SHARE_PREFIX = "$share/"
MAX_CLIENT_ID_BYTES = 1024
NEVER = 0xFFFF_FFFF
"""The Session Expiry Interval that stands for no end [MQTT-3.1.2.11.2]."""


class Client(Protocol):
    """A session's connection, as far as others need it."""

    def let_go(self) -> CarriedWill | None:
        """The session is another connection's from now on: give back what came from it and touch it no more, whatever
        the socket still brings and however it ends. Returns the will that is due."""

    def taken_over(self) -> None:
        """Say so, and end the connection."""

    def resubscribed(self, filter: str, options: Options | None) -> None:
        """What this filter asks for has changed otherwise than by a SUBSCRIBE of this connection: to these options, or,
        with None, it is no longer subscribed."""


class Kind(enum.Enum):
    """Whose queue a subscription is served from."""

    OWN = "own"
    SHARE = "share"
    QUEUE = "queue"


class Target(NamedTuple):
    """What a topic filter of a SUBSCRIBE leads to. filter: without `$share/NAME/`; "" for a queue."""

    kind: Kind
    queue: str
    filter: str


class Membership(msgspec.Struct, frozen=True, array_like=True):
    """A subscription that is no binding of the session's own queue: `$share/...` or `$queue/...`, as subscribed."""

    filter: str
    options: Options


Subscribed = Binding | Membership
"""A subscription as the session has it."""


class DelayedWill(msgspec.Struct, frozen=True, array_like=True):
    """A will that is published at `due` (seconds since 1970) unless its client is back before."""

    message: Message
    due: float


class CarriedWill(msgspec.Struct, frozen=True, array_like=True):
    """The will of a client that is connected: if the daemon dies, its connection is lost. delay: seconds."""

    message: Message
    delay: float


class Record(msgspec.Struct, frozen=True, array_like=True):
    """A session as it stands in the store. expiry: seconds, inf for never. ended: when its connection was closed,
    None while it is connected; then `carried` is its will."""

    expiry: float
    ended: float | None = None
    memberships: tuple[Membership, ...] = ()
    will: DelayedWill | None = None
    carried: CarriedWill | None = None


class Held(NamedTuple):
    """What a packet identifier in flight stands for: a delivery of a consumer (None: by an earlier run of the daemon),
    or a retained message. ident: of the delivery. released: of QoS 2, the client has the message (PUBREC), and it may
    forget the identifier (PUBREL)."""

    consumer: MqttConsumer | None
    delivery_id: int
    ident: int
    qos: int = 1
    retained: Retained | None = None
    released: bool = False


_NOTHING: frozenset[int] = frozenset()
_NO_FUTURES: dict[int, Any] = {}
RELEASED = Held(None, 0, 0, 2, released=True)


class Retained(NamedTuple):
    """A retained message on its way to a new subscription. expires: seconds since 1970. at: when it was set; no other
    has the same."""

    message: Message
    options: Options
    expires: float | None
    at: float

    @property
    def qos(self) -> int:
        return min(self.message.qos, self.options.qos)


class SentRetained(msgspec.Struct, frozen=True, array_like=True):
    """A retained message in flight as it stands in the store, which has the message itself at its own place."""

    qos: int
    topic: str
    at: float
    options: Options


class Owed:
    """The retained messages that a subscription has a right to, after those that were set until `after`. waiting: those
    that were looked up, the next one last. ready: its SUBACK is sent."""

    __slots__ = ("after", "binding", "ready", "waiting")

    def __init__(self, binding: Binding, after: float = 0.0, ready: bool = False) -> None:
        self.binding = binding
        self.after = after
        self.ready = ready
        self.waiting: list[Retained] | None = None


class Former(NamedTuple):
    """What there was before a change of a subscription that the store has not taken yet; None: nothing."""

    held: Subscribed | None
    owed: Owed | None


_NO_FORMER: Mapping[str, Former] = MappingProxyType({})


class Session:
    """One client's session. `expiry` is in seconds, 0 ends it with its connection."""

    __slots__ = (
        "_last_packet_id",
        "_resend",
        "abandoned",
        "bindings",
        "carried",
        "client",
        "client_id",
        "ended",
        "expiry",
        "forgetting",
        "former",
        "in_flight",
        "memberships",
        "owed",
        "queue",
        "received",
        "receiving",
        "recorded",
        "will",
    )

    def __init__(self, client_id: str, expiry: float = 0.0) -> None:
        self.client_id = client_id
        self.queue = queue_name(client_id)
        self.expiry = expiry
        self.ended: float | None = None
        self.bindings: dict[str, Binding] = {}
        """The bindings of its own queue, by filter, as the gateway has them."""
        self.memberships: dict[str, Membership] = {}
        self.client: Client | None = None
        """The connection that it belongs to, and that alone may change it; None while its client is away."""
        self.will: DelayedWill | None = None
        self.carried: CarriedWill | None = None
        self.recorded = False
        """The store may have a record of it."""
        self.in_flight: dict[int, Held] = {}
        self.received: Set[int] = _NOTHING
        """Packet identifiers of what the client has published with QoS 2 and not released yet."""
        self.receiving: dict[int, Any] = _NO_FUTURES
        """Of these, by identifier, the Futures of messages whose Outcomes are not there yet,"""
        self.forgetting: dict[int, Any] = _NO_FUTURES
        """and those of releases that the store has not taken yet."""
        self.abandoned: Sequence[int] = ()
        """Packet identifiers of QoS 2 in flight whose message is gone: they are to be released."""
        self.owed: dict[str, Owed] = {}
        """By filter, in the order of the subscriptions: each has its messages read from the store when its turn comes,
        once, however often it was made meanwhile."""
        self.former: Mapping[str, Former] = _NO_FORMER
        """By filter, what the store has while it decides on a change: whichever connection has asked for it, and
        whichever the session has when that is known."""
        self._resend: dict[int, int] = {}
        """Packet identifiers by the ident of what they stood for."""
        self._last_packet_id = 0

    @property
    def ends(self) -> float:
        """When it ends if its client stays away (seconds since 1970); inf while connected."""
        return math.inf if self.ended is None else self.ended + self.expiry

    def record(self) -> bytes:
        carried = self.carried if self.ended is None else None
        return _encode(Record(self.expiry, self.ended, tuple(self.memberships.values()), self.will, carried))

    @classmethod
    def restored(cls, client_id: str, record: bytes, bindings: list[Binding], now: float) -> Session:
        """Raises msgspec.DecodeError for what is no record. A session that was connected ended now."""
        found = _decode(record)
        session = cls(client_id, found.expiry)
        session.ended = now if found.ended is None else found.ended
        session.bindings = {binding.filter: binding for binding in bindings}
        session.memberships = {membership.filter: membership for membership in found.memberships}
        session.will = found.will
        if found.carried is not None:  # [MQTT-3.1.2-8]: its connection was lost with the daemon
            session.will = DelayedWill(found.carried.message, now + min(found.carried.delay, found.expiry))
        session.recorded = True
        return session

    # subscriptions

    def held(self, filter: str) -> Subscribed | None:
        return self.bindings.get(filter) or self.memberships.get(filter)

    def remember(self, filter: str, former: Former) -> None:
        """The store is asked about a change; of several at a time, what was before the first counts."""
        if isinstance(self.former, dict):
            self.former.setdefault(filter, former)
        else:
            self.former = {filter: former}

    def replace_former(self, filter: str, former: Former | None) -> None:
        """None: the store is asked no more, or its answer means nothing."""
        if isinstance(self.former, dict):
            if former is None:
                self.former.pop(filter, None)
            else:
                self.former[filter] = former
            if not self.former:
                self.forget_former()

    def forget_former(self) -> None:
        self.former = _NO_FORMER

    # packet identifiers

    def take(self, held: Held, redelivered: bool) -> int:
        """A packet identifier for what is about to be written: the old one if this is the resend of it
        [MQTT-4.4.0-1], otherwise one that is free [MQTT-2.2.1-4]. There is one, since the window is smaller."""
        if self._resend and held.consumer is not None and held.consumer.kind is Kind.OWN:
            packet_id = self._resend.pop(held.ident, 0)
            if packet_id:
                self.in_flight[packet_id] = held
                return packet_id
            if not redelivered:
                self.abandon(list(self._resend))  # they would have come first
        packet_id = self._last_packet_id
        in_flight = self.in_flight
        while True:
            packet_id = packet_id % 65_535 + 1
            if packet_id not in in_flight:
                break
        self._last_packet_id = packet_id
        in_flight[packet_id] = held
        return packet_id

    @property
    def resends(self) -> Iterable[int]:
        """Packet identifiers of deliveries that are still to be sent again."""
        return self._resend.values()

    @property
    def resend_idents(self) -> Set[int]:
        return self._resend.keys()

    def resend_of(self, ident: int) -> int:
        """The packet identifier that this delivery had; 0 if it is no resend."""
        return self._resend.get(ident, 0)

    def abandon(self, idents: Iterable[int]) -> None:
        """These will not be sent again: their queue was purged, or the client does not take so large a packet."""
        for ident in idents:
            packet_id = self._resend.pop(ident)
            held = self.in_flight.pop(packet_id)
            if held.qos == 2:  # the client may have it, and waits for the release
                self.in_flight[packet_id] = RELEASED
                self.abandoned = (*self.abandoned, packet_id)

    def receive(self, packet_id: int) -> None:
        """The client has published with QoS 2 under this identifier."""
        if isinstance(self.received, set):
            self.received.add(packet_id)
        else:  # most sessions never have one, and an empty set for each would be 200 bytes
            self.received = {packet_id}

    def forget(self, packet_id: int) -> None:
        """The identifier is the client's again."""
        if isinstance(self.received, set):
            self.received.discard(packet_id)

    def receive_until(self, packet_id: int, future: Any) -> None:
        """What becomes of what was published under this identifier is known when `future` is done, the Future of its
        Outcomes, whichever connection waits for it by then. If it is refused the identifier is the client's again
        [MQTT-4.3.3-9]."""
        if self.receiving is _NO_FUTURES:
            self.receiving = {}
        self.receiving[packet_id] = future

        def known(done: Any) -> None:
            if self.receiving.get(packet_id) is not future:
                return  # released before its answer, against the rules, and used again
            del self.receiving[packet_id]
            if not done.cancelled() and done.result()[0] is Outcome.REFUSED:
                self.forget(packet_id)

        future.add_done_callback(known)

    def forget_until(self, packet_id: int, future: Any) -> None:
        """The identifier is the client's again when `future` says that the store knows of it: once, however often and
        over how many connections that is asked for."""
        if self.forgetting is _NO_FUTURES:
            self.forgetting = {}
        self.forgetting[packet_id] = future

        def stored(future: Any) -> None:
            del self.forgetting[packet_id]
            if not future.cancelled() and future.result():
                self.forget(packet_id)

        future.add_done_callback(stored)

    def release(self, packet_id: int) -> None:
        """PUBREC came. In the order of these PUBRELs go out, also on later connections [MQTT-4.6.0-4]."""
        del self.in_flight[packet_id]
        self.in_flight[packet_id] = RELEASED

    def sent_change(self, packet_id: int, ident: int | None) -> StateChange:
        """An identifier of QoS 2 for the store: what it stands for, 0 once it is released, None when it is free."""
        value = None if ident is None else ident.to_bytes(8, "big")
        return StateChange(OWNER, f"{SENT}{self.client_id}/{packet_id}", value)

    def sent_retained(self, packet_id: int, retained: Retained) -> StateChange:
        value = _encode(SentRetained(retained.qos, retained.message.topic, retained.at, retained.options))
        return StateChange(OWNER, f"{SENT}{self.client_id}/{packet_id}", value)

    def owed_change(self) -> StateChange:
        """Which subscriptions are owed retained messages, and after which."""
        owed = [(filter, one.after) for filter, one in self.owed.items()]
        return StateChange(OWNER, OWED + self.client_id, _encode(owed) if owed else None)

    def received_change(self, packet_id: int, there: bool) -> StateChange:
        return StateChange(OWNER, f"{RECEIVED}{self.client_id}/{packet_id}", b"1" if there else None)

    def forget_ids(self) -> list[StateChange]:
        """What the store may have of messages in flight goes with the session."""
        sent = [packet_id for packet_id, held in self.in_flight.items() if held.qos == 2 or held.retained]
        return [
            StateChange(OWNER, OWED + self.client_id, None),
            *[self.sent_change(packet_id, None) for packet_id in sent],
            *[self.received_change(packet_id, False) for packet_id in self.received],
        ]

    def lose_connection(self) -> None:
        """Keeps the identifiers of its own queue's deliveries and of retained messages, for the resend; what came
        from shared queues belongs to the others again."""
        self._resend.clear()
        for packet_id, held in list(self.in_flight.items()):
            if held.retained is not None or held.released:
                continue
            if held.consumer is None or held.consumer.kind is Kind.OWN:
                self._resend[held.ident] = packet_id
            else:
                del self.in_flight[packet_id]

    def restore_id(self, packet_id: int, ident: int) -> None:
        """An identifier of QoS 2 that was in flight when the daemon ended; ident 0: it is released, or what it stood
        for is not kept."""
        self.in_flight[packet_id] = RELEASED if not ident else Held(None, 0, ident, 2)
        if ident:
            self._resend[ident] = packet_id

    def restore_retained(self, packet_id: int, retained: Retained) -> None:
        """As above, of a retained message."""
        self.in_flight[packet_id] = Held(None, 0, 0, retained.qos, retained)

    def sort(self) -> None:
        """Brings what was restored into the order in which it was sent, as far as that is known: a retained message
        before what was published since."""

        def place(item: tuple[int, Held]) -> tuple[bool, float, int]:
            retained = item[1].retained
            return retained is None, retained.at if retained is not None else 0.0, item[1].ident

        self.in_flight = dict(sorted(self.in_flight.items(), key=place))

    @property
    def released(self) -> list[int]:
        """Identifiers of QoS 2 that wait for their PUBCOMP, in order."""
        return [packet_id for packet_id, held in self.in_flight.items() if held.released]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Record).decode
decode_sent_retained = msgspec.msgpack.Decoder(SentRetained).decode
decode_owed = msgspec.msgpack.Decoder(list[tuple[str, float]]).decode


def queue_name(client_id: str) -> str:
    return QUEUE_NAMES + client_id


def is_client_id(client_id: str) -> bool:
    """Whether a session may be named so; the names of shares are not free."""
    return not client_id.startswith(SHARE_PREFIX) and len(client_id.encode()) <= MAX_CLIENT_ID_BYTES


def target_of(filter: str, session: Session) -> Target | Reason:
    """What the filter leads to, or why it is refused."""
    if filter.startswith(SHARE_PREFIX):
        name, _, inner = filter[len(SHARE_PREFIX) :].partition("/")
        # [MQTT-4.8.2-1], [MQTT-4.8.2-2]
        if not name or "+" in name or "#" in name or check_filter(inner, mqtt=True) or inner.startswith(QUEUE_PREFIX):
            return Reason.TOPIC_FILTER_INVALID
        return Target(Kind.SHARE, QUEUE_NAMES + filter, inner)
    if filter.startswith(QUEUE_PREFIX):
        queue = filter[len(QUEUE_PREFIX) :]
        if check_name(filter):  # its deliveries could not be named so
            return Reason.TOPIC_FILTER_INVALID
        return Reason.NOT_AUTHORIZED if is_reserved(queue) else Target(Kind.QUEUE, queue, "")
    if check_filter(filter, mqtt=True):
        return Reason.TOPIC_FILTER_INVALID
    return Target(Kind.OWN, session.queue, filter)
