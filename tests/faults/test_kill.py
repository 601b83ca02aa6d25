"""SIGKILL at random moments, under load and while it starts, replays, stops, copies its log or its bodies: what was
answered for is delivered, in order, and what was settled durably stays so.

GATEWAY_KILLS sets how often the daemon is killed, GATEWAY_SEED repeats the choices of one run; `make kills` is the long
form with its figures.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from tests.crash.run import CrashRun

KILLS = int(os.environ.get("GATEWAY_KILLS", "20"))
SEED = int(os.environ.get("GATEWAY_SEED", random.SystemRandom().randrange(1 << 32)))

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120 + 10 * KILLS)]


@pytest.fixture
def record(tmp_path: Path) -> Iterator[IO[str]]:
    with open(tmp_path / "history.txt", "w") as file:
        yield file


async def test_kill_9_loses_nothing_and_repeats_nothing_settled(tmp_path: Path, record: IO[str]) -> None:
    figures = await CrashRun(tmp_path, SEED, record).run(KILLS)
    print("\n".join(figures.lines()))
    assert figures.faults == [], f"seed {SEED}; judge it again with `python -m tests.crash --judge {record.name}`"
    assert sum(figures.kills.values()) == KILLS
    # It must have been hard enough to prove anything.
    assert figures.confirmed > 100 * KILLS and figures.durable > figures.confirmed // 2
    assert figures.redelivered and figures.cut_off and figures.duplicates_refused
    assert figures.exact > 10 * KILLS
    assert figures.refreshes and figures.compactions
