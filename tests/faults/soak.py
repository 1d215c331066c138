"""``python -m tests.faults.soak``: half an hour of random faults, then a check of what has grown.

Memory, open files and keys are compared between two idle moments: after the
warm-up, which is the first half of the time and kills processes too, and at the end. The second
half injects only faults that leave web and workers alive, so the same processes are measured twice.

The warm-up ends when everything that has a bound has reached it (``Half.fill_pools``): web's
threads, their heaps and its connections, while the database does not answer; and when the streams
in Redis, which live for a minute after their jobs, have expired.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import redis
from sqlalchemy import text

from tests.faults import journal as journals
from tests.faults import report
from tests.faults.bodies import known_bodies, usual_bodies
from tests.faults.client import PROBES, Client, Load
from tests.faults.journal import Journal
from tests.faults.moment import (
    END_SECONDS,
    Fault,
    Moment,
    Texts,
    await_ends,
    evidence_of,
    learn,
)
from tests.faults.registry import DATABASES, all_faults, make_site
from tests.faults.site import PlainSite
from tests.faults.verdict import Bounds, Counts, accepted, judge, violations
from tests.processes import num_open_files, resident_kib

MINUTES = 30.0
MAX_GROWTH = 0.05
SPARE_KIB = 2_048  # 5 % of a small process is noise
SPARE_FILES = {"redis": 9}  # a connection more or less for each pool of its three clients
SPARE_FILES_ELSE = 3
SPARE_KEYS = 20  # streams that an emptied Redis or a deletion brought back live for 15 minutes
JOBS_PER_SECOND = 1.5
BETWEEN_SECONDS = (5.0, 20.0)  # from one fault to the next
QUIET_SECONDS = 65.0  # after the last job, whose stream lives for 60 s
NUM_FILLS = 3  # of the pools; the third adds nothing any more
FILLS = {"sqlite": "sqlite-locked", "postgresql": "postgres-hole"}
FILL_SECONDS = 2.5  # longer than the circuit breaker of the database takes to open
NUM_AT_ONCE = 96  # requests; web has 32 threads
MAX_LASTING_KEYS = 20  # in Redis when idle: streams expire, tickets are consumed
KILLS = ("lone-worker-", "rolling-restart")
LEFT_OUT = {"machine-paused", "zombie", "clock-ahead", "clock-behind"}


@dataclass
class Snapshot:
    """The resources in use at an idle moment."""

    memory_kib: dict[str, dict[int, int]] = field(default_factory=dict)  # role → process → KiB
    open_files: dict[str, dict[int, int]] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    num_keys: int = 0
    num_lasting_keys: int = 0  # keys that never expire


def take_snapshot(site: PlainSite) -> Snapshot:
    """Measure every process, every table and Redis."""
    roles: dict[str, list[int]] = {
        "web": site.web_pids(),
        "worker": site.worker_pids(),
        "redis": [p for p in [site.redis.process.pid if site.redis.process else 0] if p],
    }
    snapshot = Snapshot(
        memory_kib={role: {pid: resident_kib(pid) for pid in pids} for role, pids in roles.items()},
        open_files={
            role: {pid: num_open_files(pid) for pid in pids} for role, pids in roles.items()
        },
    )
    with site.engine.connect() as connection:
        for table in ("jobs", "job_events", "runs", "job_traces", "workers", "model_cards"):
            query = text(f"SELECT count(*) FROM {table}")
            snapshot.rows[table] = connection.execute(query).scalar_one()
    client = redis.Redis(port=site.redis.port, socket_timeout=5)
    keys = list(client.scan_iter(count=1000))
    snapshot.num_keys = len(keys)
    snapshot.num_lasting_keys = sum(client.ttl(key) == -1 for key in keys)
    client.close()
    return snapshot


def growth(before: Snapshot, after: Snapshot, num_rows: int) -> list[str]:
    """A sentence for each resource that grew beyond its limit.

    Args:
        before: after the warm-up.
        after: at the end.
        num_rows: number of jobs that were accepted in between and not deleted.
    """
    found = []
    num_seen = 0
    for role, processes in before.memory_kib.items():
        for pid, kib in processes.items():
            now_kib = after.memory_kib.get(role, {}).get(pid)
            if now_kib is None or not kib:
                continue
            num_seen += 1
            if now_kib > max(kib * (1 + MAX_GROWTH), kib + SPARE_KIB):
                found.append(f"{role} grew by {now_kib / kib - 1:.0%} to {now_kib // 1024} MiB")
            files, now_files = before.open_files[role][pid], after.open_files[role][pid]
            spare = SPARE_FILES.get(role, SPARE_FILES_ELSE)
            if now_files > max(files * (1 + MAX_GROWTH), files + spare):
                found.append(f"{role} has {now_files} open files instead of {files}")
    if not num_seen:
        found.append("no process ran long enough to be measured twice")
    num_jobs = after.rows["jobs"] - before.rows["jobs"]
    if num_jobs != num_rows:
        found.append(f"{num_jobs} more rows in jobs instead of {num_rows}")
    if after.rows["workers"] > before.rows["workers"]:
        found.append(f"{after.rows['workers']} rows in workers instead of {before.rows['workers']}")
    if after.num_keys > max(before.num_keys * (1 + MAX_GROWTH), before.num_keys + SPARE_KEYS):
        found.append(f"{after.num_keys} keys in Redis instead of {before.num_keys}")
    if after.num_lasting_keys > MAX_LASTING_KEYS:
        found.append(f"{after.num_lasting_keys} keys in Redis that never expire")
    return found


def eligible(database: str) -> tuple[list[Fault], list[Fault]]:
    """The faults that may be combined on one site: those that kill processes, and the others."""
    usable = [
        fault
        for fault in all_faults()
        if fault.site in {"plain", "proxied"}
        and database in fault.databases
        and fault.submits
        and fault.name not in LEFT_OUT
    ]
    kills = [fault for fault in usable if fault.name.startswith(KILLS)]
    return kills, [fault for fault in usable if fault not in kills]


@dataclass
class Half:
    """One half of the time on one site, under constant load."""

    site: PlainSite
    faults: list[Fault]
    seed: int
    seconds: float
    texts: Texts
    is_warm_up: bool = False
    done: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    num_rows: int = 0  # jobs that were accepted and not deleted

    def run(self) -> Counts:
        """Load, random faults, idle time; return the verdict on all of it."""
        generator = random.Random(self.seed)
        path = self.site.folder / f"soak-{self.seed}.jsonl"
        client = Client(self.site.port, Journal(path))
        load = Load(
            client,
            usual_bodies(),
            seed=self.seed,
            jobs_per_second=JOBS_PER_SECOND,
        )
        load.start()
        deadline = time.monotonic() + self.seconds
        moment = Moment(self.faults[0], self.site, client, load, generator, is_quick=True)
        while time.monotonic() < deadline:
            moment.pause(*BETWEEN_SECONDS)
            moment.fault = generator.choice(self.faults)
            self._disturb(moment)
        if self.is_warm_up:
            for _ in range(NUM_FILLS):
                self.fill_pools(moment)
        load.stop_submitting()
        self._attempt(self.site.await_healthy)
        await_ends(self.site, 2 * END_SECONDS)
        load.finish(60.0)
        client.journal.close()
        entries = list(journals.read(path))
        deleted = {entry.job_id for entry in entries if entry.kind == "deleted"}
        self.num_rows = sum(entry.job_id not in deleted for entry in accepted(entries))
        return judge(evidence_of(moment, entries, self.texts))

    def _disturb(self, moment: Moment) -> None:
        fault = moment.fault
        print(f"{time.strftime('%H:%M:%S')} {fault.name}", flush=True)
        self.done[fault.name] = self.done.get(fault.name, 0) + 1
        self._attempt(lambda: fault.inject(moment))
        moment.pause(*(fault.quick_hold or fault.hold))
        self._attempt(lambda: fault.heal(moment))
        self._attempt(self.site.await_healthy)

    def fill_pools(self, moment: Moment) -> None:
        """Keep all of web's threads and connections busy at once: no answer from the database."""
        moment.fault = next(f for f in self.faults if f.name == FILLS[self.site.database])
        paths = [path for path in PROBES.values() for _ in range(NUM_AT_ONCE // len(PROBES))]
        with ThreadPoolExecutor(NUM_AT_ONCE) as pool:
            self._attempt(lambda: moment.fault.inject(moment))
            for path in paths:
                pool.submit(moment.client.request, "page", "GET", path)
            time.sleep(FILL_SECONDS)
            self._attempt(lambda: moment.fault.heal(moment))
        self._attempt(self.site.await_healthy)

    def _attempt(self, call: Callable[[], object]) -> None:
        try:
            call()
        except Exception as error:  # the soak continues and reports this at the end
            self.failures.append(f"{type(error).__name__} {error}"[:1000])


def soak(database: str, minutes: float, seed: int) -> tuple[str, list[str]]:
    """Run the soak on one database.

    Returns:
        The page's section about it, and the exceeded bounds.
    """
    kills, others = eligible(database)
    site = make_site("proxied", database)
    assert isinstance(site, PlainSite)
    try:
        site.start()
        texts = learn(site, known_bodies())
        time.sleep(QUIET_SECONDS)
        start = take_snapshot(site)
        halves = [
            Half(site, [*kills, *others], seed, minutes * 30, texts, is_warm_up=True),
            Half(site, others, seed + 1, minutes * 30, texts),
        ]
        counts = halves[0].run()
        time.sleep(QUIET_SECONDS)
        warm = take_snapshot(site)
        second = halves[1].run()
        time.sleep(QUIET_SECONDS)
        end = take_snapshot(site)
        counts.add(second)
        broken = [
            *violations(counts, Bounds()),
            *growth(warm, end, halves[1].num_rows),
            *(failure for half in halves for failure in half.failures),
        ]
        if lines := site.marked_lines():
            counts.log_hits = len(lines)
            broken.append(f"{len(lines)} prompts or cookies in a log")
        header = report.machine() | site.versions() | {"seed": seed, "minutes": minutes}
        return _section(database, header, halves, counts, [start, warm, end], broken), broken
    finally:
        site.close()


def _section(
    database: str,
    header: dict[str, Any],
    halves: list[Half],
    counts: Counts,
    snapshots: list[Snapshot],
    broken: list[str],
) -> str:
    done: dict[str, int] = {}
    for half in halves:
        for name, number in half.done.items():
            done[name] = done.get(name, 0) + number
    lines = [
        f"### {database}",
        "",
        "Made with: " + "; ".join(f"{name} {value}" for name, value in header.items()) + ".",
        "",
        f"{counts.accepted} accepted jobs under {sum(done.values())} faults: {counts.lost} lost, "
        f"{counts.twice} ended twice, {counts.wrong} with a wrong text, {counts.otherwise} ended "
        f"otherwise, {counts.gaps} streams with gaps or repetitions, "
        f"{counts.other_5xx + counts.impolite} wrong answers, {counts.log_hits} prompts in logs.",
        "",
        "| in use when idle | start | warm | end |",
        "|---|--:|--:|--:|",
        *_table(snapshots),
        "",
        "Faults: " + ", ".join(f"{name} {number}" for name, number in sorted(done.items())) + ".",
        "",
    ]
    if broken:
        lines += ["Not held:", "", *(f"- {sentence.splitlines()[0]}" for sentence in broken)]
    else:
        lines.append("All bounds were held.")
    return "\n".join(lines) + "\n"


def _table(snapshots: list[Snapshot]) -> list[str]:
    def row(name: str, values: list[object]) -> str:
        return f"| {name} | " + " | ".join(map(str, values)) + " |"

    rows = []
    for role in snapshots[0].memory_kib:
        memory = [sum(s.memory_kib[role].values()) // 1024 for s in snapshots]
        files = [sum(s.open_files[role].values()) for s in snapshots]
        rows.append(row(f"{role}: memory, MiB", list(memory)))
        rows.append(row(f"{role}: open files", list(files)))
    for table in snapshots[0].rows:
        rows.append(row(f"rows in `{table}`", [s.rows[table] for s in snapshots]))
    rows.append(row("keys in Redis", [s.num_keys for s in snapshots]))
    rows.append(row("of these without expiry", [s.num_lasting_keys for s in snapshots]))
    return rows


def main(arguments: list[str]) -> int:
    """Soak each database for an equal part of the time, and write the page's section."""
    parser = argparse.ArgumentParser(prog="make soak ARGS=…", description=__doc__)
    parser.add_argument("--minutes", type=float, default=MINUTES, help="on all databases together")
    parser.add_argument("--database", choices=DATABASES)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, _interrupt)
    databases = [options.database] if options.database else list(DATABASES)
    print(f"seed {options.seed}", flush=True)
    sections, broken = [], []
    for database in databases:
        section, its_broken = soak(database, options.minutes / len(databases), options.seed)
        print(section, flush=True)
        sections.append(section)
        broken += its_broken
    if options.minutes >= MINUTES and not options.database:
        head = (
            f"## Under load for {options.minutes:g} minutes\n\nRandom faults, and load without a "
            "pause. The first half is the warm-up; it ends with bursts of "
            f"{NUM_AT_ONCE} requests at once while the database does not answer, which fill web's "
            "32 threads, their heaps and its pools of connections, and with "
            f"{QUIET_SECONDS:g} s of quiet, in which the streams of ended jobs expire. From then "
            "to the end memory, open files and keys may grow by "
            f"{MAX_GROWTH:.0%}, in the processes that lived through both.\n\n"
        )
        report.write_section("soak", head + "\n".join(sections))
        print(f"written: {report.DOCUMENT}")
    else:
        print(f"{report.DOCUMENT.name} is unchanged, because this was an incomplete run.")
    return 1 if broken else 0


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        print("stopped", flush=True)
        os._exit(130)  # clients may wait for answers that never come
