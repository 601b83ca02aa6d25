"""Access: who gets in, what a check costs, and what is remembered."""

from __future__ import annotations

import asyncio
import threading

import argon2
import pytest

from gateway.auth import logins
from gateway.auth import users as access
from gateway.auth.scram import make_verifier
from gateway.auth.users import Access, hash_password, is_hash
from gateway.errors import LoginBusyError
from gateway.transport import User

pytestmark = pytest.mark.anyio
CHEAP = argon2.PasswordHasher(time_cost=1, memory_cost=64, parallelism=1)
ALICE = CHEAP.hash("secret")


@pytest.fixture
def checks(monkeypatch):
    """The hashes that were really checked, in order."""
    seen: list[str] = []
    check = access.argon2_check

    def counted(password_hash: str, password: bytes) -> bool:
        seen.append(password_hash)
        return check(password_hash, password)

    monkeypatch.setattr(access, "argon2_check", counted)
    return seen


@pytest.fixture
async def alice():
    found = Access({"alice": ALICE})
    yield found
    found.close()


async def name_of(found: Access, name: str | None, password: bytes | None, peer: str = "") -> str | None:
    user = await found.authenticate(name, password, peer)
    return user.name if user is not None else None


async def test_without_users_everybody_is_let_in():
    found = Access({})
    assert found.anonymous
    assert await name_of(found, None, None) == ""
    assert await name_of(found, "guest", b"guest") == "guest"
    found.close()


async def test_right_and_wrong(alice):
    assert not alice.anonymous
    assert await name_of(alice, "alice", b"secret") == "alice"
    for name, password in (
        ("alice", b"wrong"), ("bob", b"secret"), (None, None), ("alice", None), (None, b"secret"), ("", b""),
        ("alice", b"\xff\x00"), ("al\udcffice", b"secret"), ("alice", b"x" * 2000),
    ):  # fmt: skip
        assert await alice.authenticate(name, password) is None


async def test_an_unknown_name_costs_a_check_like_a_known_one(alice, checks):
    await alice.authenticate("bob", b"secret")
    (decoy,) = checks
    assert decoy != ALICE
    assert argon2.extract_parameters(decoy) == argon2.extract_parameters(ALICE)


async def test_a_success_is_remembered_and_a_failure_is_not(alice, checks):
    for _ in range(3):
        assert await alice.authenticate("alice", b"secret")
    assert len(checks) == 1
    for _ in range(3):
        assert not await alice.authenticate("alice", b"wrong")
    assert len(checks) == 4


async def test_the_password_is_kept_nowhere(alice):
    await alice.authenticate("alice", b"secret")
    assert b"secret" not in repr([*alice._known.items(), alice._checks, alice._users]).encode()


async def test_one_password_is_remembered_of_each_user_that_there_is(alice, checks):
    alice.replace({"alice": ALICE, "bob": CHEAP.hash("b")})
    for name, password in (("alice", b"secret"), ("bob", b"b"), ("alice", b"secret")):
        assert await alice.authenticate(name, password)
    assert len(checks) == 2
    alice.replace({"bob": CHEAP.hash("b")})
    alice.replace({"alice": ALICE})
    assert await alice.authenticate("alice", b"secret")
    assert len(checks) == 3


async def test_what_is_remembered_needs_no_turn(alice):
    await alice.authenticate("alice", b"secret")
    assert alice.authenticate("alice", b"secret").done()
    assert not alice.authenticate("alice", b"wrong").done()


async def test_many_devices_of_one_user_share_one_check(alice, checks):
    found = await asyncio.gather(*(name_of(alice, "alice", b"secret") for _ in range(50)))
    assert found == ["alice"] * 50
    assert len(checks) == 1


async def test_one_that_leaves_does_not_end_the_check_of_others(alice):
    first = alice.authenticate("alice", b"secret")
    second = alice.authenticate("alice", b"secret")
    await asyncio.sleep(0)
    first.cancel()
    assert (await second).name == "alice"
    with pytest.raises(asyncio.CancelledError):
        await first


