"""The daemon on a disk that is full, broken or can't be read: senders are refused and told, consumers drain, nothing
that was acknowledged is lost, and it goes on by itself when the disk is well."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.faults.shim import Shim, read_trace
from tests.harness.amqp import AmqpPeer, Delivered
from tests.harness.daemon import LISTENERS, Daemon
from tests.harness.mqtt import MqttPeer
from tests.integration.mqtt_raw import RawClient

SECONDS = 20.0
GROUPS = 5
CONFIG: dict[str, Any] = {
    "transports": {**LISTENERS, "http": {"type": "http", "listen": "127.0.0.1:0"}},
    "queues": {"orders": {"group": "{body.group}", "dedup": {"key": "{body.number}", "window": "1h"}}},
    "routes": [{"from": "orders", "to": "orders"}],
}
WRITES = ("write", "allocate")

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]


def body(number: int, size: int = 500) -> bytes:
    return json.dumps({"number": number, "group": f"g{number % GROUPS}", "pad": "x" * size}).encode()


class Clients:
    """A daemon, publishers that know what was acknowledged, and a consumer that knows what it settled."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.acknowledged: list[int] = []
        self.refused: list[int] = []
        self.done: list[int] = []
        self.consumer: AmqpPeer | None = None
        self.next = 0

    async def start(self) -> Clients:
        await asyncio.to_thread(self.daemon.start)
        await self.connect()
        return self

    async def connect(self) -> None:
        self.publisher = await AmqpPeer.connect(self.daemon.address("amqp"))
        self.publisher.on_confirm = lambda number, stored: (self.acknowledged if stored else self.refused).append(
            number
        )

    async def publish(self, count: int, size: int = 500) -> None:
        """Waits for all of the answers."""
        for _ in range(count):
            self.publisher.publish("orders", body(self.next, size), self.next)
            self.next += 1
        await until(lambda: len(self.acknowledged) + len(self.refused) == self.next, "answers")

    async def consume(self) -> None:
        peer = self.consumer = await AmqpPeer.connect(self.daemon.address("amqp"))

        def on_delivery(delivered: Delivered) -> None:
            self.done.append(json.loads(delivered.body)["number"])
            peer.ack(delivered.tag)

        peer.on_delivery = on_delivery
        await peer.consume("orders", prefetch=50)

    async def drained(self) -> None:
        """All that was acknowledged came, once, each group in order."""
        await until(lambda: len(self.done) >= len(self.acknowledged), "deliveries")
        assert sorted(self.done) == sorted(self.acknowledged)
        for group in range(GROUPS):
            numbers = [number for number in self.done if number % GROUPS == group]
            assert numbers == sorted(numbers)
        assert await self.publisher.depth("orders") == 0

    async def all_senders_are_refused(self) -> None:
        """Each in the way of its protocol."""
        daemon, before = self.daemon, len(self.refused)
        await self.publish(3)
        assert len(self.refused) == before + 3

        def mqtt5() -> None:
            with RawClient(daemon.address("mqtt")) as client:
                client.connect()
                assert client.publish("orders", body(10_000)).reason == 0x97

        await asyncio.to_thread(mqtt5)
        peer = await MqttPeer.connect(daemon.address("mqtt"), "old")
        peer.on_answer = lambda token: pytest.fail("PUBACK for what was refused")
        peer.publish("orders", body(10_001))
        async with asyncio.timeout(SECONDS):
            await peer.lost.wait()
        answer = await http("POST", f"{daemon.url('http')}/topics/orders", body(10_002))
        assert answer.status_code == 503, answer.text

    async def says(self, *words: str) -> None:
        """Not ready, and one of these words says why."""
        answer = await http("GET", f"{self.daemon.url('admin')}/readyz")
        assert answer.status_code == 503
        assert any(word in answer.text for word in words), answer.text

    async def is_ready(self) -> None:
        """By itself."""
        url = f"{self.daemon.url('admin')}/readyz"
        async with asyncio.timeout(SECONDS):
            while (await http("GET", url)).status_code != 200:  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0.05)

    async def stop(self) -> None:
        await self.publisher.close()
        if self.consumer:
            await self.consumer.close()
        assert await asyncio.to_thread(self.daemon.stop) == 0

    async def restart(self) -> None:
        """And again with a consumer, which gets nothing that it had settled."""
        await asyncio.to_thread(self.daemon.start)
        await self.connect()
        await self.consume()


