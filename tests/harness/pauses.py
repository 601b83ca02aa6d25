"""Owns Pauses: how long the loop of a test stood still, turn by turn.

Its rule: what counts is the processor time of the loop's own thread, and the limit is in units of a loop that is timed
beside it, so that neither a busy machine nor a slow one makes a pause of what is none.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections.abc import Iterator

import pytest

from gateway.daemon import tame_collector

LIMIT_SECONDS = 0.05
"""What the design allows."""
COUNTED = 1_000_000
COUNTED_SECONDS = 0.0225
"""How long `_count` takes on the machine on which the limit was set."""


def _count() -> float:
    began = time.thread_time()
    found = 0
    for number in range(COUNTED):
        found += number & 3
    return time.thread_time() - began


class Pauses:
    """longest: the longest turn of the loop, in seconds of a machine as fast as that on which the limit was set. what:
    the longest step in it."""

    def __init__(self) -> None:
        self.longest = 0.0
        self.what = ""
        self._slowness = max(1.0, sorted(_count() for _ in range(5))[2] / COUNTED_SECONDS)
        self._step, self._handle = 0.0, ""

    def step(self, seconds: float, handle: asyncio.Handle) -> None:
        if seconds > self._step:
            self._step, self._handle = seconds, repr(handle)

    def turn(self, seconds: float) -> None:
        """All its steps."""
        if seconds / self._slowness > self.longest:
            self.longest = seconds / self._slowness
            self.what = f"{self._step * 1000:.0f} ms of it {self._handle}"
        self._step, self._handle = 0.0, ""

    def check(self) -> None:
        """None was longer than the design allows."""
        assert self.longest < LIMIT_SECONDS, f"the loop stood still for {self.longest * 1000:.0f} ms: {self.what}"


@contextlib.contextmanager
def pauses() -> Iterator[Pauses]:
    """Watches asyncio's own loop, in whose thread it must be entered. The garbage collector is as the daemon has it."""
    thresholds = gc.get_threshold()
    tame_collector()
    found = Pauses()
    step, turn = asyncio.Handle._run, asyncio.BaseEventLoop._run_once  # type: ignore[attr-defined]

    def timed_step(handle: asyncio.Handle) -> None:
        began = time.thread_time()
        step(handle)
        found.step(time.thread_time() - began, handle)

    def timed_turn(loop: asyncio.BaseEventLoop) -> None:
        began = time.thread_time()  # which stands still while the loop waits
        turn(loop)
        found.turn(time.thread_time() - began)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncio.Handle, "_run", timed_step)
        patch.setattr(asyncio.BaseEventLoop, "_run_once", timed_turn)
        try:
            yield found
        finally:
            gc.unfreeze()
            gc.set_threshold(*thresholds)
