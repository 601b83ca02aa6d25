"""Owns what must fit together in a configuration: names, routes, dead letters, groups, listeners.

Its rule: each check names the key to change; one that has nothing to look at says nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from gateway.address import Address
from gateway.config import links
from gateway.config.document import Faults, Node
from gateway.errors import nearest
from gateway.model.names import RESERVED_QUEUES
from gateway.model.policy import DEAD_LETTERS, DISCARD, QueuePolicy
from gateway.model.topics import check_filter, overlap
from gateway.routing.templates import Template
from gateway.transport import outbox as outboxes
from gateway.transport import registry as plugins

if TYPE_CHECKING:
    from gateway.config.settings import Route, Settings

RESERVED = (*RESERVED_QUEUES, "amq.")
"""Beginnings of queue names that belong to sessions and shares, to outboxes, and to AMQP (ruling 25)."""
MAX_NAME_BYTES = 255
OPEN = "allow_anonymous"


SUGGESTIONS = 20
"""So many unknown names are told with the nearest known one: with thousands of both that would take minutes."""


class PlacedRoute(NamedTuple):
    """A route that could be read. number: in the file's list, which may have others."""

    number: int
    node: Node
    route: Route


class Checks:
    """Looks at what could be read of settings. `root` tells where each key stands; a section that could not be read is
    there, although the settings lack it, and of a value that could not be read nothing is said (`Node.is_unread`).
    warnings: what may be meant, and will surprise who did not mean it."""

    def __init__(
        self, settings: Settings, root: Node, faults: Faults, warnings: Faults, routes: Sequence[PlacedRoute]
    ) -> None:
        self.settings = settings
        self.warnings = warnings
        self.root = root
        self.faults = faults
        self.routes = routes
        self._suggested = 0
        self.queues = root.keys("queues")
        self.transports = root.keys("transports")
        # Each asks what is installed, which takes milliseconds; routes ask for each of their targets.
        self._kind_is_link = cache(plugins.is_link)
        self._target_check = cache(plugins.target_check)

    def _near(self, word: str, known: Iterable[str], kind: str) -> str:
        """As `nearest`, for the first names that are not known: each is held against all that are."""
        self._suggested += 1
        return nearest(word, known, kind) if self._suggested <= SUGGESTIONS else ""

    def _has_queue(self, name: str) -> bool:
        return name in self.queues or self.root.is_unread("queues")

    def _has_transport(self, name: str) -> bool:
        return name in self.transports or self.root.is_unread("transports")

    def run(self) -> None:
        self._check_queues()
        self._check_routes()
        self._check_transports()
        self._check_listeners()

    def _fault(self, text: str, *keys: str) -> None:
        if self.root.is_unread(*keys):
            return  # what was looked at is a default
        self.faults.add(self.root.child(*keys).line, ".".join(keys), text)

    def _check_queues(self) -> None:
        # A queue whose own section has a fault is still one that others may name.
        for name in self.queues:
            if why := _bad_name(name, self.transports):
                self._fault(why, "queues", name)
        for name, policy in self.settings.queues.items():
            self._check_policy(policy, "queues", name)
        self._check_cycles(self.settings.queues)

    def _check_policy(self, policy: QueuePolicy, *place: str) -> None:
        """`place`: the keys that lead to it."""
        target = policy.dead_letter
        if not isinstance(target, str):
            self._fault("expected the name of a queue", *place, "dead_letter")
        elif target not in (DEAD_LETTERS, DISCARD) and not self._has_queue(target):
            near = self._near(target, [*self.queues, DEAD_LETTERS, DISCARD], "queues")
            self._fault(f'no queue is named "{target}"{near}', *place, "dead_letter")
        for key, text in (("group", policy.group), ("dedup", policy.dedup.key if policy.dedup else None)):
            if text is None or (key == "dedup" and text == "sha256"):
                continue
            keys = (*place, key, *(["key"] if key == "dedup" else []))
            try:
                template = Template(text)
            except ValueError as error:
                self._fault(str(error), *keys)
                continue
            if key == "dedup" and template.is_constant:
                self._fault(
                    f'"{text}" is the same for every message, and all after the first would be dropped as duplicates; '
                    'write what differs, as in "{header[order-id]}" or sha256',
                    *keys,
                )
        if policy.group is None and not self.root.is_unread(*place, "group"):
            if policy.on_exhausted == "park":
                self._fault("park holds a group; give the queue a group", *place, "on_exhausted")
            if policy.group_in_flight > 1:
                self._fault("needs a group; a queue without one has no such limit", *place, "group_in_flight")
            if policy.dedup and policy.dedup.scope == "group":
                self._fault("scope group needs a group", *place, "dedup", "scope")
        if policy.delay > policy.max_delay and not self.root.is_unread(*place, "max_delay"):
            self._fault("is longer than max_delay", *place, "delay")
        for key, limit in (("max_messages", policy.max_messages), ("max_bytes", policy.max_bytes)):
            if limit is not None and limit <= 0:
                self._fault("must be above 0; leave it out for no limit", *place, key)
        if policy.ack_timeout is not None and policy.ack_timeout <= 0:
            self._fault("must be above 0; leave it out for no timeout", *place, "ack_timeout")
        if policy.dedup and policy.dedup.window <= 0:
            self._fault("must be above 0; leave dedup out to store every message", *place, "dedup", "window")
        if policy.expires is not None:
            self._fault("a queue of the configuration does not expire; take this key out", *place, "expires")

    def _check_cycles(self, queues: Mapping[str, QueuePolicy]) -> None:
        """A circle is a way to try again later, and drops what no consumer rejects (ruling 30)."""
        places = {name: place for place, name in enumerate(queues)}
        seen: dict[str, str] = {}
        """Queues that a walk came to, and where that walk began: each is walked over once."""
        for begin in queues:
            chain: list[str] = []
            name: object = begin
            while isinstance(name, str) and name in queues and name not in seen:
                seen[name] = begin
                chain.append(name)
                name = queues[name].dead_letter
            if isinstance(name, str) and seen.get(name) == begin and chain:
                circle = chain[chain.index(name) :]
                first = circle.index(min(circle, key=places.__getitem__))
                chain = circle[first:] + circle[:first]
                start = chain[0]
                self.warnings.add(
                    self.root.child("queues", start, "dead_letter").line,
                    f"queues.{start}.dead_letter",
                    f"dead letters go round in a circle: {' -> '.join([*chain, start])}. A message goes round as often "
                    "as a consumer rejects it on the way; one that comes back to a queue where it died before without "
                    "that (expired, exhausted, overflow) is dropped, counted and logged",
                )

    def _check_routes(self) -> None:
        for placed in self.routes:
            number, node, route = placed
            if why := check_filter(route.filter, mqtt=True):
                self._route_fault(placed, "from", f'"{route.filter}" {why}')
            elif route.filter.startswith("$queue/"):
                self._route_fault(
                    placed, "from", "what is sent to $queue/ goes straight to that queue, past the routes"
                )
            if route.source is not None and not self._has_transport(route.source):
                near = self._near(route.source, self.transports, "transports")
                self._route_fault(placed, "source", f'no transport is named "{route.source}"{near}')
            if not route.targets:
                self._route_fault(placed, "to", "names no queue")
            for target in route.targets:
                if why := self._bad_target(target):
                    self._route_fault(placed, "to", why)
                elif not node.is_unread("from") and (why := self._short_topic(route, target)):
                    self._route_fault(placed, "to", why)
            if route.ack == "delivered":
                is_told = node.is_unread("to") or node.is_unread("from") or node.is_unread("source")
                if not is_told and (why := self._bad_delivery(number, route)):
                    self._route_fault(placed, "ack", why)
            elif node.says("deliver_within") and not node.is_unread("ack"):
                self._route_fault(placed, "deliver_within", "means something with `ack: delivered` only")
        self._check_levels()

    def _route_fault(self, placed: PlacedRoute, key: str, text: str) -> None:
        if not placed.node.is_unread(key):
            self.faults.add(placed.node.child(key).line, f"routes[{placed.number}].{key}", text)

    def _short_topic(self, route: Route, target: str) -> str:
        """Why no message of a route can have an address at a link, or ""."""
        path = links.parse(target, self.queues).template
        levels = _levels(route.filter)
        if path is None or levels is None or (needs := Template(path).least_levels) <= levels:
            return ""
        return _too_short(path, needs, route.filter, levels)

    def _check_levels(self) -> None:
        """Templates of queues that no message of a route has a value for: all of them would be dead letters."""
        for name, policy in self.settings.queues.items():
            self._check_levels_of(policy, name, "queues", name)
        for name, section in self.settings.transports.items():
            outbox = getattr(section, "outbox", None)
            if isinstance(outbox, QueuePolicy):
                self._check_levels_of(outbox, outboxes.outbox(name), "transports", name, "outbox")

    def _check_levels_of(self, policy: QueuePolicy, queue: str, *place: str) -> None:
        dedup = policy.dedup
        key = dedup.key if dedup is not None and dedup.required and dedup.key != "sha256" else None
        for keys, text in ((("group",), policy.group), (("dedup", "key"), key)):
            needs = _least_levels(text)
            for number, node, route in self.routes if needs else ():
                levels = None if node.is_unread("from") else _levels(route.filter)
                leads = any(links.parse(target, self.queues).queue == queue for target in route.targets)
                if leads and levels is not None and levels < needs:
                    told = _too_short(str(text), needs, route.filter, levels)
                    self._fault(f"{told}, which routes[{number}] brings here", *place, *keys)
                    break

    def _bad_delivery(self, number: int, route: Route) -> str:
        """Why a route can't be acknowledged when it is delivered: its messages may be kept nowhere (ruling 23)."""
        found = [links.parse(target, self.queues) for target in route.targets]
        if len(found) != 1 or found[0].link is None:
            return "delivered: needs one target, which is a link"
        for other, node, another in self.routes:
            if any(node.is_unread(key) for key in ("from", "source", "ack")):
                continue
            is_told = another.ack == "delivered" and other > number
            if other != number and not is_told and _share_messages(route, found[0].link, another):
                return f"delivered: routes[{other}] takes some of these messages, too, and then they would be refused"
        return ""

    def _bad_target(self, target: str) -> str:
        queue, link, path = links.parse(target, self.queues)
        if link is None or path is None:
            if queue == DEAD_LETTERS or self._has_queue(queue):
                return ""
            if queue in self.transports and self._is_link(queue):
                return f'"{queue}" is a link; say where it sends, as in "{queue}:{{topic}}"'
            return f'no queue is named "{queue}"{self._near(queue, self.queues, "queues")}'
        if not self._has_transport(link):
            return f'no link is named "{link}"{self._near(link, self.transports, "transports")}'
        if not self._is_link(link):
            kind = self.settings.transports[link].type
            return f'transport "{link}" of type {kind} takes no messages from routes; a link does'
        if not path:
            return f'says no place at the link; write for example "{link}:{{topic}}"'
        section = self.settings.transports.get(link)
        if section is not None and (why := self._target_check(section.type)(path)):
            return why
        try:
            Template(path)
        except ValueError as error:
            return str(error)
        return ""

    def _is_link(self, name: str) -> bool:
        """Also of a transport whose section has a fault or whose plugin can't be imported: it may be one."""
        found = self.settings.transports.get(name)
        return found is None or isinstance(found, plugins.Unloaded) or self._kind_is_link(found.type)

    def _check_transports(self) -> None:
        """What a transport says of queues of ours."""
        for name, section in self.settings.transports.items():
            if ":" in name and self._is_link(name):
                self._fault("a link has no colon in its name: routes write LINK:TARGET", "transports", name)
            for key in ("queue", "unroutable"):
                queue = getattr(section, key, None)
                if isinstance(queue, str) and queue != DEAD_LETTERS and not self._has_queue(queue):
                    near = self._near(queue, self.queues, "queues")
                    self._fault(f'no queue is named "{queue}"{near}', "transports", name, key)
            policy = getattr(section, "outbox", None)
            if isinstance(policy, QueuePolicy):
                self._check_policy(policy, "transports", name, "outbox")

    def _check_listeners(self) -> None:
        # The admin API first: it has an address that the file may not say, and what the file says can be changed.
        listeners: list[tuple[tuple[str, ...], Any]] = []
        if self.settings.admin is not None:
            listeners.append((("admin",), self.settings.admin))
        listeners += [(("transports", name), transport) for name, transport in self.settings.transports.items()]
        open_ports: list[tuple[Address, str]] = []
        for keys, section in listeners:
            # Also where the plugin can't be imported yet: it will listen when it can.
            said = section.section if isinstance(section, plugins.Unloaded) else msgspec.structs.asdict(section)
            text = said.get("listen")
            if text is None or self.root.is_unread(*keys, "listen"):
                continue
            try:
                address = Address.parse(text)
            except ValueError as error:
                self._fault(str(error), *keys, "listen")
                continue
            for other, owner in open_ports:
                if address.clashes(other):
                    self._fault(f"{address} is taken: {owner} listens on {other}", *keys, "listen")
                    break
            open_ports.append((address, ".".join(keys)))
            # Users that have a fault are users nevertheless; an empty file of users has none.
            has_users = bool(self.settings.users) or bool(self.root.keys("users"))
            is_told = any(self.root.is_unread(*place) for place in (("users",), ("users_file",), (*keys, OPEN)))
            if not has_users and not is_told and is_open_without_users(said) is not None:
                self._fault(
                    f"{address} can be reached from other machines and there are no users: add `users`, listen on "
                    f"127.0.0.1, or write `{OPEN}: true` here",
                    *keys,
                    "listen",
                )


