"""Owns the state of one channel: the content that is arriving, the confirms, the delivery tags, the credit.

Its rule: it is pure. It decides what a frame means and raises AmqpError; sending and settling are the connection's.
"""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from gateway.model.credit import UNLIMITED, Credit
from transports.amqp.codec import Publish
from transports.amqp.errors import CONTENT_TOO_LARGE, PRECONDITION_FAILED, UNEXPECTED_FRAME, AmqpError
from transports.amqp.properties import Content
from transports.amqp.transaction import Transaction

if TYPE_CHECKING:
    from transports.amqp.consumer import AmqpConsumer


class Route(NamedTuple):
    """A basic.publish, and the exchange and topic that its message gets."""

    publish: Publish
    exchange: str
    topic: str


class Places:
    """How many channels more the connections of a listener may open, all together."""

    __slots__ = ("left",)

    def __init__(self, most: int) -> None:
        self.left = most


class Channel:
    """One open channel.

    consumers: by tag. leaving: those that are cancelled or got one message, and hold deliveries still.
    window: credit of all its consumers that acknowledge: the prefetch of the channel or `max_unacked`.
    gate: credit of the others. channel.flow takes both away.
    waiting: what the next answer waits for; `backlog` holds the frames that came since, in order.
    """

    __slots__ = (
        "_body",
        "_content",
        "_left",
        "_parts",
        "_route",
        "acked",
        "backlog",
        "closing",
        "confirmed",
        "confirming",
        "consumers",
        "flowing",
        "gate",
        "id",
        "leaving",
        "max_unacked",
        "next_tag",
        "oldest",
        "prefetch",
        "published",
        "replies",
        "transaction",
        "unacked",
        "waiting",
        "window",
        "window_size",
    )

    def __init__(self, id: int, max_unacked: int) -> None:
        self.id = id
        self.consumers: dict[str, AmqpConsumer] = {}
        self.leaving: set[AmqpConsumer] = set()
        self.closing = False
        """channel.close was sent; all but its answer is passed over [AMQP 1.5.2.5]."""
        self.waiting: object | None = None
        self.backlog: deque[tuple[int, bytes]] = deque()
        self.replies = ""
        """The queue of its direct replies, "" if it consumes none."""
        # publishing
        self.transaction: Transaction | None = None
        """The present one of a channel in transaction mode; never together with confirms."""
        self.confirming = False
        self.published = 0
        self.confirmed = 0
        """The last confirm that is due, and the last one that was sent."""
        self.acked = 0
        self._route: Route | None = None
        self._content: Content | None = None
        self._left = 0
        self._body = b""
        self._parts: bytearray | None = None
        """Of a body in several frames, which may be tiny or empty."""
        # consuming
        self.prefetch = 0
        self.max_unacked = max_unacked
        self.window_size = max_unacked
        self.window = Credit(max_unacked)
        self.gate = Credit()
        self.flowing = True
        self.next_tag = 1
        self.oldest = 1
        """No delivery with a smaller tag is unsettled."""
        self.unacked: dict[int, tuple[AmqpConsumer, int]] = {}

    # content in: method, header, body frames in this order and nothing between them [AMQP 4.2.6]

    @property
    def assembling(self) -> bool:
        return self._route is not None

    def begin(self, route: Route) -> None:
        if self._route is not None:
            raise AmqpError(UNEXPECTED_FRAME, "a content was not finished")
        self._route = route

    @property
    def expects_header(self) -> Route:
        """The route whose header comes now. Raises AmqpError if none does."""
        if self._route is None or self._content is not None:
            raise AmqpError(UNEXPECTED_FRAME, "no content header is expected")
        return self._route

    def header(self, content: Content, size: int, limit: int) -> bool:
        """True if the content has no body, so `take` it."""
        if size > limit:
            raise AmqpError(CONTENT_TOO_LARGE, f"a body of {size} bytes is above the limit of {limit}")
        self._content = content
        self._left = size
        return not size

    def body(self, chunk: bytes) -> bool:
        """True if it was the last one, so `take` the content."""
        if self._content is None:
            raise AmqpError(UNEXPECTED_FRAME, "no body is expected")
        self._left -= len(chunk)
        if self._left < 0:
            raise AmqpError(UNEXPECTED_FRAME, "a body is longer than its header says")
        if self._parts is not None:
            self._parts += chunk
        elif self._left:
            self._parts = bytearray(chunk)
        else:
            self._body = chunk
        return not self._left

    @property
    def partial(self) -> int:
        """Octets of a body that is not complete yet."""
        return len(self._parts) if self._parts is not None else 0

    def take(self) -> tuple[Route, Content, bytes]:
        """The whole content; the next one may begin."""
        route, content, body = self._route, self._content, self._body
        assert route is not None and content is not None
        if self._parts is not None:
            body = bytes(self._parts)
        self._route = self._content = self._parts = None
        self._body = b""
        return route, content, body

    # deliveries out

    @property
    def unsettled(self) -> int:
        """Deliveries whose settlement is not there yet, or not committed."""
        return len(self.unacked) + (len(self.transaction.settled) if self.transaction is not None else 0)

    def register(self, consumer: AmqpConsumer, id: int) -> int:
        """The tag of a delivery that must be acknowledged."""
        tag = self.next_tag
        self.next_tag = tag + 1
        self.unacked[tag] = (consumer, id)
        return tag

    def pass_tag(self) -> int:
        """The tag of a delivery that needs no acknowledgement."""
        tag = self.next_tag
        self.next_tag = tag + 1
        return tag

    def settled(self, tag: int, multiple: bool, most: int = UNLIMITED) -> list[tuple[AmqpConsumer, int]]:
        """The deliveries that an ack, nack or reject speaks of, oldest first; they are forgotten here. Tag 0 with
        `multiple` means all; `most`: only so many, and while it `reaches` more there is a rest. Raises AmqpError for a
        tag that is not open [AMQP 1.8.3.13.delivery-tag]."""
        if not multiple:
            found = self.unacked.pop(tag, None)
            if found is None:
                raise AmqpError(PRECONDITION_FAILED, f"unknown delivery tag {tag}")
            if tag == self.oldest:
                self.oldest = tag + 1
            return [found]
        if tag >= self.next_tag:
            raise AmqpError(PRECONDITION_FAILED, f"unknown delivery tag {tag}")
        last = tag or self.next_tag - 1
        unacked = self.unacked
        if last - self.oldest >= most:
            last = min(last, next(islice(unacked, most - 1, None), last))
        # Tags between the oldest and the last may be few or, after acks out of order, very many.
        if last - self.oldest <= 2 * len(unacked):
            tags = [open_tag for open_tag in range(self.oldest, last + 1) if open_tag in unacked]
        else:
            tags = [open_tag for open_tag in unacked if open_tag <= last]
        taken = [unacked.pop(open_tag) for open_tag in tags]
        self.oldest = max(self.oldest, last + 1)
        if not taken and tag:
            raise AmqpError(PRECONDITION_FAILED, f"unknown delivery tag {tag}")
        return taken

    def reaches(self, tag: int) -> bool:
        """Whether any delivery up to this tag is unsettled."""
        return tag >= next(iter(self.unacked), self.next_tag)

    # credit

    def set_window(self, prefetch: int) -> None:
        """The prefetch of the whole channel; 0 for none of its own."""
        size = min(prefetch or self.max_unacked, self.max_unacked)
        change, self.window_size = size - self.window_size, size
        self.window.grant(messages=change)

    def set_flow(self, active: bool) -> None:
        """channel.flow from the peer [AMQP 1.5.2.3]."""
        if active != self.flowing:
            self.flowing = active
            # All that there could be, so that what has been counted meanwhile stays right.
            for credit in (self.gate, self.window):
                credit.grant(messages=UNLIMITED if active else -UNLIMITED)
