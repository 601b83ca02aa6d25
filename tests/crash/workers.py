"""Owns the consumers: AMQP workers, MQTT workers of a queue or a share, and MQTT sessions that watch topics.

Its rule: History hears of a settlement before its octets are written. From time to time a consumer publishes on its
own connection: once that is answered, all that it had settled before is durable (ruling 13).
"""

from __future__ import annotations

import asyncio
import itertools
import random

from tests.crash.history import Event, History, Key
from tests.crash.house import MARKS
from tests.crash.publishers import key_of
from tests.harness.amqp import AmqpPeer, Delivered
from tests.harness.daemon import Daemon
from tests.harness.mqtt import PUBCOMP, PUBREC, PUBREL, MqttPeer

MARK_EVERY = 12
MOST_HELD = 4
SLOWEST_STEP = 0.05
"""Seconds that a consumer by QoS 2 takes at most to answer, so that kills meet each state."""
_connections = itertools.count()


class Worker:
    """Takes from one place. `rejects`: some are given up for good. Settlements of what it holds come later, when
    other deliveries come or by `settle_all`."""

    def __init__(self, place: str, history: History, rng: random.Random, rejects: bool = False) -> None:
        self.place = place
        self.history = history
        self.rng = rng
        self.rejects = rejects
        self.held: dict[int, Key] = {}
        """By delivery tag or packet id, in the order in which they came."""
        self.name = ""
        self.draining = False
        """All is done, nothing given back."""
        self.peer: MqttPeer | AmqpPeer | None = None
        self._settled = self._marks = 0

    async def connect(self, daemon: Daemon) -> None:
        raise NotImplementedError

    def connected(self) -> None:
        self.name = f"{self.place}~{next(_connections)}"
        self.held.clear()
        self._settled = 0

    def lose(self) -> None:
        """The connection is gone, or about to be."""
        if self.name:
            self._tell("lost")
        self.name = ""
        self.held.clear()

    def vanish(self) -> None:
        if self.peer is not None:
            self.lose()
            self._silence()
            self.peer.vanish()

    def settle_all(self) -> None:
        while self.name and self.held:
            self.done(next(iter(self.held)))
        if self._settled:
            self.mark()

    def came(self, tag: int, body: bytes, again: str) -> None:
        """A delivery; what becomes of it."""
        key = key_of(body)
        self._tell("deliver", key, again)
        self.held[tag] = key
        choice = 1.0 if self.draining else self.rng.random()
        if choice < 0.06:
            self.give_back(tag)
        elif choice < 0.09 and self.rejects:
            self.reject(tag)
        elif choice < 0.2 and len(self.held) <= MOST_HELD:
            pass  # settled later, or never
        else:
            self.done(tag)
            if len(self.held) > MOST_HELD // 2:
                self.done(self.rng.choice(list(self.held)))
        if self._settled >= MARK_EVERY:
            self.mark()

    def done(self, tag: int) -> None:
        self._settle("done", tag)
        self.ack(tag)

    def mark(self) -> None:
        self._settled = 0
        self._marks += 1
        self.history.tell(Event("mark", who=self.name, number=self._marks))
        self.publish_mark((self.name, self._marks))

    def marked(self, token: tuple[str, int], stored: bool = True) -> None:
        if not stored:
            raise AssertionError(f"mark {token} was refused")
        self.history.tell(Event("durable", who=token[0], number=token[1]))

    def _settle(self, kind: str, tag: int) -> None:
        self._settled += 1
        self._tell(kind, self.held.pop(tag))

    def _tell(self, kind: str, key: Key | None = None, again: str = "-") -> None:
        group, number = key or ("-", 0)
        self.history.tell(Event(kind, self.place, self.name, group, number, again))

    # what differs between the protocols

    def ack(self, tag: int) -> None:
        raise NotImplementedError

    def give_back(self, tag: int) -> None:
        raise NotImplementedError

    def reject(self, tag: int) -> None:
        raise NotImplementedError

    def publish_mark(self, token: tuple[str, int]) -> None:
        raise NotImplementedError

    def _silence(self) -> None:
        raise NotImplementedError


