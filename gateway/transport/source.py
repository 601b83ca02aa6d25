"""Owns Arrivals: the way from what a link's remote sends to the gateway, which links should not write again.

Its rule: messages are accepted and settled there in the order in which they came, and none before the commit that holds
it. A message that is refused is held and offered again; all that came after it waits.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

import anyio

from gateway.model.counters import TransportCounters
from gateway.model.message import Message, Properties
from gateway.model.outcome import Outcome
from gateway.transport import Gateway, Offer

MAX_BATCH = 1000
FIRST_PAUSE = 0.1
LAST_PAUSE = 30.0
"""Seconds until a refused message is offered again, doubled from the first to the last, with jitter."""
HOPS = "x-gateway-hops"
"""Header: over how many links a message came. Each link adds one as it sends."""
USER_ID = "x-gateway-user-id"
"""Header: the user id of a message whose sender is not the user that the link or the webhook logs in as."""
T = TypeVar("T")


class Arrival(NamedTuple, Generic[T]):
    """tag: how the link knows it. message: None for one that is not taken, and yet settled in its turn. again: if it is
    refused here it is held and offered again; otherwise it is dropped (only MQTT's QoS 0, and that always)."""

    tag: T
    message: Message | None
    again: bool = True


Settle = Callable[[Sequence[Arrival[T]]], Awaitable[None]]


class Arrivals(Generic[T]):
    """What came from one place at a remote and is not settled. `report` is told why messages are held, and "" when they
    are not. drops_qos0: messages of QoS 0 are not offered again."""

    def __init__(
        self,
        gateway: Gateway,
        counters: TransportCounters,
        unroutable: str | None,
        report: Callable[[str], None],
        drops_qos0: bool = False,
    ) -> None:
        self._gateway = gateway
        self._counters = counters
        self._report = report
        self._offer = Offer(in_order=True, drops_qos0=drops_qos0, unroutable=unroutable)
        self._arrivals: deque[Arrival[T]] = deque()
        self._ended = False
        self._arrived = asyncio.Event()
        self._pause = 0.0

    def __len__(self) -> int:
        return len(self._arrivals)

    def put(self, arrival: Arrival[T]) -> None:
        self._arrivals.append(arrival)
        self._arrived.set()

    def end(self) -> None:
        """No more will come: `run` returns when all is settled."""
        self._ended = True
        self._arrived.set()

    async def run(self, settle: Settle[T]) -> None:
        """Until cancelled, or all is settled behind `end`. What is on its way to the disk as it is cancelled is still
        settled, within `drain_timeout`. `settle` gets arrivals with which all is done, in order, each once."""
        while self._arrivals or not self._ended:
            if not self._arrivals:
                self._arrived.clear()
                await self._arrived.wait()
                continue
            batch = [self._arrivals[place] for place in range(min(MAX_BATCH, len(self._arrivals)))]
            taken = await self._take(batch, settle)
            for _ in range(taken):
                self._arrivals.popleft()
            if taken and self._pause:
                self._pause = 0.0
                self._report("")
            if taken < len(batch):
                await self._sit_out()

    async def _take(self, batch: Sequence[Arrival[T]], settle: Settle[T]) -> int:
        """How many from the front need nothing more; the next one, if there is one, was refused."""
        messages = [arrival.message for arrival in batch if arrival.message is not None]
        if not messages:
            return await self._settle(batch, (), settle)
        future = self._gateway.accept(messages, (), self._offer)
        try:
            outcomes = await asyncio.shield(future)
        except asyncio.CancelledError:
            # A commit is never cancelled: what it holds is settled, or would come again for nothing.
            with anyio.move_on_after(self._gateway.drain_timeout, shield=True):
                await self._settle(batch, await asyncio.shield(future), settle)
            raise
        return await self._settle(batch, outcomes, settle)

    async def _settle(
        self,
        batch: Sequence[Arrival[T]],
        outcomes: Sequence[Outcome],
        settle: Settle[T],
    ) -> int:
        found = iter(outcomes)
        taken = 0
        for arrival in batch:
            outcome = next(found) if arrival.message is not None else Outcome.STORED
            if outcome is Outcome.REFUSED:
                if arrival.again:
                    break
                self._counters.dropped["qos0-refused"] += 1
            if outcome is Outcome.UNROUTED and self._offer.unroutable is None:
                self._counters.dropped["unroutable"] += 1
            taken += 1
        if taken:
            await settle(batch[:taken])
        return taken

    async def _sit_out(self) -> None:
        self._counters.refusals["queue-full"] += 1
        self._pause = min(max(self._pause * 2, FIRST_PAUSE), LAST_PAUSE)
        why = self._gateway.refusing or "a queue that it goes to is full, or a link did not deliver it"
        self._report(f"a message that came is refused here ({why}); it and those behind it wait at the remote")
        await asyncio.sleep(self._pause * random.uniform(0.75, 1.25))


def hops(properties: Properties) -> int:
    """Over how many links a message came; a text that is no such number counts as none."""
    for name, value in properties.headers:
        if name == HOPS and isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 4:
            return int(value)
    return 0
