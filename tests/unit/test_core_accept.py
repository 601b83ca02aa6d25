"""What accept promises: order, commit and failure, all queues or none, retained messages (rulings 1 to 4, 10, 12)."""

from __future__ import annotations

from gateway.model.policy import DedupPolicy, QueuePolicy, Seconds
from gateway.model.state import StateChange
from gateway.transport import Binding, Offer, Options, Outcome
from tests.harness.kernel import GROUP, KEY, Kernel, grouped, on, to

STORED, DUPLICATE, UNROUTED, REFUSED = Outcome.STORED, Outcome.DUPLICATE, Outcome.UNROUTED, Outcome.REFUSED
DEDUP = DedupPolicy("{header[key]}", Seconds(300))


# order (ruling 1)


def test_nothing_is_delivered_or_answered_before_its_commit() -> None:
    kernel = Kernel({"orders": QueuePolicy()})
    kernel.run()
    worker = kernel.worker("orders")
    answer = kernel.accept(to("orders", "1"))
    kernel.dispatch()
    assert (worker.bodies, answer.outcomes) == ([], None)
    commit = kernel.begin()
    assert commit is not None
    kernel.dispatch()
    assert (worker.bodies, answer.outcomes) == ([], None)
    kernel.end(commit)
    kernel.dispatch()
    assert (worker.bodies, answer.outcomes) == (["1"], [STORED])


def test_a_transient_queue_waits_too_when_the_message_also_goes_to_a_durable_one() -> None:
    kernel = Kernel({"kept": QueuePolicy(), "live": QueuePolicy(durable=False)}, [("t", "kept"), ("t", "live")])
    kernel.run()
    worker = kernel.worker("live")
    kernel.accept(on("t", "1"))
    commit = kernel.begin()
    assert commit is not None and commit.bodies
    kernel.dispatch()
    assert worker.bodies == []
    kernel.end(commit)
    kernel.dispatch()
    assert worker.bodies == ["1"]


def test_answers_come_in_the_order_of_accept_over_all_callers() -> None:
    kernel = Kernel({"kept": QueuePolicy(), "live": QueuePolicy(durable=False)})
    kernel.run()
    calls = [kernel.accept(to("kept", "1")), kernel.accept(to("live", "2")), kernel.accept(on("nowhere"))]
    commit = kernel.begin()
    assert commit is not None
    calls += [kernel.accept(to("live", "3")), kernel.put()]
    kernel.end(commit)
    assert kernel.answers == calls[:3]
    kernel.run()
    assert kernel.answers == calls


def test_a_duplicate_of_an_uncommitted_message_waits_for_that_commit() -> None:
    kernel = Kernel({"orders": QueuePolicy(dedup=DEDUP)})
    kernel.run()
    kernel.accept(grouped("orders", "1", "g", "k"))
    commit = kernel.begin()
    again = kernel.accept(grouped("orders", "1 again", "g", "k"))
    assert again.outcomes is None
    assert commit is not None
    kernel.end(commit)
    assert again.outcomes is None
    kernel.run()
    assert again.outcomes == [DUPLICATE]
    assert kernel.content("orders") == ["1"]


def test_a_duplicate_of_a_message_whose_commit_fails_is_decided_again() -> None:
    kernel = Kernel({"orders": QueuePolicy(dedup=DEDUP)})
    kernel.run()
    first = kernel.accept(grouped("orders", "1", "g", "k"))
    kernel.begin()
    again = kernel.accept(grouped("orders", "1 again", "g", "k"))
    kernel.fail()
    assert (first.outcomes, first.ok) == ([REFUSED], False)
    kernel.run()
    assert again.outcomes == [STORED]
    assert kernel.content("orders") == ["1 again"]


def test_messages_of_one_batch_with_one_key_are_stored_once() -> None:
    kernel = Kernel({"orders": QueuePolicy(dedup=DEDUP)})
    answer = kernel.accept(grouped("orders", "1", "g", "k"), grouped("orders", "2", "g", "k"))
    kernel.run()
    assert answer.outcomes == [STORED, DUPLICATE]


# failure (ruling 2)


