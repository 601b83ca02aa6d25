"""Owns Remote: one connection to a remote broker, made with aiomqtt, and what the remote allows on it.

Its rule: nothing is acknowledged by itself, and every answer to a PUBLISH comes with its reason. A connection that is
lost is never used again: the next one is a new Remote.

What aiomqtt 2 and paho 2 lack is added here and nowhere else: acknowledging by hand, the reason of a PUBACK, the terms
of the CONNACK, a refusal in a PUBREC, which paho answers as if it were none, and reading a PUBLISH: paho ends the
connection over U+FEFF, which is allowed, and over whatever it can't read, and the remote would send it for ever.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import aiomqtt
import anyio
import msgspec
from paho.mqtt.client import MQTT_CLEAN_START_FIRST_ONLY, MQTT_ERR_SUCCESS
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties, VariableByteIntegers
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from gateway.logs import log
from transports.mqtt.codec import Decoder, TopicNames
from transports.mqtt.link.settings import SHARE_PREFIX, MqttClientSettings
from transports.mqtt.packets import Fault, Publish, Reason

MAX_WINDOW = 65_535
CLOSE_SECONDS = 2.0
"""How long a DISCONNECT may take to be written."""
_MAX_PACKET = 268_435_460
_MAX_LEVELS = 65_536
_REFUSED = 0x80
_SUSPICIOUS = {
    Reason.UNSPECIFIED_ERROR,
    Reason.MALFORMED_PACKET,
    Reason.PROTOCOL_ERROR,
    Reason.IMPLEMENTATION_SPECIFIC_ERROR,
    Reason.NOT_AUTHORIZED,
    Reason.TOPIC_NAME_INVALID,
    Reason.PACKET_TOO_LARGE,
    Reason.PAYLOAD_FORMAT_INVALID,
    Reason.RETAIN_NOT_SUPPORTED,
    Reason.QOS_NOT_SUPPORTED,
}
"""Reasons of a DISCONNECT that may be about a PUBLISH. A remote that is busy, shuts down or throttles says another; one
that is merely silent is not suspicious either. Of one that closes without a word nobody knows: it is."""


class LinkError(Exception):
    """The remote does not let us do what the link is for; the text says what."""


class LostError(Exception):
    """The connection ended before the remote answered. suspicious: it may have ended it over what we sent."""

    def __init__(self, suspicious: bool) -> None:
        super().__init__("the connection was lost before the remote answered")
        self.suspicious = suspicious


class Unreadable(NamedTuple):
    """A PUBLISH of which no more can be told than what an acknowledgement needs."""

    packet_id: int
    qos: int
    why: str


class Terms(msgspec.Struct, frozen=True):
    """What the CONNACK says; the defaults are those of MQTT 3.1.1, which says nothing."""

    session_present: bool = False
    receive_maximum: int = MAX_WINDOW
    max_packet_size: int = _MAX_PACKET
    maximum_qos: int = 2
    retain_available: bool = True


class Remote(aiomqtt.Client):
    """One connection. `receive` gets each PUBLISH as it comes; acknowledge it with `ack`, in the order in which they
    came [MQTT-4.6.0-2]."""

    def __init__(
        self,
        settings: MqttClientSettings,
        client_id: str,
        tls: ssl.SSLContext | None,
        receive: Callable[[Publish | Unreadable], None],
    ) -> None:
        place = settings.place
        self.v5 = settings.version == 5
        # Without subscriptions there is nothing to keep, and no identifier that the remote might remember.
        clean = not settings.subscribe
        username = settings.username if settings.username is not None else place.username
        super().__init__(
            place.host,
            place.port,
            username=username,
            password=settings.password if settings.password is not None else place.password,
            identifier=client_id,
            protocol=aiomqtt.ProtocolVersion.V5 if self.v5 else aiomqtt.ProtocolVersion.V311,
            clean_session=None if self.v5 else clean,
            clean_start=clean if self.v5 else MQTT_CLEAN_START_FIRST_ONLY,
            transport="websockets" if place.path else "tcp",
            timeout=float(settings.connect_timeout),
            keepalive=int(settings.keep_alive),
            properties=_connect_properties(settings) if self.v5 else None,
            tls_context=tls,
            websocket_path=place.path or None,
        )
        self.terms = Terms()
        self._opening = False
        self._end = ""
        """What the remote said as it ended the connection."""
        self._suspicious = False
        """It may have ended it over what we sent."""
        self._ended: asyncio.Future[str] = self._loop.create_future()
        self._receive = receive
        self._answers: dict[int, asyncio.Future[int]] = {}
        """By packet identifier."""
        self._client.connect_timeout = float(settings.connect_timeout)
        self._client.max_inflight_messages_set(MAX_WINDOW)  # the window is the sender's
        self._client.manual_ack_set(True)
        self._client._handle_publish = self._hear_publish  # type: ignore[method-assign]
        self._client._handle_pubrel = self._hear_pubrel  # type: ignore[method-assign]
        self._hear_pubrec()
        self._decoder = Decoder(_MAX_PACKET, TopicNames(_MAX_LEVELS), 5 if self.v5 else 4)
        self._disconnected.add_done_callback(self._lose)

    # its life

    async def open(self) -> None:
        """Raises aiomqtt.MqttError (and its MqttConnectError for a refusal), OSError and ValueError."""
        disconnected = self._disconnected
        self._opening = True
        try:
            await self.__aenter__()
            if disconnected.done():  # aiomqtt would forget it and wait for another end
                raise aiomqtt.MqttError("the remote closed the connection behind its CONNACK")
        except BaseException:
            self._client._sock_close()
            raise
        finally:
            self._opening = False

    async def close(self) -> None:
        """With a DISCONNECT, if the remote still takes it; also when cancelled."""
        with anyio.CancelScope(shield=True):
            try:
                await asyncio.wait_for(self.__aexit__(None, None, None), CLOSE_SECONDS)
            except (aiomqtt.MqttError, TimeoutError) as error:
                log.debug("no clean end of a link", remote=self._hostname, error=str(error))
            finally:
                self._client._sock_close()

    def end(self, why: str) -> None:
        """For `lost`: this connection is of no more use."""
        if not self._ended.done():
            self._ended.set_result(why)

    async def lost(self) -> str:
        """Waits until the connection is lost or `end` is called; returns why."""
        ends: list[asyncio.Future[Any]] = [self._disconnected, self._ended]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if not self._disconnected.done():
            return self._ended.result()
        return self._end or f"connection lost: {self._disconnected.exception() or 'closed'}"

    # subscriptions

    async def request(self, filters: Sequence[str], qos: int) -> None:
        """Subscribes. Raises LinkError if the remote refuses one of them."""
        asked: list[Any] = [(filter, self._options(filter, qos) if self.v5 else qos) for filter in filters]
        codes = await self.subscribe(asked)
        if len(codes) != len(filters):
            raise LinkError(f"the remote answered {len(codes)} of {len(filters)} subscriptions")
        for filter, code in zip(filters, codes, strict=True):
            value = _value(code)
            if value >= _REFUSED:
                raise LinkError(f"the remote refused to subscribe {filter}: {code}")
            if value < qos:
                log.warning("a subscription got less than it asked for", filter=filter, qos=value, asked=qos)

    @staticmethod
    def _options(filter: str, qos: int) -> SubscribeOptions:
        # Retained messages come when a subscription is new, and not again with each connection.
        is_shared = filter.startswith(SHARE_PREFIX)  # which may not be asked for without what we sent [MQTT-3.8.3-4]
        return SubscribeOptions(
            qos,
            noLocal=not is_shared,
            retainAsPublished=True,
            retainHandling=SubscribeOptions.RETAIN_SEND_IF_NEW_SUB,
        )

    # messages

    def ack(self, packet_id: int, qos: int) -> None:
        """PUBACK; PUBREC for QoS 2, which a session may have that another client began, and which comes at least once
        here. One that finds no connection is forgotten: the remote sends the message again."""
        if qos == 1:
            self._client.ack(packet_id, 1)
        else:
            self._client._send_pubrec(packet_id)

    def send(
        self, topic: str, body: bytes, qos: int, retain: bool, properties: Properties | None
    ) -> asyncio.Future[int]:
        """PUBLISH. The Future has the reason code of PUBACK, PUBCOMP, or a PUBREC that refuses; for QoS 0 it is 0 once
        the bytes are handed to the system. It raises LostError."""
        answer: asyncio.Future[int] = self._loop.create_future()
        if not self._disconnected.done():
            info = self._client.publish(topic, body, qos, retain, properties)
            if info.rc == MQTT_ERR_SUCCESS:
                self._answers[info.mid] = answer
                return answer
        _fail(answer, suspicious=False)  # it never saw the remote
        return answer

    def _lose(self, disconnected: asyncio.Future[None]) -> None:
        if not disconnected.cancelled():
            disconnected.exception()  # seen, also if nobody waits for the loss
        answers, self._answers = list(self._answers.values()), {}
        for answer in answers:
            if not answer.done():
                _fail(answer, self._suspicious)
        # aiomqtt would wait for these until their time is up.
        for pending in list(self._pending_subscribes.values()):
            if not pending.done():
                pending.set_exception(aiomqtt.MqttError(self._end or "the connection was lost"))
        for answered in list(self._pending_unsubscribes.values()):
            answered.set()  # the SUBSCRIBE that follows finds no connection

    # what paho calls, on the loop's thread

    def _on_connect(
        self, client: Any, userdata: Any, flags: Any, reason_code: ReasonCode, properties: Properties | None = None
    ) -> None:
        self.terms = Terms(
            flags.session_present,
            getattr(properties, "ReceiveMaximum", Terms().receive_maximum),
            getattr(properties, "MaximumPacketSize", Terms().max_packet_size),
            getattr(properties, "MaximumQoS", Terms().maximum_qos),
            bool(getattr(properties, "RetainAvailable", 1)),
        )
        super()._on_connect(client, userdata, flags, reason_code, properties)

    def _on_disconnect(
        self, client: Any, userdata: Any, flags: Any, reason_code: ReasonCode, properties: Properties | None = None
    ) -> None:
        if self._opening and not self._connected.done():
            # aiomqtt would wait for the CONNACK until its time is up.
            self._connected.set_exception(aiomqtt.MqttError("the remote closed the connection instead of CONNACK"))
            return
        if self._disconnected.done() or self._end:
            return  # paho tells some ends twice
        if flags.is_disconnect_packet_from_server:
            self._end = f"the remote ended the connection: {reason_code}"
            self._suspicious = _value(reason_code) in _SUSPICIOUS
        elif reason_code == Reason.KEEP_ALIVE_TIMEOUT:
            self._end = "the remote was silent for too long"
        else:
            self._end = "the connection was lost"
            self._suspicious = _value(reason_code) >= _REFUSED
        super()._on_disconnect(client, userdata, flags, reason_code, properties)

    def _hear_publish(self) -> MQTTErrorCode:
        first, rest = self._client._in_packet["command"], bytes(self._client._in_packet["packet"])
        frame = bytearray((first,)) + VariableByteIntegers.encode(len(rest)) + rest
        (found,), _ = self._decoder.decode(frame)
        if isinstance(found, Publish):
            self._receive(found)
            return MQTT_ERR_SUCCESS
        assert isinstance(found, Fault)
        qos, place = first >> 1 & 3, 2 + int.from_bytes(rest[:2], "big")
        packet_id = int.from_bytes(rest[place : place + 2], "big") if qos else 0
        if qos == 3 or (qos and not packet_id):
            raise LinkError(f"a PUBLISH that can't even be acknowledged: {found.why}")
        self._receive(Unreadable(packet_id, qos, found.why))
        return MQTT_ERR_SUCCESS

    def _hear_pubrel(self) -> MQTTErrorCode:
        return self._client._send_pubcomp(int.from_bytes(self._client._in_packet["packet"][:2], "big"))

    def _on_publish(
        self, client: Any, userdata: Any, mid: int, reason_code: ReasonCode, properties: Properties
    ) -> None:
        answer = self._answers.pop(mid, None)
        if answer is not None and not answer.done():
            answer.set_result(_value(reason_code))

    def _hear_pubrec(self) -> None:
        """A PUBREC with a reason of 0x80 or above ends the flow: the message was not taken [MQTT-4.3.3]. paho drops the
        reason and sends a PUBREL, whose PUBCOMP would make it look delivered."""
        client = self._client
        handle = client._handle_pubrec

        def hear() -> Any:
            packet = bytes(client._in_packet["packet"])
            if len(packet) < 3 or packet[2] < _REFUSED:
                return handle()
            packet_id = int.from_bytes(packet[:2], "big")
            reason = ReasonCode(PacketTypes.PUBREC, identifier=packet[2])
            with client._out_message_mutex:
                if packet_id in client._out_messages:
                    return client._do_on_publish(packet_id, reason, Properties(PacketTypes.PUBREC))
            return MQTT_ERR_SUCCESS

        client._handle_pubrec = hear  # type: ignore[method-assign]


def _fail(answer: asyncio.Future[int], suspicious: bool) -> None:
    answer.set_exception(LostError(suspicious))
    answer.exception()  # whoever waited may have been cancelled; asyncio would report it as overlooked


def _connect_properties(settings: MqttClientSettings) -> Properties:
    properties = Properties(PacketTypes.CONNECT)
    properties.SessionExpiryInterval = int(settings.session_expiry) if settings.subscribe else 0
    properties.ReceiveMaximum = settings.receive_maximum
    properties.MaximumPacketSize = int(settings.max_packet_size)
    return properties


def _value(code: Any) -> int:
    """A reason code as a number; paho gives both kinds."""
    return int(code.value) if isinstance(code, ReasonCode) else int(code)
