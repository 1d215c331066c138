"""Writes ``docs/reliability.md`` from results, and prints a row for each complete fault."""

from __future__ import annotations

import datetime
import json
import os
import platform
import shutil
import sqlite3
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tests.faults.moment import Fault, Result
from tests.faults.registry import all_faults, reason_to_skip
from tests.faults.verdict import Bounds, Counts

ROOT = Path(__file__).parent.parent.parent
DOCUMENT = ROOT / "docs" / "reliability.md"
RESULTS = ROOT / "fault-results"
FLAGS = (
    "avx2",
    "avx_vnni",
    "avx512f",
    "avx512bw",
    "avx512_vnni",
    "avx512_bf16",
    "amx_int8",
    "neon",
)
INTRODUCTION = """\
# Reliability under faults

An accepted job reaches exactly one final state; its computation may be repeated. This page counts
how the product keeps that promise under faults. `tests/faults/` starts real processes (web, two
workers, Redis, SQLite or PostgreSQL), submits jobs at random moments, injects a fault, heals it and
waits until every job has ended. Then it compares three records: a journal of the accepted ids,
which the clients sync to disk outside the database; the rows of `jobs` and `job_events`; and the
event streams that clients followed. The harness writes this page; do not edit it.

```
make faults                                       # every fault, 20 moments a database: hours
make faults ARGS="--only redis-frozen --moments 2 --database sqlite"
make faults ARGS="--list"
make soak ARGS="--minutes 30"
```

`make test` injects the quick faults at two moments each, with the same bounds.
"""
COLUMNS = {
    "accepted": "jobs that were answered with 202",
    "by rule": "jobs that succeeded, were canceled or deleted as requested, or failed as the "
    "fault requires (the poisonous prompt)",
    "else": "jobs that ended otherwise, or whose record in `job_events` is impossible",
    "lost": "accepted jobs without an end",
    "twice": "jobs with more than one end",
    "again": "jobs that were decoded more than once, which is allowed",
    "wrong": "completions that differ from those of an undisturbed product for the same request",
    "5xx": "answers of 500 and above other than 503; 429 and 503 without `Retry-After` count too",
    "no answer": "requests whose connection was refused or broke because web was down, or that the "
    "client gave up after 60 s",
    "gaps": "event streams with a gap, a repetition, another text or no end, over all their "
    "connections",
    "logs": "log lines that contain a prompt or a visitor's cookie",
    "first": "seconds from the fault to the first completion after it, maximum of all moments",
    "recovery": "seconds until every job of a dead process is back in the queue and the "
    "first of them runs again; if it had none, as `first`",
    "wait": "the longest time from a job's acceptance to its end, in seconds",
    "slowest": "the slowest answer, in seconds; without streams and long polls",
}
HEADER = (
    "| fault | database | moments | accepted | by rule | else | lost | twice | again | wrong | 5xx "
    "| no answer | gaps | logs | first | recovery | wait | slowest | bounds |\n"
    "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|"
)


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def machine() -> dict[str, Any]:
    """The machine, as far as a figure depends on it."""
    return {
        "date": now().isoformat(timespec="seconds"),
        "commit": _commit(),
        "processor": _processor(),
        "instruction set": " ".join(flag for flag in FLAGS if flag in _flags()) or "unknown",
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
    }


def _commit() -> str:
    git = shutil.which("git")
    if git is None:
        return "unknown"
    command = [git, "-C", str(ROOT), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def _cpu(field: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), "")


def _processor() -> str:
    return _cpu("model name") or platform.processor() or "unknown"


def _flags() -> set[str]:
    return set((_cpu("flags") or _cpu("Features")).split())


# ---- results --------------------------------------------------------------------------------


class ResultFile:
    """The results of a run, appended one by one, so that a stopped run keeps its results."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def begin(self, header: dict[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._append(header)

    def add(self, result: Result) -> None:
        self._append(result.as_json())

    def _append(self, document: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(document) + "\n")

    def read(self) -> tuple[dict[str, Any], list[Result]]:
        """The header, with the additions of later lines, and the results."""
        header: dict[str, Any] = {}
        results = []
        for line in self.path.read_text(encoding="utf-8").splitlines(keepends=True):
            if not line.endswith("\n"):  # the run was stopped while it was written
                continue
            document = json.loads(line)
            if "fault" in document:
                results.append(Result.of_json(document))
            else:
                header |= document
        return header, results


# ---- tables ---------------------------------------------------------------------------------


def summed(results: Iterable[Result]) -> Counts:
    """The sum of several moments."""
    total: Counts | None = None
    for result in results:
        if total is None:
            total = Counts(**result.counts.as_json())
        else:
            total.add(result.counts)
    return total or Counts(moments=0)


def table_row(fault: Fault, database: str, results: Sequence[Result]) -> str:
    """A fault's row of the table."""
    counts = summed(results)
    numbers = [
        counts.moments,
        counts.accepted,
        counts.by_rule,
        counts.otherwise,
        counts.lost,
        counts.twice,
        counts.again,
        counts.wrong,
        counts.other_5xx + counts.impolite,
        counts.unanswered,
        counts.gaps,
        counts.log_hits,
    ]
    times = [counts.first_completion, counts.recovery, counts.worst_wait, counts.slowest]
    failed = sum(bool(result.violations) for result in results)
    held = "held" if not failed else f"**exceeded** in {failed} of {counts.moments}"
    cells = [
        f"`{fault.name}`: {fault.description}",
        database,
        *map(str, numbers),
        *("–" if seconds is None else f"{seconds:.1f}" for seconds in times),
        f"{bounds_text(fault.bounds)}: {held}",
    ]
    return "| " + " | ".join(cells) + " |"


