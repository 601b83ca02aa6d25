"""Owns who a client is: users, their argon2 hashes, and what a password check may cost.

Its rule: a wrong name costs as much time as a wrong password, no flood of clients gets more than its few threads, and
whoever is answered "wrong" was checked.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import hmac
import ipaddress
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import argon2

from gateway.auth.login_queue import LoginQueue
from gateway.auth.logins import Logins
from gateway.auth.scram import Exchange, Users, Verifier
from gateway.errors import LoginBusyError
from gateway.logs import log
from gateway.model.principal import User

THREADS = 2
"""Checks at one time; argon2's usual parameters take 64 MiB and tens of milliseconds for each."""
MAX_WAITING = 2_000
"""Checks that wait for a thread; beyond it one of the peer that has most is told that the gateway is busy."""
MAX_PASSWORD_BYTES = 1_024
PASSWORD, VERIFIER, CERTIFICATE, OPEN = "password", "scram", "certificate", "open"
"""What a login can rest on; OPEN: that there are no users."""


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


class _Check:
    """One password of one name, and whoever waits to hear whether it fits."""

    __slots__ = ("answer", "key", "name", "password", "password_hash", "waiters")

    def __init__(self, key: bytes, name: str, password_hash: str | None, password: bytes) -> None:
        self.key = key
        self.name = name
        self.password_hash = password_hash
        self.password = password
        self.waiters = 0
        self.answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()


