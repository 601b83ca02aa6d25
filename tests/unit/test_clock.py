"""The one time (ruling 6): deadlines on the monotonic clock, windows on wall time, and what a jump of the wall does."""

from __future__ import annotations

import time

import pytest

from gateway.clock import Clock
from gateway.model.message import Message
from gateway.model.policy import DedupPolicy, QueuePolicy, Seconds
from gateway.storage.memory import MemoryJournal
from gateway.transport import Outcome
from tests.harness.kernel import KEY, Kernel, grouped

DAY = 86400.0
START = 1_000_000_000.0
STORED, DUPLICATE = Outcome.STORED, Outcome.DUPLICATE


class Hands:
    """The two clocks of a machine, set by hand. A reboot would also set the monotonic one back."""

    def __init__(self) -> None:
        self.wall = START
        self.monotonic = 500.0

    def pass_(self, seconds: float) -> None:
        self.wall += seconds
        self.monotonic += seconds


@pytest.fixture
def hands(monkeypatch: pytest.MonkeyPatch) -> Hands:
    hands = Hands()
    monkeypatch.setattr(time, "time", lambda: hands.wall)
    monkeypatch.setattr(time, "monotonic", lambda: hands.monotonic)
    return hands


def start(queues: dict[str, QueuePolicy], journal: MemoryJournal | None = None) -> Kernel:
    """A core on the daemon's own clock, started in the server's order."""
    kernel = Kernel(queues, journal=journal, clock=Clock())  # type: ignore[arg-type]
    kernel.run()
    return kernel


def turn(kernel: Kernel) -> None:
    """Whatever is due now."""
    while kernel.core.next_due() <= kernel.core.now():
        kernel.core.tick()
        kernel.run()
    kernel.run()


def say(kernel: Kernel, key: str, body: str = "x", **fields: object) -> Outcome:
    answer = kernel.accept(grouped("q", body, "a", key, **fields))
    kernel.run()
    assert answer.outcomes is not None
    return answer.outcomes[0]


def test_it_begins_with_the_wall_and_never_before_what_the_journal_knows(hands: Hands) -> None:
    clock = Clock()
    assert clock() == START
    clock.not_before(START - 1)
    assert clock() == START
    clock.not_before(START + 5000)
    assert clock() == START + 5000
    hands.wall = 1.0
    hands.monotonic += 2.5
    assert clock() == START + 5002.5


@pytest.mark.parametrize("jump", [DAY, -DAY])
def test_a_jump_while_running_changes_no_deadline_and_no_window(hands: Hands, jump: float) -> None:
    policy = QueuePolicy(dedup=DedupPolicy(KEY, Seconds(60)), ack_timeout=Seconds(30), dead_letter="none")
    kernel = start({"q": policy})
    worker = kernel.worker("q", credit=2)
    assert say(kernel, "k", "held") is STORED
    assert say(kernel, "later", "delayed", delay=30.0) is STORED
    assert say(kernel, "brief", "expires", ttl=30.0, delay=29.0) is STORED
    hands.wall += jump
    turn(kernel)
    assert (worker.bodies, say(kernel, "k")) == (["held"], DUPLICATE)
    hands.pass_(28.0)
    turn(kernel)
    assert (worker.bodies, kernel.content("q")) == (["held"], ["held", "delayed", "expires"])
    hands.pass_(4.0)
    turn(kernel)
    # The first timed out and came again in the place of the other, which has expired meanwhile.
    assert (len(worker.seen), kernel.queue("q").counters.retried) == (2, 1)
    assert "expires" not in kernel.content("q")
    hands.pass_(27.0)
    assert say(kernel, "k") is DUPLICATE
    hands.pass_(1.5)
    assert say(kernel, "k") is STORED


