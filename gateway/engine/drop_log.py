"""Owns what the log says of messages that a stated policy has dropped, of those that were dead as they came, and of
dead letters that no queue takes.

Its rule: whatever the counters call dropped stands in a log line soon after; a flood is one line for each place and
interval, with its number.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

from gateway.logs import log

if TYPE_CHECKING:
    from gateway.engine.gateway import LocalGateway
    from gateway.queueing.queue import Queue

LOOK_SECONDS = 5.0
REPEAT_SECONDS = 60.0
"""What senders do not see, and what lasts, is said of a queue at most so often."""


class _Told(NamedTuple):
    """What the log has said of one queue. at: when it last spoke of what was dead as it came. waited: when of dead
    letters that wait."""

    dropped: int = 0
    circled: int = 0
    invalid: int = 0
    at: float = float("-inf")
    waited: float = float("-inf")


_NOTHING = _Told()


class Losses:
    """Of one daemon, since its last look."""

    def __init__(self, gateway: LocalGateway) -> None:
        self._gateway = gateway
        self._queues: dict[Queue, _Told] = {}
        self._transports: dict[tuple[str, str], int] = {}

    async def watch(self) -> None:
        """Looks every `LOOK_SECONDS`, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            self.look()

    def look(self, last: bool = False) -> None:
        """One line for each queue, and for each transport and reason, that has dropped messages since. last: nothing is
        kept for a later line."""
        now = self._gateway.now()
        # A queue that was deleted since is looked at once more.
        for queue in dict.fromkeys((*self._queues, *self._gateway.core.queues.values())):
            told = self._queues.pop(queue, _NOTHING)
            said = self._say(queue, told, now, last or queue.deleted)
            if said is not _NOTHING and not queue.deleted:
                self._queues[queue] = said
        for name, counters in self._gateway.all_counters.items():
            for reason, dropped in counters.dropped.items():
                before = self._transports.get((name, reason), 0)
                if dropped != before:
                    log.warning("messages dropped", transport=name, reason=reason, messages=dropped - before)
                self._transports[name, reason] = dropped

    @staticmethod
    def _say(queue: Queue, told: _Told, now: float, last: bool) -> _Told:
        """What was said of this queue, after that. last: it can't wait."""
        counters = queue.counters
        if counters.circled != told.circled:
            count = counters.circled - told.circled
            log.warning("dead letters dropped that would go round in a circle", queue=queue.name, messages=count)
        if counters.dropped != told.dropped:
            log.warning("messages dropped", queue=queue.name, messages=counters.dropped - told.dropped)
        invalid, at = told.invalid, told.at
        if counters.dead_on_arrival != invalid and (last or now >= at + REPEAT_SECONDS):
            count = counters.dead_on_arrival - invalid
            log.warning("messages were dead letters as they came", queue=queue.name, reason="invalid", messages=count)
            invalid, at = counters.dead_on_arrival, now
        waited = told.waited
        if queue.doomed and now >= waited + REPEAT_SECONDS:
            log.warning(
                "dead letters wait, since the queue they should go to refuses them",
                queue=queue.name,
                messages=len(queue.doomed),
            )
            waited = now
        if (counters.dropped, counters.circled, invalid) == (0, 0, 0) and not queue.doomed:
            return _NOTHING
        return _Told(counters.dropped, counters.circled, invalid, at, waited)
