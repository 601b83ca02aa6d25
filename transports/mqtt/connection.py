"""Owns MqttConnection: one client's socket, what its packets do, and what it is answered.

Its rule: an answer to a PUBLISH is made from its Outcome alone, and answers go out in the order of what they answer.
"""

from __future__ import annotations

import math
import secrets
from asyncio import BaseTransport, Future
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from gateway.errors import LoginBusyError
from gateway.logs import log
from gateway.model.names import Actor
from gateway.net.connection_limits import Crowd
from gateway.net.tcp import TURN_PACKETS, TcpConnection
from gateway.transport import Gateway, Options, StateChange, TransportCounters, User
from transports.mqtt.codec import Decoder, TopicNames
from transports.mqtt.encoding import PINGRESP, encode
from transports.mqtt.inbound import Terms, capabilities, negotiate
from transports.mqtt.outbound import Outbound
from transports.mqtt.packets import (
    V5,
    V311,
    Ack,
    Auth,
    ConnAck,
    Connect,
    Disconnect,
    Fault,
    Packet,
    PingReq,
    Properties5,
    Property,
    ProtocolError,
    Publish,
    Reason,
    SubAck,
    Subscribe,
    Type,
    UnsubAck,
    Unsubscribe,
)
from transports.mqtt.proof import Proof, ProofError
from transports.mqtt.publish_cache import PublishCache
from transports.mqtt.publishing import Publishing
from transports.mqtt.session import NEVER, CarriedWill, Session
from transports.mqtt.sessions import NameTakenError, Sessions, SessionsFullError, StoreRefusesError
from transports.mqtt.settings import MqttSettings
from transports.mqtt.subscriptions import Granted, Subscriptions

MAX_UNANSWERED = 64
"""SUBSCRIBEs and UNSUBSCRIBEs that wait for their commit; with more the connection is not read."""


class Shared:
    """What all connections of one listener have in common."""

    def __init__(self, name: str, settings: MqttSettings, gateway: Gateway, sessions: Sessions) -> None:
        self.name = name
        self.settings = settings
        self.gateway = gateway
        self.sessions = sessions
        self.counters: TransportCounters = gateway.counters(name)
        self.crowd = Crowd(settings.max_connections, settings.max_unfinished, self.counters)
        self.topics = TopicNames(settings.max_topic_levels)
        self.cache = PublishCache()
        self.connections: set[MqttConnection] = set()
        self.gone: Callable[[], None] = lambda: None
        """Called when a connection has left `connections`."""


