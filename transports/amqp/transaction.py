"""Owns Transaction: what a channel in transaction mode has published and settled since its last commit or rollback.

Its rule: nothing of it reaches the core before tx.commit, and then the messages and acknowledgements are one `accept`:
all of them stand in one commit of the store. A rollback leaves the channel as if none of it had been said.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from gateway.transport import NO_PROPERTIES, Message, Subscription, Verdict

if TYPE_CHECKING:
    from transports.amqp.channel import Channel, Route
    from transports.amqp.consumer import AmqpConsumer

MESSAGE_OCTETS = 512
"""What a message counts beside its body and its properties."""


class Transaction:
    """messages: in their order. also: further topics by place. routes: of those that are mandatory, by place.
    settled: by tag, whose delivery it is, which, and what the client decided. octets: that the messages take, about."""

    __slots__ = ("also", "messages", "octets", "routes", "settled")

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.also: dict[int, tuple[str, ...]] = {}
        self.routes: dict[int, Route] = {}
        self.settled: dict[int, tuple[AmqpConsumer, int, Verdict]] = {}
        self.octets = 0

    def publish(self, message: Message, route: Route, copies: tuple[str, ...]) -> None:
        place = len(self.messages)
        if copies:
            self.also[place] = copies
        if route.publish.mandatory:
            self.routes[place] = route
        self.messages.append(message)
        said = 0 if message.properties is NO_PROPERTIES else len(msgspec.msgpack.encode(message.properties))
        self.octets += len(message.body) + said + sum(map(len, copies)) + MESSAGE_OCTETS

    def settle(self, channel: Channel, tag: int, multiple: bool, verdict: Verdict) -> None:
        """Raises AmqpError for a tag that is not open, as outside of a transaction."""
        open_tags = [one for one in channel.unacked if one <= tag or not tag] if multiple else [tag]
        taken = {one: channel.unacked[one] for one in open_tags if one in channel.unacked}
        channel.settled(tag, multiple)
        for one, (consumer, id) in taken.items():
            self.settled[one] = (consumer, id, verdict)

    def give_back(self, channel: Channel) -> None:
        """What was settled is open again."""
        if self.settled:
            again = {tag: (consumer, id) for tag, (consumer, id, _) in self.settled.items()}
            channel.unacked = dict(sorted((channel.unacked | again).items()))
            channel.oldest = min(channel.oldest, *again)

    def by_verdict(self) -> dict[Verdict, dict[AmqpConsumer, list[int]]]:
        found: dict[Verdict, dict[AmqpConsumer, list[int]]] = {}
        for consumer, id, verdict in self.settled.values():
            found.setdefault(verdict, {}).setdefault(consumer, []).append(id)
        return found

    def done(self) -> list[tuple[Subscription, list[int]]]:
        """The acknowledgements, for `accept`."""
        acked = self.by_verdict().get(Verdict.DONE, {})
        return [(consumer.subscription, ids) for consumer, ids in acked.items()]
