"""Owns explanations: which queues a message would reach, by which bindings, in which group, under which dedup key.

Its rule: it asks the same router and templates that decide, and changes nothing.
"""

from __future__ import annotations

from gateway.core import Core
from gateway.declarations import configure
from gateway.message import Message
from gateway.operations import Step
from gateway.queue import Queue
from gateway.settings import Settings
from gateway.template import Fields, MissingValueError
from gateway.transport import Binding


def configured_bindings(settings: Settings) -> list[Binding]:
    """The bindings that the configured routes stand for."""
    return [
        Binding(queue=target, filter=route.filter, source=route.source, owner="config")
        for route in settings.routes
        for target in route.targets
    ]


def configured(settings: Settings) -> Core:
    """A core as the configuration makes it, without a store, to be asked."""
    core = Core(lambda: 0.0, secret=b"")
    configure(core, settings.queues, configured_bindings(settings))
    return core


def explain(core: Core, message: Message) -> list[Step]:
    """By queue; empty if no binding matches."""
    bindings: dict[str, list[str]] = {}
    for binding in core.router.find(message):
        bindings.setdefault(binding.queue, []).append(_describe(binding))
    fields = Fields(message)
    return [_step(core.queues[queue], tuple(lines), fields) for queue, lines in bindings.items()]


def _step(queue: Queue, bindings: tuple[str, ...], fields: Fields) -> Step:
    group: str | None = None
    key: str | None = None
    try:
        if queue.group_template is not None:
            group = queue.group_template.render(fields)
        if queue.dedup_key is not None:
            key = queue.dedup_key(fields)
    except MissingValueError as error:
        return Step(queue.name, bindings, group, key, invalid=str(error))
    return Step(queue.name, bindings, group, key)


def _describe(binding: Binding) -> str:
    if binding.exchange == "":
        return f"sent straight to {binding.queue}"
    parts = [f"from {binding.filter}"]
    if binding.exchange != "amq.topic":
        parts.append(f"of exchange {binding.exchange}")
    if binding.source is not None:
        parts.append(f"by {binding.source}")
    if binding.match is not None:
        wanted = ", ".join(f"{name}={value}" for name, value in binding.match.headers)
        parts.append(f"with {'any' if binding.match.any else 'all'} of the headers {wanted}")
    return f"{' '.join(parts)} ({'route' if binding.owner == 'config' else binding.owner})"
