"""Owns what the command line shows to people: tables, sizes, ages and messages.

Its rule: what clients sent is shown as plain text and can't steer the terminal.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gateway.logs import printable
from gateway.views import MessageView

WIDTH_OF_A_FILE = 240


def console() -> Console:
    """The standard output. In a pipe nothing is wrapped to a terminal's width."""
    return Console(width=None if sys.stdout.isatty() else WIDTH_OF_A_FILE, highlight=False, markup=False)


def show(columns: Sequence[str], rows: Iterable[Sequence[Any]], empty: str) -> None:
    """A table; a column whose name ends in `>` is aligned to the right. Without columns there is no head. `empty` is
    said if there are no rows."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_header=bool(columns))
    for column in columns:
        right = column.endswith(">")
        table.add_column(column.rstrip(">"), justify="right" if right else "left", overflow="fold", no_wrap=right)
    count = 0
    for row in rows:
        table.add_row(*[Text(printable("" if cell is None else str(cell))) for cell in row])
        count += 1
    console().print(table if count else Text(empty))


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
