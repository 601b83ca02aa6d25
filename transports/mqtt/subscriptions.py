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
from transports.mqtt.session import Kind, Membership, Session, Target, target_of
from transports.mqtt.sessions import OWNER, Sessions
from transports.mqtt.settings import MqttSettings


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

    def subscribe(self, packet: Subscribe) -> tuple[tuple[int, ...], Callable[[bool], None]]:
        """The reasons for SUBACK, and what to call after it with whether all is durable: True starts deliveries of
        retained messages and shared queues, False takes back what was new. Raises ProtocolError."""
        ids = tuple(packet.properties.get(Property.SUBSCRIPTION_IDENTIFIER, ()))
        after: list[Callable[[], None]] = []
        undo: list[str] = []
        reasons = tuple([self._subscribe(request, ids, after, undo) for request in packet.requests])

        def done(kept: bool) -> None:
            if kept:
                for step in after:
                    step()
            else:
                for filter in undo:
                    self._unsubscribe(filter)

        return reasons, done

    def _subscribe(
        self, request: Request, ids: tuple[int, ...], after: list[Callable[[], None]], undo: list[str]
    ) -> int:
        session, filter = self.session, request.filter
        target = target_of(filter, session)
        if isinstance(target, Reason):
            return target
        is_new = filter not in session.bindings and filter not in session.memberships
        if is_new and len(session.bindings) + len(session.memberships) >= self.settings.max_subscriptions:
            self.outbound.counters.refusals["subscriptions"] += 1
            return Reason.QUOTA_EXCEEDED
        if target.kind is Kind.OWN:
            options = Options(min(request.qos, 1), ids, request.retain_as_published)
            try:
                binding = self._bind(target, options, request.no_local)
            except BindingsFullError:
                return Reason.QUOTA_EXCEEDED
            if request.retain_handling == 0 or (request.retain_handling == 1 and is_new):  # [MQTT-3.3.1-9..11]
                after.append(lambda: self._send_retained(binding))
        else:
            if request.no_local and target.kind is Kind.SHARE:
                raise ProtocolError(Reason.PROTOCOL_ERROR, "no local on a shared subscription")  # [MQTT-3.8.3-4]
            if target.kind is Kind.QUEUE and request.qos == 0:
                return Reason.QOS_NOT_SUPPORTED  # its PUBACK is what settles (ruling 12)
            options = Options(min(request.qos, 1), ids, request.retain_as_published)
            if target.kind is Kind.SHARE:
                try:
                    self.sessions.join(session, target, self.settings)
                except BindingsFullError:
                    return Reason.QUOTA_EXCEEDED
            elif self.gateway.queue(target.queue) is None:
                return Reason.TOPIC_FILTER_INVALID
            membership = session.memberships[filter] = Membership(filter, options)
            after.append(lambda: self._consume_if_member(target, membership))
        if is_new:
            undo.append(filter)
        return options.qos

    def _bind(self, target: Target, options: Options, no_local: bool) -> Binding:
        session = self.session
        binding = Binding(
            queue=session.queue,
            filter=target.filter,
            not_from=session.client_id if no_local else None,
            owner=OWNER,
            options=options,
        )
        self.gateway.bind(binding)  # replaces an earlier one of this filter [MQTT-3.8.4-3]
        session.bindings[target.filter] = binding
        return binding

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
            Reason.SUCCESS if self._unsubscribe(filter) else Reason.NO_SUBSCRIPTION_EXISTED for filter in packet.filters
        )

    def _unsubscribe(self, filter: str) -> bool:
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
