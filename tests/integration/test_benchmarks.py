"""Each profile of the benchmarks runs against the gateway and its peers, and counts right. How fast anything is stands
in no test."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import brokers, disk
from benchmarks.__main__ import ORDER, load_profiles, main
from benchmarks.consumer import Consumer
from benchmarks.messages import Flow, LoadError
from benchmarks.rounds import Bench
from benchmarks.schedule import Schedule, Timed
from benchmarks.stages import OTHER, STAGES
from benchmarks.transfer import ingest, mqtt_publishers
from tests.harness.rabbitmq import RabbitMq

PROFILES = {profile.name: profile for profile in load_profiles()}


@pytest.mark.parametrize("name", ORDER)
@pytest.mark.timeout(120)
def test_a_profile_runs(name: str, tmp_path: Path, rabbitmq: RabbitMq, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--smoke", "--folder", str(tmp_path)], rabbitmq) == 0, capsys.readouterr()
    profile = PROFILES[name]
    report = json.loads((tmp_path / f"{name}.json").read_text())
    assert not report["failures"]
    assert report["smoke"] and report["machine"]["disk"]["fsync_p50"] > 0
    for variant in profile.smoke or profile.variants:
        found = report["found"][variant]
        assert list(found) == list(profile.contenders)
        compared = [figure.key for figure in profile.figures if figure.compared]
        for contender, figures in found.items():
            assert figures and all(len(spread["rounds"]) == 1 for spread in figures.values())
            if contender not in ("gateway", "sink"):
                assert set(report["ratios"][variant][contender]) == set(compared)
        assert set(found["gateway"]) == {figure.key for figure in profile.figures}
    assert len(report["settings"]) == len(profile.contenders)
    assert [path.name for path in tmp_path.iterdir()] == [f"{name}.json"], "a run leaves only its results"


def test_the_budget_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["budget", "--messages", "20000", "--rounds", "1", "--folder", str(tmp_path)]
    assert main(arguments) == 0, capsys.readouterr()
    budget = json.loads((tmp_path / "budget.json").read_text())
    stages = {stage: spread["median"] for stage, spread in budget["stages"].items()}
    assert list(stages) == [*STAGES, OTHER]
    assert 0 < budget["main"]["median"] and sum(stages.values()) == pytest.approx(budget["main"]["median"])
    assert stages["enqueue"] > 0 and stages["deliver"] > 0 and stages["settle"] > 0
    assert budget["others"]["journal-writer"]["median"] > 0


def test_there_is_a_test_of_every_profile() -> None:
    assert list(PROFILES) == list(ORDER)


def test_what_is_missing_in_the_queue_is_found(tmp_path: Path) -> None:
    """No route leads from the topic to the queue: every message is answered, none is stored."""
    layout = brokers.Layout({"queues": {brokers.QUEUE: {}}}, queue=True, about="no route")
    flow = Flow(100, publishers=2, groups=2, body_size=64)
    with (
        Bench(tmp_path, {}).broker("gateway", layout) as gateway,
        pytest.raises(LoadError, match="100 messages were answered, 0 are in the queue"),
    ):
        ingest(gateway, flow, 10, None, stored=True)


def test_messages_that_are_refused_are_found(tmp_path: Path) -> None:
    layout = brokers.queue_layout()
    layout.gateway["queues"][brokers.QUEUE]["max_messages"] = 5
    flow = Flow(100, publishers=1, groups=1, body_size=64)
    with (
        Bench(tmp_path, {}).broker("gateway", layout) as gateway,
        pytest.raises(LoadError, match=r"a connection.*: \d of 100 messages were answered"),
    ):
        ingest(gateway, flow, 10, None, stored=True)


def test_the_ceiling_of_the_generator_is_measured_without_a_broker(tmp_path: Path) -> None:
    flow = Flow(1001, publishers=2, groups=10, body_size=64)
    with Bench(tmp_path, {}).broker("sink") as sink:
        assert ingest(sink, flow, 10, None, stored=True)["answered"] > 0
        consumer = Consumer.of(sink.amqp, brokers.QUEUE, 10)
        consumer.close()
        for publisher in mqtt_publishers(sink.mqtt, flow, 10):
            publisher.close()


def test_a_stall_counts_for_all_that_were_due_meanwhile(tmp_path: Path) -> None:
    """The sink stands still for a while: without coordinated omission the latencies of everything due in that time
    are that of the pause less how far into it they were due."""
    rate, seconds, pause = 500, 1.0, 0.4
    flow = Flow(int(rate * seconds), publishers=1, groups=1, body_size=64, topic=b"latency/%04d/pair")
    with Bench(tmp_path, {}).broker("sink") as sink:
        schedule = Schedule(sink.mqtt, flow, rate, lasting=False)
        with contextlib.closing(schedule), paused(sink.pids()[0], pause, after_first_of=schedule.subscribers[0]):
            schedule.run(None)
    latencies = schedule.latencies(warm_up=0)
    assert len(latencies) == flow.total
    slow = sum(latency > pause / 2 for latency in latencies)
    assert slow > rate * pause / 4, "a closed loop would have sent, and counted, only a few"


@contextlib.contextmanager
def paused(pid: int, seconds: float, after_first_of: Timed) -> Iterator[None]:
    """That process is stopped for so long, once the first message has come."""
    going_on = threading.Timer(seconds, os.kill, (pid, signal.SIGCONT))
    arrived = after_first_of.arrived

    def arrived_and_stopped(count: int) -> None:
        arrived(count)
        if not going_on.ident:
            os.kill(pid, signal.SIGSTOP)
            going_on.start()

    after_first_of.arrived = arrived_and_stopped
    try:
        yield
    finally:
        if going_on.ident:
            going_on.join()


def test_a_folder_in_memory_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    shm = Path("/dev/shm")
    if not shm.is_dir() or disk.file_system(shm) not in disk.IN_MEMORY:
        pytest.skip("no tmpfs on this machine")
    folder = shm / f"gateway-bench-{os.getpid()}"
    try:
        assert main(["pipeline", "--folder", str(folder)]) == 1
        assert "tmpfs" in capsys.readouterr().err
    finally:
        folder.rmdir()
