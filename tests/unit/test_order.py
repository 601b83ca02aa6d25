"""Which entry goes out next: each order against a plain model of it, under random steps (ruling 18)."""

from __future__ import annotations

import random

import pytest

from gateway.queueing.entries import Entries
from gateway.queueing.ordering import Competing, Grouped, Order
from gateway.queueing.priority import Prioritized

PRIORITY = 0
"""Instead of a limit: a queue with priorities."""
KINDS = (None, PRIORITY, 1, 3)


def order_of(limit: int | None, entries: Entries) -> Order:
    if limit is None:
        return Competing(entries)
    return Grouped(entries, limit) if limit else Prioritized(entries, str)


class Model:
    """All entries in a list, and the rules written out."""

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        """None: no groups. PRIORITY: the numbers of groups are priorities."""
        self.entries: list[dict[str, object]] = []
        self.blocked: dict[int, float] = {}
        self.parked: set[int] = set()
        self.draining: set[int] = set()

    def group(self, number: int) -> list[dict[str, object]]:
        return [entry for entry in self.entries if entry["group"] == number]

    def ready(self, holder: object, now: float) -> set[int]:
        """All that this consumer may have next."""
        if not self.limit:
            waiting = [entry for entry in self.entries if entry["holder"] is None and float(entry["due"]) <= now]  # type: ignore[arg-type]
            if self.limit == PRIORITY:
                waiting.sort(key=lambda entry: -int(entry["group"]))  # type: ignore[call-overload]
            return {int(entry["slot"]) for entry in waiting[:1]}  # type: ignore[call-overload]
        found: set[int] = set()
        for number in {int(entry["group"]) for entry in self.entries}:  # type: ignore[call-overload]
            mine = self.group(number)
            flying = [entry for entry in mine if entry["holder"] is not None]
            waiting = [entry for entry in mine if entry["holder"] is None]
            if not waiting or number in self.parked or self.blocked.get(number, 0.0) > now:
                continue
            if flying and (
                any(entry["holder"] is not holder for entry in flying)
                or number in self.draining
                or len(flying) >= self.limit
            ):
                continue
            if float(waiting[0]["due"]) <= now:  # type: ignore[arg-type]
                found.add(int(waiting[0]["slot"]))  # type: ignore[call-overload]
        return found