class MqttConnection(TcpConnection):
    """One client from its first byte to its last."""

    gateway: Gateway

    __slots__ = (
        "_authenticating",
        "_connect",
        "_draining",
        "_heard",
        "_leave",
        "_let_in",
        "_outbound",
        "_patience",
        "_proof",
        "_quiet",
        "_session",
        "_subscriptions",
        "_terms",
        "_told",
        "_unanswered",
        "_user",
        "_will",
        "actor",
        "client_id",
        "decoder",
        "publishing",
        "shared",
        "version",
    )

    def __init__(self, shared: Shared) -> None:
        super().__init__(shared.gateway, shared.counters, shared.crowd)
        self.shared = shared
        self.decoder = Decoder(shared.settings.max_packet_size, shared.topics, max_packets=TURN_PACKETS)
        self.client_id = ""
        self.actor = Actor()
        """As whom it acts; the user is known once it is let in."""
        self.version = 0
        self._connect: Connect | None = None
        self._terms: Terms | None = None
        self._session: Session | None = None
        self._outbound: Outbound | None = None
        self._subscriptions: Subscriptions | None = None
        self._will: CarriedWill | None = None
        self._let_in = False
        """CONNACK has said so."""
        self._heard = False
        self._quiet = 0.0
        """Seconds without a byte from the client, in which it could have sent one."""
        self._patience = float(shared.settings.connect_timeout)
        """How long `_quiet` may get, 0 for no limit."""
        self.publishing = Publishing(self)
        self._unanswered = 0
        self._draining = False
        self._authenticating: Future[User | None] | None = None
        self._proof: Proof | None = None
        """Of a client that asked for enhanced authentication."""
        self._user: User | None = None
        """Who the client is, once that is known."""
        self._leave: Callable[[], None] | None = None
        """Called when the login is over."""
        self._told: Properties5 = {}
        """What CONNACK says besides."""

    def connection_made(self, transport: BaseTransport) -> None:
        self.shared.connections.add(self)
        super().connection_made(transport)

    # what comes in

    def received(self, buffer: bytearray) -> int:
        try:
            packets, used = self.decoder.decode(buffer)
            if self._session is not None:
                self._heard = True
            if packets:
                self.more = self.decoder.has_more
                self._handle_packets(packets)
        except Exception as error:
            self._broke(error)
            return len(buffer)
        return used

    def _broke(self, error: Exception) -> None:
        """The border: a fault of ours ends this connection and no other."""
        log.fault("MQTT connection failed", error, transport=self.shared.name, peer=self.peer)
        self.counters.protocol_errors["internal"] += 1
        self.abort()

    def _handle_packets(self, packets: Sequence[Packet | Fault]) -> None:
        if self._outbound is None:
            self._handle_early(packets)
            return
        publishes: list[Publish] = []
        acks: list[Ack] = []
        for packet in packets:
            kind = type(packet)
            if kind is Publish:
                publishes.append(packet)  # type: ignore[arg-type]
            elif kind is Ack and packet.type is Type.PUBACK:  # type: ignore[union-attr]
                acks.append(packet)  # type: ignore[arg-type]
            else:
                if acks or publishes:
                    self._take(acks, publishes)
                    acks, publishes = [], []
                if self.closing:
                    return
                try:
                    _HANDLERS.get(kind, MqttConnection._on_other)(self, packet)
                except ProtocolError as error:
                    self.fail(error.reason, error.why)
                if self.closing:
                    return
        self._take(acks, publishes)

    def _handle_early(self, packets: Sequence[Packet | Fault]) -> None:
        """Before it is known who sends them [MQTT-3.1.2-30]."""
        for packet in packets:
            try:
                if self._session is not None or type(packet) not in _EARLY:
                    raise ProtocolError(Reason.PROTOCOL_ERROR, f"{type(packet).__name__} before CONNACK")
                _HANDLERS[type(packet)](self, packet)
            except ProtocolError as error:
                self._count_fault(error.reason, error.why)
                self.send(encode(ConnAck(error.reason), self.version))
                self._end(lost=False)
            if self.closing:
                return

    def _take(self, acks: list[Ack], publishes: list[Publish]) -> None:
        """PUBACKs first: they are durable with the next commit, which is that of the messages (ruling 13)."""
        if acks and self._outbound is not None:
            try:
                self._outbound.acknowledge(acks)
            except ProtocolError as error:
                self.fail(error.reason, error.why)
            if self._draining:
                self._end_if_drained()
        if publishes and not self.closing:
            if self._draining:  # the client has no PUBACK of them and sends them again
                self.counters.dropped["qos0-stopping"] += sum(not publish.qos for publish in publishes)
            else:
                self.publishing.take(publishes)

    # what publishing asks

    def answered(self, data: bytes) -> None:
        """PUBACKs, perhaps none; something that was waited for is over."""
        if self.closing:
            return
        if data:
            self.send(data)
        if self._draining:
            self._end_if_drained()

    def _deliver(self, parts: list[bytes]) -> None:
        """PUBLISHes for the client. If it is not read because the daemon's buffers are full, its PUBACKs of these
        must get through (ruling 22)."""
        self.send_all(parts)
        if self.has_unsettled:
            self.resume("pressure")

    @property
    def has_unsettled(self) -> bool:
        """Whether PUBACKs of the client are due; then it must be read."""
        return self._session is not None and bool(self._session.in_flight)

    @property
    def wants_reasons(self) -> bool:
        """An MQTT 5 client that has not said otherwise."""
        asked = self._connect.properties if self._connect is not None else {}
        return self.version == V5 and bool(asked.get(Property.REQUEST_PROBLEM_INFORMATION, 1))

    @property
    def max_packet_size(self) -> int:
        """That the client takes."""
        return self._terms.max_packet_size if self._terms is not None else 0

    def refuse(self, why: str) -> None:
        """3.1.1 has no negative PUBACK: the client learns by the end of its connection (ruling 22)."""
        if not self.closing:
            self._say_closed(why)
            self._disconnect(Reason.QUOTA_EXCEEDED, {})
            self._end(lost=False)

    def _reply(self, packet: Packet) -> None:
        """An answer that can't be shortened: a client that does not take it can't go on [MQTT-3.1.2-24]."""
        data = encode(packet, self.version)
        if len(data) <= self.max_packet_size:
            self.send(data)
            return
        self.counters.refusals["packet-too-large"] += 1
        self._say_closed(f"the client does not take a {type(packet).__name__} of {len(data)} bytes")
        self._end(lost=False)

    # connecting

    def _on_connect(self, connect: Connect) -> None:
        self._connect = connect
        self.version = connect.version
        shared = self.shared
        try:
            terms = negotiate(connect, shared.settings, shared.name, lambda: f"auto-{secrets.token_hex(10)}")
        except ProtocolError as error:
            if self.version == V5:
                raise
            self._count_fault(error.reason, error.why)  # [MQTT-3.1.4-1 of 3.1.1]: without CONNACK
            self._end(lost=False)
            return
        if terms is Reason.TOPIC_NAME_INVALID and self.version == V311:  # [MQTT-3.1.4-1 of 3.1.1]
            self._count_fault(terms, "the topic of the will is no topic name")
            self._end(lost=False)
            return
        if isinstance(terms, Reason):
            self._turn_away(terms)
            return
        self._terms = terms
        self.client_id = terms.client_id
        if Property.AUTHENTICATION_METHOD in connect.properties:  # it goes on by AUTH
            proof = self._proof = Proof(self.gateway, connect.properties[Property.AUTHENTICATION_METHOD])
            self.pause("connect")
            self._prove(proof, lambda: proof.begin(connect.properties))
            self.resume("connect")  # what came behind it is handled now
            return
        if shared.settings.allow_anonymous and connect.username is None:
            self._user = User("")
            self._open(terms)
            return
        check = self.gateway.authenticate(connect.username, connect.password, self.peer)
        if check.done():
            self._authenticated(check)
            return
        self.postpone("connect")  # what follows waits until it is known who sends it
        self._authenticating = check
        check.add_done_callback(self._authenticated)

    def _authenticated(self, future: Future[User | None]) -> None:
        self._authenticating = None
        if self.closing or future.cancelled() or self._terms is None:
            return
        try:
            self._user = future.result()
            if self._user is None:
                self._turn_away(Reason.BAD_USER_NAME_OR_PASSWORD)
            else:
                self._open(self._terms)
        except LoginBusyError as error:
            self._turn_away(Reason.SERVER_BUSY, str(error))
        except Exception as error:
            self._broke(error)

    def _put_out(self, why: str) -> None:
        """A reload has taken away what its login rests on."""
        if self.closing:
            return
        self.counters.refusals["login-revoked"] += 1
        self._say_closed(why)
        if not self._let_in:
            self.send(encode(ConnAck(Reason.NOT_AUTHORIZED), self.version))
        self._disconnect(Reason.NOT_AUTHORIZED, {Property.REASON_STRING: why})
        self._end(lost=False)

    # enhanced authentication [MQTT-4.12]

    def _on_auth(self, packet: Auth) -> None:
        proof = self._proof
        if proof is None:  # [MQTT-4.12.0-7]
            raise ProtocolError(Reason.PROTOCOL_ERROR, "AUTH by another method than CONNECT named")
        self._prove(proof, lambda: proof.take(packet))

    def _prove(self, proof: Proof, step: Callable[[], Auth]) -> None:
        try:
            said = step()
        except ProofError as error:
            self._proof_failed(error.reason, str(error))
            return
        if said.reason == Reason.SUCCESS:
            self._user = proof.user
        if said.reason != Reason.SUCCESS or self._session is not None:
            if said.reason == Reason.SUCCESS:
                self._enter()
            self._reply(said)
            return
        assert self._terms is not None
        self._told = said.properties
        self._open(self._terms)

    def _proof_failed(self, reason: Reason, why: str) -> None:
        if self._session is not None:
            self.counters.refusals[reason.label] += 1
            self._say_closed(why, reason=reason.label)
            self._disconnect(reason, {})
            self._end(lost=True)
        else:
            self._turn_away(reason, why)

    def _enter(self) -> None:
        """The login lasts until the connection ends, or a reload ends it."""
        assert self._user is not None
        if self._leave is not None:
            self._leave()
        self._leave = self.gateway.let_in(self._user, self._put_out)

    def _open(self, terms: Terms) -> None:
        assert self._connect is not None and self._user is not None
        shared = self.shared
        self.actor.user = self._user.name
        will = terms.carried_will
        if will is not None and self.actor.forges(will.message.properties.user_id):
            self._turn_away(Reason.NOT_AUTHORIZED)
            return
        self.pause("connect")  # what follows waits until it is open
        if not shared.crowd.admit(self, shared.sessions.client_of(terms.client_id)):
            self._turn_away(Reason.SERVER_BUSY, "all places are taken (max_connections)")
            return
        self._enter()
        try:
            session, present = shared.sessions.open(
                terms.client_id, self._connect.clean_start, terms.expiry, self, shared.settings
            )
        except StoreRefusesError as error:
            self._turn_away(Reason.SERVER_UNAVAILABLE, str(error))
            return
        except SessionsFullError as error:
            self._turn_away(Reason.QUOTA_EXCEEDED, str(error))
            return
        except NameTakenError as error:
            self._turn_away(Reason.CLIENT_IDENTIFIER_NOT_VALID, str(error))
            return
        self._session = session
        session.carried = terms.carried_will
        if session.expiry <= 0 and not present:
            self._opened(terms, present)
            return
        if self.gateway.refusing:  # it is in the store; a consumer that comes to settle must not wait
            shared.sessions.keep(session)
            self._opened(terms, present)
            return
        barrier = self.gateway.put([shared.sessions.change(session)])
        barrier.add_done_callback(lambda done: self._kept(session, terms, present, done))

    def _kept(self, session: Session, terms: Terms, present: bool, barrier: Future[bool]) -> None:
        if barrier.cancelled():
            return
        try:
            made = barrier.result()
            if not made and present:
                self.shared.sessions.keep(session)
            elif not made:
                self.shared.sessions.withdraw(session, self)
            if self.closing:
                return
            if made or present:
                self._opened(terms, present)
            else:
                self._turn_away(Reason.SERVER_UNAVAILABLE)
        except Exception as error:
            self._broke(error)

    def _opened(self, terms: Terms, present: bool) -> None:
        assert self._connect is not None and self._session is not None
        shared, settings = self.shared, self.shared.settings
        told = capabilities(self._connect, terms, settings) | self._told if self.version == V5 else {}
        self._reply(ConnAck(Reason.SUCCESS, present, told))
        if self.closing:
            return
        log.debug(
            "client connected", transport=shared.name, peer=self.peer, client_id=self.client_id, session_present=present
        )
        self._let_in = True
        self.publishing.session = self._session
        self._will = terms.carried_will  # not before: a client that was never let in leaves none
        self._patience = 1.5 * terms.keep_alive  # [MQTT-3.1.2-22]
        self._quiet = 0.0
        outbound = self._outbound = Outbound(
            self.gateway,
            self._session,
            self.version,
            terms.window,
            terms.max_packet_size,
            settings.max_buffered,
            shared.cache,
            self.counters,
            self._deliver,
            self.buffered,
            self._session_gone,
            self._broke,
            terms.topic_aliases,
            self.actor,
        )
        self._subscriptions = Subscriptions(
            self.gateway, shared.sessions, self._session, outbound, settings, self.version, self._connect.bridge
        )
        outbound.resume()
        self._subscriptions.resume()
        self.resume("connect")

    def _turn_away(self, reason: Reason, why: str = "") -> None:
        """CONNACK with a reason, then the end [MQTT-3.1.4-2]."""
        name = self._proof.claimed if self._proof is not None else self._connect.username if self._connect else None
        self.gateway.refused(self.shared.name, reason.label, self.peer, name or "", self.client_id, why)
        self.send(encode(ConnAck(reason), self.version))
        self._end(lost=False)

    # the rest of the packets

    def _on_subscribe(self, packet: Subscribe) -> None:
        assert self._subscriptions is not None
        granted = self._subscriptions.subscribe(packet)
        assert self._session is not None
        changes = self.shared.sessions.changes(self._session) if self._session.expiry > 0 else []
        self._expect(partial(self._subscribed, packet.packet_id, granted), changes, granted.decide)

    def _subscribed(self, packet_id: int, granted: Granted, kept: bool) -> None:
        self._reply(SubAck(packet_id, granted.reasons(kept)))
        if not self.closing:
            granted.begin()

    def _on_unsubscribe(self, packet: Unsubscribe) -> None:
        assert self._subscriptions is not None and self._session is not None
        reasons = self._subscriptions.unsubscribe(packet)
        if self._session.expiry > 0:
            self.gateway.keep(self.shared.sessions.changes(self._session))
        self._expect(lambda kept: self._reply(UnsubAck(packet.packet_id, reasons)))

    def _expect(
        self,
        answer: Callable[[bool], None],
        changes: Sequence[StateChange] = (),
        decide: Callable[[bool], None] | None = None,
    ) -> None:
        """Answers once all that the packet changed is durable, or can't be. decide: what comes of that for the session,
        which goes on without this connection."""
        self._unanswered += 1
        if self._unanswered >= MAX_UNANSWERED:
            self.pause("unanswered")

        def durable(barrier: Future[bool]) -> None:
            self._unanswered -= 1
            if barrier.cancelled():
                return
            try:
                kept = barrier.result()
                if decide is not None:
                    decide(kept)
                if self.closing:
                    return
                answer(kept)
            except Exception as error:
                self._broke(error)
                return
            if self._unanswered < MAX_UNANSWERED:
                self.resume("unanswered")
            if self._draining:
                self._end_if_drained()

        self.gateway.put(changes).add_done_callback(durable)

    def _on_ack(self, ack: Ack) -> None:
        """Those of QoS 2; PUBACKs come by the batch."""
        if self._outbound is None:
            return
        if ack.type is Type.PUBREL:
            self.publishing.release(ack.packet_id)
        elif ack.type is Type.PUBREC:
            self._outbound.received(ack.packet_id, ack.reason)
        else:
            self._outbound.completed(ack.packet_id)
        if self._draining:
            self._end_if_drained()

    def _on_ping(self, packet: PingReq) -> None:
        self.send(PINGRESP)

    def _on_disconnect(self, packet: Disconnect) -> None:
        if self._session is None:
            self._end(lost=False)
            return
        expiry = packet.properties.get(Property.SESSION_EXPIRY_INTERVAL)
        if expiry is not None:
            if expiry and self._session.expiry <= 0:  # [MQTT-3.14.2.2.2]
                raise ProtocolError(Reason.PROTOCOL_ERROR, "DISCONNECT gives a session without expiry one")
            asked = math.inf if expiry == NEVER else float(expiry)
            self._session.expiry = min(asked, float(self.shared.settings.max_session_expiry))
        if packet.reason == Reason.SUCCESS:  # [MQTT-3.14.4-3]
            self._will = None
        self._end(lost=False)

    def _on_fault(self, fault: Fault) -> None:
        if self._session is not None:
            self.fail(fault.reason, fault.why)
            return
        self._count_fault(fault.reason, fault.why)
        if fault.version:
            self.send(encode(ConnAck(fault.reason), fault.version))
        self._end(lost=False)

    def _on_other(self, packet: Packet) -> None:
        raise ProtocolError(Reason.PROTOCOL_ERROR, f"a {type(packet).__name__} that no client may send now")

    # the end

    def fail(self, reason: Reason, why: str) -> None:
        """Ends the connection because of what the client did [MQTT-4.13.1-1]."""
        if self.closing:
            return
        self._count_fault(reason, why)
        self._disconnect(reason, {Property.REASON_STRING: why})
        self._end(lost=True)

    def cut_off(self, why: str) -> None:
        if self._session is None:
            self.abort()
            return
        self._say_closed(why)
        self._disconnect(Reason.QUOTA_EXCEEDED, {})
        self._end(lost=True)

    def _count_fault(self, reason: Reason, why: str) -> None:
        self.counters.protocol_errors[reason.label] += 1
        if not self._let_in:
            name = (self._connect.username if self._connect is not None else None) or ""
            self.gateway.refused(self.shared.name, reason.label, self.peer, name, self.client_id, why, count=False)
        else:
            self._say_closed(why, reason=reason.label)

    def _say_closed(self, why: str, **fields: Any) -> None:
        log.info(
            "connection closed", transport=self.shared.name, peer=self.peer, client_id=self.client_id, why=why, **fields
        )

    def _disconnect(self, reason: Reason, properties: Properties5) -> None:
        """Tells an MQTT 5 client why [MQTT-3.14.0-1]: 3.1.1 has no such packet."""
        if self.version != V5 or not self._let_in:
            return
        data = encode(Disconnect(reason, properties), V5)
        if len(data) > self.max_packet_size:  # [MQTT-3.14.2-3]
            data = encode(Disconnect(reason), V5)
        self.send(data)

    def _end(self, lost: bool) -> None:
        """Lets go of everything now; the socket closes once it is written out."""
        self._release(lost)
        self.close()

    def _release(self, lost: bool) -> None:
        """Ends what it has; a second call finds nothing to end. lost: as in `let_go`."""
        session = self._session
        will = self.let_go(lost)
        if session is not None:
            self.shared.sessions.close(session, self, will)
        if self._authenticating is not None:
            self._authenticating.cancel()
        leave, self._leave = self._leave, None
        if leave is not None:
            leave()

    def let_go(self, lost: bool = False) -> CarriedWill | None:
        """Gives back what is unsettled and forgets the session, which may be another connection's from now on; returns
        the will that is due. A second call does nothing. lost: the connection broke, which counts an attempt for the
        oldest delivery it held (ruling 14)."""
        outbound, self._outbound = self._outbound, None
        will, self._will = self._will, None
        self._session = self._subscriptions = self.publishing.session = None
        if outbound is not None:
            outbound.close(lost)
        return will

    def lost(self, error: Exception | None) -> None:
        self.shared.connections.discard(self)
        try:
            self._release(lost=True)
        finally:
            self.shared.gone()

    def taken_over(self) -> None:
        self._say_closed("taken over by another connection")
        self._disconnect(Reason.SESSION_TAKEN_OVER, {})
        self._end(lost=False)

    def resubscribed(self, filter: str, options: Options | None) -> None:
        outbound = self._outbound
        if outbound is None:  # it is not open yet, and will take up what there is then
            return
        if options is None:
            outbound.leave(filter)
        else:
            outbound.change(filter, options)

    def _session_gone(self) -> None:
        """Somebody deleted the session's queue."""
        assert self._session is not None
        self._say_closed("its session was deleted")
        self.shared.sessions.forget(self._session)
        self._disconnect(Reason.ADMINISTRATIVE_ACTION, {})
        self._end(lost=False)

    # what the listener asks

    def tick(self, elapsed: float) -> None:
        """So many seconds have passed. While it is not read its clock stands still (ruling 22)."""
        if self._heard:
            self._heard = False
            self._quiet = 0.0
        elif not self.paused and not self.closing:
            self._quiet += elapsed
            if self._patience and self._quiet > self._patience:
                if self._session is None:
                    self._count_fault(Reason.MAXIMUM_CONNECT_TIME, "no CONNECT in time")
                    self._end(lost=False)
                else:
                    self._say_closed("keep-alive timeout")
                    self.counters.refusals[Reason.KEEP_ALIVE_TIMEOUT.label] += 1
                    self._disconnect(Reason.KEEP_ALIVE_TIMEOUT, {})
                    self._end(lost=True)

    def drain(self) -> None:
        """No more publishes and deliveries; ends when all PUBACKs of both sides are there."""
        self._draining = True
        if self._outbound is not None:
            self._outbound.stop()
        self._end_if_drained()

    def _end_if_drained(self) -> None:
        if not (self.publishing.unacked or self._unanswered or self.has_unsettled):
            self.shut_down()

    def shut_down(self) -> None:
        if self.closing:
            return
        reference = self.shared.settings.server_reference
        reason = Reason.USE_ANOTHER_SERVER if reference else Reason.SERVER_SHUTTING_DOWN
        properties: Properties5 = {Property.SERVER_REFERENCE: reference} if reference else {}
        if not self._let_in and self.version:  # CONNACK has no word for the end [MQTT-3.2.2-8]
            told = reason if reference else Reason.SERVER_UNAVAILABLE
            self.send(encode(ConnAck(told, False, properties), self.version))
        self._disconnect(reason, properties)
        self._end(lost=False)

    # what the socket says

    def flushed(self) -> None:
        if self.writable and self._outbound is not None:
            self._outbound.refill()

    def writable_changed(self) -> None:
        self.flushed()


_HANDLERS: dict[type, Callable[[MqttConnection, Any], None]] = {
    Connect: MqttConnection._on_connect,
    Ack: MqttConnection._on_ack,
    Auth: MqttConnection._on_auth,
    Subscribe: MqttConnection._on_subscribe,
    Unsubscribe: MqttConnection._on_unsubscribe,
    PingReq: MqttConnection._on_ping,
    Disconnect: MqttConnection._on_disconnect,
    Fault: MqttConnection._on_fault,
}
_EARLY = (Connect, Auth, Disconnect, Fault)
