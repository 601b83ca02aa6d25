"""Owns the look at certificates and keys in PEM files, before a daemon relies on them.

Its rule: what OpenSSL would refuse is fatal; a certificate out of its time is not, since clocks and files change.
"""

from __future__ import annotations

import calendar
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

from gateway.files import Finding, why_unreadable

_VERSION, _UTC_TIME = 0xA0, 0x17


def look_at(cert: str | None, key: str | None, authorities: tuple[str, str | None], now: float) -> Iterator[Finding]:
    """cert, key: the files of a pair, `key` None if it is in the same file. authorities: the key of the setting and its
    file. now: seconds since 1970."""
    name, trusted = authorities
    readable = set()
    for setting, path in (("cert", cert), ("key", key), authorities):
        if path is None:
            continue
        try:
            with open(path, "rb"):
                readable.add(setting)
        except (OSError, ValueError) as error:
            yield Finding(setting, f"{path}: {why_unreadable(error)}", True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if cert is not None and readable >= {"cert", *(["key"] if key is not None else [])}:
        try:
            context.load_cert_chain(cert, key, password=no_password)
        except (ssl.SSLError, ValueError) as error:
            if isinstance(error, ssl.SSLError) and error.reason == "KEY_VALUES_MISMATCH":
                yield Finding("cert" if key is None else "key", f"{key or cert} is not the key of {cert}", True)
            else:
                yield Finding("cert", f"{cert} with {key or 'its key'}: {why(error)}", True)
        else:
            yield from _out_of_time("cert", cert, now)
    if trusted is not None and name in readable:
        try:
            context.load_verify_locations(trusted)
        except ssl.SSLError as error:
            yield Finding(name, f"{trusted}: {why(error)}", True)
        else:
            yield from _out_of_time(name, trusted, now)


def why(error: Exception) -> str:
    """In words of OpenSSL."""
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.lower().replace("_", " ")
    return str(error)


def no_password() -> str:
    """Asked for by OpenSSL, which would ask at the terminal otherwise."""
    raise ValueError("the key is encrypted; give one that is not")


def _out_of_time(setting: str, path: str, now: float) -> Iterator[Finding]:
    blocks = Path(path).read_text("ascii", "replace").split(ssl.PEM_HEADER)[1:]
    for number, block in enumerate(blocks, 1):
        pem = ssl.PEM_HEADER + block[: block.index(ssl.PEM_FOOTER) + len(ssl.PEM_FOOTER)]
        begins, ends = validity(ssl.PEM_cert_to_DER_cert(pem))
        which = path if len(blocks) == 1 else f"{path}, certificate {number}"
        if now > ends:
            yield Finding(setting, f"{which}: expired on {_day(ends)}", False)
        elif now < begins:
            yield Finding(setting, f"{which}: is not valid before {_day(begins)}", False)


def validity(certificate: bytes) -> tuple[float, float]:
    """The times from and until which a certificate in DER (RFC 5280, 4.1) is valid, in seconds since 1970. OpenSSL has
    taken it already."""
    _, at, _ = _element(certificate, 0)
    _, at, _ = _element(certificate, at)
    kind, _, end = _element(certificate, at)
    if kind == _VERSION:
        at = end
    for _ in range(3):  # serial number, signature, issuer
        _, _, at = _element(certificate, at)
    _, at, _ = _element(certificate, at)
    kind, start, end = _element(certificate, at)
    begins = _moment(kind, certificate[start:end])
    kind, start, end = _element(certificate, end)
    return begins, _moment(kind, certificate[start:end])


def _element(data: bytes, at: int) -> tuple[int, int, int]:
    """Its tag, and where its content begins and ends."""
    kind, length, start = data[at], data[at + 1], at + 2
    if length & 0x80:
        size = length & 0x7F
        length, start = int.from_bytes(data[start : start + size], "big"), start + size
    return kind, start, start + length


def _moment(kind: int, text: bytes) -> float:
    said = text.decode("ascii")
    if kind == _UTC_TIME:
        said = ("19" if said[:2] >= "50" else "20") + said
    return float(calendar.timegm(time.strptime(said, "%Y%m%d%H%M%SZ")))


def _day(moment: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(moment))
