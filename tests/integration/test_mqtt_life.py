"""What MQTT clients keep over restarts and crashes of the daemon, how it lets them go, and who is let in."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import argon2
import pytest

from tests.harness.daemon import Daemon
from tests.integration.mqtt_raw import RawClient, unique
from transports.mqtt.packets import (
    V5,
    V311,
    Ack,
    ConnAck,
    Connect,
    Disconnect,
    PingReq,
    PingResp,
    Property,
    Publish,
    Reason,
    Request,
    Will,
)

EXPIRY = {Property.SESSION_EXPIRY_INTERVAL: 100}
Make = Callable[..., Daemon]
Connected = Callable[..., RawClient]


@pytest.fixture
def connected() -> Iterator[Callable[..., RawClient]]:
    """`connected(daemon, client_id, version)`; all are closed at the end."""
    with ExitStack() as stack:

        def connect(daemon: Daemon, client_id: str = "", version: int = V5, **options: Any) -> RawClient:
            one = stack.enter_context(RawClient(daemon.address("mqtt"), version))
            assert one.connect(client_id or unique(), **options).reason == Reason.SUCCESS
            return one

        yield connect


@pytest.mark.parametrize("version", [V311, V5])
def test_sessions_survive_a_kill(daemon: Make, connected: Connected, version: int) -> None:
    running = daemon({"queues": {"work": {}}})
    lasting: dict[str, Any] = {"clean": False, "properties": EXPIRY if version == V5 else {}}
    with connected(running, "device", version, **lasting) as one:
        one.subscribe("plain/#", "$share/team/shared/#", "$queue/work")
        one.unsubscribe("plain/#")
        one.subscribe(Request("plain/+", 1))
    with connected(running, version=version) as publisher:
        for n, topic in enumerate(("plain/a", "shared/a", "$queue/work"), 1):
            assert publisher.publish(topic, b"kept", n).reason == Reason.SUCCESS
    running.restart()
    with connected(running, version=version) as publisher:
        publisher.publish("plain/a/b", b"not subscribed any more", 1)
        publisher.publish("plain/b", b"after", 2)
    with RawClient(running.address("mqtt"), version) as back:
        assert back.connect("device", **lasting).session_present
        came = sorted(back.take() for _ in range(4))
        assert came == [("$queue/work", b"kept"), ("plain/a", b"kept"), ("plain/b", b"after"), ("shared/a", b"kept")]
        back.nothing_comes()


def test_sessions_without_expiry_and_their_shares_are_gone_after_a_kill(daemon: Make, connected: Connected) -> None:
    running = daemon()
    with connected(running, "device") as one, connected(running) as publisher:
        one.subscribe("plain", "$share/team/shared")
        running.restart()
        with connected(running) as publisher:
            assert publisher.publish("plain", b"", 1).reason == Reason.NO_MATCHING_SUBSCRIBERS
            assert publisher.publish("shared", b"", 2).reason == Reason.NO_MATCHING_SUBSCRIBERS
        with RawClient(running.address("mqtt")) as back:
            assert not back.connect("device", False, EXPIRY).session_present


def test_a_session_expires_while_the_daemon_is_down(daemon: Make, connected: Connected) -> None:
    running = daemon()
    for name, seconds in (("short", 1), ("long", 100)):
        connected(running, name, properties={Property.SESSION_EXPIRY_INTERVAL: seconds}).disconnect()
    with connected(running) as barrier:
        barrier.publish("x")
    ends = time.time() + 1
    running.kill()
    while time.time() <= ends:
        time.sleep(0.05)
    running.start()
    with RawClient(running.address("mqtt")) as short, RawClient(running.address("mqtt")) as long:
        assert not short.connect("short", False, EXPIRY).session_present
        assert long.connect("long", False, EXPIRY).session_present


def test_a_delayed_will_survives_a_kill(daemon: Make, connected: Connected) -> None:
    running = daemon()
    with connected(running, "watcher", properties=EXPIRY) as watcher:
        watcher.subscribe("will")
    will = Will("will", b"gone", 1, properties={Property.WILL_DELAY_INTERVAL: 2})
    with connected(running, "device", properties=EXPIRY, will=will):
        pass
    with connected(running) as barrier:
        barrier.publish("x")
    running.restart()
    with connected(running, "watcher", clean=False, properties=EXPIRY) as watcher:
        assert watcher.take() == ("will", b"gone")


def test_the_will_of_a_connected_client_survives_a_kill(daemon: Make, connected: Connected) -> None:
    """Its connection is lost with the daemon. Who has said goodbye has no will."""
    running = daemon()
    with connected(running, "watcher", properties=EXPIRY) as watcher:
        watcher.subscribe("will/+")
    connected(running, "device", properties=EXPIRY, will=Will("will/lost", b"gone", 1))
    polite = connected(running, "polite", properties=EXPIRY, will=Will("will/polite", b"gone", 1))
    polite.disconnect()
    connected(running).publish("x")
    running.restart()
    with connected(running, "watcher", clean=False, properties=EXPIRY) as watcher:
        assert watcher.take() == ("will/lost", b"gone")
        watcher.nothing_comes()
    running.restart()
    with connected(running, "watcher", clean=False, properties=EXPIRY) as watcher:
        watcher.nothing_comes()


def test_what_was_in_flight_at_a_kill_comes_again_first(daemon: Make, connected: Connected) -> None:
    running = daemon()
    one = connected(running, "device", properties=EXPIRY)
    one.subscribe("t")
    with connected(running) as publisher:
        for n in range(3):
            publisher.publish("t", b"%d" % n, n + 1)
    came = [one.expect(Publish) for _ in range(3)]
    one.ack(came[0])
    one.publish("x")  # its PUBACK means that the acknowledgement before it is durable
    running.restart()
    one.cut()
    with connected(running, "device", clean=False, properties=EXPIRY) as back:
        assert [back.take()[1] for _ in range(2)] == [b"1", b"2"]
        back.nothing_comes()


def test_retained_messages_survive_a_kill(daemon: Make, connected: Connected) -> None:
    running = daemon()
    with connected(running) as one:
        one.publish("kept/1", b"1", 1, retain=True)
        one.publish("kept/2", b"2", 2, retain=True)
        one.publish("kept/1", b"", 3, retain=True)
    running.restart()
    with connected(running) as one:
        one.subscribe("kept/#")
        assert one.take() == ("kept/2", b"2")
        one.nothing_comes()


@pytest.mark.parametrize("qos", [0, 1])
@pytest.mark.parametrize("order", [1, -1], ids=["downwards", "upwards"])
def test_clearing_retained_messages_of_nested_topics_leaves_none(
    daemon: Make, connected: Connected, order: int, qos: int
) -> None:
    running = daemon()
    nested = ["1", "1/2", "1/2/3", "1/2/3/4/5/6", "1/x", "/", "//", "a/", "/a"]

    def retained() -> list[str]:
        with connected(running) as reader:
            reader.subscribe("#")
            reader.send(PingReq())
            return sorted(iter(lambda: getattr(reader.receive(), "topic", ""), ""))

    with connected(running) as one:

        def put(body: bytes, topics: list[str]) -> None:
            one.send(*[Publish(topic, body, qos, True, False, n * qos) for n, topic in enumerate(topics, 1)])
            one.send(PingReq())
            while one.receive() != PingResp():
                pass
            one.publish("barrier")

        put(b"x", nested)
        assert retained() == sorted(nested)
        for place, topic in enumerate(nested[::order], 1):  # one after the other
            put(b"", [topic])
            assert retained() == sorted(nested[::order][place:])
        put(b"x", nested)
        put(b"", nested[::order])  # all at once
        assert retained() == []
        put(b"y", nested)
        put(b"", nested[::order])
        running.restart()
        assert retained() == []


def test_a_stopping_daemon_waits_for_pubacks_and_says_why_it_goes(daemon: Make, connected: Connected) -> None:
    running = daemon({"drain_timeout": "20s"})
    old, idle = connected(running, version=V311), connected(running)
    one = connected(running, "device", properties=EXPIRY)
    one.subscribe("t")
    with connected(running) as publisher:
        publisher.publish("t", b"1", 1)
        publisher.publish("t", b"2", 2)
    first, second = one.expect(Publish), one.expect(Publish)
    running.process.signal(15)
    assert idle.expect(Disconnect).reason == Reason.SERVER_SHUTTING_DOWN
    assert old.receive() is None
    one.send(Publish("t", b"too late", 1, packet_id=9))
    one.ack(first)
    one.ack(second)
    assert one.expect(Disconnect).reason == Reason.SERVER_SHUTTING_DOWN
    assert running.exit_status() == 0
    running.start()
    with connected(running, "device", clean=False, properties=EXPIRY) as back:
        back.nothing_comes()


def test_a_stopping_daemon_does_not_wait_longer_than_its_time(daemon: Make, connected: Connected) -> None:
    running = daemon({"drain_timeout": "500ms"})
    one = connected(running, "device", properties=EXPIRY)
    one.subscribe("t")
    connected(running).publish("t", b"1")
    kept = one.expect(Publish)
    began = time.monotonic()
    assert running.stop() == 0
    assert time.monotonic() - began < 5
    assert one.expect(Disconnect).reason == Reason.SERVER_SHUTTING_DOWN
    running.start()
    with connected(running, "device", clean=False, properties=EXPIRY) as back:
        assert back.take() == ("t", kept.payload)


@pytest.mark.parametrize("version", [V311, V5])
def test_users_are_asked_for_their_password(daemon: Make, version: int) -> None:
    password_hash = argon2.PasswordHasher(time_cost=1, memory_cost=64, parallelism=1).hash("secret")
    listener = {"type": "mqtt", "listen": "127.0.0.1:0"}
    running = daemon(
        {
            "users": {"ann": {"password_hash": password_hash}},
            "transports": {"mqtt": listener, "open": {**listener, "allow_anonymous": True}},
        }
    )

    def answer(name: str | None, password: bytes | None, transport: str = "mqtt") -> Reason:
        with RawClient(running.address(transport), version) as one:
            # What follows CONNECT must not be handled before its sender is known.
            one.send(Connect("a", version, True, 0, None, name, password), Publish("t", b"", 1, packet_id=1))
            reason = one.expect(ConnAck).reason
            if reason == Reason.SUCCESS:
                assert one.expect(Ack).packet_id == 1
            else:
                assert one.receive() is None
            return reason

    refused = Reason.BAD_USER_NAME_OR_PASSWORD
    assert answer("ann", b"secret") == Reason.SUCCESS
    assert answer("ann", b"wrong") == refused
    assert answer("bob", b"secret") == refused
    assert answer(None, None) == refused
    assert answer(None, None, "open") == Reason.SUCCESS
    assert answer("ann", b"wrong", "open") == refused
