"""Owns what is told of a store that no daemon has open: where it is damaged, and what can be saved of it, by queue.

Its rule: it is read by the same replay that a start uses, so what it counts is what a start would find.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import msgspec

from gateway.broker.core import Core
from gateway.clock import Clock
from gateway.engine.recovery import restore
from gateway.errors import StoreError
from gateway.storage.salvage import Report, Salvage


class QueueContent(msgspec.Struct, frozen=True):
    """messages: whole, settled ones not counted. lost: known by the log, but their bodies are damaged or missing."""

    queue: str
    messages: int
    lost: int


class Inspection(msgspec.Struct, frozen=True):
    """unreadable: why the log makes no sense, or ""; then `queues` is what it was understood to say until then."""

    report: Report
    queues: tuple[QueueContent, ...]
    keys: int
    unreadable: str
    saved_to: str = ""

    @property
    def sound(self) -> bool:
        return not (self.report.problems or self.unreadable or any(queue.lost for queue in self.queues))


def inspect(path: Path, save_to: Path | None = None) -> Inspection:
    """Reads all of the store in the directory `path` and changes nothing in it. `save_to`: a directory that gets a new
    store with all that is whole. Raises StoreError if it can't be opened, or if it can't be saved there."""
    core = Core(Clock(), b"")
    unreadable = ""
    with Salvage(path) as salvage:
        try:
            restore(core, salvage)
        except StoreError as error:
            unreadable = str(error)
        lost: Counter[str] = Counter()
        for name, queue in core.queues.items():
            lost[name] = sum(queue.entries.row[slot] in core.rows.unreadable for slot in queue.entries.slots())
        queues = [
            QueueContent(name, queue.entries.count - lost[name], lost[name])
            for name, queue in sorted(core.queues.items())
        ]
        if save_to is not None:
            salvage.save(save_to)
        saved_to = str(save_to) if save_to is not None else ""
        return Inspection(salvage.report, tuple(queues), len(core.dedup), unreadable, saved_to)
