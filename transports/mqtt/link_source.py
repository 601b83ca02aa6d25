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

from gateway.logs import log
from gateway.message import QUEUE_PREFIX, Message
from gateway.message import Properties as MessageProperties
from gateway.topics import check_name
from gateway.transport import Gateway, Offer, Outcome
from transports.mqtt.link_settings import MqttClientSettings
from transports.mqtt.packets import Property, Publish
from transports.mqtt.properties import from_wire
from transports.mqtt.remote import Unreadable

HOPS = "x-gateway-hops"
"""User property: over how many links a message came. Each link adds one as it sends."""
MAX_BATCH = 1000
MAX_HELD_OCTETS = 64 << 20
"""Of what came and is not acknowledged yet. `receive_maximum` would be enough if every remote kept to it: MQTT 3.1.1
knows none, and Mosquitto with `max_inflight_messages 0` disregards it."""
WEIGHT = 1 << 10
"""Octets that a held message counts besides its body, about what paho's objects for it take."""
FIRST_PAUSE = 0.1
LAST_PAUSE = 30.0
"""Seconds until a refused message is offered again, doubled from the first to the last, with jitter."""


class _Arrival(NamedTuple):
    """message: None for one that is dropped by rule, and yet acknowledged in its turn."""

    packet_id: int
    qos: int
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
        self._offer = Offer(in_order=True, drops_qos0=True, unroutable=settings.unroutable)
        self._kept = settings.unroutable is not None
        self._arrivals: deque[_Arrival] = deque()
        self._octets = 0
        self._overrun = False
        """More came than may be held. What came after that was forgotten, and comes again over the next connection."""
        self._arrived = asyncio.Event()
        self._pause = 0.0
        self._told: set[str] = set()

    def receive(self, packet: Publish | Unreadable) -> None:
        """A PUBLISH."""
        if self._octets > MAX_HELD_OCTETS or self._overrun:
            if packet.qos == 0:
                self._counters.dropped["qos0-refused"] += 1
            else:
                # Not acknowledged, and nothing behind it is taken, so the remote sends all of it again, in its order.
                self._overrun = True
            return
        found = self._message(packet)
        message = found if isinstance(found, Message) else None
        octets = len(message.body) if message is not None else 0
        self._counters.messages_in += 1
        self._counters.octets_in += octets
        if isinstance(found, str):
            self._tell_dropped(found, packet)
            if packet.qos == 0:
                return
        octets += WEIGHT
        self._arrivals.append(_Arrival(packet.packet_id, packet.qos, message, octets))
        self._octets += octets
        self._arrived.set()

    async def run(self, acknowledge: Callable[[int, int], None]) -> None:
        """Until cancelled; what is on its way to the disk then is still acknowledged, within `drain_timeout`. Returns
        when more came than may be held, as soon as all that was held is acknowledged: the next connection brings the
        rest. `acknowledge` gets packet identifier and QoS."""
        while self._arrivals or not self._overrun:
            if not self._arrivals:
                self._arrived.clear()
                await self._arrived.wait()
            batch = [self._arrivals[place] for place in range(min(MAX_BATCH, len(self._arrivals)))]
            settled = await self._take(batch, acknowledge)
            for _ in range(settled):
                self._octets -= self._arrivals.popleft().octets
            if settled:
                self._go_on()
            if settled < len(batch):
                await self._sit_out()

    async def _take(self, batch: Sequence[_Arrival], acknowledge: Callable[[int, int], None]) -> int:
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
        self, batch: Sequence[_Arrival], outcomes: Sequence[Outcome], acknowledge: Callable[[int, int], None]
    ) -> int:
        found = iter(outcomes)
        for place, (packet_id, qos, message, _) in enumerate(batch):
            outcome = next(found) if message is not None else Outcome.STORED
            if outcome is Outcome.REFUSED:
                if qos:
                    return place
                self._counters.dropped["qos0-refused"] += 1
            if outcome is Outcome.UNROUTED and not self._kept:
                self._counters.dropped["unroutable"] += 1
            if qos:
                acknowledge(packet_id, qos)
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

    def _message(self, packet: Publish | Unreadable) -> Message | str:
        """Or why it is dropped."""
        if isinstance(packet, Unreadable):
            return "malformed-packet"
        if packet.topic.startswith(QUEUE_PREFIX) or check_name(packet.topic):
            return "topic-name-invalid"
        properties = from_wire(packet.properties)
        if hops(properties) >= self._max_hops:
            return "max-hops"
        expiry = packet.properties.get(Property.MESSAGE_EXPIRY_INTERVAL)
        return Message(
            packet.topic,
            packet.payload,
            qos=packet.qos,
            retain=packet.retain,
            properties=properties,
            ttl=None if expiry is None else float(expiry),
            source=self._link,
        )

    def _tell_dropped(self, reason: str, packet: Publish | Unreadable) -> None:
        """Counted each time, logged once for each connection."""
        self._counters.dropped[reason] += 1
        if reason not in self._told:
            self._told.add(reason)
            why = packet.why if isinstance(packet, Unreadable) else ""
            log.warning("a message that came over a link is dropped", link=self._link, reason=reason, why=why)


def hops(properties: MessageProperties) -> int:
    """Over how many links a message came; a text that is no such number counts as none."""
    for name, value in properties.headers:
        if name == HOPS and isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 4:
            return int(value)
    return 0
