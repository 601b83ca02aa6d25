"""Owns the sink: a process that answers and delivers without looking, to measure what the load generator can do.

Its rule: it does only what no broker can do less of: one read and one write for each lot.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import sys

from benchmarks import wire

PUBACK = b"\x40\x02\x00\x01"
MAX_PENDING = 1 << 22


def serve(packet_size: int, body_size: int, core: int | None) -> None:
    """Prints the ports of publishers and consumer as JSON; runs until it is killed."""
    if core is not None:
        os.sched_setaffinity(0, {core})
    body = b'{"id":"0000000000","v":"'
    frames = wire.delivery(body + b"x" * (body_size - len(body) - 2) + b'"}')
    publishers = socket.create_server(("127.0.0.1", 0))
    consumers = socket.create_server(("127.0.0.1", 0))
    selector = selectors.DefaultSelector()
    for listener in (publishers, consumers):
        selector.register(listener, selectors.EVENT_READ)
    print(json.dumps({"mqtt": publishers.getsockname()[1], "amqp": consumers.getsockname()[1]}), flush=True)
    rest: dict[socket.socket, int] = {}
    consumer: socket.socket | None = None
    pending = bytearray()
    while True:
        for key, _ in selector.select():
            peer = key.fileobj
            assert isinstance(peer, socket.socket)
            if peer is publishers or peer is consumers:
                connection, _ = peer.accept()
                connection.setblocking(False)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                selector.register(connection, selectors.EVENT_READ)
                if peer is consumers:
                    consumer, pending = connection, bytearray()
                else:
                    rest[connection] = 0
                continue
            data = b""
            try:
                data = peer.recv(1 << 18)
            except ConnectionResetError:
                pass
            if not data:
                selector.unregister(peer)
                peer.close()
                rest.pop(peer, None)
                consumer = None if peer is consumer else consumer
            elif peer is not consumer:
                count, rest[peer] = divmod(rest[peer] + len(data), packet_size)
                peer.send(PUBACK * count)
                pending += frames * count
        if consumer and pending:
            try:
                del pending[: consumer.send(pending)]
            except BlockingIOError:
                pass
        elif len(pending) > MAX_PENDING:
            pending.clear()  # nobody consumes


if __name__ == "__main__":
    serve(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else None)
