"""Owns what SUBSCRIBE and UNSUBSCRIBE do for one connected client.

Its rule: what is granted is bound or joined at once and answered when it is durable; what is refused changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from typing import NamedTuple

from gateway.errors import BindingsFullError, NameRefusedError, UnknownQueueError
from gateway.logs import log
from gateway.model.names import check_use
from gateway.transport import Binding, Gateway, Options
from transports.mqtt.outbound import Outbound
from transports.mqtt.packets import Property, ProtocolError, Reason, Request, Subscribe, Unsubscribe
from transports.mqtt.session import OWNER, Kind, Membership, Owed, Session, Target, target_of
from transports.mqtt.sessions import Sessions
from transports.mqtt.settings import MqttSettings

Held = Binding | Membership
"""A subscription as the session has it."""


class Former(NamedTuple):
    """What there was before a change that the store has not taken yet; None: nothing."""

    held: Held | None
    owed: Owed | None


class Granted:
    """What became of a SUBSCRIBE. answers: by filter, what SUBACK says if the store takes what must last. steps: what
    begins after it."""

    def __init__(self, subscriptions: Subscriptions) -> None:
        self._subscriptions = subscriptions
        self._unsure: dict[str, Held] = {}
        """What must last, by filter."""
        self.answers: list[tuple[str, int]] = []
        self.steps: list[Callable[[], None]] = []

    def changed(self, filter: str, now: Held, former: Former) -> None:
        """This subscription must last."""
        self._unsure[filter] = now
        self._subscriptions.former.setdefault(filter, former)

    def reasons(self, kept: bool) -> tuple[int, ...]:
        """What SUBACK says; what the store has not kept is as it was before [MQTT-3.8.4-7]."""
        lost = {filter for filter, made in self._unsure.items() if not self._subscriptions.decided(filter, made, kept)}
        return tuple([self._final(filter, reason, kept, lost) for filter, reason in self.answers])

    def _final(self, filter: str, reason: int, kept: bool, lost: Set[str]) -> int:
        if reason >= Reason.UNSPECIFIED_ERROR:
            return reason
        # What the store has, or what is not for it, stands although this commit failed.
        holds = filter not in lost and (kept or self._subscriptions.has(filter))
        return reason if holds else Reason.QUOTA_EXCEEDED

    def begin(self) -> None:
        """Retained messages and shared queues, of what is still subscribed."""
        for step in self.steps:
            step()


class Subscriptions:
    """The subscriptions of one session while its client is connected."""

    __slots__ = ("bridge", "former", "gateway", "outbound", "session", "sessions", "settings", "version")

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
        self.former: dict[str, Former] = {}
        """What the store has, by filter, while it decides on a change."""

    def resume(self) -> None:
        """Consumes again what the session is a member of."""
        for membership in list(self.session.memberships.values()):
            target = target_of(membership.filter, self.session)
            if not isinstance(target, Target) or not self._consume(target, membership):
                del self.session.memberships[membership.filter]

    def subscribe(self, packet: Subscribe) -> Granted:
        """Raises ProtocolError."""
        ids = tuple(packet.properties.get(Property.SUBSCRIPTION_IDENTIFIER, ()))
        granted = Granted(self)
        for request in packet.requests:
            granted.answers.append((request.filter, self._subscribe(request, ids, granted)))
        return granted

    def has(self, filter: str) -> bool:
        return filter in self.session.bindings or filter in self.session.memberships

    def _held(self, filter: str) -> Held | None:
        return self.session.bindings.get(filter) or self.session.memberships.get(filter)

    def decided(self, filter: str, made: Held, kept: bool) -> bool:
        """The store has taken a change, or not: then what there was before holds again. False if it does not hold."""
        session, now = self.session, self._held(filter)
        if filter not in self.former:  # an earlier SUBSCRIBE for the same was kept or lost, or the client has ended it
            return now is made or (kept and now is None)
        if now is not made:
            if kept:  # a later change waits for its own commit
                self.former[filter] = Former(made, None)
            return kept
        held, owed = self.former.pop(filter)
        if kept:
            return True
        if isinstance(held, Binding):
            self.gateway.bind(held)
            session.bindings[filter] = held
            session.owed.pop(filter, None)
            if owed is not None:
                session.owed[filter] = owed
        elif held is not None:
            session.memberships[filter] = held
        else:
            self.drop(filter)
        return False

    def _subscribe(self, request: Request, ids: tuple[int, ...], granted: Granted) -> int:
        session, filter = self.session, request.filter
        target = target_of(filter, session)
        if isinstance(target, Reason):
            return target
        former = Former(self._held(filter), session.owed.get(filter))
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
            if lasts and (binding is not there or filter in self.former):
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
            lasts = self._lasts and (membership is not former.held or filter in self.former)
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
            Reason.SUCCESS if self.drop(filter) else Reason.NO_SUBSCRIPTION_EXISTED for filter in packet.filters
        )

    def drop(self, filter: str) -> bool:
        """False if there was none."""
        session = self.session
        self.former.pop(filter, None)
        binding = session.bindings.pop(filter, None)
        if binding is not None:
            self.gateway.unbind(binding)
            session.owed.pop(filter, None)
            return True
        membership = session.memberships.pop(filter, None)
        if membership is None:
            return False
        self.outbound.leave(filter)
        target = target_of(filter, session)
        if isinstance(target, Target) and target.kind is Kind.SHARE:
            self.sessions.leave(session, target.queue)
        return True
