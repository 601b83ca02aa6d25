"""Owns History: all that happened between the clients and a daemon that is killed now and then, and what it proves.

Its rule: an event is told when it happens, by one thread: what clients do before its octets are written, what they see
when they see it. A broken promise is found at that event or by `check`, and is named with its message.

What is judged, and what is not:

- A message is a group and a number. The one publisher of a group sends the numbers in order; after a lost connection
  it begins again at the lowest one that was not answered. So the order of commit in a group is that of the numbers.
- At a place (a queue, a session, a share) a message is settled once a consumer has said so, until it comes again.
  It may come again only if its holder gave it back or was lost, or if its settler was lost or the daemon killed since
  and nothing proves the settlement durable (ruling 13: a later accept of the settler was answered).
- Order, one in flight: a message comes only while nothing else of its group is held, when all before it are settled,
  and within one run of the daemon never after a later one. After a kill a group may begin again at any message whose
  settlement is not proven durable; from there on it is in order again.
- Order, N in flight: all to one consumer, at most N, first deliveries in order. Sessions: first deliveries in order.
- Once: with QoS 2 both ways a message comes to the one that has subscribed, and never again, whatever was killed.
- Places without dedup may hold two copies of what was sent twice; of such messages only delivery is judged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import IO, NamedTuple


class Key(NamedTuple):
    """One message: its group, and its place among those that the group's one publisher sends."""

    group: str
    number: int

    def __str__(self) -> str:
        return f"{self.group}#{self.number}"

    @property
    def stream(self) -> str:
        """What the group belongs to: it decides where the message goes."""
        return self.group.partition("/")[0]


class Place(NamedTuple):
    """Where messages wait for consumers.

    in_flight: of a group at a time; 0 if it has no groups. ordered: first deliveries are, although it has none.
    dedup: a message that is sent twice is there once. dead: where its dead letters go. once: nothing comes again.
    """

    name: str
    in_flight: int = 0
    ordered: bool = False
    dedup: bool = True
    dead: str = ""
    once: bool = False


class Event(NamedTuple):
    """kind: `begin`, `end` (of a run of the daemon), `send`, `stored`, `refused`, `deliver`, `done`, `retry`, `dead`,
    `lost` (a consumer), `mark`, `durable` (what its consumer had settled before that mark is).
    who: publisher or consumer, one for each connection. number: of the message, or of the mark.
    again: whether a delivery is marked as one that may have been seen before: `yes`, `no`, `-` if nothing tells."""

    kind: str
    place: str = "-"
    who: str = "-"
    group: str = "-"
    number: int = 0
    again: str = "-"

    def line(self) -> str:
        return f"{self.kind} {self.place} {self.who} {self.group} {self.number} {self.again}\n"

    @classmethod
    def read(cls, line: str) -> Event:
        """Raises ValueError for a line that is none."""
        kind, place, who, group, number, again = line.split()
        return cls(kind, place, who, group, int(number), again)


SENT, STORED, TWICE = 1, 2, 4
SEEN, DONE, DEAD, DURABLE = 1, 2, 4, 8


class _Flags:
    """Some bits for each number of a group."""

    __slots__ = ("bits",)

    def __init__(self) -> None:
        self.bits = bytearray()

    def __getitem__(self, number: int) -> int:
        return self.bits[number] if number < len(self.bits) else 0

    def set(self, number: int, flags: int) -> None:
        if number >= len(self.bits):
            self.bits.extend(bytes(number + 1 - len(self.bits)))
        self.bits[number] |= flags

    def clear(self, number: int, flags: int) -> None:
        self.bits[number] &= ~flags


class _Lane:
    """One group at one place. next: the lowest number that is not settled. first: the lowest never seen.
    latest: the highest that came in this run."""

    __slots__ = ("first", "flags", "held", "latest", "next", "settlers")

    def __init__(self) -> None:
        self.flags = _Flags()
        self.next = 0
        self.first = 0
        self.held: dict[int, str] = {}
        self.settlers: dict[int, str] = {}
        """In this run."""
        self.latest = -1

    def restart(self) -> None:
        self.held.clear()
        self.settlers.clear()
        self.latest = -1

    def saw(self, number: int, who: str) -> None:
        self.flags.set(number, SEEN)
        self.flags.clear(number, DONE | DEAD)
        self.next = min(self.next, number)
        self.latest = max(self.latest, number)
        self.held[number] = who
        self.settlers.pop(number, None)
        while self.flags[self.first] & SEEN:
            self.first += 1

    def settled(self, number: int, flag: int, who: str) -> None:
        self.flags.set(number, flag)
        self.settlers[number] = who
        while self.flags[self.next] & (DONE | DEAD):
            self.next += 1


