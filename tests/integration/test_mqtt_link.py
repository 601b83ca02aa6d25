"""A link to a real Mosquitto: what comes and goes over it, who may, and what a configuration changes."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import Any

import paho.mqtt.client as paho
import pytest
import trustme
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from tests.faults.abuse import metric
from tests.harness.link import (
    UNLIMITED,
    Broker,
    Peer,
    Start,
    config,
    depth,
    is_up,
    readiness,
    wait_for,
)
from tests.harness.process import quiet_port

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


def test_a_link_that_a_reload_takes_away_or_adds_waits_for_a_restart_and_loses_nothing(
    daemon: Start, mosquitto: Broker, peer: Callable[..., Peer]
) -> None:
    broker = mosquitto()
    settings = config(broker.url)
    gateway = daemon(settings)
    is_up(gateway)
    other = {**settings["transports"], "other": {**settings["transports"]["plant"], "subscribe": []}}
    del other["plant"]
    routes = [{"from": "up/#", "to": "in"}, {"from": "down/#", "to": "other:site/{topic[1]}"}]
    gateway.configure({**settings, "transports": other, "routes": routes})
    gateway.hup()
    gateway.wait_for("reloaded")
    gateway.wait_for("link plant: goes on until a restart, with its outbox")
    gateway.wait_for("link other: starts with a restart; what is sent there waits in its outbox")
    feeder = peer(broker.address, "feeder", "site/#")
    feeder.publish("up/1", b"in")
    peer(gateway.address("mqtt"), "worker", "$queue/in").take(b"in")
    peer(gateway.address("mqtt"), "device").publish("down/1", b"out")
    assert depth(gateway, "link.other") == 1
    assert readiness(gateway)[1]["impaired"] == {}
    assert gateway.stop() == 0
    assert not [record for record in gateway.log if record.get("event") == "link is down"]
    gateway.start()
    feeder.take(b"out")


def test_links_of_one_shared_subscription_share_what_comes(
    daemon: Start, mosquitto: Broker, peer: Callable[..., Peer]
) -> None:
    broker = mosquitto()
    gateways = [daemon(config(broker.url, subscribe=["$share/team/up/#"])) for _ in range(2)]
    workers = []
    for gateway in gateways:
        is_up(gateway)
        workers.append(peer(gateway.address("mqtt"), "worker", "$queue/in"))
    feeder = peer(broker.address, "feeder")
    for number in range(20):
        feeder.publish("up/1", b"%d" % number)
    wait_for(lambda: sum(len(worker.bodies) for worker in workers) == 20, "all came")
    assert sorted(int(body) for worker in workers for body in worker.bodies) == list(range(20))
    assert all(worker.bodies for worker in workers)


def test_credentials_stand_in_the_url(daemon: Start, mosquitto: Broker, tmp_path: Any) -> None:
    passwords = tmp_path / "passwords"
    subprocess.run(["mosquitto_passwd", "-c", "-b", str(passwords), "link@site", "s:cret/"], check=True)
    broker = mosquitto(f"allow_anonymous false\npassword_file {passwords}")
    place = f"{broker.address.host}:{broker.address.port}"
    gateway = daemon(config(f"mqtt://link%40site:s%3Acret%2F@{place}"))
    is_up(gateway)
    assert "cret" not in gateway.text()


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
