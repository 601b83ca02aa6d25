"""How long the loop stands still while somebody asks for much: for no request and no client more than 50 ms."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import signal
import struct
import threading
from array import array
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import anyio
import anyio.to_thread
import httpx
import pytest
from pamqp import commands

from gateway.address import Address
from gateway.admin.api import Admin
from gateway.config.settings import AdminSettings, Settings, load
from gateway.daemon import Daemon
from gateway.engine.gateway import LocalGateway
from gateway.model.delivery import Reason
from gateway.model.message import DEFAULT_EXCHANGE, Message
from gateway.model.policy import QueuePolicy
from gateway.queueing.queue import Queue
from gateway.storage.records import Extra
from gateway.transport import Actor, Binding, Death, Delivery, Outcome, Verdict
from tests.harness.local import local_gateway, serving
from tests.harness.pauses import pauses
from tests.integration.amqp_raw import Raw
from tests.integration.mqtt_raw import RawClient
from transports.amqp.listener import AmqpListener, AmqpSettings
from transports.mqtt.codec import MAX_FILTERS
from transports.mqtt.encoding import encode
from transports.mqtt.listener import MqttListener
from transports.mqtt.packets import (
    Disconnect,
    Property,
    Publish,
    Request,
    SubAck,
    Subscribe,
    UnsubAck,
    Unsubscribe,
)
from transports.mqtt.settings import MqttSettings

pytestmark = pytest.mark.anyio

T = TypeVar("T")


@pytest.fixture
def collector() -> Iterator[None]:
    """The garbage collector is again as it was, after a daemon has run here."""
    thresholds = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*thresholds)


FREE_PORT = Address.parse("127.0.0.1:0")
COLUMNS = {
    "ident": "q", "row": "q", "offset": "I", "length": "I", "expires": "d", "accepted": "d", "group": "I", "extra": "I",
}  # fmt: skip


class Asking:
    """Asks the admin API from a thread of its own, so that only the daemon's part is on the loop."""

    def __init__(self, gateway: LocalGateway, url: str) -> None:
        self.gateway = gateway
        self._url = url

    async def get(self, path: str) -> httpx.Response:
        return await self._ask("GET", path)

    async def post(self, path: str, **said: object) -> httpx.Response:
        return await self._ask("POST", path, said)

    async def _ask(self, method: str, path: str, said: object = None) -> httpx.Response:
        def ask() -> httpx.Response:
            with httpx.Client(base_url=self._url, trust_env=False, timeout=60) as client:
                return client.request(method, path, json=said)

        answer = await anyio.to_thread.run_sync(ask)
        assert answer.status_code == 200, answer.text
        return answer


@contextlib.asynccontextmanager
async def asking(config: str = "{}", session_metrics: bool = False) -> AsyncIterator[Asking]:
    async with local_gateway(config) as (gateway, operator):
        admin = Admin(AdminSettings(listen=FREE_PORT, session_metrics=session_metrics), operator)
        async with serving(gateway, admin=admin) as addresses:
            host, port = addresses["admin"]
            yield Asking(gateway, f"http://{host}:{port}")


def fill(gateway: LocalGateway, name: str, count: int, groups: int = 0, extra: Extra | None = None) -> None:
    """Puts so many entries into the queue, as a start does that finds them in its store."""
    core = gateway.core
    queue = core.get(name)
    numbers = [queue.groups.number(f"group-{number}", 1)[0] for number in range(groups)] or [0]
    values = {
        "ident": range(core.next_ident, core.next_ident + count),
        "accepted": [core.now()] * count,
        "group": [numbers[place % len(numbers)] for place in range(count)],
        "extra": [core.extras.use(extra, True)[0] if extra is not None else 0] * count,
    }
    queue.restore({column: array(code, values.get(column, [0] * count)) for column, code in COLUMNS.items()}, {})
    core.next_ident += count


def sessions(gateway: LocalGateway, count: int) -> None:
    """So many sessions, each with a subscription, whose clients have gone."""
    for number in range(count):
        name = f"mqtt.client-{number}"
        gateway.declare(name, QueuePolicy(durable=False, dead_letter="none"), "mqtt")
        gateway.bind(Binding(queue=name, filter=f"some/{number}/#", owner="mqtt"))
        gateway.attach(name, Nobody(), live=True, actor=Actor("mqtt")).detach()


class Nobody:
    def deliver(self, batch: object) -> None: ...
    def closed(self, reason: str) -> None: ...


