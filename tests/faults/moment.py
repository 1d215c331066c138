"""One fault at one moment: load, fault, healing, end of all jobs, verdict."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import text

from tests.faults import journal as journals
from tests.faults.bodies import NUM_BAITS, Body, bait, known_bodies, usual_bodies
from tests.faults.client import Client, Load
from tests.faults.journal import Journal
from tests.faults.site import Site, SiteError
from tests.faults.verdict import Bounds, Counts, Event, Evidence, Row, explain, judge, violations
from tests.processes import is_alive
from textmill.core.errors import TextmillError

Texts = dict[str | None, dict[str, str]]
BEFORE_SECONDS = (0.3, 2.0)  # of load, before the fault
AFTER_SECONDS = 1.5  # of load, after the healing
END_SECONDS = 150.0  # more than three leases; a job that has not ended by then is lost
CATCH_SECONDS = 60.0
LOOK_SECONDS = 0.004
LOOK_AT_ROW_SECONDS = 0.05  # where the moment does not matter: a query costs half a millisecond
STARTS_LOAD = 1.0  # jobs per second where processes start, which share the processor with the load
MAX_LINES = 12  # of explanation
FINAL = "('succeeded', 'failed', 'canceled')"


class MomentError(Exception):
    """The fault could not be injected, so the moment is not valid."""


@dataclass(frozen=True)
class Fault:
    """One kind of fault.

    Attributes:
        name: as in ``--only``.
        description: for the table.
        inject: injects the fault, and records its time and the affected processes.
        heal: undoes it.
        hold: minimum and maximum of the seconds between injection and healing.
        quick_hold: the same for the sample in the test suite.
        site: the kind of site that it needs.
        databases: those that can have this fault.
        bounds: limits in addition to the zeros.
        is_quick: whether it is part of the sample in the test suite.
        submits: whether the load submits jobs from the start.
        jobs_per_second: the load.
    """

    name: str
    description: str
    inject: Callable[[Moment], None]
    heal: Callable[[Moment], None] = lambda moment: None
    hold: tuple[float, float] = (0.0, 0.0)
    quick_hold: tuple[float, float] | None = None
    site: str = "plain"
    databases: tuple[str, ...] = ("sqlite", "postgresql")
    bounds: Bounds = field(default_factory=Bounds)
    is_quick: bool = False
    submits: bool = True
    jobs_per_second: float = 2.5


@dataclass
class Moment:
    """The objects that a fault may use while it is injected."""

    fault: Fault
    site: Any  # a Site of the kind that the fault names
    client: Client
    load: Load
    random: random.Random
    is_quick: bool = False
    fault_at: float | None = None
    lost_pids: list[int] = field(default_factory=list)
    may_fail: dict[str, frozenset[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)  # problems that the fault itself observed
    undo: list[Callable[[], None]] = field(default_factory=list)
    pids: list[int] = field(default_factory=list)  # state of the fault
    num_baits: int = 0

    def strike(self, *pids: int) -> None:
        """Record that the fault happens now and ends these processes."""
        self.fault_at = time.time()
        self.lost_pids += pids

    def pause(self, least: float, most: float) -> None:
        """Wait for a random time."""
        time.sleep(self.random.uniform(least, most))

    def until(
        self,
        condition: Callable[[], object],
        what: str,
        seconds: float = 60.0,
        every_seconds: float = LOOK_SECONDS,
    ) -> Any:
        """Poll a condition on other processes until it is true; return its value.

        Raises:
            MomentError: the condition was not true in time.
        """
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            if time.monotonic() > deadline:
                raise MomentError(f"{what} within {seconds:g} s")
            time.sleep(every_seconds)
        return found

    def submit_bait(self, *, follows: bool = False) -> str:
        """Submit a job with a long completion; return its id."""
        self.num_baits += 1
        job_id = self.load.submit(bait(self.num_baits % NUM_BAITS), follows=follows)
        if job_id is None:
            raise MomentError("no bait was accepted")
        return job_id

    def catch(self) -> tuple[int, str]:
        """Find a worker that is generating: its process and the job's id."""
        deadline = time.monotonic() + CATCH_SECONDS
        while time.monotonic() < deadline:
            job_id = self.submit_bait()
            pids = self.site.worker_pids()  # once, because it lists all processes
            while (row := self.row(job_id)) is not None and row[0] in {"queued", "running"}:
                if row[0] == "running":
                    holder = next((pid for pid in pids if f"-{pid}-" in row[1]), None)
                    if holder is not None and is_alive(holder):
                        return int(holder), job_id
                time.sleep(5 * LOOK_SECONDS)
        raise MomentError("no worker was found while it was generating")

    def row(self, job_id: str) -> tuple[str, str] | None:
        """A job's status and its worker's id."""
        query = text("SELECT status, worker_id FROM jobs WHERE id = :id")
        with self.site.engine.connect() as connection:
            row = connection.execute(query, {"id": job_id}).first()
        return None if row is None else (row.status, row.worker_id or "")

    def await_death(self, pids: Sequence[int], seconds: float = 60.0) -> int:
        """The first of some processes to end."""
        return int(
            self.until(
                lambda: next((p for p in pids if not is_alive(p)), None), "none died", seconds
            )
        )


