"""Owns the features that the crowd of the crash harness does not use: each is a client of its own with its own proof.

Its rule: what was answered for has arrived when all is over, nothing arrives that was not sent, and a feature outlives
every kill of the daemon: it connects again and sends again what was not answered, under the same dedup key.
"""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import httpx

from tests.crash.house import DEDUP
from tests.harness.amqp import AmqpPeer, Delivered
from tests.harness.daemon import Daemon
from tests.harness.mqtt import MqttPeer
from tests.harness.process import Address
from tests.soak.receiver import Receiver

GONE = (OSError, TimeoutError, httpx.TransportError)
"""What a client meets while the daemon is away."""
PATIENCE_SECONDS = 15.0
ONCE = {"dedup": DEDUP}
MAX_DELIVERIES = 3
RETRY = {"max_deliveries": MAX_DELIVERIES, "retry_delay": "20ms..100ms"}
DELAY_SECONDS = 1.0
DEAD = ("flaky.dead", "hooked.dead")
"""Their messages are redriven."""


def additions(receiver: Receiver, web: str) -> dict[str, Any]:
    """What the features need of the configuration. web: where the http plugin listens."""
    return {
        "transports": {
            "web": {"type": "http", "listen": web},
            "hook": {"type": "webhook", "queue": "hooked", "url": receiver.url},
        },
        "queues": {
            "later": {"delay": f"{DELAY_SECONDS:g}s", **ONCE},
            "brief": {"ttl": "500ms", "dead_letter": "brief.dead", **ONCE},
            "flaky": {"dead_letter": "flaky.dead", **ONCE, **RETRY},
            "hooked": {"group": "{topic}", "dead_letter": "hooked.dead", **ONCE, **RETRY},
            "wills": {},
            **{name: {} for name in ("brief.dead", *DEAD)},
        },
        "routes": [{"from": f"{name}/#", "to": name} for name in ("later", "brief", "flaky", "hooked", "wills")],
    }


class House:
    """The daemon as the features see it. up: it may be connected to. run: how often it was started."""

    def __init__(self, daemon: Daemon, configuration: dict[str, Any]) -> None:
        """`configuration` says where it listens, in every run."""
        self.daemon = daemon
        self.configuration = configuration
        self.up = asyncio.Event()
        self.run = 0
        self.over = False
        """Nothing new is sent any more."""

    def address(self, name: str) -> Address:
        section = self.configuration["admin"] if name == "admin" else self.configuration["transports"][name]
        host, _, port = section["listen"].rpartition(":")
        return Address(host, int(port))

    def url(self, name: str) -> str:
        return "http://{}:{}".format(*self.address(name))


class Trail:
    """Numbered messages: sent, answered for, arrived."""

    def __init__(self) -> None:
        self.issued = 0
        self.unanswered: dict[int, float] = {}
        """And when each was sent first."""
        self.awaited: set[int] = set()
        """Answered for, and not yet arrived."""
        self.arrivals = 0
        self.faults: list[str] = []
        self._early: set[int] = set()

    def issue(self) -> int:
        self.issued += 1
        self.unanswered[self.issued] = time.monotonic()
        return self.issued

    def answered(self, number: int) -> None:
        if self.unanswered.pop(number, None) is None or number in self._early:
            self._early.discard(number)
        else:
            self.awaited.add(number)

    def arrived(self, number: int) -> None:
        self.arrivals += 1
        if not 0 < number <= self.issued:
            self.faults.append(f"message {number} was never sent")
        if number in self.unanswered:
            self._early.add(number)
        self.awaited.discard(number)


class Feature:
    """Lives until `house.over`, over all kills. `pause`: seconds between two steps."""

    name = ""
    pause = 0.02

    def __init__(self, house: House) -> None:
        self.house = house
        self.trail = Trail()
        self.faults = self.trail.faults

    async def live(self) -> None:
        """Until it is cancelled."""
        while True:
            await self.house.up.wait()
            try:
                await self.connected()
            except GONE:
                await asyncio.sleep(0.1)

    async def connected(self) -> None:
        """One connection, until it is lost."""
        raise NotImplementedError

    def left(self) -> str:
        """What is still to come; "" for nothing."""
        trail = self.trail
        if not trail.unanswered and not trail.awaited:
            return ""
        return f"{self.name}: {len(trail.awaited)} did not arrive, {len(trail.unanswered)} were not answered"

    def proof(self) -> str:
        """Why it proved nothing; "" if it did."""
        return "" if self.trail.arrivals else f"{self.name}: nothing arrived at all"


