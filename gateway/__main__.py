"""Owns the command line: `gateway`, also `python -m gateway`.

Its rule: a failure is one clear text on standard error and a status: 1 the daemon did not do it, or the answer could
not be written, 2 the command, the configuration, the store or an address is wrong, 3 no daemon answers.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from gateway.cli import streams
from gateway.cli.commands import (
    AsJson,
    bindings,
    consume,
    groups_app,
    print_json,
    publish,
    queues_app,
    read_headers,
)
from gateway.cli.dead_letters import dead_letters_app
from gateway.errors import ConfigError, GatewayError, ListenError, StoreError, StreamError, UnreachableError, check_text

# What only some commands need is imported by these, so that each starts quickly.

DEFAULT_CONFIG = Path("config/gateway.yaml")

app = typer.Typer(
    help="A lightweight MQTT/AMQP broker gateway: FIFO groups, dedup and dead letters in one process.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Config = Annotated[Path, typer.Argument(help="The configuration.", metavar="CONFIG")]


def _version(asked: bool) -> None:
    if asked:
        import importlib.metadata

        typer.echo(importlib.metadata.version("mqtt-amqp-gateway"))
        raise typer.Exit


@app.callback()
def main_options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say which one.")
    ] = False,
) -> None:
    if context.invoked_subcommand != "run":  # the daemon logs to standard error, and may have no standard output
        streams.must_have_output()


@app.command()
def run(config: Config = DEFAULT_CONFIG) -> None:
    """Run the daemon until SIGTERM or Ctrl-C; SIGHUP reads routes, queues and users again.

    Example: gateway run config/gateway.yaml
    """
    from gateway import daemon as server
    from gateway.cli.greeting import greeting
    from gateway.config.settings import load

    settings = load(config, os.environ)
    server.run(settings, config, lambda addresses: _greet(greeting(settings, addresses)))


def _greet(text: str) -> None:
    """For people who look on: a daemon does not end because nobody can read it."""
    from gateway.logs import log

    try:
        print(text, flush=True)
    except (StreamError, BrokenPipeError) as error:
        log.warning("the greeting can't be printed", error=str(error))
        streams.discard_output()


@app.command()
def check(
    config: Config = DEFAULT_CONFIG,
    store: Annotated[
        bool, typer.Option("--store", help="Check the store that it names; the daemon must not run.")
    ] = False,
    save_to: Annotated[
        Path | None, typer.Option(metavar="DIRECTORY", help="With --store: a new store with all that is whole.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check a configuration, or its store, and change nothing; every fault is named with its place. The
    certificates and keys that it names are looked at, too.

    Example: gateway check config/gateway.yaml --store
    """
    from gateway.config.document import Faults
    from gateway.config.settings import load
    from gateway.transport import registry as plugins

    if store:
        _check_store(Path(load(config, os.environ).store.path), save_to, as_json)
        return
    if save_to is not None:
        raise typer.BadParameter("--save-to goes with --store")
    try:
        settings = load(config, os.environ, strict=True, warnings=(found := Faults(str(config))))
    except ConfigError as error:
        if as_json:
            lines = str(error).encode(errors="backslashreplace").decode().splitlines()  # a file's name may be no text
            print_json({"valid": False, "faults": lines})
            raise typer.Exit(2) from error
        raise
    problems = [*plugins.shadowed(), *found.lines()]
    if as_json:
        print_json({"valid": True, "faults": [], "warnings": problems})
        return
    for problem in problems:
        typer.echo(f"warning: {problem}", err=True)
    counts = (
        (len(settings.transports), "transport"),
        (len(settings.queues), "queue"),
        (len(settings.routes), "route"),
        (len(settings.users), "user"),
    )
    typer.echo(f"{config} is valid: " + ", ".join(f"{n} {word}{'' if n == 1 else 's'}" for n, word in counts))


def _check_store(path: Path, save_to: Path | None, as_json: bool) -> None:
    from gateway.cli import tables
    from gateway.engine.inspection import inspect

    found = inspect(path, save_to)
    if as_json:
        print_json(found)
    else:
        report = found.report
        typer.echo(
            f"{report.file}: {report.octets} bytes, {report.records} log records, {report.bodies} rows of bodies"
        )
        rows = [[one.queue, one.messages, one.lost] for one in found.queues]
        columns = (tables.name("queue"), tables.number("messages", 90), tables.number("lost", 100))
        tables.show(columns, rows, "it knows no queue")
        for problem in (*report.problems, *filter(None, [found.unreadable])):
            typer.echo(f"damaged: {problem}", err=True)
        if found.saved_to:
            typer.echo(f"what is whole is saved; set store.path to {found.saved_to}")
        elif found.sound:
            typer.echo("the store is sound")
        else:
            typer.echo("what is whole can be saved: add --save-to DIRECTORY", err=True)
    if not found.sound:
        raise typer.Exit(2)


