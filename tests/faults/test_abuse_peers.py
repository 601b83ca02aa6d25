"""Peers at their worst, by the hundred: silence, garbage, lies about lengths, halves of things, and reading nothing.

Each test shows the daemon's memory bounded, a counter that tells, and a good client served within a second all the
while. `make abuse` runs them at full scale.
"""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pamqp import body, commands, frame, header

from tests.faults.abuse import FULL, MB, allow_files, metric, scaled, serving
from tests.harness.daemon import Daemon
from tests.harness.process import Address
from tests.integration.amqp_raw import HELLO, Raw
from tests.integration.mqtt_raw import RawClient
from transports.mqtt.encoding import encode
from transports.mqtt.packets import V5, Ack, Connect, Publish

pytestmark = pytest.mark.timeout(280 if FULL else 60)
Make = Callable[..., Daemon]
LOOPBACK = {"listen": "127.0.0.1:0"}
CONFIG: dict[str, Any] = {
    "queues": {"good": {}, "jobs": {}},
    "routes": [{"from": "good/#", "to": "good"}, {"from": "jobs/#", "to": "jobs"}],
}
PORTS = ["mqtt", "amqp", "web"]
TLS_HELLO = bytes.fromhex("16030100c8010000c40303") + bytes(32) + b"\x00\x00\x02\x13\x01\x01\x00" + bytes(120)
GREETINGS = {
    "mqtt": encode(Connect("stranger"), V5),
    "amqp": HELLO,
    "web": b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n",
    "tls": TLS_HELLO,
}


def config(**about: Any) -> dict[str, Any]:
    """The same settings for all three listeners that are abused, and two of their own for the good client."""
    transports = {
        "mqtt": {"type": "mqtt", **LOOPBACK},
        "amqp": {"type": "amqp", **LOOPBACK},
        "web": {"type": "http", **LOOPBACK},
    }
    for name, settings in about.items():
        transports[name] |= settings
    own = {"good-mqtt": {"type": "mqtt", **LOOPBACK}, "good-amqp": {"type": "amqp", **LOOPBACK}}
    return {**CONFIG, "transports": {**transports, **own}}


@contextlib.contextmanager
def abused(daemon: Daemon, growth: int) -> Iterator[None]:
    with serving(daemon, growth, "good-mqtt", "good-amqp"):
        yield


def connect(address: Address) -> socket.socket:
    return socket.create_connection(address, timeout=10)


def until_closed(peer: socket.socket, seconds: float = 10.0) -> bytes:
    """All that comes until the daemon ends the connection. Raises TimeoutError if it does not."""
    peer.settimeout(seconds)
    came = b""
    with contextlib.suppress(ConnectionResetError):
        while data := peer.recv(1 << 16):
            came += data
    return came


def poured(peer: socket.socket, data: bytes) -> None:
    """Sends it, as far as the daemon lets it."""
    with contextlib.suppress(ConnectionError):
        peer.sendall(data)


def amqp_frame(*frames: Any, channel: int = 1) -> bytes:
    return b"".join(frame.marshal(one, channel) for one in frames)


# saying nothing


@pytest.mark.parametrize("port", PORTS)
def test_thousands_of_connections_that_say_nothing(daemon: Make, port: str) -> None:
    """Full scale: 20,000 at the default limit of 10,000 (HTTP: 1,000)."""
    wanted = min(scaled(20_000, 1000), allow_files(scaled(20_000, 1000) + 500) - 400)
    timeout = "request_timeout" if port == "web" else "connect_timeout"
    most = {} if FULL else {"max_connections": 300}
    limit = int(most.get("max_connections", 1000 if port == "web" else 10_000)) + 100
    server = daemon(config(**{port: {timeout: "5s" if FULL else "1s", **most}}))
    address = server.address(port)
    late = {"mqtt": "maximum-connect-time", "amqp": "connect-timeout", "web": "request-timeout"}[port]

    def gone() -> float:
        crowded = metric(server, "gateway_transport_refusals", transport=port, reason="crowded-out")
        return crowded + metric(server, "gateway_transport_protocol_errors", transport=port, reason=late)

    with contextlib.ExitStack() as silent, abused(server, scaled(200, 40) * MB):
        most_there = 0.0
        for n in range(wanted):
            silent.enter_context(connect(address))
            if n % 100 == 99:
                # Not faster than the daemon takes them, or the kernel's queue is what fails.
                began = time.monotonic()
                with connect(address) as speaking:
                    speaking.sendall(GREETINGS[port])
                    assert speaking.recv(1), "who speaks was not let in"
                assert time.monotonic() - began < 1
                most_there = max(most_there, metric(server, "gateway_transport_connections", transport=port))
        assert limit / 2 < most_there <= limit + 5  # some that were cut off may not be gone yet
        until(lambda: gone() >= wanted, 20)
        until(lambda: metric(server, "gateway_transport_connections", transport=port) == 0, 15)  # MQTT lingers 5 s
    print(f"{wanted} connections to {port} were opened, at most {most_there:.0f} were there at one time")


