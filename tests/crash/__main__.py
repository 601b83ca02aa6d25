"""Kills a daemon under load as often as asked, prints the figures, and judges a history that was written before.

python -m tests.crash --kills 500
python -m tests.crash --judge FILE
"""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import sys
import tempfile
from pathlib import Path

from tests.crash.history import History
from tests.crash.house import PLACES, ROUTES
from tests.crash.run import CrashRun, Figures

SHOWN = 30


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=500, help="default 500")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32), help="of the choices")
    parser.add_argument("--judge", type=Path, metavar="FILE", help="a history.txt, instead of a run")
    options = parser.parse_args()
    if options.judge:
        with open(options.judge) as lines:
            return _tell(History.replay(PLACES, ROUTES, lines).check())
    folder = Path(tempfile.mkdtemp(prefix="gateway-kills-"))
    with open(folder / "history.txt", "w") as file:
        figures = asyncio.run(CrashRun(folder, options.seed, file).run(options.kills, _progress))
    print("\n".join(figures.lines()))
    if figures.faults:
        print(f"\nThe store, its configuration and history.txt are in {folder}")
    else:
        shutil.rmtree(folder)
    return _tell(figures.faults)


def _progress(figures: Figures) -> None:
    kills = sum(figures.kills.values())
    if kills % 20 == 0:
        print(
            f"{kills} kills, {figures.seconds:.0f} s, {figures.confirmed} confirmed, {figures.redelivered} redelivered,"
            f" RSS {figures.worst_rss >> 20} MB, ready in {figures.longest_ready:.2f} s at worst",
            flush=True,
        )


def _tell(faults: list[str]) -> int:
    for fault in faults[:SHOWN]:
        print(fault, file=sys.stderr)
    if len(faults) > SHOWN:
        print(f"and {len(faults) - SHOWN} more", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
