"""Owns what becomes of a published message (Outcome) and of a delivery (Verdict).

Its rule: an Outcome exists only after the commit that makes it true.
"""

from __future__ import annotations

import enum


class Outcome(enum.Enum):
    """What became of an accepted message."""

    STORED = "stored"
    DUPLICATE = "duplicate"
    UNROUTED = "unrouted"
    REFUSED = "refused"


class Verdict(enum.Enum):
    """What became of a delivery. RETRY counts an attempt; RETURNED, given back unused, does not. DEAD is the consumer's
    own word: a dead letter, `rejected`. INVALID is its transport's: it can't be handed the message as it is; a dead
    letter, `invalid`."""

    DONE = "done"
    RETRY = "retry"
    DEAD = "dead"
    INVALID = "invalid"
    RETURNED = "returned"