def life(seed: int, limit: int | None) -> None:
    rng = random.Random(seed)
    entries = Entries()
    order = order_of(limit, entries)
    model = Model(limit)
    holders = [object(), object(), object()]
    now = 100.0
    ident = 0
    by_slot: dict[int, dict[str, object]] = {}

    def leave(entry: dict[str, object]) -> None:
        slot = int(entry["slot"])  # type: ignore[call-overload]
        number = int(entry["group"])  # type: ignore[call-overload]
        mine = model.group(number)
        is_waited_for = entry["due"] and entry["due"] == model.blocked.get(number)
        if entry["holder"] is None and (mine[0] is entry or is_waited_for):
            model.blocked.pop(number, None)  # what it waited for is gone
        order.leave(slot, entry["holder"] is not None)
        entries.remove(slot)
        model.entries.remove(entry)
        del by_slot[slot]
        if parked_for.get(number) == slot:
            model.parked.discard(number)
            del parked_for[number]
        if not any(other["holder"] is not None for other in model.group(number)):
            model.draining.discard(number)
        if not model.group(number):
            model.blocked.pop(number, None)

    parked_for: dict[int, int] = {}
    for _ in range(300):
        flying = [entry for entry in model.entries if entry["holder"] is not None]
        waiting = [entry for entry in model.entries if entry["holder"] is None]
        step = rng.choice(
            ["add", "add", "add", "take", "take", "take", "take", "back", "leave", "expire", "time", "park", "forget"]
            + ["reorder"] * (rng.random() < 0.2)
        )
        if step == "add":
            ident += 1
            number = rng.randint(1, 4)
            due = now + rng.choice([1.0, 5.0]) if rng.random() < 0.15 else 0.0
            slot = entries.add(ident, 0, 0, 1, 0.0, 0.0, number, 0)
            order.add(slot, due)
            by_slot[slot] = {"slot": slot, "ident": ident, "group": number, "due": due, "holder": None}
            model.entries.append(by_slot[slot])
        elif step == "take":
            holder = rng.choice(holders)
            allowed = model.ready(holder, now)
            slot = order.peek(holder, now)
            assert (slot in allowed) if allowed else not slot, (slot, allowed)
            if slot:
                order.take(slot, holder)
                by_slot[slot]["holder"] = holder
        elif step == "back" and flying:
            entry = rng.choice(flying)
            number = int(entry["group"])  # type: ignore[call-overload]
            due = now + rng.choice([1.0, 3.0]) if rng.random() < 0.4 else 0.0
            order.back(int(entry["slot"]), due)  # type: ignore[call-overload]
            entry["holder"] = None
            entry["due"] = due
            if model.limit:
                if due:
                    model.blocked[number] = max(model.blocked.get(number, 0.0), due)
                model.draining.add(number)
                if not any(other["holder"] is not None for other in model.group(number)):
                    model.draining.discard(number)
                if isinstance(order, Grouped) and rng.random() < 0.2:
                    order.park(int(entry["slot"]))  # type: ignore[call-overload]
                    model.parked.add(number)
                    parked_for.setdefault(number, int(entry["slot"]))  # type: ignore[call-overload]
        elif step == "leave" and flying:
            leave(rng.choice(flying))
        elif step == "expire" and waiting and rng.random() < 0.5:
            leave(rng.choice(waiting))
        elif step == "time":
            now += rng.choice([0.5, 1.0, 2.0])
            order.tick(now)
            model.blocked = {number: due for number, due in model.blocked.items() if due > now}
        elif step == "park" and isinstance(order, Grouped) and model.parked:
            number = rng.choice(sorted(model.parked))
            order.release(number)
            model.parked.discard(number)
            del parked_for[number]
        elif step == "forget":
            holder = rng.choice(holders)
            held = [entry for entry in flying if entry["holder"] is holder]
            order.forget(holder, [int(entry["slot"]) for entry in held])  # type: ignore[call-overload]
            holders[holders.index(holder)] = object()
            if model.limit:
                model.draining |= {int(entry["group"]) for entry in held}  # type: ignore[call-overload]
        elif step == "reorder":
            before, now_limit = order, rng.choice(KINDS)
            order = order_of(now_limit, entries)
            for slot in entries.slots():
                order.add(slot, before.due(slot) if before.due(slot) > now else 0.0)
            order.adopt([int(entry["slot"]) for entry in flying])  # type: ignore[call-overload]
            model.limit = now_limit
            model.blocked.clear()
            model.parked.clear()
            parked_for.clear()
            model.draining = {int(entry["group"]) for entry in flying}  # type: ignore[call-overload]
            if not now_limit:
                model.draining.clear()
        if isinstance(order, Grouped):
            # A delayed follower that was looked at holds its group until it is free: so may the model.
            for number, flight in order._flights.items():
                if flight.draining:
                    model.draining.add(number)
    # In the end everything can be had, in its order.
    for entry in [entry for entry in model.entries if entry["holder"] is not None]:
        leave(entry)
    now += 100.0
    order.tick(now)
    if isinstance(order, Grouped):
        for number in list(order.parked):
            order.release(number)
    holder = object()
    got: list[tuple[int, int]] = []
    while slot := order.peek(holder, now):
        order.take(slot, holder)
        got.append((int(by_slot[slot]["group"]), int(by_slot[slot]["ident"])))  # type: ignore[call-overload]
        order.leave(slot, True)
        entries.remove(slot)
    assert len(got) == len(model.entries)
    if model.limit is None:
        assert [ident for _, ident in got] == sorted(ident for _, ident in got)
    elif not model.limit:
        assert got == sorted(got, key=lambda one: (-one[0], one[1]))
    for number in range(1, 5):
        mine = [ident for group, ident in got if group == number]
        assert mine == sorted(mine)
    if isinstance(order, Grouped):
        assert not order.heads and not order._flights and not order.parked and not order.blocked and not order._due
        assert set(order.emptied) <= {1, 2, 3, 4}


@pytest.mark.parametrize("limit", [*KINDS, 2])
def test_the_next_entry_is_the_one_that_the_rules_allow(limit: int | None) -> None:
    for seed in range(150):
        life(seed, limit)


def test_competing_goes_by_age_whatever_came_back_when() -> None:
    entries = Entries()
    order = Competing(entries)
    slots = [entries.add(ident, 0, 0, 1, 0, 0, 0, 0) for ident in range(1, 6)]
    for slot in slots:
        order.add(slot, 0)
    taken = []
    for _ in range(4):
        taken.append(order.peek(None, 0))
        order.take(taken[-1], None)
    for slot in (slots[3], slots[1]):
        order.back(slot, 0)
    rest = []
    while slot := order.peek(None, 0):
        order.take(slot, None)
        rest.append(slot)
    assert rest == [slots[1], slots[3], slots[4]]


def test_the_next_group_is_found_whatever_stands_before_it() -> None:
    entries = Entries()
    order = Grouped(entries, 1)
    for number in range(1, 20_001):
        for part in range(2):
            order.add(entries.add(2 * number + part, 0, 0, 1, 0, 0, number, 0), 0)
    holder = object()
    for _ in range(20_000):
        order.take(order.peek(holder, 0), holder)
    assert order.peek(holder, 0) == 0
    new = entries.add(50_000, 0, 0, 1, 0, 0, 30_000, 0)
    order.add(new, 0)
    assert order.peek(object(), 0) == new
