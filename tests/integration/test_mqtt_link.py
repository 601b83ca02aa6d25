"""A link to a real Mosquitto: what it promises while the remote is killed, stopped, paused, out of reach or unfriendly.

In each of the long tests messages flow both ways: a feeder publishes at the remote and a worker consumes our queue, and
a device publishes to us and an observer subscribes at the remote.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import paho.mqtt.client as paho
import pytest
import trustme
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from tests.faults.abuse import metric
from tests.harness.daemon import LISTENERS, Daemon
from tests.harness.mosquitto import Mosquitto
from tests.harness.process import Address, quiet_port
from tests.harness.relay import Relay

SECONDS = 30.0
GROUPS = 3
UNLIMITED = "max_inflight_messages 0\nmax_queued_messages 0"
Start = Callable[..., Daemon]
Broker = Callable[..., Mosquitto]


class Peer:
    """A paho client that comes back by itself, and remembers what it got."""

    def __init__(self, address: Address, client_id: str, *filters: str, version: int = paho.MQTTv311) -> None:
        clean = {"clean_session": False} if version == paho.MQTTv311 else {}
        self.client = paho.Client(paho.CallbackAPIVersion.VERSION2, client_id, protocol=version, **clean)
        self.client.reconnect_delay_set(1, 1)
        self.messages: list[paho.MQTTMessage] = []
        self.changed = threading.Condition()
        self._subscribed = threading.Event()
        self._filters = filters
        self.client.on_connect = self._on_connect
        self.client.on_subscribe = lambda *_: self._subscribed.set()
        self.client.on_message = self._on_message
        self.client.connect(*address, keepalive=60)
        self.client.loop_start()
        assert self._subscribed.wait(SECONDS)

    def _on_connect(self, *_: Any) -> None:
        if self._filters:
            self.client.subscribe([(filter, 1) for filter in self._filters])
        else:
            self._subscribed.set()

    def _on_message(self, client: Any, data: Any, message: paho.MQTTMessage) -> None:
        with self.changed:
            self.messages.append(message)
            self.changed.notify_all()

    def publish(self, topic: str, body: bytes, qos: int = 1, **options: Any) -> None:
        """Returns when it is answered, over as many connections as that takes."""
        self.client.publish(topic, body, qos, **options).wait_for_publish(SECONDS)

    def wait_until(self, enough: Callable[[list[bytes]], bool], seconds: float = SECONDS) -> list[bytes]:
        """The bodies, as soon as they are enough."""
        with self.changed:
            assert self.changed.wait_for(lambda: enough(self.bodies), seconds), (
                f"{len(self.bodies)} came: {self.bodies}"
            )
            return self.bodies

    def take(self, *bodies: bytes) -> list[paho.MQTTMessage]:
        """The messages, which must be these."""
        assert self.wait_until(lambda found: len(found) >= len(bodies)) == list(bodies)
        return self.messages

    @property
    def bodies(self) -> list[bytes]:
        return [message.payload for message in self.messages]

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()
        # Without these the client is collected at once, and closes its sockets.
        self.client.on_connect = self.client.on_subscribe = self.client.on_message = None


@pytest.fixture
def peer() -> Iterator[Callable[..., Peer]]:
    peers: list[Peer] = []

    def connect(*arguments: Any, **options: Any) -> Peer:
        peers.append(Peer(*arguments, **options))
        return peers[-1]

    yield connect
    for one in peers:
        one.close()


def config(url: str, **link: Any) -> dict[str, Any]:
    """`up/#` of the remote comes into the queue `in`, `down/X` of ours goes to `site/X` there."""
    plant = {
        "type": "mqtt-client",
        "url": url,
        "subscribe": ["up/#"],
        "reconnect": "50ms..200ms",
        "keep_alive": "10s",
        "connect_timeout": "2s",
        **link,
    }
    plant = {key: value for key, value in plant.items() if value is not None}
    return {
        "transports": {**LISTENERS, "plant": plant},
        "queues": {"in": {"group": "{topic}"}, "lost": {}},
        "routes": [
            {"from": "up/#", "source": "plant", "to": "in"},
            {"from": "down/#", "to": "plant:site/{topic[1]}"},
        ],
    }


def is_up(daemon: Daemon, after: int = 0) -> None:
    daemon.wait_for("link is up", after=after)


def readiness(daemon: Daemon) -> tuple[int, dict[str, Any]]:
    try:
        with urllib.request.urlopen(f"{daemon.url('admin')}/readyz", timeout=10) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def wait_for(true: Callable[[], bool], what: str) -> None:
    """For what can only be asked for, as a scrape does."""
    deadline = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def depth(daemon: Daemon, queue: str = "link.plant") -> float:
    return metric(daemon, "gateway_queue_messages", queue=queue)


def check_order(bodies: list[bytes], count: int) -> None:
    """All of them came, and those of one group for the first time in their order."""
    firsts = list(dict.fromkeys(bodies))
    assert sorted(map(int, firsts)) == list(range(count))
    for group in range(GROUPS):
        of_group = [number for number in map(int, firsts) if number % GROUPS == group]
        assert of_group == sorted(of_group)


# one message


@pytest.mark.parametrize("version", [5, "3.1.1"])
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_a_message_goes_out_and_one_comes_in(
    daemon: Start, mosquitto: Broker, peer: Callable[..., Peer], version: Any, qos: int
) -> None:
    broker = mosquitto()
    observer = peer(broker.address, "observer", "site/#")
    settings = {"version": version, "qos": qos, "subscribe": None if qos == 2 else ["up/#"]}
    gateway = daemon(config(broker.url, **settings))
    is_up(gateway)
    peer(gateway.address("mqtt"), "device").publish("down/7", b"out", retain=True)
    assert observer.take(b"out")[0].topic == "site/7"
    late = peer(broker.address, "late", "site/#")
    assert late.take(b"out")[0].retain
    if qos < 2:
        worker = peer(gateway.address("mqtt"), "worker", "$queue/in")
        observer.publish("up/3", b"in", qos)
        assert worker.take(b"in")[0].topic == "up/3"
        assert metric(gateway, "gateway_transport_messages_in", transport="plant") == 1
    wait_for(lambda: metric(gateway, "gateway_transport_messages_out", transport="plant") == 1, "the message counts")
    assert metric(gateway, "gateway_transport_connections", transport="plant") == 1
    wait_for(lambda: metric(gateway, "gateway_queue_settled", queue="link.plant") == 1, "it was settled")
    assert readiness(gateway) == (200, {"ready": True, "reasons": [], "impaired": {}})


def test_properties_go_over_the_link_and_hops_are_counted(
    daemon: Start, mosquitto: Broker, peer: Callable[..., Peer]
) -> None:
    broker = mosquitto()
    gateway = daemon(config(broker.url, max_hops=2))
    is_up(gateway)
    observer = peer(broker.address, "observer", "site/#", version=paho.MQTTv5)
    worker = peer(gateway.address("mqtt"), "worker", "$queue/in", version=paho.MQTTv5)
    device = peer(gateway.address("mqtt"), "device", version=paho.MQTTv5)
    said = Properties(PacketTypes.PUBLISH)
    said.ContentType = "text/plain"
    said.ResponseTopic = "answers/7"
    said.CorrelationData = b"\x00\x01"
    said.MessageExpiryInterval = 1000
    said.UserProperty = [("a", "1"), ("x-gateway-hops", "1"), ("a", "2")]
    device.publish("down/7", b"out", properties=said)
    found = observer.take(b"out")[0].properties
    assert (found.ContentType, found.ResponseTopic, found.CorrelationData) == ("text/plain", "answers/7", b"\x00\x01")
    assert 990 <= found.MessageExpiryInterval <= 1000
    assert found.UserProperty == [("a", "1"), ("a", "2"), ("x-gateway-hops", "2")]
    observer.publish("up/1", b"too far", properties=found)
    observer.publish("up/1", b"in", properties=said)
    came = worker.take(b"in")[0].properties
    assert came.UserProperty == [("a", "1"), ("x-gateway-hops", "1"), ("a", "2")]
    assert metric(gateway, "gateway_transport_dropped_messages", transport="plant", reason="max-hops") == 1


def test_nothing_comes_back(daemon: Start, mosquitto: Broker, peer: Callable[..., Peer]) -> None:
    """Both ends have all of `loop/#` from each other."""
    broker = mosquitto()
    settings = config(broker.url, subscribe=["loop/#"])
    settings["routes"] = [{"from": "loop/#", "to": ["in", "plant:{topic}"]}]
    gateway = daemon(settings)
    is_up(gateway)
    observer = peer(broker.address, "observer", "loop/#")
    worker = peer(gateway.address("mqtt"), "worker", "$queue/in")
    device = peer(gateway.address("mqtt"), "device")
    device.publish("loop/1", b"ours")
    observer.take(b"ours")
    observer.publish("loop/1", b"theirs")
    worker.take(b"ours", b"theirs")
    device.publish("loop/1", b"end")
    observer.take(b"ours", b"theirs", b"end")
    worker.take(b"ours", b"theirs", b"end")
    assert metric(gateway, "gateway_transport_messages_in", transport="plant") == 1


# what is not taken


def test_a_message_that_is_refused_here_waits_at_the_remote(
    daemon: Start, mosquitto: Broker, peer: Callable[..., Peer]
) -> None:
    broker = mosquitto(UNLIMITED)
    settings = config(broker.url)
    settings["queues"]["in"]["max_messages"] = 5
    gateway = daemon(settings)
    is_up(gateway)
    feeder = peer(broker.address, "feeder")
    for number in range(50):
        feeder.publish("up/1", b"%d" % number)
    wait_for(lambda: "is full" in readiness(gateway)[1]["impaired"].get("plant", ""), "/readyz tells it")
    assert depth(gateway, "in") == 5
    gateway.restart()  # killed: what it held was not acknowledged, and comes again
    worker = peer(gateway.address("mqtt"), "worker", "$queue/in")
    bodies = worker.wait_until(lambda found: len(set(found)) >= 50)
    assert list(dict.fromkeys(bodies)) == [b"%d" % number for number in range(50)]
    wait_for(lambda: readiness(gateway)[1]["impaired"] == {}, "/readyz tells that it is over")


def test_what_no_route_takes_is_kept_where_unroutable_says(
    daemon: Start, mosquitto: Broker, peer: Callable[..., Peer]
) -> None:
    broker = mosquitto()
    gateway = daemon(config(broker.url, subscribe=["#"], unroutable="lost"))
    is_up(gateway)
    worker = peer(gateway.address("mqtt"), "worker", "$queue/lost")
    peer(broker.address, "feeder").publish("nobody/wants", b"this")
    assert worker.take(b"this")[0].topic == "nobody/wants"


def test_what_the_remote_never_takes_is_a_dead_letter(
    daemon: Start, mosquitto: Broker, peer: Callable[..., Peer], tmp_path: Any
) -> None:
    acl = tmp_path / "acl"
    acl.write_text("topic readwrite up/#\ntopic write site/1\ntopic read site/#\n")
    broker = mosquitto(f"max_packet_size 2000\nacl_file {acl}")
    gateway = daemon(config(broker.url, qos=2, subscribe=None))
    is_up(gateway)
    observer = peer(broker.address, "observer", "site/#")
    device = peer(gateway.address("mqtt"), "device")
    device.publish("down/1", b"x" * 3000)
    device.publish("down/secret", b"not allowed")
    device.publish("down/1", b"small")
    observer.take(b"small")
    wait_for(lambda: depth(gateway, "dead-letters") == 2, "two dead letters")
    with urllib.request.urlopen(f"{gateway.url('admin')}/api/v1/messages?queue=dead-letters", timeout=10) as answer:
        deaths = [letter["deaths"][0] for letter in json.load(answer)["messages"]]
    assert sorted((death["reason"], death["error"].partition(":")[0]) for death in deaths) == [
        ("invalid", "it takes 3036 bytes, and the remote takes at most 2000"),
        ("rejected", "the remote refused it"),
    ]
    assert len([1 for record in gateway.log if record.get("event") == "link is up"]) == 1


def test_a_subscription_that_the_remote_refuses_is_told(daemon: Start) -> None:
    """The remote is a gateway, since Mosquitto refuses none."""
    remote = daemon({"transports": {"mqtt": {"type": "mqtt", "listen": "127.0.0.1:0", "max_subscriptions": 1}}})
    gateway = daemon(config(remote.url("mqtt"), subscribe=["up/#", "more/#"]))
    record = gateway.wait_for("link is down")
    assert record["reason"].startswith("the remote refused to subscribe more/#: ")
    assert "more/#" in readiness(gateway)[1]["impaired"]["plant"]
    assert metric(gateway, "gateway_transport_connections", transport="plant") == 0


def test_a_subscription_that_gets_less_than_it_asked_for_is_told(daemon: Start, mosquitto: Broker) -> None:
    gateway = daemon(config(mosquitto("max_qos 0").url))
    record = gateway.wait_for("a subscription got less than it asked for")
    assert (record["filter"], record["qos"], record["asked"]) == ("up/#", 0, 1)


@pytest.mark.parametrize("answer", [b"", b"\x20\x03\x00\x00\x00"])
def test_a_connection_that_ends_before_it_is_up_is_noticed_at_once(daemon: Start, answer: bytes) -> None:
    """In place of a CONNACK, and in place of a SUBACK."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(8)  # less than the link would wait for an answer
        url = f"mqtt://127.0.0.1:{server.getsockname()[1]}"
        gateway = daemon(config(url, connect_timeout="15s", reconnect="100ms"))
        for _ in range(3):
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(answer)
                if answer:
                    connection.recv(1000)
    gateway.wait_for("link is down")
    assert not [record for record in gateway.log if record.get("event") == "link is up"]


