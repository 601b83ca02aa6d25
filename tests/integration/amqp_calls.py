"""Owns what most tests of AMQP do with a Raw client: declare, publish with confirms, consume, look.

Its rule: each call ends when its answer is there, and an answer of another kind fails the test.
"""

from __future__ import annotations

from typing import Any

from pamqp import body, commands, header

from tests.integration.amqp_raw import Raw

Basic, Channel, Exchange, Queue = commands.Basic, commands.Channel, commands.Exchange, commands.Queue


def declare(raw: Raw, arguments: dict[str, Any] | None = None, **options: Any) -> str:
    method = Queue.Declare(arguments=arguments or {}, **{"exclusive": True, **options})
    return str(raw.call(method, Queue.DeclareOk).queue)


def put(raw: Raw, queue: str, *contents: bytes, exchange: str = "", **properties: Any) -> None:
    """Publishes and waits for the confirms."""
    for content in contents:
        raw.publish(content, queue, exchange, properties=properties)
    confirmed = 0
    while confirmed < len(contents):
        ack = raw.expect(Basic.Ack)
        confirmed = len(contents) if ack.multiple else confirmed + 1
        if ack.multiple and ack.delivery_tag < raw.published:
            confirmed = len(contents) - (raw.published - ack.delivery_tag)


def delivery(raw: Raw) -> tuple[Any, dict[str, Any], bytes]:
    """(deliver or get-ok, headers, body) of the next content."""
    method = raw.read()
    assert isinstance(method, (Basic.Deliver, Basic.GetOk)), method
    return method, *content(raw)


def content(raw: Raw) -> tuple[dict[str, Any], bytes]:
    head = raw.expect(header.ContentHeader)
    data = b""
    while len(data) < head.body_size:
        data += raw.expect(body.ContentBody).value
    return dict(head.properties.headers or {}), data


def bodies(raw: Raw, count: int) -> list[bytes]:
    return [delivery(raw)[2] for _ in range(count)]


def sync(raw: Raw) -> None:
    """Nothing is on its way any more that was caused before: a round over the same channel."""
    raw.call(Basic.Qos(prefetch_count=raw.prefetch), Basic.QosOk)


def consume(raw: Raw, queue: str, prefetch: int = 0, **options: Any) -> str:
    raw.prefetch = prefetch
    raw.call(Basic.Qos(prefetch_count=prefetch), Basic.QosOk)
    return str(raw.call(Basic.Consume(queue=queue, **options), Basic.ConsumeOk).consumer_tag)


def get(raw: Raw, queue: str, no_ack: bool = True) -> tuple[Any, dict[str, Any], bytes] | None:
    raw.send(Basic.Get(queue=queue, no_ack=no_ack))
    method = raw.read()
    if isinstance(method, Basic.GetEmpty):
        return None
    assert isinstance(method, Basic.GetOk), method
    return method, *content(raw)


def depth(raw: Raw, queue: str) -> int:
    return int(raw.call(Queue.Declare(queue=queue, passive=True), Queue.DeclareOk).message_count)


def bind(raw: Raw, queue: str, exchange: str, key: str = "", arguments: dict[str, Any] | None = None) -> None:
    method = Queue.Bind(queue=queue, exchange=exchange, routing_key=key, arguments=arguments or {})
    raw.call(method, Queue.BindOk)


def exchange(raw: Raw, name: str, kind: str = "fanout", **options: Any) -> str:
    raw.call(Exchange.Declare(exchange=name, exchange_type=kind, **options), Exchange.DeclareOk)
    return name


def refused(raw: Raw, code: int, *texts: str) -> str:
    """The channel is closed for what was just sent; it is open again after this. Returns the reason."""
    close = raw.expect(Channel.Close)
    assert close.reply_code == code and all(text in close.reply_text for text in texts), close.reply_text
    raw.send(Channel.CloseOk())
    raw.call(Channel.Open(), Channel.OpenOk)
    raw.published = 0
    return str(close.reply_text)
