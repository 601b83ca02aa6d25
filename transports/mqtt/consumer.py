"""Owns MqttConsumer: one client's consumption of one queue, that of its session, of a share or of `$queue/`.

Its rule: who leaves gets nothing more, and may still settle what it has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gateway.transport import Delivery, Options, Subscription
from transports.mqtt.session import Kind

if TYPE_CHECKING:
    from transports.mqtt.outbound import Outbound


class MqttConsumer:
    """The consumer of one queue for one client. `options` are those of a membership; the own queue's come with
    each delivery."""

    __slots__ = ("kind", "leaving", "options", "outbound", "subscription")

    subscription: Subscription

    def __init__(self, outbound: Outbound, kind: Kind, options: Options) -> None:
        self.outbound = outbound
        self.kind = kind
        self.options = options
        self.leaving = False

    def deliver(self, batch: Sequence[Delivery]) -> None:
        self.outbound.deliver(self, batch)

    def closed(self, reason: str) -> None:
        self.outbound.queue_gone(self)

    def leave(self) -> None:
        """No more deliveries; what is in flight may still be acknowledged (ruling 17)."""
        self.leaving = True
        self.subscription.cancel()
        self.settled()

    def settled(self) -> None:
        if self.leaving and not self.subscription.unsettled:
            self.subscription.detach()
