"""Owns reading percent-encoded text [RFC 3986] of paths, queries and headers.

Its rule: what is no such text is refused, never repaired: a message must not come in under another topic than was
written.
"""

from __future__ import annotations

_DIGITS = frozenset(b"0123456789abcdefABCDEF")


def decode(octets: bytes) -> bytes:
    """Raises ValueError for a % without two hexadecimal digits behind it."""
    first, *parts = octets.split(b"%")
    decoded = [first]
    for part in parts:
        if len(part) < 2 or not _DIGITS.issuperset(part[:2]):
            raise ValueError("has a % without two hexadecimal digits behind it")
        decoded.append(bytes((int(part[:2], 16),)) + part[2:])
    return b"".join(decoded)


def decode_text(octets: bytes) -> str:
    """Also raises ValueError for what is no UTF-8."""
    try:
        return decode(octets).decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"is no UTF-8 text (byte {error.start})") from error
