"""Owns the open loop: messages leave at their times, whatever became of those before, and each one's latency counts
from when it was due.

Its rule: no coordinated omission: a broker, or a socket, that stands still delays no later message's time, so all that
were due meanwhile count their waiting.
"""

from __future__ import annotations

import contextlib
import math
import secrets
import select
import socket
import time
from collections.abc import Sequence

from benchmarks import load, mqtt
from benchmarks.messages import Flow, LoadError, Packets
from benchmarks.publisher import PubAcks, Publisher
from benchmarks.subscriber import Expected, Subscriber, subscribe
from tests.harness.process import Address

LEAD_SECONDS = 0.02


class Released(Publisher):
    """May send what is due, however much is unanswered."""

    def __init__(self, address: Address, packets: Packets, client_id: str) -> None:
        super().__init__(mqtt.open_session(address, client_id), packets, 0, PubAcks())
        self.due = 0

    @property
    def allowed(self) -> int:
        return self.due


class Timed(Subscriber):
    """arrivals: how many had come when, of `time.perf_counter`, for each lot."""

    def __init__(self, connection: socket.socket, expected: Expected) -> None:
        super().__init__(connection, expected)
        self.arrivals: list[tuple[int, float]] = []

    def arrived(self, count: int) -> None:
        self.arrivals.append((self.count, time.perf_counter()))


class Schedule:
    """Pairs of a publisher and a subscriber, each with a topic of its own; message n of `rate` a second is due
    `n / rate` seconds after the start and belongs to pair `n % pairs`."""

    def __init__(self, address: Address, flow: Flow, rate: float, lasting: bool) -> None:
        """lasting: the subscribers' sessions outlive their connections, so a broker that stores has to store."""
        self._flow = flow
        self._rate = rate
        self.publishers: list[Released] = []
        self.subscribers: list[Timed] = []
        name = secrets.token_hex(4)  # a broker that runs on must not know the session from before
        for pair in range(flow.publishers):
            packets = mqtt.publishes(flow, pair)
            session = mqtt.open_session(address, f"{name}-subscriber{pair}", clean=not lasting)
            subscribe(session, flow.topic % pair, flow.qos)
            self.subscribers.append(Timed(session, Expected(packets, flow.qos)))
            self.publishers.append(Released(address, packets, f"{name}-publisher{pair}"))
        # Made before what else the profile connects: `select` knows only the lowest 1024 descriptors.
        self._poll = load.Poll(self.peers)

    @property
    def peers(self) -> Sequence[load.Peer]:
        return [*self.publishers, *self.subscribers]

    def run(self, core: int | None) -> float:
        """Sends all of it and waits for the last; seconds for which each counted from its time. Raises LoadError."""
        total, rate, pairs = self._flow.total, self._rate, len(self.publishers)
        poll, released = self._poll, 0
        with load.alone_on(core):
            self.began = began = last = time.perf_counter() + LEAD_SECONDS
            while poll.unfinished:
                now = time.perf_counter()
                due = min(total, math.floor((now - began) * rate) + 1) if now >= began else 0
                if due > released:
                    for pair in range(pairs):
                        publisher = self.publishers[pair]
                        share = (due - pair + pairs - 1) // pairs
                        if share > publisher.due:
                            publisher.due = share
                            publisher.fill()
                    released = due
                left = began + released / rate - time.perf_counter() if released < total else load.STALL_SECONDS
                # An epoll alone waits whole milliseconds; `select` is as fine as the clock.
                select.select([poll], [], [], max(0.0, left))
                if poll.handle(0):
                    last = time.perf_counter()
                elif released == total and time.perf_counter() - last > load.STALL_SECONDS:
                    raise poll.stalled()
        return time.perf_counter() - began

    def latencies(self, warm_up: int) -> list[float]:
        """Seconds from when each message was due until it had come, sorted, without the first `warm_up` of them."""
        found = []
        pairs = len(self.subscribers)
        for pair, subscriber in enumerate(self.subscribers):
            before = 0
            for count, at in subscriber.arrivals:
                for index in range(before, count):
                    number = index * pairs + pair
                    if number >= warm_up:
                        found.append(at - self.began - number / self._rate)
                before = count
        return sorted(found)

    def check(self) -> None:
        """Nothing was lost, repeated or reordered (the subscribers saw to that as it came), and all was answered."""
        for publisher in self.publishers:
            publisher.check()
        for subscriber in self.subscribers:
            if not subscriber.finished:
                raise LoadError(subscriber.state())

    def close(self) -> None:
        with contextlib.closing(self._poll):
            for peer in self.peers:
                peer.close()


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest rank of sorted values: the smallest one that at least `share` of them do not exceed."""
    return values[max(0, math.ceil(share * len(values)) - 1)]
