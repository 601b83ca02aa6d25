"""Owns Stage: one connection of a listener on a gateway in this process, fed with whatever somebody made up.

Its rule: it is the daemon's own core, committer and connection; only the socket is not there. Whatever the bytes say,
nothing raises, nothing is left behind, and who stands beside is served.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence

from gateway.address import Address
from gateway.auth.users import Access
from gateway.broker.core import Core
from gateway.clock import Clock
from gateway.engine.committer import Committer
from gateway.engine.gateway import LocalGateway
from gateway.engine.recovery import restore
from gateway.model.credit import Pressure
from gateway.model.message import Message
from gateway.model.policy import DedupPolicy, Octets, QueuePolicy, Seconds
from gateway.net.connection_limits import Crowd
from gateway.net.tcp import TcpConnection
from gateway.storage.memory import MemoryJournal
from gateway.transport import Binding, Delivery, Verdict
from tests.harness.socket import NoSocket
from transports.amqp.channel import Places
from transports.amqp.connection import AmqpConnection
from transports.amqp.listener import AmqpSettings
from transports.amqp.topology import Topology
from transports.mqtt.connection import MqttConnection, Shared
from transports.mqtt.sessions import Sessions
from transports.mqtt.settings import MqttSettings

CPU_SECONDS = 5.0
MAX_HELD = 1 << 20
"""Octets of what is not whole, and of answers for one octet that came, that no input may pass."""
NOWHERE = Address.parse("127.0.0.1:0")
QUEUES = {
    "jobs": QueuePolicy(max_deliveries=3, dead_letter="dead"),
    "a": QueuePolicy(durable=False, max_messages=10, overflow="drop-oldest", dead_letter="none"),
    "lines": QueuePolicy(group="{topic[0]|none}", dedup=DedupPolicy("sha256", Seconds(60)), max_groups=3),
    "dead": QueuePolicy(max_deliveries=None, dead_letter="none"),
    "watched": QueuePolicy(),
}


class Bystander:
    """A consumer of the queue `watched`, with whom nobody has anything to do."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []

    def deliver(self, batch: Sequence[Delivery]) -> None:
        self.seen += [delivery.message.body for delivery in batch]
        self.subscription.settle([delivery.id for delivery in batch], Verdict.DONE)

    def attach(self, gateway: LocalGateway) -> None:
        self.subscription = gateway.attach("watched", self)
        self.subscription.grant(1000)

    def closed(self, reason: str) -> None:
        pass


class Stage:
    """`connect` makes the connection of the protocol that is tried."""

    def __init__(self, gateway: LocalGateway, connect: Callable[[], TcpConnection]) -> None:
        self.gateway = gateway
        self.faults: list[str] = []
        gateway.core.report = lambda what, error: self.faults.append(f"{what}: {error!r}")
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: self.faults.append(str(context)))
        self.bystander = Bystander()
        self.bystander.attach(gateway)
        self.connection = connect()
        self.socket = NoSocket(self.connection)
        self.connection.connection_made(self.socket)

    async def settle_down(self) -> None:
        """What was begun is done."""
        await self.gateway.put()
        for _ in range(4):
            await asyncio.sleep(0)

    async def feed(self, data: bytes) -> bool:
        """As one read of the socket; False if there will be no more."""
        for _ in range(3):
            if self.socket.reading or self.socket.ended:
                break
            await self.settle_down()
        if self.socket.ended or not self.socket.reading:
            return False
        self.connection.data_received(data)
        await asyncio.sleep(0)
        return True

    async def end(self) -> None:
        """The peer is gone. Raises AssertionError for whatever is not as it must be."""
        await self.settle_down()
        assert self.connection.unfinished() < MAX_HELD
        self.socket.abort()
        for _ in range(3):
            await self.settle_down()
        gateway = self.gateway
        gateway.accept([Message("watched", b"mine", "")])
        await self.settle_down()
        counters = gateway.counters("it")
        assert not self.faults, self.faults
        assert not counters.protocol_errors["internal"], "something raised; the log has it"
        assert self.bystander.seen[-1:] == [b"mine"], "the bystander was not served"
        assert counters.connections == 0
        crowd = self.connection.crowd
        assert (len(crowd), crowd.unfinished) == (0, 0)
        for queue in gateway.core.queues.values():
            assert queue.in_flight == 0, f"deliveries of {queue.name} are still with the connection"
            assert queue.consumers == (queue.name == "watched"), f"consumers of {queue.name} are left"
        assert gateway.core.memory.octets >= gateway.core.memory.volatile >= 0
        assert gateway.core.retained.octets >= 0


def _mqtt(gateway: LocalGateway) -> TcpConnection:
    settings = MqttSettings(listen=NOWHERE, max_packet_size=Octets(64 << 10), max_subscriptions=20)
    return MqttConnection(Shared("it", settings, gateway, Sessions(gateway)))


def _amqp(gateway: LocalGateway) -> TcpConnection:
    settings = AmqpSettings(listen=NOWHERE, max_message_size=Octets(64 << 10), max_queues=20, max_consumers=20)
    topology = Topology()
    topology.natives.add("it")
    counters = gateway.counters("it")
    crowd = Crowd(settings.max_connections, settings.max_unfinished, counters)
    return AmqpConnection(gateway, counters, crowd, topology, settings, "it", "0", set(), Places(1000))


PROTOCOLS: dict[str, Callable[[LocalGateway], TcpConnection]] = {"mqtt": _mqtt, "amqp": _amqp}


@contextlib.asynccontextmanager
async def stage(protocol: str) -> AsyncIterator[Stage]:
    """On a gateway of its own."""
    core = Core(Clock(), b"s" * 32, max_memory=1 << 20, max_retained=1 << 20)
    journal = MemoryJournal()
    journal.open()
    pressure = Pressure()
    committer = Committer(core, journal, pressure)
    gateway = LocalGateway(committer, Access({}), pressure, drain_timeout=1.0)
    restored = restore(core, journal)
    for name, policy in QUEUES.items():
        core.declare(name, policy, "config")
        core.bind(Binding(queue=name, filter=f"{name}/#", owner="config"))
    committer.start(restored)
    made = Stage(gateway, lambda: PROTOCOLS[protocol](gateway))
    try:
        yield made
    finally:
        await committer.close()
        gateway.access.close()


def play(protocol: str, pieces: Sequence[bytes]) -> None:
    """Each piece as one read, then the end of the connection. Raises AssertionError."""

    async def run() -> None:
        async with stage(protocol) as it:
            for piece in pieces:
                if not await it.feed(piece):
                    break
            await it.end()

    began = time.process_time()
    asyncio.run(run())
    took = time.process_time() - began
    assert took < CPU_SECONDS, f"{took:.1f} s of work for {sum(map(len, pieces))} bytes"


def cut(data: bytes) -> list[bytes]:
    """How an input of the fuzzer is read: its first octet says in pieces of how many bytes the rest arrives."""
    if not data:
        return []
    step = (1, 2, 7, 64, 1024, 1 << 20)[data[0] % 6]
    return [data[at : at + step] for at in range(1, len(data), step)]
