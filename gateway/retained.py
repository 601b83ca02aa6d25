"""Owns retained messages: the last one of each topic that was published with the retain flag.

Its rule: a change stands in the commit of the message that made it, and is seen after that commit (ruling 3).
"""

from __future__ import annotations

import math

import msgspec

from gateway.message import Message
from gateway.storage.journal import StateChange
from gateway.topics import NameTree

OWNER = "retained"


class _Kept(msgspec.Struct, frozen=True, array_like=True):
    accepted: float
    message: Message


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Kept).decode


class Retained:
    """Topics with their retained messages, and when they were set."""

    __slots__ = ("_kept", "_latest", "_tree", "octets")

    def __init__(self) -> None:
        self._kept: dict[str, _Kept] = {}
        self._tree: NameTree[str] = NameTree()
        self._latest = 0.0
        self.octets = 0

    def __len__(self) -> int:
        return len(self._kept)

    def change(self, message: Message, now: float) -> tuple[StateChange, float]:
        """What to journal for a message with the retain flag, and the time to `apply` it with, which grows with each
        change so that it tells their order. An empty body clears [MQTT-3.3.1-6]."""
        self._latest = max(now, math.nextafter(self._latest, math.inf))
        value = _encode(_Kept(self._latest, message)) if message.body else None
        return StateChange(OWNER, message.topic, value), self._latest

    def apply(self, message: Message, now: float) -> None:
        """The change is committed."""
        old = self._kept.pop(message.topic, None)
        if old is not None:
            self.octets -= len(old.message.body)
        if message.body:
            self._kept[message.topic] = _Kept(now, message)
            self.octets += len(message.body)
            if old is None:
                self._tree.put(message.topic, message.topic)
        elif old is not None:
            self._tree.remove(message.topic)

    def restore(self, value: bytes) -> None:
        """Raises msgspec.DecodeError for what is none."""
        kept = _decode(value)
        self._latest = max(self._latest, kept.accepted)
        self.apply(kept.message, kept.accepted)

    def states(self) -> list[StateChange]:
        """All of them, for a new store."""
        return [StateChange(OWNER, topic, _encode(kept)) for topic, kept in self._kept.items()]

    def find(self, filter: str, now: float) -> list[Message]:
        """Those that match and have not expired, with what is left of their time, in the order they were set."""
        found = sorted((self._kept[topic] for topic in self._tree.match(filter)), key=lambda kept: kept.accepted)
        messages: list[Message] = []
        for kept in found:
            message = kept.message
            if message.ttl is not None:
                left = kept.accepted + message.ttl - now
                if left <= 0:
                    continue
                message = msgspec.structs.replace(message, ttl=left)
            messages.append(message)
        return messages
