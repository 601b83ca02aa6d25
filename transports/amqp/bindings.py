"""Owns what *.bind and *.unbind do: bindings of queues to exchanges, and of exchanges to each other.

Its rule: a binding is the core's, and as durable as both its ends; a route of the configuration is not a client's to
take away.
"""

from __future__ import annotations

from pamqp import commands as amqp

from gateway.errors import BindingsFullError
from gateway.model.message import DEFAULT_EXCHANGE
from gateway.transport import Binding, ExchangeBinding, QueueView, StateChange
from transports.amqp.codec import encode_method
from transports.amqp.declarations import Answer, Declarations
from transports.amqp.errors import ACCESS_REFUSED, PRECONDITION_FAILED, RESOURCE_ERROR, AmqpError
from transports.amqp.topology import OWNER


class Bindings:
    """Those of one connection. Methods raise AmqpError."""

    __slots__ = ("declarations", "gateway", "settings", "topology")

    def __init__(self, declarations: Declarations) -> None:
        self.declarations = declarations
        self.gateway = declarations.gateway
        self.settings = declarations.settings
        self.topology = declarations.topology

    # of queues

    def is_bound(self, channel: int, method: amqp.Queue.Bind) -> bool:
        """Whether there is such a binding already, which must last."""
        view, binding = self._binding(channel, method)
        return view.policy.durable and binding in self.gateway.bindings(view.name)

    def _binding(self, channel: int, method: amqp.Queue.Bind) -> tuple[QueueView, Binding]:
        """In this order RabbitMQ looks, and tells what is wrong first."""
        self._check_exchanges(method.exchange)
        view = self.declarations.named(channel, method.queue)
        exchange = self.declarations.exchange(method.exchange)
        binding = self.topology.binding(exchange, view.name, self._key(method, view.name), method.arguments or {})
        self.declarations.check_holder(view)
        return view, binding

    def queue_bind(self, channel: int, method: amqp.Queue.Bind) -> Answer:
        view, binding = self._binding(channel, method)
        bindings = self.gateway.bindings(view.name)
        frame = b"" if method.nowait else encode_method(channel, amqp.Queue.BindOk)
        if binding in bindings:
            return Answer(frame)
        if view.policy.durable:
            self.declarations.check_store()
        if len(bindings) >= self.settings.max_bindings:
            raise AmqpError(
                RESOURCE_ERROR,
                f"queue {self.declarations.vhost.own(view.name)!r} has {self.settings.max_bindings} bindings already",
            )
        try:
            self.gateway.bind(binding)
        except ValueError as error:
            raise AmqpError(PRECONDITION_FAILED, f"binding key {method.routing_key[:64]!r}: {error}") from error
        except BindingsFullError as error:
            raise AmqpError(RESOURCE_ERROR, str(error)) from error

        def undo() -> None:
            # It may be taken away by now, and an equal one be another's.
            if any(one is binding for one in self.gateway.bindings(view.name)):
                self.gateway.unbind(binding)

        return Answer(frame, [] if view.policy.durable else None, undo)

    def queue_unbind(self, channel: int, method: amqp.Queue.Unbind) -> Answer:
        """What is not bound, or has lost its queue or its exchange, is unbound already, as in RabbitMQ: two clients
        that clean up need not know of each other."""
        self._check_exchanges(method.exchange)
        frame = encode_method(channel, amqp.Queue.UnbindOk)
        view = self.declarations.find(self.declarations.name(channel, method.queue))
        exchange = self.topology.exchanges.get(self.declarations.vhost.exchange(method.exchange))
        if view is None or exchange is None:
            return Answer(frame)
        binding = self.topology.binding(exchange, view.name, self._key(method, view.name), method.arguments or {})
        bindings = self.gateway.bindings(view.name)
        changes: list[StateChange] = []
        if binding in bindings:
            self.declarations.check_holder(view)
            self.gateway.unbind(binding)
            changes = self.declarations.drop_unbound({exchange.name})
        elif any(
            other.owner != OWNER and (other.exchange, other.filter) == (binding.exchange, binding.filter)
            for other in bindings
        ):
            raise AmqpError(
                ACCESS_REFUSED,
                f"this binding of queue {self.declarations.vhost.own(view.name)!r} is made by the configuration",
            )
        return Answer(frame, changes if changes or view.policy.durable else None)

    def _key(self, method: amqp.Queue.Bind | amqp.Queue.Unbind, full: str) -> str:
        own = "" if method.queue else self.declarations.vhost.own(full)
        return method.routing_key or own  # [AMQP 1.7.2.3.queue]

    @staticmethod
    def _check_exchanges(*names: str) -> None:
        if DEFAULT_EXCHANGE in names:
            raise AmqpError(ACCESS_REFUSED, "operation not permitted on the default exchange")

    # of exchanges to each other

    def are_bound(self, method: amqp.Exchange.Bind) -> bool:
        """Whether there is such a binding already, which must last."""
        binding = self._between(method)
        return binding.durable and binding in self.gateway.exchange_bindings()

    def _between(self, method: amqp.Exchange.Bind) -> ExchangeBinding:
        self._check_exchanges(method.source, method.destination)
        source, to = self.declarations.exchange(method.source), self.declarations.exchange(method.destination)
        return self.topology.exchange_binding(source, to, method.routing_key, method.arguments or {})

    def exchange_bind(self, channel: int, method: amqp.Exchange.Bind) -> Answer:
        binding, others = self._between(method), self.gateway.exchange_bindings()
        frame = b"" if method.nowait else encode_method(channel, amqp.Exchange.BindOk)
        if binding in others:
            return Answer(frame)
        if binding.durable:
            self.declarations.check_store()
        if len(others) >= self.settings.max_bindings:
            most = self.settings.max_bindings
            raise AmqpError(RESOURCE_ERROR, f"there are {most} bindings between exchanges already")
        try:
            self.declarations.bind_exchange(binding)
        except ValueError as error:
            raise AmqpError(PRECONDITION_FAILED, f"binding key {method.routing_key[:64]!r}: {error}") from error

        def undo() -> None:
            if any(one is binding for one in self.gateway.exchange_bindings()):  # as above
                self.gateway.unbind_exchange(binding)

        return Answer(frame, [] if binding.durable else None, undo)

    def exchange_unbind(self, channel: int, method: amqp.Exchange.Unbind) -> Answer:
        """What is gone is unbound already, as in `queue_unbind`."""
        self._check_exchanges(method.source, method.destination)
        frame = b"" if method.nowait else encode_method(channel, amqp.Exchange.UnbindOk)
        vhost, exchanges = self.declarations.vhost, self.topology.exchanges
        source, to = exchanges.get(vhost.exchange(method.source)), exchanges.get(vhost.exchange(method.destination))
        if source is None or to is None:
            return Answer(frame)
        binding = self.topology.exchange_binding(source, to, method.routing_key, method.arguments or {})
        changes = self.declarations.drop_unbound({binding.exchange}) if self.gateway.unbind_exchange(binding) else []
        return Answer(frame, changes if changes or binding.durable else None)
