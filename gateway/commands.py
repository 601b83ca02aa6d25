"""Owns the commands that ask a running daemon: publish, consume, queues, groups, dead-letters.

Its rule: the same answer is a table for people and, with --json, one JSON value for scripts.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec
import typer

from gateway import tables
from gateway.client import AdminClient, DeniedError
from gateway.errors import ConfigError, GatewayError
from gateway.logs import printable
from gateway.operations import RedriveProgress, Selection
from gateway.policy import DEAD_LETTERS, Seconds
from gateway.views import Body, MessageView, StoredView

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

queues_app = typer.Typer(help="Queues: look, purge, delete.", invoke_without_command=True)
groups_app = typer.Typer(help="Groups of a queue: look, and release parked ones.", no_args_is_help=True)
dead_letters_app = typer.Typer(help="Messages that could not be delivered: look, and redrive.", no_args_is_help=True)


class _Answer(msgspec.Struct, frozen=True):
    """The part of all answers that the commands read."""

    queues: list[dict[str, Any]] = []
    groups: list[dict[str, Any]] = []
    messages: list[StoredView] = []
    next: int | None = None
    outcome: str = ""
    error: str = ""
    released: bool = False


class _Count(msgspec.Struct, frozen=True):
    messages: int


class _FeedLine(msgspec.Struct, frozen=True):
    consumer: str | None = None
    delivery: dict[str, Any] | None = None
    ended: str | None = None


def print_json(value: Any) -> None:
    """One JSON value on a line of its own."""
    sys.stdout.write(msgspec.json.encode(value).decode() + "\n")
    sys.stdout.flush()


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
    """Publish one message and say what became of it: stored, duplicate, unrouted or refused.

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
        delay=read_seconds("--delay", delay) or 0.0,
        client_id=client_id,
    )
    answer = AdminClient(admin, user, password).post("publish", message, _Answer, also=(404, 429))
    if not answer.outcome:
        raise GatewayError(answer.error or "the daemon did not say what became of it")
    if as_json:
        print_json({"outcome": answer.outcome})
    else:
        more = {
            "unrouted": f": no route leads from {topic} to a queue; see `gateway explain CONFIG --topic {topic}`",
            "refused": ": a queue is full, or the store; see `gateway queues`",
        }
        typer.echo(answer.outcome + more.get(answer.outcome, ""))
    if answer.outcome in ("unrouted", "refused"):
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
    client = AdminClient(admin, user, password)
    idle = read_seconds("--wait", wait)
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
    """Show all queues: what waits, what is in flight, what came and went.

    Example: gateway queues --json
    """
    if context.invoked_subcommand is not None:
        return
    found = AdminClient(admin, user, password).get("queues", _Answer).queues
    shown = [queue for queue in found if all_queues or not queue["name"].startswith(("mqtt.", "link."))]
    if as_json:
        print_json(shown)
        return
    columns = ("queue", "waiting>", "size>", "in flight>", "oldest>", "consumers>", "groups>", "parked>")
    more = ("accepted>", "duplicates>", "done>", "retried>", "dead>")
    tables.show(
        columns + more,
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
    _tell(AdminClient(admin, user, password).post("purge", {"queue": queue}, _Count), "removed", as_json)


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
    _tell(AdminClient(admin, user, password).post("delete", {"queue": queue}, _Count), "deleted with it", as_json)


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
    found = AdminClient(admin, user, password).get("groups", _Answer, queue=queue, limit=limit, parked=parked).groups
    if as_json:
        print_json(found)
        return
    tables.show(
        ("group", "state", "waiting>", "in flight>", "oldest>", "attempts>", "error"),
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
    answer = AdminClient(admin, user, password).post("groups/release", asked, _Answer)
    if as_json:
        print_json({"released": answer.released})
    else:
        typer.echo("released" if answer.released else f"group {group} of {queue} is not parked")
    if not answer.released:
        raise typer.Exit(1)


def _dead_letter_queues(client: AdminClient, queue: str | None) -> list[str]:
    """The queue asked for, or all that are some queue's dead letters."""
    if queue is not None:
        return [queue]
    found = client.get("queues", _Answer).queues
    targets = {q["dead_letter"] for q in found} | {DEAD_LETTERS}
    return [q["name"] for q in found if q["name"] in targets]


def _browse(client: AdminClient, queue: str, limit: int, max_body: int, **chosen: Any) -> Iterator[StoredView]:
    after: int | None = 0
    while after is not None and limit > 0:
        answer = client.get(
            "messages", _Answer, queue=queue, limit=min(limit, 500), after=after, max_body=max_body, **chosen
        )
        yield from answer.messages
        limit -= len(answer.messages)
        after = answer.next


DeadQueue = Annotated[
    str | None, typer.Option("--queue", help="One queue of dead letters; else all of them.", show_default=False)
]
DiedIn = Annotated[str | None, typer.Option("--from", help="Only what died in this queue.", show_default=False)]
Reason = Annotated[
    Literal["rejected", "exhausted", "expired", "overflow", "unroutable", "invalid"] | None,
    typer.Option(help="Only what died for this reason.", show_default=False),
]
Topic = Annotated[str | None, typer.Option(help="Only what this topic filter matches.", show_default=False)]


@dead_letters_app.command("list")
def list_dead_letters(
    queue: DeadQueue = None,
    died_in: DiedIn = None,
    reason: Reason = None,
    topic: Topic = None,
    limit: Annotated[int, typer.Option(min=1, help="How many at most.")] = 100,
    admin: Admin = DEFAULT_ADMIN,
    user: UserName = None,
    password: Password = None,
    as_json: AsJson = False,
) -> None:
    """Show dead letters, the oldest first: where each died, why, and after how many attempts.

    Example: gateway dead-letters list --from orders --reason exhausted
    """
    client = AdminClient(admin, user, password)
    found: list[StoredView] = []
    for name in _dead_letter_queues(client, queue):
        left = limit - len(found)
        found += _browse(
            client, name, left, 200 if not as_json else 1 << 20, died_in=died_in, reason=reason, topic=topic
        )
    if as_json:
        print_json(found)
        return
    rows = []
    for stored in found:
        death = stored.deaths[0] if stored.deaths else None
        why = (
            (death.queue, death.reason, death.attempts, death.error, tables.moment(death.last)) if death else ("",) * 5
        )
        rows.append((stored.id, stored.queue, stored.message.topic, *why, tables.body(stored.message, 40)))
    tables.show(
        ("id>", "queue", "topic", "died in", "reason", "attempts>", "error", "last", "body"), rows, "no dead letters"
    )


@dead_letters_app.command("show")
def show_dead_letter(
    id: Annotated[int, typer.Argument(help="As `gateway dead-letters list` shows it.")],
    queue: DeadQueue = None,
    admin: Admin = DEFAULT_ADMIN,
    user: UserName = None,
    password: Password = None,
    as_json: AsJson = False,
) -> None:
    """Show one dead letter whole: message, properties and each time it died.

    Example: gateway dead-letters show 1207
    """
    client = AdminClient(admin, user, password)
    stored = _find(client, _dead_letter_queues(client, queue), id)
    if as_json:
        print_json(stored)
        return
    rows: list[tuple[str, Any]] = [("id", stored.id), ("queue", stored.queue)]
    for name in msgspec.structs.fields(MessageView):
        value = getattr(stored.message, name.name)
        if name.name in ("body", "headers") or value in (None, "", 0.0, False):
            continue
        rows.append((name.name, value.text if isinstance(value, Body) else value))
    rows += [(f"header {name}", value) for name, value in stored.message.headers]
    for death in stored.deaths:
        rows.append(
            (f"died in {death.queue}", f"{tables.moment(death.last)} {death.reason} after {death.attempts} attempts"
             f"{': ' + death.error if death.error else ''} (came {tables.moment(death.first)})")
        )  # fmt: skip
    rows.append((f"body ({stored.message.body.encoding})", stored.message.body.text))
    tables.show(("", ""), rows, "")


def _find(client: AdminClient, names: list[str], id: int) -> StoredView:
    for name in names:
        try:
            return client.get("message", StoredView, queue=name, id=id)
        except DeniedError as error:
            if error.status != 404:
                raise
    raise GatewayError(f"there is no dead letter {id} in {', '.join(names) or 'any queue'}")


@dead_letters_app.command("redrive")
def redrive(
    queue: DeadQueue = None,
    id: Annotated[list[int] | None, typer.Option("--id", help="Only these; may be repeated.")] = None,
    died_in: DiedIn = None,
    reason: Reason = None,
    topic: Topic = None,
    older: Annotated[str | None, typer.Option(help="Only what died so long ago: 1h.", show_default=False)] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="How many at most.", show_default=False)] = None,
    to: Annotated[str | None, typer.Option(help="To this queue, not back to its own.", show_default=False)] = None,
    rate: Annotated[float | None, typer.Option(min=0.001, help="Messages a second.", show_default=False)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count.")] = False,
    admin: Admin = DEFAULT_ADMIN,
    user: UserName = None,
    password: Password = None,
    as_json: AsJson = False,
) -> None:
    """Put dead letters back into the queues they died in, in their order, with attempts at zero.

    Example: gateway dead-letters redrive --from orders --rate 100 --dry-run
    """
    client = AdminClient(admin, user, password)
    seconds = read_seconds("--older", older)
    before = None if seconds is None else time.time() - seconds
    total = RedriveProgress(0, 0)
    for name in _dead_letter_queues(client, queue):
        left = None if limit is None else limit - (total.total if dry_run else total.moved + total.skipped)
        if left is not None and left <= 0:
            break
        chosen = Selection(tuple(id) if id else None, died_in, reason, topic, before, left)
        asked = {"queue": name, "selection": chosen, "to": to, "rate": rate, "dry_run": dry_run}
        last = _follow(client.lines("redrive", asked, RedriveProgress), name, dry_run, as_json)
        total = RedriveProgress(
            total.total + last.total, total.moved + last.moved, total.skipped + last.skipped, last.error
        )
        if last.error:
            break
    if as_json:
        print_json(total)
    elif dry_run:
        typer.echo(f"{total.total} would be redriven")
    else:
        skipped = f", {total.skipped} skipped because in flight" if total.skipped else ""
        typer.echo(f"{total.moved} of {total.total} redriven{skipped}")
    if total.error:
        raise GatewayError(f"stopped: {total.error}")


def _follow(steps: Iterator[RedriveProgress], queue: str, dry_run: bool, as_json: bool) -> RedriveProgress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    last = RedriveProgress(0, 0)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    quiet = as_json or dry_run or not sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), disable=quiet) as bar:
        task = bar.add_task(printable(queue), total=None)
        for last in steps:
            bar.update(task, total=last.total, completed=last.moved + last.skipped)
    return last


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
