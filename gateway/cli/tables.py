"""Owns what the command line shows to people: tables, sizes, ages and messages.

Its rule: what clients sent is shown as plain text and can't steer the terminal; whatever the width, names are there and
no number is cut: where there is no room, whole columns are left out, those of the least weight first, and it is said.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gateway.admin.views import MessageView
from gateway.logs import printable

TEXT_IN_A_FILE = 240
"""Where there is no terminal, only longer texts are folded."""
LEAST_NAME = 12
LEAST_TEXT = 16
GAP = 2


class Column(NamedTuple):
    """weight: what has less is left out before what has more; None: never. whole: a value stands on one line, or the
    column is left out. right: aligned so, as numbers are."""

    title: str
    weight: int | None = None
    whole: bool = False
    right: bool = False


def name(title: str) -> Column:
    """Of queues, topics, groups: always there, folded where there is no room."""
    return Column(title)


def number(title: str, weight: int | None) -> Column:
    """Also sizes and ages."""
    return Column(title, weight, whole=True, right=True)


def word(title: str, weight: int) -> Column:
    """Times, and values of which there are a few."""
    return Column(title, weight, whole=True)


def text(title: str, weight: int) -> Column:
    """Folded where there is no room."""
    return Column(title, weight)


PAIRS = (name(""), text("", 1))
"""Of a table without a head: what it is, and the value."""


def console() -> Console:
    """The standard output, as wide as the terminal or as COLUMNS says. What goes elsewhere is as wide as it must be."""
    measured = sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdigit()
    return Console(width=None if measured else sys.maxsize, highlight=False, markup=False, emoji=False)


def show(columns: Sequence[Column], rows: Iterable[Sequence[Any]], empty: str) -> None:
    """A table. Without titles there is no head. `empty` is said if there are no rows."""
    cells = [[printable("" if cell is None else str(cell)) for cell in row] for row in rows]
    out = console()
    if not cells:
        out.print(Text(empty))
        return
    longest = [max(cell_len(row[place]) for row in cells) for place in range(len(columns))]
    widths = fit(columns, longest, out.width)
    has_head = any(column.title for column in columns)
    table = Table(box=box.SIMPLE_HEAD if has_head else None, show_edge=False, pad_edge=False, show_header=has_head)
    table.padding = (0, GAP - (1 if has_head else 0), 0, 0)  # the box has a blank between columns
    for place, width in widths.items():
        column = columns[place]
        table.add_column(column.title, justify="right" if column.right else "left", overflow="fold", width=width)
    for row in cells:
        table.add_row(*[Text(row[place]) for place in widths])
    out.print(table)
    left_out = [column.title for place, column in enumerate(columns) if place not in widths and longest[place]]
    if left_out:
        out.print(Text(f"no room for: {', '.join(left_out)}; --json has all"))


def fit(columns: Sequence[Column], longest: Sequence[int], room: int) -> Mapping[int, int]:
    """The columns that there is room for, by place, each with its width. longest: the longest cell of each."""
    folds = sum(column.weight is None and not column.whole for column in columns)
    name_floor = max(LEAST_NAME, room // (2 * folds or 1))
    wanted, least = [], []
    for column, length in zip(columns, longest, strict=True):
        head = max(map(cell_len, column.title.split()), default=1)  # a title may stand on several lines
        folded = not column.whole and column.weight is not None
        wanted.append(max(min(length, TEXT_IN_A_FILE) if folded else length, cell_len(column.title), 1))
        floor = length if column.whole else LEAST_TEXT if folded else name_floor
        least.append(max(head, min(length, floor)))
    shown = list(range(len(columns)))

    def spare() -> int:
        return room - sum(least[place] for place in shown) - GAP * (len(shown) - 1)

    def worth(place: int) -> tuple[bool, int]:
        """A column without a value is left out before all others."""
        return longest[place] > 0, columns[place].weight or 0

    while spare() < 0 and (
        optional := [place for place in shown if columns[place].weight is not None or not longest[place]]
    ):
        shown.remove(min(optional, key=worth))
    names = [place for place in shown if columns[place].weight is None and not columns[place].whole]
    whole = [place for place in shown if columns[place].whole]
    if spare() < 0:  # narrower than any terminal: the names share what there is
        for place in names:
            least[place] = 1
    for places in (names, whole, [place for place in shown if place not in names and place not in whole]):
        _share(least, wanted, places, spare())
    return {place: least[place] for place in shown}


def _share(widths: list[int], wanted: Sequence[int], places: Sequence[int], spare: int) -> None:
    """Gives what is there to the columns that want more, the narrowest first."""
    while spare > 0 and (needy := [place for place in places if widths[place] < wanted[place]]):
        widths[min(needy, key=lambda place: widths[place])] += 1
        spare -= 1


def size(octets: float) -> str:
    """`512 B`, `1.5 KB`."""
    for unit in ("B", "KB", "MB", "GB"):
        if octets < 1024 or unit == "GB":
            return f"{octets:.0f} {unit}" if unit == "B" else f"{octets:.1f} {unit}"
        octets /= 1024
    raise AssertionError


def age(seconds: float) -> str:
    """`4s`, `12m`, `3h`, `2d`; "-" for none."""
    if seconds <= 0:
        return "-"
    for limit, length, unit in ((120, 1, "s"), (7200, 60, "m"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / length:.0f}{unit}"
    return f"{seconds / 86_400:.0f}d"


def moment(seconds: float) -> str:
    """A time of the wall clock, in UTC."""
    return time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(seconds))


def body(message: MessageView, most: int = 60) -> str:
    """The begin of a body, on one line."""
    text = message.body.text if message.body.encoding == "utf-8" else f"base64:{message.body.text}"
    return text if len(text) <= most else text[: most - 3] + "..."
