"""Owns the contract between the core and all transports (design section 3).

Its rule: an answer to a sender can only be made from an Outcome, and an Outcome exists only after the commit.
"""

from __future__ import annotations

import enum
from asyncio import Future
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import msgspec

from gateway.flow import Credit, Pressure
from gateway.message import NO_PROPERTIES, TOPIC_EXCHANGE, Message, Properties
from gateway.metrics import TransportCounters
from gateway.names import NOBODY, OPERATOR, Actor
from gateway.policy import QueuePolicy
from gateway.scram import Exchange
from gateway.storage.journal import StateChange
from gateway.values import same

__all__ = [
    "NOBODY",
    "NO_OPTIONS",
    "NO_PROPERTIES",
    "OPERATOR",
    "PLAIN",
    "Actor",
    "Binding",
    "Consumer",
    "Credit",
    "Death",
    "Delivery",
    "ExchangeBinding",
    "Gateway",
    "HeadersMatch",
    "Message",
    "Offer",
    "Options",
    "Outcome",
    "Pressure",
    "Properties",
    "QueuePolicy",
    "QueueView",
    "Sink",
    "StateChange",
    "Subscription",
    "Transport",
    "TransportCounters",
    "User",
    "Verdict",
]


class Outcome(enum.Enum):
    """What became of an accepted message."""

    STORED = "stored"
    DUPLICATE = "duplicate"
    UNROUTED = "unrouted"
    REFUSED = "refused"


class Verdict(enum.Enum):
    """What became of a delivery. RETRY counts an attempt; RETURNED, given back unused, does not. DEAD is the consumer's
    own word: a dead letter, `rejected`. INVALID is its transport's: it can't be handed the message as it is; a dead
    letter, `invalid`."""

    DONE = "done"
    RETRY = "retry"
    DEAD = "dead"
    INVALID = "invalid"
    RETURNED = "returned"


