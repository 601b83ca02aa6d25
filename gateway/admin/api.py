"""Owns the admin listener: health, metrics, and the JSON API that the command line uses.

Its rule: it does nothing by itself; it asks `Operations` and `Gateway`, and says in JSON what they answered.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Annotated, Any, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from gateway.admin import metrics
from gateway.admin.feed import MAX_CREDIT, Feed
from gateway.admin.openapi import Endpoint, arguments, document
from gateway.admin.operations import GroupView, Operations, QueueStats, Readiness, RedriveProgress, Selection, Step
from gateway.admin.views import (
    BindingView,
    DeliveryView,
    MessageView,
    StoredView,
    build,
    show_binding,
    show_delivery,
    show_stored,
)
from gateway.broker.commit_batch import DeadOnArrival
from gateway.config.settings import AdminSettings
from gateway.errors import ExclusiveUseError, GatewayError, ReservedNameError, UnknownQueueError
from gateway.model.binding import Binding, ExchangeBinding
from gateway.model.message import retains
from gateway.model.names import NOBODY, Actor, check_use, is_reserved
from gateway.model.outcome import Outcome, Verdict
from gateway.model.policy import QueuePolicy
from gateway.model.topics import check_filter
from gateway.net import http_server as web
from gateway.net.http_connection import Limits
from gateway.slices import Slices, in_order
from gateway.transport import Gateway

NAME = "admin"
API = "/api/v1"
STATUS = {Outcome.STORED: 201, Outcome.DUPLICATE: 200, Outcome.UNROUTED: 404, Outcome.REFUSED: 429}
MAX_FEEDS = 100
PAGE = 500
MAX_SCANNED = 20_000
"""Messages that one request looks at for those that it asks for; the answer says where to go on."""
MAX_SHOWN_OCTETS = 16 << 20
_NO_QUEUE = {404: "There is no such queue"}


class QueueView(QueueStats, frozen=True, kw_only=True):
    """One queue; see its counters in /metrics. dead_letter: the queue that gets what can't be delivered, if any."""

    dead_letter: str | None = None


class Queues(msgspec.Struct, frozen=True):
    queues: list[QueueView]


class BindingsQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """queue: only those that lead there. limit: how many at most."""

    queue: str | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 10_000


class Bindings(msgspec.Struct, frozen=True):
    bindings: list[BindingView]