class Slow:
    """Checks that go on until they are let go on. `began`: the passwords, in the order of their checks."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.began: list[bytes] = []
        self._gate = threading.Semaphore(0)
        monkeypatch.setattr(access, "argon2_check", self._check)

    def _check(self, password_hash: str, password: bytes) -> bool:
        self.began.append(password)
        self._gate.acquire()
        return password.startswith(b"right")

    def let_go(self, checks: int = 1) -> None:
        self._gate.release(checks)


@pytest.fixture
async def slow(monkeypatch):
    """One check at a time, the first of which has begun: for a peer that has nothing to do with the others."""
    monkeypatch.setattr(access, "THREADS", 1)
    found = Access({"alice": ALICE, "bob": ALICE, "carol": ALICE})
    found.slow = Slow(monkeypatch)  # type: ignore[attr-defined]
    first = found.authenticate("carol", b"right carol", "192.0.2.99:1")
    await asyncio.sleep(0)
    yield found
    found.close()
    found.slow.let_go(5000)  # type: ignore[attr-defined]
    first.cancel()


async def begun(slow: Access, *futures: asyncio.Future[User | None]) -> list[bytes]:
    """All passwords in the order of their checks, when these are over."""
    await asyncio.sleep(0)
    slow.slow.let_go(5000)  # type: ignore[attr-defined]
    await asyncio.wait(futures)
    return list(slow.slow.began)  # type: ignore[attr-defined]


async def test_a_check_that_nobody_waits_for_is_not_begun(slow):
    gone = [slow.authenticate("alice", b"wrong %d" % n, "192.0.2.1:1") for n in range(150)]
    last = slow.authenticate("alice", b"right", "192.0.2.1:2")
    await asyncio.sleep(0)
    for one in gone:
        one.cancel()
    await asyncio.sleep(0)
    assert await begun(slow, last) == [b"right carol", b"right"]
    assert (await last).name == "alice"


@pytest.mark.parametrize(
    ("name", "peer"),
    [("alice", "192.0.2.2:7"), ("bob", "192.0.2.1:7"), ("bob", "192.0.2.2:7")],
    ids=["another peer", "another name", "both"],
)
async def test_a_flood_holds_up_neither_another_peer_nor_another_name(slow, name, peer):
    flood = [slow.authenticate("alice", b"wrong %d" % n, f"192.0.2.1:{n}") for n in range(500)]
    await asyncio.sleep(0)
    one = slow.authenticate(name, b"right", peer)
    order = await begun(slow, one)
    assert order.index(b"right") <= 4
    for wrong in flood:
        wrong.cancel()


async def test_a_name_that_many_peers_try_does_not_hold_up_others(slow):
    flood = [slow.authenticate("alice", b"wrong %d" % n, f"192.0.{n % 250}.{n // 250}:1") for n in range(1000)]
    await asyncio.sleep(0)
    one = slow.authenticate("bob", b"right", "198.51.100.1:1")
    assert (await begun(slow, one)).index(b"right") <= 4
    for wrong in flood:
        wrong.cancel()


async def test_addresses_of_one_ipv6_network_are_one_peer(slow):
    flood = [slow.authenticate(f"name {n}", b"wrong %d" % n, f"2001:db8::{n:x}:1") for n in range(500)]
    await asyncio.sleep(0)
    one = slow.authenticate("bob", b"right", "2001:db8:0:1::1:1")
    assert (await begun(slow, one)).index(b"right") <= 4
    for wrong in flood:
        wrong.cancel()


async def test_when_too_many_wait_one_of_the_longest_row_is_told_that_it_is_busy(slow, monkeypatch):
    monkeypatch.setattr(access, "MAX_WAITING", 20)
    flood = [slow.authenticate("alice", b"wrong %d" % n, f"192.0.2.1:{n}") for n in range(30)]
    await asyncio.sleep(0)
    one = slow.authenticate("bob", b"right", "192.0.2.2:7")
    two = slow.authenticate("bob", b"right too", "192.0.2.1:7")
    await begun(slow, one, two, *flood)
    assert [(await right).name for right in (one, two)] == ["bob", "bob"]
    busy = [wrong for wrong in flood if isinstance(wrong.exception(), LoginBusyError)]
    assert len(busy) == 12, "20 may wait, and two gave way"
    assert all(wrong.result() is None for wrong in flood if wrong not in busy)
    assert (await slow.authenticate("alice", b"right")).name == "alice"


async def test_a_reload_amid_a_check_has_the_password_checked_against_the_new_hash(alice, monkeypatch):
    began, go = threading.Event(), threading.Event()
    check = access.argon2_check

    def waits(password_hash: str, password: bytes) -> bool:
        began.set()
        assert go.wait(10)
        return check(password_hash, password)

    monkeypatch.setattr(access, "argon2_check", waits)
    old = alice.authenticate("alice", b"secret")
    new = alice.authenticate("alice", b"other")
    await asyncio.to_thread(began.wait)
    alice.replace({"alice": CHEAP.hash("other")})
    go.set()
    assert await old is None
    assert (await new).name == "alice"


class Client:
    def __init__(self, found: Access, user: User) -> None:
        self.why = ""
        self.leave = found.logins.enter(user, self._end)

    def _end(self, why: str) -> None:
        assert not self.why
        self.why = why


async def turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_login_lasts_as_long_as_what_it_rests_on():
    proofs = {name: str(make_verifier("secret", 4096)) for name in ("alice", "bob")}
    found = Access({"alice": ALICE, "bob": ALICE}, proofs)
    clients = {}
    for name in ("alice", "bob"):
        clients[name, "password"] = Client(found, await found.authenticate(name, b"secret"))
        clients[name, "certificate"] = Client(found, found.find(name))
        exchange = found.exchange()
        exchange.first(b"n,,n=%s,r=abc" % name.encode())
        clients[name, "scram"] = Client(found, found.proven(exchange))
    clients["", "listener"] = Client(found, User(""))

    def gone() -> set[tuple[str, str]]:
        return {key for key, client in clients.items() if client.why}

    assert found.replace({"alice": ALICE, "bob": ALICE}, proofs) == 0
    await turns()
    assert not gone()
    assert found.replace({"alice": CHEAP.hash("secret"), "bob": ALICE}, proofs) == 1
    await turns()
    assert gone() == {("alice", "password")}
    assert found.replace({"alice": ALICE, "bob": ALICE}, {"alice": proofs["alice"]}) == 1
    await turns()
    assert gone() == {("alice", "password"), ("bob", "scram")}
    assert found.replace({"alice": ALICE}, {"alice": proofs["alice"]}) == 2
    await turns()
    assert {name for name, _ in gone()} == {"alice", "bob"} and len(gone()) == 4
    assert found.replace({}) == 2
    await turns()
    assert set(clients) - gone() == {("", "listener")}
    found.close()


async def test_who_came_in_without_users_goes_when_there_are_some():
    found = Access({})
    one = Client(found, await found.authenticate("bob", b"x"))
    found.replace({"bob": ALICE})
    await turns()
    assert one.why
    found.close()


async def test_who_has_left_is_not_ended_and_who_comes_late_is(alice):
    user = await alice.authenticate("alice", b"secret")
    gone, there = Client(alice, user), Client(alice, user)
    gone.leave()
    gone.leave()
    assert alice.replace({}) == 1
    late = Client(alice, user)
    assert not late.why, "it is ended when it has had the time to be one"
    there.leave()
    await turns()
    assert (gone.why, there.why, bool(late.why)) == ("", "", True)


async def test_many_are_ended_a_slice_at_a_time(alice):
    user = await alice.authenticate("alice", b"secret")
    clients = [Client(alice, user) for _ in range(1000)]
    alice.replace({})
    most = before = 0
    while before < 1000:
        await asyncio.sleep(0)
        after = sum(bool(client.why) for client in clients)
        most, before = max(most, after - before), after
    assert most <= logins.SLICE


async def test_new_users_make_old_passwords_useless(alice):
    assert await alice.authenticate("alice", b"secret")
    alice.replace({"alice": CHEAP.hash("other")})
    assert not await alice.authenticate("alice", b"secret")
    assert await alice.authenticate("alice", b"other")
    with pytest.raises(ValueError, match="'bob' is no argon2 hash"):
        alice.replace({"bob": "hunter2"})
    assert await alice.authenticate("alice", b"other")


async def test_after_close_nobody_gets_in_and_nobody_is_called_wrong(alice):
    alice.close()
    with pytest.raises(LoginBusyError):
        await alice.authenticate("alice", b"secret")


def test_hashes():
    made = hash_password("secret")
    assert made.startswith("$argon2id$")
    assert is_hash(made)
    assert made != hash_password("secret")
    assert argon2.PasswordHasher().verify(made, b"secret")
    assert not any(map(is_hash, ("", "secret", "$argon2id$", "$2b$12$abc")))
