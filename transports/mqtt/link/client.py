"""Owns MqttClient: the link to a remote broker, which is a client there (`type: mqtt-client`).

Its rule: a link that is down is tried again for ever, says why in /readyz, and loses nothing: what comes stays at the
remote until it is stored here, and what goes stays in the outbox until the remote has it.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import secrets
from functools import partial

import aiomqtt
import anyio
import anyio.to_thread
from aiomqtt.exceptions import MqttConnectError
from paho.mqtt.client import WebsocketConnectionError

from gateway.logs import log
from gateway.net.remote_tls import remote_context
from gateway.net.tls import TlsError
from gateway.transport import Gateway, StateChange
from gateway.transport.outbox import outbox
from gateway.transport.sink import drive
from transports.mqtt.link.remote import LinkError, Remote
from transports.mqtt.link.settings import MqttClientSettings
from transports.mqtt.link.sink import RemoteSink
from transports.mqtt.link.source import Source

MAX_SEND = 100
"""Messages that wait for their PUBACKs together."""
STEADY_SECONDS = 10.0
"""A connection that lasted so long was a good one: the pauses begin with the first again."""
_CLIENT_ID = "client-id"
_FILTERS = "filters"


class MqttClient:
    """A Transport."""

    Settings = MqttClientSettings
    is_link = True

    def __init__(self, name: str, settings: MqttClientSettings) -> None:
        self.name = name
        self.settings = settings
        self._owner = f"link.{name}"
        self._up_since = math.inf

    async def run(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._counters = gateway.counters(self.name)
        self._report("not connected yet")
        # At once: a remote that is away must not hold up the start.
        gateway.started(self.name, [str(self.settings.place)])
        loop = asyncio.get_running_loop()
        first, last = self.settings.reconnect
        pause = first
        while True:
            self._up_since = math.inf
            try:
                why = await self._connect()
            except (aiomqtt.MqttError, LinkError, TlsError, WebsocketConnectionError, OSError) as error:
                refused = isinstance(error, (MqttConnectError, LinkError, TlsError))
                self._counters.refusals["link-refused" if refused else "link-unreachable"] += 1
                why = str(error) or type(error).__name__
            except Exception as error:
                self._report(f"{type(error).__name__}: {error}")
                raise
            if loop.time() - self._up_since > STEADY_SECONDS:
                pause = first
            self._report(why)
            wait = pause * random.uniform(0.75, 1.25)
            pause = min(pause * 2, last)
            place = str(self.settings.place)
            log.warning("link is down", link=self.name, remote=place, reason=why, again_in_seconds=round(wait, 2))
            await asyncio.sleep(wait)

    def _report(self, why: str) -> None:
        # Where the remote is stands in the log alone: /readyz tells everybody.
        self._gateway.impair(self.name, why, self.settings.required)

    async def _connect(self) -> str:
        """One connection from its beginning to its end; returns why it ended."""
        settings, gateway = self.settings, self._gateway
        tls = await anyio.to_thread.run_sync(remote_context, settings.tls) if settings.place.encrypted else None
        source = Source(self.name, settings, gateway, self._report)
        remote = Remote(settings, await self._client_id(), tls, source.receive)
        await remote.open()
        self._counters.connections_total += 1
        try:
            await self._subscribe(remote)
            self._up_since = asyncio.get_running_loop().time()
            self._counters.connections = 1
            log.info("link is up", link=self.name, session_present=remote.terms.session_present)
            self._report("")
            if remote.terms.maximum_qos < settings.qos:
                taken = remote.terms.maximum_qos
                log.warning("the remote takes a lower QoS than is sent", link=self.name, qos=taken, asked=settings.qos)
            window = min(settings.max_in_flight, remote.terms.receive_maximum)
            # Ordered sends go one after the other; else one that waits for its answers should not keep others waiting.
            batch = max(1, min(MAX_SEND, window if settings.outbox.group_in_flight > 1 else window // 10))
            sink = RemoteSink(settings, remote, self._counters, gateway.now)
            async with anyio.create_task_group() as group:
                group.start_soon(self._take, source, remote)
                # Only while there is a connection: what waits for one may expire, and is held by nobody.
                send = partial(drive, gateway, outbox(self.name), sink, batch, window, slow_start=True)
                group.start_soon(send)
                why = await remote.lost()
                group.cancel_scope.cancel()
            return why
        finally:
            self._counters.connections = 0
            await remote.close()

    async def _take(self, source: Source, remote: Remote) -> None:
        await source.run(remote.ack)
        remote.end("the remote sent more than may be held at one time, and sends the rest over the next connection")

    async def _client_id(self) -> str:
        """Always the same, since the remote keeps the session under it."""
        if self.settings.client_id:
            return self.settings.client_id
        known = self._gateway.state(self._owner).get(_CLIENT_ID)
        if known is not None:
            return known.decode()
        made = f"gateway{secrets.token_hex(8)}"  # 23 letters and digits: every server takes these [MQTT-3.1.3-5]
        if not await self._gateway.put([StateChange(self._owner, _CLIENT_ID, made.encode())]):
            raise LinkError(f"no client id can be stored here: {self._gateway.refusing}")
        return made

    async def _subscribe(self, remote: Remote) -> None:
        """So that the remote has these subscriptions and no earlier ones, whatever its session held."""
        wanted = self.settings.subscribe
        stored = self._gateway.state(self._owner).get(_FILTERS)
        known: list[str] = json.loads(stored) if stored is not None else []
        if not (wanted or known):
            return
        # First what may be there from now on, or a crash would leave a subscription that nobody knows of.
        await self._gateway.put([self._filters([*dict.fromkeys((*known, *wanted))])])
        stale = [filter for filter in known if filter not in wanted]
        if stale and remote.terms.session_present:
            await remote.unsubscribe(stale)
        if wanted:
            await remote.request(wanted, self.settings.subscribe_qos)
        self._gateway.keep([self._filters(wanted)])

    def _filters(self, filters: list[str] | tuple[str, ...]) -> StateChange:
        return StateChange(self._owner, _FILTERS, json.dumps(filters).encode())
