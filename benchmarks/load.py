"""Owns the loop of the load generator: peers on sockets, in one thread on one core, until each has finished.

Its rule: between the first and the last message it counts octets and decodes nothing; what it counted is checked
afterwards.
"""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import select
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from benchmarks.messages import LoadError

STALL_SECONDS = 60.0
RECEIVE_SIZE = 1 << 18
# Edge triggered: a socket that was full reports once that it has room, and costs nothing otherwise.
EVENTS = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
READABLE = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
ENDED = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR


class Peer(ABC):
    """One end of a connection to what is measured."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.socket = connection
        self.stuck = False
        """The socket did not take all; `fill` is due when it has room."""
        self.finished_at = 0.0

    @property
    @abstractmethod
    def finished(self) -> bool:
        """All that it waits for has come."""

    @abstractmethod
    def take(self, data: bytes) -> None:
        """What one read brought."""

    @abstractmethod
    def fill(self) -> None:
        """Writes what may be written now and sets `stuck`."""

    @abstractmethod
    def state(self) -> str:
        """How far it came, for messages."""

    def begin(self) -> None:
        """The measured time begins."""
        self.fill()

    def receive(self) -> None:
        """All that is there. Raises LoadError when the other end has closed."""
        while True:
            try:
                data = self.socket.recv(RECEIVE_SIZE)
            except BlockingIOError:
                return
            except ConnectionError as error:
                raise LoadError(f"the broker cut a connection ({error}): {self.state()}") from error
            if not data:
                raise LoadError(f"the broker closed a connection: {self.state()}")
            self.take(data)
            if len(data) < RECEIVE_SIZE:
                return

    def send(self, data: bytes | memoryview) -> int:
        """How much of it the socket took. Raises LoadError when the other end is gone."""
        try:
            return self.socket.send(data)
        except BlockingIOError:
            return 0
        except ConnectionError as error:
            raise LoadError(f"the broker cut a connection ({error}): {self.state()}") from error

    def finish(self) -> None:
        """The last that it waited for has come."""
        if not self.finished_at:
            self.finished_at = time.perf_counter()

    def close(self) -> None:
        self.socket.close()


class Answering(Peer):
    """A peer that only writes answers to what it reads."""

    def __init__(self, connection: socket.socket) -> None:
        super().__init__(connection)
        self._unsent = b""

    def fill(self) -> None:
        self.answer(b"")

    def answer(self, data: bytes) -> None:
        data = self._unsent + data
        if data:
            self._unsent = data[self.send(data) :]
            self.stuck = bool(self._unsent)


class Timing(NamedTuple):
    """began: `time.perf_counter` before the first octet. busy: share of the time for which the generator's thread used
    its core."""

    began: float
    busy: float

    def until(self, peers: Sequence[Peer]) -> float:
        """Seconds until the last of them had finished."""
        return max(peer.finished_at for peer in peers) - self.began


class Poll:
    """The events of these peers."""

    def __init__(self, peers: Sequence[Peer]) -> None:
        self._peers = {peer.socket.fileno(): peer for peer in peers}
        self._epoll = select.epoll()
        for descriptor in self._peers:
            self._epoll.register(descriptor, EVENTS)
        self.unfinished = set(self._peers)

    def fileno(self) -> int:
        return self._epoll.fileno()

    def handle(self, timeout: float) -> bool:
        """Waits that many seconds at most for something and handles it; False if nothing came."""
        peers = self._peers
        events = self._epoll.poll(timeout)
        for descriptor, event in events:
            peer = peers[descriptor]
            if event & READABLE:
                peer.receive()
                if event & ENDED:
                    peer.receive()
            if peer.stuck:
                peer.fill()
            if peer.finished:
                self.unfinished.discard(descriptor)
        return bool(events)

    def stalled(self) -> LoadError:
        states = [peer.state() for peer in self._peers.values() if not peer.finished]
        more = f" and {len(states) - 5} more" if len(states) > 5 else ""
        return LoadError(f"nothing happened for {STALL_SECONDS:g} s: {'; '.join(states[:5])}{more}")

    def close(self) -> None:
        self._epoll.close()


def run(peers: Sequence[Peer], core: int | None) -> Timing:
    """Until all have finished. Raises LoadError after a minute in which nothing happens."""
    poll = Poll(peers)
    with contextlib.closing(poll), alone_on(core):
        began, began_cpu = time.perf_counter(), time.thread_time()
        for peer in peers:
            peer.begin()
        unfinished, handle = poll.unfinished, poll.handle
        unfinished -= {peer.socket.fileno() for peer in peers if peer.finished}
        while unfinished:
            if not handle(STALL_SECONDS):
                raise poll.stalled()
        elapsed, busy = time.perf_counter() - began, time.thread_time() - began_cpu
    return Timing(began, busy / elapsed)


@contextlib.contextmanager
def closing(peers: Sequence[Peer]) -> Iterator[None]:
    """Closes them all on leaving."""
    try:
        yield
    finally:
        for peer in peers:
            peer.close()


@contextlib.contextmanager
def alone_on(core: int | None) -> Iterator[None]:
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


def need_descriptors(count: int) -> None:
    """Raises the soft limit of this process, and so of the brokers it starts, for that many connections; raises
    LoadError if the hard limit is lower."""
    wanted = count + 500  # a broker has files of its own, and RabbitMQ keeps a tenth back
    wanted += wanted // 8
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise LoadError(f"{count} connections need {wanted} file descriptors, the limit is {hard}: see `ulimit -Hn`")
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard if hard != resource.RLIM_INFINITY else wanted, hard))
