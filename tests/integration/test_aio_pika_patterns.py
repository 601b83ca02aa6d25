"""aio-pika's package `patterns` as it comes: RPC, JsonRPC, Master and its workers. All of it also runs on RabbitMQ."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import aio_pika
import pytest
from aio_pika.abc import AbstractConnection
from aio_pika.patterns import RPC, JsonMaster, JsonRPC, Master, NackMessage, RejectMessage
from aio_pika.patterns.rpc import JsonRPCError

from tests.harness.daemon import Daemon
from tests.harness.process import Address

SECONDS = 20

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    daemon = Daemon(tmp_path_factory.mktemp("patterns"), {})
    try:
        yield daemon.start().address("amqp")
    finally:
        daemon.close()


@pytest.fixture
async def connection(both: Address) -> AsyncIterator[AbstractConnection]:
    connection = await aio_pika.connect(f"amqp://guest:guest@{both.host}:{both.port}/")
    async with connection, asyncio.timeout(SECONDS):
        yield connection
    assert connection.is_closed


async def multiply(*, x: int, y: int) -> int:
    return x * y


async def fail() -> None:
    raise ValueError("as it should")


@pytest.mark.parametrize("kind", [RPC, JsonRPC])
async def test_rpc(connection: AbstractConnection, name: str, kind: type[RPC]) -> None:
    """Its close unbinds its queue of answers from an exchange that has gone by then, since it was auto-delete."""
    channel = await connection.channel()
    rpc = await kind.create(channel)
    await rpc.register(f"{name}.multiply", multiply, auto_delete=True)
    await rpc.register(f"{name}.fail", fail, auto_delete=True)
    answers = await asyncio.gather(*(rpc.call(f"{name}.multiply", {"x": n, "y": 3}) for n in range(50)))
    assert answers == [3 * n for n in range(50)]
    with pytest.raises(ValueError if kind is RPC else JsonRPCError, match="as it should"):
        await rpc.call(f"{name}.fail")
    with pytest.raises(aio_pika.exceptions.MessageProcessError, match="returned"):
        await rpc.call(f"{name}.nobody")
    await rpc.unregister(fail)
    await rpc.close()
    assert not channel.is_closed
    again = await kind.create(channel)
    await again.register(f"{name}.again", multiply, auto_delete=True)
    assert await again.call(f"{name}.again", {"x": 2, "y": 2}) == 4
    await again.close()
    await channel.close()


async def test_rpc_between_connections(connection: AbstractConnection, both: Address, name: str) -> None:
    other = await aio_pika.connect(f"amqp://guest:guest@{both.host}:{both.port}/")
    async with other:
        worker = await RPC.create(await other.channel())
        await worker.register(name, multiply, auto_delete=True)
        caller = await RPC.create(await connection.channel())
        assert await caller.call(name, {"x": 6, "y": 7}) == 42
        await caller.close()
        await worker.close()


@pytest.mark.parametrize("kind", [Master, JsonMaster])
async def test_master_and_workers(connection: AbstractConnection, name: str, kind: type[Master]) -> None:
    channel = await connection.channel()
    await channel.set_qos(prefetch_count=5)
    master = kind(channel)
    done: asyncio.Queue[tuple[str, int]] = asyncio.Queue()
    tried: list[int] = []

    async def work(*, n: int, worker: str = "first") -> None:
        tried.append(n)
        if n == 7 and tried.count(7) == 1:
            raise NackMessage(requeue=True)
        if n == 8 and tried.count(8) == 1:
            raise RejectMessage(requeue=True)
        if n == 9:
            raise RejectMessage(requeue=False)
        await done.put((worker, n))

    async def second(*, n: int) -> None:
        await work(n=n, worker="second")

    workers = [await master.create_worker(name, one, auto_delete=True) for one in (work, second)]
    for n in range(40):
        await master.create_task(name, {"n": n})
    got = [await done.get() for _ in range(39)]
    assert sorted(n for _, n in got) == [n for n in range(40) if n != 9]
    assert {worker for worker, _ in got} == {"first", "second"}
    assert (tried.count(7), tried.count(8), tried.count(9)) == (2, 2, 1)
    for worker in workers:
        await worker.close()
    await channel.close()
