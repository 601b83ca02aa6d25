"""Owns AmqpError: why a channel or a connection must end, in the codes of the specification.

Its rule: the code alone decides whether the channel ends or the connection [AMQP 4.2.7].
"""

from __future__ import annotations

from pamqp.exceptions import CLASS_MAPPING

from gateway.errors import GatewayError

CONTENT_TOO_LARGE = 311
NO_ROUTE = 312
CONNECTION_FORCED = 320
INVALID_PATH = 402
ACCESS_REFUSED = 403
NOT_FOUND = 404
RESOURCE_LOCKED = 405
PRECONDITION_FAILED = 406
FRAME_ERROR = 501
SYNTAX_ERROR = 502
COMMAND_INVALID = 503
CHANNEL_ERROR = 504
UNEXPECTED_FRAME = 505
RESOURCE_ERROR = 506
NOT_ALLOWED = 530
NOT_IMPLEMENTED = 540

_SOFT = frozenset({CONTENT_TOO_LARGE, ACCESS_REFUSED, NOT_FOUND, RESOURCE_LOCKED, PRECONDITION_FAILED})


def reply_name(code: int) -> str:
    """`NOT_FOUND` for 404: how brokers and clients write it."""
    name: str = getattr(CLASS_MAPPING[code], "name")  # noqa: B009 - pamqp declares it in each subclass only
    return name.replace("-", "_")


class AmqpError(GatewayError):
    """The peer did what it may not. `hard` ends the connection, otherwise only the channel ends.

    method: the index (class id << 16 | method id) of the method at fault, 0 if there is none."""

    def __init__(self, code: int, reason: str, method: int = 0) -> None:
        super().__init__(f"{reply_name(code)} - {reason}")
        self.code = code
        self.method = method

    @property
    def hard(self) -> bool:
        return self.code not in _SOFT

    @property
    def text(self) -> str:
        """The reply text, a short string: at most 255 bytes."""
        return str(self).encode()[:255].decode("utf-8", "ignore")
