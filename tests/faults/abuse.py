"""Owns what the abuse tests share: scale, the good client that must be served all the while, and what a daemon says.

Its rule: a test judges the daemon by its memory, its counters and how long a good client waited, never by its inside.
"""

from __future__ import annotations

import contextlib
import os
import resource
import threading
import time
import urllib.request
from collections.abc import Iterator

from pamqp import body, commands

from tests.harness.daemon import Daemon
from tests.harness.process import Address
from tests.integration.amqp_raw import Raw
from tests.integration.mqtt_raw import RawClient

FULL = os.environ.get("GATEWAY_ABUSE") == "full"
"""`make abuse`: the numbers that the tests are named for; otherwise a tenth or less, for every commit."""
SERVED_SECONDS = 1.0
MB = 1 << 20


def scaled(full: int, short: int) -> int:
    return full if FULL else short


def allow_files(wanted: int) -> int:
    """Raises this process's limit of open files as far as the machine allows; returns the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        with contextlib.suppress(ValueError, PermissionError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(wanted, hard)))
        if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def metric(daemon: Daemon, name: str, **labels: str) -> float:
    """The sum of that metric with these labels; 0 if it is not there yet."""
    total = 0.0
    with urllib.request.urlopen(f"{daemon.url('admin')}/metrics", timeout=10) as page:
        for line in page.read().decode().splitlines():
            if line.partition("{")[0].partition(" ")[0] in (name, f"{name}_total"):
                if all(f'{key}="{value}"' in line for key, value in labels.items()):
                    total += float(line.rpartition(" ")[2])
    return total


class GoodClient(threading.Thread):
    """Publishes by MQTT at QoS 1 to the queue `good` and takes each message by AMQP with an ack, one after the other
    on connections that it had before, and asks /readyz on a new one; remembers the longest it waited for the three
    together, and the most memory that the daemon took."""

    def __init__(self, daemon: Daemon, mqtt: Address, amqp: Address) -> None:
        super().__init__(daemon=True)
        self.longest = 0.0
        self.rounds = 0
        self.worst_rss = 0
        self.error: BaseException | None = None
        self._daemon_under_test = daemon
        self._mqtt = RawClient(mqtt)
        self._mqtt.connect("good")
        self._amqp = Raw(amqp)
        self._amqp.login()
        self._amqp.call(commands.Basic.Consume(queue="good"), commands.Basic.ConsumeOk)
        self._over = threading.Event()

    def run(self) -> None:
        try:
            while not self._over.is_set():
                began = time.monotonic()
                self._round()
                self.longest = max(self.longest, time.monotonic() - began)
                self.rounds += 1
                self._over.wait(0.02)
        except BaseException as error:  # told by `serving`
            self.error = error

    def _round(self) -> None:
        wanted = b"%d" % self.rounds
        assert self._mqtt.publish("good/1", wanted, self.rounds % 65_535 + 1).reason == 0
        delivered = self._amqp.expect(commands.Basic.Deliver)
        self._amqp.read()
        assert self._amqp.expect(body.ContentBody).value == wanted
        self._amqp.send(commands.Basic.Ack(delivered.delivery_tag))
        with urllib.request.urlopen(f"{self._daemon_under_test.url('admin')}/readyz", timeout=10) as page:
            assert page.status == 200
        self.worst_rss = max(self.worst_rss, self._daemon_under_test.rss())

    def stop(self) -> None:
        self._over.set()
        self.join(15)
        self._mqtt.cut()
        self._amqp.close()


@contextlib.contextmanager
def serving(daemon: Daemon, growth: int, mqtt: str = "mqtt", amqp: str = "amqp") -> Iterator[GoodClient]:
    """While the body of the `with` abuses the daemon, a good client is served within SERVED_SECONDS, and the daemon
    never takes more than `growth` bytes above what it took before. The names are those of the good client's
    listeners."""
    good = GoodClient(daemon, daemon.address(mqtt), daemon.address(amqp))
    before = daemon.rss()
    good.start()
    try:
        yield good
        rounds = good.rounds
        deadline = time.monotonic() + 10
        while good.rounds < rounds + 3 and good.error is None and time.monotonic() < deadline:
            time.sleep(0.02)
    finally:
        good.stop()
    if good.error is not None:
        raise AssertionError(f"the good client was not served: {good.error!r}") from good.error
    grown = max(good.worst_rss, daemon.rss()) - before
    print(
        f"\ngood client: {good.rounds} rounds, longest {good.longest * 1000:.0f} ms; "
        f"memory {before // MB} MB, grew by at most {grown / MB:.1f} MB (allowed {growth // MB} MB)"
    )
    assert good.rounds >= 3
    assert good.longest < SERVED_SECONDS, f"the good client waited {good.longest:.2f} s"
    assert grown < growth, f"the daemon grew by {grown / MB:.1f} MB"
    assert "internal" not in daemon.text() or not metric(
        daemon, "gateway_transport_protocol_errors", reason="internal"
    ), daemon.text()[-3000:]
