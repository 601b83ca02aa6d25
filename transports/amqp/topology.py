"""Owns what AMQP clients have declared: the exchanges, and with which flags and arguments they declared queues.

Its rule: queues and bindings are the core's; here stands only what the core has no word for, and a declared queue
counts only as long as the core has it.

One topology serves all AMQP listeners of a daemon. What is durable is kept as transport state of the owner `amqp`,
under `exchange/NAME` and `queue/NAME`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple, cast, get_args

import msgspec

from gateway.model.message import DEFAULT_EXCHANGE, TOPIC_EXCHANGE
from gateway.model.topics import swap
from gateway.transport import Binding, ExchangeBinding, HeadersMatch, QueueView, StateChange
from transports.amqp.errors import PRECONDITION_FAILED, AmqpError
from transports.amqp.names import to_filter
from transports.amqp.vhost import Vhost, is_within

OWNER = "amqp"
"""Owns the queues and bindings that clients declare, and the state kept here."""

FORGET_AT = 128
"""Queues that expired or that an operator deleted are forgotten when so many are known, and twice as many as were
alive then."""
ROOM_SECONDS = 1.0
"""So often it is looked whether some are gone, while there are too many to declare another."""

Kind = Literal["direct", "topic", "fanout", "headers"]
KINDS: tuple[str, ...] = get_args(Kind)


class Exchange(msgspec.Struct, frozen=True, array_like=True):
    """One exchange as it was declared. auto_delete: it goes with its last binding. internal: no client may publish
    to it. user: who declared it. alternate: the exchange that gets what this one leads nowhere."""

    name: str
    kind: Kind
    durable: bool = True
    auto_delete: bool = False
    internal: bool = False
    user: str = ""
    alternate: str | None = None


class Pattern(NamedTuple):
    """What a binding to a queue or another exchange asks for, in the terms of the core."""

    filter: str
    literal: bool = False
    match: HeadersMatch | None = None


class Declared(msgspec.Struct, frozen=True, array_like=True):
    """With which flags and arguments a client declared a queue, and as which user."""

    name: str
    durable: bool
    exclusive: bool
    auto_delete: bool
    arguments: dict[str, Any]
    user: str = ""


PREDECLARED = (
    Exchange(DEFAULT_EXCHANGE, "direct"),
    Exchange("amq.direct", "direct"),
    Exchange(TOPIC_EXCHANGE, "topic"),
    Exchange("amq.fanout", "fanout"),
    Exchange("amq.headers", "headers"),
    Exchange("amq.match", "headers"),
)
_PREDECLARED_NAMES = frozenset(exchange.name for exchange in PREDECLARED)


class Topology:
    """Raises nothing for what it does not know; who asks decides what a client is told."""

    def __init__(self, state: Mapping[str, bytes] | None = None) -> None:
        """`state` as it was kept. Raises msgspec.DecodeError (also ValidationError) if it was not made here."""
        self.version = 0
        """Grows whenever an exchange comes or goes: what was worked out for another version holds no more."""
        self.natives: set[str] = set()
        """Names of the transports whose messages have AMQP tables for headers."""
        self.exchanges: dict[str, Exchange] = {exchange.name: exchange for exchange in PREDECLARED}
        self.predeclared = len(PREDECLARED)
        """How many of these nobody has declared."""
        self.consuming = 0
        """Consumers of all connections."""
        self._declared: dict[str, Declared] = {}
        self._queues_of: Counter[str] = Counter()
        """How many of these each user has declared."""
        self._holders: dict[str, object] = {}
        self._consumers: dict[str, set[object]] = {}
        self._look_again = FORGET_AT
        """With so many declared queues it is looked which of them are gone by themselves."""
        self._make_room_again = 0.0
        for key, value in (state or {}).items():
            section = key.partition("/")[0]
            if section == "exchange":
                exchange = msgspec.msgpack.decode(value, type=Exchange)
                self.exchanges[exchange.name] = exchange
            elif section == "queue":
                declared = msgspec.msgpack.decode(value, type=Declared)
                self._declared[declared.name] = declared
                self._queues_of[declared.user] += 1

    # exchanges

    def add_vhost(self, vhost: Vhost) -> None:
        """With its own exchanges that are there from the beginning."""
        for exchange in PREDECLARED:
            name = vhost.exchange(exchange.name)
            if name not in self.exchanges:
                self.exchanges[name] = msgspec.structs.replace(exchange, name=name)
                self.predeclared += 1

    def may_have(self, exchange: str) -> bool:
        """It is there, or is in a virtual host that is not there yet."""
        return exchange in self.exchanges or is_within(exchange, _PREDECLARED_NAMES)

    def add_exchange(self, exchange: Exchange) -> list[StateChange]:
        """Returns what must be kept."""
        self.exchanges[exchange.name] = exchange
        self.version += 1
        if not exchange.durable:
            return []
        return [StateChange(OWNER, f"exchange/{exchange.name}", msgspec.msgpack.encode(exchange))]

    def remove_exchange(self, name: str) -> list[StateChange]:
        exchange = self.exchanges.pop(name)
        self.version += 1
        return [StateChange(OWNER, f"exchange/{name}", None)] if exchange.durable else []

    # queues

    def add_queue(self, declared: Declared, holder: object | None) -> list[StateChange]:
        """`holder` is the connection that alone may use an exclusive queue. Returns what must be kept."""
        self.remove_queue(declared.name)
        self._declared[declared.name] = declared
        self._queues_of[declared.user] += 1
        self._holders.pop(declared.name, None)
        if declared.exclusive:
            self._holders[declared.name] = holder
        if not declared.durable or declared.exclusive:
            return []
        return [StateChange(OWNER, f"queue/{declared.name}", msgspec.msgpack.encode(declared))]

    def remove_queue(self, name: str) -> list[StateChange]:
        """Forgets it, whether or not it was declared by a client."""
        declared = self._declared.pop(name, None)
        self._holders.pop(name, None)
        if declared is not None:
            self._queues_of[declared.user] -= 1
            if not self._queues_of[declared.user]:
                del self._queues_of[declared.user]
        if declared is None or not declared.durable or declared.exclusive:
            return []
        return [StateChange(OWNER, f"queue/{name}", None)]

    def queues_of(self, user: str) -> int:
        """How many he has declared; some may be gone by themselves (see `stale`)."""
        return self._queues_of[user]

    def exchanges_of(self, user: str) -> int:
        return sum(exchange.user == user for exchange in self.exchanges.values()) - (not user) * self.predeclared

    @property
    def queues(self) -> int:
        """How many clients have declared; some may be gone by themselves (see `stale`)."""
        return len(self._declared)

    def declared(self, view: QueueView) -> Declared | None:
        """How a client declared this queue; None for one that no AMQP client made."""
        return self._declared.get(view.name) if view.owner == OWNER else None

    def held_by(self, holder: object) -> list[str]:
        """The exclusive queues of a connection."""
        return [name for name, other in self._holders.items() if other is holder]

    def stale(self, views: Iterable[QueueView]) -> list[StateChange]:
        """Forgets the queues the core no longer has."""
        alive = {view.name for view in views if view.owner == OWNER}
        return [change for name in [*self._declared] if name not in alive for change in self.remove_queue(name)]

    def make_room(self, views: Callable[[], Iterable[QueueView]], now: float) -> list[StateChange]:
        """As `stale`, at most once in ROOM_SECONDS: who declares one queue too many after the other must not have all
        of them looked through each time."""
        if now < self._make_room_again:
            return []
        self._make_room_again = now + ROOM_SECONDS
        return self.stale(views())

    def forget(self, views: Callable[[], Iterable[QueueView]]) -> list[StateChange]:
        """As `stale`, now and then: to be called whenever a queue was declared, so that those that expire do not
        gather here."""
        if len(self._declared) < self._look_again:
            return []
        changes = self.stale(views())
        self._look_again = max(FORGET_AT, 2 * len(self._declared))
        return changes

    # consumers

    def add_consumer(self, queue: str, consumer: object) -> None:
        self.consuming += 1
        self._consumers.setdefault(queue, set()).add(consumer)

    def remove_consumer(self, queue: str, consumer: object) -> bool:
        """True if it was the queue's last one by AMQP."""
        consumers = self._consumers.get(queue)
        if consumers is None or consumer not in consumers:
            return False
        self.consuming -= 1
        consumers.discard(consumer)
        if consumers:
            return False
        del self._consumers[queue]
        return True

    def consumers(self, queue: str) -> int:
        """How many consume it by AMQP; a basic.get is none."""
        return len(self._consumers.get(queue, ()))

    # bindings

    def binding(self, exchange: Exchange, queue: str, key: str, arguments: Mapping[str, Any]) -> Binding:
        """The binding that a client means. Raises AmqpError for arguments that make no sense."""
        filter, literal, match = pattern(exchange, key, arguments)
        return Binding(queue=queue, exchange=exchange.name, filter=filter, literal=literal, match=match, owner=OWNER)

    def exchange_binding(
        self, source: Exchange, to: Exchange, key: str, arguments: Mapping[str, Any]
    ) -> ExchangeBinding:
        """The binding of one exchange to another that a client means; it lasts if both do. Raises AmqpError for
        arguments that make no sense."""
        filter, literal, match = pattern(source, key, arguments)
        durable = source.durable and to.durable
        return ExchangeBinding(
            exchange=source.name, to=to.name, filter=filter, literal=literal, match=match, durable=durable, owner=OWNER
        )


