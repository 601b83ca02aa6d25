"""The packed arrays of entries, and the numbers in them, against plain lists and dictionaries."""

from __future__ import annotations

from array import array
from math import isqrt

import hypothesis.strategies as st
from hypothesis import given, settings

from gateway.queueing.entries import Entries, Walk
from gateway.queueing.interning import Extras, GroupNames
from gateway.storage.records import NO_EXTRA, Extra
from gateway.transport import Options


@settings(max_examples=200)
@given(
    st.lists(
        st.one_of(
            st.sampled_from(["add", "extend"]),
            st.integers(0, 99),
            st.tuples(st.sampled_from(["copied", "purged"]), st.integers(0, 99)),
        ),
        max_size=120,
    )
)
def test_entries_are_a_list(steps: list[str | int | tuple[str, int]]) -> None:
    entries = Entries()
    kept: list[tuple[int, int, int]] = []
    walks = {"copied": 0, "purged": 0}
    ident = 0
    for step in steps:
        if step == "add":
            ident += 1
            slot = entries.add(ident, ident * 2, ident * 3, ident, ident / 2, ident / 4, ident * 5, ident * 6)
            assert all(slot != other for other, _, _ in kept)
            kept.append((slot, ident, ident))
        elif step == "extend" and entries.is_dense:
            new = range(ident + 1, ident + 4)
            ident = new[-1]
            slots = entries.extend(
                {
                    "ident": array("q", new),
                    "row": array("q", [number * 2 for number in new]),
                    "offset": array("I", [number * 3 for number in new]),
                    "length": array("I", new),
                    "expires": array("d", [number / 2 for number in new]),
                    "accepted": array("d", [number / 4 for number in new]),
                    "group": array("I", [number * 5 for number in new]),
                    "extra": array("I", [number * 6 for number in new]),
                }
            )
            assert not {slot for slot, _, _ in kept} & set(slots)
            kept += zip(slots, new, new, strict=True)
        elif isinstance(step, tuple) and kept:
            walks[step[0]] = kept[step[1] % len(kept)][0]
            setattr(entries, step[0], walks[step[0]])
        elif isinstance(step, int) and kept:
            place = step % len(kept)
            slot, gone, _ = kept.pop(place)
            following = kept[place][0] if place < len(kept) else 0
            walks = {name: following if at == slot else at for name, at in walks.items()}
            entries.remove(slot)
            assert not entries.holds(slot, gone)
        assert list(entries.slots()) == [slot for slot, _, _ in kept]
        assert (entries.count, entries.octets) == (len(kept), sum(length for _, _, length in kept))
        assert {"copied": entries.copied, "purged": entries.purged} == walks
        for slot, number, length in kept:
            assert entries.holds(slot, number)
            assert (entries.row[slot], entries.offset[slot], entries.length[slot]) == (number * 2, number * 3, length)
            assert (entries.expires[slot], entries.accepted[slot]) == (number / 2, number / 4)
            assert (entries.group[slot], entries.extra[slot]) == (number * 5, number * 6)


def test_an_empty_queue_gives_its_memory_back_and_old_slots_are_nobody_s() -> None:
    entries = Entries()
    slots = [entries.add(ident, 0, 0, 1, 0, 0, 0, 0) for ident in range(1, 20_001)]
    for slot in slots:
        entries.remove(slot)
    assert len(entries.ident) < 1000
    assert not entries.holds(slots[-1], 20_000)
    assert not entries.holds(slots[0], 1)
    again = entries.add(20_001, 0, 0, 1, 0, 0, 0, 0)
    assert list(entries.slots()) == [again]


def test_an_entry_takes_64_bytes() -> None:
    entries = Entries()
    columns = [getattr(entries, name) for name in ("ident", "row", "offset", "length", "expires", "accepted", "group")]
    columns += [getattr(entries, name) for name in ("extra", "next", "previous", "group_next", "group_previous")]
    assert sum(column.itemsize for column in columns) == 64


