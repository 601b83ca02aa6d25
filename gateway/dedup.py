"""Owns the dedup keys: which were seen, and until when (ruling 19).

Its rule: a key is remembered from its decision, and forgotten only by its time or because its message's commit failed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

KEY_BYTES = 16


class Dedup:
    """Keys as 128-bit keyed hashes; expiry is exact."""

    __slots__ = ("_begun", "_keys", "_secret")

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._keys: dict[bytes, float] = {}
        self._begun: dict[str, hashlib.blake2b] = {}

    @property
    def secret(self) -> bytes:
        """Without it the keys in the journal mean nothing."""
        return self._secret

    @secret.setter
    def secret(self, secret: bytes) -> None:
        self._secret = secret
        self._begun.clear()

    def __len__(self) -> int:
        return len(self._keys)

    def digest(self, queue: str, group: str | None, key: str) -> bytes:
        """The key of one scope. Lengths stand before the parts, so no two scopes can run together."""
        begun = self._begun.get(queue)
        if begun is None:
            if len(self._begun) >= 10_000:
                self._begun.clear()
            # Taking in secret and queue is half of the work, and the same for each of its messages.
            begun = self._begun[queue] = hashlib.blake2b(digest_size=KEY_BYTES, key=self._secret)
            begun.update(f"{len(queue)}:{queue}".encode())
        hash = begun.copy()
        scope = "" if group is None else f"{len(group)}:{group}"
        hash.update(f"{scope}\0{key}".encode("utf-8", "surrogatepass"))
        return hash.digest()

    @staticmethod
    def body_key(body: bytes) -> str:
        """The key of `sha256`: the hash of the body alone."""
        return hashlib.sha256(body).hexdigest()

    def seen(self, digest: bytes, now: float) -> bool:
        until = self._keys.get(digest)
        return until is not None and now < until

    def add(self, digest: bytes, until: float) -> None:
        # Popped first, so that insertion order stays the order of expiry where the window does not change.
        self._keys.pop(digest, None)
        self._keys[digest] = until

    def forget(self, digest: bytes) -> None:
        self._keys.pop(digest, None)

    def sweep(self, now: float, limit: int = 2000) -> None:
        """Frees what is over, oldest first, at most `limit` keys a call."""
        keys = self._keys
        over: list[bytes] = []
        for digest, until in keys.items():
            if until > now or len(over) >= limit:
                break
            over.append(digest)
        for digest in over:
            del keys[digest]

    def live(self, now: float) -> Iterator[tuple[bytes, float]]:
        """All that still count, oldest first."""
        return ((digest, until) for digest, until in self._keys.items() if until > now)
