"""``python -m tests.faults``: injects every fault at many moments and writes the report page.

Prints a table row as soon as a fault is complete.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from tests.faults import report
from tests.faults.moment import Fault, Result
from tests.faults.registry import DATABASES, all_faults
from tests.faults.runner import Run, Task, plan

MOMENTS = 20
LANES = 3  # more than the cores of a small machine: a moment mostly waits
STOPPED, VIOLATED, UNUSABLE = 130, 1, 2


def main(arguments: list[str]) -> int:
    """Run the selected faults.

    Returns:
        0 if every bound held, 1 if one did not, 2 for an unknown fault, 130 if the run was stopped.
    """
    options = _parser().parse_args(arguments)
    faults = all_faults()
    if options.list:
        for fault in faults:
            sys.stdout.write(
                f"{fault.name:22} {'/'.join(fault.databases):18} {fault.description}\n"
            )
        return 0
    if options.report:
        return _write_report(options.report)
    unknown = set(options.only) - {fault.name for fault in faults}
    if unknown:
        sys.stderr.write(f"There is no fault named {', '.join(sorted(unknown))}; see --list.\n")
        return UNUSABLE
    chosen = [fault for fault in faults if not options.only or fault.name in options.only]
    return _run(chosen, options)


def _run(faults: list[Fault], options: argparse.Namespace) -> int:
    file = report.ResultFile(
        options.resume or report.RESULTS / f"{report.now():%Y%m%d-%H%M%S}-{os.getpid()}.jsonl"
    )
    header, done = file.read() if options.resume else ({}, [])
    seed = int(header.get("seed", options.seed))
    databases = [options.database] if options.database else list(DATABASES)
    tasks = plan(faults, databases, options.moments, seed)
    selection = _selection(options)
    header |= report.machine() | {"seed": seed, "moments": options.moments, "lanes": options.lanes}
    header |= {"wanted": len(tasks), "skipped": report.skipped_faults(faults)}
    header |= {"selection": selection} if selection else {}
    file.begin(header)
    finished = {(r.fault, r.database, r.seed) for r in done}
    left = [t for t in tasks if (t.fault.name, t.database, t.seed) not in finished]
    print(
        f"{len(left)} of {len(tasks)} moments, seed {seed}; results go to {file.path}", flush=True
    )
    is_stopped = _do(left, tasks, file, done, options.lanes)
    header, results = file.read()
    print(report.faults_section(header, results).split("\n\n")[-1], flush=True)
    if is_stopped or selection:
        reason = "stopped" if is_stopped else "only a part"
        print(
            f"{report.DOCUMENT.name} is unchanged ({reason}). To write it anyway: "
            f'make faults ARGS="--report {file.path}"'
        )
    else:
        report.write_section("faults", report.faults_section(header, results))
        print(f"written: {report.DOCUMENT}")
    if is_stopped:
        return STOPPED
    return VIOLATED if any(r.violations for r in results) or len(results) < len(tasks) else 0


def _do(
    left: list[Task], tasks: list[Task], file: report.ResultFile, done: list[Result], lanes: int
) -> bool:
    """Run the remaining moments and print a row for each complete fault; return whether stopped."""
    faults = {task.fault.name: task.fault for task in tasks}
    wanted: dict[tuple[str, str], int] = defaultdict(int)
    for task in tasks:
        wanted[task.fault.name, task.database] += 1
    had: dict[tuple[str, str], list[Result]] = defaultdict(list)
    for result in done:
        had[result.fault, result.database].append(result)

    def on_result(result: Result) -> None:
        file.add(result)
        key = (result.fault, result.database)
        had[key].append(result)
        for violation in result.violations:
            print(f"  {result.fault} {result.database} seed {result.seed}: {violation}", flush=True)
        for note in result.notes if result.violations else []:
            print(f"    {note}", flush=True)
        if len(had[key]) == wanted[key]:
            print(report.table_row(faults[result.fault], result.database, had[key]), flush=True)

    run = Run(left, on_result, num_lanes=lanes)
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGHUP, _interrupt)
    try:
        run.run()
    except KeyboardInterrupt:
        print("stopping", flush=True)
        run.stop()
        return True
    finally:
        file.begin(run.versions)
    return False


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _selection(options: argparse.Namespace) -> str:
    """The options that restrict the run, for the page."""
    parts = []
    if options.only:
        parts.append("--only " + ",".join(options.only))
    if options.database:
        parts.append(f"--database {options.database}")
    if options.moments < MOMENTS:
        parts.append(f"--moments {options.moments}")
    return " ".join(parts)


def _write_report(paths: list[Path]) -> int:
    header: dict[str, Any] = {}
    results: list[Result] = []
    selections = []
    for path in paths:
        its_header, its_results = report.ResultFile(path).read()
        wanted = header.get("wanted", 0) + its_header.get("wanted", 0)
        selections.append(str(its_header.pop("selection", "")))
        header |= its_header | {"wanted": wanted}
        results += its_results
    if any(selections):
        header["selection"] = "; ".join(selections)
    report.write_section("faults", report.faults_section(header, results))
    print(f"written: {report.DOCUMENT}")
    return VIOLATED if any(result.violations for result in results) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make faults ARGS=…", description=__doc__)
    parser.add_argument("--moments", type=int, default=MOMENTS, help="per fault and database")
    parser.add_argument("--only", type=lambda text: text.split(","), default=[], metavar="NAME,…")
    parser.add_argument("--database", choices=DATABASES)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--lanes", type=int, default=LANES, help="sites that run in parallel")
    parser.add_argument("--resume", type=Path, metavar="FILE", help="continue a stopped run")
    parser.add_argument("--list", action="store_true", help="list the faults")
    parser.add_argument(
        "--report", type=Path, nargs="+", metavar="FILE", help="write the page from these results"
    )
    return parser


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    if status == STOPPED:  # client threads may wait for responses that never come
        os._exit(status)
    sys.exit(status)
