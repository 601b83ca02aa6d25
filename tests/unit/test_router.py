"""Routing: bindings, exchanges, merging, and a cache that nobody can see (rulings 7 and 8)."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from msgspec import structs

from gateway.model.message import Message, Properties, to_topic
from gateway.routing.router import Router
from gateway.transport import Binding, ExchangeBinding, HeadersMatch, Options
from tests.unit.test_topics import filters, names

QUEUES = ("q0", "q1", "q2")
EXCHANGES = ("amq.topic", "own", "more", "")

matches = st.sampled_from([None, None, HeadersMatch((("h", "1"),)), HeadersMatch((("h", "1"), ("g", None)), any=True)])
bindings = st.builds(
    Binding,
    queue=st.sampled_from(QUEUES),
    filter=st.one_of(filters, names, st.sampled_from(QUEUES)).filter(lambda text: text.count("#") <= 4),
    exchange=st.sampled_from(EXCHANGES),
    literal=st.booleans(),
    match=matches,
    source=st.sampled_from([None, None, "mqtt"]),
    not_from=st.sampled_from([None, None, "me"]),
    names=st.booleans(),
    owner=st.sampled_from(["config", "s"]),
    options=st.builds(
        Options,
        qos=st.integers(0, 2),
        subscription_ids=st.sampled_from([(), (1,), (2,)]),
        target=st.sampled_from([None, None, "t"]),
    ),
)
exchange_bindings = st.builds(
    ExchangeBinding,
    exchange=st.sampled_from(EXCHANGES[:-1]),
    to=st.sampled_from(EXCHANGES[:-1]),
    filter=st.one_of(filters, names, st.just("#")).filter(lambda text: text.count("#") <= 4),
    literal=st.booleans(),
    match=matches,
    otherwise=st.sampled_from([False, False, True]),
)
messages = st.builds(
    Message,
    topic=st.one_of(names, st.sampled_from(QUEUES)),
    body=st.just(b""),
    exchange=st.sampled_from(EXCHANGES),
    properties=st.sampled_from([Properties(), Properties(headers=(("h", "1"),)), Properties(headers=(("g", 2),))]),
    source=st.sampled_from(["", "mqtt"]),
    client_id=st.sampled_from(["", "me"]),
)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("bind"), bindings),
        st.tuples(st.just("unbind"), st.integers(0, 50)),
        st.tuples(st.just("remove"), st.sampled_from(QUEUES)),
        st.tuples(st.just("bind-exchange"), exchange_bindings),
        st.tuples(st.just("unbind-exchange"), st.integers(0, 50)),
        st.tuples(st.just("route"), messages),
        st.tuples(st.just("route"), messages),
    ),
    max_size=40,
)


def plain(answer: object) -> dict[tuple[str, str | None], Options]:
    return {(queue, options.target): options for queue, options in answer}  # type: ignore[attr-defined]


@settings(max_examples=300)
@given(steps, st.sampled_from([1 << 20, 2000, 1]))
def test_the_cache_can_not_be_seen(steps: list[tuple[str, object]], cache_octets: int) -> None:
    router: Router[str] = Router(cache_octets)
    bound: list[Binding] = []
    joined: list[ExchangeBinding] = []
    for queue in QUEUES:
        router.add_queue(queue, queue)
    for what, value in steps:
        if what == "bind":
            assert isinstance(value, Binding)
            router.bind(value)
            bound = [binding for binding in bound if not same(binding, value)] + [value]
        elif what == "unbind" and bound:
            assert isinstance(value, int)
            assert router.unbind(bound.pop(value % len(bound)))
        elif what == "remove":
            assert isinstance(value, str)
            router.remove_queue(value)
            router.add_queue(value, value)
            bound = [binding for binding in bound if binding.queue != value]
        elif what == "bind-exchange":
            assert isinstance(value, ExchangeBinding)
            router.bind_exchange(value)
            joined = [binding for binding in joined if binding != value and not is_replaced(binding, value)] + [value]
        elif what == "unbind-exchange" and joined:
            assert isinstance(value, int)
            assert router.unbind_exchange(joined.pop(value % len(joined)))
        elif what == "route":
            assert isinstance(value, Message)
            fresh: Router[str] = Router()
            for queue in QUEUES:
                fresh.add_queue(queue, queue)
            for binding in bound:
                fresh.bind(binding)
            for binding in joined:
                fresh.bind_exchange(binding)
            for _ in range(2):
                assert plain(router.route(value)) == plain(fresh.route(value))
            assert {binding.queue for binding in router.find(value)} == {
                queue for queue, _ in plain(fresh.route(value))
            }
    for queue in QUEUES:
        assert sorted(map(repr, router.bindings(queue))) == sorted(repr(each) for each in bound if each.queue == queue)
    assert sorted(map(repr, router.exchange_bindings())) == sorted(map(repr, joined))
    for binding in bound:
        router.unbind(binding)
    for binding in joined:
        router.unbind_exchange(binding)
    assert router.octets == 0


def is_replaced(old: ExchangeBinding, new: ExchangeBinding) -> bool:
    """An exchange has one binding for all that goes nowhere else."""
    return old.otherwise and new.otherwise and old.exchange == new.exchange


def same(one: Binding, other: Binding) -> bool:
    fields = ("owner", "queue", "exchange", "filter", "literal", "match", "source")
    return all(getattr(one, name) == getattr(other, name) for name in fields) and (
        one.options.target == other.options.target
    )


def router(*bound: Binding) -> Router[str]:
    made: Router[str] = Router()
    for queue in sorted({binding.queue for binding in bound} | {"q"}):
        made.add_queue(queue, queue)
    for binding in bound:
        made.bind(binding)
    return made


def queues(made: Router[str], message: Message) -> list[str]:
    return sorted(queue for queue, _ in made.route(message))


def test_the_default_exchange_reaches_a_queue_by_its_name_alone() -> None:
    made = router(Binding(queue="q", filter="#"), Binding(queue="r", filter="#", exchange="own"))
    assert queues(made, Message("q", b"", "")) == ["q"]
    assert queues(made, to_topic("$queue/r", b"")) == ["r"]
    assert queues(made, to_topic("$queue/nobody", b"")) == []
    assert queues(made, Message("q", b"", "own")) == ["r"]


def test_each_exchange_has_its_own_bindings() -> None:
    made = router(Binding(queue="q", filter="a"), Binding(queue="r", filter="a", exchange="own"))
    assert queues(made, Message("a", b"")) == ["q"]
    assert queues(made, Message("a", b"", "own")) == ["r"]
    assert queues(made, Message("a", b"", "unknown")) == []


def test_a_wildcard_in_the_first_level_hides_dollar_topics_in_the_shared_space_only() -> None:
    made = router(Binding(queue="q", filter="#"), Binding(queue="r", filter="#", exchange="own"))
    assert queues(made, Message("$SYS/x", b"")) == []
    assert queues(made, Message("$SYS/x", b"", "own")) == ["r"]


def test_a_literal_binding_takes_wildcards_as_text() -> None:
    made = router(Binding(queue="q", filter="a/+", exchange="own", literal=True))
    assert queues(made, Message("a/b", b"", "own")) == []
    assert queues(made, Message("a/+", b"", "own")) == ["q"]


@pytest.mark.parametrize("topic", ["sms/+49123", "C#", "a/+/b", "#", "", "a\0"])
def test_a_key_that_is_no_topic_name_goes_by_no_binding_for_names(topic: str) -> None:
    made = router(Binding(queue="q", filter="#", names=True), Binding(queue="r", filter="#"))
    assert queues(made, Message(topic, b"")) == ["r"]
    assert queues(made, Message("a/b", b"")) == ["q", "r"]


def test_source_and_not_from_are_asked_of_each_message() -> None:
    made = router(Binding(queue="q", filter="a", source="mqtt"), Binding(queue="r", filter="a", not_from="me"))
    assert queues(made, Message("a", b"", source="mqtt", client_id="me")) == ["q"]
    assert queues(made, Message("a", b"", source="amqp", client_id="you")) == ["r"]


@pytest.mark.parametrize(
    ("match", "headers", "wanted"),
    [
        (HeadersMatch((("a", 1), ("b", 2))), (("a", 1), ("b", 2)), True),
        (HeadersMatch((("a", 1), ("b", 2))), (("a", 1),), False),
        (HeadersMatch((("a", 1), ("b", 2)), any=True), (("b", 2),), True),
        (HeadersMatch((("a", None),)), (("a", "anything"),), True),
        (HeadersMatch(()), (), True),
        (HeadersMatch((), any=True), (("a", 1),), False),
        (HeadersMatch((("a", 1),)), (("a", True),), False),
        (HeadersMatch((("a", 1),)), (("a", 1.0),), False),
        (HeadersMatch((("a", True),)), (("a", 1),), False),
        (HeadersMatch((("a", [1, {"b": True}]),)), (("a", [1, {"b": 1}]),), False),
        (HeadersMatch((("a", [1, {"b": True}]),)), (("a", [1, {"b": True}]),), True),
        (HeadersMatch((("a", "1"),)), (("a", b"1"),), False),
    ],
)
def test_headers_are_matched_all_or_any(
    match: HeadersMatch, headers: tuple[tuple[str, object], ...], wanted: bool
) -> None:
    made = router(Binding(queue="q", filter="#", exchange="own", match=match))
    assert (queues(made, Message("x", b"", "own", properties=Properties(headers=headers))) == ["q"]) is wanted


def test_bindings_that_differ_in_a_value_s_type_are_two() -> None:
    wanted = [HeadersMatch((("h", value),)) for value in (1, True, 1.0)]
    made = router(*(Binding(queue="q", filter="#", exchange="own", match=match) for match in wanted))
    assert len(made.bindings("q")) == 3
    assert len({*wanted}) == 3 and wanted[0] == HeadersMatch((("h", 1),))


def test_an_equal_binding_replaces_the_earlier_one() -> None:
    made = router(
        Binding(queue="q", filter="a", owner="s", options=Options(0, (1,))),
        Binding(queue="q", filter="a", owner="s", options=Options(1, (2,))),
    )
    assert made.route(Message("a", b""))[0][1] == Options(1, (2,))
    assert len(made.bindings("q")) == 1


def test_a_filter_that_can_not_be_held_and_an_unknown_queue_are_refused() -> None:
    made = router()
    with pytest.raises(ValueError, match="more than 4 times #"):
        made.bind(Binding(queue="q", filter="#/#/#/#/#"))
    with pytest.raises(KeyError):
        made.bind(Binding(queue="nobody", filter="a"))
    assert made.bindings("q") == []


def test_the_cache_is_bounded() -> None:
    made: Router[str] = Router(cache_octets=100_000)
    made.add_queue("q", "q")
    made.bind(Binding(queue="q", filter="dev/#"))
    for number in range(5000):
        assert queues(made, Message(f"dev/{number}", b"")) == ["q"]
    assert len(made._exchanges["amq.topic"].answers) < 250


def test_subscriptions_with_the_same_identifier_are_told_each() -> None:
    one = Binding(queue="q", filter="a/+", owner="s", options=Options(1, (7,)))
    made = router(one, structs.replace(one, filter="a/#"), structs.replace(one, filter="+/b", options=Options(0, (2,))))
    assert made.route(Message("a/b", b"")) == (("q", Options(1, (2, 7, 7))),)
    assert made.route(Message("a/c", b"")) == (("q", Options(1, (7, 7))),)


def joined(*bindings: ExchangeBinding) -> Router[str]:
    """Each of the exchanges a to d has a queue of its name, which gets all there is."""
    made = router(*(Binding(queue=name, filter="#", exchange=name) for name in "abcd"))
    for binding in bindings:
        made.bind_exchange(binding)
    return made


def test_exchanges_lead_on_and_a_queue_gets_a_message_once() -> None:
    made = joined(
        ExchangeBinding(exchange="a", to="b"),
        ExchangeBinding(exchange="a", to="c", filter="x/+"),
        ExchangeBinding(exchange="b", to="c"),
    )
    made.bind(Binding(queue="a", filter="#", exchange="c"))
    assert queues(made, Message("x/1", b"", "a")) == ["a", "b", "c"]
    assert queues(made, Message("y", b"", "c")) == ["a", "c"]


def test_exchanges_may_lead_in_circles() -> None:
    made = joined(
        ExchangeBinding(exchange="a", to="b"),
        ExchangeBinding(exchange="b", to="c"),
        ExchangeBinding(exchange="c", to="a"),
    )
    made.bind_exchange(ExchangeBinding(exchange="a", to="a"))
    for exchange in "abc":
        assert queues(made, Message("x", b"", exchange)) == ["a", "b", "c"]


def test_a_binding_of_exchanges_asks_of_the_message_what_a_binding_does() -> None:
    made = joined(
        ExchangeBinding(exchange="a", to="b", match=HeadersMatch((("h", 1),))), ExchangeBinding(exchange="b", to="c")
    )
    wanted = Message("x", b"", "a", properties=Properties(headers=(("h", 1),)))
    for _ in range(2):
        assert queues(made, wanted) == ["a", "b", "c"]
        assert queues(made, Message("x", b"", "a")) == ["a"]
    assert sorted(binding.queue for binding in made.find(wanted)) == ["a", "b", "c"]


def test_what_nothing_matches_goes_to_the_alternate() -> None:
    made = router(Binding(queue="q", filter="x", exchange="a"), Binding(queue="r", filter="#", exchange="other"))
    made.bind_exchange(ExchangeBinding(exchange="a", to="other", otherwise=True))
    assert queues(made, Message("x", b"", "a")) == ["q"]
    assert queues(made, Message("y", b"", "a")) == ["r"]
    made.bind(Binding(queue="q", filter="y", exchange="a", match=HeadersMatch((("h", 1),))))
    assert queues(made, Message("y", b"", "a")) == ["r"]
    assert queues(made, Message("y", b"", "a", properties=Properties(headers=(("h", 1),)))) == ["q"]
    made.bind_exchange(ExchangeBinding(exchange="a", to="nowhere", filter="z"))
    assert queues(made, Message("z", b"", "a")) == []  # it led on, if to nothing


def test_alternates_are_asked_one_after_the_other() -> None:
    made = router(Binding(queue="q", filter="#", exchange="c"))
    made.bind_exchange(ExchangeBinding(exchange="a", to="b", otherwise=True))
    made.bind_exchange(ExchangeBinding(exchange="b", to="c", otherwise=True))
    assert queues(made, Message("x", b"", "a")) == ["q"]
    made.bind_exchange(ExchangeBinding(exchange="c", to="a", otherwise=True))
    made.unbind(Binding(queue="q", filter="#", exchange="c"))
    assert queues(made, Message("x", b"", "a")) == []


def test_an_edit_behind_another_exchange_is_seen() -> None:
    made = joined(ExchangeBinding(exchange="amq.topic", to="a"), ExchangeBinding(exchange="a", to="b"))
    assert queues(made, Message("x", b"")) == ["a", "b"]
    made.bind(Binding(queue="c", filter="x", exchange="b"))
    assert queues(made, Message("x", b"")) == ["a", "b", "c"]
    made.unbind_exchange(ExchangeBinding(exchange="a", to="b"))
    assert queues(made, Message("x", b"")) == ["a"]


def test_a_binding_of_exchanges_with_a_bad_filter_is_refused() -> None:
    made = joined()
    with pytest.raises(ValueError, match="filter"):
        made.bind_exchange(ExchangeBinding(exchange="a", to="b", filter="a/#/#/#/#/#"))
    assert made.exchange_bindings() == [] and made.unbind_exchange(ExchangeBinding(exchange="a", to="b")) is None


def test_further_topics_lead_further_and_a_binding_counts_once() -> None:
    made = router(
        Binding(queue="q", filter="a", exchange="e"),
        Binding(queue="r", filter="b", exchange="e", options=Options(subscription_ids=(7,))),
        Binding(queue="s", filter="#", exchange="e", options=Options(subscription_ids=(8,))),
    )
    found = made.route_also(Message("a", b"", "e"), ("b", "b", "c"))
    assert sorted((queue, options.subscription_ids) for queue, options in found) == [
        ("q", ()),
        ("r", (7,)),
        ("s", (8,)),
    ]
    assert made.route_also(Message("x", b"", "f"), ("y",)) == ()


asked = st.builds(
    Options,
    qos=st.integers(0, 2),
    subscription_ids=st.sampled_from([(), (1,), (2, 3)]),
    retain_as_published=st.booleans(),
    target=st.just("there"),
    within=st.none() | st.sampled_from([1.0, 5.0]),
)


@given(st.lists(asked, min_size=1, max_size=4))
def test_nothing_that_a_binding_asks_for_is_missing_where_several_overlap(found: list[Options]) -> None:
    router: Router[str] = Router()
    router.add_queue("q", "q")
    for number, options in enumerate(found):
        router.bind(Binding(queue="q", filter="a", owner=f"owner {number}", options=options))
    ((_, merged),) = router.route(Message("a", b""))
    assert merged == Options(
        qos=max(one.qos for one in found),
        subscription_ids=tuple(sorted(id for one in found for id in one.subscription_ids)),
        retain_as_published=any(one.retain_as_published for one in found),
        target="there",
        within=min([one.within for one in found if one.within is not None], default=None),
    )
    assert set(Options.__struct_fields__) == {"qos", "subscription_ids", "retain_as_published", "target", "within"}
