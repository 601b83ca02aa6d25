"""Owns Settings: what a configuration can say, all defaults of the daemon, and what makes one invalid.

Its rule: a configuration is whole and consistent or it is refused with every fault at once (file, line, key, advice).
A queue's own defaults stand in `gateway.policy`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from gateway import plugins
from gateway.address import Address
from gateway.document import Faults, Node, nearest, read
from gateway.errors import ConfigError
from gateway.policy import DEAD_LETTERS, DISCARD, Octets, QueuePolicy, Seconds
from gateway.schema import FAILED, Decoder
from gateway.template import Template
from gateway.topics import check_filter

MB = 1024 * 1024
RESERVED = ("mqtt.", "link.", "amq.")
"""Beginnings of queue names that belong to sessions and shares, to outboxes, and to AMQP (ruling 25)."""
MAX_NAME_BYTES = 255


class StoreSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Where messages are kept.

    path: the folder of the store, relative to where the daemon runs. memory: keep all in memory, nothing survives.
    reserve: bytes on the disk that are left for settlements; before it is touched, messages are refused.
    """

    path: str = "./data"
    memory: bool = False
    reserve: Octets = Octets(64 * MB)


class AdminSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Health, metrics and the admin API; `admin: false` turns it off.

    allow_anonymous: listen beyond loopback although there are no users.
    """

    listen: Address = Address.parse("127.0.0.1:8080")
    allow_anonymous: bool = False


class LogSettings(msgspec.Struct, frozen=True, kw_only=True):
    """format: `auto` is text on a terminal and JSON lines otherwise."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "text", "json"] = "auto"


class UserSettings(msgspec.Struct, frozen=True, kw_only=True):
    """password_hash: an argon2 hash as `gateway hash-password` makes it."""

    password_hash: str


class TransportSettings(msgspec.Struct, frozen=True):
    """Stands for the settings of any transport; `type` says which plugin's."""

    type: str


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """Leads from a topic filter to queues or links.

    from: a topic filter in MQTT form. source: only messages that this transport accepted.
    to: a queue, or `link:target` with a template, or a list of them.
    """

    filter: str = msgspec.field(name="from")
    to: str | tuple[str, ...]
    source: str | None = None

    @property
    def targets(self) -> tuple[str, ...]:
        """`to` as a list."""
        return (self.to,) if isinstance(self.to, str) else self.to


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """A whole configuration.

    transports: by name; each one's settings are of its plugin's own type.
    users: by name; none means that everybody is let in, on loopback. users_file: a file with more of them, one
    `name:hash` a line.
    max_memory: bytes of message bodies that are held in memory; beyond it bodies are on disk only.
    max_backlog: bytes accepted and not yet committed, above which connections stop reading.
    drain_timeout: how long a stop may take until connections are cut.
    """

    store: StoreSettings = StoreSettings()
    admin: AdminSettings | None = AdminSettings()
    transports: dict[str, TransportSettings] = {}
    queues: dict[str, QueuePolicy] = {}
    routes: tuple[Route, ...] = ()
    users: dict[str, UserSettings] = {}
    users_file: str | None = None
    max_memory: Octets = Octets(256 * MB)
    max_backlog: Octets = Octets(64 * MB)
    drain_timeout: Seconds = Seconds(10)
    log: LogSettings = LogSettings()


def load(path: Path, environ: Mapping[str, str], strict: bool = False) -> Settings:
    """The settings of a file, all checks passed. Raises ConfigError with all faults, one a line.

    A transport whose plugin can't be imported gets `plugins.Unloaded` in place of its settings, so that one broken
    plugin does not stop the others; with `strict` it is a fault."""
    faults = Faults(str(path))
    root = read(path, environ, faults)
    return _Loader(root, path, faults, strict).load()


