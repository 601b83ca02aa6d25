"""Celery applications as they come, with the gateway as their only broker."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import celery
import pytest

from tests.harness.celery import Worker, application, close, close_pools, lines_of
from tests.harness.daemon import Daemon
from tests.harness.process import quiet_port

SECONDS = 20
QUICK = ("--without-mingle", "--without-gossip")
"""What makes a worker start later, and is looked at in one test."""


def broker_of(daemon: Daemon) -> str:
    address = daemon.address("amqp")
    return f"amqp://guest:guest@{address.host}:{address.port}//"


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    daemon = Daemon(tmp_path_factory.mktemp("celery"), {})
    try:
        yield broker_of(daemon.start())
    finally:
        close_pools()
        daemon.close()


@pytest.fixture(scope="module", params=["solo", "prefork"])
def app(request: pytest.FixtureRequest, broker: str) -> Iterator[celery.Celery]:
    """An application, each with its own queue, whose worker has the pool of that name."""
    settings: dict[str, Any] = {"task_default_queue": f"plain.{request.param}", "worker_send_task_events": True}
    worker = Worker(broker, "--pool", request.param, "--concurrency", "2", name=f"{request.param}@tests", **settings)
    called = application(broker, **settings)
    try:
        yield called
    finally:
        worker.close()
        close(called)


@pytest.fixture
def make_worker() -> Iterator[Callable[..., Worker]]:
    workers: list[Worker] = []

    def make(*arguments: str, **settings: Any) -> Worker:
        workers.append(Worker(*arguments, *QUICK, **settings))
        return workers[-1]

    yield make
    for worker in workers:
        worker.close()


@pytest.fixture
def called() -> Iterator[Callable[..., celery.Celery]]:
    """`called(broker, **settings)`: an application that calls tasks."""
    apps: list[celery.Celery] = []

    def make(broker: str, **settings: Any) -> celery.Celery:
        apps.append(application(broker, **settings))
        return apps[-1]

    yield make
    for each in apps:
        close(each)


def until(seen: Callable[[], bool], what: str) -> None:
    """What tasks do to files makes no event."""
    deadline = time.monotonic() + SECONDS
    while not seen():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def call(app: celery.Celery, task: str, *arguments: Any, **options: Any) -> Any:
    return app.tasks[task].apply_async(arguments, **options)


# what every application does


def test_a_task_has_its_result(app: celery.Celery) -> None:
    results = [call(app, "add", n, n) for n in range(20)]
    assert [result.get(timeout=SECONDS) for result in results] == [2 * n for n in range(20)]


def test_a_task_that_fails_says_why(app: celery.Celery) -> None:
    with pytest.raises(TypeError, match="unsupported operand"):
        call(app, "add", 1, "x").get(timeout=SECONDS)


def test_a_task_is_retried_with_countdown(app: celery.Celery) -> None:
    started = time.monotonic()
    assert call(app, "retried", 2, 0.3).get(timeout=SECONDS) == 2
    assert time.monotonic() - started >= 0.6


def test_a_task_waits_for_its_eta(app: celery.Celery) -> None:
    started = time.monotonic()
    late, soon = call(app, "add", 1, 1, countdown=0.7), call(app, "add", 2, 2)
    assert soon.get(timeout=SECONDS) == 4
    assert late.get(timeout=SECONDS) == 2
    assert time.monotonic() - started >= 0.7


def test_groups_and_chains(app: celery.Celery) -> None:
    add = app.tasks["add"]
    group = celery.group([add.s(n, 1) for n in range(10)], app=app).apply_async()
    assert group.get(timeout=SECONDS) == list(range(1, 11))
    assert celery.chain(add.s(1, 2), add.s(4), app=app).apply_async().get(timeout=SECONDS) == 7


# remote control and events


def test_workers_answer_remote_control(app: celery.Celery) -> None:
    queue = app.conf.task_default_queue
    name = f"{queue.removeprefix('plain.')}@tests"
    inspect = app.control.inspect([name], timeout=5, limit=1)
    assert inspect.ping() == {name: {"ok": "pong"}}
    assert [each["name"] for each in inspect.active_queues()[name]] == [queue]
    assert app.control.rate_limit("total", "5/s", destination=[name], reply=True, limit=1) == [
        {name: {"ok": "new rate limit set successfully"}}
    ]


def test_a_worker_that_consumes_another_queue_and_shuts_down(
    broker: str, make_worker: Callable[..., Worker], called: Callable[..., celery.Celery]
) -> None:
    worker = make_worker(broker, "--pool", "solo", name="control@tests", task_default_queue="control")
    app = called(broker, task_default_queue="control")
    only: dict[str, Any] = {"destination": [worker.name], "reply": True, "timeout": 5, "limit": 1}
    assert app.control.add_consumer("control.more", **only)[0][worker.name]["ok"]
    assert call(app, "add", 1, 2, queue="control.more").get(timeout=SECONDS) == 3
    app.control.shutdown(destination=[worker.name])
    assert worker.process.wait(SECONDS) == 0


def test_events_tell_the_life_of_a_task(app: celery.Celery) -> None:
    told: list[str] = []
    with app.connection_for_read() as connection:

        def on_event(event: dict[str, Any]) -> None:
            if event.get("uuid") == result.id:
                told.append(event["type"])

        receiver = app.events.Receiver(connection, handlers={"*": on_event})
        # What is called before the receiver has its queue is told to nobody.
        with receiver.consumer_context(wakeup=False) as (its, _, _):
            result = call(app, "add", 1, 2)
            while "task-succeeded" not in told:
                its.drain_events(timeout=SECONDS)
    assert told == ["task-received", "task-started", "task-succeeded"]


# nothing is lost


@pytest.mark.parametrize("pool", ["solo", "prefork"])
def test_a_task_of_a_killed_worker_is_done_by_another(
    broker: str, make_worker: Callable[..., Worker], called: Callable[..., celery.Celery], tmp_path: Path, pool: str
) -> None:
    settings: dict[str, Any] = {"task_default_queue": f"killed.{pool}"}
    noted = tmp_path / "held"
    app = called(broker, **settings)
    first = make_worker(broker, "--pool", pool, "--concurrency", "1", name="first@tests", **settings)
    result = call(app, "held", str(noted))
    until(lambda: len(lines_of(noted)) == 1, "it is begun")
    first.kill()
    make_worker(broker, "--pool", pool, "--concurrency", "1", name="second@tests", **settings)
    assert result.get(timeout=SECONDS) == "done by another"
    assert len(set(lines_of(noted))) == 2


def test_a_task_of_a_lost_child_is_rejected_and_done_again(
    broker: str, make_worker: Callable[..., Worker], called: Callable[..., celery.Celery], tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"task_default_queue": "lost", "task_reject_on_worker_lost": True}
    noted = tmp_path / "held"
    app = called(broker, **settings)
    worker = make_worker(broker, "--pool", "prefork", "--concurrency", "1", name="lost@tests", **settings)
    result = call(app, "held", str(noted))
    until(lambda: len(lines_of(noted)) == 1, "it is begun")
    child = int(lines_of(noted)[0])
    assert child != worker.process.pid
    os.kill(child, signal.SIGKILL)
    assert result.get(timeout=SECONDS) == "done by another"
    assert worker.process.running


def test_a_worker_outlives_its_broker_and_nothing_is_lost(
    make_daemon: Callable[..., Daemon],
    make_worker: Callable[..., Worker],
    called: Callable[..., celery.Celery],
    tmp_path: Path,
) -> None:
    transports = {"amqp": {"type": "amqp", "listen": f"127.0.0.1:{quiet_port()}"}}
    daemon = make_daemon({"transports": transports}).start()
    settings: dict[str, Any] = {"task_acks_late": True, "broker_transport_options": {"confirm_publish": True}}
    noted = tmp_path / "noted"
    worker = make_worker(broker_of(daemon), "--pool", "solo", **settings)
    app = called(broker_of(daemon), **settings)
    for n in range(100):
        call(app, "note", str(noted), n, 0.02, ignore_result=True)
    until(lambda: len(lines_of(noted)) >= 20, "some are done")
    daemon.kill()
    assert len(lines_of(noted)) < 100, "the broker is killed while there is work"
    daemon.start()
    for n in range(100, 110):
        call(app, "note", str(noted), n, ignore_result=True)
    until(lambda: set(lines_of(noted)) == {str(n) for n in range(110)}, "all are done")
    assert worker.process.running


# what a queue can


def test_tasks_of_a_higher_priority_are_done_first(
    broker: str, make_worker: Callable[..., Worker], called: Callable[..., celery.Celery], tmp_path: Path
) -> None:
    settings: dict[str, Any] = {
        "task_queues": {"priority": {"x-max-priority": 9}},
        "task_default_queue": "priority",
        "task_acks_late": True,
        "worker_prefetch_multiplier": 1,
    }
    noted = tmp_path / "noted"
    app = called(broker, **settings)
    for priority in (0, 5, 9, 5, 0):
        call(app, "note", str(noted), priority, priority=priority, ignore_result=True)
    make_worker(broker, "--pool", "solo", "--concurrency", "1", name="priority@tests", **settings)
    until(lambda: len(lines_of(noted)) == 5, "all are done")
    assert lines_of(noted) == ["9", "5", "5", "0", "0"]


def test_a_chord_with_a_result_backend_that_can(
    broker: str, make_worker: Callable[..., Worker], called: Callable[..., celery.Celery], tmp_path: Path
) -> None:
    """`rpc://` is not one: Celery says so."""
    settings: dict[str, Any] = {"task_default_queue": "chord", "result_backend": f"file://{tmp_path}"}
    app = called(broker, **settings)
    make_worker(broker, "--pool", "solo", name="chord@tests", **settings)
    add, total = app.tasks["add"], app.tasks["total"]
    chord = celery.chord([add.s(n, n) for n in range(4)], app=app)(total.s())
    assert chord.get(timeout=SECONDS) == 12


def test_quorum_queues_and_their_delayed_delivery(
    broker: str, make_worker: Callable[..., Worker], called: Callable[..., celery.Celery]
) -> None:
    """Celery delays by 28 queues with a TTL and topic exchanges between them."""
    settings: dict[str, Any] = {
        "task_default_queue": "quorum",
        "task_default_queue_type": "quorum",
        "task_default_exchange_type": "topic",
        "broker_transport_options": {"confirm_publish": True},
    }
    worker = make_worker(broker, "--pool", "solo", name="quorum@tests", **settings)
    assert not [line for line in worker.process.lines if "delayed delivery" in line], "it could be set up"
    app = called(broker, **settings)
    started = time.monotonic()
    late, soon = call(app, "add", 1, 1, countdown=3), call(app, "add", 2, 2)
    assert soon.get(timeout=SECONDS) == 4
    assert late.get(timeout=SECONDS) == 2
    assert time.monotonic() - started >= 3
    assert call(app, "retried", 1, 1).get(timeout=SECONDS) == 1
