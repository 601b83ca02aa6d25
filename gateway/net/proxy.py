"""Owns the PROXY protocol, version 2: a proxy in front of us says whose connection it passes on.

Its rule: what does not come from a trusted proxy, or does not begin with a whole, right header, never reaches the
protocol inside: whoever can reach this port without the proxy could otherwise claim any address.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable, Sequence
from typing import Any, cast

from gateway.net.door import Door

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


Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class ProxiedBy:
    """Who may say whose connection it passes on: addresses and networks, as the configuration has them. Raises
    ValueError for what is neither."""

    def __init__(self, places: Sequence[str]) -> None:
        self._networks: list[Network] = [ipaddress.ip_network(place) for place in places]

    def __contains__(self, host: str) -> bool:
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return False
        inner = getattr(address, "ipv4_mapped", None) or address
        return any(inner in network for network in self._networks)


class Proxied(asyncio.Protocol):
    """One connection, until its header is read; then it is that of what `make` makes. Until then it is a stranger in
    the crowd, like any other that has not said who it is."""

    def __init__(self, door: Door, make: Callable[[], asyncio.Protocol], proxies: ProxiedBy) -> None:
        self._door = door
        self._make = make
        self._proxies = proxies
        self._data = bytearray()
        self._peer = ""
        self._socket: asyncio.Transport
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._socket = cast(asyncio.Transport, transport)
        host, port = transport.get_extra_info("peername")[:2]
        self._peer = f"{host}:{port}"
        self._door.enter(self)
        if host not in self._proxies:
            self._door.refuse("untrusted-proxy", self._peer, "only `trusted_proxies` may connect here")
            self._socket.abort()
            return
        self._timer = asyncio.get_running_loop().call_later(self._door.timeout, self._refuse, "no whole header in time")

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()

    def cut_off(self, why: str) -> None:
        self._socket.abort()

    def _leave(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._door.leave(self)

    def _refuse(self, why: str) -> None:
        self._door.counters.protocol_errors["proxy-header"] += 1
        self._door.refuse("proxy-header", self._peer, why, count=False)
        self._socket.abort()

    def data_received(self, data: bytes) -> None:
        if self._socket.is_closing():
            return
        self._data += data
        try:
            found = read_header(self._data)
        except ProxyError as error:
            self._refuse(str(error))
            return
        if found is None:
            return
        end, client = found
        self._leave()
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


def proxied(door: Door, make: Callable[[], asyncio.Protocol], places: Sequence[str]) -> Callable[[], asyncio.Protocol]:
    """`make`, behind the headers of these proxies."""
    proxies = ProxiedBy(places)
    return lambda: Proxied(door, make, proxies)
