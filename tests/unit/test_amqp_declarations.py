"""What is taken back when the store refuses a declaration: what was made then, and not what has its name by now."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from pamqp import commands as amqp

from gateway.transport import Gateway
from tests.harness.local import local_gateway
from transports.amqp.bindings import Bindings
from transports.amqp.declarations import Answer, Declarations
from transports.amqp.listener import AmqpSettings
from transports.amqp.topology import Topology


class Client:
    """What one connection declares and binds."""

    def __init__(self, gateway: Gateway, topology: Topology) -> None:
        self.declarations = Declarations(gateway, topology, self, AmqpSettings())
        self.bindings = Bindings(self.declarations)

    def queue(self, durable: bool = True) -> Answer:
        return self.declarations.queue_declare(1, amqp.Queue.Declare(queue="q", durable=durable))

    def exchange(self, durable: bool = True) -> Answer:
        return self.declarations.exchange_declare(1, amqp.Exchange.Declare(exchange="e", durable=durable))

    def bind(self) -> Answer:
        return self.bindings.queue_bind(1, amqp.Queue.Bind(queue="q", exchange="amq.direct", routing_key="k"))

    def bind_exchange(self) -> Answer:
        return self.bindings.exchange_bind(1, amqp.Exchange.Bind(source="amq.topic", destination="e", routing_key="k"))

    def prepare(self) -> None:
        self.queue()
        self.exchange()

    def gone(self, what: str) -> None:
        """Somebody takes it away."""
        if what == "queue":
            self.declarations.gateway.delete("q")
        elif what == "exchange":
            self.declarations.exchange_delete(1, amqp.Exchange.Delete(exchange="e"))
        elif what == "bind":
            self.bindings.queue_unbind(1, amqp.Queue.Unbind(queue="q", exchange="amq.direct", routing_key="k"))
        else:
            self.bindings.exchange_unbind(1, amqp.Exchange.Unbind(source="amq.topic", destination="e", routing_key="k"))

    def there(self, what: str) -> bool:
        gateway, topology = self.declarations.gateway, self.declarations.topology
        return bool(
            {
                "queue": lambda: gateway.queue("q"),
                "exchange": lambda: topology.exchanges.get("e"),
                "bind": lambda: gateway.bindings("q"),
                "bind_exchange": gateway.exchange_bindings,
            }[what]()
        )


@pytest.mark.parametrize("again", [False, True], ids=["alone", "made again by another"])
@pytest.mark.parametrize("what", ["queue", "exchange", "bind", "bind_exchange"])
def test_what_the_store_refuses_is_taken_back_and_nothing_that_another_has_made_since(what: str, again: bool) -> None:
    async def test() -> None:
        async with local_gateway() as (gateway, _):
            topology = Topology()
            one, other = Client(gateway, topology), Client(gateway, topology)
            if what.startswith("bind"):
                one.prepare()
            make: Callable[[Client], Answer] = getattr(Client, what)
            answer = make(one)
            assert answer.undo is not None
            if again:
                one.gone(what)
                assert not one.there(what)
                make(other)
            answer.undo()
            assert other.there(what) is again
            answer.undo()
            assert other.there(what) is again

    asyncio.run(test())
