"""MQTT.js as it comes, by TCP, TLS and WebSocket: each example is in tests/node/mqttjs.js."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import trustme

from gateway.auth.users import hash_password
from tests.harness.daemon import Daemon
from tests.harness.node import Node
from tests.harness.process import quiet_port
from tests.integration.mqtt_raw import RawClient
from transports.mqtt.packets import Ack, Publish, Reason, Type

EXAMPLES = "mqttjs.js"
ORIGIN = "https://app.example"
WAYS = ["mqtt", "mqtts", "ws", "wss"]
every_way = pytest.mark.parametrize("way", WAYS)


class House:
    """A daemon that is reached in every way. ca: the file that a client needs to trust it."""

    def __init__(self, daemon: Daemon, ca: str) -> None:
        self.daemon = daemon
        self._ca = ca

    def url(self, way: str) -> str:
        address = self.daemon.address(way)
        return f"{way}://localhost:{address.port}{'/mqtt' if way.startswith('ws') else ''}"

    def ca(self, way: str) -> str:
        return self._ca if way.endswith("s") and way != "ws" else ""


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """One daemon for all: each example has topics of its own."""
    folder = tmp_path_factory.mktemp("js")
    authority = trustme.CA()
    mine = authority.issue_cert("localhost")
    mine.cert_chain_pems[0].write_to_path(folder / "server.pem")
    mine.private_key_pem.write_to_path(folder / "server.key")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    tls = {"cert": str(folder / "server.pem"), "key": str(folder / "server.key")}
    websocket = {"websocket": {"origins": [ORIGIN]}}
    kinds: dict[str, dict[str, Any]] = {"mqtt": {}, "mqtts": {"tls": tls}, "ws": {"websocket": {}}}
    kinds |= {"wss": {"tls": tls, "websocket": {}}, "browser": websocket}
    listen = {"type": "mqtt", "listen": "127.0.0.1:0", "allow_anonymous": True}
    daemon = Daemon(
        folder,
        {
            "users": {"ann": {"password_hash": hash_password("secret")}},
            "transports": {name: {**listen, **more} for name, more in kinds.items()},
        },
    )
    try:
        yield House(daemon.start(), str(folder / "ca.pem"))
    finally:
        daemon.close()


@every_way
@pytest.mark.parametrize("version", [4, 5], ids=["3.1.1", "5.0"])
def test_all_levels_and_retained_messages(node: Node, house: House, way: str, version: int) -> None:
    node.run(EXAMPLES, "levels", house.url(way), house.ca(way), version)


@pytest.mark.parametrize("way", ["mqtt", "wss"])
def test_properties_and_aliases(node: Node, house: House, way: str) -> None:
    node.run(EXAMPLES, "properties", house.url(way), house.ca(way))


@pytest.mark.parametrize("way", ["mqtt", "wss"])
def test_a_will(node: Node, house: House, way: str) -> None:
    node.run(EXAMPLES, "will", house.url(way), house.ca(way))


@pytest.mark.parametrize("way", ["mqtt", "ws"])
def test_refused_credentials(node: Node, house: House, way: str) -> None:
    reason = int(Reason.BAD_USER_NAME_OR_PASSWORD)
    node.run(EXAMPLES, "refused", house.url(way), house.ca(way), "ann", "wrong", reason)


def test_pages_of_one_origin_alone(node: Node, house: House) -> None:
    url = f"ws://localhost:{house.daemon.address('browser').port}/mqtt"
    node.run(EXAMPLES, "origin", url, "", ORIGIN, "yes")
    node.run(EXAMPLES, "origin", url, "", "https://elsewhere.example", "no")


@pytest.mark.parametrize("way", ["mqtt", "ws"])
def test_a_session_goes_on_over_a_kill(node: Node, make_daemon: Callable[..., Daemon], way: str) -> None:
    """It reconnects by itself; what is published meanwhile, and what was under way, comes once."""
    port = quiet_port()
    listen = {"type": "mqtt", "listen": f"127.0.0.1:{port}", **({"websocket": {}} if way == "ws" else {})}
    inside = {"type": "mqtt", "listen": "127.0.0.1:0"}
    daemon = make_daemon({"transports": {"js": listen, "inside": inside}}).start()
    numbers = itertools.count(1)

    def say(count: int) -> None:
        with RawClient(daemon.address("inside")) as one:
            one.connect("publisher")
            for number in itertools.islice(numbers, count):
                one.send(Publish("js/session", b"%d" % number, 2, packet_id=1))
                assert one.expect(Ack).reason == Reason.SUCCESS
                one.send(Ack(Type.PUBREL, 1))
                one.expect(Ack)

    url = f"{way}://127.0.0.1:{port}" + ("/mqtt" if way == "ws" else "")
    client = node.start(EXAMPLES, "session", url, "", "60")
    try:
        client.wait_for_line("subscribed", 20)
        for _ in range(3):
            say(10)
            daemon.restart()
            say(10)
        assert client.wait(20) == 0, client.tail()
        got = client.wait_for_line("got:", 5).partition("got:")[2].split()
        assert got == [str(number) for number in range(1, 61)], "each of them, once, in order"
    finally:
        client.close()
