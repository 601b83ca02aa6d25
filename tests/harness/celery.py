"""Owns the Celery application of the tests and its workers, each a process of its own as `celery worker` makes it.

Its rule: Celery comes as it is; a setting that is not its default is given by the test that needs it.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import celery
from celery.backends.rpc import RPCBackend
from kombu import pools
from kombu.entity import Queue

from tests.harness.daemon import ROOT
from tests.harness.process import ServerError, ServerProcess

START_SECONDS = 30.0


def application(broker: str, **settings: Any) -> celery.Celery:
    """An app with the tasks below: for the workers, and for the test that calls them. `task_queues` as a mapping of
    names to the arguments of the queue."""
    app = celery.Celery("tasks", broker=broker, backend=settings.pop("result_backend", "rpc://"), set_as_current=False)
    if queues := settings.pop("task_queues", None):
        settings["task_queues"] = [
            Queue(name, routing_key=name, queue_arguments=arguments) for name, arguments in queues.items()
        ]
    app.conf.update(settings)
    # By name: in a worker this module is __main__.
    app.task(add, name="add")
    app.task(total, name="total")
    app.task(retried, name="retried", bind=True, max_retries=3)
    app.task(note, name="note")
    app.task(held, name="held", bind=True, acks_late=True)
    return app


def add(one: int, other: int) -> int:
    return one + other


def total(numbers: list[int]) -> int:
    return sum(numbers)


def retried(self: Any, times: int, countdown: float) -> int:
    """Fails so many times, then says which attempt it is."""
    if self.request.retries < times:
        raise self.retry(countdown=countdown)
    return int(self.request.retries)


def note(path: str, line: object, pause: float = 0.0) -> None:
    """Appends a line to a file, in one write, after a pause in seconds."""
    time.sleep(pause)
    with open(path, "a") as file:
        file.write(f"{line}\n")


def held(self: Any, path: str) -> str:
    """Notes the process that does it, and is only done by who gets it again."""
    note(path, os.getpid())
    if not self.request.delivery_info["redelivered"]:
        threading.Event().wait()
    return "done by another"


def close(app: celery.Celery) -> None:
    """Ends the connection by which an app hears of results, whatever became of it."""
    if isinstance(app.backend, RPCBackend):
        # Its `stop` fails where nothing was started or the broker has gone meanwhile.
        app.backend.result_consumer.on_after_fork()
    app.close()


def close_pools() -> None:
    """Ends the connections by which all apps of this process call tasks: kombu keeps them for each URL."""
    pools.reset()


class Worker:
    """A worker that consumes. Leave with `close`."""

    def __init__(self, broker: str, *arguments: str, name: str = "w@tests", **settings: Any) -> None:
        """`arguments` as `celery worker` takes them. Raises ServerError with its log if it does not start."""
        self.name = name
        command = [sys.executable, "-W", "ignore", "-m", "tests.harness.celery", broker, json.dumps(settings)]
        self.process = ServerProcess(
            [*command, "worker", "--hostname", name, "--loglevel", "INFO", *arguments],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        try:
            self.process.wait_for_line(" ready.", START_SECONDS)
        except ServerError:
            self.process.close()
            raise

    def kill(self) -> None:
        """SIGKILL to the worker and its pool."""
        self.process.kill()

    def close(self) -> None:
        self.process.close()


def lines_of(path: Path) -> list[str]:
    """What tasks have noted there."""
    return path.read_text().split() if path.exists() else []


if __name__ == "__main__":
    application(sys.argv[1], **json.loads(sys.argv[2])).start(sys.argv[3:])
