"""Owns what a listener asks of the gateway that it belongs to: who its clients are, and what is counted and told.

Its rule: these are parts of the contract that `gateway.transport` offers, named here so that sockets know no more.
"""

from __future__ import annotations

from asyncio import Future
from collections.abc import Callable, Sequence
from typing import Protocol

from gateway.model.counters import TransportCounters
from gateway.model.credit import Pressure
from gateway.model.principal import User


class Login(Protocol):
    """Who a client is, and whether it may come in."""

    @property
    def anonymous(self) -> bool:
        """No users are configured: every client is let in."""
        ...

    def authenticate(self, name: str | None, password: bytes | None, peer: str = "") -> Future[User | None]:
        """None if refused. peer: the client's address with its port, as `host:port`; checks that wait are shared out
        fairly among peers and names. Done at once if nothing has to be checked; otherwise it takes its time in a
        thread, and is to be cancelled when the client has gone. Raises LoginBusyError if the check can't be made now,
        which is no word on the password; otherwise it never raises for what a client sent."""
        ...

    def user(self, name: str) -> User | None:
        """For one who has shown to be it without a password (a client certificate); None if there is no such user.
        Without users everybody is one."""
        ...

    def let_in(self, user: User, end: Callable[[str], None]) -> Callable[[], None]:
        """To be called for each connection, or request, that is let in. `end` is called, with the reason, as soon as a
        reload takes away what the login rests on: end the connection then. Call what this returns when it is over."""
        ...

    def refused(
        self,
        transport: str,
        reason: str,
        peer: str,
        user: str = "",
        client_id: str = "",
        why: str = "",
        count: bool = True,
    ) -> None:
        """A client was not let in: counts `reason` (a few fixed words) in `refusals` of the transport's counters,
        unless it is counted elsewhere, and says it in the log, a few times a minute. user, client_id: as the client
        calls itself. Never give it what the client showed as its secret."""
        ...


class Listening(Protocol):
    """What a listener needs besides: limits, counters, reloads."""

    pressure: Pressure
    drain_timeout: float
    """Seconds that a transport has to drain once its `run` is cancelled."""

    def counters(self, transport: str) -> TransportCounters: ...

    def on_reload(self, transport: str, call: Callable[[], None]) -> None:
        """Called after each reload (SIGHUP) that was not refused: for what a transport has read from files itself. The
        last that a transport names counts."""

    def started(self, transport: str, addresses: Sequence[str]) -> None:
        """Called once by `run` when it takes clients: `mqtt://127.0.0.1:1883`."""


class Host(Login, Listening, Protocol):
    """All that what stands here asks of a gateway."""
