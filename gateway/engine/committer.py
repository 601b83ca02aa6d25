"""Owns the commits: it runs the core on the event loop, and the journal in a writer and a reader thread.

Its rule: one commit at a time; while it runs, the next one gathers; answers come out in the order of the calls.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

from gateway.broker.commit_batch import Accept
from gateway.broker.core import Core
from gateway.engine.body_reader import BodyReader
from gateway.engine.compaction import rescue
from gateway.engine.recovery import Refresh, Restored, live_octets, snapshot
from gateway.errors import StoreError, StoreFailedError, StoreFullError
from gateway.logs import log
from gateway.model.counters import CommitStats
from gateway.model.credit import Pressure
from gateway.model.message import Message
from gateway.model.outcome import Outcome
from gateway.model.state import StateChange
from gateway.queueing.ordering import NEVER
from gateway.storage.journal import Commit, Journal, Rebuilt
from gateway.transport import PLAIN, Offer
from gateway.worker import Worker

SETTLE_DELAY_SECONDS = 0.005
"""How long settlements alone wait for more of them; nobody waits for their commit."""
RETRY_SECONDS = 0.5
IDLE_TIDY_SECONDS = 0.02
ROOM_OCTETS = 8 << 20
"""With less than this left on the disk, above what the store holds in reserve, messages are refused."""
SALVAGE_ATTEMPTS = 12
"""So often, over a minute, a new file waits for bodies that can't be read just now; then it does without."""
LOG_SLACK = 16 << 20


class _Written(NamedTuple):
    """error: why only the first of two commits is durable."""

    last_id: int
    room: int
    error: StoreError | None


T = TypeVar("T")


def _tell(future: asyncio.Future[T], answer: T) -> None:
    """Unless it was cancelled, which changes nothing else."""
    if not future.done():
        future.set_result(answer)


