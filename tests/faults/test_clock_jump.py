"""The real daemon on a wall clock that jumps by a day: while it runs nothing changes, and between two runs only what
must (ruling 6). A module that Python imports at its start lets the test set that clock, as `date --set` would."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pamqp import commands

from tests.harness.amqp import AmqpPeer, Delivered
from tests.harness.daemon import ROOT, Daemon

DAY = 86400.0
SECONDS = 20.0
CONFIG: dict[str, Any] = {
    "queues": {
        "once": {"dedup": {"key": "{body.id}", "window": "1h"}},
        "slow": {"ack_timeout": "300ms", "max_deliveries": 2, "dead_letter": "dead"},
        "brief": {"ttl": "1h", "dead_letter": "dead"},
        "dead": {},
    },
}
SITE = """
import time
_time = time.time
def wall():
    with open({file!r}) as file:
        return _time() + float(file.read())
time.time = wall
"""

pytestmark = pytest.mark.anyio


class Wall:
    """How far the daemon's wall clock is from the true one."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "wall"
        self.jump_to(0.0)
        (folder / "sitecustomize.py").write_text(SITE.format(file=str(self._file)))
        self.env = {"PYTHONPATH": f"{folder}:{ROOT}"}

    def jump_to(self, seconds: float) -> None:
        new = self._file.with_suffix(".new")
        new.write_text(str(seconds))
        new.rename(self._file)


class Client:
    """Publishes, and takes what comes."""

    def __init__(self, peer: AmqpPeer) -> None:
        self.peer = peer
        self.got: asyncio.Queue[Delivered] = asyncio.Queue()
        self._stored: asyncio.Queue[bool] = asyncio.Queue()
        peer.on_delivery = self.got.put_nowait
        peer.on_confirm = lambda token, stored: self._stored.put_nowait(stored)

    @classmethod
    async def connect(cls, daemon: Daemon) -> Client:
        return cls(await AmqpPeer.connect(daemon.address("amqp")))

    async def publish(self, queue: str, id: str) -> None:
        self.peer.publish(queue, json.dumps({"id": id}).encode(), exchange="")
        async with asyncio.timeout(SECONDS):
            assert await self._stored.get()

    async def until_dead(self, count: int) -> None:
        async with asyncio.timeout(SECONDS):
            while True:
                if await self.peer.depth("dead") >= count:
                    return
                await asyncio.sleep(0.02)

    async def next(self) -> Delivered:
        async with asyncio.timeout(SECONDS):
            return await self.got.get()


async def test_a_day_either_way_while_it_runs_changes_nothing(
    make_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    wall = Wall(tmp_path)
    daemon = make_daemon(CONFIG, wall.env).start()
    client = await Client.connect(daemon)
    await client.publish("once", "1")
    await client.publish("brief", "1")
    for jump in (DAY, -DAY, 0.0):
        wall.jump_to(jump)
        await client.publish("once", "1")
        # It is delivered, times out, comes again, times out again, and is dead: deadlines still run.
        await client.publish("slow", str(jump))
        await client.peer.consume("slow", 2, consumer_tag=f"slow{jump}")
        assert [(await client.next()).routing_key for _ in range(2)] == ["slow", "slow"]
        await client.until_dead([DAY, -DAY, 0.0].index(jump) + 1)
        await client.peer.close()
        client = await Client.connect(daemon)
    assert [await client.peer.depth(name) for name in ("once", "brief", "dead")] == [1, 1, 3]
    await client.peer.close()


async def test_a_day_between_two_runs_changes_only_what_must(
    make_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    wall = Wall(tmp_path)
    daemon = make_daemon(CONFIG, wall.env).start()
    client = await Client.connect(daemon)
    declare = commands.Queue.Declare(queue="mine", durable=True, arguments={"x-expires": 3_600_000})
    await client.peer.call(declare, commands.Queue.DeclareOk)
    for queue in ("once", "brief", "mine"):
        await client.publish(queue, "1")
    await client.peer.close()
    daemon.kill()

    # Back: time goes on from the last commit. Windows and lives are what they were.
    wall.jump_to(-DAY)
    daemon.start()
    client = await Client.connect(daemon)
    await client.publish("once", "1")
    assert [await client.peer.depth(name) for name in ("once", "brief", "mine", "dead")] == [1, 1, 1, 0]
    await client.peer.close()
    assert daemon.stop() == 0

    # Forward: the window is over, and so is what had an hour to live; a queue without consumers has its hour anew.
    wall.jump_to(DAY)
    daemon.start()
    client = await Client.connect(daemon)
    await client.publish("once", "1")
    await client.peer.consume("brief", 1)
    await client.until_dead(1)
    assert [await client.peer.depth(name) for name in ("once", "brief", "mine", "dead")] == [2, 0, 1, 1]
    await client.peer.close()

    # And to the true time: what was stored yesterday, by then, is a duplicate still.
    daemon.kill()
    wall.jump_to(0.0)
    daemon.start()
    client = await Client.connect(daemon)
    await client.publish("once", "1")
    assert await client.peer.depth("once") == 2
    await client.peer.close()