@dataclass
class Result:
    """The verdict on one moment."""

    fault: str
    database: str
    seed: int
    counts: Counts
    violations: list[str]
    notes: list[str]
    seconds: float
    is_site_spoiled: bool = False

    def as_json(self) -> dict[str, Any]:
        return {
            "fault": self.fault,
            "database": self.database,
            "seed": self.seed,
            "counts": self.counts.as_json(),
            "violations": self.violations,
            "notes": self.notes,
            "seconds": round(self.seconds, 1),
        }

    @classmethod
    def of_json(cls, found: Mapping[str, Any]) -> Result:
        return cls(**{**found, "counts": Counts(**found["counts"])})


def run_moment(site: Site, fault: Fault, seed: int, texts: Texts, *, is_quick: bool) -> Result:
    """Inject a fault once and judge the effects.

    Args:
        site: a healthy one, of the kind that the fault needs.
        fault: the fault.
        seed: of all random choices.
        texts: the undisturbed completions; those of a missing revision are added.
        is_quick: whether to use the short form.
    """
    started = time.monotonic()
    generator = random.Random(seed)
    path = site.folder / f"journal-{fault.name}-{seed}.jsonl"
    journal = Journal(path)
    client = Client(site.port, journal)
    bodies = [body for body in usual_bodies() if body.name in _known_names(texts)]
    rate = fault.jobs_per_second / (2 if is_quick else 1)
    load = Load(client, bodies, seed=generator.randrange(2**31), jobs_per_second=rate)
    moment = Moment(fault, site, client, load, generator, is_quick)
    known_lines = set(site.marked_lines())
    failures = _disturb(moment)
    failures += _calm_down(moment)
    journal.close()
    evidence = evidence_of(moment, list(journals.read(path)), texts)
    evidence.log_hits = len(set(site.marked_lines()) - known_lines)
    counts = judge(evidence)
    return Result(
        fault=fault.name,
        database=site.database,
        seed=seed,
        counts=counts,
        violations=[*failures, *moment.failures, *violations(counts, fault.bounds)],
        notes=[*moment.notes, _statuses(evidence), *explain(evidence)[:MAX_LINES]],
        seconds=time.monotonic() - started,
        is_site_spoiled=bool(failures) or counts.lost > 0,
    )


def _statuses(evidence: Evidence) -> str:
    """The counts of answers to submissions, which show whether a fault had an effect."""
    found = Counter(str(e.status) for e in evidence.exchanges if e.what == "submit")
    return "submissions: " + ", ".join(f"{n} × {status}" for status, n in sorted(found.items()))


def _known_names(texts: Texts) -> set[str]:
    return {name for of_body in texts.values() for name in of_body}


def _disturb(moment: Moment) -> list[str]:
    """Load, inject, hold and heal; return what went wrong."""
    fault = moment.fault
    failures: list[str] = []
    moment.load.start(submits=fault.submits)
    if fault.submits:
        moment.pause(*BEFORE_SECONDS)
        _await_first(moment, failures)
    hold = fault.quick_hold if moment.is_quick and fault.quick_hold else fault.hold
    try:
        fault.inject(moment)
        moment.pause(*hold)
    except Exception as error:  # an edge: the fault must be healed, and the moment judged
        failures.append(_sentence(error))
    try:
        fault.heal(moment)
    except Exception as error:
        failures.append(_sentence(error))
    return failures


