"""Owns Vhost: how the names that a client of one virtual host uses become the core's, and back.

Its rule: another virtual host than `/` is a prefix. What its clients call `q` is `vhost.NAME/q` to the core, the
command line and `$queue/`, so no two of them can mean the same queue or exchange. The default exchange is the core's
for all, since it knows queues by their whole names.
"""

from __future__ import annotations

from gateway.model.message import DEFAULT_EXCHANGE
from gateway.model.names import NAMESPACE
from transports.amqp.errors import ACCESS_REFUSED, AmqpError


class Vhost:
    """prefix: of the names in it, "" for `/`."""

    __slots__ = ("name", "prefix")

    def __init__(self, name: str) -> None:
        self.name = name
        self.prefix = "" if name == "/" else f"{NAMESPACE}{name}/"

    def full(self, name: str) -> str:
        """The core's name of a queue, or of an exchange other than the default one. Raises AmqpError for a name that is
        another virtual host's."""
        if name.startswith(NAMESPACE):
            raise AmqpError(ACCESS_REFUSED, f"name {name[:64]!r} contains reserved prefix '{NAMESPACE}*'")
        return self.prefix + name

    def exchange(self, name: str) -> str:
        """As `full`, also for the default exchange."""
        return name if name == DEFAULT_EXCHANGE else self.full(name)

    def own(self, full: str) -> str:
        """What its clients call it; what is in no other virtual host's name stays as it is."""
        return full.removeprefix(self.prefix)

    def tell(self, what: str, full: str) -> str:
        """A queue or an exchange in a text for its clients."""
        return f"{what} {self.own(full)!r} in vhost {self.name!r}"


ROOT = Vhost("/")


def is_within(full: str, names: frozenset[str]) -> bool:
    """Whether it is one of these names in some virtual host other than `/`."""
    return full.startswith(NAMESPACE) and full.partition("/")[2] in names
