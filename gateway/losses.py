"""Owns what the log says of messages that a stated policy has dropped.

Its rule: whatever the counters call dropped stands in a log line soon after; a flood of drops is one line for each
place and interval, with its number.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from gateway.logs import log

if TYPE_CHECKING:
    from gateway.local import LocalGateway
    from gateway.queue import Queue

LOOK_SECONDS = 5.0


class Losses:
    """Of one daemon, since its last look."""

    def __init__(self, gateway: LocalGateway) -> None:
        self._gateway = gateway
        self._queues: dict[Queue, int] = {}
        self._transports: dict[tuple[str, str], int] = {}

    async def watch(self) -> None:
        """Looks every `LOOK_SECONDS`, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            self.look()

    def look(self) -> None:
        """One line for each queue, and for each transport and reason, that has dropped messages since."""
        # A queue that was deleted since is looked at once more.
        for queue in (*self._queues, *self._gateway.core.queues.values()):
            before, dropped = self._queues.get(queue, 0), queue.counters.dropped
            if dropped != before:
                log.warning("messages dropped", queue=queue.name, messages=dropped - before)
            if queue.deleted:
                self._queues.pop(queue, None)
            else:
                self._queues[queue] = dropped
        for name, counters in self._gateway.all_counters.items():
            for reason, dropped in counters.dropped.items():
                before = self._transports.get((name, reason), 0)
                if dropped != before:
                    log.warning("messages dropped", transport=name, reason=reason, messages=dropped - before)
                self._transports[name, reason] = dropped
