"""Owns what `gateway run` says on standard output when it is ready: its addresses and what to paste next.

Its rule: each line that it offers works as it stands with this very configuration.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from gateway.cli.commands import DEFAULT_ADMIN
from gateway.config.settings import Route, Settings


def greeting(settings: Settings, addresses: Mapping[str, Sequence[str]]) -> str:
    """addresses: by transport, as it says them (`mqtt://127.0.0.1:1883`)."""
    lines = ["The gateway is ready.", ""]
    width = max(map(len, addresses), default=0)
    for name, places in addresses.items():
        lines += [f"  {name:{width}}  {place}" for place in places]
    admin = _admin(settings, addresses)
    if admin is None:
        return "\n".join([*lines, ""])
    command = _command()
    if admin != DEFAULT_ADMIN:
        command = f"GATEWAY_ADMIN={admin} {command}"
    lines += [
        "",
        "Paste into a second terminal:" if not settings.users else "With GATEWAY_USER and GATEWAY_PASSWORD set:",
    ]
    route = _route(settings)
    if route is not None:
        queue, topic = route
        lines.append(f"  {command} publish {shlex.quote(topic)} '{{\"hello\": 1}}'{_headers(settings, queue)}")
        lines.append(f"  {command} consume {shlex.quote(queue)} --count 1")
    lines.append(f"  {command} queues")
    return "\n".join([*lines, ""])


def _admin(settings: Settings, addresses: Mapping[str, Sequence[str]]) -> str | None:
    """Where the command line finds this daemon; None if it can't."""
    if settings.admin is None:
        return None
    listen = settings.admin.listen
    port = listen.port
    if said := addresses.get("admin"):
        port = int(said[0].rpartition(":")[2])
    if not port:
        return None
    # Nobody connects to "all interfaces".
    host = "127.0.0.1" if listen.host in ("", "0.0.0.0") else "::1" if listen.host == "::" else listen.host
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _route(settings: Settings) -> tuple[str, str] | None:
    """A queue that a route leads to, and a topic that gets there."""
    for route in settings.routes:
        for target in route.targets:
            if target in settings.queues and route.source is None:
                return target, _topic(route)
    return None


def _topic(route: Route) -> str:
    levels = route.filter.split("/")
    return "/".join("7" if level == "+" else "new" if level == "#" else level for level in levels)


def _headers(settings: Settings, queue: str) -> str:
    """The headers that the queue's templates need."""
    policy = settings.queues[queue]
    texts = [text for text in (policy.group, policy.dedup.key if policy.dedup else None) if text]
    names: dict[str, None] = {}
    for text in texts:
        for part in text.split("{header[")[1:]:
            name, _, rest = part.partition("]")
            if rest.startswith("}"):
                names[name] = None
    return "".join(f" --header {shlex.quote(name + '=1001')}" for name in names)


def _command() -> str:
    """How this very program is called from here."""
    called = Path(sys.argv[0])
    if called.name != "gateway":
        return f"{shlex.quote(sys.executable)} -m gateway"
    found = shutil.which("gateway")
    if found and os.path.realpath(found) == os.path.realpath(called):
        return "gateway"
    try:
        return shlex.quote(str(called.resolve().relative_to(Path.cwd())))
    except ValueError:
        return shlex.quote(str(called.resolve()))
