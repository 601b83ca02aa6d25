"""The http and webhook plugins in a running daemon, and between two of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import Queue

import httpx
import pytest

from gateway.auth.users import hash_password

WEB = {"web": {"type": "http", "listen": "127.0.0.1:0", "max_body": 1000}}
CONFIG = {
    "transports": WEB,
    "queues": {"q": {"dedup": {"key": "{header[order-id]|none}", "window": "1h"}, "max_messages": 2}, "all": {}},
    "routes": [{"from": "shop/+/orders", "to": "q"}, {"from": "all/#", "to": "all"}],
}


class Receiver:
    """An HTTP server that answers as told and remembers what it got."""

    def __init__(self, answers: list[int]) -> None:
        self.got: Queue[tuple[dict[str, str], bytes]] = Queue()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                status = answers.pop(0) if answers else 204
                # Before the answer: after it the next request may come, in another thread.
                receiver.got.put(({name.lower(): value for name, value in self.headers.items()}, body))
                self.send_response(status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def next(self) -> tuple[dict[str, str], bytes]:
        return self.got.get(timeout=15)

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def receiver() -> Iterator[Callable[..., Receiver]]:
    made: list[Receiver] = []

    def make(*answers: int) -> Receiver:
        made.append(Receiver(list(answers)))
        return made[-1]

    yield make
    for one in made:
        one.close()


def post(daemon, topic: str, body: bytes = b"x", auth=None, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.post(f"{daemon.url('web')}/topics/{topic}", content=body, headers=named, auth=auth, trust_env=False)


def messages(daemon, queue: str) -> list[dict]:
    found = httpx.get(f"{daemon.url('admin')}/api/v1/messages", params={"queue": queue}, trust_env=False)
    return found.json()["messages"]


def test_status_is_the_outcome(daemon):
    running = daemon(CONFIG)
    for order, status, outcome in (("1", 201, "stored"), ("1", 200, "duplicate"), ("2", 201, "stored")):
        answer = post(running, "shop/7/orders", x_message_header_order_id=order)
        assert (answer.status_code, answer.json()["outcome"]) == (status, outcome)
    refused = post(running, "shop/7/orders", x_message_header_order_id="3")
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    unrouted = post(running, "nowhere")
    assert (unrouted.status_code, unrouted.json()["error"]) == (404, "no route leads from nowhere to a queue")
    retained = post(running, "nowhere", x_message_retain="1")
    assert (retained.status_code, retained.json()) == (201, {"outcome": "unrouted", "retained": True})
    assert post(running, "$queue/nowhere", x_message_retain="1").status_code == 404
    assert post(running, "$queue/all").status_code == 201
    assert len(messages(running, "q")) == 2


def test_what_a_request_says_is_kept(daemon):
    running = daemon(CONFIG)
    answer = post(
        running,
        "all//a%20b/%C3%A9",
        b"\x00\xff",
        content_type="image/png",
        content_encoding="identity",
        x_message_id="m-1",
        x_message_correlation_id="%FF%00c",
        x_message_reply_to="$queue/answers",
        x_message_type="photo",
        x_message_priority="9",
        x_message_timestamp="1700000000",
        x_message_ttl="60",
        x_message_client_id="cam-%E2%98%83",
        x_message_header_place="caf%C3%A9",
    )
    assert answer.status_code == 201
    (stored,) = messages(running, "all")
    assert stored["message"] == {
        "topic": "all//a b/é",
        "body": {"text": "AP8=", "encoding": "base64"},
        "headers": [["place", "café"]],
        "content_type": "image/png",
        "content_encoding": "identity",
        "message_id": "m-1",
        "correlation_id": {"text": "/wBj", "encoding": "base64"},
        "reply_to": "$queue/answers",
        "type": "photo",
        "priority": 9,
        "timestamp": 1700000000,
        "ttl": 60.0,
        "source": "web",
        "client_id": "cam-☃",
    }


def test_bad_requests_have_their_status_and_a_reason(daemon):
    running = daemon(CONFIG)
    for topic, headers, body, status, said in (
        ("a/%23", {}, b"", 400, "wildcard"),
        ("", {}, b"", 400, "empty"),
        ("$queue/", {}, b"", 400, "empty"),
        ("all", {"x-message-priority": "256"}, b"", 400, "x-message-priority: expected a whole number from 0 to 255"),
        ("all", {"x-message-priority": "-1"}, b"", 400, "x-message-priority"),
        ("all", {"x-message-ttl": "9" * 30}, b"", 400, "x-message-ttl"),
        ("all", {"x-message-idd": "x"}, b"", 400, "x-message-idd: is unknown"),
        ("all", {"x-message-id": "%FF"}, b"", 400, "x-message-id"),
        ("all", {}, b"x" * 1001, 413, "larger than 1000 bytes"),
    ):
        answer = httpx.post(f"{running.url('web')}/topics/{topic}", content=body, headers=headers, trust_env=False)
        assert (answer.status_code, said in answer.json()["error"]) == (status, True), answer.text
    assert httpx.get(f"{running.url('web')}/topics/all", trust_env=False).status_code == 405
    assert httpx.post(f"{running.url('web')}/topic", trust_env=False).status_code == 404
    assert messages(running, "all") == []


def test_users(daemon):
    running = daemon({**CONFIG, "admin": False, "users": {"alice": {"password_hash": hash_password("secret")}}})
    assert post(running, "all").status_code == 401
    assert post(running, "all", auth=("alice", "wrong")).status_code == 401
    assert post(running, "all", auth=("alice", "secret")).status_code == 201


def hook(url: str, **settings) -> dict:
    return {
        "transports": {**WEB, "hook": {"type": "webhook", "queue": "all", "url": url, **settings}},
        "queues": {"all": {"group": "{topic[1]|-}", "max_deliveries": 3, "dead_letter": "dead"}, "dead": {}},
        "routes": CONFIG["routes"][1:],
    }


def test_a_webhook_gets_the_message_with_what_it_says(daemon, receiver):
    target = receiver()
    running = daemon(hook(target.url, headers={"authorization": "Bearer t"}))
    post(
        running, "all/1", b"hello", content_type="text/plain", x_message_header_order_id="5", x_message_type="a%0D%0Ab"
    )
    headers, body = target.next()
    assert body == b"hello"
    assert headers["authorization"] == "Bearer t"
    assert headers["content-type"] == "text/plain"
    assert headers["x-message-topic"] == "all/1"
    assert headers["x-message-queue"] == "all"
    assert headers["x-message-attempts"] == "0"
    assert headers["x-message-header-order-id"] == "5"
    assert headers["x-message-type"] == "a%0D%0Ab"
    assert "Bearer" not in running.text()


@pytest.mark.parametrize("status", [408, 425, 429, 500, 503])
def test_try_again_is_in_order_and_blocks_its_group(daemon, receiver, status):
    target = receiver(status)
    running = daemon(hook(target.url, in_flight=1))
    post(running, "all/1", b"1")
    post(running, "all/1", b"2")
    got = [target.next() for _ in range(3)]
    assert [(body, headers["x-message-attempts"]) for headers, body in got] == [(b"1", "0"), (b"1", "1"), (b"2", "0")]


@pytest.mark.parametrize(
    ("status", "reason"), [(400, "rejected"), (410, "rejected"), (413, "invalid"), (422, "rejected"), (431, "invalid")]
)
def test_another_4xx_is_dead_with_its_reason(daemon, receiver, status, reason):
    target = receiver(status)
    running = daemon(hook(target.url))
    post(running, "all/1", b"1")
    post(running, "all/1", b"2")
    assert [target.next()[1] for _ in range(2)] == [b"1", b"2"]
    (dead,) = messages(running, "dead")
    assert dead["deaths"][0]["reason"] == reason
    assert dead["deaths"][0]["error"].startswith(f"HTTP {status} ")


def test_nobody_there_ends_in_the_dead_letters_after_all_attempts(daemon, receiver):
    target = receiver()
    target.close()
    running = daemon(hook(target.url))
    post(running, "all/1", b"1")
    running.wait_for("send failed", after=0)
    with httpx.Client(base_url=running.url("admin"), trust_env=False) as http:
        body = {"queue": "dead", "settle": "done"}
        with http.stream("POST", "/api/v1/consume", json=body, timeout=20) as stream:
            lines = stream.iter_lines()
            next(lines)
            assert '"1"' in next(lines)
    # `close` ran once here and may run again at the end.
    target.close = lambda: None  # type: ignore[method-assign]


def test_one_gateway_posts_to_another(daemon, make_daemon, receiver):
    second = make_daemon({**CONFIG, "queues": {"q": {}, "all": {}}}).start()
    first = daemon(hook(f"{second.url('web')}/topics/all/there"))
    sent = {"x_message_correlation_id": "%FFc", "x_message_header_a": "caf%C3%A9 %25", "x_message_id": "7"}
    assert post(first, "all/1", b"hello", **sent).status_code == 201
    with httpx.Client(base_url=second.url("admin"), trust_env=False) as http:
        with http.stream("POST", "/api/v1/consume", json={"queue": "all", "settle": "done"}, timeout=20) as stream:
            lines = stream.iter_lines()
            next(lines)
            line = next(lines)
    for said in ('"text":"hello"', '"/2M="', '["a","café %"]', '"message_id":"7"', '"topic":"all/there"'):
        assert said in line
