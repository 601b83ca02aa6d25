"""Owns Sessions: every MQTT session of the daemon, connected or not, their shares, expiries and delayed wills.

Its rule: one client id has one session and at most one connection, over all MQTT listeners; what a session with an
expiry has survives a restart.
"""

from __future__ import annotations

import math
from asyncio import Future
from collections.abc import Sequence
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

import msgspec

from gateway.errors import BindingsFullError, UnknownQueueError
from gateway.logs import log
from gateway.model.message import Message
from gateway.transport import Binding, Gateway, Options, Outcome, StateChange
from transports.mqtt.session import (
    OWED,
    OWNER,
    QUEUE_NAMES,
    RECEIVED,
    CarriedWill,
    Client,
    DelayedWill,
    Former,
    Kind,
    Owed,
    Retained,
    Session,
    Subscribed,
    Target,
    decode_owed,
    decode_sent_retained,
    target_of,
)
from transports.mqtt.settings import MqttSettings

_STATE = "session/"
_IDENT_OCTETS = 8
"""Of QoS 2 in flight; a value of another length is a retained message's."""


class SessionsFullError(Exception):
    """There are as many sessions as there may be."""


class StoreRefusesError(Exception):
    """A session that outlives its connection can't be made now."""


class NameTakenError(Exception):
    """The session's queue name belongs to somebody else's queue."""


_of_gateway: WeakValueDictionary[int, Sessions] = WeakValueDictionary()
"""By the gateway's id, which stays its own as long as its Sessions live."""