class Access:
    """The users of one configuration. A password that was right is remembered as a keyed hash, never as itself, and
    the key of that hash does not outlive the process."""

    def __init__(self, users: Mapping[str, str], verifiers: Mapping[str, str] | None = None) -> None:
        """users: argon2 hashes by name; none lets everybody in. verifiers: of SCRAM, by name. Raises ValueError for
        one that is none."""
        self._secret = os.urandom(32)
        self._known: dict[str, bytes] = {}
        """By user, of the password that was right."""
        self._checks: dict[bytes, _Check] = {}
        """That wait or run."""
        self._waiting: LoginQueue[_Check] = LoginQueue()
        self._running = 0
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="access")
        self._users: dict[str, str] = {}
        self._proofs: dict[str, Verifier] = {}
        self._decoy: str | None = None
        self._decoy_key: bytes | None = None
        self._closed = False
        self.logins = Logins(self._holds)
        self.replace(users, verifiers)

    @property
    def anonymous(self) -> bool:
        """There are no users: everybody is let in."""
        return not self._users

    def replace(self, users: Mapping[str, str], verifiers: Mapping[str, str] | None = None) -> int:
        """Takes other users from now on. Whose login rested on what is no longer there is put out, soon after; returns
        how many these are. Raises ValueError and changes nothing if a hash or verifier is none."""
        for name, password_hash in users.items():
            if not is_hash(password_hash):
                raise ValueError(f"the password hash of user {name!r} is no argon2 hash")
        self._proofs = {name: Verifier.parse(text) for name, text in (verifiers or {}).items()}
        self._users = dict(users)
        self._known = {name: key for name, key in self._known.items() if name in users}
        self._decoy = None
        self._parameters = next(map(argon2.extract_parameters, users.values()), None)
        return self.logins.look()

    def keep_decoys(self, secret: bytes) -> None:
        """From now on SCRAM's answers for names that nobody has are made from this, so that they are the same after a
        restart: one that differs would tell that nobody has the name."""
        self._decoy_key = hashlib.blake2b(key=secret[:64], person=b"scram decoy", digest_size=32).digest()

    def find(self, name: str) -> User | None:
        """The user of that name, who has shown that he is it in another way than by his password; None if there is no
        such user. Without users everybody is one."""
        if not self._users:
            return User(name, self._mark(OPEN))
        return User(name, self._mark(CERTIFICATE, name)) if name in self._users else None

    def exchange(self) -> Exchange | None:
        """A login by SCRAM-SHA-256; None if no user has a verifier."""
        return Exchange(Users(self._proofs, self._decoy_key)) if self._proofs else None

    def proven(self, exchange: Exchange) -> User:
        """Who has come to the end of that exchange."""
        return User(exchange.name, self._mark(VERIFIER, exchange.name, str(exchange.verifier)))

    def authenticate(self, name: str | None, password: bytes | None, peer: str = "") -> asyncio.Future[User | None]:
        """The user, or None if refused; done at once if nothing has to be checked. peer: its address, with its port.
        Raises LoginBusyError, later, if the check can't be made now; otherwise never for what a client sent. A check
        whose futures have all been cancelled is not begun."""
        loop = asyncio.get_running_loop()
        if self._users and name is not None and password is not None and len(password) <= MAX_PASSWORD_BYTES:
            password_hash = self._users.get(name)
            if password_hash is None or not self._remembers(name, self._key(name, password_hash, password)):
                return loop.create_task(self._authenticate(name, password, peer))
            found: User | None = self._by_password(name)
        else:
            found = None if self._users else User(name or "", self._mark(OPEN))
        done: asyncio.Future[User | None] = loop.create_future()
        done.set_result(found)
        return done

    def close(self) -> None:
        """Starts no more checks. Those that wait are told that the gateway is busy."""
        self._closed = True
        while self._waiting:
            self._drop(self._waiting.take())
        self._pool.shutdown(wait=False, cancel_futures=True)

    # what a login rests on

    def _mark(self, kind: str, name: str = "", shown: str = "") -> bytes:
        return self._digest(kind.encode(), name.encode("utf-8", "surrogatepass"), shown.encode())

    def _holds(self, user: User) -> bool:
        """Whether what this user has shown would let him in now. Without a mark it rests on the listener's own
        settings, which a reload does not change; then it holds, whatever users there are, under a name that none
        has."""
        if not user.mark:
            return user.name not in self._users  # that name is somebody's now, and stands for more than being let in
        if not self._users:
            return user.mark == self._mark(OPEN)
        name = user.name
        marks = []
        if name in self._users:
            marks = [self._mark(CERTIFICATE, name), self._mark(PASSWORD, name, self._users[name])]
        if name in self._proofs:
            marks.append(self._mark(VERIFIER, name, str(self._proofs[name])))
        return user.mark in marks

    # checks

    async def _authenticate(self, name: str, password: bytes, peer: str) -> User | None:
        while True:
            password_hash = self._users.get(name)
            fits = await self._check(name, password, password_hash, _network(peer))
            if self._users.get(name) == password_hash:  # or a reload came meanwhile
                return self._by_password(name) if fits else None

    def _by_password(self, name: str) -> User:
        return User(name, self._mark(PASSWORD, name, self._users[name]))

    def _key(self, name: str, password_hash: str, password: bytes) -> bytes:
        """With the hash in it, a changed password makes what was remembered useless."""
        return self._digest(name.encode("utf-8", "surrogatepass"), password_hash.encode(), password)

    def _remembers(self, name: str, key: bytes) -> bool:
        return hmac.compare_digest(self._known.get(name, b""), key)

    async def _check(self, name: str, password: bytes, password_hash: str | None, network: str) -> bool:
        key = self._key(name, password_hash or "", password)
        if password_hash is not None and self._remembers(name, key):
            return True
        check = self._checks.get(key)
        if check is None:
            check = _Check(key, name, password_hash, password)
            self._wait(check, network)
        # Many devices of one user share the one check; one that leaves does not end it for the others.
        check.waiters += 1
        try:
            return await asyncio.shield(check.answer)
        finally:
            check.waiters -= 1
            if not check.waiters and check in self._waiting:
                self._waiting.discard(check)
                self._drop(check)

    def _wait(self, check: _Check, network: str) -> None:
        if self._closed:
            raise LoginBusyError("the gateway is stopping")
        if len(self._waiting) >= MAX_WAITING:
            last = self._waiting.displace(network, check.name)
            if last is None:
                raise LoginBusyError("too many logins wait for their check; try again later")
            self._drop(last)
        self._checks[check.key] = check
        self._waiting.add(check, network, check.name)
        self._begin()

    def _drop(self, check: _Check) -> None:
        """It is not begun, and not in the queue."""
        del self._checks[check.key]
        if check.waiters:
            check.answer.set_exception(LoginBusyError("too many logins wait for their check; try again later"))

    def _begin(self) -> None:
        while self._running < THREADS and self._waiting:
            check = self._waiting.take()
            self._running += 1
            loop = asyncio.get_running_loop()
            work = loop.run_in_executor(self._pool, self._verify, check.password_hash, check.password)
            work.add_done_callback(functools.partial(self._finish, check))

    def _finish(self, check: _Check, work: asyncio.Future[bool]) -> None:
        self._running -= 1
        del self._checks[check.key]
        error = None if work.cancelled() else work.exception()
        if error is not None:
            log.fault("a password check failed", error)
        if not work.cancelled() and error is None and work.result():
            if self._users.get(check.name) == check.password_hash:
                self._known[check.name] = check.key
        if check.waiters and work.cancelled():  # by `close`
            check.answer.set_exception(LoginBusyError("the gateway is stopping"))
        elif check.waiters and error is not None:
            check.answer.set_exception(LoginBusyError("the password can't be checked; the log says why"))
        elif check.waiters:
            check.answer.set_result(work.result())
        if not self._closed:
            self._begin()

    def _digest(self, *parts: bytes) -> bytes:
        digest = hashlib.blake2b(key=self._secret, digest_size=32)
        for part in parts:
            digest.update(len(part).to_bytes(8, "big"))
            digest.update(part)
        return digest.digest()

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


def _network(peer: str) -> str:
    """Whom an address stands for, without its port: an IPv6 client has a whole /64 to come from."""
    host = peer.rpartition(":")[0] or peer
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return host
    if address.version == 4:
        return str(address)
    return str(address.ipv4_mapped or ipaddress.IPv6Network((address.packed[:8] + bytes(8), 64)))


def argon2_check(password_hash: str, password: bytes) -> bool:
    """Whether the password fits; a hash that can't be used fits nothing."""
    try:
        return argon2.PasswordHasher().verify(password_hash, password)
    except argon2.exceptions.VerifyMismatchError:
        return False
    except argon2.exceptions.Argon2Error as error:
        log.error("a password hash can't be checked", error=str(error))
        return False
