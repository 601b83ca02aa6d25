"""Clients that people use, against a running daemon: paho, aiomqtt, gmqtt, mosquitto_pub and mosquitto_sub."""

from __future__ import annotations

import asyncio
import queue
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import aiomqtt
import gmqtt
import paho.mqtt.client as paho
import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from tests.harness.daemon import Daemon
from tests.integration.mqtt_raw import unique

SECONDS = 10
mosquitto = pytest.mark.skipif(shutil.which("mosquitto_pub") is None, reason="mosquitto-clients are not installed")


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    routes = [{"from": "work/#", "to": "work"}]
    daemon = Daemon(tmp_path_factory.mktemp("clients"), {"queues": {"work": {"group": "{topic[1]}"}}, "routes": routes})
    yield daemon.start()
    daemon.close()


class Paho:
    """A paho client whose callbacks are queues."""

    def __init__(self, gateway: Daemon, protocol: int, client_id: str = "", **connect: Any) -> None:
        clean = {} if protocol == paho.MQTTv5 else {"clean_session": connect.pop("clean_session", True)}
        self.client = paho.Client(paho.CallbackAPIVersion.VERSION2, client_id, protocol=protocol, **clean)
        self.messages: queue.Queue[paho.MQTTMessage] = queue.Queue()
        self.events: queue.Queue[tuple[str, Any]] = queue.Queue()
        self.client.on_message = lambda client, data, message: self.messages.put(message)
        self.client.on_connect = lambda client, data, flags, reason, properties: self.events.put(("connected", flags))
        self.client.on_subscribe = lambda client, data, mid, reasons, properties: self.events.put(
            ("subscribed", [reason.value for reason in reasons])
        )
        address = gateway.address("mqtt")
        self.client.connect(address.host, address.port, **connect)
        self.client.loop_start()
        self.flags = self.expect("connected")

    def __enter__(self) -> Paho:
        return self

    def __exit__(self, *error: object) -> None:
        self.client.disconnect()
        self.client.loop_stop()

    def expect(self, name: str) -> Any:
        event, value = self.events.get(timeout=SECONDS)
        assert event == name
        return value

    def subscribe(self, topic: Any, qos: int = 1) -> Any:
        self.client.subscribe(topic, qos)
        return self.expect("subscribed")

    def publish(self, topic: str, payload: bytes, qos: int = 1, **options: Any) -> None:
        self.client.publish(topic, payload, qos, **options).wait_for_publish(SECONDS)

    def take(self) -> tuple[str, bytes]:
        message = self.messages.get(timeout=SECONDS)
        return message.topic, message.payload


protocols = pytest.mark.parametrize("protocol", [paho.MQTTv311, paho.MQTTv5])


@protocols
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_paho_publishes_and_subscribes(gateway: Daemon, protocol: int, qos: int) -> None:
    topic = unique("paho")
    with Paho(gateway, protocol) as subscriber, Paho(gateway, protocol) as publisher:
        assert subscriber.subscribe(f"{topic}/+", qos) == [qos]
        for n in range(500):
            publisher.client.publish(f"{topic}/x", b"%d" % n, qos)
        assert [subscriber.take()[1] for _ in range(500)] == [b"%d" % n for n in range(500)]


@protocols
def test_paho_keeps_its_session(gateway: Daemon, protocol: int) -> None:
    topic, name = unique("paho"), unique()
    lasting: dict[str, Any] = {"clean_session": False}
    if protocol == paho.MQTTv5:
        properties = Properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval = 60
        lasting = {"clean_start": False, "properties": properties}
    with Paho(gateway, protocol, name, **lasting) as one:
        assert not one.flags.session_present
        one.subscribe(topic)
    with Paho(gateway, protocol) as publisher:
        publisher.publish(topic, b"while away")
    with Paho(gateway, protocol, name, **lasting) as one:
        assert one.flags.session_present
        assert one.take() == (topic, b"while away")