# the remote fails, while messages flow both ways


class Traffic:
    """`count` messages each way, one at a time, on threads of their own."""

    def __init__(self, gateway: Daemon, broker: Mosquitto, peer: Callable[..., Peer], count: int) -> None:
        self.count = count
        self.worker = peer(gateway.address("mqtt"), "worker", "$queue/in")
        self.observer = peer(broker.address, "observer", "site/#")
        self._threads = [
            threading.Thread(target=self._send, args=(peer(broker.address, "feeder"), "up"), daemon=True),
            threading.Thread(target=self._send, args=(peer(gateway.address("mqtt"), "device"), "down"), daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def _send(self, sender: Peer, prefix: str) -> None:
        for number in range(self.count):
            sender.publish(f"{prefix}/{number % GROUPS}", b"%d" % number)

    def under_way(self, count: int) -> None:
        for receiver in (self.worker, self.observer):
            receiver.wait_until(lambda bodies: len(bodies) >= count)

    def finish(self) -> None:
        """All of it arrives, in the order of each group."""
        for receiver in (self.worker, self.observer):
            check_order(receiver.wait_until(lambda bodies: len(set(bodies)) >= self.count), self.count)
        for thread in self._threads:
            thread.join(SECONDS)
            assert not thread.is_alive()


def test_the_remote_is_restarted(daemon: Start, mosquitto: Broker, peer: Callable[..., Peer]) -> None:
    broker = mosquitto(UNLIMITED)
    gateway = daemon(config(broker.url))
    is_up(gateway)
    traffic = Traffic(gateway, broker, peer, 600)
    traffic.under_way(100)
    broker.stop()
    gateway.wait_for("link is down")
    wait_for(lambda: metric(gateway, "gateway_transport_connections", transport="plant") == 0, "the link is down")
    status, told = readiness(gateway)
    assert (status, list(told["impaired"])) == (200, ["plant"])
    assert str(broker.address.port) not in told["impaired"]["plant"]
    wait_for(lambda: depth(gateway) > 50, "the outbox takes what the device sends")
    broker.start()
    traffic.finish()
    wait_for(lambda: depth(gateway) == 0, "the outbox drains")
    assert readiness(gateway)[1]["impaired"] == {}
    assert metric(gateway, "gateway_transport_connections_opened", transport="plant") >= 2


def test_the_remote_is_paused(daemon: Start, mosquitto: Broker, peer: Callable[..., Peer]) -> None:
    broker = mosquitto(UNLIMITED)
    gateway = daemon(config(broker.url, keep_alive="1s"))
    is_up(gateway)
    traffic = Traffic(gateway, broker, peer, 600)
    traffic.under_way(100)
    os.kill(broker.pid, signal.SIGSTOP)
    try:
        gateway.wait_for("link is down")
        assert list(readiness(gateway)[1]["impaired"]) == ["plant"]
    finally:
        os.kill(broker.pid, signal.SIGCONT)
    traffic.finish()
    assert readiness(gateway)[1]["impaired"] == {}


def test_its_port_is_closed_and_connections_are_cut(
    daemon: Start, mosquitto: Broker, peer: Callable[..., Peer]
) -> None:
    broker = mosquitto(UNLIMITED)
    relay = Relay(broker.address)
    gateway = daemon(config(f"mqtt://127.0.0.1:{relay.address.port}"))
    is_up(gateway)
    traffic = Traffic(gateway, broker, peer, 600)
    for came in (100, 200, 300):
        traffic.under_way(came)
        seen = len(gateway.log)
        relay.cut()
        is_up(gateway, after=seen)
    relay.close_port()
    gateway.wait_for("link is down", lambda record: "refused" in record["reason"].lower())
    assert metric(gateway, "gateway_transport_refusals", transport="plant", reason="link-unreachable") >= 1
    relay.open_port()
    traffic.finish()
    relay.close_port()


def test_the_remote_is_killed_and_forgets_everything(
    daemon: Start, mosquitto: Broker, peer: Callable[..., Peer]
) -> None:
    """Mosquitto keeps its messages in memory, so this one is at rest when it is killed; what comes meanwhile waits."""
    broker = mosquitto("persistence false\n" + UNLIMITED)
    gateway = daemon(config(broker.url, required=True))
    is_up(gateway)
    device = peer(gateway.address("mqtt"), "device")
    worker = peer(gateway.address("mqtt"), "worker", "$queue/in")
    seen = len(gateway.log)
    broker.kill()
    gateway.wait_for("link is down")
    for number in range(200):
        device.publish(f"down/{number % GROUPS}", b"%d" % number)
    assert depth(gateway) == 200
    status, told = readiness(gateway)
    assert (status, told["ready"], len(told["reasons"])) == (503, False, 1)
    broker.start()
    is_up(gateway, after=seen)
    # Its session is gone, and so is whoever was subscribed: only the link itself makes its subscription again.
    feeder = peer(broker.address, "feeder")
    feeder.publish("up/0", b"again")
    worker.take(b"again")
    wait_for(lambda: depth(gateway) == 0, "the outbox drains")
    assert readiness(gateway)[0] == 200


def test_the_outbox_survives_a_restart_of_both_and_drains_in_order(
    daemon: Start, mosquitto: Broker, peer: Callable[..., Peer]
) -> None:
    broker = mosquitto(UNLIMITED)
    observer = peer(broker.address, "observer", "site/#")
    gateway = daemon(config(broker.url))
    is_up(gateway)
    observer.close()  # its session stays
    broker.stop()
    gateway.wait_for("link is down")
    device = peer(gateway.address("mqtt"), "device")
    for number in range(200):
        device.publish(f"down/{number % GROUPS}", b"%d" % number)
    gateway.restart()
    assert depth(gateway) == 200
    broker.start()
    again = peer(broker.address, "observer", "site/#")
    check_order(again.wait_until(lambda bodies: len(set(bodies)) >= 200), 200)


def test_the_gateway_is_killed_while_messages_flow(daemon: Start, mosquitto: Broker, peer: Callable[..., Peer]) -> None:
    """Ports of the daemon change with a restart, so what is upstream alone goes on."""
    broker = mosquitto(UNLIMITED)
    gateway = daemon(config(broker.url))
    is_up(gateway)
    feeder = peer(broker.address, "feeder")
    for number in range(300):
        feeder.publish(f"up/{number % GROUPS}", b"%d" % number)
        if number in (100, 200):
            gateway.kill()
            gateway.start()
    worker = peer(gateway.address("mqtt"), "worker", "$queue/in")
    check_order(worker.wait_until(lambda bodies: len(set(bodies)) >= 300), 300)


def test_credentials_are_refused_and_then_not(
    daemon: Start, mosquitto: Broker, peer: Callable[..., Peer], tmp_path: Any
) -> None:
    passwords, secret = tmp_path / "passwords", tmp_path / "secret"
    secret.write_text("right\n")

    def allow(password: str) -> None:
        subprocess.run(["mosquitto_passwd", "-c", "-b", str(passwords), "link", password], check=True)
        passwords.chmod(0o600)

    allow("right")
    broker = mosquitto(f"password_file {passwords}\n{UNLIMITED}")
    gateway = daemon(config(broker.url, username="link", password_file=str(secret)))
    is_up(gateway)
    device = peer(gateway.address("mqtt"), "device")
    observer = peer(broker.address, "observer", "site/#")
    device.publish("down/0", b"0")
    observer.take(b"0")
    broker.stop()
    allow("wrong")
    broker.start()
    device.publish("down/0", b"1")
    gateway.wait_for("link is down", lambda record: "authori" in record["reason"].lower())
    assert metric(gateway, "gateway_transport_refusals", transport="plant", reason="link-refused") >= 1
    assert "right" not in gateway.text()
    broker.stop()
    allow("right")
    broker.start()
    observer.take(b"0", b"1")


# other ways there


@pytest.mark.parametrize("scheme", ["mqtts", "wss", "ws"])
def test_tls_with_a_client_certificate_and_websockets(
    daemon: Start, mosquitto: Broker, peer: Callable[..., Peer], tmp_path: Any, scheme: str
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    for name in ("server", "client"):
        found = authority.issue_cert("127.0.0.1" if name == "server" else "link.example")
        found.private_key_and_cert_chain_pem.write_to_path(tmp_path / f"{name}.pem")
    port = quiet_port()
    lines = [f"listener {port} 127.0.0.1"]
    if scheme != "mqtts":
        lines.append("protocol websockets")
    if scheme != "ws":
        pem = f"{tmp_path}/server.pem"
        lines += [f"cafile {tmp_path}/ca.pem", f"certfile {pem}", f"keyfile {pem}", "require_certificate true"]
    broker = mosquitto("\n".join(lines))
    tls = {"ca": f"{tmp_path}/ca.pem", "cert": f"{tmp_path}/client.pem", "alpn": ["mqtt"]}
    gateway = daemon(config(f"{scheme}://127.0.0.1:{port}", tls=tls if scheme != "ws" else None))
    is_up(gateway)
    observer = peer(broker.address, "observer", "site/#")
    worker = peer(gateway.address("mqtt"), "worker", "$queue/in")
    for number in range(50):
        observer.publish("up/0", b"%d" % number)
    peer(gateway.address("mqtt"), "device").publish("down/0", b"out" * 10_000)
    observer.take(b"out" * 10_000)
    worker.take(*[b"%d" % number for number in range(50)])


def test_filters_that_are_gone_from_the_configuration_are_gone_from_the_session(
    daemon: Start, mosquitto: Broker, peer: Callable[..., Peer]
) -> None:
    broker = mosquitto()
    gateway = daemon(config(broker.url, subscribe=["up/#", "old/#"]))
    is_up(gateway)
    gateway.stop()
    gateway.configure(config(broker.url))
    gateway.start()
    is_up(gateway)
    feeder = peer(broker.address, "feeder")
    feeder.publish("old/1", b"not wanted")
    feeder.publish("up/1", b"wanted")
    peer(gateway.address("mqtt"), "worker", "$queue/in").take(b"wanted")
    assert metric(gateway, "gateway_transport_messages_in", transport="plant") == 1
