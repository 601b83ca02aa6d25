"""Owns House: a gateway in a machine's own loop, with a clock set by hand, and the books of every message in it.

Its rule: the books know only what was sent and what arrived. A message is given to one consumer at a time, to none once
it is settled, and never before what its group holds; whatever is neither settled nor given out is still to come.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple

from hypothesis import HealthCheck, note, settings
from hypothesis.stateful import RuleBasedStateMachine
from msgspec.structs import replace

from gateway.auth.users import Access
from gateway.broker.core import Core
from gateway.engine.committer import Committer
from gateway.engine.gateway import LocalGateway
from gateway.engine.recovery import restore
from gateway.model.credit import Pressure
from gateway.model.message import Message
from gateway.model.policy import QueuePolicy, Seconds, SecondsRange
from gateway.net.tcp import TcpConnection
from gateway.storage.memory import MemoryJournal
from gateway.transport import Outcome
from tests.harness.kernel import Clock
from tests.harness.socket import NoSocket

LIVES = settings(
    max_examples=int(os.environ.get("GATEWAY_CREDIT_EXAMPLES", "40")),
    stateful_step_count=40,
    deadline=None,
    # The same lives in each test run, so that red means a change; the long form leads others.
    derandomize="GATEWAY_CREDIT_EXAMPLES" not in os.environ,
    suppress_health_check=list(HealthCheck),
)
ACK_TIMEOUT = 10.0
POLICIES = {
    # Consumers compete; what is not settled in time goes back.
    "jobs": QueuePolicy(ack_timeout=Seconds(ACK_TIMEOUT), max_deliveries=None, dead_letter="none"),
    "lines": QueuePolicy(
        group="{body.group}",
        group_in_flight=2,
        retry_delay=SecondsRange((5.0, 5.0)),
        max_deliveries=None,
        dead_letter="none",
    ),
    # This one is deleted now and then, and made again.
    "brief": QueuePolicy(durable=False, max_deliveries=None, dead_letter="none"),
}
MAX_TURNS = 5000
"""So often the loop turns until everything that was begun must be done."""
SOLE = "lines"
"""The queue whose groups keep their order."""


class Holder(NamedTuple):
    """Who has a message: a consumer, and how both sides call this delivery."""

    consumer: object
    tag: int


class Wire(NoSocket):
    """Has what is written read at once, so that everybody's books see it in the order in which it happened."""

    def __init__(self, protocol: TcpConnection, read: Callable[[bytearray], int]) -> None:
        super().__init__(protocol)
        self.read = read

    def writelines(self, parts: Any) -> None:
        super().writelines(parts)
        del self.data[: self.read(self.data)]


class Entry:
    """One message. holder: who has it now. open: it is neither settled nor gone."""

    def __init__(self, number: int, queue: str, group: str) -> None:
        self.number = number
        self.queue = queue
        self.group = group
        self.holder: Holder | None = None
        self.given = 0.0
        self.open = True

    def __repr__(self) -> str:
        return f"{self.number} of {self.queue}"


