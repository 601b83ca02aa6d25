"""Owns what the gateway promises, in plain lists and loops: the model that the real core is held against.

Its rule: it follows the design, and knows nothing of slots, rows, rings, gathers or a journal. What it can foretell it
foretells; where several things may happen (who gets a message, when within its second one expires) it is told what
did, and asserts that it was allowed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from gateway.message import Message
from gateway.policy import QueuePolicy
from gateway.transport import Outcome, Verdict
from tests.model.facts import COMMITTED, COMMITTING, GATHERING, NEVER, Call, Entry, Image, Real, State, Taker


class Reference:
    def __init__(
        self,
        now: Callable[[], float],
        policies: Mapping[str, QueuePolicy],
        routes: Mapping[str, Sequence[str]],
        real: Real,
    ) -> None:
        self.now, self.real = now, real
        self.policies = dict(policies)
        self.routes = dict(routes)
        self.entries: list[Entry] = []
        """Of all queues, in their order."""
        self.keys: dict[tuple[str, str | None, str], tuple[float, int]] = {}
        self.calls: list[Call] = []
        self.states: State = {}
        self.takers: list[Taker] = []
        self.parked: dict[tuple[str, str | None], Entry] = {}
        self.draining: set[tuple[str, str | None]] = set()
        self.slow: set[tuple[str, str | None]] = set()
        """Groups that need not go on before all that is in flight is settled."""
        self.blocked: dict[tuple[str, str | None], float] = {}
        self.refusing = False
        self.overfull: set[str] = set()
        self.counters: Counter[tuple[str, str]] = Counter()
        self.refusals: list[str] = []
        """Dead-letter queues that refused something in this step, and so must be full."""
        self.disk, self.writing = Image(), Image()
        self._seq = 0

    def of(self, queue: str) -> list[Entry]:
        return [entry for entry in self.entries if entry.queue == queue]

    def committed_of(self, queue: str) -> list[Entry]:
        return [entry for entry in self.of(queue) if entry.stage == COMMITTED]

    def is_parked(self, entry: Entry) -> bool:
        return self.parked.get((entry.queue, entry.group)) is entry

    # limits

    def is_full(self, queue: str) -> bool:
        most = self.policies[queue].max_messages
        return most is not None and len(self.of(queue)) >= most

    def refuses(self, queue: str) -> bool:
        """It is full and refuses, or has nothing that it may drop."""
        droppable = any(entry.holder is None and not self.is_parked(entry) for entry in self.of(queue))
        return self.is_full(queue) and (self.policies[queue].overflow == "refuse" or not droppable)

    def bin_of(self, queue: str) -> str | None:
        target = self.policies[queue].dead_letter
        assert isinstance(target, str)
        return target if target not in ("none", queue) else None

    def bin_refuses(self, queue: str) -> bool:
        found = self.bin_of(queue)
        return found is not None and (self.refuses(found) or (self.refusing and self.policies[found].durable))

    # accept

    def accept(self, messages: Sequence[Message], changes: State) -> Call:
        call = Call(messages, changes)
        self._decide_call(call)
        self.calls.append(call)
        return call

    def _decide_call(self, call: Call) -> None:
        call.counts = []
        call.outcomes = [self._decide(message, call) for message in call.messages]

    def _decide(self, message: Message, call: Call) -> Outcome:
        queues = self.routes.get(message.topic, ())
        if not queues:
            return Outcome.UNROUTED
        now = self.now()
        stored: list[tuple[str, str | None, tuple[str, str | None, str] | None]] = []
        counts: list[tuple[str, str]] = []
        invalid: list[str] = []
        for queue in queues:
            policy = self.policies[queue]
            group = message.header("group") if policy.group else None
            if self.refusing and policy.durable:
                refused = True
            elif policy.group and group is None:
                refused = self.bin_refuses(queue)
                invalid.append(queue)
            else:
                key = None
                if policy.dedup is not None:
                    key = (queue, group if policy.dedup.scope == "group" else None, message.header("key"))
                    if now < self.keys.get(key, (0.0, 0))[0]:
                        counts.append((queue, "duplicates"))
                        continue
                evicts_to_full = policy.overflow == "dead-letter" and self.is_full(queue) and self.bin_refuses(queue)
                refused = self.refuses(queue) or evicts_to_full
                stored.append((queue, group, key))
            if refused:
                call.counts.append((queue, "refused"))
                return Outcome.REFUSED
        for queue, group, key in stored:
            self._store(queue, group, key, message)
        for queue in invalid:
            found = self.bin_of(queue)
            counts.append((queue, "dead_lettered" if found else "dropped"))
            if found:
                entry = self._add(f"{queue}:{message.body.decode()}", found, message, None)
                entry.deaths = ((queue, "invalid", 0),)
        call.counts += counts
        return Outcome.STORED if stored or invalid else Outcome.DUPLICATE

    def _store(self, queue: str, group: str | None, key: tuple[str, str | None, str] | None, message: Message) -> None:
        policy, now = self.policies[queue], self.now()
        entry = self._add(f"{queue}:{message.body.decode()}", queue, message, group)
        times = [time for time in (message.ttl, policy.ttl) if time is not None]
        entry.expires = now + min(times) if times else 0.0
        delay = message.delay or policy.delay
        entry.delay = entry.due = now + min(delay, policy.max_delay) if delay else 0.0
        if key is not None and policy.dedup is not None:
            self.keys[key] = (now + policy.dedup.window, GATHERING)

    def _add(self, name: str, queue: str, message: Message, group: str | None) -> Entry:
        self._seq += 1
        entry = Entry(name, queue, message, self._seq, group, self.now())
        ttl = self.policies[queue].ttl
        entry.expires = entry.accepted + ttl if ttl is not None else 0.0
        self.entries.append(entry)
        return entry

    # commits

    def begin(self) -> None:
        """All that stands here now is durable if this commit succeeds."""
        for one in (*self.entries, *self.calls):
            one.stage = one.stage or COMMITTING
        self.keys = {key: (until, stage or COMMITTING) for key, (until, stage) in self.keys.items()}
        durable = {queue for queue, policy in self.policies.items() if policy.durable}
        states = dict(self.states)
        for call in self.calls:
            if not call.is_refused:
                states |= call.changes
        self.writing = Image(
            [replace(entry) for entry in self.entries if entry.queue in durable],
            {key: until for key, (until, _) in self.keys.items() if key[0] in durable},
            states,
            {queue: self.policies[queue] for queue in durable},
        )

    def succeed(self) -> list[Call]:
        """The calls to be answered, in order."""
        self.disk = self.writing
        self.states = dict(self.disk.states)
        fresh = [entry for entry in self.entries if entry.stage == COMMITTING]
        for entry in fresh:
            entry.stage = COMMITTED
            self.counters[entry.queue, "accepted"] += 1
        self.keys = {key: (until, stage and COMMITTED) for key, (until, stage) in self.keys.items()}
        for queue in dict.fromkeys(entry.queue for entry in fresh):
            self._evict(queue)
        return self._answered()

    def fail(self) -> list[Call]:
        """Accepts are undone, and those that came later decided again; what moved between queues stays moved."""
        self.entries = [entry for entry in self.entries if entry.stage == COMMITTED or entry.moved]
        self.keys = {key: value for key, value in self.keys.items() if value[1] == COMMITTED}
        for entry in self.entries:
            entry.stage = COMMITTED if entry.stage == COMMITTED else GATHERING
        for call in self.calls:
            if call.stage == COMMITTING:
                call.outcomes = [Outcome.REFUSED] * len(call.messages)
                call.counts = []
            else:
                self._decide_call(call)
        return self._answered()

    def _answered(self) -> list[Call]:
        answered = [call for call in self.calls if call.stage == COMMITTING]
        for call in answered:
            self.answer(call)
        return answered

    def answer(self, call: Call) -> None:
        """What was decided counts once, when its caller hears of it."""
        self.calls.remove(call)
        self.counters.update(call.counts)

    def _evict(self, queue: str) -> None:
        policy = self.policies[queue]
        most = policy.max_messages
        if policy.overflow == "refuse" or most is None:
            return
        self.overfull.discard(queue)
        entries = self.committed_of(queue)
        if any(queue == policy.dead_letter for policy in self.policies.values()):
            # Of those that died at one moment, any may be the first.
            entries.sort(key=lambda entry: (entry.accepted, self.real.holds(queue, entry.name)))
        for entry in entries:
            if len(self.committed_of(queue)) <= most:
                return
            if entry.holder is not None or self.is_parked(entry):
                continue
            if policy.overflow == "drop-oldest" or self.bin_of(queue) is None:
                self._leave(entry, "dropped")
            elif not self._bury(entry, "overflow"):
                self.overfull.add(queue)
                return

    def crash(self, was_written: bool) -> None:
        """The next run begins with what is on the disk. `policies` hold from now on, those on the disk did before."""
        image = self.writing if was_written else self.disk
        self.disk = image
        now = self.now()
        self.entries = [
            replace(entry, holder=None, deadline=NEVER, doomed="", due=entry.delay, stage=COMMITTED)
            for entry in image.entries
        ]
        self.keys = {key: (until, COMMITTED) for key, until in image.keys.items() if now < until}
        self.states = dict(image.states)
        self.calls, self.takers, self.refusing = [], [], False
        for lost in (self.parked, self.draining, self.slow, self.blocked, self.overfull, self.counters):
            lost.clear()
        for entry in self.entries:
            policy = image.policies[entry.queue]
            exhausted = policy.max_deliveries is not None and entry.attempts >= policy.max_deliveries
            if exhausted and policy.on_exhausted == "park" and policy.group:
                self.parked.setdefault((entry.queue, entry.group), entry)

    # delivery

    def deliver(self, taker: Taker, name: str) -> Entry:
        """The core has handed it out. Was that right?"""
        entry = next((entry for entry in self.committed_of(taker.queue) if entry.name == name), None)
        assert entry is not None, f"{name} was delivered from {taker.queue} and is not there"
        now, place = self.now(), (entry.queue, entry.group)
        assert taker.may_take(), f"{name} was delivered without credit"
        assert entry.holder is None, f"{name} was delivered twice at a time"
        assert not entry.doomed, f"{name} was delivered, and is a dead letter: {entry.doomed}"
        assert not entry.expires or entry.expires >= now, f"{name} was delivered expired"
        assert entry.due <= now, f"{name} was delivered before its time"
        policy = self.policies[entry.queue]
        earlier = [other for other in self._ahead_of(entry) if self.real.holds(other.queue, other.name)]
        if policy.group:
            flying = self._flying(place)
            assert place not in self.parked, f"{name} was delivered from a parked group"
            assert place not in self.draining, f"{name} was delivered while others of its group went back"
            assert len(flying) < policy.group_in_flight, f"{name} is one too many of its group in flight"
            assert all(other.holder is taker for other in flying), f"the group of {name} is with two consumers"
            assert flying == earlier, f"{name} overtook in its group"
        else:
            # One that had to wait for its time joins the others when its timer has run; of dead letters that died at
            # one moment, any may be the first; and what another consumer gets just now is about to be heard of.
            ready = [
                other
                for other in earlier
                if self._is_ready(other) and not other.due and not other.deaths
                and not self.real.is_in_flight(other.queue, other.name)
            ]  # fmt: skip
            assert not ready, f"{name} overtook an older one"
        entry.holder = taker
        entry.times += 1
        if policy.ack_timeout is not None:
            entry.deadline = now + policy.ack_timeout
        taker.credit -= 1
        taker.pool[0] -= 1
        taker.held.append(entry)
        self.counters[entry.queue, "delivered"] += 1
        return entry

    def _ahead_of(self, entry: Entry) -> list[Entry]:
        grouped = bool(self.policies[entry.queue].group)
        return [
            other
            for other in self.committed_of(entry.queue)
            if other.seq < entry.seq and (not grouped or other.group == entry.group)
        ]

    def _flying(self, place: tuple[str, str | None]) -> list[Entry]:
        return [one for one in self.committed_of(place[0]) if one.group == place[1] and one.holder is not None]

    def _is_ready(self, entry: Entry) -> bool:
        now = self.now()
        alive = not entry.doomed and (not entry.expires or entry.expires >= now)
        return entry.holder is None and alive and entry.due <= now

    def idle_work(self) -> Iterator[str]:
        """After a dispatch: what somebody had credit for, and nobody got."""
        for queue, policy in self.policies.items():
            ready = [taker for taker in self.takers if taker.queue == queue and taker.may_take()]
            entries = self.committed_of(queue)
            if not policy.group:
                yield from (entry.name for entry in entries if ready and self._is_ready(entry))
                continue
            for group in dict.fromkeys(entry.group for entry in entries):
                place = (queue, group)
                flying = self._flying(place)
                rest = [entry for entry in entries if entry.group == group and entry.holder is None]
                if not rest or place in self.parked or not ready:
                    continue
                if any(entry.doomed for entry in rest):
                    # It is tried again each second, and may hold up its group until then.
                    self.blocked[place] = max(self.now() + 1.0, self.blocked.get(place, 0.0))
                if flying and rest[0].due:
                    self.slow.add(place)  # a delay may hold up its group until it is free
                if flying and flying[0].holder not in ready:
                    continue
                held_up = place in self.draining | self.slow or self.blocked.get(place, 0.0) > self.now()
                if len(flying) < policy.group_in_flight and not held_up and self._is_ready(rest[0]):
                    yield rest[0].name

    # settlement

    def settle(self, taker: Taker, entry: Entry, times: int, verdict: Verdict) -> bool:
        """The delivery that was the entry's so-many-th. False if it is no longer the taker's."""
        if entry not in taker.held or entry.times != times:
            self.counters[taker.queue, "stale"] += 1
            return False
        taker.held.remove(entry)
        if verdict is Verdict.DONE:
            self._leave(entry, "settled")
        elif verdict is Verdict.DEAD:
            self._bury_or_doom(entry, "rejected")
        elif verdict is Verdict.INVALID:
            self._bury_or_doom(entry, "invalid")
        elif verdict is Verdict.RETRY:
            self._fail(entry, delayed=True)
        else:
            self._give_back(entry)
        return True

    def cancel(self, taker: Taker) -> None:
        taker.cancelled = True
        self.draining |= {(entry.queue, entry.group) for entry in taker.held}

    def detach(self, taker: Taker, lost: bool) -> None:
        """Of a lost consumer the oldest counts an attempt."""
        self.cancel(taker)
        held, taker.held = taker.held, []
        for entry in held[1:] if lost else held:
            self._give_back(entry)
        if lost and held:
            self._fail(held[0], delayed=False)
        self.takers.remove(taker)

    def _give_back(self, entry: Entry) -> None:
        self.counters[entry.queue, "returned"] += 1
        self._land(entry, 0.0)

    def _fail(self, entry: Entry, delayed: bool) -> None:
        policy = self.policies[entry.queue]
        entry.attempts += 1
        self.counters[entry.queue, "retried"] += 1
        exhausted = policy.max_deliveries is not None and entry.attempts >= policy.max_deliveries
        if exhausted and policy.on_exhausted == "skip":
            self._bury_or_doom(entry, "exhausted")
        elif exhausted and policy.on_exhausted == "park" and policy.group:
            self._land(entry, 0.0)
            self.parked.setdefault((entry.queue, entry.group), entry)
        elif delayed and policy.retry_delay is not None:
            low, high = policy.retry_delay
            # The jitter of the test's core is always half of the fifth that it may be.
            self._land(entry, self.now() + min(high, low * 2 ** (entry.attempts - 1) * 1.1))
        else:
            self._land(entry, 0.0)

    def _land(self, entry: Entry, due: float) -> None:
        place = (entry.queue, entry.group)
        self._release_holder(entry)
        entry.due = due
        self.blocked[place] = max(due, self.blocked.get(place, 0.0))
        if self._flying(place):
            self.draining.add(place)

    def _release_holder(self, entry: Entry) -> None:
        if entry.holder is not None and entry in entry.holder.held:
            entry.holder.held.remove(entry)
        entry.holder, entry.deadline = None, NEVER
        if not self._flying((entry.queue, entry.group)):
            for waits in (self.draining, self.slow):
                waits.discard((entry.queue, entry.group))

    def _leave(self, entry: Entry, counter: str) -> None:
        self.entries.remove(entry)
        self._release_holder(entry)
        place = (entry.queue, entry.group)
        if self.parked.get(place) is entry:
            del self.parked[place]
        if counter:
            self.counters[entry.queue, counter] += 1

    # dead letters

    def _bury_or_doom(self, entry: Entry, reason: str) -> None:
        if not self._bury(entry, reason):
            entry.doomed = reason
            self._land(entry, self.now() + 1.0)

    def _bury(self, entry: Entry, reason: str) -> bool:
        """False if its dead-letter queue has no room; when several die at once, which of them finds room is open."""
        if self.real.holds(entry.queue, entry.name):
            found = self.bin_of(entry.queue)
            assert found is not None, f"{entry.name} is still there, and should have been discarded"
            self.refusals.append(found)
            return False
        target = self.bin_of(entry.queue)
        self._leave(entry, "dead_lettered" if target else "dropped")
        if target:
            refuses = self.policies[target].overflow == "refuse"
            assert not (refuses and self.is_full(target)), f"{target} is beyond its limit"
            self.move(entry, target, None)
            self.entries[-1].deaths = ((entry.queue, reason, entry.attempts), *entry.deaths)
            self.entries[-1].died_as = entry.seq
            if entry.group is not None:
                self.entries[-1].died_in_group = entry.group
        return True

    def judge_refusals(self) -> None:
        for bin in self.refusals:
            assert self.refuses(bin), f"{bin} refused a dead letter that it had room for"
        self.refusals.clear()

    def move(self, entry: Entry, target: str, group: str | None) -> None:
        added = self._add(entry.name, target, entry.message, group)
        added.moved, added.deaths, added.died_in_group = True, entry.deaths, entry.died_in_group

    def redrive(self, source: str, to: str | None) -> int:
        """How many went back, in the order they had where they died."""
        waiting = [entry for entry in self.committed_of(source) if entry.deaths and entry.holder is None]
        moved = 0
        for entry in sorted(waiting, key=lambda entry: entry.died_as or entry.seq):
            target = to or entry.deaths[0][0]
            if (self.refusing and self.policies[target].durable) or self.refuses(target):
                break
            group = entry.died_in_group
            if self.policies[target].group and (group is None or target != entry.deaths[0][0]):
                group = entry.message.header("group")
                if group is None:
                    break
            self._leave(entry, "")
            self.move(entry, target, group if self.policies[target].group else None)
            self.entries[-1].died_in_group = group
            moved += 1
        return moved

    def release(self, queue: str, group: str | None, dead: bool) -> bool:
        entry = self.parked[queue, group]
        if dead:
            return self._bury(entry, "exhausted")
        del self.parked[queue, group]
        entry.attempts = 0
        return True

    # time

    def tick(self) -> None:
        """Deliveries that took too long go back."""
        late = [entry for entry in self.entries if entry.deadline <= self.now()]
        for entry in sorted(late, key=lambda entry: (entry.deadline, entry.seq)):
            self._fail(entry, delayed=True)

    def observe(self) -> None:
        """Whatever waited and is gone had a reason to go: expired, or a dead letter that has found room."""
        now = self.now()
        for entry in list(self.entries):
            if entry.stage != COMMITTED or entry.holder is not None:
                continue
            if self.real.holds(entry.queue, entry.name):
                if not entry.doomed and self.real.is_doomed(entry.queue, entry.name):
                    assert entry.expires and entry.expires <= now, f"{entry.name} is given up for nothing"
                    entry.doomed = "expired"
                    self.refusals.append(self.bin_of(entry.queue) or "")
                continue
            reasons = {entry.doomed} - {""}
            if entry.expires and entry.expires <= now and not self.is_parked(entry):
                reasons.add("expired")
            if entry.queue in self.overfull:
                reasons.add("overflow")
            reason = self.real.why(entry.queue, entry.name)
            if not reason:  # it is discarded, and only the counter tells for which of two reasons
                is_expired = self.real.expired(entry.queue) > self.counters[entry.queue, "expired"]
                reason = next((one for one in reasons if (one == "expired") == is_expired), "")
            assert reason in reasons, f"{entry.name} is gone from {entry.queue}: {reason or 'for nothing'}"
            self.counters[entry.queue, "expired"] += reason == "expired"
            self._bury(entry, reason)

    def overdue(self) -> list[str]:
        """What should have expired by now."""
        now = self.now()
        return [
            entry.name
            for entry in self.entries
            if entry.stage == COMMITTED and entry.expires and int(entry.expires) + 1 <= now
            and entry.holder is None and not entry.doomed and not self.is_parked(entry)
        ]  # fmt: skip

    def reload(self, queue: str, policy: QueuePolicy) -> None:
        self.policies[queue] = policy
        for entry in self.of(queue):
            if entry.deadline != NEVER:
                limit = policy.ack_timeout
                entry.deadline = min(entry.deadline, self.now() + limit) if limit is not None else NEVER
