"""Owns MqttListener: the MQTT transport of the daemon, from its port to its drain.

Its rule: when it is cancelled nothing that was answered for is lost and every client is told why it must go.
"""

from __future__ import annotations

import asyncio
from typing import ClassVar

import anyio
import msgspec

from gateway.logs import log
from gateway.net.door import Door
from gateway.net.origin import is_private
from gateway.net.proxy import proxied
from gateway.net.sockets import open_port, urls
from gateway.net.websocket import wrapped
from gateway.transport import Gateway
from transports.mqtt.connection import MqttConnection, Shared
from transports.mqtt.sessions import Sessions
from transports.mqtt.settings import MqttSettings

TICK_SECONDS = 1.0
"""How coarse keep-alives, session expiries and delayed wills are."""
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
        settings = self.settings

        def private() -> bool:  # a reload may bring users, or take them away
            return is_private(settings.listen, gateway.anonymous or settings.allow_anonymous)

        door = Door(gateway, self.name, shared.crowd, settings.connect_timeout)
        make = wrapped(lambda: MqttConnection(shared), settings.websocket, "mqtt", shared.counters, private)
        if settings.proxy_protocol:
            make = proxied(door, make, settings.trusted_proxies)
        port = await open_port(gateway, door, settings.listen, make, settings.tls, settings.tcp_keep_alive)
        scheme, path = ("mqtt", "") if settings.websocket is None else ("ws", settings.websocket.path)
        gateway.started(self.name, urls(port, scheme + ("s" if settings.tls is not None else ""), path))
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
            port.close()
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