class House(RuleBasedStateMachine):
    """The base of both machines."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.faults: list[str] = []
        self.clock = Clock()
        self.entries: dict[int, Entry] = {}
        self.run(self._open())

    def run(self, step: Coroutine[Any, Any, None]) -> None:
        self.loop.run_until_complete(step)

    async def _open(self) -> None:
        # So little memory that most bodies are read from the disk.
        self.core = Core(self.clock, b"s" * 32, max_memory=2000)
        journal = MemoryJournal()
        journal.open()
        pressure = Pressure()
        committer = Committer(self.core, journal, pressure)
        self.gateway = LocalGateway(committer, Access({}), pressure, drain_timeout=1.0)
        restored = restore(self.core, journal)
        for name, policy in POLICIES.items():
            self.core.declare(name, policy, "config")
        committer.start(restored)
        self.core.report = lambda what, error: self.faults.append(f"{what}: {error!r}")
        self.loop.set_exception_handler(lambda loop, context: self.faults.append(str(context)))
        await self.settle_down()

    async def settle_down(self) -> None:
        """What was begun is done, and read by the peers."""
        rest = 0
        for _ in range(MAX_TURNS):
            await self.gateway.put()
            for _ in range(3):
                await asyncio.sleep(0)
            rows = self.core.rows
            busy = (self.core.is_dirty, rows.wanted, rows._reading, self.is_busy())
            # What was found at rest may just have handed something on.
            rest = 0 if any(busy) else rest + 1
            if rest == 2:
                break
        else:
            raise AssertionError(f"it does not come to rest: {busy}")
        self.check_books()
        self.check_credit()

    def is_busy(self) -> bool:
        """Something of a connection is under way."""
        raise NotImplementedError

    def check_credit(self) -> None:
        """Credit and use of it add up."""
        raise NotImplementedError

    async def publish(self, queue: str, group: str, count: int, octets: int) -> None:
        for _ in range(count):
            number = len(self.entries) + 1
            self.entries[number] = Entry(number, queue, group)
            body = json.dumps({"number": number, "group": group, "rest": "x" * octets}).encode()
            (outcome,) = await self.gateway.accept([Message(queue, body, "")])
            if outcome is Outcome.REFUSED:  # there is little memory, and this queue has no disk
                assert queue == "brief"
                self.entries[number].open = False
        await self.settle_down()

    async def pass_time(self, seconds: float) -> None:
        self.clock.now += seconds
        for entry in self.entries.values():
            late = entry.queue == "jobs" and entry.given + ACK_TIMEOUT <= self.clock.now
            if late and entry.holder is not None:
                entry.holder = None
        self.core.tick()
        self.gateway.committer.poke()
        await self.settle_down()

    async def allow(self, in_flight: int) -> None:
        """A reload, as far as a queue sees it."""
        queue = self.core.get(SOLE)
        queue.apply(replace(queue.policy, group_in_flight=in_flight))
        self.core.wake(queue)
        await self.settle_down()

    async def delete(self, queue: str) -> None:
        """And make it anew."""
        for entry in self.entries.values():
            if entry.queue == queue:
                entry.open, entry.holder = False, None
        self.gateway.delete(queue)
        self.core.declare(queue, POLICIES[queue], "config")
        await self.settle_down()

    # the books

    def came(self, body: bytes, holder: Holder) -> Entry:
        """`holder` has got a message. Raises AssertionError if it may not."""
        entry = self.entries[json.loads(body)["number"]]
        assert entry.open, f"{entry} came again after it was settled"
        assert entry.holder is None, f"{entry} came to {holder} while {entry.holder} has it"
        if entry.queue == SOLE:
            for other in self.entries.values():
                if other.number < entry.number and other.open and (other.queue, other.group) == (SOLE, entry.group):
                    same = other.holder is not None and other.holder.consumer is holder.consumer
                    assert same, f"{entry} came to {holder} before {other}, which {other.holder} has"
        entry.holder, entry.given = holder, self.clock.now
        return entry

    def done(self, entry: Entry, holder: Holder) -> None:
        if entry.holder == holder:
            entry.open, entry.holder = False, None

    def back(self, entry: Entry, holder: Holder) -> None:
        if entry.holder == holder:
            entry.holder = None

    def all_back(self, consumers: set[object]) -> None:
        """Whatever these held."""
        for entry in self.entries.values():
            if entry.holder is not None and entry.holder.consumer in consumers:
                entry.holder = None

    def check_books(self) -> None:
        assert not self.faults, self.faults
        open_now = [entry for entry in self.entries.values() if entry.open]
        for queue in POLICIES:
            found = self.core.get(queue)
            mine = [entry for entry in open_now if entry.queue == queue]
            held = [entry for entry in mine if entry.holder is not None]
            assert found.entries.count == len(mine), f"{queue} holds {found.entries.count}, not {mine}"
            assert found.in_flight == len(held), f"{found.in_flight} of {queue} are in flight, not {held}"

    def end(self) -> None:
        for entry in self.entries.values():
            note(f"{entry}: {'open' if entry.open else 'settled'}, with {entry.holder}")
        assert not [entry for entry in self.entries.values() if entry.open], "not everything was delivered"
        self.check_books()

    async def _close(self) -> None:
        await self.gateway.committer.close()
        self.gateway.access.close()

    def teardown(self) -> None:
        try:
            self.run(self.finish())
            self.end()
        finally:
            self.run(self.leave())
            self.run(self._close())
            self.loop.close()

    async def finish(self) -> None:
        """Everybody settles all there is, until nothing comes any more."""
        raise NotImplementedError

    async def leave(self) -> None:
        """All connections end."""
        raise NotImplementedError
