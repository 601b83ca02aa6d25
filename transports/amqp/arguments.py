"""Owns what the x-arguments of queue.declare mean in a QueuePolicy.

Its rule: an argument is honoured or refused by its name (406), never ignored.

A queue that a client declares has no limits unless it asks for them: `max_deliveries` only by `x-delivery-limit`,
no dead letters without `x-dead-letter-exchange`, and a full queue drops its head (rulings 3, 14, 20). As in RabbitMQ,
`x-delivery-limit: N` allows N failed deliveries, so the failure after those is the last one, and a queue with a
dead-letter exchange dead-letters what it drops. `x-queue-type` may be `classic` or `quorum` and `x-queue-mode`
`default` or `lazy`: every queue here is replayed after a crash and spills to disk, so they ask for what there is. So
does `x-dead-letter-strategy`: a dead letter is stored in its new queue in the commit that takes it from the old one.

What a YAML queue can, a client asks for by arguments of our own: `x-group` is the template of its FIFO groups, or true
for the header `group` (without it, a message is of the group ""); `x-dedup-window` the milliseconds in which a second
message with the same header `x-deduplication-header` is not stored (without that header, a message is never a
duplicate); `x-delay` the milliseconds that each message waits, unless its own header `x-delay` says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

import msgspec

from gateway.model.message import DEFAULT_EXCHANGE
from gateway.model.names import is_reserved
from gateway.model.policy import DISCARD, DedupPolicy, ExchangeTarget, Octets, QueuePolicy, Seconds
from gateway.model.topics import swap
from gateway.queueing.priority import MAX_PRIORITY
from gateway.routing.templates import Template
from transports.amqp.errors import PRECONDITION_FAILED, AmqpError
from transports.amqp.vhost import ROOT, Vhost

CLIENT_POLICY = QueuePolicy(max_deliveries=None, dead_letter=DISCARD, overflow="drop-oldest")
MAX_MILLISECONDS = 10 * 365 * 86_400_000
"""Ten years, as in RabbitMQ: libraries that build long delays from queues declare TTLs of years."""
GROUP_HEADER = "{header[group]|}"
"""The group of `x-group: true`."""
DEDUP_KEY = "{header[x-deduplication-header]}"

_FIELD = {
    "x-message-ttl": "ttl",
    "x-expires": "expires",
    "x-max-length": "max_messages",
    "x-max-length-bytes": "max_bytes",
    "x-overflow": "overflow",
    "x-delivery-limit": "max_deliveries",
    "x-dead-letter-exchange": "dead_letter",
    "x-dead-letter-routing-key": "dead_letter",
    "x-group": "group",
    "x-dedup-window": "dedup",
    "x-delay": "delay",
    "x-max-priority": "max_priority",
    "x-single-active-consumer": "single_active",
}
"""The field of the policy that each argument decides."""

_OVERFLOW = {"drop-head": "drop-oldest", "reject-publish": "refuse", "reject-publish-dlx": "refuse-dead-letter"}


def policy_of(arguments: Mapping[str, Any], durable: bool, vhost: Vhost = ROOT) -> QueuePolicy:
    """Of a queue in this virtual host. Raises AmqpError that names the argument that can't be honoured, or whose value
    makes no sense."""
    fields: dict[str, Any] = {}
    for name, value in arguments.items():
        if name in ("x-message-ttl", "x-expires"):
            milliseconds = _integer(name, value, int(name == "x-expires"), MAX_MILLISECONDS)
            fields[_FIELD[name]] = Seconds(milliseconds / 1000)
        elif name == "x-max-length":
            fields["max_messages"] = _integer(name, value, 0)
        elif name == "x-max-length-bytes":
            fields["max_bytes"] = Octets(_integer(name, value, 0))
        elif name == "x-delivery-limit":
            limit = _integer(name, value, -1)
            fields["max_deliveries"] = None if limit < 0 else limit + 1
        elif name == "x-overflow":
            fields["overflow"] = _overflow(arguments)
        elif name in ("x-dead-letter-exchange", "x-dead-letter-routing-key"):
            fields["dead_letter"] = _dead_letter(arguments, vhost)
        elif name == "x-group":
            fields["group"] = _group(value)
        elif name == "x-dedup-window":
            window = Seconds(_integer(name, value, 1, MAX_MILLISECONDS) / 1000)
            fields["dedup"] = DedupPolicy(DEDUP_KEY, window, required=False)
        elif name == "x-max-priority":
            if "x-group" in arguments:
                _refuse(name, value, "a queue has x-group or x-max-priority, not both")
            fields["max_priority"] = _integer(name, value, 0, MAX_PRIORITY) or None
        elif name == "x-delay":
            delay = Seconds(_integer(name, value, 0, MAX_MILLISECONDS) / 1000)
            fields["delay"], fields["max_delay"] = delay, max(delay, CLIENT_POLICY.max_delay)
        elif name == "x-queue-type":
            _one_of(name, value, "classic", "quorum")
            if value == "quorum" and not durable:
                _refuse(name, value, "a quorum queue is durable")
        elif name == "x-dead-letter-strategy":
            _one_of(name, value, "at-most-once", "at-least-once")
        elif name == "x-queue-mode":
            _one_of(name, value, "default", "lazy")
        elif name == "x-single-active-consumer":
            if not isinstance(value, bool):
                _refuse(name, value, "true or false is needed")
            fields["single_active"] = value
        else:
            _refuse(name, value, "not supported")
    if "dead_letter" in fields and fields.get("overflow", "drop-oldest") == "drop-oldest":
        fields["overflow"] = "dead-letter"
    return msgspec.structs.replace(CLIENT_POLICY, durable=durable, **fields)


def consumer_priority(arguments: Mapping[str, Any]) -> int:
    """What the arguments of basic.consume ask for. Raises AmqpError that names the one that can't be honoured."""
    for name, value in arguments.items():
        if name != "x-priority":
            _refuse(name, value, "not supported for a consumer")
    return _integer("x-priority", arguments.get("x-priority", 0), -(1 << 31), (1 << 31) - 1)


