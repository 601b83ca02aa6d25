"""Pressure and access, with the listener on a core in this process, whose pressure can be set by hand."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pamqp import body, commands, header

from gateway.address import Address as Listen
from gateway.auth.users import Access, hash_password
from gateway.broker.core import Core
from gateway.clock import Clock
from gateway.engine.committer import Committer
from gateway.engine.gateway import LocalGateway
from gateway.engine.recovery import restore
from gateway.model.credit import Pressure
from gateway.model.policy import Octets, Seconds
from gateway.storage.memory import MemoryJournal
from tests.harness.process import Address
from tests.integration.amqp_raw import HELLO, Raw
from transports.amqp.connection import AmqpConnection
from transports.amqp.listener import AmqpListener, AmqpSettings

pytestmark = pytest.mark.anyio
Basic, Queue = commands.Basic, commands.Queue


@contextlib.asynccontextmanager
async def listening(
    users: dict[str, str] | None = None, **settings: Any
) -> AsyncIterator[tuple[LocalGateway, Address]]:
    core, journal, pressure = Core(Clock(), b"s" * 32), MemoryJournal(), Pressure()
    committer = Committer(core, journal, pressure)
    gateway = LocalGateway(committer, Access(users or {}), pressure, drain_timeout=1.0)
    journal.open()
    committer.start(restore(core, journal))
    up = asyncio.Event()
    gateway.on_started = up.set
    listener = AmqpListener("amqp", AmqpSettings(listen=Listen.parse("127.0.0.1:0"), **settings))
    running = asyncio.create_task(listener.run(gateway))
    await up.wait()
    host, port = gateway.addresses["amqp"][0].removeprefix("amqp://").split(":")
    try:
        yield gateway, Address(host, int(port))
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        await committer.close()
        gateway.access.close()


class Peer:
    """Raw, called from the loop that serves it."""

    def __init__(self, raw: Raw) -> None:
        self.raw = raw

    @classmethod
    async def connect(cls, address: Address) -> Peer:
        peer = cls(await asyncio.to_thread(Raw, address))
        await asyncio.to_thread(peer.raw.login)
        return peer

    async def send(self, *frames: Any) -> None:
        await asyncio.to_thread(self.raw.send, *frames)

    async def call(self, method: Any, answer: type[Any]) -> Any:
        return await asyncio.to_thread(self.raw.call, method, answer)

    async def expect(self, kind: type[Any]) -> Any:
        return await asyncio.to_thread(self.raw.expect, kind)

    async def publish(self, content: bytes, key: str, **options: Any) -> None:
        await asyncio.to_thread(lambda: self.raw.publish(content, key, **options))


async def with_a_delivery(address: Address) -> Peer:
    """A client to which a message of `q` was delivered, and which has not settled it."""
    peer = await Peer.connect(address)
    await peer.call(Queue.Declare(queue="q"), Queue.DeclareOk)
    await peer.publish(b"1", "q")
    await peer.call(Basic.Consume(queue="q"), Basic.ConsumeOk)
    for kind in (Basic.Deliver, header.ContentHeader, body.ContentBody):
        await peer.expect(kind)
    return peer


async def test_a_connection_with_nothing_to_settle_is_paused_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async with listening() as (gateway, address):
        peer = await Peer.connect(address)
        await peer.call(Queue.Declare(queue="q"), Queue.DeclareOk)
        await peer.call(commands.Confirm.Select(), commands.Confirm.SelectOk)
        monkeypatch.setattr(gateway.committer, "_relieve", lambda: None)  # it would find that nothing presses
        gateway.pressure.set(True)
        await peer.publish(b"1", "q")
        await peer.expect(commands.Connection.Blocked)
        await peer.expect(Basic.Ack)  # what was read is answered
        await peer.publish(b"2", "q")
        await gateway.put()
        assert gateway.core.queues["q"].depth == 1  # and nothing more is read
        gateway.pressure.set(False)
        await peer.expect(commands.Connection.Unblocked)
        await peer.expect(Basic.Ack)
        peer.raw.close()


async def test_a_connection_with_unsettled_deliveries_is_refused_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    async with listening() as (gateway, address):
        peer = await with_a_delivery(address)
        await peer.call(commands.Confirm.Select(), commands.Confirm.SelectOk)
        monkeypatch.setattr(gateway.committer, "_relieve", lambda: None)
        gateway.pressure.set(True)
        await peer.publish(b"2", "q")
        assert (await peer.expect(Basic.Nack)).delivery_tag == 1
        await peer.send(Basic.Ack(delivery_tag=1))
        await peer.call(Basic.Qos(prefetch_count=1), Basic.QosOk)
        queue = gateway.core.queues["q"]
        assert (queue.depth, queue.in_flight) == (0, 0)
        assert gateway.counters("amqp").refusals["publish"] == 1
        peer.raw.close()


async def test_a_publish_that_brings_the_pressure_does_not_keep_acks_from_coming(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with listening() as (gateway, address):
        peer = await with_a_delivery(address)
        # This one fills the backlog, which is not relieved as long as the disk takes nothing.
        monkeypatch.setattr(gateway.committer, "_relieve", lambda: gateway.pressure.set(True))
        await peer.publish(b"2", "elsewhere")
        await peer.send(Basic.Ack(delivery_tag=1))
        await peer.call(Basic.Qos(prefetch_count=1), Basic.QosOk)
        assert gateway.core.queues["q"].in_flight == 0
        peer.raw.close()


async def test_a_delivery_wakes_a_paused_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    async with listening() as (gateway, address):
        peer, other = await Peer.connect(address), await Peer.connect(address)
        await peer.call(Queue.Declare(queue="q"), Queue.DeclareOk)
        await peer.call(Basic.Consume(queue="q"), Basic.ConsumeOk)
        monkeypatch.setattr(gateway.committer, "_relieve", lambda: None)
        await peer.publish(b"1", "elsewhere")
        gateway.pressure.set(True)
        await peer.publish(b"2", "elsewhere")
        await peer.expect(commands.Connection.Blocked)
        await other.publish(b"3", "q")
        await peer.expect(Basic.Deliver)
        await peer.expect(header.ContentHeader)
        await peer.expect(body.ContentBody)
        await peer.expect(commands.Connection.Unblocked)
        await peer.call(Basic.Qos(prefetch_count=1), Basic.QosOk)  # it is read again
        peer.raw.close()
        other.raw.close()


async def test_many_unconfirmed_publishes_pause_and_go_on() -> None:
    async with listening(max_unconfirmed=10) as (gateway, address):
        peer = await Peer.connect(address)
        await peer.call(Queue.Declare(queue="q", durable=True), Queue.DeclareOk)
        await peer.call(commands.Confirm.Select(), commands.Confirm.SelectOk)
        for number in range(100):
            await peer.publish(b"%d" % number, "q")
        confirmed = 0
        while confirmed < 100:
            confirmed = (await peer.expect(Basic.Ack)).delivery_tag
        assert gateway.core.queues["q"].depth == 100
        peer.raw.close()


async def test_what_was_handed_over_without_acks_is_settled_before_a_protocol_error_ends_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(AmqpConnection, "flushed", lambda self: None)  # the error comes in the turn of the delivery
    async with listening() as (gateway, address):
        peer = await Peer.connect(address)
        await peer.call(Queue.Declare(queue="q"), Queue.DeclareOk)
        await peer.publish(b"1", "q")
        await peer.call(Basic.Consume(queue="q", no_ack=True), Basic.ConsumeOk)
        for kind in (Basic.Deliver, header.ContentHeader, body.ContentBody):
            await peer.expect(kind)
        queue = gateway.core.queues["q"]
        assert queue.in_flight == 1
        await asyncio.to_thread(peer.raw.socket.sendall, bytes.fromhex("01 0001 00000004 00630001 ce"))
        await peer.expect(commands.Connection.Close)
        assert (queue.depth, queue.in_flight, queue.counters.settled) == (0, 0, 1)
        peer.raw.close()


@pytest.mark.parametrize(
    ("name", "password", "anonymous", "let_in"),
    [
        ("ann", "right", False, True),
        ("ann", "wrong", False, False),
        ("guest", "guest", False, False),
        ("guest", "guest", True, True),
        ("guest", "other", True, False),
        ("bob", "right", True, False),
    ],
)
async def test_login(name: str, password: str, anonymous: bool, let_in: bool) -> None:
    async with listening({"ann": hash_password("right")}, allow_anonymous=anonymous) as (gateway, address):
        peer = Peer(await asyncio.to_thread(Raw, address))
        peer.raw.socket.sendall(HELLO)
        await peer.expect(commands.Connection.Start)
        capabilities = {"capabilities": {"authentication_failure_close": True}}
        await peer.send(commands.Connection.StartOk(capabilities, "PLAIN", f"\0{name}\0{password}"), 0)
        if let_in:
            await peer.expect(commands.Connection.Tune)
        else:
            assert (await peer.expect(commands.Connection.Close)).reply_code == 403
            assert gateway.counters("amqp").refusals["bad-credentials"] == 1
        peer.raw.close()


AMQPLAIN = b"\x05LOGINS\0\0\0\x03ann\x08PASSWORDS\0\0\0\x05right"


@pytest.mark.parametrize(
    ("mechanism", "response", "let_in"),
    [
        ("AMQPLAIN", AMQPLAIN, True),
        ("AMQPLAIN", AMQPLAIN.replace(b"right", b"wrong"), False),
        ("AMQPLAIN", AMQPLAIN[:11], False),
        ("AMQPLAIN", AMQPLAIN[:-1], False),
        ("EXTERNAL", b"ann", False),
        ("CRAM-MD5", b"", False),
    ],
)
async def test_other_mechanisms(mechanism: str, response: bytes, let_in: bool) -> None:
    async with listening({"ann": hash_password("right")}) as (_, address):
        peer = Peer(await asyncio.to_thread(Raw, address))
        peer.raw.socket.sendall(HELLO)
        await peer.expect(commands.Connection.Start)
        capabilities = {"capabilities": {"authentication_failure_close": True}}
        await peer.send(commands.Connection.StartOk(capabilities, mechanism, response.decode()), 0)
        if let_in:
            await peer.expect(commands.Connection.Tune)
        else:
            assert (await peer.expect(commands.Connection.Close)).reply_code == 403
        peer.raw.close()


@pytest.mark.parametrize("secret", ["right", "wrong"])
async def test_a_new_secret_is_checked(secret: str) -> None:
    async with listening({"ann": hash_password("right")}) as (_, address):
        peer = Peer(await asyncio.to_thread(Raw, address))
        peer.raw.socket.sendall(HELLO)
        await peer.expect(commands.Connection.Start)
        await peer.send(commands.Connection.StartOk({}, "PLAIN", "\0ann\0right"), 0)
        tune = await peer.expect(commands.Connection.Tune)
        await peer.send(commands.Connection.TuneOk(tune.channel_max, tune.frame_max, 0), 0)
        await peer.send(commands.Connection.Open(), 0)
        await peer.expect(commands.Connection.OpenOk)
        await peer.send(commands.Connection.UpdateSecret(secret, "it was about to expire"), 0)
        if secret == "right":
            await peer.expect(commands.Connection.UpdateSecretOk)
            await peer.send(commands.Channel.Open(), 1)
            await peer.expect(commands.Channel.OpenOk)
        else:
            close = await peer.expect(commands.Connection.Close)
            assert (close.reply_code, close.class_id, close.method_id) == (530, 10, 70)
        peer.raw.close()


async def test_a_pipelined_handshake_is_read_to_its_end() -> None:
    async with listening(heartbeat=Seconds(0)) as (_, address):
        peer = Peer(await asyncio.to_thread(Raw, address))
        start_ok = bytes.fromhex(
            "01 0000 00000024 000a 000b 00000000 05 504c41494e 0000000c 00 6775657374 00 6775657374"
        )
        await asyncio.to_thread(peer.raw.socket.sendall, HELLO + start_ok + b"\x05en_US\xce")
        await peer.expect(commands.Connection.Start)
        await peer.expect(commands.Connection.Tune)
        peer.raw.close()


async def test_what_is_finished_does_not_count_as_unfinished() -> None:
    """Bodies of one frame and of several, whole again and again, far more of them than may be unfinished."""
    limits = {"max_message_size": Octets(16_384), "max_unfinished": Octets(16_384), "frame_max": 4096}
    async with listening(**limits) as (_, address):
        peer = await Peer.connect(address)
        await peer.call(commands.Confirm.Select(), commands.Confirm.SelectOk)
        for size in (1000, 9000, 1) * 40:
            parts = [bytes(min(4000, size - start)) for start in range(0, size, 4000)]
            await peer.send(
                Basic.Publish(exchange="amq.topic", routing_key="nobody"),
                header.ContentHeader(0, size, Basic.Properties()),
                *[body.ContentBody(part) for part in parts],
            )
            await peer.expect(Basic.Ack)
        await peer.call(Queue.Declare(queue="here"), Queue.DeclareOk)
        peer.raw.close()
