"""`ack: delivered` in the core: a call is answered when the link's consumer has settled it, or its time is over."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from msgspec import structs

from gateway.config import links
from gateway.model.policy import QueuePolicy
from gateway.transport import Binding, Message, Offer, Options, Outcome, StateChange, Verdict
from tests.harness.kernel import Kernel, Worker, on

DELIVERED = "link.plant:delivered"
STORED, REFUSED, UNROUTED = Outcome.STORED, Outcome.REFUSED, Outcome.UNROUTED
WITHIN = 10.0


def kernel_with_link(target: str = "{topic}", **policy: Any) -> Kernel:
    """`t/#` goes to the link and is acknowledged when it is delivered; `q/#` to a durable queue."""
    beside = structs.replace(links._awaited(QueuePolicy(group="{topic}")), **policy)
    kernel = Kernel({"link.plant": QueuePolicy(group="{topic}"), DELIVERED: beside, "q": QueuePolicy()}, [("q/#", "q")])
    options = Options(target=target, within=WITHIN)
    kernel.core.bind(Binding(queue=DELIVERED, filter="t/#", owner="config", options=options))
    kernel.run()
    return kernel


def link(kernel: Kernel, credit: int = 1 << 30) -> Worker:
    return kernel.worker(DELIVERED, credit)


def settle(kernel: Kernel, worker: Worker, verdict: Verdict, *bodies: str) -> None:
    worker.settle(verdict, *bodies)
    kernel.run()


def test_a_sender_is_answered_when_the_link_is_done_and_not_before() -> None:
    kernel = kernel_with_link("up/{topic[1]}")
    answer = kernel.accept(on("t/1"))
    kernel.run()
    assert answer.outcomes is None
    worker = link(kernel)
    kernel.run()
    assert answer.outcomes is None
    assert [seen.options.target for seen in worker.seen] == ["up/1"]
    settle(kernel, worker, Verdict.DONE)
    assert answer.outcomes == [STORED]
    assert kernel.leaks() == []


@pytest.mark.parametrize("verdict", [Verdict.RETRY, Verdict.DEAD, Verdict.INVALID])
def test_what_the_link_does_not_deliver_is_refused_and_is_no_dead_letter(verdict: Verdict) -> None:
    kernel = kernel_with_link()
    worker = link(kernel)
    answer = kernel.accept(on("t/1"))
    kernel.run()
    settle(kernel, worker, verdict)
    kernel.advance(100)
    assert answer.outcomes == [REFUSED]
    assert len(worker.seen) == 1
    assert kernel.content("dead-letters") == []
    assert kernel.queue(DELIVERED).counters.refused == 1
    assert kernel.queue(DELIVERED).counters.dropped == 0
    assert kernel.leaks() == []


def test_what_is_given_back_unused_is_tried_again_in_its_time() -> None:
    kernel = kernel_with_link()
    answer = kernel.accept(on("t/1", "1"), on("t/2", "2"))
    first = link(kernel)
    kernel.run()
    first.detach(lost=True)  # the oldest may have been what cost the connection
    kernel.run()
    second = link(kernel)
    kernel.run()
    assert (first.bodies, second.bodies) == (["1", "2"], ["2"])
    settle(kernel, second, Verdict.DONE)
    assert answer.outcomes == [REFUSED, STORED]


def test_a_link_that_is_down_has_its_time_and_gets_nothing_that_was_refused() -> None:
    kernel = kernel_with_link()
    answer = kernel.accept(on("t/1"))
    kernel.run()
    kernel.advance(WITHIN - 0.1)
    assert answer.outcomes is None
    kernel.advance(0.1)
    assert answer.outcomes == [REFUSED]
    worker = link(kernel)
    kernel.run()
    assert worker.seen == []
    assert kernel.queue(DELIVERED).counters.expired == 1
    assert kernel.leaks() == []


def test_what_is_in_flight_when_its_time_is_over_is_refused_and_its_settlement_comes_too_late() -> None:
    kernel = kernel_with_link()
    worker = link(kernel)
    answer = kernel.accept(on("t/1", "1"))
    kernel.run()
    (delivery,) = worker.seen
    assert worker.subscription.holds(delivery.id)
    kernel.advance(WITHIN)
    assert answer.outcomes == [REFUSED]
    assert not worker.subscription.holds(delivery.id)
    later = kernel.accept(on("t/1", "2"))
    kernel.run()
    assert worker.bodies == ["1", "2"]
    assert worker.done() == 1
    kernel.run()
    assert later.outcomes == [STORED]
    assert kernel.queue(DELIVERED).counters.stale == 1


def test_others_do_not_wait_for_it() -> None:
    kernel = kernel_with_link()
    awaited = kernel.accept(on("t/1"))
    kernel.run()
    stored = kernel.accept(on("q/1"))
    kernel.run()
    assert (awaited.outcomes, stored.outcomes) == (None, [STORED])


def test_a_batch_is_answered_when_all_of_it_is_known() -> None:
    kernel = kernel_with_link()
    worker = link(kernel)
    answer = kernel.accept(on("t/1", "1"), on("q/1", "2"), on("t/2", "3"), on("nobody", "4"))
    kernel.run()
    assert kernel.content("q") == ["2"]
    settle(kernel, worker, Verdict.DEAD, "3")
    assert answer.outcomes is None
    settle(kernel, worker, Verdict.DONE, "1")
    assert answer.outcomes == [STORED, STORED, REFUSED, UNROUTED]


def test_each_topic_keeps_its_order() -> None:
    kernel = kernel_with_link()
    worker = link(kernel)
    for body in "abc":
        kernel.accept(on("t/1", body + "1"), on("t/2", body + "2"))
    kernel.run()
    assert worker.bodies == ["a1", "a2"]
    settle(kernel, worker, Verdict.DONE, "a1")
    assert worker.bodies == ["a1", "a2", "b1"]


def test_nothing_of_it_is_stored() -> None:
    kernel = kernel_with_link("up/{topic[1]}")
    worker = link(kernel)
    kernel.accept(on("t/1", retain=True, ttl=100.0, delay=1.0), on("t/2"))
    commit = kernel.begin()
    assert commit is not None
    assert (commit.record, commit.bodies, commit.state) == (b"", [], [])
    kernel.end(commit)
    kernel.advance(2)
    worker.done()
    assert kernel.begin() is None
    assert len(kernel.core.retained) == 0
    assert [delivery.message.retain for delivery in worker.seen] == [False, True]


def test_a_store_that_refuses_does_not_hinder_it() -> None:
    kernel = kernel_with_link()
    worker = link(kernel)
    kernel.core.refusing = "the store is full"
    awaited, stored = kernel.accept(on("t/1", retain=True)), kernel.accept(on("q/1"))
    for accept in kernel.core.take_volatile():
        accept.resolve(accept.outcomes, False)
    kernel.dispatch()
    assert (awaited.outcomes, stored.outcomes) == (None, [REFUSED])
    worker.done()
    kernel.dispatch()
    assert awaited.outcomes == [STORED]


def test_a_failed_commit_refuses_it_and_the_link_never_sees_it() -> None:
    kernel = kernel_with_link()
    worker = link(kernel)
    stored, awaited = kernel.accept(on("q/1")), kernel.accept(on("t/1", "1"))
    assert kernel.begin() is not None
    later = kernel.accept(on("t/1", "2"))
    kernel.fail()
    assert (stored.outcomes, awaited.outcomes) == ([REFUSED], [REFUSED])
    kernel.run()
    assert worker.bodies == ["2"]
    settle(kernel, worker, Verdict.DONE)
    assert later.outcomes == [STORED]
    assert kernel.leaks() == []


@pytest.mark.parametrize("durable", [True, False])
def test_what_another_queue_would_keep_is_refused(durable: bool) -> None:
    kernel = kernel_with_link()
    worker = link(kernel)
    kernel.core.declare("mine", QueuePolicy(durable=durable), "client")
    kernel.core.bind(Binding(queue="mine", filter="t/1", owner="client"))
    kernel.run()
    both, alone = kernel.accept(on("t/1", "1")), kernel.accept(on("t/2", "2"))
    kernel.run()
    assert both.outcomes == [REFUSED]
    assert worker.bodies == ["2"]
    assert kernel.content("mine") == []
    assert kernel.core.refused["delivered-and-stored"] == 1
    settle(kernel, worker, Verdict.DONE)
    assert alone.outcomes == [STORED]


def test_subscribers_of_qos_0_have_it_too() -> None:
    kernel = kernel_with_link()
    kernel.core.declare("mqtt.c", QueuePolicy(durable=False), "mqtt")
    subscriber = kernel.worker("mqtt.c", live=True)
    kernel.core.bind(Binding(queue="mqtt.c", filter="t/#", owner="mqtt", options=Options(qos=0)))
    worker = link(kernel)
    answer = kernel.accept(on("t/1", "1"))
    kernel.run()
    settle(kernel, worker, Verdict.DONE)
    assert subscriber.bodies == ["1"]
    assert answer.outcomes == [STORED]


def test_a_target_without_a_value_is_refused() -> None:
    kernel = kernel_with_link("{header[site]}")
    answer = kernel.accept(on("t/1"))
    kernel.run()
    assert answer.outcomes == [REFUSED]
    assert kernel.core.refused["invalid"] == 1
    assert kernel.content("dead-letters") == []


def test_nobody_waits_for_qos_0_that_has_no_answer() -> None:
    kernel = kernel_with_link()
    answer = kernel.accept(on("t/1", "1", qos=0), on("q/1"), offer=Offer(drops_qos0=True))
    asked = kernel.accept(on("t/2", "2", qos=0))
    kernel.run()
    assert (answer.outcomes, asked.outcomes) == ([STORED, STORED], None)
    kernel.advance(WITHIN)
    assert asked.outcomes == [REFUSED]
    worker = link(kernel)
    kernel.run()
    assert worker.seen == []
    assert kernel.queue(DELIVERED).counters.dropped == 1  # and the other was its sender's still


def test_what_stands_behind_a_refused_one_is_refused_if_its_source_keeps_the_order() -> None:
    kernel = kernel_with_link()
    worker = link(kernel)
    batch = [on("t/1", "1"), on("t/2", "2"), on("t/1", "3"), on("t/1", "4")]
    answer = kernel.accept(*batch, offer=Offer(in_order=True))
    kernel.run()
    worker.settle(Verdict.RETRY, "1")
    kernel.run()
    assert worker.bodies == ["1", "2"]
    settle(kernel, worker, Verdict.DONE, "2")
    assert answer.outcomes == [REFUSED, STORED, REFUSED, REFUSED]
    plain = kernel.accept(*batch)
    kernel.run()
    for body in ("1", "2", "3", "4"):
        settle(kernel, worker, Verdict.RETRY if body == "1" else Verdict.DONE, body)
    assert plain.outcomes == [REFUSED, STORED, STORED, STORED]
    assert kernel.leaks() == []


def test_changes_are_made_behind_it_and_then_it_is_answered() -> None:
    """So an identifier of QoS 2 is never known of a message that nobody has."""
    kernel = kernel_with_link()
    worker = link(kernel)
    change = StateChange("mqtt", "received/c/1", b"1")
    answer = kernel.accept(on("t/1"), changes=[change])
    kernel.run()
    assert change not in list(kernel.journal.states())
    worker.done()
    kernel.dispatch()
    assert answer.outcomes is None
    commit = kernel.begin()
    assert commit is not None
    assert commit.state == [change]
    kernel.end(commit)
    assert answer.outcomes == [STORED]
    refused = kernel.accept(on("t/1"), changes=[change])
    kernel.run()
    worker.dead()
    kernel.dispatch()
    assert refused.outcomes == [REFUSED]
    assert kernel.begin() is None


def test_deliveries_that_are_done_with_it_are_done_when_it_is_delivered() -> None:
    kernel = kernel_with_link()
    kernel.send("q", "order")
    consumer, worker = kernel.worker("q"), link(kernel)
    kernel.run()
    ids = list(consumer.held)
    lost = kernel.accept(on("t/1"), offer=Offer(done=[(consumer.subscription, ids)]))
    kernel.run()
    settle(kernel, worker, Verdict.DEAD)
    assert lost.outcomes == [REFUSED]
    assert kernel.content("q") == ["order"]
    answer = kernel.accept(on("t/1"), offer=Offer(done=[(consumer.subscription, ids)]))
    kernel.run()
    assert kernel.content("q") == ["order"]
    settle(kernel, worker, Verdict.DONE)
    assert answer.outcomes == [STORED]
    assert kernel.content("q") == []
    assert kernel.leaks() == []


def test_beyond_its_memory_it_is_refused() -> None:
    kernel = kernel_with_link(max_bytes=4000)
    body = "x" * 1000
    answers = [kernel.accept(on(f"t/{number}", body)) for number in range(5)]
    kernel.run()
    assert [answer.outcomes for answer in answers] == [None, None, None, [REFUSED], [REFUSED]]
    worker = link(kernel)
    kernel.run()
    settle(kernel, worker, Verdict.DONE)
    assert [answer.outcomes for answer in answers[:3]] == [[STORED]] * 3
    assert kernel.leaks() == []


def test_as_the_daemon_stops_only_what_is_in_flight_is_waited_for() -> None:
    kernel = kernel_with_link()
    worker = link(kernel)
    flying, behind = kernel.accept(on("t/1", "1")), kernel.accept(on("t/1", "2"))
    given_back = kernel.accept(on("t/2", "3"))
    kernel.run()
    kernel.core.drain()
    kernel.run()
    assert (flying.outcomes, behind.outcomes) == (None, [REFUSED])
    worker.cancel()
    worker.give_back("3")
    kernel.run()
    assert given_back.outcomes == [REFUSED]
    settle(kernel, worker, Verdict.DONE, "1")
    assert flying.outcomes == [STORED]
    late = kernel.accept(on("t/3"))
    kernel.run()
    assert late.outcomes == [REFUSED]


@pytest.mark.parametrize("pending", [True, False])
def test_a_queue_that_is_purged_or_deleted_refuses_what_it_held(pending: bool) -> None:
    kernel = kernel_with_link()
    answer = kernel.accept(on("t/1"))
    if not pending:
        kernel.run()
    kernel.core.delete(DELIVERED)
    kernel.run()
    assert answer.outcomes == [REFUSED]
    assert kernel.leaks() == []


def test_a_reload_that_takes_the_route_away_delivers_what_was_taken() -> None:
    kernel = kernel_with_link()
    worker = link(kernel)
    answer = kernel.accept(on("t/1"))
    kernel.run()
    del kernel.policies[DELIVERED]
    kernel.configure()
    assert kernel.queue(DELIVERED).removed
    settle(kernel, worker, Verdict.DONE)
    assert answer.outcomes == [STORED]
    assert DELIVERED not in kernel.core.queues
    gone = kernel.accept(Message("t/1", b""))
    kernel.run()
    assert gone.outcomes == [UNROUTED]


# what was answered as REFUSED is never handed out, and every call is answered once, whatever happens

steps = st.lists(
    st.one_of(
        st.tuples(st.just("accept"), st.lists(st.integers(0, 3), min_size=1, max_size=4), st.booleans()),
        st.tuples(st.just("commit"), st.booleans()),
        st.tuples(st.just("attach"), st.integers(1, 3)),
        st.tuples(st.just("settle"), st.integers(0, 5), st.sampled_from(list(Verdict))),
        st.tuples(st.just("lose"), st.booleans()),
        st.tuples(st.just("wait"), st.sampled_from([0.5, 4.0, WITHIN])),
        st.tuples(st.just("store"), st.booleans()),
        st.tuples(st.just("purge")),
    ),
    max_size=40,
)


class Life:
    """One core and what came of each message: 0 to 2 are topics that the link must deliver, 3 goes to a queue."""

    def __init__(self) -> None:
        self.kernel = kernel_with_link(group_in_flight=2)
        self.calls: list[tuple[list[str], Any]] = []
        self.done: set[str] = set()
        self.workers: list[Worker] = []
        self.number = 0

    def refused(self) -> set[str]:
        return {
            body
            for bodies, answer in self.calls
            for body, outcome in zip(bodies, answer.outcomes or (), strict=False)
            if outcome is REFUSED
        }

    def step(self, name: str, *arguments: Any) -> None:
        kernel = self.kernel
        seen = {worker: len(worker.seen) for worker in self.workers}
        refused = self.refused()
        getattr(self, name)(*arguments)
        kernel.dispatch()
        for worker in self.workers:
            for delivery in worker.seen[seen.get(worker, 0) :]:
                assert delivery.message.body.decode() not in refused, "it was refused before it went out"

    def accept(self, topics: list[int], in_order: bool) -> None:
        bodies = [f"{topic}-{self.number + place}" for place, topic in enumerate(topics)]
        self.number += len(bodies)
        messages = [on("q/1" if topic == 3 else f"t/{topic}", body) for topic, body in zip(topics, bodies, strict=True)]
        self.calls.append((bodies, self.kernel.accept(*messages, offer=Offer(in_order=in_order))))

    def commit(self, fails: bool) -> None:
        self.kernel.commit_fails() if fails else self.kernel.commit()

    def attach(self, credit: int) -> None:
        self.workers.append(link(self.kernel, credit))

    def settle(self, place: int, verdict: Verdict) -> None:
        held = [(worker, delivery) for worker in self.workers for delivery in worker.held.values()]
        if held:
            worker, delivery = held[place % len(held)]
            body = delivery.message.body.decode()
            if worker.settle(verdict, body) and verdict is Verdict.DONE:
                self.done.add(body)
            worker.grant(1)

    def lose(self, lost: bool) -> None:
        if self.workers:
            self.workers.pop().detach(lost)

    def wait(self, seconds: float) -> None:
        self.kernel.advance(seconds)

    def store(self, refuses: bool) -> None:
        self.kernel.core.refusing = "the store is full" if refuses else ""
        if refuses and self.kernel.core.committing is None:
            for accept in self.kernel.core.take_volatile():
                accept.resolve(accept.outcomes, False)

    def purge(self) -> None:
        self.kernel.queue(DELIVERED).purge()


@settings(max_examples=500)
@given(steps)
def test_every_call_is_answered_once_by_what_became_of_it(steps: list[tuple[Any, ...]]) -> None:
    life = Life()
    for step in steps:
        life.step(*step)
    kernel = life.kernel
    kernel.core.refusing = ""
    kernel.run()
    kernel.advance(WITHIN)
    kernel.run()
    assert len(kernel.answers) == len(life.calls), "each once"
    for bodies, answer in life.calls:
        assert answer.outcomes is not None
        for body, outcome in zip(bodies, answer.outcomes, strict=True):
            if not body.startswith("3"):
                assert (outcome is STORED) == (body in life.done)
    assert len(kernel.core.awaited) == 0


# bindings that overlap


@pytest.mark.parametrize("also", ["#", "t/+"])
@pytest.mark.parametrize("text", ["{topic}", "t/{topic[1]}"])
@pytest.mark.parametrize(("within", "due"), [(None, WITHIN), (3.0, 3.0), (30.0, WITHIN)])
@pytest.mark.parametrize("first", [False, True])
def test_overlapping_bindings_wait_as_long_as_the_strictest_says(
    also: str, text: str, within: float | None, due: float, first: bool
) -> None:
    """Which come before or behind; by one text or by another."""
    kernel = kernel_with_link()
    options = Options(target=text, within=within)
    kernel.core.bind(Binding(queue=DELIVERED, filter=also, owner="config", options=options))
    if first:
        options = Options(target="{topic}", within=WITHIN)
        kernel.core.bind(Binding(queue=DELIVERED, filter="t/#", owner="config", options=options))
    worker = link(kernel)
    answer = kernel.accept(on("t/1", "1"), on("t/2", "2"))
    kernel.run()
    assert worker.bodies == ["1", "2"]
    assert answer.outcomes is None
    settle(kernel, worker, Verdict.DONE, "1")
    kernel.advance(due - 0.1)
    assert answer.outcomes is None
    kernel.advance(0.1)
    assert answer.outcomes == [STORED, REFUSED]
    assert kernel.leaks() == []


def test_a_binding_without_a_target_may_ask_for_the_delivery_too() -> None:
    kernel = Kernel({"own": QueuePolicy(durable=False, dead_letter="none")})
    kernel.core.bind(Binding(queue="own", filter="t/#", owner="a plugin", options=Options(within=WITHIN)))
    worker = kernel.worker("own")
    answer = kernel.accept(on("t/1"))
    kernel.run()
    assert answer.outcomes is None
    settle(kernel, worker, Verdict.DONE)
    assert answer.outcomes == [STORED]


def test_what_a_durable_queue_would_keep_is_refused_and_nobody_waits_for_ever() -> None:
    kernel = Kernel({"own": QueuePolicy()})
    kernel.core.bind(Binding(queue="own", filter="t/#", owner="a plugin", options=Options(within=WITHIN)))
    answer = kernel.accept(on("t/1"))
    kernel.run()
    assert answer.outcomes == [REFUSED]
    assert kernel.core.refused == {"delivered-and-stored": 1}
    assert kernel.leaks() == []