def test_a_failed_commit_leaves_neither_message_nor_key_nor_retained_change_nor_state() -> None:
    kernel = Kernel({"orders": QueuePolicy(dedup=DEDUP, group=GROUP)}, [("t", "orders")])
    kernel.run()
    kernel.accept(
        grouped("orders", "1", "g", "k"), on("r", "kept", retain=True), changes=[StateChange("mqtt", "id", b"1")]
    )
    assert kernel.commit_fails()
    worker = kernel.worker("orders")
    kernel.run()
    assert worker.bodies == []
    assert kernel.core.retained.find("#", kernel.clock()) == []
    after = kernel.crash()
    assert after.content("orders") == []
    assert after.core.retained.find("#", kernel.clock()) == []
    assert after.restored.states == {}
    answer = after.accept(grouped("orders", "1", "g", "k"))
    after.run()
    assert answer.outcomes == [STORED]


def test_a_settlement_survives_a_failed_commit() -> None:
    kernel = Kernel({"orders": QueuePolicy()})
    kernel.send("orders", "1", "2")
    worker = kernel.worker("orders", 1)
    kernel.run()
    worker.done("1")
    assert kernel.commit_fails()
    kernel.run()
    assert kernel.crash().content("orders") == ["2"]


def test_a_dead_letter_survives_a_failed_commit_in_one_queue_only() -> None:
    kernel = Kernel({"orders": QueuePolicy()})
    kernel.send("orders", "1")
    worker = kernel.worker("orders")
    kernel.run()
    worker.dead()
    assert kernel.commit_fails()
    before = kernel.crash()
    assert (before.content("orders"), before.content("dead-letters")) == (["1"], [])
    kernel.run()
    after = kernel.crash()
    assert (after.content("orders"), after.content("dead-letters")) == ([], ["1"])


def test_after_a_failed_commit_later_calls_keep_their_order() -> None:
    kernel = Kernel({"orders": QueuePolicy()})
    kernel.run()
    first = kernel.accept(to("orders", "1"))
    kernel.begin()
    second, third = kernel.accept(to("orders", "2")), kernel.accept(to("orders", "3"))
    kernel.fail()
    fourth = kernel.accept(to("orders", "4"))
    kernel.run()
    assert kernel.answers == [first, second, third, fourth]
    assert kernel.content("orders") == ["2", "3", "4"]


def test_a_failed_commit_with_dead_letters_and_new_messages_keeps_idents_ascending() -> None:
    kernel = Kernel({"orders": QueuePolicy()})
    kernel.send("orders", "1", "2", "3")
    worker = kernel.worker("orders", 3)
    kernel.run()
    worker.dead("1")
    kernel.accept(to("dead-letters", "new"))
    worker.dead("2")
    kernel.begin()
    worker.dead("3")
    kernel.accept(to("dead-letters", "newer"))
    kernel.fail()
    kernel.run()
    entries = kernel.queue("dead-letters").entries
    idents = [entries.ident[slot] for slot in entries.slots()]
    assert idents == sorted(idents)
    assert sorted(kernel.content("dead-letters")) == ["1", "2", "3", "newer"]
    assert kernel.crash().content("dead-letters") == kernel.content("dead-letters")


def test_what_a_full_queue_refused_is_stored_when_the_one_before_it_was_rolled_back() -> None:
    kernel = Kernel({"orders": QueuePolicy(max_messages=1)})
    kernel.run()
    kernel.accept(to("orders", "1"))
    kernel.begin()
    second = kernel.accept(to("orders", "2"))
    kernel.fail()
    kernel.run()
    assert second.outcomes == [STORED]
    assert kernel.content("orders") == ["2"]


def test_groups_that_were_named_only_in_a_failed_commit_are_forgotten() -> None:
    kernel = Kernel({"orders": QueuePolicy(group=GROUP)})
    kernel.run()
    kernel.accept(*[grouped("orders", str(number), f"g{number}") for number in range(5)])
    kernel.commit_fails()
    worker = kernel.worker("orders")
    kernel.accept(grouped("orders", "5", "g5"))
    kernel.run()
    worker.done("5")
    kernel.run()
    assert kernel.leaks() == []


