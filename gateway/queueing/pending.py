"""Owns Pending: an entry that waits for its commit.

Its rule: it has its place in the order of all entries already, and nobody can be delivered it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from gateway.model.message import Message

if TYPE_CHECKING:
    from gateway.queueing.queue import Queue


class Pending(msgspec.Struct, frozen=True, gc=False):
    """An entry on its way to the disk; what `Queue.store` takes."""

    queue: Queue
    ident: int
    message: Message | None
    row: int
    offset: int
    length: int
    expires: float
    accepted: float
    group: int
    extra: int
    due: float