@app.command()
def explain(
    config: Config,
    topic: Annotated[str, typer.Option(help="A topic, or $queue/NAME for one queue.")],
    body: Annotated[str, typer.Option(help="The body.")] = "",
    header: Annotated[list[str] | None, typer.Option("--header", metavar="NAME=VALUE", help="May be repeated.")] = None,
    client_id: Annotated[str, typer.Option(help="The client that publishes it.")] = "",
    source: Annotated[str, typer.Option(help="The transport that takes it in.")] = "",
    as_json: AsJson = False,
) -> None:
    """Tell where a message would go and why: queues, routes, group and dedup key. Needs no daemon.

    Example: gateway explain config/gateway.yaml --topic shop/7/orders --header order-id=1001
    """
    from gateway.admin import explain as explaining
    from gateway.cli import tables
    from gateway.config.settings import load
    from gateway.errors import nearest
    from gateway.model.message import QUEUE_PREFIX, Properties, to_topic
    from gateway.model.topics import check_name

    for text in (topic, client_id, source, *(header or ())):
        check_text(text)
    settings = load(config, os.environ)
    if why := check_name(topic.removeprefix(QUEUE_PREFIX)):
        raise ConfigError(f"--topic {topic!r} {why}")
    if source and source not in settings.transports:
        near = nearest(source, settings.transports, "transports")
        raise ConfigError(f"--source {source!r}: the configuration has no such transport{near}")
    properties = Properties(headers=tuple(read_headers(header)))
    message = to_topic(topic, os.fsencode(body), properties=properties, client_id=client_id, source=source)
    steps = explaining.explain(explaining.configured(settings), message)
    if as_json:
        print_json(steps)
    else:
        rows = []
        for step in steps:
            fate = "stored" if step.target is None else f"stored, sent to {step.target}"
            fate = f"dead letters: {step.invalid}" if step.invalid else fate
            if step.within is not None:
                fate = f"sent to {step.target}, answered when delivered, in {step.within:g}s at most"
            fate = f"refused: {step.refused}" if step.refused else fate
            rows.append((step.queue, "; ".join(step.bindings), step.group, step.dedup_key, fate))
        columns = (
            tables.name("queue"), tables.text("because", 80), tables.text("group", 90), tables.text("dedup key", 70),
            tables.text("then", 100),
        )  # fmt: skip
        tables.show(columns, rows, f"unrouted: nothing takes {topic}")
    if not steps:
        raise typer.Exit(1)


@app.command("hash-password")
def hash_password(
    user: Annotated[str, typer.Option("--user", help="Print a line for `users_file`.", show_default=False)] = "",
    scram: Annotated[bool, typer.Option("--scram", help="Make the verifier for `users.NAME.scram` instead.")] = False,
) -> None:
    """Make the argon2 hash of a password for `users`. Asks for it, or reads it from standard input.

    Example: gateway hash-password --user alice >> users.txt
    """
    from gateway.auth.users import hash_password as make

    if sys.stdin.isatty():
        password = typer.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
    else:
        password = sys.stdin.readline().rstrip("\r\n")
    if not password:
        raise ConfigError("an empty password protects nothing")
    check_text(user)
    check_text(password, "the password")
    if scram:
        if user:
            raise ConfigError("users_file has no place for a SCRAM verifier; leave --user out and put it in `users`")
        from gateway.auth.scram import make_verifier

        try:
            typer.echo(str(make_verifier(password)))
        except ValueError as error:
            raise ConfigError(str(error)) from error
        return
    typer.echo(f"{user}:{make(password)}" if user else make(password))


@app.command()
def schema() -> None:
    """Print the JSON Schema of the configuration, for editors; it covers the plugins that are installed.

    Example: gateway schema > config/schema.json
    """
    import json

    from gateway.config.settings import json_schema

    typer.echo(json.dumps(json_schema(), indent=2))


app.command()(publish)
app.command()(consume)
app.command()(bindings)
app.add_typer(queues_app, name="queues")
app.add_typer(groups_app, name="groups")
app.add_typer(dead_letters_app, name="dead-letters")


def main() -> None:
    """The entry point."""
    streams.prepare()
    try:
        app(prog_name="gateway")
    except (ConfigError, StoreError, ListenError) as error:
        _fail(error, 2)
    except UnreachableError as error:
        _fail(error, 3)
    except StreamError as error:
        streams.discard_output()
        _fail(error, 1)
    except GatewayError as error:
        _fail(error, 1)
    except BrokenPipeError:
        # The reader of a pipe has gone (`| head`); nothing more can be said.
        streams.discard_output()
        sys.exit(1)


def _fail(error: Exception, status: int) -> None:
    print(f"gateway: {error}" if "\n" not in str(error) else error, file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main()
