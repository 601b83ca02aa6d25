"""Sink: what `drive` promises to a plugin, on a real core."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict

import pytest

from gateway.errors import UnknownQueueError
from gateway.model.message import Message
from gateway.transport import Outcome, Verdict, sink
from gateway.transport.sink import Window, drive
from tests.harness.local import local_gateway

pytestmark = pytest.mark.anyio
GROUPED = 'queues: {q: {group: "{topic[0]}", max_deliveries: 3}}\nroutes: [{from: "#", to: q}]'


class Recorder:
    """A sink that answers as told by body and remembers what it got."""

    def __init__(self, decide=lambda body: Verdict.DONE) -> None:
        self.decide = decide
        self.batches: list[list[bytes]] = []
        self.bodies: asyncio.Queue[bytes] = asyncio.Queue()
        self.attempts: list[int] = []

    async def send(self, batch):
        self.attempts += [delivery.attempts for delivery in batch]
        bodies = [delivery.message.body for delivery in batch]
        self.batches.append(bodies)
        for body in bodies:
            self.bodies.put_nowait(body)
        return [self.decide(body) for body in bodies]


async def publish(gateway, *messages: Message) -> None:
    assert set(await gateway.accept(list(messages))) == {Outcome.STORED}


async def settled(operator, queue: str, count: int) -> None:
    """Returns when that many were settled done or went to the dead letters."""
    while True:
        found = next(stats for stats in await operator.stats() if stats.name == queue)
        if found.settled + found.dead_lettered >= count and not found.in_flight:
            return
        await asyncio.sleep(0.001)


async def test_what_had_no_answer_goes_back_as_of_a_lost_consumer_at_the_end_and_not_before():
    config = "queues: {q: {retry_delay: 1h}}\nroutes: [{from: '#', to: q}]"
    async with local_gateway(config) as (gateway, operator):
        await publish(gateway, *(Message("a", b"%d" % n) for n in range(4)))
        recorder = Recorder(lambda body: Verdict.DONE if body == b"1" else None)
        task = asyncio.create_task(drive(gateway, "q", recorder, batch=2))
        assert [await recorder.bodies.get() for _ in range(4)] == [b"0", b"1", b"2", b"3"]
        await settled_done(operator, "q", 1)
        assert (await operator.stats())[-1].in_flight == 3
        await stop(task)
        again = Recorder()
        task = asyncio.create_task(drive(gateway, "q", again))
        # At once, whatever the pause for retries is, and the oldest alone has one attempt.
        assert [await again.bodies.get() for _ in range(3)] == [b"0", b"2", b"3"]
        assert again.attempts == [1, 0, 0]
        await stop(task)


async def settled_done(operator, queue: str, count: int) -> None:
    """Returns when that many were settled done, whatever is in flight."""
    while True:
        if next(stats for stats in await operator.stats() if stats.name == queue).settled >= count:
            return
        await asyncio.sleep(0.001)


async def stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_all_is_sent_in_batches_and_settled():
    async with local_gateway('queues: {q: }\nroutes: [{from: "#", to: q}]') as (gateway, operator):
        await publish(gateway, *(Message("a", b"%d" % n) for n in range(250)))
        recorder = Recorder()
        task = asyncio.create_task(drive(gateway, "q", recorder, batch=100, in_flight=100))
        await settled(operator, "q", 250)
        assert [body for batch in recorder.batches for body in batch] == [b"%d" % n for n in range(250)]
        assert max(map(len, recorder.batches)) <= 100
        await stop(task)


async def test_a_group_reaches_the_sink_in_order_whatever_it_answers():
    rng = random.Random(7)
    order: dict[str, list[int]] = defaultdict(list)

    class Shaky:
        async def send(self, batch):
            await asyncio.sleep(rng.choice((0, 0, 0.001)))
            verdicts = []
            for delivery in batch:
                # Each third message fails once, which must hold its group alone.
                if int(delivery.message.body) % 3 == 0 and not delivery.attempts:
                    verdicts.append((Verdict.RETRY, "not now"))
                else:
                    order[delivery.message.topic].append(int(delivery.message.body))
                    verdicts.append(Verdict.DONE)
            return verdicts

    async with local_gateway(GROUPED) as (gateway, operator):
        await publish(gateway, *(Message(f"g{n % 7}", b"%d" % n) for n in range(210)))
        task = asyncio.create_task(drive(gateway, "q", Shaky(), batch=5, in_flight=20))
        await settled(operator, "q", 210)
        await stop(task)
    assert order == {f"g{g}": list(range(g, 210, 7)) for g in range(7)}


async def test_with_several_of_a_group_in_flight_sends_do_not_overlap():
    config = 'queues: {q: {group: "{topic}", group_in_flight: 10}}\nroutes: [{from: "#", to: q}]'
    running = 0
    seen: list[bytes] = []

    class Watch:
        async def send(self, batch):
            nonlocal running
            running += 1
            assert running == 1
            await asyncio.sleep(0)
            running -= 1
            seen.extend(delivery.message.body for delivery in batch)
            return [Verdict.DONE] * len(batch)

    async with local_gateway(config) as (gateway, operator):
        await publish(gateway, *(Message("g", b"%d" % n) for n in range(50)))
        task = asyncio.create_task(drive(gateway, "q", Watch(), batch=1, in_flight=10))
        await settled(operator, "q", 50)
        await stop(task)
    assert seen == [b"%d" % n for n in range(50)]


@pytest.mark.parametrize(("verdict", "died"), [(Verdict.DEAD, "rejected"), (Verdict.INVALID, "invalid")])
async def test_dead_comes_with_its_reason(verdict, died):
    recorder = Recorder(lambda body: (verdict, "no such customer"))
    async with local_gateway(GROUPED) as (gateway, operator):
        await publish(gateway, Message("g", b"x"))
        task = asyncio.create_task(drive(gateway, "q", recorder))
        await settled(operator, "q", 1)
        await gateway.put()
        (dead,) = await operator.browse("dead-letters")
        assert (dead.deaths[0].reason, dead.deaths[0].error) == (died, "no such customer")
        await stop(task)


@pytest.mark.parametrize("answer", [RuntimeError("away"), [], [Verdict.DONE, Verdict.DONE]], ids=str)
async def test_raising_or_a_wrong_number_of_verdicts_is_retry_for_all(answer, monkeypatch):
    monkeypatch.setattr(sink, "FIRST_PAUSE", 0.001)
    sends = 0

    class Bad:
        async def send(self, batch):
            nonlocal sends
            sends += 1
            if isinstance(answer, Exception):
                raise answer
            return answer

    async with local_gateway(GROUPED) as (gateway, operator):
        await publish(gateway, Message("g", b"x"))
        task = asyncio.create_task(drive(gateway, "q", Bad()))
        await settled(operator, "q", 1)
        await gateway.put()
        (dead,) = await operator.browse("dead-letters")
        assert sends == dead.deaths[0].attempts == 3
        assert dead.deaths[0].reason == "exhausted"
        assert str(answer) in dead.deaths[0].error or "verdicts for 1 deliveries" in dead.deaths[0].error
        await stop(task)


async def test_a_stop_lets_a_send_end_and_gives_back_the_rest():
    entered, free = asyncio.Event(), asyncio.Event()

    class Slow:
        async def send(self, batch):
            entered.set()
            await free.wait()
            return [Verdict.DONE] * len(batch)

    async with local_gateway('queues: {q: }\nroutes: [{from: "#", to: q}]') as (gateway, operator):
        await publish(gateway, *(Message("a", b"%d" % n) for n in range(10)))
        task = asyncio.create_task(drive(gateway, "q", Slow(), batch=2, in_flight=2))
        await entered.wait()
        task.cancel()
        await asyncio.sleep(0)
        free.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        stats = next(stats for stats in await operator.stats() if stats.name == "q")
        assert (stats.settled, stats.depth, stats.in_flight, stats.retried, stats.consumers) == (2, 8, 0, 0, 0)


async def test_a_send_that_does_not_end_is_cut_and_counts_no_attempt():
    entered = asyncio.Event()

    class Stuck:
        async def send(self, batch):
            entered.set()
            await asyncio.Event().wait()

    async with local_gateway(GROUPED, drain_timeout=0.01) as (gateway, operator):
        await publish(gateway, Message("g", b"x"))
        task = asyncio.create_task(drive(gateway, "q", Stuck()))
        await entered.wait()
        await stop(task)
        (waiting,) = await operator.browse("q")
        assert waiting.attempts == 0
        assert not waiting.in_flight


async def test_a_queue_that_is_not_there_or_goes_away():
    async with local_gateway() as (gateway, _):
        with pytest.raises(UnknownQueueError, match="nope"):
            await drive(gateway, "nope", Recorder())
        gateway.declare("mine", sink_policy(), "test")
        task = asyncio.create_task(drive(gateway, "mine", Recorder()))
        await asyncio.sleep(0)
        gateway.delete("mine")
        with pytest.raises(UnknownQueueError, match="is gone"):
            await task


def sink_policy():
    from gateway.model.policy import QueuePolicy

    return QueuePolicy(durable=False)


async def test_what_a_sink_holds_is_bounded_in_bytes(monkeypatch):
    monkeypatch.setattr(sink, "MAX_HELD_OCTETS", 3000)
    held: list[int] = []
    entered, free = asyncio.Event(), asyncio.Event()

    class Slow:
        async def send(self, batch):
            entered.set()
            held.append(sum(len(delivery.message.body) for delivery in batch))
            await free.wait()
            return [Verdict.DONE] * len(batch)

    async with local_gateway('queues: {q: }\nroutes: [{from: "#", to: q}]') as (gateway, operator):
        await publish(gateway, *(Message("a", bytes(1000)) for _ in range(20)))
        task = asyncio.create_task(drive(gateway, "q", Slow(), batch=1, in_flight=100))
        await entered.wait()
        await gateway.put()
        await asyncio.sleep(0)
        assert sum(held) <= 4000
        free.set()
        await settled(operator, "q", 20)
        await stop(task)


def test_a_window_is_not_worn_down():
    window = Window(100)
    for _ in range(50):
        window.pool.octets -= 90
        window.hold(50)
        window.free(50)
    assert window.pool.octets == 100
