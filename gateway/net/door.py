"""Owns Door: what a listener has in common for those whose connection is there and whose protocol has not begun.

Its rule: who is at the door is counted and in time like everybody else, and who is refused there leaves a trace.
"""

from __future__ import annotations

from gateway.net.connection_limits import Crowd, Member
from gateway.net.roles import Host


class Door:
    """Of one listener. timeout: seconds in which one must have come through it."""

    def __init__(self, gateway: Host, transport: str, crowd: Crowd, timeout: float) -> None:
        self.transport = transport
        self.timeout = timeout
        self.counters = gateway.counters(transport)
        self._gateway = gateway
        self._crowd = crowd
        self._there: set[Member] = set()

    def enter(self, one: Member) -> None:
        """It may be cut off before this returns."""
        self.counters.connections += 1
        self._there.add(one)
        self._crowd.join(one)

    def leave(self, one: Member) -> None:
        """It has come through, or is gone; doing it again does nothing. Who comes through enters anew, as one of the
        listener's connections."""
        if one in self._there:
            self._there.discard(one)
            self.counters.connections -= 1
            self._crowd.leave(one)

    def refuse(self, reason: str, peer: str, why: str, count: bool = True) -> None:
        self._gateway.refused(self.transport, reason, peer, why=why, count=count)

    def close(self) -> None:
        """The listener stops."""
        for one in list(self._there):
            one.cut_off("the gateway is stopping")
