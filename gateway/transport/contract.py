"""Owns the contract between the core and all transports (design section 3).

Its rule: an answer to a sender can only be made from an Outcome, and an Outcome exists only after the commit.
"""

from __future__ import annotations

from asyncio import Future
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import ClassVar, Protocol

import msgspec

from gateway.auth.scram import Exchange
from gateway.model.binding import Binding, ExchangeBinding
from gateway.model.credit import Credit
from gateway.model.delivery import Delivery
from gateway.model.message import Message
from gateway.model.names import NOBODY, Actor
from gateway.model.outcome import Outcome, Verdict
from gateway.model.policy import QueuePolicy
from gateway.model.principal import User
from gateway.model.state import StateChange
from gateway.net.roles import Host


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


class Gateway(Host, Protocol):
    """All that a transport may do. Everything here is called on the event loop's thread."""

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
        has it or could not deliver it in time, and others pass it (`ordered_replies` keeps a connection's in order);
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

    def scram(self) -> Exchange | None:
        """A login by SCRAM-SHA-256 (`gateway.auth.scram`), which takes no thread; None if no user has a verifier."""
        ...

    def proven(self, exchange: Exchange) -> User:
        """Who has come to the end of that login."""
        ...

    def impair(self, transport: str, why: str, unready: bool = False) -> None:
        """What keeps this transport from its work at present, as /readyz tells it; "" when nothing does. unready: the
        daemon is not ready until then."""
        ...


class Transport(Protocol):
    """A way in or out. Found by the entry point group `gateway.transports`; the entry point names the class,
    which is made with (name, settings), the settings decoded from the YAML into `Settings`."""

    Settings: ClassVar[type[msgspec.Struct]]
    """Has at least `type: str`; `listen: str`, if it has one, is held to the rule for access (users). `queue` and
    `unroutable`, if it has them, name queues. With `is_link = True` beside it, routes may name the transport as a
    target: it sends what its outbox (`gateway.transport.outbox.outbox(name)`) holds, whose policy is the setting
    `outbox: OutboxPolicy`; `check_target`, if the class has it, says why a text is no template of a target, or "". A
    section in it that names files may have `look_at_files` (`gateway.files.NamesFiles`), for `gateway check`."""

    async def run(self, gateway: Gateway) -> None:
        """Until cancelled; cancelling = drain within `gateway.drain_timeout`, then return. Raises ListenError
        before `started` if its address can't be had: the daemon's start fails. Any other exception is reported
        by name, and `run` is called again with backoff."""


class Sink(Protocol):
    """All that most outgoing plugins need to write; `gateway.transport.sink.drive` does the rest."""

    async def send(self, batch: Sequence[Delivery]) -> Sequence[Verdict | tuple[Verdict, str] | None]:
        """One verdict for each delivery, in order, or (verdict, reason). Raising = RETRY all. RETURNED: the peer takes
        nothing at present, and no message is at fault; it is tried again after a pause. None: its connection was lost
        before the peer answered, and the message may be the cause. Such deliveries stay unsettled until `drive` is
        cancelled, as it should be then, and go back as those of any consumer that is lost (ruling 14)."""
        ...


Resume = Callable[[], None]
