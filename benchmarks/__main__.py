"""``python -m benchmarks [SECTION…] [--peers NAME=PYTHON…]``: prints tables, writes JSON."""

from __future__ import annotations

import argparse
import datetime
import functools
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import (
    access,
    engine,
    first_token,
    history,
    memory,
    queue,
    sampling,
    stack,
    startup,
    streams,
    submit,
)
from benchmarks.figures import Section, table
from benchmarks.peers import parse_peer
from benchmarks.processes import ROOT, BenchmarkError, Workspace, workspace

SECTIONS: dict[str, Callable[[Workspace], Section]] = {
    "startup": startup.measure,
    "memory": memory.measure,
    "first_token": first_token.measure,
    "submit": submit.measure,
    "streams": streams.measure,
    "queue": queue.measure,
    "history": history.measure,
    "access": access.measure,
    "sampling": sampling.measure,
    "engine": engine.measure,
    "stack": stack.measure,
}
RESULTS = ROOT / "bench-results"


def main(arguments: list[str]) -> int:
    """Run the named sections, or all of them.

    Returns:
        0, or 1 if a section could not be measured; the others are still measured.
    """
    options = _parser().parse_args(arguments)
    calls = SECTIONS | {
        "engine": functools.partial(
            engine.measure, peers=options.peers, dtype=options.dtype, isa=options.isa
        ),
        "memory": functools.partial(memory.measure, isa=options.isa),
    }
    names = options.sections or list(SECTIONS)
    sections, failures = _measure({name: calls[name] for name in names}, fresh=options.fresh)
    path = options.json or RESULTS / f"{_now():%Y%m%d-%H%M%S}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {"machine": machine(), "sections": [section.as_json() for section in sections]}
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"\n{machine_line()}\nwritten to {path}")
    for name, reason in failures.items():
        print(f"not measured: {name}: {reason}", file=sys.stderr)
    return 1 if failures else 0


def _measure(
    calls: dict[str, Callable[[Workspace], Section]], *, fresh: bool
) -> tuple[list[Section], dict[str, str]]:
    sections: list[Section] = []
    failures: dict[str, str] = {}

    def run(name: str, call: Callable[[], Section]) -> None:
        started = time.monotonic()
        try:
            sections.append(call())
        except (BenchmarkError, OSError, subprocess.SubprocessError) as error:
            failures[name] = str(error)
            return
        print(table(sections[-1]), f"   ({time.monotonic() - started:.0f} s)\n", sep="\n")

    if fresh:
        run("startup_fresh", startup.measure_fresh)
    with workspace() as space:
        for name, call in calls.items():
            run(name, functools.partial(call, space))
    return sections, failures


def machine() -> dict[str, object]:
    """Facts about the machine by which a figure can be judged; none identifies the machine."""
    return {
        "at": _now().isoformat(timespec="seconds"),
        "commit": _commit(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "load": [round(number, 2) for number in os.getloadavg()],
    }


def machine_line() -> str:
    """The machine in one line."""
    return ", ".join(f"{name} {value}" for name, value in machine().items())


def _commit() -> str:
    git = shutil.which("git")
    if git is None:
        return "unknown"
    command = [git, "-C", str(ROOT), "describe", "--always", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _section(name: str) -> str:
    if name not in SECTIONS:
        raise argparse.ArgumentTypeError(f"there is no section {name!r}: {', '.join(SECTIONS)}")
    return name


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    names = ", ".join(SECTIONS)
    parser.add_argument("sections", nargs="*", type=_section, metavar="SECTION", help=names)
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the figures")
    parser.add_argument(
        "--fresh", action="store_true", help="also time the first `make up` of a fresh clone"
    )
    parser.add_argument(
        "--peers",
        nargs="+",
        type=parse_peer,
        default=[],
        metavar="NAME=PYTHON",
        help="other engines to time, and the interpreters of their environments",
    )
    parser.add_argument("--dtype", default="auto", help="precision of the engine section")
    parser.add_argument(
        "--isa",
        default="auto",
        help="instruction set of the kernels in the sections engine and memory, as in"
        " TEXTMILL_KERNELS_ISA",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
