"""What all AMQP clients share: how much of it one user may have, and how many channels and consumers there may be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pamqp import commands

from gateway.auth.users import hash_password
from tests.faults.abuse import metric
from tests.harness.daemon import Daemon
from tests.integration.amqp_raw import Raw

Channel, Connection, Exchange, Queue, Basic = (
    commands.Channel,
    commands.Connection,
    commands.Exchange,
    commands.Queue,
    commands.Basic,
)
Make = Callable[..., Daemon]


def config(**limits: int) -> dict[str, Any]:
    return {"transports": {"amqp": {"type": "amqp", "listen": "127.0.0.1:0", **limits}}, "queues": {"orders": {}}}


def login(daemon: Daemon, user: str = "guest") -> Raw:
    raw = Raw(daemon.address("amqp"))
    raw.login(user)
    return raw


def refused(raw: Raw, method: Any, channel: int = 1) -> str:
    raw.send(method, channel)
    close = raw.expect(Connection.Close)
    assert close.reply_code == 506
    raw.close()
    return str(close.reply_text)


def queue(name: str, **options: bool) -> Queue.Declare:
    return Queue.Declare(queue=name, **{"durable": True, **options})


def exchange(name: str) -> Exchange.Declare:
    return Exchange.Declare(exchange=name, exchange_type="topic", durable=True)


@pytest.fixture
def shared(daemon: Make) -> Daemon:
    users = {name: {"password_hash": hash_password(name)} for name in ("ann", "bob")}
    limits = {"max_queues": 6, "max_queues_per_user": 3, "max_exchanges": 4, "max_exchanges_per_user": 2}
    return daemon({**config(**limits), "users": users})


def test_one_user_leaves_room_for_the_others(shared: Daemon) -> None:
    ann = login(shared, "ann")
    for name in ("a1", "a2"):
        ann.call(queue(name), Queue.DeclareOk)
        ann.call(exchange(name), Exchange.DeclareOk)
    ann.call(queue("mine", durable=False, exclusive=True), Queue.DeclareOk)
    ann.call(queue("a1"), Queue.DeclareOk)  # it is there
    assert "user 'ann' has 3 queues" in refused(ann, queue("a3"))

    ann = login(shared, "ann")
    ann.call(queue("a3"), Queue.DeclareOk)  # the exclusive one is gone with its connection
    assert "user 'ann' has 2 exchanges" in refused(ann, exchange("a3"))
    bob = login(shared, "bob")
    for name in ("b1", "b2"):
        bob.call(queue(name), Queue.DeclareOk)
        bob.call(exchange(name), Exchange.DeclareOk)
    bob.call(Queue.Delete(queue="a1"), Queue.DeleteOk)
    bob.call(Exchange.Delete(exchange="a1"), Exchange.DeleteOk)

    ann = login(shared, "ann")
    ann.call(queue("a4"), Queue.DeclareOk)
    ann.call(exchange("a4"), Exchange.DeclareOk)
    ann.close()
    bob.close()


def test_a_restart_forgets_no_share(shared: Daemon) -> None:
    ann = login(shared, "ann")
    for name in ("a1", "a2", "a3"):
        ann.call(queue(name), Queue.DeclareOk)
    ann.call(exchange("a1"), Exchange.DeclareOk)
    ann.call(exchange("a2"), Exchange.DeclareOk)
    ann.close()
    shared.restart()
    assert "user 'ann' has 3 queues" in refused(login(shared, "ann"), queue("a4"))
    assert "user 'ann' has 2 exchanges" in refused(login(shared, "ann"), exchange("a4"))
    bob = login(shared, "bob")
    bob.call(queue("b1"), Queue.DeclareOk)
    bob.close()


def test_without_users_nobody_has_a_share(daemon: Make) -> None:
    raw = login(daemon(config(max_queues=3, max_queues_per_user=1)))
    for name in ("1", "2", "3"):
        raw.call(queue(name), Queue.DeclareOk)
    assert "there are 3 queues" in refused(raw, queue("4"))


def test_channels_of_all_connections(daemon: Make) -> None:
    server = daemon(config(max_all_channels=4))
    one, other = login(server), login(server)
    one.send(Channel.Open(), 2)
    one.expect(Channel.OpenOk)
    other.send(Channel.Open(), 2)
    other.expect(Channel.OpenOk)
    assert "4 channels" in refused(other, Channel.Open(), 3)
    # With its connection its channels are gone; so is one that is closed, by either side.
    for _ in range(3):
        one.send(Channel.Open(), 3)
        one.expect(Channel.OpenOk)
        one.send(Channel.Close(200, "", 0, 0), 3)
        one.expect(Channel.CloseOk)
        one.send(queue("none", passive=True), 2)
        assert one.expect(Channel.Close).reply_code == 404
        one.send(Channel.CloseOk(), 2)
        one.send(Channel.Open(), 2)
        one.expect(Channel.OpenOk)
    other = login(server)
    other.send(Channel.Open(), 2)
    other.expect(Channel.OpenOk)
    assert "4 channels" in refused(one, Channel.Open(), 3)
    other.close()
    assert metric(server, "gateway_transport_protocol_errors", reason="resource-error") == 2


def test_consumers_of_all_connections(daemon: Make) -> None:
    server = daemon(config(max_all_consumers=3))
    one, other = login(server), login(server)
    for raw, tag in ((one, "a"), (one, "b"), (other, "c")):
        raw.call(Basic.Consume(queue="orders", consumer_tag=tag), Basic.ConsumeOk)
    assert "3 consumers" in refused(other, Basic.Consume(queue="orders"))
    one.call(Basic.Consume(queue="orders", consumer_tag="c"), Basic.ConsumeOk)
    one.call(Basic.Cancel(consumer_tag="a"), Basic.CancelOk)
    one.call(Basic.Consume(queue="orders", consumer_tag="a"), Basic.ConsumeOk)
    assert "3 consumers" in refused(one, Basic.Consume(queue="orders"))
