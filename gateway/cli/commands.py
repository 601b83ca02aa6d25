"""Owns the commands that ask a running daemon: publish, consume, queues, bindings, groups, dead-letters.

Its rule: the same answer is a table for people and, with --json, one JSON value for scripts.
"""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
import typer

from gateway.admin.views import Body, MessageView, StoredView
from gateway.broker.commit_batch import DeadOnArrival
from gateway.cli import tables
from gateway.errors import ConfigError, GatewayError
from gateway.logs import printable
from gateway.model.names import is_reserved
from gateway.model.policy import Seconds

if TYPE_CHECKING:
    from gateway.cli.client import AdminClient

Admin = Annotated[
    str, typer.Option("--admin", metavar="URL", envvar="GATEWAY_ADMIN", help="Where the daemon's admin API is.")
]
UserName = Annotated[str | None, typer.Option("--user", envvar="GATEWAY_USER", help="Who asks.", show_default=False)]
Password = Annotated[
    str | None,
    typer.Option("--password", envvar="GATEWAY_PASSWORD", help="Better in the environment.", show_default=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="JSON for scripts.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
DEFAULT_ADMIN = "http://127.0.0.1:8080"

queues_app = typer.Typer(invoke_without_command=True)
groups_app = typer.Typer(help="Groups of a queue: look, and release parked ones.", no_args_is_help=True)


QUEUES = (
    tables.name("queue"), tables.number("waiting", 100), tables.number("size", 60), tables.number("in flight", 95),
    tables.number("oldest", 70), tables.number("consumers", 90), tables.number("groups", 50),
    tables.number("parked", 80), tables.number("accepted", 40), tables.number("duplicates", 20),
    tables.number("done", 35), tables.number("retried", 30), tables.number("dead", 85),
)  # fmt: skip
BINDINGS = (
    tables.name("exchange"), tables.name("filter"), tables.name("queue"), tables.name("exchange after it"),
    tables.text("sent to", 90), tables.text("only", 80), tables.text("made by", 70),
)  # fmt: skip
GROUPS = (
    tables.name("group"), tables.word("state", 100), tables.number("waiting", 95), tables.number("in flight", 70),
    tables.number("oldest", 80), tables.number("attempts", 90), tables.text("error", 60),
)  # fmt: skip


class Answer(msgspec.Struct, frozen=True):
    """The part of all answers that the commands read."""

    queues: list[dict[str, Any]] = []
    groups: list[dict[str, Any]] = []
    bindings: list[dict[str, Any]] = []
    messages: list[StoredView] = []
    next: int | None = None
    outcome: str = ""
    retained: bool = False
    dead_on_arrival: list[DeadOnArrival] = []
    error: str = ""
    released: bool = False


class _Count(msgspec.Struct, frozen=True):
    messages: int


class _FeedLine(msgspec.Struct, frozen=True):
    consumer: str | None = None
    delivery: dict[str, Any] | None = None
    ended: str | None = None


def connect(url: str, user: str | None, password: str | None) -> AdminClient:
    """The daemon to ask; the HTTP client is loaded only now, so that `--help` is quick."""
    from gateway.cli.client import AdminClient

    return AdminClient(url, user, password)


def print_json(value: Any) -> None:
    """One JSON value on a line of its own, in UTF-8 whatever the locale."""
    typer.echo(msgspec.json.encode(value))


def read_headers(pairs: list[str] | None) -> list[tuple[str, Any]]:
    """`name=value` options. Raises ConfigError."""
    headers = []
    for pair in pairs or []:
        name, equals, value = pair.partition("=")
        if not name or not equals:
            raise ConfigError(f"--header {pair!r}: write name=value")
        headers.append((name, value))
    return headers


def read_seconds(option: str, text: str | None) -> float | None:
    """A duration given as an option. Raises ConfigError."""
    if text is None:
        return None
    try:
        return float(Seconds.parse(float(text) if text.replace(".", "", 1).isdigit() else text))
    except ValueError as error:
        raise ConfigError(f"{option}: {error}") from error


def publish(
    topic: Annotated[str, typer.Argument(help="A topic, or $queue/NAME for one queue.")],
    body: Annotated[str, typer.Argument(help="The body; `-` reads it from standard input.")] = "",
    header: Annotated[list[str] | None, typer.Option("--header", metavar="NAME=VALUE", help="May be repeated.")] = None,
    content_type: Annotated[str | None, typer.Option(help="For example application/json.", show_default=False)] = None,
    ttl: Annotated[str | None, typer.Option(help="How long it may wait: 30s, 5m.", show_default=False)] = None,
    delay: Annotated[str | None, typer.Option(help="How long it must wait.", show_default=False)] = None,
    retain: Annotated[bool, typer.Option(help="Keep it for later MQTT subscribers.")] = False,
    client_id: Annotated[str, typer.Option(help="Publish as this client.", show_default=False)] = "",
    admin: Admin = DEFAULT_ADMIN,
    user: UserName = None,
    password: Password = None,
    as_json: AsJson = False,
) -> None:
    """Publish one message and say what became of it: stored, duplicate, retained, unrouted or refused, or dead on
    arrival in a queue that lacks a value for it.

    Example: gateway publish shop/7/orders '{"item": 42}' --header order-id=1001
    """
    octets = sys.stdin.buffer.read() if body == "-" else body.encode("utf-8", "surrogateescape")
    message = MessageView(
        topic=topic,
        body=Body.of(octets),
        headers=read_headers(header),
        content_type=content_type,
        retain=retain,
        ttl=read_seconds("--ttl", ttl),
        delay=read_seconds("--delay", delay),
        client_id=client_id,
    )
    answer = connect(admin, user, password).post("publish", message, Answer, also=(404, 429))
    if not answer.outcome:
        raise GatewayError(answer.error or "the daemon did not say what became of it")
    if as_json:
        found: dict[str, Any] = {"outcome": answer.outcome}
        if answer.retained:
            found["retained"] = True
        if answer.dead_on_arrival:
            found["dead_on_arrival"] = answer.dead_on_arrival
        print_json(found)
    elif answer.retained:
        kept = "kept for MQTT clients that subscribe later" if octets else "what was kept for later is cleared"
        typer.echo(f"retained: {kept}; no route leads from {topic} to a queue")
    else:
        more = {
            "unrouted": f": no route leads from {topic} to a queue; see `gateway explain CONFIG --topic {topic}`",
            "refused": ": a queue is full, or the store; see `gateway queues`",
        }
        typer.echo(answer.outcome + more.get(answer.outcome, ""))
        for dead in answer.dead_on_arrival:
            fate = f"it is a dead letter in {', '.join(dead.kept_in)}" if dead.kept_in else "it was dropped"
            typer.echo(printable(f"queue {dead.queue} could not take it: {dead.why}; {fate}"))
    is_lost = answer.outcome == "refused" or (answer.outcome == "unrouted" and not answer.retained)
    if is_lost or answer.dead_on_arrival:
        raise typer.Exit(1)


def consume(
    queue: Annotated[str, typer.Argument(help="The queue's name.")],
    count: Annotated[int | None, typer.Option(min=1, help="End after so many.", show_default=False)] = None,
    wait: Annotated[str | None, typer.Option(help="End when none came for so long: 5s.", show_default=False)] = None,
    credit: Annotated[int, typer.Option(min=1, max=1000, help="Deliveries on the way at one time.")] = 1,
    verdict: Annotated[
        Literal["done", "retry", "dead", "returned"], typer.Option(help="What becomes of each message.")
    ] = "done",
    admin: Admin = DEFAULT_ADMIN,
    user: UserName = None,
    password: Password = None,
    as_json: AsJson = False,
) -> None:
    """Take messages from a queue, print each, then settle it. Ctrl-C ends.

    Example: gateway consume orders --count 10 --json
    """
    client = connect(admin, user, password)
    idle = read_seconds("--wait", wait)
    with contextlib.suppress(KeyboardInterrupt):
        _take(client, queue, count, idle, credit, verdict, as_json)


def _take(
    client: AdminClient, queue: str, count: int | None, idle: float | None, credit: int, verdict: str, as_json: bool
) -> None:
    asked = {"queue": queue, "credit": min(credit, count or credit)}
    taken = 0
    consumer = ""
    for line in client.lines("consume", asked, _FeedLine, idle):
        if line.consumer is not None:
            consumer = line.consumer
        if line.ended is not None:
            raise GatewayError(line.ended)
        if line.delivery is None:
            continue
        delivery = line.delivery
        if as_json:
            print_json(delivery)
        else:
            message = msgspec.convert(delivery["message"], MessageView)
            attempts = f"  (attempt {delivery['attempts'] + 1})" if delivery["attempts"] else ""
            typer.echo(printable(f"{message.topic}  {tables.body(message, 10_000)}{attempts}"))
        client.post("settle", {"consumer": consumer, "ids": [delivery["id"]], "verdict": verdict}, _Count)
        taken += 1
        if taken == count:
            return


@queues_app.callback()
def queues(
    context: typer.Context,
    all_queues: Annotated[bool, typer.Option("--all", help="Also those of sessions and links.")] = False,
    admin: Admin = DEFAULT_ADMIN,
    user: UserName = None,
    password: Password = None,
    as_json: AsJson = False,
) -> None:
    """Show all queues: what waits, what is in flight, what came and went; or purge or delete one.

    Example: gateway queues --json
    """
    if context.invoked_subcommand is not None:
        return
    found = connect(admin, user, password).get("queues", Answer).queues
    shown = [queue for queue in found if all_queues or not is_reserved(queue["name"])]
    if as_json:
        print_json(shown)
        return
    tables.show(
        QUEUES,
        [
            (
                queue["name"] + (" (removed)" if queue["removed"] else ""),
                queue["depth"],
                tables.size(queue["octets"]),
                queue["in_flight"],
                tables.age(queue["oldest_age_seconds"]),
                queue["consumers"],
                queue["groups"],
                queue["parked_groups"],
                queue["accepted"],
                queue["duplicates"],
                queue["settled"],
                queue["retried"],
                queue["dead_lettered"],
            )
            for queue in shown
        ],
        "no queues",
    )


@queues_app.command()
def purge(
    queue: Annotated[str, typer.Argument(help="The queue's name.")],
    yes: Yes = False,
    admin: Admin = DEFAULT_ADMIN,
    user: UserName = None,
    password: Password = None,
    as_json: AsJson = False,
) -> None:
    """Remove all that waits in a queue, for good. What is in flight stays.

    Example: gateway queues purge orders --yes
    """
    _confirm(f"Remove all messages that wait in {queue}?", yes)
    _tell(connect(admin, user, password).post("purge", {"queue": queue}, _Count), "removed", as_json)


@queues_app.command()
def delete(
    queue: Annotated[str, typer.Argument(help="The queue's name.")],
    yes: Yes = False,
    admin: Admin = DEFAULT_ADMIN,
    user: UserName = None,
    password: Password = None,
    as_json: AsJson = False,
) -> None:
    """Delete a queue that is not in the configuration, with all that it holds.

    Example: gateway queues delete amq.gen-1 --yes
    """
    _confirm(f"Delete {queue} with its messages?", yes)
    _tell(connect(admin, user, password).post("delete", {"queue": queue}, _Count), "deleted with it", as_json)


def bindings(
    queue: Annotated[str | None, typer.Option(help="Only those that lead to this queue.")] = None,
    all_queues: Annotated[bool, typer.Option("--all", help="Also those of sessions and shares.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="How many are asked for at most.")] = 10_000,
    admin: Admin = DEFAULT_ADMIN,
    user: UserName = None,
    password: Password = None,
    as_json: AsJson = False,
) -> None:
    """Show what leads where: routes, and what clients have bound, to queues and to other exchanges.

    Example: gateway bindings --queue orders
    """
    found = connect(admin, user, password).get("bindings", Answer, queue=queue, limit=limit).bindings
    if not (all_queues or queue):
        found = [one for one in found if not is_reserved(one["queue"] or "") or one["target"]]
    if as_json:
        print_json(found)
        return
    tables.show(
        BINDINGS,
        [
            (one["exchange"], one["filter"], one["queue"] or "", one["to_exchange"] or "", one["target"] or "",
             one["condition"], one["owner"])
            for one in found
        ],
        "no bindings",
    )  # fmt: skip


@groups_app.command("list")
def list_groups(
    queue: Annotated[str, typer.Argument(help="The queue's name.")],
    parked: Annotated[bool, typer.Option(help="Only those that wait for an operator.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="How many at most.")] = 100,
    admin: Admin = DEFAULT_ADMIN,
    user: UserName = None,
    password: Password = None,
    as_json: AsJson = False,
) -> None:
    """Show the groups of a queue: how much each holds, what it waits for, why it is parked.

    Example: gateway groups list orders --parked
    """
    found = connect(admin, user, password).get("groups", Answer, queue=queue, limit=limit, parked=parked).groups
    if as_json:
        print_json(found)
        return
    tables.show(
        GROUPS,
        [
            (g["group"], g["state"], g["depth"], g["in_flight"], tables.age(g["head_age_seconds"]), g["attempts"],
             g["error"])
            for g in found
        ],
        "no groups",
    )  # fmt: skip


@groups_app.command("release")
def release_group(
    queue: Annotated[str, typer.Argument(help="The queue's name.")],
    group: Annotated[str, typer.Argument(help="The group's value.")],
    dead: Annotated[bool, typer.Option("--dead", help="Its first message goes to the dead letters before.")] = False,
    admin: Admin = DEFAULT_ADMIN,
    user: UserName = None,
    password: Password = None,
    as_json: AsJson = False,
) -> None:
    """Let a parked group go on, with its attempts at zero.

    Example: gateway groups release orders 7 --dead
    """
    asked = {"queue": queue, "group": group, "dead": dead}
    answer = connect(admin, user, password).post("groups/release", asked, Answer)
    if as_json:
        print_json({"released": answer.released})
    else:
        typer.echo("released" if answer.released else f"group {group} of {queue} is not parked")
    if not answer.released:
        raise typer.Exit(1)


def _confirm(question: str, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise ConfigError("this can't be undone; add --yes to do it without being asked")
    typer.confirm(question, abort=True)


def _tell(count: _Count, done: str, as_json: bool) -> None:
    if as_json:
        print_json(count)
    else:
        typer.echo(f"{count.messages} messages {done}")
