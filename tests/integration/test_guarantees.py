"""Promises of docs/guarantees.md that need a whole daemon and are proven nowhere else."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from pamqp import body, header
from pamqp.commands import Basic, Connection, Queue
from prometheus_client.parser import text_string_to_metric_families

from tests.harness.daemon import Daemon
from tests.integration.amqp_raw import Raw
from tests.integration.mqtt_raw import RawClient
from transports.mqtt.packets import Disconnect, Property, Publish

CONFIG: dict[str, Any] = {
    "queues": {
        "work": {"max_deliveries": 1, "dead_letter": "dead"},
        "dead": {},
        "small": {"max_messages": 1},
    }
}
UNKNOWN_METHOD = bytes.fromhex("01 0001 00000004 00630001 ce")


@pytest.fixture
def gateway(daemon: Callable[..., Daemon]) -> Daemon:
    return daemon(CONFIG)


@pytest.fixture
def worker(gateway: Daemon) -> Iterator[Raw]:
    raw = Raw(gateway.address("amqp"))
    raw.login()
    yield raw
    raw.close()


def put(gateway: Daemon, queue: str, *bodies: bytes) -> None:
    """They are on disk when it returns."""
    with RawClient(gateway.address("mqtt")) as publisher:
        publisher.connect()
        for content in bodies:
            assert publisher.publish(f"$queue/{queue}", content).reason == 0


def delivered(raw: Raw) -> tuple[dict[str, Any], bytes]:
    """The next delivery: its headers and its body."""
    raw.expect(Basic.Deliver)
    head = raw.expect(header.ContentHeader)
    return head.properties.headers or {}, raw.expect(body.ContentBody).value


def death(headers: dict[str, Any]) -> tuple[str, str]:
    [found] = headers["x-death"]
    return found["queue"], found["reason"]


def depth(raw: Raw, queue: str) -> int:
    return int(raw.call(Queue.Declare(queue=queue, passive=True), Queue.DeclareOk).message_count)


def counter(gateway: Daemon, name: str, **labels: str) -> float:
    with urllib.request.urlopen(f"{gateway.url('admin')}/metrics", timeout=10) as page:
        families = list(text_string_to_metric_families(page.read().decode()))
    samples = [sample for family in families for sample in family.samples if sample.name == f"{name}_total"]
    return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())


@pytest.mark.parametrize("protocol", ["mqtt", "amqp"])
def test_a_protocol_error_counts_an_attempt_for_the_oldest_delivery_alone(
    gateway: Daemon, worker: Raw, protocol: str
) -> None:
    put(gateway, "work", b"poison", b"fine")
    with ExitStack() as stack:
        if protocol == "mqtt":
            broken = stack.enter_context(RawClient(gateway.address("mqtt")))
            broken.connect()
            broken.subscribe("$queue/work")
            assert [broken.expect(Publish).payload for _ in range(2)] == [b"poison", b"fine"]
            broken.send(b"\x00\x00")
            assert broken.expect(Disconnect).reason >= 0x80
        else:
            other = Raw(gateway.address("amqp"))
            stack.callback(other.close)
            other.login()
            other.call(Basic.Consume(queue="work"), Basic.ConsumeOk)
            assert [delivered(other)[1] for _ in range(2)] == [b"poison", b"fine"]
            other.socket.sendall(UNKNOWN_METHOD)
            assert other.expect(Connection.Close).reply_code == 503
        worker.call(Basic.Consume(queue="dead"), Basic.ConsumeOk)
        headers, content = delivered(worker)
    assert (content, death(headers)) == (b"poison", ("work", "delivery_limit"))
    assert (depth(worker, "work"), depth(worker, "dead")) == (1, 0)


def test_what_is_too_large_for_its_consumer_goes_to_the_dead_letters_with_the_reason(
    gateway: Daemon, worker: Raw
) -> None:
    put(gateway, "work", b"x" * 500, b"y")
    with RawClient(gateway.address("mqtt")) as narrow:
        narrow.connect(properties={Property.MAXIMUM_PACKET_SIZE: 200})
        narrow.subscribe("$queue/work")
        assert narrow.take() == ("$queue/work", b"y")
    worker.call(Basic.Consume(queue="dead"), Basic.ConsumeOk)
    headers, content = delivered(worker)
    assert (content, death(headers)) == (b"x" * 500, ("work", "invalid"))
    url = f"{gateway.url('admin')}/api/v1/messages?queue=dead"
    with urllib.request.urlopen(url, timeout=10) as page:
        [dead] = json.load(page)["messages"]
    assert dead["deaths"][0]["error"] == "larger than the client's Maximum Packet Size"


def test_a_refused_publish_without_confirms_is_dropped_and_counted(gateway: Daemon, worker: Raw) -> None:
    for content in (b"1", b"2", b"3"):
        worker.publish(content, "small")
    assert depth(worker, "small") == 1
    assert counter(gateway, "gateway_transport_dropped_messages", transport="amqp", reason="refused") == 2
    assert counter(gateway, "gateway_queue_refused", queue="small") == 2
