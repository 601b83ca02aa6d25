"""Owns what the log says of clients that were refused: by which listener, who they said they were, and why.

Its rule: every refusal is counted; of a flood the first ones of a minute have a line each, and one line says how many
more there were. No line ever holds what a client showed as its secret.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from gateway.logs import log

LINES = 10
"""Of one listener and reason, in WINDOW_SECONDS."""
WINDOW_SECONDS = 60.0
MAX_TEXT = 128
"""Characters of a name that a client gives itself; the rest is not logged."""


class _Window(msgspec.Struct):
    began: float
    lines: int = 0
    more: int = 0


class Refusals:
    """Of one daemon. now: a clock of seconds that never runs backwards. later: calls back after so many seconds, as
    `loop.call_later` does."""

    def __init__(self, now: Callable[[], float], later: Callable[[float, Callable[[], None]], object]) -> None:
        self._now = now
        self._later = later
        self._windows: dict[tuple[str, str], _Window] = {}

    def say(self, transport: str, reason: str, peer: str, user: str = "", client_id: str = "", why: str = "") -> None:
        """One line, or one more of those that the last line of the minute counts."""
        key = (transport, reason)
        window = self._windows.get(key)
        if window is None or self._now() - window.began >= WINDOW_SECONDS:
            self._close(key)
            window = self._windows[key] = _Window(self._now())
        if window.lines >= LINES:
            if not window.more:
                self._later(max(0.0, window.began + WINDOW_SECONDS - self._now()), lambda: self._close(key, window))
            window.more += 1
            return
        window.lines += 1
        known = {"peer": peer, "user": user[:MAX_TEXT], "client_id": client_id[:MAX_TEXT], "why": why}
        fields = {name: text for name, text in known.items() if text}
        log.warning("client refused", transport=transport, reason=reason, **fields)

    def close(self) -> None:
        """The daemon stops: says what has not been said."""
        for key in list(self._windows):
            self._close(key)

    def _close(self, key: tuple[str, str], only: _Window | None = None) -> None:
        window = self._windows.get(key)
        if window is None or only not in (None, window):
            return
        del self._windows[key]
        if window.more:
            log.warning("more clients refused", transport=key[0], reason=key[1], clients=window.more)
