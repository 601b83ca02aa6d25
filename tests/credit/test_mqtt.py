"""MQTT clients on the real connection layer: whatever they do, the Receive Maximum and its use add up, and nothing is
lost or doubled."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule

from gateway.address import Address
from gateway.model.message import Message
from gateway.model.policy import Octets
from tests.credit.house import LIVES, POLICIES, Entry, Holder, House, Wire
from transports.mqtt.codec import Decoder, TopicNames
from transports.mqtt.connection import MqttConnection, Shared
from transports.mqtt.encoding import encode
from transports.mqtt.outbound import OCTETS_AHEAD
from transports.mqtt.packets import (
    V5,
    V311,
    Ack,
    ConnAck,
    Connect,
    Disconnect,
    PingResp,
    Property,
    Publish,
    Reason,
    Request,
    Subscribe,
    Type,
    Unsubscribe,
)
from transports.mqtt.sessions import Sessions
from transports.mqtt.settings import MqttSettings

SHARE, SHARED = "$share/s/s/#", "mqtt.$share/s/s/#"
RETAINED = "r/+"
SMALL = 20_000
"""The Maximum Packet Size of client `a`; what is larger is given up when its turn comes."""
VERSIONS = {"a": V5, "b": V311, "c": V5}


class Subscribed:
    """One consumer, as its client knows it."""

    def __init__(self, filter: str) -> None:
        self.filter = filter

    def __repr__(self) -> str:
        return self.filter


class Client:
    """A client id, connected or not. members: filters of its session that are no binding. active: those that are
    consumed now. unacked: by packet identifier."""

    def __init__(self, house: Mqtt, name: str) -> None:
        self.house = house
        self.name = name
        self.version = VERSIONS.get(name, V5)
        self.members: set[str] = set()
        self.bound: set[str] = set()
        self.active: dict[str, Subscribed] = {}
        self.every: set[object] = set()
        self.unacked: dict[int, tuple[Entry | None, Subscribed | None]] = {}
        self.window = 1
        self.connection: MqttConnection | None = None
        self.wire: Wire
        self.asked = 0

    def start(self, window: int, clean: bool) -> None:
        self.connection = connection = MqttConnection(self.house.shared)
        self.window = window if self.version == V5 else self.house.shared.settings.max_in_flight
        decoder = Decoder(1 << 28, TopicNames(), self.version)

        def read(data: bytearray) -> int:
            packets, used = decoder.decode(data)
            for packet in packets:
                if self.connection is connection:
                    self.packet(packet)
            return used

        self.wire = Wire(connection, read)
        connection.connection_made(self.wire)
        properties: Any = {}
        if self.version == V5:
            properties = {Property.SESSION_EXPIRY_INTERVAL: 1000, Property.RECEIVE_MAXIMUM: window}
            if self.name == "a":
                properties[Property.MAXIMUM_PACKET_SIZE] = SMALL
        self.active = {}
        for filter in ("", *self.members):
            self.join(filter)
        self.send(Connect(self.name, self.version, clean, properties=properties))
        if clean and self.version == V311:
            # Such a session ends with its connection, so another one is made that lasts.
            self.send(Disconnect())

    def join(self, filter: str) -> None:
        if filter not in self.active:
            self.active[filter] = one = Subscribed(filter)
            self.every.add(one)

    def send(self, *packets: Any) -> None:
        assert self.connection is not None
        self.connection.data_received(b"".join(encode(packet, self.version) for packet in packets))

    def packet(self, packet: Any) -> None:
        if not isinstance(packet, Publish):
            assert not isinstance(packet, Disconnect), packet
            assert not isinstance(packet, ConnAck) or packet.reason == Reason.SUCCESS
            assert not isinstance(packet, PingResp)
            return
        assert packet.qos == 1
        assert packet.packet_id not in self.unacked, f"identifier {packet.packet_id} is in use"
        entry: Entry | None = None
        one: Subscribed | None = None
        if not packet.topic.startswith("r/"):
            filter = packet.topic if packet.topic.startswith("$") else SHARE if packet.topic.startswith("s/") else ""
            one = self.active[filter]
            entry = self.house.came(packet.payload, Holder(one, packet.packet_id))
        self.unacked[packet.packet_id] = (entry, one)
        assert len(self.unacked) <= self.window, f"{self.name} has {self.unacked}, above {self.window}"

    def gone(self) -> None:
        """Its connection is."""
        self.connection = None
        self.house.all_back(self.every)
        self.unacked.clear()
        self.active = {}


clients = st.sampled_from([*VERSIONS])
numbers = st.integers(0, 11)
yes = st.booleans()
windows = st.sampled_from([1, 2, 3, 100])
filters = st.sampled_from([*[f"$queue/{queue}" for queue in POLICIES], SHARE, "own", RETAINED])


class Mqtt(House):
    def __init__(self) -> None:
        self.clients: dict[str, Client] = {}
        self.old: list[Wire] = []
        """Sockets of connections that another has taken over, and that have not ended yet."""
        super().__init__()
        listener = MqttSettings(listen=Address.parse("127.0.0.1:0"), max_in_flight=4, max_buffered=Octets(1))
        self.sessions = Sessions(self.gateway)
        self.shared = Shared("it", listener, self.gateway, self.sessions)
        self.clients = {name: Client(self, name) for name in VERSIONS}

    def is_busy(self) -> bool:
        connections = [client.connection for client in self.clients.values()]
        return any(connection is not None and connection._flushing for connection in connections)

    def check_credit(self) -> None:
        for client in self.clients.values():
            if client.connection is None:
                continue
            outbound = client.connection._outbound
            assert outbound is not None, f"{client.name} is not let in"
            window = min(client.window, self.shared.settings.max_in_flight)
            left = window - len(client.unacked)
            assert outbound.pool.messages == left, f"{client.name}: {outbound.pool.messages} instead of {left}"
            if client.connection.writable:
                assert outbound.pool.octets == OCTETS_AHEAD
            assert {filter for filter in outbound.consumers if filter} == {one for one in client.active if one}
            own = [one for one in self.entries.values() if one.open and one.queue == f"mqtt.{client.name}"]
            in_flight = [one for one in own if one.holder is not None]
            assert self.core.get(f"mqtt.{client.name}").in_flight == len(in_flight)
            assert not client.connection.counters.protocol_errors

    async def start(self, name: str, window: int, clean: bool, lingers: bool = False) -> None:
        """Also while it is connected: then it takes over, and with `lingers` the old socket ends some time later."""
        client = self.clients[name]
        if lingers and client.connection is not None:
            client.wire.lingers = True
            self.old.append(client.wire)
        client.gone()
        if clean:
            self.end_session(client)
        client.start(window, clean)
        await self.settle_down_for(client, window, clean)

    async def settle_down_for(self, client: Client, window: int, clean: bool) -> None:
        if clean and client.version == V311:
            client.connection = None
            await self.settle_down()
            client.start(window, False)
        await self.settle_down()

    def end_session(self, client: Client) -> None:
        self.lose(f"mqtt.{client.name}")
        client.bound.clear()
        client.members.discard(SHARE)
        self.share_left()
        client.members.clear()

    def lose(self, queue: str) -> None:
        for entry in self.entries.values():
            if entry.queue == queue:
                entry.open, entry.holder = False, None

    def share_left(self) -> None:
        if not any(SHARE in client.members for client in self.clients.values()):
            self.lose(SHARED)

    # what may happen

    @initialize()
    def begin(self) -> None:
        for number in range(4):
            self.gateway.accept([Message(f"r/{number}", b"{}", qos=1, retain=True)])
        for name in VERSIONS:
            self.run(self.start(name, 3, False))
        for name in VERSIONS:
            for filter in ("own", "$queue/jobs", "$queue/lines"):
                self.subscribes(name, filter)
        for queue in POLICIES:
            self.publishes(queue, "a", 3, 0)
            self.publishes(queue, "b", 3, 0)

    @rule(queue=st.sampled_from([*POLICIES]), group=st.sampled_from("ab"), count=st.integers(1, 5))
    def publishes_some(self, queue: str, group: str, count: int) -> None:
        self.publishes(queue, group, count, 0)

    @rule(
        queue=st.sampled_from(["jobs", "lines"]),
        group=st.sampled_from("ab"),
        count=st.integers(1, 4),
        octets=st.sampled_from([10_000, 10_000]),
    )
    def publishes(self, queue: str, group: str, count: int, octets: int) -> None:
        self.run(self.publish(queue, group, count, octets))

    @rule(name=clients, count=st.integers(1, 5), large=yes)
    def publishes_to(self, name: str, count: int, large: bool) -> None:
        client = self.clients[name]
        if "own" in client.bound:
            self.run(self.send(f"own/{name}", f"mqtt.{name}", count, large and name == "a"))

    @rule(count=st.integers(1, 5))
    def publishes_to_the_share(self, count: int) -> None:
        if any(SHARE in client.members for client in self.clients.values()):
            self.run(self.send("s/1", SHARED, count, False))

    async def send(self, topic: str, queue: str, count: int, too_large: bool) -> None:
        for _ in range(count):
            number = len(self.entries) + 1
            body = {"number": number, "group": "", "rest": "x" * (2 * SMALL if too_large else 0)}
            if not too_large:
                self.entries[number] = Entry(number, queue, "")
            self.gateway.accept([Message(topic, json.dumps(body).encode(), qos=1)])
        await self.settle_down()

    @rule(name=clients, filter=filters)
    def subscribes(self, name: str, filter: str) -> None:
        client = self.clients[name]
        if client.connection is None:
            return
        asked = filter
        if filter == "own":
            asked = f"own/{name}"
            client.bound.add("own")
        elif filter != RETAINED:
            client.members.add(filter)
            client.join(filter)
        client.send(Subscribe(1, (Request(asked, 1),)))
        self.run(self.settle_down())

    @rule(name=clients, filter=filters)
    def unsubscribes(self, name: str, filter: str) -> None:
        client = self.clients[name]
        if client.connection is None or filter in ("own", RETAINED):
            return
        client.members.discard(filter)
        client.active.pop(filter, None)
        if filter == SHARE:
            self.share_left()
        client.send(Unsubscribe(2, (filter,)))
        self.run(self.settle_down())

    @rule(name=clients, which=st.lists(numbers, min_size=1, max_size=3), refused=st.sampled_from([False, False, True]))
    def acks(self, name: str, which: list[int], refused: bool) -> None:
        client = self.clients[name]
        packets: list[Ack] = []
        for number in which:
            if client.connection is None or not client.unacked:
                break
            packet_id = sorted(client.unacked)[number % len(client.unacked)]
            packets.append(self.settled(client, packet_id, refused and client.version == V5))
        if packets:
            client.send(*packets)
            self.run(self.settle_down())

    def settled(self, client: Client, packet_id: int, refused: bool) -> Ack:
        entry, one = client.unacked.pop(packet_id)
        if entry is not None and one is not None:
            retry = refused and one.filter.startswith("$queue/")
            (self.back if retry else self.done)(entry, Holder(one, packet_id))
        return Ack(Type.PUBACK, packet_id, Reason.UNSPECIFIED_ERROR if refused else Reason.SUCCESS)

    @rule(seconds=st.sampled_from([1.0, 4.0, 6.0, 11.0]))
    def passes(self, seconds: float) -> None:
        self.run(self.pass_time(seconds))

    @rule()
    def deletes(self) -> None:
        for client in self.clients.values():
            client.active.pop("$queue/brief", None)
        self.run(self.delete("brief"))

    @rule(in_flight=st.integers(1, 3))
    def reloads(self, in_flight: int) -> None:
        self.run(self.allow(in_flight))

    @rule(name=clients, stuck=yes)
    def reads(self, name: str, stuck: bool) -> None:
        client = self.clients[name]
        if client.connection is not None and stuck:
            client.wire.stuck = True
        elif client.connection is not None and client.wire.stuck:
            client.wire.release()
        self.run(self.settle_down())

    @rule(name=clients, vanishes=yes)
    def ends(self, name: str, vanishes: bool) -> None:
        client = self.clients[name]
        if client.connection is not None:
            if vanishes:
                client.wire.abort()
            else:
                client.send(Disconnect())
            client.gone()
            self.run(self.settle_down())

    @rule(name=clients, window=windows, clean=st.sampled_from([False, False, False, True]), lingers=yes)
    def starts(self, name: str, window: int, clean: bool, lingers: bool) -> None:
        self.run(self.start(name, window, clean, lingers))

    @rule(number=numbers)
    def an_old_socket_ends(self, number: int) -> None:
        if self.old:
            self.old.pop(number % len(self.old)).close()
            self.run(self.settle_down())

    # the end

    async def finish(self) -> None:
        for wire in self.old:
            wire.close()
        await self.settle_down()
        for name, client in self.clients.items():
            if client.connection is None:
                await self.start(name, 3, False)
            if client.wire.stuck:
                client.wire.release()
        self.clients["last"] = last = Client(self, "last")
        await self.start("last", 1, False)
        for queue in POLICIES:
            last.members.add(f"$queue/{queue}")
            last.join(f"$queue/{queue}")
            last.send(Subscribe(1, (Request(f"$queue/{queue}", 1),)))
        await self.settle_down()
        for _ in range(5 * len(self.entries) + 20):
            for client in self.clients.values():
                for packet_id in list(client.unacked):
                    client.send(self.settled(client, packet_id, False))
            await self.pass_time(1.0)
            if not any(entry.open for entry in self.entries.values()) and not any(
                client.unacked for client in self.clients.values()
            ):
                break
        for name, client in self.clients.items():
            assert client.connection is not None and client.connection._session is not None
            assert not client.connection._session.owed, f"retained messages never reach {name}"
            assert not client.connection._session.in_flight
            assert not self.core.get(f"mqtt.{name}").entries.count

    async def leave(self) -> None:
        for connection in list(self.shared.connections):
            connection.abort()
        await self.gateway.put()


TestMqttCredit = Mqtt.TestCase
TestMqttCredit.settings = LIVES
