"""Owns Crossing: a relay on which an AMQP client says something before it hears the answer to what it said before.

Its rule: it changes no octet and drops none; it only decides when the client hears.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

from pamqp import base

from tests.harness.process import Address
from tests.harness.relay import Relay

SECONDS = 20.0
_HELLO = b"AMQP"
_METHOD = 1


class Crossing(Relay):
    """For one client at a time. From its first method of the kind `fault` on it hears nothing until it has sent one of
    the `closes`: so the server's answer to the fault and the client's close cross. `crossed`: they have."""

    def __init__(self, server: Address, fault: type[base.Frame], *closes: type[base.Frame]) -> None:
        self._fault = fault.index
        self._closes = {close.index for close in closes}
        self._said = b""
        self._hears = threading.Event()
        self._hears.set()
        self.crossed = threading.Event()
        super().__init__(server)

    def _carry(self, data: bytes, source: socket.socket, target: socket.socket) -> None:
        if target.getpeername()[1] != self._server.port:
            assert self._hears.wait(SECONDS), "the client never closed"
            target.sendall(data)
            return
        methods = list(self._methods(data))
        if not self.crossed.is_set() and self._fault in methods:
            self._hears.clear()
        target.sendall(data)
        if not self._hears.is_set() and self._closes & {*methods}:
            self.crossed.set()
            self._hears.set()

    def _methods(self, data: bytes) -> Iterator[int]:
        """The methods that end in this piece of what the client says."""
        self._said += data
        if self._said.startswith(_HELLO):
            self._said = self._said[8:]
        while len(self._said) >= 7:
            size = int.from_bytes(self._said[3:7], "big") + 8
            if len(self._said) < size:
                break
            frame, self._said = self._said[:size], self._said[size:]
            if frame[0] == _METHOD:
                yield int.from_bytes(frame[7:11], "big")