def until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize("port", PORTS)
def test_a_half_open_connection_is_found_by_the_kernel(daemon: Make, port: str) -> None:
    """Its other end vanishes without a word, as when a cable is cut: TCP_REPAIR takes the socket away silently."""
    server = daemon(config(mqtt={"tcp_keep_alive": "1s"}, amqp={"tcp_keep_alive": "1s"}, web={"request_timeout": "2s"}))
    peer = connect(server.address(port))
    if port == "mqtt":
        peer.sendall(encode(Connect("half", keep_alive=0), V5))
        peer.recv(100)
    elif port == "amqp":
        raw = Raw(server.address(port))
        raw.login()  # without heartbeats
        peer.close()
        peer = raw.socket
    before = metric(server, "gateway_transport_connections", transport=port)
    assert before >= 1
    try:
        peer.setsockopt(socket.IPPROTO_TCP, 19, 1)
    except PermissionError:
        pytest.skip("CAP_NET_ADMIN is needed to let a socket vanish")
    peer.close()
    deadline = time.monotonic() + 8
    while metric(server, "gateway_transport_connections", transport=port) >= before:
        assert time.monotonic() < deadline, "it is still taken for a connection"
        time.sleep(0.05)


def test_a_half_open_connection_is_found_by_mqtt_keep_alive_and_amqp_heartbeats(daemon: Make) -> None:
    server = daemon(config(mqtt={"tcp_keep_alive": 0}, amqp={"tcp_keep_alive": 0}))
    quiet = RawClient(server.address("mqtt"))
    quiet.connect("quiet", keep_alive=1)
    raw = Raw(server.address("amqp"))
    raw.login(heartbeat=1)
    assert quiet.receive().reason == 0x8D
    until_closed(raw.socket)
    assert metric(server, "gateway_transport_refusals", transport="mqtt", reason="keep-alive-timeout") == 1
    assert metric(server, "gateway_transport_protocol_errors", transport="amqp", reason="heartbeat") == 1
    quiet.cut()
    raw.close()


# saying the wrong thing


