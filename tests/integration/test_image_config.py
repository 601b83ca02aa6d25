"""The configuration that the image brings: valid, closed until there are users, and what compose mounts is there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import yaml

from tests.harness.daemon import ROOT, Daemon

CONFIG = (ROOT / "config" / "container.yaml").read_text()


def on_free_ports(tmp_path: Path) -> str:
    text = CONFIG.replace("/data", str(tmp_path / "data")).replace("127.0.0.1:8080", "127.0.0.1:0")
    return text.replace("0.0.0.0:1883", "0.0.0.0:0").replace("0.0.0.0:5672", "0.0.0.0:0")


def test_it_refuses_to_start_without_users(make_daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    (tmp_path / "users").write_text("")
    daemon = make_daemon(on_free_ports(tmp_path), env={"GATEWAY_USERS_FILE": str(tmp_path / "users")})
    daemon.launch()
    assert daemon.exit_status() == 2
    assert "add `users`" in daemon.text()


def test_it_starts_for_everybody_when_told_so(make_daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    (tmp_path / "users").write_text("")
    env = {"GATEWAY_USERS_FILE": str(tmp_path / "users"), "GATEWAY_ALLOW_ANONYMOUS": "true"}
    daemon = make_daemon(on_free_ports(tmp_path), env=env).start()
    assert daemon.url("mqtt") and daemon.url("amqp")
    assert daemon.stop() == 0


def test_compose_mounts_what_the_image_reads() -> None:
    folder = ROOT / "config"
    gateway = yaml.safe_load((folder / "compose.yaml").read_text())["services"]["gateway"]
    targets = {volume.split(":")[-2 if volume.endswith(":ro") else -1]: volume for volume in gateway["volumes"]}
    assert set(targets) == {"/data", "/etc/gateway/gateway.yaml", "/etc/gateway/users"}
    assert (folder / targets["/etc/gateway/gateway.yaml"].split(":")[0]).is_file()
    assert (folder / gateway["build"] / "Dockerfile").is_file()
