"""The checker of the fault tests finds each kind of broken promise."""

from __future__ import annotations

from tests.harness.history import History, Key

A, B, C = Key("g", 0), Key("g", 1), Key("g", 2)
ONE, TWO = "one", "two"


def history(*acknowledged: Key) -> History:
    made = History()
    made.sent.update((A, B, C))
    made.acknowledged.update(acknowledged)
    made.began()
    return made


def take(made: History, *keys: Key) -> None:
    for key in keys:
        made.saw(key, ONE)
        made.finished(key)


def test_a_good_run_has_no_faults() -> None:
    made = history(A, B, C)
    made.saw(A, ONE)
    made.gave_back(A)
    take(made, A, B, C)
    assert made.check() == [] and made.again == 1


def test_what_was_not_durable_may_come_again_after_a_crash() -> None:
    made = history(A, B)
    take(made, A, B)
    made.began()
    take(made, B, C)
    assert made.check() == []


def test_loss() -> None:
    made = history(A, B)
    take(made, A)
    assert made.check() == ["g-1 was acknowledged and never delivered"]


def test_not_delivered_again() -> None:
    made = history()
    made.saw(A, ONE)
    made.gave_back(A)
    assert made.check() == ["g-0 was delivered, and not again after it was given back"]


def test_settled_durably_and_back() -> None:
    made = history(A)
    take(made, A)
    made.durable.add(A)
    made.began()
    take(made, A)
    assert made.check() == ["run 2: g-0 came although it was settled durably"]


def test_overtaking() -> None:
    made = history(A, B)
    take(made, B)
    assert "run 1: g-1 overtook g-0" in made.check()


def test_first_deliveries_out_of_order() -> None:
    made = history()
    take(made, B)
    made.began()
    take(made, A)
    assert made.check() == ["run 2: g-0 came for the first time after g-1"]


def test_two_at_a_time() -> None:
    made = history()
    made.saw(A, ONE)
    made.saw(B, TWO)
    assert "run 1: g-1 came while another consumer held g-0" in made.check()


def test_next_before_the_retry() -> None:
    made = history()
    made.saw(A, ONE)
    made.gave_back(A)
    made.saw(B, ONE)
    assert "run 1: g-1 came before g-0 was done" in made.check()


def test_back_in_one_run() -> None:
    made = history()
    take(made, A, B, A)
    assert made.check() == ["run 1: g-0 came after g-1 in one run"]


def test_never_sent() -> None:
    made = History()
    take(made, A)
    assert made.check() == ["run 0: g-0 was never sent"]
