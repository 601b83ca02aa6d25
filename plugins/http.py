"""Owns HTTP as a way in (`http`: POST /topics/TOPIC) and as a way out (`webhook`: a queue to a URL).

Its rule: a status is made from an Outcome and a Verdict from a status, by the two tables below and nothing else, but
for a message that no queue wants and that is retained: it is kept, 201.
The file is also the example of a complete plugin: a Settings struct, `run`, and for a way out a `send`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any
from urllib.parse import quote, urlsplit

import httpx
import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.address import Address, port_of
from gateway.admin.views import plain
from gateway.model.message import Message, Properties, check_destination, retains, to_topic
from gateway.model.names import Actor
from gateway.model.policy import Octets, Seconds
from gateway.net import http_server as web
from gateway.net import percent
from gateway.net.http_connection import Limits
from gateway.transport import Delivery, Gateway, Outcome, Verdict
from gateway.transport.sink import drive
from gateway.transport.source import USER_ID

STATUS = {Outcome.STORED: 201, Outcome.DUPLICATE: 200, Outcome.UNROUTED: 404, Outcome.REFUSED: 429}
REFUSALS = {401: "bad-credentials", 403: "forbidden", 413: "too-large"}
"""How a request is counted that was refused before it became a message; all others are `invalid`."""
BUSY = frozenset((429, 502, 503, 504))
"""The other side wants less: the whole queue waits, with backoff."""
AGAIN = frozenset((408, 425))
"""This request may be tried again; so may any other 5xx, and 3xx, which says that the URL is wrong."""
TOO_LARGE = frozenset((413, 431))
"""The message does not fit what the other side takes. Any other 4xx is its own word on it."""

PREFIX = "x-message-"
HEADER_PREFIX = "x-message-header-"
# How a property is called in HTTP, beside Content-Type and Content-Encoding. Values are percent-encoded UTF-8.
_TEXTS = {
    "id": "message_id",
    "reply-to": "reply_to",
    "type": "type",
    "user-id": "user_id",
    "app-id": "app_id",
    "cluster-id": "cluster_id",
}
_NUMBERS = {"priority": ("priority", 255), "timestamp": ("timestamp", 1 << 62), "payload-format": ("payload_format", 1)}
_OURS = ("topic", "queue", "attempts")
"""What a webhook says besides; another gateway's `http` may be its target and passes over them."""
_SAFE = " !\"#$&'()*+,/:;<=>?@[\\]^`{|}~"


class HttpSettings(msgspec.Struct, frozen=True, kw_only=True):
    """POST /topics/TOPIC accepts a message.

    max_body: larger ones get 413. allow_anonymous: listen beyond loopback although there are no users.
    max_connections: requests that are answered at one time, others get 503; idle connections give way to new ones.
    max_unfinished: bytes of requests that are not whole, of all clients together; beyond it the client is cut off
    that has taken longest. request_timeout: seconds until a request must be whole, head and body.
    """

    type: str
    listen: Address = Address.parse("127.0.0.1:8081")
    max_body: Octets = Octets(1 << 20)
    allow_anonymous: bool = False
    max_connections: Annotated[int, msgspec.Meta(ge=1)] = web.MAX_CONNECTIONS
    max_unfinished: Octets = Octets(web.MAX_UNFINISHED_OCTETS)
    request_timeout: Seconds = Seconds(web.REQUEST_SECONDS)

    def __post_init__(self) -> None:
        if self.request_timeout <= 0:
            raise ValueError("request_timeout: must be above 0")
        if self.max_unfinished < self.max_body:
            raise ValueError("max_unfinished: must be at least max_body")