class History:
    """`routes`: the places of each stream. `file` gets every event as a line; `History.replay` judges it again."""

    def __init__(
        self, places: Iterable[Place], routes: Mapping[str, Sequence[str]], file: IO[str] | None = None
    ) -> None:
        self.places = {place.name: place for place in places}
        self.routes = routes
        self.faults: list[str] = []
        self.run = 0
        self.messages = self.delivered = self.again = self.durable = self.outstanding = 0
        """again: deliveries of what had been seen at its place before. durable: settlements that are proven so.
        outstanding: what was answered for and is not settled, counted at each place."""
        self.stored = 0
        """Messages answered with success."""
        self.on_stored: Callable[[int], object] = lambda stored: None
        self.duplicates = 0
        """Answers with success for what had been answered with success before: the daemon refused a copy."""
        self.once = 0
        """Deliveries where nothing may come again."""
        self.file = file
        self._sent: dict[str, _Flags] = {}
        self._lanes: dict[str, dict[str, _Lane]] = {name: {} for name in self.places}
        self._alive: set[str] = set()
        """Consumers of this run that were seen and not lost."""
        self._unmarked: dict[str, list[tuple[str, Key]]] = {}
        self._marked: dict[tuple[str, int], list[tuple[str, Key]]] = {}
        self._sources = {place.dead: place.name for place in self.places.values() if place.dead}

    @classmethod
    def replay(cls, places: Iterable[Place], routes: Mapping[str, Sequence[str]], lines: Iterable[str]) -> History:
        """The history that was written to a file."""
        history = cls(places, routes)
        for line in lines:
            history.tell(Event.read(line))
        return history

    def tell(self, event: Event) -> None:
        """Raises ValueError for what can't be: a consumer that settles what it does not hold."""
        if self.file is not None:
            self.file.write(event.line())
        kind = event.kind
        key = Key(event.group, event.number)
        if kind == "deliver":
            self._deliver(event, key)
        elif kind in ("done", "dead", "retry"):
            self._settle(event, key)
        elif kind in ("send", "stored", "refused"):
            self._publish(kind, key)
        elif kind == "lost":
            self._lose(event.who)
        elif kind == "mark":
            self._marked[event.who, event.number] = self._unmarked.pop(event.who, [])
        elif kind == "durable":
            self._prove(event.who, event.number)
        elif kind == "begin":
            self.run += 1
        elif kind == "end":
            self._end()
        else:
            raise ValueError(f"{kind!r} is no event")

    # publishers

    def _publish(self, kind: str, key: Key) -> None:
        flags = self._sent.setdefault(key.group, _Flags())
        if kind == "send":
            if key.number > len(flags.bits):
                raise ValueError(f"{key} was sent before {len(flags.bits)}")
            self.messages += not flags[key.number]
            flags.set(key.number, TWICE if flags[key.number] else SENT)
            if key.stream not in self.routes:
                raise ValueError(f"{key} goes nowhere")
        elif kind == "refused":
            self._fault(key, "was refused")
        elif not flags[key.number] & SENT:
            self._fault(key, "was answered and never sent")
        elif flags[key.number] & STORED:
            self.duplicates += 1
        else:
            self.stored += 1
            self.outstanding += len(self.routes[key.stream])
            flags.set(key.number, STORED)
            self.on_stored(self.stored)

    # consumers

    def _lane(self, place: str, group: str) -> _Lane:
        lanes = self._lanes[place]
        if group not in lanes:
            lanes[group] = _Lane()
        return lanes[group]

    def _deliver(self, event: Event, key: Key) -> None:
        place, who, number = self.places[event.place], event.who, key.number
        self._alive.add(who)
        self.delivered += 1
        sent = self._sent[key.group][number] if key.group in self._sent else 0
        if not sent:
            self._fault(key, f"came to {place.name} and was never sent")
            return
        source = self._sources.get(place.name, "")
        if (source or place.name) not in self.routes[key.stream]:
            self._fault(key, f"came to {place.name}, where it does not belong")
        lane = self._lane(place.name, key.group)
        seen = lane.flags[number] & SEEN
        self.again += bool(seen)
        self.once += place.once
        if place.once and seen:
            self._fault(key, f"came to {place.name} a second time")
        elif place.dedup or not sent & TWICE:
            self._judge_copy(event, key, lane)
        if source and not self._lane(source, key.group).flags[number] & DEAD:
            self._fault(key, f"is among the dead letters in {place.name}, and nobody had rejected it")
        if place.dead and self._lane(place.dead, key.group).flags[number] & SEEN:
            self._fault(key, f"came to {place.name} although it was among the dead letters")
        if place.in_flight == 1:
            self._judge_single(event, key, lane)
        elif place.in_flight:
            self._judge_several(event, key, lane, place.in_flight)
        if (place.in_flight > 1 or place.ordered) and not seen and number > lane.first:
            self._fault(key, f"came to {place.name} for the first time before {lane.first}")
        if lane.flags[number] & (DONE | DEAD) and not source:
            self.outstanding += 1
        lane.saw(number, who)

    def _judge_copy(self, event: Event, key: Key, lane: _Lane) -> None:
        number, where = key.number, event.place
        settler = lane.settlers.get(number)
        if number in lane.held:
            self._fault(key, f"came to {where} a second time while {lane.held[number]} held it")
        elif lane.flags[number] & DURABLE:
            self._fault(key, f"came to {where} although its settlement was durable")
        elif settler in self._alive:
            self._fault(key, f"came to {where} although {settler} had settled it and is still there")
        if event.again == "no" and lane.flags[number] & SEEN:
            self._fault(key, f"came to {where} as new although it had been delivered: a second copy")

    def _judge_single(self, event: Event, key: Key, lane: _Lane) -> None:
        for number, who in lane.held.items():
            if number != key.number:
                self._fault(key, f"came to {event.place} while {who} held {number}")
        if key.number < lane.latest:
            self._fault(key, f"came to {event.place} after {lane.latest} in one run")
        elif key.number > lane.next:
            self._fault(key, f"came to {event.place} before {lane.next} was settled")

    def _judge_several(self, event: Event, key: Key, lane: _Lane, limit: int) -> None:
        others = {who for who in lane.held.values() if who != event.who}
        if others:
            self._fault(key, f"came to {event.place} while {min(others)} held others of its group")
        if len(lane.held.keys() | {key.number}) > limit:
            self._fault(key, f"came to {event.place} as one more than {limit} in flight")

    def _settle(self, event: Event, key: Key) -> None:
        lane = self._lane(event.place, key.group)
        if lane.held.get(key.number) == event.who:
            del lane.held[key.number]
        elif self.places[event.place].dedup or not self._sent[key.group][key.number] & TWICE:
            raise ValueError(f"{event.who} does not hold {key}")
        else:
            return  # it held two copies, and has settled one already
        if event.kind != "retry":
            self.outstanding -= event.place not in self._sources
            lane.settled(key.number, DONE if event.kind == "done" else DEAD, event.who)
            self._unmarked.setdefault(event.who, []).append((event.place, key))

    def _lose(self, who: str) -> None:
        self._alive.discard(who)
        self._unmarked.pop(who, None)
        for lanes in self._lanes.values():
            for lane in lanes.values():
                for number in [number for number, holder in lane.held.items() if holder == who]:
                    del lane.held[number]

    def _prove(self, who: str, mark: int) -> None:
        for place, key in self._marked.pop((who, mark)):
            lane = self._lane(place, key.group)
            # What came again meanwhile is judged by that delivery: its settlement counts no more.
            if lane.flags[key.number] & (DONE | DEAD):
                lane.flags.set(key.number, DURABLE)
                self.durable += 1

    def _end(self) -> None:
        self._alive.clear()
        self._unmarked.clear()
        self._marked.clear()
        for lanes in self._lanes.values():
            for lane in lanes.values():
                lane.restart()

    def _fault(self, key: Key, text: str) -> None:
        self.faults.append(f"run {self.run}: {key} {text}")

    # the end

    def missing(self) -> list[str]:
        """What is not where it must end: each message that was answered for or seen, settled at all of its places,
        and each dead letter settled, too."""
        found = []
        for group, sent in self._sent.items():
            for name in self.routes[Key(group, 0).stream]:
                lane = self._lane(name, group)
                for number in range(lane.next, len(sent.bits)):
                    flags = lane.flags[number]
                    if flags & (DONE | DEAD):
                        continue
                    if flags & SEEN:
                        found.append(f"{Key(group, number)} was given back at {name} and did not come again")
                    elif sent[number] & STORED:
                        found.append(f"{Key(group, number)} was answered for and never came to {name}")
                if dead := self.places[name].dead:
                    found += self._unburied(lane, self._lane(dead, group), group, dead)
        return found

    @staticmethod
    def _unburied(lane: _Lane, dead: _Lane, group: str, name: str) -> list[str]:
        return [
            f"{Key(group, number)} was rejected and never came to {name}"
            for number, flags in enumerate(lane.flags.bits)
            if flags & DEAD and not dead.flags[number] & DONE
        ]

    def check(self) -> list[str]:
        """All that was wrong, once everything is drained."""
        return self.faults + self.missing()
