"""Owns which transports of a daemon bring messages whose headers are AMQP tables.

Its rule: a listener or link of AMQP says so before its first message; others are not there.
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

from gateway.transport import Gateway

_names: WeakKeyDictionary[Gateway, set[str]] = WeakKeyDictionary()


def natives(gateway: Gateway) -> set[str]:
    """Names of transports; the one set of this daemon."""
    return _names.setdefault(gateway, set())
