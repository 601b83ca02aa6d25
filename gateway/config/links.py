"""Owns what a configuration says about links: the targets of routes, written `LINK:TEMPLATE`, and the outboxes.

Its rule: what routes send to a link stands in its outbox, or, if its sender is to be answered when it is delivered, in
a queue in memory beside it; both are there as long as the link is configured.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from gateway.model.binding import NO_OPTIONS, Binding, Options
from gateway.model.policy import DEAD_LETTERS, DISCARD, Octets, QueuePolicy, decode_custom
from gateway.transport import registry as plugins
from gateway.transport.outbox import OutboxPolicy, awaited, outbox

if TYPE_CHECKING:
    from gateway.config.settings import Route, Settings

AWAITED_OCTETS = Octets(64 << 20)
"""What may wait for one link in memory; beyond it messages are refused."""


class Target(NamedTuple):
    """Where a route sends: a queue of ours, or, with a template of the address there, a link's outbox."""

    queue: str
    link: str | None = None
    template: str | None = None


def parse(text: str, queues: Collection[str]) -> Target:
    """What an entry of `to` means. The name of a queue counts before that of a link."""
    link, colon, template = text.partition(":")
    if not colon or text in queues or text == DEAD_LETTERS:
        return Target(text)
    return Target(outbox(link), link, template)


def policies(settings: Settings, running: Mapping[str, Any] | None = None) -> dict[str, QueuePolicy]:
    """All queues of a configuration by name: those that it lists, and an outbox for each link. `running`: sections of
    transports that go on until a restart. A link among them keeps its outbox, whatever the configuration says now."""
    # A plugin that can't be imported is taken for a link if a route says so.
    named = {parse(text, settings.queues).link for route in settings.routes for text in route.targets}
    outboxes = {
        outbox(name): _policy(section)
        for sections in (running or {}, settings.transports)
        for name, section in sections.items()
        if name in named or plugins.is_link(section.type)
    }
    beside = {awaited(name): _awaited(policy) for name, policy in outboxes.items()}
    return {**settings.queues, **outboxes, **beside}


def _awaited(outbox: QueuePolicy) -> QueuePolicy:
    """Each topic in its order, as an outbox has it. What the link could not deliver at the first attempt is the
    sender's again: there is no second one and no dead letter."""
    return QueuePolicy(
        durable=False,
        group="{topic}",
        group_in_flight=outbox.group_in_flight,
        max_deliveries=1,
        dead_letter=DISCARD,
        max_bytes=AWAITED_OCTETS,
    )


def waiting_for_restart(settings: Settings, running: Mapping[str, Any]) -> list[str]:
    """What a reload means for links, for an operator: it neither stops nor starts one."""

    def names(sections: Mapping[str, Any]) -> set[str]:
        return {name for name, section in sections.items() if plugins.is_link(section.type)}

    before, now = names(running), names(settings.transports)
    gone = [f"link {name}: goes on until a restart, with its outbox" for name in sorted(before - now)]
    new = [
        f"link {name}: starts with a restart; what is sent there waits in its outbox" for name in sorted(now - before)
    ]
    return gone + new


def _policy(section: Any) -> QueuePolicy:
    found = getattr(section, "outbox", None)
    if isinstance(section, plugins.Unloaded):
        try:
            found = msgspec.convert(section.section.get("outbox") or {}, OutboxPolicy, dec_hook=decode_custom)
        except msgspec.ValidationError:
            found = None  # whoever can read the section will name the fault
    policy = found if isinstance(found, OutboxPolicy) else OutboxPolicy()
    # As any other queue has it: the journal gives it back as this type.
    return QueuePolicy(**msgspec.structs.asdict(policy))


def bindings(settings: Settings) -> list[Binding]:
    """What the configured routes stand for."""
    return [_binding(route, parse(text, settings.queues)) for route in settings.routes for text in route.targets]


def _binding(route: Route, target: Target) -> Binding:
    within = float(route.deliver_within) if route.ack == "delivered" else None
    return Binding(
        queue=target.queue if within is None else awaited(target.queue),
        filter=route.filter,
        source=route.source,
        not_source=target.link,
        owner="config",
        options=NO_OPTIONS if target.template is None else Options(target=target.template, within=within),
    )