def pattern(exchange: Exchange, key: str, arguments: Mapping[str, Any]) -> Pattern:
    """At fanout and headers exchanges the key says nothing, so bindings that differ in it alone are one; nor do the
    arguments anywhere but at headers exchanges. Raises AmqpError for arguments that make no sense."""
    if exchange.kind == "topic":
        return Pattern(to_filter(key))
    if exchange.kind == "direct":
        return Pattern(swap(key), literal=True)
    if exchange.kind == "fanout":
        return Pattern("#")
    return Pattern("#", match=_match(arguments))


def _match(arguments: Mapping[str, Any]) -> HeadersMatch:
    mode = arguments.get("x-match", "all")
    if mode not in ("all", "any", "all-with-x", "any-with-x"):
        raise AmqpError(PRECONDITION_FAILED, f"invalid arg 'x-match': {str(mode)[:64]!r}: all or any are needed")
    # Headers whose names begin with x- are not compared, unless the mode says so [AMQP 3.1.3.4 and RabbitMQ].
    with_x = mode.endswith("-with-x")
    wanted = ((n, v) for n, v in sorted(arguments.items()) if n != "x-match" and (with_x or not n.startswith("x-")))
    return HeadersMatch(tuple(wanted), any=mode.startswith("any"))


def exchange_kind(text: str) -> Kind | None:
    """The kind of that name."""
    return cast(Kind, text) if text in KINDS else None
