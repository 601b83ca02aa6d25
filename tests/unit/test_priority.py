"""Priorities: which entry goes next, against a plain model, and over restarts, reloads and dead letters."""

from __future__ import annotations

import random

import pytest

from gateway.errors import GatewayError
from gateway.model.policy import DISCARD, ExchangeTarget, QueuePolicy, Seconds
from gateway.queueing.entries import Entries
from gateway.queueing.priority import MAX_PRIORITY, Prioritized, priority_of
from gateway.transport import Properties
from tests.harness.kernel import GROUP, Kernel, to

POLICY = QueuePolicy(max_priority=5)


@pytest.mark.parametrize("seed", range(60))
def test_the_highest_goes_first_and_the_oldest_of_it(seed: int) -> None:
    rng = random.Random(seed)
    entries = Entries()
    order = Prioritized(entries, str)
    now, ident = 100.0, 0
    waiting: dict[int, tuple[int, int, float]] = {}
    """By slot: priority, ident, due."""
    flying: dict[int, tuple[int, int]] = {}

    def remove(slot: int) -> None:
        order.leave(slot, slot in flying)
        entries.remove(slot)
        if flying.pop(slot, None) is None:
            del waiting[slot]

    for _ in range(400):
        step = rng.choice(["add", "add", "take", "take", "back", "leave", "expire", "time"])
        if step == "add":
            ident += 1
            number = rng.randint(1, 4)
            due = now + rng.choice([1.0, 5.0]) if rng.random() < 0.2 else 0.0
            slot = entries.add(ident, 0, 0, 1, 0.0, 0.0, number, 0)
            order.add(slot, due)
            waiting[slot] = (number, ident, due)
        elif step == "take":
            ready = [(-priority, one, slot) for slot, (priority, one, due) in waiting.items() if due <= now]
            slot = order.peek(None, now)
            assert slot == (min(ready)[2] if ready else 0)
            if slot:
                order.take(slot, None)
                flying[slot] = waiting.pop(slot)[:2]
        elif step == "back" and flying:
            slot = rng.choice(sorted(flying))
            due = now + 2.0 if rng.random() < 0.4 else 0.0
            order.back(slot, due)
            waiting[slot] = (*flying.pop(slot), due)
        elif step == "leave" and flying:
            remove(rng.choice(sorted(flying)))
        elif step == "expire" and waiting:
            remove(rng.choice(sorted(waiting)))
        elif step == "time":
            now += rng.choice([0.5, 1.0, 2.0])
            order.tick(now)
            waiting = {slot: (*one[:2], one[2] if one[2] > now else 0.0) for slot, one in waiting.items()}


@pytest.mark.parametrize(
    ("name", "priority"),
    [("0", 0), ("7", 7), ("255", 255), ("999", MAX_PRIORITY), ("a", 0), ("", 0), (None, 0), ("\u00b2", 0)],
)
def test_the_name_of_a_priority(name: str | None, priority: int) -> None:
    assert priority_of(name) == priority


def send(kernel: Kernel, queue: str, **bodies: int | None) -> None:
    for body, priority in bodies.items():
        kernel.send(queue, body, properties=Properties(priority=priority))


def test_priorities_decide_and_what_is_above_the_most_counts_as_it() -> None:
    kernel = Kernel({"q": POLICY})
    send(kernel, "q", none=None, low=1, high=5, higher=9, negative=-1)
    worker = kernel.worker("q")
    kernel.run()
    assert worker.bodies == ["high", "higher", "low", "none", "negative"]
    worker.retry("low")
    worker.retry("higher")
    kernel.run()
    assert worker.bodies[5:] == ["higher", "low"]


def test_priorities_survive_a_restart_and_a_copy() -> None:
    kernel = Kernel({"q": POLICY})
    send(kernel, "q", a=1, b=3, c=2)
    kernel.compact()
    send(kernel, "q", d=3, e=0)
    after = kernel.crash()
    send(after, "q", f=4)
    worker = after.worker("q")
    after.run()
    assert worker.bodies == ["f", "b", "d", "c", "a", "e"]


def test_a_reload_brings_and_takes_priorities() -> None:
    kernel = Kernel({"q": QueuePolicy()})
    send(kernel, "q", old=3)
    kernel.policies["q"] = POLICY
    kernel.configure()
    send(kernel, "q", low=0, high=5)
    first = kernel.worker("q", 1)
    kernel.run()
    assert first.bodies == ["high"]
    kernel.policies["q"] = QueuePolicy()
    kernel.configure()
    second = kernel.worker("q")
    kernel.run()
    assert second.bodies == ["old", "low"]
    first.detach()
    kernel.run()
    assert second.bodies == ["old", "low", "high"]


def test_a_dead_letter_keeps_its_priority() -> None:
    dead = ExchangeTarget("", "dead")
    kernel = Kernel({"q": QueuePolicy(dead_letter=dead), "dead": QueuePolicy(max_priority=5, dead_letter=DISCARD)})
    send(kernel, "q", low=1, high=5)
    taker = kernel.worker("q")
    kernel.run()
    taker.dead()
    kernel.run()
    worker = kernel.worker("dead")
    kernel.run()
    assert worker.bodies == ["high", "low"]


@pytest.mark.parametrize("dead", ["dead", ExchangeTarget("", "dead")])
def test_a_dead_letter_whose_body_is_on_the_disk_alone_keeps_its_priority(dead: str | ExchangeTarget) -> None:
    policy = QueuePolicy(dead_letter=dead, ttl=Seconds(5), group="{header[group]}")
    kernel = Kernel({"q": policy, "dead": QueuePolicy(max_priority=5, dead_letter=DISCARD)})
    for body, priority in {"low": 1, "high": 5, "lower": 0}.items():
        kernel.send("q", body, properties=Properties(priority=priority, headers=(("group", "4"),)))
    after = kernel.crash()
    after.advance(10.0)
    after.run()
    worker = after.worker("dead")
    after.run()
    assert worker.bodies == ["high", "low", "lower"]


def test_a_delayed_one_waits_and_holds_up_nobody() -> None:
    kernel = Kernel({"q": POLICY})
    kernel.accept(to("q", "late", properties=Properties(priority=5), delay=10.0))
    send(kernel, "q", now=1)
    worker = kernel.worker("q")
    kernel.run()
    assert worker.bodies == ["now"]
    kernel.advance(10.0)
    kernel.run()
    assert worker.bodies == ["now", "late"]


def test_what_expires_goes_whatever_its_priority() -> None:
    kernel = Kernel({"q": QueuePolicy(max_priority=5, ttl=Seconds(1), dead_letter=DISCARD)})
    send(kernel, "q", a=1, b=5)
    kernel.advance(3.0)
    kernel.run()
    assert kernel.content("q") == []


def test_groups_and_priorities_exclude_each_other() -> None:
    with pytest.raises(GatewayError, match="not both"):
        Kernel({"q": QueuePolicy(max_priority=5, group=GROUP)})
