"""What dedup promises (design section 4, ruling 19)."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.broker.definitions import secret_state
from gateway.model.message import Properties
from gateway.model.policy import DedupPolicy, QueuePolicy, Seconds
from gateway.queueing.dedup import KEY_BYTES, SWEEP_KEYS, SWEEP_SECONDS, Dedup, pack_keys, unpack_keys
from gateway.queueing.ordering import NEVER
from gateway.transport import Outcome
from tests.harness.kernel import GROUP, KEY, Kernel, grouped, on, to

STORED, DUPLICATE, REFUSED = Outcome.STORED, Outcome.DUPLICATE, Outcome.REFUSED


def policy(window: float = 300, scope: str = "queue", key: str = KEY, **fields: object) -> QueuePolicy:
    return QueuePolicy(group=GROUP, dedup=DedupPolicy(key, Seconds(window), scope), **fields)  # type: ignore[arg-type]


def say(kernel: Kernel, body: str, group: str, key: str, queue: str = "q") -> Outcome:
    answer = kernel.accept(grouped(queue, body, group, key))
    kernel.run()
    assert answer.outcomes is not None
    return answer.outcomes[0]


def test_a_second_message_in_the_window_is_answered_with_success_and_not_stored() -> None:
    kernel = Kernel({"q": policy()})
    assert [say(kernel, "1", "a", "k"), say(kernel, "2", "b", "k"), say(kernel, "3", "a", "other")] == [
        STORED,
        DUPLICATE,
        STORED,
    ]
    assert kernel.content("q") == ["1", "3"]
    assert kernel.queue("q").counters.duplicates == 1


def test_the_window_runs_from_the_first_message_and_ends_exactly() -> None:
    kernel = Kernel({"q": policy(10)})
    say(kernel, "1", "a", "k")
    kernel.clock.now += 9.999
    assert say(kernel, "2", "a", "k") is DUPLICATE
    kernel.clock.now += 0.001
    assert say(kernel, "3", "a", "k") is STORED
    kernel.clock.now += 9.999
    assert say(kernel, "4", "a", "k") is DUPLICATE


def test_the_window_survives_settlement_and_restart() -> None:
    kernel = Kernel({"q": policy(10)})
    say(kernel, "1", "a", "k")
    worker = kernel.worker("q")
    kernel.run()
    worker.done()
    kernel.run()
    assert say(kernel, "2", "a", "k") is DUPLICATE
    after = kernel.crash()
    assert say(after, "3", "a", "k") is DUPLICATE
    after.clock.now += 10
    assert say(after.crash(), "4", "a", "k") is STORED


def test_scope_group_keeps_groups_apart_and_queues_are_always_apart() -> None:
    kernel = Kernel({"q": policy(scope="group"), "other": policy(scope="group")})
    assert [
        say(kernel, "1", "a", "k"),
        say(kernel, "2", "b", "k"),
        say(kernel, "3", "a", "k"),
        say(kernel, "4", "a", "k", "other"),
    ] == [STORED, STORED, DUPLICATE, STORED]


def test_sha256_takes_the_body_as_the_key() -> None:
    kernel = Kernel({"q": QueuePolicy(dedup=DedupPolicy("sha256"))}, [("#", "q")])
    answer = kernel.accept(on("a", "same"), on("b", "same"), on("a", "else"))
    kernel.run()
    assert answer.outcomes == [STORED, DUPLICATE, STORED]


def test_refused_leaves_no_key() -> None:
    kernel = Kernel({"q": policy(max_messages=1)})
    say(kernel, "1", "a", "one")
    assert say(kernel, "2", "a", "two") is REFUSED
    worker = kernel.worker("q")
    kernel.run()
    worker.done()
    kernel.run()
    assert say(kernel, "2", "a", "two") is STORED


def test_a_duplicate_is_answered_also_by_a_full_queue() -> None:
    kernel = Kernel({"q": policy(max_messages=1)})
    say(kernel, "1", "a", "k")
    assert say(kernel, "2", "a", "k") is DUPLICATE


def test_changing_the_window_affects_keys_seen_afterwards() -> None:
    kernel = Kernel({"q": policy(100)})
    say(kernel, "1", "a", "old")
    kernel.policies["q"] = policy(10)
    kernel.configure()
    say(kernel, "2", "a", "new")
    kernel.clock.now += 50
    assert [say(kernel, "3", "a", "old"), say(kernel, "4", "a", "new")] == [DUPLICATE, STORED]


def test_dead_lettering_neither_reads_nor_writes_keys() -> None:
    kernel = Kernel({"q": policy(dead_letter="bin"), "bin": policy()})
    say(kernel, "1", "a", "k", "bin")
    say(kernel, "2", "a", "k")
    worker = kernel.worker("q")
    kernel.run()
    worker.dead()
    kernel.run()
    assert kernel.content("bin") == ["1", "2"]
    assert say(kernel, "3", "a", "k") is DUPLICATE


def test_a_duplicate_is_never_delivered() -> None:
    kernel = Kernel({"q": policy()})
    worker = kernel.worker("q")
    for number in range(5):
        say(kernel, str(number), "a", "k")
        worker.done()
    kernel.run()
    assert worker.bodies == ["0"]


@pytest.mark.parametrize("order", [(10, 1000), (1000, 10)])
def test_keys_of_a_short_window_do_not_wait_for_those_of_a_long_one(order: tuple[float, float]) -> None:
    kernel = Kernel({"first": policy(order[0]), "second": policy(order[1])})
    for number in range(100):
        say(kernel, "x", "a", f"k{number}", "first")
        say(kernel, "x", "a", f"k{number}", "second")
    kernel.clock.now += 20
    for _ in range(3):
        kernel.send("dead-letters", "tick")
    assert len(kernel.core.dedup) == 100
    after = kernel.crash()
    assert len(after.core.dedup) == 100
    after.clock.now += 1000
    after.send("dead-letters", "tick")
    assert len(after.core.dedup) == 0


def test_keys_are_freed_as_fast_as_they_come() -> None:
    kernel = Kernel({"q": policy(1)})
    for _ in range(5):
        for part in range(2):
            kernel.accept(*[grouped("q", "x", "a", f"{kernel.clock.now} {part} {number}") for number in range(3000)])
        kernel.commit()
        kernel.clock.now += 2
    assert len(kernel.core.dedup) <= 12_000


def test_no_two_scopes_run_together() -> None:
    dedup = Dedup(b"secret")
    digests = {
        dedup.digest(queue, group, key)
        for queue in ("q", "q1", "1:q", "")
        for group in (None, "", "g", "1:g", "g\0k")
        for key in ("", "k", "\0k", "1:g\0k")
    }
    assert len(digests) == 4 * 5 * 4


def test_the_hash_is_keyed_and_the_secret_is_in_the_journal() -> None:
    assert Dedup(b"one").digest("q", None, "k") != Dedup(b"two").digest("q", None, "k")
    kernel = Kernel()
    kernel.core.dedup.secret = b"mine"
    kernel.core.gather.forced_states.append(secret_state(kernel.core))
    kernel.run()
    assert kernel.crash().core.dedup.secret == b"mine"


def test_one_message_may_be_new_in_one_queue_and_a_duplicate_in_another() -> None:
    kernel = Kernel({"q": QueuePolicy(dedup=DedupPolicy("sha256")), "all": QueuePolicy()}, [("t", "q"), ("t", "all")])
    answer = kernel.accept(on("t", "1"), on("t", "1"), to("q", "1"))
    kernel.run()
    assert answer.outcomes == [STORED, STORED, DUPLICATE]
    assert (kernel.content("q"), kernel.content("all")) == (["1"], ["1", "1"])


def test_keys_leave_memory_and_journal_after_their_time_also_without_traffic() -> None:
    kernel = Kernel({"short": policy(100), "long": policy(1000)})
    for number in range(50):
        say(kernel, "x", "a", f"k{number}", "short")
        kernel.clock.now += 1
    say(kernel, "x", "a", "k", "long")
    assert len(list(kernel.journal.expiring())) == 51
    kernel.advance(100 + SWEEP_SECONDS)
    kernel.run()
    assert (len(list(kernel.journal.expiring())), len(kernel.core.dedup)) == (1, 1)
    kernel = kernel.crash()
    assert say(kernel, "y", "a", "k", "long") is DUPLICATE
    kernel.advance(1000 + SWEEP_SECONDS)
    kernel.run()
    assert (list(kernel.journal.expiring()), len(kernel.core.dedup)) == ([], 0)
    assert kernel.core.next_due() == NEVER


def test_many_keys_that_end_at_once_are_freed_in_short_steps() -> None:
    kernel = Kernel({"q": policy(100)})
    kernel.accept(*[grouped("q", "x", "a", f"k{number}") for number in range(3 * 5 * SWEEP_KEYS)])
    kernel.run()
    kernel.clock.now += 100 + SWEEP_SECONDS
    kernel.core.tick()
    assert len(kernel.core.dedup) == 2 * 5 * SWEEP_KEYS
    kernel.advance(1)
    assert len(kernel.core.dedup) == 0


def test_keys_of_a_journal_are_whole_or_an_error() -> None:
    keys = [(bytes([number]) * KEY_BYTES, 5.0 + number) for number in range(3)]
    until, data = pack_keys(keys)
    assert until == 7.0
    assert list(unpack_keys(data)) == keys
    with pytest.raises(ValueError):
        list(unpack_keys(data[:-1]))


@given(
    st.lists(
        st.dictionaries(st.integers(0, 30), st.integers(0, 12).map(float), min_size=1, max_size=6).map(
            lambda piece: list(piece.items())
        ),
        max_size=12,
    ),
    st.integers(0, 4).map(float),
)
def test_restored_keys_count_until_their_time_and_are_freed_then(
    pieces: list[list[tuple[int, float]]], now: float
) -> None:
    """Whatever windows and orders the journal's pieces are of, and also if a key stands there twice."""
    packed = [pack_keys([(bytes([name]) * KEY_BYTES, until) for name, until in piece])[1] for piece in pieces]
    latest: dict[int, float] = {}
    for name, until in itertools.chain(*pieces):
        latest[name] = max(until, latest.get(name, 0.0))
    dedup = Dedup(b"secret")
    dedup.restore(packed, now)
    for time in (now, now + 1, now + 5, 12.0):
        live = {name for name, until in latest.items() if until > max(now, time)}
        assert {name for name in latest if dedup.seen(bytes([name]) * KEY_BYTES, max(now, time))} == live
        dedup.sweep(max(now, time))
        assert {digest[0] for digest, _ in dedup.live(time)} == live
        assert len(dedup) == len(list(dedup.live(0.0)))  # nothing that is over is kept


@pytest.mark.parametrize("required", [True, False])
def test_an_empty_key_is_a_key_and_a_missing_one_is_none(required: bool) -> None:
    dedup = DedupPolicy(KEY, required=required)
    kernel = Kernel({"q": QueuePolicy(dedup=dedup, dead_letter="bin"), "bin": QueuePolicy()})
    keys: list[tuple[tuple[str, str], ...]] = [(("key", ""),), (("key", ""),), (), (), (("key", "0"),), (("key", "0"),)]
    answer = kernel.accept(*[to("q", str(n), properties=Properties(headers=key)) for n, key in enumerate(keys)])
    kernel.run()
    stored, duplicate = Outcome.STORED, Outcome.DUPLICATE
    assert answer.outcomes == [stored, duplicate, stored, stored, stored, duplicate]
    assert kernel.content("q") == (["0", "4"] if required else ["0", "2", "3", "4"])
    assert kernel.content("bin") == (["2", "3"] if required else [])
