"""Owns Source: what comes over one connection of a link, from its PUBLISH to its PUBACK.

Its rule: messages are accepted and acknowledged in the order in which they came, and none is acknowledged before the
commit that holds it. A message that is refused stays unacknowledged and is offered again; all that came after it waits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from gateway.logs import log
from gateway.model.message import QUEUE_PREFIX, Message
from gateway.model.topics import check_name
from gateway.transport import Gateway
from gateway.transport.source import Arrival, Arrivals, hops
from transports.mqtt.link.remote import Unreadable
from transports.mqtt.link.settings import MqttClientSettings
from transports.mqtt.packets import Property, Publish
from transports.mqtt.properties import from_wire

MAX_HELD_OCTETS = 64 << 20
"""Of what came and is not acknowledged yet. `receive_maximum` would be enough if every remote kept to it: MQTT 3.1.1
knows none, and Mosquitto with `max_inflight_messages 0` disregards it."""
WEIGHT = 1 << 10
"""Octets that a held message counts besides its body, about what paho's objects for it take."""


class _Tag(NamedTuple):
    """octets: what it counts while it is held."""

    packet_id: int
    qos: int
    octets: int


class Source:
    """Of one connection. `report` is told why messages are held, and "" when they are not."""

    def __init__(
        self, link: str, settings: MqttClientSettings, gateway: Gateway, report: Callable[[str], None]
    ) -> None:
        self._link = link
        self._counters = gateway.counters(link)
        self._max_hops = settings.max_hops
        self._arrivals: Arrivals[_Tag] = Arrivals(gateway, self._counters, settings.unroutable, report, drops_qos0=True)
        self._octets = 0
        self._overrun = False
        """More came than may be held. What came after that was forgotten, and comes again over the next connection."""
        self._told: set[str] = set()

    def receive(self, packet: Publish | Unreadable) -> None:
        """A PUBLISH."""
        if self._octets > MAX_HELD_OCTETS or self._overrun:
            if packet.qos == 0:
                self._counters.dropped["qos0-refused"] += 1
            else:
                # Not acknowledged, and nothing behind it is taken, so the remote sends all of it again, in its order.
                self._overrun = True
                self._arrivals.end()
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
        self._octets += octets
        self._arrivals.put(Arrival(_Tag(packet.packet_id, packet.qos, octets), message, again=packet.qos > 0))

    async def run(self, acknowledge: Callable[[int, int], None]) -> None:
        """Until cancelled; what is on its way to the disk then is still acknowledged, within `drain_timeout`. Returns
        when more came than may be held, as soon as all that was held is acknowledged: the next connection brings the
        rest. `acknowledge` gets packet identifier and QoS."""

        async def settle(arrivals: Sequence[Arrival[_Tag]]) -> None:
            for (packet_id, qos, octets), _, _ in arrivals:
                self._octets -= octets
                if qos:
                    acknowledge(packet_id, qos)

        await self._arrivals.run(settle)

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
