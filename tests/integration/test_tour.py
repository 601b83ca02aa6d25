"""The README's tour, block for block as it stands there, against the default configuration.

Changed are only the ports (free ones), the pauses between attempts and the reader's (shorter), and how the daemon is
found to be killed.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness.daemon import ROOT, Daemon
from tests.harness.process import ServerProcess, free_port

SECTION = "## A tour of five minutes"
PAUSES = {"sleep 20": "sleep 4", "sleep 10": ":"}
KILL = "pkill -9 -f 'gateway run'"


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
    config = (ROOT / "config" / "gateway.yaml").read_text().replace("retry_delay: 1s..1m", "retry_delay: 100ms..400ms")
    for name, port in ports.items():
        assert f"127.0.0.1:{name}" in config
        config = config.replace(f"127.0.0.1:{name}", f"127.0.0.1:{port}")
    daemon = make_daemon(config).start()
    folder = daemon.folder
    shutil.copytree(ROOT / "config", folder / "config")
    binaries = folder / ".venv" / "bin"
    binaries.mkdir(parents=True)
    for name, command in (("python", ""), ("gateway", "-m gateway ")):
        (binaries / name).write_text(f'#!/bin/sh\nexec {sys.executable} {command}"$@"\n')
        (binaries / name).chmod(0o755)
    (folder / "mosquitto_pub").write_text(f"-h 127.0.0.1\n-p {ports['1883']}\n")

    script = "\n".join(f"echo BLOCK\n{block}\nsleep 1" for block in blocks())
    assert KILL in script and "@127.0.0.1/" in script
    script = script.replace("@127.0.0.1/", f"@127.0.0.1:{ports['5672']}/")
    script = script.replace(KILL, "touch kill-now; until [ -e restarted ]; do sleep 0.1; done")
    for pause, shorter in PAUSES.items():
        script = script.replace(pause, shorter)
    # The reader looks at what happens to what was redriven before going on.
    script = script.replace("dead-letters redrive\n", "dead-letters redrive; sleep 4\n")
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
        shell.wait_for(lambda: (folder / "kill-now").exists(), "the kill", 60)
        daemon.kill()
        daemon.start()
        (folder / "restarted").touch()
        shell.wait_for_line("END", 60)
        print("\n".join(shell.lines))
        yield ("\n".join(shell.lines)).split("BLOCK\n")[1:]
    finally:
        shell.close()


@pytest.mark.timeout(180)
def test_the_tour_shows_what_it_says(tour: list[str]) -> None:
    assert len(tour) == len(blocks())
    _worker, _order, duplicate, poisoned, redriven, killed, explained = tour
    everything = "".join(tour)
    assert everything.index("two apples") < everything.index("one pear"), "in order"
    assert "ten plums" in everything
    # Once printed by the worker; the other places are what was typed, which is not echoed.
    assert everything.count("shop.7.orders one pear") == 1, "the duplicate was seen"
    assert "orders" in duplicate

    assert poisoned.count("shop.9.orders poison") == 5, "attempts"
    assert poisoned.index("does not wait") < poisoned.index("waits behind it")
    assert poisoned.rindex("shop.9.orders poison") < poisoned.index("waits behind it"), "its group waits"
    assert "exhausted" in poisoned
    assert redriven.count("shop.9.orders poison") == 5, "it was redriven, and dies again"

    assert "still there?" in killed, "kill -9 lost it"
    assert "orders" in explained and "1003" in explained and "shop/+/orders" in explained
    assert "Traceback" not in everything and "rror:" not in everything
