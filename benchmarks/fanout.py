"""Owns the load of one publisher and many subscribers of its topic.

Its rule: the publisher is at most `window` messages ahead of what its subscribers have on average, so a broker drops
nothing for a reader that could not read.
"""

from __future__ import annotations

import socket

from benchmarks import mqtt
from benchmarks.messages import Packets
from benchmarks.publisher import PubAcks, Publisher
from benchmarks.subscriber import Expected, Subscriber, subscribe
from tests.harness.process import Address


class FanOut(Publisher):
    """Made before its subscribers. With QoS 0 nothing is answered, so it waits for nothing; its subscribers do."""

    def __init__(self, address: Address, packets: Packets, window: int, qos: int) -> None:
        super().__init__(mqtt.open_session(address, "publisher"), packets, window, PubAcks())
        self.subscribers: list[Listener] = []
        self.delivered = 0
        self._address = address
        self._qos = qos
        self._expected = Expected(packets, qos)

    def subscribe(self, topic_filter: bytes, number: int) -> None:
        """So many subscribers of that topic."""
        for index in range(number):
            session = mqtt.open_session(self._address, f"subscriber{index}")
            subscribe(session, topic_filter, self._qos)
            self.subscribers.append(Listener(session, self._expected, self))

    @property
    def allowed(self) -> int:
        return self.delivered // len(self.subscribers) + self._window

    @property
    def finished(self) -> bool:
        return not self._qos or super().finished

    def check(self) -> None:
        if self._qos:
            super().check()


class Listener(Subscriber):
    """Tells its publisher what it got."""

    def __init__(self, session: socket.socket, expected: Expected, publisher: FanOut) -> None:
        super().__init__(session, expected)
        self._publisher = publisher

    def arrived(self, count: int) -> None:
        self._publisher.delivered += count
        self._publisher.fill()
