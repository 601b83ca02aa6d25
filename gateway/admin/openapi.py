"""Owns Endpoint: one thing that the admin API does, and the OpenAPI document of all of them.

Its rule: what is read, what is answered and what is described come from the same types.
"""

from __future__ import annotations

import importlib.metadata
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from gateway.net import http_server as web

MAX_REQUEST_OCTETS = 16 << 20


class Endpoint(NamedTuple):
    """handler gets the request and what it says, decoded to `takes`: the query of a GET, the JSON body of a POST.

    gives: the type of its answer. stream: one JSON value of that type a line. open: needs no user. more: open, and
    says more to a user; its handler is told whether one asks. statuses: what it may answer besides 200, and why.
    """

    method: str
    path: str
    summary: str
    handler: Callable[..., Awaitable[Response]]
    takes: type[msgspec.Struct] | None = None
    gives: Any = None
    stream: bool = False
    open: bool = False
    more: bool = False
    statuses: dict[int, str] = {}


class Problem(msgspec.Struct, frozen=True):
    """Why a request failed."""

    error: str


async def arguments(endpoint: Endpoint, request: Request) -> Any:
    """What the request says, as `endpoint.takes`. Raises web.Refused 400, 413 or 415 with a clear text."""
    assert endpoint.takes is not None
    try:
        if endpoint.method == "GET":
            asked = request.query_params.multi_items()
            if twice := next((name for name, count in Counter(name for name, _ in asked).items() if count > 1), None):
                raise web.Refused(400, f"{twice!r} stands more than once in the query")
            return msgspec.convert(dict(asked), endpoint.takes, strict=False)
        # A page of another site may send a form without asking, but never this content type (CSRF).
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise web.Refused(415, "send JSON, with content-type: application/json")
        return msgspec.json.decode(await web.read_body(request, MAX_REQUEST_OCTETS), type=endpoint.takes)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise web.Refused(400, str(error) or "no valid JSON") from error


def document(endpoints: Sequence[Endpoint]) -> dict[str, Any]:
    """OpenAPI 3.1."""
    types = [Problem, *(t for e in endpoints for t in (e.takes if e.method == "POST" else None, e.gives) if t)]
    schemas, components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    schema_of = {id(kind): schema for kind, schema in zip(types, schemas, strict=True)}
    problem = {"application/json": {"schema": schema_of[id(Problem)]}}
    paths: dict[str, Any] = {}
    for endpoint in endpoints:
        answers: dict[str, Any] = {"200": {"description": "As asked"}}
        if endpoint.gives is not None:
            form = "application/x-ndjson" if endpoint.stream else "application/json"
            answers["200"]["content"] = {form: {"schema": schema_of[id(endpoint.gives)]}}
        for status, text in endpoint.statuses.items():
            answers[str(status)] = {"description": text, "content": problem}
        if not endpoint.open:
            answers["401"] = {"description": "Users are configured and this is none of them", "content": problem}
        entry: dict[str, Any] = {"summary": endpoint.summary, "responses": answers}
        entry["operationId"] = endpoint.path.strip("/").removeprefix("api/v1/").replace("/", "_").replace(".", "_")
        if endpoint.takes is not None:
            answers["400"] = {"description": "The request makes no sense; the text says why", "content": problem}
            if endpoint.method == "GET":
                entry["parameters"] = _parameters(endpoint.takes)
            else:
                schema = schema_of[id(endpoint.takes)]
                entry["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
        if not endpoint.open:
            entry["security"] = [{"basic": []}]
        elif endpoint.more:
            entry["security"] = [{}, {"basic": []}]
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = entry
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "MQTT/AMQP gateway: admin API",
            "version": importlib.metadata.version("mqtt-amqp-gateway"),
            "description": "What an operator can see and do. Times are seconds since 1970, sizes are bytes.",
        },
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": {"basic": {"type": "http", "scheme": "basic"}}},
    }


def _parameters(kind: type[msgspec.Struct]) -> list[dict[str, Any]]:
    schema = msgspec.json.schema(kind)["$defs"][kind.__name__]
    return [
        {"name": name, "in": "query", "required": name in schema.get("required", []), "schema": shape}
        for name, shape in schema["properties"].items()
    ]
