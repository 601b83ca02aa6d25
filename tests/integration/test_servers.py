"""The real brokers that other tests stand on: each starts, carries a message, and is gone afterwards."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import paho.mqtt.client as mqtt
import pika
import psutil
import pytest

from tests.harness.mosquitto import Mosquitto
from tests.harness.process import Address, ServerError, ServerProcess
from tests.harness.rabbitmq import RabbitMq


def publish_mqtt(address: Address, topic: str, body: bytes, user: str | None = None) -> None:
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
    if user:
        client.username_pw_set(user, user)
    client.connect(*address)
    client.loop_start()
    try:
        client.publish(topic, body, qos=1).wait_for_publish(10)
    finally:
        client.disconnect()
        client.loop_stop()


def test_mosquitto_carries_a_message(mosquitto: Callable[..., Mosquitto]) -> None:
    broker = mosquitto()
    got: list[bytes] = []
    subscribed, arrived = threading.Event(), threading.Event()
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
    client.on_subscribe = lambda *_: subscribed.set()
    client.on_message = lambda _c, _u, message: (got.append(message.payload), arrived.set())
    client.connect(*broker.address)
    client.loop_start()
    try:
        client.subscribe("a/+", qos=1)
        assert subscribed.wait(10)
        publish_mqtt(broker.address, "a/b", b"hello")
        assert arrived.wait(10)
    finally:
        client.disconnect()
        client.loop_stop()
    assert got == [b"hello"]
    assert broker.stop() == 0


def test_mosquitto_clients_are_there(mosquitto: Callable[..., Mosquitto]) -> None:
    broker = mosquitto()
    host, port = broker.address
    publish = ["mosquitto_pub", "-h", host, "-p", str(port), "-t", "x", "-m", "1", "-q", "1"]
    assert subprocess.run(publish, timeout=10).returncode == 0


def test_rabbitmq_carries_a_message_from_mqtt_to_amqp(rabbitmq: RabbitMq) -> None:
    with pika.BlockingConnection(pika.URLParameters(rabbitmq.url)) as connection:
        channel = connection.channel()
        channel.queue_declare("servers.test", durable=True)
        channel.queue_bind("servers.test", "amq.topic", "servers.*")
        publish_mqtt(rabbitmq.mqtt, "servers/1", b"hello", user="guest")
        for _method, properties, body in channel.consume("servers.test", inactivity_timeout=10, auto_ack=True):
            assert (body, properties.delivery_mode) == (b"hello", 2)
            break
        channel.queue_delete("servers.test")


def test_nothing_of_rabbitmq_is_left_behind(tmp_path: Path) -> None:
    node = RabbitMq(tmp_path)
    try:
        node.launch().wait_for_line("Starting broker", 60)
        mine = [p for p in psutil.process_iter(["environ"]) if (p.info["environ"] or {}).get("HOME") == str(tmp_path)]
        assert {p.name().split(".")[0] for p in mine} >= {"beam", "epmd"}
    finally:
        node.close()
    _, alive = psutil.wait_procs(mine, timeout=10)
    assert not alive


def test_a_server_that_ends_fails_the_wait_with_its_output() -> None:
    process = ServerProcess(["sh", "-c", "echo no such thing >&2; exit 3"])
    with pytest.raises(ServerError, match="ended with 3; it printed:\nno such thing"):
        process.wait_for_line("ready", 10)


def test_close_ends_the_children_of_a_server_too() -> None:
    process = ServerProcess(["sh", "-c", "sleep 1000 & echo $!; wait"])
    child = int(process.wait_for(lambda: process.output[0] if process.output else None, "the child", 10))
    process.close()
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)