async def http(method: str, url: str, content: bytes = b"") -> httpx.Response:
    async with httpx.AsyncClient(trust_env=False, timeout=SECONDS) as client:
        return await client.request(method, url, content=content, headers={"content-type": "application/json"})


async def until(what: Callable[[], object], name: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not what():
        assert time.monotonic() < deadline, f"no {name}"
        await asyncio.sleep(0.01)


@pytest.fixture
def shim(tmp_path: Path) -> Iterator[Shim]:
    store = tmp_path / "daemon" / "data"
    store.mkdir(parents=True, mode=0o700)
    shim = Shim(tmp_path, store)
    yield shim
    shim.close()


@pytest.fixture
async def clients(shim: Shim) -> AsyncIterator[Clients]:
    config = {**CONFIG, "store": {"path": str(shim.root), "reserve": "1MB"}}
    daemon = Daemon(shim.root.parent, config, shim.env)
    yield Clients(daemon)
    daemon.close()


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT])
async def test_a_full_disk(clients: Clients, shim: Shim, error: int) -> None:
    """What is left is the reserve, and a quota is a full disk, too."""
    await clients.start()
    await clients.publish(100)
    shim.fail(WRITES, error, during="reserve")
    shim.fail(("allocate",), error, rule=1)
    await clients.all_senders_are_refused()
    assert clients.refused == [100, 101, 102]
    await clients.says("full")
    await clients.consume()
    await clients.drained()
    await until(lambda: not (shim.root / "reserve").exists(), "use of the reserve")
    await clients.all_senders_are_refused()  # what settlements have freed is not for messages
    await clients.says("full", "left above the reserve")

    shim.heal()
    shim.heal(1)
    await clients.is_ready()
    await clients.publish(20)
    assert clients.acknowledged[100:] == list(range(106, 126))
    await clients.drained()
    await clients.stop()
    await clients.restart()
    await clients.publish(1)
    await clients.drained()
    assert (shim.root / "gateway-1.db").exists()  # no other file was needed
    await clients.stop()


async def test_what_is_settled_while_the_disk_is_full_stays_settled(clients: Clients, shim: Shim) -> None:
    await clients.start()
    await clients.publish(100)
    shim.fail(WRITES, errno.ENOSPC, during="reserve")
    shim.fail(("allocate",), errno.ENOSPC, rule=1)
    await clients.publish(1)
    await clients.consume()
    await clients.drained()
    await clients.stop()
    shim.heal()
    shim.heal(1)
    await clients.restart()
    await clients.publish(1)
    await clients.drained()
    await clients.stop()


@pytest.mark.parametrize(
    ("call", "error"),
    [("sync", errno.EIO), ("write", errno.EROFS)],
    ids=["fsync", "read-only"],
)
async def test_after_a_failure_only_a_new_file_is_written(clients: Clients, shim: Shim, call: str, error: int) -> None:
    await clients.start()
    await clients.publish(100)
    shim.fail((call,), error)
    await clients.all_senders_are_refused()
    await clients.says("the store has failed: ")
    await clients.consume()
    await clients.drained()
    await clients.all_senders_are_refused()
    failed_at = len(list(read_trace(shim.trace)))
    assert [found.name for found in shim.root.glob("gateway-*.db")] == ["gateway-1.db"]

    shim.heal()
    await clients.is_ready()
    clients.daemon.wait_for("the store was written anew")
    assert [found.name for found in shim.root.glob("gateway-*.db")] == ["gateway-2.db"]
    await clients.publish(20)
    assert len(clients.acknowledged) == 120
    await clients.drained()
    await clients.stop()

    await clients.restart()
    await clients.publish(1)
    await clients.drained()
    await clients.stop()
    files: dict[int, str] = {}
    for place, event in enumerate(read_trace(shim.trace)):
        if event.kind == "open":
            files[event.fd] = event.name
        if event.kind in ("write", "truncate") and place >= failed_at:
            assert not files[event.fd].startswith("gateway-1.db"), "the failed file was written"