def bounds_text(bounds: Bounds) -> str:
    """The bounds of a fault in addition to the zeros."""
    parts = ["zeros"]
    if bounds.recovery_seconds is not None:
        parts.append(f"recovery ≤ {bounds.recovery_seconds:g} s")
    if bounds.answer_seconds is not None:
        parts.append(f"slowest ≤ {bounds.answer_seconds:g} s")
    if bounds.all_answered:
        parts.append("all answered")
    if bounds.none_again:
        parts.append("none again")
    return ", ".join(parts)


def faults_section(header: dict[str, Any], results: Sequence[Result]) -> str:
    """The part of the page about single faults."""
    faults = all_faults()
    lines = ["## Single faults", "", _made(header), ""]
    wanted = header.get("wanted", len(results))
    if len(results) < wanted or header.get("selection"):
        selection = header.get("selection") or "it was stopped"
        part = f"{len(results)} of {wanted} moments"
        lines += [f"**Incomplete table** ({selection}): {part}.", ""]
    lines += [
        "Bounds of every row (`zeros`): else, lost, twice, wrong, 5xx, gaps and logs are 0.",
        "",
        "| column | meaning |",
        "|---|---|",
        *(f"| {name} | {meaning} |" for name, meaning in COLUMNS.items()),
        "",
        HEADER,
    ]
    for fault in faults:
        for database in fault.databases:
            chosen = [r for r in results if (r.fault, r.database) == (fault.name, database)]
            if chosen:
                lines.append(table_row(fault, database, chosen))
    total = summed(results)
    lines += ["", _sum_line(total, results), *_broken(results), *_skipped(header)]
    return "\n".join(lines) + "\n"


def _made(header: dict[str, Any]) -> str:
    shown = {k: v for k, v in header.items() if k not in {"wanted", "selection"}}
    return "Made with: " + "; ".join(f"{name} {value}" for name, value in shown.items()) + "."


def _sum_line(total: Counts, results: Sequence[Result]) -> str:
    failed = sum(bool(result.violations) for result in results)
    verdict = f"{failed} moments exceeded a bound." if failed else "All bounds were held."
    if not results:
        verdict = "Nothing was shown."
    return (
        f"Total: {total.moments} moments, {total.accepted} accepted jobs, {total.lost} lost, "
        f"{total.twice} ended twice, {total.wrong} with a wrong text. {verdict}"
    )


def _broken(results: Sequence[Result]) -> list[str]:
    lines = []
    for result in results:
        if result.violations:
            reasons = "; ".join(v.splitlines()[0] for v in result.violations)
            lines.append(f"- `{result.fault}` on {result.database}, seed {result.seed}: {reasons}")
    return ["", "### Exceeded bounds", "", *lines] if lines else []


def _skipped(header: dict[str, Any]) -> list[str]:
    lines = [f"- `{name}`: {reason}" for name, reason in header.get("skipped", {}).items()]
    return ["", "### Not tested on this machine", "", *lines] if lines else []


def skipped_faults(faults: Sequence[Fault]) -> dict[str, str]:
    """The faults that cannot be injected here, with the reasons."""
    return {f.name: reason for f in faults if (reason := reason_to_skip(f)) is not None}


# ---- the page -------------------------------------------------------------------------------


def write_section(name: str, text: str, document: Path = DOCUMENT) -> None:
    """Replace one section of the page and leave the others as they are."""
    sections = _sections(document) | {name: text}
    marked = [
        f"<!-- {key} -->\n{sections[key].strip()}\n<!-- end of {key} -->\n"
        for key in ("faults", "soak")
        if key in sections
    ]
    document.write_text(INTRODUCTION + "\n" + "\n".join(marked), encoding="utf-8")


def _sections(document: Path) -> dict[str, str]:
    if not document.exists():
        return {}
    text = document.read_text(encoding="utf-8")
    found = {}
    for key in ("faults", "soak"):
        begin, end = f"<!-- {key} -->\n", f"<!-- end of {key} -->"
        if begin in text and end in text:
            found[key] = text.split(begin, 1)[1].split(end, 1)[0]
    return found
