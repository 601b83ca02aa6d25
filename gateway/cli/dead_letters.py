"""Owns the commands for dead letters: list, show, redrive.

Its rule: looking changes nothing, and a redrive says how far it came, whatever ends it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
import typer

from gateway.admin.operations import RedriveProgress, Selection
from gateway.admin.views import Body, MessageView, StoredView
from gateway.cli import tables
from gateway.cli.commands import (
    DEFAULT_ADMIN,
    Admin,
    Answer,
    AsJson,
    Password,
    UserName,
    connect,
    print_json,
    read_seconds,
)
from gateway.errors import DeniedError, GatewayError
from gateway.logs import printable
from gateway.model.policy import DEAD_LETTERS

if TYPE_CHECKING:
    from gateway.cli.client import AdminClient

dead_letters_app = typer.Typer(help="Messages that could not be delivered: look, and redrive.", no_args_is_help=True)

DEAD_LETTER_COLUMNS = (
    tables.number("id", None), tables.name("queue"), tables.name("topic"), tables.name("died in"),
    tables.word("reason", 100), tables.number("attempts", 90), tables.text("error", 80), tables.word("last", 60),
    tables.text("body", 70),
)  # fmt: skip


def _dead_letter_queues(client: AdminClient, queue: str | None) -> list[str]:
    """The queue asked for, or all that are some queue's dead letters."""
    if queue is not None:
        return [queue]
    found = client.get("queues", Answer).queues
    targets = {q["dead_letter"] for q in found} | {DEAD_LETTERS}
    return [q["name"] for q in found if q["name"] in targets]


def _browse(client: AdminClient, queue: str, limit: int, max_body: int, **chosen: Any) -> Iterator[StoredView]:
    after: int | None = 0
    while after is not None and limit > 0:
        answer = client.get(
            "messages", Answer, queue=queue, limit=min(limit, 500), after=after, max_body=max_body, **chosen
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
    client = connect(admin, user, password)
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
    tables.show(DEAD_LETTER_COLUMNS, rows, "no dead letters")


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
    client = connect(admin, user, password)
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
    tables.show(tables.PAIRS, rows, "")


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
    client = connect(admin, user, password)
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
