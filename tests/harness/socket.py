"""Owns NoSocket: a transport without a socket, for a connection that is fed by hand."""

from __future__ import annotations

import asyncio
from typing import Any

from gateway.net.tcp import HIGH_WATER, TcpConnection


class NoSocket(asyncio.Transport):
    """Takes all bytes at once and keeps them; with `stuck` they stay in its write buffer, as with a peer that does not
    read. With `lingers` the peer does not end its side when ours is ended: only `close` ends it."""

    def __init__(self, protocol: TcpConnection) -> None:
        super().__init__()
        self.protocol = protocol
        self.data = bytearray()
        self.writes = 0
        self.reading = True
        self.stuck = False
        self.held = 0
        self.ended = False
        self.lingers = False

    def writelines(self, parts: Any) -> None:
        data = b"".join(parts)
        self.writes += 1
        self.data += data
        if self.stuck:
            self.held += len(data)
            if self.held > HIGH_WATER and self.protocol.writable:
                self.protocol.pause_writing()

    def release(self) -> None:
        """The peer reads again."""
        self.stuck, self.held = False, 0
        self.protocol.resume_writing()

    def get_write_buffer_size(self) -> int:
        return self.held

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_closing(self) -> bool:
        return self.ended

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        """The peer ends its side at once, if it does."""
        if not self.lingers:
            self.close()

    def close(self) -> None:
        if not self.ended:
            self.ended = True
            self.protocol.loop.call_soon(self.protocol.connection_lost, None)

    abort = close