def test_a_wall_that_was_set_back_between_two_runs_goes_on_from_the_last_commit(hands: Hands) -> None:
    policy = QueuePolicy(dedup=DedupPolicy(KEY, Seconds(60)))
    kernel = start({"q": policy})
    assert say(kernel, "k", "waits", delay=40.0) is STORED
    hands.pass_(10.0)
    assert say(kernel, "other", "brief", ttl=30.0) is STORED
    hands.wall -= DAY
    hands.monotonic = 7.0  # and the machine was started anew
    after = start({"q": policy}, kernel.journal)  # type: ignore[arg-type]
    assert after.core.now() == START + 10
    assert say(after, "k") is DUPLICATE
    hands.pass_(29.0)
    worker = after.worker("q")
    turn(after)
    assert worker.bodies == ["brief"]
    worker.give_back()
    worker.detach()
    hands.pass_(2.0)
    turn(after)
    assert after.content("q") == ["waits"] and after.deaths("dead-letters")[0][1] == "expired"
    worker = after.worker("q")
    turn(after)
    assert worker.bodies == ["waits"]
    hands.pass_(18.0)
    assert say(after, "k") is DUPLICATE
    hands.pass_(1.0)
    assert say(after, "k") is STORED


def test_a_wall_that_was_set_forward_between_two_runs_ends_what_it_says_is_over_and_loses_nothing(hands: Hands) -> None:
    policy = QueuePolicy(dedup=DedupPolicy(KEY, Seconds(60)), group="{header[group]}")
    kernel = start({"q": policy})
    assert say(kernel, "k", "first", delay=3600.0) is STORED
    assert say(kernel, "other", "second") is STORED
    assert say(kernel, "brief", "third", ttl=3600.0) is STORED
    hands.wall += DAY
    after = start({"q": policy}, kernel.journal)  # type: ignore[arg-type]
    turn(after)
    assert after.deaths("dead-letters")[0][1] == "expired"
    worker = after.worker("q")
    turn(after)
    worker.done()
    turn(after)
    assert worker.bodies == ["first", "second"]
    assert say(after, "k") is STORED
    # And back to what it was: time stands where it was, and goes on.
    hands.wall -= DAY
    again = start({"q": policy}, kernel.journal)  # type: ignore[arg-type]
    assert again.core.now() >= START + DAY
    assert say(again, "k") is DUPLICATE


@pytest.mark.parametrize("jump", [DAY, -DAY])
def test_a_queue_that_expires_without_consumers_has_its_whole_time_after_a_start(hands: Hands, jump: float) -> None:
    kernel = start({})
    kernel.core.declare("mine", QueuePolicy(expires=Seconds(600)), "client")
    kernel.send("mine", "kept")
    hands.pass_(500.0)
    kernel.send("dead-letters", "x")
    hands.wall += jump
    after = start({}, kernel.journal)  # type: ignore[arg-type]
    turn(after)
    hands.pass_(599.0)
    turn(after)
    assert after.content("mine") == ["kept"]
    hands.pass_(2.0)
    turn(after)
    assert "mine" not in after.core.queues


def test_whatever_is_committed_says_its_time(hands: Hands) -> None:
    kernel = start({})
    hands.pass_(100.0)
    kernel.accept(Message("lamp", b"on", retain=True, ttl=60.0))
    kernel.run()
    hands.wall -= DAY
    after = start({}, kernel.journal)  # type: ignore[arg-type]
    assert after.core.now() == START + 100
    assert after.core.retained.find("lamp", after.core.now())[0][1].ttl == 60.0
    hands.pass_(61.0)
    assert after.core.retained.find("lamp", after.core.now()) == []


def test_after_a_jump_back_a_restart_keeps_order_in_a_group(hands: Hands) -> None:
    policy = QueuePolicy(group="{header[group]}")
    kernel = start({"q": policy})
    journal = kernel.journal
    for number, jump in enumerate([DAY, -2 * DAY, 0.0, DAY, -DAY]):
        kernel.accept(grouped("q", str(number), "a"))
        kernel.run()
        hands.wall += jump
        kernel = start({"q": policy}, journal)  # type: ignore[arg-type]
    worker = kernel.worker("q", credit=1)
    for _ in range(5):
        kernel.run()
        worker.done()
        worker.grant(1)
    assert worker.bodies == ["0", "1", "2", "3", "4"]
