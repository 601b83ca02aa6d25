"""The README's tour, as it stands there, against the default configuration.

Changed are the ports alone. `pkill` is one that kills the tour's own daemon.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness.daemon import ROOT, Daemon
from tests.harness.process import ServerProcess, free_port

SECTION = "## A tour of five minutes"
KILL = "pkill -9 -f 'gateway run'"
CLAIM = "# prints "


def blocks() -> list[str]:
    """The tour's shell blocks."""
    text = (ROOT / "README.md").read_text()
    assert SECTION in text
    tour = text.partition(SECTION)[2].partition("\n## ")[0]
    return [part.partition("\n```")[0] for part in tour.split("```sh\n")[1:]]


@pytest.fixture
def tour(make_daemon: Callable[..., Daemon], tmp_path: Path) -> Iterator[list[str]]:
    """What each block printed."""
    ports = {name: free_port() for name in ("1883", "5672", "8080")}
    config = (ROOT / "config" / "gateway.yaml").read_text()
    for name, port in ports.items():
        assert f"127.0.0.1:{name}" in config
        config = config.replace(f"127.0.0.1:{name}", f"127.0.0.1:{port}")
    daemon = make_daemon(config).start()
    folder = daemon.folder
    shutil.copytree(ROOT / "config", folder / "config")
    binaries = folder / ".venv" / "bin"
    binaries.mkdir(parents=True)
    called = f'exec {sys.executable} {{}}"$@"'
    for name, script in {
        "python": called.format(""),
        "gateway": called.format("-m gateway "),
        "pkill": 'echo "pkill $*" > killed; until [ ! -e killed ]; do sleep 0.1; done',
    }.items():
        (binaries / name).write_text(f"#!/bin/sh\n{script}\n")
        (binaries / name).chmod(0o755)
    (folder / "mosquitto_pub").write_text(f"-h 127.0.0.1\n-p {ports['1883']}\n")

    script = "\n".join(f"echo BLOCK\n{block}" for block in blocks())
    assert KILL in script and script.count("@127.0.0.1/") == 1
    script = script.replace("@127.0.0.1/", f"@127.0.0.1:{ports['5672']}/")
    (folder / "tour.sh").write_text(script + "\necho END\n")
    env = {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": str(folder),
        "XDG_CONFIG_HOME": str(folder),
        "PYTHONPATH": str(ROOT),
        "GATEWAY_ADMIN": f"http://127.0.0.1:{ports['8080']}",
        "COLUMNS": "160",
    }
    shell = ServerProcess(["bash", "tour.sh"], env=env, cwd=folder)
    try:
        killed = folder / "killed"
        shell.wait_for(lambda: killed.exists() and killed.read_text().endswith("\n"), "the kill", 120)
        assert killed.read_text() == "pkill -9 -f gateway run\n"
        daemon.kill()
        killed.unlink()
        daemon.start()  # the reader's `make run`
        shell.wait_for_line("END", 120)
        print("\n".join(shell.lines))
        yield ("\n".join(shell.lines)).split("BLOCK\n")[1:]
    finally:
        shell.close()


def claims() -> list[list[str]]:
    """What each block says that is printed."""
    return [[line.removeprefix(CLAIM) for line in block.splitlines() if line.startswith(CLAIM)] for block in blocks()]


@pytest.mark.timeout(300)
def test_the_tour_shows_what_it_says(tour: list[str]) -> None:
    assert len(tour) == len(blocks())
    _worker, _order, duplicate, poisoned, redriven, killed, explained = tour
    everything = "".join(tour)
    assert sum(map(len, claims())) >= 6
    for place, claimed in enumerate(claims()):
        # The worker prints on its own; what the commands print stands in their own block.
        for text in claimed:
            assert text in "".join(tour[place:]), text
    assert everything.index("two apples") < everything.index("one pear"), "in order"
    assert "ten plums" in everything
    # Once printed by the worker; the other places are what was typed, which is not echoed.
    assert everything.count("shop.7.orders one pear") == 1, "the duplicate was seen"
    (orders,) = [line.split() for line in duplicate.splitlines() if line.startswith("orders ")]
    titles = re.split(r"  +", next(line for line in duplicate.splitlines() if line.startswith("queue ")).strip())
    assert orders[-5 + titles[-5:].index("duplicates")] == "1", "the duplicate is counted"

    assert poisoned.count("shop.9.orders poison") == 5, "attempts"
    assert poisoned.index("does not wait") < everything.index("waits behind it") - everything.index(poisoned)
    assert poisoned.rindex("shop.9.orders poison") < everything.index("waits behind it") - everything.index(poisoned)
    assert "exhausted" in poisoned
    assert redriven.count("shop.9.orders poison") == 5, "it was redriven, and dies again"
    assert "exhausted" in redriven

    # Nothing else: not what was redriven, not what was consumed before.
    assert killed.splitlines()[-1] == "shop/7/orders  still there?", "kill -9 lost it"
    assert "orders" in explained and "1003" in explained and "shop/+/orders" in explained
    assert "Traceback" not in everything and "rror:" not in everything
