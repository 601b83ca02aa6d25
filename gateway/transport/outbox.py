"""Owns outboxes: the queues that stand for a link, how they are named and what they promise.

Its rule: whoever has the link's name finds its queues, and no other queue is named so.
"""

from __future__ import annotations

from gateway.model.policy import QueuePolicy, SecondsRange

OUTBOX_PREFIX = "link."
AWAITED_SUFFIX = ":delivered"
"""No link has a colon in its name, so no outbox ends so."""


class OutboxPolicy(QueuePolicy, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the outbox of a link promises: a queue's policy (`queues`) with defaults of its own. Messages of one topic
    keep their order, a full outbox refuses what is routed to it, and what the remote refuses is tried again with a
    growing pause.
    """

    group: str | None = "{topic}"
    retry_delay: SecondsRange | None = SecondsRange((1.0, 60.0))


def outbox(link: str) -> str:
    """The name of a link's outbox."""
    return OUTBOX_PREFIX + link


def awaited(outbox: str) -> str:
    """The queue beside an outbox, of what routes send with `ack: delivered`."""
    return outbox + AWAITED_SUFFIX


def queues(outbox: str) -> tuple[str, ...]:
    """All that stand for one link, its outbox first."""
    return (outbox, awaited(outbox))
