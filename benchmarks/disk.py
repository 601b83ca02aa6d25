"""Owns what is measured of the disk under the stores: its file system and what an fsync costs.

Its rule: no benchmark stores anything in memory while it speaks of durability.
"""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path

import msgspec

IN_MEMORY = frozenset({"tmpfs", "ramfs", "devtmpfs"})
FOLDER = Path(__file__).resolve().parents[1] / "build" / "bench"
SAMPLES = 300
BLOCK = 4096


class MemoryDiskError(Exception):
    """The folder for the stores is no disk; the text says how to name another."""


class Disk(msgspec.Struct, frozen=True):
    """fsync times are in milliseconds, of 4 KB appended to a file."""

    folder: str
    file_system: str
    fsync_p50: float
    fsync_p99: float


def measure(folder: Path) -> Disk:
    """Raises MemoryDiskError for tmpfs and the like."""
    folder.mkdir(parents=True, exist_ok=True)
    kind = file_system(folder)
    if kind in IN_MEMORY:
        raise MemoryDiskError(f"{folder} is {kind}: an fsync there stores nothing; name a folder on a disk by --folder")
    path = folder / "fsync"
    times = []
    with open(path, "wb", buffering=0) as file:
        for _ in range(SAMPLES):
            file.write(b"x" * BLOCK)
            began = time.perf_counter()
            os.fsync(file.fileno())
            times.append((time.perf_counter() - began) * 1000)
    path.unlink()
    cuts = statistics.quantiles(times, n=100)
    return Disk(str(folder), kind, cuts[49], cuts[98])


def file_system(folder: Path) -> str:
    """The type of the file system that holds this folder, as the kernel names it."""
    path = str(folder.resolve())
    found, kind = "", "unknown"
    with open("/proc/self/mounts") as mounts:
        for line in mounts:
            _, point, type_, *_ = line.split(" ")
            point = point.encode().decode("unicode_escape")
            inside = path == point or path.startswith(point.rstrip("/") + "/")
            if inside and len(point) >= len(found):
                found, kind = point, type_
    return kind
