"""Owns AmqpConsumer: one basic.consume, as the core sees it.

Its rule: a delivery is registered with its channel before its bytes are made, and credit comes back with the
settlement (prefetch) or with the socket's progress (no prefetch), never otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from gateway.transport import Delivery, Subscription, Verdict
from transports.amqp.channel import Channel
from transports.amqp.codec import deliver_head, short

if TYPE_CHECKING:
    from transports.amqp.consuming import Consuming

SLICE = 2000
"""Messages granted at once to a consumer without a prefetch (ruling 16)."""


class AmqpConsumer:
    """tag: as the client knows it. no_ack: a delivery is settled by handing it to the socket. prefetch: 0 for none;
    then it is granted in slices as long as the socket takes them."""

    __slots__ = (
        "channel",
        "consuming",
        "exclusive",
        "heads",
        "no_ack",
        "prefetch",
        "queue",
        "subscription",
        "tag",
        "taken",
    )

    subscription: Subscription
    """Set by who attaches it, at once."""

    def __init__(self, consuming: Consuming, channel: Channel, tag: str, queue: str, no_ack: bool) -> None:
        self.consuming = consuming
        self.channel = channel
        self.tag = tag
        self.heads: dict[int, bytes] = {}
        """The begin of its basic.deliver frames, by the octets of their address."""
        self.queue = queue
        self.no_ack = no_ack
        self.prefetch = 0 if no_ack else channel.prefetch
        self.taken = 0
        """Deliveries since the last grant of one without a prefetch."""

    def deliver(self, batch: Sequence[Delivery]) -> None:
        self.consuming.deliver(self, batch)

    def closed(self, reason: str) -> None:
        self.consuming.queue_gone(self)

    def head(self, address_size: int) -> bytes:
        head = self.heads.get(address_size)
        if head is None:
            head = self.heads[address_size] = deliver_head(self.channel.id, short(self.tag.encode()), address_size)
        return head

    def start(self) -> None:
        """The first credit; call it after consume-ok is on its way."""
        self.subscription.grant(self.prefetch or SLICE)

    def settle(self, ids: list[int], verdict: Verdict, error: str = "") -> None:
        """Settles its own, and gives back the credit that this frees."""
        self.subscription.settle(ids, verdict, error)
        self.freed(len(ids))

    def freed(self, count: int) -> None:
        """So many of its own were settled."""
        if not self.no_ack:
            if self.prefetch:
                self.subscription.grant(count)
            self.channel.window.grant(messages=count)
        self.leave_when_settled()

    def leave_when_settled(self) -> None:
        """One that was cancelled detaches after its last settlement (ruling 17)."""
        if self in self.channel.leaving and not self.subscription.unsettled:
            self.channel.leaving.discard(self)
            self.subscription.detach()


class Get(AmqpConsumer):
    """A basic.get: a consumer of its channel with one credit, which neither has nor uses a prefetch."""

    __slots__ = ("answered",)

    def __init__(self, consuming: Consuming, channel: Channel, queue: str, no_ack: bool) -> None:
        super().__init__(consuming, channel, "", queue, no_ack)
        self.prefetch = 0
        self.answered: Callable[[], None] | None = None

    def deliver(self, batch: Sequence[Delivery]) -> None:
        self.consuming.deliver_got(self, batch[0])

    def closed(self, reason: str) -> None:
        self.consuming.got_nothing(self)

    def freed(self, count: int) -> None:
        self.leave_when_settled()
