"""Owns the dedup keys: which were seen, and until when (ruling 19).

Its rule: a key is remembered from its decision, and forgotten only by its time or because its message's commit failed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

KEY_BYTES = 16
SWEEP_KEYS = 2000
MAX_KEYS = 5_000_000
"""Of the whole daemon; a key takes some 160 bytes of memory."""
RESTORED = -1.0
"""Stands for the window of what came from the journal, which does not say it."""


class Dedup:
    """Keys as 128-bit keyed hashes; expiry is exact."""

    __slots__ = ("_begun", "_secret", "_windows")

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._windows: dict[float, dict[bytes, float]] = {}
        """By the window's seconds; the keys of one window end in the order in which they came."""
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
        return sum(map(len, self._windows.values()))

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
        if group is not None:
            key = f"{len(group)}:{group}\0{key}"
        else:
            key = "\0" + key
        hash.update(key.encode("utf-8", "surrogatepass"))
        return hash.digest()

    @staticmethod
    def body_key(body: bytes) -> str:
        """The key of `sha256`: the hash of the body alone."""
        return hashlib.sha256(body).hexdigest()

    def seen(self, digest: bytes, now: float) -> bool:
        for keys in self._windows.values():
            if digest in keys and now < keys[digest]:
                return True
        return False

    def add(self, digest: bytes, until: float, window: float) -> None:
        """`window`: of the policy that it was seen under."""
        keys = self._windows.get(window)
        if keys is None:
            keys = self._windows[window] = {}
        if digest in keys:
            del keys[digest]  # to come last again
        keys[digest] = until

    def restore(self, keys: Mapping[bytes, float]) -> None:
        """What the journal knows, in any order."""
        self._windows[RESTORED] = dict(sorted(keys.items(), key=lambda item: item[1]))

    def forget(self, digest: bytes) -> None:
        for keys in self._windows.values():
            keys.pop(digest, None)

    def sweep(self, now: float, limit: int = SWEEP_KEYS) -> None:
        """Frees what is over, oldest first, at most `limit` keys of each window a call."""
        for window, keys in list(self._windows.items()):
            over: list[bytes] = []
            for digest, until in keys.items():
                if until > now or len(over) >= limit:
                    break
                over.append(digest)
            for digest in over:
                del keys[digest]
            if not keys:
                del self._windows[window]

    def live(self, now: float) -> Iterator[tuple[bytes, float]]:
        """All that still count."""
        return ((digest, until) for keys in self._windows.values() for digest, until in keys.items() if until > now)
