"""Owns Feed: a consumer of the admin API, whose deliveries go out as a stream and are settled by other requests.

Its rule: a delivery that never reached the stream counts no attempt; one that did and was lost counts as a lost
connection's.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import AsyncIterator, Iterable, Sequence

from gateway.model.delivery import Delivery
from gateway.model.outcome import Verdict
from gateway.transport import Gateway
from gateway.transport.sink import Window

MAX_CREDIT = 1_000
MAX_HELD_OCTETS = 16 << 20


class Feed:
    """Attached from its making until `detach`. Raises UnknownQueueError and NameRefusedError."""

    def __init__(self, gateway: Gateway, queue: str, credit: int) -> None:
        self.token = secrets.token_urlsafe(16)
        self.ended = ""
        """Why it gives no more: the queue was deleted, or the daemon stops."""
        self._waiting: deque[Delivery] = deque()
        self._sizes: dict[int, int] = {}
        self._wake = asyncio.Event()
        self._window = Window(MAX_HELD_OCTETS)
        self._subscription = gateway.attach(queue, self, [self._window.pool])
        self._attached = True
        self._subscription.grant(credit)

    # what the core calls

    def deliver(self, batch: Sequence[Delivery]) -> None:
        self._waiting.extend(batch)
        for delivery in batch:
            self._sizes[delivery.id] = len(delivery.message.body)
            self._window.hold(len(delivery.message.body))
        self._wake.set()

    def closed(self, reason: str) -> None:
        self._attached = False
        self._waiting.clear()
        self.stop(f"the queue is gone: {reason}")

    # what the API calls

    async def deliveries(self) -> AsyncIterator[Delivery]:
        """Until the feed ends."""
        while not self.ended:
            if not self._waiting:
                self._wake.clear()
                await self._wake.wait()
            while self._waiting and not self.ended:
                yield self._waiting.popleft()

    def settle(self, ids: Iterable[int], verdict: Verdict, error: str = "") -> int:
        """How many of them it held; as many more may come."""
        if not self._attached:
            return 0
        mine = [id for id in dict.fromkeys(ids) if id in self._sizes]
        found = self._subscription.settle(mine, verdict, error)
        self._window.free(sum(self._sizes.pop(id) for id in mine))
        if not self.ended:
            # Also for what had gone back by its ack_timeout: that credit was used until now (ruling 15).
            self._subscription.grant(len(mine))
        return found

    def stop(self, reason: str) -> None:
        self.ended = self.ended or reason
        self._wake.set()

    def detach(self) -> None:
        """Nobody reads any more."""
        if not self._attached:
            return
        self._attached = False
        self._subscription.cancel()
        self._subscription.settle([delivery.id for delivery in self._waiting], Verdict.RETURNED)
        self._waiting.clear()
        self._subscription.detach(lost=not self.ended)