@pytest.fixture(scope="module")
def listening(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One daemon for all tests that leave nothing in it."""
    short = {"connect_timeout": "2s"}
    whole = config(mqtt=short, amqp=short, web={"request_timeout": "2s"})
    whole["admin"] = {**LOOPBACK, "request_timeout": "2s"}
    server = Daemon(tmp_path_factory.mktemp("peers"), whole)
    yield server.start()
    server.close()


STRANGE = [
    (port, said) for port in (*PORTS, "admin") for said in GREETINGS if said != ("web" if port == "admin" else port)
]


@pytest.mark.parametrize(("port", "said"), STRANGE)
def test_another_protocol_on_the_port_is_sent_away(listening: Daemon, port: str, said: str) -> None:
    with abused(listening, 10 * MB), connect(listening.address(port)) as peer:
        poured(peer, GREETINGS[said])
        answer = until_closed(peer)
        if port == "amqp":
            assert answer == HELLO, "a server that speaks another version says which one it speaks"
        elif port == "mqtt":
            assert answer == b""
        else:
            assert answer.startswith(b"HTTP/1.1 40")
    with connect(listening.address(port)) as peer:  # and the right one is welcome
        poured(peer, GREETINGS["web" if port == "admin" else port])
        assert peer.recv(1)


@pytest.mark.parametrize("port", PORTS)
def test_64_kb_of_garbage(listening: Daemon, port: str) -> None:
    garbage = bytes((n * 167 + n // 251) % 256 for n in range(65_536))
    openings = {"mqtt": [b"", GREETINGS["mqtt"]], "amqp": [b"", HELLO], "web": [b"", b"POST /topics/a HTTP/1.1\r\n"]}
    peers = []
    with abused(listening, 40 * MB):
        for n in range(scaled(500, 60)):
            peers.append(connect(listening.address(port)))
            poured(peers[-1], openings[port][n % 2] + garbage)
        for peer in peers:
            until_closed(peer)
            peer.close()
    assert metric(listening, "gateway_transport_connections", transport=port) == 0


@pytest.mark.parametrize("port", PORTS)
def test_one_byte_at_a_time(listening: Daemon, port: str) -> None:
    message = encode(Publish("jobs/1", b"slowly", 1, packet_id=1), V5)
    whole = {
        "mqtt": (encode(Connect("slow"), V5) + message, b"\x40\x02\x00\x01"),
        "amqp": (HELLO, b"PLAIN"),
        "web": (b"POST /topics/jobs/1 HTTP/1.1\r\nhost: localhost\r\ncontent-length: 6\r\n\r\nslowly", b"HTTP/1.1 201"),
    }
    sent, wanted = whole[port]
    with abused(listening, 10 * MB), connect(listening.address(port)) as peer:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for octet in sent:
            peer.send(bytes((octet,)))
        came = b""
        while wanted not in came:
            data = peer.recv(1000)
            assert data, came
            came += data


def _open_amqp(address: Address) -> Raw:
    raw = Raw(address)
    raw.login()
    return raw


@pytest.mark.parametrize("port", ["mqtt", "amqp frame", "amqp body", "web"])
def test_a_declared_length_of_256_mb(listening: Daemon, port: str) -> None:
    with abused(listening, 20 * MB):
        for _ in range(scaled(200, 20)):
            if port == "mqtt":
                with RawClient(listening.address("mqtt")) as client:
                    client.connect()
                    client.send(b"\x30\xff\xff\xff\x7f" + bytes(1000))
                    assert client.receive().reason == 0x95
            elif port == "web":
                with connect(listening.address("web")) as peer:
                    poured(
                        peer, b"POST /topics/jobs/1 HTTP/1.1\r\nhost: localhost\r\ncontent-length: 268435456\r\n\r\n"
                    )
                    assert peer.recv(12) == b"HTTP/1.1 413"
            else:
                raw = _open_amqp(listening.address("amqp"))
                if port == "amqp frame":
                    raw.socket.sendall(b"\x01\x00\x01\x10\x00\x00\x00" + bytes(1000))
                    assert raw.expect(commands.Connection.Close).reply_code == 501
                else:
                    raw.send(commands.Basic.Publish(routing_key="jobs"), header.ContentHeader(0, 1 << 28))
                    assert raw.expect(commands.Channel.Close).reply_code == 311
                raw.close()


# halves


@pytest.mark.parametrize("port", ["mqtt", "amqp", "web"])
def test_packets_and_bodies_that_never_end_have_one_limit_for_all(daemon: Make, port: str) -> None:
    """Full scale: 1,000 clients with nearly 1 MB each at the default limit of 64 MB."""
    most = scaled(64, 8)
    server = daemon(
        config(
            mqtt={"max_unfinished": f"{most}MB"},
            amqp={"max_unfinished": f"{most}MB", "max_message_size": "2MB"},
            web={"max_unfinished": f"{most}MB", "request_timeout": "1m"},
        )
    )
    address = server.address(port)
    almost = bytes(MB - 4096)
    peers: list[Any] = []
    allow_files(4096)
    with abused(server, (2 * most + 24) * MB):
        for n in range(scaled(1000, 40)):
            if port == "amqp":
                raw = _open_amqp(address)
                peers.append(raw)
                raw.send(commands.Basic.Publish(routing_key="jobs"), header.ContentHeader(0, MB))
                for at in range(0, len(almost), 100_000):
                    poured(raw.socket, amqp_frame(body.ContentBody(almost[at : at + 100_000])))
                continue
            peer = connect(address)
            peers.append(peer)
            if port == "mqtt":
                peer.sendall(encode(Connect(f"half{n}"), V5))
                peer.recv(200)
                poured(peer, encode(Publish("jobs/1", bytes(MB - 100), 1, packet_id=1), V5)[: len(almost)])
            else:
                poured(
                    peer, b"POST /topics/jobs/1 HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1048576\r\n\r\n" + almost
                )
        deadline = time.monotonic() + 10
        while (
            metric(server, "gateway_transport_refusals", transport=port, reason="unfinished")
            < scaled(1000, 40) - most * 1.2
        ):
            assert time.monotonic() < deadline, "nobody was cut off"
            time.sleep(0.05)
    if port == "amqp":
        assert peers[0].read().reply_code == 506
    else:
        until_closed(peers[0].socket if isinstance(peers[0], RawClient) else peers[0])
    for one in peers:
        one.close()


# reading nothing


def flood(server: Daemon, count: int, size: int, topic: str = "jobs/1") -> None:
    """By MQTT 5, QoS 1, a window of 100."""
    with RawClient(server.address("good-mqtt")) as client:
        client.connect("flood")
        publish = encode(Publish(topic, bytes(size), 1, packet_id=1), V5)
        for _ in range(count // 100):
            client.socket.sendall(publish * 100)
            for _ in range(100):
                assert client.expect(Ack).reason == 0


def consume_silently(server: Daemon, way: str) -> Any:
    """A consumer of `jobs` that from now on reads nothing and acknowledges nothing."""
    if way == "mqtt":
        client = RawClient(server.address("mqtt"))
        client.connect("silent")
        assert client.subscribe("$queue/jobs") == (1,)
        return client
    raw = _open_amqp(server.address("amqp"))
    raw.call(commands.Basic.Consume(queue="jobs", no_ack=way == "amqp without acks"), commands.Basic.ConsumeOk)
    return raw


def there(server: Daemon) -> int:
    depth = metric(server, "gateway_queue_messages", queue="jobs")
    return int(depth + metric(server, "gateway_queue_in_flight_messages", queue="jobs"))


@pytest.mark.parametrize("way", ["mqtt", "amqp", "amqp without acks"])
def test_a_peer_that_never_reads(daemon: Make, way: str) -> None:
    """Full scale: 400 MB for it. What it is sent is bounded, and it is all there for another."""
    count = scaled(40_000, 3000)
    server = daemon({**config(), "max_memory": "8MB"})
    silent = consume_silently(server, way)
    with abused(server, 60 * MB):
        flood(server, count, 10_000)
        lost = 0
        if way == "amqp without acks":
            lost = int(metric(server, "gateway_queue_settled", queue="jobs"))
            assert lost * 10_000 < 12 * MB  # what stands in its socket and write buffer is its own
        assert there(server) == count - lost
        silent.socket.close()
        other = _open_amqp(server.address("amqp"))
        other.call(commands.Basic.Qos(prefetch_count=500), commands.Basic.QosOk)
        other.call(commands.Basic.Consume(queue="jobs"), commands.Basic.ConsumeOk)
        taken = 0
        while taken < count - lost:
            tag = other.expect(commands.Basic.Deliver).delivery_tag
            other.read()
            other.expect(body.ContentBody)
            taken += 1
            if taken % 100 == 0 or taken == count - lost:
                other.send(commands.Basic.Ack(tag, multiple=True))
        other.call(commands.Basic.Qos(prefetch_count=1), commands.Basic.QosOk)
        assert there(server) == 0
        other.close()


@pytest.mark.parametrize("way", ["mqtt", "amqp"])
def test_a_peer_that_reads_everything_and_acknowledges_nothing(daemon: Make, way: str) -> None:
    """Full scale: 400 MB. Beyond max_memory no bodies in flight are kept in memory, but some 600 bytes of each are."""
    count = scaled(40_000, 3000)
    server = daemon({**config(mqtt={"max_in_flight": 16_384}), "max_memory": "8MB"})
    silent = consume_silently(server, way)
    with abused(server, scaled(120, 80) * MB):
        flood(server, count, 10_000)
        expected = min(count, 16_384) if way == "mqtt" else count
        octets = 0
        silent.socket.settimeout(10)
        while octets < expected * 10_000:
            octets += len(silent.socket.recv(1 << 20))
        until(lambda: there(server) == count, 10)  # two gauges, read one after the other
        assert metric(server, "gateway_memory_bytes") < 12 * MB
    silent.socket.close()


def test_answers_that_nobody_reads_stop_the_questions(daemon: Make) -> None:
    """A client that only asks: MQTT pings, passive declares, GETs. Its answers are bounded, and then it is not read."""
    server = daemon(config())
    declare = amqp_frame(commands.Queue.Declare(queue="jobs", passive=True))
    asks = {"mqtt": b"\xc0\x00" * 30_000, "amqp": declare * 1000, "web": GREETINGS["web"] * 1000}
    with abused(server, 80 * MB):
        for port, question in asks.items():
            if port == "amqp":
                peer = _open_amqp(server.address("amqp")).socket
            else:
                peer = connect(server.address(port))
                if port == "mqtt":
                    peer.sendall(GREETINGS["mqtt"])
            peer.setblocking(False)
            sent, deadline = 0, time.monotonic() + scaled(60, 3)
            while time.monotonic() < deadline and select.select([], [peer], [], 0.5)[1]:
                try:
                    sent += peer.send(question)
                except BlockingIOError:
                    break
                except ConnectionError:
                    break
            peer.close()
            print(f"{port}: {sent} bytes of questions were taken")
