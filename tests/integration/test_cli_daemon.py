"""The command line against a running daemon."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pika
import pytest

from gateway.auth.users import hash_password
from tests.harness.daemon import ROOT, Daemon

QUEUES = ("orders", "parked", "tables", "esc")
CONFIG = {
    "transports": {"amqp": {"type": "amqp", "listen": "127.0.0.1:0"}},
    "users": {"alice": {"password_hash": hash_password("secret")}},
    "queues": {
        name: {
            "group": "{topic[1]}",
            "max_deliveries": 2,
            "on_exhausted": "park" if name == "parked" else "skip",
            "dead_letter": f"{name}.dead",
        }
        for name in QUEUES
    }
    | {f"{name}.dead": {} for name in QUEUES}
    | {"once": {"dedup": {"key": "{header[id]}"}, "max_messages": 1}},
    "routes": [{"from": f"{name}/#", "to": name} for name in (*QUEUES, "once")],
}
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory) -> Iterator[Daemon]:
    made = Daemon(tmp_path_factory.mktemp("cli"), CONFIG)
    yield made.start()
    made.close()


@pytest.fixture
def gateway(daemon) -> Run:
    """`gateway("queues", "--json")` as alice; `status=` what it must end with."""

    def run(*words: str, status: int = 0, stdin: bytes | None = None, **env: str) -> subprocess.CompletedProcess[str]:
        environ = {
            "PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "GATEWAY_ADMIN": daemon.url("admin"),
            "GATEWAY_USER": "alice", "GATEWAY_PASSWORD": "secret", **env,
        }  # fmt: skip
        done = subprocess.run([sys.executable, "-m", "gateway", *words], input=stdin, capture_output=True, env=environ)
        out = subprocess.CompletedProcess(words, done.returncode, done.stdout.decode(), done.stderr.decode())
        assert out.returncode == status, out
        return out

    return run


def bodies(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [json.loads(line)["message"]["body"]["text"] for line in done.stdout.splitlines()]


def test_a_poisoned_message_is_found_and_redriven(gateway):
    for body in ("1", "bad", "3"):
        assert gateway("publish", "orders/7", body).stdout == "stored\n"
    assert gateway("consume", "orders", "--count", "1").stdout == "orders/7  1\n"
    assert bodies(gateway("consume", "orders", "--count", "1", "--verdict", "dead", "--json")) == ["bad"]
    assert bodies(gateway("consume", "orders", "--count", "1", "--json")) == ["3"]
    listed = ("dead-letters", "list", "--from", "orders", "--json")
    (dead,) = json.loads(gateway(*listed).stdout)
    assert (dead["queue"], dead["deaths"][0]["queue"], dead["deaths"][0]["reason"]) == (
        "orders.dead",
        "orders",
        "rejected",
    )
    shown = gateway("dead-letters", "show", str(dead["id"])).stdout
    assert "died in orders" in shown
    assert "bad" in shown
    assert json.loads(gateway("dead-letters", "show", str(dead["id"]), "--json").stdout) == dead
    assert gateway("dead-letters", "redrive", "--from", "orders", "--dry-run").stdout == "1 would be redriven\n"
    assert json.loads(gateway(*listed, "--reason", "rejected").stdout) == [dead]
    assert json.loads(gateway(*listed, "--reason", "expired").stdout) == []
    assert gateway("dead-letters", "redrive", "--id", str(dead["id"]), "--rate", "10").stdout == "1 of 1 redriven\n"
    assert bodies(gateway("consume", "orders", "--count", "1", "--json")) == ["bad"]


def test_publish_says_what_became_of_it(gateway):
    assert gateway("publish", "once/1", "x", "--header", "id=1").stdout == "stored\n"
    assert json.loads(gateway("publish", "once/1", "x", "--header", "id=1", "--json").stdout) == {
        "outcome": "duplicate"
    }
    assert gateway("publish", "once/1", "x", "--header", "id=2", status=1).stdout.startswith("refused: a queue is full")
    assert gateway("publish", "nowhere", status=1).stdout.startswith("unrouted: no route leads from nowhere")
    assert "topic: has a wildcard" in gateway("publish", "a/#", status=1).stderr


def test_publish_of_what_is_retained_and_no_queue_wants(gateway):
    said = gateway("publish", "state/1", "on", "--retain", "--header", "a=b").stdout
    assert said == "retained: kept for MQTT clients that subscribe later; no route leads from state/1 to a queue\n"
    assert json.loads(gateway("publish", "state/1", "on", "--retain", "--json").stdout) == {
        "outcome": "unrouted",
        "retained": True,
    }
    said = gateway("publish", "state/1", "--retain").stdout
    assert said == "retained: what was kept for later is cleared; no route leads from state/1 to a queue\n"
    # Nothing is retained of what is sent straight to a queue, nor without --retain.
    assert gateway("publish", "$queue/nowhere", "x", "--retain", status=1).stdout.startswith("unrouted: ")
    assert gateway("publish", "state/1", "on", status=1).stdout.startswith("unrouted: ")


def test_publish_says_that_a_message_is_a_dead_letter_at_once(gateway):
    why = "queue once could not take it: {header[id]} is missing; it is a dead letter in dead-letters\n"
    assert gateway("publish", "once/1", "x", status=1).stdout == "stored\n" + why
    found = json.loads(gateway("publish", "once/1", "x", "--json", status=1).stdout)
    dead = {"queue": "once", "kept_in": ["dead-letters"], "why": "{header[id]} is missing"}
    assert found == {"outcome": "stored", "dead_on_arrival": [dead]}


def test_publish_from_standard_input_keeps_every_byte(gateway):
    octets = bytes(range(256))
    gateway("publish", "$queue/tables.dead", "-", "--content-type", "x/y", "--client-id", "dev", stdin=octets)
    (line,) = gateway("consume", "tables.dead", "--count", "1", "--json").stdout.splitlines()
    message = json.loads(line)["message"]
    assert base64.b64decode(message["body"]["text"]) == octets
    assert (message["content_type"], message["client_id"]) == ("x/y", "dev")


def test_consume_ends_when_nothing_comes(gateway):
    assert gateway("consume", "once", "--wait", "100ms", "--verdict", "returned", "--count", "5", status=0)
    assert "nope" in gateway("consume", "nope", status=1).stderr


def test_a_parked_group_is_listed_and_released(gateway):
    gateway("publish", "parked/7", "bad")
    gateway("consume", "parked", "--count", "2", "--verdict", "retry")
    (group,) = json.loads(gateway("groups", "list", "parked", "--parked", "--json").stdout)
    assert (group["group"], group["state"], group["attempts"]) == ("7", "parked", 2)
    assert "parked" in gateway("groups", "list", "parked").stdout
    assert gateway("groups", "release", "parked", "7").stdout == "released\n"
    assert gateway("groups", "release", "parked", "7", status=1).stdout == "group 7 of parked is not parked\n"
    assert bodies(gateway("consume", "parked", "--count", "1", "--json")) == ["bad"]


def test_tables(gateway):
    gateway("publish", "tables/1", "x")
    table = gateway("queues").stdout
    assert "waiting" in table
    assert "tables.dead" in table
    listed = {queue["name"]: queue for queue in json.loads(gateway("queues", "--json").stdout)}
    assert listed["tables"]["depth"] == 1
    assert listed["tables"]["dead_letter"] == "tables.dead"
    assert gateway("queues", "purge", "tables", "--yes").stdout == "1 messages removed\n"
    assert "the configuration" in gateway("queues", "delete", "tables", "--yes", status=1).stderr
    assert gateway("dead-letters", "list", "--queue", "tables.dead").stdout.strip() == "no dead letters"
    assert gateway("groups", "list", "tables").stdout.strip() == "no groups"


def test_bindings_of_routes_and_of_clients(gateway, daemon):
    host, port = daemon.address("amqp")
    login = pika.PlainCredentials("alice", "secret")
    with pika.BlockingConnection(pika.ConnectionParameters(host, port, credentials=login)) as connection:
        channel = connection.channel()
        channel.exchange_declare("plant", "topic")
        channel.exchange_declare("zones", "headers")
        channel.queue_declare("line-1", auto_delete=True)
        channel.queue_bind("line-1", "plant", "line.1.*")
        channel.queue_bind("line-1", "zones", "", {"x-match": "any", "zone": "north"})
        channel.exchange_bind("zones", "plant", "line.#")
        found = json.loads(gateway("bindings", "--json").stdout)
        rows = {(one["exchange"], one["filter"], one["queue"] or one["to_exchange"]): one for one in found}
        assert rows["amq.topic", "orders/#", "orders"]["owner"] == "config"
        assert rows["plant", "line/1/+", "line-1"]["owner"] == "amqp"
        assert rows["zones", "#", "line-1"]["condition"] == "with any of the headers zone=north"
        assert rows["plant", "line/#", "zones"]["to_exchange"] == "zones"
        table = gateway("bindings", "--queue", "line-1").stdout
        assert "line/1/+" in table
        assert "orders" not in table
    assert "no queue 'nothing'" in gateway("bindings", "--queue", "nothing", status=1).stderr


def test_what_clients_send_cannot_steer_the_terminal(gateway):
    evil = "\x1b[2Jgone\x07\r\n[bold]"
    gateway("publish", "esc/1", evil)
    out = gateway("consume", "esc", "--count", "1", "--verdict", "dead").stdout
    assert "\x1b" not in out
    assert "\\x1b[2Jgone" in out
    for words in (["dead-letters", "list"], ["dead-letters", "show", "0"]):
        if words[1] == "show":
            (dead,) = json.loads(gateway("dead-letters", "list", "--queue", "esc.dead", "--json").stdout)
            words[2] = str(dead["id"])
        shown = gateway(*words, "--queue", "esc.dead").stdout
        assert "\x1b" not in shown
        assert "[bold]" in shown


def test_who_asks_must_be_known(gateway):
    denied = gateway("queues", status=1, GATEWAY_PASSWORD="wrong").stderr
    assert "name and password are needed; give --user and --password, or GATEWAY_USER" in denied
    assert gateway("queues", "--user", "alice", "--password", "secret", GATEWAY_PASSWORD="wrong").stdout


def test_something_else_at_that_address_is_told(gateway):
    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Other) as other:
        thread = threading.Thread(target=other.serve_forever)
        thread.start()
        said = gateway("queues", "--admin", f"http://127.0.0.1:{other.server_port}", status=3).stderr
        other.shutdown()
        thread.join()
    assert "is no gateway (HTTP 404)" in said
    assert "no daemon answers at http://[bad" in gateway("queues", "--admin", "http://[bad", status=3).stderr
