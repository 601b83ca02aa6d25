"""What the whole daemon keeps in memory has limits: bodies in flight, volatile queues, retained messages, names."""

from __future__ import annotations

import pytest

from gateway.errors import BindingsFullError
from gateway.model.message import Message, Properties
from gateway.model.policy import DedupPolicy, QueuePolicy, Seconds
from gateway.transport import Binding, Delivery, Outcome, Verdict
from tests.harness.kernel import GROUP, KEY, Kernel, grouped, on, to

STORED, REFUSED, DUPLICATE, UNROUTED = Outcome.STORED, Outcome.REFUSED, Outcome.DUPLICATE, Outcome.UNROUTED


def outcome(kernel: Kernel, message: Message) -> Outcome:
    answer = kernel.accept(message)
    kernel.run()
    assert answer.outcomes is not None
    return answer.outcomes[0]


# in flight


def test_who_never_settles_does_not_fill_the_memory_and_loses_nothing() -> None:
    kernel = Kernel({"q": QueuePolicy()}, max_memory=10_000)
    worker = kernel.worker("q")
    for n in range(100):
        kernel.send("q", f"{n}:" + "x" * 1000)
    assert [body.partition(":")[0] for body in worker.holding] == [str(n) for n in range(100)]
    kept = sum(len(delivery.message.body) for delivery in kernel.queue("q").flying.values())
    assert kept < 11_000
    assert kernel.core.memory.octets < 12_000
    worker.detach()
    other = kernel.worker("q")
    kernel.run()
    assert other.bodies == worker.bodies
    assert other.done() == 100
    kernel.run()
    assert not kernel.leaks()


@pytest.mark.parametrize("verdict", [Verdict.DONE, Verdict.RETRY, Verdict.DEAD, Verdict.RETURNED])
def test_a_delivery_without_its_body_settles_like_any_other(verdict: Verdict) -> None:
    policy = QueuePolicy(max_deliveries=2, dead_letter="bin")
    kernel = Kernel({"q": policy, "bin": QueuePolicy(max_deliveries=None)}, max_memory=0)
    first = kernel.worker("q", 1)
    kernel.send("q", "body")
    assert first.settle(verdict) == 1
    kernel.run()
    again = kernel.worker("q", 1)
    bin = kernel.worker("bin", 1)
    kernel.run()
    if verdict is Verdict.RETRY:
        again.retry()
        kernel.run()
    assert again.bodies == ([] if verdict in (Verdict.DONE, Verdict.DEAD) else ["body"])
    assert bin.bodies == (["body"] if verdict in (Verdict.DEAD, Verdict.RETRY) else [])
    again.done()
    bin.done()
    kernel.run()
    assert not kernel.leaks()


class Restless:
    """Gives everything back at once and wants it again, from within `deliver`."""

    def __init__(self, verdict: Verdict) -> None:
        self.verdict = verdict
        self.count = 0

    def attach(self, kernel: Kernel, queue: str) -> None:
        self.subscription = kernel.core.attach(queue, self, (), False)
        self.subscription.grant(1)

    def deliver(self, batch: list[Delivery]) -> None:
        self.count += len(batch)
        assert self.count < 10_000, "one dispatch would go on for ever"
        self.subscription.settle([delivery.id for delivery in batch], self.verdict)
        self.subscription.grant(len(batch))

    def closed(self, reason: str) -> None:
        pass


@pytest.mark.parametrize("verdict", [Verdict.RETRY, Verdict.RETURNED])
def test_a_consumer_that_gives_back_within_deliver_does_not_hold_one_dispatch(verdict: Verdict) -> None:
    kernel = Kernel({"q": QueuePolicy(max_deliveries=None), "other": QueuePolicy()})
    restless = Restless(verdict)
    restless.attach(kernel, "q")
    worker = kernel.worker("other")
    kernel.accept(to("q", "again"), to("other", "mine"))
    kernel.commit()
    pokes = kernel.pokes
    kernel.core.dispatch()
    assert 1 <= restless.count < 100
    assert kernel.core.is_dirty
    assert kernel.pokes > pokes, "nothing would bring the next turn"
    assert worker.bodies == ["mine"]
    kernel.core.dispatch()
    assert restless.count < 200


# volatile queues


def test_a_flood_of_a_volatile_queue_is_refused_and_a_small_one_is_spared() -> None:
    queues = {"flood": QueuePolicy(durable=False), "small": QueuePolicy(durable=False), "disk": QueuePolicy()}
    kernel = Kernel(queues, max_memory=1 << 20)
    body = "x" * 10_000
    outcomes = [outcome(kernel, to("flood", body)) for _ in range(200)]
    stored = outcomes.count(STORED)
    assert 90 < stored < 110
    assert outcomes == [STORED] * stored + [REFUSED] * (200 - stored)
    assert outcome(kernel, to("small", "mine")) is STORED
    assert outcome(kernel, to("disk", body)) is STORED
    worker = kernel.worker("flood")
    kernel.run()
    worker.done()
    kernel.run()
    assert outcome(kernel, to("flood", body)) is STORED
    assert kernel.queue("flood").counters.refused == 200 - stored


def test_a_flood_of_a_volatile_queue_that_may_drop_drops_its_own_oldest() -> None:
    dropping = QueuePolicy(durable=False, overflow="drop-oldest", dead_letter="none")
    kernel = Kernel({"flood": dropping, "small": dropping}, max_memory=1 << 20)
    kernel.send("small", "mine")
    for n in range(300):
        assert outcome(kernel, to("flood", f"{n}:" + "x" * 10_000)) is STORED
        assert kernel.core.memory.volatile < 1_200_000
    assert outcome(kernel, to("small", "mine too")) is STORED
    assert kernel.content("small") == ["mine", "mine too"]
    left = [int(body.partition(":")[0]) for body in kernel.content("flood")]
    assert left == list(range(300 - len(left), 300))
    assert kernel.queue("flood").counters.dropped == 300 - len(left)
    for name in ("flood", "small"):
        kernel.queue(name).purge()
    kernel.run()
    assert (kernel.core.memory.volatile, kernel.core.memory.octets) == (0, 0)