def test_a_call_that_is_decided_again_counts_once() -> None:
    full = QueuePolicy(max_messages=1)
    kernel = Kernel({"q": QueuePolicy(group=GROUP, dedup=DEDUP), "full": full})
    kernel.send("full", "1")
    assert kernel.send("q", "0", properties=grouped("q", "0", "a", "k").properties) == [STORED]
    before, first = kernel.queue("full").counters, kernel.queue("q").counters
    assert (before.refused, first.duplicates, first.dead_lettered) == (0, 0, 0)
    kernel.put()
    assert kernel.begin() is not None
    # A duplicate, one that is refused and one without a group, behind a commit that fails.
    kernel.accept(grouped("q", "1", "a", "k"), to("full", "2"), to("q", "3"))
    kernel.fail()
    kernel.run()
    assert (before.refused, first.duplicates, first.dead_lettered) == (1, 1, 1)


def test_what_was_decided_in_a_failed_commit_does_not_count() -> None:
    kernel = Kernel({"q": QueuePolicy(group=GROUP, dedup=DEDUP)})
    kernel.send("q", "0", properties=grouped("q", "0", "a", "k").properties)
    answer = kernel.accept(grouped("q", "1", "a", "k"), to("q", "2"))
    assert kernel.commit_fails()
    assert answer.outcomes == [REFUSED, REFUSED]
    counters = kernel.queue("q").counters
    assert (counters.duplicates, counters.dead_lettered) == (0, 0)


def test_while_the_store_refuses_nothing_durable_is_taken_and_transient_queues_go_on() -> None:
    kernel = Kernel({"kept": QueuePolicy(), "live": QueuePolicy(durable=False)}, [("both", "kept"), ("both", "live")])
    kernel.run()
    kernel.core.refusing = "the store is full"
    answer = kernel.accept(to("kept"), to("live"), on("both"), on("r", retain=True), on("nowhere"))
    kernel.run()
    assert answer.outcomes == [REFUSED, STORED, REFUSED, REFUSED, UNROUTED]


def test_while_the_store_refuses_no_retained_change_is_made_for_a_message_to_a_transient_queue() -> None:
    kernel = Kernel({"live": QueuePolicy(durable=False)}, [("t", "live")])
    kernel.run()
    kernel.core.refusing = "the store is full"
    answer = kernel.accept(on("t", retain=True))
    kernel.run()
    assert answer.outcomes == [REFUSED]
    assert kernel.content("live") == []


def test_while_the_store_refuses_settlements_are_kept_and_committed_later() -> None:
    kernel = Kernel({"orders": QueuePolicy()})
    kernel.send("orders", "1")
    worker = kernel.worker("orders")
    kernel.run()
    kernel.core.refusing = "the store is full"
    worker.done()
    kernel.run()
    assert kernel.crash().content("orders") == []


# all queues or none (ruling 3)


def test_if_one_queue_refuses_the_message_is_stored_nowhere_and_leaves_no_key_and_no_retained_change() -> None:
    kernel = Kernel(
        {"full": QueuePolicy(max_messages=1), "roomy": QueuePolicy(dedup=DedupPolicy("sha256"))},
        [("t", "roomy"), ("t", "full"), ("other", "roomy")],
    )
    kernel.send("full", "1")
    answer = kernel.accept(on("t", "2", retain=True))
    kernel.run()
    assert answer.outcomes == [REFUSED]
    assert kernel.content("roomy") == []
    assert kernel.core.retained.find("#", kernel.clock()) == []
    again = kernel.accept(on("other", "2"))
    kernel.run()
    assert again.outcomes == [STORED]


def test_changes_are_made_unless_all_of_the_batch_is_refused() -> None:
    kernel = Kernel({"orders": QueuePolicy(max_messages=1)})
    kernel.accept(to("orders", "1"), to("orders", "2"), changes=[StateChange("mqtt", "a", b"1")])
    kernel.accept(to("orders", "3"), changes=[StateChange("mqtt", "b", b"1")])
    kernel.accept(changes=[StateChange("mqtt", "c", b"1")])
    kernel.run()
    assert kernel.crash().restored.states["mqtt"] == {"a": b"1", "c": b"1"}


