"""Owns the load generator: MQTT publishers with a window and an AMQP consumer, in one thread on one core.

Its rule: between the first and the last message it counts octets and decodes nothing; what it counted is checked
afterwards.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import socket
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from benchmarks import wire

STALL_SECONDS = 60.0
RECEIVE_SIZE = 1 << 18


class LoadError(Exception):
    """A broker lost, repeated, reordered or never answered something: its numbers mean nothing."""


class Timing(NamedTuple):
    """Seconds from the first octet sent to the last answer and to the last delivery (None: there is no consumer),
    and the share of that time for which the generator's core was busy."""

    answered: float
    delivered: float | None
    busy: float


def connect(address: tuple[str, int]) -> socket.socket:
    connection = socket.create_connection(address, timeout=30)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


class Publisher:
    """One MQTT connection that keeps up to `window` messages unanswered."""

    def __init__(self, address: tuple[str, int], packets: wire.Packets, window: int, client_id: str | None) -> None:
        """Without a client id there is no CONNECT: the other end is the sink."""
        self.socket = connect(address)
        if client_id is not None:
            self.socket.sendall(wire.connect(client_id))
            answer = self.socket.recv(len(wire.CONNACK), socket.MSG_WAITALL)
            if answer != wire.CONNACK:
                raise LoadError(f"CONNECT was answered by {answer.hex()}")
        self.socket.setblocking(False)
        self.answers: list[bytes] = []
        self.finished_at = 0.0
        self.stuck = False
        self._packets = packets
        self._window = window
        self._sent_octets = 0
        self._answered_octets = 0

    @property
    def finished(self) -> bool:
        return self._answered_octets >= self._packets.number * wire.PUBACK_SIZE

    @property
    def answered(self) -> int:
        return self._answered_octets // wire.PUBACK_SIZE

    def fill(self) -> None:
        """Sends what the window has room for; `stuck` if the socket did not take it all."""
        packets = self._packets
        limit = min(packets.number, self.answered + self._window) * packets.size
        if self._sent_octets < limit:
            with contextlib.suppress(BlockingIOError):
                self._sent_octets += self.socket.send(packets.octets[self._sent_octets : limit])
        self.stuck = self._sent_octets < limit

    def receive(self) -> None:
        try:
            data = self.socket.recv(RECEIVE_SIZE)
        except BlockingIOError:
            return
        if not data:
            raise LoadError(f"the broker closed a publisher after {self.answered} answers")
        self.answers.append(data)
        self._answered_octets += len(data)
        if self.finished:
            self.finished_at = time.perf_counter()
        self.fill()

    def check(self) -> None:
        """Each message was answered once. Raises LoadError."""
        answers = b"".join(self.answers)
        expected = wire.pubacks(self._packets.number)
        if answers != expected and _sorted_packets(answers) != _sorted_packets(expected):
            raise LoadError("the answers are not one PUBACK for each message")

    def close(self) -> None:
        self.socket.close()


class Consumer:
    """One AMQP consumer; each lot that one read brings is acked at once, by one frame."""

    def __init__(self, connection: socket.socket, start: bytes = b"") -> None:
        self.socket = connection
        self.socket.setblocking(False)
        self.ids: list[bytes] = []
        self.finished_at = 0.0
        self._expected = 0
        self._rest = b""
        self._start = start

    def expect(self, total: int) -> None:
        """`total` in all, since the beginning."""
        self._expected = total
        if self._start:
            start, self._start = self._start, b""
            self._take(start)

    @property
    def finished(self) -> bool:
        return len(self.ids) >= self._expected

    def receive(self) -> None:
        try:
            data = self.socket.recv(RECEIVE_SIZE)
        except BlockingIOError:
            return
        if not data:
            raise LoadError(f"the broker closed the consumer after {len(self.ids)} messages")
        self._take(data)

    def _take(self, data: bytes) -> None:
        buffer = self._rest + data
        end = buffer.rfind(wire.BODY_END) + len(wire.BODY_END)
        if end < len(wire.BODY_END):
            self._rest = buffer
            return
        self._rest = buffer[end:]
        if found := wire.BODY.findall(buffer, 0, end):
            self.ids += found
            self.socket.send(wire.ack(len(self.ids)))
            if self.finished:
                self.finished_at = time.perf_counter()

    def check(self, first: int, total: int, groups: int) -> None:
        """From `first` on, each number from there to `total` came once, ascending within its group."""
        numbers = [int(number) for number in self.ids[first:]]
        if len(numbers) != total - first or set(numbers) != set(range(first, total)):
            distinct = len(set(numbers))
            raise LoadError(f"{total - first} messages were stored, {len(numbers)} came, {distinct} different ones")
        last = [-1] * groups
        for number in numbers:
            if number <= last[number % groups]:
                raise LoadError(f"message {number} came after {last[number % groups]} of its group")
            last[number % groups] = number

    def close(self) -> None:
        self.socket.close()


def close(*peers: Publisher | Consumer) -> None:
    for peer in peers:
        peer.close()


def run(publishers: Sequence[Publisher], consumer: Consumer | None, core: int | None) -> Timing:
    """Until everything is answered and delivered. Raises LoadError after a minute without progress."""
    poll = select.epoll()
    peers: dict[int, Publisher | Consumer] = {p.socket.fileno(): p for p in publishers}
    if consumer:
        peers[consumer.socket.fileno()] = consumer
    for descriptor in peers:
        poll.register(descriptor, select.EPOLLIN)
    waiting = {p.socket.fileno() for p in publishers} | ({consumer.socket.fileno()} if consumer else set())
    stuck: set[int] = set()
    with _pinned(core), poll:
        began, began_cpu = time.perf_counter(), time.thread_time()
        for publisher in publishers:
            publisher.fill()
        while waiting:
            events = poll.poll(STALL_SECONDS)
            if not events:
                answered = sum(p.answered for p in publishers)
                came = len(consumer.ids) if consumer else 0
                raise LoadError(f"nothing happened for {STALL_SECONDS:g} s: {answered} answered, {came} delivered")
            for descriptor, event in events:
                peer = peers[descriptor]
                if event & ~select.EPOLLOUT:
                    peer.receive()
                if isinstance(peer, Publisher):
                    if event & select.EPOLLOUT:
                        peer.fill()
                    if peer.stuck != (descriptor in stuck):
                        stuck ^= {descriptor}
                        poll.modify(descriptor, select.EPOLLIN | (select.EPOLLOUT if peer.stuck else 0))
                if peer.finished:
                    waiting.discard(descriptor)
        elapsed, busy = time.perf_counter() - began, time.thread_time() - began_cpu
    answered_at = max((p.finished_at for p in publishers), default=began)
    delivered = consumer.finished_at - began if consumer else None
    return Timing(answered_at - began, delivered, busy / elapsed)


@contextlib.contextmanager
def _pinned(core: int | None) -> Iterator[None]:
    """This thread on that core alone, as taskset does, and no garbage collection meanwhile."""
    before = os.sched_getaffinity(0)
    if core is not None:
        os.sched_setaffinity(0, {core})
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        os.sched_setaffinity(0, before)


def _sorted_packets(octets: bytes) -> list[bytes]:
    return sorted(octets[i : i + wire.PUBACK_SIZE] for i in range(0, len(octets), wire.PUBACK_SIZE))
