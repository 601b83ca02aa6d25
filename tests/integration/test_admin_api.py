"""The admin API of a running daemon: what it answers, to whom, and within which limits."""

from __future__ import annotations

import base64
import json
import socket
import time
from collections.abc import Callable, Iterator

import httpx
import pytest
from jsonschema import Draft202012Validator
from prometheus_client.parser import text_string_to_metric_families

from gateway.auth.users import hash_password
from tests.harness.daemon import Daemon

CONFIG = {
    "admin": {"listen": "127.0.0.1:0"},
    "transports": {},
    "queues": {
        name: {"group": "{topic[1]}", "max_deliveries": 2, "on_exhausted": park, "dead_letter": f"{name}.dead"}
        for name, park in (("look", "skip"), ("park", "park"), ("redrive", "skip"), ("feed", "skip"))
    }
    | {f"{name}.dead": {} for name in ("look", "park", "redrive", "feed")}
    | {
        "once": {"dedup": {"key": "sha256"}},
        "small": {"max_messages": 1},
        "big": {},
        "gone": {},
    },
    "routes": [
        {"from": f"{name}/#", "to": name}
        for name in ("look", "park", "redrive", "feed", "once", "small", "big", "gone")
    ],
}
API = "/api/v1/"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory) -> Iterator[Daemon]:
    made = Daemon(tmp_path_factory.mktemp("admin"), CONFIG)
    yield made.start()
    made.close()


@pytest.fixture
def http(daemon) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=daemon.url("admin"), trust_env=False) as client:
        yield client


def post(http: httpx.Client, path: str, **body) -> httpx.Response:
    return http.post(API + path, json=body)


def publish(http: httpx.Client, topic: str, text: str) -> str:
    return post(http, "publish", topic=topic, body={"text": text}).json()["outcome"]


def queue(http: httpx.Client, name: str) -> dict:
    return next(q for q in http.get(API + "queues").json()["queues"] if q["name"] == name)


def until(claim: Callable[[], bool]) -> None:
    """Asks again until it is true; what ends a stream is not told to others."""
    end = time.monotonic() + 10
    while not claim():
        assert time.monotonic() < end
        time.sleep(0.01)


def bury(http: httpx.Client, name: str, *topics: str) -> None:
    """Publishes to these topics of queue `name` and makes each a dead letter."""
    for topic in topics:
        assert publish(http, f"{name}/{topic}", topic) == "stored"
    with Feed(http, name, credit=len(topics)) as feed:
        for _ in topics:
            delivery = feed.next()["delivery"]
            feed.settle([delivery["id"]], "dead", error="no good")


class Feed:
    """One stream of deliveries."""

    def __init__(self, http: httpx.Client, name: str, **asked) -> None:
        self.http = http
        self.stream = http.stream("POST", API + "consume", json={"queue": name, **asked}, timeout=10)

    def __enter__(self) -> Feed:
        answer = self.stream.__enter__()
        assert answer.status_code == 200
        self.lines = answer.iter_lines()
        self.consumer = self.next()["consumer"]
        return self

    def __exit__(self, *error) -> None:
        self.stream.__exit__(*error)

    def next(self) -> dict:
        return json.loads(next(self.lines))

    def settle(self, ids: list[int], verdict: str, error: str = "") -> httpx.Response:
        return post(self.http, "settle", consumer=self.consumer, ids=ids, verdict=verdict, error=error)


def test_health(http):
    assert http.get("/healthz").json() == {"status": "ok"}
    ready = http.get("/readyz")
    assert (ready.status_code, ready.json()) == (200, {"ready": True, "reasons": [], "impaired": {}})


def test_publish_says_what_became_of_it(http):
    for body, status, outcome in (("a", 201, "stored"), ("a", 200, "duplicate"), ("b", 201, "stored")):
        answer = post(http, "publish", topic="once/x", body={"text": body})
        assert (answer.status_code, answer.json()) == (status, {"outcome": outcome})
    assert post(http, "publish", topic="nowhere").status_code == 404
    assert post(http, "publish", topic="small/x").status_code == 201
    refused = post(http, "publish", topic="small/x")
    assert (refused.status_code, refused.json()) == (429, {"outcome": "refused"})
    assert queue(http, "small")["refused"] == 1


