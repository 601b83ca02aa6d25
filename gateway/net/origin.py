"""Owns what a page in a browser may reach: the check of Host and Origin, the same for HTTP and for WebSockets.

Its rule: where no client has to show who it is, being on this machine is what admits it. So a page that was loaded from
elsewhere is kept out, although the browser that runs it is on this machine.
"""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from gateway.address import Address


def is_private(listen: Address, admits_anyone: bool) -> bool:
    """Whether a listener is open to whoever is on this machine, and to nobody else."""
    return admits_anyone and listen.loopback


def why_refused(host: str | None, origin: str | None) -> str:
    """Why a private listener does not serve a request with these headers; "" if it does. A program sends no Origin.

    host: the listener must be called by a name of this machine, as a page may point a name of its own here (DNS
    rebinding). origin: where the page comes from, as its browser says; `null` is a page that hides it.
    """
    if host is not None and not _is_here(_hostname(f"//{host}")):
        return f"this listener answers to localhost, not to {host[:256]!r}"
    if origin is not None and not _is_here(_hostname(origin)):
        return f"a page of {origin[:256]!r} may not use this listener, which asks nobody who he is; configure `users`"
    return ""


def _hostname(url: str) -> str:
    """ "" if there is none."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _is_here(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
