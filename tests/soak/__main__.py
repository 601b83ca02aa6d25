"""Soaks a daemon in all features at once, kills included, draws a picture, and fails on loss or growth.

    python -m tests.soak --minutes 30
    python -m tests.soak --draw FILE.csv

How growth is judged stands in tests/soak/growth.py.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import sys
import tempfile
from pathlib import Path

from tests.soak import plot
from tests.soak.growth import growth
from tests.soak.run import Result, SoakRun
from tests.soak.samples import read_csv, write_csv

ROOT = Path(__file__).resolve().parents[2]
SECONDS_A_KILL = 45


def main() -> int:
    assert __doc__
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30, help="default 30")
    parser.add_argument("--kills", type=int, help="in the first half; default: one every 45 s")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32), help="of the choices")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "soak", help="gets soak.csv and soak.png")
    parser.add_argument("--draw", type=Path, metavar="CSV", help="judge and draw earlier samples, instead of a run")
    options = parser.parse_args()
    if options.draw:
        samples = read_csv(options.draw)
        plot.draw(options.draw.with_suffix(".png"), samples, options.draw.name)
        return _tell(growth(samples))
    seconds = options.minutes * 60
    kills = options.kills if options.kills is not None else max(1, int(seconds / 2 / SECONDS_A_KILL))
    options.folder.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="daemon-", dir=options.folder))
    result = asyncio.run(_soak(folder, options.seed, seconds, kills))
    lines = list(result.lines())
    print("\n".join(lines))
    write_csv(options.folder / "soak.csv", result.samples)
    if plot.available():
        plot.draw(options.folder / "soak.png", result.samples, " ".join(lines[0].split()))
        print(f"picture            {options.folder / 'soak.png'}")
    else:
        print(f"no picture: matplotlib is missing (the extra `soak`); samples in {options.folder / 'soak.csv'}")
    if result.faults:
        print(f"the store and its configuration are in {folder}")
    else:
        shutil.rmtree(folder)
    return _tell(result.faults)


async def _soak(folder: Path, seed: int, seconds: float, kills: int) -> Result:
    return await SoakRun(folder, seed, seconds, kills).run()


def _tell(faults: list[str]) -> int:
    for fault in faults[:40]:
        print(f"FAULT {fault}", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
