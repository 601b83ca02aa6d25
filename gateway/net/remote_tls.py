"""Owns TLS of links: what the configuration says about it, and the context that a connection to a remote is made with.

Its rule: the remote's certificate and its name are always checked; the files are read for each connection, so that what
is renewed counts from the next one.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator

import msgspec

from gateway.files import Finding
from gateway.net import certificates
from gateway.net.tls import TlsError


class RemoteTls(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """TLS 1.2 or later towards a remote.

    ca: PEM file with the authorities that the remote's certificate must lead to; without it, the system's.
    cert, key: PEM files with our own certificate and its key, not encrypted; `key` may be left out if it is in the same
    file. alpn: protocols to offer; AWS IoT Core on port 443 wants `x-amzn-mqtt-ca`.
    """

    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    alpn: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.key is not None and self.cert is None:
            raise ValueError("key: needs cert, the certificate that it belongs to")

    def look_at_files(self, now: float) -> Iterator[Finding]:
        """For `gateway check`."""
        return certificates.look_at(self.cert, self.key, ("ca", self.ca), now)


def remote_context(settings: RemoteTls | None) -> ssl.SSLContext:
    """Blocks while it reads files. Raises TlsError that names the file that can't be used."""
    tls = settings or RemoteTls()
    try:
        context = ssl.create_default_context(cafile=tls.ca)
    except OSError as error:  # an SSLError is one
        raise TlsError(f"tls.ca: {tls.ca}: {_why(error)}") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if tls.cert is not None:
        try:
            context.load_cert_chain(tls.cert, tls.key, password=certificates.no_password)
        except (OSError, ValueError) as error:
            raise TlsError(f"tls.cert {tls.cert} with tls.key {tls.key or tls.cert}: {_why(error)}") from error
    if tls.alpn:
        context.set_alpn_protocols(list(tls.alpn))
    return context


def _why(error: Exception) -> str:
    if isinstance(error, OSError) and not isinstance(error, ssl.SSLError) and error.strerror:
        return error.strerror
    return certificates.why(error)