# retained messages


def retained(kernel: Kernel, n: int, body: str = "x" * 1000, **fields: object) -> Outcome:
    return outcome(kernel, on(f"r/{n}", body, retain=True, **fields))


def test_retained_messages_beyond_the_limit_are_refused_and_counted() -> None:
    kernel = Kernel({"q": QueuePolicy()}, [("r/#", "q")])
    core = kernel.core
    core.retained.limit = 100_000
    outcomes = [retained(kernel, n) for n in range(100)]
    kept = outcomes.count(STORED)
    assert 20 < kept < 50
    assert outcomes == [STORED] * kept + [REFUSED] * (100 - kept)
    assert len(core.retained) == kept
    assert core.retained.octets <= 100_000
    assert core.refused["retained"] == 100 - kept
    assert kernel.queue("q").depth == kept, "a message that is refused is stored nowhere"
    assert retained(kernel, 0, "another") is STORED, "what it replaces makes room"
    assert outcome(kernel, on("r/99", "x")) is STORED, "without the flag there is nothing to keep"
    assert retained(kernel, 1, "") is STORED
    assert retained(kernel, 99, "y") is STORED, "clearing one made room for another"
    after = kernel.crash().core.retained
    assert (len(after), after.octets) == (len(core.retained), core.retained.octets)


def test_what_waits_for_its_commit_counts_and_counts_no_more_after_it_failed() -> None:
    kernel = Kernel()
    kernel.core.retained.limit = 10_000
    answer = kernel.accept(*[on(f"r/{n}", "x" * 1000, retain=True) for n in range(100)])
    assert kernel.commit_fails()
    assert answer.outcomes == [REFUSED] * 100
    outcomes = kernel.accept(*[on(f"r/{n}", "x" * 1000, retain=True) for n in range(100)])
    kernel.run()
    assert outcomes.outcomes is not None
    assert 3 <= list(outcomes.outcomes).count(UNROUTED) <= 5
    assert kernel.core.retained.octets <= 10_000


def test_retained_messages_that_have_expired_make_room_also_after_a_restart() -> None:
    kernel = Kernel()
    kernel.core.retained.limit = 10_000
    while retained(kernel, len(kernel.core.retained), ttl=5.0) is UNROUTED:
        pass
    kept = len(kernel.core.retained)
    kernel.advance(20)
    assert retained(kernel, 1000) is UNROUTED
    assert kept > 1 and len(kernel.core.retained) == 1
    assert len(kernel.crash().core.retained) == 1


def test_large_properties_count() -> None:
    kernel = Kernel()
    kernel.core.retained.limit = 100_000
    heavy = Properties(headers=(("h", "x" * 30_000),))
    assert [retained(kernel, n, properties=heavy) for n in range(3)] == [UNROUTED, REFUSED, REFUSED]


# names


def test_one_group_too_many_is_refused_until_another_is_empty() -> None:
    kernel = Kernel({"q": QueuePolicy(group=GROUP, max_groups=3)})
    for name in ("a", "b", "c", "a"):
        assert outcome(kernel, grouped("q", "x", name)) is STORED
    assert outcome(kernel, grouped("q", "x", "d")) is REFUSED
    assert outcome(kernel, grouped("q", "x", "c")) is STORED
    assert kernel.core.refused["groups"] == kernel.queue("q").counters.refused == 1
    worker = kernel.worker("q", 1)
    kernel.run()
    worker.grant(1)
    worker.done()
    worker.done()
    kernel.run()
    worker.done()
    kernel.run()
    assert outcome(kernel, grouped("q", "x", "d")) is STORED


def test_one_dedup_key_too_many_is_refused_until_a_window_is_over() -> None:
    policy = QueuePolicy(dedup=DedupPolicy(KEY, Seconds(10)))
    kernel = Kernel({"q": policy})
    kernel.core.max_dedup_keys = 3
    for key in "abc":
        assert outcome(kernel, grouped("q", "x", "", key)) is STORED
    assert outcome(kernel, grouped("q", "x", "", "d")) is REFUSED
    assert outcome(kernel, grouped("q", "x", "", "b")) is DUPLICATE
    assert kernel.core.refused["dedup-keys"] == 1
    kernel.advance(11)
    assert outcome(kernel, grouped("q", "x", "", "d")) is STORED
    assert outcome(kernel, grouped("q", "x", "", "a")) is STORED


# bindings


def test_bindings_beyond_the_limit_are_refused_until_others_are_gone() -> None:
    kernel = Kernel({"q": QueuePolicy()})
    core = kernel.core
    core.max_bindings = 100_000
    made: list[Binding] = []
    with pytest.raises(BindingsFullError):
        for n in range(1000):
            made.append(Binding(queue="q", filter=f"{n}/" + "a/" * 20 + "#"))
            core.bind(made[-1])
    made.pop()
    assert 5 < len(made) < 20
    assert core.refused["bindings"] == 1
    assert outcome(kernel, on("0/" + "a/" * 20 + "x")) is STORED
    for binding in made:
        core.unbind(binding)
    assert core.router.octets == 0
    core.bind(made[0])
    core.bind(made[0])
    before = core.router.octets
    core.bind(Binding(queue="q", filter="plain", literal=True))
    core.unbind(Binding(queue="q", filter="plain", literal=True))
    assert core.router.octets == before
