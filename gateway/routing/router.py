"""Owns the bindings, of queues and of exchanges: which queues a message goes to, and with which options (rulings 7, 8).

Its rule: what has not changed is not matched again; an edit of bindings forgets the answers it affects, and others only
if these are many.

Bindings between exchanges are followed when an answer is worked out, not when it is used: a message that has come this
way before costs the same, whichever exchanges it passes. Each exchange is passed once, so they may lead in circles.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Generic, TypeVar

from gateway.model.binding import Binding, ExchangeBinding, Options
from gateway.model.message import DEFAULT_EXCHANGE, TOPIC_EXCHANGE, Message
from gateway.model.names import is_reserved
from gateway.model.topics import FilterTree, NameTree, check_binding, is_name

CACHE_OCTETS = 32 << 20
MAX_BINDINGS_OCTETS = 256 << 20
FORGOTTEN_SINGLY = 1000
"""When an edit of bindings affects more cached answers, all of the exchange are forgotten, which takes no longer for
many."""
SEARCHED = 20_000
"""After so many steps in search of affected answers all are forgotten: the edits of one client, each of which finds
little in many, then take no longer than the answers are worth."""
_ENTRY_OCTETS = 400  # a cached answer with its place in the dictionary, roughly
_NODE_OCTETS = 400  # a level of a topic in the tree of what is cached: a topic of 128 levels is 50 KB

_BINDING_OCTETS = 1000  # a binding with its places in three dictionaries, roughly

Q = TypeVar("Q")


class _Answer(Generic[Q]):
    """What one (exchange, topic) leads to. `plain` is merged already; where a binding asks something of the message
    itself, `all` is asked each time; if that decides where the message goes on to, the way is walked each time."""

    __slots__ = ("all", "conditional", "plain", "walks")

    def __init__(self, found: Sequence[tuple[Binding, Q]], walks: bool = False) -> None:
        self.all = found
        self.walks = walks
        self.conditional = walks or any(is_conditional(binding) for binding, _ in found)
        self.plain = () if self.conditional else merge(found)


class _Exchange(Generic[Q]):
    """octets: what the cached answers take, roughly."""

    __slots__ = ("_searched", "answers", "cached", "hides", "literal", "octets", "tree")

    def __init__(self, name: str) -> None:
        self.hides = name == TOPIC_EXCHANGE
        self.tree: FilterTree[tuple[Binding, Q]] = FilterTree(self.hides)
        self.literal: dict[str, dict[object, tuple[Binding, Q]]] = {}
        self.answers: dict[str, _Answer[Q]] = {}
        self.cached: NameTree[str] = NameTree(self.hides)
        self.octets = 0
        self._searched = 0
        """Steps of searches in `cached` since it was empty."""

    def remember(self, topic: str, answer: _Answer[Q]) -> int:
        """Returns how many octets more it takes now; as do those that follow."""
        before = self.octets
        self.answers[topic] = answer
        self.octets += _NODE_OCTETS * self.cached.put(topic, topic) + _size(topic, answer)
        return self.octets - before

    def forget(self, topic: str) -> int:
        before, answer = self.octets, self.answers.pop(topic, None)
        if answer is not None:
            self.octets -= _NODE_OCTETS * self.cached.remove(topic) + _size(topic, answer)
        return self.octets - before

    def forget_matching(self, filter: str) -> int:
        topics: list[str] = []
        for topic in self.cached.walk(filter):
            self._searched += 1
            if topic is not None:
                topics.append(topic)
            if self._searched > SEARCHED or len(topics) > FORGOTTEN_SINGLY:
                return self.forget_all()
        return sum(map(self.forget, topics))

    def forget_all(self) -> int:
        before, self.octets = self.octets, 0
        self._searched = 0
        self.answers = {}
        self.cached = NameTree(self.hides)
        return -before


class _Onward:
    """Those that lead on from one exchange. otherwise: where what nothing else matches goes."""

    __slots__ = ("_literal", "_tree", "all", "otherwise")

    def __init__(self, exchange: str) -> None:
        self.all: dict[tuple[object, ...], ExchangeBinding] = {}
        self.otherwise: ExchangeBinding | None = None
        self._tree: FilterTree[ExchangeBinding] = FilterTree(exchange == TOPIC_EXCHANGE)
        self._literal: dict[str, dict[object, ExchangeBinding]] = {}

    def put(self, identity: tuple[object, ...], binding: ExchangeBinding) -> None:
        """None of that identity may be there."""
        self.all[identity] = binding
        if binding.otherwise:
            self.otherwise = binding
        elif binding.literal:
            self._literal.setdefault(binding.filter, {})[identity] = binding
        else:
            self._tree.put(binding.filter, identity, binding)

    def remove(self, identity: tuple[object, ...]) -> None:
        binding = self.all.pop(identity)
        if binding.otherwise:
            self.otherwise = None
        elif binding.literal:
            del self._literal[binding.filter][identity]
            if not self._literal[binding.filter]:
                del self._literal[binding.filter]
        else:
            self._tree.remove(binding.filter, identity)

    def match(self, topic: str) -> list[ExchangeBinding]:
        return [*self._tree.match(topic), *self._literal.get(topic, {}).values()]


class Router(Generic[Q]):
    """Leads messages to whatever stands for a queue (`Q`)."""

    def __init__(self, cache_octets: int = CACHE_OCTETS) -> None:
        self._exchanges: dict[str, _Exchange[Q]] = {}
        self._queues: dict[str, tuple[Q, dict[tuple[object, ...], Binding]]] = {}
        self._onward: dict[str, _Onward] = {}
        self._sources: dict[str, Counter[str]] = {}
        """The exchanges that lead to each one, with the number of bindings."""
        self._limit = cache_octets
        self._cached = 0
        self.octets = 0
        """What all bindings take in memory, roughly."""

    def add_queue(self, name: str, queue: Q) -> None:
        """From now on the default exchange reaches it by name, unless that is reserved: then its bindings alone do."""
        self._queues[name] = (queue, {})
        self._forget(DEFAULT_EXCHANGE, name)

    def remove_queue(self, name: str) -> None:
        """Takes its bindings away too."""
        _, bindings = self._queues[name]
        for binding in list(bindings.values()):
            self.unbind(binding)
        del self._queues[name]
        self._forget(DEFAULT_EXCHANGE, name)

    def bind(self, binding: Binding) -> None:
        """Raises ValueError for a filter that can't be held, KeyError for an unknown queue."""
        if not binding.literal and (why := check_binding(binding.filter)):
            raise ValueError(f"the filter {binding.filter!r} {why}")
        queue, bindings = self._queues[binding.queue]
        identity = identity_of(binding)
        if identity in bindings:
            self.unbind(binding)
        bindings[identity] = binding
        exchange = self._exchanges.get(binding.exchange)
        if exchange is None:
            exchange = self._exchanges[binding.exchange] = _Exchange(binding.exchange)
        if binding.literal:
            exchange.literal.setdefault(binding.filter, {})[identity] = (binding, queue)
        else:
            self.octets += _NODE_OCTETS * exchange.tree.put(binding.filter, identity, (binding, queue))
        self.octets += _cost(binding)
        self._forget_matching(binding.exchange, binding.filter, binding.literal)

    def unbind(self, binding: Binding) -> bool:
        """False if there was none."""
        if binding.queue not in self._queues:
            return False
        identity = identity_of(binding)
        old = self._queues[binding.queue][1].pop(identity, None)
        if old is None:
            return False
        exchange = self._exchanges[old.exchange]
        if old.literal:
            del exchange.literal[old.filter][identity]
            if not exchange.literal[old.filter]:
                del exchange.literal[old.filter]
        else:
            self.octets -= _NODE_OCTETS * exchange.tree.remove(old.filter, identity)
        self.octets -= _cost(old)
        self._forget_matching(old.exchange, old.filter, old.literal)
        return True

    def bind_exchange(self, binding: ExchangeBinding) -> None:
        """Raises ValueError for a filter that can't be held."""
        if not binding.literal and (why := check_binding(binding.filter)):
            raise ValueError(f"the filter {binding.filter!r} {why}")
        self.unbind_exchange(binding)
        onward = self._onward.get(binding.exchange)
        if onward is None:
            onward = self._onward[binding.exchange] = _Onward(binding.exchange)
        if binding.otherwise and onward.otherwise is not None:
            self.unbind_exchange(onward.otherwise)
            onward = self._onward.setdefault(binding.exchange, onward)
        onward.put(_exchange_identity(binding), binding)
        self._sources.setdefault(binding.to, Counter())[binding.exchange] += 1
        self.octets += _cost(binding)
        self._forget_exchange_binding(binding)

    def unbind_exchange(self, binding: ExchangeBinding) -> ExchangeBinding | None:
        """The one that there was."""
        onward, identity = self._onward.get(binding.exchange), _exchange_identity(binding)
        if onward is None or identity not in onward.all:
            return None
        old = onward.all[identity]
        onward.remove(identity)
        if not onward.all:
            del self._onward[binding.exchange]
        sources = self._sources[binding.to]
        sources[binding.exchange] -= 1
        if not sources[binding.exchange]:
            del sources[binding.exchange]
        if not sources:
            del self._sources[binding.to]
        self.octets -= _cost(old)
        self._forget_exchange_binding(old)
        return old

    def exchange_bindings(self) -> list[ExchangeBinding]:
        return [binding for onward in self._onward.values() for binding in onward.all.values()]

    def bindings(self, queue: str) -> list[Binding]:
        found = self._queues.get(queue)
        return list(found[1].values()) if found else []

    def route(self, message: Message) -> Sequence[tuple[Q, Options]]:
        """Each queue at most once, but an outbox once for each target."""
        exchange = self._exchanges.get(message.exchange)
        answer = exchange.answers.get(message.topic) if exchange is not None else None
        if answer is None:
            answer = self._answer(message.exchange, message.topic)
        if not answer.conditional:
            return answer.plain
        if answer.walks:
            return merge(self._walk(message.exchange, message.topic, message)[0])
        return merge([item for item in answer.all if applies(item[0], message)])

    def route_also(self, message: Message, topics: Sequence[str]) -> Sequence[tuple[Q, Options]]:
        """As `route`, for a message that these topics lead to its queues besides its own; a binding counts once."""
        found: dict[object, tuple[Binding, Q]] = {}
        for topic in (message.topic, *topics):
            for binding, queue in self._walk(message.exchange, topic, message)[0]:
                found[identity_of(binding)] = (binding, queue)
        return merge(list(found.values()))

    def find(self, message: Message) -> Iterator[Binding]:
        """The bindings by which `route` leads there."""
        for binding, _ in self._walk(message.exchange, message.topic, message)[0]:
            yield binding

    def _answer(self, exchange: str, topic: str) -> _Answer[Q]:
        found = self._exchanges.get(exchange)
        if found is None:
            found = self._exchanges[exchange] = _Exchange(exchange)
        answer = found.answers.get(topic)
        if answer is None:
            answer = _Answer(*self._walk(exchange, topic, None))
            self._cached += found.remember(topic, answer)
            if self._cached > self._limit:
                self._cached += sum(each.forget_all() for each in self._exchanges.values())
        return answer

    def _walk(self, start: str, topic: str, message: Message | None) -> tuple[list[tuple[Binding, Q]], bool]:
        """What such a topic is led to from there, over other exchanges too; of `message`, only what wants it. And
        whether it is the message itself that decides where it goes on to."""
        if start not in self._onward:
            here = self._here(start, topic)
            return (here if message is None else [item for item in here if applies(item[0], message)]), False
        found: list[tuple[Binding, Q]] = []
        decides = False
        names, passed = [start], {start}
        for name in names:  # it grows
            here, leads = self._here(name, topic), self._onward.get(name)
            onward = leads.match(topic) if leads is not None else []
            otherwise = leads.otherwise if leads is not None else None
            asked = any(binding.match is not None for binding in onward)
            asked = asked or (otherwise is not None and any(is_conditional(binding) for binding, _ in here))
            decides = decides or asked
            if message is not None:
                here = [item for item in here if applies(item[0], message)]
                onward = [binding for binding in onward if binding.match is None or binding.match.matches(message)]
            found += here
            if otherwise is not None and (not (here or onward) or (asked and message is None)):
                onward.append(otherwise)
            for binding in onward:
                if binding.to not in passed:
                    passed.add(binding.to)
                    names.append(binding.to)
        return found, decides

    def _here(self, name: str, topic: str) -> list[tuple[Binding, Q]]:
        """What the bindings of one exchange lead to."""
        exchange = self._exchanges.get(name)
        found = list(exchange.tree.match(topic)) if exchange is not None else []
        if found and not is_name(topic):
            found = [item for item in found if not item[0].names]
        if exchange is not None and topic in exchange.literal:
            found += exchange.literal[topic].values()
        if name == DEFAULT_EXCHANGE and topic in self._queues and not is_reserved(topic):
            found.append((Binding(queue=topic, filter=topic, exchange=name, literal=True), self._queues[topic][0]))
        return found

    def _leading_to(self, exchange: str) -> list[str]:
        """The exchange itself, first, and all from which bindings lead there."""
        names, passed = [exchange], {exchange}
        for name in names:  # it grows
            for source in self._sources.get(name, ()):
                if source not in passed:
                    passed.add(source)
                    names.append(source)
        return names

    def _forget_matching(self, exchange: str, filter: str, literal: bool) -> None:
        if literal:
            self._forget(exchange, filter)
            return
        for name in self._leading_to(exchange):
            found = self._exchanges.get(name)
            if found is None:
                continue
            # A filter of another exchange may match what this one hides from its own.
            forgets_all = found.hides and name != exchange
            self._cached += found.forget_all() if forgets_all else found.forget_matching(filter)

    def _forget(self, exchange: str, topic: str) -> None:
        for name in self._leading_to(exchange):
            found = self._exchanges.get(name)
            if found is not None:
                self._cached += found.forget(topic)

    def _forget_exchange_binding(self, binding: ExchangeBinding) -> None:
        if not binding.otherwise:
            self._forget_matching(binding.exchange, binding.filter, binding.literal)
            return
        for name in self._leading_to(binding.exchange):
            found = self._exchanges.get(name)
            if found is not None:
                self._cached += found.forget_all()


