"""Owns how queues and bindings stand in the journal's state, and how a configuration becomes queues and bindings.

Its rule: a configuration with a fault changes nothing, and what holds messages is never taken away by it (ruling 24).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import msgspec

from gateway.errors import GatewayError
from gateway.model.binding import Binding, ExchangeBinding
from gateway.model.policy import DEAD_LETTER_POLICY, DEAD_LETTERS, QueuePolicy, decode_custom, encode_custom
from gateway.model.state import StateChange
from gateway.model.topics import check_filter
from gateway.queueing.queue import Queue, templates_of
from gateway.routing.router import identity_of

if TYPE_CHECKING:
    from gateway.broker.core import Core

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
    notes: list[str] = []
    for _ in configuring(core, policies, bindings, notes):
        pass
    return notes


def configuring(
    core: Core, policies: Mapping[str, QueuePolicy], bindings: Iterable[Binding], notes: list[str]
) -> Iterator[None]:
    """As `configure`, in small steps, between which messages may come and go. What is wrong is known before anything is
    changed. Meanwhile each queue has its old policy or the new one, and each filter leads where it did or where it is
    to lead, never to both and never nowhere. notes: what an operator should know is put there."""
    wanted = {DEAD_LETTERS: DEAD_LETTER_POLICY, **policies}
    keep = list(bindings)
    yield from _checking(core, wanted, keep)
    # No message comes between the check and the change.
    changes = _check_durability(core, wanted)
    for name in changes:
        _apply(core, name, wanted[name], CONFIG if name in policies else OWNER, notes)
    for name, policy in wanted.items():
        if name not in changes:
            _apply(core, name, policy, CONFIG if name in policies else OWNER, notes)
            yield
    yield from _rebinding(core, keep)
    for queue in list(core.queues.values()):
        if queue.owner in (CONFIG, OWNER) and queue.name not in wanted and not queue.deleted:
            if queue.entries.count or queue.pending_count:
                queue.removed = True
                notes.append(f"queue {queue.name}: removed, kept until its {queue.entries.count} messages are gone")
            else:
                core.delete(queue.name)
            yield


def _apply(core: Core, name: str, policy: QueuePolicy, owner: str, notes: list[str]) -> None:
    queue = core.queues.get(name)
    if queue is None:
        core.declare(name, policy, owner)
    elif queue.holder is not None:  # declared since the configuration was checked
        notes.append(f"{_held(name)}: it stays as it is; reload again then")
    elif queue.policy != policy or queue.owner != owner or queue.removed:
        if policy.durable and not queue.policy.durable and queue.entries.count:
            notes.append(f"queue {name}: {queue.entries.count} messages from before stay in memory alone")
        if queue.policy.group != policy.group and queue.entries.count:
            notes.append(f"queue {name}: order between {queue.entries.count} messages and later ones is open")
        if queue.policy.durable and not policy.durable:
            core.gather.forced_states.append(StateChange(OWNER, f"queue/{name}", None))
        queue.apply(policy)
        queue.owner, queue.removed = owner, False
        core.journal_queue(queue)
        core.wake(queue)


def _held(name: str) -> str:
    return f"queue {name} belongs to one connection alone until that ends (an exclusive queue of a client)"


def _rebinding(core: Core, keep: Iterable[Binding]) -> Iterator[None]:
    """What is there already stays as it is."""
    changes: dict[str, tuple[list[Binding], list[Binding]]] = {}
    """By filter, so that its routes change in one step: those that come, and those that go."""
    coming = {identity_of(binding): binding for binding in keep}
    for queue in list(core.queues.values()):
        for binding in core.router.bindings(queue.name):
            if binding.owner != CONFIG:
                continue
            wanted = coming.get(identity_of(binding))
            if wanted == binding:
                del coming[identity_of(binding)]
            elif wanted is None:  # or else it is replaced
                changes.setdefault(binding.filter, ([], []))[1].append(binding)
        yield
    for binding in coming.values():
        changes.setdefault(binding.filter, ([], []))[0].append(binding)
    for come, go in changes.values():
        for binding in come:
            core.router.bind(binding)
        for binding in go:
            core.router.unbind(binding)
        yield


def _checking(core: Core, wanted: Mapping[str, QueuePolicy], bindings: Iterable[Binding]) -> Iterator[None]:
    _check_durability(core, wanted)
    for name, policy in wanted.items():
        try:
            templates_of(policy)
        except ValueError as error:
            raise GatewayError(f"queue {name}: {error}") from error
        found = core.queues.get(name)
        if found is not None and found.holder is not None:
            raise GatewayError(f"{_held(name)}: give yours another name, or reload when it has ended")
        yield
    for binding in bindings:
        if binding.queue not in wanted and binding.queue not in core.queues:
            raise GatewayError(f"a route leads to {binding.queue!r}, and there is no such queue")
        if not binding.literal and (why := check_filter(binding.filter)):
            raise GatewayError(f"the filter {binding.filter!r} {why}")
        yield


def _check_durability(core: Core, wanted: Mapping[str, QueuePolicy]) -> set[str]:
    """The queues that become transient, which they may while they are empty."""
    changes: set[str] = set()
    for name, policy in wanted.items():
        queue = core.queues.get(name)
        if queue is None or not queue.policy.durable or policy.durable:
            continue
        if held := queue.entries.count + queue.pending_count:
            raise GatewayError(f"queue {name}: it holds {held} messages and can't become transient")
        changes.add(name)
    return changes
