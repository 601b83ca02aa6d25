"""A short soak: every feature at once, kills included. `make soak MINUTES=30` is the long form, with its picture."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.soak import plot
from tests.soak.run import SoakRun

SEED = int(os.environ.get("GATEWAY_SEED", random.SystemRandom().randrange(1 << 32)))
SECONDS, KILLS = 10.0, 2

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(150)]


async def test_all_features_at_once_lose_nothing(tmp_path: Path) -> None:
    result = await SoakRun(tmp_path, SEED, SECONDS, KILLS).run()
    print("\n".join(result.lines()))
    assert result.faults == [], f"seed {SEED}"
    assert result.kills == KILLS and result.counts["confirmed"] > 1000
    assert {sample.run for sample in result.samples} == set(range(1, KILLS + 2))
    assert max(sample.accepted for sample in result.samples) > 0 < max(sample.p99 for sample in result.samples)
    if plot.available():
        plot.draw(tmp_path / "soak.png", result.samples, "a short soak")
        assert (tmp_path / "soak.png").read_bytes().startswith(b"\x89PNG")
