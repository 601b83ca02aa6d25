"""Owns Settings: what a configuration can say, all defaults of the daemon, and what makes one invalid.

Its rule: a configuration is whole and consistent or it is refused with every fault at once (file, line, key, advice).
A queue's own defaults stand in `gateway.model.policy`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from gateway.address import Address
from gateway.auth.scram import Verifier
from gateway.config.checks import Checks, PlacedRoute
from gateway.config.document import USER_PREFIX, Faults, Node, read
from gateway.config.files import look
from gateway.config.schema import FAILED, Decoder, SchemaWriter
from gateway.errors import ConfigError, find_near, nearest
from gateway.files import read_whole, why_unreadable
from gateway.logs import log
from gateway.model.policy import DEAD_LETTERS, DISCARD, MAX_RETAINED_OCTETS, Octets, QueuePolicy, Seconds
from gateway.queueing.dedup import MAX_KEYS
from gateway.routing.router import MAX_BINDINGS_OCTETS
from gateway.transport import registry as plugins

MB = 1024 * 1024


class StoreSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Where messages are kept.

    path: the folder of the store, relative to where the daemon runs. memory: keep all in memory, nothing survives.
    reserve: bytes on the disk that are left for settlements; before it is touched, messages are refused.
    log_slack: the log is copied forward when it has that many bytes more than twice what is live; less keeps the
    store smaller and copies more often.
    """

    path: str = "./data"
    memory: bool = False
    reserve: Octets = Octets(64 * MB)
    log_slack: Octets = Octets(16 * MB)


class AdminSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Health, metrics and the admin API; `admin: false` turns it off.

    allow_anonymous: listen beyond loopback although there are no users.
    max_connections: requests that are answered at one time, others get 503; idle connections give way to new ones.
    request_timeout: seconds until a request must be whole, head and body.
    session_metrics: /metrics has series for each MQTT session, not for the sum of all (queue="mqtt.*").
    """

    listen: Address = Address.parse("127.0.0.1:8080")
    allow_anonymous: bool = False
    max_connections: Annotated[int, msgspec.Meta(ge=1)] = 1000
    request_timeout: Seconds = Seconds(20)
    session_metrics: bool = False

    def __post_init__(self) -> None:
        if self.request_timeout <= 0:
            raise ValueError("request_timeout must be above 0")


class LogSettings(msgspec.Struct, frozen=True, kw_only=True):
    """format: `auto` is text on a terminal and JSON lines otherwise."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "text", "json"] = "auto"


class UserSettings(msgspec.Struct, frozen=True, kw_only=True):
    """password_hash: an argon2 hash as `gateway hash-password` makes it. scram: a verifier as `gateway hash-password
    --scram` makes it, for MQTT 5 clients that prove their password by SCRAM-SHA-256."""

    password_hash: str
    scram: str | None = None


