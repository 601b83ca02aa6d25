"""Owns the numbers that stand for long values in entries: a queue's group names, and what entries carry (extras).

Its rule: a number is used again only when nothing, committed or not, can still mean its old value.
"""

from __future__ import annotations

from collections.abc import Iterable

from gateway.storage.records import NO_EXTRA, Extra


class GroupNames:
    """Of one queue. Number 0 is no group."""

    __slots__ = ("_free", "_last", "_names", "_numbers", "count", "idle")

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._names: list[str] = [""]
        self._last: list[int] = [0]
        self._free: list[int] = []
        self.count = 0
        """How many groups there are."""
        self.idle: list[int] = []
        """Numbers that may be free soon; a number may stand here twice."""

    def number(self, name: str, ident: int) -> tuple[int, bool]:
        """The group's number, for an entry with this ident, and whether it is new and must be journaled."""
        number = self._numbers.get(name)
        if number is not None:
            self._last[number] = ident
            return number, False
        if self._free:
            number = self._free.pop()
            self._names[number] = name
            self._last[number] = ident
        else:
            number = len(self._names)
            self._names.append(name)
            self._last.append(ident)
        self._numbers[name] = number
        self.count += 1
        return number, True

    def restore(self, number: int, name: str) -> None:
        """As the log says; a later name replaces an earlier one."""
        while number >= len(self._names):
            self._names.append("")
            self._last.append(0)
        if self._numbers.get(self._names[number]) == number:
            del self._numbers[self._names[number]]
        self._names[number] = name
        self._numbers[name] = number
        self.count = len(self._numbers)

    def restored(self, live: Iterable[int]) -> None:
        """Frees all numbers but these."""
        keep = set(live)
        for name, number in list(self._numbers.items()):
            if number not in keep:
                self._release(name, number)
        self._free = [number for number in range(1, len(self._names)) if number not in keep]

    def name(self, number: int) -> str | None:
        return self._names[number] if number else None

    def find(self, name: str) -> int:
        """0 if no such group is known."""
        return self._numbers.get(name, 0)

    def empty(self, numbers: Iterable[int]) -> None:
        """These groups have no entries now."""
        self.idle += numbers

    def free_idle(self, live: Iterable[int] | dict[int, int], committed: int) -> None:
        """Frees those that are empty still, and for which nothing is on its way to the disk."""
        later: list[int] = []
        for number in self.idle:
            if number in live:
                continue
            name = self._names[number]
            if self._numbers.get(name) != number:
                continue
            if self._last[number] <= committed:
                self._release(name, number)
                self._free.append(number)
            else:
                later.append(number)
        self.idle = later

    @property
    def top(self) -> int:
        """No number is as high."""
        return len(self._names)

    def named(self, start: int, stop: int) -> list[tuple[int, str]]:
        """The numbers from `start` to below `stop` that are in use, with their names."""
        named = enumerate(self._names[start:stop], start)
        return [(number, name) for number, name in named if self._numbers.get(name) == number]

    def __len__(self) -> int:
        return self.count

    def _release(self, name: str, number: int) -> None:
        del self._numbers[name]
        self.count -= 1
        self._names[number] = ""
        self._last[number] = 0


class Extras:
    """Of the whole daemon, counted by use. Number 0 is NO_EXTRA. What entries in memory alone carry has numbers of its
    own, which the journal never hears of."""

    __slots__ = ("_free", "_numbers", "_uses", "_values", "_volatile")

    def __init__(self) -> None:
        self._values: list[Extra] = [NO_EXTRA]
        self._uses: list[int] = [0]
        self._numbers: dict[Extra, int] = {}
        self._volatile: dict[Extra, int] = {}
        self._free: list[int] = []

    def __getitem__(self, number: int) -> Extra:
        return self._values[number]

    def use(self, value: Extra, durable: bool = True) -> tuple[int, bool]:
        """The value's number, used once more by an entry of a durable queue or of another, and whether it is new and
        must be journaled."""
        if value == NO_EXTRA:
            return 0, False
        numbers = self._numbers if durable else self._volatile
        number = numbers.get(value)
        if number is not None:
            self._uses[number] += 1
            return number, False
        if self._free:
            number = self._free.pop()
            self._values[number] = value
            self._uses[number] = 1
        else:
            number = len(self._values)
            self._values.append(value)
            self._uses.append(1)
        numbers[value] = number
        return number, durable

    def drop(self, number: int) -> None:
        """One use less."""
        if not number:
            return
        self._uses[number] -= 1
        if not self._uses[number]:
            value = self._values[number]
            for numbers in (self._numbers, self._volatile):
                if numbers.get(value) == number:  # after a crash a value may have two
                    del numbers[value]
            self._values[number] = NO_EXTRA
            self._free.append(number)

    def restore(self, number: int, value: Extra) -> None:
        while number >= len(self._values):
            self._values.append(NO_EXTRA)
            self._uses.append(0)
        self._values[number] = value

    def restored(self, uses: dict[int, int]) -> None:
        """How often each is used; frees the others."""
        self._free = []
        for number in range(1, len(self._values)):
            self._uses[number] = uses.get(number, 0)
            if self._uses[number]:
                self._numbers[self._values[number]] = number
            else:
                self._values[number] = NO_EXTRA
                self._free.append(number)

    @property
    def top(self) -> int:
        """No number is as high."""
        return len(self._values)

    def named(self, start: int, stop: int) -> list[tuple[int, Extra]]:
        """The numbers from `start` to below `stop` that the journal must know, with their values."""
        uses = enumerate(self._uses[start:stop], start)
        found = [(number, self._values[number]) for number, count in uses if count]
        return [(number, value) for number, value in found if self._volatile.get(value) != number]

    @property
    def in_use(self) -> list[Extra]:
        """All there are."""
        return [*self._numbers, *self._volatile]
