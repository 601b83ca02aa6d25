"""A link while its remote is killed, stopped, paused or out of reach, or the gateway itself is.

In most tests messages flow both ways, see `Traffic`.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

from tests.faults.abuse import metric
from tests.harness.link import (
    GROUPS,
    UNLIMITED,
    Broker,
    Peer,
    Start,
    Traffic,
    check_order,
    config,
    deaths,
    depth,
    is_up,
    readiness,
    wait_for,
)
from tests.harness.process import quiet_port
from tests.harness.relay import Relay


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


def test_the_remote_is_killed_while_messages_flow(daemon: Start, peer: Callable[..., Peer]) -> None:
    """It is a gateway, which loses nothing of what it answered for; Mosquitto would."""
    listener = {"type": "mqtt", "listen": f"127.0.0.1:{quiet_port()}"}
    remote = daemon({"transports": {"mqtt": listener}})
    gateway = daemon(config(remote.url("mqtt")))
    is_up(gateway)
    traffic = Traffic(gateway, remote, peer, 600)
    for came in (100, 250, 400):
        traffic.under_way(came)
        seen = len(gateway.log)
        remote.restart()
        is_up(gateway, after=seen)
    traffic.finish()
    wait_for(lambda: depth(gateway) == 0, "the outbox drains")
    assert deaths(gateway) == []
    opened = metric(gateway, "gateway_transport_connections_opened", transport="plant")
    assert opened == len([record for record in gateway.log if record.get("event") == "link is up"]) == 4
    assert metric(gateway, "gateway_transport_messages_out", transport="plant") == 600
    assert metric(gateway, "gateway_queue_settled", queue="link.plant") == 600


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


def test_the_gateway_stops_while_the_remote_is_paused(
    daemon: Start, mosquitto: Broker, peer: Callable[..., Peer]
) -> None:
    broker = mosquitto(UNLIMITED)
    gateway = daemon({**config(broker.url), "drain_timeout": "1s"})
    is_up(gateway)
    observer = peer(broker.address, "observer", "site/#")
    device = peer(gateway.address("mqtt"), "device")
    device.publish("down/0", b"0")
    observer.take(b"0")
    os.kill(broker.pid, signal.SIGSTOP)
    try:
        for number in range(1, 20):
            device.publish(f"down/{number % GROUPS}", b"%d" % number)
        assert gateway.stop() == 0
    finally:
        os.kill(broker.pid, signal.SIGCONT)
    gateway.start()
    check_order(observer.wait_until(lambda bodies: len(set(bodies)) >= 20), 20)
