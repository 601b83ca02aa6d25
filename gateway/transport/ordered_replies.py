"""Owns Turns: answers that must go out in the order in which they were asked for, whatever order they are known in.

Its rule: one is given when it is known and all before it are given. Who asks for many has a limit of its own for them.
"""

from __future__ import annotations

from asyncio import Future
from collections import deque
from collections.abc import Callable
from typing import Any


class Turns:
    """Of one connection. `accept` answers in order, but for what waits until a link has delivered it."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: deque[tuple[Future[Any], Callable[[Future[Any]], None]]] = deque()

    def add(self, future: Future[Any], answer: Callable[[Future[Any]], None]) -> None:
        """`answer` is called with the Future, done or cancelled, in its turn."""
        self._waiting.append((future, answer))
        future.add_done_callback(self._go_on)

    def _go_on(self, _: Future[Any]) -> None:
        waiting = self._waiting
        while waiting and waiting[0][0].done():
            future, answer = waiting.popleft()
            answer(future)