@pytest.mark.parametrize("session_metrics", [False, True])
async def test_metrics_of_many_sessions(session_metrics: bool) -> None:
    async with asking("queues: {orders: {}}", session_metrics) as admin:
        sessions(admin.gateway, 5_000)
        with pauses() as found:
            text = (await admin.get("/metrics")).text
        found.check()
        assert 'gateway_queue_messages{queue="orders"} 0.0' in text
        assert ('gateway_queue_messages{queue="mqtt.client-4999"}' in text) == session_metrics
        assert ('gateway_queue_messages{queue="mqtt.*"}' in text) != session_metrics


@pytest.mark.parametrize("path", ["queues", "bindings?limit=100000"])
async def test_lists_of_many(path: str) -> None:
    async with asking() as admin:
        sessions(admin.gateway, 20_000)
        with pauses() as found:
            listed = (await admin.get(f"/api/v1/{path}")).json()[path.partition("?")[0]]
        found.check()
        assert len(listed) >= 20_000


async def test_many_who_ask_at_once_take_turns() -> None:
    async with asking() as admin:
        sessions(admin.gateway, 1_500)
        with pauses() as found:
            async with anyio.create_task_group() as group:
                for _ in range(20):
                    group.start_soon(admin.get, "/api/v1/queues")
        found.check()


