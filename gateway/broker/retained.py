"""Owns retained messages: the last one of each topic that was published with the retain flag.

Its rule: a change stands in the commit of the message that made it, and is seen after that commit (ruling 3); what
all of them take has a limit, beyond which nothing is retained until something is cleared or expires.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from operator import itemgetter

import msgspec

from gateway.model.message import NO_PROPERTIES, Message
from gateway.model.policy import MAX_RETAINED_OCTETS
from gateway.model.state import StateChange
from gateway.model.topics import NameTree

OWNER = "retained"
_KEPT_OCTETS = 1000
_LEVEL_OCTETS = 400
"""What a message and a level of its topic take in memory besides their bytes, about."""
SWEEP_SECONDS = 10.0
"""A full memory is searched for messages that have expired, at most so often."""


class _Kept(msgspec.Struct, frozen=True, array_like=True):
    accepted: float
    message: Message


_at = itemgetter(0)
_encode = msgspec.msgpack.Encoder().encode
_encode_properties = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Kept).decode


class Retained:
    """Topics with their retained messages, and when they were set.

    octets: what those that are committed take in memory, about. limit: of these and of what waits for its commit.
    """

    __slots__ = (
        "_applied",
        "_kept",
        "_latest",
        "_next_sweep",
        "_pending",
        "_pending_octets",
        "_tree",
        "limit",
        "octets",
    )

    def __init__(self, limit: int = MAX_RETAINED_OCTETS) -> None:
        self._kept: dict[str, _Kept] = {}
        self._tree: NameTree[str] = NameTree()
        self._latest = 0.0
        self._applied = 0.0
        """The latest time of what was ever committed."""
        self._pending: dict[float, tuple[str, int]] = {}
        """Topic and octets of each change that waits for its commit, by its time."""
        self._pending_octets = 0
        self._next_sweep = 0.0
        self.limit = limit
        self.octets = 0

    def __len__(self) -> int:
        return len(self._kept)

    def is_full(self, message: Message) -> bool:
        """Whether there is no room for this one. What it replaces makes room; clearing needs none."""
        if not message.body:
            return False
        old = self._kept.get(message.topic)
        freed = _cost(old.message) if old is not None else 0
        return self.octets - freed + self._pending_octets + _cost(message) > self.limit

    def make_room(self, now: float) -> list[StateChange]:
        """Forgets those that have expired; what to journal for that."""
        if now < self._next_sweep:
            return []
        self._next_sweep = now + SWEEP_SECONDS
        coming = {topic for topic, _ in self._pending.values()}
        over = [
            topic
            for topic, kept in self._kept.items()
            if kept.message.ttl is not None and kept.accepted + kept.message.ttl <= now and topic not in coming
        ]
        for topic in over:
            self._remove(topic)
        return [StateChange(OWNER, topic, None) for topic in over]

    def change(self, message: Message, now: float) -> tuple[StateChange, float]:
        """What to journal for a message with the retain flag, and the time to `apply` it with, which grows with each
        change so that it tells their order. An empty body clears [MQTT-3.3.1-6]."""
        self._latest = max(now, math.nextafter(self._latest, math.inf))
        value = None
        if message.body:
            value = _encode(_Kept(self._latest, message))
            cost = _cost(message)
            self._pending[self._latest] = (message.topic, cost)
            self._pending_octets += cost
        return StateChange(OWNER, message.topic, value), self._latest

    def apply(self, message: Message, now: float) -> None:
        """The change is committed."""
        self.undo(now)
        self._applied = max(self._applied, now)
        self._remove(message.topic)
        if message.body:
            self._kept[message.topic] = _Kept(now, message)
            self.octets += _cost(message)
            self._tree.put(message.topic, message.topic)

    def undo(self, at: float) -> None:
        """The change of that time waits for its commit no more."""
        self._pending_octets -= self._pending.pop(at, ("", 0))[1]

    def _remove(self, topic: str) -> None:
        old = self._kept.pop(topic, None)
        if old is not None:
            self.octets -= _cost(old.message)
            self._tree.remove(topic)

    def restore(self, value: bytes) -> None:
        """Raises msgspec.DecodeError for what is none."""
        kept = _decode(value)
        self._latest = max(self._latest, kept.accepted)
        self.apply(kept.message, kept.accepted)

    def states(self) -> list[StateChange]:
        """All of them, for a new store."""
        return [StateChange(OWNER, topic, _encode(kept)) for topic, kept in self._kept.items()]

    def find(self, filter: str, now: float) -> list[tuple[float, Message]]:
        """Those that match and have not expired, with what is left of their time, in the order they were set, each
        behind the time when it was."""
        return sorted((found for found in self.search(filter, now) if found is not None), key=_at)

    def search(self, filter: str, now: float) -> Iterator[tuple[float, Message] | None]:
        """As `find`, in no order and one small step at a time, with None for each that finds nothing. Nothing that is
        set after the first step is found."""
        latest = self._applied
        for topic in self._tree.walk(filter):
            kept = self._kept[topic] if topic is not None else None
            if kept is None or kept.accepted > latest:
                yield None
                continue
            message = kept.message
            if message.ttl is not None:
                left = kept.accepted + message.ttl - now
                if left <= 0:
                    yield None
                    continue
                message = msgspec.structs.replace(message, ttl=left)
            yield kept.accepted, message


def _cost(message: Message) -> int:
    """What it takes in memory, about."""
    properties = message.properties
    octets = len(message.body) + 3 * len(message.topic) + _LEVEL_OCTETS * message.topic.count("/") + _KEPT_OCTETS
    return octets if properties == NO_PROPERTIES else octets + 2 * len(_encode_properties(properties))
