"""Owns what SUBSCRIBE and UNSUBSCRIBE do for one connected client.

Its rule: what is granted is bound or joined at once and answered when it is durable; what is refused changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Set

from gateway.errors import BindingsFullError, NameRefusedError, UnknownQueueError
from gateway.logs import log
from gateway.model.names import check_use
from gateway.transport import Binding, Gateway, Options
from transports.mqtt.outbound import Outbound
from transports.mqtt.packets import Property, ProtocolError, Reason, Request, Subscribe, Unsubscribe
from transports.mqtt.session import OWNER, Former, Kind, Membership, Owed, Session, Subscribed, Target, target_of
from transports.mqtt.sessions import Sessions
from transports.mqtt.settings import MqttSettings


class Granted:
    """What became of a SUBSCRIBE. answers: by filter, what SUBACK says if the store takes what must last. steps: what
    begins after it."""

    def __init__(self, sessions: Sessions, session: Session) -> None:
        self._sessions = sessions
        self._session = session
        self._unsure: dict[str, Subscribed] = {}
        """What must last, by filter,"""
        self._lost: Set[str] = frozenset()
        """and what of it does not hold."""
        self.answers: list[tuple[str, int]] = []
        self.steps: list[Callable[[], None]] = []

    def changed(self, filter: str, now: Subscribed, former: Former) -> None:
        """This subscription must last."""
        self._unsure[filter] = now
        self._session.remember(filter, former)

    def decide(self, kept: bool) -> None:
        """What the store has not kept is as it was before, whoever has the session by now."""
        decided, session = self._sessions.decided, self._session
        self._lost = {filter for filter, made in self._unsure.items() if not decided(session, filter, made, kept)}

    def reasons(self, kept: bool) -> tuple[int, ...]:
        """What SUBACK says, once it is decided [MQTT-3.8.4-7]."""
        return tuple([self._final(filter, reason, kept) for filter, reason in self.answers])

    def _final(self, filter: str, reason: int, kept: bool) -> int:
        if reason >= Reason.UNSPECIFIED_ERROR:
            return reason
        # What the store has, or what is not for it, stands although this commit failed.
        holds = filter not in self._lost and (kept or self._session.held(filter) is not None)
        return reason if holds else Reason.QUOTA_EXCEEDED

    def begin(self) -> None:
        """Retained messages and shared queues, of what is still subscribed."""
        for step in self.steps:
            step()


class Subscriptions:
    """The subscriptions of one session while its client is connected."""

    __slots__ = ("bridge", "gateway", "outbound", "session", "sessions", "settings", "version")

    def __init__(
        self,
        gateway: Gateway,
        sessions: Sessions,
        session: Session,
        outbound: Outbound,
        settings: MqttSettings,
        version: int,
        bridge: bool = False,
    ) -> None:
        """bridge: the client is another broker (`packets.Connect`)."""
        self.bridge = bridge
        self.gateway = gateway
        self.sessions = sessions
        self.session = session
        self.outbound = outbound
        self.settings = settings
        self.version = version

    def resume(self) -> None:
        """Consumes again what the session is a member of."""
        for membership in list(self.session.memberships.values()):
            target = target_of(membership.filter, self.session)
            if not isinstance(target, Target) or not self._consume(target, membership):
                del self.session.memberships[membership.filter]

    def subscribe(self, packet: Subscribe) -> Granted:
        """Raises ProtocolError."""
        ids = tuple(packet.properties.get(Property.SUBSCRIPTION_IDENTIFIER, ()))
        granted = Granted(self.sessions, self.session)
        for request in packet.requests:
            granted.answers.append((request.filter, self._subscribe(request, ids, granted)))
        return granted

    def _subscribe(self, request: Request, ids: tuple[int, ...], granted: Granted) -> int:
        session, filter = self.session, request.filter
        target = target_of(filter, session)
        if isinstance(target, Reason):
            return target
        former = Former(session.held(filter), session.owed.get(filter))
        is_new = former.held is None
        if is_new and len(session.bindings) + len(session.memberships) >= self.settings.max_subscriptions:
            self.outbound.counters.refusals["subscriptions"] += 1
            return Reason.QUOTA_EXCEEDED
        highest = 2 if target.kind is Kind.OWN else 1  # a retry is a new PUBLISH, so not exactly one (ruling 26)
        options = Options(min(request.qos, highest), ids, request.retain_as_published or self.bridge)
        if target.kind is Kind.OWN:
            binding = Binding(
                queue=session.queue,
                filter=target.filter,
                not_from=session.client_id if request.no_local or self.bridge else None,
                names=True,
                owner=OWNER,
                options=options,
            )
            there = session.bindings.get(filter)
            lasts = self._lasts
            if there == binding:
                binding = there
            else:
                if lasts and self.gateway.refusing:
                    return Reason.QUOTA_EXCEEDED
                try:
                    self.gateway.bind(binding)  # replaces an earlier one of this filter [MQTT-3.8.4-3]
                except BindingsFullError:
                    return Reason.QUOTA_EXCEEDED
                session.bindings[filter] = binding
            if lasts and (binding is not there or filter in session.former):
                granted.changed(filter, binding, former)
            if request.retain_handling == 0 or (request.retain_handling == 1 and is_new):  # [MQTT-3.3.1-9..11]
                owed = Owed(binding)
                session.owed.pop(filter, None)
                session.owed[filter] = owed
                granted.steps.append(lambda: self._send_retained(owed))
        else:
            if request.no_local and target.kind is Kind.SHARE:
                raise ProtocolError(Reason.PROTOCOL_ERROR, "no local on a shared subscription")  # [MQTT-3.8.3-4]
            if target.kind is Kind.QUEUE and (request.qos == 0 or request.no_local):
                # Its PUBACK is what settles (ruling 12), and it is not the client's own queue.
                return Reason.IMPLEMENTATION_SPECIFIC_ERROR
            membership = Membership(filter, options)
            if former.held == membership:
                membership = session.memberships[filter]
            lasts = self._lasts and (membership is not former.held or filter in session.former)
            lasts = lasts or (target.kind is Kind.SHARE and not self.sessions.has_share(target))
            if lasts and self.gateway.refusing:
                return Reason.QUOTA_EXCEEDED
            if target.kind is Kind.SHARE:
                try:
                    self.sessions.join(session, target, self.settings)
                except BindingsFullError:
                    return Reason.QUOTA_EXCEEDED
            elif (refused := self._refuse_queue(filter, target.queue)) is not None:
                return refused
            session.memberships[filter] = membership
            if lasts:
                granted.changed(filter, membership, former)
            granted.steps.append(lambda: self._consume_if_member(target, membership))
        return options.qos

    def _refuse_queue(self, filter: str, queue: str) -> Reason | None:
        """Why the client may not consume a queue by its name; None if it may."""
        view = self.gateway.queue(queue)
        if view is None:
            return Reason.TOPIC_FILTER_INVALID
        try:
            check_use(view, self.outbound.actor)
        except NameRefusedError:
            return Reason.NOT_AUTHORIZED
        return Reason.NOT_AUTHORIZED if view.in_exclusive_use and filter not in self.outbound.consumers else None

    @property
    def _lasts(self) -> bool:
        """Whether what is subscribed must be in the store, as the session is."""
        queue = self.gateway.queue(self.session.queue)
        return queue is not None and queue.policy.durable

    def _send_retained(self, owed: Owed) -> None:
        if self.session.owed.get(owed.binding.filter) is owed:
            self.outbound.retaining.owe(owed)

    def _consume_if_member(self, target: Target, membership: Membership) -> None:
        if self.session.memberships.get(membership.filter) is membership:
            self._consume(target, membership)

    def _consume(self, target: Target, membership: Membership) -> bool:
        try:
            self.outbound.join(membership.filter, target.kind, target.queue, membership.options)
        except UnknownQueueError:  # it was deleted since
            log.warning("a queue is gone", queue=target.queue, client_id=self.session.client_id)
            return False
        except NameRefusedError as error:  # somebody has it for himself since
            log.warning("a queue is locked", error=str(error), client_id=self.session.client_id)
            return False
        return True

    def unsubscribe(self, packet: Unsubscribe) -> tuple[int, ...]:
        """The reasons for UNSUBACK."""
        return tuple(
            Reason.SUCCESS if self.sessions.unsubscribe(self.session, filter) else Reason.NO_SUBSCRIPTION_EXISTED
            for filter in packet.filters
        )
