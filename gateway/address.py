"""Owns how an address to listen on is written: `host:port`, `[v6]:port`, `:port` or a port alone.

Its rule: an address that names no host listens on loopback only when it says so; `:1883` means every interface.
"""

from __future__ import annotations

import ipaddress
from typing import Any
from urllib.parse import SplitResult


class Address(str):
    """`127.0.0.1:1883`, `[::1]:1883`, `localhost:1883`, `:1883` or `1883` (all interfaces); port 0 asks for a free
    one. Usable as the type of a setting."""

    __slots__ = ("host", "port")

    host: str
    """"" for all interfaces."""
    port: int

    @classmethod
    def parse(cls, value: Any) -> Address:
        """Raises ValueError that says what an address looks like."""
        text = str(value) if isinstance(value, (str, int)) and not isinstance(value, bool) else ""
        host, colon, port = text.strip().rpartition(":")
        bracketed = host.startswith("[") and host.endswith("]")
        # A host with colons of its own is IPv6 and must stand in brackets, or the port would be a guess.
        readable = bracketed or ":" not in host
        if not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 65_535 and readable):
            raise ValueError(f"{value!r} is no address; write for example 127.0.0.1:1883, [::1]:1883 or :1883")
        address = cls(text.strip() if colon else f":{port}")
        address.host = host[1:-1] if bracketed else host
        address.port = int(port)
        return address

    @property
    def loopback(self) -> bool:
        """Only this machine can reach it. A name other than `localhost` counts as reachable from elsewhere."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def clashes(self, other: Address) -> bool:
        """Whether two sockets can't listen on both. Port 0 clashes with none; of a name it is known only that it is
        the same as another, and that all interfaces have it."""
        if self.port != other.port or not self.port:
            return False
        mine, theirs = _places(self.host), _places(other.host)
        return not mine.isdisjoint(theirs) or _covers(mine, theirs) or _covers(theirs, mine)


def port_of(url: SplitResult, usual: int) -> int:
    """To connect to: the port that a URL names, or the usual one of its scheme. Raises ValueError; 0 is nobody's."""
    try:
        port = url.port
    except ValueError:
        port = 0
    if port == 0:
        raise ValueError("url: the port is a number from 1 to 65535")
    return usual if port is None else port


_ALL = {4: "0.0.0.0", 6: "::"}


def _places(host: str) -> frozenset[str]:
    """What the listening sockets of a host are bound to; one of IPv6 takes no IPv4."""
    if not host:
        return frozenset(_ALL.values())
    if host == "localhost":
        return frozenset(("127.0.0.1",))  # on some machines ::1, too
    try:
        return frozenset((str(ipaddress.ip_address(host)),))
    except ValueError:
        return frozenset((host.lower(),))


def _covers(wide: frozenset[str], narrow: frozenset[str]) -> bool:
    """All interfaces of a family cover each address of it, and those of both cover each name."""
    if wide.issuperset(_ALL.values()):
        return True
    for place in narrow:
        try:
            if _ALL[ipaddress.ip_address(place).version] in wide:
                return True
        except ValueError:
            continue  # a name
    return False
