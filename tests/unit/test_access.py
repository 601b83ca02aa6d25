"""Access: who gets in, what a check costs, and what is remembered."""

from __future__ import annotations

import argon2
import pytest

from gateway import access
from gateway.access import Access, hash_password, is_hash
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


async def test_without_users_everybody_is_let_in():
    found = Access({})
    assert found.anonymous
    assert await found.authenticate(None, None) == User("")
    assert await found.authenticate("guest", b"guest") == User("guest")
    found.close()


async def test_right_and_wrong(alice):
    assert not alice.anonymous
    assert await alice.authenticate("alice", b"secret") == User("alice")
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
    assert not any(b"secret" in key for key in alice._known)


async def test_what_is_remembered_is_bounded(alice, monkeypatch, checks):
    monkeypatch.setattr(access, "CACHE_ENTRIES", 1)
    alice.replace({"alice": ALICE, "bob": CHEAP.hash("b")})
    for name, password in (("alice", b"secret"), ("bob", b"b"), ("alice", b"secret")):
        assert await alice.authenticate(name, password)
    assert len(checks) == 3


async def test_many_devices_of_one_user_share_one_check(alice, checks):
    import asyncio

    found = await asyncio.gather(*(alice.authenticate("alice", b"secret") for _ in range(50)))
    assert found == [User("alice")] * 50
    assert len(checks) == 1


async def test_one_that_leaves_does_not_end_the_check_of_others(alice):
    import asyncio

    first = asyncio.create_task(alice.authenticate("alice", b"secret"))
    second = asyncio.create_task(alice.authenticate("alice", b"secret"))
    await asyncio.sleep(0)
    first.cancel()
    assert await second == User("alice")
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_beyond_its_limit_a_flood_is_refused_at_once(alice, monkeypatch, checks):
    import asyncio

    monkeypatch.setattr(access, "MAX_WAITING", 5)
    found = await asyncio.gather(*(alice.authenticate("alice", b"wrong%d" % n) for n in range(20)))
    assert found == [None] * 20
    assert len(checks) == 5
    assert await alice.authenticate("alice", b"secret") == User("alice")


async def test_new_users_make_old_passwords_useless(alice):
    assert await alice.authenticate("alice", b"secret")
    alice.replace({"alice": CHEAP.hash("other")})
    assert not await alice.authenticate("alice", b"secret")
    assert await alice.authenticate("alice", b"other")
    with pytest.raises(ValueError, match="'bob' is no argon2 hash"):
        alice.replace({"bob": "hunter2"})
    assert await alice.authenticate("alice", b"other")


async def test_after_close_nobody_gets_in(alice):
    alice.close()
    assert await alice.authenticate("alice", b"secret") is None


def test_hashes():
    made = hash_password("secret")
    assert made.startswith("$argon2id$")
    assert is_hash(made)
    assert made != hash_password("secret")
    assert argon2.PasswordHasher().verify(made, b"secret")
    assert not any(map(is_hash, ("", "secret", "$argon2id$", "$2b$12$abc")))
