"""Headers of the PROXY protocol, version 2."""

from __future__ import annotations

import ipaddress

import hypothesis.strategies as st
import pytest
from hypothesis import given

from gateway.net.proxy import MAX_OCTETS, SIGNATURE, ProxyError, read_header


def header(family: int, addresses: bytes, command: int = 0x21, more: bytes = b"") -> bytes:
    body = addresses + more
    return SIGNATURE + bytes((command, family)) + len(body).to_bytes(2, "big") + body


def of(client: str, port: int, more: bytes = b"") -> bytes:
    address = ipaddress.ip_address(client)
    there = ipaddress.ip_address("192.0.2.1" if address.version == 4 else "2001:db8::1")
    addresses = address.packed + there.packed + port.to_bytes(2, "big") + (1883).to_bytes(2, "big")
    return header(0x11 if address.version == 4 else 0x21, addresses, more=more)


@given(st.ip_addresses(), st.integers(0, 65_535), st.binary(max_size=200), st.binary(max_size=50))
def test_the_client_is_who_the_proxy_says(client: ipaddress.IPv4Address, port: int, more: bytes, rest: bytes) -> None:
    data = of(str(client), port, more)
    assert read_header(data + rest) == (len(data), (str(client), port))
    for end in range(len(data)):
        assert read_header(data[:end]) is None


@pytest.mark.parametrize("data", [header(0, b"", 0x20), header(0x11, b"x" * 12, 0x20), header(0x31, b"/x" * 108)])
def test_a_check_of_the_proxy_or_a_unix_socket_names_nobody(data: bytes) -> None:
    assert read_header(data) == (len(data), None)


@pytest.mark.parametrize(
    "data",
    [
        b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n",
        b"\x10\x0d\x00\x04MQTT\x04",
        b"\r\n\r\n\0\r\nQUIX",
        header(0x11, b"x" * 12, 0x31),
        header(0x11, b"x" * 12, 0x22),
        header(0x11, b"x" * 11),
        header(0x21, b"x" * 35),
        header(0x11, b"x" * MAX_OCTETS)[:16],
    ],
)
def test_what_is_no_header_is_said_to_be_none(data: bytes) -> None:
    with pytest.raises(ProxyError):
        read_header(data)


@given(st.binary(max_size=300))
def test_no_octets_raise_anything_else(rest: bytes) -> None:
    for data in (rest, SIGNATURE + rest, SIGNATURE + b"\x21\x11" + rest):
        try:
            found = read_header(data)
        except ProxyError:
            continue
        assert found is None or found[0] <= len(data)
