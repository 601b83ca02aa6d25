"""Owns ServerProcess: one server as a child in a process group of its own, with its output read on a thread.

Its rule: nothing that it started outlives `close`, and a wait that fails says what the server printed.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple, TypeVar

T = TypeVar("T")
TAIL_LINES = 60
_given: set[int] = set()
_random = random.SystemRandom()
"""Quiet ports of this process: none is given twice."""


class Address(NamedTuple):
    """Where a listener is; unpacks into the arguments of `socket.connect` and most clients."""

    host: str
    port: int


class ServerError(AssertionError):
    """A server did not do what it was waited for; the text carries the end of its output."""


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on just now: only for servers that can't listen on port 0."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def quiet_port() -> int:
    """A free port of 127.0.0.1 that no client gets as its own end of a connection, so that a server that is gone for
    a while finds it free when it comes back."""
    with open("/proc/sys/net/ipv4/ip_local_port_range") as limits:
        first = int(limits.read().split()[0])
    while True:
        # Not of the seed of the run, which all processes of a run share.
        port = _random.randrange(min(10_000, first - 1_000), first)
        if port in _given:
            continue
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            _given.add(port)
            return port


class ServerProcess:
    """A child whose stdout and stderr lines are gathered as they come. Not to be started twice."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        on_line: Callable[[str], None] | None = None,
    ) -> None:
        """`on_line` is called on the reading thread with each line of stderr, before a waiter can see it."""
        self.command = list(command)
        self.changed = threading.Condition()
        self.lines: list[str] = []
        """Lines of stderr and stdout, as they came."""
        self.output: list[str] = []
        """Those of stdout alone."""
        self._on_line = on_line
        self._process = subprocess.Popen(
            self.command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(os.environ if env is None else env),
            cwd=cwd,
            start_new_session=True,
            text=True,
            errors="replace",
        )
        assert self._process.stdout and self._process.stderr
        self._readers = [
            threading.Thread(target=self._read, args=(self._process.stderr, True), daemon=True),
            threading.Thread(target=self._read, args=(self._process.stdout, False), daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, stream: IO[str], errors: bool) -> None:
        with stream:
            for raw in stream:
                line = raw.rstrip("\n")
                with self.changed:
                    self.lines.append(line)
                    if not errors:
                        self.output.append(line)
                    elif self._on_line:
                        self._on_line(line)
                    self.changed.notify_all()
        with self.changed:
            self.changed.notify_all()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def tail(self) -> str:
        """The end of what it printed, for messages."""
        with self.changed:
            return "\n".join(self.lines[-TAIL_LINES:])

    def wait_for(self, found: Callable[[], T | None], what: str, timeout: float) -> T:
        """What `found` returns once that is truthy; asked whenever a line has come. Raises ServerError after
        `timeout` seconds, or at once when the server has ended."""
        deadline = time.monotonic() + timeout
        with self.changed:
            while True:
                if result := found():
                    return result
                ended = not self.running and not any(reader.is_alive() for reader in self._readers)
                left = deadline - time.monotonic()
                if ended or left <= 0:
                    break
                # The end of a process makes no line: look again now and then.
                self.changed.wait(min(left, 0.1))
        state = f"ended with {self._process.returncode}" if ended else f"did not within {timeout:g} s"
        raise ServerError(f"waited for {what}, but {self.command[0]} {state}; it printed:\n{self.tail()}")

    def wait_for_line(self, text: str, timeout: float) -> str:
        """The first line that contains `text`."""
        return self.wait_for(lambda: next((line for line in self.lines if text in line), None), repr(text), timeout)

    def signal(self, number: int) -> None:
        """To the server process itself, as an operator or an init system would."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL to the whole group, as `kill -9`; returns when it is gone."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.wait(10)

    def wait(self, timeout: float) -> int:
        """The exit status, negative for a signal; all output has been read by then. Raises ServerError."""
        try:
            status = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise ServerError(f"{self.command[0]} did not end within {timeout:g} s:\n{self.tail()}") from None
        for reader in self._readers:
            # A grandchild may hold the pipe; what it prints is no longer of interest.
            reader.join(2)
        return status

    def terminate(self, timeout: float) -> int:
        """SIGTERM; returns the exit status. Raises ServerError if it does not end in time."""
        self.signal(signal.SIGTERM)
        return self.wait(timeout)

    def close(self) -> None:
        """Leaves nothing of it behind, whatever its state. May be called again."""
        self.kill()
