"""Owns how a connection comes to be: protocol header, login, limits, virtual host [AMQP 2.2.4]; later, a new secret.

Its rule: nothing but the next step is taken, and who does not get to the end in time is cut off.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from pamqp import commands as amqp
from pamqp.base import Frame

from gateway.transport import User
from transports.amqp.codec import MIN_FRAME, PROTOCOL_HEADER, encode_method
from transports.amqp.errors import ACCESS_REFUSED, CHANNEL_ERROR, NOT_ALLOWED, AmqpError
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

    __slots__ = ("_login", "_timer", "capabilities", "connection", "name", "step")

    def __init__(self, connection: AmqpConnection) -> None:
        self.connection = connection
        self.step = Step.HEADER
        self.capabilities: dict[str, Any] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._login: asyncio.Task[None] | None = None
        self.name = ""
        """As the client has logged in."""

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

    def _too_slow(self) -> None:
        self.connection.counters.protocol_errors["connect-timeout"] += 1
        self.connection.abort()

    def protocol_header(self, data: bytes) -> int:
        """The first bytes; returns how many of them are used up."""
        connection = self.connection
        if not PROTOCOL_HEADER.startswith(data[:8]):
            connection.counters.protocol_errors["wrong-protocol"] += 1
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
        """Nothing is read until it ends."""
        self.connection.pause("login")
        self._login = self.connection.loop.create_task(work)

    async def _check(self, claimed: Claim) -> User | None:
        """Who it is, or None; then reading goes on. Without users a password is not just any, but guest's: else nobody
        would notice that it is a wrong one."""
        connection = self.connection
        name, password = claimed
        user: User | None = None
        if password is None:
            user = connection.gateway.user(name)
        elif claimed == GUEST or not connection.gateway.anonymous:
            user = await connection.gateway.authenticate(name, password)
        if user is None and connection.settings.allow_anonymous and claimed == GUEST:
            user = User("")
        connection.resume("login")
        return user

    async def _update_secret(self, method: amqp.Connection.UpdateSecret) -> None:
        connection = self.connection
        secret: Any = method.new_secret
        user = await self._check(Claim(self.name, secret))
        if connection.closing or connection.ended:
            return
        if user is None:
            connection.counters.refusals["bad-credentials"] += 1
            connection.fail(AmqpError(NOT_ALLOWED, "the new secret was refused", method.index))
            return
        connection.send(encode_method(0, amqp.Connection.UpdateSecretOk))

    async def _authenticate(self, claimed: Claim, mechanism: str) -> None:
        connection = self.connection
        user = await self._check(claimed)
        if connection.closing or connection.ended:
            return
        if user is None:
            self._refuse(f"login was refused for user {claimed.name[:64]!r} using mechanism {mechanism}")
            return
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
        connection.counters.refusals["bad-credentials"] += 1
        if connection.client_can("authentication_failure_close"):
            connection.fail(AmqpError(ACCESS_REFUSED, why))
        else:
            connection.close()  # [AMQP 1.4.2.2]: without that capability, closing is all that may be said

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
