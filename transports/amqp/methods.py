"""Owns what each method of a channel does: a table from a method to the part of the connection that knows.

Its rule: a method that stands in no table is refused by its name, never passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from pamqp import commands as amqp

from gateway.transport import Outcome, Verdict
from transports.amqp.channel import Channel
from transports.amqp.codec import encode_method
from transports.amqp.consuming import REJECTED
from transports.amqp.declarations import Answer
from transports.amqp.errors import (
    CHANNEL_ERROR,
    CONNECTION_FORCED,
    NOT_IMPLEMENTED,
    PRECONDITION_FAILED,
    AmqpError,
)
from transports.amqp.names import DIRECT_REPLY
from transports.amqp.transaction import Transaction

if TYPE_CHECKING:
    from transports.amqp.connection import AmqpConnection


def _channel_open(connection: AmqpConnection, channel: Channel, method: Any) -> None:
    raise AmqpError(CHANNEL_ERROR, f"channel {channel.id} is open already")


def _channel_close(connection: AmqpConnection, channel: Channel, method: Any) -> None:
    connection.leave(channel)
    channel.closing = True  # what is confirmed from now on is nobody's any more, also if its number is used again
    connection.send(encode_method(channel.id, amqp.Channel.CloseOk))
    connection.forget(channel)


def _channel_flow(connection: AmqpConnection, channel: Channel, method: amqp.Channel.Flow) -> None:
    channel.set_flow(bool(method.active))
    connection.send(encode_method(channel.id, amqp.Channel.FlowOk, active=method.active))


def _channel_flow_ok(connection: AmqpConnection, channel: Channel, method: Any) -> None:
    """Nothing waits for it."""


def _exchange_declare(connection: AmqpConnection, channel: Channel, method: Any) -> None:
    declare = connection.declarations.exchange_declare
    there = connection.topology.exchanges.get(connection.declarations.vhost.exchange(method.exchange))
    if there is not None and there.durable:
        _behind_others(connection, channel, method, declare)
    else:
        connection.waiting.answer(channel, declare(channel.id, method))


def _exchange_delete(connection: AmqpConnection, channel: Channel, method: Any) -> None:
    connection.waiting.answer(channel, connection.declarations.exchange_delete(channel.id, method))


def _exchange_bind(connection: AmqpConnection, channel: Channel, method: Any) -> None:
    bindings = connection.bindings
    if bindings.are_bound(method):
        _behind_others(connection, channel, method, bindings.exchange_bind)
    else:
        connection.waiting.answer(channel, bindings.exchange_bind(channel.id, method))


def _exchange_unbind(connection: AmqpConnection, channel: Channel, method: Any) -> None:
    connection.waiting.answer(channel, connection.bindings.exchange_unbind(channel.id, method))


def _behind_others(
    connection: AmqpConnection, channel: Channel, method: Any, act: Callable[[int, Any], Answer]
) -> None:
    """Acts, and answers, `_after_others`."""
    _after_others(connection, channel, method, lambda: connection.waiting.answer(channel, act(channel.id, method)))


def _after_others(connection: AmqpConnection, channel: Channel, method: Any, act: Callable[[], None]) -> None:
    """Acts when all that came before is decided: what was published on this channel is in its queues, where it counts,
    and is purged or deleted; what anybody declared is in the store, or undone."""

    def then(_: bool) -> None:
        try:
            act()
        except AmqpError as error:
            error.method = method.index
            raise

    connection.waiting.wait(channel, connection.gateway.put(), then)


def _queue_declare(connection: AmqpConnection, channel: Channel, method: Any) -> None:
    declarations = connection.declarations
    if method.queue and connection.gateway.queue(declarations.vhost.full(method.queue)) is None:
        connection.waiting.answer(channel, declarations.queue_declare(channel.id, method))
    else:
        _behind_others(connection, channel, method, declarations.queue_declare)


def _queue_delete(connection: AmqpConnection, channel: Channel, method: Any) -> None:
    def delete(number: int, method: Any) -> Answer:
        notices: list[bytes] = []
        connection.consuming.notices = notices
        try:
            answer = connection.declarations.queue_delete(number, method)
        finally:
            connection.consuming.notices = None
        return answer._replace(frame=answer.frame + b"".join(notices))

    _behind_others(connection, channel, method, delete)


def _queue_purge(connection: AmqpConnection, channel: Channel, method: amqp.Queue.Purge) -> None:
    def purged(count: int) -> None:
        if not method.nowait:
            connection.send(encode_method(channel.id, amqp.Queue.PurgeOk, message_count=count))

    def purge() -> None:
        name = connection.declarations.queue(channel.id, method.queue).name
        connection.waiting.wait(channel, connection.gateway.purge(name), purged)

    _after_others(connection, channel, method, purge)


def _queue_bind(connection: AmqpConnection, channel: Channel, method: Any) -> None:
    bindings = connection.bindings
    if bindings.is_bound(channel.id, method):
        _behind_others(connection, channel, method, bindings.queue_bind)
    else:
        connection.waiting.answer(channel, bindings.queue_bind(channel.id, method))


def _queue_unbind(connection: AmqpConnection, channel: Channel, method: Any) -> None:
    connection.waiting.answer(channel, connection.bindings.queue_unbind(channel.id, method))


def _basic_qos(connection: AmqpConnection, channel: Channel, method: amqp.Basic.Qos) -> None:
    connection.consuming.qos(channel, method)


def _basic_consume(connection: AmqpConnection, channel: Channel, method: amqp.Basic.Consume) -> None:
    _not_draining(connection)
    if method.queue == DIRECT_REPLY:
        connection.consuming.consume_replies(channel, method)
        return
    connection.consuming.consume(channel, connection.declarations.queue(channel.id, method.queue), method)


def _basic_cancel(connection: AmqpConnection, channel: Channel, method: amqp.Basic.Cancel) -> None:
    connection.consuming.cancel(channel, method)


def _basic_cancel_ok(connection: AmqpConnection, channel: Channel, method: Any) -> None:
    """Some clients answer a cancel notification, which asks for no answer."""


def _basic_get(connection: AmqpConnection, channel: Channel, method: amqp.Basic.Get) -> None:
    _not_draining(connection)
    connection.consuming.get(channel, connection.declarations.queue(channel.id, method.queue), method.no_ack)


def _basic_nack(connection: AmqpConnection, channel: Channel, method: amqp.Basic.Nack) -> None:
    connection.consuming.reject(channel, method.delivery_tag, method.multiple, method.requeue)


def _basic_reject(connection: AmqpConnection, channel: Channel, method: amqp.Basic.Reject) -> None:
    connection.consuming.reject(channel, method.delivery_tag or 0, False, method.requeue)


def _basic_recover(connection: AmqpConnection, channel: Channel, method: amqp.Basic.Recover) -> None:
    if not method.requeue:
        raise AmqpError(NOT_IMPLEMENTED, "basic.recover without requeue is not implemented")
    connection.consuming.recover(channel)
    if isinstance(method, amqp.Basic.Recover):
        connection.send(encode_method(channel.id, amqp.Basic.RecoverOk))


def _confirm_select(connection: AmqpConnection, channel: Channel, method: amqp.Confirm.Select) -> None:
    if channel.transaction is not None:
        raise AmqpError(PRECONDITION_FAILED, "cannot switch from tx to confirm mode")
    channel.confirming = True
    if not method.nowait:
        connection.send(encode_method(channel.id, amqp.Confirm.SelectOk))


def _tx_select(connection: AmqpConnection, channel: Channel, method: Any) -> None:
    if channel.confirming:
        raise AmqpError(PRECONDITION_FAILED, "cannot switch from confirm to tx mode")
    if channel.transaction is None:
        channel.transaction = Transaction()
    connection.send(encode_method(channel.id, amqp.Tx.SelectOk))


def _transaction(channel: Channel) -> Transaction:
    if channel.transaction is None:
        raise AmqpError(PRECONDITION_FAILED, "channel is not transactional")
    return channel.transaction


def _tx_commit(connection: AmqpConnection, channel: Channel, method: Any) -> None:
    """commit-ok comes when all of it is on the disk: first the messages and acknowledgements, in one commit, then what
    was rejected, which is settled when these are."""
    transaction = _transaction(channel)
    by_verdict = transaction.by_verdict()

    def answer(_: bool) -> None:
        connection.send(encode_method(channel.id, amqp.Tx.CommitOk))

    def committed(outcomes: Sequence[Outcome]) -> None:
        try:
            connection.publishing.committed(channel, transaction, outcomes)
        except AmqpError as error:
            error.method = method.index
            raise
        for consumer, ids in by_verdict.pop(Verdict.DONE, {}).items():
            consumer.freed(len(ids))
        for verdict, rejected in by_verdict.items():
            for consumer, ids in rejected.items():
                consumer.settle(ids, verdict, REJECTED if verdict is Verdict.DEAD else "")
        if by_verdict:
            connection.waiting.wait(channel, connection.gateway.put(), answer)
        else:
            answer(True)

    connection.waiting.wait(channel, connection.publishing.commit(channel, transaction), committed)


def _tx_rollback(connection: AmqpConnection, channel: Channel, method: Any) -> None:
    transaction = _transaction(channel)
    connection.publishing.renew(channel, transaction)
    transaction.give_back(channel)
    connection.send(encode_method(channel.id, amqp.Tx.RollbackOk))


def _not_draining(connection: AmqpConnection) -> None:
    if connection.draining:
        raise AmqpError(CONNECTION_FORCED, "the gateway is stopping")


Handler = Callable[["AmqpConnection", Channel, Any], None]
HANDLERS: dict[int, Handler] = {
    amqp.Channel.Open.index: _channel_open,
    amqp.Channel.Close.index: _channel_close,
    amqp.Channel.Flow.index: _channel_flow,
    amqp.Channel.FlowOk.index: _channel_flow_ok,
    amqp.Exchange.Declare.index: _exchange_declare,
    amqp.Exchange.Delete.index: _exchange_delete,
    amqp.Exchange.Bind.index: _exchange_bind,
    amqp.Exchange.Unbind.index: _exchange_unbind,
    amqp.Queue.Declare.index: _queue_declare,
    amqp.Queue.Delete.index: _queue_delete,
    amqp.Queue.Purge.index: _queue_purge,
    amqp.Queue.Bind.index: _queue_bind,
    amqp.Queue.Unbind.index: _queue_unbind,
    amqp.Basic.Qos.index: _basic_qos,
    amqp.Basic.Consume.index: _basic_consume,
    amqp.Basic.Cancel.index: _basic_cancel,
    0x3C001F: _basic_cancel_ok,
    amqp.Basic.Get.index: _basic_get,
    amqp.Basic.Nack.index: _basic_nack,
    amqp.Basic.Reject.index: _basic_reject,
    amqp.Basic.Recover.index: _basic_recover,
    amqp.Basic.RecoverAsync.index: _basic_recover,
    amqp.Confirm.Select.index: _confirm_select,
    amqp.Tx.Select.index: _tx_select,
    amqp.Tx.Commit.index: _tx_commit,
    amqp.Tx.Rollback.index: _tx_rollback,
}