def test_a_message_is_shown_as_it_was_published(http):
    octets = bytes(range(256))
    message = {
        "topic": "big/a/b",
        "body": {"text": base64.b64encode(octets).decode(), "encoding": "base64"},
        "headers": [["a", "1"], ["b", 2], ["a", "3"]],
        "content_type": "text/x",
        "correlation_id": {"text": "c-1", "encoding": "utf-8"},
        "reply_to": "answers/1",
        "priority": 7,
        "ttl": 3600.0,
        "client_id": "device-1",
        "retain": True,
    }
    assert post(http, "publish", **message).status_code == 201
    (shown,) = http.get(API + "messages", params={"queue": "big"}).json()["messages"]
    assert {name: shown["message"].get(name) for name in message} == message
    assert shown["size"] == 256
    assert http.get(API + "message", params={"queue": "big", "id": shown["id"]}).json() == shown
    (cut,) = http.get(API + "messages", params={"queue": "big", "max_body": 3}).json()["messages"]
    assert cut["cut"]
    assert cut["message"]["body"] == {"text": "\0\1\2", "encoding": "utf-8"}


def test_looking_pages_and_changes_nothing(http):
    for n in range(5):
        publish(http, f"look/{n}", str(n))
    after, seen = 0, []
    while after is not None:
        page = http.get(API + "messages", params={"queue": "look", "limit": 2, "after": after}).json()
        seen += [stored["message"]["body"]["text"] for stored in page["messages"]]
        assert len(page["messages"]) <= 2
        after = page["next"]
    assert seen == ["0", "1", "2", "3", "4"]
    assert queue(http, "look")["depth"] == 5
    assert queue(http, "look")["delivered"] == 0
    groups = http.get(API + "groups", params={"queue": "look"}).json()["groups"]
    assert {(group["group"], group["state"], group["depth"]) for group in groups} == {
        (str(n), "ready", 1) for n in range(5)
    }


def test_a_feed_delivers_by_credit_and_settles(http):
    before = queue(http, "feed")["settled"]
    for n in range(3):
        publish(http, "feed/same", str(n))
    with Feed(http, "feed", credit=2) as feed:
        seen = []
        for _ in range(3):
            delivery = feed.next()["delivery"]
            seen.append(delivery["message"]["body"]["text"])
            assert queue(http, "feed")["in_flight"] == 1
            assert feed.settle([delivery["id"], 999_999], "done").json() == {"messages": 1}
        assert seen == ["0", "1", "2"]
        assert feed.settle([delivery["id"]], "done").json() == {"messages": 0}
    assert queue(http, "feed")["settled"] == before + 3


def test_retry_comes_again_and_a_lost_stream_gives_back(http):
    publish(http, "feed/lost", "x")
    with Feed(http, "feed") as feed:
        first = feed.next()["delivery"]
        feed.settle([first["id"]], "returned")
        again = feed.next()["delivery"]
        assert (again["attempts"], again["redelivered"]) == (0, True)
        assert again["id"] != first["id"]
    with Feed(http, "feed") as feed:
        # The stream before ended with it unsettled, as a connection that breaks does.
        last = feed.next()["delivery"]
        assert last["attempts"] == 1
        feed.settle([last["id"]], "done")


def test_settle_done_by_itself(http):
    publish(http, "feed/auto", "x")
    with Feed(http, "feed", settle="done") as feed:
        assert feed.next()["delivery"]["message"]["body"]["text"] == "x"
        publish(http, "feed/auto", "y")
        assert feed.next()["delivery"]["message"]["body"]["text"] == "y"
    until(lambda: queue(http, "feed")["consumers"] == 0)
    assert post(http, "settle", consumer=feed.consumer, ids=[1]).status_code == 404


def test_a_parked_group_is_seen_and_released(http):
    publish(http, "park/7", "bad")
    publish(http, "park/7", "good")
    with Feed(http, "park") as feed:
        for _ in range(2):
            feed.settle([feed.next()["delivery"]["id"]], "retry", error="broken")
        # This one's group is free, so the retries are over when it comes.
        publish(http, "park/8", "other")
        assert feed.next()["delivery"]["message"]["body"]["text"] == "other"
        (parked,) = http.get(API + "groups", params={"queue": "park", "parked": "true"}).json()["groups"]
        assert (parked["group"], parked["state"], parked["error"]) == ("7", "parked", "broken")
        assert post(http, "groups/release", queue="park", group="7", dead=True).json() == {"released": True}
        assert post(http, "groups/release", queue="park", group="7").json() == {"released": False}
    (dead,) = http.get(API + "messages", params={"queue": "park.dead"}).json()["messages"]
    assert dead["message"]["body"]["text"] == "bad"


