"""Owns names: who may use a queue that is named, whoever brings the name and by whichever way (ruling 31).

Its rule: these questions are asked where the core resolves a name, never by one protocol alone. A transport may ask
first, to refuse in its own words; the core asks again.

By its name a message reaches a queue over the default exchange, whether it is published, a will, a copy (CC, BCC), a
dead letter, what an alternate exchange gets, or an answer: the router leads none of them to a reserved name. To
consume a queue, to purge, delete or bind it, an `Actor` must be allowed to use it (`check_use`).
"""

from __future__ import annotations

from typing import Protocol

from gateway.errors import LockedQueueError, ReservedNameError

RESERVED = {"mqtt.": "mqtt", "link.": "config"}
"""How the names of sessions, shares and outboxes begin, and who alone makes and binds such queues: no client may name
them (ruling 25)."""
RESERVED_QUEUES = tuple(RESERVED)
NAMESPACE = "vhost."
"""The names of another namespace than the shared one begin so, with the namespace's own name and a slash behind it:
those of AMQP's virtual hosts other than `/`."""


class Actor:
    """Whoever acts: a client's connection, a transport for itself, or the operator. What an actor holds exclusively, it
    holds as this one object.

    owner: as whom it makes queues and bindings; "" for who makes none. user: the name that the client has logged in
    with, "" for none. is_operator: the configuration speaks.
    """

    __slots__ = ("is_operator", "owner", "user")

    def __init__(self, owner: str = "", user: str = "", is_operator: bool = False) -> None:
        self.owner = owner
        self.user = user
        self.is_operator = is_operator

    def forges(self, user_id: str | None) -> bool:
        """Whether a message that this actor sends says of somebody else that he has sent it."""
        return user_id is not None and user_id != self.user and not self.is_operator


NOBODY = Actor()
"""A client of whom nothing is known."""
OPERATOR = Actor(is_operator=True)
"""The configuration: its routes, links and sinks."""


class Named(Protocol):
    """What is asked of a queue."""

    name: str
    owner: str
    holder: Actor | None


def is_reserved(name: str) -> bool:
    return name.startswith(RESERVED_QUEUES)


def is_within(name: str, prefix: str) -> bool:
    """Whether a name is of the namespace whose names begin with `prefix`; "" is the shared one."""
    return name.startswith(prefix) if prefix else not name.startswith(NAMESPACE)


def check_use(queue: Named, actor: Actor) -> None:
    """Raises ReservedNameError or LockedQueueError if this actor may not consume, purge, delete or bind the queue."""
    if is_reserved(queue.name) and not actor.is_operator and actor.owner != queue.owner:
        raise ReservedNameError(f"queue {queue.name!r} is a session's, a share's or a link's, and no other may use it")
    if queue.holder is not None and queue.holder is not actor:
        raise LockedQueueError(f"queue {queue.name!r} belongs to one connection alone, which is another")


def check_owner(name: str, owner: str) -> None:
    """Raises ReservedNameError if no queue of this name is to be made or bound by `owner`."""
    for prefix, reserved_for in RESERVED.items():
        if name.startswith(prefix) and owner != reserved_for:
            raise ReservedNameError(f"queue {name!r}: names that begin with {prefix} are reserved")
