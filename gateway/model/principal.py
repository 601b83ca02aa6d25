"""Owns User: who a client has shown to be.

Its rule: only the gateway makes one, of what was shown at a login.
"""

from __future__ import annotations

import msgspec


class User(msgspec.Struct, frozen=True):
    """Who a client has shown to be; name is "" for an anonymous one. mark: stands for what it has shown, and is made
    by the gateway alone; b"": the login rests on the listener's own settings."""

    name: str
    mark: bytes = b""
