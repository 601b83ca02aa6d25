"""Owns what a load is made of: numbered messages, who sends which, and what must have become of them.

Its rule: number n carries n in its body, comes from publisher `n % publishers` and belongs to group `n % groups`, so
losses, repeats and wrong order are found without any other record.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

BODY = re.compile(rb'\{"id":"(\d{10})"')
BODY_END = b'"}'
"""Ends each body and stands nowhere else in it. In a frame's own fields it does no harm: a body comes after these."""
SMALLEST_BODY = len('{"id":"0123456789","v":""}')


class LoadError(Exception):
    """A broker lost, repeated, reordered, refused or never answered something: its numbers mean nothing."""


class Flow(NamedTuple):
    """`total` messages from number `first` on, of `body_size` bytes each, to `topic` with the group's number in it."""

    total: int
    publishers: int
    groups: int
    body_size: int
    first: int = 0
    topic: bytes = b"bench/%04d/orders"
    qos: int = 1

    def numbers(self, publisher: int) -> range:
        """Those that this publisher sends, in order."""
        return range(self.first + publisher, self.first + self.total, self.publishers)

    def body(self) -> bytes:
        """A template for a message's number."""
        return b'{"id":"%010d","v":"' + b"x" * (self.body_size - SMALLEST_BODY) + BODY_END

    def check(self) -> None:
        """Raises LoadError for one whose groups would have several publishers, or packets several lengths."""
        if self.groups % self.publishers or self.first % self.groups or self.groups > 10_000:
            raise LoadError("publishers must divide groups, groups the first number, and groups be at most 10000")
        if self.body_size < SMALLEST_BODY:
            raise LoadError(f"a body is at least {SMALLEST_BODY} bytes")


class Packets(NamedTuple):
    """What one publisher sends, encoded beforehand: so many packets of one size, end to end."""

    octets: memoryview
    size: int
    number: int

    @classmethod
    def of(cls, parts: Sequence[bytes]) -> Packets:
        return cls(memoryview(b"".join(parts)), len(parts[0]) if parts else 1, len(parts))


def check_deliveries(ids: Sequence[bytes], first: int, total: int, groups: int) -> None:
    """Each number from `first` to `first + total` came once, ascending within its group. Raises LoadError."""
    seen, last = bytearray(total), [-1] * groups
    disorder = ""
    for number in map(int, ids):
        if first <= number < first + total:
            seen[number - first] = 1
        before, last[number % groups] = last[number % groups], number
        if number <= before and not disorder:
            disorder = f"message {number} came after {before} of its group"
    if len(ids) != total or seen.count(1) != total:
        raise LoadError(f"{total} messages were stored, {len(ids)} came, {seen.count(1)} different ones of them")
    if disorder:
        raise LoadError(disorder)
