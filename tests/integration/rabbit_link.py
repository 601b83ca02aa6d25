"""Owns what tests of links to RabbitMQ share: a configuration, clients that come back, Traffic both ways.

Its rule: a client answers for what it shows; nothing here knows how a link works.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pika
import pika.exceptions
from pika.adapters.blocking_connection import BlockingChannel

from tests.faults.abuse import metric
from tests.harness.daemon import LISTENERS, Daemon
from tests.harness.link import GROUPS, SECONDS, Peer, check_order, readiness, wait_for
from tests.harness.rabbitmq import RabbitMq

MakePeer = Callable[..., Peer]
AHEAD = 100
"""Messages that a device of Traffic sends before the first of them is seen at the other end."""


def config(node: RabbitMq, name: str, **link: Any) -> dict[str, Any]:
    """What is published to the exchange NAME.feed there comes into the queue `in`, and `down/X` of ours goes to the
    exchange NAME.out there, which leads to the queue NAME.seen."""
    rabbit = {
        "type": "amqp-client",
        "url": node.url,
        "consume": [f"{name}.in"],
        "topology": {
            "exchanges": {f"{name}.feed": {}, f"{name}.out": {}},
            "queues": {f"{name}.in": {}, f"{name}.seen": {}},
            "bindings": [
                {"exchange": f"{name}.feed", "queue": f"{name}.in", "key": "up.#"},
                {"exchange": f"{name}.out", "queue": f"{name}.seen", "key": "site.#"},
            ],
        },
        "reconnect": "50ms..500ms",
        "heartbeat": "1s",
        "connect_timeout": "5s",
        "confirm_timeout": "3s",
        **link,
    }
    return {
        "transports": {**LISTENERS, "rabbit": rabbit},
        "queues": {"in": {"group": "{topic}"}, "lost": {}},
        "routes": [
            {"from": "up/#", "source": "rabbit", "to": "in"},
            {"from": "down/#", "to": f"rabbit:{name}.out/site/{{topic[1]}}"},
        ],
    }


def is_up(daemon: Daemon, after: int = 0) -> None:
    daemon.wait_for("link is up", lambda record: record["part"] == "publishing", after=after)
    daemon.wait_for("link consumes", after=after)


def impaired(daemon: Daemon) -> str:
    return str(readiness(daemon)[1]["impaired"].get("rabbit", ""))


def depth(daemon: Daemon, queue: str = "link.rabbit") -> float:
    return metric(daemon, "gateway_queue_messages", queue=queue)


def refusals(daemon: Daemon, reason: str) -> float:
    return metric(daemon, "gateway_transport_refusals", transport="rabbit", reason=reason)


@contextlib.contextmanager
def there(node: RabbitMq) -> Iterator[BlockingChannel]:
    """A channel at the node."""
    with pika.BlockingConnection(pika.URLParameters(node.url)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        yield channel


class Client(threading.Thread):
    """A pika client on a thread, which comes back whenever its connection ends, until it is done or closed."""

    def __init__(self, node: RabbitMq) -> None:
        super().__init__(daemon=True)
        self._parameters = pika.URLParameters(f"{node.url}?heartbeat=0&socket_timeout=5&blocked_connection_timeout=20")
        self.closing = threading.Event()
        self.start()

    def run(self) -> None:
        while not self.closing.is_set():
            try:
                with pika.BlockingConnection(self._parameters) as connection:
                    if self.work(connection.channel()):
                        return
            except (pika.exceptions.AMQPError, OSError):
                self.closing.wait(0.2)

    def work(self, channel: BlockingChannel) -> bool:
        """True when all is done."""
        raise NotImplementedError


class Feeder(Client):
    """Publishes `count` numbers with confirms, one after the other."""

    def __init__(self, node: RabbitMq, exchange: str, count: int) -> None:
        self._exchange = exchange
        self._numbers = list(range(count))
        super().__init__(node)

    def work(self, channel: BlockingChannel) -> bool:
        channel.confirm_delivery()
        persistent = pika.BasicProperties(delivery_mode=2)
        while self._numbers:
            number = self._numbers[0]
            channel.basic_publish(self._exchange, f"up.{number % GROUPS}", b"%d" % number, persistent, mandatory=True)
            self._numbers.pop(0)
        return True


class Observer(Client):
    """Consumes a queue, one message after the other."""

    def __init__(self, node: RabbitMq, queue: str) -> None:
        self._queue = queue
        self.seen: list[tuple[str, pika.BasicProperties, bytes]] = []
        self.changed = threading.Condition()
        super().__init__(node)

    def work(self, channel: BlockingChannel) -> bool:
        for method, properties, body in channel.consume(self._queue, inactivity_timeout=0.2):
            if method is not None:
                with self.changed:
                    self.seen.append((method.routing_key, properties, body))
                    self.changed.notify_all()
                channel.basic_ack(method.delivery_tag)
            if self.closing.is_set():
                return True
        return False

    def wait_until(self, enough: Callable[[list[bytes]], bool], seconds: float = SECONDS) -> list[bytes]:
        with self.changed:
            assert self.changed.wait_for(lambda: enough(self.bodies), seconds), f"{len(self.seen)} came: {self.bodies}"
            return self.bodies

    def take(self, *bodies: bytes) -> list[tuple[str, pika.BasicProperties, bytes]]:
        assert self.wait_until(lambda found: len(found) >= len(bodies)) == list(bodies)
        return self.seen

    @property
    def bodies(self) -> list[bytes]:
        return [body for _, _, body in self.seen]


class Traffic:
    """`count` messages each way, one at a time, on threads of their own."""

    def __init__(
        self,
        gateway: Daemon,
        node: RabbitMq,
        name: str,
        peer: MakePeer,
        observe: Callable[..., Observer],
        count: int,
    ) -> None:
        self.count = count
        self.worker = peer(gateway.address("mqtt"), "worker", "$queue/in")
        self.observer = observe(node, f"{name}.seen")
        self.feeder = Feeder(node, f"{name}.feed", count)
        self._device = threading.Thread(target=self._send, args=(peer(gateway.address("mqtt"), "device"),), daemon=True)
        self._device.start()

    def _send(self, device: Peer) -> None:
        for number in range(self.count):
            # Not far ahead, or all would be there before a test has begun to break something.
            self.observer.wait_until(lambda bodies, least=number - AHEAD: len(bodies) >= least, 3 * SECONDS)
            device.publish(f"down/{number % GROUPS}", b"%d" % number)

    def under_way(self, count: int) -> None:
        self.worker.wait_until(lambda bodies: len(bodies) >= count)
        self.observer.wait_until(lambda bodies: len(bodies) >= count)

    def finish(self) -> None:
        """All of it arrives, in the order of each group."""
        check_order(self.worker.wait_until(lambda bodies: len(set(bodies)) >= self.count), self.count)
        check_order(self.observer.wait_until(lambda bodies: len(set(bodies)) >= self.count), self.count)
        for thread in (self.feeder, self._device):
            thread.join(SECONDS)
            assert not thread.is_alive()


def drained(gateway: Daemon) -> None:
    wait_for(lambda: depth(gateway) == 0, "the outbox drains")
    wait_for(lambda: readiness(gateway)[1]["impaired"] == {}, "/readyz tells that it is over")
    assert metric(gateway, "gateway_transport_connections", transport="rabbit") == 2
    assert [record for record in gateway.log if "logger" in record or "text" in record] == [], "libraries have no say"
