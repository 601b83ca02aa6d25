"""The command line without a daemon: statuses, help, check, explain, schema, hash-password, and what `run` says."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import argon2
import pytest
from typer.testing import CliRunner

from gateway.__main__ import app
from gateway.cli.greeting import greeting
from gateway.config.settings import load

CONFIG = Path(__file__).parents[2] / "config" / "gateway.yaml"
COMMANDS = [
    "run", "check", "explain", "hash-password", "schema", "publish", "consume", "queues", "queues purge",
    "queues delete", "groups list", "groups release", "dead-letters list", "dead-letters show", "dead-letters redrive",
]  # fmt: skip


def gateway(*words: str, stdin: str = "", cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs `python -m gateway` as a user does, where nothing of the source tree is at hand."""
    environ = {"PATH": "/usr/bin:/bin", "COLUMNS": "200", "PYTHONPATH": str(CONFIG.parents[1]), **env}
    return subprocess.run(
        [sys.executable, "-m", "gateway", *words], input=stdin, capture_output=True, text=True, env=environ, cwd=cwd
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command):
    done = CliRunner().invoke(app, [*command.split(), "--help"], env={"COLUMNS": "200"})
    assert done.exit_code == 0
    assert f"Example: gateway {command}" in done.stdout


def test_help_names_all_commands():
    text = gateway("--help").stdout
    assert all(f" {command.split()[0]} " in text for command in COMMANDS)
    assert gateway("--version").stdout.strip()


def test_the_command_line_starts_without_what_only_the_daemon_needs():
    heavy = "{'uvicorn', 'uvloop', 'starlette', 'httpx', 'yaml', 'argon2', 'prometheus_client'}"
    code = f"import sys, gateway.__main__; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=CONFIG.parents[1])
    assert done.stdout.strip() == "[]"


def test_check(tmp_path):
    done = gateway("check", str(CONFIG))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{CONFIG} is valid: 2 transports, 3 queues, 2 routes, 0 users\n"
    assert json.loads(gateway("check", str(CONFIG), "--json").stdout)["valid"] is True


def test_check_tells_all_faults_and_ends_with_2(tmp_path):
    (tmp_path / "gateway.yaml").write_text("quues: {}\nqueues: {a: {ttl: x}}\n")
    done = gateway("check", "gateway.yaml", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        'gateway.yaml:1: quues: unknown key; did you mean "queues"?',
        "gateway.yaml:2: queues.a.ttl: 'x' is no duration; write for example 500ms, 30s, 5m or 1h30m",
    ]
    done = gateway("check", "gateway.yaml", "--json", cwd=tmp_path)
    assert done.returncode == 2
    assert len(json.loads(done.stdout)["faults"]) == 2


def test_check_names_certificates_that_are_not_there(tmp_path):
    tls = "tls: {cert: none.pem, key: none.key}"
    (tmp_path / "gateway.yaml").write_text(f"transports:\n  mqtts: {{type: mqtt, {tls}}}\n")
    done = gateway("check", "gateway.yaml", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        "gateway.yaml:2: transports.mqtts.tls.cert: none.pem: No such file or directory",
        "gateway.yaml:2: transports.mqtts.tls.key: none.key: No such file or directory",
    ]


