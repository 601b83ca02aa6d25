"""LoginQueue: whose check is next, and who has to go, over random lives."""

from __future__ import annotations

from collections import Counter

import hypothesis.strategies as st
from hypothesis import given

from gateway.auth.login_queue import LoginQueue

PEERS, NAMES = st.sampled_from("abcd"), st.sampled_from("uvwx")
steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), PEERS, NAMES),
        st.tuples(st.just("take"), PEERS, NAMES),
        st.tuples(st.just("discard"), PEERS, NAMES),
        st.tuples(st.just("displace"), PEERS, NAMES),
    ),
    max_size=60,
)


@given(steps)
def test_nothing_is_lost_or_doubled_and_the_longest_row_gives_way(life: list[tuple[str, str, str]]) -> None:
    queue: LoginQueue[int] = LoginQueue()
    there: dict[int, tuple[str, str]] = {}
    for number, (step, peer, name) in enumerate(life):
        if step == "add":
            queue.add(number, peer, name)
            there[number] = (peer, name)
        elif step == "take" and there:
            del there[queue.take()]
        elif step == "discard":
            one = next((item for item, key in there.items() if key == (peer, name)), -1)
            queue.discard(one)
            queue.discard(one)
            there.pop(one, None)
        elif step == "displace":
            peers = Counter(key[0] for key in there.values())
            gone = queue.displace(peer, name)
            if gone is None:
                assert not there or max(peers.values()) <= peers[peer] + 1 or peers[peer] == max(peers.values())
            else:
                longest, fullest = there.pop(gone)
                assert peers[longest] == max(peers.values())
                names = Counter(key[1] for key in [*there.values(), (longest, fullest)] if key[0] == longest)
                assert names[fullest] >= 1
                assert not [item for item, key in there.items() if key == (longest, fullest) and item > gone]
        assert len(queue) == len(there)
        assert all(item in queue for item in there)
    rest = [queue.take() for _ in range(len(there))]
    assert sorted(rest) == sorted(there)


@given(st.integers(1, 200), st.integers(1, 5))
def test_every_peer_and_every_name_has_its_turn_within_two_rounds(flood: int, others: int) -> None:
    queue: LoginQueue[int] = LoginQueue()
    for number in range(flood):
        queue.add(number, "loud", f"name {number}")
    for number in range(others):
        queue.add(1000 + number, f"peer {number}", "name")
    order = [queue.take() for _ in range(len(queue))]
    assert all(order.index(1000 + number) <= 2 * (others + 1) for number in range(others))


def test_one_peer_and_name_are_served_in_their_order() -> None:
    queue: LoginQueue[int] = LoginQueue()
    for number in range(10):
        queue.add(number, "peer", "name")
    assert [queue.take() for _ in range(10)] == list(range(10))
