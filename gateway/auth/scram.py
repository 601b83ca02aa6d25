"""Owns SCRAM-SHA-256 (RFC 5802, RFC 7677), the server's side: who knows a password proves it without telling it.

Its rule: what is kept of a password can check a proof and can't make one; a name that nobody has is answered like one
that somebody has.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import secrets
import stringprep
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping
from typing import NamedTuple

METHOD = "SCRAM-SHA-256"
ITERATIONS = 15_000
"""Of the client's work for each login; RFC 7677 asks for 4096 at least."""
MIN_ITERATIONS, MAX_ITERATIONS = 4096, 10_000_000
MAX_OCTETS = 4096
"""Of one message of a client."""
SALT_OCTETS = 16


class ScramError(Exception):
    """The client has not proved who it is, or says what makes no sense; the text is for the log."""


class Verifier(NamedTuple):
    """What is kept of one password."""

    iterations: int
    salt: bytes
    stored_key: bytes
    server_key: bytes

    def __str__(self) -> str:
        """As other servers write it, too: `SCRAM-SHA-256$ITERATIONS:SALT$STOREDKEY:SERVERKEY`."""
        salt, stored, server = (base64.b64encode(part).decode() for part in self[1:])
        return f"{METHOD}${self.iterations}:{salt}${stored}:{server}"

    @classmethod
    def parse(cls, text: str) -> Verifier:
        """Raises ValueError."""
        method, _, rest = text.partition("$")
        work, _, keys = rest.partition("$")
        iterations, _, salt = work.partition(":")
        stored, _, server = keys.partition(":")
        if method != METHOD or not iterations.isdecimal():
            raise ValueError(f"no verifier of {METHOD}")
        try:
            parts = [base64.b64decode(part, validate=True) for part in (salt, stored, server)]
        except binascii.Error as error:
            raise ValueError(f"no verifier of {METHOD}: {error}") from error
        if len(parts[1]) != 32 or len(parts[2]) != 32 or not parts[0]:
            raise ValueError(f"no verifier of {METHOD}: a key has the wrong length")
        if not MIN_ITERATIONS <= int(iterations) <= MAX_ITERATIONS:
            raise ValueError(f"a verifier has {iterations} iterations, not {MIN_ITERATIONS} to {MAX_ITERATIONS}")
        return cls(int(iterations), parts[0], parts[1], parts[2])


def make_verifier(password: str, iterations: int = ITERATIONS, salt: bytes = b"") -> Verifier:
    """Raises ValueError for a password that SASLprep (RFC 4013) forbids."""
    salt = salt or os.urandom(SALT_OCTETS)
    salted = hashlib.pbkdf2_hmac("sha256", prepare(password).encode(), salt, iterations)
    stored = hashlib.sha256(_mac(salted, b"Client Key")).digest()
    return Verifier(iterations, salt, stored, _mac(salted, b"Server Key"))


class Users:
    """Verifiers by name, and one for each name that nobody has, which looks like the others and is always the same."""

    def __init__(self, verifiers: Mapping[str, Verifier], decoy_key: bytes | None = None) -> None:
        """decoy_key: a secret that outlives the process. Without one it is made of what the verifiers hold, so that
        the decoys change when these do."""
        self._verifiers = dict(verifiers)
        self._decoy_key = decoy_key

    def find(self, name: str) -> tuple[Verifier, bool]:
        """And whether there is such a user."""
        found = self._verifiers.get(name)
        if found is not None:
            return found, True
        # As most users have them, and of several such the smallest, whatever their order in the configuration.
        shapes = Counter((known.iterations, len(known.salt)) for known in self._verifiers.values())
        iterations, octets = min(shapes, key=lambda shape: (-shapes[shape], shape), default=(ITERATIONS, SALT_OCTETS))
        salt = hashlib.shake_256(_mac(self._key(), name.encode("utf-8", "surrogatepass"))).digest(octets)
        return Verifier(iterations, salt, bytes(32), bytes(32)), False

    def _key(self) -> bytes:
        if self._decoy_key is None:
            parts = sorted(known.stored_key + known.server_key for known in self._verifiers.values())
            self._decoy_key = hashlib.sha256(b"scram decoy" + b"".join(parts)).digest()
        return self._decoy_key