def test_duplicate_only_if_every_matched_queue_calls_it_one() -> None:
    kernel = Kernel(
        {"a": QueuePolicy(dedup=DedupPolicy("sha256")), "b": QueuePolicy(dedup=DedupPolicy("sha256"))},
        [("both", "a"), ("both", "b"), ("one", "a")],
    )
    answer = kernel.accept(on("one", "1"), on("both", "1"), on("both", "1"))
    kernel.run()
    assert answer.outcomes == [STORED, STORED, DUPLICATE]
    assert (kernel.content("a"), kernel.content("b")) == (["1"], ["1"])


def test_a_body_is_stored_once_for_all_its_queues_and_freed_with_the_last() -> None:
    kernel = Kernel({"a": QueuePolicy(), "b": QueuePolicy()}, [("t", "a"), ("t", "b")])
    kernel.accept(on("t", "body" * 100))
    kernel.run()
    assert sum(octets for _, octets in kernel.journal.rows()) < 500
    for name in ("a", "b"):
        assert list(kernel.journal.rows())
        worker = kernel.worker(name)
        kernel.run()
        worker.done()
        kernel.run()
    assert kernel.leaks() == []


def test_one_entry_however_many_bindings_of_a_queue_match() -> None:
    kernel = Kernel({"q": QueuePolicy()})
    for number, (filter, qos) in enumerate([("a/#", 0), ("a/+", 1), ("a/b", 0)], 1):
        kernel.core.bind(Binding(queue="q", filter=filter, owner="s", options=Options(qos, (number,))))
    kernel.accept(on("a/b", "1"))
    worker = kernel.worker("q")
    kernel.run()
    assert [(seen.options.qos, seen.options.subscription_ids) for seen in worker.seen] == [(1, (1, 2, 3))]


def test_an_outbox_gets_one_entry_for_each_distinct_target() -> None:
    kernel = Kernel({"link.out": QueuePolicy()})
    for filter, target in [("a/#", "x"), ("a/b", "y"), ("a/+", "x")]:
        kernel.core.bind(Binding(queue="link.out", filter=filter, owner="config", options=Options(target=target)))
    kernel.accept(on("a/b", "1"))
    worker = kernel.worker("link.out")
    kernel.run()
    assert sorted(str(seen.options.target) for seen in worker.seen) == ["x", "y"]


def test_entries_for_many_targets_of_one_outbox_do_not_pass_its_limit() -> None:
    kernel = Kernel({"link.out": QueuePolicy(max_messages=1)})
    for target in "xy":
        kernel.core.bind(Binding(queue="link.out", filter="a", owner="config", options=Options(target=target)))
    answer = kernel.accept(on("a", "1"))
    kernel.run()
    assert answer.outcomes == [REFUSED]
    assert kernel.content("link.out") == []


# templates (ruling 10)


def test_a_message_without_a_group_value_goes_to_the_dead_letters_as_invalid_and_is_stored() -> None:
    kernel = Kernel({"orders": QueuePolicy(group=GROUP), "copy": QueuePolicy()}, [("t", "orders"), ("t", "copy")])
    answer = kernel.accept(on("t", "1"))
    kernel.run()
    assert answer.outcomes == [STORED]
    assert (kernel.content("orders"), kernel.content("copy"), kernel.content("dead-letters")) == ([], ["1"], ["1"])
    assert kernel.deaths("dead-letters") == [("orders", "invalid", 0, "{header[group]} is missing")]
    assert kernel.crash().deaths("dead-letters") == kernel.deaths("dead-letters")


def test_a_message_without_a_dedup_key_goes_to_the_dead_letters_as_invalid() -> None:
    kernel = Kernel({"orders": QueuePolicy(dedup=DedupPolicy(KEY))})
    assert kernel.send("orders", "1") == [STORED]
    assert [death[:2] for death in kernel.deaths("dead-letters")] == [("orders", "invalid")]


def test_a_message_without_a_dedup_key_that_is_not_required_is_never_a_duplicate() -> None:
    kernel = Kernel({"orders": QueuePolicy(dedup=DedupPolicy(KEY, required=False))})
    assert kernel.send("orders", "1", "2") == [STORED, STORED]
    answer = kernel.accept(grouped("orders", "3", "g", "k"), grouped("orders", "4", "g", "k"))
    kernel.run()
    assert answer.outcomes == [STORED, Outcome.DUPLICATE]
    assert kernel.content("orders") == ["1", "2", "3"] and kernel.content("dead-letters") == []


