"""Owns TLS for listeners: what the configuration says about it, the context that connections are made with, and why a
handshake has failed.

Its rule: certificates are read at the start and at each reload; files that can't be used fail the start, and change
nothing at a reload.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator

import msgspec

from gateway.files import Finding
from gateway.net import certificates


class TlsError(Exception):
    """A certificate, key or authority that can't be used; the text names the file and says why."""


class TlsSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """TLS 1.2 or later.

    cert: PEM file with the certificate and those that lead to its root. key: PEM file with its key, not encrypted; may
    be the same file. client_ca: PEM file; a client must show a certificate that one of these authorities signed.
    """

    cert: str
    key: str
    client_ca: str | None = None

    def look_at_files(self, now: float) -> Iterator[Finding]:
        """For `gateway check`."""
        return certificates.look_at(self.cert, self.key, ("client_ca", self.client_ca), now)


class ServerTls:
    """Of one listener. Raises TlsError."""

    def __init__(self, settings: TlsSettings) -> None:
        self._settings = settings
        self.context = _context(settings)

    def reload(self) -> None:
        """Connections that are made from now on see what the files hold now. Raises TlsError and changes nothing."""
        _context(self._settings)  # a pair that does not fit together would leave half of it in a context
        _load(self.context, self._settings)


_REASONS = {
    "HTTP_REQUEST": "tls-plain-text",
    "WRONG_VERSION_NUMBER": "tls-plain-text",
    "UNKNOWN_PROTOCOL": "tls-plain-text",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "tls-no-certificate",
    "CERTIFICATE_VERIFY_FAILED": "tls-foreign-certificate",
}


def why_refused(error: OSError) -> tuple[str, str]:
    """Why a handshake has failed: a reason to count, and what to say of it."""
    if isinstance(error, ConnectionAbortedError):
        return "tls-timeout", "the handshake took too long"
    if not isinstance(error, ssl.SSLError):
        return "tls-ended", "the client ended the connection amid the handshake; it may not trust our certificate"
    reason = _REASONS.get(error.reason or "", "tls-handshake")
    text = {
        "tls-plain-text": "what it sent is no TLS",
        "tls-no-certificate": "it showed no certificate",
    }.get(reason, certificates.why(error))
    return reason, text


def _context(settings: TlsSettings) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if settings.client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
    _load(context, settings)
    return context


def _load(context: ssl.SSLContext, settings: TlsSettings) -> None:
    for name in ("cert", "key", "client_ca"):
        path = getattr(settings, name)
        try:
            if path is not None:
                open(path, "rb").close()
        except OSError as error:
            raise TlsError(f"tls.{name}: {path}: {error.strerror or error}") from error
    try:
        context.load_cert_chain(settings.cert, settings.key, password=certificates.no_password)
    except (ssl.SSLError, ValueError) as error:
        raise TlsError(f"tls.cert {settings.cert} with tls.key {settings.key}: {certificates.why(error)}") from error
    if settings.client_ca is not None:
        try:
            context.load_verify_locations(settings.client_ca)
        except ssl.SSLError as error:
            raise TlsError(f"tls.client_ca: {settings.client_ca}: {certificates.why(error)}") from error
