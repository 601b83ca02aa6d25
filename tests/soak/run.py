"""Owns SoakRun: the crowd and all other features around one daemon, which is killed now and then in the first half.

Its rule: the second half is one run that nothing but its load disturbs, since growth is judged there.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.crash.crowd import Crowd
from tests.crash.history import History
from tests.harness.process import quiet_port
from tests.soak.features import (
    GONE,
    Delayed,
    Expiring,
    Feature,
    Flaky,
    Hooked,
    House,
    Operator,
    Retained,
    Wills,
    additions,
)
from tests.soak.growth import growth
from tests.soak.receiver import Receiver
from tests.soak.samples import Sample, Sampler

ALLOWED_A_SECOND = 60
"""New messages of each publisher of the crowd."""
SETTLE_SECONDS = 30.0
"""How long everything may take to arrive at the end."""


@dataclass
class Result:
    """faults: losses, growth, whatever was wrong. counts: what each feature saw arrive."""

    seed: int
    seconds: float = 0.0
    kills: int = 0
    samples: list[Sample] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        yield f"soak               {self.seconds:.0f} s, {self.kills} kills, seed {self.seed}"
        for name, count in self.counts.items():
            yield f"{name:<18} {count}"
        if self.samples:
            yield f"worst RSS          {max(sample.rss for sample in self.samples) / (1 << 20):.1f} MB"
            yield f"worst commit p99   {max(sample.p99 for sample in self.samples) * 1000:.1f} ms"
            yield f"deepest            {max(sample.depth for sample in self.samples)} messages"
            yield f"largest store      {max(sample.store for sample in self.samples) / (1 << 20):.1f} MB"
        yield f"faults             {len(self.faults)}"


class SoakRun:
    """`run` is all. The daemon lives in `folder`."""

    def __init__(self, folder: Path, seed: int, seconds: float, kills: int) -> None:
        self.result = Result(seed)
        self.seconds = seconds
        self.kills = kills
        self.rng = random.Random(seed)
        self.receiver = Receiver()
        self.crowd = Crowd(folder, self.rng, None, **additions(self.receiver, f"127.0.0.1:{quiet_port()}"))
        self.house = House(self.crowd.daemon, self.crowd.configuration)
        self.sampler = Sampler(self.crowd.daemon, self.house.url("admin"))
        house = self.house
        self.features: list[Feature] = [
            Delayed(house),
            Expiring(house),
            Flaky(house),
            Hooked(house, self.receiver),
            Retained(house),
            Wills(house),
            Operator(house),
        ]

    async def run(self) -> Result:
        """Raises ServerError if the daemon does not start; everything else is in the result's faults."""
        began = time.monotonic()
        self.crowd.watch()
        lives = [asyncio.create_task(feature.live(), name=feature.name) for feature in self.features]
        sampling = asyncio.create_task(self._sample())
        try:
            for _ in range(self.kills):
                await self._one_run(self.rng.uniform(0.6, 1.4) * self.seconds / 2 / self.kills)
                self._down()
                self.crowd.daemon.kill()
                self.result.kills += 1
                await self.crowd.ended()
                if self._faults(lives):
                    break
            else:
                await self._one_run(max(1.0, began + self.seconds - time.monotonic()))
                await self._finish()
        finally:
            for task in (*lives, sampling):
                task.cancel()
            ended = await asyncio.gather(*lives, sampling, return_exceptions=True)
            self._down()
            self.crowd.daemon.close()
            self.receiver.close()
            asyncio.get_running_loop().set_exception_handler(None)
        self._tell(began, ended)
        return self.result

    # one life of the daemon

    async def _one_run(self, seconds: float) -> None:
        """Up to its end, still running; it lasts until a sample of it is there, too."""
        await self.crowd.begin(0)
        ends = time.monotonic() + seconds
        self.house.run += 1
        self.house.up.set()
        enough = asyncio.Event()
        mischief = asyncio.create_task(self.crowd.mischief(enough))
        try:
            while (time.monotonic() < ends or not self._is_sampled()) and not self.crowd.faults:
                self._feed()
                await asyncio.sleep(0.1)
        finally:
            enough.set()
            await mischief

    def _is_sampled(self) -> bool:
        samples = self.sampler.samples
        return bool(samples) and samples[-1].run == self.house.run

    def _feed(self) -> None:
        for publisher in self.crowd.publishers:
            publisher.allow(ALLOWED_A_SECOND // 10)

    def _down(self) -> None:
        self.house.up.clear()

    async def _sample(self) -> None:
        pause = min(5.0, max(0.5, self.seconds / 600))
        while True:
            await self.house.up.wait()
            # It may be killed in the middle of a request.
            with contextlib.suppress(*GONE):
                await asyncio.to_thread(self.sampler.take, self.house.run)
            await asyncio.sleep(pause)

    # the end

    async def _finish(self) -> None:
        """Nothing new, and everything must arrive."""
        self.house.over = True
        await self.crowd.drain()
        for _ in range(int(SETTLE_SECONDS / 0.1)):
            if not any(feature.left() for feature in self.features):
                break
            await asyncio.sleep(0.1)
        self.crowd.errors += [left for feature in self.features if (left := feature.left())]
        self.crowd.errors += [proof for feature in self.features if (proof := feature.proof())]

    def _faults(self, lives: list[asyncio.Task[None]]) -> bool:
        return bool(self.crowd.faults or any(task.done() for task in lives) or any(f.faults for f in self.features))

    def _tell(self, began: float, ended: list[BaseException | None]) -> None:
        result, history = self.result, self.crowd.history
        result.seconds = time.monotonic() - began
        result.samples = self.sampler.samples
        result.counts = self._counts(history)
        result.faults = self.crowd.errors + history.faults
        result.faults += [f"{feature.name}: {fault}" for feature in self.features for fault in feature.faults]
        broken = [one for one in ended if one is not None and not isinstance(one, asyncio.CancelledError)]
        result.faults += [f"a client broke: {one!r}" for one in broken]
        result.faults += growth(result.samples)

    def _counts(self, history: History) -> Counter[str]:
        counts = Counter(
            {
                "sent": history.messages,
                "confirmed": history.stored,
                "delivered": history.delivered,
                "redelivered": history.again,
                "duplicates refused": history.duplicates,
            }
        )
        for feature in self.features:
            if isinstance(feature, Operator):
                counts |= Counter({"reloads": feature.reloads, "redriven": feature.redriven})
            else:
                counts[feature.name] = feature.trail.arrivals
            if isinstance(feature, Retained):
                counts["QoS 0"] = feature.heard
        return counts
