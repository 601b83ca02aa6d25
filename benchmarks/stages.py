"""Owns the stages of a message's way through the daemon: which functions each is.

Its rule: stages are lists of functions; of a sample's stack the innermost listed one counts, and what no list names is
the loop and its sockets.
"""

from __future__ import annotations

from types import CodeType

OTHER = "loop and sockets"
STAGES: dict[str, tuple[str, ...]] = {
    "receive": (
        "transports.tcp:TcpConnection.data_received",
        "transports.tcp:TcpConnection._handle",
        "transports.tcp:TcpConnection._next_turn",
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
    "match": ("gateway.router:Router.route",),
    "group, dedup": (
        "gateway.template:Template._remembering",
        "gateway.template:Template._plain",
        "gateway.template:Fields.levels",
        "gateway.template:Fields.body",
        "gateway.dedup:Dedup.digest",
        "gateway.dedup:Dedup.seen",
        "gateway.dedup:Dedup.add",
        "gateway.dedup:Dedup.sweep",
        "gateway.dedup:body_key",
        "gateway.groups:GroupNames.number",
        "gateway.groups:GroupNames.empty",
        "gateway.groups:GroupNames.free_idle",
    ),
    "enqueue": (
        "gateway.local:LocalGateway.accept",
        "gateway.committer:Committer.accept",
        "gateway.core:Core.accept",
        "gateway.intake:Intake.take",
        "gateway.core:Core.committed",
        "gateway.queue:Queue.store",
    ),
    "encode record": (
        "gateway.gather:Bodies.add",
        "gateway.gather:Gather.add_key",
        "gateway.gather:Gather.commit",
    ),
    "commit": (
        "gateway.core:Core.begin_commit",
        "gateway.committer:Committer._start",
        "gateway.committer:Committer._turn",
        "gateway.committer:Committer._begin",
    ),
    "ack": (
        "gateway.committer:Committer._answer",
        "transports.mqtt.publishing:Publishing._accepted",
        "transports.mqtt.connection:MqttConnection.answered",
    ),
    "deliver": (
        "gateway.core:Core.dispatch",
        "transports.amqp.consuming:Consuming.deliver",
    ),
    "settle": (
        "transports.amqp.connection:AmqpConnection.received",
        "transports.amqp.consuming:Consuming.ack",
        "transports.amqp.consuming:Consuming.flush",
        "gateway.subscription:QueueSubscription.settle",
        "gateway.queue:Queue.done",
    ),
    "write": ("transports.tcp:TcpConnection._flush",),
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
