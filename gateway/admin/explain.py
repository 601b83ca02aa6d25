"""Owns explanations: which queues a message would reach, by which bindings, in which group, under which dedup key.

Its rule: it asks the same router and templates that decide, and changes nothing.
"""

from __future__ import annotations

import msgspec

from gateway.admin.operations import Step
from gateway.admin.views import condition
from gateway.broker.core import Core
from gateway.broker.definitions import configure
from gateway.config import links
from gateway.config.settings import Settings
from gateway.model.binding import Binding
from gateway.model.message import Message
from gateway.queueing.queue import Queue
from gateway.routing.templates import Fields, MissingValueError, Template


def configured(settings: Settings) -> Core:
    """A core as the configuration makes it, without a store, to be asked."""
    core = Core(lambda: 0.0, secret=b"")
    configure(core, links.policies(settings), links.bindings(settings))
    return core


def explain(core: Core, message: Message) -> list[Step]:
    """By queue, and for an outbox by target; empty if no binding matches."""
    fields = Fields(message)
    bindings: dict[tuple[str, str | None], list[str]] = {}
    within: dict[str, float] = {}
    keepers: set[str] = set()
    for binding in core.router.find(message):
        if not (core.queues[binding.queue].live and 0 in (message.qos, binding.options.qos)):
            keepers.add(binding.queue)
        bindings.setdefault((binding.queue, binding.options.target), []).append(_describe(binding))
        if binding.options.within is not None:
            within[binding.queue] = min(within.get(binding.queue, binding.options.within), binding.options.within)
    steps: dict[tuple[str, str | None, str | None], Step] = {}
    for (queue, template), lines in bindings.items():
        step = _step(core.queues[queue], template, tuple(lines), fields)
        same = steps.get((queue, step.target, step.invalid))
        if same is not None:  # two templates of one text
            step = msgspec.structs.replace(step, bindings=same.bindings + step.bindings)
        steps[queue, step.target, step.invalid] = step
    if not within:
        return list(steps.values())
    kept = sum(step.queue in keepers for step in steps.values())
    return [_awaited(step, within, kept) for step in steps.values()]


def _awaited(step: Step, within: dict[str, float], kept: int) -> Step:
    """What differs when a link must deliver it before its sender is answered. kept: by so many queues."""
    why = step.invalid
    if kept > 1:
        why = "what is acknowledged when it is delivered may be kept nowhere else"
    return msgspec.structs.replace(step, within=within.get(step.queue), refused=why)


def _step(queue: Queue, template: str | None, bindings: tuple[str, ...], fields: Fields) -> Step:
    target: str | None = None
    group: str | None = None
    key: str | None = None
    try:
        if template is not None:
            target = Template(template).render(fields)
        if queue.group_template is not None:
            group = queue.group_template.render(fields)
        if queue.dedup_key is not None:
            key = queue.dedup_key(fields)
    except MissingValueError as error:
        return Step(queue.name, bindings, group, key, invalid=str(error), target=target)
    return Step(queue.name, bindings, group, key, target=target)


def _describe(binding: Binding) -> str:
    if binding.exchange == "":
        return f"sent straight to {binding.queue}"
    parts = [f"from {binding.filter}"]
    if binding.exchange != "amq.topic":
        parts.append(f"of exchange {binding.exchange}")
    if asked := condition(binding):
        parts.append(asked)
    return f"{' '.join(parts)} ({'route' if binding.owner == 'config' else binding.owner})"