class Http:
    """The way in."""

    Settings = HttpSettings

    def __init__(self, name: str, settings: HttpSettings) -> None:
        self.name = name
        self.settings = settings

    async def run(self, gateway: Gateway) -> None:
        sockets = web.listen(self.name, self.settings.listen)
        self.gateway = gateway
        self.counters = gateway.counters(self.name)
        routes = [Route("/topics/{topic:path}", self._publish, methods=["POST"])]
        gateway.started(self.name, web.addresses(sockets))
        settings = self.settings
        limits = Limits(settings.max_connections, settings.max_unfinished, settings.request_timeout)
        await web.serve(web.app(routes), sockets, gateway.drain_timeout, self.counters, limits)

    async def _publish(self, request: Request) -> Response:
        user = await web.login(request, self.gateway, self.name, self.settings.listen)
        try:
            await web.relief(self.gateway.pressure)
            body = await web.read_body(request, self.settings.max_body)
            message = self._message(request, body, user.name)
        except web.Refused as refused:
            reasons = {403: "forbidden", 413: "too-large"}
            self.counters.refusals[reasons.get(refused.status_code, "invalid")] += 1
            raise
        self.counters.messages_in += 1
        (outcome,) = await self.gateway.accept([message])
        answer: dict[str, Any] = {"outcome": outcome.value}
        status = STATUS[outcome]
        if outcome is Outcome.UNROUTED and retains(message):
            answer["retained"], status = True, 201
        elif outcome is Outcome.UNROUTED:
            answer["error"] = f"no route leads from {message.topic} to a queue"
        if outcome is Outcome.REFUSED:
            self.counters.refusals["queue-full"] += 1
            answer["error"] = self.gateway.refusing or "a queue is full, or a link did not deliver it; try again later"
            status = 503 if self.gateway.refusing else status
        response = web.as_json(answer, status)
        if outcome is Outcome.REFUSED:
            response.headers["retry-after"] = "1"
        return response

    def _message(self, request: Request, body: bytes, user: str) -> Message:
        topic: str = request.path_params["topic"]
        if why := check_destination(topic):
            raise web.Refused(400, f"the topic {why}")
        fields = _read_fields(request.headers.items())
        claimed = fields["properties"].user_id
        if Actor(user=user).forges(claimed):
            raise web.Refused(403, f"x-message-user-id: you are {user!r}, and can't publish as {claimed!r}")
        return to_topic(topic, body, source=self.name, client_id=fields.pop("client_id", user), **fields)


