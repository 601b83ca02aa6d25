"""Owns the exceptions that cross a module's border; expected outcomes are enums, not exceptions.

Its rule: every message says what is wrong, where, and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class GatewayError(Exception):
    """Any error this product raises on purpose."""


class ConfigError(GatewayError):
    """The configuration can't be used; the text names file, line, key and the nearest valid name."""


class StoreError(GatewayError):
    """The store can't be opened, read or trusted; the text names the path."""


class StoreDamagedError(StoreError):
    """What was read is not what was written; reading it again will not help."""


class StoreFullError(StoreError):
    """A commit was rolled back for want of space; the store is unharmed and the commit may be tried again."""


class StoreFailedError(StoreError):
    """A write or fsync failed: nothing may be appended to this file again (ruling 2)."""


class UnknownQueueError(GatewayError):
    """No queue of that name."""


class NameRefusedError(GatewayError):
    """There is such a queue, and who names it may not use it so."""


class ReservedNameError(NameRefusedError):
    """The name belongs to a session, a share or a link."""


class LockedQueueError(NameRefusedError):
    """The queue is exclusive to another connection."""


class ExclusiveUseError(NameRefusedError):
    """One consumer has the queue for itself, or wants it while there are others."""


class QueueMismatchError(GatewayError):
    """A queue exists with another policy; the text names the one that differs."""


class ListenError(GatewayError):
    """A listener can't have its address; the text names transport, address and cause."""


class NoTextError(ConfigError):
    """What was given to the command line is no UTF-8 text."""

    def __init__(self, argument: str, what: str = "") -> None:
        """what: in place of what it is, which must not be shown."""
        super().__init__(f"{what or ascii(argument[:64])} is no UTF-8 text")


class StreamError(GatewayError):
    """A standard stream of the command line is closed, or can't be written."""


class LoginBusyError(GatewayError):
    """A login can't be checked now, whether it is right or wrong; the client may try again later."""


class UnreachableError(GatewayError):
    """No daemon answers at that address."""


class DeniedError(GatewayError):
    """A daemon answered, and did not do what it was asked; the text is its own, `status` that of HTTP."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


class BindingsFullError(GatewayError):
    """The bindings of all queues take as much memory as they may (`max_bindings`)."""


def check_text(text: str, what: str = "") -> str:
    """The same. Raises NoTextError for what the shell handed over and is no UTF-8; `what` as there."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise NoTextError(text, what) from None
    return text


def find_near(word: str, known: Iterable[str]) -> list[str]:
    """The known word that is nearest to this one, or nothing."""
    return difflib.get_close_matches(word, sorted(set(known)), 1, 0.6)


def nearest(word: str, known: Iterable[str], kind: str = "") -> str:
    """`; did you mean "x"?`, or the list of what is known when nothing is near."""
    names = sorted(set(known))
    near = find_near(word, names)
    if near:
        return f'; did you mean "{near[0]}"?'
    if not names:
        return f"; there are no {kind}" if kind else ""
    shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    return f"; known{' ' + kind if kind else ''}: {shown}"
