"""Owns HttpPeer: one HTTP connection, its place among the others, and the time that its requests may take.

Its rule: a request that is not whole holds no place that a whole one could have, and none for longer than is stated.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, cast

import h11
import msgspec
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from gateway.logs import log
from gateway.model.counters import TransportCounters
from gateway.model.principal import User
from gateway.net.connection_limits import Crowd
from gateway.net.roles import Host

STALL_SECONDS = 30.0
"""A client that takes nothing of an answer for so long is cut off."""
PEER = "peer"
"""Under this name an application finds the connection in the state of its scope."""
Answer = TypeVar("Answer")
TOO_SLOW = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class Limits(msgspec.Struct, frozen=True):
    """max_connections: requests that are answered at one time. max_unfinished: bytes of those that are not whole,
    of all clients together. request_timeout: seconds from a request's first byte, or its connection, to its last."""

    max_connections: int
    max_unfinished: int
    request_timeout: float


class HttpPeer(H11Protocol):
    """uvicorn's connection, with limits. In the crowd it is known while a whole request of it is being answered, and
    a stranger before and between."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        crowd: Crowd,
        counters: TransportCounters,
        limits: Limits,
    ) -> None:
        super().__init__(config, server_state, {**app_state, PEER: self}, _loop)
        self.crowd = crowd
        self.counters = counters
        self._patience = limits.request_timeout
        self._deadline: asyncio.TimerHandle | None = None
        self._stall: asyncio.TimerHandle | None = None
        self._octets = 0
        """Of the request that is not whole."""
        self._lost = False
        self._login: asyncio.Future[Any] | None = None
        self._leave: Callable[[], None] | None = None

    @property
    def address(self) -> str:
        """The client's, as `host:port`."""
        return f"{self.client[0]}:{self.client[1]}" if self.client else ""

    async def as_long_as_connected(self, work: Awaitable[Answer]) -> Answer:
        """What it gives. It is cancelled when the client has gone; then ConnectionError is raised."""
        if self._lost:
            raise ConnectionError("the client has gone")
        login: asyncio.Future[Answer] = asyncio.ensure_future(work)
        self._login = login
        try:
            return await login
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not self._lost or (task is not None and task.cancelling()):
                raise
            raise ConnectionError("the client has gone") from None
        finally:
            self._login = None

    def let_in(self, gateway: Host, user: User, transport: str) -> None:
        """The present request is this user's, until it is answered."""
        self._end_login()
        if not self._lost:
            self._leave = gateway.let_in(user, functools.partial(self._put_out, transport, user.name))

    def _end_login(self) -> None:
        leave, self._leave = self._leave, None
        if leave is not None:
            leave()

    def _put_out(self, transport: str, user: str, why: str) -> None:
        self.counters.refusals["login-revoked"] += 1
        log.info("connection closed", transport=transport, peer=self.address, user=user, why=why)
        self.transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.counters.connections += 1
        self.counters.connections_total += 1
        super().connection_made(cast(asyncio.Transport, CountedTransport(transport, self.counters)))
        self.crowd.join(self)
        self._wait_for_request()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self._end_login()
        if self._login is not None:
            self._login.cancel()
        self.counters.connections -= 1
        self.crowd.leave(self)
        self._waited()
        self._unset_keepalive_if_required()
        if self._stall is not None:
            self._stall.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self.counters.octets_in += len(data)
        if self.transport.is_closing():
            return
        super().data_received(data)
        self._octets += len(data)
        self._look()

    def on_response_complete(self) -> None:
        if self._lost:
            return
        self._end_login()
        self.crowd.join(self)
        super().on_response_complete()
        if self.cycle.response_complete:
            self._octets = 0
        self._look()

    def _look(self) -> None:
        """How far the present request has come."""
        if self.transport.is_closing():
            return
        if self.conn.their_state in (h11.DONE, h11.MUST_CLOSE) and not self.cycle.response_complete:
            self._octets = 0
            self._waited()
            self.crowd.hold(self, 0)
            self.crowd.admit(self)
            return
        self.crowd.hold(self, self._octets)
        if self._octets and self._deadline is None:
            self._wait_for_request()

    def _wait_for_request(self) -> None:
        self._deadline = self.loop.call_later(self._patience, self._too_slow)

    def _waited(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_slow(self) -> None:
        self._deadline = None
        if self.flow.read_paused:  # it is not read, so that is not its fault
            self._wait_for_request()
            return
        self.counters.protocol_errors["request-timeout"] += 1
        if self.conn.their_state is h11.IDLE and self.conn.our_state is h11.IDLE:
            self.transport.write(TOO_SLOW)
            self.transport.close()
        else:
            self.transport.abort()

    def cut_off(self, why: str) -> None:
        self.transport.abort()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._stall is None:
            self._stall = self.loop.call_later(STALL_SECONDS, self._stalled)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def _stalled(self) -> None:
        self.counters.refusals["stalled"] += 1
        self.transport.abort()


class CountedTransport:
    """A transport that counts what is written."""

    def __init__(self, transport: asyncio.BaseTransport, counters: TransportCounters) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._counters = counters

    def write(self, data: bytes) -> None:
        self._counters.octets_out += len(data)
        self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