class Committer:
    """Accepts into the core, commits, answers, delivers. All methods on the loop's thread."""

    def __init__(
        self,
        core: Core,
        journal: Journal,
        pressure: Pressure,
        max_backlog: int = 64 << 20,
        log_slack: int = LOG_SLACK,
    ) -> None:
        """`log_slack`: how many octets more than twice what is live the log may have."""
        self.core = core
        self.journal = journal
        self.pressure = pressure
        self.stats = CommitStats()
        self.states: dict[str, dict[str, bytes]] = {}
        """What the transports have put, by owner."""
        self._loop = asyncio.get_running_loop()
        self._writer = Worker("journal-writer", self._loop)
        self.reader = BodyReader(core, journal, self._loop)
        self._max_backlog = max_backlog
        self._running = False
        self._next: asyncio.Handle | None = None
        self._lazy: asyncio.TimerHandle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = NEVER
        self._retry: asyncio.TimerHandle | None = None
        self._stuck = False
        """The last attempt at a commit failed."""
        self._broken = False
        """The file has failed, and only a new one may be written."""
        self._rebuilds = 0
        """Attempts at it, so far."""
        self._rescuing = False
        """Bodies that the file lacks are on their way to it, unless a commit fails."""
        self._closed = True
        """Before `start`, while the store is read, and after `close`."""
        self._closing = False
        """`close` makes its last attempt."""
        self._ended = False
        self._last_id = 0
        self._log_octets = 0
        self._log_slack = log_slack
        self._next_check = log_slack
        self._refresh: Refresh | None = None
        self._tidy = True
        core.poke = self.poke
        core.report = lambda what, error: log.fault(what, error)
        core.overloaded = True

    def start(self, restored: Restored) -> None:
        """Goes on from what the replay found."""
        self.states = restored.states
        self._last_id = restored.last_id
        self._log_octets = restored.octets
        self._closed = False
        self.core.overloaded = False
        self.poke()

    # the contract's calls

    def accept(
        self, batch: Sequence[Message], changes: Sequence[StateChange] = (), offer: Offer = PLAIN
    ) -> asyncio.Future[Sequence[Outcome]]:
        future: asyncio.Future[Sequence[Outcome]] = self._loop.create_future()
        self.take(Accept(batch, changes, lambda outcomes, _: _tell(future, outcomes), offer=offer))
        return future

    def take(self, accept: Accept) -> None:
        """What all of these calls come to: `accept.resolve` gets the answer."""
        self.core.accept(accept)
        self._relieve()
        self.poke()

    def put(self, changes: Sequence[StateChange] = ()) -> asyncio.Future[bool]:
        future: asyncio.Future[bool] = self._loop.create_future()
        self.take(Accept((), changes, lambda _, ok: _tell(future, ok)))
        return future

    def keep(self, changes: Sequence[StateChange]) -> None:
        self.take(Accept((), changes, _nobody_waits, insists=True))

    def purge(self, name: str) -> asyncio.Future[int]:
        future: asyncio.Future[int] = self._loop.create_future()
        count = self.core.get(name).purge(lambda: self.put().add_done_callback(lambda _: _tell(future, count)))
        return future

    def _refuse_all(self) -> None:
        waiting, self.core.gather.accepts = self.core.gather.accepts, []
        for accept in waiting:
            accept.outcomes = [Outcome.REFUSED] * len(accept.messages)
            self.core.awaited.undo(accept)
        self._answer([*waiting, *self.core.awaited.give_up()], ok=False)

    def state(self, owner: str) -> dict[str, bytes]:
        return dict(self.states.get(owner, {}))

    def _remember(self, changes: Sequence[StateChange]) -> None:
        for owner, key, value in changes:
            if value is None:
                self.states.get(owner, {}).pop(key, None)
            else:
                self.states.setdefault(owner, {})[key] = value

    # the turn

    def poke(self) -> None:
        """Something happened: one turn follows in this iteration of the loop."""
        if self._ended:
            self._refuse_all()
        elif self._next is None and not self._closed:
            self._next = self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        if self._next is not None:
            self._next.cancel()  # a commit has ended, and brings it forward: there is one in an iteration of the loop
        self._next = None
        if self._closed:
            return
        core = self.core
        core.dispatch()
        self._answer_delivered()
        if core.rows.wanted:
            self.reader.read_wanted()
        self._begin()
        self._arm()

    def _arm(self) -> None:
        due = self.core.next_due()
        if due != self._timer_due or self._timer is None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            self._timer_due = due
            if due != NEVER:
                self._timer = self._loop.call_later(max(0.0, due - self.core.now()), self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._timer_due = NEVER
        self.core.tick()
        self.poke()

    # commits

    def _begin(self) -> None:
        core = self.core
        if self._stuck:
            self._answer_from_memory()
        elif core.refusing and not self._running:
            self._answer(core.take_refused())
        if self._running or self._retry is not None:
            return
        if core.gather.is_empty() and self._refresh is None:
            if self._tidy:
                self._tidy_once()
            return
        if not core.gather.accepts and self._refresh is None:
            if self._lazy is None:
                self._lazy = self._loop.call_later(SETTLE_DELAY_SECONDS, self._begin_lazy)
            return
        self._start()

    def _begin_lazy(self) -> None:
        self._lazy = None
        if not self._running and self._retry is None and not self._closed:
            self._start()

    def _start(self) -> None:
        core = self.core
        self._answer_from_memory()
        commit = core.begin_commit()
        if commit is None and self._refresh is None:
            return
        if commit is not None and self._refresh is None and not is_durable(commit):
            self._answer(core.committed())
            self._relieve()
            if core.refusing:
                self._watch_room(self.journal.room())
            self.poke()
            return
        copied: Commit | None = None
        if self._refresh is not None:
            record, last = self._refresh.next_slice()
            copied = Commit(record=record, trim=self._refresh.first_kept if last else None)
        self._running = True
        began = time.perf_counter()
        gather = core.committing
        messages = len(gather.pending) if gather is not None else 0
        octets = commit.octets if commit is not None else 0

        def done(result: _Written | None, error: BaseException | None) -> None:
            self._running = False
            if error is not None or result is None:
                self._failed(error)
                return
            self._stuck = False
            self.stats.observe(messages, octets, time.perf_counter() - began)
            self._last_id = max(self._last_id, result.last_id)
            if commit is not None:
                self._log_octets += len(commit.record)
                self._answer(core.committed())
            if result.error is not None:
                self._failed(result.error)
                return
            self._watch_room(result.room)
            if copied is not None:
                self._copied(copied)
            self._consider_refresh()
            self.reader.compact()
            self._relieve()
            self._turn()

        self._writer.call(lambda: self._commit(commit, copied), done)

    def _commit(self, commit: Commit | None, copied: Commit | None) -> _Written:
        """In the writer's thread. Raises StoreError if `commit` is not durable; if only `copied` is not, it is told."""
        last_id = self.journal.commit(commit) if commit is not None else 0
        try:
            if copied is not None:
                last_id = self.journal.commit(copied)
        except StoreError as error:
            return _Written(last_id, self.journal.room(), error)
        return _Written(last_id, self.journal.room(), None)

    def _answer(self, accepts: Sequence[Accept], ok: bool = True) -> None:
        for accept in accepts:
            if accept.insists or (ok and accept.changes and not accept.is_refused()):
                self._remember(accept.changes)
            accept.resolve(accept.outcomes, ok)

    def _answer_delivered(self) -> None:
        """Whom a link kept waiting."""
        if self.core.awaited.over:
            self._answer(self.core.take_delivered())

    def _answer_from_memory(self) -> None:
        """Nobody waits for a store that did not take the last commit: it may take minutes until it does. The last call
        of all waits, at the end."""
        if self._stuck and not self._closing:
            self._answer(self.core.take_volatile(), ok=False)
            self._relieve()
            if self.core.is_dirty:
                self.poke()

    def _relieve(self) -> None:
        """Reading pauses while more is accepted than the disk takes (ruling 22)."""
        core, committing = self.core, self.core.committing
        backlog = core.gather.octets + (committing.octets if committing is not None else 0)
        high = backlog > (self._max_backlog // 2 if self.pressure.high else self._max_backlog)
        core.overloaded = backlog > 2 * self._max_backlog
        if high != self.pressure.high:
            self.pressure.set(high)

    # what can go wrong

    def _failed(self, error: BaseException | None) -> None:
        self.stats.failures += 1
        self._stuck = True
        core = self.core
        self._refresh = None
        if error is not None and not isinstance(error, StoreError):
            log.fault("commit failed", error)
        elif not core.refusing:
            log.error("commit failed", error=str(error))
        what = "is full" if isinstance(error, StoreFullError) else "has failed"
        core.refusing = f"the store {what}: {error}"
        self._answer(core.failed(), ok=False)
        self._rescuing = False
        self._relieve()
        if isinstance(error, StoreFailedError):
            self._broken = True
            core.rows.doubt()
            self._rebuild()
        else:
            self._retry = self._loop.call_later(RETRY_SECONDS, self._try_again)
        self.poke()

    def _watch_room(self, room: int) -> None:
        """The last of the disk is kept for settlements (`store.reserve`)."""
        core = self.core
        if room < ROOM_OCTETS:
            if not core.refusing:
                log.error("the disk is nearly full, messages are refused", room=room)
            core.refusing = f"the disk of the store has only {room} bytes left above the reserve"
            self._retry = self._retry or self._loop.call_later(RETRY_SECONDS, self._try_again)
        elif core.refusing:
            core.refusing = ""
            self._stuck = False
            log.info("the store takes messages again", room=room)
            if not self._rescuing:
                self._rescue()

    def _try_again(self) -> None:
        """Whatever waits is committed again; with nothing waiting, only the room is asked for."""
        self._retry = None
        if self._closed:
            return
        self._answer_from_memory()
        if self._broken:
            self._rebuild()
        elif self.core.gather.is_empty():
            self._tidy_once()  # what was settled may have left room that is not given back yet
        else:
            self._start()
        self.poke()

    def _rebuild(self) -> None:
        """After a failed fsync only a new, complete file may be appended to (ruling 2)."""
        core = self.core
        self._answer_from_memory()
        # What is left is committed with the new file; it is not in the old one.
        waiting = core.begin_commit() or Commit()
        # It asks also for bodies that could not be read a moment ago: this is the last time that anyone can.
        content = snapshot(core, self.states, waiting)
        self._running = True

        def done(rebuilt: Rebuilt | None, error: BaseException | None) -> None:
            self._running = False
            if core.committing is not None:
                self._answer(core.committed() if error is None else core.failed(), ok=error is None)
            self._relieve()
            if error is not None or rebuilt is None:
                log.error("the store could not be written anew", error=str(error))
                self._broken = True
                if self._closing and core.gather.accepts:
                    self._rebuild()  # the last call came meanwhile
                    return
                delay = RETRY_SECONDS * min(2**self._rebuilds, 20)
                self._retry = self._loop.call_later(delay, self._try_again)
                return
            self._broken = self._stuck = False
            self._rebuilds = 0
            self._last_id = rebuilt.last_id or self._last_id
            missing = core.trust_file(rebuilt.left_out)
            for queue, messages in (self._rescue() if missing else {}).items():
                log.error(
                    "the store has lost bodies, their messages can't be delivered",
                    queue=queue,
                    messages=messages,
                    aside=rebuilt.aside,
                )
            self._log_octets = sum(map(len, content.records))
            core.refusing = ""
            log.info("the store was written anew")
            self.poke()

        self._rebuilds += 1
        salvage = self._rebuilds > SALVAGE_ATTEMPTS
        self._writer.call(lambda: self.journal.rebuild(content, salvage), done)

    def _rescue(self) -> Mapping[str, int]:
        """What the file lacks is stored again with the next commit, if it is in memory; returns how many messages are
        not, by queue."""
        self._rescuing = True
        missing = self.core.rows.left_out
        return rescue(self.core, missing) if missing else {}

    # the log's length

    def _consider_refresh(self) -> None:
        if self._refresh is not None or self._log_octets < self._next_check:
            return
        live = live_octets(self.core)
        self._next_check = self._log_octets + self._log_slack // 4
        if self._log_octets > 2 * live + self._log_slack:
            log.debug("copying the log forward", octets=self._log_octets, live=live)
            self._refresh = Refresh(self.core, self._last_id + 1)
            self._log_octets = 0

    def _copied(self, copied: Commit) -> None:
        self._log_octets += len(copied.record)
        if copied.trim is not None:
            self._refresh = None
            self._next_check = self._log_octets + self._log_slack

    # housekeeping and the end

    def _tidy_once(self) -> None:
        """A slice of the journal's own housekeeping, while there is nothing better to do."""
        self._tidy = False
        self._running = True

        def done(result: tuple[bool, int] | None, error: BaseException | None) -> None:
            self._running = False
            if error is not None or result is None:
                self._failed(error)
                return
            more, room = result
            self._loop.call_later(IDLE_TIDY_SECONDS if more else 10, self._allow_tidy)
            if self.core.refusing:
                self._watch_room(room)
            self.poke()

        self._writer.call(lambda: (self.journal.tidy(), self.journal.room()), done)

    def _allow_tidy(self) -> None:
        self._tidy = True
        self.poke()

    async def close(self) -> None:
        """Commits what came before this call, then closes the journal; what comes later is refused."""
        if not self._closed:
            self._closing = True
            last = self.put()
            if self._retry is not None:
                # Settlements may wait that the disk takes now; there is no other attempt.
                self._retry.cancel()
                self._try_again()
            if not await last and self.core.gather.must_commit():
                log.error("settlements could not be stored, their messages come again", reason=self.core.refusing)
        self._closed = self._ended = True
        self.reader.close()
        for timer in (self._timer, self._lazy, self._retry):
            if timer is not None:
                timer.cancel()
        closed: asyncio.Future[None] = self._loop.create_future()
        # Who still waits hears that nothing was stored.
        self._refuse_all()

        def done(result: None, error: BaseException | None) -> None:
            if error is not None:
                log.error("the store could not be closed cleanly", error=str(error))
            closed.set_result(None)

        self._writer.call(self.journal.close, done)
        await closed
        self.reader.stop()
        self._writer.stop()


def _nobody_waits(outcomes: Sequence[Outcome], ok: bool) -> None:
    pass


def is_durable(commit: Commit) -> bool:
    """Whether there is anything to write."""
    cleared = commit.dropped or commit.trim is not None or commit.expired is not None
    return bool(commit.record or commit.bodies or commit.expiring or commit.state or cleared)