class QueueName(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    queue: str


class GroupsQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """limit: how many groups at most. parked: only those that wait for an operator."""

    queue: str
    limit: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 1000
    parked: bool = False


class Groups(msgspec.Struct, frozen=True):
    groups: list[GroupView]


class Release(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Lets a parked group go on. dead: its first message goes to the dead letters before."""

    queue: str
    group: str
    dead: bool = False


class Released(msgspec.Struct, frozen=True):
    """released: False if the group was not parked."""

    released: bool


class MessagesQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The oldest first, from above the id `after`. The others choose among dead letters: the queue that gave the
    message up last, why, and the topic by a filter. max_body: a longer body is cut."""

    queue: str
    limit: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 100
    after: Annotated[int, msgspec.Meta(ge=0)] = 0
    died_in: str | None = None
    reason: str | None = None
    topic: str | None = None
    max_body: Annotated[int, msgspec.Meta(ge=0)] = 1 << 20


class Messages(msgspec.Struct, frozen=True):
    """next: to be given as `after` for what follows; None at the end."""

    messages: list[StoredView]
    next: int | None = None


class MessageQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    queue: str
    id: Annotated[int, msgspec.Meta(ge=1)]


class Redrive(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Moves dead letters back to the queue each died in, or `to`. rate: messages a second. dry_run: only counts."""

    queue: str
    selection: Selection = Selection()
    to: str | None = None
    rate: Annotated[float, msgspec.Meta(gt=0)] | None = None
    dry_run: bool = False


class Count(msgspec.Struct, frozen=True):
    """How many messages it was."""

    messages: int


class Published(msgspec.Struct, frozen=True, omit_defaults=True):
    """retained: no queue wants it, and it is kept for MQTT clients that subscribe later, or has cleared what was.
    dead_on_arrival: the queues that could not take it; for them it is a dead letter."""

    outcome: Literal["stored", "duplicate", "unrouted", "refused"]
    retained: bool = False
    dead_on_arrival: list[DeadOnArrival] = []


class Explanation(msgspec.Struct, frozen=True):
    """One step for each queue that would get the message; none: it is unrouted."""

    steps: list[Step]


class Consume(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """credit: deliveries that may be unsettled. settle: `done` settles each when it is written."""

    queue: str
    credit: Annotated[int, msgspec.Meta(ge=1, le=MAX_CREDIT)] = 1
    settle: Literal["manual", "done"] = "manual"


class FeedLine(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of a stream of deliveries: first `consumer`, to settle with; then deliveries; last `ended`."""

    consumer: str | None = None
    delivery: DeliveryView | None = None
    ended: str | None = None


class Settle(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    consumer: str
    ids: list[int]
    verdict: Literal["done", "retry", "dead", "returned"] = "done"
    error: str = ""


class Admin:
    """A Transport in its form: `run` listens, says `started`, and serves until cancelled."""

    def __init__(self, settings: AdminSettings, operations: Operations) -> None:
        self.settings = settings
        self.operations = operations
        self.feeds: dict[str, Feed] = {}
        self.endpoints = self._endpoints()
        self.description = document(self.endpoints)

    async def run(self, gateway: Gateway) -> None:
        """Raises ListenError before `started`."""
        sockets = web.listen(NAME, self.settings.listen)
        self.gateway = gateway
        self.counters = gateway.counters(NAME)
        gateway.started(NAME, web.addresses(sockets))
        limits = Limits(self.settings.max_connections, web.MAX_UNFINISHED_OCTETS, self.settings.request_timeout)
        await web.serve(self.application(), sockets, gateway.drain_timeout, self.counters, limits, self._stop)

    def application(self) -> Any:
        return web.app([Route(e.path, self._guarded(e), methods=[e.method]) for e in self.endpoints])

    def _endpoints(self) -> list[Endpoint]:
        api = API
        refused = {404: "No route leads to a queue", 429: "A queue is full, or the store"}
        return [
            Endpoint("GET", "/healthz", "The daemon runs", self._health, open=True),
            Endpoint("GET", "/readyz", "The daemon is ready, or not; to a user also why", self._ready, gives=Readiness,
                     open=True, more=True, statuses={503: "Not ready"}),
            Endpoint("GET", "/metrics", "Prometheus metrics", self._metrics),
            Endpoint("GET", "/openapi.json", "This description", self._openapi),
            Endpoint("GET", f"{api}/queues", "All queues", self._queues, gives=Queues),
            Endpoint("GET", f"{api}/bindings", "What leads to queues and to other exchanges", self._bindings,
                     BindingsQuery, Bindings, statuses=_NO_QUEUE),
            Endpoint("POST", f"{api}/purge", "Removes what waits in a queue", self._purge, QueueName, Count,
                     statuses=_NO_QUEUE),
            Endpoint("POST", f"{api}/delete", "Deletes a queue that is not in the configuration", self._delete,
                     QueueName, Count, statuses=_NO_QUEUE | {409: "The configuration names it"}),
            Endpoint("GET", f"{api}/groups", "Groups of a queue", self._groups, GroupsQuery, Groups,
                     statuses=_NO_QUEUE),
            Endpoint("POST", f"{api}/groups/release", "Lets a parked group go on", self._release, Release, Released,
                     statuses=_NO_QUEUE),
            Endpoint("GET", f"{api}/messages", "Looks into a queue", self._messages, MessagesQuery, Messages,
                     statuses=_NO_QUEUE),
            Endpoint("GET", f"{api}/message", "One message of a queue", self._message, MessageQuery, StoredView,
                     statuses={404: "There is no such queue or message"}),
            Endpoint("POST", f"{api}/redrive", "Moves dead letters back; a line of progress now and then",
                     self._redrive, Redrive, RedriveProgress, stream=True, statuses=_NO_QUEUE),
            Endpoint("POST", f"{api}/publish", "Accepts a message (201 stored or retained, 200 duplicate)",
                     self._publish, MessageView, Published, statuses=refused),
            Endpoint("POST", f"{api}/explain", "Where a message would go, and why", self._explain, MessageView,
                     Explanation),
            Endpoint("POST", f"{api}/consume", "Delivers from a queue until the connection ends", self._consume,
                     Consume, FeedLine, stream=True, statuses=_NO_QUEUE | {503: "Too many consumers"}),
            Endpoint("POST", f"{api}/settle", "Settles deliveries of a consumer", self._settle, Settle, Count,
                     statuses={404: "There is no such consumer", 503: "Not yet on disk"}),
        ]  # fmt: skip

    def _guarded(self, endpoint: Endpoint) -> Callable[[Request], Awaitable[Response]]:
        async def handle(request: Request) -> Response:
            actor = Actor()
            if not endpoint.open:
                actor.user = (await web.login(request, self.gateway, NAME, self.settings.listen)).name
            if endpoint.path.startswith(API) and "replaying" in self.operations.readiness().reasons:
                raise web.Refused(503, "the store is being replayed; ask again when /readyz says so")
            if endpoint.takes is MessageView:
                await web.relief(self.gateway.pressure)
            taken: list[Any] = [await arguments(endpoint, request)] if endpoint.takes is not None else []
            if endpoint.takes is MessageView and actor.forges(taken[0].user_id):
                raise web.Refused(403, f"user_id: you are {actor.user!r}, and can't publish as {taken[0].user_id!r}")
            if endpoint.more:
                taken.append(await self._is_known(request))
            try:
                return await endpoint.handler(*taken)
            except UnknownQueueError as error:
                raise web.Refused(404, str(error)) from error
            except GatewayError as error:
                raise web.Refused(409, str(error)) from error
            except ValueError as error:
                raise web.Refused(400, str(error)) from error

        return handle

    async def _is_known(self, request: Request) -> bool:
        """Whether one of the users asks; without users, everybody does who may use the API. Never refuses."""
        if not self.gateway.anonymous and "authorization" not in request.headers:
            return False
        try:
            await web.login(request, self.gateway, NAME, self.settings.listen)
        except web.Refused:
            return False
        return True

    def _stop(self) -> None:
        for feed in list(self.feeds.values()):
            feed.stop("the daemon stops")

    # health and metrics

    async def _health(self) -> Response:
        return web.as_json({"status": "ok"})

    async def _ready(self, known: bool) -> Response:
        """Names of queues and links, paths and what a remote has said are no business of strangers."""
        readiness = self.operations.readiness()
        return web.as_json(readiness if known else {"ready": readiness.ready}, 200 if readiness.ready else 503)

    async def _metrics(self) -> Response:
        text, kind = await metrics.exposition(self.operations, self.settings.session_metrics)
        return Response(text, media_type=kind)

    async def _openapi(self) -> Response:
        return web.as_json(self.description)

    # queues and groups

    async def _queues(self) -> Response:
        found = await self.operations.stats()
        queues = ((stats, self.gateway.queue(stats.name)) for stats in found)
        views = (_queue_view(stats, queue.policy if queue is not None else None) for stats, queue in queues)
        return _listed("queues", await web.rows(views, Slices()))

    async def _bindings(self, asked: BindingsQuery) -> Response:
        if asked.queue is not None and self.gateway.queue(asked.queue) is None:
            raise UnknownQueueError(f"there is no queue {asked.queue!r}")
        slices = Slices()
        asked_for = [asked.queue] if asked.queue is not None else [view.name for view in self.gateway.queues()]
        names = await in_order(asked_for, slices, str)
        to_queues = (binding for name in names for binding in self.gateway.bindings(name))
        onward = self.gateway.exchange_bindings() if asked.queue is None else ()
        found: Iterator[Binding | ExchangeBinding]
        found = itertools.islice(itertools.chain(to_queues, onward), asked.limit)
        return _listed("bindings", await web.rows(map(show_binding, found), slices))

    async def _purge(self, asked: QueueName) -> Response:
        return web.as_json(Count(await self.operations.purge_queue(asked.queue)))

    async def _delete(self, asked: QueueName) -> Response:
        return web.as_json(Count(await self.operations.delete_queue(asked.queue)))

    async def _groups(self, asked: GroupsQuery) -> Response:
        found = await self.operations.groups(asked.queue, asked.limit, asked.parked)
        return _listed("groups", await web.rows(found, Slices()))

    async def _release(self, asked: Release) -> Response:
        return web.as_json(Released(await self.operations.release(asked.queue, asked.group, asked.dead)))

    # messages

    async def _messages(self, asked: MessagesQuery) -> Response:
        _check_topic_filter(asked.topic)
        chosen = Selection(queue=asked.died_in, reason=asked.reason, topic=asked.topic)
        found: list[msgspec.Raw] = []
        after, scanned, octets, slices = asked.after, 0, 0, Slices()
        while True:
            page = await self.operations.browse(asked.queue, min(PAGE, asked.limit), after)
            for stored in page:
                await slices.pause()
                after = stored.id
                if chosen.takes(stored):
                    shown = show_stored(stored, asked.max_body)
                    found.append(msgspec.Raw(msgspec.json.encode(shown)))
                    octets += min(shown.size, asked.max_body)
                    if len(found) == asked.limit or octets > MAX_SHOWN_OCTETS:
                        return _listed("messages", found, next=after)
            scanned += len(page)
            if not page:
                return _listed("messages", found, next=None)
            if scanned >= MAX_SCANNED:
                return _listed("messages", found, next=after)

    async def _message(self, asked: MessageQuery) -> Response:
        for stored in await self.operations.browse(asked.queue, 1, asked.id - 1):
            if stored.id == asked.id:
                return web.as_json(show_stored(stored))
        raise web.Refused(404, f"there is no message {asked.id} in queue {asked.queue}")

    async def _redrive(self, asked: Redrive) -> Response:
        _check_topic_filter(asked.selection.topic)
        if self.gateway.queue(asked.queue) is None:
            raise UnknownQueueError(f'no queue is named "{asked.queue}"')
        if asked.to is not None and self.gateway.queue(asked.to) is None:
            raise UnknownQueueError(f'no queue is named "{asked.to}"')
        if asked.to is not None and is_reserved(asked.to):
            raise ReservedNameError(f"queue {asked.to!r} is a session's, a share's or a link's; name another")
        steps = self.operations.redrive(asked.queue, asked.selection, asked.to, asked.rate, asked.dry_run)

        async def lines() -> AsyncIterator[bytes]:
            async for step in steps:
                yield _line(step)

        return StreamingResponse(lines(), media_type="application/x-ndjson")

    async def _publish(self, view: MessageView) -> Response:
        self._must_be_ready()
        message = build(view, NAME, NAME)
        self.counters.messages_in += 1
        outcome, dead = await self.operations.publish(message)
        status = 503 if outcome is Outcome.REFUSED and self.gateway.refusing else STATUS[outcome]
        retained = outcome is Outcome.UNROUTED and retains(message)
        return web.as_json(Published(outcome.value, retained, list(dead)), 201 if retained else status)

    async def _explain(self, view: MessageView) -> Response:
        return web.as_json(Explanation(list(self.operations.explain(build(view, view.source or NAME, NAME)))))

    # consuming

    async def _consume(self, asked: Consume) -> Response:
        # Not when the store takes no messages: then consumers are what helps.
        if "draining" in self.operations.readiness().reasons:
            raise web.Refused(503, "the daemon stops")
        if len(self.feeds) >= MAX_FEEDS:
            raise web.Refused(503, f"{MAX_FEEDS} consumers are here already")
        view = self.gateway.queue(asked.queue)
        if view is None:
            raise UnknownQueueError(f'no queue is named "{asked.queue}"')
        check_use(view, NOBODY)
        if view.in_exclusive_use:
            raise ExclusiveUseError(f"queue {asked.queue!r} is in exclusive use")

        async def lines() -> AsyncIterator[bytes]:
            # Made only when the answer begins: a client that has gone by then leaves nothing attached.
            try:
                feed = Feed(self.gateway, asked.queue, asked.credit)
            except GatewayError as error:  # it was there when it was looked for
                yield _line(FeedLine(ended=str(error)))
                return
            self.feeds[feed.token] = feed
            try:
                yield _line(FeedLine(consumer=feed.token))
                async for delivery in feed.deliveries():
                    self.counters.messages_out += 1
                    yield _line(FeedLine(delivery=show_delivery(delivery)))
                    if asked.settle == "done":
                        feed.settle([delivery.id], Verdict.DONE)
                yield _line(FeedLine(ended=feed.ended))
            finally:
                del self.feeds[feed.token]
                feed.detach()

        return StreamingResponse(lines(), media_type="application/x-ndjson")

    async def _settle(self, asked: Settle) -> Response:
        feed = self.feeds.get(asked.consumer)
        if feed is None:
            raise web.Refused(404, "there is no such consumer; its deliveries went back when its stream ended")
        count = feed.settle(asked.ids, Verdict(asked.verdict), asked.error)
        # Unlike on a connection of many messages, who asks here wants to hear that it is for good.
        if not await self.gateway.put():
            raise web.Refused(503, "settled, but the store could not be written; after a crash it may come again")
        return web.as_json(Count(count))

    def _must_be_ready(self) -> None:
        readiness = self.operations.readiness()
        if not readiness.ready:
            raise web.Refused(503, f"not ready: {', '.join(readiness.reasons)}")


def _listed(name: str, rows: list[msgspec.Raw], **others: Any) -> Response:
    return web.as_json({name: rows, **others})


def _queue_view(stats: QueueStats, policy: QueuePolicy | None) -> QueueView:
    target = policy.dead_letter if policy is not None and isinstance(policy.dead_letter, str) else None
    return QueueView(**msgspec.structs.asdict(stats), dead_letter=target)


def _line(value: Any) -> bytes:
    return msgspec.json.encode(value) + b"\n"


def _check_topic_filter(filter: str | None) -> None:
    if filter is not None and (why := check_filter(filter)):
        raise ValueError(f"topic: {filter!r} {why}")
