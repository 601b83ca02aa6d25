"""Owns Crowd: a daemon, the publishers and workers around it, and the history of what they do and see.

Its rule: a run of the daemon begins in the history before a client connects, and ends there when everything that the
daemon had written is read.
"""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path
from typing import IO, Any

import httpx

from tests.crash import house
from tests.crash.history import Event, History
from tests.crash.publishers import AmqpPublisher, ExactPublisher, MqttPublisher, Publisher
from tests.crash.workers import AmqpWorker, ExactWorker, MqttWorker, Worker
from tests.harness.amqp import AmqpPeer
from tests.harness.daemon import Daemon
from tests.harness.mqtt import MqttPeer

MQTT_PUBLISHERS, EXACT_PUBLISHERS, AMQP_PUBLISHERS = 6, 2, 3
MOST_OUTSTANDING = 6_000
"""With more than that to be settled, a run sends nothing new."""
LOSS_SECONDS = 20.0
STORED_SECONDS = 30.0
DRAIN_SECONDS = 90.0


class Crowd:
    """One daemon in `folder`, not started. `file` gets the history, too; `changes` are added
    to the configuration: mappings and lists to what is there, anything else in its place."""

    def __init__(self, folder: Path, rng: random.Random, file: IO[str] | None = None, **changes: Any) -> None:
        self.rng = rng
        self.history = history = History(house.PLACES, house.ROUTES, file)
        self.configuration = house.merged(house.configuration(folder / "data"), changes)
        self.daemon = Daemon(folder, self.configuration)
        self.publishers: list[Publisher] = [MqttPublisher(f"m{n}", history, rng) for n in range(MQTT_PUBLISHERS)]
        self.publishers += [ExactPublisher(f"e{n}", history, rng) for n in range(EXACT_PUBLISHERS)]
        self.publishers += [AmqpPublisher(f"a{n}", history, rng) for n in range(AMQP_PUBLISHERS)]

        def mqtt(place: str, filter: str, client_id: str, lasting: bool = False) -> Worker:
            return MqttWorker(place, filter, history, rng, client_id, lasting)

        self.workers: list[Worker] = [
            *(AmqpWorker(house.FIFO, history, rng, rejects=True) for _ in range(3)),
            mqtt(house.FIFO, f"$queue/{house.FIFO}", "fifo0"),
            *(AmqpWorker(house.WIDE, history, rng) for _ in range(2)),
            mqtt(house.WIDE, f"$queue/{house.WIDE}", "wide0", lasting=True),
            *(AmqpWorker(house.PLAIN, history, rng) for _ in range(2)),
            mqtt(house.PLAIN, f"$queue/{house.PLAIN}", "plain0"),
            AmqpWorker(house.BURIED, history, rng),
            mqtt(house.SHARED, house.FILTERS["crew"], "crew0", lasting=True),
            mqtt(house.SHARED, house.FILTERS["crew"], "crew1"),
            *(mqtt(name, house.FILTERS["live"], name, lasting=True) for name in house.SESSIONS),
            ExactWorker(house.EXACT, house.FILTERS["exact"], history, rng, house.EXACT),
        ]
        self.laggard = AmqpWorker(house.LAG, history, rng)
        """Not there in every run, so that rows of bodies become mostly dead."""
        self.errors: list[str] = []
        """What went wrong beside the history: raised in callbacks, which an event loop only logs; said by the daemon;
        left in its queues."""

    @property
    def present(self) -> list[Worker]:
        return self.workers + ([self.laggard] if self.laggard.name else [])

    @property
    def peers(self) -> list[MqttPeer | AmqpPeer]:
        """All connections of this run; those that vanished were replaced."""
        workers = [worker.peer for worker in self.present]
        publishers = [publisher.peer for publisher in self.publishers]
        return [peer for peer in workers + publishers if peer is not None]

    @property
    def faults(self) -> list[str]:
        """Everything found so far."""
        return self.errors + self.history.faults

    def watch(self) -> None:
        """From now on the running loop's own errors count, too."""
        asyncio.get_running_loop().set_exception_handler(self._on_error)

    def _on_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.errors.append(f"run {self.history.run}: {context.get('exception') or context['message']!r}")

    # a run of the daemon

    async def begin(self, more: int, lagging: bool = True) -> float:
        """Starts the daemon and lets everybody in; each publisher sends first what is unanswered, then up to `more`
        new messages. Returns how many seconds the daemon took to be ready."""
        launched = time.monotonic()
        await asyncio.to_thread(self.daemon.start)
        seconds = time.monotonic() - launched
        self.history.tell(Event("begin"))
        for worker in [*self.workers, *([self.laggard] if lagging else [])]:
            await worker.connect(self.daemon)
        for publisher in self.publishers:
            await publisher.connect(self.daemon)
            publisher.left = more if self.history.outstanding < MOST_OUTSTANDING else 0
            publisher.begin()
        return seconds

    async def until_stored(self, more: int) -> None:
        """Until so many more messages are confirmed."""
        enough, reached = self.history.stored + more, asyncio.Event()
        self.history.on_stored = lambda stored: reached.set() if stored >= enough else None
        async with asyncio.timeout(STORED_SECONDS):
            await reached.wait()

    async def mischief(self, enough: asyncio.Event) -> None:
        """Clients vanish with deliveries in flight and messages unanswered, and come back. Returns when the daemon
        lets nobody in, or soon after `enough`, with everybody connected; a client is missing if it is cancelled."""
        while not enough.is_set():
            await asyncio.sleep(self.rng.uniform(0.03, 0.2))
            restless: list[Worker | Publisher] = [*self.present, *self.publishers[:2], self.publishers[-1]]
            restless += [one for one in self.publishers if isinstance(one, ExactPublisher)]
            one = self.rng.choice(restless)
            one.vanish()
            try:
                await one.connect(self.daemon)
            except (ConnectionError, OSError, TimeoutError):
                return
            if isinstance(one, Publisher):
                one.begin()

    async def ended(self) -> int:
        """After the daemon's end, however it came. Returns how many messages are unanswered."""
        async with asyncio.timeout(LOSS_SECONDS):
            for peer in self.peers:
                await peer.lost.wait()
        for worker in self.present:
            worker.lose()
        self.history.tell(Event("end"))
        self.heed()
        return sum(len(publisher.unanswered) for publisher in self.publishers)

    def heed(self) -> None:
        """Errors that the daemon logged in this run count."""
        for record in self.daemon.log:
            if record.get("level") == "error" or "Traceback" in str(record.get("text", "")):
                self.errors.append(f"run {self.history.run}: the daemon said {record}")

    async def drain(self) -> None:
        """In a run that has begun: until everything is answered, settled, and gone from the queues. Then all leave."""
        deadline = time.monotonic() + DRAIN_SECONDS
        for publisher in self.publishers:
            publisher.left = 0
        for worker in self.present:
            worker.draining = True
        while time.monotonic() < deadline and not self.faults:
            for worker in self.present:
                worker.settle_all()
            if not any(publisher.unanswered for publisher in self.publishers) and not self.history.missing():
                break
            await asyncio.sleep(0.1)
        else:
            self.errors.append(f"not drained, {sum(len(one.unanswered) for one in self.publishers)} unanswered")
        for peer in self.peers:
            await peer.close()
        await asyncio.to_thread(self.look_for_rest)
        self.heed()

    def look_for_rest(self) -> None:
        """Nothing is left in queues that the history says are empty."""
        found = httpx.get(f"{self.daemon.url('admin')}/api/v1/queues", trust_env=False)
        for queue in found.json()["queues"]:
            left = queue["depth"] + queue["in_flight"]
            name = queue["name"]
            if left and (name in self.history.places or name.startswith("mqtt.")):
                self.errors.append(f"{left} messages are left in {name}")