class AmqpWorker(Worker):
    """Acks, one by one or several at once, nacks, rejects."""

    async def connect(self, daemon: Daemon) -> None:
        self.peer = peer = self._amqp = await AmqpPeer.connect(daemon.address("amqp"))
        self.connected()
        peer.on_delivery = self._on_delivery
        peer.on_confirm = self.marked
        await peer.consume(self.place, prefetch=self.rng.choice((1, 5, 20)))

    def _on_delivery(self, delivered: Delivered) -> None:
        self.came(delivered.tag, delivered.body, "yes" if delivered.redelivered else "no")
        if self.held and not self.draining and self.rng.random() < 0.04:
            last = max(self.held)
            for tag in list(self.held):
                self._settle("done", tag)
            self._amqp.ack(last, multiple=True)

    def ack(self, tag: int) -> None:
        self._amqp.ack(tag)

    def give_back(self, tag: int) -> None:
        self._tell("retry", self.held.pop(tag))
        self._amqp.nack(tag, requeue=True)

    def reject(self, tag: int) -> None:
        self._settle("dead", tag)
        self._amqp.nack(tag, requeue=False)

    def publish_mark(self, token: tuple[str, int]) -> None:
        self._amqp.publish(MARKS, b"mark", token, exchange="")

    def _silence(self) -> None:
        self._amqp.on_delivery = lambda delivered: None
        self._amqp.on_confirm = lambda token, stored: None


class MqttWorker(Worker):
    """Acks, in order: `$queue/NAME`, `$share/...` or a plain filter. `lasting`: the session survives its connection
    and any number of kills, and is never subscribed again."""

    qos = 1

    def __init__(
        self, place: str, filter: str, history: History, rng: random.Random, client_id: str, lasting: bool = False
    ) -> None:
        super().__init__(place, history, rng)
        self.filter = filter
        self.client_id = client_id
        self.lasting = lasting
        self.subscribed = False

    async def connect(self, daemon: Daemon) -> None:
        address = daemon.address("mqtt")
        peer = await MqttPeer.connect(address, self.client_id, clean=not self.lasting, prepare=self._prepare)
        if self.subscribed and not peer.session_present:
            raise AssertionError(f"the session of {self.client_id} is gone")
        if not self.subscribed:
            granted = await peer.subscribe(self.filter, self.qos)
            if granted != self.qos:
                raise AssertionError(f"{self.filter} was granted {granted}")
            self.subscribed = self.lasting

    def _prepare(self, peer: MqttPeer) -> None:
        self.peer = self._mqtt = peer
        peer.on_message = self._on_message
        peer.on_answer = self.marked
        self.connected()

    def _on_message(self, topic: str, body: bytes, packet_id: int) -> None:
        self.came(packet_id, body, "-")

    def done(self, tag: int) -> None:
        # A client sends its PUBACKs in the order in which the messages came [MQTT-4.6.0-2].
        while self.held and tag in self.held:
            first = next(iter(self.held))
            self._settle("done", first)
            self.ack(first)

    def ack(self, tag: int) -> None:
        self._mqtt.ack(tag)

    def give_back(self, tag: int) -> None:
        """MQTT 3.1.1 has no word for it: it is held."""

    def reject(self, tag: int) -> None:
        """As above."""

    def publish_mark(self, token: tuple[str, int]) -> None:
        self._mqtt.publish(f"$queue/{MARKS}", b"mark", token)

    def _silence(self) -> None:
        self._mqtt.on_message = lambda topic, body, packet_id: None
        self._mqtt.on_answer = lambda token: None


class ExactWorker(MqttWorker):
    """A session that subscribed by QoS 2: it takes a message when it comes first, and keeps its identifier until it is
    released, over any number of connections and kills."""

    qos = 2

    def __init__(self, place: str, filter: str, history: History, rng: random.Random, client_id: str) -> None:
        super().__init__(place, filter, history, rng, client_id, lasting=True)
        self._here: dict[int, Key] = {}
        """What came, by identifiers that are not released."""
        self._latest = 0.0

    def _prepare(self, peer: MqttPeer) -> None:
        super()._prepare(peer)
        peer.on_step = self._on_step

    def _on_message(self, topic: str, body: bytes, packet_id: int) -> None:
        key = key_of(body)
        if packet_id not in self._here:
            self._here[packet_id] = key
            self._tell("deliver", key)
            self.held[packet_id] = key
            self._settle("done", packet_id)
        elif self._here[packet_id] != key:
            raise AssertionError(f"{key} came as packet {packet_id}, which is still {self._here[packet_id]}")
        self._step(PUBREC, packet_id)

    def _on_step(self, kind: int, packet_id: int) -> None:
        if kind != PUBREL:
            raise AssertionError(f"{self.client_id} was sent a packet of type {kind}")
        self._here.pop(packet_id, None)
        self._step(PUBCOMP, packet_id)

    def _step(self, kind: int, packet_id: int) -> None:
        """Now or soon, by the connection that asked for it, and in order [MQTT-4.6.0-3]."""
        loop = asyncio.get_running_loop()
        is_slow = not self.draining and self.rng.random() < 0.1
        self._latest = max(self._latest + 1e-6, loop.time() + (self.rng.uniform(0, SLOWEST_STEP) if is_slow else 0))
        loop.call_at(self._latest, self._mqtt.step, kind, packet_id)

    def _silence(self) -> None:
        super()._silence()
        self._mqtt.on_step = lambda kind, packet_id: None
