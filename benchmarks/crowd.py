"""Owns the crowd: very many MQTT connections that do nothing.

Its rule: a connection counts when its CONNACK has come, and all of them are still there at the end.
"""

from __future__ import annotations

import select
import socket
import time

from benchmarks import mqtt
from benchmarks.messages import LoadError
from tests.harness.process import Address

IN_PROGRESS = 64
"""Below every broker's listen backlog: a connection beyond it is tried again by the kernel after a second."""
PER_SOURCE = 10_000
"""Connections from one address of loopback; all of its ports are not free."""
KEEP_ALIVE = 600
"""Seconds: so each broker keeps a timer for each device, and none ends while it is measured."""
IP_BIND_ADDRESS_NO_PORT = 24


class Crowd:
    """Connected by `connect`; use `close`."""

    def __init__(self, address: Address, number: int) -> None:
        self._address = address
        self._number = number
        self._sockets: dict[int, socket.socket] = {}
        self._epoll = select.epoll()

    def connect(self) -> float:
        """Seconds until the last CONNACK."""
        began = time.perf_counter()
        waiting: set[int] = set()
        while len(self._sockets) < self._number or waiting:
            while len(self._sockets) < self._number and len(waiting) < IN_PROGRESS:
                waiting.add(self._open(len(self._sockets)))
            events = self._epoll.poll(60)
            if not events:
                raise LoadError(f"{len(waiting)} of {len(self._sockets)} connections got no CONNACK for 60 s")
            for descriptor, _ in events:
                answer = self._sockets[descriptor].recv(64)
                if answer != mqtt.CONNACK:
                    raise LoadError(f"connection {len(self._sockets)} was answered by {answer.hex() or 'its end'}")
                waiting.discard(descriptor)
        return time.perf_counter() - began

    def _open(self, index: int) -> int:
        connection = socket.socket()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        connection.bind((f"127.0.0.{1 + index // PER_SOURCE}", 0))
        connection.connect(self._address)
        connection.sendall(mqtt.connect(f"device{index:06d}", keep_alive=KEEP_ALIVE))
        self._sockets[connection.fileno()] = connection
        self._epoll.register(connection.fileno(), select.EPOLLIN)
        return connection.fileno()

    def check(self) -> None:
        """All are still connected, and nothing came that nobody asked for. Raises LoadError."""
        if events := self._epoll.poll(0):
            raise LoadError(f"{len(events)} of {self._number} idle connections were closed or got something")

    def close(self) -> None:
        self._epoll.close()
        for connection in self._sockets.values():
            connection.close()