def _read_fields(pairs: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """What the headers of a request say of its message. Raises web.Refused 400 for one that makes no sense."""
    properties: dict[str, Any] = {}
    fields: dict[str, Any] = {}
    headers: list[tuple[str, str]] = []
    seen: set[str] = set()
    for name, raw in pairs:
        if name in ("content-type", "content-encoding"):
            if not raw.isascii():
                raise web.Refused(400, f"{name}: is no ASCII text")
            properties[name.replace("-", "_")] = raw
        elif not name.startswith(PREFIX):
            continue
        if name in seen and not name.startswith(HEADER_PREFIX):
            raise web.Refused(400, f"{name}: stands more than once")
        seen.add(name)
        if not name.startswith(PREFIX):
            continue
        try:
            octets = percent.decode(raw.encode("latin-1"))
            key = name.removeprefix(PREFIX)
            if key == "correlation-id":
                properties["correlation_id"] = octets
                continue
            value = octets.decode()
            if name.startswith(HEADER_PREFIX) and name != HEADER_PREFIX:
                headers.append((percent.decode_text(name.removeprefix(HEADER_PREFIX).encode()), value))
            elif key in _TEXTS:
                properties[_TEXTS[key]] = value
            elif key in _NUMBERS:
                properties[_NUMBERS[key][0]] = _number(value, _NUMBERS[key][1])
            elif key == "client-id":
                fields["client_id"] = value
            elif key in _OURS:
                continue
            elif key in ("ttl", "delay"):
                fields[key] = float(_number(value, 1 << 32))
            elif key == "qos":
                fields["qos"] = _number(value, 2)
            elif key == "retain":
                fields["retain"] = bool(_number(value, 1))
            else:
                raise ValueError(f"is unknown; a header of your own is called {HEADER_PREFIX}NAME")
        except (ValueError, UnicodeDecodeError) as error:
            raise web.Refused(400, f"{name}: {error}") from error
    fields["properties"] = Properties(headers=tuple(headers), **properties)
    return fields


def _number(value: str, most: int) -> int:
    if not (value.isascii() and value.isdigit() and len(value) < 20 and int(value) <= most):
        raise ValueError(f"expected a whole number from 0 to {most}")
    return int(value)


class WebhookSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Delivers a queue to a URL by POST: 2xx is done; 408, 425, 429, 5xx and a lost connection are tried again by
    the queue's policy; 413 and 431, which the message is too large for, are invalid, any other 4xx is dead.

    timeout: for one request. in_flight: requests at one time. headers: added to each request.
    """

    type: str
    queue: str
    url: str
    timeout: Seconds = Seconds(10)
    in_flight: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 10
    headers: dict[str, str] = {}

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("url: expected an address such as https://shop.example/hook")
        port_of(parts, 443 if parts.scheme == "https" else 80)
        if self.timeout <= 0:
            raise ValueError("timeout: must be above 0")


class Webhook:
    """The way out; a Sink."""

    Settings = WebhookSettings

    def __init__(self, name: str, settings: WebhookSettings) -> None:
        self.name = name
        self.settings = settings

    async def run(self, gateway: Gateway) -> None:
        settings = self.settings
        self.counters = gateway.counters(self.name)
        limits = httpx.Limits(max_connections=settings.in_flight, max_keepalive_connections=settings.in_flight)
        async with httpx.AsyncClient(timeout=settings.timeout, limits=limits, headers=settings.headers) as self.client:
            parts = urlsplit(settings.url)
            # Without user, password and query, which may be secrets.
            gateway.started(self.name, [f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"])
            await drive(gateway, settings.queue, self, batch=1, in_flight=settings.in_flight)

    async def send(self, batch: Sequence[Delivery]) -> list[Verdict | tuple[Verdict, str]]:
        return [await self._post(delivery) for delivery in batch]

    async def _post(self, delivery: Delivery) -> Verdict | tuple[Verdict, str]:
        body = delivery.message.body
        async with self.client.stream("POST", self.settings.url, content=body, headers=_headers(delivery)) as response:
            # What it says beyond its status is of no use, and may be endless: the stream is closed unread.
            status = response.status_code
        self.counters.messages_out += 1
        self.counters.octets_out += len(body)
        if 200 <= status < 300:
            return Verdict.DONE
        reason = f"HTTP {status} {response.reason_phrase}"
        if status in BUSY:
            raise httpx.HTTPStatusError(reason, request=response.request, response=response)
        if status in AGAIN or not 400 <= status < 500:
            return Verdict.RETRY, reason
        return Verdict.INVALID if status in TOO_LARGE else Verdict.DEAD, reason


def _headers(delivery: Delivery) -> list[tuple[str, str]]:
    return [(name, _encode(value)) for name, value in _metadata(delivery)]


def _encode(value: str | bytes) -> str:
    """Printable ASCII as it is, all else percent-encoded; so are blanks where HTTP would strip them."""
    text = quote(value, safe=_SAFE)
    return text if text == text.strip(" ") else text.replace(" ", "%20")


def _metadata(delivery: Delivery) -> Iterator[tuple[str, str | bytes]]:
    message, properties = delivery.message, delivery.message.properties
    yield "x-message-topic", message.topic
    yield "x-message-queue", delivery.queue
    yield "x-message-attempts", str(delivery.attempts)
    if message.client_id:
        yield "x-message-client-id", message.client_id
    if message.retain:
        yield "x-message-retain", "1"
    type = properties.content_type
    yield "content-type", "application/octet-stream" if type is None else type
    if properties.content_encoding is not None:
        yield "content-encoding", properties.content_encoding
    if properties.correlation_id is not None:
        yield "x-message-correlation-id", properties.correlation_id
    if properties.user_id is not None:  # another gateway believes that only of the user himself
        yield HEADER_PREFIX + USER_ID, properties.user_id
    for key, field in (*_TEXTS.items(), *((key, field) for key, (field, _) in _NUMBERS.items())):
        if field != "user_id" and (value := getattr(properties, field)) is not None:
            yield PREFIX + key, str(value)
    for name, value in properties.headers:
        text = value if isinstance(value, str) else msgspec.json.encode(plain(value)).decode()
        yield HEADER_PREFIX + quote(name, safe="!#$&'*+^`|~"), text
