"""Owns the words of dead letters: the reasons, and the history that a dead letter carries.

Its rule: a dead letter is the same body under a new entry; the message itself is never altered.
"""

from __future__ import annotations

import enum

from gateway.records import Extra
from gateway.transport import Death

MAX_DEATHS = 32
"""Of a message that dies again and again the latest are kept, and the first."""


class Reason(enum.StrEnum):
    """Why a queue gave a message up."""

    REJECTED = "rejected"
    EXHAUSTED = "exhausted"
    EXPIRED = "expired"
    OVERFLOW = "overflow"
    UNROUTABLE = "unroutable"
    INVALID = "invalid"


def bury(
    extra: Extra, queue: str, reason: Reason, attempts: int, error: str, first: float, last: float, group: str | None
) -> Extra:
    """What the dead letter's entry carries: the earlier deaths behind this one. The group of its first death stays,
    since redrive puts it back there."""
    death = Death(queue, reason.value, attempts, error, first, last)
    deaths = (death, *extra.deaths)
    if len(deaths) > MAX_DEATHS:
        deaths = (*deaths[: MAX_DEATHS - 1], deaths[-1])
    return Extra(extra.options, deaths, group if group is not None else extra.group)