def test_a_dedup_key_that_is_not_required_must_be_one_all_the_same() -> None:
    kernel = Kernel({"orders": QueuePolicy(dedup=DedupPolicy(KEY, required=False))})
    kernel.accept(grouped("orders", "1", "g", "k" * 2000))
    kernel.run()
    assert [death[:2] for death in kernel.deaths("dead-letters")] == [("orders", "invalid")]


def test_an_invalid_message_is_refused_if_the_dead_letters_are_full() -> None:
    kernel = Kernel({"orders": QueuePolicy(group=GROUP, dead_letter="bin"), "bin": QueuePolicy(max_messages=1)})
    assert kernel.send("orders", "1", "2") == [STORED, REFUSED]
    assert kernel.content("bin") == ["1"]


def test_an_invalid_message_of_a_transient_queue_is_refused_while_the_store_refuses() -> None:
    kernel = Kernel({"live": QueuePolicy(group=GROUP, durable=False)})
    kernel.run()
    kernel.core.refusing = "the store is full"
    assert kernel.send("live", "1") == [REFUSED]


def test_an_invalid_message_whose_commit_fails_leaves_no_dead_letter() -> None:
    kernel = Kernel({"orders": QueuePolicy(group=GROUP)})
    kernel.run()
    answer = kernel.accept(to("orders", "1"))
    kernel.commit_fails()
    kernel.run()
    assert answer.outcomes == [REFUSED]
    assert kernel.content("dead-letters") == []
    assert kernel.leaks() == []


# durability and QoS 0 (ruling 12)


def test_a_durable_queue_keeps_every_message_whatever_its_qos_and_a_transient_one_none() -> None:
    kernel = Kernel({"kept": QueuePolicy(), "live": QueuePolicy(durable=False)})
    kernel.send("kept", "0", qos=0)
    kernel.send("live", "1", qos=1)
    after = kernel.crash()
    assert (after.content("kept"), after.content("live")) == (["0"], [])


def test_qos_0_goes_straight_to_a_connected_session_and_is_never_kept_for_an_absent_one() -> None:
    kernel = Kernel({"session": QueuePolicy()}, [("t", "session")])
    worker = kernel.worker("session", credit=0, live=True)
    answer = kernel.accept(on("t", "1", qos=0))
    kernel.run()
    assert answer.outcomes == [STORED]
    assert [(seen.id, seen.message.body) for seen in worker.seen] == [(0, b"1")]
    worker.detach()
    kernel.accept(on("t", "2", qos=0))
    kernel.run()
    assert kernel.content("session") == []
    assert kernel.crash().content("session") == []


def test_a_session_is_live_still_after_a_restart() -> None:
    kernel = Kernel({"session": QueuePolicy()}, [("t", "session")])
    kernel.worker("session", live=True)
    kernel.run()
    after = kernel.crash()
    after.accept(on("t", "1", qos=0))
    after.run()
    assert after.content("session") == []


def test_live_messages_of_a_failed_commit_are_refused_and_never_sent() -> None:
    kernel = Kernel({"session": QueuePolicy()}, [("t", "session")])
    worker = kernel.worker("session", live=True)
    kernel.run()
    answer = kernel.accept(on("t", "1", qos=0), to("session", "2"))
    kernel.commit_fails()
    assert answer.outcomes == [REFUSED, REFUSED]
    kernel.run()
    assert worker.bodies == []


def test_live_messages_behind_a_failed_commit_are_sent_once() -> None:
    kernel = Kernel({"session": QueuePolicy()}, [("t", "session")])
    worker = kernel.worker("session", live=True)
    kernel.run()
    kernel.accept(to("session", "1"))
    kernel.begin()
    kernel.accept(on("t", "2", qos=0))
    kernel.fail()
    kernel.run()
    assert worker.bodies == ["2"]


def test_the_keys_of_a_transient_queue_need_no_disk() -> None:
    kernel = Kernel({"live": QueuePolicy(durable=False, dedup=DedupPolicy("sha256"))})
    kernel.run()
    kernel.accept(to("live", "1"))
    commit = kernel.begin()
    assert commit is not None and not commit.record


