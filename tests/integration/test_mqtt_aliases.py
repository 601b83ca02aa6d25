"""Topic aliases, from a client and to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.harness.daemon import Daemon
from tests.integration.mqtt_raw import RawClient, unique
from transports.mqtt.packets import Disconnect, Property, Publish, Reason, Request

Make = Callable[..., Daemon]
ALIAS = Property.TOPIC_ALIAS


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Any:
    running = Daemon(tmp_path_factory.mktemp("aliases"), {})
    yield running.start()
    running.close()


def publish(topic: str, alias: int, body: bytes = b"x", packet_id: int = 1) -> Publish:
    return Publish(topic, body, 1, False, False, packet_id, {ALIAS: alias})


def test_an_alias_means_what_was_said_last(server: Daemon) -> None:
    root = unique("in")
    with RawClient(server.address("mqtt")) as watcher, RawClient(server.address("mqtt")) as one:
        watcher.connect()
        watcher.subscribe(f"{root}/#")
        assert one.connect().properties[Property.TOPIC_ALIAS_MAXIMUM] == 16
        one.send(publish(f"{root}/a", 1), publish(f"{root}/b", 16), publish("", 1), publish("", 16))
        one.send(publish(f"{root}/c", 1), publish("", 1))
        came = []
        for _ in range(6):
            found = watcher.expect(Publish)
            assert ALIAS not in found.properties
            watcher.ack(found)
            came.append(found.topic[len(root) + 1 :])
        assert came == ["a", "b", "a", "b", "c", "c"]


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (publish("a", 0), Reason.TOPIC_ALIAS_INVALID),
        (publish("a", 17), Reason.TOPIC_ALIAS_INVALID),
        (publish("", 1), Reason.PROTOCOL_ERROR),
    ],
)
def test_an_alias_that_is_none_ends_the_connection(server: Daemon, packet: Publish, reason: Reason) -> None:
    with RawClient(server.address("mqtt")) as other, RawClient(server.address("mqtt")) as one:
        other.connect()
        other.send(publish("of/another/connection", 1))
        one.connect()
        one.send(packet)
        assert one.expect(Disconnect).reason == reason


def test_what_a_client_has_us_keep_is_bounded(server: Daemon) -> None:
    with RawClient(server.address("mqtt")) as one:
        one.connect()
        long = "x" * 3000
        for alias in (*range(1, 6), *range(1, 6)):
            assert one.publish(long, packet_id=1, properties={ALIAS: alias}).reason == Reason.NO_MATCHING_SUBSCRIBERS
        one.send(publish(long, 6))
        assert one.expect(Disconnect).reason == Reason.QUOTA_EXCEEDED


def test_a_client_that_takes_aliases_gets_them_for_its_first_topics(server: Daemon) -> None:
    root = unique("out")
    with RawClient(server.address("mqtt")) as one, RawClient(server.address("mqtt")) as said:
        one.connect(properties={Property.TOPIC_ALIAS_MAXIMUM: 2})
        one.subscribe(Request(f"{root}/+/1", 1), Request(f"{root}/+/0", 0), Request(f"{root}/+/2", 2))
        said.connect()
        sent = [("a/2", 2), ("a/1", 1), ("a/1", 1), ("a/0", 0), ("b/1", 1), ("a/0", 0)]
        for number, (topic, qos) in enumerate(sent, 1):
            said.send(Publish(f"{root}/{topic}", b"", qos, packet_id=number if qos else 0))
        known: dict[int, str] = {}
        topics = []
        for _ in sent:
            found = one.expect(Publish)
            alias = found.properties.get(ALIAS)
            assert alias is None or found.qos < 2
            if alias is not None and found.topic:
                assert alias not in known
                known[alias] = found.topic
            topics.append((found.topic or known[alias])[len(root) + 1 :])
        assert sorted(topics) == sorted(topic for topic, _ in sent)
        assert sorted(known) == [1, 2]


def test_an_alias_that_did_not_go_out_is_not_used(server: Daemon) -> None:
    """The PUBLISH that would have given it is larger than the client takes."""
    root = unique("large")
    with RawClient(server.address("mqtt")) as one, RawClient(server.address("mqtt")) as said:
        one.connect(properties={Property.TOPIC_ALIAS_MAXIMUM: 2, Property.MAXIMUM_PACKET_SIZE: 200})
        one.subscribe(f"{root}/#")
        said.connect()
        said.publish(f"{root}/a", b"x" * 300)
        said.publish(f"{root}/a", b"fits")
        found = one.expect(Publish)
        assert (found.topic, found.payload, found.properties[ALIAS]) == (f"{root}/a", b"fits", 1)
