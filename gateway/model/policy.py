"""Owns QueuePolicy: what a queue promises, in the shape that users write in YAML; every default stands here.

Its rule: a policy is data; what it does is the queue's.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import msgspec

MAX_SECONDS = 1e10
"""Longer durations are refused: clocks and timers could not hold every one."""
MAX_OCTETS = (1 << 62) - 1
MAX_RETAINED_OCTETS = 64 << 20
"""What retained messages take in memory at most, unless the configuration says otherwise."""
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZES = {"": 1, "b": 1, "kb": 1024, "mb": 1024**2, "gb": 1024**3, "k": 1024, "m": 1024**2, "g": 1024**3}
# These run on the config alone, never on what a client sent.
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", re.ASCII)
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)", re.ASCII | re.IGNORECASE)


class Seconds(float):
    """A duration: a number of seconds, or text such as `500ms`, `30s`, `5m`, `1h30m`, `7d`. Never negative."""

    @classmethod
    def parse(cls, value: Any) -> Seconds:
        """Raises ValueError that says what a duration looks like."""
        found: float | None = None
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            found = value
        elif isinstance(value, str):
            text = value.strip()
            parts = _DURATION.findall(text)
            if parts and "".join(number + unit for number, unit in parts) == text:
                found = sum(float(number) * _UNITS[unit] for number, unit in parts)
        if found is not None and found > MAX_SECONDS:
            raise ValueError(f"{value!r} is longer than {MAX_SECONDS:.0f} seconds, some 300 years")
        if found is not None and found >= 0:
            return cls(found)
        raise ValueError(f"{value!r} is no duration; write for example 500ms, 30s, 5m or 1h30m")


class SecondsRange(tuple[float, float]):
    """From..to, both durations: `1s..1m`; one duration alone stands for both ends."""

    __slots__ = ()

    @classmethod
    def parse(cls, value: Any) -> SecondsRange:
        """Raises ValueError that says what a range looks like."""
        if isinstance(value, list) and len(value) == 2:
            first, last = value
        elif isinstance(value, str) and ".." in value:
            first, last = value.split("..", 1)
        else:
            first = last = value
        low, high = Seconds.parse(first), Seconds.parse(last)
        if low > high:
            raise ValueError(f"{value!r} runs backwards; write the shorter duration first, as in 1s..1m")
        return cls((low, high))


class Octets(int):
    """A size in bytes: a number, or text such as `64KB`, `10MB`, `2GB` (powers of 1024). Never negative."""

    @classmethod
    def parse(cls, value: Any) -> Octets:
        """Raises ValueError that says what a size looks like."""
        size: float | None = None
        if isinstance(value, int) and not isinstance(value, bool):
            size = value
        elif isinstance(value, str) and len(value) <= 64 and (found := _SIZE.fullmatch(value.strip())):
            number, unit = found[1], _SIZES.get(found[2].lower())
            if unit is not None:
                size = float(number) * unit if "." in number else int(number) * unit
        if size is not None and size > MAX_OCTETS:
            raise ValueError(f"{value!r} is more than {MAX_OCTETS} bytes, which no machine has")
        if size is not None and size >= 0:
            return cls(size)
        raise ValueError(f"{value!r} is no size; write for example 65536, 64KB, 10MB or 2GB")


def decode_custom(kind: type, value: Any) -> Any:
    """msgspec's `dec_hook` for the types above."""
    parse = getattr(kind, "parse", None)
    if parse is None:
        raise NotImplementedError(f"no way to decode {kind}")
    return parse(value)


def encode_custom(value: Any) -> Any:
    """msgspec's `enc_hook` for the types above."""
    if isinstance(value, SecondsRange):
        return [float(value[0]), float(value[1])]
    if isinstance(value, Seconds):
        return float(value)
    if isinstance(value, Octets):
        return int(value)
    raise NotImplementedError(f"no way to encode {type(value)}")


class DedupPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A second message with `key` in `window` (from the first one) is answered with success and not stored.

    key: a template, or `sha256` for the hash of the body. scope: in the whole queue, or in the message's group.
    required: false stores a message for which the key has no value, never as a duplicate; true makes it a dead letter.
    """

    key: str
    window: Seconds = Seconds(300)
    scope: Literal["queue", "group"] = "queue"
    required: bool = True


class ExchangeTarget(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where an AMQP client's queue sends its dead letters (`x-dead-letter-exchange`, `-routing-key`).

    topic is in MQTT form, or a queue's name for the default exchange; None keeps the message's routing key, to which
    `queues` is added for the default exchange: the names of those that it may reach begin with that.
    """

    exchange: str
    topic: str | None = None
    queues: str = ""


class QueuePolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one queue promises (design section 4).

    durable: every message is journaled whatever its QoS; False keeps them in memory only.
    group: a template; messages of one value are delivered strictly in commit order. None: competing consumers.
    group_in_flight: how many of a group may be in flight, all to one consumer (1..1000).
    ack_timeout: seconds from delivery until an unsettled message goes back and counts an attempt; None: never.
    max_deliveries: attempts after which `on_exhausted` decides; None: no limit.
    retry_delay: doubles from the first to the second value with each attempt, with jitter; None: at once.
    dead_letter: queue that gets what can't be delivered, an exchange for AMQP queues, or `none` to discard.
    ttl, delay, max_delay: seconds; a ttl of 0 is for a consumer that is waiting now. max_messages, max_bytes: None for
    no limit; with 0 nothing waits here, and what no consumer takes at once meets `overflow`.
    max_groups: groups that hold messages; a message of one more is refused.
    overflow: what happens at a limit; `drop-oldest` and `dead-letter` take the oldest that is not in flight;
    `refuse-dead-letter` refuses the message and makes a dead letter of it besides, each time that it is offered.
    expires: seconds without a consumer after which the queue is deleted with what it holds; None: never.
    max_priority: 1 to 255; messages of a higher priority are delivered first, and what is above it counts as it. None:
    priorities mean nothing. Not together with `group`.
    single_active: only one consumer at a time gets messages; another does when it has left and holds none.
    """

    durable: bool = True
    group: str | None = None
    group_in_flight: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 1
    dedup: DedupPolicy | None = None
    ack_timeout: Seconds | None = None
    max_deliveries: Annotated[int, msgspec.Meta(ge=1)] | None = 10
    retry_delay: SecondsRange | None = None
    on_exhausted: Literal["skip", "park", "block"] = "skip"
    dead_letter: str | ExchangeTarget = "dead-letters"
    ttl: Seconds | None = None
    delay: Seconds = Seconds(0)
    max_delay: Seconds = Seconds(7 * 86400)
    max_messages: Annotated[int, msgspec.Meta(ge=0)] | None = None
    max_bytes: Octets | None = None
    max_groups: Annotated[int, msgspec.Meta(ge=1)] = 1_000_000
    overflow: Literal["refuse", "refuse-dead-letter", "drop-oldest", "dead-letter"] = "refuse"
    expires: Seconds | None = None
    max_priority: Annotated[int, msgspec.Meta(ge=1, le=255)] | None = None
    single_active: bool = False

    @property
    def refuses(self) -> bool:
        """At a limit it is the sender that is told, and what is here stays."""
        return self.overflow.startswith("refuse")


DISCARD = "none"
"""`dead_letter: none`: what can't be delivered is discarded and counted."""
DEAD_LETTERS = "dead-letters"
"""The built-in durable queue of dead letters."""
DEAD_LETTER_POLICY = QueuePolicy(max_deliveries=None, dead_letter=DISCARD)
