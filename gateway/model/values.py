"""Owns when two values that a header, an argument or a pattern may hold are the same.

Its rule: true, 1 and 1.0 are three values, and a text is no bytes; Python, for which the first three are equal, is not
asked.
"""

from __future__ import annotations

from typing import Any


def same(one: Any, other: Any) -> bool:
    """Equal, of the same type, and so is all that is in them."""
    if type(one) is not type(other):
        return False
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[name]) for name, value in one.items())
    return bool(one == other)