def _await_first(moment: Moment, failures: list[str]) -> None:
    """Wait until a job is accepted; a moment without jobs is not valid."""
    try:
        moment.until(lambda: moment.load.ids, "nothing was accepted before the fault")
    except MomentError as error:
        failures.append(_sentence(error))


def _sentence(error: Exception) -> str:
    kind = (
        "" if isinstance(error, (MomentError, SiteError, TextmillError)) else type(error).__name__
    )
    return f"{kind} {error}".strip()[:1500]


def _calm_down(moment: Moment) -> list[str]:
    """Wait until the product is healthy and every job has ended; return what did not happen."""
    failures = []
    site = moment.site
    time.sleep(AFTER_SECONDS)
    moment.load.stop_submitting()
    try:
        site.await_healthy()
    except SiteError as error:
        failures.append(f"the product did not recover by itself: {error}"[:3000])
        try:
            site.stop()
            site.start()
        except Exception as failure:  # the verdict counts the open jobs
            failures.append(_sentence(failure))
    await_ends(site, END_SECONDS)
    moment.load.finish(60.0)
    await_ends(site, END_SECONDS)
    return failures


def await_ends(site: Site, seconds: float) -> bool:
    """Wait until no job is open; return whether that happened in time."""
    query = text("SELECT count(*) FROM jobs WHERE status IN ('queued', 'running')")
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            with site.engine.connect() as connection:
                if connection.execute(query).scalar_one() == 0:
                    return True
        except Exception:
            pass
        time.sleep(0.25)
    return False


def evidence_of(moment: Moment, entries: list[journals.Entry], texts: Texts) -> Evidence:
    ids = {entry.job_id for entry in entries}
    rows, events = _rows(moment.site, ids)
    _learn_more(moment, rows, texts)
    return Evidence(
        entries=entries,
        rows=rows,
        events=events,
        exchanges=list(moment.client.exchanges),
        streams=list(moment.load.streams),
        texts=texts,
        may_fail=moment.may_fail,
        fault_at=moment.fault_at,
        lost_pids=moment.lost_pids,
    )


def _rows(site: Site, ids: set[str]) -> tuple[list[Row], list[Event]]:
    """The rows of the moment's jobs and all their events."""
    columns = "id, status, text, attempt, error_code, model_revision, created_at, finished_at"
    job_events = "job_id, from_status, to_status, at, actor"
    with site.engine.connect() as connection:
        rows = connection.execute(text(f"SELECT {columns} FROM jobs")).all()
        events = connection.execute(text(f"SELECT {job_events} FROM job_events ORDER BY number"))
        return (
            [Row(*row) for row in rows if row.id in ids],
            [Event(*event) for event in events if event.job_id in ids],
        )


def _learn_more(moment: Moment, rows: Sequence[Row], texts: Texts) -> None:
    """Generate the undisturbed completions of the fault's weights while these are still served."""
    missing = {row.revision for row in rows if row.status == "succeeded"} - set(texts)
    known = {body.name: body for body in known_bodies()}
    wanted = [known[name] for name in sorted(_known_names(texts)) if name in known]
    for revision in missing:
        texts |= learn(moment.site, wanted, only=revision)


def learn(site: Site, bodies: Sequence[Body], only: str | None = None) -> Texts:
    """Generate each body's completion once, without disturbance."""
    journal = Journal(site.folder / f"learned-{time.time_ns()}.jsonl")
    client = Client(site.port, journal)
    names = {}
    for body in bodies:
        job_id = client.submit(body)
        if job_id is None:
            raise SiteError(f"an undisturbed product did not accept a job:\n{site.tails()}")
        names[job_id] = body.name
    await_ends(site, 2 * END_SECONDS)
    journal.close()
    rows, _ = _rows(site, set(names))
    texts: Texts = {}
    for row in rows:
        if row.status == "succeeded" and only in {None, row.revision}:
            texts.setdefault(row.revision, {})[names[row.id]] = row.text
    if sum(map(len, texts.values())) < len(bodies) and only is None:
        raise SiteError(f"an undisturbed product did not complete its jobs:\n{site.tails()}")
    return texts
