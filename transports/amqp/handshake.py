"""Owns how a connection comes to be: protocol header, login, limits, virtual host [AMQP 2.2.4]; later, a new secret.

Its rule: nothing but the next step is taken, and who does not get to the end in time is cut off.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from pamqp import commands as amqp
from pamqp.base import Frame

from gateway.errors import LoginBusyError
from gateway.logs import log
from gateway.transport import User
from transports.amqp.codec import MIN_FRAME, PROTOCOL_HEADER, encode_method
from transports.amqp.errors import ACCESS_REFUSED, CHANNEL_ERROR, CONNECTION_FORCED, NOT_ALLOWED, AmqpError
from transports.amqp.mechanisms import EXTERNAL, GUEST, PASSWORDS, Claim, LoginError, claim
from transports.amqp.vhost import ROOT, Vhost

if TYPE_CHECKING:
    from transports.amqp.connection import AmqpConnection

CAPABILITIES = {
    "publisher_confirms": True,
    "basic.nack": True,
    "consumer_cancel_notify": True,
    "exchange_exchange_bindings": True,
    "per_consumer_qos": True,
    "authentication_failure_close": True,
    "connection.blocked": True,
    "consumer_priorities": True,
    "direct_reply_to": True,
}


class Step(enum.Enum):
    """What is waited for."""

    HEADER = enum.auto()
    START_OK = enum.auto()
    LOGIN = enum.auto()
    TUNE_OK = enum.auto()
    OPEN = enum.auto()
    DONE = enum.auto()


class Handshake:
    """That of one connection. Methods raise AmqpError, which ends it."""

    __slots__ = ("_leave", "_login", "_timer", "capabilities", "connection", "name", "step")

    def __init__(self, connection: AmqpConnection) -> None:
        self.connection = connection
        self.step = Step.HEADER
        self.capabilities: dict[str, Any] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._login: asyncio.Task[None] | None = None
        self.name = ""
        """As the client has logged in, or tries to."""
        self._leave: Callable[[], None] | None = None
        """Called when the login is over."""

    def begin(self) -> None:
        """The TCP connection is there."""
        connection = self.connection
        self._timer = connection.loop.call_later(connection.settings.connect_timeout, self._too_slow)

    def end(self) -> None:
        """It is complete, or the connection is over."""
        if self._timer is not None:
            self._timer.cancel()
        if self._login is not None:
            self._login.cancel()

    def leave(self) -> None:
        """The connection is over."""
        self.end()
        leave, self._leave = self._leave, None
        if leave is not None:
            leave()

    def _enter(self, user: User) -> None:
        """The login lasts until the connection ends, or a reload ends it."""
        if self._leave is not None:
            self._leave()
        self._leave = self.connection.gateway.let_in(user, self._put_out)

    def _put_out(self, why: str) -> None:
        connection = self.connection
        if connection.closing or connection.refused:
            return
        connection.counters.refusals["login-revoked"] += 1
        log.info("AMQP connection closed", transport=connection.name, peer=connection.peer, user=self.name, why=why)
        connection.fail(AmqpError(CONNECTION_FORCED, why))

    def _too_slow(self) -> None:
        connection = self.connection
        connection.counters.protocol_errors["connect-timeout"] += 1
        self._trace("connect-timeout", f"in {connection.settings.connect_timeout:g}s it came to {self.step.name}")
        connection.abort()

    def protocol_header(self, data: bytes) -> int:
        """The first bytes; returns how many of them are used up."""
        connection = self.connection
        if not PROTOCOL_HEADER.startswith(data[:8]):
            connection.counters.protocol_errors["wrong-protocol"] += 1
            self._trace("wrong-protocol", f"it began with {bytes(data[:8])!r}")
            connection.send(PROTOCOL_HEADER)  # [AMQP 4.2.2]
            connection.close()
            return len(data)
        if len(data) < 8:
            return 0
        self.step = Step.START_OK
        properties = {
            "product": "mqtt-amqp-gateway",
            "version": connection.version,
            "platform": "Python",
            "capabilities": CAPABILITIES,
        }
        start = encode_method(
            0,
            amqp.Connection.Start,
            version_minor=9,
            server_properties=properties,
            mechanisms=" ".join((*PASSWORDS, EXTERNAL) if self._certified else PASSWORDS),
            locales="en_US",
        )
        connection.send(start)
        return 8

    def method(self, method: Frame) -> None:
        """A method on channel 0 other than close."""
        if isinstance(method, amqp.Connection.StartOk) and self.step is Step.START_OK:
            self._start_ok(method)
        elif isinstance(method, amqp.Connection.TuneOk) and self.step is Step.TUNE_OK:
            self._tune_ok(method)
        elif isinstance(method, amqp.Connection.Open) and self.step is Step.OPEN:
            vhost = method.virtual_host
            if vhost != ROOT.name and vhost not in self.connection.settings.vhosts:
                raise AmqpError(NOT_ALLOWED, f"vhost {vhost!r} not found")
            if not self.connection.crowd.admit(self.connection):
                most = self.connection.settings.max_connections
                self._trace("max-connections", "all places are taken (max_connections)")
                raise AmqpError(NOT_ALLOWED, f"connection limit ({most}) is reached")
            self.step = Step.DONE
            self.connection.declarations.vhost = Vhost(vhost)
            self.end()
            self.connection.send(encode_method(0, amqp.Connection.OpenOk))
        elif isinstance(method, amqp.Connection.UpdateSecret) and self.step is Step.DONE:
            self._start(self._update_secret(method))
        else:
            raise AmqpError(CHANNEL_ERROR, f"{method.name} is not expected now")

    def _start_ok(self, method: amqp.Connection.StartOk) -> None:
        capabilities = method.client_properties.get("capabilities")
        self.capabilities = capabilities if isinstance(capabilities, dict) else {}
        response: Any = method.response
        transport = self.connection.transport
        certificate = transport.get_extra_info("peercert") if transport is not None and self._certified else None
        try:
            claimed = claim(method.mechanism, response, certificate)
        except LoginError as error:
            self._refuse(str(error))
            return
        self.step = Step.LOGIN
        self.name = claimed.name
        self._start(self._authenticate(claimed, method.mechanism))

    @property
    def _certified(self) -> bool:
        """Its clients show certificates that are checked."""
        tls = self.connection.settings.tls
        return tls is not None and tls.client_ca is not None

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        """Nothing is handled until it ends. That takes our time, not the client's."""
        self.connection.postpone("login")
        if self._timer is not None:
            self._timer.cancel()
        self._login = self.connection.loop.create_task(work)

    async def _check(self, claimed: Claim) -> User | None:
        """Who it is, or None; then reading goes on. Without users a password is not just any, but guest's: else nobody
        would notice that it is a wrong one. Raises LoginBusyError."""
        connection = self.connection
        name, password = claimed
        user: User | None = None
        is_guest = connection.settings.allow_anonymous and claimed == GUEST
        try:
            if is_guest and connection.gateway.anonymous:
                user = User(name)  # by the listener's own word, which still holds when a reload brings users
            elif password is None:
                user = connection.gateway.user(name)
            elif claimed == GUEST or not connection.gateway.anonymous:
                user = await connection.gateway.authenticate(name, password, connection.peer)
        finally:
            connection.resume("login")
        if user is None and is_guest:
            user = User("")
        return user

    async def _update_secret(self, method: amqp.Connection.UpdateSecret) -> None:
        connection = self.connection
        secret: Any = method.new_secret
        try:
            user = await self._check(Claim(self.name, secret))
            reason, why = "bad-credentials", "the new secret was refused"
        except LoginBusyError as error:
            user, reason, why = None, "login-busy", str(error)
        if connection.closing or connection.ended:
            return
        if user is None:
            self._refused(reason, why)
            connection.fail(AmqpError(NOT_ALLOWED, why, method.index))
            return
        self._enter(user)
        connection.send(encode_method(0, amqp.Connection.UpdateSecretOk))

    async def _authenticate(self, claimed: Claim, mechanism: str) -> None:
        connection = self.connection
        try:
            user = await self._check(claimed)
        except LoginBusyError as error:
            if not (connection.closing or connection.ended):
                self._refused("login-busy", str(error))
                connection.fail(AmqpError(CONNECTION_FORCED, f"busy: {error}"))
            return
        if connection.closing or connection.ended:
            return
        if user is None:
            self._refuse(f"login was refused for user {claimed.name[:64]!r} using mechanism {mechanism}")
            return
        self._enter(user)
        self.begin()
        connection.declarations.actor.user = user.name
        self.step = Step.TUNE_OK
        tune = encode_method(
            0,
            amqp.Connection.Tune,
            channel_max=connection.channel_max,
            frame_max=connection.frame_max,
            heartbeat=int(connection.settings.heartbeat),
        )
        connection.send(tune)

    def _refuse(self, why: str) -> None:
        connection = self.connection
        self._refused("bad-credentials", why)
        if connection.client_can("authentication_failure_close"):
            connection.fail(AmqpError(ACCESS_REFUSED, why))
        else:
            connection.close()  # [AMQP 1.4.2.2]: without that capability, closing is all that may be said

    def _refused(self, reason: str, why: str) -> None:
        connection = self.connection
        connection.gateway.refused(connection.name, reason, connection.peer, self.name, why=why)

    def _trace(self, reason: str, why: str) -> None:
        """For what is counted already."""
        connection = self.connection
        connection.gateway.refused(connection.name, reason, connection.peer, self.name, why=why, count=False)

    def _tune_ok(self, method: amqp.Connection.TuneOk) -> None:
        connection = self.connection
        frame_max = method.frame_max or connection.frame_max
        channel_max = method.channel_max or connection.channel_max
        if not MIN_FRAME <= frame_max <= connection.frame_max:
            raise AmqpError(
                NOT_ALLOWED, f"negotiated frame_max {frame_max} is not from {MIN_FRAME} to {connection.frame_max}"
            )
        if channel_max > connection.channel_max:
            raise AmqpError(NOT_ALLOWED, f"negotiated channel_max {channel_max} is above {connection.channel_max}")
        connection.frame_max, connection.channel_max = frame_max, channel_max
        self.step = Step.OPEN
        if method.heartbeat:
            connection.beat_every(method.heartbeat / 2)
