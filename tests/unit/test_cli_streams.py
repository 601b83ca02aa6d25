"""The command line whose standard streams are closed, full, or not UTF-8, without a daemon."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "config" / "gateway.yaml")
COMMANDS = [
    "--help", "--version", "queues --help", "check CONFIG", "check CONFIG --json", "schema", "hash-password",
    "explain CONFIG --topic shop/7/orders", "explain CONFIG --topic shop/7/orders --json",
]  # fmt: skip
FULL = "gateway: standard output can't be written: No space left on device\n"


def gateway(words: str, redirection: str, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess[bytes]:
    """Runs it by a shell, with this redirection of its streams. Standard input is a password."""
    environ = {"PATH": os.environ["PATH"], "COLUMNS": "200", "PYTHONPATH": str(ROOT), **env}
    command = f'"{sys.executable}" -m gateway {words.replace("CONFIG", CONFIG)} {redirection}'
    return subprocess.run(["sh", "-c", command], input=b"secret\n", capture_output=True, env=environ, cwd=cwd)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_closed_standard_output_is_told(command):
    done = gateway(command, ">&-")
    assert (done.returncode, done.stderr.decode()) == (
        1,
        "gateway: there is no standard output, it is closed; redirect it to a file, or to /dev/null\n",
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_standard_output_is_told(command):
    done = gateway(command, "> /dev/full")
    assert (done.returncode, done.stderr.decode()) == (1, FULL)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_reader_who_has_had_enough_is_no_fault(command):
    done = gateway(command, "| true")
    assert done.stderr == b""


def test_a_closed_standard_input_is_told():
    for command in ("hash-password", "publish a -"):
        done = gateway(command, "<&-")
        assert (done.returncode, done.stderr) == (1, b"gateway: there is no standard input, it is closed\n")


@pytest.mark.parametrize("redirection", ["2>&-", "2> /dev/full"])
def test_what_standard_error_cannot_take_leaves_the_status(redirection, tmp_path):
    (tmp_path / "gateway.yaml").write_text("quues: {}\n")
    assert gateway("check gateway.yaml", redirection, tmp_path).returncode == 2
    circle = "queues: {a: {dead_letter: b}, b: {dead_letter: a}}\n"  # warned of
    (tmp_path / "gateway.yaml").write_text(circle)
    done = gateway("check gateway.yaml", redirection, tmp_path)
    assert (done.returncode, done.stdout) == (
        0,
        b"gateway.yaml is valid: 0 transports, 2 queues, 0 routes, 0 users\n",
    )


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_what_the_encoding_lacks_is_escaped(encoding, tmp_path):
    (tmp_path / "gateway.yaml").write_text('queues: {"漢字": {}}\nroutes: [{from: a, to: "漢字"}]\n', "utf-8")
    env = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": encoding}
    done = gateway("explain gateway.yaml --topic a", "", tmp_path, **env)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"\\u6f22\\u5b57" in done.stdout
    done = gateway("explain gateway.yaml --topic a --json", "", tmp_path, **env)
    assert (done.returncode, done.stderr) == (0, b"")
    assert "漢字" in done.stdout.decode("utf-8")
