"""Owns the gateway as transports see it: the contract of `gateway.transport` on one core and its committer.

Its rule: it only passes on; what becomes of a message is decided in the core.
"""

from __future__ import annotations

import asyncio
from asyncio import Future
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

from gateway.auth.scram import Exchange
from gateway.auth.users import Access
from gateway.engine.committer import Committer
from gateway.logs import log
from gateway.model.binding import Binding, ExchangeBinding
from gateway.model.counters import TransportCounters
from gateway.model.credit import Credit, Pressure
from gateway.model.message import Message
from gateway.model.names import NOBODY, Actor
from gateway.model.outcome import Outcome
from gateway.model.policy import QueuePolicy
from gateway.model.principal import User
from gateway.model.state import StateChange
from gateway.queueing.queue import Queue
from gateway.transport import PLAIN, Consumer, Offer, QueueView, Subscription
from gateway.transport.refusals import Refusals


class LocalGateway:
    """A Gateway."""

    def __init__(self, committer: Committer, access: Access, pressure: Pressure, drain_timeout: float) -> None:
        self.pressure = pressure
        self.drain_timeout = drain_timeout
        self.committer = committer
        self.access = access
        self.core = committer.core
        self.now: Callable[[], float] = committer.core.now
        self.all_counters: dict[str, TransportCounters] = {}
        self.addresses: dict[str, tuple[str, ...]] = {}
        self.on_started: Callable[[], None] | None = None
        loop = asyncio.get_running_loop()
        self.refusals = Refusals(loop.time, loop.call_later)
        self.reloads: dict[str, Callable[[], None]] = {}
        self.impaired: dict[str, tuple[str, bool]] = {}
        """What keeps transports from their work, by name, and whether the daemon is not ready for it."""

    @property
    def anonymous(self) -> bool:
        return self.access.anonymous

    @property
    def refusing(self) -> str:
        return self.core.refusing

    def accept(
        self, batch: Sequence[Message], changes: Sequence[StateChange] = (), offer: Offer = PLAIN
    ) -> Future[Sequence[Outcome]]:
        return self.committer.accept(batch, changes, offer)

    def put(self, changes: Sequence[StateChange] = ()) -> Future[bool]:
        return self.committer.put(changes)

    def keep(self, changes: Sequence[StateChange]) -> None:
        self.committer.keep(changes)

    def state(self, owner: str) -> dict[str, bytes]:
        return self.committer.state(owner)

    def declare(self, name: str, policy: QueuePolicy, owner: str, holder: Actor | None = None) -> QueueView:
        queue = self.core.declare(name, policy, owner, holder)
        self.committer.poke()
        return queue

    def delete(self, name: str) -> int:
        count = self.core.delete(name)
        self.committer.poke()
        return count

    def purge(self, name: str) -> Future[int]:
        return self.committer.purge(name)

    def queue(self, name: str) -> Queue | None:
        return self.core.queues.get(name)

    def queues(self) -> Iterable[QueueView]:
        return list(self.core.queues.values())

    def bind(self, binding: Binding) -> None:
        self.core.bind(binding)
        self.committer.poke()

    def unbind(self, binding: Binding) -> bool:
        found = self.core.unbind(binding)
        self.committer.poke()
        return found

    def bindings(self, queue: str) -> Sequence[Binding]:
        return self.core.router.bindings(queue)

    def bind_exchange(self, binding: ExchangeBinding) -> None:
        self.core.bind_exchange(binding)
        self.committer.poke()

    def unbind_exchange(self, binding: ExchangeBinding) -> bool:
        found = self.core.unbind_exchange(binding)
        self.committer.poke()
        return found

    def exchange_bindings(self) -> Sequence[ExchangeBinding]:
        return self.core.router.exchange_bindings()

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
        subscription = self.core.attach(queue, consumer, pools, live, priority, actor, exclusive)
        self.committer.poke()
        return subscription

    def begun(self, queue: str, idents: Collection[int]) -> set[int]:
        return self.core.get(queue).begun(idents)

    def retained(self, filter: str) -> Sequence[tuple[float, Message]]:
        return self.core.retained.find(filter, self.now())

    def search_retained(self, filter: str) -> Iterator[tuple[float, Message] | None]:
        return self.core.retained.search(filter, self.now())

    def scram(self) -> Exchange | None:
        return self.access.exchange()

    def proven(self, exchange: Exchange) -> User:
        return self.access.proven(exchange)

    def user(self, name: str) -> User | None:
        return self.access.find(name)

    def authenticate(self, name: str | None, password: bytes | None, peer: str = "") -> Future[User | None]:
        return self.access.authenticate(name, password, peer)

    def let_in(self, user: User, end: Callable[[str], None]) -> Callable[[], None]:
        return self.access.logins.enter(user, end)

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
        if count:
            self.counters(transport).refusals[reason] += 1
        self.refusals.say(transport, reason, peer, user, client_id, why)

    def counters(self, transport: str) -> TransportCounters:
        return self.all_counters.setdefault(transport, TransportCounters())

    def impair(self, transport: str, why: str, unready: bool = False) -> None:
        if why:
            self.impaired[transport] = (why, unready)
        else:
            self.impaired.pop(transport, None)

    def on_reload(self, transport: str, call: Callable[[], None]) -> None:
        self.reloads[transport] = call

    def started(self, transport: str, addresses: Sequence[str]) -> None:
        self.addresses[transport] = tuple(addresses)
        for address in addresses:
            log.info("listening", transport=transport, address=address)
        if self.on_started is not None:
            self.on_started()
