"""docs/celery.md, as it stands there: its files, its commands, and what they print.

Changed are only the ports (free ones) and where programs are found.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness.daemon import ROOT
from tests.harness.process import ServerProcess, free_port

DOCUMENT = ROOT / "docs" / "celery.md"
SECONDS = 40


def blocks(kind: str) -> list[str]:
    """The blocks of that language, in order."""
    return re.findall(rf"```{kind}\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)


def files() -> dict[str, str]:
    """Each block that has a name above it."""
    return dict(re.findall(r"`([\w.]+)`:\n\n```\w+\n(.*?)```", DOCUMENT.read_text(), re.DOTALL))


class Reader:
    """Who pastes: a folder with the document's files, and shells in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        ports = {name: free_port() for name in ("1883", "5672", "8080")}
        for name, text in files().items():
            for port, other in ports.items():
                text = text.replace(f"127.0.0.1:{port}", f"127.0.0.1:{other}")
            (folder / name).write_text(text)
        for name, command in (("gateway", "-m gateway"), ("celery", "-W ignore -m celery")):
            (folder / name).write_text(f'#!/bin/sh\nexec {sys.executable} {command} "$@"\n')
            (folder / name).chmod(0o755)
        for name in ("mosquitto_pub", "mosquitto_rr"):
            (folder / "config").mkdir(exist_ok=True)
            (folder / "config" / name).write_text(f"-h 127.0.0.1\n-p {ports['1883']}\n")
        self.env = {
            "PATH": f"{folder}:/usr/local/bin:/usr/bin:/bin",
            "HOME": str(folder),
            "XDG_CONFIG_HOME": str(folder / "config"),
            "PYTHONPATH": str(ROOT),
            "GATEWAY_ADMIN": f"http://127.0.0.1:{ports['8080']}",
            "COLUMNS": "160",
        }
        self.running: list[ServerProcess] = []

    def start(self, command: str) -> ServerProcess:
        self.running.append(ServerProcess(["bash", "-c", command], env=self.env, cwd=self.folder))
        return self.running[-1]

    def paste(self, command: str) -> str:
        """What it printed."""
        shell = self.start(command)
        assert shell.wait(SECONDS) == 0, shell.tail()
        return "\n".join(shell.output)

    def close(self) -> None:
        for process in self.running:
            process.close()


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    reader = Reader(tmp_path)
    try:
        yield reader
    finally:
        reader.close()


def serve(reader: Reader, command: str, *ready: str) -> list[ServerProcess]:
    """Each line of a block is a server that says when it is ready."""
    started = []
    for line, said in zip(command.strip().splitlines(), ready, strict=True):
        assert line.endswith(" &")
        started.append(reader.start(f"exec {line.removesuffix(' &')}"))
        started[-1].wait_for_line(said, SECONDS)
    return started


@pytest.mark.timeout(120)
def test_a_device_is_answered_by_a_task(reader: Reader) -> None:
    servers, asked, strange, calculator, called = blocks("sh")
    answer, result = (json.loads(text) for text in blocks("json"))
    _, worker = serve(reader, servers, "ready", " ready.")
    assert json.loads(reader.paste(asked)) == answer

    reader.paste(strange.splitlines()[0])
    dead = until(reader, strange.splitlines()[1], "readings.dead")
    assert "rejected" in dead

    serve(reader, calculator, " ready.")
    done = json.loads(reader.paste(called))
    assert set(done) == set(result)
    assert {**done, "date_done": ""} == {**result, "date_done": ""}
    assert not [line for line in worker.lines if "Traceback" in line]


@pytest.mark.timeout(120)
def test_a_device_is_answered_when_the_worker_dies_in_the_task(reader: Reader) -> None:
    servers, asked, *_ = blocks("sh")
    # The first one dies at the sum, once.
    tasks = reader.folder / "tasks.py"
    text = tasks.read_text()
    slow = "        __import__('pathlib').Path('begun').open('x').close() or __import__('time').sleep(600)\n"
    guarded = f"    if not __import__('os').path.exists('begun'):\n{slow}"
    assert "    try:\n        answer" in text
    tasks.write_text(text.replace("    try:\n        answer", f"{guarded}    try:\n        answer", 1))
    _, worker = serve(reader, servers, "ready", " ready.")
    device = reader.start(f"exec {asked.strip()}")
    begun: Callable[[], Any] = (reader.folder / "begun").exists
    worker.wait_for(begun, "the task to begin", SECONDS)
    worker.kill()
    serve(reader, servers.splitlines()[1], " ready.")
    assert device.wait(SECONDS) == 0, device.tail()
    assert json.loads(device.output[0]) == json.loads(blocks("json")[0])


def until(reader: Reader, command: str, text: str) -> str:
    """What the command prints when it tells of it; the message is on its way."""
    for _ in range(20):
        if text in (said := reader.paste(command)):
            return said
    raise AssertionError(f"{command} never said {text}: {said}")
