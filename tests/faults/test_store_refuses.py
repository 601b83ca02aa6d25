"""Clients that come while the store takes nothing: what is there they get at once, to settle and drain; what would have
to be stored is refused at once, each in the way of its protocol. Nobody waits for the disk."""

from __future__ import annotations

import errno
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from pamqp import commands as amqp
from pamqp.header import ContentHeader

from tests.faults.shim import Shim
from tests.harness.daemon import LISTENERS, Daemon
from tests.harness.process import Address
from tests.integration.amqp_raw import Raw
from tests.integration.mqtt_raw import RawClient
from transports.mqtt.packets import V311, Ack, Property, Publish, Reason, Request

QUICK = 2.0
"""Seconds. The store is tried again every 0.5 s while the disk is full; a failed one every 4 s when a test begins."""
EXPIRY = {Property.SESSION_EXPIRY_INTERVAL: 3600}
CONFIG: dict[str, Any] = {
    "transports": {**LISTENERS, "http": {"type": "http", "listen": "127.0.0.1:0"}},
    "queues": {"orders": {}},
    "routes": [{"from": "orders/#", "to": "orders"}],
}
WORK = amqp.Queue.Declare(queue="work", durable=True)
EXCHANGE = amqp.Exchange.Declare(exchange="ex", exchange_type="topic", durable=True)
BIND = amqp.Queue.Bind(queue="work", exchange="ex", routing_key="k")

pytestmark = pytest.mark.timeout(120)


