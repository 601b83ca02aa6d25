"""Owns RawClient: an MQTT client that sends and sees single packets, in any order and as wrong as a test wants.

Its rule: it answers nothing by itself; what was not expected stays visible.
"""

from __future__ import annotations

import itertools
import socket
from typing import Any, TypeVar

from tests.harness.process import Address
from transports.mqtt.codec import Decoder, TopicNames
from transports.mqtt.encoding import encode
from transports.mqtt.packets import (
    NO_PROPERTIES5,
    V5,
    Ack,
    ConnAck,
    Connect,
    Disconnect,
    Packet,
    PingReq,
    PingResp,
    Properties5,
    Publish,
    Request,
    SubAck,
    Subscribe,
    Type,
    Unsubscribe,
    Will,
)

SECONDS = 8.0
P = TypeVar("P")
_names = itertools.count()


def unique(name: str = "client") -> str:
    """A name that no other test of this run uses."""
    return f"{name}{next(_names)}"


class RawClient:
    def __init__(self, address: Address, version: int = V5) -> None:
        self.version = version
        self.socket = socket.create_connection((address.host, address.port), timeout=SECONDS)
        self._decoder = Decoder(1 << 28, TopicNames(), version)
        self._buffer = bytearray()
        self._packets: list[Any] = []

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *error: object) -> None:
        self.cut()

    def send(self, *packets: Packet | bytes) -> None:
        """All in one write."""
        self.socket.sendall(b"".join(p if isinstance(p, bytes) else encode(p, self.version) for p in packets))

    def receive(self) -> Any:
        """The next packet; None at the end of the connection."""
        while not self._packets:
            try:
                data = self.socket.recv(1 << 16)
            except ConnectionResetError:
                return None
            if not data:
                return None
            self._buffer += data
            found, used = self._decoder.decode(self._buffer)
            del self._buffer[:used]
            self._packets += found
        return self._packets.pop(0)

    def expect(self, kind: type[P]) -> P:
        packet = self.receive()
        assert isinstance(packet, kind), f"{packet} came instead of {kind.__name__}"
        return packet

    def nothing_comes(self) -> None:
        """All that was sent is handled and nothing but the answer to a ping comes."""
        self.send(PingReq())
        self.expect(PingResp)

    def connect(
        self,
        client_id: str = "",
        clean: bool = True,
        properties: Properties5 = NO_PROPERTIES5,
        keep_alive: int = 0,
        will: Will | None = None,
    ) -> ConnAck:
        self.send(Connect(client_id, self.version, clean, keep_alive, will, None, None, properties))
        return self.expect(ConnAck)

    def subscribe(self, *requests: Request | str, properties: Properties5 = NO_PROPERTIES5) -> tuple[int, ...]:
        """A text is a filter at QoS 1. Returns the reasons of SUBACK; deliveries that came before it are kept."""
        asked = tuple(Request(one, 1) if isinstance(one, str) else one for one in requests)
        self.send(Subscribe(7, asked, properties))
        early = []
        while not isinstance(packet := self.receive(), SubAck):
            assert packet is not None
            early.append(packet)
        self._packets = early + self._packets
        return packet.reasons

    def unsubscribe(self, *filters: str) -> Any:
        self.send(Unsubscribe(8, filters))
        return self.receive()

    def publish(
        self,
        topic: str,
        payload: bytes = b"",
        packet_id: int = 1,
        properties: Properties5 = NO_PROPERTIES5,
        retain: bool = False,
    ) -> Ack:
        """At QoS 1; returns the PUBACK."""
        self.send(Publish(topic, payload, 1, retain, False, packet_id, properties))
        ack = self.expect(Ack)
        assert (ack.type, ack.packet_id) == (Type.PUBACK, packet_id)
        return ack

    def take(self) -> tuple[str, bytes]:
        """The next delivery, acknowledged if it asks for it."""
        publish = self.expect(Publish)
        if publish.qos:
            self.ack(publish)
        return publish.topic, publish.payload

    def ack(self, publish: Publish, reason: int = 0) -> None:
        """With all that its QoS asks for."""
        if publish.qos == 1:
            self.send(Ack(Type.PUBACK, publish.packet_id, reason))
            return
        self.send(Ack(Type.PUBREC, publish.packet_id, reason), Ack(Type.PUBCOMP, publish.packet_id))
        assert self.expect(Ack) == Ack(Type.PUBREL, publish.packet_id)

    def disconnect(self, reason: int = 0, properties: Properties5 = NO_PROPERTIES5) -> None:
        self.send(Disconnect(reason, properties))
        assert self.receive() is None
        self.socket.close()

    def cut(self) -> None:
        """The connection breaks: no DISCONNECT."""
        self.socket.close()
