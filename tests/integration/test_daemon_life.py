"""The daemon's life as an operator sees it: start, readiness, drain, reload, and every way not to start."""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import signal
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.harness.amqp import AmqpPeer
from tests.harness.daemon import Daemon
from tests.harness.mqtt import MqttPeer
from tests.integration.mqtt_raw import RawClient
from transports.mqtt.packets import Publish, Reason

MakeDaemon = Callable[..., Daemon]
CONFIG: dict[str, Any] = {
    "queues": {"orders": {"group": "{topic[1]}"}},
    "routes": [{"from": "shop/+/orders", "to": "orders"}],
}
SECONDS = 20.0


def get(daemon: Daemon, path: str) -> int:
    """The status of an admin request."""
    try:
        with urllib.request.urlopen(daemon.url("admin") + path, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


# start


def test_it_says_where_it_listens_and_then_that_it_is_ready(daemon: MakeDaemon) -> None:
    gateway = daemon(CONFIG)
    events = [record["event"] for record in gateway.log if "event" in record]
    assert events.count("listening") == 3 and events.index("ready") > max(
        i for i, event in enumerate(events) if event == "listening"
    )
    assert {gateway.url(name).split(":")[0] for name in ("mqtt", "amqp", "admin")} == {"mqtt", "amqp", "http"}
    assert get(gateway, "/healthz") == get(gateway, "/readyz") == 200
    assert all("time" in record and "level" in record for record in gateway.log), "JSON lines when it is no terminal"


def test_a_second_daemon_on_the_same_store_does_not_start(make_daemon: MakeDaemon) -> None:
    first, second = make_daemon(CONFIG).start(), make_daemon(CONFIG)
    second.configure({**CONFIG, "store": {"path": str(first.store)}})
    second.launch()
    assert second.exit_status() == 2
    assert str(first.store) in second.text()
    assert first.running and get(first, "/readyz") == 200


# not starting: exit status 2, a message that says where, nothing left


def refused(daemon: Daemon) -> str:
    """What it printed when it refused to start."""
    daemon.launch()
    assert daemon.exit_status() == 2
    assert "Traceback" not in daemon.text()
    assert "ready" not in [record.get("event") for record in daemon.log]
    return daemon.text()


@pytest.mark.parametrize(
    ("text", "complaints"),
    [
        ("queues:\n  orders: {grup: x}\n", ["gateway.yaml:2", "grup", "group"]),
        ("queues:\n  orders:\n    max_messages: many\n", ["gateway.yaml:3", "max_messages"]),
        ("queues: {orders: {}}\nroutes:\n  - {from: 'a/#', to: order}\n", ["gateway.yaml:3", "order", "orders"]),
        ("queues: [\n", ["gateway.yaml:", "YAML"]),
        ("transports:\n  m: {type: mqqt, listen: 127.0.0.1:0}\n", ["gateway.yaml:2", "mqqt", "mqtt"]),
        ("transports:\n  m: {type: mqtt, listen: 0.0.0.0:0}\n", ["gateway.yaml:2", "users", "allow_anonymous"]),
    ],
    ids=["unknown key", "wrong type", "dangling queue", "no YAML", "no such type", "no users"],
)
def test_a_wrong_configuration(make_daemon: MakeDaemon, text: str, complaints: list[str]) -> None:
    daemon = make_daemon(text)
    said = refused(daemon)
    assert all(complaint in said for complaint in complaints), said
    assert [path.name for path in daemon.folder.iterdir()] == ["gateway.yaml"], "no store was made"


def test_no_configuration_at_all(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon(CONFIG)
    daemon.config.unlink()
    assert str(daemon.config) in refused(daemon)


@pytest.mark.parametrize("transport", ["mqtt", "amqp", "admin"])
def test_a_port_in_use(make_daemon: MakeDaemon, transport: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        other = "mqtt" if transport == "amqp" else "amqp"
        transports = {other: {"type": other, "listen": "127.0.0.1:0"}}
        admin = {"listen": listen if transport == "admin" else "127.0.0.1:0"}
        if transport != "admin":
            transports[transport] = {"type": transport, "listen": listen}
        daemon = make_daemon({**CONFIG, "transports": transports, "admin": admin})
        said = refused(daemon)
    assert listen in said and transport in said


def test_a_store_that_cannot_be_made(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    store = tmp_path / "file" / "data"
    assert str(store) in refused(make_daemon({**CONFIG, "store": {"path": str(store)}}))


def test_nothing_listens_after_a_failed_start(make_daemon: MakeDaemon) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        transports = {
            "mqtt": {"type": "mqtt", "listen": "127.0.0.1:0"},
            "amqp": {"type": "amqp", "listen": f"127.0.0.1:{taken.getsockname()[1]}"},
        }
        daemon = make_daemon({**CONFIG, "transports": transports})
        refused(daemon)
    assert not psutil.pid_exists(daemon.pid) or psutil.Process(daemon.pid).status() == psutil.STATUS_ZOMBIE
    for record in daemon.log:
        if record.get("event") == "listening":
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(daemon.address(record["transport"]))


# stop


@pytest.mark.anyio
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_stop_answers_what_it_took_and_returns_what_is_in_flight(daemon: MakeDaemon, number: int) -> None:
    gateway = daemon(CONFIG)
    publisher = await MqttPeer.connect(gateway.address("mqtt"), "publisher")
    answered: set[int] = set()
    publisher.on_answer = answered.add
    consumer = await AmqpPeer.connect(gateway.address("amqp"))
    held = asyncio.Event()
    consumer.on_delivery = lambda delivered: held.set()
    publisher.publish("shop/1/orders", b"first", 0)
    await consumer.consume("orders", 1)
    async with asyncio.timeout(SECONDS):
        await held.wait()
    for i in range(1, 201):
        publisher.publish("shop/1/orders", b"%d" % i, i)
    # One round trip behind them: the daemon has them all when the signal comes.
    assert await publisher.subscribe("other") == 1
    gateway.process.signal(number)
    async with asyncio.timeout(SECONDS):
        await asyncio.gather(publisher.lost.wait(), consumer.lost.wait())
    assert answered == set(range(201)), "what was taken was committed and answered"
    assert await asyncio.to_thread(gateway.exit_status) == 0
    assert [record["event"] for record in gateway.log][-1] == "stopped"

    gateway.start()
    again = await AmqpPeer.connect(gateway.address("amqp"))
    assert await again.depth("orders") == 201
    await again.close()


def test_a_stop_without_clients_is_quick_and_a_restart_has_everything(daemon: MakeDaemon) -> None:
    gateway = daemon(CONFIG)
    assert gateway.stop(timeout=5) == 0
    gateway.restart()
    assert gateway.stop(timeout=5) == 0


# reload


async def publish(daemon: Daemon, topic: str) -> None:
    peer = await MqttPeer.connect(daemon.address("mqtt"), "once")
    answered = asyncio.Event()
    peer.on_answer = lambda token: answered.set()
    peer.publish(topic, b"x")
    async with asyncio.timeout(SECONDS):
        await answered.wait()
    await peer.close()


@pytest.mark.anyio
async def test_reload_changes_routes_and_drops_no_connection(daemon: MakeDaemon) -> None:
    gateway = daemon(CONFIG)
    kept = await AmqpPeer.connect(gateway.address("amqp"))
    gateway.configure(
        {
            "queues": {**CONFIG["queues"], "invoices": {}},
            "routes": [*CONFIG["routes"], {"from": "shop/+/invoices", "to": "invoices"}],
        }
    )
    gateway.hup()
    gateway.wait_for("reloaded")
    await publish(gateway, "shop/1/invoices")
    assert await kept.depth("invoices") == 1
    await kept.close()


@pytest.mark.anyio
async def test_reload_of_a_bad_file_is_refused_and_the_old_one_goes_on(daemon: MakeDaemon) -> None:
    gateway = daemon(CONFIG)
    kept = await AmqpPeer.connect(gateway.address("amqp"))
    gateway.configure("queues:\n  orders: {grup: x}\nroutes: []\n")
    gateway.hup()
    said = gateway.wait_for("reload refused, the old configuration stays")
    assert "gateway.yaml:2" in said["error"] and "grup" in said["error"]
    await publish(gateway, "shop/1/orders")
    assert await kept.depth("orders") == 1
    assert get(gateway, "/readyz") == 200
    await kept.close()


@pytest.mark.anyio
async def test_a_queue_taken_out_of_the_file_keeps_its_messages(daemon: MakeDaemon) -> None:
    gateway = daemon(CONFIG)
    await publish(gateway, "shop/1/orders")
    gateway.configure({"queues": {"other": {}}, "routes": []})
    gateway.hup()
    gateway.wait_for("reloaded")
    await publish(gateway, "shop/1/orders")
    peer = await AmqpPeer.connect(gateway.address("amqp"))
    assert await peer.depth("orders") == 1, "still there, and no longer bound"
    await peer.close()


# as an operator's machine would treat it


def test_the_store_is_relative_to_where_the_daemon_runs(make_daemon: MakeDaemon) -> None:
    gateway = make_daemon({**CONFIG, "store": {"path": "./here"}}).start()
    assert (gateway.folder / "here").is_dir()


@pytest.mark.anyio
async def test_no_secret_and_no_body_in_the_log(daemon: MakeDaemon) -> None:
    gateway = daemon({**CONFIG, "log": {"level": "debug"}})
    peer = await MqttPeer.connect(gateway.address("mqtt"), "once")
    peer.publish("shop/1/orders", b"a-body-of-mine")
    peer.publish("$queue/missing", b"a-body-of-mine")
    assert await peer.subscribe("other") == 1
    await peer.close()
    with socket.create_connection(gateway.address("amqp")) as wrong:
        wrong.sendall(b"GET /a-secret-of-mine HTTP/1.1\r\n\r\n")
        wrong.settimeout(SECONDS)
        while wrong.recv(1000):
            pass
    assert gateway.stop() == 0
    assert "-of-mine" not in gateway.text()


def test_a_store_where_nobody_may_write(make_daemon: MakeDaemon) -> None:
    # Not even root.
    assert "/proc/store" in refused(make_daemon({**CONFIG, "store": {"path": "/proc/store"}}))


def test_it_takes_more_clients_than_the_usual_limit_of_open_files(make_daemon: MakeDaemon) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    gateway = make_daemon(CONFIG)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
    try:
        gateway.launch()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    gateway.wait_for("ready")
    with contextlib.ExitStack() as clients:
        for _ in range(300):
            clients.enter_context(socket.create_connection(gateway.address("mqtt")))
        assert takes_clients(gateway)


def test_without_open_files_it_turns_away_who_comes_and_goes_on(daemon: MakeDaemon) -> None:
    gateway = daemon(CONFIG)
    resource.prlimit(gateway.pid, resource.RLIMIT_NOFILE, (60, 60))
    with contextlib.ExitStack() as clients:
        crowd = [clients.enter_context(socket.create_connection(gateway.address("mqtt"))) for _ in range(100)]
        crowd[-1].settimeout(5)
        with contextlib.suppress(ConnectionError):
            assert crowd[-1].recv(1) == b""
    deadline = time.monotonic() + 5
    while not takes_clients(gateway):  # as soon as it has closed those
        assert time.monotonic() < deadline
    assert gateway.stop() == 0


def takes_clients(gateway: Daemon) -> bool:
    with socket.create_connection(gateway.address("amqp"), timeout=5) as client, contextlib.suppress(ConnectionError):
        client.sendall(b"AMQP\x00\x00\x09\x01")
        return client.recv(1) == b"\x01"
    return False


def test_while_it_drains_it_is_healthy_and_not_ready_and_says_why(daemon: MakeDaemon) -> None:
    gateway = daemon({**CONFIG, "drain_timeout": "20s"})
    with RawClient(gateway.address("mqtt")) as worker:
        worker.connect("worker")
        assert worker.subscribe("$queue/orders") == (1,)
        worker.send(Publish("shop/1/orders", b"x", 1, packet_id=1))
        held = next(packet for packet in (worker.receive(), worker.receive()) if isinstance(packet, Publish))
        gateway.process.signal(15)
        gateway.wait_for("draining")
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{gateway.url('admin')}/readyz", timeout=5)
        with refused.value as answer:
            assert answer.code == 503
            assert json.load(answer)["reasons"] == ["draining"]
        assert get(gateway, "/healthz") == 200
        worker.ack(held)
        assert worker.receive().reason == Reason.SERVER_SHUTTING_DOWN
    assert gateway.exit_status(5) == 0
