"""Text that comes from outside is what was sent, or it is refused with a reason: nothing of it is repaired."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from pamqp import commands

from tests.harness.daemon import ROOT, Daemon
from tests.integration.amqp_raw import Raw
from tests.integration.mqtt_raw import RawClient, unique
from transports.mqtt.packets import Disconnect

LOOPBACK = {"listen": "127.0.0.1:0"}
CONFIG = {
    "queues": {"all": {}},
    "routes": [{"from": "#", "to": "all"}],
    "transports": {
        "mqtt": {"type": "mqtt", **LOOPBACK},
        "amqp": {"type": "amqp", **LOOPBACK},
        "web": {"type": "http", **LOOPBACK},
    },
}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    made = Daemon(tmp_path_factory.mktemp("text"), CONFIG)
    try:
        yield made.start()
    finally:
        made.close()


@pytest.fixture
def untouched(daemon: Daemon) -> Iterator[None]:
    """Nothing was stored meanwhile."""

    def accepted() -> int:
        found = httpx.get(f"{daemon.url('admin')}/api/v1/queues", trust_env=False).json()["queues"]
        return int(next(queue["accepted"] for queue in found if queue["name"] == "all"))

    before = accepted()
    yield
    assert accepted() == before


def raw_http(daemon: Daemon, listener: str, head: bytes, body: bytes = b"") -> tuple[int, bytes]:
    """Status and body of the answer to a request whose head is sent as it stands."""
    address = daemon.address(listener)
    with socket.create_connection((address.host, address.port), timeout=8) as client:
        client.sendall(
            head + b"\r\nhost: localhost\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body) + body
        )
        answer = b""
        while data := client.recv(1 << 16):
            answer += data
    return int(answer.split()[1]), answer.partition(b"\r\n\r\n")[2]


@pytest.mark.parametrize(
    "path",
    [
        b"plain/%ff",
        b"%c3",
        b"a%c3%28",
        b"%ed%a0%80",
        b"%",
        b"a%2",
        b"a%zz",
        b"a% 1",
        b"a\xff",
        b"a%00",
        b"a%23",
        b"%2b",
    ],
)
def test_a_topic_in_a_path(daemon: Daemon, untouched: None, path: bytes) -> None:
    status, answer = raw_http(daemon, "web", b"POST /topics/" + path + b" HTTP/1.1")
    assert status == 400 and answer


@pytest.mark.parametrize(
    ("path", "topic"), [("caf%C3%A9", "café"), ("a%2Fb%25", "a/b%"), ("a+b", None), ("a%20b", "a b")]
)
def test_a_topic_in_a_path_that_is_text_is_what_was_written(daemon: Daemon, path: str, topic: str | None) -> None:
    found = httpx.post(f"{daemon.url('web')}/topics/{path}", content=path.encode(), trust_env=False)
    if topic is None:  # a plus is a plus, and no topic name has one
        assert found.status_code == 400
        return
    assert found.status_code == 201
    asked = {"queue": "all", "limit": "1000"}
    stored = httpx.get(f"{daemon.url('admin')}/api/v1/messages", params=asked, trust_env=False).json()["messages"]
    assert next(one for one in stored if one["message"]["body"]["text"] == path)["message"]["topic"] == topic


@pytest.mark.parametrize(
    "header",
    [
        b"x-message-id: %ff",
        b"x-message-id: \xff",
        b"x-message-id: 1%",
        b"x-message-id: 1\r\nx-message-id: 2",
        b"x-message-header-a: %zz",
        b"x-message-header-a%ff: x",
        b"x-message-header-%: x",
        b"x-message-correlation-id: %f",
        b"x-message-client-id: %c3",
        b"x-message-qos: \xb2",
        b"content-type: text/\xff",
        b"content-type: text/caf\xc3\xa9",
        b"content-type: a/b\r\ncontent-type: c/d",
    ],
)
def test_a_header(daemon: Daemon, untouched: None, header: bytes) -> None:
    status, answer = raw_http(daemon, "web", b"POST /topics/a HTTP/1.1\r\n" + header)
    assert status == 400 and answer


@pytest.mark.parametrize("query", [b"queue=%ff", b"queue=%", b"queue=all&queue=other", b"queue=all&limit=%zz"])
def test_a_query(daemon: Daemon, query: bytes) -> None:
    status, answer = raw_http(daemon, "admin", b"GET /api/v1/messages?" + query + b" HTTP/1.1")
    assert status == 400 and answer


@pytest.mark.parametrize(
    "body",
    [
        rb'{"topic": "a\ud800"}',
        rb'{"topic": "a\udc00b"}',
        rb'{"topic": "a\u0000b"}',
        b'{"topic": "a\xff"}',
        rb'{"topic": "a", "body": {"text": "\ud800"}}',
        rb'{"topic": "a", "body": {"text": "no base64!", "encoding": "base64"}}',
        rb'{"topic": "a", "client_id": "\udfff"}',
        rb'{"topic": "a", "headers": [["n", "\ud800"]]}',
        rb'{"topic": "a", "headers": [["n\ud800", "x"]]}',
        rb'{"topic": "a", "headers": [["n", 18446744073709551616]]}',
        rb'{"topic": "a", "headers": [["n", [{"deep": -9223372036854775809}]]]}',
        rb'{"topic": "a", "headers": [["n", 1e999]]}',
    ],
)
def test_a_body_of_json(daemon: Daemon, untouched: None, body: bytes) -> None:
    head = b"POST /api/v1/publish HTTP/1.1\r\ncontent-type: application/json"
    status, answer = raw_http(daemon, "admin", head, body)
    assert status == 400 and answer


# AMQP: a text that is no UTF-8 ends the connection or the channel


def short(octets: bytes) -> bytes:
    return bytes((len(octets),)) + octets


def framed(kind: int, payload: bytes) -> bytes:
    return struct.pack(">BHI", kind, 1, len(payload)) + payload + b"\xce"


def table(octets: bytes) -> bytes:
    return struct.pack(">I", len(octets)) + octets


def publish(key: bytes = b"all", exchange: bytes = b"", properties: bytes = b"\0\0") -> bytes:
    method = struct.pack(">IH", commands.Basic.Publish.index, 0) + short(exchange) + short(key) + b"\0"
    return framed(1, method) + framed(2, struct.pack(">HHQ", 60, 0, 0) + properties)


AMQP = {
    "routing key": publish(b"\xff"),
    "exchange": publish(exchange=b"amq.topic\xff"),
    "content type": publish(properties=b"\x80\x00" + short(b"\xff")),
    "message id": publish(properties=b"\x00\x80" + short(b"\xed\xa0\x80")),
    "reply to": publish(properties=b"\x02\x00" + short(b"\xc3")),
    "expiration": publish(properties=b"\x01\x00" + short(b"\xb2")),
    "name of a header": publish(properties=b"\x20\x00" + table(short(b"\xff") + b"t\x01")),
    "queue to declare": framed(
        1, struct.pack(">IH", commands.Queue.Declare.index, 0) + short(b"q\xff") + b"\0" + table(b"")
    ),
    "argument of a queue": framed(
        1, struct.pack(">IH", commands.Queue.Declare.index, 0) + short(b"") + b"\0" + table(short(b"x\xff") + b"t\x01")
    ),
    "value of an argument": framed(
        1,
        struct.pack(">IH", commands.Queue.Declare.index, 0)
        + short(b"")
        + b"\0"
        + table(short(b"x-dead-letter-exchange") + b"S" + table(b"\xff")),
    ),
    "queue to consume": framed(
        1, struct.pack(">IH", commands.Basic.Consume.index, 0) + short(b"\xff") + short(b"") + b"\0" + table(b"")
    ),
}


@pytest.mark.parametrize("where", AMQP)
def test_a_text_in_amqp(daemon: Daemon, untouched: None, where: str) -> None:
    raw = Raw(daemon.address("amqp"))
    try:
        raw.login()
        raw.socket.sendall(AMQP[where])
        assert isinstance(raw.read(), (commands.Connection.Close, commands.Channel.Close))
    finally:
        raw.close()


# MQTT: a text that is no UTF-8, or holds NUL or a surrogate, ends the connection [MQTT-1.5.4-1], [MQTT-1.5.4-2]


def string(octets: bytes) -> bytes:
    return struct.pack(">H", len(octets)) + octets


@pytest.mark.parametrize("octets", [b"\xff", b"a\0b", b"\xed\xa0\x80", b"\xc3"])
@pytest.mark.parametrize("where", ["topic", "name of a user property", "value of a user property", "response topic"])
def test_a_text_in_mqtt(daemon: Daemon, untouched: None, where: str, octets: bytes) -> None:
    bad = string(octets)
    properties = {
        "topic": b"",
        "name of a user property": b"\x26" + bad + string(b"v"),
        "value of a user property": b"\x26" + string(b"n") + bad,
        "response topic": b"\x08" + bad,
    }[where]
    rest = (bad if where == "topic" else string(b"a")) + b"\0\1" + bytes((len(properties),)) + properties
    with RawClient(daemon.address("mqtt")) as client:
        client.connect(unique())
        client.send(b"\x32" + bytes((len(rest),)) + rest)
        client.expect(Disconnect)
        assert client.receive() is None


# the command line and its files


def command(
    *arguments: bytes | str, given: bytes | None = None, **environ: bytes
) -> subprocess.CompletedProcess[bytes]:
    whole = {**os.environb, b"PYTHONPATH": os.fsencode(ROOT), **{k.encode(): v for k, v in environ.items()}}
    return subprocess.run(
        [sys.executable, "-m", "gateway", *arguments], env=whole, capture_output=True, input=given, timeout=60
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("publish", b"a\xff", "x"),
        ("publish", "a", "x", "--header", b"n=\xff"),
        ("publish", "a", "x", "--client-id", b"\xff"),
        ("consume", b"\xff"),
        ("queues", "purge", b"\xff", "--yes"),
        ("groups", "list", b"\xff"),
        ("queues", "--user", b"\xff"),
        ("queues", "--user", "u", "--password", b"secret\xff"),
    ],
)
def test_an_argument(daemon: Daemon, untouched: None, arguments: tuple[bytes | str, ...]) -> None:
    found = command(*arguments, "--admin", daemon.url("admin"))
    assert found.returncode == 2 and b"is no UTF-8 text" in found.stderr
    assert b"Traceback" not in found.stderr and b"secret" not in found.stderr


def test_a_body_may_be_any_bytes(daemon: Daemon) -> None:
    found = command("publish", "bytes/argument", b"\xff\xfe", "--admin", daemon.url("admin"))
    assert found.returncode == 0, found.stderr
    asked = {"queue": "all", "limit": "1000"}
    stored = httpx.get(f"{daemon.url('admin')}/api/v1/messages", params=asked, trust_env=False).json()["messages"]
    body = next(one["message"]["body"] for one in stored if one["message"]["topic"] == "bytes/argument")
    assert body == {"text": "//4=", "encoding": "base64"}


def test_a_password_of_standard_input() -> None:
    found = command("hash-password", given=b"secret\xff\n", LC_ALL=b"C", PYTHONUTF8=b"0", PYTHONCOERCECLOCALE=b"0")
    assert found.returncode == 2 and b"no UTF-8 text" in found.stderr and b"secret" not in found.stderr


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (b'queues: {"a\\ud800": {}}', b"a key must be text"),
        (b'queues: {a: {}}\nroutes: [{from: "x/\\udfff", to: a}]', b"is no text"),
        (b'queues: {a: {}}\nroutes: [{from: "${TOPIC}", to: a}]', b"TOPIC is not UTF-8 text"),
        (b'queues: {a: {}}\nroutes: [{from: "x\\0", to: a}]', b"NUL"),
        (b'queues: {"a\xff": {}}', b"is not UTF-8 text"),
    ],
)
@pytest.mark.parametrize("name", [b"plain.yaml", b"odd\xff.yaml"])
def test_a_configuration(tmp_path: Path, text: bytes, fault: bytes, name: bytes) -> None:
    path = os.fsencode(tmp_path) + b"/" + name
    Path(os.fsdecode(path)).write_bytes(text + b"\n")
    for more in ((), ("--json",)):
        found = command("check", path, *more, TOPIC=b"t/\xff")
        assert found.returncode == 2 and fault in found.stderr + found.stdout
        assert b"Traceback" not in found.stderr
