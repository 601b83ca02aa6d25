"""What a reload may change, and what it may not (ruling 24); queues that clients declare and delete."""

from __future__ import annotations

import pytest
from msgspec import structs

from gateway.broker.definitions import configure, configuring
from gateway.errors import GatewayError, UnknownQueueError
from gateway.model.policy import DEAD_LETTER_POLICY, DedupPolicy, ExchangeTarget, QueuePolicy, Seconds, SecondsRange
from gateway.queueing import reordering
from gateway.transport import Actor, Binding, Outcome
from tests.harness.kernel import GROUP, KEY, Kernel, grouped, on, to

STORED, REFUSED = Outcome.STORED, Outcome.REFUSED


def reload(kernel: Kernel, **policies: QueuePolicy) -> list[str]:
    kernel.policies = policies
    notes = kernel.configure()
    kernel.run()
    return notes


# policies


def test_policies_apply_from_the_reload() -> None:
    kernel = Kernel({"q": QueuePolicy(max_deliveries=10)})
    kernel.send("q", "1")
    worker = kernel.worker("q")
    kernel.run()
    worker.retry(error="once")
    kernel.run()
    reload(kernel, q=QueuePolicy(max_deliveries=2))
    worker.retry(error="twice")
    kernel.run()
    assert kernel.deaths("dead-letters") == [("q", "exhausted", 2, "twice")]
    assert kernel.crash().queue("q").policy.max_deliveries == 2


def test_group_value_and_dedup_key_stay_as_they_were_at_accept() -> None:
    kernel = Kernel({"q": QueuePolicy(group=GROUP, dedup=DedupPolicy(KEY))})
    kernel.accept(grouped("q", "1", "a", "k"), grouped("q", "2", "b", "l"))
    kernel.run()
    notes = reload(kernel, q=QueuePolicy(group=KEY, dedup=DedupPolicy(GROUP)))
    assert "order between 2 messages and later ones is open" in notes[0]
    queue = kernel.queue("q")
    assert [queue.groups.name(queue.entries.group[slot]) for slot in queue.entries.slots()] == ["a", "b"]
    answer = kernel.accept(grouped("q", "3", "k", "m"), grouped("q", "4", "z", "m"))
    kernel.run()
    assert answer.outcomes == [Outcome.DUPLICATE, STORED]
    worker = kernel.worker("q")
    kernel.run()
    assert sorted(worker.bodies) == ["1", "2", "4"]


ORDERINGS = {
    "plain": QueuePolicy(),
    "group": QueuePolicy(group=GROUP),
    "group of 3 in flight": QueuePolicy(group=GROUP, group_in_flight=3),
    "priority": QueuePolicy(max_priority=5),
}


@pytest.mark.parametrize("before", ORDERINGS)
@pytest.mark.parametrize("after", ORDERINGS)
@pytest.mark.parametrize("cancelled", [False, True])
def test_another_kind_of_ordering_leaves_what_is_in_flight_with_its_consumers(
    before: str, after: str, cancelled: bool
) -> None:
    kernel = Kernel({"q": ORDERINGS[before]})
    for number in range(12):
        kernel.accept(grouped("q", str(number), "abc"[number % 3]))
    kernel.accept(grouped("q", "late", "d", delay=50.0))
    kernel.run()
    workers = [kernel.worker("q", 2), kernel.worker("q", 1)]
    kernel.run()
    held = [list(worker.holding) for worker in workers]
    assert [len(bodies) for bodies in held] == [2, 1]
    if cancelled:
        workers[0].cancel()
    for name in (after, before, after):
        reload(kernel, q=ORDERINGS[name])
    assert [worker.holding for worker in workers] == held
    taker = kernel.worker("q")
    kernel.run()
    assert not {*taker.holding} & {*held[0], *held[1]}, "nobody else gets them"
    given_back = held[0][1]
    assert workers[0].done(held[0][0]) == 1
    assert workers[0].give_back(given_back) == 1
    workers[1].detach(lost=True)
    workers[0].detach()
    seen: list[str] = []
    for _ in range(14):
        kernel.run()
        seen += taker.holding
        taker.done()
    rest = {str(number) for number in range(12)} - {held[0][0]}
    assert sorted(seen) == sorted(rest), "each once, and what came back as well"
    if "group" in after:
        names = "abc"
        for place, _ in enumerate(names):
            mine = [int(body) for body in seen if int(body) % 3 == place]
            assert mine == sorted(mine), "in the order of its group"
    kernel.advance(60)
    assert taker.holding == ["late"]
    taker.done()
    kernel.run()
    assert [leak for leak in kernel.leaks() if "groups" not in leak] == []
    assert kernel.crash().content("q") == []