# retained messages


def test_a_retained_message_is_seen_after_the_commit_of_its_message_and_survives() -> None:
    kernel = Kernel()
    kernel.run()
    kernel.accept(on("a/b", "1", retain=True))
    assert kernel.core.retained.find("#", kernel.clock()) == []
    kernel.run()
    assert [message.body for _, message in kernel.core.retained.find("a/+", kernel.clock())] == [b"1"]
    assert [message.body for _, message in kernel.crash().core.retained.find("a/+", kernel.clock())] == [b"1"]


def test_an_empty_retained_message_clears() -> None:
    kernel = Kernel()
    kernel.accept(on("a", "1", retain=True))
    kernel.run()
    kernel.accept(on("a", "", retain=True))
    kernel.run()
    assert kernel.core.retained.find("#", kernel.clock()) == []
    assert kernel.crash().core.retained.find("#", kernel.clock()) == []
    assert kernel.core.retained.octets == 0


def test_retained_messages_come_in_the_order_in_which_they_were_set_also_after_a_restart() -> None:
    kernel = Kernel()
    topics = [f"{number * 7919 % 50:02}/x" for number in range(50)]
    kernel.accept(*[on(topic, topic, retain=True) for topic in topics])
    kernel.run()
    kernel.accept(on(topics[0], "again", retain=True))
    kernel.run()
    wanted = [*topics[1:], topics[0]]
    few = [topic for topic in wanted if topic.startswith("1")]
    for run in (kernel, kernel.crash()):
        now = kernel.clock()
        assert [message.topic for _, message in run.core.retained.find("#", now)] == wanted
        found = [message.topic for level in range(10, 20) for _, message in run.core.retained.find(f"{level}/+", now)]
        assert sorted(found) == sorted(few)
    kernel.accept(*[on(f"few/{number * 31 % 10}", "x", retain=True) for number in range(10)])
    kernel.run()
    order = [f"few/{number * 31 % 10}" for number in range(10)]
    assert [message.topic for _, message in kernel.core.retained.find("few/+", kernel.clock())] == order


def test_an_expired_retained_message_is_not_found_and_others_say_what_is_left() -> None:
    kernel = Kernel()
    kernel.accept(on("a", "1", retain=True, ttl=10.0), on("b", "2", retain=True, ttl=30.0))
    kernel.run()
    kernel.advance(20)
    ((_, left),) = kernel.core.retained.find("#", kernel.clock())
    assert (left.topic, round(left.ttl or 0, 3)) == ("b", 10.0)


# after a crash (ruling 4)


def test_after_a_crash_there_is_all_that_was_answered_and_perhaps_what_was_committed_and_not_yet_answered() -> None:
    kernel = Kernel({"orders": QueuePolicy(dedup=DEDUP)})
    kernel.run()
    answered = kernel.accept(grouped("orders", "1", "g", "a"))
    kernel.run()
    assert answered.outcomes == [STORED]
    kernel.accept(grouped("orders", "2", "g", "b"))
    commit = kernel.begin()
    assert commit is not None
    kernel.journal.commit(commit)
    kernel.accept(grouped("orders", "3", "g", "c"))
    after = kernel.crash()
    assert after.content("orders") == ["1", "2"]
    again = after.accept(*[grouped("orders", "x", "g", key) for key in "abc"])
    after.run()
    assert again.outcomes == [DUPLICATE, DUPLICATE, STORED]


def test_further_topics_lead_to_further_queues_under_the_message_s_own() -> None:
    kernel = Kernel({"a": QueuePolicy(), "b": QueuePolicy()}, [("x/a", "a"), ("x/b", "b"), ("y", "b")])
    answer = kernel.accept(
        on("nobody", "1"), on("x/a", "2"), on("y", "3"), offer=Offer(also={1: ("x/b", "y"), 2: ("x/a",)})
    )
    kernel.run()
    assert answer.outcomes == [Outcome.UNROUTED, STORED, STORED]
    assert kernel.content("a") == ["2", "3"] and kernel.content("b") == ["2", "3"]
    worker = kernel.worker("b")
    kernel.run()
    assert [delivery.message.topic for delivery in worker.seen] == ["x/a", "y"]
