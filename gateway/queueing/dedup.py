"""Owns the dedup keys: which were seen, and until when (ruling 19).

Its rule: a key is remembered from its decision, and forgotten only by its time or because its message's commit failed.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from operator import itemgetter
from typing import Any

from gateway.queueing.ordering import NEVER
from gateway.routing.templates import Fields
from gateway.storage.records import pack, unpack

KEY_BYTES = 15
"""One more, and the bytes object of a key takes 64 bytes of memory instead of 48."""
SWEEP_KEYS = 2000
SWEEP_SECONDS = 10.0
"""How long after its end a key may stay in memory and in the store."""
MAX_KEYS = 5_000_000
"""Of the whole daemon; a key takes some 85 bytes of memory."""
RESTORED = -1.0
"""Stands, as do the numbers below it, for the windows of what came from the journal, which does not say them."""
_digest, _until = itemgetter(0), itemgetter(1)


class Dedup:
    """Keys as keyed hashes, the first 120 bits of a SHA-256; expiry is exact."""

    __slots__ = ("_begun", "_secret", "_windows", "count", "due")

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._windows: dict[tuple[float, bool], dict[bytes, float]] = {}
        """By the window's seconds, and whether they outlive the process; the keys of one window end in the order in
        which they came."""
        self._begun: dict[str, Any] = {}
        self.count = 0
        self.due = NEVER
        """When `expire` has something to do."""

    @property
    def secret(self) -> bytes:
        """Without it the keys in the journal mean nothing."""
        return self._secret

    @secret.setter
    def secret(self, secret: bytes) -> None:
        self._secret = secret
        self._begun.clear()

    def __len__(self) -> int:
        return self.count

    def digest(self, queue: str, group: str | None, key: str) -> bytes:
        """The key of one scope. Lengths stand before the parts, so no two scopes can run together."""
        begun = self._begun.get(queue)
        if begun is None:
            if len(self._begun) >= 10_000:
                self._begun.clear()
            # Secret and queue fill the first block of SHA-256, which is the same for all of the queue's messages.
            secret = hashlib.sha256(self._secret + queue.encode()).digest()
            begun = self._begun[queue] = hashlib.sha256(secret.ljust(64, b"\0"))
        hash = begun.copy()
        if group is not None:
            key = f"{len(group)}:{group}\0{key}"
        else:
            key = "\0" + key
        hash.update(key.encode("utf-8", "surrogatepass"))
        digest: bytes = hash.digest()
        return digest[:KEY_BYTES]

    def seen(self, digest: bytes, now: float) -> bool:
        for keys in self._windows.values():
            if digest in keys and now < keys[digest]:
                return True
        return False

    def add(self, digest: bytes, until: float, window: float, durable: bool) -> None:
        """`window`: of the policy that it was seen under; durable: its queue's messages outlive the process, and so
        must it, or neither do."""
        place = (window, durable)
        keys = self._windows.get(place)
        if keys is None:
            keys = self._windows[place] = {}
            self.due = min(self.due, until + SWEEP_SECONDS)
        if digest in keys:
            del keys[digest]  # to come last again
        else:
            self.count += 1
        keys[digest] = until

    def restore(self, pieces: Iterable[bytes], now: float) -> None:
        """What the journal knows. A piece is put behind those that end before it, so whatever windows it is of, there
        are hardly more orders to keep than windows, and nothing is ever sorted as a whole."""
        runs: list[dict[bytes, float]] = []
        ends: list[float] = []
        for data in pieces:
            keys = sorted(unpack_keys(data), key=_until)
            live = keys[bisect_right(keys, now, key=_until) :]
            if not live:
                continue
            first = live[0][1]
            place = next((place for place, end in enumerate(ends) if end <= first), len(runs))
            if place == len(runs):
                runs.append({})
                ends.append(0.0)
            run = runs[place]
            if not run.keys().isdisjoint(map(_digest, live)):
                for digest in map(_digest, live):
                    run.pop(digest, None)  # to come last again
            run.update(live)
            ends[place] = live[-1][1]
        for place, run in enumerate(runs):
            self._windows[RESTORED - place, True] = run
        self.count = sum(map(len, runs))
        if runs:
            self.due = now + SWEEP_SECONDS

    def forget(self, digest: bytes) -> None:
        for keys in self._windows.values():
            if keys.pop(digest, None) is not None:
                self.count -= 1

    def sweep(self, now: float, limit: int = SWEEP_KEYS) -> None:
        """Frees what is over, oldest first, at most `limit` keys of each window a call."""
        for place, keys in list(self._windows.items()):
            over: list[bytes] = []
            for digest, until in keys.items():
                if until > now or len(over) >= limit:
                    break
                over.append(digest)
            for digest in over:
                del keys[digest]
            self.count -= len(over)
            if not keys:
                del self._windows[place]

    def expire(self, now: float) -> None:
        """As `sweep`, for times without commits: until all that is over is freed, `due` is soon."""
        self.sweep(now, 5 * SWEEP_KEYS)
        first = min((next(iter(keys.values())) for keys in self._windows.values()), default=NEVER)
        self.due = max(first + SWEEP_SECONDS, now + 0.01)

    def live(self, now: float) -> Iterator[tuple[bytes, float]]:
        """All that still count and outlive the process."""
        lasting = [keys for (_, durable), keys in self._windows.items() if durable]
        return ((digest, until) for keys in lasting for digest, until in keys.items() if until > now)


def body_key(fields: Fields) -> str:
    """The key of `sha256`: the hash of the body alone."""
    return hashlib.sha256(fields.message.body).hexdigest()


def pack_keys(keys: Sequence[tuple[bytes, float]]) -> tuple[float, bytes]:
    """Keys for the journal: when the last of them is over, and all of them."""
    ends = [until for _, until in keys]
    return max(ends), b"".join([digest for digest, _ in keys]) + pack("d", ends)


def unpack_keys(data: bytes) -> Iterator[tuple[bytes, float]]:
    """Raises ValueError for what is none."""
    count, rest = divmod(len(data), KEY_BYTES + 8)
    if rest:
        raise ValueError(f"{len(data)} bytes of keys")
    digests = (data[at : at + KEY_BYTES] for at in range(0, count * KEY_BYTES, KEY_BYTES))
    ends = unpack("d", data[count * KEY_BYTES :])
    same: dict[float, float] = {}
    return zip(digests, map(same.setdefault, ends, ends), strict=True)  # one float for all that end together
