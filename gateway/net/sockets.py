"""Owns how a listener opens its port: the address, TLS with certificates that a reload reads again, the kernel's
keep-alive.

Its rule: a port that can't be had fails the start, with the transport's name and the reason.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence

from gateway.address import Address
from gateway.errors import ListenError
from gateway.logs import log
from gateway.net import http_server as web
from gateway.net.door import Door
from gateway.net.handshakes import Handshakes
from gateway.net.roles import Host
from gateway.net.tcp import keep_alive
from gateway.net.tls import ServerTls, TlsError, TlsSettings

BACKLOG = 1024


class Port:
    """A listener's sockets, open from the moment they are made. stops: what each that accepts on them is ended by."""

    def __init__(self, sockets: Sequence[socket.socket], door: Door, stops: Sequence[Callable[[], None]]) -> None:
        self.sockets = sockets
        self._door = door
        self._stops = stops

    def close(self) -> None:
        """Takes no more connections, and ends those that are still at the door."""
        for stop in self._stops:
            stop()
        self._door.close()


async def open_port(
    gateway: Host,
    door: Door,
    address: Address,
    make: Callable[[], asyncio.Protocol],
    tls: TlsSettings | None,
    tcp_keep_alive: float,
) -> Port:
    """Serves from now on. `make` makes the protocol of a connection; with TLS, once its handshake is over. Raises
    ListenError."""
    secured = _secured(gateway, door.transport, tls)
    if secured is not None:
        own = web.listen(f"transport {door.transport}", address)
        keep_alive(own, tcp_keep_alive)
        return Port(own, door, [Handshakes(listener, secured, door, make).close for listener in own])
    loop = asyncio.get_running_loop()
    try:
        server = await loop.create_server(make, address.host or None, address.port, backlog=BACKLOG)
    except OSError as error:
        raise ListenError(f"transport {door.transport} can't listen on {address}: {error.strerror or error}") from error
    keep_alive(server.sockets, tcp_keep_alive)
    return Port(server.sockets, door, [server.close])


def urls(port: Port, scheme: str, path: str = "") -> list[str]:
    """Where clients find it."""
    found = []
    for listener in port.sockets:
        host, number = listener.getsockname()[:2]
        found.append(f"{scheme}://[{host}]:{number}{path}" if ":" in host else f"{scheme}://{host}:{number}{path}")
    return found


def _secured(gateway: Host, transport: str, settings: TlsSettings | None) -> ServerTls | None:
    if settings is None:
        return None
    try:
        tls = ServerTls(settings)
    except TlsError as error:
        raise ListenError(f"transport {transport}: {error}") from error

    def reload() -> None:
        try:
            tls.reload()
        except TlsError as error:
            log.error("the old certificate stays", transport=transport, error=str(error))
        else:
            log.info("certificate read again", transport=transport)

    gateway.on_reload(transport, reload)
    return tls
