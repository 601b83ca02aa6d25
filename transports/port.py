"""Owns how a listener opens its port: the address, TLS with certificates that a reload reads again, the kernel's
keep-alive.

Its rule: a port that can't be had fails the start, with the transport's name and the reason.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from gateway.address import Address
from gateway.errors import ListenError
from gateway.logs import log
from gateway.transport import Gateway
from transports.tcp import keep_alive
from transports.tls import ServerTls, TlsError, TlsSettings

BACKLOG = 1024


async def open_port(
    gateway: Gateway,
    transport: str,
    address: Address,
    make: Callable[[], asyncio.Protocol],
    tls: TlsSettings | None,
    handshake_timeout: float,
    tcp_keep_alive: float,
) -> asyncio.Server:
    """Serves from now on. handshake_timeout: seconds that TLS may take. Raises ListenError."""
    secured = _secured(gateway, transport, tls)
    try:
        server = await asyncio.get_running_loop().create_server(
            make,
            address.host or None,
            address.port,
            backlog=BACKLOG,
            ssl=secured.context if secured is not None else None,
            ssl_handshake_timeout=handshake_timeout if secured is not None else None,
        )
    except OSError as error:
        raise ListenError(f"transport {transport} can't listen on {address}: {error.strerror or error}") from error
    keep_alive(server.sockets, tcp_keep_alive)
    return server


def urls(server: asyncio.Server, scheme: str, path: str = "") -> list[str]:
    """Where clients find it."""
    found = []
    for socket in server.sockets:
        host, port = socket.getsockname()[:2]
        found.append(f"{scheme}://[{host}]:{port}{path}" if ":" in host else f"{scheme}://{host}:{port}{path}")
    return found


def _secured(gateway: Gateway, transport: str, settings: TlsSettings | None) -> ServerTls | None:
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
