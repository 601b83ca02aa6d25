"""The command line and the daemon whose standard output is closed or full: what nobody could read is not settled."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.harness.daemon import ROOT, Daemon

KINDS = {
    "plain": {},
    "group": {"group": "{header[g]}"},
    "priority": {"max_priority": 5},
    "transient": {"durable": False},
}
WITHOUT = {">&-": "it is closed", "> /dev/full": "No space left on device"}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory) -> Iterator[Daemon]:
    made = Daemon(tmp_path_factory.mktemp("streams"), {"queues": KINDS})
    yield made.start()
    made.close()


def gateway(daemon: Daemon, *words: str, redirection: str = "") -> subprocess.CompletedProcess[str]:
    environ = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "GATEWAY_ADMIN": daemon.url("admin")}
    shell = ["sh", "-c", f'exec "$@" {redirection}', "sh"]
    return subprocess.run(
        [*shell, sys.executable, "-m", "gateway", *words], capture_output=True, text=True, env=environ
    )


@pytest.mark.parametrize("redirection", WITHOUT)
@pytest.mark.parametrize("kind", KINDS)
def test_what_could_not_be_printed_is_not_settled(daemon, kind, redirection):
    gateway(daemon, "publish", f"$queue/{kind}", "x", "--header", "g=1")
    for form in ([], ["--json"]):
        for verdict in ("done", "dead"):
            words = ("consume", kind, "--count", "1", "--verdict", verdict, *form)
            done = gateway(daemon, *words, redirection=redirection)
            assert done.returncode == 1
            assert done.stderr.startswith("gateway: ")
            assert WITHOUT[redirection] in done.stderr
            assert len(done.stderr.splitlines()) == 1
    found = gateway(daemon, "consume", kind, "--count", "1", "--json").stdout
    assert json.loads(found)["message"]["body"]["text"] == "x"


def test_a_command_without_standard_output_does_nothing(daemon):
    gateway(daemon, "publish", "$queue/plain", "x")
    for words in (("publish", "$queue/plain", "y"), ("queues", "purge", "plain", "--yes")):
        assert gateway(daemon, *words, redirection=">&-").returncode == 1
    assert gateway(daemon, "queues", "purge", "plain", "--yes").stdout == "1 messages removed\n"


@pytest.mark.parametrize("redirection", WITHOUT)
def test_tables_that_cannot_be_printed_are_told(daemon, redirection):
    for words in (["queues"], ["bindings"], ["groups", "list", "group"], ["dead-letters", "list"]):
        done = gateway(daemon, *words, redirection=redirection)
        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 1
        assert WITHOUT[redirection] in done.stderr


@pytest.mark.parametrize("redirection", WITHOUT)
def test_the_daemon_needs_no_standard_output(tmp_path, redirection):
    daemon = Daemon(tmp_path, {"queues": {"a": {}}}, wrapper=["sh", "-c", f'exec "$@" {redirection}', "sh"])
    try:
        daemon.start()
        told = daemon.wait_for("the greeting can't be printed")
        assert WITHOUT[redirection] in told["error"]
        assert gateway(daemon, "publish", "$queue/a", "x").stdout == "stored\n"
        assert daemon.stop() == 0
    finally:
        daemon.close()
