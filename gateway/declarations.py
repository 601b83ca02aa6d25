"""Owns how queues and bindings stand in the journal's state, and how a configuration becomes queues and bindings.

Its rule: a configuration is applied whole or not at all, and what holds messages is never taken away by it (ruling 24).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import msgspec

from gateway.errors import GatewayError
from gateway.policy import DEAD_LETTER_POLICY, DEAD_LETTERS, QueuePolicy, decode_custom, encode_custom
from gateway.queue import Queue, templates_of
from gateway.storage.journal import StateChange
from gateway.topics import check_filter
from gateway.transport import Binding, ExchangeBinding

if TYPE_CHECKING:
    from gateway.core import Core

OWNER = "core"
CONFIG = "config"


class QueueDefinition(msgspec.Struct, frozen=True, array_like=True):
    """How a queue stands in the journal's state."""

    number: int
    policy: QueuePolicy
    owner: str
    live: bool = False


decode_definition = msgspec.msgpack.Decoder(QueueDefinition, dec_hook=decode_custom).decode
decode_binding = msgspec.msgpack.Decoder(Binding).decode
decode_exchange_binding = msgspec.msgpack.Decoder(ExchangeBinding).decode


def queue_state(queue: Queue) -> StateChange:
    """Its present definition; none for a transient queue."""
    key = f"queue/{queue.name}"
    if queue.deleted or not queue.policy.durable:
        return StateChange(OWNER, key, None)
    definition = QueueDefinition(queue.number, queue.policy, queue.owner, queue.live)
    return StateChange(OWNER, key, msgspec.msgpack.encode(definition, enc_hook=encode_custom))


def binding_state(binding: Binding, bound: bool) -> StateChange:
    """One key for all that `Router.bind` takes as the same binding."""
    parts = (
        binding.owner,
        binding.queue,
        binding.exchange,
        binding.filter,
        binding.literal,
        binding.source,
        repr(binding.match) if binding.match is not None else None,
        binding.options.target,
    )
    key = f"bind/{msgspec.json.encode(parts).decode()}"
    return StateChange(OWNER, key, msgspec.msgpack.encode(binding) if bound else None)


def exchange_binding_state(binding: ExchangeBinding, bound: bool) -> StateChange:
    """One key for all that `Router.bind_exchange` takes as the same."""
    match = None if binding.match is None else repr(binding.match)
    parts = (binding.owner, binding.exchange, binding.to, binding.filter, binding.literal, match, binding.otherwise)
    key = f"exchange-bind/{msgspec.json.encode(parts).decode()}"
    return StateChange(OWNER, key, msgspec.msgpack.encode(binding) if bound else None)


def secret_state(core: Core) -> StateChange:
    """Of the dedup keys, without which they mean nothing."""
    return StateChange(OWNER, "secret", core.dedup.secret)


def states(core: Core) -> list[StateChange]:
    """All that the core keeps as state, for a new store."""
    changes = [secret_state(core)]
    for queue in core.queues.values():
        if queue.policy.durable:
            changes.append(queue_state(queue))
            bindings = core.router.bindings(queue.name)
            changes += [binding_state(binding, True) for binding in bindings if binding.owner != CONFIG]
    changes += [exchange_binding_state(binding, True) for binding in core.router.exchange_bindings() if binding.durable]
    return changes


def configure(core: Core, policies: Mapping[str, QueuePolicy], bindings: Iterable[Binding]) -> list[str]:
    """Makes the configured queues and bindings what they are from now on; returns what an operator should know.
    Raises GatewayError before anything is changed."""
    wanted = {DEAD_LETTERS: DEAD_LETTER_POLICY, **policies}
    keep = list(bindings)
    _check(core, wanted, keep)
    notes: list[str] = []
    for name, policy in wanted.items():
        owner = CONFIG if name in policies else OWNER
        queue = core.queues.get(name)
        if queue is None:
            core.declare(name, policy, owner)
        elif queue.policy != policy or queue.owner != owner or queue.removed:
            if queue.policy.group != policy.group and queue.entries.count:
                notes.append(f"queue {name}: order between {queue.entries.count} messages and later ones is open")
            if queue.policy.durable and not policy.durable:
                core.gather.forced_states.append(StateChange(OWNER, f"queue/{name}", None))
            queue.apply(policy)
            queue.owner, queue.removed = owner, False
            core.journal_queue(queue)
            core.wake(queue)
    for queue in list(core.queues.values()):
        for binding in core.router.bindings(queue.name):
            if binding.owner == CONFIG and binding not in keep:
                core.router.unbind(binding)
        if queue.owner in (CONFIG, OWNER) and queue.name not in wanted:
            if queue.entries.count or queue.pending_count:
                queue.removed = True
                notes.append(f"queue {queue.name}: removed, kept until its {queue.entries.count} messages are gone")
            else:
                core.delete(queue.name)
    for binding in keep:
        core.router.bind(binding)
    return notes


def _check(core: Core, wanted: Mapping[str, QueuePolicy], bindings: Iterable[Binding]) -> None:
    for name, policy in wanted.items():
        queue = core.queues.get(name)
        held = queue.entries.count + queue.pending_count if queue is not None else 0
        if queue is not None and queue.policy.durable and not policy.durable and held:
            raise GatewayError(f"queue {name}: it holds {held} messages and can't become transient")
        try:
            templates_of(policy)
        except ValueError as error:
            raise GatewayError(f"queue {name}: {error}") from error
    for binding in bindings:
        if binding.queue not in wanted and binding.queue not in core.queues:
            raise GatewayError(f"a route leads to {binding.queue!r}, and there is no such queue")
        if not binding.literal and (why := check_filter(binding.filter)):
            raise GatewayError(f"the filter {binding.filter!r} {why}")
