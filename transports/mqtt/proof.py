"""Owns Proof: a client's enhanced authentication [MQTT-4.12], from its CONNECT to the end of its connection.

Its rule: it knows no socket; it says what is to be answered, and who has not proved what it must proves nothing.
"""

from __future__ import annotations

from gateway.auth.scram import METHOD, Exchange, ScramError
from gateway.transport import Gateway, User
from transports.mqtt.packets import Auth, Properties5, Property, ProtocolError, Reason


class ProofError(Exception):
    """The client has failed. reason: for CONNACK or DISCONNECT."""

    def __init__(self, reason: Reason, why: str) -> None:
        super().__init__(why)
        self.reason = reason


class Proof:
    """Of one client by one method, SCRAM-SHA-256 if it is any that is known. `method` is what its CONNECT names."""

    __slots__ = ("_exchange", "_gateway", "_is_proven", "_method", "_name", "claimed", "user")

    def __init__(self, gateway: Gateway, method: str) -> None:
        self._gateway = gateway
        self._method = method
        self._exchange: Exchange | None = None
        self._name = ""
        """Who it has proved to be."""
        self._is_proven = False
        self.claimed = ""
        """Who it says it is, for the log."""
        self.user: User | None = None
        """Who it is, as it has proved last."""

    def begin(self, asked: Properties5) -> Auth:
        """The challenge to a CONNECT, or to an AUTH that asks to prove it again. Raises ProofError."""
        self._exchange = self._gateway.scram() if self._method == METHOD else None
        if self._exchange is None:
            why = "no such method, or nobody has a verifier for it"
            raise ProofError(Reason.BAD_AUTHENTICATION_METHOD, why)  # [MQTT-4.12.0-1]
        try:
            challenge = self._exchange.first(asked.get(Property.AUTHENTICATION_DATA, b""))
        except ScramError as error:
            raise ProofError(Reason.NOT_AUTHORIZED, str(error)) from error
        finally:
            self.claimed = self._exchange.name
        return self._auth(Reason.CONTINUE_AUTHENTICATION, challenge)

    def take(self, packet: Auth) -> Auth:
        """What an AUTH is answered with; SUCCESS ends what `begin` began, and the first one lets the client in. Raises
        ProofError, and ProtocolError for an AUTH that has no place now."""
        if packet.properties.get(Property.AUTHENTICATION_METHOD) != self._method:  # [MQTT-4.12.0-5]
            raise ProtocolError(Reason.PROTOCOL_ERROR, "AUTH by another method than CONNECT named")
        exchange, self._exchange = self._exchange, None
        if packet.reason == Reason.REAUTHENTICATE and self._is_proven and exchange is None:
            return self.begin(packet.properties)
        if packet.reason != Reason.CONTINUE_AUTHENTICATION or exchange is None:
            raise ProtocolError(Reason.PROTOCOL_ERROR, f"AUTH with reason {packet.reason:#04x} at this time")
        try:
            answer = exchange.final(packet.properties.get(Property.AUTHENTICATION_DATA, b""))
        except ScramError as error:
            raise ProofError(Reason.NOT_AUTHORIZED, str(error)) from error
        if self._is_proven and exchange.name != self._name:
            raise ProofError(Reason.NOT_AUTHORIZED, f"it proves to be {exchange.name!r}, and was {self._name!r}")
        self._name, self._is_proven = exchange.name, True
        self.user = self._gateway.proven(exchange)
        return self._auth(Reason.SUCCESS, answer)

    def _auth(self, reason: Reason, data: bytes) -> Auth:
        return Auth(reason, {Property.AUTHENTICATION_METHOD: self._method, Property.AUTHENTICATION_DATA: data})