def body_of(number: int) -> bytes:
    return json.dumps({"id": number, "pad": "x" * (number * 37 % 500)}).encode()


def number_of(body: bytes) -> int:
    """-1 for what no feature sent."""
    number = json.loads(body)["id"]
    return number if body == body_of(number) else -1


class Stream(Feature):
    """AMQP, with confirms: publishes to `topic`, consumes `inbox`."""

    topic = inbox = ""

    async def connected(self) -> None:
        self.peer = peer = await AmqpPeer.connect(self.house.address("amqp"))
        peer.on_confirm = self._on_confirm
        peer.on_delivery = lambda delivered: self.came(number_of(delivered.body), delivered)
        await peer.consume(self.inbox, prefetch=50)
        for number in list(self.trail.unanswered):
            self._publish(number)
        while not peer.lost.is_set():
            if not self.house.over:
                self._publish(self.trail.issue())
            await asyncio.sleep(self.pause)

    def _publish(self, number: int) -> None:
        self.peer.publish(self.topic, body_of(number), number)

    def _on_confirm(self, number: int, stored: bool) -> None:
        if stored:
            self.trail.answered(number)
        else:
            self.faults.append(f"{self.name}: {number} was refused")

    def came(self, number: int, delivered: Delivered) -> None:
        self.trail.arrived(number)
        self.peer.ack(delivered.tag)


class Delayed(Stream):
    name, topic, inbox = "delay", "later.one", "later"

    def __init__(self, house: House) -> None:
        super().__init__(house)
        self._sent: dict[int, float] = {}

    def _publish(self, number: int) -> None:
        self._sent.setdefault(number, time.monotonic())
        super()._publish(number)

    def came(self, number: int, delivered: Delivered) -> None:
        sent = self._sent.pop(number, 0.0)
        if sent and (early := sent + DELAY_SECONDS - time.monotonic()) > 0:
            self.faults.append(f"delay: {number} came {early:.3f} s early")
        super().came(number, delivered)


class Expiring(Stream):
    """Nobody consumes it in time: every message ends among the dead letters, as expired."""

    name, topic, inbox = "ttl", "brief.one", "brief.dead"

    def came(self, number: int, delivered: Delivered) -> None:
        if (deaths := delivered.headers.get("x-death")) and deaths[0]["reason"] != "expired":
            self.faults.append(f"ttl: {number} died as {deaths[0]['reason']}")
        super().came(number, delivered)


class Flaky(Stream):
    """Every tenth message fails until it is dead, and is taken when it has been redriven."""

    name, topic, inbox = "retry", "flaky.one", "flaky"

    def __init__(self, house: House) -> None:
        super().__init__(house)
        self._failures: dict[int, int] = {}

    def came(self, number: int, delivered: Delivered) -> None:
        failures = self._failures.get(number, 0)
        if number % 10 == 0 and failures < MAX_DELIVERIES:
            self._failures[number] = failures + 1
            self.peer.nack(delivered.tag, requeue=True)
            return
        self._failures.pop(number, None)
        super().came(number, delivered)


class Hooked(Feature):
    """In by the http plugin, out by the webhook, whose target fails now and then."""

    name = "http"

    def __init__(self, house: House, receiver: Receiver) -> None:
        super().__init__(house)
        self._receiver = receiver

    async def connected(self) -> None:
        url = f"{self.house.url('web')}/topics/hooked/one"
        async with httpx.AsyncClient(trust_env=False) as client:
            while True:
                while self._receiver.bodies:
                    self.trail.arrived(number_of(self._receiver.bodies.popleft()))
                waiting = list(self.trail.unanswered)
                if not waiting and self.house.over:
                    await asyncio.sleep(self.pause)
                    continue
                number = waiting[0] if waiting else self.trail.issue()
                answer = await client.post(url, content=body_of(number))
                if answer.status_code in (200, 201):
                    self.trail.answered(number)
                elif answer.status_code != 503:  # it is stopping
                    self.faults.append(f"http: {number} was answered {answer.status_code} {answer.text}")
                await asyncio.sleep(self.pause)


