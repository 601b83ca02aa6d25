"""Owns Handshakes: how a listener with TLS accepts connections, and what becomes of each until its handshake is over.

Its rule: the loop's own server tells nobody of a connection before its handshake is over; here each is at the door from
its first moment, and one that fails is counted and logged with the reason.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Callable
from typing import cast

from gateway.logs import log
from gateway.net.door import Door
from gateway.net.tls import ServerTls, why_refused

TURN = 50
"""Connections that are accepted before the others have their turn."""
NO_MORE_FILES = (errno.EMFILE, errno.ENFILE)
PAUSE_SECONDS = 1.0
"""After the kernel could not accept, for whatever reason."""


class Handshakes:
    """Of one listening socket."""

    def __init__(
        self, listener: socket.socket, tls: ServerTls, door: Door, make: Callable[[], asyncio.Protocol]
    ) -> None:
        self.tls = tls
        self.door = door
        self.make = make
        self._listener = listener
        self._spare = os.open(os.devnull, os.O_RDONLY)
        """Given up for a moment when there are no more open files, to accept who waits and send him away."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._accepting = asyncio.get_running_loop().create_task(self._accept(), name=f"accept {door.transport}")

    def close(self) -> None:
        """Accepts no more; the handshakes that have begun are the door's to end."""
        self._accepting.cancel()
        self._listener.close()
        os.close(self._spare)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            for _ in range(TURN):
                try:
                    connection, address = await loop.sock_accept(self._listener)
                except ConnectionError:
                    continue  # it was gone before it was accepted
                except OSError as error:
                    log.error("connection not accepted", transport=self.door.transport, error=str(error))
                    if error.errno in NO_MORE_FILES:
                        self._send_away()
                    else:
                        await asyncio.sleep(PAUSE_SECONDS)
                    continue
                task = loop.create_task(Handshake(self, connection, f"{address[0]}:{address[1]}").run())
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            await asyncio.sleep(0)

    def _send_away(self) -> None:
        os.close(self._spare)
        with contextlib.suppress(OSError):  # another took the place, or who waited is gone
            self._listener.accept()[0].close()
        self._spare = os.open(os.devnull, os.O_RDONLY)


class Handshake(asyncio.Protocol):
    """One connection, until its handshake is over; then it is that of what `make` makes."""

    def __init__(self, of: Handshakes, connection: socket.socket, peer: str) -> None:
        self._of = of
        self._connection = connection
        self._peer = peer
        self._task: asyncio.Task[None] | None = None
        self._is_cut_off = False

    async def run(self) -> None:
        door, tls = self._of.door, self._of.tls
        loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        door.enter(self)
        try:
            await loop.connect_accepted_socket(
                lambda: self, self._connection, ssl=tls.context, ssl_handshake_timeout=door.timeout
            )
        except asyncio.CancelledError:
            if not self._is_cut_off:
                raise
        except OSError as error:  # ssl.SSLError is one
            reason, why = why_refused(error)
            door.refuse(reason, self._peer, why)
        finally:
            door.leave(self)

    def cut_off(self, why: str) -> None:
        self._is_cut_off = True
        if self._task is not None:
            self._task.cancel()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The handshake is over."""
        self._of.door.leave(self)
        inside = self._of.make()
        cast(asyncio.Transport, transport).set_protocol(inside)
        inside.connection_made(transport)
