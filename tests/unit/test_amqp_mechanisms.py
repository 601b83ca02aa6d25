"""What the responses of the login mechanisms say."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transports.amqp.fields import encode_table
from transports.amqp.mechanisms import Claim, LoginError, claim

names = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=20)
CERTIFICATE = {"subject": ((("organizationName", "plant"),), (("commonName", "device-7"),))}


@given(names, names)
def test_plain_and_amqplain_say_the_same(name: str, password: str) -> None:
    said = Claim(name, password.encode())
    assert claim("PLAIN", b"\0%s\0%s" % (name.encode(), password.encode()), None) == said
    assert claim("AMQPLAIN", encode_table([("LOGIN", name), ("PASSWORD", password)])[4:], None) == said


def test_nobody_acts_as_another() -> None:
    assert claim("PLAIN", b"ann\0ann\0secret", None) == Claim("ann", b"secret")
    for response in (b"bob\0ann\0secret", b"x\0\0", b" \0ann\0secret"):
        with pytest.raises(LoginError, match="another user"):
            claim("PLAIN", response, None)


def test_a_password_may_be_any_bytes() -> None:
    assert claim("PLAIN", b"\0ann\0\xff", None).password == b"\xff"
    assert claim("AMQPLAIN", b"\x05LOGINS\0\0\0\x01a\x08PASSWORDS\0\0\0\x01\xff", None).password == b"\xff"


@given(st.sampled_from(["PLAIN", "AMQPLAIN", "EXTERNAL", "other"]), st.binary(max_size=60))
def test_any_response_is_a_claim_or_an_error(mechanism: str, response: bytes) -> None:
    try:
        assert isinstance(claim(mechanism, response, CERTIFICATE).name, str)
    except LoginError as error:
        assert str(error)


@pytest.mark.parametrize("response", [b"", b"device-7"])
def test_external_is_the_common_name(response: bytes) -> None:
    assert claim("EXTERNAL", response, CERTIFICATE) == Claim("device-7", None)


@pytest.mark.parametrize(
    ("response", "certificate"),
    [
        (b"", None),
        (b"", {}),
        (b"", {"subject": ()}),
        (b"", {"subject": ((("commonName", "a"),), (("commonName", "b"),))}),
        (b"", {"subject": ((("commonName", ""),),)}),
        (b"another", CERTIFICATE),
    ],
)
def test_external_without_one_name_is_refused(response: bytes, certificate: dict[str, Any] | None) -> None:
    with pytest.raises(LoginError):
        claim("EXTERNAL", response, certificate)
