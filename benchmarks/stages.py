"""Owns the stages of a message's way through the daemon: which functions each is.

Its rule: stages are lists of functions; of a sample's stack the innermost listed one counts, and what no list names is
the loop and its sockets.
"""

from __future__ import annotations

from types import CodeType

OTHER = "loop and sockets"
STAGES: dict[str, tuple[str, ...]] = {
    "receive": (
        "gateway.net.tcp:TcpConnection.data_received",
        "gateway.net.tcp:TcpConnection._handle",
        "gateway.net.tcp:TcpConnection._next_turn",
        "transports.mqtt.connection:MqttConnection.received",
        "transports.mqtt.connection:MqttConnection._handle_packets",
        "transports.mqtt.connection:MqttConnection._take",
    ),
    "decode": (
        "transports.mqtt.codec:Decoder.decode",
        "transports.mqtt.inbound:message_of",
        "transports.mqtt.publishing:Publishing.take",
        "transports.mqtt.publishing:Publishing._accept",
    ),
    "match": ("gateway.routing.router:Router.route",),
    "group, dedup": (
        "gateway.routing.templates:Template._remembering",
        "gateway.routing.templates:Template._plain",
        "gateway.routing.templates:Fields.levels",
        "gateway.routing.templates:Fields.body",
        "gateway.queueing.dedup:Dedup.digest",
        "gateway.queueing.dedup:Dedup.seen",
        "gateway.queueing.dedup:Dedup.add",
        "gateway.queueing.dedup:Dedup.sweep",
        "gateway.queueing.dedup:body_key",
        "gateway.queueing.interning:GroupNames.number",
        "gateway.queueing.interning:GroupNames.empty",
        "gateway.queueing.interning:GroupNames.free_idle",
    ),
    "enqueue": (
        "gateway.engine.gateway:LocalGateway.accept",
        "gateway.engine.committer:Committer.accept",
        "gateway.broker.core:Core.accept",
        "gateway.broker.publish:Intake.take",
        "gateway.broker.core:Core.committed",
        "gateway.queueing.queue:Queue.store",
    ),
    "encode record": (
        "gateway.broker.commit_batch:Bodies.add",
        "gateway.broker.commit_batch:Gather.add_key",
        "gateway.broker.commit_batch:Gather.commit",
    ),
    "commit": (
        "gateway.broker.core:Core.begin_commit",
        "gateway.engine.committer:Committer._start",
        "gateway.engine.committer:Committer._turn",
        "gateway.engine.committer:Committer._begin",
    ),
    "ack": (
        "gateway.engine.committer:Committer._answer",
        "transports.mqtt.publishing:Publishing._accepted",
        "transports.mqtt.connection:MqttConnection.answered",
    ),
    "deliver": (
        "gateway.broker.core:Core.dispatch",
        "transports.amqp.consuming:Consuming.deliver",
    ),
    "settle": (
        "transports.amqp.connection:AmqpConnection.received",
        "transports.amqp.consuming:Consuming.ack",
        "transports.amqp.consuming:Consuming.flush",
        "gateway.queueing.subscription:QueueSubscription.settle",
        "gateway.queueing.queue:Queue.done",
    ),
    "write": ("gateway.net.tcp:TcpConnection._flush",),
}


def names() -> dict[str, dict[str, str]]:
    """The stage by module and qualified name."""
    found: dict[str, dict[str, str]] = {}
    for stage, functions in STAGES.items():
        for function in functions:
            module, _, name = function.partition(":")
            found.setdefault(module, {})[name] = stage
    return found


_BY_PATH = {module.replace(".", "/") + ".py": functions for module, functions in names().items()}


def stage_of(code: CodeType) -> str | None:
    """That of a listed function, or of one defined in it."""
    functions = next((found for path, found in _BY_PATH.items() if code.co_filename.endswith("/" + path)), {})
    qualified = code.co_qualname
    return functions.get(qualified) or functions.get(qualified.partition(".<locals>")[0])
