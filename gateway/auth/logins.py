"""Owns Logins: who is in, by what has let them in, so that a reload can put them out again.

Its rule: a login lasts as long as what it rests on: the user, the password hash or verifier, that there are no users,
or the listener's own word (`allow_anonymous`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable

from gateway.model.principal import User

SLICE = 50
"""Connections that are ended in one turn of the loop."""
WHY = "a reload took away what this login rested on: the user, or the password"

End = Callable[[str], None]


class Logins:
    """Those of one daemon. `holds`: whether what a user has shown would still let him in."""

    def __init__(self, holds: Callable[[User], bool]) -> None:
        self._holds = holds
        self._ends: dict[User, dict[object, End]] = {}
        self._leaving: deque[tuple[User, object]] = deque()

    def enter(self, user: User, end: End) -> Callable[[], None]:
        """`end` is called, with the reason, when the login no longer holds, unless what this returns was called
        before, as it is when the connection is gone. It is never called from here."""
        ticket = object()
        self._ends.setdefault(user, {})[ticket] = end
        if not self._holds(user):  # there was a reload since it was checked
            self._end_soon([(user, ticket)])

        def leave() -> None:
            self._take(user, ticket)

        return leave

    def look(self) -> int:
        """After a reload: ends those that no longer hold, a slice at a time. Returns how many these are."""
        gone = [user for user in self._ends if not self._holds(user)]
        leaving = [(user, ticket) for user in gone for ticket in self._ends[user]]
        self._end_soon(leaving)
        return len(leaving)

    def _end_soon(self, leaving: Iterable[tuple[User, object]]) -> None:
        waiting = bool(self._leaving)
        self._leaving.extend(leaving)
        if self._leaving and not waiting:
            asyncio.get_running_loop().call_soon(self._end_some)

    def _end_some(self) -> None:
        for _ in range(min(SLICE, len(self._leaving))):
            user, ticket = self._leaving.popleft()
            if end := self._take(user, ticket):
                end(WHY)
        if self._leaving:
            asyncio.get_running_loop().call_soon(self._end_some)

    def _take(self, user: User, ticket: object) -> End | None:
        """Doing it again does nothing."""
        ends = self._ends.get(user)
        end = ends.pop(ticket, None) if ends is not None else None
        if ends is not None and not ends:
            del self._ends[user]
        return end
