"""Owns BodyReader: what the reader thread reads, for deliveries and for the compaction.

Its rule: one row that can't be read holds up no other, and is tried again.
"""

from __future__ import annotations

import asyncio

from gateway.broker.core import Core
from gateway.engine.compaction import Compaction, is_due
from gateway.errors import StoreError
from gateway.logs import log
from gateway.model.message import Message
from gateway.queueing.queue import Queue
from gateway.storage.journal import Journal
from gateway.worker import Worker

REREAD_SECONDS = 5.0
COMPACTION_PAUSE_SECONDS = 0.005


class BodyReader:
    """Of one core and its journal. All methods on the loop's thread."""

    def __init__(self, core: Core, journal: Journal, loop: asyncio.AbstractEventLoop) -> None:
        self._core = core
        self._journal = journal
        self._loop = loop
        self._reader = Worker("journal-reader", loop)
        self._loaded: list[asyncio.Future[None]] = []
        self._compaction: Compaction | None = None
        self._closed = False

    def close(self) -> None:
        """Nothing more is read."""
        self._closed = True

    def stop(self) -> None:
        """Waits for the thread's end."""
        self._reader.stop()

    def read_wanted(self) -> None:
        """Reads what deliveries wait for; its end wakes them."""
        rows = self._core.rows.take_wanted()
        if not rows:
            return  # a read is under way; its end comes back here

        def read() -> dict[int, bytes]:
            """In the reader's thread."""
            found: dict[int, bytes] = {}
            for row in rows:
                try:
                    found |= self._journal.read([row])
                except StoreError as error:
                    log.error("bodies could not be read", row=row, error=str(error))
            return found

        def done(found: dict[int, bytes] | None, error: BaseException | None) -> None:
            if self._closed:
                return
            core = self._core
            if error is not None:
                log.fault("reading failed", error)
            missing = {row for row in rows if row not in (found or {}) and row in core.rows}
            if missing:
                core.rows.unreadable |= missing
                self._loop.call_later(REREAD_SECONDS, self._read_again, missing)
            core.loaded(found or {})
            waiting, self._loaded = self._loaded, []
            for future in waiting:
                if not future.done():
                    future.set_result(None)
            core.poke()

        self._reader.call(read, done)

    def _read_again(self, rows: set[int]) -> None:
        self._core.rows.read_again(rows)
        self._core.wake_all()

    async def message(self, source: Queue, slot: int) -> Message | None:
        """The message of an entry, read from the disk if need be; None if the entry is gone meanwhile."""
        ident = source.entries.ident[slot]
        while ident and source.entries.holds(slot, ident):
            message = source.message(slot)
            if message is not None:
                return message
            if self._core.is_unreadable(source.entries.row[slot]):
                return None
            future: asyncio.Future[None] = self._loop.create_future()
            self._loaded.append(future)
            self._core.poke()
            await future
        return None

    def compact(self) -> None:
        """Begins to write together what lives in sparse rows, if that is due."""
        if self._compaction is None and not self._core.refusing and is_due(self._core):
            log.debug("writing bodies together", rows=len(self._core.rows.sparse))
            self._compaction = Compaction(self._core)
            self._loop.call_soon(self._step)

    def _step(self) -> None:
        """One short step of the compaction, then the next one after a pause."""
        compaction = self._compaction
        if compaction is None or self._closed:
            return
        if self._core.refusing:
            self._give_up(compaction)
            return
        if not compaction.scanned:
            compaction.step()
            self._loop.call_later(COMPACTION_PAUSE_SECONDS, self._step)
            return
        rows = compaction.next_rows()
        if not rows:
            self._compaction = None
            return

        def done(found: dict[int, bytes] | None, error: BaseException | None) -> None:
            if error is not None:
                log.error("bodies could not be read for compaction", error=str(error))
            if self._core.refusing:  # a new file may be on its way, and what it lacks is moved, too
                self._give_up(compaction)
                return
            compaction.copy(found or {})
            self._core.poke()
            self._loop.call_later(COMPACTION_PAUSE_SECONDS, self._step)

        self._reader.call(lambda: self._journal.read(rows), done)

    def _give_up(self, compaction: Compaction) -> None:
        self._compaction = None
        compaction.give_up()