@pytest.mark.parametrize("groups", [10, 20_000])
async def test_groups_of_a_large_queue(groups: int) -> None:
    async with asking('queues: {orders: {group: "{topic}"}}') as admin:
        fill(admin.gateway, "orders", 1_000_000, groups)
        with pauses() as found:
            listed = (await admin.get("/api/v1/groups?queue=orders&limit=100000")).json()["groups"]
        found.check()
        assert {group["depth"] for group in listed} == {1_000_000 // groups}
        assert len(listed) == groups


@pytest.mark.parametrize("ids", [None, list(range(1, 300_000, 3))])
async def test_a_redrive_that_selects_from_many(ids: list[int] | None) -> None:
    async with asking("queues: {bin: {}}") as admin:
        death = Death(queue="orders", reason=Reason.REJECTED, attempts=1, error="no", first=1.0, last=1.0)
        fill(admin.gateway, "bin", 300_000, extra=Extra(deaths=(death,)))
        with pauses() as found:
            said = await admin.post("/api/v1/redrive", queue="bin", selection={"ids": ids}, dry_run=True)
        found.check()
        assert f'"total":{len(ids) if ids is not None else 300_000},' in said.text


def written(path: Path, prefix: str, routes: int, group: str) -> Settings:
    """A configuration of so many routes to 30 queues, in the file and as it is read."""
    queues = {f"q{number}": {"group": group} for number in range(30)}
    led = [{"from": f"{prefix}/{number}/+", "to": f"q{number % 30}"} for number in range(routes)]
    said = {"store": {"memory": True}, "admin": False, "transports": {}, "queues": queues, "routes": led}
    path.write_text(json.dumps(said))
    return load(path, {})


async def test_a_reload_of_many_routes(tmp_path: Path, collector: None) -> None:
    path, ready, reloaded = tmp_path / "gateway.yaml", asyncio.Event(), asyncio.Event()
    daemon = Daemon(written(path, "a", 1, "{topic}"), path, lambda addresses: ready.set())
    running = asyncio.create_task(daemon.run())
    await ready.wait()
    router = daemon._gateway.core.router
    daemon._gateway.on_reload("test", reloaded.set)
    with pauses() as found:
        for prefix, group in (("b", "{topic}"), ("b", "{topic[1]}"), ("c", "{topic[1]}")):
            reloaded.clear()
            await anyio.to_thread.run_sync(written, path, prefix, 3_000, group)
            os.kill(os.getpid(), signal.SIGHUP)
            await reloaded.wait()
            bound = [binding.filter for number in range(30) for binding in router.bindings(f"q{number}")]
            assert sorted(bound) == sorted(f"{prefix}/{number}/+" for number in range(3_000))
    os.kill(os.getpid(), signal.SIGTERM)
    await running
    found.check()


async def test_a_reload_that_is_asked_for_while_one_runs_reads_the_file_again(
    tmp_path: Path, collector: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, ready, reads = tmp_path / "gateway.yaml", asyncio.Event(), 0
    daemon = Daemon(written(path, "a", 1, "{topic}"), path, lambda addresses: ready.set())
    running = asyncio.create_task(daemon.run())
    await ready.wait()
    has_read, may_go_on, reloaded = threading.Event(), threading.Event(), asyncio.Queue[int]()

    def reading(path: Path, environ: Mapping[str, str]) -> Settings:
        nonlocal reads
        found = load(path, environ)
        reads += 1
        has_read.set()
        may_go_on.wait()
        return found

    monkeypatch.setattr("gateway.daemon.load", reading)
    daemon._gateway.on_reload("test", lambda: reloaded.put_nowait(len(daemon.settings.routes)))
    written(path, "b", 5, "{topic}")
    os.kill(os.getpid(), signal.SIGHUP)
    await anyio.to_thread.run_sync(has_read.wait)
    written(path, "b", 7, "{topic}")
    for _ in range(3):
        os.kill(os.getpid(), signal.SIGHUP)
    may_go_on.set()
    assert [await reloaded.get(), await reloaded.get()] == [5, 7]
    os.kill(os.getpid(), signal.SIGTERM)
    await running
    assert reads == 2


TIMED = """
queues:
  expiring: {ttl: 1s, dead_letter: bin}
  delayed: {delay: 1s, max_delay: 1s}
  grouped: {delay: 1s, max_delay: 1s, group: "{client_id}"}
  ranked: {delay: 1s, max_delay: 1s, max_priority: 3}
  bin: {}
"""


@pytest.mark.parametrize("name", ["expiring", "delayed", "grouped", "ranked"])
async def test_what_comes_due_at_one_time(name: str) -> None:
    """Its time comes while the clock stands still for the daemon, so that all of it is due at once."""
    async with local_gateway(TIMED) as (gateway, _):
        core, count = gateway.core, 60_000
        time, stopped = core.now, core.now()
        core.now = lambda: stopped
        for start in range(0, count, 1000):
            batch = [to_queue(name, f"{number}") for number in range(start, start + 1000)]
            assert set(await gateway.accept(batch)) == {Outcome.STORED}
        taker = Taker(gateway, "bin" if name == "expiring" else name, count)
        with pauses() as found:
            core.now = lambda: time() + 2
            gateway.committer.poke()
            await taker.done.wait()
        found.check()


async def test_deliveries_that_nobody_settles_in_time() -> None:
    config = "queues: {orders: {ack_timeout: 1s, max_deliveries: 1, dead_letter: bin}, bin: {}}"
    async with local_gateway(config) as (gateway, _):
        core, count = gateway.core, 40_000
        time, stopped = core.now, core.now()
        core.now = lambda: stopped
        for start in range(0, count, 1000):
            await gateway.accept([to_queue("orders", f"{number}") for number in range(start, start + 1000)])
        await Taker(gateway, "orders", count).done.wait()
        dead = Taker(gateway, "bin", count)
        with pauses() as found:
            core.now = lambda: time() + 2
            gateway.committer.poke()
            await dead.done.wait()
        found.check()


@pytest.mark.parametrize("kind", ["{}", '{group: "{client_id}"}', "{max_priority: 3}"])
@pytest.mark.parametrize("end", ["lost", "left", "retry", "returned"])
async def test_many_deliveries_go_back(kind: str, end: str) -> None:
    async with local_gateway(f"queues: {{orders: {kind}}}") as (gateway, _):
        count = 60_000
        for start in range(0, count, 1000):
            await gateway.accept([to_queue("orders", f"{number}") for number in range(start, start + 1000)])
        first = Taker(gateway, "orders", count)
        await first.done.wait()
        again = Taker(gateway, "orders", 0)
        with pauses() as found:
            if end in ("lost", "left"):
                first.subscription.detach(lost=end == "lost")
            else:
                first.subscription.settle(first.ids, Verdict.RETRY if end == "retry" else Verdict.RETURNED)
                first.subscription.detach()
            again.subscription.grant(count)
            await again.wait(count)
        found.check()
        assert again.bodies == first.bodies


def to_queue(name: str, text: str) -> Message:
    return Message(name, text.encode(), exchange=DEFAULT_EXCHANGE, qos=1, client_id=text)


class Taker:
    """A consumer that settles nothing. done: it has as many as it wanted."""

    def __init__(self, gateway: LocalGateway, queue: str, count: int) -> None:
        self.ids: list[int] = []
        self.bodies: list[bytes] = []
        self.done = asyncio.Event()
        self._wanted = count
        self.subscription = gateway.attach(queue, self)
        self.subscription.grant(count)

    def deliver(self, batch: Sequence[Delivery]) -> None:
        self.ids += [delivery.id for delivery in batch]
        self.bodies += [delivery.message.body for delivery in batch]
        if len(self.ids) >= self._wanted:
            self.done.set()

    def closed(self, reason: str) -> None: ...

    async def wait(self, count: int) -> None:
        self._wanted = count
        await self.done.wait()


@contextlib.asynccontextmanager
async def mqtt(config: str = "{}", **said: Any) -> AsyncIterator[tuple[LocalGateway, Serving]]:
    async with local_gateway(config) as (gateway, _):
        listener = MqttListener("mqtt", MqttSettings(listen=FREE_PORT, **said))
        async with serving(gateway, mqtt=listener) as addresses:
            yield gateway, Serving(*addresses["mqtt"])


class Serving(NamedTuple):
    host: str
    port: int


async def elsewhere(call: Callable[[], T]) -> T:
    """A client's part, in a thread of its own."""
    return await anyio.to_thread.run_sync(call)


@pytest.mark.parametrize("packet", ["subscribe", "unsubscribe"])
async def test_a_packet_of_very_many_filters_is_refused_before_it_is_read(packet: str) -> None:
    names = tuple(f"some/{number}" for number in range(60_000))
    said = Subscribe(1, tuple(map(Request, names))) if packet == "subscribe" else Unsubscribe(1, names)
    data = encode(said, 5)

    def client() -> Any:
        with RawClient(address) as one:
            one.connect("client")
            one.send(data)
            return one.receive()

    async with mqtt() as (gateway, address):
        with pauses() as found:
            answer = await elsewhere(client)
        found.check()
        assert isinstance(answer, Disconnect) and answer.reason == 0x97
        assert not gateway.bindings("mqtt.client")


@pytest.mark.parametrize("each", [1, 50, MAX_FILTERS])
async def test_subscribes_that_come_at_one_time(each: int) -> None:
    """Of a session that lasts: what it has is written for each of them."""
    count = 4_000 // each

    def client() -> int:
        with RawClient(address) as one:
            one.connect("client", properties={Property.SESSION_EXPIRY_INTERVAL: 3600})
            requests = [tuple(Request(f"{number}/{place}") for place in range(each)) for number in range(count)]
            one.send(*(Subscribe(1 + number, some) for number, some in enumerate(requests)))
            granted = sum(reason < 0x80 for _ in requests for reason in one.expect(SubAck).reasons)
            one.send(*(Unsubscribe(1, tuple(request.filter for request in some)) for some in requests))
            ended = sum(not reason for _ in requests for reason in one.expect(UnsubAck).reasons)
            assert ended == granted
            return granted

    async with mqtt() as (_, address):
        with pauses() as found:
            assert await elsewhere(client) == 1_000
        found.check()


async def retain(gateway: LocalGateway, count: int) -> None:
    for start in range(0, count, 1000):
        numbers = range(start, start + 1000)
        await gateway.accept([Message(f"{number}/state", b"%d" % number, qos=1, retain=True) for number in numbers])


@pytest.mark.parametrize("qos", [0, 1])
async def test_a_subscription_that_matches_very_many_retained_messages(qos: int) -> None:
    count = 40_000

    def client() -> list[bytes]:
        with RawClient(address) as one:
            one.connect("client")
            assert one.subscribe(Request("+/state", qos)) == (qos,)
            bodies = []
            while len(bodies) < count:
                publish = one.expect(Publish)
                bodies.append(publish.payload)
                if publish.qos:
                    one.ack(publish)
            one.nothing_comes()
            return bodies

    async with mqtt() as (gateway, address):
        await retain(gateway, count)
        with pauses() as found:
            bodies = await elsewhere(client)
        found.check()
        assert bodies == [b"%d" % number for number in range(count)]


async def test_subscriptions_that_find_nothing_in_much() -> None:
    """Neither among the retained messages nor among the ways that messages have gone."""
    count = 20_000

    def client() -> None:
        with RawClient(address) as one:
            one.connect("client")
            filters = [Request(f"+/nothing/{number}") for number in range(49)]
            assert one.subscribe(*filters, Request("17/state", 1)) == (*[0] * 49, 1)
            assert one.take() == ("17/state", b"17")

    async with mqtt() as (gateway, address):
        await retain(gateway, count)
        with pauses() as found:
            await elsewhere(client)
        found.check()


@contextlib.asynccontextmanager
async def amqp(config: str = "{}", **said: Any) -> AsyncIterator[tuple[LocalGateway, Serving]]:
    async with local_gateway(config) as (gateway, _):
        listener = AmqpListener("amqp", AmqpSettings(listen=FREE_PORT, **said))
        async with serving(gateway, amqp=listener) as addresses:
            yield gateway, Serving(*addresses["amqp"])


SETTLEMENTS = {
    "ack": commands.Basic.Ack(0, True),
    "reject": commands.Basic.Nack(0, True, False),
    "retry": commands.Basic.Nack(0, True, True),
    "recover": commands.Basic.Recover(True),
}


@pytest.mark.parametrize(
    ("kind", "end"),
    [("", "stays"), ("", "leaves"), ('group: "{client_id}", ', "stays"), ("max_priority: 3, ", "stays")],
)
@pytest.mark.parametrize("said", SETTLEMENTS)
async def test_one_frame_that_settles_very_many(said: str, kind: str, end: str) -> None:
    """Who closes the connection right behind it has settled them nevertheless."""
    count, taken, may_settle = 100_000, asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def client() -> None:
        one = Raw(address)
        one.login()
        one.send(commands.Basic.Consume(queue="orders"))
        one.expect(commands.Basic.ConsumeOk)
        try:
            _read_until(one, count)
        finally:
            loop.call_soon_threadsafe(taken.set)
        may_settle.wait()
        one.send(SETTLEMENTS[said], *([commands.Connection.Close(200, "", 0, 0)] if end == "leaves" else []), channel=1)
        if end == "stays" and said in ("ack", "reject"):
            one.call(commands.Channel.Close(200, "", 0, 0), commands.Channel.CloseOk)
        one.close()

    config = f"queues: {{orders: {{{kind}dead_letter: bin, max_deliveries: 9}}, bin: {{}}}}"
    async with amqp(config) as (gateway, address):
        for start in range(0, count, 1000):
            await gateway.accept([to_queue("orders", f"{number}") for number in range(start, start + 1000)])
        asked = asyncio.create_task(elsewhere(client))
        await taken.wait()
        with pauses() as found:
            may_settle.set()
            await asked
            queue = gateway.core.get("orders")
            await quiet(queue)
        found.check()
        gone = said in ("ack", "reject")
        assert queue.depth == (0 if gone else count)
        assert (queue.counters.settled, queue.counters.dead_lettered) == {
            "ack": (count, 0), "reject": (0, count)
        }.get(said, (0, 0))  # fmt: skip


async def quiet(queue: Queue) -> None:
    """Nothing of it is in flight or on its way any more."""
    while queue.in_flight or queue.is_busy:  # noqa: ASYNC110 - it says so to nobody
        await asyncio.sleep(0)


def _read_until(one: Raw, count: int) -> None:
    """So many basic.deliver frames, by what they begin with: no body here holds that."""
    begin = struct.pack(">HH", 60, 60)
    tail, one._buffer = one._buffer, b""
    while True:
        count -= tail.count(begin)
        if not count:
            return
        tail = tail[max(len(tail) - len(begin) + 1, tail.rfind(begin) + len(begin)) :] + one.socket.recv(1 << 20)


@pytest.mark.parametrize("kind", ["{}", '{group: "{client_id}"}', "{max_priority: 3}"])
async def test_a_queue_is_deleted_of_which_much_is_in_flight(kind: str) -> None:
    async with local_gateway(f"queues: {{orders: {kind}, others: {{}}}}") as (gateway, _):
        count = 100_000
        for start in range(0, count, 1000):
            await gateway.accept([to_queue("orders", f"{number}") for number in range(start, start + 1000)])
        taker, left = Taker(gateway, "orders", 1000), Taker(gateway, "orders", 0)
        await taker.done.wait()
        left.subscription.grant(count - 1000)
        await left.wait(count - 1000)
        left.subscription.cancel()
        queue = gateway.core.get("orders")
        with pauses() as found:
            gateway.delete("orders")
            assert left.subscription.settle(left.ids[:1], Verdict.DONE) == 0
            left.subscription.detach()
            await quiet(queue)
        found.check()
        assert (queue.entries.count, queue.in_flight, gateway.core.memory.octets) == (0, 0, 0)