def test_dead_letters_are_chosen_counted_and_redriven(http):
    bury(http, "redrive", "1", "2", "3")
    dead = http.get(API + "messages", params={"queue": "redrive.dead", "topic": "redrive/2"}).json()["messages"]
    assert [(d["deaths"][0]["queue"], d["deaths"][0]["reason"], d["deaths"][0]["error"]) for d in dead] == [
        ("redrive", "rejected", "no good")
    ]

    def redrive(**asked) -> list[dict]:
        answer = post(http, "redrive", queue="redrive.dead", **asked)
        assert answer.status_code == 200
        return [json.loads(line) for line in answer.text.splitlines()]

    assert redrive(dry_run=True) == [{"total": 3, "moved": 0, "skipped": 0, "error": ""}]
    assert queue(http, "redrive.dead")["depth"] == 3
    assert redrive(selection={"topic": "redrive/2"})[-1] == {"total": 1, "moved": 1, "skipped": 0, "error": ""}
    assert redrive(selection={"reason": "expired"})[-1]["total"] == 0
    assert redrive(rate=1000)[-1]["moved"] == 2
    with Feed(http, "redrive", settle="done", credit=3) as feed:
        assert [feed.next()["delivery"]["message"]["body"]["text"] for _ in range(3)] == ["2", "1", "3"]


def test_explain(http):
    (step,) = post(http, "explain", topic="look/7/x").json()["steps"]
    assert (step["queue"], step["group"]) == ("look", "7")
    assert post(http, "explain", topic="nowhere").json() == {"steps": []}


def test_purge_and_delete(http):
    publish(http, "gone/1", "x")
    assert post(http, "purge", queue="gone").json() == {"messages": 1}
    assert queue(http, "gone")["depth"] == 0
    denied = post(http, "delete", queue="gone")
    assert denied.status_code == 409
    assert "gone" in denied.json()["error"]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "groups?queue=nope", None), ("GET", "messages?queue=nope", None),
        ("GET", "message?queue=nope&id=1", None),
        ("GET", "message?queue=look&id=987654", None), ("POST", "purge", {"queue": "nope"}),
        ("POST", "delete", {"queue": "nope"}), ("POST", "consume", {"queue": "nope"}),
        ("POST", "redrive", {"queue": "nope"}), ("POST", "redrive", {"queue": "look.dead", "to": "nope"}),
        ("POST", "groups/release", {"queue": "nope", "group": "x"}), ("GET", "nope", None),
    ],
)  # fmt: skip
def test_what_is_not_there_is_404_with_a_reason(http, method, path, body):
    answer = http.request(method, API + path, json=body)
    assert answer.status_code == 404
    assert answer.json()["error"]