@settings(max_examples=200)
@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from(["use", "commit", "undo", "drain"])), max_size=60))
def test_a_group_number_never_means_two_groups_at_once(steps: list[tuple[str, str]]) -> None:
    """Every group has entries that are on their way (by ident) or here; its number must be its own all that time."""
    groups = GroupNames()
    pending: list[tuple[int, str, int]] = []
    here: dict[str, list[int]] = {}
    ident = committed = 0
    for name, step in steps:
        if step == "use":
            ident += 1
            number, _ = groups.number(name, ident)
            pending.append((ident, name, number))
        elif step == "commit" and pending:
            committed = ident
            for _, whose, number in pending:
                here.setdefault(whose, []).append(number)
            pending.clear()
        elif step == "undo" and pending:
            groups.empty([number for _, _, number in pending])
            pending.clear()
        elif step == "drain" and name in here:
            groups.empty([here.pop(name)[0]])
        live = {number for held in here.values() for number in held}
        groups.free_idle(live, committed)
        meanings = {(number, whose) for _, whose, number in pending}
        meanings |= {(number, whose) for whose, held in here.items() for number in held}
        assert len({number for number, _ in meanings}) == len(meanings)
        for number, whose in meanings:
            assert groups.name(number) == whose and groups.find(whose) == number
    live = {number for held in here.values() for number in held}
    groups.free_idle(live, ident + 1)
    assert pending or len(groups) == len(here)


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=80))
def test_extras_are_counted_by_use_and_their_numbers_used_again(steps: list[tuple[int, bool]]) -> None:
    extras = Extras()
    used: list[tuple[int, Extra]] = []
    named: dict[int, Extra] = {}
    for which, use in steps:
        value = NO_EXTRA if which == 0 else Extra(Options(qos=which - 1))
        if use:
            number, is_new = extras.use(value)
            if is_new:
                named[number] = value
            used.append((number, value))
        elif used:
            number, _ = used.pop(which % len(used))
            extras.drop(number)
        for number, value in used:
            assert extras[number] == value
            assert number == 0 or named[number] == value, "it was not journaled"
        assert {number for number, _ in extras.named(0, extras.top)} == {number for number, _ in used if number}


def test_restored_numbers_are_free_unless_something_uses_them() -> None:
    groups = GroupNames()
    for number, name in [(1, "a"), (5, "b"), (2, "c"), (1, "d")]:
        groups.restore(number, name)
    groups.restored([1, 5])
    assert groups.named(0, groups.top) == [(1, "d"), (5, "b")]
    assert groups.find("a") == 0 and groups.find("c") == 0
    assert {groups.number(name, 9)[0] for name in ("x", "y", "z")} == {2, 3, 4}
    extras = Extras()
    one, two = Extra(group="one"), Extra(group="two")
    extras.restore(3, one)
    extras.restore(1, two)
    extras.restored({3: 2})
    assert extras.named(0, extras.top) == [(3, one)]
    assert extras.use(one) == (3, False)
    for _ in range(3):
        extras.drop(3)
    assert extras.named(0, extras.top) == []


# finding a place, and walking in portions


def filled(count: int) -> Entries:
    entries = Entries()
    for ident in range(1, count + 1):
        entries.add(ident, 0, 0, 0, 0.0, 0.0, 0, 0)
    return entries


class Looked(list[int]):
    """Counts how often it is looked into."""

    times = 0

    def __getitem__(self, place):  # type: ignore[no-untyped-def]
        self.times += 1
        return super().__getitem__(place)


@given(st.integers(1, 400), st.randoms(use_true_random=False), st.integers(0, 3))
def test_the_entry_behind_an_ident_is_found_whatever_has_left_and_come(count, rng, rounds) -> None:
    entries, ident = filled(count), count
    here = {entries.ident[slot]: slot for slot in entries.slots()}
    for _ in range(rounds):
        for gone in rng.sample(sorted(here), rng.randint(0, len(here))):
            entries.remove(here.pop(gone))
        for _ in range(rng.randint(0, 50)):
            ident += 1
            here[ident] = entries.add(ident, 0, 0, 0, 0.0, 0.0, 0, 0)
    for asked in range(ident + 2):
        assert entries.after(asked) == next((here[one] for one in sorted(here) if one > asked), 0)


def test_a_page_far_behind_is_found_without_passing_all_that_is_before() -> None:
    count = 50_000
    entries = filled(count)
    looked = entries.next, entries.ident = Looked(entries.next), Looked(entries.ident)  # type: ignore[assignment]
    slots = Walk(entries, after=45_123).some(100)
    assert [entries.ident[slot] for slot in slots] == list(range(45_124, 45_224))
    assert sum(column.times for column in looked) < 4 * isqrt(count) + 10 * 100  # type: ignore[attr-defined]


@given(st.integers(1, 200), st.integers(1, 60), st.randoms(use_true_random=False))
def test_a_walk_meets_once_what_is_there_all_the_while(count, most, rng) -> None:
    entries, ident = filled(count), count
    here = {entries.ident[slot]: slot for slot in entries.slots()}
    lasting, met = set(here), []
    walk = Walk(entries)
    while slots := walk.some(most):
        met += [entries.ident[slot] for slot in slots]
        for gone in rng.sample(sorted(here), rng.randint(0, len(here) // 2)):
            entries.remove(here.pop(gone))
            lasting.discard(gone)
        if ident < 2 * count:
            ident += 1
            here[ident] = entries.add(ident, 0, 0, 0, 0.0, 0.0, 0, 0)
    assert met == sorted(set(met))
    assert lasting <= set(met)