def test_run_starts_nothing_with_a_bad_configuration(tmp_path):
    (tmp_path / "gateway.yaml").write_text("quues: {}\n")
    done = gateway("run", "gateway.yaml", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == 'gateway: gateway.yaml:1: quues: unknown key; did you mean "queues"?\n'
    assert [path.name for path in tmp_path.iterdir()] == ["gateway.yaml"]
    done = gateway("run", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (
        2,
        "gateway: config/gateway.yaml: cannot be read: No such file or directory\n",
    )


def test_explain():
    done = gateway("explain", str(CONFIG), "--topic", "shop/7/orders", "--header", "order-id=1001", "--json")
    (step,) = json.loads(done.stdout)
    assert (step["queue"], step["group"], step["dedup_key"]) == ("orders", "7", "1001")
    assert "shop/+/orders" in step["bindings"][0]
    table = gateway("explain", str(CONFIG), "--topic", "shop/7/orders").stdout
    assert "dead letters: {header[order-id]} is missing" in table


def test_explain_unrouted_and_nonsense():
    done = gateway("explain", str(CONFIG), "--topic", "nowhere")
    assert (done.returncode, done.stdout.strip()) == (1, "unrouted: nothing takes nowhere")
    for words, said in (
        (["--topic", "a/#"], "--topic 'a/#' has a wildcard"),
        (["--topic", "a", "--header", "x"], "--header 'x': write name=value"),
        (["--topic", "a", "--source", "nope"], "has no such transport"),
    ):
        done = gateway("explain", str(CONFIG), *words)
        assert done.returncode == 2
        assert said in done.stderr


def test_hash_password():
    made = gateway("hash-password", stdin="secret\n").stdout.strip()
    assert argon2.PasswordHasher().verify(made, "secret")
    assert gateway("hash-password", "--user", "alice", stdin="secret").stdout.startswith("alice:$argon2id$")
    empty = gateway("hash-password", stdin="\n")
    assert (empty.returncode, empty.stderr) == (2, "gateway: an empty password protects nothing\n")


def test_schema_is_json():
    assert json.loads(gateway("schema").stdout)["title"] == "gateway.yaml"


@pytest.mark.parametrize(
    "words",
    [["queues"], ["publish", "a", "b"], ["consume", "q"], ["groups", "list", "q"], ["dead-letters", "list"],
     ["dead-letters", "redrive"], ["queues", "purge", "q", "--yes"]],
)  # fmt: skip
def test_nobody_there_is_status_3_and_says_what_to_do(words):
    done = gateway(*words, GATEWAY_ADMIN="http://127.0.0.1:9")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("gateway: no daemon answers at http://127.0.0.1:9")
    assert "--admin" in done.stderr
    assert "Traceback" not in done.stderr


def test_wrong_words_are_status_2():
    for words in (["nope"], ["consume"], ["consume", "q", "--count", "0"], ["publish", "a", "--ttl", "x"],
                  ["queues", "purge", "q"]):  # fmt: skip
        done = gateway(*words, GATEWAY_ADMIN="http://127.0.0.1:9")
        assert done.returncode == 2, words
        assert "Traceback" not in done.stderr


def test_run_says_its_addresses_and_three_lines_to_paste(tmp_path):
    settings = load(CONFIG, {})
    text = greeting(settings, {"mqtt": ["mqtt://127.0.0.1:1883"], "amqp": ["amqp://127.0.0.1:5672"]})
    assert "  mqtt  mqtt://127.0.0.1:1883" in text
    lines = text.split("second terminal:\n")[1].strip().splitlines()
    assert len(lines) == 3
    publish, consume, queues = (shlex.split(line) for line in lines)
    assert publish[-5:] == ["publish", "shop/7/orders", '{"hello": 1}', "--header", "order-id=1001"]
    assert consume[-4:] == ["consume", "orders", "--count", "1"]
    assert queues[-1] == "queues"


def test_the_lines_to_paste_know_where_the_daemon_is(tmp_path):
    path = tmp_path / "gateway.yaml"
    path.write_text("admin: {listen: 127.0.0.1:0}")
    assert "GATEWAY_ADMIN=http://127.0.0.1:4711 " in greeting(load(path, {}), {"admin": ["http://127.0.0.1:4711"]})
    assert "queues" not in greeting(load(path, {}), {})
    path.write_text("admin: false")
    assert "queues" not in greeting(load(path, {}), {})
    path.write_text("admin: {listen: ':9', allow_anonymous: true}")
    assert "GATEWAY_ADMIN=http://127.0.0.1:9 " in greeting(load(path, {}), {})
