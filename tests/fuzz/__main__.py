"""Owns the coverage-guided search: `python -m tests.fuzz mqtt --seconds 60` (atheris, from the extra `fuzz`).

Its rule: an input that fails is written where the tests find it, and what only widens the coverage stays in `build`.
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["gateway", "transports"]):
    from tests.fuzz.stage import cut, play

from hypothesis import HealthCheck, Phase, given, settings

from tests.fuzz.streams import streams

CORPUS = Path(__file__).parent / "corpus"
SEEDS = 200
KEPT = 60
SHA1_DIGITS = 40
"""Of the names that libFuzzer gives; what was made as a seed has another."""
MAX_OCTETS = 2048
INPUT_SECONDS = 20
RSS_MB = 1500


def seed(protocol: str, folder: Path) -> None:
    """Streams that mean something, so that the search need not guess a handshake."""
    made = 0

    @settings(max_examples=SEEDS, phases=[Phase.generate], deadline=None, suppress_health_check=list(HealthCheck))
    @given(streams[protocol])
    def write(pieces: list[bytes]) -> None:
        nonlocal made
        (folder / f"seed-{made}").write_bytes(bytes((random.randrange(256),)) + b"".join(pieces)[: MAX_OCTETS - 1])
        made += 1

    write()


def keep(found: Path, known: Path) -> None:
    """Small ones and large ones, as each reaches what the other does not."""
    units = sorted(
        (path for path in found.iterdir() if len(path.name) == SHA1_DIGITS), key=lambda one: one.stat().st_size
    )
    for path in units[:: max(1, len(units) // KEPT)]:
        (known / path.name[:12]).write_bytes(path.read_bytes())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("target", choices=sorted(streams))
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--keep", action="store_true", help="copies some of what widened the coverage to the tests")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    found = Path("build/fuzz", options.target)
    found.mkdir(parents=True, exist_ok=True)
    known = CORPUS / options.target
    known.mkdir(parents=True, exist_ok=True)
    if options.keep:
        keep(found, known)
        return
    seed(options.target, found)
    arguments = [
        sys.argv[0],
        f"-max_total_time={options.seconds}",
        f"-max_len={MAX_OCTETS}",
        f"-timeout={INPUT_SECONDS}",
        f"-rss_limit_mb={RSS_MB}",
        f"-artifact_prefix={known}/",
        str(found),
        str(known),
    ]
    atheris.Setup(arguments, lambda data: play(options.target, cut(data)))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
