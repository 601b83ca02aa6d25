"""What clients declare: arguments to policies, what is kept over a restart, bindings."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec
import pytest

from gateway.model.policy import DISCARD, DedupPolicy, ExchangeTarget, QueuePolicy, Seconds
from gateway.transport import HeadersMatch, Message, Properties
from transports.amqp.arguments import CLIENT_POLICY, first_difference, policy_of
from transports.amqp.errors import AmqpError
from transports.amqp.topology import FORGET_AT, OWNER, Declared, Exchange, Topology
from transports.amqp.vhost import Vhost


class View(NamedTuple):
    """As much of a queue as a topology looks at."""

    name: str
    owner: str = OWNER


@pytest.mark.parametrize(
    ("arguments", "changed"),
    [
        ({}, {}),
        ({"x-message-ttl": 1500}, {"ttl": Seconds(1.5)}),
        ({"x-message-ttl": 0}, {"ttl": Seconds(0)}),
        ({"x-expires": 60_000}, {"expires": Seconds(60)}),
        ({"x-message-ttl": 315_360_000_000}, {"ttl": Seconds(315_360_000)}),
        ({"x-expires": 315_360_000_000}, {"expires": Seconds(315_360_000)}),
        ({"x-max-length": 5}, {"max_messages": 5}),
        ({"x-max-length": 0}, {"max_messages": 0}),
        ({"x-max-length-bytes": 4096, "x-overflow": "drop-head"}, {"max_bytes": 4096}),
        ({"x-overflow": "reject-publish"}, {"overflow": "refuse"}),
        (
            {"x-overflow": "reject-publish-dlx", "x-dead-letter-exchange": "dlx"},
            {"overflow": "refuse-dead-letter", "dead_letter": ExchangeTarget("dlx")},
        ),
        ({"x-delivery-limit": 3}, {"max_deliveries": 4}),
        ({"x-delivery-limit": -1}, {}),
        ({"x-queue-type": "classic", "x-queue-mode": "lazy", "x-single-active-consumer": False}, {}),
        (
            {"x-dead-letter-exchange": "dlx"},
            {"dead_letter": ExchangeTarget("dlx"), "overflow": "dead-letter"},
        ),
        (
            {"x-dead-letter-exchange": "dlx", "x-dead-letter-routing-key": "a.b"},
            {"dead_letter": ExchangeTarget("dlx", "a/b"), "overflow": "dead-letter"},
        ),
        (
            {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "a.b", "x-overflow": "reject-publish"},
            {"dead_letter": ExchangeTarget("", "a.b"), "overflow": "refuse"},
        ),
        ({"x-single-active-consumer": True}, {"single_active": True}),
        ({"x-dead-letter-strategy": "at-least-once"}, {}),
        ({"x-max-priority": 10}, {"max_priority": 10}),
        ({"x-max-priority": 0}, {}),
        ({"x-group": True}, {"group": "{header[group]|}"}),
        ({"x-group": "{topic[1]}"}, {"group": "{topic[1]}"}),
        (
            {"x-dedup-window": 1500},
            {"dedup": DedupPolicy("{header[x-deduplication-header]}", Seconds(1.5), required=False)},
        ),
        ({"x-delay": 1500}, {"delay": Seconds(1.5)}),
        ({"x-delay": 8 * 86400_000}, {"delay": Seconds(8 * 86400), "max_delay": Seconds(8 * 86400)}),
    ],
)
def test_arguments_become_a_policy(arguments: dict[str, Any], changed: dict[str, Any]) -> None:
    assert policy_of(arguments, False) == msgspec.structs.replace(CLIENT_POLICY, durable=False, **changed)


def test_a_queue_without_arguments_loses_nothing_and_limits_nothing() -> None:
    policy = policy_of({}, True)
    assert (policy.max_deliveries, policy.max_messages, policy.ttl, policy.dead_letter) == (None, None, None, DISCARD)


@pytest.mark.parametrize(
    "arguments",
    [
        {"x-max-priority": 256},
        {"x-dead-letter-strategy": "exactly-once"},
        {"x-max-length": -1},
        {"x-max-length": True},
        {"x-expires": 0},
        {"x-message-ttl": 315_360_000_001},
        {"x-queue-type": "quorum"},
        {"x-delivery-limit": -2},
        {"x-dead-letter-exchange": 7},
        {"x-single-active-consumer": 1},
        {"x-group": "{topic[one]}"},
        {"x-group": False},
        {"x-dedup-window": 0},
        {"x-delay": -1},
        {"x-message-deduplication": True},
    ],
)
def test_what_is_not_honoured_is_refused_by_name(arguments: dict[str, Any]) -> None:
    with pytest.raises(AmqpError) as raised:
        policy_of(arguments, durable=False)
    assert raised.value.code == 406 and next(iter(arguments)) in str(raised.value)


@pytest.mark.parametrize(
    ("arguments", "different"),
    [
        ({}, None),
        ({"x-message-ttl": 60_000, "x-queue-type": "quorum"}, None),
        ({"x-message-ttl": 1}, "x-message-ttl"),
        ({"x-max-length": 5}, "x-max-length"),
        ({"x-delivery-limit": 9}, None),
        ({"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead-letters"}, None),
        ({"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "elsewhere"}, "x-dead-letter-exchange"),
    ],
)
def test_a_yaml_queue_is_compared_by_what_it_promises(arguments: dict[str, Any], different: str | None) -> None:
    assert first_difference(arguments, QueuePolicy(ttl=Seconds(60))) == different


def test_what_is_durable_is_kept_and_what_is_removed_is_not() -> None:
    topology = Topology()
    kept: dict[str, bytes | None] = {}
    for changes in (
        topology.add_exchange(Exchange("kept", "topic")),
        topology.add_exchange(Exchange("gone", "direct")),
        topology.add_exchange(Exchange("transient", "fanout", durable=False)),
        topology.add_queue(Declared("kept", True, False, False, {"x-max-length": 5}), None),
        topology.add_queue(Declared("transient", False, False, False, {}), None),
        topology.add_queue(Declared("exclusive", True, True, False, {}), object()),
        topology.remove_exchange("gone"),
    ):
        kept |= {change.key: change.value for change in changes}
    again = Topology({key: value for key, value in kept.items() if value is not None})
    assert set(again.exchanges) - set(Topology().exchanges) == {"kept"}
    assert again.exchanges["kept"] == Exchange("kept", "topic")
    assert [change.key for change in again.stale([])] == ["queue/kept"]


def test_queues_that_went_by_themselves_are_forgotten_in_time() -> None:
    topology = Topology()
    removed = 0
    for n in range(1000):
        topology.add_queue(Declared(f"q{n}", True, False, False, {}), None)
        last: Any = View(f"q{n}")
        removed += len(topology.forget(lambda last=last: [last]))  # type: ignore[misc]
        assert topology.declared(last) is not None
    assert removed >= 1000 - 2 * FORGET_AT


def test_room_is_looked_for_once_a_second() -> None:
    topology, looked = Topology(), []

    def alive() -> list[Any]:
        looked.append(True)
        return [View("there")]

    for name in ("gone", "there"):
        topology.add_queue(Declared(name, True, False, False, {}), None)
    assert [change.key for change in topology.make_room(alive, 100.0)] == ["queue/gone"]
    topology.add_queue(Declared("gone", True, False, False, {}), None)
    assert topology.make_room(alive, 100.9) == []
    assert len(looked) == 1
    assert [change.key for change in topology.make_room(alive, 101.0)] == ["queue/gone"]


def test_state_of_something_else_is_not_trusted() -> None:
    with pytest.raises(msgspec.MsgspecError):
        Topology({"exchange/x": msgspec.msgpack.encode(["x", "no-such-kind"])})


def test_an_exclusive_queue_belongs_to_its_holder() -> None:
    topology, holder = Topology(), object()
    topology.add_queue(Declared("mine", False, True, False, {}), holder)
    assert topology.held_by(holder) == ["mine"] and topology.held_by(object()) == []
    topology.add_queue(Declared("mine", False, False, False, {}), object())
    assert topology.held_by(holder) == []


def test_bindings_by_kind_of_exchange() -> None:
    topology = Topology()

    def binding(exchange: str, key: str, **arguments: Any) -> tuple[str, bool, HeadersMatch | None]:
        made = topology.binding(
            topology.exchanges[exchange], "q", key, {k.replace("_", "-"): v for k, v in arguments.items()}
        )
        return made.filter, made.literal, made.match

    assert binding("amq.topic", "a.*.b/c") == ("a/+/b.c", False, None)
    assert binding("amq.direct", "a.*") == ("a/*", True, None)
    assert binding("amq.fanout", "any") == ("#", False, None)
    assert binding("amq.headers", "any", x_match="any", x_other=1, b=1, a=None) == (
        "#",
        False,
        HeadersMatch((("a", None), ("b", 1)), any=True),
    )


def test_a_match_sees_numbers_whatever_their_width_on_the_wire() -> None:
    match = HeadersMatch((("a", 1),))
    assert match.matches(Message("t", b"", properties=Properties(headers=(("a", 1),))))


def test_what_was_bound_in_a_virtual_host_waits_for_it_to_come_back() -> None:
    topology = Topology()
    assert topology.may_have("vhost.blue/amq.topic") and not topology.may_have("vhost.blue/mine")
    before = topology.exchanges_of("")
    topology.add_vhost(Vhost("blue"))
    topology.add_vhost(Vhost("blue"))
    assert topology.exchanges["vhost.blue/amq.topic"].kind == "topic"
    assert topology.exchanges_of("") == before