@contextmanager
def quick(what: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    took = time.monotonic() - began
    assert took < QUICK, f"{what} took {took:.1f} s"


class Case:
    """A daemon with an MQTT session, AMQP declarations and messages, whose store then takes nothing."""

    def __init__(self, folder: Path, kind: str) -> None:
        store = folder / "daemon" / "data"
        store.mkdir(parents=True, mode=0o700)
        self.kind = kind
        self.shim = Shim(folder, store)
        self.daemon = Daemon(store.parent, {**CONFIG, "store": {"path": str(store), "reserve": "1MB"}}, self.shim.env)

    @property
    def mqtt(self) -> Address:
        return self.daemon.address("mqtt")

    def amqp(self) -> Raw:
        raw = Raw(self.daemon.address("amqp"))
        raw.login()
        return raw

    def prepare(self) -> None:
        self.daemon.start()
        with RawClient(self.mqtt) as kept:
            kept.connect("kept", properties=EXPIRY)
            assert kept.subscribe("news/#", "$queue/orders", "$share/team/tasks") == (1, 1, 1)
            kept.disconnect(properties=EXPIRY)
        raw = self.amqp()
        raw.call(WORK, amqp.Queue.DeclareOk)
        raw.call(amqp.Queue.Declare(queue="old", durable=True), amqp.Queue.DeclareOk)
        raw.call(EXCHANGE, amqp.Exchange.DeclareOk)
        raw.call(BIND, amqp.Queue.BindOk)
        raw.call(amqp.Confirm.Select(), amqp.Confirm.SelectOk)
        for number in range(10):
            for key, exchange in (("orders", "amq.topic"), ("k", "ex")):
                raw.publish(b"%d" % number, f"{key}.x" if key == "orders" else key, exchange)
        while raw.expect(amqp.Basic.Ack).delivery_tag < 20:
            pass
        raw.close()

    def fail(self) -> None:
        """The disk is full with the reserve spent, or an fsync has failed and no new file could be written, three
        times by now."""
        if self.kind == "full":
            self.shim.fail(("write", "allocate"), errno.ENOSPC)
        else:
            self.shim.fail(("sync",), errno.EIO)
        assert self.post(self.daemon.url("http") + "/topics/orders/x").status_code == 503
        if self.kind == "failed":
            for _ in range(3):
                after = len(self.daemon.log) if _ else 0
                self.daemon.wait_for("the store could not be written anew", after=after)

    def heal(self) -> None:
        self.shim.heal()
        self.daemon.wait_for(
            "the store takes messages again" if self.kind == "full" else "the store was written anew", timeout=30
        )

    def post(self, url: str, **body: Any) -> httpx.Response:
        with httpx.Client(trust_env=False, timeout=20) as client:
            return client.post(url, json=body)

    def close(self) -> None:
        self.daemon.close()
        self.shim.close()


@pytest.fixture
def sound(tmp_path: Path) -> Iterator[Case]:
    """Whose store has not failed yet."""
    made = Case(tmp_path, "failed")
    try:
        made.prepare()
        yield made
    finally:
        made.close()


@pytest.fixture(params=["full", "failed"])
def case(request: pytest.FixtureRequest, sound: Case) -> Case:
    sound.kind = request.param
    sound.fail()
    return sound


def bodies(client: RawClient, count: int) -> list[bytes]:
    return [client.take()[1] for _ in range(count)]


def test_mqtt_clients_come_to_drain_and_nothing_new_is_made(case: Case) -> None:
    with RawClient(case.mqtt) as clean:
        with quick("CONNECT of a clean session"):
            assert clean.connect("clean", properties={Property.RECEIVE_MAXIMUM: 5}).reason == Reason.SUCCESS
        with quick("SUBSCRIBE of a clean session"):
            # Of the store it needs only a share that nobody has made.
            assert clean.subscribe("a/b", "$share/new/a", "$queue/orders") == (1, Reason.QUOTA_EXCEEDED, 1)
            first = [clean.expect(Publish) for _ in range(5)]
        with quick("PUBLISH that needs no disk, and one that does"):
            assert clean.publish("a/b", b"live", 1).reason == Reason.SUCCESS
            assert clean.publish("orders/x", b"", 2).reason == Reason.QUOTA_EXCEEDED
        with quick("PUBACK"):
            for publish in first:
                clean.ack(publish)
            second = [clean.expect(Publish) for _ in range(5)]
            clean.ack(second[0])
            assert clean.expect(Publish).payload == b"live"
        with quick("UNSUBSCRIBE"):
            clean.unsubscribe("a/b")
    with RawClient(case.mqtt) as kept:
        with quick("CONNECT of a session that is there"):
            answer = kept.connect("kept", False, EXPIRY)
            assert (answer.reason, answer.session_present) == (Reason.SUCCESS, True)
            assert bodies(kept, 4) == [b"%d" % number for number in range(6, 10)]
        with quick("SUBSCRIBE of a session that is there"):
            asked = ("news/#", "$queue/orders", "$share/team/tasks", "other", "$queue/work", "$share/team/more")
            assert kept.subscribe(*asked) == (1, 1, 1, *[Reason.QUOTA_EXCEEDED] * 3)
        with quick("UNSUBSCRIBE of a session that is there"):
            kept.unsubscribe("$share/team/tasks")
        kept.disconnect(properties=EXPIRY)
    for version, clean_start in ((V311, True), (V311, False), (5, True)):
        with RawClient(case.mqtt, version) as fresh, quick(f"CONNECT of version {version}"):
            lasting = EXPIRY if version != V311 else {}
            reason = fresh.connect("fresh" if version != V311 or not clean_start else "brief", clean_start, lasting)
            is_made = version == V311 and clean_start
            assert reason.reason == (Reason.SUCCESS if is_made else Reason.SERVER_UNAVAILABLE)
    with RawClient(case.mqtt) as again, quick("CONNECT that would begin a session anew"):
        assert again.connect("kept", True, EXPIRY).reason == Reason.SERVER_UNAVAILABLE

    case.heal()
    case.daemon.kill()
    case.daemon.start()
    with RawClient(case.mqtt) as kept:
        assert kept.connect("kept", False, EXPIRY).session_present
        with RawClient(case.mqtt) as publisher:
            publisher.connect()
            publisher.publish("other", b"other")
            publisher.publish("tasks", b"task")
            publisher.publish("news/1", b"news")
        came = []
        while not came or came[-1] != b"news":
            came.append(kept.take()[1])
        assert b"other" not in came and b"task" not in came
    with RawClient(case.mqtt) as fresh:
        assert not fresh.connect("fresh", False, EXPIRY).session_present


def test_amqp_clients_come_to_drain_and_nothing_new_is_made(case: Case) -> None:
    raw = case.amqp()
    with quick("queue.declare of what is there"):
        assert raw.call(WORK, amqp.Queue.DeclareOk).message_count == 10
    with quick("exchange.declare of what is there"):
        raw.call(EXCHANGE, amqp.Exchange.DeclareOk)
    with quick("queue.bind of what is there"):
        raw.call(BIND, amqp.Queue.BindOk)
    with quick("queue.declare of a configured queue"):
        raw.call(amqp.Queue.Declare(queue="orders", durable=True), amqp.Queue.DeclareOk)
    with quick("a queue of one's own"):
        own = raw.call(amqp.Queue.Declare(exclusive=True), amqp.Queue.DeclareOk).queue
        raw.call(amqp.Queue.Bind(queue=own, exchange="amq.topic", routing_key="own"), amqp.Queue.BindOk)
        raw.call(amqp.Confirm.Select(), amqp.Confirm.SelectOk)
        raw.publish(b"", "own", "amq.topic")
        raw.expect(amqp.Basic.Ack)
        raw.publish(b"", "k", "ex")
        raw.expect(amqp.Basic.Nack)
    with quick("basic.get"):
        raw.send(amqp.Basic.Get(queue="work", no_ack=True))
        assert raw.expect(amqp.Basic.GetOk).message_count == 9
        raw.expect(ContentHeader)
        raw.read()
    with quick("basic.consume"):
        raw.call(amqp.Basic.Consume(queue="work"), amqp.Basic.ConsumeOk)
        for _ in range(9):
            tag = raw.expect(amqp.Basic.Deliver).delivery_tag
            raw.expect(ContentHeader)
            raw.read()
        raw.send(amqp.Basic.Ack(tag, multiple=True))
    with quick("queue.delete"):
        raw.call(amqp.Queue.Delete(queue="old"), amqp.Queue.DeleteOk)
    with quick("queue.unbind"):
        raw.call(amqp.Queue.Unbind(queue="work", exchange="ex", routing_key="k"), amqp.Queue.UnbindOk)
    with quick("queue.purge"):
        raw.call(amqp.Queue.Purge(queue="orders"), amqp.Queue.PurgeOk)
    for new in (
        amqp.Queue.Declare(queue="new", durable=True),
        amqp.Exchange.Declare(exchange="new", exchange_type="topic", durable=True),
        amqp.Queue.Bind(queue="work", exchange="ex", routing_key="new"),
    ):
        with quick(new.name):
            raw.send(new)
            close = raw.expect(amqp.Connection.Close)
            assert close.reply_code == 506 and "nothing durable can be made" in close.reply_text
        raw.close()
        raw = case.amqp()
    raw.close()

    case.heal()
    case.daemon.kill()
    case.daemon.start()
    raw = case.amqp()
    assert raw.call(WORK, amqp.Queue.DeclareOk).message_count == 0
    raw.call(amqp.Confirm.Select(), amqp.Confirm.SelectOk)
    for key in ("k", "new"):
        raw.publish(b"", key, "ex", mandatory=True)
        assert raw.expect(amqp.Basic.Return).reply_code == 312
        raw.expect(ContentHeader)
        raw.expect(amqp.Basic.Ack)
    for gone in ("old", "new"):
        raw.send(amqp.Queue.Declare(queue=gone, passive=True))
        assert raw.expect(amqp.Channel.Close).reply_code == 404
        raw.close()
        raw = case.amqp()
    raw.close()


def test_http_clients_are_told_at_once(case: Case) -> None:
    admin = case.daemon.url("admin")
    with quick("POST /topics"):
        assert case.post(case.daemon.url("http") + "/topics/orders/x").status_code == 503
    with quick("publish"):
        assert case.post(f"{admin}/api/v1/publish", topic="orders/x").status_code == 503
    with httpx.Client(trust_env=False, timeout=20, base_url=admin) as client:
        with quick("readyz"):
            assert client.get("/readyz").status_code == 503
        with quick("queues"):
            assert client.get("/api/v1/queues").status_code == 200
        asked = {"queue": "orders", "credit": 1}
        with client.stream("POST", "/api/v1/consume", json=asked) as stream:
            lines = stream.iter_lines()
            consumer = json.loads(next(lines))["consumer"]
            id = json.loads(next(lines))["delivery"]["id"]
            with quick("settle"):
                answer = case.post(f"{admin}/api/v1/settle", consumer=consumer, ids=[id])
                assert answer.status_code == 503 and "settled" in answer.text
            with quick("the next delivery"):
                assert json.loads(next(lines))["delivery"]["id"] > id


def test_whoever_meets_the_failure_is_refused_and_leaves_nothing(sound: Case) -> None:
    """What was made in memory, and was to be in the commit that fails, is taken back; what is there stays."""
    written = 0

    @contextmanager
    def failing() -> Iterator[None]:
        """One fsync fails; the new file that follows stands when this is over."""
        nonlocal written
        sound.shim.fail(("sync",), errno.EIO, "*-wal", times=1)
        yield
        sound.daemon.wait_for("the store was written anew", after=written)
        written = len(sound.daemon.log)
        assert sound.shim.hits() == 1

    with RawClient(sound.mqtt) as fresh, failing():
        assert fresh.connect("fresh", False, EXPIRY).reason == Reason.SERVER_UNAVAILABLE
    with RawClient(sound.mqtt) as fresh:
        answer = fresh.connect("fresh", False, EXPIRY)
        assert (answer.reason, answer.session_present) == (Reason.SUCCESS, False)
    with RawClient(sound.mqtt) as kept:
        with failing():
            answer = kept.connect("kept", False, EXPIRY)
            assert (answer.reason, answer.session_present) == (Reason.SUCCESS, True)
        with failing():
            assert kept.subscribe("news/#", "other", "$share/team/more") == (1, *[Reason.QUOTA_EXCEEDED] * 2)
        changed = Request("news/#", 0, no_local=True), Request("$share/team/tasks", 0)
        with failing():
            assert kept.subscribe(*changed, *changed[:1]) == (Reason.QUOTA_EXCEEDED,) * 3
        kept.send(Publish("news/1", b"as before", 1, packet_id=5))
        came = [kept.receive(), kept.receive()]
        while not any(isinstance(packet, Ack) for packet in came):
            came.append(kept.receive())
        assert [packet.qos for packet in came if getattr(packet, "payload", b"") == b"as before"] == [1]
        with RawClient(sound.mqtt) as publisher:
            publisher.connect()
            assert publisher.publish("other").reason == Reason.NO_MATCHING_SUBSCRIBERS
            assert publisher.publish("more").reason == Reason.NO_MATCHING_SUBSCRIBERS
        assert kept.subscribe("other", "$share/team/more") == (1, 1)
    for new in (
        amqp.Queue.Declare(queue="new", durable=True),
        amqp.Exchange.Declare(exchange="new", exchange_type="topic", durable=True),
        amqp.Queue.Bind(queue="work", exchange="ex", routing_key="new"),
    ):
        raw = sound.amqp()
        with failing():
            raw.send(new)
            assert raw.expect(amqp.Connection.Close).reply_code == 506
        raw.close()
    raw = sound.amqp()
    with failing():
        raw.call(amqp.Queue.Delete(queue="old"), amqp.Queue.DeleteOk)
    raw.close()
    sound.daemon.kill()
    sound.daemon.start()
    for gone in ("old", "new"):
        raw = sound.amqp()
        raw.send(amqp.Queue.Declare(queue=gone, passive=True))
        assert raw.expect(amqp.Channel.Close).reply_code == 404
        raw.close()
    raw = sound.amqp()
    raw.publish(b"", "new", "ex", mandatory=True)
    assert raw.expect(amqp.Basic.Return).reply_code == 312
    raw.close()
    with RawClient(sound.mqtt) as kept:
        assert kept.connect("kept", False, EXPIRY).session_present
