"""Measures how long many users take to get in after a restart, while wrong passwords arrive all the time:

    python -m tests.faults.logins --users 1000 --wrong 10

Each user is a device of its own name and address (127.0.0.0/8 has enough of them), connects at once, and tries again
when it has heard nothing for `--patience` seconds, as devices do. With `--same-address` the wrong ones come from where
all the users come from, as behind a router. It tells, too, what one check costs on this machine at that time.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import statistics
import sys
import tempfile
import time
from pathlib import Path

import msgspec

from gateway.auth.users import argon2_check, hash_password
from tests.harness.daemon import Daemon
from tests.harness.process import Address
from transports.mqtt.encoding import encode
from transports.mqtt.packets import V311, Connect

PASSWORD = "the password of all of them"


class Figures(msgspec.Struct):
    """seconds: until each user was in, ascending. attempts: connections that they needed. refused: users that were told
    that their right password is wrong; busy: that the gateway is. wrong: wrong attempts that were answered."""

    seconds: list[float] = []
    attempts: int = 0
    refused: int = 0
    busy: int = 0
    wrong: int = 0

    def __str__(self) -> str:
        middle, last = statistics.median(self.seconds), self.seconds[-1]
        return (
            f"{len(self.seconds)} users in after {last:.1f} s (half of them after {middle:.1f} s), "
            f"{self.attempts} connections, {self.refused} called wrong, {self.busy} told busy; "
            f"{self.wrong} wrong attempts answered meanwhile"
        )


class Crowd:
    """The clients of one run."""

    def __init__(self, address: Address, users: int, wrong: float, patience: float, same_address: bool) -> None:
        self.figures = Figures()
        self._address = address
        self._users = users
        self._wrong = wrong
        self._patience = patience
        self._same_address = same_address
        self._began = time.monotonic()

    async def run(self) -> Figures:
        flood = asyncio.create_task(self._flood())
        await asyncio.gather(*(self._user(number) for number in range(self._users)))
        flood.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await flood
        self.figures.seconds.sort()
        return self.figures

    async def _user(self, number: int) -> None:
        home = "127.0.0.1" if self._same_address else f"127.1.{number // 250}.{number % 250 + 1}"
        while True:
            self.figures.attempts += 1
            code = await self._connect(f"user{number}", PASSWORD, home)
            if code == 0:
                self.figures.seconds.append(time.monotonic() - self._began)
                return
            self.figures.refused += code == 4
            self.figures.busy += code == 3
            if code is not None:
                await asyncio.sleep(1)  # a device waits a moment when it was turned away

    async def _flood(self) -> None:
        async with asyncio.TaskGroup() as group:
            for number in itertools.count():
                group.create_task(self._wrong_one(number))
                await asyncio.sleep(1 / self._wrong)

    async def _wrong_one(self, number: int) -> None:
        home = "127.0.0.1" if self._same_address else "127.2.0.1"
        code = await self._connect(f"user{number % 2000}", f"wrong {number}", home)
        self.figures.wrong += code == 4

    async def _connect(self, name: str, password: str, home: str) -> int | None:
        """The code of CONNACK; None if nothing came in time."""
        reader, writer = await asyncio.open_connection(*self._address, local_addr=(home, 0))
        try:
            writer.write(encode(Connect(name, V311, username=name, password=password.encode()), V311))
            async with asyncio.timeout(self._patience):
                return (await reader.readexactly(4))[3]
        except (TimeoutError, asyncio.IncompleteReadError, ConnectionError):
            return None
        finally:
            writer.close()


def measure(folder: Path, users: int, wrong: float, patience: float = 10.0, same_address: bool = False) -> Figures:
    """Starts a daemon in `folder` for it."""
    password_hash = hash_password(PASSWORD)
    known = {f"user{number}": {"password_hash": password_hash} for number in range(users)}
    daemon = Daemon(folder, {"users": known, "transports": {"mqtt": {"type": "mqtt", "listen": "127.0.0.1:0"}}})
    try:
        address = daemon.start(60).address("mqtt")
        return asyncio.run(Crowd(address, users, wrong, patience, same_address).run())
    finally:
        daemon.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=1000)
    parser.add_argument("--wrong", type=float, default=10.0, help="wrong attempts a second")
    parser.add_argument("--patience", type=float, default=10.0, help="seconds until a client tries anew")
    parser.add_argument("--same-address", action="store_true")
    options = parser.parse_args()
    password_hash = hash_password(PASSWORD)
    began = time.monotonic()
    for _ in range(10):
        argon2_check(password_hash, PASSWORD.encode())
    check = (time.monotonic() - began) / 10
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), options.users, options.wrong, options.patience, options.same_address)
    sys.stdout.write(f"{figures}; one check took {check * 1000:.0f} ms\n")


if __name__ == "__main__":
    main()