class _Loader:
    def __init__(self, root: Node, path: Path, faults: Faults, strict: bool) -> None:
        self.root = root
        self.path = path
        self.faults = faults
        self.strict = strict
        special = {TransportSettings: self._transport, AdminSettings: self._admin}
        self.decoder = Decoder(faults, path.parent, special)

    def load(self) -> Settings:
        if not isinstance(self.root.value, dict):
            self.faults.add(self.root.line, "", "a configuration is a mapping of keys, as in `store: {path: ./data}`")
            self.faults.check()
        # Each section is read by itself, so that what is wrong in one does not hide what is wrong in another.
        values: dict[str, Any] = {}
        given = self.root.value if isinstance(self.root.value, dict) else {}
        fields = {field.encode_name: field for field in msgspec.structs.fields(Settings)}
        for key, node in given.items():
            if key not in fields:
                self.faults.add(node.line, key, f"unknown key{nearest(key, fields, 'keys')}")
                continue
            value = self.decoder.decode(node, fields[key].type, key)
            if value is not FAILED:
                values[key] = value
        settings = Settings(**values)
        settings = msgspec.structs.replace(settings, users=self._users(settings), queues=self._dead_letters(settings))
        self._check_queues(settings)
        self._check_routes(settings)
        self._check_listeners(settings)
        self.faults.check()
        return settings

    # sections that are more than their type

    def _admin(self, node: Node, key: str) -> Any:
        if node.value is False:
            return None
        if node.value is True:
            return AdminSettings()
        return self.decoder.struct(node, AdminSettings, key)

    def _transport(self, node: Node, key: str) -> Any:
        if not isinstance(node.value, dict):
            self.faults.add(node.line, key, "expected keys and values, as in {type: mqtt, listen: 127.0.0.1:1883}")
            return FAILED
        kind = node.value.get("type")
        if kind is None:
            self.faults.add(node.line, key, "the key type is missing")
            return FAILED
        if not isinstance(kind.value, str):
            return self.decoder.decode(kind, str, f"{key}.type")
        try:
            found = plugins.load(kind.value)
        except plugins.UnknownTransportError as error:
            self.faults.add(kind.line, f"{key}.type", str(error))
            return FAILED
        except plugins.PluginError as error:
            if self.strict:
                self.faults.add(kind.line, f"{key}.type", str(error))
                return FAILED
            section: Any = node.plain()
            return plugins.Unloaded(kind.value, section, str(error))
        return self.decoder.struct(node, found.Settings, key)

    def _users(self, settings: Settings) -> dict[str, UserSettings]:
        users = dict(settings.users)
        lines = {name: self.root.child("users", name).line for name in users}
        for name, user in users.items():
            self._check_hash(self.faults, lines[name], f"users.{name}.password_hash", user.password_hash)
        if settings.users_file is None:
            return users
        path = self.path.parent / settings.users_file
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "is not UTF-8 text"
            self.faults.add(self.root.child("users_file").line, "users_file", f"{path} cannot be read: {why}")
            return users
        there = Faults(str(path))
        for number, line in enumerate(text.splitlines(), 1):
            if not line.strip() or line.startswith("#"):
                continue
            name, _, password_hash = line.partition(":")
            if name in users:
                there.add(number, name, "user is defined twice")
            self._check_hash(there, number, name, password_hash.strip())
            users[name] = UserSettings(password_hash=password_hash.strip())
        self.faults.include(there)
        return users

    @staticmethod
    def _check_hash(faults: Faults, line: int, key: str, password_hash: str) -> None:
        # The value itself is a secret, or a password written here by mistake: it is never shown.
        if not password_hash.startswith("$argon2"):
            faults.add(line, key, "is no argon2 hash; make one with `gateway hash-password`")

    def _dead_letters(self, settings: Settings) -> dict[str, QueuePolicy]:
        """A queue of dead letters tries for ever and discards what is dead there (ruling 20), unless it says more."""
        targets = {policy.dead_letter for policy in settings.queues.values()}
        queues = dict(settings.queues)
        for name, policy in settings.queues.items():
            node = self.root.child("queues", name)
            if name in targets and not node.says("dead_letter"):
                policy = msgspec.structs.replace(policy, dead_letter=DISCARD)
                if not node.says("max_deliveries"):
                    policy = msgspec.structs.replace(policy, max_deliveries=None)
                queues[name] = policy
        return queues

    # what must fit together

    def _fault(self, text: str, *keys: str) -> None:
        self.faults.add(self.root.child(*keys).line, ".".join(keys), text)

    def _check_queues(self, settings: Settings) -> None:
        # A queue whose own section has a fault is still one that others may name.
        known = self.root.keys("queues")
        links = self.root.keys("transports")
        for name in known:
            if why := _bad_name(name, links):
                self._fault(why, "queues", name)
        for name, policy in settings.queues.items():
            self._check_policy(name, policy)
            target = policy.dead_letter
            if not isinstance(target, str):
                self._fault("expected the name of a queue", "queues", name, "dead_letter")
            elif target not in known and target not in (DEAD_LETTERS, DISCARD):
                near = nearest(target, [*known, DEAD_LETTERS, DISCARD], "queues")
                self._fault(f'no queue is named "{target}"{near}', "queues", name, "dead_letter")
        self._check_cycles(settings.queues)

    def _check_policy(self, name: str, policy: QueuePolicy) -> None:
        for key, text in (("group", policy.group), ("dedup", policy.dedup.key if policy.dedup else None)):
            if text is None or (key == "dedup" and text == "sha256"):
                continue
            try:
                Template(text)
            except ValueError as error:
                self._fault(str(error), "queues", name, key, *(["key"] if key == "dedup" else []))
        if policy.group is None:
            if policy.on_exhausted == "park":
                self._fault("park holds a group; give the queue a group", "queues", name, "on_exhausted")
            if policy.group_in_flight > 1:
                self._fault("needs a group; a queue without one has no such limit", "queues", name, "group_in_flight")
            if policy.dedup and policy.dedup.scope == "group":
                self._fault("scope group needs a group", "queues", name, "dedup", "scope")
        if policy.delay > policy.max_delay:
            self._fault("is longer than max_delay", "queues", name, "delay")
        if policy.max_bytes is not None and policy.max_bytes <= 0:
            self._fault("must be above 0; leave it out for no limit", "queues", name, "max_bytes")
        if policy.ack_timeout is not None and policy.ack_timeout <= 0:
            self._fault("must be above 0; leave it out for no timeout", "queues", name, "ack_timeout")
        if policy.dedup and policy.dedup.window <= 0:
            self._fault("must be above 0; leave dedup out to store every message", "queues", name, "dedup", "window")
        if policy.expires is not None:
            self._fault("a queue of the configuration does not expire; take this key out", "queues", name, "expires")

    def _check_cycles(self, queues: Mapping[str, QueuePolicy]) -> None:
        told: set[str] = set()
        for start in queues:
            chain: list[str] = []
            name: object = start
            while isinstance(name, str) and name in queues and name not in chain:
                chain.append(name)
                name = queues[name].dead_letter
            if name == start and start not in told:
                told.update(chain)
                self._fault(
                    f"dead letters go round in a circle: {' -> '.join([*chain, start])}", "queues", start, "dead_letter"
                )

    def _check_routes(self, settings: Settings) -> None:
        nodes = self.root.child("routes").value
        links = self.root.keys("transports")
        for number, route in enumerate(settings.routes):
            # The routes were decoded all or none, so node and route agree.
            node = nodes[number] if isinstance(nodes, list) else self.root
            key = f"routes[{number}]"
            if why := check_filter(route.filter):
                self.faults.add(node.child("from").line, f"{key}.from", f'"{route.filter}" {why}')
            elif route.filter.startswith("$queue/"):
                text = "what is sent to $queue/ goes straight to that queue, past the routes"
                self.faults.add(node.child("from").line, f"{key}.from", text)
            if route.source is not None and route.source not in links:
                near = nearest(route.source, links, "transports")
                text = f'no transport is named "{route.source}"{near}'
                self.faults.add(node.child("source").line, f"{key}.source", text)
            if not route.targets:
                self.faults.add(node.child("to").line, f"{key}.to", "names no queue")
            for target in route.targets:
                if why := self._bad_target(target, settings):
                    self.faults.add(node.child("to").line, f"{key}.to", why)

    def _bad_target(self, target: str, settings: Settings) -> str:
        known, links = self.root.keys("queues"), self.root.keys("transports")
        if target in known or target == DEAD_LETTERS:
            return ""
        link, colon, path = target.partition(":")
        if not colon:
            return f'no queue is named "{target}"{nearest(target, known, "queues")}'
        if link not in links:
            return f'no link is named "{link}"{nearest(link, links, "transports")}'
        found = settings.transports.get(link)
        if found is not None and not isinstance(found, plugins.Unloaded) and not plugins.is_link(found.type):
            return f'transport "{link}" of type {found.type} takes no messages from routes; a link does'
        try:
            Template(path)
        except ValueError as error:
            return str(error)
        return ""

    def _check_listeners(self, settings: Settings) -> None:
        listeners: list[tuple[tuple[str, ...], Any]] = [
            (("transports", name), transport) for name, transport in settings.transports.items()
        ]
        if settings.admin is not None:
            listeners.append((("admin",), settings.admin))
        for keys, section in listeners:
            text = getattr(section, "listen", None)
            if text is None:
                continue
            try:
                address = Address.parse(text)
            except ValueError as error:
                self._fault(str(error), *keys, "listen")
                continue
            has_users = bool(settings.users) or self.root.says("users") or self.root.says("users_file")
            if not address.loopback and not has_users and not getattr(section, "allow_anonymous", False):
                self._fault(
                    f"{address} can be reached from other machines and there are no users: add `users`, listen on "
                    f"127.0.0.1, or write `allow_anonymous: true` here",
                    *keys,
                    "listen",
                )


def _bad_name(name: str, links: list[str]) -> str:
    """Why this can't be the name of a YAML queue; "" if it can."""
    for prefix in RESERVED:
        if name.startswith(prefix):
            return f"names that begin with {prefix} are reserved"
    if name in (DEAD_LETTERS, DISCARD):
        return "this name is built in"
    if not name or not name.isprintable() or name != name.strip():
        return "a queue's name is printable text without blanks at its ends"
    if len(name.encode()) > MAX_NAME_BYTES:
        return f"a queue's name has at most {MAX_NAME_BYTES} bytes"
    if "+" in name or "#" in name:
        return "a queue's name has no wildcards"
    link, colon, _ = name.partition(":")
    if colon and link in links:
        return f'this name would mean a target of the link "{link}"'
    return ""


__all__ = [
    "AdminSettings",
    "ConfigError",
    "LogSettings",
    "Route",
    "Settings",
    "StoreSettings",
    "TransportSettings",
    "UserSettings",
    "load",
]
