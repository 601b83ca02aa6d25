"""Owns the way from a queue to a Sink: what most outgoing plugins need and should not write again.

Its rule: every delivery that a sink was given is settled by its verdict, and messages of one group reach the sink in
order. (With `group_in_flight` of 1 the core has one of a group in flight, so sends may overlap; above 1 they do not.)
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Sequence

import anyio

from gateway.errors import UnknownQueueError
from gateway.logs import log
from gateway.model.credit import UNLIMITED, Credit
from gateway.model.delivery import Delivery
from gateway.model.names import OPERATOR
from gateway.model.outcome import Verdict
from gateway.transport import Gateway, QueueView, Sink
from gateway.transport.outbox import queues

FIRST_PAUSE = 0.1
LAST_PAUSE = 30.0
"""Seconds without a send after one that raised or gave something back, doubled from the first to the last, with jitter:
a peer that is away should not burn the attempts of a whole queue. Meanwhile nothing is held: what was not sent goes
back, uncounted."""
MAX_HELD_OCTETS = 16 << 20
_MAX_REASON = 1024


async def drive(
    gateway: Gateway, queue: str, sink: Sink, batch: int = 100, in_flight: int = 1000, slow_start: bool = False
) -> None:
    """Sends what the queue holds to `sink` until cancelled, at most `batch` in one send and `in_flight` unsettled. Of a
    link's outbox also, by turns, what waits beside it for `ack: delivered`.
    slow_start: begins with one, and lets one more be unsettled with each that is DONE. So a message over which the peer
    ends the connection is soon sent alone, and no other is taken for the cause.

    Cancelling takes no more deliveries, lets running sends end within `gateway.drain_timeout`, gives back the rest
    and returns. Raises UnknownQueueError if the queue does not exist or was deleted."""
    driver = _Driver(gateway, queue, sink, batch, in_flight, slow_start)
    try:
        await driver.run()
    finally:
        # The drain must have its time although the caller's scope is cancelled.
        with anyio.CancelScope(shield=True):
            await driver.drain()


class Window:
    """How many bytes of bodies a consumer may hold: a pool of credit for `attach`. A delivery may pass the limit by
    its own size, as always with credit."""

    __slots__ = ("held", "limit", "pool")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        self.pool = Credit(octets=limit)

    def hold(self, octets: int) -> None:
        self.held += octets

    def free(self, octets: int) -> None:
        self.held -= octets
        # Set, not added: what the core takes for a message is more than its body, and must not wear the window down.
        self.pool.grant(octets=self.limit - self.held - self.pool.octets)


class _Tap:
    """A consumer of one of the queues."""

    def __init__(self, driver: _Driver, view: QueueView, pools: Sequence[Credit]) -> None:
        self._driver = driver
        self.view = view  # whose policy a reload may change
        self.lost = False
        """A delivery's connection was; it is given back as the driver ends."""
        self.subscription = driver.gateway.attach(view.name, self, pools, actor=OPERATOR)
        self.subscription.grant(UNLIMITED)

    @property
    def is_ordered(self) -> bool:
        policy = self.view.policy
        return policy.group is not None and policy.group_in_flight > 1

    # what the core calls

    def deliver(self, batch: Sequence[Delivery]) -> None:
        self._driver.deliver(batch)

    def closed(self, reason: str) -> None:
        self._driver.closed(self.view.name, reason)


