"""Owns how an address to listen on is written: `host:port`, `[v6]:port`, `:port` or a port alone.

Its rule: an address that names no host listens on loopback only when it says so; `:1883` means every interface.
"""

from __future__ import annotations

import ipaddress
from typing import Any


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
        if not (port.isascii() and port.isdigit() and int(port) <= 65_535 and readable):
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
