"""Owns Reordering: the way of a queue's entries into another order, in slices, while the queue goes on.

Its rule: an entry is known to the new order from its turn on, and before to nobody but this walk; nothing is delivered
until all have had their turn.
"""

from __future__ import annotations

from collections.abc import Container

from gateway.queueing.entries import Entries
from gateway.queueing.ordering import Order

REORDERED_AT_ONCE = 2000
"""So many entries are brought into their new order in one turn of the loop."""


class Reordering:
    """Stands before an order and takes its `add`, `back`, `leave` and `due` until every entry is in it.

    dues: when delayed entries may go out, by slot; it is used up. flying: the slots in flight, as they are at any time.
    """

    __slots__ = ("_dues", "_entries", "_flying", "_order")

    def __init__(self, entries: Entries, order: Order, dues: dict[int, float], flying: Container[int]) -> None:
        self._entries = entries
        self._order = order
        self._dues = dues
        self._flying = flying
        entries.reordered = entries.first

    @property
    def is_over(self) -> bool:
        """Every entry is in the new order."""
        return not self._entries.reordered

    def step(self) -> None:
        """Brings some entries into the new order; those in flight stay with their consumers."""
        entries, order, flying, dues = self._entries, self._order, self._flying, self._dues
        slot = entries.reordered
        for _ in range(REORDERED_AT_ONCE):
            if not slot:
                break
            order.add(slot, dues.pop(slot, 0.0) if dues else 0.0)
            if slot in flying:
                order.adopt((slot,))
            slot = entries.next[slot]
        entries.reordered = slot

    def _had_its_turn(self, slot: int) -> bool:
        entries = self._entries
        return not entries.reordered or entries.ident[slot] < entries.ident[entries.reordered]

    def add(self, slot: int, due: float) -> None:
        """A new entry, which is the last to have its turn."""
        if due:
            self._dues[slot] = due
        if not self._entries.reordered:
            self._entries.reordered = slot

    def back(self, slot: int, due: float) -> None:
        if self._had_its_turn(slot):
            self._order.back(slot, due)
        elif due:
            self._dues[slot] = due

    def leave(self, slot: int, flying: bool) -> None:
        if self._had_its_turn(slot):
            self._order.leave(slot, flying)
        else:
            self._dues.pop(slot, None)

    def due(self, slot: int) -> float:
        return self._order.due(slot) if self._had_its_turn(slot) else self._dues.get(slot, 0.0)

    def dues(self) -> dict[int, float]:
        return self._order.dues() | self._dues
