"""What a remote allows and refuses, and whose fault it is that a link is down: proper remotes and such as are not."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import pytest

from tests.faults.abuse import metric
from tests.harness.link import (
    UNLIMITED,
    Broker,
    Peer,
    Start,
    config,
    deaths,
    depth,
    is_up,
    readiness,
    wait_for,
)
from tests.harness.scripted import Published, ScriptedRemote, disconnect, puback, publish

BUSY, QUOTA_EXCEEDED = 0x89, 0x97


def accepting(message: Published) -> bytes:
    return puback(message.packet_id)


def test_a_remote_that_disregards_our_receive_maximum_is_heard(
    daemon: Start, mosquitto: Broker, peer: Callable[..., Peer]
) -> None:
    """Mosquitto does if it has no limit of its own. All comes over one connection."""
    broker = mosquitto(UNLIMITED)
    gateway = daemon(config(broker.url, receive_maximum=5))
    is_up(gateway)
    gateway.stop()
    feeder = peer(broker.address, "feeder")
    for number in range(50):
        feeder.publish("up/1", b"%d" % number)
    gateway.start()
    worker = peer(gateway.address("mqtt"), "worker", "$queue/in")
    worker.take(*[b"%d" % number for number in range(50)])
    assert metric(gateway, "gateway_transport_connections_opened", transport="plant") == 1


def test_no_more_is_in_flight_than_the_remote_takes(
    daemon: Start, scripted: Callable[..., ScriptedRemote], peer: Callable[..., Peer]
) -> None:
    """Receive Maximum 3. What is in flight, and all that waits, is known as soon as the device has its answers."""
    holds = False
    remote = scripted(
        lambda message: b"" if holds else puback(message.packet_id), connack=b"\x20\x06\x00\x00\x03\x21\x00\x03"
    )
    gateway = daemon(config(remote.url, outbox={"group": None}))
    is_up(gateway)
    device = peer(gateway.address("mqtt"), "device")
    for number in range(10):
        device.publish("down/1", b"%d" % number)
    wait_for(lambda: depth(gateway) == 0, "ten are acknowledged")
    holds = True
    for number in range(10, 20):
        device.publish("down/1", b"%d" % number)
    remote.wait_until(lambda: len(remote.published) == 13)
    assert metric(gateway, "gateway_queue_in_flight_messages", queue="link.plant") == 3
    holds = False
    remote.send(b"".join(puback(one.packet_id) for one in remote.published[10:]))
    remote.wait_until(lambda: len(remote.published) == 20)
    assert [one.body for one in remote.published] == [b"%d" % number for number in range(20)]


def test_a_remote_that_takes_qos_0_and_retains_nothing_gets_neither(
    daemon: Start, scripted: Callable[..., ScriptedRemote], peer: Callable[..., Peer]
) -> None:
    remote = scripted(accepting, connack=b"\x20\x07\x00\x00\x04\x24\x00\x25\x00")
    gateway = daemon(config(remote.url, retain="always"))
    record = gateway.wait_for("the remote takes a lower QoS than is sent")
    assert (record["qos"], record["asked"]) == (0, 1)
    peer(gateway.address("mqtt"), "device").publish("down/1", b"1")
    remote.wait_until(lambda: len(remote.published) == 1)
    assert remote.published[0].packet_id == 0
    assert not remote.published[0].retain
    wait_for(lambda: metric(gateway, "gateway_queue_settled", queue="link.plant") == 1, "it was settled")


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


def test_what_cannot_be_taken_is_acknowledged_in_its_turn_and_dropped(
    daemon: Start, scripted: Callable[..., ScriptedRemote], peer: Callable[..., Peer]
) -> None:
    """No UTF-8, a wildcard, a user property with NUL, and a queue of ours. The remote would send it for ever."""
    came = [
        publish(b"up/\xff", b"x", 1),
        publish(b"up/+", b"x", 2),
        publish(b"up/1", b"x", 3, b"\x26\x00\x01\x00\x00\x01a"),
        publish(b"$queue/in", b"x", 4),
        publish(b"up/1", b"y", 5, "\x26\x00\x01a\x00\x03\ufeff".encode()),  # which is allowed [MQTT-1.5.4-3]
    ]
    remote = scripted(accepting, b"".join(came))
    gateway = daemon(config(remote.url))
    worker = peer(gateway.address("mqtt"), "worker", "$queue/in")  # 3.1.1: paho can't read it
    assert worker.take(b"y")[0].topic == "up/1"
    remote.wait_until(lambda: remote.acknowledged == [1, 2, 3, 4, 5])
    name = "gateway_transport_dropped_messages"
    assert metric(gateway, name, transport="plant", reason="malformed-packet") == 3
    assert metric(gateway, name, transport="plant", reason="topic-name-invalid") == 1


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
    assert sorted((death["reason"], death["error"].partition(":")[0]) for _, death in deaths(gateway)) == [
        ("invalid", "it takes 3036 bytes, and the remote takes at most 2000"),
        ("rejected", "the remote refused it"),
    ]
    assert len([1 for record in gateway.log if record.get("event") == "link is up"]) == 1


def test_a_message_over_which_the_remote_ends_the_connection_is_a_dead_letter_and_no_other(
    daemon: Start, scripted: Callable[..., ScriptedRemote], peer: Callable[..., Peer]
) -> None:
    def answer(message: Published) -> bytes | None:
        return None if message.body == b"13" else puback(message.packet_id)

    remote = scripted(answer)
    settings = config(remote.url, reconnect="10ms..20ms", outbox={"max_deliveries": 2, "group": None})
    settings["routes"][1]["to"] = ["plant:site/{topic[1]}", "in"]
    gateway = daemon(settings)
    is_up(gateway)
    device = peer(gateway.address("mqtt"), "device")
    for number in range(30):
        device.publish(f"down/{number}", b"%d" % number)
    remote.wait_until(lambda: len({one.body for one in remote.published}) == 30)
    wait_for(lambda: depth(gateway) == 0, "the outbox drains")
    assert [(death["reason"], topic) for topic, death in deaths(gateway)] == [("exhausted", "down/13")]


@pytest.mark.parametrize("answer", [disconnect(BUSY), "quota"])
def test_a_remote_that_takes_nothing_at_present_costs_no_attempts(
    daemon: Start, scripted: Callable[..., ScriptedRemote], peer: Callable[..., Peer], answer: Any
) -> None:
    """It ends the connection and says that it is busy, or refuses because of a quota."""
    refused: list[bytes] = []

    def hear(message: Published) -> bytes | None:
        if len(refused) == 5:
            return puback(message.packet_id)
        refused.append(message.body)
        return puback(message.packet_id, QUOTA_EXCEEDED) if answer == "quota" else answer

    remote = scripted(hear)
    gateway = daemon(config(remote.url, reconnect="10ms..20ms", outbox={"max_deliveries": 1}))
    is_up(gateway)
    device = peer(gateway.address("mqtt"), "device")
    device.publish("down/1", b"1")
    device.publish("down/1", b"2")
    remote.wait_until(lambda: len(remote.published) == 7)
    assert [one.body for one in remote.published] == [b"1"] * 6 + [b"2"]
    wait_for(lambda: depth(gateway) == 0, "the outbox drains")
    assert deaths(gateway) == []


def test_a_remote_that_is_silent_costs_no_attempts(
    daemon: Start, scripted: Callable[..., ScriptedRemote], peer: Callable[..., Peer]
) -> None:
    remote = scripted(lambda message: b"" if remote.connections < 3 else puback(message.packet_id))
    remote.hears_pings = False
    gateway = daemon(config(remote.url, keep_alive="1s", reconnect="10ms..20ms", outbox={"max_deliveries": 1}))
    is_up(gateway)
    peer(gateway.address("mqtt"), "device").publish("down/1", b"1")
    remote.wait_until(lambda: len(remote.published) == 3)
    wait_for(lambda: depth(gateway) == 0, "the outbox drains")
    assert deaths(gateway) == []
    assert gateway.wait_for("link is down")["reason"] == "the remote was silent for too long"