def first_difference(arguments: Mapping[str, Any], policy: QueuePolicy, vhost: Vhost = ROOT) -> str | None:
    """The first of these arguments that asks for something else than `policy` (of a queue that the configuration
    made) promises, None if there is none. Raises AmqpError as `policy_of` does."""
    wanted = policy_of(arguments, policy.durable, vhost)
    for name in arguments:
        field = _FIELD.get(name)
        if field is None:
            continue
        have = getattr(policy, field)
        want = getattr(wanted, field)
        if field == "overflow" and have != want and {have, want} == {"drop-oldest", "dead-letter"}:
            continue  # both are drop-head: where the dropped go is said by the dead-letter arguments
        if field == "dead_letter" and isinstance(have, str) and have == _queue_of(want):
            continue
        if have != want:
            return name
    return None


def _queue_of(target: Any) -> str | None:
    """The queue that a target reaches through the default exchange."""
    if isinstance(target, ExchangeTarget) and target.exchange == DEFAULT_EXCHANGE:
        return target.topic
    return None


def _refuse(name: str, value: Any, why: str) -> NoReturn:
    raise AmqpError(PRECONDITION_FAILED, f"invalid arg {name!r}: {str(value)[:64]!r}: {why}")


def _integer(name: str, value: Any, low: int, high: int = (1 << 63) - 1) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        _refuse(name, value, f"an integer from {low} to {high} is needed")
    return value


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        _refuse(name, value, "a text is needed")
    return value


def _one_of(name: str, value: Any, *known: str) -> None:
    if value not in known:
        _refuse(name, value, f"only {' and '.join(known)} are supported")


def _group(value: Any) -> str:
    if value is True:
        return GROUP_HEADER
    text = _text("x-group", value)
    try:
        Template(text)
    except ValueError as error:
        _refuse("x-group", value, str(error))
    return text


def _overflow(arguments: Mapping[str, Any]) -> str:
    value = arguments["x-overflow"]
    _one_of("x-overflow", value, *_OVERFLOW)
    return _OVERFLOW[value]


def _dead_letter(arguments: Mapping[str, Any], vhost: Vhost) -> ExchangeTarget:
    key = arguments.get("x-dead-letter-routing-key")
    if "x-dead-letter-exchange" not in arguments:
        _refuse("x-dead-letter-routing-key", key, "it needs x-dead-letter-exchange")
    exchange = vhost.exchange(_text("x-dead-letter-exchange", arguments["x-dead-letter-exchange"]))
    if key is None:
        return ExchangeTarget(exchange, queues=vhost.prefix)
    text = _text("x-dead-letter-routing-key", key)
    if exchange == DEFAULT_EXCHANGE and is_reserved(text):
        _refuse("x-dead-letter-routing-key", key, "this queue has a reserved name")
    return ExchangeTarget(exchange, vhost.full(text) if exchange == DEFAULT_EXCHANGE else swap(text))
