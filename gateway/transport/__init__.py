"""The door between the core and whoever brings a protocol; what stands here is public, stable and documented."""

from __future__ import annotations

from gateway.model.binding import NO_OPTIONS, Binding, ExchangeBinding, HeadersMatch, Options
from gateway.model.counters import TransportCounters
from gateway.model.credit import Credit, Pressure
from gateway.model.delivery import Death, Delivery
from gateway.model.message import NO_PROPERTIES, Message, Properties
from gateway.model.names import NOBODY, OPERATOR, Actor
from gateway.model.outcome import Outcome, Verdict
from gateway.model.policy import QueuePolicy
from gateway.model.principal import User
from gateway.model.state import StateChange
from gateway.transport.contract import PLAIN, Consumer, Gateway, Offer, QueueView, Sink, Subscription, Transport

__all__ = [
    "NOBODY",
    "NO_OPTIONS",
    "NO_PROPERTIES",
    "OPERATOR",
    "PLAIN",
    "Actor",
    "Binding",
    "Consumer",
    "Credit",
    "Death",
    "Delivery",
    "ExchangeBinding",
    "Gateway",
    "HeadersMatch",
    "Message",
    "Offer",
    "Options",
    "Outcome",
    "Pressure",
    "Properties",
    "QueuePolicy",
    "QueueView",
    "Sink",
    "StateChange",
    "Subscription",
    "Transport",
    "TransportCounters",
    "User",
    "Verdict",
]
