"""SCRAM-SHA-256, by the example of RFC 7677 and against a client written here from RFC 5802."""

from __future__ import annotations

import base64
import hashlib
import hmac

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from gateway.auth.scram import Exchange, ScramError, Users, Verifier, make_verifier, prepare

SALT = base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ==")
PENCIL = make_verifier("pencil", 4096, SALT)
FIRST = b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO"
FINAL = b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="


def exchange(verifiers: dict[str, Verifier] | None = None) -> Exchange:
    return Exchange(
        Users({"user": PENCIL} if verifiers is None else verifiers), lambda: "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
    )


def test_the_example_of_rfc_7677() -> None:
    one = exchange()
    assert one.first(FIRST) == (
        b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
    )
    assert one.final(FINAL) == b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="
    assert one.name == "user"


def answer(password: str, first: bytes, challenge: bytes) -> tuple[bytes, bytes]:
    """The client's final message, and what the server must say then."""
    bare = first.split(b",", 2)[2].decode()
    fields = dict(part.split("=", 1) for part in challenge.decode().split(","))
    salted = hashlib.pbkdf2_hmac("sha256", prepare(password).encode(), base64.b64decode(fields["s"]), int(fields["i"]))
    client = hmac.digest(salted, b"Client Key", "sha256")
    header = base64.b64encode(b",".join(first.split(b",", 2)[:2]) + b",").decode()
    without = f"c={header},r={fields['r']}"
    said = f"{bare},{challenge.decode()},{without}".encode()
    signature = hmac.digest(hashlib.sha256(client).digest(), said, "sha256")
    proof = bytes(a ^ b for a, b in zip(client, signature, strict=True))
    server = hmac.digest(hmac.digest(salted, b"Server Key", "sha256"), said, "sha256")
    return f"{without},p={base64.b64encode(proof).decode()}".encode(), b"v=" + base64.b64encode(server)


passwords = st.text(st.characters(codec="ascii", categories=("L", "N", "P")), min_size=1, max_size=20)
names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=10)


@settings(max_examples=20)
@given(names, passwords, passwords)
def test_who_knows_the_password_gets_in_and_nobody_else(name: str, password: str, other: str) -> None:
    users = Users({name: make_verifier(password, 4096)})
    quoted = name.replace("=", "=3D").replace(",", "=2C")
    first = f"y,,n={quoted},r=abc".encode()
    for tried in {password, other}:
        one = Exchange(users)
        final, expected = answer(tried, first, one.first(first))
        if tried == password:
            assert one.final(final) == expected
            assert one.name == name
        else:
            with pytest.raises(ScramError, match="does not fit"):
                one.final(final)


def test_a_name_that_nobody_has_is_asked_the_same_each_time() -> None:
    users = Users({"user": PENCIL})
    asked = [Exchange(users, lambda: "x").first(b"n,,n=nobody,r=a") for _ in range(2)]
    assert asked[0] == asked[1] and asked[0].endswith(b"i=4096")
    assert asked[0] != Exchange(users, lambda: "x").first(b"n,,n=somebody,r=a")
    one = Exchange(users)
    final, _ = answer("guess", b"n,,n=nobody,r=a", one.first(b"n,,n=nobody,r=a"))
    with pytest.raises(ScramError):
        one.final(final)


@pytest.mark.parametrize(
    "first",
    [b"", b"n,,", b"n,,n=user", b"n,,n=user,r=", b"p=tls-unique,,n=user,r=a", b"n,a=admin,n=user,r=a", b"\xff",
     b"n,,n=us=er,r=a", b"n,,m=x,n=user,r=a", b"n,,n=user,n=user,r=a", b"n,,n=user,r=" + b"a" * 5000, b"n,,r=a,"],
)  # fmt: skip
def test_first_messages_that_make_no_sense(first: bytes) -> None:
    with pytest.raises(ScramError):
        exchange().first(first)


@pytest.mark.parametrize(
    "final",
    [b"", b"c=biws", FINAL.replace(b"biws", b"eSws"), FINAL.replace(b"k0,", b"k1,"), FINAL[:-4], FINAL + b"!",
     FINAL.rpartition(b",")[0], FINAL.replace(b"p=", b"p=AAAA"), FINAL.replace(b",p=", b",x=1,p="), b"\xff"],
)  # fmt: skip
def test_final_messages_that_make_no_sense_or_prove_nothing(final: bytes) -> None:
    one = exchange()
    one.first(FIRST)
    with pytest.raises(ScramError):
        one.final(final)


@given(st.binary(max_size=60))
def test_no_octets_raise_anything_else(data: bytes) -> None:
    for message in (data, b"n,," + data, b"n,,n=user,r=" + data):
        one = exchange()
        try:
            one.first(message)
            one.final(data)
        except ScramError:
            continue


def test_a_verifier_is_text_and_back() -> None:
    assert Verifier.parse(str(PENCIL)) == PENCIL
    whole = str(PENCIL)
    wrongs = [whole.replace(*pair) for pair in (("4096", "4095"), ("4096", "x"), ("256", "1"), ("$", ":"))]
    for wrong in ("", "x", whole[:-8], *wrongs):
        with pytest.raises(ValueError, match="verifier"):
            Verifier.parse(wrong)


@pytest.mark.parametrize(
    ("text", "prepared"), [("I\u00adX", "IX"), ("user", "user"), ("USER", "USER"), ("\u00aa", "a"), ("\u2168", "IX")]
)
def test_the_examples_of_rfc_4013(text: str, prepared: str) -> None:
    assert prepare(text) == prepared


@pytest.mark.parametrize("text", ["\u0007", "\u0627\u0031", "", "\u00ad"])
def test_what_rfc_4013_forbids(text: str) -> None:
    with pytest.raises(ValueError, match="password"):
        prepare(text)


def salt_of(users: Users, name: str) -> tuple[int, bytes]:
    found, _ = users.find(name)
    return found.iterations, found.salt


@given(st.lists(names, unique=True, min_size=1, max_size=4), names, st.binary(min_size=16, max_size=64))
@settings(max_examples=30)
def test_a_name_that_nobody_has_is_answered_alike_after_a_restart_and_a_reload(
    there: list[str], name: str, key: bytes
) -> None:
    before = {one: Verifier(5000, bytes(20), bytes(32), one.encode().ljust(32)[:32]) for one in there}
    if name in before:
        return
    decoy = salt_of(Users(before, key), name)
    assert decoy == salt_of(Users(before, key), name)
    after = before | {f"{name} too": make_verifier("new", 5000, b"s" * 20)}
    assert decoy == salt_of(Users(dict(reversed(after.items())), key), name), "a reload has more users"
    assert (decoy[0], len(decoy[1])) == (5000, 20), "it looks like those of the users"
    assert salt_of(Users(before), name) == salt_of(Users(dict(before)), name), "without a key that outlives the process"
    assert salt_of(Users(before), name) != decoy
