"""Owns what a delivery says of its past, in headers as RabbitMQ writes them: x-delivery-count, x-death and its summary.

Its rule: a death says where the message had been sent when it died, also if its dead-letter exchange gave it another
address since.
"""

from __future__ import annotations

from typing import Any

from gateway.model.topics import swap
from gateway.transport import Death, Delivery
from transports.amqp.vhost import ROOT, Vhost

_REASONS = {"exhausted": "delivery_limit", "overflow": "maxlen"}
"""Reasons of dead letters that RabbitMQ calls otherwise."""


def delivery_headers(delivery: Delivery, vhost: Vhost = ROOT) -> list[tuple[str, Any]]:
    """Nothing for a message that was neither delivered before nor is a dead letter."""
    headers: list[tuple[str, Any]] = []
    if delivery.attempts:
        headers.append(("x-delivery-count", delivery.attempts))
    if delivery.deaths:
        headers += _death_headers(delivery, vhost)
    return headers


def _death_headers(delivery: Delivery, vhost: Vhost) -> list[tuple[str, Any]]:
    message, deaths = delivery.message, delivery.deaths
    merged: dict[tuple[str, str], dict[str, Any]] = {}
    exchange, topic = message.exchange, message.topic
    exchanges: list[str] = []
    for death in deaths:  # the latest first: so far back goes its address
        if death.exchange is not None and death.topic is not None:
            exchange, topic = death.exchange, death.topic
        exchanges.append(vhost.own(exchange))
        reason = _reason(death)
        entry = merged.get((death.queue, reason))
        if entry is not None:
            entry["count"] += death.count
            continue
        entry = merged[death.queue, reason] = {
            "count": death.count,
            "reason": reason,
            "queue": vhost.own(death.queue),
            "time": int(death.last),
            "exchange": vhost.own(exchange),
            "routing-keys": [swap(topic) if exchange else vhost.own(topic)],
        }
        if message.ttl is not None and death is deaths[-1]:
            entry["original-expiration"] = str(round(message.ttl * 1000))
    headers: list[tuple[str, Any]] = [("x-death", list(merged.values()))]
    for which, death, was in (("first", deaths[-1], exchanges[-1]), ("last", deaths[0], exchanges[0])):
        headers.append((f"x-{which}-death-queue", vhost.own(death.queue)))
        headers.append((f"x-{which}-death-reason", _reason(death)))
        headers.append((f"x-{which}-death-exchange", was))
    return headers


def _reason(death: Death) -> str:
    return _REASONS.get(death.reason, death.reason)
