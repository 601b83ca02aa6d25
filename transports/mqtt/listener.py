"""Owns MqttListener: the MQTT transport of the daemon, from its port to its drain.

Its rule: when it is cancelled nothing that was answered for is lost and every client is told why it must go.
"""

from __future__ import annotations

import asyncio
from typing import ClassVar

import anyio
import msgspec

from gateway.errors import ListenError
from gateway.logs import log
from gateway.transport import Gateway
from transports.mqtt.connection import MqttConnection, Shared
from transports.mqtt.sessions import Sessions
from transports.mqtt.settings import MqttSettings
from transports.tcp import keep_alive

TICK_SECONDS = 1.0
"""How coarse keep-alives, session expiries and delayed wills are."""
BACKLOG = 1024
CLOSE_SECONDS = 1.0
"""How long clients that were told to go may take before they are cut off."""


class MqttListener:
    """MQTT 3.1.1 and 5.0 on one port."""

    Settings: ClassVar[type[msgspec.Struct]] = MqttSettings

    def __init__(self, name: str, settings: MqttSettings) -> None:
        self.name = name
        self.settings = settings

    async def run(self, gateway: Gateway) -> None:
        """Until cancelled; then drains within `gateway.drain_timeout`. Raises ListenError."""
        shared = Shared(self.name, self.settings, gateway, Sessions.of(gateway))
        loop = asyncio.get_running_loop()
        address = self.settings.listen
        try:
            server = await loop.create_server(
                lambda: MqttConnection(shared), address.host or None, address.port, backlog=BACKLOG
            )
        except OSError as error:
            raise ListenError(f"transport {self.name} can't listen on {address}: {error.strerror or error}") from error
        keep_alive(server.sockets, self.settings.tcp_keep_alive)
        gateway.started(self.name, [_url(socket.getsockname()) for socket in server.sockets])
        try:
            last = loop.time()
            while True:
                await anyio.sleep(TICK_SECONDS)
                now = loop.time()
                for connection in list(shared.connections):
                    connection.tick(now - last)
                shared.sessions.sweep()
                last = now
        finally:
            server.close()
            with anyio.CancelScope(shield=True):
                await self._drain(shared)

    async def _drain(self, shared: Shared) -> None:
        """Waits for the PUBACKs that are on their way, then sends everybody off."""
        empty = asyncio.Event()

        def gone() -> None:
            if not shared.connections:
                empty.set()

        shared.gone = gone
        for connection in list(shared.connections):
            connection.drain()
        gone()
        with anyio.move_on_after(shared.gateway.drain_timeout):
            await empty.wait()
        if shared.connections:
            log.info("drain timeout", transport=self.name, connections=len(shared.connections))
        for connection in list(shared.connections):
            connection.shut_down()
        with anyio.move_on_after(CLOSE_SECONDS):
            await empty.wait()
        for connection in list(shared.connections):
            connection.abort()


def _url(address: tuple[str, int] | tuple[str, int, int, int]) -> str:
    host, port = address[:2]
    return f"mqtt://[{host}]:{port}" if ":" in host else f"mqtt://{host}:{port}"