class _Driver:
    """It holds at most its credit, so its waiting list needs no other limit."""

    def __init__(self, gateway: Gateway, queue: str, sink: Sink, batch: int, in_flight: int, slow_start: bool) -> None:
        self.gateway = gateway
        self.queue = queue
        self.sink = sink
        self.batch = batch
        self.waiting: deque[Delivery] = deque()
        self.sends: set[asyncio.Task[None]] = set()
        self.wake = asyncio.Event()
        self.draining = False
        self.deleted: str | None = None
        """Why nothing is left to take from."""
        self.pause = 0.0
        self.paused_until = 0.0
        self.withheld = 0
        """Credit that is granted when the pause is over."""
        self.loop = asyncio.get_running_loop()
        found = [view for name in queues(queue) if (view := gateway.queue(name)) is not None]
        if not found or found[0].name != queue:
            raise UnknownQueueError(f'no queue is named "{queue}"')
        self.in_flight = in_flight
        self.allowed = 1 if slow_start else in_flight
        """Of `in_flight`, so far."""
        self.window = Window(MAX_HELD_OCTETS)
        self.places = Credit(messages=self.allowed)
        self.taps = {view.name: _Tap(self, view, [self.places, self.window.pool]) for view in found}

    # what the core calls

    def deliver(self, batch: Sequence[Delivery]) -> None:
        self.waiting.extend(batch)
        self.window.hold(sum(len(delivery.message.body) for delivery in batch))
        self.wake.set()

    def closed(self, queue: str, reason: str) -> None:
        """Nothing more comes from there, and nothing of it is sent that was not."""
        del self.taps[queue]
        if not self.taps:
            self.deleted = reason
        self.wake.set()

    # the sends

    @property
    def max_sends(self) -> int:
        ordered = any(tap.is_ordered for tap in self.taps.values())
        return 1 if ordered else max(1, self.in_flight // self.batch)

    async def run(self) -> None:
        while self.deleted is None:
            self.wake.clear()
            rest = self.paused_until - self.loop.time()
            if rest > 0:
                await asyncio.sleep(rest)
                continue
            if self.withheld and self.deleted is None:
                credit, self.withheld = self.withheld, 0
                self.places.grant(credit)
            while self.waiting and len(self.sends) < self.max_sends:
                taken = self._take()
                if not taken:
                    break
                task = self.loop.create_task(self._send(taken))
                self.sends.add(task)
                task.add_done_callback(self._sent)
            await self.wake.wait()
        raise UnknownQueueError(f'queue "{self.queue}" is gone: {self.deleted}')

    def _take(self) -> list[Delivery]:
        """The next batch; without what was taken away, or timed out, while it waited."""
        taken: list[Delivery] = []
        stale: list[Delivery] = []
        while self.waiting and len(taken) < self.batch:
            delivery = self.waiting.popleft()
            tap = self.taps.get(delivery.queue)
            held = tap is not None and tap.subscription.holds(delivery.id)
            (taken if held else stale).append(delivery)
        if stale:
            self._settle(stale, [Verdict.RETURNED] * len(stale))
        return taken

    async def _send(self, batch: list[Delivery]) -> None:
        try:
            verdicts = await self.sink.send(batch)
            if len(verdicts) != len(batch):
                raise ValueError(f"{len(verdicts)} verdicts for {len(batch)} deliveries")
        except asyncio.CancelledError:
            self._settle(batch, [Verdict.RETURNED] * len(batch))
            raise
        except Exception as error:  # the border: whatever a sink raises means RETRY all
            reason = f"{type(error).__name__}: {error}"[:_MAX_REASON]
            log.warning("send failed", queue=self.queue, error=reason, messages=len(batch))
            self._sit_out()
            self._settle(batch, [(Verdict.RETRY, reason)] * len(batch))
            return
        if Verdict.RETURNED in verdicts:
            self._sit_out()
        else:
            self.pause = 0.0
        self._settle(batch, verdicts)

    def _sit_out(self) -> None:
        """The peer is away. Sends that were on their way together are one failure."""
        now = self.loop.time()
        if now < self.paused_until:
            return
        self.pause = min(max(self.pause * 2, FIRST_PAUSE), LAST_PAUSE)
        self.paused_until = now + self.pause * random.uniform(0.75, 1.25)
        if self.deleted is None and not self.draining:
            self.withheld += max(0, self.places.messages)
            self.places.messages = min(0, self.places.messages)
            waiting = list(self.waiting)
            self.waiting.clear()
            self._settle(waiting, [Verdict.RETURNED] * len(waiting))

    def _settle(self, batch: Sequence[Delivery], verdicts: Sequence[Verdict | tuple[Verdict, str] | None]) -> None:
        if self.deleted is not None:
            return
        alike: dict[tuple[str, Verdict, str], list[int]] = {}
        settled: list[Delivery] = []
        for delivery, verdict in zip(batch, verdicts, strict=True):
            tap = self.taps.get(delivery.queue)
            if tap is None:  # the queue is gone, and its deliveries with it
                settled.append(delivery)
                continue
            if verdict is None:
                tap.lost = True
                continue
            decided, reason = (verdict, "") if isinstance(verdict, Verdict) else verdict
            alike.setdefault((delivery.queue, decided, reason[:_MAX_REASON]), []).append(delivery.id)
            settled.append(delivery)
        # First the credit, which wakes who had none of it the last time; settling wakes the same queue again.
        self.window.free(sum(len(delivery.message.body) for delivery in settled))
        if not self.draining:
            self._give_credit(len(settled), verdicts.count(Verdict.DONE))
        for (queue, decided, reason), ids in alike.items():
            self.taps[queue].subscription.settle(ids, decided, reason)

    def _give_credit(self, settled: int, done: int) -> None:
        """For as many as were settled, and while it starts slowly for more."""
        more = min(done, self.in_flight - self.allowed)
        self.allowed += more
        if self.loop.time() < self.paused_until:
            self.withheld += settled + more
            self.wake.set()
        else:
            self.places.grant(settled + more)

    def _sent(self, task: asyncio.Task[None]) -> None:
        self.sends.discard(task)
        self.wake.set()

    async def drain(self) -> None:
        """What the sink has may end; what it never got goes back at once."""
        self.draining = True
        if self.deleted is None:
            for tap in self.taps.values():
                tap.subscription.cancel()
            waiting = list(self.waiting)
            self._settle(waiting, [Verdict.RETURNED] * len(waiting))
        self.waiting.clear()
        if self.sends:
            _, late = await asyncio.wait(self.sends, timeout=self.gateway.drain_timeout)
            for task in late:
                task.cancel()
            if late:
                log.warning("sends cut short", queue=self.queue, sends=len(late))
                await asyncio.wait(late)
        for tap in self.taps.values():
            tap.subscription.detach(tap.lost)
