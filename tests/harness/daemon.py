"""Owns Daemon: a gateway under test, run as its users run it: `python -m gateway run CONFIG`.

Its rule: it knows the gateway only by its command line, its log lines, its signals and its ports.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from tests.harness.process import Address, ServerError, ServerProcess

START_SECONDS = 20.0
STOP_SECONDS = 20.0
ROOT = Path(__file__).resolve().parents[2]
LISTENERS: dict[str, Any] = {
    "mqtt": {"type": "mqtt", "listen": "127.0.0.1:0"},
    "amqp": {"type": "amqp", "listen": "127.0.0.1:0"},
}


class Daemon:
    """One daemon with its folder: config `gateway.yaml`, store `data/`. May be started, ended and started again."""

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any] | str,
        env: Mapping[str, str] | None = None,
        wrapper: Sequence[str] = (),
    ) -> None:
        """`config` as a mapping is completed: store, admin and the MQTT and AMQP listeners on free ports, unless it
        has these keys. As text it is used as it stands. `wrapper`: a command that ends by executing the one that
        follows it."""
        self.folder = folder
        self.config = folder / "gateway.yaml"
        self.store = folder / "data"
        self.log: list[dict[str, Any]] = []
        """All log records of the present (or last) run; a line that is no JSON object is {"text": line}."""
        self._env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **(env or {})}
        self._wrapper = list(wrapper)
        self._process: ServerProcess | None = None
        self.configure(config)

    def configure(self, config: Mapping[str, Any] | str) -> None:
        """Writes the config file; a running daemon reads it at `hup`."""
        if not isinstance(config, str):
            whole = {
                "store": {"path": str(self.store)},
                "admin": {"listen": "127.0.0.1:0"},
                "transports": LISTENERS,
                **config,
            }
            config = yaml.safe_dump(whole, sort_keys=False)
        self.config.write_text(config)

    # its life

    def launch(self) -> None:
        """Starts the process and waits for nothing."""
        if self._process and self._process.running:
            raise ServerError("the daemon runs already")
        self.log = []
        self._process = ServerProcess(
            [*self._wrapper, sys.executable, "-m", "gateway", "run", str(self.config)],
            env=self._env,
            cwd=self.folder,
            on_line=self._on_line,
        )

    def start(self, timeout: float = START_SECONDS) -> Daemon:
        """Starts it and waits until it says that it is ready. Raises ServerError with its log if it does not."""
        self.launch()
        self.wait_for("ready", timeout=timeout)
        return self

    def stop(self, timeout: float = STOP_SECONDS) -> int:
        """SIGTERM, then the exit status of a daemon that has drained."""
        return self.process.terminate(timeout)

    def kill(self) -> None:
        """SIGKILL: no time to write, answer or close anything."""
        self.process.kill()

    def restart(self, timeout: float = START_SECONDS) -> Daemon:
        """Starts it again on the same store, killed first if it still runs. Ports are new: ask `address`."""
        if self.running:
            self.kill()
        return self.start(timeout)

    def hup(self) -> None:
        """SIGHUP: reload. Wait for what follows with `wait_for`."""
        self.process.signal(signal.SIGHUP)

    def exit_status(self, timeout: float = STOP_SECONDS) -> int:
        """Of a daemon that ends by itself."""
        return self.process.wait(timeout)

    def close(self) -> None:
        """Leaves no process behind, whatever the state."""
        if self._process:
            self._process.close()

    # what it says

    @property
    def process(self) -> ServerProcess:
        if self._process is None:
            raise ServerError("the daemon was not started")
        return self._process

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.running

    @property
    def pid(self) -> int:
        return self.process.pid

    def rss(self) -> int:
        """Its resident memory in bytes."""
        with open(f"/proc/{self.pid}/statm") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def peak_rss(self) -> int:
        """The most that its resident memory ever was, in bytes; 0 if it has just ended."""
        with open(f"/proc/{self.pid}/status") as status:
            return next((int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:")), 0)

    def url(self, name: str) -> str:
        """The first address that the transport of that name printed (`mqtt://127.0.0.1:40123`); `admin` too."""
        return str(self.wait_for("listening", lambda record: record.get("transport") == name)["address"])

    def address(self, name: str) -> Address:
        """Host and port of that transport."""
        parts = urlsplit(self.url(name))
        if parts.hostname is None or parts.port is None:
            raise ServerError(f"{self.url(name)!r} is no address")
        return Address(parts.hostname, parts.port)

    def wait_for(
        self,
        event: str,
        where: Callable[[dict[str, Any]], bool] = lambda record: True,
        timeout: float = START_SECONDS,
        after: int = 0,
    ) -> dict[str, Any]:
        """The first log record of that event, not among the first `after` ones, that `where` is true for."""

        def find() -> dict[str, Any] | None:
            return next((r for r in self.log[after:] if r.get("event") == event and where(r)), None)

        return self.process.wait_for(find, f"the event {event!r}", timeout)

    def text(self) -> str:
        """All that it printed, to look for what must or must not be there."""
        return "\n".join(self.process.lines)

    def _on_line(self, line: str) -> None:
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        self.log.append(record if isinstance(record, dict) else {"text": line})
