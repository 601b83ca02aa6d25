"""Owns RabbitMq: Debian's RabbitMQ with its MQTT plugin, on free ports of loopback, everything in one folder.

Its rule: it needs and touches nothing of an installed service, and leaves no Erlang process behind.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.harness.mosquitto import executable, wait_for_port
from tests.harness.process import Address, ServerProcess, quiet_port

START_SECONDS = 60.0
SCRIPTS = Path("/usr/lib/rabbitmq/bin")
"""Debian's commands in /usr/sbin become the user rabbitmq and use the machine's own node; these do not."""


class RabbitMq:
    """One node. guest/guest is its user, for AMQP and MQTT; the AMQP topic exchange of MQTT is amq.topic."""

    def __init__(self, folder: Path, *, plugins: Sequence[str] = ("rabbitmq_mqtt",), settings: str = "") -> None:
        """`settings` are further lines of its rabbitmq.conf."""
        self.folder = folder
        self.amqp = Address("127.0.0.1", quiet_port())
        self.mqtt = Address("127.0.0.1", quiet_port())
        self._epmd_port, dist_port = quiet_port(), quiet_port()
        self._server: ServerProcess | None = None
        self._epmd: ServerProcess | None = None
        (folder / "rabbitmq.conf").write_text(
            f"listeners.tcp.1 = {self.amqp.host}:{self.amqp.port}\n"
            + (f"mqtt.listeners.tcp.1 = {self.mqtt.host}:{self.mqtt.port}\n" if "rabbitmq_mqtt" in plugins else "")
            # The store is in a test's folder: how full the whole disk is says nothing about this node.
            + f"disk_free_limit.absolute = 50MB\nlog.console = true\nlog.console.level = info\n{settings}\n"
        )
        (folder / "enabled_plugins").write_text(f"[{','.join(plugins)}].\n")
        (folder / "env.conf").write_text("")
        self._env = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("RABBITMQ_", "ERL_"))},
            "HOME": str(folder),
            "LANG": "C.UTF-8",
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_CONF_ENV_FILE": str(folder / "env.conf"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_GENERATED_CONFIG_DIR": str(folder / "generated"),
            "RABBITMQ_SCHEMA_DIR": str(folder / "schema"),
            "RABBITMQ_PID_FILE": str(folder / "pid"),
            "RABBITMQ_NODENAME": f"gateway{self.amqp.port}@localhost",
            "RABBITMQ_DIST_PORT": str(dist_port),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        }

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@{self.amqp.host}:{self.amqp.port}/"

    @property
    def pid(self) -> int:
        assert self._server
        return self._server.pid

    def output(self) -> str:
        """What the present node printed."""
        assert self._server
        return "\n".join(self._server.lines)

    def start(self, timeout: float = START_SECONDS) -> RabbitMq:
        self.launch().wait_for_line("Server startup complete", timeout)
        return self

    def launch(self) -> ServerProcess:
        """Starts the processes and waits for nothing of the node."""
        if self._epmd is None:
            # Erlang would start one as a background service of the machine, which nobody ends.
            epmd = executable("epmd")
            self._epmd = ServerProcess([epmd, "-address", "127.0.0.1", "-port", str(self._epmd_port)], env=self._env)
            wait_for_port(Address("127.0.0.1", self._epmd_port), self._epmd, 10)
        self._server = ServerProcess([executable(str(SCRIPTS / "rabbitmq-server"))], env=self._env, cwd=self.folder)
        return self._server

    def stop(self) -> int:
        """An orderly stop; it may be started again on the same ports and data."""
        assert self._server
        return self._server.terminate(30)

    def kill(self) -> None:
        assert self._server
        self._server.kill()

    def pause(self) -> None:
        """It does nothing more, and its connections stay."""
        os.killpg(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.killpg(self.pid, signal.SIGCONT)

    def control(self, *arguments: str) -> str:
        """What `rabbitmqctl ARGUMENTS` prints. Takes seconds: it starts a second Erlang machine."""
        command = [str(SCRIPTS / "rabbitmqctl"), "--quiet", *arguments]
        done = subprocess.run(command, env=self._env, cwd=self.folder, capture_output=True, text=True, timeout=60)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
        return done.stdout

    def close(self) -> None:
        for process in (self._server, self._epmd):
            if process:
                process.close()
