"""Owns serving HTTP inside the daemon's loop: sockets, limits, Basic authentication, and errors as JSON.

Its rule: no request may hold more than its stated limit, and no answer says more than the one who asks may know.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import errno
import functools
import socket
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any, cast

import anyio
import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.address import Address
from gateway.errors import ListenError, LoginBusyError
from gateway.logs import log
from gateway.model.counters import TransportCounters
from gateway.model.credit import Pressure
from gateway.model.principal import User
from gateway.net import origin, percent
from gateway.net.connection_limits import Crowd
from gateway.net.http_connection import PEER, HttpPeer, Limits
from gateway.net.roles import Host
from gateway.slices import Slices

MAX_CONNECTIONS = 1_000
MAX_UNFINISHED_OCTETS = 64 << 20
REQUEST_SECONDS = 20
MAX_HEAD_OCTETS = 65_536
KEEP_ALIVE_SECONDS = 30


class Refused(HTTPException):
    """Ends a request with a status and a clear text; `fields` go into the JSON beside `error`."""

    def __init__(self, status: int, text: str, headers: dict[str, str] | None = None, **fields: Any) -> None:
        super().__init__(status, text, headers)
        self.fields = fields


def as_json(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")


async def rows(items: Iterable[Any], slices: Slices) -> list[msgspec.Raw]:
    """Parts of a JSON answer that may be long. What `items` is read from must not change meanwhile."""
    found: list[msgspec.Raw] = []
    for item in items:
        found.append(msgspec.Raw(msgspec.json.encode(item)))
        await slices.pause()
    return found


async def read_body(request: Request, limit: int) -> bytes:
    """The whole body. Raises Refused 413 beyond `limit` bytes, before they are read if the client says so."""
    said = request.headers.get("content-length", "")
    too_large = Refused(413, f"the body is larger than {limit} bytes")
    if said.isascii() and said.isdigit() and (len(said) > 18 or int(said) > limit):
        raise too_large
    parts: list[bytes] = []
    size = 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > limit:
                raise too_large
            parts.append(part)
    except ClientDisconnect as error:  # nobody hears this answer
        raise Refused(400, "the body ended before it was whole") from error
    return b"".join(parts)


async def relief(pressure: Pressure) -> None:
    """Waits, with the body unread, while the daemon's own buffers are full (ruling 22)."""
    if pressure.high:
        relieved = asyncio.Event()
        pressure.on_low(relieved.set)
        await relieved.wait()


async def login(request: Request, gateway: Host, transport: str, listen: Address) -> User:
    """Who asks, by HTTP Basic [RFC 7617]. If a reload puts him out before he is answered, his connection ends. Raises
    Refused 401, 503 if it can't be found out now, and 403 for a page of a browser that is none of this machine's while
    everybody on it is let in; all are counted and logged as of that transport, which listens there."""
    peer: HttpPeer = request.scope["state"][PEER]
    name, password = _credentials(request.headers.get("authorization", ""))
    if origin.is_private(listen, gateway.anonymous):
        headers = request.headers
        if why := origin.why_refused(headers.get("host"), headers.get("origin")):
            gateway.refused(transport, "foreign-page", peer.address, name or "", why=why)
            raise Refused(403, why)
    try:
        user = await peer.as_long_as_connected(gateway.authenticate(name, password, peer.address))
    except LoginBusyError as error:
        gateway.refused(transport, "login-busy", peer.address, name or "", why=str(error))
        raise Refused(503, str(error), {"retry-after": "1"}) from error
    except ConnectionError as error:
        raise Refused(400, "the client has gone") from error  # nobody hears it
    if user is None:
        why = "no name and password" if name is None else "no such user, or a wrong password"
        gateway.refused(transport, "bad-credentials", peer.address, name or "", why=why)
        raise Refused(401, "name and password are needed", {"www-authenticate": 'Basic realm="gateway"'})
    peer.let_in(gateway, user, transport)
    return user


def _credentials(header: str) -> tuple[str | None, bytes | None]:
    scheme, _, encoded = header.partition(" ")
    if scheme.lower() != "basic":
        return None, None
    try:
        pair = base64.b64decode(encoded.strip(), validate=True)
        name, colon, password = pair.partition(b":")
        return (name.decode(), password) if colon else (None, None)
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return None, None