def _levels(filter: str) -> int | None:
    """How many levels each topic has that a filter matches; None if they are not equally many."""
    return None if filter.endswith("#") else filter.count("/") + 1


def _least_levels(text: str | None) -> int:
    """See Template; 0 for what is none, which is told elsewhere."""
    try:
        return Template(text).least_levels if text is not None else 0
    except ValueError:
        return 0


def _too_short(template: str, needs: int, filter: str, levels: int) -> str:
    has = "1 level" if levels == 1 else f"{levels} levels"
    return f"{template} needs a topic of {needs} levels (topic[0] is the first), and {filter} has {has}"


def is_open_without_users(said: Mapping[str, Any]) -> Address | None:
    """Where a listener with these settings can be reached from other machines and, without users, would let everybody
    in though nobody said that it should; None if it does no such thing. Raises ValueError for what is no address."""
    text = said.get("listen")
    if text is None:
        return None
    address = Address.parse(text)
    return None if address.loopback or said.get(OPEN, False) is True else address


def _share_messages(route: Route, link: str, other: Route) -> bool:
    """Whether a message may be taken by both; `route` leads to that link, and takes nothing that came by it."""
    if None not in (route.source, other.source) and route.source != other.source:
        return False
    return link not in (route.source, other.source) and overlap(route.filter, other.filter)


def _bad_name(name: str, links: list[str]) -> str:
    """Why this can't be the name of a YAML queue; "" if it can."""
    for prefix in RESERVED:
        if name.startswith(prefix):
            return f"names that begin with {prefix} are reserved"
    if name == DISCARD:
        return f"{DISCARD} stands for no queue; choose another name"
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