class Retained(Feature):
    """Whoever subscribes gets the latest value that was answered for, or a later one. QoS 0 goes along: it may be
    lost at a kill, and is never invented."""

    name = "retained"
    pause = 0.01
    topics = 5

    def __init__(self, house: House) -> None:
        super().__init__(house)
        self._acked: dict[str, int] = {}
        self._noise = 0
        self._looking = False
        self.heard = 0

    async def connected(self) -> None:
        peer = await MqttPeer.connect(self.house.address("mqtt"), "retainer")
        peer.on_answer = self._on_answer
        peer.on_message = self._on_noise
        await peer.subscribe("noise/#", qos=0)
        await self._look()  # before anything new hides what was lost
        steps = 0
        # Numbers without an answer are over: a later one takes the place of each.
        self.trail.unanswered.clear()
        while not peer.lost.is_set():
            if not self.house.over:
                number = self.trail.issue()
                topic = f"state/{number % self.topics}"
                peer.publish(topic, b"%d" % number, (topic, number), retain=True)
                self._noise += 1
                peer.publish("noise/one", b"%d" % self._noise, qos=0)
            steps += 1
            if steps % 40 == 0:
                await self._look()
            await asyncio.sleep(self.pause)

    def _on_answer(self, token: tuple[str, int]) -> None:
        topic, number = token
        self.trail.unanswered.pop(number, None)
        self._acked[topic] = max(number, self._acked.get(topic, 0))

    def _on_noise(self, topic: str, body: bytes, packet_id: int) -> None:
        self.heard += 1
        if int(body) > self._noise:
            self.faults.append(f"QoS 0: {int(body)} was never sent")

    async def _look(self) -> None:
        expected = dict(self._acked)
        found: dict[str, int] = {}
        self._looking = bool(expected)
        peer = await MqttPeer.connect(self.house.address("mqtt"), "looker")

        def on_message(topic: str, body: bytes, packet_id: int) -> None:
            found[topic] = max(int(body), found.get(topic, 0))
            if packet_id:
                peer.ack(packet_id)

        peer.on_message = on_message
        await peer.subscribe("state/#")
        for _ in range(int(PATIENCE_SECONDS / 0.02)):
            if all(found.get(topic, 0) >= number for topic, number in expected.items()):
                self.trail.arrivals += self._looking
                break
            if peer.lost.is_set():
                return
            await asyncio.sleep(0.02)
        else:
            self.faults.append(f"retained: {expected} were answered for, {found} came")
        self._looking = False
        await peer.close()

    def left(self) -> str:
        return "retained: values are still missing" if self._looking else ""

    def proof(self) -> str:
        return super().proof() or ("" if self.heard else "QoS 0: nothing was heard at all")


class Wills(Feature):
    """Clients that vanish: their wills arrive, unless the daemon is killed before it sees that they are gone."""

    name = "wills"
    pause = 0.3

    async def connected(self) -> None:
        address = self.house.address("mqtt")
        watcher = await MqttPeer.connect(address, "heir")
        watcher.on_message = lambda topic, body, packet_id: self._came(watcher, body, packet_id)
        await watcher.subscribe("$queue/wills")
        self.trail.awaited.clear()  # of those that vanished with the daemon nothing is promised
        self.trail.unanswered.clear()
        while not watcher.lost.is_set():
            if not self.house.over:
                number = self.trail.issue()
                peer = await MqttPeer.connect(address, f"mortal{number}", will=("wills/one", b"%d" % number))
                self.trail.answered(number)
                peer.vanish()
            await asyncio.sleep(self.pause)

    def _came(self, watcher: MqttPeer, body: bytes, packet_id: int) -> None:
        self.trail.arrived(int(body))
        watcher.ack(packet_id)


class Operator(Feature):
    """Reloads and redrives, as somebody at the command line would."""

    name = "operator"
    pause = 1.0

    def __init__(self, house: House) -> None:
        super().__init__(house)
        self.reloads = self.redriven = 0

    async def connected(self) -> None:
        run = self.house.run
        async with httpx.AsyncClient(trust_env=False, base_url=self.house.url("admin"), timeout=30) as client:
            while self.house.up.is_set() and run == self.house.run:
                for queue in DEAD:
                    answer = await client.post("/api/v1/redrive", json={"queue": queue})
                    progress = json.loads(answer.text.splitlines()[-1])
                    if answer.status_code != 200 or progress.get("error"):
                        self.faults.append(f"redrive: {answer.status_code} {progress}")
                    self.redriven += progress.get("moved", 0)
                if not self.house.over:
                    self._reload()
                await asyncio.sleep(self.pause)
        await asyncio.sleep(0.1)

    def _reload(self) -> None:
        self.reloads += 1
        configuration = self.house.configuration
        later = {**configuration["queues"]["later"], "max_messages": 100_000 + self.reloads}
        self.house.daemon.configure({**configuration, "queues": {**configuration["queues"], "later": later}})
        if self.house.daemon.running:
            self.house.daemon.hup()

    def proof(self) -> str:
        return "" if self.reloads and self.redriven else "operator: nothing was redriven"
