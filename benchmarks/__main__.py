"""Owns the command line: `python -m benchmarks PROFILE`. A profile is a module in `benchmarks/profiles`."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import brokers, budget, disk, profiles, report, rounds
from benchmarks.rounds import Bench, Profile
from tests.harness.rabbitmq import RabbitMq

ORDER = ("ingest", "devices", "pipeline", "amqp", "fanout", "latency", "idle", "backlog", "keys", "routes")


def main(arguments: Sequence[str] | None = None, node: RabbitMq | None = None) -> int:
    """Runs what is named; 0 if it could be measured, whatever the numbers are. node: a RabbitMQ that runs already,
    to be used instead of new ones (in smoke runs: it starts slowly; nothing else should be measured so)."""
    options = parser().parse_args(arguments)
    command = shlex.join(["python", "-m", "benchmarks", *(sys.argv[1:] if arguments is None else arguments)])
    run: Callable[[argparse.Namespace, str, RabbitMq | None], int] = options.run
    try:
        return run(options, command, node)
    except disk.MemoryDiskError as error:
        print(error, file=sys.stderr)
        return 1


def load_profiles() -> list[Profile]:
    """All, in the order in which they are run."""
    names = sorted((module.name for module in pkgutil.iter_modules(profiles.__path__)), key=ORDER.index)
    return [importlib.import_module(f"benchmarks.profiles.{name}").PROFILE for name in names]


def parser() -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser(prog="python -m benchmarks", description="See benchmarks/README.md.")
    choices = whole.add_subparsers(required=True, metavar="PROFILE")
    everything = load_profiles()
    common(choices.add_parser("all", help="every profile, one after the other"), everything)
    for profile in everything:
        module = sys.modules[f"benchmarks.profiles.{profile.name}"]
        text = module.__doc__ or ""
        chosen = choices.add_parser(
            profile.name,
            help=text.splitlines()[0],
            description=text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        common(chosen, [profile])
        for name, size in profile.sizes.items():
            chosen.add_argument(f"--{name}", type=int, help=f"{size.about} (default {size.full:,})")
    budget.arguments(choices)
    return whole


def common(chosen: argparse.ArgumentParser, which: Sequence[Profile]) -> None:
    chosen.add_argument("--rounds", type=int, default=3, help="of each contender, interleaved (default 3)")
    chosen.add_argument("--only", nargs="+", choices=brokers.ALL, help="these contenders alone")
    chosen.add_argument("--smoke", action="store_true", help="tiny sizes, one round: that it runs and counts right")
    chosen.add_argument("--folder", type=Path, default=disk.FOLDER, help="where the stores are made, and PROFILE.json")
    chosen.set_defaults(run=run, profiles=which)


def run(options: argparse.Namespace, command: str, node: RabbitMq | None) -> int:
    """The profiles one after the other; one that fails does not stop the next."""
    under = disk.measure(options.folder)
    print(
        f"stores on {under.file_system} in {under.folder}: "
        f"fsync p50 {under.fsync_p50:.2f} ms, p99 {under.fsync_p99:.2f} ms",
        flush=True,
    )
    failed = []
    for profile in options.profiles:
        folder = Path(tempfile.mkdtemp(prefix=profile.name, dir=options.folder))
        try:
            if not run_one(profile, options, command, Bench(folder, sizes(profile, options), node), under):
                failed.append(profile.name)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    if failed:
        print(f"not measured whole: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def run_one(profile: Profile, options: argparse.Namespace, command: str, bench: Bench, under: disk.Disk) -> bool:
    """Whether everything could be measured."""
    contenders = [name for name in profile.contenders if not options.only or name in options.only]
    if not contenders:
        print(f"{profile.name}: measures only {', '.join(profile.contenders)}", file=sys.stderr)
        return False
    smoke: bool = options.smoke
    number = 1 if smoke else options.rounds
    variants = (profile.smoke if smoke else ()) or profile.variants
    print(f"\n{profile.name}: {profile.title}", flush=True)
    outcome = rounds.run(profile, bench, number, variants, contenders)
    made = report.make(profile, bench, outcome, number, smoke, command, under)
    report.show(made, profile)
    path = options.folder / f"{profile.name}.json"
    report.save(made, path)
    print(f"written to {path}", flush=True)
    return not outcome.failures


def sizes(profile: Profile, options: argparse.Namespace) -> dict[str, int]:
    """As given, or by default those of a full or a smoke run."""
    found = {}
    for name, size in profile.sizes.items():
        given: int | None = getattr(options, name, None)
        found[name] = given if given is not None else size.smoke if options.smoke else size.full
    return found


if __name__ == "__main__":
    sys.exit(main())
