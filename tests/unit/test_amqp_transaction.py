"""Transaction: what it counts for."""

from __future__ import annotations

from gateway.model.message import Message, Properties
from transports.amqp.channel import Route
from transports.amqp.codec import Publish
from transports.amqp.transaction import MESSAGE_OCTETS, Transaction

ROUTE = Route(Publish("", "q", False, False), "", "q")


def test_all_that_a_message_takes_counts() -> None:
    transaction = Transaction()
    transaction.publish(Message("q", b"x" * 100), ROUTE, ())
    assert transaction.octets == 100 + MESSAGE_OCTETS
    headers = tuple((f"h{n}", "v" * 100) for n in range(50))
    transaction.publish(Message("q", b"", properties=Properties(headers=headers)), ROUTE, ("a" * 200,) * 10)
    assert transaction.octets > 100 + 50 * 100 + 10 * 200 + 2 * MESSAGE_OCTETS
