"""Owns Relay: a port of loopback that passes octets on to a server, and may be closed, opened, or fall silent.

Its rule: it looks at nothing that it passes; what was on its way when it is cut is lost, as on a network.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading

from tests.harness.process import Address, quiet_port

_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER: a close is a reset."""


class Relay:
    """Open as soon as it is made, on `address`."""

    def __init__(self, server: Address) -> None:
        self.address = Address("127.0.0.1", quiet_port())
        self._server = server
        self._listener: socket.socket | None = None
        self._sockets: set[socket.socket] = set()
        self._lock = threading.Lock()
        self.opened = 0
        """Connections so far."""
        self.open_port()

    def open_port(self) -> None:
        listener = socket.create_server(self.address)
        self._listener = listener
        threading.Thread(target=self._serve, args=(listener,), daemon=True).start()

    def close_port(self) -> None:
        """Nothing listens there any more, and all connections are reset."""
        if self._listener is not None:
            # A close alone would leave the thread in its accept, and the port open.
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        self.cut()

    def cut(self) -> None:
        """Resets all connections; new ones are taken."""
        with self._lock:
            sockets, self._sockets = self._sockets, set()
        for one in sockets:
            with contextlib.suppress(OSError):
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _serve(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return  # the port was closed
            try:
                server = socket.create_connection(self._server, timeout=5)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            with self._lock:
                self._sockets |= {client, server}
                self.opened += 1
            for source, target in ((client, server), (server, client)):
                threading.Thread(target=self._pass, args=(source, target), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                self._carry(data, source, target)
        for one in (source, target):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
            with self._lock:
                self._sockets.discard(one)

    def _carry(self, data: bytes, source: socket.socket, target: socket.socket) -> None:
        """What came goes on."""
        target.sendall(data)
