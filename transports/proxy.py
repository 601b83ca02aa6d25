"""Owns the PROXY protocol, version 2: a proxy in front of us says whose connection it passes on.

Its rule: what does not begin with a whole, right header never reaches the protocol inside: whoever can reach this port
without the proxy could otherwise claim any address.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable
from typing import Any, cast

from gateway.transport import TransportCounters

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
MAX_OCTETS = 16 + 1024
"""Of a header: addresses, and what else the proxy wants to tell, which is passed over."""


class ProxyError(Exception):
    """No header of the PROXY protocol, version 2."""


def read_header(data: bytes | bytearray) -> tuple[int, tuple[str, int] | None] | None:
    """How many bytes it takes, and the client's address: None for a connection of the proxy's own, or one that has no
    IP address. None if it is not whole. Raises ProxyError."""
    if data[:12] != SIGNATURE[: len(data)]:
        raise ProxyError("no signature")
    if len(data) < 16:
        return None
    command, family = data[12], data[13]
    length = int.from_bytes(data[14:16], "big")
    end = 16 + length
    if command not in (0x20, 0x21):
        raise ProxyError(f"version and command {command:#04x}")
    if end > MAX_OCTETS:
        raise ProxyError(f"{end} bytes long")
    if len(data) < end:
        return None
    size = {0x11: 4, 0x21: 16}.get(family)
    if command == 0x20 or size is None:
        return end, None
    if length < 2 * size + 4:
        raise ProxyError("its addresses are cut off")
    host = ipaddress.ip_address(bytes(data[16 : 16 + size]))
    return end, (str(host), int.from_bytes(data[16 + 2 * size : 18 + 2 * size], "big"))


class Proxied(asyncio.Protocol):
    """One connection, until its header is read; then it is that of what `make` makes."""

    def __init__(self, make: Callable[[], asyncio.Protocol], counters: TransportCounters, timeout: float) -> None:
        self._make = make
        self._counters = counters
        self._timeout = timeout
        self._data = bytearray()
        self._socket: asyncio.Transport
        self._timer: asyncio.TimerHandle

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._socket = cast(asyncio.Transport, transport)
        self._timer = asyncio.get_running_loop().call_later(self._timeout, self._refuse)

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()

    def _refuse(self) -> None:
        self._counters.protocol_errors["proxy-header"] += 1
        self._timer.cancel()
        self._socket.abort()

    def data_received(self, data: bytes) -> None:
        self._data += data
        try:
            found = read_header(self._data)
        except ProxyError:
            self._refuse()
            return
        if found is None:
            return
        self._timer.cancel()
        end, client = found
        inside = self._make()
        self._socket.set_protocol(inside)
        inside.connection_made(self._socket if client is None else cast(Any, _Announced(self._socket, client)))
        if len(self._data) > end and not self._socket.is_closing():
            inside.data_received(bytes(self._data[end:]))


class _Announced:
    """The transport, with the address that the proxy has told."""

    def __init__(self, socket: asyncio.Transport, client: tuple[str, int]) -> None:
        self._socket = socket
        self._client = client

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._client if name == "peername" else self._socket.get_extra_info(name, default)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)


def proxied(
    make: Callable[[], asyncio.Protocol], counters: TransportCounters, timeout: float
) -> Callable[[], asyncio.Protocol]:
    return lambda: Proxied(make, counters, timeout)
