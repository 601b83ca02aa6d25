"""Owns what exchange.* and queue.* do: each method becomes calls of the core and of the topology, and an answer.

Its rule: the answer to what is durable may be sent only when its changes are (`Answer.changes`); everything a client
may not do is refused with the code and on the level that RabbitMQ uses.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from pamqp import commands as amqp

from gateway.errors import BindingsFullError, GatewayError, LockedQueueError, ReservedNameError
from gateway.model.message import DEFAULT_EXCHANGE
from gateway.model.names import Actor, check_use, is_reserved
from gateway.model.values import same
from gateway.transport import Binding, ExchangeBinding, Gateway, QueueView, StateChange
from transports.amqp.arguments import CLIENT_POLICY, first_difference, policy_of
from transports.amqp.codec import encode_method
from transports.amqp.errors import (
    ACCESS_REFUSED,
    COMMAND_INVALID,
    NOT_FOUND,
    PRECONDITION_FAILED,
    RESOURCE_ERROR,
    RESOURCE_LOCKED,
    AmqpError,
)
from transports.amqp.names import DIRECT_REPLY
from transports.amqp.topology import OWNER, Declared, Exchange, Topology, exchange_kind
from transports.amqp.vhost import ROOT

if TYPE_CHECKING:
    from transports.amqp.listener import AmqpSettings

ALTERNATE = "alternate-exchange"
DELAYED_TYPE = "x-delayed-message"
"""Of RabbitMQ's plugin for delays. Here any exchange takes delayed messages, so it asks for what there is: an exchange
of the type that `x-delayed-type` names."""
KIND_ARGUMENT = "x-delayed-type"
REPLIES_POLICY = msgspec.structs.replace(CLIENT_POLICY, durable=False)
"""Of direct replies: in memory, and the oldest goes if there is no room."""


class Answer(NamedTuple):
    """frame: what to send, b"" for nothing. changes: to be made durable before, None if there is nothing to wait
    for. undo: takes back what was made if the store refuses the changes; None for what was taken away."""

    frame: bytes = b""
    changes: list[StateChange] | None = None
    undo: Callable[[], object] | None = None


class Declarations:
    """Those of one connection, which is the holder of its exclusive queues. Methods raise AmqpError.

    What is there already may be declared and bound again at any time, since nothing is made then; but only behind a
    barrier (`Gateway.put`), so that whatever made it is durable or undone."""

    __slots__ = ("actor", "gateway", "holder", "last_queue", "settings", "topology", "vhost")

    def __init__(self, gateway: Gateway, topology: Topology, holder: object, settings: AmqpSettings) -> None:
        self.gateway = gateway
        self.topology = topology
        self.holder = holder
        self.settings = settings
        self.actor = Actor(OWNER)
        """As whom the connection acts: the core knows its exclusive queues as this one's."""
        self.vhost = ROOT
        """Where its names are."""
        self.last_queue: dict[int, str] = {}
        """By channel: the queue declared last, which an empty name stands for [AMQP 1.7.2.1.queue]."""

    # finding

    def exchange(self, name: str) -> Exchange:
        full = self.vhost.exchange(name)
        found = self.topology.exchanges.get(full)
        if found is None:
            raise AmqpError(NOT_FOUND, f"no {self.vhost.tell('exchange', full)}")
        return found

    def queue(self, channel: int, name: str) -> QueueView:
        """The queue a client names, if this client may use it."""
        view = self.named(channel, name)
        self.check_holder(view)
        return view

    def named(self, channel: int, name: str) -> QueueView:
        """The queue a client names, which may be another's."""
        full = self.name(channel, name)
        view = self.find(full)
        if view is None:
            raise AmqpError(NOT_FOUND, f"no {self.vhost.tell('queue', full)}")
        return view

    def name(self, channel: int, name: str) -> str:
        """The core's name of the queue that a client names, which need not be there; "" is the one declared last."""
        name = name or self.last_queue.get(channel, "")
        if not name:
            raise AmqpError(NOT_FOUND, "no previously declared queue")
        full = self.vhost.full(name)
        if is_reserved(full):
            raise AmqpError(ACCESS_REFUSED, f"{self.vhost.tell('queue', full)} has a reserved name")
        return full

    def find(self, full: str) -> QueueView | None:
        """The queue of that name, of those that a client may name."""
        return None if self.vhost.own(full).startswith(DIRECT_REPLY) else self.gateway.queue(full)

    def check_holder(self, view: QueueView) -> None:
        """Raises AmqpError if it is another's: the core's word in AMQP's."""
        try:
            check_use(view, self.actor)
        except ReservedNameError as error:
            raise AmqpError(ACCESS_REFUSED, f"{self.vhost.tell('queue', view.name)} has a reserved name") from error
        except LockedQueueError as error:
            locked = self.vhost.tell("queue", view.name)
            raise AmqpError(RESOURCE_LOCKED, f"cannot obtain exclusive access to locked {locked}") from error

    def _check_share(self, what: str, has: int, most: int) -> None:
        """One user must leave room for the others; without users nobody can be told from another."""
        if has >= most and not self.gateway.anonymous:
            raise AmqpError(RESOURCE_ERROR, f"user {self.actor.user!r} has {has} {what}, and may have {most}")

    def check_store(self) -> None:
        """What must last and can't be stored now is refused before it is made."""
        if self.gateway.refusing:
            raise AmqpError(RESOURCE_ERROR, f"nothing durable can be made at present: {self.gateway.refusing}")

    # exchanges

    def exchange_declare(self, channel: int, method: amqp.Exchange.Declare) -> Answer:
        frame = b"" if method.nowait else encode_method(channel, amqp.Exchange.DeclareOk)
        name = method.exchange
        if method.passive:
            if name == DEFAULT_EXCHANGE:
                raise AmqpError(ACCESS_REFUSED, "operation not permitted on the default exchange")
            self.exchange(name)
            return Answer(frame)
        arguments: Mapping[str, Any] = method.arguments or {}
        delayed = method.exchange_type == DELAYED_TYPE
        kind = exchange_kind(str(arguments.get(KIND_ARGUMENT)) if delayed else method.exchange_type)
        if kind is None and delayed:
            raise AmqpError(
                PRECONDITION_FAILED, f"invalid arg {KIND_ARGUMENT!r} for exchange {name!r}: no exchange type"
            )
        if kind is None:
            raise AmqpError(COMMAND_INVALID, f"unknown exchange type {method.exchange_type!r}")
        if name == DEFAULT_EXCHANGE:
            raise AmqpError(ACCESS_REFUSED, "operation not permitted on the default exchange")
        for argument, value in arguments.items():
            if argument == ALTERNATE and (not isinstance(value, str) or value == DEFAULT_EXCHANGE):
                why = "the name of another exchange is needed"
                raise AmqpError(PRECONDITION_FAILED, f"invalid arg {argument!r} for exchange {name!r}: {why}")
            if argument != ALTERNATE and not (delayed and argument == KIND_ARGUMENT):
                raise AmqpError(PRECONDITION_FAILED, f"invalid arg {argument!r} for exchange {name!r}: not supported")
        full = self.vhost.full(name)
        alternate = self.vhost.full(arguments[ALTERNATE]) if ALTERNATE in arguments else None
        wanted = Exchange(full, kind, method.durable, method.auto_delete, method.internal, self.actor.user, alternate)
        have = self.topology.exchanges.get(full)
        if have is not None:
            if have != msgspec.structs.replace(wanted, user=have.user):
                raise AmqpError(PRECONDITION_FAILED, self._exchange_difference(wanted, have))
            return Answer(frame)
        if name.startswith("amq."):
            raise AmqpError(ACCESS_REFUSED, f"exchange name {name!r} contains reserved prefix 'amq.*'")
        if len(self.topology.exchanges) - self.topology.predeclared >= self.settings.max_exchanges:
            raise AmqpError(RESOURCE_ERROR, f"there are {self.settings.max_exchanges} exchanges already")
        self._check_share(
            "exchanges", self.topology.exchanges_of(self.actor.user), self.settings.max_exchanges_per_user
        )
        if wanted.durable:
            self.check_store()
        if alternate is not None:
            self.bind_exchange(
                ExchangeBinding(exchange=full, to=alternate, otherwise=True, durable=wanted.durable, owner=OWNER)
            )
        changes = self.topology.add_exchange(wanted)

        def undo() -> None:
            if self.topology.exchanges.get(full) is wanted:  # it may be gone by now, and another have its name
                self._remove_exchange(full)

        return Answer(frame, changes or None, undo)

    def _exchange_difference(self, wanted: Exchange, have: Exchange) -> str:
        for what in ("kind", "durable", "auto_delete", "internal", "alternate"):
            asked, there = getattr(wanted, what), getattr(have, what)
            if asked != there:
                break
        name = {"kind": "type", "alternate": ALTERNATE}.get(what, what)
        return (
            f"inequivalent arg {name!r} for {self.vhost.tell('exchange', have.name)}: "
            f"received {self._show(asked)} but current is {self._show(there)}"
        )

    def _show(self, value: Any) -> str:
        return _show(self.vhost.own(value) if isinstance(value, str) else value)

    def bind_exchange(self, binding: ExchangeBinding) -> None:
        """Raises AmqpError if all bindings together take too much, and ValueError."""
        try:
            self.gateway.bind_exchange(binding)
        except BindingsFullError as error:
            raise AmqpError(RESOURCE_ERROR, str(error)) from error

    def _remove_exchange(self, name: str) -> list[StateChange]:
        """With its bindings, those that lead to it from other exchanges too; but who names it as alternate finds it
        again if it comes again. Returns what must be kept."""
        changes = self.topology.remove_exchange(name)
        for binding in self._bindings_of(name):
            self.gateway.unbind(binding)
        sources: set[str] = set()
        for other in self.gateway.exchange_bindings():
            if other.exchange == name or (other.to == name and not other.otherwise):
                self.gateway.unbind_exchange(other)
                sources.add(other.exchange)
        return changes + self.drop_unbound(sources)

    def exchange_delete(self, channel: int, method: amqp.Exchange.Delete) -> Answer:
        frame = b"" if method.nowait else encode_method(channel, amqp.Exchange.DeleteOk)
        name = method.exchange
        if name == DEFAULT_EXCHANGE or name.startswith("amq."):
            raise AmqpError(ACCESS_REFUSED, f"exchange {name!r} in vhost {self.vhost.name!r} can't be deleted")
        full = self.vhost.full(name)
        if full not in self.topology.exchanges:
            return Answer(frame)
        if method.if_unused and self._leads_on(full):
            raise AmqpError(PRECONDITION_FAILED, f"{self.vhost.tell('exchange', full)} in use")
        return Answer(frame, self._remove_exchange(full) or None)

    def _leads_on(self, exchange: str) -> bool:
        """It has bindings, to queues or other exchanges."""
        onward = any(one.exchange == exchange and not one.otherwise for one in self.gateway.exchange_bindings())
        return onward or bool(self._bindings_of(exchange))

    def _bindings_of(self, exchange: str) -> list[Binding]:
        return [
            binding
            for view in self.gateway.queues()
            for binding in self.gateway.bindings(view.name)
            if binding.exchange == exchange
        ]

    def drop_unbound(self, exchanges: set[str]) -> list[StateChange]:
        """Auto-delete exchanges that have just lost their last binding."""
        changes: list[StateChange] = []
        for name in exchanges:
            found = self.topology.exchanges.get(name)
            if found is not None and found.auto_delete and not self._leads_on(name):
                changes += self._remove_exchange(name)
        return changes

    # queues

    def queue_declare(self, channel: int, method: amqp.Queue.Declare) -> Answer:
        name = method.queue
        if name.startswith(DIRECT_REPLY):
            return self._declare_replies(channel, method)
        view = None
        if name:
            view = self.gateway.queue(self.vhost.full(name))
        elif method.passive:
            view = self.queue(channel, "")
        if method.passive and view is None:
            raise AmqpError(NOT_FOUND, f"no queue {name!r} in vhost {self.vhost.name!r}")
        changes: list[StateChange] | None = None
        undo: Callable[[], object] | None = None
        if view is None:
            view, changes = self._declare(method, name or "amq.gen-" + secrets.token_urlsafe(16))
            undo = self._undo_declare(view)
        else:
            self.check_holder(view)
            if not method.passive:
                self._check_equal(method, view)
        self.last_queue[channel] = name = self.vhost.own(view.name)
        if method.nowait:
            return Answer(b"", changes, undo)
        consumers = self.topology.consumers(view.name)
        frame = encode_method(
            channel, amqp.Queue.DeclareOk, queue=name, message_count=view.depth, consumer_count=consumers
        )
        return Answer(frame, changes, undo)

    def _declare_replies(self, channel: int, method: amqp.Queue.Declare) -> Answer:
        """Makes nothing: it is how one asks whether somebody still waits for an answer."""
        name = method.queue
        full = self.vhost.full(name)
        if name != DIRECT_REPLY and (not name.startswith(DIRECT_REPLY + ".") or self.gateway.queue(full) is None):
            raise AmqpError(NOT_FOUND, f"no {self.vhost.tell('queue', full)}")
        if method.nowait:
            return Answer()
        return Answer(encode_method(channel, amqp.Queue.DeclareOk, queue=name, message_count=0, consumer_count=1))

    def make_replies(self) -> QueueView:
        """A queue for the direct replies to one channel."""
        name = self.vhost.full(f"{DIRECT_REPLY}.{secrets.token_urlsafe(16)}")
        return self.gateway.declare(name, REPLIES_POLICY, OWNER, self.actor)

    def _declare(self, method: amqp.Queue.Declare, name: str) -> tuple[QueueView, list[StateChange] | None]:
        if is_reserved(name) or (name.startswith("amq.") and method.queue):
            raise AmqpError(ACCESS_REFUSED, f"queue name {name!r} has a reserved prefix")
        arguments: Mapping[str, Any] = method.arguments or {}
        durable = method.durable and not method.exclusive  # an exclusive queue ends with its connection (ruling 25)
        policy = policy_of(arguments, durable, self.vhost)
        if durable:
            self.check_store()
        settings, topology = self.settings, self.topology
        gone: list[StateChange] = []
        share_is_used = (
            topology.queues_of(self.actor.user) >= settings.max_queues_per_user and not self.gateway.anonymous
        )
        if share_is_used or topology.queues >= settings.max_queues:
            gone = topology.make_room(self.gateway.queues, self.gateway.now())
        if topology.queues >= settings.max_queues:
            raise AmqpError(RESOURCE_ERROR, f"there are {settings.max_queues} queues of clients already")
        self._check_share("queues", topology.queues_of(self.actor.user), settings.max_queues_per_user)
        try:
            view = self.gateway.declare(self.vhost.full(name), policy, OWNER, self.actor if method.exclusive else None)
        except GatewayError as error:
            raise AmqpError(PRECONDITION_FAILED, str(error)) from error
        arguments = dict(arguments)
        user = self.actor.user
        declared = Declared(view.name, durable, method.exclusive, method.auto_delete, arguments, user)
        changes = self.topology.add_queue(declared, self.holder)
        gone += self.topology.forget(self.gateway.queues)
        if gone:
            self.gateway.keep(gone)
        return view, changes or None

    def _undo_declare(self, view: QueueView) -> Callable[[], object]:
        def undo() -> None:
            if self.gateway.queue(view.name) is view:  # it may be gone by now, and another have its name
                self.topology.remove_queue(view.name)
                self.gateway.delete(view.name)

        return undo

    def _check_equal(self, method: amqp.Queue.Declare, view: QueueView) -> None:
        """A redeclaration asks for what there is [AMQP 1.7.2.1]. As in RabbitMQ, whether it is exclusive says more than
        all other flags, and an exclusive queue is never durable."""
        arguments: Mapping[str, Any] = method.arguments or {}
        declared = self.topology.declared(view)
        if declared is None:
            have = Declared(view.name, view.policy.durable, False, False, {})
        elif method.exclusive != declared.exclusive:
            locked, have_it = self.vhost.tell("queue", view.name), _show(declared.exclusive)
            raise AmqpError(
                RESOURCE_LOCKED,
                f"cannot obtain exclusive access to locked {locked}: "
                f"'exclusive' is {_show(method.exclusive)} but current is {have_it}",
            )
        else:
            have = declared
        flags = {"durable": method.durable and not have.exclusive}
        for flag in ("durable", "exclusive", "auto_delete"):
            asked, there = flags.get(flag, getattr(method, flag)), getattr(have, flag)
            if asked != there:
                raise self._unequal(view.name, flag, asked, there)
        if declared is None:
            different = first_difference(arguments, view.policy, self.vhost)
            if different is not None:
                raise self._unequal(view.name, different, arguments[different], "another value")
            return
        for argument in sorted({*arguments, *declared.arguments}):
            asked, there = arguments.get(argument), declared.arguments.get(argument)
            default = _DEFAULTS.get(argument)
            if not same(default if asked is None else asked, default if there is None else there):
                raise self._unequal(view.name, argument, asked, there)

    def _unequal(self, queue: str, what: str, asked: Any, there: Any) -> AmqpError:
        return AmqpError(
            PRECONDITION_FAILED,
            f"inequivalent arg {what!r} for {self.vhost.tell('queue', queue)}: "
            f"received {_show(asked)} but current is {_show(there)}",
        )

    def queue_delete(self, channel: int, method: amqp.Queue.Delete) -> Answer:
        try:
            view = self.queue(channel, method.queue)
        except AmqpError as error:
            if error.code != NOT_FOUND or not method.queue:
                raise
            # What is gone is deleted already, as in RabbitMQ.
            return Answer(b"" if method.nowait else encode_method(channel, amqp.Queue.DeleteOk))
        if view.owner != OWNER:
            raise AmqpError(ACCESS_REFUSED, f"queue {self.vhost.own(view.name)!r} is made by the configuration")
        if method.if_unused and view.consumers:
            raise AmqpError(PRECONDITION_FAILED, f"{self.vhost.tell('queue', view.name)} in use")
        if method.if_empty and view.depth:
            raise AmqpError(PRECONDITION_FAILED, f"{self.vhost.tell('queue', view.name)} is not empty")
        durable = view.policy.durable
        count, changes = self.delete_queue(view)
        frame = b"" if method.nowait else encode_method(channel, amqp.Queue.DeleteOk, message_count=count)
        return Answer(frame, changes if durable or changes else None)

    def delete_queue(self, view: QueueView) -> tuple[int, list[StateChange]]:
        """How many messages it held, and what must be kept."""
        exchanges = {binding.exchange for binding in self.gateway.bindings(view.name)}
        count = self.gateway.delete(view.name)
        return count, self.topology.remove_queue(view.name) + self.drop_unbound(exchanges)

    def consumer_left(self, queue: str, consumer: object) -> list[StateChange]:
        """An auto-delete queue goes with its last consumer. Returns what must be kept."""
        if not self.topology.remove_consumer(queue, consumer):
            return []
        view = self.gateway.queue(queue)
        if view is None:
            return []
        if self.vhost.own(queue).startswith(DIRECT_REPLY):
            self.gateway.delete(queue)
            return []
        declared = self.topology.declared(view)
        if declared is None or not declared.auto_delete:
            return []
        return self.delete_queue(view)[1]

    def end(self) -> list[StateChange]:
        """The connection is over: its exclusive queues go. Returns what must be kept."""
        changes: list[StateChange] = []
        for name in self.topology.held_by(self.holder):
            view = self.gateway.queue(name)
            if view is not None and self.topology.declared(view) is not None:
                changes += self.delete_queue(view)[1]
            else:
                changes += self.topology.remove_queue(name)
        return changes


_DEFAULTS = {
    "x-queue-type": "classic",
    "x-overflow": "drop-head",
    "x-queue-mode": "default",
    "x-single-active-consumer": False,
}
"""Arguments whose absence means a value."""


def _show(value: Any) -> str:
    if isinstance(value, bool):
        return "'true'" if value else "'false'"
    return "none" if value is None else repr(value)[:64]
