"""Owns deliveries: a message on its way to one consumer, and the deaths that it has behind it.

Its rule: a delivery id is new for each delivery and stands for that one alone.
"""

from __future__ import annotations

import enum

import msgspec

from gateway.model.binding import Options
from gateway.model.message import Message


class Reason(enum.StrEnum):
    """Why a queue gave a message up."""

    REJECTED = "rejected"
    EXHAUSTED = "exhausted"
    EXPIRED = "expired"
    OVERFLOW = "overflow"
    UNROUTABLE = "unroutable"
    INVALID = "invalid"


class Death(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One time that a queue gave a message up. Times are wall-clock seconds since 1970.

    reason: rejected, exhausted, expired, overflow, unroutable or invalid. first: accepted by that queue.
    exchange, topic: where the message had been sent to, if it was given another address then.
    count: so many deaths in that queue and for that reason, this one and earlier ones that the history keeps no more.
    """

    queue: str
    reason: str
    attempts: int
    error: str
    first: float
    last: float
    exchange: str | None = None
    topic: str | None = None
    count: int = 1


class Delivery(msgspec.Struct, eq=False, gc=False):
    """A message on its way to one consumer. `id` is new for each delivery, grows, and is never 0;
    with id 0 (QoS 0 to a live subscriber) there is nothing to settle.

    ident: of the message in this queue, over restarts too; it grows, and is never used again.
    attempts: failed deliveries before this one. redelivered: it was delivered before, or may have been by an earlier
    run of the daemon.
    deaths: why earlier queues gave it up, the latest first. remaining: seconds until it expires, or None.
    """

    id: int
    message: Message
    queue: str
    options: Options
    slot: int = 0
    attempts: int = 0
    redelivered: bool = False
    deaths: tuple[Death, ...] = ()
    expires: float | None = None
    ident: int = 0
