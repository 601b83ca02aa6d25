"""A real Mosquitto that bridges to us, as it does to another Mosquitto: every version of its protocol, both ways."""

from __future__ import annotations

from collections.abc import Callable

import paho.mqtt.client as paho
import pytest

from tests.faults.abuse import metric
from tests.harness.daemon import Daemon
from tests.harness.link import Broker, Peer, Start, wait_for

VERSIONS = ["", "mqttv31", "mqttv311", "mqttv50"]
"""Of the bridge; "": it says nothing of it, and nothing else that it need not say."""


def bridge(daemon: Daemon, version: str, *topics: str) -> str:
    address = daemon.address("mqtt")
    lines = ["connection plant", f"address {address.host}:{address.port}", *(f"topic {topic}" for topic in topics)]
    if version:
        lines.append(f"bridge_protocol_version {version}")
    return "\n".join([*lines, "restart_timeout 1"])


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_messages_go_both_ways_once_and_say_whether_they_are_retained(
    daemon: Start, mosquitto: Broker, peer: Callable[..., Peer], version: str, qos: int
) -> None:
    gateway = daemon({"queues": {"orders": {}}, "routes": [{"from": "shop/#", "to": "orders"}]})
    state = peer(gateway.address("mqtt"), "state", "$SYS/broker/connection/#")
    broker = mosquitto(bridge(gateway, version, f"# both {qos}"))
    state.wait_until(lambda found: b"1" in found)
    here = peer(gateway.address("mqtt"), "here", "a/#")
    there = peer(broker.address, "there", "a/#")
    worker = peer(gateway.address("mqtt"), "worker", "$queue/orders")
    wait_for(lambda: metric(gateway, "gateway_queue_settled", queue="orders") == 0, "the daemon answers")

    there.publish("a/1", b"there", qos, retain=True)
    here.wait_until(lambda found: b"there" in found)
    here.publish("a/2", b"here", qos, retain=True)
    there.wait_until(lambda found: b"here" in found)
    there.publish("shop/7", b"order", qos)
    assert worker.take(b"order")[0].topic == "shop/7"
    # What would have been echoed to either side comes before this.
    here.publish("a/3", b"end", qos)
    there.wait_until(lambda found: b"end" in found)
    there.publish("a/3", b"end of there", qos)
    for side in (here, there):
        side.wait_until(lambda found: b"end of there" in found)
    assert sorted(here.bodies) == sorted([b"there", b"here", b"end", b"end of there"])
    assert sorted(there.bodies) == sorted([b"there", b"here", b"end", b"end of there"])

    for address in (gateway.address("mqtt"), broker.address):
        late = peer(address, "late", "a/#")
        late.wait_until(lambda found: len(found) == 2)
        assert {(m.topic, m.payload, m.retain) for m in late.messages} == {
            ("a/1", b"there", True),
            ("a/2", b"here", True),
        }


@pytest.mark.parametrize("version", VERSIONS)
def test_the_bridge_says_whether_it_is_connected_and_comes_back(
    daemon: Start, mosquitto: Broker, peer: Callable[..., Peer], version: str
) -> None:
    gateway = daemon()
    broker = mosquitto(bridge(gateway, version, "up/# out 1", "down/# in 1 local/ remote/"))
    state = peer(gateway.address("mqtt"), "state", "$SYS/broker/connection/#")
    state.wait_until(lambda found: found[-1:] == [b"1"])
    assert state.messages[-1].topic.endswith(".plant/state")
    broker.kill()
    state.wait_until(lambda found: found[-1:] == [b"0"])
    device = peer(gateway.address("mqtt"), "device")
    device.publish("remote/down/1", b"kept for the bridge")
    broker.start()
    state.wait_until(lambda found: found[-1:] == [b"1"])
    there = peer(broker.address, "there", "local/down/#")
    here = peer(gateway.address("mqtt"), "here", "up/#")
    device.publish("remote/down/1", b"after")
    there.wait_until(lambda found: b"after" in found)
    there.publish("up/1", b"up")
    assert here.take(b"up")[0].topic == "up/1"
    late = peer(gateway.address("mqtt"), "late", "$SYS/broker/connection/+/state")
    assert late.take(b"1")[0].retain


@pytest.mark.parametrize("topic", ["$SYS/broker/uptime", "$SYS/broker/connection/state", "$SYS/broker/connection/a/x"])
def test_nothing_else_below_sys_is_a_client_s_to_say(daemon: Start, peer: Callable[..., Peer], topic: str) -> None:
    gateway = daemon()
    device = peer(gateway.address("mqtt"), "device", version=paho.MQTTv5)
    told: list[object] = []
    device.client.on_publish = lambda client, data, packet_id, reason, properties: told.append(reason.value)
    device.client.publish(topic, b"1", 1)
    wait_for(lambda: told == [0x90], "it is refused")
