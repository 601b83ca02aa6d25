"""Owns bindings: what leads from a filter of an exchange to a queue, or to another exchange.

Its rule: QoS, subscription ids and targets belong to the binding, not to the message (ruling 8).
"""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.model.message import TOPIC_EXCHANGE, Message
from gateway.model.values import same


class Options(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What bindings add to a message in one queue (ruling 8); merged where several bindings of a queue match.

    qos: the highest QoS granted. subscription_ids: of all matching MQTT subscriptions, ascending.
    retain_as_published: the retain flag goes out as it came in. target: where a link sends it; a template in a binding,
    its text for the message in the entry of an outbox. within: the sender is answered when the link has delivered it,
    or has not within so many seconds; None: when it is stored.
    """

    qos: int = 2
    subscription_ids: tuple[int, ...] = ()
    retain_as_published: bool = False
    target: str | None = None
    within: float | None = None


NO_OPTIONS = Options()
"""Of every binding that says nothing else; the same object, so that it is known at a glance."""


class HeadersMatch(msgspec.Struct, frozen=True, eq=False):
    """What a binding of a headers exchange asks of a message's headers: all of them or any (AMQP 3.1.3.4).

    A value of None asks only that the header is there; true, 1 and 1.0 are three values. Without headers, `all` matches
    everything, `any` nothing.
    """

    headers: tuple[tuple[str, Any], ...]
    any: bool = False

    def matches(self, message: Message) -> bool:
        have = dict(message.properties.headers)
        hits = (name in have and (value is None or same(have[name], value)) for name, value in self.headers)
        return any(hits) if self.any else all(hits)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HeadersMatch) and self.any is other.any and same(self.headers, other.headers)

    def __hash__(self) -> int:
        return hash((self.any, *[name for name, _ in self.headers]))


class Binding(msgspec.Struct, frozen=True, kw_only=True):
    """Leads from a filter of one exchange to a queue.

    filter: in MQTT form. `+` and `#` are wildcards as whole levels and text otherwise, and `\\+` is a level `+`
    (`gateway.model.topics.check_binding`); with `literal`, all of it is plain text (a direct exchange).
    match: asked of each message besides. source: only messages that this transport accepted.
    not_from: not those of this client id (MQTT no local). not_source: not those that this transport accepted, so that
    nothing goes back over the link it came by.
    names: only topics that MQTT can name; a routing key may also be empty or have `+`, `#` or NUL in it (ruling 9).
    owner: who may take it away: `config`, or a transport's own name for the thing that made it.
    Two bindings with equal (owner, queue, exchange, filter, match) are one: the later replaces the earlier.
    """

    queue: str
    filter: str
    exchange: str = TOPIC_EXCHANGE
    literal: bool = False
    match: HeadersMatch | None = None
    source: str | None = None
    not_from: str | None = None
    not_source: str | None = None
    names: bool = False
    owner: str = ""
    options: Options = NO_OPTIONS


class ExchangeBinding(msgspec.Struct, frozen=True, kw_only=True):
    """Leads from one exchange to another, with the same topic.

    filter, literal, match: what goes there, as in a Binding. otherwise: instead, whatever nothing else in `exchange`
    matches (an alternate exchange); there is one at most.
    durable: kept over a restart. owner: as in a Binding.
    Two that differ in `durable` alone are one: the later replaces the earlier.
    """

    exchange: str
    to: str
    filter: str = "#"
    literal: bool = False
    match: HeadersMatch | None = None
    otherwise: bool = False
    durable: bool = False
    owner: str = ""
