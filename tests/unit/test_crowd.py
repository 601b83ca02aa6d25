"""Who has to go when a listener has too many connections, or too much is unfinished on them."""

from __future__ import annotations

from gateway.model.counters import TransportCounters
from gateway.net.connection_limits import SMALL_OCTETS, SPARE, Crowd

KB = 1024


class One:
    def __init__(self, crowd: Crowd) -> None:
        self.why = ""
        crowd.join(self)

    def cut_off(self, why: str) -> None:
        assert not self.why, "it was cut off already"
        self.why = why


def crowd(max_connections: int = 10, max_unfinished: int = 100 * KB) -> Crowd:
    return Crowd(max_connections, max_unfinished, TransportCounters())


def gone(members: list[One]) -> list[int]:
    return [place for place, one in enumerate(members) if one.why]


def test_strangers_give_way_to_later_ones_and_never_push_out_who_is_known() -> None:
    it = crowd()
    known = [One(it) for _ in range(10)]
    assert all(it.admit(one) for one in known)
    strangers = [One(it) for _ in range(500)]
    assert not gone(known)
    assert gone(strangers) == list(range(500 - SPARE))
    assert len(it) == 10 + SPARE
    assert it._counters.refusals == {"crowded-out": 500 - SPARE}


def test_a_flood_of_strangers_leaves_a_place_to_one_who_speaks() -> None:
    it = crowd()
    for _ in range(1000):
        One(it)
    good = One(it)
    for _ in range(SPARE // 2):
        One(it)
    assert it.admit(good)
    for _ in range(1000):
        One(it)
    assert not good.why


def test_all_places_taken_is_said_and_counted() -> None:
    it = crowd(1)
    first, second = One(it), One(it)
    assert it.admit(first) and it.has_place(first) and not it.has_place(second)
    assert not it.admit(second)
    assert it.admit(first), "it has its place"
    assert it._counters.refusals == {"max-connections": 1}
    it.leave(first)
    assert it.admit(second)


def test_who_takes_longest_to_finish_has_to_go() -> None:
    it = crowd()
    members = [One(it) for _ in range(5)]
    for one in members[:4]:
        it.hold(one, 24 * KB)
    it.hold(members[0], 5 * KB)  # it has finished something, and begun anew
    it.hold(members[4], 40 * KB)
    assert gone(members) == [1]
    assert members[1].why == "unfinished"
    assert it._counters.refusals == {"unfinished": 1}
    assert it.unfinished == (24 + 24 + 5 + 40) * KB
    for one in members:
        it.leave(one)
        it.leave(one)
    assert (it.unfinished, len(it)) == (0, 0)


def test_what_grows_keeps_its_place_in_the_row() -> None:
    it = crowd()
    first, second = One(it), One(it)
    it.hold(first, 10 * KB)
    it.hold(second, 10 * KB)
    for kb in range(11, 95, 10):
        it.hold(first, kb * KB)
    it.hold(second, 20 * KB)
    assert (first.why, second.why) == ("unfinished", "")


def test_the_rest_of_a_read_is_not_counted() -> None:
    it = crowd()
    one = One(it)
    it.hold(one, SMALL_OCTETS - 1)
    assert it.unfinished == 0
    it.hold(one, SMALL_OCTETS)
    assert it.unfinished == SMALL_OCTETS
    it.hold(one, 3)
    assert it.unfinished == 0


def test_one_that_holds_more_than_all_may_goes_itself() -> None:
    it = crowd(max_unfinished=10 * KB)
    one = One(it)
    it.hold(one, 11 * KB)
    assert one.why
    assert it.unfinished == 0