class Sessions:
    """All sessions, made once for each daemon with what its store has."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self._sessions: dict[str, Session] = {}
        self._shares: dict[str, set[str]] = {}
        """Client ids of the members, by the share's queue."""
        self._next_due = math.inf
        self._restore()

    @classmethod
    def of(cls, gateway: Gateway) -> Sessions:
        """The one of this daemon: all its MQTT listeners share it, and the first one makes it."""
        found = _of_gateway.get(id(gateway))
        if found is None:
            found = _of_gateway[id(gateway)] = cls(gateway)
        return found

    def __len__(self) -> int:
        return len(self._sessions)

    def _restore(self) -> None:
        now = self.gateway.now()
        changes = []
        state = self.gateway.state(OWNER)
        for key, record in state.items():
            if not key.startswith(_STATE):
                continue
            client_id = key[len(_STATE) :]
            try:
                session = Session.restored(client_id, record, [], now)
            except msgspec.DecodeError as error:
                log.error("an MQTT session could not be read and is dropped", client_id=client_id, error=str(error))
                changes.append(StateChange(OWNER, key, None))
                continue
            if self.gateway.queue(session.queue) is None:
                # Its definition is durable before its record is, so nothing is lost here but a broken store's rest.
                log.error("an MQTT session has no queue and is dropped", client_id=client_id)
                changes.append(StateChange(OWNER, key, None))
                continue
            session.bindings = {b.filter: b for b in self.gateway.bindings(session.queue) if b.owner == OWNER}
            self._sessions[client_id] = session
            for membership in session.memberships.values():
                target = target_of(membership.filter, session)
                if isinstance(target, Target) and target.kind is Kind.SHARE and self.gateway.queue(target.queue):
                    self._shares.setdefault(target.queue, set()).add(client_id)
            changes.append(self.change(session))
            self._watch(session)
        for key, value in state.items():
            if not key.startswith(_STATE) and not self._restore_state(key, value):
                changes.append(StateChange(OWNER, key, None))
        for session in self._sessions.values():
            session.sort()
            self.gateway.begun(session.queue, session.resend_idents)  # what is gone is released when its client comes
        for view in list(self.gateway.queues()):
            kept = view.name in self._shares or view.name[len(QUEUE_NAMES) :] in self._sessions
            if view.owner == OWNER and not kept:
                self.gateway.delete(view.name)  # of sessions that ended with the last run
        if changes:
            self.gateway.keep(changes)

    def _restore_state(self, key: str, value: bytes) -> bool:
        """What was in flight or owed; False if nobody has it any more, or it can't be read."""
        section, _, rest = key.partition("/")
        client_id, _, number = (rest, "", "") if section + "/" == OWED else rest.rpartition("/")
        session = self._sessions.get(client_id)
        if session is None:
            return False
        try:
            if section + "/" == OWED:
                for filter, after in decode_owed(value):
                    if filter in session.bindings:
                        session.owed[filter] = Owed(session.bindings[filter], after, ready=True)
            elif section + "/" == RECEIVED:
                session.receive(int(number))
            elif len(value) == _IDENT_OCTETS:
                session.restore_id(int(number), int.from_bytes(value, "big"))
            else:
                return self._restore_retained(session, int(number), value)
        except (msgspec.DecodeError, ValueError) as error:
            log.error("what an MQTT session had in flight could not be read", key=key, error=str(error))
            return False
        return True

    def _restore_retained(self, session: Session, packet_id: int, value: bytes) -> bool:
        """In flight when the daemon ended. If another has taken its place, that one comes by itself."""
        sent = decode_sent_retained(value)
        for at, message in self.gateway.retained(sent.topic):
            if at == sent.at:
                expires = None if message.ttl is None else self.gateway.now() + message.ttl
                session.restore_retained(packet_id, Retained(message, sent.options, expires, at))
                return True
        if sent.qos == 2:
            session.restore_id(packet_id, 0)
        return sent.qos == 2

    # a client comes and goes

    def client_of(self, client_id: str) -> Client | None:
        """The connection that `open` would take over."""
        session = self._sessions.get(client_id)
        return session.client if session is not None else None

    def open(
        self, client_id: str, clean_start: bool, expiry: float, client: Client, settings: MqttSettings
    ) -> tuple[Session, bool]:
        """The client's session and whether it was there before. An earlier connection loses it, and is closed
        [MQTT-3.1.4-3]. Raises SessionsFullError, NameTakenError, and StoreRefusesError, which changes nothing."""
        session = self._sessions.get(client_id)
        goes_on = session is not None and not clean_start and self._goes_on(session)
        if expiry > 0 and not goes_on and self.gateway.refusing:
            raise StoreRefusesError(self.gateway.refusing)
        earlier = session.client if session is not None else None
        if session is not None and earlier is not None:
            session.client = None
            self._part(session, earlier.let_go())
        try:
            if session is not None and not goes_on:  # [MQTT-3.1.2-4]
                self._end(session)
                session = None
            present = session is not None
            if session is None:
                session = self._make(client_id, expiry > 0, settings)
            session.will = None  # [MQTT-3.1.3-9]
            session.expiry = expiry
            session.ended = None
            session.client = client
        finally:
            if earlier is not None:
                earlier.taken_over()  # only now, so that nothing of its end can reach the session (ruling 29)
        return session, present

    def _make(self, client_id: str, lasts: bool, settings: MqttSettings) -> Session:
        """Raises SessionsFullError and NameTakenError."""
        if len(self._sessions) >= settings.max_sessions:
            raise SessionsFullError(f"there are {len(self._sessions)} MQTT sessions already")
        session = Session(client_id)
        if self.gateway.queue(session.queue) is not None:
            raise NameTakenError(f"queue {session.queue} is not the MQTT transport's")
        self.gateway.declare(session.queue, settings.session_policy(lasts), OWNER)
        self._sessions[client_id] = session
        return session

    def _goes_on(self, session: Session) -> bool:
        """Whether its client finds it when it comes now: it outlives its connection, and no operator deleted it."""
        lasts = session.expiry > 0 and session.ends > self.gateway.now()
        return lasts and self.gateway.queue(session.queue) is not None

    def withdraw(self, session: Session, client: Client) -> None:
        """A new one that the store did not take: it goes with its client, who may be gone already."""
        if self._sessions.get(session.client_id) is not session:
            return
        if session.client is None:
            self._end(session)
        elif session.client is client:
            session.expiry = 0.0

    def close(self, session: Session, client: Client, will: CarriedWill | None) -> None:
        """The client's connection is gone; nothing happens if the session is another's by now. `will` is what is to be
        published, at the latest when the session ends [MQTT-3.1.2-8]."""
        if session.client is not client:
            return
        session.client = None
        self._part(session, will)
        if session.expiry <= 0:
            self._end(session)
            return
        session.ended = self.gateway.now()
        self._watch(session)
        self.keep(session)

    def _part(self, session: Session, will: CarriedWill | None) -> None:
        """Its connection let go of it, and leaves this will."""
        session.carried = None
        delay = min(will.delay, session.expiry) if will is not None else 0.0
        if will is not None and delay > 0:
            session.will = DelayedWill(will.message, self.gateway.now() + delay)
        elif will is not None:
            self.publish(will.message)

    def _end(self, session: Session) -> None:
        del self._sessions[session.client_id]
        session.forget_former()  # whatever the store says, there is nothing to go back to
        if session.will is not None:
            self.publish(session.will.message)
        for membership in session.memberships.values():
            target = target_of(membership.filter, session)
            if isinstance(target, Target) and target.kind is Kind.SHARE:
                self.leave(session, target.queue)
        self._delete(session.queue)
        if session.recorded:
            self.gateway.keep([StateChange(OWNER, _STATE + session.client_id, None), *session.forget_ids()])
            for packet_id, future in session.receiving.items():
                future.add_done_callback(partial(self._forget_id, session, packet_id))

    def _forget_id(self, ended: Session, packet_id: int, _: Future[Any]) -> None:
        """Of a message that was on its way when its session ended: its commit has come after that. The client's next
        session may use the identifier already, and then it is no more the ended one's to forget."""
        present = self._sessions.get(ended.client_id)
        if present is None or not present.recorded or packet_id not in present.received:
            self.gateway.keep([ended.received_change(packet_id, False)])

    def forget(self, session: Session) -> None:
        """Its queue was deleted by an operator: it is no more."""
        session.expiry = 0.0

    def _delete(self, queue: str) -> None:
        try:
            self.gateway.delete(queue)
        except UnknownQueueError:
            log.warning("a queue of the MQTT transport was deleted by somebody else", queue=queue)

    # time

    def _watch(self, session: Session) -> None:
        due = session.ends if session.will is None else min(session.ends, session.will.due)
        self._next_due = min(self._next_due, due)

    def sweep(self) -> None:
        """Ends sessions and publishes wills whose time has come; to be called every second or so."""
        now = self.gateway.now()
        if now < self._next_due:
            return
        self._next_due = math.inf
        for session in list(self._sessions.values()):
            if session.ended is None:
                continue
            if session.ends <= now:
                self._end(session)
                continue
            if session.will is not None and session.will.due <= now:
                will, session.will = session.will.message, None
                self.publish(will, (self.change(session),))
            self._watch(session)

    # shares

    def join(self, session: Session, target: Target, settings: MqttSettings) -> None:
        """Makes the client a member. The share's queue is durable whoever is in it, so that a member with a lasting
        session may join at any time. Raises BindingsFullError."""
        members = self._shares.get(target.queue)
        if members is None or not self.has_share(target):
            self.gateway.declare(target.queue, settings.session_policy(True), OWNER)
            try:
                self.gateway.bind(
                    Binding(queue=target.queue, filter=target.filter, names=True, owner=OWNER, options=Options(qos=1))
                )
            except BindingsFullError:
                self._delete(target.queue)
                raise
            members = self._shares.setdefault(target.queue, set())
        members.add(session.client_id)

    def has_share(self, target: Target) -> bool:
        """False for a new one, and for one that an operator deleted."""
        return target.queue in self._shares and self.gateway.queue(target.queue) is not None

    def leave(self, session: Session, queue: str) -> None:
        """The last one to leave takes the queue with him (ruling 26)."""
        members = self._shares.get(queue)
        if members is None or session.client_id not in members:
            return
        members.discard(session.client_id)
        if not members:
            del self._shares[queue]
            self._delete(queue)

    # subscriptions

    def unsubscribe(self, session: Session, filter: str) -> bool:
        """False if there was no such subscription."""
        session.replace_former(filter, None)
        binding = session.bindings.pop(filter, None)
        if binding is not None:
            self.gateway.unbind(binding)
            session.owed.pop(filter, None)
            return True
        if session.memberships.pop(filter, None) is None:
            return False
        if session.client is not None:
            session.client.resubscribed(filter, None)
        target = target_of(filter, session)
        if isinstance(target, Target) and target.kind is Kind.SHARE:
            self.leave(session, target.queue)
        return True

    def decided(self, session: Session, filter: str, made: Subscribed, kept: bool) -> bool:
        """The store has taken a change of a subscription, or not: then what there was before holds again, also for the
        connection that the session has by now. False if the change does not hold."""
        now, former = session.held(filter), session.former.get(filter)
        if former is None:  # an earlier change of the same was kept or lost, or the client or the session has ended it
            return now is made or (kept and now is None)
        if now is not made:
            if kept:  # a later change waits for its own commit
                session.replace_former(filter, Former(made, None))
            return kept
        session.replace_former(filter, None)
        if kept:
            return True
        held, owed = former
        if held is None:
            self.unsubscribe(session, filter)
        else:
            if isinstance(held, Binding):
                self.gateway.bind(held)
                session.bindings[filter] = held
                session.owed.pop(filter, None)
                if owed is not None:
                    session.owed[filter] = owed
            else:
                session.memberships[filter] = held
            if session.client is not None:
                session.client.resubscribed(filter, held.options)
        if session.recorded:
            self.gateway.keep(self.changes(session))  # what was written since may have the change in it
        return False

    # what survives

    def change(self, session: Session) -> StateChange:
        """The session as it is now, for the next commit; without an expiry it leaves no record."""
        value = session.record() if session.expiry > 0 else None
        session.recorded = True
        return StateChange(OWNER, _STATE + session.client_id, value)

    def changes(self, session: Session) -> list[StateChange]:
        """As `change`, with the retained messages that it is owed."""
        return [self.change(session), session.owed_change()]

    def keep(self, session: Session) -> None:
        """Makes durable what it is now, in the background. Of one that has ended there is nothing to keep: under its
        client's name stands the next one."""
        if self._sessions.get(session.client_id) is session:
            self.gateway.keep([self.change(session)])

    def publish(self, will: Message, changes: Sequence[StateChange] = ()) -> None:
        future = self.gateway.accept((will,), changes)
        counters = self.gateway.counters(will.source)

        def done(future: Future[Sequence[Outcome]]) -> None:
            if not future.cancelled() and future.result()[0] is Outcome.REFUSED:
                counters.dropped["will-refused"] += 1
                log.warning("a will was refused", transport=will.source, client_id=will.client_id, topic=will.topic)

        future.add_done_callback(done)
