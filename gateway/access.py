"""Owns who a client is: users, their argon2 hashes, and what a password check may cost.

Its rule: a wrong name costs as much time as a wrong password, and no flood of clients gets more than its few threads.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import argon2

from gateway import scram
from gateway.logs import log
from gateway.transport import User

THREADS = 2
"""Checks at one time; argon2's usual parameters take 64 MiB and tens of milliseconds for each."""
MAX_WAITING = 2_000
"""Checks that wait for a thread; beyond it a client is refused at once."""
CACHE_ENTRIES = 10_000
MAX_PASSWORD_BYTES = 1_024


def hash_password(password: str) -> str:
    """An argon2id hash for the configuration, with the parameters that RFC 9106 recommends for little memory."""
    return argon2.PasswordHasher().hash(password)


def is_hash(text: str) -> bool:
    """Whether this is an argon2 hash that can be checked."""
    try:
        argon2.extract_parameters(text)
    except argon2.exceptions.InvalidHashError:
        return False
    return True


class Access:
    """The users of one configuration. A check that succeeded is remembered under a keyed hash, never the password,
    and the secret of that hash does not outlive the process."""

    def __init__(self, users: Mapping[str, str], verifiers: Mapping[str, str] | None = None) -> None:
        """users: argon2 hashes by name; none lets everybody in. verifiers: of SCRAM, by name. Raises ValueError for
        one that is none."""
        self._secret = os.urandom(32)
        self._known: OrderedDict[bytes, None] = OrderedDict()
        self._running: dict[bytes, asyncio.Future[bool]] = {}
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="access")
        self._users: dict[str, str] = {}
        self._decoy: str | None = None
        self._closed = False
        self.replace(users, verifiers)

    @property
    def anonymous(self) -> bool:
        """There are no users: everybody is let in."""
        return not self._users

    def replace(self, users: Mapping[str, str], verifiers: Mapping[str, str] | None = None) -> None:
        """Takes other users from now on; who is in already stays. Raises ValueError and changes nothing if a hash or
        verifier is none."""
        for name, password_hash in users.items():
            if not is_hash(password_hash):
                raise ValueError(f"the password hash of user {name!r} is no argon2 hash")
        proofs = {name: scram.Verifier.parse(text) for name, text in (verifiers or {}).items()}
        self.scram = scram.Users(proofs) if proofs else None
        self._users = dict(users)
        self._decoy = None
        self._parameters = next(map(argon2.extract_parameters, users.values()), None)

    def find(self, name: str) -> User | None:
        """The user of that name, who has shown that he is it in another way than by his password; None if there is no
        such user. Without users everybody is one."""
        return User(name) if not self._users or name in self._users else None

    async def authenticate(self, name: str | None, password: bytes | None) -> User | None:
        """The user, or None if refused. Never raises for what a client sent."""
        if not self._users:
            return User(name or "")
        if name is None or password is None or len(password) > MAX_PASSWORD_BYTES:
            return None
        password_hash = self._users.get(name)
        key = self._key(name, password, password_hash or "")
        if key in self._known:
            self._known.move_to_end(key)
            return User(name)
        check = self._running.get(key)
        if check is None:
            if len(self._running) >= MAX_WAITING:
                log.warning("too many password checks at once", waiting=len(self._running))
                return None
            if self._closed:
                return None
            loop = asyncio.get_running_loop()
            check = loop.run_in_executor(self._pool, self._verify, password_hash, password)
            self._running[key] = check
            check.add_done_callback(lambda done: self._finish(key, done))
        # Many devices of one user share the one check; one that leaves does not end it for the others.
        try:
            return User(name) if await asyncio.shield(check) else None
        except asyncio.CancelledError:
            if check.cancelled():  # by `close`, not by who asks
                return None
            raise

    def close(self) -> None:
        """Starts no more checks. Those that wait are refused."""
        self._closed = True
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _key(self, name: str, password: bytes, password_hash: str) -> bytes:
        digest = hashlib.blake2b(key=self._secret, digest_size=32)
        # With the hash in it, a changed password makes what was remembered useless.
        for part in (name.encode("utf-8", "surrogatepass"), password_hash.encode(), password):
            digest.update(len(part).to_bytes(8, "big"))
            digest.update(part)
        return digest.digest()

    def _finish(self, key: bytes, done: asyncio.Future[bool]) -> None:
        del self._running[key]
        if not done.cancelled() and done.exception() is None and done.result():
            self._known[key] = None
            if len(self._known) > CACHE_ENTRIES:
                self._known.popitem(last=False)

    def _verify(self, password_hash: str | None, password: bytes) -> bool:
        """In a thread of the pool."""
        if password_hash is None:
            argon2_check(self._decoy_hash(), password)
            return False
        return argon2_check(password_hash, password)

    def _decoy_hash(self) -> str:
        """A hash that nothing matches, as dear as the users' own."""
        decoy = self._decoy
        if decoy is None:
            parameters = self._parameters or argon2.profiles.RFC_9106_LOW_MEMORY
            decoy = self._decoy = argon2.PasswordHasher.from_parameters(parameters).hash(os.urandom(32))
        return decoy


def argon2_check(password_hash: str, password: bytes) -> bool:
    """Whether the password fits; a hash that can't be used fits nothing."""
    try:
        return argon2.PasswordHasher().verify(password_hash, password)
    except argon2.exceptions.VerifyMismatchError:
        return False
    except argon2.exceptions.Argon2Error as error:
        log.error("a password hash can't be checked", error=str(error))
        return False
