"""The connection class of the listeners on real sockets and the daemon's own event loop."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, cast

import pytest
import uvloop

from gateway.model.counters import TransportCounters
from gateway.net import tcp
from gateway.net.connection_limits import Crowd
from gateway.net.tcp import TcpConnection
from gateway.transport import Gateway
from tests.harness.process import Address

NOT_NEEDED = cast(Gateway, None)
SECONDS = 10.0


def run(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @wraps(test)
    def inner(*args: Any, **kwargs: Any) -> None:
        uvloop.run(asyncio.wait_for(test(*args, **kwargs), 60))

    return inner


class Server:
    """Takes connections whose `received` is the test's, which gets the connection and the buffer."""

    def __init__(self, received: Callable[[TcpConnection, bytearray], int]) -> None:
        self.counters = TransportCounters()
        self.connections: list[TcpConnection] = []
        self.gone = asyncio.Event()
        server = self

        class Connection(TcpConnection):
            def received(self, buffer: bytearray) -> int:
                return received(self, buffer)

            def lost(self, error: Exception | None) -> None:
                server.gone.set()

        self._connection = Connection

    async def start(self) -> Address:
        self._server = await asyncio.get_running_loop().create_server(self._make, "127.0.0.1", 0)
        return Address(*self._server.sockets[0].getsockname())

    def _make(self) -> TcpConnection:
        self.connections.append(self._connection(NOT_NEEDED, self.counters, Crowd(1000, 1 << 30, self.counters)))
        return self.connections[-1]

    async def stop(self) -> None:
        for connection in self.connections:
            connection.abort()
        await self.gone.wait()
        self._server.close()


def client(address: Address) -> socket.socket:
    made = socket.create_connection(address, timeout=SECONDS)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


def read_all(peer: socket.socket, octets: int) -> int:
    """Reads so many, fewer at the end of the stream."""
    found = 0
    while found < octets and (data := peer.recv(1 << 20)):
        found += len(data)
    return found


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - no event tells it
        await asyncio.sleep(0.01)


@run
async def test_a_peer_that_reads_no_answers_is_not_read_until_it_does() -> None:
    def tenfold(connection: TcpConnection, buffer: bytearray) -> int:
        connection.send(bytes(buffer) * 10)
        return len(buffer)

    server = Server(tenfold)
    with client(await server.start()) as peer:
        sent = 0

        def flood() -> None:
            nonlocal sent
            for _ in range(64):
                peer.sendall(bytes(1 << 18))
                sent += 1 << 18

        flooding = threading.Thread(target=flood)
        flooding.start()
        await until(lambda: bool(server.connections))
        connection = server.connections[0]
        await until(lambda: connection.paused and connection.buffered() > tcp.UNREAD_OCTETS)
        await asyncio.sleep(0.2)
        # One turn's answers may come on top, however much the peer would like to send.
        assert connection.buffered() < tcp.UNREAD_OCTETS + 10 * 2 * tcp.TURN_OCTETS
        got = await asyncio.to_thread(read_all, peer, 64 * 10 << 18)
        flooding.join()
        assert (sent, got) == (64 << 18, 64 * 10 << 18)
    await server.stop()


@run
async def test_a_peer_that_never_reads_its_answers_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp, "STALL_SECONDS", 0.2)

    def much(connection: TcpConnection, buffer: bytearray) -> int:
        connection.send(bytes(32 << 20))
        return len(buffer)

    server = Server(much)
    with client(await server.start()) as peer:
        peer.sendall(b"x")
        await until(lambda: any(not connection.writable for connection in server.connections))
        peer.sendall(b"x")
        await server.gone.wait()
        assert server.counters.refusals["stalled"] == 1
    await server.stop()


@run
async def test_the_last_words_reach_a_peer_that_is_still_sending() -> None:
    def bye(connection: TcpConnection, buffer: bytearray) -> int:
        connection.send(b"bye")
        connection.close()
        return len(buffer)

    server = Server(bye)
    with client(await server.start()) as peer:

        def talk() -> bytes:
            peer.sendall(bytes(8 << 20))
            heard = peer.recv(100)
            assert peer.recv(100) == b""
            return heard

        assert await asyncio.to_thread(talk) == b"bye"
    await server.gone.wait()
    await server.stop()


@run
async def test_a_peer_that_does_not_end_after_us_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp, "LINGER_SECONDS", 0.2)

    def bye(connection: TcpConnection, buffer: bytearray) -> int:
        connection.close()
        connection.send(b"too late, and no error")
        return len(buffer)

    server = Server(bye)
    with client(await server.start()) as peer:
        peer.sendall(b"x")
        await server.gone.wait()
    await server.stop()


@run
async def test_one_connection_that_sends_much_leaves_the_others_their_turn() -> None:
    turns: list[int] = [0]

    def count(connection: TcpConnection, buffer: bytearray) -> int:
        turns[-1] += len(buffer)
        return len(buffer)

    def next_turn() -> None:
        turns.append(0)
        asyncio.get_running_loop().call_soon(next_turn)

    server = Server(count)
    address = await server.start()
    with client(address) as peer:
        await asyncio.get_running_loop().run_in_executor(None, peer.sendall, b"x")
        await until(lambda: sum(turns) == 1)
        server.connections[0].pause("test")
        flooding = threading.Thread(target=peer.sendall, args=(bytes(2 << 20),))
        flooding.start()
        await asyncio.sleep(0.1)  # all that the kernel takes waits there
        next_turn()
        server.connections[0].resume("test")
        await until(lambda: sum(turns) == 1 + (2 << 20))
        flooding.join()
        assert max(turns) <= 2 * tcp.TURN_OCTETS
    await server.stop()


@run
async def test_millions_of_small_answers_arrive() -> None:
    def answer(connection: TcpConnection, buffer: bytearray) -> int:
        connection.send_all([b"ab"] * 4_100_000)
        return len(buffer)

    server = Server(answer)
    with client(await server.start()) as peer:
        peer.sendall(b"x")
        await until(lambda: server.counters.octets_out > 0)
        assert await asyncio.to_thread(read_all, peer, 8_200_000) == 8_200_000
    await server.stop()