class Exchange:
    """One login. `name` is who it claims to be, and once `final` has returned, who it is."""

    def __init__(self, users: Users, new_nonce: Callable[[], str] = lambda: secrets.token_urlsafe(18)) -> None:
        self._users = users
        self._new_nonce = new_nonce
        self.verifier: Verifier
        """That the proof is held against; the user's, once `final` has returned."""
        self.name = ""

    def first(self, message: bytes) -> bytes:
        """client-first-message to server-first-message. Raises ScramError."""
        header, self._bare = _split_header(_text(message))
        self._header = base64.b64encode(header.encode()).decode()
        fields = _fields(self._bare)
        if set(fields) != {"n", "r"} or not fields["r"]:
            raise ScramError("the first message has other fields than n and r")
        self.name = _unquote(fields["n"])
        self.verifier, self._is_known = self._users.find(self.name)
        self._nonce = fields["r"] + self._new_nonce()
        salt = base64.b64encode(self.verifier.salt).decode()
        self._first = f"r={self._nonce},s={salt},i={self.verifier.iterations}"
        return self._first.encode()

    def final(self, message: bytes) -> bytes:
        """client-final-message to server-final-message. Raises ScramError."""
        text = _text(message)
        without, _, proof_text = text.rpartition(",p=")
        fields = _fields(without)
        if set(fields) != {"c", "r"}:
            raise ScramError("the final message has other fields than c, r and p")
        if fields["c"] != self._header or fields["r"] != self._nonce:
            raise ScramError("the final message belongs to another exchange")
        try:
            proof = base64.b64decode(proof_text, validate=True)
        except (binascii.Error, ValueError) as error:
            raise ScramError("the proof is no base64") from error
        said = f"{self._bare},{self._first},{without}".encode()
        signature = _mac(self.verifier.stored_key, said)
        key = bytes(one ^ other for one, other in zip(proof, signature, strict=False))
        fits = hmac.compare_digest(hashlib.sha256(key).digest(), self.verifier.stored_key)
        if not (fits and self._is_known):
            raise ScramError("the proof does not fit")
        return b"v=" + base64.b64encode(_mac(self.verifier.server_key, said))


def _mac(key: bytes, data: bytes) -> bytes:
    return hmac.digest(key, data, "sha256")


def _text(message: bytes) -> str:
    if len(message) > MAX_OCTETS:
        raise ScramError(f"a message of more than {MAX_OCTETS} bytes")
    try:
        return message.decode()
    except UnicodeDecodeError as error:
        raise ScramError("a message is no UTF-8") from error


def _split_header(text: str) -> tuple[str, str]:
    """The GS2 header and what follows it. Channel binding is not offered, nor acting as another."""
    binding, _, rest = text.partition(",")
    identity, comma, bare = rest.partition(",")
    if binding not in ("n", "y") or identity or not comma:
        raise ScramError("channel binding and authorization identities are not supported")
    return f"{binding},{identity},", bare


def _fields(text: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        if len(name) != 1 or not equals or name in fields:
            raise ScramError("a message is not made of fields")
        fields[name] = value
    return fields


def _unquote(name: str) -> str:
    parts = name.split("=")
    found = parts[0]
    for part in parts[1:]:
        if part[:2] not in ("2C", "3D"):
            raise ScramError("a name is not quoted right")
        found += ("," if part[:2] == "2C" else "=") + part[2:]
    return found


_FORBIDDEN = (
    stringprep.in_table_c12,
    stringprep.in_table_c21_c22,
    stringprep.in_table_c3,
    stringprep.in_table_c4,
    stringprep.in_table_c5,
    stringprep.in_table_c6,
    stringprep.in_table_c7,
    stringprep.in_table_c8,
    stringprep.in_table_c9,
)


def prepare(text: str) -> str:
    """SASLprep (RFC 4013). Raises ValueError for what it forbids."""
    mapped = "".join(
        " " if stringprep.in_table_c12(char) else char for char in text if not stringprep.in_table_b1(char)
    )
    found = unicodedata.ucd_3_2_0.normalize("NFKC", mapped)
    if not found:
        raise ValueError("a password is empty")
    for char in found:
        if any(forbids(char) for forbids in _FORBIDDEN):
            raise ValueError(f"a password contains {char!r}, which SASLprep forbids")
    if any(map(stringprep.in_table_d1, found)):
        ends = stringprep.in_table_d1(found[0]) and stringprep.in_table_d1(found[-1])
        if not ends or any(map(stringprep.in_table_d2, found)):
            raise ValueError("a password mixes directions of writing as SASLprep forbids")
    return found
