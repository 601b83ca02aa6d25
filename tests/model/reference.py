"""Owns what the gateway promises, in plain lists and loops: the model that the real core is held against.

Its rule: it follows the design, and knows nothing of slots, rows, rings, gathers or a journal. What it can foretell it
foretells; where several things may happen (who gets a message, when within its second one expires, which of several
dead letters finds room) it is told what did, and asserts that it was allowed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import msgspec

from gateway.broker.dead_letters import UNSTORED_OCTETS
from gateway.model.message import Message
from gateway.model.policy import DISCARD, QueuePolicy
from gateway.transport import Outcome, Verdict
from tests.model.facts import (
    COMMITTED,
    COMMITTING,
    GATHERING,
    NEVER,
    Call,
    Entry,
    Heir,
    Image,
    Key,
    Place,
    Real,
    State,
    Taker,
)


class Reference:
    def __init__(
        self,
        now: Callable[[], float],
        policies: Mapping[str, QueuePolicy],
        routes: Mapping[tuple[str, str], Sequence[str]],
        real: Real,
    ) -> None:
        self.now, self.policies, self.routes, self.real = now, dict(policies), routes, real
        self.entries: list[Entry] = []
        """Of all queues, in their order."""
        self.keys: dict[Key, tuple[float, int]] = {}
        self.calls: list[Call] = []
        self.states: State = {}
        self.live: set[str] = set()
        """Queues whose messages of QoS 0 are for who is there, and are not kept."""
        self.passing: list[tuple[str, Message, int]] = []
        self.parked: dict[Place, Entry] = {}
        self.blocked: dict[Place, float] = {}
        """Until when a group may wait for its retry."""
        self.counters: Counter[tuple[str, str]] = Counter()
        self.refusing = False
        self.disk, self.writing = Image(), Image()
        self.next_id = 1

    def of(self, queue: str) -> list[Entry]:
        """What was committed to it, by arrival."""
        return [entry for entry in self.entries if entry.queue == queue and entry.stage == COMMITTED]

    def group_of(self, entry: Entry) -> list[Entry]:
        return [other for other in self.of(entry.queue) if other.group == entry.group]

    def flying(self, place: Place) -> list[Entry]:
        return [entry for entry in self.of(place[0]) if entry.group == place[1] and entry.holder is not None]

    def held(self, taker: Taker) -> list[Entry]:
        return sorted((one for one in self.entries if one.holder is taker), key=lambda entry: entry.delivery)

    def may_drop(self, entry: Entry) -> bool:
        return entry.holder is None and self.parked.get(entry.place) is not entry and not self.is_begun(entry)

    def is_begun(self, entry: Entry) -> bool:
        """A session's client may have it, and gets it again."""
        return entry.queue in self.live and (entry.back or entry.attempts > 0)

    # limits

    def is_over(self, queue: str, with_pending: bool = False, messages: int = 0, octets: int = 0) -> bool:
        """Whether it is above its limits, or with so much more would be."""
        policy, held = self.policies[queue], self.entries if with_pending else self.of(queue)
        sizes = [entry.octets for entry in held if entry.queue == queue and not self.is_begun(entry)]
        too_many = policy.max_messages is not None and len(sizes) + messages > policy.max_messages
        return too_many or (policy.max_bytes is not None and sum(sizes) + octets > policy.max_bytes)

    def is_full(self, queue: str, octets: int) -> bool:
        return self.is_over(queue, True, 1, octets)

    def is_closed(self, queue: str, octets: int) -> bool:
        """It is full and refuses, or has nothing that it may drop."""
        droppable = any(entry.queue == queue and self.may_drop(entry) for entry in self.entries)
        return self.is_full(queue, octets) and (self.policies[queue].overflow == "refuse" or not droppable)

    def refuses(self, queues: Sequence[str], octets: int) -> bool:
        return any((self.refusing and self.policies[one].durable) or self.is_closed(one, octets) for one in queues)

    # accept

    def accept(self, messages: Sequence[Message], changes: State) -> None:
        self.calls.append(Call(messages, changes))
        self._decide_call(self.calls[-1])

    def _decide_call(self, call: Call) -> None:
        call.counts = []
        call.outcomes = [self._decide(message, call) for message in call.messages]

    def _decide(self, message: Message, call: Call) -> Outcome:
        """All of its queues get it, or none."""
        found = {queue: self._ask(queue, message) for queue in self.routes.get((message.exchange, message.topic), ())}
        refused = [queue for queue, answer in found.items() if answer == "refused"]
        if refused:
            call.counts.append((refused[0], "refused"))
            return Outcome.REFUSED
        for queue in [queue for queue, answer in found.items() if answer == "stored"]:
            self._store(queue, message)
        for queue, answer in found.items():
            if answer == "passing":
                self.passing.append((queue, message, GATHERING))
            elif answer == "duplicates":
                call.counts.append((queue, "duplicates"))
            elif answer == "invalid":
                dead, targets = self.bins(queue, message)
                call.counts.append((queue, "dead_lettered" if targets else "dropped"))
                call.counts.append((queue, "dead_on_arrival"))
                for target in targets:
                    added = self._add(target, dead)
                    added.deaths, added.undecided = ((queue, "invalid", 0),), 1
        if not found:
            return Outcome.UNROUTED
        return Outcome.DUPLICATE if set(found.values()) == {"duplicates"} else Outcome.STORED

    def _ask(self, queue: str, message: Message) -> str:
        policy, octets = self.policies[queue], len(message.body) + UNSTORED_OCTETS
        if queue in self.live and message.qos == 0:
            return "passing"
        if self.refusing and policy.durable:
            return "refused"
        if policy.group and value(policy.group, message) is None:
            return "refused" if self.refuses(self.bins(queue, message)[1], octets) else "invalid"
        if self.now() < self.keys.get(self._key(queue, message), (0.0, 0))[0] and policy.dedup:
            return "duplicates"
        if not self.is_full(queue, octets):
            return "stored"
        makes_room = policy.overflow == "dead-letter" and isinstance(policy.dead_letter, str)
        has_no_room = makes_room and self.refuses(self.bins(queue, message)[1], octets)
        return "refused" if has_no_room or self.is_closed(queue, octets) else "stored"

    def _key(self, queue: str, message: Message) -> Key:
        policy = self.policies[queue]
        in_group = policy.dedup is not None and policy.dedup.scope == "group"
        return queue, value(policy.group, message) if in_group else None, message.header("key")

    def _store(self, queue: str, message: Message) -> None:
        policy, now = self.policies[queue], self.now()
        entry = self._add(queue, message, group=value(policy.group, message))
        times = [time for time in (message.ttl, policy.ttl) if time is not None]
        entry.expires = now + min(times) if times else 0.0
        delay = message.delay if message.delay is not None else policy.delay
        entry.delay = entry.due = now + min(delay, policy.max_delay) if delay else 0.0
        if policy.dedup is not None:
            self.keys[self._key(queue, message)] = (now + policy.dedup.window, GATHERING)

    def _add(self, queue: str, message: Message, id: int = 0, group: str | None = None, octets: int = 0) -> Entry:
        """octets: what it took where it comes from, if it need not be stored anew."""
        policy, id = self.policies[queue], id or self.next_id
        self.next_id = max(self.next_id, id + 1)
        stored = (
            len(msgspec.msgpack.encode(message)) if policy.durable else octets or len(message.body) + UNSTORED_OCTETS
        )
        entry = Entry(id, queue, message, (group or "") if policy.group else None, stored, self.now())
        entry.expires = entry.accepted + policy.ttl if policy.ttl is not None else 0.0
        self.entries.append(entry)
        return entry

    # commits

    def begin(self) -> None:
        """All that stands here now is durable if this commit succeeds."""
        for one in (*self.entries, *self.calls):
            one.stage = one.stage or COMMITTING
        self.keys = {key: (until, stage or COMMITTING) for key, (until, stage) in self.keys.items()}
        self.passing = [(queue, message, COMMITTING) for queue, message, _ in self.passing]
        durable = {queue: policy for queue, policy in self.policies.items() if policy.durable}
        self.writing = Image(
            [replace(entry) for entry in self.entries if entry.queue in durable],
            {key: until for key, (until, _) in self.keys.items() if key[0] in durable},
            dict(self.states),
            durable,
            self.live & durable.keys(),
        )
        for call in self.calls:
            if not call.is_refused:
                self.writing.states |= call.changes

    def succeed(self) -> list[Call]:
        """The calls to be answered, in order."""
        self.disk, self.states = self.writing, dict(self.writing.states)
        fresh = [entry for entry in self.entries if entry.stage == COMMITTING]
        for entry in fresh:
            entry.stage = COMMITTED
            self.counters[entry.queue, "accepted"] += 1
        self.keys = {key: (until, stage and COMMITTED) for key, (until, stage) in self.keys.items()}
        self.passing = [one for one in self.passing if one[2] == GATHERING]
        self.observe()
        for queue in {entry.queue for entry in fresh}:
            overflow, oldest = self.policies[queue].overflow, self._oldest(queue)
            if overflow != "refuse" and self.is_over(queue) and oldest is not None:
                assert overflow == "dead-letter" and self._is_stuck(oldest), f"{queue} is too long"
        return self._answered()

    def _oldest(self, queue: str) -> Entry | None:
        """That may be dropped."""
        return next((entry for entry in self.of(queue) if self.may_drop(entry)), None)

    def fail(self) -> list[Call]:
        """Accepts are undone, and those that came later decided again; what moved between queues stays moved."""
        self.entries = [entry for entry in self.entries if entry.stage == COMMITTED or entry.moved]
        self.keys = {key: found for key, found in self.keys.items() if found[1] == COMMITTED}
        self.passing = []
        for entry in self.entries:
            entry.stage = COMMITTED if entry.stage == COMMITTED else GATHERING
        for call in self.calls:
            if call.stage == COMMITTING:
                call.outcomes, call.counts = [Outcome.REFUSED] * len(call.messages), []
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

    def crash(self, was_written: bool, real: Real, before: float) -> None:
        """The next run begins with what is on the disk, under the policies that stand there; then today's apply.
        before: the time of the crash, which may be later than that of the next start."""
        self.disk = image = self.writing if was_written else self.disk
        self.entries = [
            replace(
                entry,
                stage=COMMITTED,
                holder=None,
                deadline=NEVER,
                doomed=False,
                fate="",
                due=entry.delay,
                seen=True,
                back=False,
                last=False,
                slow=False,
            )
            for entry in image.entries
        ]
        # A window that had ended counts again if the clock was set back and the disk still has it.
        live = {key: until for key, until in image.keys.items() if self.now() < until}
        self.keys = {key: (until, COMMITTED) for key, until in live.items() if before < until or real.remembers(key)}
        self.states, self.live, self.real, self.refusing = dict(image.states), set(image.live), real, False
        for lost in (self.calls, self.passing, self.parked, self.blocked, self.counters):
            lost.clear()  # type: ignore[attr-defined]
        wanted, self.policies = self.policies, {**self.policies, **image.policies}
        for entry in self.entries:
            if self._is_exhausted(entry, "park"):
                self.parked.setdefault(entry.place, entry)
        for queue, policy in wanted.items():
            self.reload(queue, policy)

    # delivery

    def deliver(self, taker: Taker, id: int, delivery: int) -> Entry:
        """The core has handed it out. Was that right?"""
        entry = next((entry for entry in self.of(taker.queue) if entry.id == id), None)
        assert entry is not None, f"{id} was delivered from {taker.queue} and is not there"
        assert entry.holder is None, f"{entry} was delivered twice at a time"
        assert not entry.fate, f"{entry} was delivered, and had to leave"
        assert self._is_ready(entry), f"{entry} was delivered expired or before its time"
        policy, flying = self.policies[entry.queue], self.flying(entry.place)
        if policy.group:
            earlier = [other for other in self.group_of(entry) if other.id < id]
            assert entry.place not in self.parked, f"{entry} was delivered from a parked group"
            assert len(flying) < policy.group_in_flight, f"{entry} is one too many of its group in flight"
            assert all(other.holder is taker for other in flying), f"the group of {entry} is with two consumers"
            assert not any(other.last for other in flying), f"{entry} was delivered while others of its group went back"
            assert flying == earlier, f"{entry} overtook in its group"
        else:
            # Another consumer may be about to get an earlier one.
            known = self.real.entries(entry.queue)
            earlier = [other for other in self.of(entry.queue) if other.id < id and not known[other.id].in_flight]
            # One that had to wait joins the others when its timer has run.
            ready = [one for one in earlier if self._is_ready(one) and not one.fate and not one.due]
            assert not ready, f"{entry} overtook {ready}"
        entry.holder, entry.delivery = taker, delivery
        if policy.ack_timeout is not None:
            entry.deadline = self.now() + policy.ack_timeout
        self.counters[entry.queue, "delivered"] += 1
        return entry

    def _is_ready(self, entry: Entry) -> bool:
        now = self.now()
        is_late = 0 < entry.expires < now and not self.is_begun(entry)
        return entry.holder is None and entry.due <= now and not is_late

    def idle_work(self, takers: Sequence[Taker]) -> Iterator[Entry]:
        """After a dispatch: what somebody had credit for, and nobody got."""
        for queue, policy in self.policies.items():
            ready = [taker for taker in takers if taker.queue == queue and taker.may_take()]
            waiting = [entry for entry in self.of(queue) if entry.holder is None]
            if not policy.group:
                yield from (entry for entry in waiting if ready and self._is_ready(entry) and not entry.fate)
                continue
            heads = {entry.group: entry for entry in reversed(waiting)}
            if sum(taker.queue == queue for taker in takers) > 1:
                self._may_hand_over(queue)
            for head in heads.values():
                if not ready or head.place in self.parked:
                    continue
                if any(entry.fate for entry in self.group_of(head)):
                    # It is tried again each second, and may hold up its group until then.
                    self._block(head, self.now() + 1.0)
                flying = self.flying(head.place)
                is_held_up = any(one.last or one.slow or one.holder not in ready for one in flying)
                is_blocked = self.blocked.get(head.place, 0.0) > self.now()
                if not is_held_up and len(flying) < policy.group_in_flight and not is_blocked and self._is_ready(head):
                    yield head

    # settlement

    def settle(self, taker: Taker, entry: Entry, delivery: int, verdict: Verdict) -> bool:
        """False if it is no longer the taker's."""
        if entry.delivery != delivery or entry.holder is not taker:
            self.counters[taker.queue, "stale"] += 1
            return False
        if verdict is Verdict.DONE:
            self._leave(entry)
            self.counters[entry.queue, "settled"] += 1
        elif verdict is Verdict.DEAD:
            entry.fate = "rejected"
        elif verdict is Verdict.INVALID:
            entry.fate = "invalid"
        elif verdict is Verdict.RETRY:
            self._fail(entry, delayed=True)
        else:
            self._give_back(entry)
        self.observe()
        return True

    def cancel(self, taker: Taker) -> None:
        for entry in self.held(taker):
            entry.last = True

    def _may_hand_over(self, queue: str) -> None:
        """Somebody else may be about to get a group of which several are in flight."""
        if self.policies[queue].group_in_flight > 1:
            for entry in self.of(queue):
                entry.slow = entry.slow or entry.holder is not None

    def detach(self, taker: Taker, lost: bool) -> None:
        """Of a lost consumer the oldest counts an attempt."""
        self._may_hand_over(taker.queue)
        held = self.held(taker)
        for entry in held[1:] if lost else held:
            self._give_back(entry)
        if lost and held:
            self._fail(held[0], delayed=False)
        self.observe()

    def _give_back(self, entry: Entry) -> None:
        self.counters[entry.queue, "returned"] += 1
        entry.back = True
        self._land(entry, 0.0)

    def _is_exhausted(self, entry: Entry, then: str) -> bool:
        policy = self.policies[entry.queue]
        exhausted = policy.max_deliveries is not None and entry.attempts >= policy.max_deliveries
        return exhausted and policy.on_exhausted == then and (then != "park" or policy.group is not None)

    def _fail(self, entry: Entry, delayed: bool) -> None:
        policy = self.policies[entry.queue]
        entry.attempts += 1
        entry.back = True
        self.counters[entry.queue, "retried"] += 1
        if self._is_exhausted(entry, "skip"):
            entry.fate = "exhausted"
        elif self._is_exhausted(entry, "park"):
            self._land(entry, 0.0)
            self.parked.setdefault(entry.place, entry)
        elif delayed and policy.retry_delay is not None:
            low, high = policy.retry_delay
            # The jitter of the test's core is always half of the fifth that it may be.
            self._land(entry, self.now() + min(high, low * 2 ** (entry.attempts - 1) * 1.1))
        else:
            self._land(entry, 0.0)

    def _land(self, entry: Entry, due: float) -> None:
        entry.holder, entry.deadline, entry.last, entry.slow, entry.seen = None, NEVER, False, False, True
        entry.due = due
        self._block(entry, due)
        for other in self.flying(entry.place):
            other.last = True

    def _block(self, entry: Entry, due: float) -> None:
        self.blocked[entry.place] = max(due, self.blocked.get(entry.place, 0.0))

    def _leave(self, entry: Entry) -> None:
        self.entries.remove(entry)
        entry.holder = None
        if self.parked.get(entry.place) is entry:
            del self.parked[entry.place]

    # dead letters

    def bins(self, queue: str, message: Message) -> tuple[Message, list[str]]:
        """Where a message goes that this queue gives up, and as which message."""
        target = self.policies[queue].dead_letter
        if isinstance(target, str):
            return message, [target] if target != DISCARD else []
        dead = msgspec.structs.replace(message, exchange=target.exchange, topic=target.topic or message.topic)
        return dead, list(self.routes.get((dead.exchange, dead.topic), ()))

    def observe(self) -> None:
        """Whatever is gone had a reason to go, and went where it should; what had to go and is still there had nowhere
        to go."""
        heirs = self.real.heirs()
        seen = {queue: self.real.entries(queue) for queue in self.policies}
        gone = [entry for entry in self.entries if entry.stage == COMMITTED and entry.id not in seen[entry.queue]]
        unclear: Counter[str] = Counter()
        for entry in gone:
            self._die(entry, heirs.get(entry.id, ()), unclear)
        for queue, most in unclear.items():
            expired = self.real.expired(queue) - self.counters[queue, "expired"]
            assert 0 <= expired <= most, f"{expired} of {queue} have expired, and not more than {most} could"
            self.counters[queue, "expired"] += expired
        for queue in {heir.queue for entry in gone for heir in heirs.get(entry.id, ())}:
            assert self.policies[queue].overflow != "refuse" or not self.is_over(queue, True), f"{queue} is too long"
        self.entries.sort(key=lambda entry: entry.id)
        for entry in self.entries:
            if entry.stage != COMMITTED:
                continue
            if (entry.due or seen[entry.queue][entry.id].doomed) and entry.holder is None:
                for other in self.flying(entry.place):
                    other.slow = True
            if entry.doomed:
                continue
            if seen[entry.queue][entry.id].doomed and not entry.fate:
                assert self._has_expired(entry), f"{entry} is given up for nothing"
                entry.fate = "expired"
            if entry.fate:
                entry.doomed = True
                assert self._is_stuck(entry), f"{entry} had to go"
                if entry.holder is not None:
                    self._land(entry, self.now() + 1.0)

    def _is_stuck(self, entry: Entry) -> bool:
        """Its dead-letter queue has no room; an exchange wants to see the message, which may have to be read first."""
        by_exchange = not isinstance(self.policies[entry.queue].dead_letter, str)
        bins = self.bins(entry.queue, entry.message)[1]
        return by_exchange or any(self.is_closed(bin, entry.octets) for bin in bins)

    def _has_expired(self, entry: Entry) -> bool:
        return 0 < entry.expires <= self.now() and self.may_drop(entry)

    def _reasons(self, entry: Entry) -> Iterator[str]:
        if entry.fate:
            yield entry.fate
        if self._has_expired(entry):
            yield "expired"
        is_limited = self.policies[entry.queue].overflow != "refuse"
        if is_limited and self.is_over(entry.queue) and entry is self._oldest(entry.queue):
            yield "overflow"

    def _die(self, entry: Entry, heirs: Sequence[Heir], unclear: Counter[str]) -> None:
        """unclear: by queue, what is discarded for one of two reasons: only the daemon's counter tells which."""
        queue, went = entry.queue, sorted(heir.queue for heir in heirs)
        dead, bins = self.bins(queue, entry.message)
        been = {queue, *(death[0] for death in entry.deaths[: entry.undecided])}
        unbroken = [bin for bin in bins if bin not in been]
        if entry.given_up:
            unbroken = bins
        targets = {"rejected": bins, "overflow": [] if self.policies[queue].overflow == "drop-oldest" else unbroken}
        reasons = [reason for reason in self._reasons(entry) if sorted(targets.get(reason, unbroken)) == went]
        reason = heirs[0].reason if heirs else [*reasons, ""][0]
        assert reason in reasons, f"{entry} is gone to {went}: {reason!r}, not for {list(self._reasons(entry))}"
        self._leave(entry)
        if not heirs and "expired" in reasons and len(reasons) > 1:
            unclear[queue] += 1
        else:
            self.counters[queue, "expired"] += reason == "expired"
        self.counters[queue, "dead_lettered" if heirs else "dropped"] += 1
        group = entry.group if entry.group is not None else entry.died_in_group
        for heir in heirs:
            self._move(entry, heir.queue, heir.id, dead, group)
            self.entries[-1].deaths = ((queue, reason, entry.attempts), *entry.deaths)
            self.entries[-1].undecided = 0 if entry.given_up or reason == "rejected" else entry.undecided + 1
            self.entries[-1].died_as = entry.id

    def _move(self, entry: Entry, target: str, id: int, message: Message, group: str | None) -> None:
        octets = entry.octets if message is entry.message else 0
        added = self._add(target, message, id, group, octets)
        added.moved, added.deaths, added.died_in_group = True, entry.deaths, group

    # operators and time

    def redrive(self, source: str, to: str | None) -> int:
        """How many went back, in the order they had where they died."""
        waiting = [entry for entry in self.of(source) if entry.deaths and entry.holder is None]
        for moved, entry in enumerate(sorted(waiting, key=lambda entry: entry.died_as or entry.id)):
            target, group = to or entry.deaths[0][0], entry.died_in_group
            template = self.policies[target].group
            if template and (group is None or target != entry.deaths[0][0]):
                group = value(template, entry.message)
            if self.refuses([target], entry.octets) or (template and group is None):
                return moved
            self._leave(entry)
            self._move(entry, target, 0, entry.message, group)
        return len(waiting)

    def purge(self, queue: str) -> int:
        """How many leave: all that waits, and nothing counts them."""
        waiting = [entry for entry in self.of(queue) if entry.holder is None]
        for entry in waiting:
            self._leave(entry)
        return len(waiting)

    def release(self, place: Place, dead: bool) -> bool:
        """False if it should become a dead letter, and there is no room."""
        entry = self.parked[place]
        if dead:
            entry.fate, entry.given_up = "exhausted", True
            if entry.id not in self.real.entries(entry.queue):
                self.observe()
                return True
            entry.fate, entry.given_up = "", False
            assert self._is_stuck(entry), f"{entry} had to go"
            return False
        del self.parked[place]
        entry.attempts = 0
        return True

    def reload(self, queue: str, policy: QueuePolicy) -> None:
        """What is here keeps its group, and what is in flight its consumer; order begins anew where there were groups
        and are none, or the other way."""
        before, self.policies[queue] = self.policies[queue], policy
        flying = [entry for entry in self.of(queue) if entry.holder is not None]
        for entry in flying:
            limit = policy.ack_timeout
            entry.deadline = min(entry.deadline, self.now() + limit) if limit is not None else NEVER
        if bool(before.group) != bool(policy.group):
            for entry in flying:
                entry.last = True
            for place in [place for place in self.parked if place[0] == queue]:
                del self.parked[place]

    def tick(self) -> None:
        """Deliveries that took too long go back; what has expired is gone within its second."""
        late = [entry for entry in self.entries if entry.deadline <= self.now()]
        for entry in sorted(late, key=lambda entry: (entry.deadline, entry.id)):
            self._fail(entry, delayed=True)
        self.observe()

    def rest(self) -> None:
        """All timers have run."""
        late = [one for one in self.of_all() if self._has_expired(one) and int(one.expires) + 1 <= self.now()]
        assert not (late := [one for one in late if not one.fate]), f"expired, and still there: {late}"

    def of_all(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.stage == COMMITTED]


def value(template: str | None, message: Message) -> str | None:
    """Of a group's template, which is one header; None if there is none."""
    found = message.header(template[8:-2]) if template is not None else None
    return found if isinstance(found, str) else None
