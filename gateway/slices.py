"""Owns Slices: work on the event loop that may be long, done a little in each turn of the loop.

Its rule: all such work of one loop has one slice in a turn, so many who ask at once hold up the others no longer than
one does.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

SLICE_SECONDS = 0.005
PORTION = 256
"""So many small steps are done before the clock is asked."""

T = TypeVar("T")


class _Line:
    """Those of one loop that wait for their slice. The loop comes with each call: what refers to a weak key must not be
    its value."""

    __slots__ = ("_taken", "_waiting")

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._taken = False

    async def turn(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._taken:
            self._taken = True
            loop.call_soon(self._next, loop)
            return
        future: asyncio.Future[None] = loop.create_future()
        self._waiting.append(future)
        await future

    def _next(self, loop: asyncio.AbstractEventLoop) -> None:
        """In the turn after a slice."""
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_result(None)
                loop.call_soon(self._next, loop)
                return
        self._taken = False


_loops: WeakKeyDictionary[asyncio.AbstractEventLoop, _Line] = WeakKeyDictionary()


class Slices:
    """Of one piece of work: `pause` stands between any two of its small steps, the first included."""

    __slots__ = ("_until",)

    def __init__(self) -> None:
        self._until = 0.0

    async def pause(self) -> None:
        """Lets others have their turn if this work has had its slice."""
        if time.perf_counter() < self._until:
            return
        loop = asyncio.get_running_loop()
        turns = _loops.get(loop)
        if turns is None:
            turns = _loops[loop] = _Line()
        await turns.turn(loop)
        self._until = time.perf_counter() + SLICE_SECONDS


class Errand:
    """Work in slices that nobody waits for: it goes on by itself from now on, to its end or until it is given up."""

    __slots__ = ("_task",)

    def __init__(self, work: Coroutine[Any, Any, None], failed: Callable[[Exception], None]) -> None:
        """failed: told of an exception that ended it, which is nobody else's."""
        self._task = asyncio.ensure_future(self._carry_out(work, failed))

    @staticmethod
    async def _carry_out(work: Coroutine[Any, Any, None], failed: Callable[[Exception], None]) -> None:
        try:
            await work
        except Exception as error:
            failed(error)

    def give_up(self) -> None:
        self._task.cancel()


def portions(items: Iterable[T], size: int = PORTION) -> Iterator[list[T]]:
    """The items, some at a time; to be paused between. What they are read from must not change meanwhile."""
    iterator = iter(items)
    while some := list(islice(iterator, size)):
        yield some


async def in_order(items: Iterable[T], slices: Slices, key: Callable[[T], Any]) -> list[T]:
    """As `sorted`, of any number."""
    runs: list[list[T]] = []
    for some in portions(items):
        await slices.pause()
        runs.append(sorted(some, key=key))
    if len(runs) == 1:
        return runs[0]
    found: list[T] = []
    for some in portions(heapq.merge(*runs, key=key)):
        found += some
        await slices.pause()
    return found