class TransportSettings(msgspec.Struct, frozen=True):
    """Stands for the settings of any transport; `type` says which plugin's."""

    type: str


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """Leads from a topic filter to queues or links.

    from: a topic filter in MQTT form. source: only messages that this transport accepted.
    to: a queue, or `link:target` with a template, or a list of them.
    ack: when a sender is answered. `stored`: when its message is on the disk here. `delivered`: when the one link that
    the route leads to has delivered it; nothing is stored here, and no other route may take such a message.
    deliver_within: with `ack: delivered`, seconds after which a message that was not delivered is refused.
    """

    filter: str = msgspec.field(name="from")
    to: str | tuple[str, ...]
    source: str | None = None
    ack: Literal["stored", "delivered"] = "stored"
    deliver_within: Seconds = Seconds(10)

    def __post_init__(self) -> None:
        if self.deliver_within <= 0:
            raise ValueError("deliver_within must be above 0")

    @property
    def targets(self) -> tuple[str, ...]:
        """`to` as a list."""
        return (self.to,) if isinstance(self.to, str) else self.to


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """A whole configuration. Keys that begin with `x-` are the user's own: a place for anchors.

    transports: by name; each one's settings are of its plugin's own type.
    users: by name; none means that everybody is let in, on loopback. users_file: a file with more of them, one
    `name:hash` a line.
    max_memory: bytes of message bodies that are held in memory; beyond it bodies are on disk only, and queues that
    are not durable refuse or drop their oldest, as they say in `overflow`.
    max_retained: bytes that retained messages take in memory, about; beyond it a message to be retained is refused.
    max_dedup_keys: keys of all queues whose window is not over, some 85 bytes each; beyond it a message with a new
    one is refused.
    max_bindings: bytes that bindings and subscriptions take in memory, about; beyond it one more is refused.
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
    max_retained: Octets = Octets(MAX_RETAINED_OCTETS)
    max_dedup_keys: Annotated[int, msgspec.Meta(ge=1)] = MAX_KEYS
    max_bindings: Octets = Octets(MAX_BINDINGS_OCTETS)
    max_backlog: Octets = Octets(64 * MB)
    drain_timeout: Seconds = Seconds(10)
    log: LogSettings = LogSettings()


def load(path: Path, environ: Mapping[str, str], strict: bool = False, warnings: Faults | None = None) -> Settings:
    """The settings of a file, all checks passed. Raises ConfigError with all faults, one a line.

    A transport whose plugin can't be imported gets `plugins.Unloaded` in place of its settings, so that one broken
    plugin does not stop the others; with `strict` it is a fault. With `warnings` the files that transports name are
    looked at, too: what the daemon could not work with is a fault. What else may be wrong goes there."""
    faults = Faults(str(path))
    root = read(path, environ, faults)
    return _Loader(root, path, faults, strict, warnings).load()


class _Loader:
    def __init__(self, root: Node, path: Path, faults: Faults, strict: bool, warnings: Faults | None) -> None:
        self.root = root
        self.path = path
        self.faults = faults
        self.strict = strict
        self.warnings = warnings
        self.routes: list[PlacedRoute] = []
        special = {
            TransportSettings: self._transport,
            AdminSettings: self._admin,
            tuple[Route, ...]: self._routes,
        }
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
            if key.startswith(USER_PREFIX):
                continue
            if key not in fields:
                self.faults.add(node.line, key, f"unknown key{nearest(key, fields, 'keys')}")
                self.root.unread.update(near for near in find_near(key, fields) if near not in given)
                continue
            value = self.decoder.decode(node, fields[key].type, key)
            if value is FAILED:
                self.root.unread.add(key)
            else:
                values[key] = value
        settings = Settings(**values)
        settings = msgspec.structs.replace(settings, users=self._users(settings), queues=self._dead_letters(settings))
        ignored = Faults(str(self.path))
        warnings = ignored if self.warnings is None else self.warnings
        Checks(settings, self.root, self.faults, warnings, self.routes).run()
        if self.warnings is not None:
            for name, section in settings.transports.items():
                node = self.root.child("transports", name)
                look(section, node, f"transports.{name}", time.time(), self.faults, self.warnings)
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
            self.faults.add(node.line, key, 'missing key "type"')
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

    def _routes(self, node: Node, key: str) -> Any:
        """Each by itself: one that can't be read does not keep the others from being checked."""
        if node.value is None:
            return ()
        if not isinstance(node.value, list):
            self.faults.add(node.line, key, "expected a list, as in [{from: shop/+/orders, to: orders}]")
            return FAILED
        for number, item in enumerate(node.value):
            route = self.decoder.decode(item, Route, f"{key}[{number}]")
            if route is not FAILED:
                self.routes.append(PlacedRoute(number, item, route))
        return tuple(placed.route for placed in self.routes)

    def _users(self, settings: Settings) -> dict[str, UserSettings]:
        users = dict(settings.users)
        lines = {name: self.root.child("users", name).line for name in users}
        for name, user in users.items():
            if not self.root.is_unread("users", name, "password_hash"):
                self._check_hash(self.faults, lines[name], f"users.{name}.password_hash", user.password_hash)
            self._check_scram(lines[name], f"users.{name}.scram", user.scram)
        if settings.users_file is None:
            return users
        path = self.path.parent / settings.users_file
        try:
            text = read_whole(path)
        except (OSError, ValueError) as error:
            why = f"{path} cannot be read: {why_unreadable(error)}"
            self.faults.add(self.root.child("users_file").line, "users_file", why)
            self.root.unread.add("users_file")
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
        from gateway.auth.users import is_hash  # argon2 is loaded only where there are users

        if not is_hash(password_hash):
            faults.add(line, key, "is no argon2 hash; make one with `gateway hash-password`")

    def _check_scram(self, line: int, key: str, verifier: str | None) -> None:
        try:
            if verifier is not None:
                Verifier.parse(verifier)
        except ValueError:
            self.faults.add(line, key, "is no SCRAM verifier; make one with `gateway hash-password --scram`")

    def _dead_letters(self, settings: Settings) -> dict[str, QueuePolicy]:
        """A queue of dead letters tries for ever and discards what is dead there (ruling 20), unless it says more."""
        outboxes = [getattr(section, "outbox", None) for section in settings.transports.values()]
        policies = [*settings.queues.values(), *(found for found in outboxes if isinstance(found, QueuePolicy))]
        targets = {DEAD_LETTERS, *(policy.dead_letter for policy in policies)}
        queues = dict(settings.queues)
        for name, policy in settings.queues.items():
            node = self.root.child("queues", name)
            if name in targets and not node.says("dead_letter"):
                policy = msgspec.structs.replace(policy, dead_letter=DISCARD)
                if not node.says("max_deliveries"):
                    policy = msgspec.structs.replace(policy, max_deliveries=None)
                queues[name] = policy
        return queues


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a configuration with all transports that are installed and can be imported."""
    sections: list[dict[str, Any]] = []
    writer = SchemaWriter({TransportSettings: {"$ref": "#/$defs/transport"}})
    for kind in sorted(plugins.installed()):
        try:
            section = writer.object(plugins.load(kind).Settings)
        except plugins.PluginError as error:
            log.warning("a transport is left out of the schema", error=str(error))
            continue
        section["properties"]["type"] = {"const": kind}
        section["required"] = ["type"]
        sections.append({"if": {"properties": {"type": {"const": kind}}}, "then": section})
    schema: dict[str, Any] = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "gateway.yaml"}
    schema |= writer.object(Settings)
    schema["patternProperties"] = {f"^{USER_PREFIX}": {"description": "Your own: a place for anchors."}}
    schema["properties"]["admin"] = {"anyOf": [schema["properties"]["admin"], {"const": False}]}
    kinds = [section["if"]["properties"]["type"]["const"] for section in sections]
    transport = {"type": "object", "required": ["type"], "properties": {"type": {"enum": kinds}}, "allOf": sections}
    schema["$defs"] = {**writer.definitions, "transport": transport}
    return schema


__all__ = [
    "AdminSettings",
    "ConfigError",
    "LogSettings",
    "Route",
    "Settings",
    "StoreSettings",
    "TransportSettings",
    "UserSettings",
    "json_schema",
    "load",
]