async def test_one_failed_fsync_costs_one_answer(clients: Clients, shim: Shim) -> None:
    await clients.start()
    await clients.publish(50)
    shim.fail(("sync",), errno.EIO, "gateway-1.db-wal", times=1)
    await clients.publish(1)
    assert clients.refused == [50]
    await clients.is_ready()
    await clients.publish(50)
    assert len(clients.acknowledged) == 100
    clients.daemon.kill()
    await clients.publisher.lost.wait()
    await clients.restart()
    await clients.drained()
    await clients.stop()


async def test_bodies_that_can_not_be_read_wait_in_their_places(clients: Clients, shim: Shim) -> None:
    await clients.start()
    await clients.publish(200, size=20_000)
    await clients.stop()
    await clients.start()  # with the bodies on the disk alone
    shim.fail(("read",), errno.EIO, "gateway-*")
    await clients.consume()
    await asyncio.to_thread(clients.daemon.wait_for, "bodies could not be read")
    # A page that a commit needs may not be readable either: that is no reason to give up what is there.
    await clients.publish(5)
    assert clients.done == []
    shim.heal()
    await clients.is_ready()
    await clients.drained()
    assert len(clients.acknowledged) >= 200
    assert not list(shim.root.glob("damaged-*"))
    await clients.stop()


async def test_a_damaged_body_is_reported_and_all_else_stands_in_the_new_file(clients: Clients, shim: Shim) -> None:
    await clients.start()
    for _ in range(2 * GROUPS):
        await clients.publish(1, size=5000)  # a row for each
    await clients.stop()
    file = shim.root / "gateway-1.db"
    data = bytearray(file.read_bytes())
    data[data.index(body(7, 5000)) + 4000] ^= 1
    file.write_bytes(data)
    await clients.start()
    shim.fail(("sync",), errno.EIO, "gateway-1.db-wal", times=1)
    await clients.publish(1)
    await clients.is_ready()
    lost = clients.daemon.wait_for("the store has lost bodies, their messages can't be delivered")
    aside = shim.root / "damaged-1.db"
    assert (lost["queue"], lost["messages"], lost["aside"]) == ("orders", 1, str(aside))
    assert aside.exists() and not file.exists()
    await clients.consume()
    await until(lambda: len(clients.done) >= 2 * GROUPS - 1, "deliveries")
    assert sorted(clients.done) == [number for number in range(2 * GROUPS) if number != 7]
    assert await clients.publisher.depth("orders") == 1
    await clients.stop()


def fill(path: Path) -> None:
    """Something else takes what is left."""
    with open(path, "wb", buffering=0) as filler, pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        while filler.write(bytes(4096)):
            pass


TMPFS_OCTETS = 48 << 20


async def test_a_small_file_system_that_something_else_fills(tmp_path: Path) -> None:
    """In a namespace of its own, where anyone may mount one."""
    store, folder = tmp_path / "store", tmp_path / "daemon"
    store.mkdir()
    folder.mkdir()
    own = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-ec"]
    mount = f'mount -t tmpfs -o size={TMPFS_OCTETS} none "$1"; shift; '
    command = [*own, mount, "sh", str(store)]
    tried = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"this machine lets no user mount a file system ({tried.stderr.strip()})")
    config = {**CONFIG, "store": {"path": str(store), "reserve": "8MB"}, "max_memory": "4MB"}
    daemon = Daemon(folder, config, wrapper=[*own, mount + 'exec "$@"', "sh", str(store)])
    clients = Clients(daemon)
    try:
        await clients.start()
        inside = Path(f"/proc/{daemon.pid}/root{store}")
        while not clients.refused:
            await clients.publish(10, size=50_000)
        await clients.all_senders_are_refused()
        await clients.says("full", "left above the reserve")
        await asyncio.to_thread(fill, inside / "filler")
        await clients.all_senders_are_refused()
        await clients.consume()
        await clients.drained()
        (inside / "filler").unlink()
        await clients.is_ready()
        before = len(clients.acknowledged)
        await clients.publish(50, size=50_000)
        assert len(clients.acknowledged) == before + 50
        await clients.drained()
        await clients.stop()
    finally:
        daemon.close()