class Options(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What bindings add to a message in one queue (ruling 8); merged where several bindings of a queue match.

    qos: the highest QoS granted. subscription_ids: of all matching MQTT subscriptions, ascending.
    retain_as_published: the retain flag goes out as it came in. target: where a link sends it; a template in a binding,
    its text for the message in the entry of an outbox. within: the sender is answered when the link has delivered it,
    or has not within so many seconds; None: when it is stored.
    """

    qos: int = 2
    subscription_ids: tuple[int, ...] = ()
    retain_as_published: bool = False
    target: str | None = None
    within: float | None = None


NO_OPTIONS = Options()
"""Of every binding that says nothing else; the same object, so that it is known at a glance."""


class HeadersMatch(msgspec.Struct, frozen=True, eq=False):
    """What a binding of a headers exchange asks of a message's headers: all of them or any (AMQP 3.1.3.4).

    A value of None asks only that the header is there; true, 1 and 1.0 are three values. Without headers, `all` matches
    everything, `any` nothing.
    """

    headers: tuple[tuple[str, Any], ...]
    any: bool = False

    def matches(self, message: Message) -> bool:
        have = dict(message.properties.headers)
        hits = (name in have and (value is None or same(have[name], value)) for name, value in self.headers)
        return any(hits) if self.any else all(hits)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HeadersMatch) and self.any is other.any and same(self.headers, other.headers)

    def __hash__(self) -> int:
        return hash((self.any, *[name for name, _ in self.headers]))


class Binding(msgspec.Struct, frozen=True, kw_only=True):
    """Leads from a filter of one exchange to a queue.

    filter: in MQTT form. `+` and `#` are wildcards as whole levels and text otherwise, and `\\+` is a level `+`
    (`gateway.topics.check_binding`); with `literal`, all of it is plain text (a direct exchange).
    match: asked of each message besides. source: only messages that this transport accepted.
    not_from: not those of this client id (MQTT no local). not_source: not those that this transport accepted, so that
    nothing goes back over the link it came by.
    names: only topics that MQTT can name; a routing key may also be empty or have `+`, `#` or NUL in it (ruling 9).
    owner: who may take it away: `config`, or a transport's own name for the thing that made it.
    Two bindings with equal (owner, queue, exchange, filter, match) are one: the later replaces the earlier.
    """

    queue: str
    filter: str
    exchange: str = TOPIC_EXCHANGE
    literal: bool = False
    match: HeadersMatch | None = None
    source: str | None = None
    not_from: str | None = None
    not_source: str | None = None
    names: bool = False
    owner: str = ""
    options: Options = NO_OPTIONS


class ExchangeBinding(msgspec.Struct, frozen=True, kw_only=True):
    """Leads from one exchange to another, with the same topic.

    filter, literal, match: what goes there, as in a Binding. otherwise: instead, whatever nothing else in `exchange`
    matches (an alternate exchange); there is one at most.
    durable: kept over a restart. owner: as in a Binding.
    Two that differ in `durable` alone are one: the later replaces the earlier.
    """

    exchange: str
    to: str
    filter: str = "#"
    literal: bool = False
    match: HeadersMatch | None = None
    otherwise: bool = False
    durable: bool = False
    owner: str = ""


class Death(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One time that a queue gave a message up. Times are wall-clock seconds since 1970.

    reason: rejected, exhausted, expired, overflow, unroutable or invalid. first: accepted by that queue.
    exchange, topic: where the message had been sent to, if it was given another address then.
    count: so many deaths in that queue and for that reason, this one and earlier ones that the history keeps no more.
    """

    queue: str
    reason: str
    attempts: int
    error: str
    first: float
    last: float
    exchange: str | None = None
    topic: str | None = None
    count: int = 1


class Delivery(msgspec.Struct, eq=False, gc=False):
    """A message on its way to one consumer. `id` is new for each delivery, grows, and is never 0;
    with id 0 (QoS 0 to a live subscriber) there is nothing to settle.

    ident: of the message in this queue, over restarts too; it grows, and is never used again.
    attempts: failed deliveries before this one. redelivered: it was delivered before, or may have been by an earlier
    run of the daemon.
    deaths: why earlier queues gave it up, the latest first. remaining: seconds until it expires, or None.
    """

    id: int
    message: Message
    queue: str
    options: Options
    slot: int = 0
    attempts: int = 0
    redelivered: bool = False
    deaths: tuple[Death, ...] = ()
    expires: float | None = None
    ident: int = 0


class Consumer(Protocol):
    """Takes deliveries as its credit allows."""

    def deliver(self, batch: Sequence[Delivery]) -> None:
        """Never blocks, never gets more than the credit, must not raise and must not call back into the
        gateway except `settle`, `grant` and `accept` (they are safe from here)."""

    def closed(self, reason: str) -> None:
        """The queue was deleted; the subscription is detached already and nothing more will come."""


class Subscription(Protocol):
    """One consumer's tie to one queue. Without any credit granted nothing is delivered (QoS 0 excepted)."""

    queue: str

    def grant(self, messages: int = 0, octets: int = 0) -> None:
        """Adds to this subscription's own credit. It starts with 0 messages and unlimited octets."""

    def revoke(self) -> int:
        """Takes back all unused message credit of this subscription; returns how much it was."""
        ...

    def settle(self, ids: Iterable[int], verdict: Verdict, error: str = "") -> int:
        """Decides these deliveries; takes effect in memory at once. Credit is not given back by it: `grant` it.
        Ids this subscription does not hold (any more) are ignored and counted; returns how many it did hold.
        `error` is kept for a dead letter's history (at most 1 KiB of it)."""
        ...

    def holds(self, id: int) -> bool:
        """Whether that delivery is still its own: not settled, timed out, purged or taken away. Ask it before what may
        have waited long is sent."""
        ...

    def cancel(self) -> None:
        """No more deliveries; what is in flight may still be settled (basic.cancel, UNSUBSCRIBE, drain)."""

    def detach(self, lost: bool = False) -> None:
        """The consumer is gone: what is unsettled goes back to its old place. `lost` counts one attempt for the
        oldest unsettled delivery of it (ruling 14: a connection that broke); the rest are RETURNED. From then on no
        call does anything: what it held is others' by now (ruling 29)."""

    @property
    def unsettled(self) -> int:
        """How many deliveries it holds."""
        ...


class QueueView(Protocol):
    """What a transport may know of a queue."""

    name: str
    policy: QueuePolicy
    owner: str
    """`config` for a YAML queue, `core` for a built-in one, otherwise the name given at `declare`."""
    holder: Actor | None
    """Who alone may use it, if somebody is."""

    @property
    def depth(self) -> int:
        """Messages that wait for delivery (committed, not in flight)."""
        ...

    @property
    def in_flight(self) -> int: ...
    @property
    def consumers(self) -> int: ...
    @property
    def in_exclusive_use(self) -> bool:
        """One consumer has it for itself."""
        ...


class User(msgspec.Struct, frozen=True):
    """Who a client has shown to be; name is "" for an anonymous one. mark: stands for what it has shown, and is made
    by the gateway alone; b"": the login rests on the listener's own settings."""

    name: str
    mark: bytes = b""


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """What else a batch asks for, beside being decided and stored.

    also: topics of the same exchange that lead the message at this place of the batch to queues besides its own topic;
    each queue gets it once, with its own topic.
    done: deliveries by subscription that are DONE in the same commit, and only if nothing of the batch is REFUSED; of a
    batch without messages nothing can be, so they are DONE whether the store takes it or not, as by `settle`.
    Until the Future resolves their consumers hold them; what is given back meanwhile comes again.
    in_order: what comes after a REFUSED message is REFUSED too, so that all of it can be offered again in its order
    (ruling 23). drops_qos0: except after one of QoS 0, which is not offered again; and nobody waits until a link has
    delivered one of these.
    unroutable: a queue that keeps what no binding leads anywhere, as it is; the Outcome stays UNROUTED.
    """

    also: Mapping[int, Sequence[str]] = {}
    done: Sequence[tuple[Subscription, Sequence[int]]] = ()
    in_order: bool = False
    drops_qos0: bool = False
    unroutable: str | None = None


PLAIN = Offer()
"""Of every batch that asks for nothing else; the same object, so that it is known at a glance."""


class Gateway(Protocol):
    """All that a transport may do. Everything here is called on the event loop's thread."""

    pressure: Pressure
    drain_timeout: float
    """Seconds that a transport has to drain once its `run` is cancelled."""

    @property
    def anonymous(self) -> bool:
        """No users are configured: every client is let in."""
        ...

    @property
    def refusing(self) -> str:
        """Why everything durable is REFUSED at present, or ""; with "" a REFUSED message met a full queue. Refuse
        what a client wants to be durable before it is made, and let it have what is there."""
        ...

    def now(self) -> float:
        """The one time of the daemon in seconds since 1970; never runs backwards (ruling 6)."""
        ...

    def accept(
        self, batch: Sequence[Message], changes: Sequence[StateChange] = (), offer: Offer = PLAIN
    ) -> Future[Sequence[Outcome]]:
        """Decides at once, in the order of calls; the Future resolves, in that same order over all callers, after
        the commit, with an Outcome for each message. It never raises for what a message says. `changes` are in
        the same commit; if all of the batch is REFUSED they are not made. `offer`: what else the batch asks for.

        One exception: with a message among them that a route sends `ack: delivered`, the Future resolves when the link
        has it or could not deliver it in time, and others pass it (`gateway.turns` keeps a connection's in order);
        `changes` and `offer.done` are then made behind that, in a commit of their own."""
        ...

    def put(self, changes: Sequence[StateChange] = ()) -> Future[bool]:
        """Makes state durable. Resolves after everything that was accepted, declared, bound or settled before it,
        with False if the store refused: then the changes are not made, and nothing of all that is sure to be durable.
        An empty `put` is a barrier and works for volatile things too. While the store does not take
        what it is given, it is False at once."""
        ...

    def keep(self, changes: Sequence[StateChange]) -> None:
        """Makes state durable that is true already and that nobody waits for: with the next commit or, if the store
        refuses, as soon as it no longer does; of several changes of a key the last counts."""

    def state(self, owner: str) -> dict[str, bytes]:
        """What that owner has put, as committed before the start plus all that was put since."""
        ...

    def declare(self, name: str, policy: QueuePolicy, owner: str, holder: Actor | None = None) -> QueueView:
        """Makes the queue unless it exists (then its policy is left as it is). A durable queue's definition is
        journaled with the next commit: answer the client after `put()`. holder: who alone may use it; it is not kept
        over a restart. Raises ReservedNameError, and GatewayError for a bad policy."""
        ...

    def delete(self, name: str) -> int:
        """Deletes the queue, its bindings and messages; its consumers are `closed`. Returns how many messages
        waited or were in flight. Raises UnknownQueueError."""
        ...

    def purge(self, name: str) -> Future[int]:
        """What waits (not what is in flight) is delivered no more from now on, and removed; resolves with how many
        these were when all are gone, for good if the store takes it. Raises UnknownQueueError."""
        ...

    def queue(self, name: str) -> QueueView | None: ...

    def queues(self) -> Iterable[QueueView]: ...

    def bind(self, binding: Binding) -> None:
        """From now on. Journaled (with the next commit) if its queue is durable. Raises UnknownQueueError,
        BindingsFullError, and ValueError for a filter the tree can't hold."""

    def unbind(self, binding: Binding) -> bool:
        """False if there was none."""
        ...

    def bindings(self, queue: str) -> Sequence[Binding]:
        """All bindings of that queue."""
        ...

    def bind_exchange(self, binding: ExchangeBinding) -> None:
        """From now on. Journaled (with the next commit) if it is durable. Raises BindingsFullError, and ValueError for
        a filter the tree can't hold."""

    def unbind_exchange(self, binding: ExchangeBinding) -> bool:
        """False if there was none."""
        ...

    def exchange_bindings(self) -> Sequence[ExchangeBinding]:
        """All there are."""
        ...

    def attach(
        self,
        queue: str,
        consumer: Consumer,
        pools: Sequence[Credit] = (),
        live: bool = False,
        priority: int = 0,
        actor: Actor = NOBODY,
        exclusive: bool = False,
    ) -> Subscription:
        """`pools` are shared credit: a delivery takes from the subscription's own and from each of these.
        live: besides, entries of QoS 0 go straight to `deliver`, with id 0 and without credit, and entries of
        QoS 0 are never queued there (an MQTT session's queue). What it was delivered neither expires nor is dropped
        until it is settled, also while no consumer is there.
        priority: who has a higher one is served first, as long as it has credit.
        actor: who consumes. A queue with a reserved name is its owner's and the operator's, one with a holder is the
        holder's alone. exclusive: no other may consume meanwhile.
        Raises UnknownQueueError, ReservedNameError, LockedQueueError and ExclusiveUseError."""
        ...

    def begun(self, queue: str, idents: Collection[int]) -> set[int]:
        """A consumer with `live` was delivered these by an earlier run, as it knows from its own state: they are like
        what it is delivered by this one. Returns which of them are still there. To be called at the start for each
        queue that had such a consumer: before, nothing of it expires or is dropped. Raises UnknownQueueError."""
        ...

    def retained(self, filter: str) -> Sequence[tuple[float, Message]]:
        """Retained messages that match, each behind the time when it was set, which no other has, and in that order;
        read after `put()` resolved."""
        ...

    def search_retained(self, filter: str) -> Iterator[tuple[float, Message] | None]:
        """As `retained`, in no order and one small step at a time, with None for each step that finds nothing: for
        filters that may match very many. Nothing that is set after the first step is found."""
        ...

    def authenticate(self, name: str | None, password: bytes | None, peer: str = "") -> Future[User | None]:
        """None if refused. peer: the client's address with its port, as `host:port`; checks that wait are shared out
        fairly among peers and names. Done at once if nothing has to be checked; otherwise it takes its time in a
        thread, and is to be cancelled when the client has gone. Raises LoginBusyError if the check can't be made now,
        which is no word on the password; otherwise it never raises for what a client sent."""
        ...

    def user(self, name: str) -> User | None:
        """For one who has shown to be it without a password (a client certificate); None if there is no such user.
        Without users everybody is one."""
        ...

    def scram(self) -> Exchange | None:
        """A login by SCRAM-SHA-256 (see `gateway.scram`), which takes no thread; None if no user has a verifier."""
        ...

    def proven(self, exchange: Exchange) -> User:
        """Who has come to the end of that login."""
        ...

    def let_in(self, user: User, end: Callable[[str], None]) -> Callable[[], None]:
        """To be called for each connection, or request, that is let in. `end` is called, with the reason, as soon as a
        reload takes away what the login rests on: end the connection then. Call what this returns when it is over."""
        ...

    def refused(
        self,
        transport: str,
        reason: str,
        peer: str,
        user: str = "",
        client_id: str = "",
        why: str = "",
        count: bool = True,
    ) -> None:
        """A client was not let in: counts `reason` (a few fixed words) in `refusals` of the transport's counters,
        unless it is counted elsewhere, and says it in the log, a few times a minute. user, client_id: as the client
        calls itself. Never give it what the client showed as its secret."""
        ...

    def counters(self, transport: str) -> TransportCounters: ...

    def impair(self, transport: str, why: str, unready: bool = False) -> None:
        """What keeps this transport from its work at present, as /readyz tells it; "" when nothing does. unready: the
        daemon is not ready until then."""
        ...

    def on_reload(self, transport: str, call: Callable[[], None]) -> None:
        """Called after each reload (SIGHUP) that was not refused: for what a transport has read from files itself. The
        last that a transport names counts."""

    def started(self, transport: str, addresses: Sequence[str]) -> None:
        """Called once by `run` when it takes clients: `mqtt://127.0.0.1:1883`."""


class Transport(Protocol):
    """A way in or out. Found by the entry point group `gateway.transports`; the entry point names the class,
    which is made with (name, settings), the settings decoded from the YAML into `Settings`."""

    Settings: ClassVar[type[msgspec.Struct]]
    """Has at least `type: str`; `listen: str`, if it has one, is held to the rule for access (users). `queue` and
    `unroutable`, if it has them, name queues. With `is_link = True` beside it, routes may name the transport as a
    target: it sends what its outbox (`gateway.links.outbox(name)`) holds, whose policy is the setting
    `outbox: OutboxPolicy`; `check_target`, if the class has it, says why a text is no template of a target, or "". A
    section in it that names files may have `look_at_files` (`gateway.files.NamesFiles`), for `gateway check`."""

    async def run(self, gateway: Gateway) -> None:
        """Until cancelled; cancelling = drain within `gateway.drain_timeout`, then return. Raises ListenError
        before `started` if its address can't be had: the daemon's start fails. Any other exception is reported
        by name, and `run` is called again with backoff."""


class Sink(Protocol):
    """All that most outgoing plugins need to write; `gateway.sink.drive` does the rest."""

    async def send(self, batch: Sequence[Delivery]) -> Sequence[Verdict | tuple[Verdict, str] | None]:
        """One verdict for each delivery, in order, or (verdict, reason). Raising = RETRY all. RETURNED: the peer takes
        nothing at present, and no message is at fault; it is tried again after a pause. None: its connection was lost
        before the peer answered, and the message may be the cause. Such deliveries stay unsettled until `drive` is
        cancelled, as it should be then, and go back as those of any consumer that is lost (ruling 14)."""
        ...


Resume = Callable[[], None]
