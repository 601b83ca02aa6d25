"""Owns what tests of links to remote MQTT brokers share: clients that come back, a configuration, Traffic both ways.

Its rule: a peer answers for what it shows; nothing here knows how a link works.
"""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from tests.faults.abuse import metric
from tests.harness.daemon import LISTENERS, Daemon
from tests.harness.mosquitto import Mosquitto
from tests.harness.process import Address

SECONDS = 30.0
GROUPS = 3
UNLIMITED = "max_inflight_messages 0\nmax_queued_messages 0"
"""For Mosquitto. It disregards a Receive Maximum then."""
Start = Callable[..., Daemon]
Broker = Callable[..., Mosquitto]


class Peer:
    """A paho client that comes back by itself, and remembers what it got."""

    def __init__(
        self,
        address: Address,
        client_id: str,
        *filters: str,
        version: MQTTProtocolVersion = MQTTProtocolVersion.MQTTv311,
    ) -> None:
        # MQTT 5 has no such flag; there a session ends with its connection.
        clean = False if version == MQTTProtocolVersion.MQTTv311 else None
        self.client = paho.Client(CallbackAPIVersion.VERSION2, client_id, clean, protocol=version)
        self.client.reconnect_delay_set(1, 1)
        self.messages: list[paho.MQTTMessage] = []
        self.changed = threading.Condition()
        self._answered: set[int] = set()
        self._subscribed = threading.Event()
        self._filters = filters
        self.client.on_connect = self._on_connect
        self.client.on_subscribe = lambda *_: self._subscribed.set()
        self.client.on_message = self._on_message
        self.client.on_publish = self._on_publish
        self.client.connect(*address, keepalive=60)
        self.client.loop_start()
        assert self._subscribed.wait(SECONDS)

    def _on_connect(self, *_: Any) -> None:
        if self._filters:
            self.client.subscribe([(filter, 1) for filter in self._filters])
        else:
            self._subscribed.set()

    def _on_message(self, client: Any, data: Any, message: paho.MQTTMessage) -> None:
        with self.changed:
            self.messages.append(message)
            self.changed.notify_all()

    def _on_publish(self, client: Any, data: Any, packet_id: int, *_: Any) -> None:
        with self.changed:
            self._answered.add(packet_id)
            self.changed.notify_all()

    def publish(self, topic: str, body: bytes, qos: int = 1, **options: Any) -> None:
        """Returns when it is answered, over as many connections as that takes."""
        # Its own wait_for_publish raises for a message that waits for the next connection.
        packet_id = self.client.publish(topic, body, qos, **options).mid
        with self.changed:
            assert self.changed.wait_for(lambda: packet_id in self._answered, SECONDS), f"{topic}: no answer"
            self._answered.discard(packet_id)

    def wait_until(self, enough: Callable[[list[bytes]], bool], seconds: float = SECONDS) -> list[bytes]:
        """The bodies, as soon as they are enough."""
        with self.changed:
            assert self.changed.wait_for(lambda: enough(self.bodies), seconds), (
                f"{len(self.bodies)} came: {self.bodies}"
            )
            return self.bodies

    def take(self, *bodies: bytes) -> list[paho.MQTTMessage]:
        """The messages, which must be these."""
        assert self.wait_until(lambda found: len(found) >= len(bodies)) == list(bodies)
        return self.messages

    @property
    def bodies(self) -> list[bytes]:
        return [bytes(message.payload) for message in self.messages]

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()
        # Without these the client is collected at once, and closes its sockets.
        self.client.on_connect = self.client.on_subscribe = self.client.on_message = self.client.on_publish = None


def config(url: str, **link: Any) -> dict[str, Any]:
    """`up/#` of the remote comes into the queue `in`, `down/X` of ours goes to `site/X` there."""
    plant = {
        "type": "mqtt-client",
        "url": url,
        "subscribe": ["up/#"],
        "reconnect": "50ms..200ms",
        "keep_alive": "10s",
        "connect_timeout": "2s",
        **link,
    }
    plant = {key: value for key, value in plant.items() if value is not None}
    return {
        "transports": {**LISTENERS, "plant": plant},
        "queues": {"in": {"group": "{topic}"}, "lost": {}},
        "routes": [
            {"from": "up/#", "source": "plant", "to": "in"},
            {"from": "down/#", "to": "plant:site/{topic[1]}"},
        ],
    }


def is_up(daemon: Daemon, after: int = 0) -> None:
    daemon.wait_for("link is up", after=after)


def readiness(daemon: Daemon) -> tuple[int, dict[str, Any]]:
    try:
        with urllib.request.urlopen(f"{daemon.url('admin')}/readyz", timeout=10) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def wait_for(true: Callable[[], bool], what: str) -> None:
    """For what can only be asked for, as a scrape does."""
    deadline = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def depth(daemon: Daemon, queue: str = "link.plant") -> float:
    return metric(daemon, "gateway_queue_messages", queue=queue)


def check_order(bodies: list[bytes], count: int) -> None:
    """All of them came, and those of one group for the first time in their order."""
    firsts = list(dict.fromkeys(bodies))
    assert sorted(map(int, firsts)) == list(range(count))
    for group in range(GROUPS):
        of_group = [number for number in map(int, firsts) if number % GROUPS == group]
        assert of_group == sorted(of_group)


def deaths(daemon: Daemon) -> list[tuple[str, dict[str, Any]]]:
    """Topic and latest death of each dead letter."""
    with urllib.request.urlopen(f"{daemon.url('admin')}/api/v1/messages?queue=dead-letters", timeout=10) as answer:
        return [(letter["message"]["topic"], letter["deaths"][0]) for letter in json.load(answer)["messages"]]


class Traffic:
    """`count` messages each way, one at a time, on threads of their own."""

    def __init__(self, gateway: Daemon, broker: Mosquitto | Daemon, peer: Callable[..., Peer], count: int) -> None:
        self.count = count
        there = broker.address("mqtt") if isinstance(broker, Daemon) else broker.address
        self.worker = peer(gateway.address("mqtt"), "worker", "$queue/in")
        self.observer = peer(there, "observer", "site/#")
        self._threads = [
            threading.Thread(target=self._send, args=(peer(there, "feeder"), "up"), daemon=True),
            threading.Thread(target=self._send, args=(peer(gateway.address("mqtt"), "device"), "down"), daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def _send(self, sender: Peer, prefix: str) -> None:
        for number in range(self.count):
            sender.publish(f"{prefix}/{number % GROUPS}", b"%d" % number)

    def under_way(self, count: int) -> None:
        for receiver in (self.worker, self.observer):
            receiver.wait_until(lambda bodies: len(bodies) >= count)

    def finish(self) -> None:
        """All of it arrives, in the order of each group."""
        for receiver in (self.worker, self.observer):
            check_order(receiver.wait_until(lambda bodies: len(set(bodies)) >= self.count), self.count)
        for thread in self._threads:
            thread.join(SECONDS)
            assert not thread.is_alive()
