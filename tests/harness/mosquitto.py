"""Owns Mosquitto: Debian's MQTT broker on a free port of loopback, everything of it in one folder.

Its rule: it needs and touches nothing of an installed service.
"""

from __future__ import annotations

import shutil
import socket
import time
from pathlib import Path

from tests.harness.process import Address, ServerError, ServerProcess, quiet_port

START_SECONDS = 10.0


def executable(name: str, *elsewhere: str) -> str:
    """The path of a server, which need not be in PATH for every user. Raises ServerError: it is never skipped."""
    for candidate in (name, f"/usr/sbin/{name}", *elsewhere):
        if found := shutil.which(candidate):
            return found
    raise ServerError(f"{name} is not installed; `make test` installs what the tests need")


class Mosquitto:
    """A broker that keeps its messages in `folder`, so it may be stopped and started again on the same port."""

    def __init__(self, folder: Path, *, settings: str = "") -> None:
        """`settings` are further lines of its configuration."""
        self.address = Address("127.0.0.1", quiet_port())
        self._config = folder / "mosquitto.conf"
        self._config.write_text(
            f"listener {self.address.port} {self.address.host}\n"
            "allow_anonymous true\npersistence true\nautosave_interval 1\n"
            # As root it would become the user mosquitto and lose its folder.
            f"persistence_location {folder}/\nuser root\nlog_dest stderr\n{settings}\n"
        )
        self._process: ServerProcess | None = None

    @property
    def url(self) -> str:
        return f"mqtt://{self.address.host}:{self.address.port}"

    @property
    def pid(self) -> int:
        assert self._process
        return self._process.pid

    def start(self) -> Mosquitto:
        self._process = ServerProcess([executable("mosquitto"), "-c", str(self._config)])
        self._process.wait_for_line(" running", START_SECONDS)
        wait_for_port(self.address, self._process, START_SECONDS)
        return self

    def stop(self) -> int:
        assert self._process
        return self._process.terminate(10)

    def kill(self) -> None:
        assert self._process
        self._process.kill()

    def close(self) -> None:
        if self._process:
            self._process.close()


def wait_for_port(address: Address, process: ServerProcess, timeout: float) -> None:
    """Until something takes connections there. Raises ServerError when `process` ends or time is up."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            socket.create_connection(address, timeout=1).close()
            return
        except OSError as error:
            if not process.running or time.monotonic() > deadline:
                raise ServerError(f"nothing listens on {address}: {error}\n{process.tail()}") from error
            time.sleep(0.02)
