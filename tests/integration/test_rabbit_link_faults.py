"""A link to a real RabbitMQ that is killed, paused, short of memory or cut off while messages flow both ways.

A feeder publishes there and a worker consumes our queue, and a device publishes to us and an observer consumes there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import trustme

from tests.faults.abuse import metric
from tests.harness.link import GROUPS, SECONDS, Start, check_order, readiness, wait_for
from tests.harness.process import quiet_port
from tests.harness.rabbitmq import RabbitMq
from tests.harness.relay import Relay
from tests.integration.rabbit_link import (
    Feeder,
    MakePeer,
    Observer,
    Traffic,
    config,
    depth,
    drained,
    impaired,
    is_up,
    refusals,
    there,
)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMq]:
    """A node that tests may kill and pause, with TLS on `tls_port`."""
    folder = tmp_path_factory.mktemp("rabbitmq-own")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    for who in ("server", "client"):
        found = authority.issue_cert("127.0.0.1" if who == "server" else "link.example")
        found.private_key_and_cert_chain_pem.write_to_path(folder / f"{who}.pem")
    port = quiet_port()
    (folder / "tls_port").write_text(str(port))
    settings = (
        f"listeners.ssl.1 = 127.0.0.1:{port}\nssl_options.cacertfile = {folder}/ca.pem\n"
        f"ssl_options.certfile = {folder}/server.pem\nssl_options.keyfile = {folder}/server.pem\n"
        "ssl_options.verify = verify_peer\nssl_options.fail_if_no_peer_cert = true\n"
    )
    node = RabbitMq(folder, plugins=(), settings=settings)
    try:
        yield node.start()
    finally:
        node.close()


def test_the_node_is_killed_and_restarted(
    daemon: Start, own: RabbitMq, name: str, peer: MakePeer, observe: Callable[..., Observer]
) -> None:
    gateway = daemon(config(own, name))
    is_up(gateway)
    traffic = Traffic(gateway, own, name, peer, observe, 400)
    traffic.under_way(50)
    own.kill()
    wait_for(lambda: metric(gateway, "gateway_transport_connections", transport="rabbit") == 0, "both are down")
    status, told = readiness(gateway)
    assert (status, list(told["impaired"])) == (200, ["rabbit"])
    assert "publishing: " in told["impaired"]["rabbit"] and "consuming: " in told["impaired"]["rabbit"]
    wait_for(lambda: "Connection refused" in impaired(gateway), "/readyz tells why")
    assert str(own.amqp.port) not in impaired(gateway)
    wait_for(lambda: depth(gateway) > 20, "the outbox takes what the device sends")
    own.start()
    traffic.finish()
    drained(gateway)
    assert refusals(gateway, "link-unreachable") >= 1
    assert gateway.stop() == 0


def test_the_node_is_paused(
    daemon: Start, own: RabbitMq, name: str, peer: MakePeer, observe: Callable[..., Observer]
) -> None:
    gateway = daemon(config(own, name, required=True))
    is_up(gateway)
    traffic = Traffic(gateway, own, name, peer, observe, 300)
    traffic.under_way(50)
    own.pause()
    try:
        gateway.wait_for("link is down", lambda record: record["part"] == "publishing")
        gateway.wait_for("link is down", lambda record: record["part"] == "consuming")
        status, told = readiness(gateway)
        assert (status, told["ready"]) == (503, False)
    finally:
        own.resume()
    traffic.finish()
    drained(gateway)


def test_the_node_is_short_of_memory(
    daemon: Start, own: RabbitMq, name: str, peer: MakePeer, observe: Callable[..., Observer]
) -> None:
    """It takes nothing then, and gives what it has: what is there comes in, what goes out waits for its confirms
    however long that takes."""
    settings = config(own, name, confirm_timeout="1s", prefetch=10)
    settings["queues"]["in"]["max_messages"] = 5
    gateway = daemon(settings)
    is_up(gateway)
    observer = observe(own, f"{name}.seen")
    device = peer(gateway.address("mqtt"), "device")
    with there(own) as channel:
        for number in range(50):
            channel.basic_publish(f"{name}.feed", f"up.{number % GROUPS}", b"%d" % number)
    own.control("set_vm_memory_high_watermark", "0.00001")
    try:
        for number in range(50):
            device.publish(f"down/{number % GROUPS}", b"%d" % number)
        gateway.wait_for("link is blocked")
        assert "publishing: the remote takes no messages at present: low on memory" in impaired(gateway)
        assert refusals(gateway, "link-blocked") == 1
        worker = peer(gateway.address("mqtt"), "worker", "$queue/in")
        check_order(worker.wait_until(lambda found: len(set(found)) >= 50), 50)
        wait_for(lambda: not impaired(gateway).count("queue "), "what came is stored and acknowledged")
        assert len(observer.seen) <= 1  # what it took as it began to block
    finally:
        own.control("set_vm_memory_high_watermark", "0.6")
    check_order(observer.wait_until(lambda found: len(set(found)) >= 50), 50)
    drained(gateway)
    assert refusals(gateway, "confirm-timeout") == 0
    assert metric(gateway, "gateway_transport_connections_opened", transport="rabbit") == 2


def test_a_queue_is_deleted_while_it_is_consumed(
    daemon: Start, rabbitmq: RabbitMq, name: str, peer: MakePeer, observe: Callable[..., Observer]
) -> None:
    """Its messages are lost with it, by whoever deleted it; what comes after that is not."""
    gateway = daemon(config(rabbitmq, name))
    is_up(gateway)
    traffic = Traffic(gateway, rabbitmq, name, peer, observe, 200)
    traffic.under_way(20)
    seen = len(gateway.log)
    with there(rabbitmq) as channel:
        channel.queue_delete(f"{name}.in")
        lost = gateway.wait_for("link does not consume", after=seen)
        assert lost["reason"] == "the remote cancelled the consumer: its queue is gone, or has moved"
        gateway.wait_for("link consumes", after=seen)
        assert refusals(gateway, "consumer-lost") == 1
        channel.basic_publish(f"{name}.feed", "up.0", b"again", mandatory=True)
    traffic.worker.wait_until(lambda bodies: b"again" in bodies)
    check_order(traffic.observer.wait_until(lambda bodies: len(set(bodies)) >= 200), 200)
    drained(gateway)


def test_a_queue_that_is_not_there_is_told_and_consumed_as_soon_as_it_is(
    daemon: Start, rabbitmq: RabbitMq, name: str, peer: MakePeer
) -> None:
    gateway = daemon(config(rabbitmq, name, consume=[f"{name}.in", f"{name}.late"]))
    wait_for(lambda: "NOT_FOUND" in impaired(gateway), "/readyz tells it")
    assert impaired(gateway).startswith(f"queue {name}.late: ")
    worker = peer(gateway.address("mqtt"), "worker", "$queue/in")
    with there(rabbitmq) as channel:
        channel.basic_publish(f"{name}.feed", "up.1", b"the other queue is consumed")
        worker.take(b"the other queue is consumed")
        channel.queue_declare(f"{name}.late")
        gateway.wait_for("link consumes", lambda record: record["queue"] == f"{name}.late")
        wait_for(lambda: impaired(gateway) == "", "/readyz tells that it is over")
        channel.queue_delete(f"{name}.late")


def test_credentials_are_revoked_and_given_again(
    daemon: Start, rabbitmq: RabbitMq, name: str, peer: MakePeer, observe: Callable[..., Observer], tmp_path: Any
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("right\n")
    user, all_of_it = f'<<"{name}">>', '<<".*">>'
    add = (
        f'rabbit_auth_backend_internal:add_user({user}, <<"right">>, <<"test">>), '
        f'rabbit_auth_backend_internal:set_permissions({user}, <<"/">>, {", ".join([all_of_it] * 3)}, <<"test">>).'
    )
    delete = f'rabbit_auth_backend_internal:delete_user({user}, <<"test">>).'
    rabbitmq.control("eval", add)
    url = f"amqp://{name}@{rabbitmq.amqp.host}:{rabbitmq.amqp.port}"
    gateway = daemon(config(rabbitmq, name, url=url, password_file=str(secret)))
    is_up(gateway)
    traffic = Traffic(gateway, rabbitmq, name, peer, observe, 300)
    traffic.under_way(50)
    rabbitmq.control("eval", delete)
    gateway.wait_for("link is down", lambda record: "ACCESS_REFUSED" in record["reason"])
    assert refusals(gateway, "link-refused") >= 1
    assert "ACCESS_REFUSED" in impaired(gateway)
    assert "right" not in gateway.text()
    rabbitmq.control("eval", add)
    traffic.finish()
    drained(gateway)
    rabbitmq.control("eval", delete)


def test_connections_are_cut(
    daemon: Start, rabbitmq: RabbitMq, name: str, peer: MakePeer, observe: Callable[..., Observer]
) -> None:
    relay = Relay(rabbitmq.amqp)
    gateway = daemon(config(rabbitmq, name, url=f"amqp://127.0.0.1:{relay.address.port}"))
    is_up(gateway)
    traffic = Traffic(gateway, rabbitmq, name, peer, observe, 300)
    for came in (50, 100, 150):
        traffic.under_way(came)
        seen = len(gateway.log)
        relay.cut()
        is_up(gateway, after=seen)
    traffic.finish()
    drained(gateway)
    assert metric(gateway, "gateway_transport_connections_opened", transport="rabbit") >= 8
    relay.close_port()


def test_the_gateway_is_killed_while_messages_flow(
    daemon: Start, rabbitmq: RabbitMq, name: str, peer: MakePeer, observe: Callable[..., Observer]
) -> None:
    settings = config(rabbitmq, name)
    settings["transports"]["rabbit"]["topology"]["queues"][f"{name}.in"]["arguments"] = {"x-queue-type": "quorum"}
    gateway = daemon(settings)
    is_up(gateway)
    feeder = Feeder(rabbitmq, f"{name}.feed", 300)
    device = peer(gateway.address("mqtt"), "device")
    for number in range(100):
        device.publish(f"down/{number % GROUPS}", b"%d" % number)
    gateway.kill()
    gateway.start()
    is_up(gateway)
    worker = peer(gateway.address("mqtt"), "worker", "$queue/in")
    check_order(worker.wait_until(lambda found: len(set(found)) >= 300), 300)
    observer = observe(rabbitmq, f"{name}.seen")
    check_order(observer.wait_until(lambda found: len(set(found)) >= 100), 100)
    ids = {body: properties.message_id for _, properties, body in observer.seen}
    assert {ids[body] == properties.message_id for _, properties, body in observer.seen} == {True}
    feeder.join(SECONDS)


def test_tls_with_a_client_certificate_and_a_virtual_host(
    daemon: Start, own: RabbitMq, name: str, peer: MakePeer, observe: Callable[..., Observer]
) -> None:
    port = (own.folder / "tls_port").read_text()
    tls = {"ca": f"{own.folder}/ca.pem", "cert": f"{own.folder}/client.pem"}
    gateway = daemon(config(own, name, url=f"amqps://guest:guest@127.0.0.1:{port}/%2F", tls=tls))
    is_up(gateway)
    observer = observe(own, f"{name}.seen")
    worker = peer(gateway.address("mqtt"), "worker", "$queue/in")
    peer(gateway.address("mqtt"), "device").publish("down/0", b"out" * 100_000)
    observer.take(b"out" * 100_000)
    with there(own) as channel:
        channel.basic_publish(f"{name}.feed", "up.0", b"in" * 100_000)
    worker.take(b"in" * 100_000)
