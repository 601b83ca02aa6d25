"""Owns CrashRun: a daemon that is killed at chosen moments under a crowd, and the figures of what came of it.

Its rule: a kill is SIGKILL, and after it the daemon starts again on the same store and the same ports.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from tests.crash.crowd import Crowd
from tests.harness.process import ServerError

ALLOWED, ALLOWED_MORE = 150, 800
"""New messages of one publisher in one run, and in one that waits for the log to grow."""
LAG_RUNS = 4
"""The laggard is there in every fourth run."""
EVENT_SECONDS = 5.0
MOMENTS = {"load": 8, "connect": 2, "start": 2, "replay": 3, "stop": 2, "refresh": 2, "compaction": 2}
"""When the daemon is killed, and how often of all times: under load; as clients come back; while its process starts;
while the store is read and the first commit made; while it drains after SIGTERM; while the log is copied forward;
while bodies are written together."""
BEGINS = {"refresh": "copying the log forward", "compaction": "writing bodies together"}


@dataclass
class Figures:
    """Times in seconds, memory in bytes. losses: broken promises of all kinds, as `faults` names them."""

    seed: int
    kills: Counter[str] = field(default_factory=Counter)
    refreshes: int = 0
    compactions: int = 0
    messages: int = 0
    confirmed: int = 0
    delivered: int = 0
    redelivered: int = 0
    duplicates_refused: int = 0
    durable: int = 0
    exact: int = 0
    """Came by QoS 2."""
    cut_off: int = 0
    longest_ready: float = 0.0
    worst_rss: int = 0
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        kinds = ", ".join(f"{count} {moment}" for moment, count in sorted(self.kills.items()))
        yield f"kills               {sum(self.kills.values())} ({kinds})"
        yield f"seed, duration      {self.seed}, {self.seconds:.1f} s"
        yield f"messages sent       {self.messages}, {self.cut_off} of them unanswered at a kill"
        yield f"confirmed           {self.confirmed}"
        yield f"delivered           {self.delivered}"
        yield f"redelivered         {self.redelivered}"
        yield f"settled durably     {self.durable}"
        yield f"by QoS 2, once      {self.exact}"
        yield f"duplicates refused  {self.duplicates_refused}"
        yield f"log copied forward  {self.refreshes} times, bodies written together {self.compactions} times"
        yield f"losses              {len(self.faults)}"
        yield f"longest to ready    {self.longest_ready:.3f} s"
        yield f"worst RSS           {self.worst_rss / (1 << 20):.1f} MB"


class CrashRun:
    """`run` is all. `file` gets the history."""

    def __init__(self, folder: Path, seed: int, file: IO[str] | None = None) -> None:
        self.rng = random.Random(seed)
        self.figures = Figures(seed)
        self.crowd = Crowd(folder, self.rng, file)
        self.daemon = self.crowd.daemon
        self._ready_seconds = 0.5
        self._deck: list[str] = []

    async def run(self, kills: int, report: Callable[[Figures], None] = lambda figures: None) -> Figures:
        """Kills it so many times, drains it, and looks once more after a last restart. Ends early at a fault; what
        was wrong is in the figures. `report` gets them after each kill. Raises ServerError if it does not start."""
        began = time.monotonic()
        crowd, figures = self.crowd, self.figures
        crowd.watch()
        try:
            for number in range(kills):
                await self._one_kill(number, self._deal())
                self._count(began)
                report(figures)
                if figures.faults:
                    return figures
            await self._begin(0, lagging=True)
            await crowd.drain()
            self._see_memory()
            if status := await asyncio.to_thread(self.daemon.stop):
                crowd.errors.append(f"SIGTERM ended the daemon with status {status}")
            await asyncio.to_thread(self.daemon.start)
            await asyncio.to_thread(crowd.look_for_rest)  # what was settled is not back
        finally:
            self.daemon.close()
            asyncio.get_running_loop().set_exception_handler(None)
            self._count(began)
        figures.faults = crowd.errors + crowd.history.check()
        return figures

    def _deal(self) -> str:
        """Each moment comes in its turn, in an order that nobody knows."""
        if not self._deck:
            self._deck = [moment for moment, count in MOMENTS.items() for _ in range(count)]
            self.rng.shuffle(self._deck)
        return self._deck.pop()

    def _count(self, began: float) -> None:
        figures, history = self.figures, self.crowd.history
        figures.seconds = time.monotonic() - began
        figures.messages = history.messages
        figures.confirmed = history.stored
        figures.delivered = history.delivered
        figures.redelivered = history.again
        figures.duplicates_refused = history.duplicates
        figures.durable = history.durable
        figures.exact = history.once
        figures.faults = self.crowd.faults

    # one life of the daemon

    async def _one_kill(self, number: int, moment: str) -> None:
        if moment in ("start", "replay"):
            self.daemon.launch()
            if moment == "replay":
                # The admin listener is up before the store is read.
                await asyncio.to_thread(self.daemon.url, "admin")
                await asyncio.sleep(self.rng.uniform(0, 0.06))
            else:
                await asyncio.sleep(self.rng.uniform(0, self._ready_seconds))
            self._kill(moment)
            self.crowd.heed()
            return
        more = ALLOWED_MORE if moment in BEGINS else ALLOWED
        await self._begin(more, lagging=number % LAG_RUNS == LAG_RUNS - 1)
        mischief = asyncio.create_task(self.crowd.mischief(asyncio.Event()))
        try:
            moment = await self._wait_for(moment)
        finally:
            mischief.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await mischief
        self._kill(moment)
        self.figures.cut_off += await self.crowd.ended()

    async def _begin(self, more: int, lagging: bool) -> None:
        self._ready_seconds = await self.crowd.begin(more, lagging)
        self.figures.longest_ready = max(self.figures.longest_ready, self._ready_seconds)

    async def _wait_for(self, moment: str) -> str:
        """Until that moment; returns which one it is."""
        rng = self.rng
        if moment == "connect":
            await asyncio.sleep(rng.uniform(0, 0.05))
            return moment
        if moment in BEGINS:
            try:
                await asyncio.to_thread(self.daemon.wait_for, BEGINS[moment], timeout=EVENT_SECONDS)
            except ServerError:
                return "load"  # there was no occasion
            await asyncio.sleep(rng.uniform(0, 0.03))
            return moment
        await asyncio.sleep(rng.uniform(0.05, 1.0))
        if moment == "stop":
            self.daemon.process.signal(signal.SIGTERM)
            await asyncio.sleep(rng.uniform(0, 0.4))
        return moment

    def _times(self, event: str) -> int:
        return sum(record.get("event") == event for record in list(self.daemon.log))

    def _kill(self, moment: str) -> None:
        self._see_memory()
        self.figures.kills[moment] += 1
        self.daemon.kill()
        self.figures.refreshes += self._times(BEGINS["refresh"])
        self.figures.compactions += self._times(BEGINS["compaction"])

    def _see_memory(self) -> None:
        if self.daemon.running:
            self.figures.worst_rss = max(self.figures.worst_rss, self.daemon.peak_rss())