def _size(topic: str, answer: _Answer[Any]) -> int:
    """Bytes of a cached answer without its levels, roughly."""
    return _ENTRY_OCTETS + 3 * len(topic) + 16 * len(answer.all)


def _cost(binding: Binding | ExchangeBinding) -> int:
    """Bytes of a binding without its levels, roughly."""
    return _BINDING_OCTETS + 3 * len(binding.filter) + (0 if binding.match is None else 2 * len(repr(binding.match)))


def identity_of(binding: Binding) -> tuple[object, ...]:
    """What makes two bindings the same: the later replaces the earlier."""
    match = None if binding.match is None else repr(binding.match)
    return (
        binding.owner,
        binding.queue,
        binding.exchange,
        binding.filter,
        binding.literal,
        match,
        binding.source,
        binding.options.target,
    )


def _exchange_identity(binding: ExchangeBinding) -> tuple[object, ...]:
    match = None if binding.match is None else repr(binding.match)
    return (binding.owner, binding.exchange, binding.to, binding.filter, binding.literal, match, binding.otherwise)


def is_conditional(binding: Binding) -> bool:
    return (
        binding.match is not None
        or binding.source is not None
        or binding.not_from is not None
        or binding.not_source is not None
    )


def applies(binding: Binding, message: Message) -> bool:
    """Whether a binding whose filter matches wants this message, too."""
    if binding.source is not None and binding.source != message.source:
        return False
    if binding.not_from is not None and binding.not_from == message.client_id:
        return False
    if binding.not_source is not None and binding.not_source == message.source:
        return False
    return binding.match is None or binding.match.matches(message)


def merge_options(one: Options, other: Options) -> Options:
    """What two bindings of one queue and target ask for together: nothing that one of them asks for is missing. If
    one wants its sender to wait for the delivery, the sender waits; of two such times the shorter counts."""
    times = [options.within for options in (one, other) if options.within is not None]
    return Options(
        qos=max(one.qos, other.qos),
        subscription_ids=tuple(sorted(one.subscription_ids + other.subscription_ids)),  # each as often [MQTT-3.3.4-4]
        retain_as_published=one.retain_as_published or other.retain_as_published,
        target=one.target,
        within=min(times, default=None),
    )


def merge(found: Sequence[tuple[Binding, Q]]) -> tuple[tuple[Q, Options], ...]:
    """One entry for each queue and target, with all that its bindings ask for (ruling 8)."""
    if len(found) == 1:
        return ((found[0][1], found[0][0].options),)
    merged: dict[tuple[str, str | None], tuple[Q, Options]] = {}
    for binding, queue in found:
        options = binding.options
        known = merged.get((binding.queue, options.target))
        if known is not None and (known[1] != options or options.subscription_ids):
            options = merge_options(known[1], options)
        merged[binding.queue, options.target] = (queue, options)
    return tuple(merged.values())
