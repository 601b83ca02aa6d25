"""Owns the command line: `python -m benchmarks PROFILE`. A profile is a module in `benchmarks/profiles`."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import shutil
import sys
import tempfile
from pathlib import Path

from benchmarks import disk, profiles, report
from benchmarks.load import LoadError
from tests.harness.process import ServerError

ROOT = Path(__file__).resolve().parents[1]


def main(arguments: list[str] | None = None) -> int:
    """Runs one profile; 0 if it could be measured, whatever the numbers are."""
    modules = {
        module.name: importlib.import_module(f"benchmarks.profiles.{module.name}")
        for module in pkgutil.iter_modules(profiles.__path__)
    }
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    choices = parser.add_subparsers(dest="profile", required=True, metavar="PROFILE")
    for name, module in modules.items():
        summary = (module.__doc__ or "").strip().splitlines()[0]
        chosen = choices.add_parser(name, help=summary, description=module.__doc__)
        chosen.add_argument("--folder", type=Path, default=ROOT / "build" / "bench", help="where the stores are made")
        chosen.add_argument("--json", type=Path, help="where the results go (default: PROFILE.json in that folder)")
        module.arguments(chosen)
    options = parser.parse_args(arguments)
    try:
        under = disk.measure(options.folder)
        print(
            f"stores on {under.file_system} in {under.folder}: "
            f"fsync p50 {under.fsync_p50:.2f} ms, p99 {under.fsync_p99:.2f} ms",
            flush=True,
        )
        folder = Path(tempfile.mkdtemp(prefix=options.profile, dir=options.folder))
        try:
            found: report.Report = modules[options.profile].run(options, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    except (disk.MemoryDiskError, LoadError, ServerError) as error:
        print(f"{options.profile}: {error}", file=sys.stderr)
        return 1
    found.values |= {"machine": report.machine(), "disk": under}
    report.show(found)
    target = options.json or options.folder / f"{options.profile}.json"
    report.save(found, target)
    print(f"written to {target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
