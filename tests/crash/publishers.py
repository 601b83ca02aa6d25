"""Owns the publishers: each has groups of its own, and sends again whatever was not answered.

Its rule: the numbers of a group go out in order; after a lost connection a publisher begins again at the lowest one
without an answer, and before that sends a few again that were answered: a daemon with dedup must not store these. With
QoS 2 it goes on in its session instead, and sends nothing as a new message twice.
"""

from __future__ import annotations

import json
import random
import time
from collections import deque
from typing import Any

from tests.crash.history import Event, History, Key
from tests.crash.house import EXACT_WEIGHTS, FILTERS, WEIGHTS, WINDOW_SECONDS
from tests.harness.amqp import AmqpPeer
from tests.harness.daemon import Daemon
from tests.harness.mqtt import PUBCOMP, PUBREC, PUBREL, MqttPeer

WINDOW = 20
RESENT_ANSWERED = 5
RESENT_SECONDS = WINDOW_SECONDS - 15.0
"""What was first sent longer ago must not be sent again: the dedup window may have ended."""
PADS = (0, 40, 400, 3_000, 20_000)


def body_of(key: Key) -> bytes:
    """The one body of that message: every copy can be compared with it."""
    pad = PADS[(key.number * 7 + len(key.group)) % 29 % 4] if key.number % 60 else PADS[4]
    return json.dumps({"id": str(key), "group": key.group, "number": key.number, "pad": "x" * pad}).encode()


def key_of(body: bytes) -> Key:
    """The message of a body. Raises ValueError for one that no publisher made."""
    try:
        said: dict[str, Any] = json.loads(body)
        key = Key(said["group"], said["number"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"nobody sent {body[:100]!r}") from error
    if body != body_of(key):
        raise ValueError(f"the body of {key} is damaged: {body[:200]!r}")
    return key


class Publisher:
    """One client. `begin` after each `connect`; `left` says how many new messages it may still send."""

    weights = WEIGHTS

    def __init__(self, name: str, history: History, rng: random.Random) -> None:
        self.name = name
        self.history = history
        self.rng = rng
        self.left = 0
        self.unanswered: dict[Key, float] = {}
        """And when each was sent first."""
        self.peer: MqttPeer | AmqpPeer | None = None
        self._latest: deque[tuple[Key, float]] = deque(maxlen=RESENT_ANSWERED)
        self._next = {f"{stream}/{name}-{n}": 0 for stream, count in self.weights.items() for n in range(count)}

    async def connect(self, daemon: Daemon) -> None:
        raise NotImplementedError

    def write(self, key: Key, body: bytes) -> None:
        raise NotImplementedError

    def begin(self) -> None:
        """Sends again what may be lost, then goes on. Raises TimeoutError if the daemon was away for too long."""
        begin = time.monotonic() - RESENT_SECONDS
        if any(when < begin for when in self.unanswered.values()):
            raise TimeoutError("the dedup window is too short for the restarts of this machine")
        old = [key for key, when in self._latest if when > begin and key.stream not in FILTERS]
        for key in [*old, *self.unanswered]:
            self._send(key)
        self.fill()

    def allow(self, more: int) -> None:
        self.left = more
        self.fill()

    def fill(self) -> None:
        while self.left > 0 and len(self.unanswered) < WINDOW:
            self.left -= 1
            group = self.rng.choice(list(self._next))
            key = Key(group, self._next[group])
            self._next[group] += 1
            self.unanswered[key] = time.monotonic()
            self._send(key)

    def vanish(self) -> None:
        """In the middle of whatever it sends."""
        if self.peer is not None:
            self._silence()
            self.peer.vanish()

    def _silence(self) -> None:
        raise NotImplementedError

    def _send(self, key: Key) -> None:
        self.history.tell(Event("send", who=self.name, group=key.group, number=key.number))
        self.write(key, body_of(key))

    def answered(self, key: Key, stored: bool = True) -> None:
        kind = "stored" if stored else "refused"
        self.history.tell(Event(kind, who=self.name, group=key.group, number=key.number))
        if key in self.unanswered:
            self._latest.append((key, self.unanswered.pop(key)))
        self.fill()


class MqttPublisher(Publisher):
    """QoS 1."""

    async def connect(self, daemon: Daemon) -> None:
        self.peer = self._mqtt = await MqttPeer.connect(daemon.address("mqtt"), self.name)
        self._mqtt.on_answer = self.answered

    def write(self, key: Key, body: bytes) -> None:
        self._mqtt.publish(key.group, body, key)

    def _silence(self) -> None:
        self._mqtt.on_answer = lambda token: None


class ExactPublisher(Publisher):
    """QoS 2, in one session that outlives its connections and the daemon."""

    weights = EXACT_WEIGHTS

    def __init__(self, name: str, history: History, rng: random.Random) -> None:
        super().__init__(name, history, rng)
        self._flying: dict[int, Key | None] = {}
        """By packet id; None: it is released. In the order in which they go out again."""
        self._packet_id = 0
        self._was_here = False

    async def connect(self, daemon: Daemon) -> None:
        self.peer = self._mqtt = await MqttPeer.connect(daemon.address("mqtt"), self.name, clean=False)
        self._mqtt.on_step = self._on_step
        if self._was_here and not self._mqtt.session_present:
            raise AssertionError(f"the session of {self.name} is gone")
        self._was_here = True

    def begin(self) -> None:
        for packet_id, key in self._flying.items():
            if key is None:
                self._mqtt.step(PUBREL, packet_id)
            else:
                self._mqtt.publish_assured(key.group, body_of(key), packet_id, again=True)
        self.fill()

    def write(self, key: Key, body: bytes) -> None:
        while True:
            self._packet_id = self._packet_id % 65_535 + 1
            if self._packet_id not in self._flying:
                break
        self._flying[self._packet_id] = key
        self._mqtt.publish_assured(key.group, body, self._packet_id, again=False)

    def _on_step(self, kind: int, packet_id: int) -> None:
        if packet_id not in self._flying:
            raise AssertionError(f"{self.name} was answered for packet {packet_id}, which it has not sent")
        if kind == PUBREC:
            key = self._flying.pop(packet_id)
            self._flying[packet_id] = None
            self._mqtt.step(PUBREL, packet_id)
            if key is not None:
                self.answered(key)
        elif kind == PUBCOMP:
            del self._flying[packet_id]

    def _silence(self) -> None:
        self._mqtt.on_step = lambda kind, packet_id: None


class AmqpPublisher(Publisher):
    """With confirms."""

    async def connect(self, daemon: Daemon) -> None:
        self.peer = self._amqp = await AmqpPeer.connect(daemon.address("amqp"))
        self._amqp.on_confirm = self.answered

    def write(self, key: Key, body: bytes) -> None:
        self._amqp.publish(key.group.replace("/", "."), body, key)

    def _silence(self) -> None:
        self._amqp.on_confirm = lambda token, stored: None
