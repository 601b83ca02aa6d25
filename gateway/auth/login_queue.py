"""Owns LoginQueue: which of the password checks that wait is made next, and which has to go when too many wait.

Its rule: turns are shared, alternately among peers and among user names, so neither a peer that tries many names nor a
name that many peers try holds up the others; and who has to go is of the peer that has most.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Hashable
from typing import Generic, TypeVar

Item = TypeVar("Item", bound=Hashable)


class LoginQueue(Generic[Item]):
    """Every operation takes the same time however many wait. Each item stands for one peer and one name."""

    def __init__(self) -> None:
        self._keys: dict[Item, tuple[str, str]] = {}
        self._by_peer: _Rounds[Item] = _Rounds()
        self._by_name: _Rounds[Item] = _Rounds()
        self._peers = _Tallies()
        self._names: defaultdict[str, _Tallies] = defaultdict(_Tallies)
        """Of each peer."""
        self._turn = False
        """The next one is taken by name."""

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, item: Item) -> bool:
        return item in self._keys

    def add(self, item: Item, peer: str, name: str) -> None:
        self._keys[item] = (peer, name)
        self._by_peer.add(peer, name, item)
        self._by_name.add(name, peer, item)
        self._peers.count(peer, +1)
        self._names[peer].count(name, +1)

    def discard(self, item: Item) -> None:
        """Nobody waits for it any more; nothing happens if it is not there."""
        found = self._keys.pop(item, None)
        if found is None:
            return
        peer, name = found
        self._by_peer.remove(peer, name, item)
        self._by_name.remove(name, peer, item)
        self._peers.count(peer, -1)
        self._names[peer].count(name, -1)
        if not self._names[peer]:
            del self._names[peer]

    def take(self) -> Item:
        """The next one. There must be one."""
        item = (self._by_name if self._turn else self._by_peer).next()
        self._turn = not self._turn
        self.discard(item)
        return item

    def displace(self, peer: str, name: str) -> Item | None:
        """Whom one of that peer and name may push out: the last that came of the peer that has most, and there of the
        name that has most. None if that is the newcomer itself."""
        longest = self._peers.most()
        if longest is None or (longest != peer and self._peers.of(longest) <= self._peers.of(peer) + 1):
            return None
        names = self._names[longest]
        fullest = names.most()
        assert fullest is not None, "a peer without names is not kept"
        if longest == peer and (fullest == name or names.of(fullest) <= names.of(name) + 1):
            return None
        item = self._by_peer.last(longest, fullest)
        self.discard(item)
        return item


class _Rounds(Generic[Item]):
    """Items in two levels of turns: the next key, and of it the next one below, and of that the earliest."""

    def __init__(self) -> None:
        self._turns: OrderedDict[str, OrderedDict[str, OrderedDict[Item, None]]] = OrderedDict()

    def add(self, key: str, below: str, item: Item) -> None:
        self._turns.setdefault(key, OrderedDict()).setdefault(below, OrderedDict())[item] = None

    def remove(self, key: str, below: str, item: Item) -> None:
        turns = self._turns[key]
        del turns[below][item]
        if not turns[below]:
            del turns[below]
        if not turns:
            del self._turns[key]

    def next(self) -> Item:
        """Whose turn it is; the turn goes on, the item stays."""
        key = next(iter(self._turns))
        self._turns.move_to_end(key)
        below = next(iter(self._turns[key]))
        self._turns[key].move_to_end(below)
        return next(iter(self._turns[key][below]))

    def last(self, key: str, below: str) -> Item:
        """The latest that came."""
        return next(reversed(self._turns[key][below]))


class _Tallies:
    """How many each key has, and which has most."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._with: defaultdict[int, OrderedDict[str, None]] = defaultdict(OrderedDict)
        """Keys by their count."""
        self._most = 0

    def __len__(self) -> int:
        return len(self._counts)

    def of(self, key: str) -> int:
        return self._counts.get(key, 0)

    def most(self) -> str | None:
        return next(iter(self._with[self._most])) if self._most else None

    def count(self, key: str, step: int) -> None:
        """step: +1 or -1."""
        before = self._counts.get(key, 0)
        after = before + step
        if before:
            del self._with[before][key]
            if not self._with[before]:
                del self._with[before]
                if before == self._most and step < 0:
                    self._most = after
        if after:
            self._counts[key] = after
            self._with[after][key] = None
            self._most = max(self._most, after)
        else:
            del self._counts[key]