def test_paho_sees_mqtt5_properties(gateway: Daemon) -> None:
    topic = unique("paho")
    with Paho(gateway, paho.MQTTv5) as subscriber, Paho(gateway, paho.MQTTv5) as publisher:
        subscriber.subscribe([(topic, SubscribeOptions(qos=1, noLocal=True, retainAsPublished=True))])
        properties = Properties(PacketTypes.PUBLISH)
        properties.UserProperty = [("b", "1"), ("a", "2")]
        properties.ContentType = "text/plain"
        properties.ResponseTopic = "answers"
        properties.CorrelationData = b"42"
        publisher.publish(topic, b"hi", properties=properties)
        said = subscriber.messages.get(timeout=SECONDS).properties
        assert said.UserProperty == [("b", "1"), ("a", "2")]
        assert (said.ContentType, said.ResponseTopic, said.CorrelationData) == ("text/plain", "answers", b"42")


@protocols
def test_paho_workers_share_a_queue(gateway: Daemon, protocol: int) -> None:
    with Paho(gateway, protocol) as worker, Paho(gateway, protocol) as publisher:
        assert worker.subscribe("$queue/work") == [1]
        for n in range(20):
            publisher.publish(f"work/{n % 3}", b"%d" % n)
        took = [worker.take() for _ in range(20)]
        for group in range(3):
            assert [int(body) for topic, body in took if topic == f"work/{group}"] == list(range(group, 20, 3))


@pytest.mark.parametrize("protocol", [aiomqtt.ProtocolVersion.V311, aiomqtt.ProtocolVersion.V5])
def test_aiomqtt_publishes_and_subscribes(gateway: Daemon, protocol: aiomqtt.ProtocolVersion) -> None:
    topic = unique("aio")
    address = gateway.address("mqtt")

    async def talk() -> list[bytes]:
        async with aiomqtt.Client(address.host, address.port, protocol=protocol) as client:
            await client.subscribe(f"{topic}/#", qos=1)
            for n in range(50):
                await client.publish(f"{topic}/x", b"%d" % n, qos=1)
            took: list[bytes] = []
            async for message in client.messages:
                assert isinstance(message.payload, bytes)
                took.append(message.payload)
                if len(took) == 50:
                    return took
        raise AssertionError("the connection ended")

    assert asyncio.run(asyncio.wait_for(talk(), SECONDS)) == [b"%d" % n for n in range(50)]


def run(gateway: Daemon, program: str, *arguments: str) -> list[str]:
    address = gateway.address("mqtt")
    command = [program, "-h", address.host, "-p", str(address.port), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True).stdout.splitlines()


@mosquitto
@pytest.mark.parametrize("version", ["311", "5"])
def test_mosquitto_pub_and_sub(gateway: Daemon, version: str) -> None:
    topic = unique("mosquitto")
    run(gateway, "mosquitto_pub", "-V", version, "-q", "1", "-r", "-t", f"{topic}/a", "-m", "kept")
    assert run(gateway, "mosquitto_sub", "-V", version, "-q", "1", "-C", "1", "-t", f"{topic}/#", "-v") == [
        f"{topic}/a kept"
    ]
    name = unique()
    lasting = ["-V", version, "-q", "1", "-t", f"{topic}/b", "-i", name, "-c"]
    lasting += ["-x", "60"] if version == "5" else []
    run(gateway, "mosquitto_sub", *lasting, "-E")
    for body in ("1", "2", "3"):
        run(gateway, "mosquitto_pub", "-V", version, "-q", "1", "-t", f"{topic}/b", "-m", body)
    assert run(gateway, "mosquitto_sub", *lasting, "-C", "3") == ["1", "2", "3"]


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_gmqtt_publishes_and_subscribes(gateway: Daemon, qos: int) -> None:
    topic, address = unique("gmqtt"), gateway.address("mqtt")

    async def talk() -> list[bytes]:
        came: asyncio.Queue[bytes] = asyncio.Queue()
        subscribed = asyncio.Event()

        async def on_message(client: Any, name: str, payload: bytes, its_qos: int, properties: Any) -> int:
            assert (name, its_qos) == (topic, qos)
            await came.put(payload)
            return 0

        one = gmqtt.Client(unique())
        one.on_message = on_message
        one.on_subscribe = lambda *_: subscribed.set()
        await one.connect(address.host, address.port)
        one.subscribe(topic, qos=qos)
        await asyncio.wait_for(subscribed.wait(), SECONDS)
        for n in range(50):
            one.publish(topic, b"%d" % n, qos=qos)
        found = [await asyncio.wait_for(came.get(), SECONDS) for _ in range(50)]
        await one.disconnect()
        return found

    assert asyncio.run(talk()) == [b"%d" % n for n in range(50)]
