"""Owns how names change between AMQP and the canonical form, which is MQTT's (design section 5, ruling 9).

Its rule: the swap is its own inverse, so no topic and no routing key is damaged on the way there and back.

In names `/` and `.` change places. In patterns `*` as a whole word is MQTT's `+`, and `#` means the same on both sides;
all else is text, also MQTT's wildcards: the word `+` is the level `\\+` of a filter. A message to the default exchange
carries a queue's name, which is not swapped.

`reply_to`: AMQP's `q` is the queue `q`, in canonical form `$queue/q`. A topic `dev/7/reply` is written
`$topic/dev.7.reply` in AMQP. A publish to the default exchange whose key begins with `$topic/` and names no queue
goes to `amq.topic` with the rest of the key. So a worker that does what every AMQP worker does (publish the answer
to the default exchange with `routing_key=reply_to`) answers a device, and need not know that it is one.
"""

from __future__ import annotations

from gateway.model.message import QUEUE_PREFIX
from gateway.model.topics import level_text, literal_level, swap

TOPIC_PREFIX = "$topic/"
DIRECT_REPLY = "amq.rabbitmq.reply-to"
"""The pseudo-queue of direct replies; with a dot and a token behind it, that of one channel."""
MAX_SHORT = 255
"""Bytes in a short string [AMQP 4.2.5.3]."""


def to_filter(pattern: str) -> str:
    """An AMQP binding key to the filter of a binding."""
    return "/".join("+" if word == "*" else literal_level(word.replace("/", ".")) for word in pattern.split("."))


def to_pattern(filter: str) -> str:
    """The filter of a binding to an AMQP binding key; the inverse of `to_filter`. No key says a level that is `*`."""
    return ".".join("*" if level == "+" else level_text(level).replace(".", "/") for level in filter.split("/"))


def reply_to_topic(reply_to: str, prefix: str = "") -> str:
    """The canonical form of an AMQP `reply_to`. `prefix`: of the names in the client's virtual host, from which only
    that of `/` reaches topics."""
    if not prefix and reply_to.startswith(TOPIC_PREFIX):
        topic = swap(reply_to[len(TOPIC_PREFIX) :])
        # `$topic/$queue.q` would come back as `q`: as a topic it can't be written, so it names a queue.
        if not topic.startswith(QUEUE_PREFIX):
            return topic
    return QUEUE_PREFIX + prefix + reply_to


def reply_to_key(topic: str, prefix: str = "") -> str | None:
    """The AMQP `reply_to` of a canonical one; None if it would not come back as it was or is too long."""
    own = QUEUE_PREFIX + prefix
    key = topic[len(own) :] if topic.startswith(own) else TOPIC_PREFIX + swap(topic)
    if len(key.encode()) > MAX_SHORT or reply_to_topic(key, prefix) != topic:
        return None
    return key
