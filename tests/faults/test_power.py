"""Power cuts at any moment of a run with all that a store does: what was acknowledged before the cut is there.

GATEWAY_CUTS sets how many, GATEWAY_SEED repeats the choices of one run. `make power CUTS=20000` is the long form.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest

from gateway.broker.commit_batch import Accept
from gateway.queueing.queue import decode_message
from gateway.storage import salvage
from gateway.storage.sqlite import SqliteJournal
from gateway.transport import Outcome
from tests.faults.power import Disk, Fate, at_random, everything, nothing, write
from tests.faults.power_run import GROUPS, POLICIES, ROUTES, message, number_of
from tests.faults.shim import Event, Shim, read_trace
from tests.harness.kernel import Clock, Kernel

ROOT = Path(__file__).parents[2]
CUTS = int(os.environ.get("GATEWAY_CUTS", "500"))
SEED = int(os.environ.get("GATEWAY_SEED", random.SystemRandom().randrange(1 << 32)))
RUNS = ((1, "crash"), (1000, "broken"), (2000, "stop"), (3000, "crash"))
"""First number and end of each process; the next one finds what it left."""
BATCHES = 60
CHECK_EVERY = 20
START_EVENTS = 80
"""About how many it takes a start to empty the log that it finds."""
ASKED = 40
"""Numbers whose dedup keys are asked for after each cut: the latest, for of those some are on their way."""

pytestmark = pytest.mark.timeout(120 + CUTS)


class Promises:
    """What the marks of the trace say, up to one moment."""

    def __init__(self) -> None:
        self.sent: list[int] = []
        self.stored: set[int] = set()
        self.leaving: set[tuple[str, int]] = set()
        """A consumer has settled it, which may have been heard."""
        self.burying: set[tuple[str, int]] = set()
        self.settled: set[tuple[str, int]] = set()
        """And a later accept was answered."""
        self.latest = 0

    def hear(self, mark: dict[str, Any]) -> None:
        self.sent += mark.get("sent", ())
        self.stored.update(mark.get("stored", ()))
        self.leaving.update((queue, number) for queue, number in mark.get("settling", ()))
        self.burying.update((queue, number) for queue, number in mark.get("burying", ()))
        self.settled.update((queue, number) for queue, number in mark.get("settled", ()))
        self.latest = mark.get("latest", self.latest)


class Found:
    """A store after a power cut, opened as the daemon opens it."""

    def __init__(self, path: Path) -> None:
        self.journal = SqliteJournal(path, reserve=0)
        self.journal.open()
        self.kernel = Kernel(POLICIES, ROUTES, journal=self.journal, clock=Clock(time.time()))
        self.numbers = {name: self._content(name) for name in POLICIES}

    def _content(self, name: str) -> list[int]:
        """By arrival, each message whole."""
        queue = self.kernel.queue(name)
        entries = queue.entries
        rows = self.journal.read(sorted({entries.row[slot] for slot in entries.slots()}))
        numbers = []
        for slot in entries.slots():
            start = entries.offset[slot]
            body = rows[entries.row[slot]][start : start + entries.length[slot]]
            number = number_of(decode_message(body))
            assert decode_message(body) == message(number)
            numbers.append(number)
        return numbers

    def has_key(self, number: int) -> bool:
        """Asked as a sender asks: by sending it."""
        counters = self.kernel.queue("fifo").counters  # a message that also goes to "copy" is stored there anyway
        accept = Accept((message(number),), (), lambda outcomes, ok: None)
        self.kernel.core.accept(accept)
        assert accept.outcomes[0] in (Outcome.STORED, Outcome.DUPLICATE)
        return (counters, "duplicates") in accept.counts

    def judge(self, promises: Promises) -> list[str]:
        faults = []
        where = Counter((name, number) for name, numbers in self.numbers.items() for number in numbers)
        sent, gone = set(promises.sent), promises.leaving | promises.burying
        fifo, dead = set(self.numbers["fifo"]), set(self.numbers["dead-letters"])
        for number in promises.stored:
            for name in ("fifo", "copy") if number % 3 == 0 else ("fifo",):
                place = (name, number)
                if place not in where and place not in gone:
                    faults.append(f"{number} was acknowledged and is not in {name}")
                if place in where and place in promises.settled:
                    faults.append(f"{number} is still in {name} although its settlement was durable")
        for name, number in promises.burying:
            if where[name, number] + where["dead-letters", number] < 1 and number in promises.stored:
                faults.append(f"{number} was a dead letter of {name}, and is in neither queue")
        for (name, number), count in where.items():
            most = 2 if name == "dead-letters" and number % 3 == 0 else 1
            if count > most:
                faults.append(f"{number} is {count} times in {name}")
            if number not in sent:
                faults.append(f"{number} was never sent")
        for group in range(GROUPS):
            order = [number for number in self.numbers["fifo"] if number % GROUPS == group]
            if order != sorted(order):
                faults.append(f"group {group} is out of order: {order}")
        latest = self.kernel.restored.states.get("run", {}).get("latest", b"0")
        if int(latest) < promises.latest:
            faults.append(f"the state is {latest!r}, {promises.latest} was promised")
        for number in promises.sent[-ASKED:]:
            kept = number in fifo or number in dead
            key = self.has_key(number)
            if key and not kept and ("fifo", number) not in gone:
                faults.append(f"{number} left its dedup key and no message")
            if not key and (kept or number in promises.stored):
                faults.append(f"{number} is there and its dedup key is not")
        return faults


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shim]:
    """With the trace of several processes, each started on what the one before had left."""
    folder = tmp_path_factory.mktemp("power")
    root = folder / "store"
    root.mkdir()
    shim = Shim(folder, root)
    did: Counter[str] = Counter()
    for first, end in RUNS:
        shim.heal()
        command = [sys.executable, "-m", "tests.faults.power_run", str(shim.root), str(first), str(BATCHES), end]
        environment = {**os.environ, **shim.env}
        run = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
        did.update(json.loads(run.stdout))
    assert all(did.values()), f"a kind of housekeeping never came: {did}"
    yield shim
    shim.close()


@pytest.fixture
def folder() -> Iterator[Path]:
    """In memory if there is such a place: what is read back there needs no disk of its own."""
    memory = Path("/dev/shm")
    made = Path(mkdtemp(prefix="gateway-power-", dir=memory if os.access(memory, os.W_OK) else None))
    yield made
    shutil.rmtree(made)


def fates(choices: random.Random) -> Fate:
    return choices.choice((nothing, everything, *[at_random(choices)] * 8))


def test_the_trace_is_worth_cutting(shim: Shim) -> None:
    events = list(read_trace(shim.trace))
    kinds = Counter(event.kind for event in events)
    assert kinds["write"] > 3000 and kinds["sync"] > 300 and kinds["sync failed"] >= len(RUNS)
    published = {event.data for event in events if event.kind == "rename"}
    assert {b"gateway-1.db", b"gateway-2.db", b"gateway-3.db"} <= published
    files = {event.fd: event.name for event in events if event.kind == "open"}
    assert "" in files.values(), "no directory was ever synced"
    # Free pages given back: the database itself became smaller at a checkpoint.
    assert any(event.kind == "truncate" and event.number for event in events)


def test_a_start_makes_sure_of_the_log_before_it_relies_on_it(shim: Shim) -> None:
    """What an earlier process could not fsync may be in memory alone; no later fsync alone brings it to the disk."""
    events = list(read_trace(shim.trace))
    starts = [place for place, event in enumerate(events) if event.kind == "start"]
    for start, (_, before) in zip(starts[1:], RUNS, strict=False):
        if before == "stop":
            continue  # which leaves no log
        names: dict[int, str] = {}
        done: list[tuple[str, str, int]] = []
        for event in events[start + 1 :]:
            if event.kind == "open":
                names[event.fd] = event.name
            elif event.kind in ("write", "sync") and names[event.fd].endswith((".db", "-wal")):
                done.append((event.kind, names[event.fd].removeprefix("gateway-"), event.number))
                if names[event.fd].endswith(".db"):
                    break
        log = done[0][1]
        assert log.endswith(".db-wal")
        assert done[:2] == [("write", log, 0), ("sync", log, 0)] or ("sync", log, 0) in done[2:-1]


def test_what_was_acknowledged_before_a_power_cut_is_there(shim: Shim, folder: Path, capsys: Any) -> None:
    choices = random.Random(SEED)
    events = list(read_trace(shim.trace))
    cuts = sorted(places(events, choices))
    disk, promises = Disk(), Promises()
    fed = 0
    for count, cut in enumerate(cuts):
        for event in events[fed:cut]:
            disk.feed(event)
            if event.kind == "mark":
                promises.hear(json.loads(event.data))
        fed = cut
        write(disk.after(fates(choices)), folder)
        try:
            found = Found(folder)
            faults = found.judge(promises)
            found.kernel.run()  # and it goes on
            found.journal.close()
            if count % CHECK_EVERY == 0:
                faults += salvage.check(folder).problems
        except Exception as error:  # whatever it is, the cut that made it must be named
            raise AssertionError(f"seed {SEED}, the cut after event {cut} of {len(events)}: {error!r}") from error
        assert not faults, f"seed {SEED}, the cut after event {cut} of {len(events)}:\n" + "\n".join(faults[:20])
    with capsys.disabled():
        print(f"\n{len(cuts)} power cuts in {len(events)} events, {len(promises.stored)} messages acknowledged, 0 lost")


def places(events: Sequence[Event], choices: random.Random) -> list[int]:
    """Where to cut: anywhere, close to what makes things durable, and while a start takes over what was left."""
    turning = [place for place, event in enumerate(events) if event.kind in ("sync", "rename", "unlink", "sync failed")]
    starts = [place for place, event in enumerate(events) if event.kind == "start"]
    chosen = [choices.choice(turning) + choices.randint(-2, 3) for _ in range(CUTS // 2)]
    chosen += [choices.choice(starts) + choices.randint(1, START_EVENTS) for _ in range(CUTS // 5)]
    chosen += [choices.randrange(len(events) + 1) for _ in range(CUTS - len(chosen))]
    return [min(max(0, place), len(events)) for place in chosen]
