"""Owns Node: JavaScript clients of the tests, with the packages of tests/node/package-lock.json.

Its rule: packages are installed from the lock file into build/node, never globally, and again only when it changes.
`python -m tests.harness.node` does just that.
"""

from __future__ import annotations

import os
import shutil
import subprocess

from tests.harness.daemon import ROOT
from tests.harness.mosquitto import executable
from tests.harness.process import ServerProcess

SCRIPTS = ROOT / "tests" / "node"
INSTALLED = ROOT / "build" / "node"
INSTALL_SECONDS = 300.0


class Node:
    """Runs examples of tests/node: each is an async function that a module exports by name."""

    def __init__(self) -> None:
        """Installs the packages unless they are there. Raises ServerError without node and npm, and
        CalledProcessError with npm's words if it fails."""
        self._node = executable("node")
        lock = "package-lock.json"
        wanted = (SCRIPTS / lock).read_bytes()
        if (INSTALLED / "done").is_file() and (INSTALLED / "done").read_bytes() == wanted:
            return
        INSTALLED.mkdir(parents=True, exist_ok=True)
        for name in ("package.json", lock):
            shutil.copy(SCRIPTS / name, INSTALLED / name)
        command = [executable("npm"), "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
        try:
            subprocess.run(command, cwd=INSTALLED, check=True, timeout=INSTALL_SECONDS, capture_output=True, text=True)
        except subprocess.CalledProcessError as error:
            error.add_note(error.stderr)
            raise
        # Last, so that an install that was cut short is done again.
        (INSTALLED / "done").write_bytes(wanted)

    def start(self, module: str, example: str, *arguments: object) -> ServerProcess:
        """That example of tests/node/MODULE with these arguments as texts; to be closed by who asked."""
        command = [self._node, str(SCRIPTS / "run.js"), module, example, *map(str, arguments)]
        return ServerProcess(command, env={**os.environ, "NODE_PATH": str(INSTALLED / "node_modules")})

    def run(self, module: str, example: str, *arguments: object, timeout: float = 30.0) -> list[str]:
        """What it printed when it has ended by itself, with nothing left open. Raises AssertionError with its output
        if an assertion of it failed, ServerError if it takes longer than `timeout` seconds."""
        process = self.start(module, example, *arguments)
        try:
            status = process.wait(timeout)
            assert status == 0, f"{module} {example} ended with {status}:\n{process.tail()}"
            return process.output
        finally:
            process.close()


if __name__ == "__main__":
    Node()