def app(routes: Sequence[BaseRoute]) -> Starlette:
    """An application whose every error is JSON."""
    return Starlette(routes=list(routes), exception_handlers={HTTPException: _refused, Exception: _failed})


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    texts = {404: "there is nothing at this path", 405: "this path does not take that method"}
    plain = not isinstance(error, Refused)
    text = texts.get(error.status_code, error.detail) if plain else error.detail
    response = as_json({"error": text, **getattr(error, "fields", {})}, error.status_code)
    response.headers.update(error.headers or {})
    return response


async def _failed(request: Request, error: Exception) -> Response:
    log.fault("request failed", error, method=request.method, path=request.url.path)
    return as_json({"error": "internal error; the log says more"}, 500)


def _limited(application: ASGIApp, crowd: Crowd) -> ASGIApp:
    """Refuses what comes while as many requests as may be are being answered."""
    busy = as_json({"error": "too many requests at one time; try again later"}, 503)
    busy.headers["retry-after"] = "1"

    async def limited(scope: Scope, receive: Receive, send: Send) -> None:
        has_place = crowd.has_place(scope["state"][PEER])
        await (application if has_place else busy)(scope, receive, send)

    return limited


def _readable(application: ASGIApp) -> ASGIApp:
    """Refuses a path or a query that is no text; what serves would read it as another one."""

    async def readable(scope: Scope, receive: Receive, send: Send) -> None:
        for part, octets in (("path", scope["raw_path"]), ("query", scope["query_string"])):
            try:
                percent.decode_text(octets)
            except ValueError as error:
                await as_json({"error": f"the {part} {error}"}, 400)(scope, receive, send)
                return
        await application(scope, receive, send)

    return readable


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """None: signals are the daemon's."""
        yield


def listen(name: str, address: Address) -> list[socket.socket]:
    """The listening sockets of an address, all interfaces of both families for an empty host. Raises ListenError."""
    made: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(address.host or None, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        port = address.port
        for family, kind, protocol, _, place in dict.fromkeys(found):
            try:
                listener = socket.socket(family, kind, protocol)
            except OSError as error:
                if error.errno == errno.EAFNOSUPPORT and len(found) > 1:
                    continue  # the kernel does without IPv6
                raise
            made.append(listener)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind((place[0], port, *place[2:]))
            # With port 0 the first family chooses, and the others take the same.
            port = listener.getsockname()[1]
            listener.listen(1024)
            listener.setblocking(False)
    except OSError as error:
        for listener in made:
            listener.close()
        raise ListenError(f"{name} can't listen on {address}: {error.strerror or error}") from error
    return made


def addresses(sockets: Sequence[socket.socket]) -> list[str]:
    """`http://127.0.0.1:8080` for each socket."""
    shown = []
    for listener in sockets:
        host, port, *_ = listener.getsockname()
        shown.append(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")
    return shown


async def serve(
    application: ASGIApp,
    sockets: list[socket.socket],
    drain_timeout: float,
    counters: TransportCounters,
    limits: Limits,
    stopping: Callable[[], None] = lambda: None,
) -> None:
    """Until cancelled; then takes no more requests, lets those that run end within `drain_timeout` and returns.
    `stopping` is called at once, to end those that would run for ever."""
    crowd = Crowd(limits.max_connections, limits.max_unfinished, counters)
    config = uvicorn.Config(
        _limited(_readable(application), crowd),
        # uvicorn asks for a class, and makes the connections by calling it.
        http=cast(type[HttpPeer], functools.partial(HttpPeer, crowd=crowd, counters=counters, limits=limits)),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=max(1, round(drain_timeout)),
        h11_max_incomplete_event_size=MAX_HEAD_OCTETS,
    )
    server = _Server(config)
    task = asyncio.create_task(server.serve(sockets))
    try:
        await asyncio.shield(task)
    finally:
        server.should_exit = True
        stopping()
        with anyio.CancelScope(shield=True):
            await asyncio.wait([task])
        for listener in sockets:
            listener.close()
