"""Owns the login mechanisms: which there are, and what the response of each says about who logs in.

Its rule: EXTERNAL says nothing of its own; who the client is says its certificate, which an authority of `client_ca`
has signed.

PLAIN has the name and the password, behind a zero octet each; before them may stand as whom to act, which nobody may
but himself [RFC 4616]. AMQPLAIN has them as `LOGIN` and `PASSWORD` of
a field table without its length. EXTERNAL has nothing, or the name again [RFC 4422]; the name is the one common name
of the certificate's subject.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from transports.amqp.errors import AmqpError
from transports.amqp.fields import decode_table

PASSWORDS = ("PLAIN", "AMQPLAIN")
EXTERNAL = "EXTERNAL"


class Claim(NamedTuple):
    """Who a client says it is. password: what shows it; None if its certificate does."""

    name: str
    password: bytes | None


GUEST = Claim("guest", b"guest")
"""Who needs no user of the configuration: without `users`, and with `allow_anonymous`."""


class LoginError(Exception):
    """The mechanism is not offered, or its response is no such one; the text says which."""


def claim(mechanism: str, response: bytes, certificate: Mapping[str, Any] | None) -> Claim:
    """certificate: the client's, as `SSLSocket.getpeercert` gives it; None without `client_ca`. Raises LoginError."""
    if mechanism == "PLAIN":
        return _plain(response)
    if mechanism == "AMQPLAIN":
        return _amqplain(response)
    if mechanism == EXTERNAL and certificate is not None:
        name = common_name(certificate)
        if response not in (b"", name.encode()):
            raise LoginError("the response of EXTERNAL names another user than the certificate")
        return Claim(name, None)
    raise LoginError(f"mechanism {mechanism[:32]!r} is not supported")


def _plain(response: bytes) -> Claim:
    parts = response.split(b"\0")
    if len(parts) != 3:
        raise LoginError("the response of PLAIN is no such one")
    if parts[0] not in (b"", parts[1]):
        raise LoginError("the response of PLAIN asks to act as another user")
    try:
        return Claim(parts[1].decode(), parts[2])
    except UnicodeDecodeError:
        raise LoginError("the user's name is no UTF-8") from None


def _amqplain(response: bytes) -> Claim:
    data = len(response).to_bytes(4, "big") + response
    try:
        fields, _, _ = decode_table(data, 0, len(data))
    except AmqpError as error:
        raise LoginError(f"the response of AMQPLAIN is no such one: {error}") from None
    name, password = fields.get("LOGIN"), fields.get("PASSWORD")
    if isinstance(password, str):
        password = password.encode()
    if not isinstance(name, str) or not isinstance(password, bytes):
        raise LoginError("the response of AMQPLAIN lacks LOGIN or PASSWORD")
    return Claim(name, password)


def common_name(certificate: Mapping[str, Any]) -> str:
    """Raises LoginError if it has none, or several."""
    parts = [part for relative in certificate.get("subject", ()) for part in relative]
    names = [str(value) for kind, value in parts if kind == "commonName"]
    if len(names) != 1 or not names[0]:
        raise LoginError("the certificate has not one common name")
    return names[0]