def others(before: str) -> list[str]:
    """The names of orderings of another kind."""
    return [after for after in ORDERINGS if after.split()[0] != before.split()[0]]


@pytest.mark.parametrize(("before", "after"), [(before, after) for before in ORDERINGS for after in others(before)])
def test_a_long_queue_is_brought_into_another_order_in_slices(
    before: str, after: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes, is settled or goes back between two slices finds its place; nothing is delivered before the last."""
    monkeypatch.setattr(reordering, "REORDERED_AT_ONCE", 4)
    wait = SecondsRange((5.0, 5.0))
    kernel = Kernel({"q": structs.replace(ORDERINGS[before], retry_delay=wait)})
    kernel.accept(*[grouped("q", str(number), f"g{number % 9}") for number in range(60)])
    kernel.run()
    worker = kernel.worker("q", 8)
    kernel.run()
    done, retried, returned, early, late, *kept = worker.holding
    kernel.policies["q"] = structs.replace(ORDERINGS[after], retry_delay=wait)
    worker.give_back(early)
    kernel.configure()
    taker = kernel.worker("q")
    steps = [
        lambda: worker.done(done),
        lambda: worker.retry(retried),
        lambda: worker.give_back(returned),
        lambda: kernel.accept(grouped("q", "60", "g1"), grouped("q", "delayed", "g2", delay=20.0)),
    ]
    turns = 0
    while kernel.core.is_dirty:
        assert not taker.seen
        kernel.core.dispatch()
        kernel.commit()
        if turns < len(steps):
            steps[turns]()
        turns += 1
    assert turns > 10
    worker.done(late)
    if "group" in after:
        worker.done()  # what came without a group is one group, in which these stand first
    seen: list[str] = []
    for _ in range(80):
        kernel.run()
        seen += taker.holding
        taker.done()
    assert retried not in seen and "delayed" not in seen
    for _ in range(100):
        kernel.advance(1.0)
        seen += taker.holding
        taker.done()
    gone = {done, late, *kept}
    assert sorted(seen) == sorted({*map(str, range(61)), "delayed"} - gone)
    if "group" in after:
        for place in range(9):
            mine = [int(body) for body in seen if body not in ("delayed", "60") and int(body) % 9 == place]
            assert mine == sorted(mine), "in the order of its group"
    assert worker.done() == (0 if "group" in after else len(kept)), "it holds these still"
    kernel.run()
    assert [leak for leak in kernel.leaks() if "groups" not in leak] == []


@pytest.mark.parametrize("after", ORDERINGS)
def test_what_takes_too_long_goes_back_in_the_new_order(after: str) -> None:
    timed = {name: structs.replace(policy, ack_timeout=Seconds(10.0)) for name, policy in ORDERINGS.items()}
    kernel = Kernel({"q": timed["plain"]})
    kernel.accept(*[grouped("q", body, "a") for body in "123"])
    kernel.run()
    stuck = kernel.worker("q", 2)
    kernel.run()
    kernel.advance(5)
    reload(kernel, q=timed[after])
    taker = kernel.worker("q", 1)
    kernel.run()
    assert taker.bodies == ([] if "group" in after else ["3"])
    taker.done()
    taker.grant()
    before = len(taker.bodies)
    kernel.advance(6)
    assert taker.bodies[before] == "1", "the oldest comes first again"
    assert stuck.done() == 0


def test_group_in_flight_may_grow_and_shrink_under_load() -> None:
    kernel = Kernel({"q": QueuePolicy(group=GROUP, group_in_flight=3)})
    worker = kernel.worker("q")
    kernel.accept(*[grouped("q", f"a{number}", "a") for number in range(8)])
    kernel.run()
    assert len(worker.held) == 3
    reload(kernel, q=QueuePolicy(group=GROUP, group_in_flight=1))
    worker.done("a0")
    kernel.run()
    assert len(worker.held) == 2
    worker.done()
    kernel.run()
    assert worker.holding == ["a3"]
    reload(kernel, q=QueuePolicy(group=GROUP, group_in_flight=2))
    kernel.run()
    assert worker.holding == ["a3", "a4"]
    worker.done()
    kernel.run()
    assert worker.holding == ["a5", "a6"]


def test_a_higher_group_in_flight_holds_for_groups_that_are_in_flight() -> None:
    kernel = Kernel({"q": QueuePolicy(group=GROUP)})
    worker = kernel.worker("q")
    kernel.accept(*[grouped("q", body, "a") for body in "123"])
    kernel.run()
    assert worker.bodies == ["1"]
    kernel.policies["q"] = QueuePolicy(group=GROUP, group_in_flight=2)
    kernel.configure()
    kernel.run()
    assert worker.bodies == ["1", "2"]


def test_a_shorter_ack_timeout_holds_for_what_is_in_flight_and_none_ends_it() -> None:
    kernel = Kernel({"q": QueuePolicy(ack_timeout=Seconds(3600))})
    kernel.send("q", "1")
    worker = kernel.worker("q", 1)
    kernel.run()
    reload(kernel, q=QueuePolicy(ack_timeout=Seconds(10)))
    kernel.advance(5)
    assert kernel.queue("q").in_flight == 1
    kernel.advance(6)
    assert kernel.queue("q").in_flight == 0
    worker.grant(1)
    kernel.run()
    reload(kernel, q=QueuePolicy())
    kernel.advance(1e6)
    assert kernel.queue("q").in_flight == 1


@pytest.mark.parametrize("cancelled", [False, True])
def test_an_ack_timeout_where_there_was_none_holds_for_what_is_in_flight(cancelled: bool) -> None:
    kernel = Kernel({"q": QueuePolicy()})
    kernel.send("q", "1", "2")
    stuck = kernel.worker("q", 1)
    kernel.run()
    if cancelled:
        stuck.cancel()
    kernel.advance(1000)
    kernel.policies["q"] = QueuePolicy(ack_timeout=Seconds(30))
    kernel.configure()
    kernel.advance(29)
    assert kernel.queue("q").in_flight == 1
    kernel.advance(1)
    assert kernel.queue("q").in_flight == 0
    assert stuck.done() == 0
    other = kernel.worker("q")
    kernel.run()
    assert other.bodies == ["1", "2"]
    assert other.seen[0].attempts == 1


def test_the_names_of_groups_are_given_up_after_a_queue_has_none_any_more() -> None:
    kernel = Kernel({"q": QueuePolicy(group=GROUP)})
    kernel.accept(*[grouped("q", body, f"group {body}") for body in "1234"])
    kernel.run()
    reload(kernel, q=QueuePolicy())
    worker = kernel.worker("q")
    kernel.run()
    worker.done("1", "2")
    kernel.run()
    # Now there are groups again, and nothing tells of those that are empty.
    reload(kernel, q=QueuePolicy(group=GROUP, max_groups=3))
    assert len(kernel.queue("q").groups) == 2
    reload(kernel, q=QueuePolicy())
    worker.done()
    kernel.run()
    assert kernel.leaks() == []


def test_what_was_parked_too_long_expires_when_a_reload_takes_the_groups_away() -> None:
    kernel = Kernel({"q": QueuePolicy(group=GROUP, max_deliveries=1, on_exhausted="park", ttl=Seconds(10))})
    kernel.accept(grouped("q", "1", "a"))
    kernel.run()
    worker = kernel.worker("q")
    kernel.run()
    worker.retry()
    worker.detach()
    kernel.advance(20)
    assert kernel.queue("q").depth == 1
    reload(kernel, q=QueuePolicy())
    kernel.advance(0)
    assert kernel.queue("q").depth == 0


def test_a_retry_whose_time_has_come_keeps_its_place_when_a_reload_takes_the_groups_away() -> None:
    kernel = Kernel({"q": QueuePolicy(group=GROUP, retry_delay=(Seconds(1), Seconds(1)))})
    kernel.accept(grouped("q", "1", "a"), grouped("q", "2", "a"))
    kernel.run()
    worker = kernel.worker("q")
    kernel.run()
    worker.retry()
    worker.detach()
    kernel.clock.now += 5
    reload(kernel, q=QueuePolicy())
    other = kernel.worker("q")
    kernel.core.dispatch()
    assert other.bodies == ["1", "2"]


def test_a_queue_above_its_limit_drops_nothing_once_a_reload_has_it_refuse() -> None:
    full = QueuePolicy(max_messages=1, dead_letter="none")
    limited = QueuePolicy(max_messages=3, overflow="dead-letter", dead_letter="bin")
    kernel = Kernel({"q": limited, "bin": full})
    kernel.send("bin", "there")
    kernel.send("q", "1", "2", "3")
    # It holds one more than it may: the commit under way took the last place among the dead letters.
    kernel.policies["bin"] = QueuePolicy(dead_letter="none")
    kernel.configure()
    kernel.accept(to("q", "4"))
    kernel.policies["bin"] = full
    kernel.configure()
    kernel.run()
    assert kernel.queue("q").depth == 4
    reload(kernel, q=QueuePolicy(max_messages=2), bin=full)
    kernel.advance(5)
    assert kernel.queue("q").depth == 4


def test_a_lower_limit_evicts_nothing_by_itself() -> None:
    kernel = Kernel({"q": QueuePolicy()})
    kernel.send("q", *"123456")
    reload(kernel, q=QueuePolicy(max_messages=3, overflow="drop-oldest"))
    kernel.advance(100)
    assert len(kernel.content("q")) == 6
    kernel.send("q", "7")
    assert kernel.content("q") == ["5", "6", "7"]


def test_durable_to_transient_is_refused_while_messages_remain_and_nothing_changes() -> None:
    kernel = Kernel({"q": QueuePolicy(), "other": QueuePolicy()})
    kernel.accept(to("q", "1"))
    kernel.policies = {"q": QueuePolicy(durable=False), "other": QueuePolicy(max_messages=1), "new": QueuePolicy()}
    for _ in range(2):
        with pytest.raises(GatewayError, match="can't become transient"):
            kernel.configure()
        kernel.run()
    assert "new" not in kernel.core.queues
    assert kernel.queue("other").policy.max_messages is None
    worker = kernel.worker("q")
    kernel.run()
    worker.done()
    kernel.run()
    kernel.configure()
    kernel.send("q", "2")
    after = kernel.crash()
    assert after.content("q") == []


@pytest.mark.parametrize(
    "policies",
    [
        {"q": QueuePolicy(group="{nope}")},
        {"q": QueuePolicy(dedup=DedupPolicy("{topic["))},
    ],
)
def test_a_bad_template_is_refused_before_anything_changes(policies: dict[str, QueuePolicy]) -> None:
    kernel = Kernel({"a": QueuePolicy()})
    kernel.policies = {"a": QueuePolicy(max_messages=1), **policies}
    with pytest.raises(GatewayError, match="queue q"):
        kernel.configure()
    assert kernel.queue("a").policy.max_messages is None


@pytest.mark.parametrize(("filter", "queue"), [("a", "nobody"), ("a+", "q"), ("", "q")])
def test_a_bad_route_is_refused_before_anything_changes(filter: str, queue: str) -> None:
    kernel = Kernel({"q": QueuePolicy()}, [("ok", "q")])
    kernel.policies = {"q": QueuePolicy(max_messages=1)}
    kernel.routes = [(filter, queue)]
    with pytest.raises(GatewayError):
        kernel.configure()
    assert kernel.queue("q").policy.max_messages is None
    assert [binding.filter for binding in kernel.core.router.bindings("q")] == ["ok"]


# routes


def test_routes_change_and_clients_bindings_stay() -> None:
    kernel = Kernel({"q": QueuePolicy()}, [("old", "q")])
    kernel.core.bind(Binding(queue="q", filter="mine", owner="amqp"))
    kernel.routes = [("new", "q")]
    kernel.configure()
    answer = kernel.accept(on("old"), on("new"), on("mine"))
    kernel.run()
    assert answer.outcomes == [Outcome.UNROUTED, STORED, STORED]
    after = kernel.crash()
    assert sorted(binding.filter for binding in after.core.router.bindings("q")) == ["mine", "new"]


# removed queues


def test_a_removed_queue_with_messages_stays_unbound_and_consumable_until_it_is_empty() -> None:
    kernel = Kernel({"q": QueuePolicy()}, [("t", "q")])
    kernel.accept(on("t", "1"), on("t", "2"))
    worker = kernel.worker("q", 1)
    kernel.run()
    kernel.routes = []
    notes = reload(kernel)
    assert "removed" in notes[0] and kernel.queue("q").removed
    answer = kernel.accept(on("t", "3"))
    kernel.run()
    assert answer.outcomes == [Outcome.UNROUTED]
    after = kernel.crash()
    assert after.queue("q").removed
    worker.done()
    worker.grant(1)
    kernel.run()
    assert worker.holding == ["2"]
    worker.done()
    kernel.run()
    assert "q" not in kernel.core.queues
    assert len(worker.ends) == 1
    assert "q" not in kernel.crash().core.queues


def test_a_removed_queue_that_is_configured_again_is_as_before() -> None:
    kernel = Kernel({"q": QueuePolicy()}, [("t", "q")])
    kernel.accept(on("t", "1"))
    kernel.run()
    kernel.routes = []
    reload(kernel)
    kernel.routes = [("t", "q")]
    reload(kernel, q=QueuePolicy())
    assert not kernel.queue("q").removed
    kernel.accept(on("t", "2"))
    kernel.run()
    assert kernel.content("q") == ["1", "2"]


def test_a_removed_empty_queue_goes_at_once_and_one_with_uncommitted_messages_does_not() -> None:
    kernel = Kernel({"q": QueuePolicy(), "r": QueuePolicy()})
    kernel.run()
    answer = kernel.accept(to("r", "1"))
    kernel.policies = {}
    kernel.configure()
    kernel.run()
    assert answer.outcomes == [STORED]
    assert "q" not in kernel.core.queues
    assert kernel.content("r") == ["1"]


def test_the_built_in_dead_letters_may_be_configured_and_come_back() -> None:
    kernel = Kernel({"dead-letters": QueuePolicy(max_messages=1)})
    assert kernel.queue("dead-letters").policy.max_messages == 1
    reload(kernel)
    assert kernel.queue("dead-letters").policy == DEAD_LETTER_POLICY


# declared by clients


def test_declaring_a_queue_that_is_there_leaves_it_as_it_is() -> None:
    kernel = Kernel({"q": QueuePolicy(max_messages=3)})
    assert kernel.core.declare("q", QueuePolicy(), "amqp").policy.max_messages == 3
    assert kernel.queue("q").owner == "config"
    with pytest.raises(GatewayError, match="bad"):
        kernel.core.declare("bad", QueuePolicy(group="{"), "amqp")
    assert "bad" not in kernel.core.queues


def test_a_declared_policy_comes_back_whole() -> None:
    policy = QueuePolicy(
        group=GROUP,
        group_in_flight=3,
        dedup=DedupPolicy(KEY, Seconds(7), "group"),
        ack_timeout=Seconds(1.5),
        max_deliveries=None,
        retry_delay=SecondsRange((1.0, 2.5)),
        on_exhausted="park",
        dead_letter=ExchangeTarget("dlx", "a/b"),
        expires=Seconds(1000),
    )
    kernel = Kernel()
    kernel.core.declare("mine", policy, "amqp")
    kernel.run()
    assert kernel.crash().queue("mine").policy == policy


def test_a_queue_that_one_connection_holds_is_not_taken_over_by_a_reload() -> None:
    """Nobody could use it once that connection has ended, and its messages are in memory alone."""
    kernel = Kernel({"other": QueuePolicy()})
    holder = Actor("amqp")
    kernel.core.declare("jobs", QueuePolicy(durable=False), "amqp", holder)
    kernel.policies = {"other": QueuePolicy(max_messages=5), "jobs": QueuePolicy()}
    with pytest.raises(GatewayError, match="queue jobs belongs to one connection alone"):
        kernel.configure()
    assert kernel.queue("other").policy.max_messages is None, "nothing was changed"
    kernel.core.delete("jobs")
    kernel.configure()
    assert kernel.queue("jobs").holder is None
    kernel.send("jobs", "1")
    assert kernel.crash().content("jobs") == ["1"]


def test_a_queue_that_comes_to_be_held_during_a_reload_stays_as_it_is() -> None:
    kernel = Kernel({"other": QueuePolicy()})
    notes: list[str] = []
    steps = configuring(kernel.core, {"other": QueuePolicy(max_messages=5), "jobs": QueuePolicy()}, [], notes)
    for _ in range(3):  # each queue was looked at, and none was changed
        next(steps)
    kernel.core.declare("jobs", QueuePolicy(durable=False), "amqp", Actor("amqp"))
    for _ in steps:
        pass
    assert kernel.queue("jobs").owner == "amqp" and not kernel.queue("jobs").policy.durable
    assert kernel.queue("other").policy.max_messages == 5
    assert len(notes) == 1 and "reload again" in notes[0]


def test_what_a_queue_holds_in_memory_alone_is_said_when_it_becomes_durable() -> None:
    kernel = Kernel({"q": QueuePolicy(durable=False)})
    kernel.send("q", "1", "2")
    assert reload(kernel, q=QueuePolicy()) == ["queue q: 2 messages from before stay in memory alone"]
    kernel.send("q", "3")
    assert kernel.crash().content("q") == ["3"]


def test_unknown_queues_are_named() -> None:
    kernel = Kernel()
    for call in (kernel.core.get, kernel.core.delete):
        with pytest.raises(UnknownQueueError, match="nobody"):
            call("nobody")
    with pytest.raises(UnknownQueueError):
        kernel.core.bind(Binding(queue="nobody", filter="a"))


def test_a_queue_deleted_and_declared_again_is_another_one() -> None:
    kernel = Kernel()
    kernel.core.declare("mine", QueuePolicy(), "amqp")
    kernel.core.bind(Binding(queue="mine", filter="t", owner="amqp"))
    kernel.accept(on("t", "1"))
    kernel.run()
    kernel.core.delete("mine")
    kernel.core.declare("mine", QueuePolicy(), "amqp")
    kernel.run()
    for run in (kernel, kernel.crash()):
        assert run.content("mine") == []
        assert run.core.router.bindings("mine") == []


def test_configuring_nothing_twice_journals_nothing() -> None:
    kernel = Kernel({"q": QueuePolicy()}, [("a", "q")])
    kernel.run()
    assert configure(kernel.core, kernel.policies, [Binding(queue="q", filter="a", owner="config")]) == []
    assert kernel.begin() is None
