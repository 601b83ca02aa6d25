"""Owns flow control: Credit (how much a consumer takes) and Pressure (when reading pauses).

Its rule: granting and releasing are idempotent and never lose a wake-up.
"""

from __future__ import annotations

from collections.abc import Callable

UNLIMITED = 1 << 62


class Credit:
    """A pool of messages and octets from which deliveries are taken; may be shared by many subscriptions
    (MQTT: one for each connection; AMQP: one for each channel, ruling 16).

    A delivery may overdraw `octets` by its own size, so any message can be sent; never `messages`.
    """

    __slots__ = ("messages", "octets", "taker", "wakes")

    def __init__(self, messages: int = UNLIMITED, octets: int = UNLIMITED) -> None:
        self.messages = messages
        self.octets = octets
        self.wakes: dict[Callable[[], None], None] = {}
        """What the core asked to be called, once each and in turn, when there is credit again."""
        self.taker: Callable[[], None] | None = None
        """Who took the last of it: the others come first."""

    @property
    def spent(self) -> bool:
        return self.messages <= 0 or self.octets <= 0

    def grant(self, messages: int = 0, octets: int = 0) -> None:
        """Adds credit and wakes who waited for it."""
        self.messages += messages
        self.octets += octets
        if self.wakes and self.messages > 0 and self.octets > 0:
            wakes, self.wakes = self.wakes, {}
            if self.taker in wakes:
                wakes[self.taker] = wakes.pop(self.taker)
            self.taker = None
            for wake in wakes:
                wake()


class Pressure:
    """Whether the daemon's own buffers are above their high mark (ruling 22). A connection that sees `high` after
    an accept pauses reading and asks to be called when it is over."""

    __slots__ = ("_waiting", "high")

    def __init__(self) -> None:
        self.high = False
        self._waiting: list[Callable[[], None]] = []

    def on_low(self, resume: Callable[[], None]) -> None:
        """Calls `resume` once, when the pressure is gone (at once if it is)."""
        if self.high:
            self._waiting.append(resume)
        else:
            resume()

    def set(self, high: bool) -> None:
        self.high = high
        if not high and self._waiting:
            waiting, self._waiting = self._waiting, []
            for resume in waiting:
                resume()
