"""Where a message goes beyond its routing key, and where its answer does: CC and BCC, direct replies."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pamqp import commands

from tests.harness.daemon import Daemon
from tests.harness.process import Address
from tests.integration.amqp_calls import bind, content, declare, depth, exchange, get, put, refused, sync
from tests.integration.amqp_raw import Raw

Basic, Queue = commands.Basic, commands.Queue
REPLIES = "amq.rabbitmq.reply-to"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    """One daemon for all: each test has queues of its own."""
    daemon = Daemon(tmp_path_factory.mktemp("amqp"), {})
    try:
        yield daemon.start().address("amqp")
    finally:
        daemon.close()


# CC and BCC


@pytest.mark.parametrize("kind", ["", "direct", "topic"])
def test_copies_go_where_their_keys_lead_and_nobody_sees_bcc(raw: Raw, kind: str) -> None:
    name = exchange(raw, f"copies.{kind}", kind) if kind else ""
    queues = [declare(raw) for _ in range(3)]
    for queue in queues:
        if name:
            bind(raw, queue, name, queue)
    put(raw, queues[0], b"x", exchange=name, headers={"CC": [queues[1]], "BCC": [queues[2]], "other": 1})
    for queue in queues:
        found = get(raw, queue)
        assert found is not None and found[0].routing_key == queues[0]
        assert found[1] == {"CC": [queues[1]], "other": 1}


def test_a_queue_gets_one_copy(raw: Raw) -> None:
    queue = declare(raw)
    bind(raw, queue, "amq.topic", "copies.#")
    put(raw, "copies.1", b"x", exchange="amq.topic", headers={"CC": ["copies.2", "copies.1"], "BCC": ["copies.3"]})
    assert depth(raw, queue) == 1


def test_a_copy_alone_is_enough_not_to_be_returned(raw: Raw) -> None:
    queue = declare(raw)
    raw.publish(b"x", "nobody", mandatory=True, properties={"headers": {"BCC": [queue]}})
    raw.expect(Basic.Ack)
    assert depth(raw, queue) == 1


def test_copies_find_their_messages_in_a_batch(raw: Raw) -> None:
    first, second = declare(raw), declare(raw)
    contents = [b"%d" % number for number in range(20)]
    for number, body in enumerate(contents):
        raw.publish(body, first, properties={"headers": {"CC": [second]}} if number % 3 == 0 else {})
    while raw.expect(Basic.Ack).delivery_tag < len(contents):
        pass
    assert (depth(raw, first), depth(raw, second)) == (20, 7)


@pytest.mark.parametrize(("header", "value"), [("CC", 7), ("BCC", [7]), ("CC", ["x" * 256]), ("BCC", ["k"] * 1001)])
def test_copies_that_are_none_are_406(raw: Raw, header: str, value: object) -> None:
    raw.publish(b"x", "q", properties={"headers": {header: value}})
    refused(raw, 406, header)


def test_a_copy_to_a_reserved_queue_is_403(raw: Raw) -> None:
    raw.publish(b"x", "q", properties={"headers": {"CC": ["mqtt.session.x"]}})
    refused(raw, 403)


# direct replies


def ask(raw: Raw, queue: str) -> str:
    """Returns the tag of the consumer that waits for the answer."""
    tag = raw.call(Basic.Consume(queue=REPLIES, no_ack=True), Basic.ConsumeOk).consumer_tag
    put(raw, queue, b"question", reply_to=REPLIES, correlation_id="1")
    return str(tag)


def answer_to(raw: Raw, queue: str) -> str:
    """Where the next question's answer goes."""
    raw.send(Basic.Get(queue=queue, no_ack=True))
    raw.expect(Basic.GetOk)
    head = raw.read()
    assert raw.read().value == b"question"
    return str(head.properties.reply_to)


def test_a_direct_reply_comes_to_the_channel_that_asked(raw: Raw, other: Raw) -> None:
    queue = declare(raw, exclusive=False)
    ask(raw, queue)
    reply_to = answer_to(other, queue)
    assert reply_to.startswith(REPLIES + ".")
    assert depth(other, reply_to) == 0
    other.publish(b"answer", reply_to, properties={"correlation_id": "1"})
    deliver = raw.expect(Basic.Deliver)
    assert (deliver.routing_key, content(raw)[1]) == (reply_to, b"answer")


@pytest.mark.parametrize("end", ["cancel", "channel", "connection"])
def test_nobody_waits_for_a_reply_any_more(raw: Raw, other: Raw, end: str) -> None:
    queue = declare(raw, exclusive=False)
    tag = ask(raw, queue)
    reply_to = answer_to(other, queue)
    if end == "cancel":
        raw.call(Basic.Cancel(consumer_tag=tag), Basic.CancelOk)
    elif end == "channel":
        raw.call(commands.Channel.Close(0, "", 0, 0), commands.Channel.CloseOk)
    else:
        raw.send(commands.Connection.Close(0, "", 0, 0), 0)
        assert isinstance(raw.read(), commands.Connection.CloseOk)
    other.publish(b"answer", reply_to, mandatory=True)
    assert other.expect(Basic.Return).reply_code == 312
    content(other)
    other.send(Queue.Declare(queue=reply_to))
    refused(other, 404)


def test_a_cancelled_reply_consumer_may_come_again(raw: Raw) -> None:
    tag = raw.call(Basic.Consume(queue=REPLIES, no_ack=True), Basic.ConsumeOk).consumer_tag
    raw.call(Basic.Cancel(consumer_tag=tag), Basic.CancelOk)
    raw.call(Basic.Consume(queue=REPLIES, no_ack=True), Basic.ConsumeOk)
    raw.send(Basic.Consume(queue=REPLIES, no_ack=True))
    refused(raw, 406, "reply consumer already set")


def test_a_question_needs_a_consumer_for_its_answer(raw: Raw) -> None:
    raw.publish(b"question", "q", properties={"reply_to": REPLIES})
    refused(raw, 406, "fast reply consumer does not exist")


@pytest.mark.parametrize(
    "method", [Basic.Consume, Basic.Get, Queue.Purge, Queue.Delete], ids=["consume", "get", "purge", "delete"]
)
def test_a_reply_queue_is_nobody_else_s(raw: Raw, other: Raw, method: type) -> None:
    queue = declare(raw, exclusive=False)
    ask(raw, queue)
    reply_to = answer_to(other, queue)
    other.send(method(queue=reply_to))
    if method is not Queue.Delete:  # of what is not there, delete says that it is gone
        refused(other, 404)
    sync(raw)
    other.publish(b"answer", reply_to)
    raw.expect(Basic.Deliver)