@pytest.mark.parametrize(
    ("method", "path", "content", "said"),
    [
        ("POST", "publish", b"{", "Input data was truncated"),
        ("POST", "publish", b"[]", "Expected `object`"),
        ("POST", "publish", b'{"body": {"text": "x"}}', "`topic`"),
        ("POST", "publish", b'{"topic": "a/#"}', "topic: has a wildcard"),
        ("POST", "publish", b'{"topic": ""}', "topic: is empty"),
        ("POST", "publish", b'{"topic": "a", "qos": 3}', "`int` <= 2"),
        ("POST", "publish", b'{"topic": "a", "tpic": 3}', "tpic"),
        ("POST", "publish", b'{"topic": "a", "body": {"text": "%", "encoding": "base64"}}', "body: is no base64"),
        ("POST", "publish", b"\xff", "malformed"),
        ("POST", "publish", b'{"topic": "a", "headers": ' + b"[" * 100_000, ""),
        ("POST", "consume", b'{"queue": "look", "credit": 0}', "`int` >= 1"),
        ("POST", "settle", b'{"consumer": "x", "ids": [], "verdict": "maybe"}', "maybe"),
        ("POST", "redrive", b'{"queue": "look.dead", "rate": 0}', "rate"),
        ("POST", "redrive", b'{"queue": "look.dead", "selection": {"topic": "a#"}}', "wildcard beside"),
        ("GET", "messages?queue=look&limit=0", None, "`int` >= 1"),
        ("GET", "messages?queue=look&limit=x", None, "limit"),
        ("GET", "messages?queue=look&topic=a%23", None, "wildcard beside"),
        ("GET", "groups", None, "`queue`"),
        ("GET", "groups?queue=look&prked=1", None, "prked"),
    ],
)
def test_what_makes_no_sense_is_400_with_a_reason(http, method, path, content, said):
    answer = http.request(method, API + path, content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert said in answer.json()["error"]


def test_a_page_of_another_site_can_do_nothing(http):
    form = http.post(API + "purge", content=b'{"queue": "look"}', headers={"content-type": "text/plain"})
    assert form.status_code == 415
    rebound = http.get(API + "queues", headers={"host": "evil.example"})
    assert rebound.status_code == 403
    assert http.get("/healthz", headers={"host": "probe.example"}).status_code == 200


def test_a_body_has_a_limit(http):
    assert post(http, "publish", topic="big/x", body={"text": "x" * (17 << 20)}).status_code == 413

    def endless():
        for _ in range(40):
            yield b"x" * (1 << 20)

    try:
        status = http.post(API + "publish", content=endless(), headers={"content-type": "application/json"}).status_code
    except httpx.WriteError:
        status = 413  # it was cut off while it still sent
    assert status == 413


def test_garbage_ends_its_connection_alone(daemon, http):
    for garbage in (b"\x00" * 100, b"GET / HTTP/9.9\r\n\r\n", b"GET /" + b"a" * 100_000, b"\x10\x0c\x00\x04MQTT"):
        with socket.create_connection(daemon.address("admin"), timeout=10) as connection:
            connection.sendall(garbage)
            connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(1000)
            assert answer == b"" or answer.startswith(b"HTTP/1.1 4")
    assert http.get("/healthz").status_code == 200


def test_metrics_are_read_by_prometheus(http):
    answer = http.get("/metrics")
    names = {family.name for family in text_string_to_metric_families(answer.text)}
    assert {"gateway_queue_messages", "gateway_commit_seconds", "gateway_transport_connections"} <= names


def test_openapi_describes_what_is_there(http):
    described = http.get("/openapi.json").json()
    assert described["openapi"] == "3.1.0"
    for path, methods in described["paths"].items():
        for method in methods:
            known = http.request(method.upper(), path, headers={"content-type": "application/json"})
            assert known.status_code != 405, path
            assert "nothing at this path" not in known.text, path
    schemas = described["components"]["schemas"]
    answer = {
        "$ref": "#/$defs/Queues",
        "$defs": json.loads(json.dumps(schemas).replace("#/components/schemas", "#/$defs")),
    }
    Draft202012Validator.check_schema(answer)
    Draft202012Validator(answer).validate(http.get(API + "queues").json())


def test_users(make_daemon):
    users = {"alice": {"password_hash": hash_password("secret")}}
    daemon = make_daemon({"transports": {}, "users": users, "queues": {"q": {}}}).start()
    with httpx.Client(base_url=daemon.url("admin"), trust_env=False) as http:
        for path in ("/healthz", "/readyz"):
            assert http.get(path).status_code == 200
        for path in ("/metrics", "/openapi.json", API + "queues"):
            refused = http.get(path)
            assert refused.status_code == 401
            assert refused.headers["www-authenticate"].startswith("Basic")
            assert http.get(path, auth=("alice", "secret")).status_code == 200
        for header in ("Basic", "Basic !", "Basic " + base64.b64encode(b"alice").decode(), "Bearer x", "Basic /w=="):
            assert http.get(API + "queues", headers={"authorization": header}).status_code == 401
        assert http.get(API + "queues", auth=("alice", "wrong")).status_code == 401
        metrics = http.get("/metrics", auth=("alice", "secret")).text
        assert 'gateway_transport_refusals_total{reason="bad-credentials",transport="admin"} 9.0' in metrics
    daemon.stop()
    assert "secret" not in daemon.text()


def test_a_stop_ends_feeds_and_gives_back(make_daemon):
    daemon = make_daemon({"transports": {}, "queues": {"q": {}}}).start()
    with httpx.Client(base_url=daemon.url("admin"), trust_env=False) as http:
        assert post(http, "publish", topic="$queue/q", body={"text": "x"}).status_code == 201
        with Feed(http, "q") as feed:
            feed.next()
            daemon.process.terminate(10)
            assert feed.next() == {"ended": "the daemon stops"}
    daemon.start()
    with httpx.Client(base_url=daemon.url("admin"), trust_env=False) as http, Feed(http, "q") as feed:
        assert feed.next()["delivery"]["attempts"] == 0
