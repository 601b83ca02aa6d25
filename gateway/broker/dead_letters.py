"""Owns dead letters: why, where they go, the history they carry, and how an entry moves to another queue.

Its rule: a dead letter is the same body under a new entry; the message itself is never altered.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from gateway.model.delivery import Death, Reason
from gateway.model.message import DEFAULT_EXCHANGE, Message
from gateway.model.names import is_within
from gateway.model.policy import DEAD_LETTERS, DISCARD, ExchangeTarget
from gateway.model.topics import swap
from gateway.queueing.pending import Pending
from gateway.queueing.priority import PriorityName
from gateway.routing.templates import Fields
from gateway.storage.records import NO_EXTRA, Extra

if TYPE_CHECKING:
    from gateway.broker.core import Core
    from gateway.queueing.queue import Queue

UNSTORED_OCTETS = 160
"""What a message that is kept in memory only counts beside its body."""

MAX_DEATHS = 32
"""Of a message that dies again and again the latest are kept, and the first, and how many of a kind there were."""
MAX_UNDECIDED = 128
"""All deaths are kept that tell whether a message goes round in a circle, and no message dies more often by itself."""
_TEXT_HEAD_OCTETS = 4


def died(
    extra: Extra,
    queue: str,
    reason: Reason,
    attempts: int,
    error: str,
    first: float,
    last: float,
    group: str | None,
    sequence: int = 0,
    sent: Message | None = None,
    decided: bool = False,
) -> Extra:
    """What the dead letter's entry carries: the earlier deaths behind this one. The group of its first death stays,
    since redrive puts it back there. `sent`: the message with the address that it had, if it has another now. decided:
    by an operator, whatever the reason is."""
    undecided = 0 if decided or reason is Reason.REJECTED else extra.undecided + 1
    exchange, topic = (sent.exchange, sent.topic) if sent is not None else (None, None)
    death = Death(queue, reason.value, attempts, error, first, last, exchange, topic)
    deaths = (death, *extra.deaths)
    latest = max(MAX_DEATHS - 1, undecided)
    if len(deaths) > latest + 1:
        deaths = _shortened(deaths, latest)
    return Extra(extra.options, deaths, group if group is not None else extra.group, sequence, undecided)


def _shortened(deaths: tuple[Death, ...], latest: int) -> tuple[Death, ...]:
    """So many of the latest, and the first. Consumers count how often a message came back, so what is left out still
    counts in the one of its kind that stays."""
    kept = [*deaths[:latest], deaths[-1]]
    places = {(death.queue, death.reason): place for place, death in reversed(list(enumerate(kept)))}
    for death in deaths[latest:-1]:
        place = places.get((death.queue, death.reason))
        if place is not None:
            kept[place] = msgspec.structs.replace(kept[place], count=kept[place].count + death.count)
    return tuple(kept)


def closes_circle(extra: Extra, queue: str) -> bool:
    """Whether a dead letter with this history may not enter the queue: it died there before, and from then on nobody
    has rejected it (ruling 30). RabbitMQ has the same rule; a rejection lets it go round for ever."""
    undecided = extra.undecided
    return undecided > MAX_UNDECIDED or any(death.queue == queue for death in extra.deaths[:undecided])


class DeadLetters:
    """What queues give up, and whatever else moves from one queue to another, in one core."""

    __slots__ = ("_core",)

    def __init__(self, core: Core) -> None:
        self._core = core

    def bury(self, queue: Queue, slot: int, reason: Reason, attempts: int, error: str, decided: bool = False) -> bool:
        entries = queue.entries
        target = queue.policy.dead_letter
        message: Message | None = None
        sent: Message | None = None
        octets = entries.length[slot]
        if isinstance(target, ExchangeTarget):
            # Its routing needs the message itself, which may have to be read first.
            sent = queue.message(slot)
            if sent is None:
                return False
            message, targets = self.routes(queue, sent)
            octets += _readdressing_octets(sent, message)
        else:
            targets = self._queues_named(target)
        extra = NO_EXTRA
        circled = 0
        if targets:
            old, group = self._core.extras[entries.extra[slot]], queue.groups.name(entries.group[slot])
            first, last = entries.accepted[slot], self._core.now()
            ident = entries.ident[slot]
            extra = died(old, queue.name, reason, attempts, error, first, last, group, ident, sent, decided)
            found_in_all = len(targets)
            targets = [found for found in targets if not closes_circle(extra, found.name)]
            circled = found_in_all - len(targets)
        # What goes back to its own queue takes the room that it leaves.
        if any(found is not queue and found.is_full(octets) and found.may_refuse() for found in targets):
            return False
        if any(found.policy.durable for found in targets) and not self._has_place(queue, slot, message):
            return False
        ranked: Message | None = None
        if any(isinstance(found.group_template, PriorityName) for found in targets):
            ranked = message or queue.message(slot)  # there stands its priority
            if ranked is None:
                return False
        queue.counters.circled += circled
        if not targets:
            queue.counters.dropped += 1
            return True
        queue.counters.dead_lettered += 1
        for found in targets:
            self.move(queue, slot, found, extra, message, _priority_in(found, ranked))
        return True

    def _queues_named(self, name: str) -> list[Queue]:
        if name == DISCARD:
            return []
        found = self._core.queues.get(name) or self._core.queues.get(DEAD_LETTERS)
        return [found] if found is not None else []

    def _has_place(self, queue: Queue, slot: int, message: Message | None) -> bool:
        return bool(queue.entries.row[slot]) or message is not None or queue.message(slot) is not None

    def routes(self, queue: Queue, message: Message) -> tuple[Message, list[Queue]]:
        """Where a message that this queue gives up goes, and as which message."""
        target = queue.policy.dead_letter
        if not isinstance(target, ExchangeTarget):
            return message, self._queues_named(target)
        topic = target.topic
        if topic is None:
            # The routing key stays as a client of AMQP sees it.
            by_name = message.exchange == DEFAULT_EXCHANGE
            key = message.topic.removeprefix(target.queues) if by_name else swap(message.topic)
            topic = target.queues + key if target.exchange == DEFAULT_EXCHANGE else swap(key)
            if target.exchange == DEFAULT_EXCHANGE and not is_within(topic, target.queues):
                return message, []  # who declared the queue may not name that one
        message = msgspec.structs.replace(message, exchange=target.exchange, topic=topic)
        return message, [found for found, _ in self._core.router.route(message)]

    def routes_unstored(self, queue: Queue, message: Message) -> tuple[Message, list[Queue]]:
        """As `routes`, for one that the queue never had, and therefore can't get back."""
        dead, targets = self.routes(queue, message)
        return dead, [found for found in targets if found is not queue]

    def refuses(self, queue: Queue, octets: int) -> bool:
        return bool(self._core.refusing and queue.policy.durable) or (queue.is_full(octets) and queue.may_refuse())

    def overflow_is_refused(self, queue: Queue, octets: int) -> bool:
        """Whether what would have to make room in a full queue finds no place itself."""
        policy = queue.policy
        if policy.overflow != "dead-letter" or not isinstance(policy.dead_letter, str):
            return False
        # What closes a circle is dropped, and so makes room.
        bins = [found for found in self._queues_named(policy.dead_letter) if found is not queue]
        return any(self.refuses(found, octets) for found in bins)

    def bury_refused(self, queue: Queue, message: Message, octets: int, now: float) -> None:
        """What a full queue refuses goes to its dead letters, where there is room; its sender is told all the same."""
        dead, bins = self.routes_unstored(queue, message)
        open_bins = [found for found in bins if not self.refuses(found, octets)]
        if open_bins:
            self.bury_unstored(queue, dead, open_bins, Reason.OVERFLOW, "", now, message)

    def bury_unstored(
        self,
        queue: Queue,
        message: Message,
        targets: Sequence[Queue],
        reason: Reason,
        error: str,
        now: float,
        sent: Message,
    ) -> None:
        """A message that its queue never had goes to the dead letters: a template had no value for it (ruling 10), or
        it was refused. `sent`: as it was, before it got another address."""
        self._core.counts.append((queue.counters, "dead_lettered" if targets else "dropped"))
        if reason is Reason.INVALID:
            self._core.counts.append((queue.counters, "dead_on_arrival"))
        readdressed = sent if sent is not message else None
        extra = died(NO_EXTRA, queue.name, reason, 0, error, now, now, None, 0, readdressed)
        row = offset = length = 0
        for found in targets:
            place = (0, 0, len(message.body) + UNSTORED_OCTETS)
            if found.policy.durable:
                if not row:
                    row, offset, length = self._core.gather.bodies.add(message, self._core.rows.new)
                place = (row, offset, length)
            self._core.gather.octets += place[2]
            self._pend(self._core.gather.pending, found, message, place, now, extra, _priority_in(found, message))

    def move(
        self,
        queue: Queue,
        slot: int,
        target: Queue,
        extra: Extra,
        message: Message | None = None,
        group: str | None = None,
    ) -> None:
        """Stores the same body in another queue; the caller removes it here, which is the same record. `message`:
        it is stored anew, as it must differ. Call only with `_has_place`."""
        entries = queue.entries
        place = (entries.row[slot], entries.offset[slot], entries.length[slot])
        if message is not None or (target.policy.durable and not place[0]):
            message = message or queue.message(slot)
            assert message is not None
            place = (0, 0, len(message.body) + UNSTORED_OCTETS)
            if target.policy.durable:
                place = self._core.gather.moved_bodies.add(message, self._core.rows.new)
        if place[0]:
            self._core.rows.refer(place[0])
        if message is None:
            message = queue.in_memory(slot)
        if group is None:
            group = extra.group or ""
        self._pend(self._core.gather.moved, target, message, place, self._core.now(), extra, group)

    def _pend(
        self,
        pending: list[Pending],
        target: Queue,
        message: Message | None,
        place: tuple[int, int, int],
        now: float,
        extra: Extra,
        group: str | None,
    ) -> None:
        ident = self._core.next_ident
        self._core.next_ident = ident + 1
        number = self._core.group_number(target, group or "", ident) if target.group_template is not None else 0
        expires = now + target.policy.ttl if target.policy.ttl is not None else 0.0
        target.pending_count += 1
        target.pending_octets += place[2]
        carried = self._core.extra_number(extra, target.policy.durable)
        pending.append(Pending(target, ident, message, *place, expires, now, number, carried, 0.0))


def _priority_in(target: Queue, message: Message | None) -> str | None:
    """The name of its priority in that queue; None if priorities mean nothing there."""
    template = target.group_template
    return template.render(Fields(message)) if isinstance(template, PriorityName) and message is not None else None


def _readdressing_octets(message: Message, dead: Message) -> int:
    """How much longer it may be on disk under its new address; the heads of two texts may grow, too."""
    before = len(message.exchange.encode()) + len(message.topic.encode())
    return max(0, len(dead.exchange.encode()) + len(dead.topic.encode()) - before) + 2 * _TEXT_HEAD_OCTETS
