"""Owns Retaining: the retained messages on their way to one client, those that come again included.

Its rule: what is owed to a session that lasts, and what was sent and not acknowledged, is in the store; on a new
connection it goes on where it was, in its place among the other resends.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from operator import attrgetter
from typing import TYPE_CHECKING

import msgspec

from gateway.slices import Errand, Slices, in_order, portions
from gateway.transport import StateChange
from transports.mqtt.encoding import EncodedPublish
from transports.mqtt.session import Held, Owed, Retained

if TYPE_CHECKING:
    from transports.mqtt.outbound import Outbound


STEPS = 256
"""So many of a search, or of sending, are done at once; the rest goes on in slices."""
_at = attrgetter("at")
_NO_PLACES: Mapping[int, int] = {}


class _Again(msgspec.Struct):
    """A retained message in flight that is to be sent again. place: among all that was in flight. reserved: its credit
    is taken already."""

    packet_id: int
    retained: Retained
    place: int
    reserved: bool


class Retaining:
    """All retained messages that go to one connected client, by its Outbound."""

    __slots__ = ("_again", "_going_on", "_places", "outbound")

    def __init__(self, outbound: Outbound) -> None:
        self.outbound = outbound
        self._again: list[_Again] = []
        self._going_on: Errand | None = None
        """What is owed is looked for, or is more than goes out at once: it goes on in its turn."""
        self._places: Mapping[int, int] = _NO_PLACES
        """Of packet identifiers that were in flight, if retained messages are among them."""

    @property
    def is_again(self) -> bool:
        """Whether some are to be sent again."""
        return bool(self._again)

    def resume(self) -> None:
        """What is to be sent again takes its credit before anything else can."""
        pool, session = self.outbound.pool, self.outbound.session
        for owed in session.owed.values():
            owed.ready = True  # whether or not the client has had its SUBACK
        flying = [(packet_id, held) for packet_id, held in session.in_flight.items() if not held.released]
        if not any(held.retained for _, held in flying):
            return
        self._places = {packet_id: place for place, (packet_id, _) in enumerate(flying)}
        room = pool.messages
        for place, (packet_id, held) in enumerate(flying):
            if held.retained is not None:
                reserved = place < room  # not if the client takes fewer at once than before
                pool.messages -= reserved
                self._again.append(_Again(packet_id, held.retained, place, reserved))

    def close(self) -> None:
        """The connection is gone."""
        self.outbound.pool.wakes.pop(self.read, None)
        if self._going_on is not None:
            self._going_on.give_up()

    def before(self, ident: int) -> None:
        """Sends what was sent before this delivery the last time [MQTT-4.6.0-5]; before a new one that is all."""
        packet_id = self.outbound.session.resend_of(ident)
        place = self._places[packet_id] if packet_id else math.inf
        batch = _Batch(self.outbound)
        while self._again and self._again[0].place < place and self._again[0].reserved:
            self._send_again(batch)
        batch.write()

    def owe(self, owed: Owed) -> None:
        """What matches a new subscription may go out, behind what others get."""
        owed.ready = True
        self.read()

    def read(self) -> None:
        """Sends as far as the credit goes; called again when there is more."""
        batch = _Batch(self.outbound)
        self._read_again(batch)
        if not self._again:
            self._read_owed(batch)
        batch.write()

    def _read_again(self, batch: _Batch) -> None:
        out = self.outbound
        while self._again and out.is_sending:
            first = self._again[0]
            if any(self._places.get(packet_id, -1) < first.place for packet_id in out.session.resends):
                return  # those come first, and then this goes on
            if not first.reserved and out.pool.messages <= 0:
                out.pool.wakes[self.read] = None
                return
            self._send_again(batch)

    def _read_owed(self, batch: _Batch) -> None:
        out = self.outbound
        pool, all_owed = out.pool, out.session.owed
        while all_owed and out.is_sending and self._going_on is None:
            owed = next(iter(all_owed.values()))
            if not owed.ready:
                return
            have_waited = owed.waiting is not None
            waiting = owed.waiting
            if waiting is None:
                waiting = owed.waiting = self._find(owed, batch)
            if waiting is None:
                return  # it goes on when all are found
            while waiting:
                if batch.steps <= 0:
                    self._going_on = Errand(self._go_on(), self.outbound.broke)
                    return
                batch.steps -= 1
                retained = waiting[-1]
                if have_waited and not self._is_current(retained):
                    waiting.pop()  # what has replaced it comes by itself, and must not come before it [MQTT-4.6.0-5]
                    continue
                if pool.octets <= 0 or (retained.qos and pool.messages <= 0):
                    pool.wakes[self.read] = None
                    return
                waiting.pop()
                owed.after = retained.at
                batch.moved = True
                self._send(retained, batch)
            del all_owed[owed.binding.filter]
            batch.moved = True

    def _is_current(self, retained: Retained) -> bool:
        return any(at == retained.at for at, _ in self.outbound.gateway.retained(retained.message.topic))

    def _find(self, owed: Owed, batch: _Batch) -> list[Retained] | None:
        """The next one last; None: the search takes longer, and `read` is called after it."""
        search = self._search(owed)
        found: list[Retained] = []
        while batch.steps > 0:
            batch.steps -= 1
            try:
                retained = next(search)
            except StopIteration:
                return sorted(found, key=_at, reverse=True)
            if retained is not None:
                found.append(retained)
        self._going_on = Errand(self._search_on(owed, search, found), self.outbound.broke)
        return None

    async def _go_on(self) -> None:
        await Slices().pause()
        self._going_on = None
        self.read()

    async def _search_on(self, owed: Owed, search: Iterator[Retained | None], found: list[Retained]) -> None:
        slices = Slices()
        for some in portions(search, STEPS):
            found += [retained for retained in some if retained is not None]
            await slices.pause()
        found = await in_order(found, slices, _at)
        found.reverse()
        owed.waiting = found
        self._going_on = None
        self.read()

    def _search(self, owed: Owed) -> Iterator[Retained | None]:
        binding, gateway = owed.binding, self.outbound.gateway
        now = gateway.now()
        for found in gateway.search_retained(binding.filter):
            if found is None:
                yield None
                continue
            at, message = found
            if at > owed.after and (binding.not_from is None or message.client_id != binding.not_from):
                yield Retained(message, binding.options, None if message.ttl is None else now + message.ttl, at)
            else:
                yield None

    def _send(self, retained: Retained, batch: _Batch) -> None:
        out = self.outbound
        if retained.expires is not None and retained.expires <= out.gateway.now():
            return
        encoded = self._encode(retained)
        if encoded is None:
            return
        packet_id = 0
        if retained.qos:
            packet_id = out.session.take(Held(None, 0, 0, retained.qos, retained), False)
            out.pool.messages -= 1
            batch.changes.append(out.session.sent_retained(packet_id, retained))
        batch.add(encoded, retained.qos, packet_id, False)

    def _send_again(self, batch: _Batch) -> None:
        """It may have expired: what has begun ends as it would have otherwise [MQTT-4.3.3-7]."""
        again = self._again.pop(0)
        if not again.reserved:
            self.outbound.pool.messages -= 1
        if again.packet_id not in self.outbound.session.in_flight:
            return  # acknowledged as what it got on an earlier connection
        encoded = self._encode(again.retained)
        if encoded is None:
            self.outbound.give_up(again.packet_id)
        else:
            batch.add(encoded, again.retained.qos, again.packet_id, True)

    def _encode(self, retained: Retained) -> EncodedPublish | None:
        """None if the client can't have it."""
        out = self.outbound
        message, options, expires, _ = retained
        left = -1 if expires is None else max(1, math.ceil(expires - out.gateway.now()))
        encoded = out.cache.encode(
            message, message.topic, out.version, retained.qos, True, options.subscription_ids, left
        )
        if encoded is not None and encoded.size <= out.max_packet_size:
            return encoded
        out.counters.dropped["packet-too-large" if encoded is not None else "no-mqtt-message"] += 1
        return None


class _Batch:
    """What is sent at once. moved: the session is owed less than before."""

    def __init__(self, outbound: Outbound) -> None:
        self._outbound = outbound
        self._parts: list[bytes] = []
        self._assured: list[bytes] = []
        self.changes: list[StateChange] = []
        self.moved = False
        self.steps = STEPS
        """So many may be done of what goes on in slices then."""

    def add(self, encoded: EncodedPublish, qos: int, packet_id: int, dup: bool) -> None:
        (self._assured if qos == 2 else self._parts).extend(encoded.parts(packet_id, dup))
        self._outbound.pool.octets -= encoded.size
        self._outbound.counters.messages_out += 1

    def write(self) -> None:
        """How far it has come is in one commit with the identifiers of what was sent."""
        out = self._outbound
        if out.lasts and self.moved:
            out.gateway.keep([*self.changes, out.session.owed_change()])
        if self._parts:
            out.write(self._parts)
        if self._assured:
            out.write_behind(self._assured)
