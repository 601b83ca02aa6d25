"""Owns what SUBSCRIBE and UNSUBSCRIBE do for one connected client.

Its rule: what is granted is bound or joined at once and answered when it is durable; what is refused changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable

from gateway.errors import BindingsFullError, UnknownQueueError
from gateway.logs import log
from gateway.transport import Binding, Gateway, Options
from transports.mqtt.outbound import Outbound
from transports.mqtt.packets import Property, ProtocolError, Reason, Request, Subscribe, Unsubscribe
from transports.mqtt.session import OWNER, Kind, Membership, Session, Target, target_of
from transports.mqtt.sessions import Sessions
from transports.mqtt.settings import MqttSettings


class Granted:
    """What became of a SUBSCRIBE. answers: by filter, what SUBACK says if the store takes what must last. steps: what
    begins after it."""

    def __init__(self, subscriptions: Subscriptions) -> None:
        self._subscriptions = subscriptions
        self._unsure: dict[str, bool] = {}
        """Filters that must last, and whether they are new."""
        self.answers: list[tuple[str, int]] = []
        self.steps: list[Callable[[], None]] = []

    def changed(self, filter: str, lasts: bool, is_new: bool) -> None:
        if lasts:
            self._unsure[filter] = is_new

    def reasons(self, kept: bool) -> tuple[int, ...]:
        """What SUBACK says; if the store has not kept what must last, what was new of it is taken back."""
        if not kept:
            for filter, is_new in self._unsure.items():
                if is_new:
                    self._subscriptions.drop(filter)
        return tuple([self._final(filter, reason, kept) for filter, reason in self.answers])

    def _final(self, filter: str, reason: int, kept: bool) -> int:
        if kept or reason >= Reason.UNSPECIFIED_ERROR:
            return reason
        # One that the store has, or that is not for it, stands, unless an earlier SUBSCRIBE has just lost it.
        stands = filter not in self._unsure and self._subscriptions.has(filter)
        return reason if stands else Reason.QUOTA_EXCEEDED

    def begin(self) -> None:
        """Retained messages and shared queues, of what is still subscribed."""
        for step in self.steps:
            step()


class Subscriptions:
    """The subscriptions of one session while its client is connected."""

    __slots__ = ("gateway", "outbound", "session", "sessions", "settings", "version")

    def __init__(
        self,
        gateway: Gateway,
        sessions: Sessions,
        session: Session,
        outbound: Outbound,
        settings: MqttSettings,
        version: int,
    ) -> None:
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
        granted = Granted(self)
        for request in packet.requests:
            granted.answers.append((request.filter, self._subscribe(request, ids, granted)))
        return granted

    def has(self, filter: str) -> bool:
        return filter in self.session.bindings or filter in self.session.memberships

    def _subscribe(self, request: Request, ids: tuple[int, ...], granted: Granted) -> int:
        session, filter = self.session, request.filter
        target = target_of(filter, session)
        if isinstance(target, Reason):
            return target
        is_new = not self.has(filter)
        if is_new and len(session.bindings) + len(session.memberships) >= self.settings.max_subscriptions:
            self.outbound.counters.refusals["subscriptions"] += 1
            return Reason.QUOTA_EXCEEDED
        highest = 2 if target.kind is Kind.OWN else 1  # a retry is a new PUBLISH, so not exactly one (ruling 26)
        options = Options(min(request.qos, highest), ids, request.retain_as_published)
        if target.kind is Kind.OWN:
            binding = Binding(
                queue=session.queue,
                filter=target.filter,
                not_from=session.client_id if request.no_local else None,
                owner=OWNER,
                options=options,
            )
            there = session.bindings.get(filter)
            if there == binding:
                binding = there
            else:
                lasts = self._lasts
                if lasts and self.gateway.refusing:
                    return Reason.QUOTA_EXCEEDED
                try:
                    self.gateway.bind(binding)  # replaces an earlier one of this filter [MQTT-3.8.4-3]
                except BindingsFullError:
                    return Reason.QUOTA_EXCEEDED
                session.bindings[filter] = binding
                granted.changed(filter, lasts, is_new)
            if request.retain_handling == 0 or (request.retain_handling == 1 and is_new):  # [MQTT-3.3.1-9..11]
                granted.steps.append(lambda: self._send_retained(binding))
        else:
            if request.no_local and target.kind is Kind.SHARE:
                raise ProtocolError(Reason.PROTOCOL_ERROR, "no local on a shared subscription")  # [MQTT-3.8.3-4]
            if target.kind is Kind.QUEUE and (request.qos == 0 or request.no_local):
                # Its PUBACK is what settles (ruling 12), and it is not the client's own queue.
                return Reason.IMPLEMENTATION_SPECIFIC_ERROR
            membership = Membership(filter, options)
            lasts = self._lasts and session.memberships.get(filter) != membership
            lasts = lasts or (target.kind is Kind.SHARE and not self.sessions.has_share(target))
            if lasts and self.gateway.refusing:
                return Reason.QUOTA_EXCEEDED
            if target.kind is Kind.SHARE:
                try:
                    self.sessions.join(session, target, self.settings)
                except BindingsFullError:
                    return Reason.QUOTA_EXCEEDED
            elif self.gateway.queue(target.queue) is None:
                return Reason.TOPIC_FILTER_INVALID
            session.memberships[filter] = membership
            granted.changed(filter, lasts, is_new)
            granted.steps.append(lambda: self._consume_if_member(target, membership))
        return options.qos

    @property
    def _lasts(self) -> bool:
        """Whether what is subscribed must be in the store, as the session is."""
        queue = self.gateway.queue(self.session.queue)
        return queue is not None and queue.policy.durable

    def _send_retained(self, binding: Binding) -> None:
        if self.session.bindings.get(binding.filter) is binding:
            self.outbound.owe_retained(binding)

    def _consume_if_member(self, target: Target, membership: Membership) -> None:
        if self.session.memberships.get(membership.filter) is membership:
            self._consume(target, membership)

    def _consume(self, target: Target, membership: Membership) -> bool:
        try:
            self.outbound.join(membership.filter, target.kind, target.queue, membership.options)
        except UnknownQueueError:  # it was deleted since
            log.warning("a queue is gone", queue=target.queue, client_id=self.session.client_id)
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
