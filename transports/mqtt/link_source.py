"""Owns Source: what comes over one connection of a link, from its PUBLISH to its PUBACK.

Its rule: messages are accepted and acknowledged in the order in which they came, and none is acknowledged before the
commit that holds it. A message that is refused stays unacknowledged and is offered again; all that came after it waits.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import anyio
from paho.mqtt.client import MQTTMessage
from paho.mqtt.properties import Properties

from gateway.logs import log
from gateway.message import NO_PROPERTIES, QUEUE_PREFIX, Message
from gateway.message import Properties as MessageProperties
from gateway.topics import check_name
from gateway.transport import Gateway, Offer, Outcome
from transports.mqtt.link_settings import MqttClientSettings
from transports.mqtt.packets import Properties5, Property
from transports.mqtt.properties import from_wire

HOPS = "x-gateway-hops"
"""User property: over how many links a message came. Each link adds one as it sends."""
MAX_BATCH = 1000
MAX_HELD_OCTETS = 64 << 20
"""Of what came and is not accepted yet. Beyond it QoS 0 is dropped, and a remote of 3.1.1 is cut off; what MQTT 5 sends
with QoS 1 is bounded by `receive_maximum` and `max_packet_size`."""
FIRST_PAUSE = 0.1
LAST_PAUSE = 30.0
"""Seconds until a refused message is offered again, doubled from the first to the last, with jitter."""

NAMES = {
    Property.PAYLOAD_FORMAT_INDICATOR: "PayloadFormatIndicator",
    Property.CONTENT_TYPE: "ContentType",
    Property.RESPONSE_TOPIC: "ResponseTopic",
    Property.CORRELATION_DATA: "CorrelationData",
    Property.USER_PROPERTY: "UserProperty",
}
"""What paho calls the properties of a PUBLISH that a message keeps."""


class _Arrival(NamedTuple):
    """packet_id: 0 for QoS 0. message: None for one that is dropped by rule, and yet acknowledged in its turn."""

    packet_id: int
    message: Message | None
    octets: int


class Source:
    """Of one connection. `report` is told why messages are held, and "" when they are not."""

    def __init__(
        self, link: str, settings: MqttClientSettings, gateway: Gateway, report: Callable[[str], None]
    ) -> None:
        self._link = link
        self._gateway = gateway
        self._report = report
        self._counters = gateway.counters(link)
        self._max_hops = settings.max_hops
        self._receive_maximum = settings.receive_maximum if settings.version == 5 else None
        self._offer = Offer(in_order=True, drops_qos0=True, unroutable=settings.unroutable)
        self._kept = settings.unroutable is not None
        self._arrivals: deque[_Arrival] = deque()
        self._octets = 0
        self._unacked = 0
        self._arrived = asyncio.Event()
        self._pause = 0.0
        self._told: set[str] = set()

    def receive(self, packet: MQTTMessage) -> None:
        """A PUBLISH. Raises BufferError if the remote sends more than may be held; that ends the connection, and the
        remote sends again what was not acknowledged."""
        crowded = self._octets > MAX_HELD_OCTETS
        counters = self._counters
        counters.messages_in += 1
        counters.octets_in += len(packet.payload)
        if packet.qos == 0:
            if crowded:
                counters.dropped["qos0-refused"] += 1
                return
        elif self._receive_maximum is None:
            if crowded:
                raise BufferError(f"the remote sent more than {MAX_HELD_OCTETS} bytes ahead of their PUBACKs")
        elif self._unacked >= self._receive_maximum:  # [MQTT-3.3.4-9]
            raise BufferError(f"the remote sent more than {self._receive_maximum} messages ahead of their PUBACKs")
        found = self._message(packet)
        if isinstance(found, str):
            self._tell_dropped(found, packet)
            if packet.qos == 0:
                return
        message = found if isinstance(found, Message) else None
        self._arrivals.append(_Arrival(packet.mid if packet.qos else 0, message, len(packet.payload)))
        self._octets += len(packet.payload)
        self._unacked += packet.qos > 0
        self._arrived.set()

    async def run(self, acknowledge: Callable[[int], None]) -> None:
        """Until cancelled; what is on its way to the disk then is still acknowledged, within `drain_timeout`."""
        while True:
            if not self._arrivals:
                self._arrived.clear()
                await self._arrived.wait()
            batch = [self._arrivals[place] for place in range(min(MAX_BATCH, len(self._arrivals)))]
            settled = await self._take(batch, acknowledge)
            for _ in range(settled):
                arrival = self._arrivals.popleft()
                self._octets -= arrival.octets
                self._unacked -= arrival.packet_id > 0
            if settled:
                self._go_on()
            if settled < len(batch):
                await self._sit_out()

    async def _take(self, batch: Sequence[_Arrival], acknowledge: Callable[[int], None]) -> int:
        """How many from the front need nothing more; the next one, if there is one, was refused."""
        messages = [arrival.message for arrival in batch if arrival.message is not None]
        if not messages:
            return self._settle(batch, (), acknowledge)
        future = self._gateway.accept(messages, (), self._offer)
        try:
            outcomes = await asyncio.shield(future)
        except asyncio.CancelledError:
            # A commit is never cancelled: what it holds is acknowledged, or would come again for nothing.
            with anyio.move_on_after(self._gateway.drain_timeout, shield=True):
                self._settle(batch, await asyncio.shield(future), acknowledge)
            raise
        return self._settle(batch, outcomes, acknowledge)

    def _settle(
        self, batch: Sequence[_Arrival], outcomes: Sequence[Outcome], acknowledge: Callable[[int], None]
    ) -> int:
        found = iter(outcomes)
        for place, (packet_id, message, _) in enumerate(batch):
            outcome = next(found) if message is not None else Outcome.STORED
            if outcome is Outcome.REFUSED:
                if packet_id:
                    return place
                self._counters.dropped["qos0-refused"] += 1
            if outcome is Outcome.UNROUTED and not self._kept:
                self._counters.dropped["unroutable"] += 1
            if packet_id:
                acknowledge(packet_id)
        return len(batch)

    async def _sit_out(self) -> None:
        self._counters.refusals["queue-full"] += 1
        self._pause = min(max(self._pause * 2, FIRST_PAUSE), LAST_PAUSE)
        why = self._gateway.refusing or "a queue that it goes to is full"
        self._report(f"a message that came is refused here ({why}); it and those behind it wait at the remote")
        await asyncio.sleep(self._pause * random.uniform(0.75, 1.25))

    def _go_on(self) -> None:
        if self._pause:
            self._pause = 0.0
            self._report("")

    def _message(self, packet: MQTTMessage) -> Message | str:
        """Or why it is dropped."""
        try:
            topic = packet.topic
        except UnicodeDecodeError:
            return "topic-name-invalid"
        if topic.startswith(QUEUE_PREFIX) or check_name(topic):
            return "topic-name-invalid"
        # Of 3.1.1 there are none.
        said = getattr(packet, "properties", None)
        properties = _properties(said) if said is not None else NO_PROPERTIES
        if hops(properties) >= self._max_hops:
            return "max-hops"
        expiry = getattr(said, "MessageExpiryInterval", None)
        return Message(
            topic,
            bytes(packet.payload),
            qos=packet.qos,
            retain=packet.retain,
            properties=properties,
            ttl=None if expiry is None else float(expiry),
            source=self._link,
        )

    def _tell_dropped(self, reason: str, packet: MQTTMessage) -> None:
        """Counted each time, logged once for each connection."""
        self._counters.dropped[reason] += 1
        if reason not in self._told:
            self._told.add(reason)
            log.warning(
                "a message that came over a link is dropped", link=self._link, reason=reason, packet_id=packet.mid
            )


def _properties(said: Properties) -> MessageProperties:
    found: Properties5 = {key: getattr(said, name) for key, name in NAMES.items() if hasattr(said, name)}
    return from_wire(found)


def hops(properties: MessageProperties) -> int:
    """Over how many links a message came; a text that is no such number counts as none."""
    for name, value in properties.headers:
        if name == HOPS and isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 4:
            return int(value)
    return 0
