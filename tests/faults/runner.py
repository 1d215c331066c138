"""Runs faults at many moments: a few sites in parallel, each used as long as it is healthy."""

from __future__ import annotations

import queue
import threading
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tests.faults.bodies import NUM_BODIES, known_bodies
from tests.faults.moment import Fault, Result, Texts, learn, run_moment
from tests.faults.registry import SITES, make_site, reason_to_skip
from tests.faults.site import Site
from tests.faults.verdict import Counts

SLOW_BODIES = 8  # completions by PyTorch, ten times slower than the kernels
MAX_STARTS = 4  # consecutive failures of sites in one lane


@dataclass(frozen=True, slots=True)
class Task:
    """One moment to run."""

    fault: Fault
    database: str
    seed: int


class Library:
    """The undisturbed completions, generated once for all sites with the same arithmetic."""

    def __init__(self, num_bodies: int = NUM_BODIES) -> None:
        self._num_bodies = num_bodies
        self._texts: dict[str, Texts] = {}
        self._lock = threading.Lock()

    def texts_of(self, site: Site, kind: str) -> Texts:
        """The completions; the first site generates them while the others wait."""
        arithmetic = "torch" if kind == "up-torch" else "kernels"  # they may round differently
        count = min(self._num_bodies, SLOW_BODIES) if arithmetic == "torch" else self._num_bodies
        with self._lock:
            if arithmetic not in self._texts:
                self._texts[arithmetic] = learn(site, known_bodies(count))
            return self._texts[arithmetic]


@dataclass
class Run:
    """All moments of a run and their results.

    Attributes:
        tasks: the moments, in any order.
        on_result: receives every result, from any lane, one at a time.
        num_lanes: number of sites that run in parallel.
        is_quick: whether to use the short forms.
        library: the undisturbed completions.
        versions: of the servers that were used.
    """

    tasks: Sequence[Task]
    on_result: Callable[[Result], None]
    num_lanes: int = 2
    is_quick: bool = False
    library: Library = field(default_factory=Library)
    versions: dict[str, str] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _sites: list[Site] = field(default_factory=list)
    _is_stopped: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Run all moments, one kind of site on one database after the other."""
        try:
            for database in dict.fromkeys(task.database for task in self.tasks):
                for kind in SITES:
                    chosen = [
                        t for t in self.tasks if (t.database, t.fault.site) == (database, kind)
                    ]
                    if chosen and not self._is_stopped.is_set():
                        self._run_side_by_side(kind, database, chosen)
        finally:
            self.stop()

    def stop(self) -> None:
        """Stop all lanes; later results are dropped."""
        self._is_stopped.set()
        with self._lock:
            sites = list(self._sites)
        for site in sites:
            site.close()

    def _run_side_by_side(self, kind: str, database: str, tasks: Sequence[Task]) -> None:
        waiting: queue.SimpleQueue[Task] = queue.SimpleQueue()
        for task in tasks:
            waiting.put(task)
        lanes = [
            threading.Thread(target=self._lane, args=(kind, database, waiting), daemon=True)
            for _ in range(min(self.num_lanes, len(tasks)))
        ]
        for lane in lanes:
            lane.start()
        for lane in lanes:
            while lane.is_alive():  # in short waits, so that a signal is handled
                lane.join(0.5)

    def _lane(self, kind: str, database: str, waiting: queue.SimpleQueue[Task]) -> None:
        """Run moments until none is left; an unhealthy site is replaced."""
        site: Site | None = None
        num_failures = 0
        while not self._is_stopped.is_set() and num_failures < MAX_STARTS:
            try:
                task = waiting.get_nowait()
            except queue.Empty:
                break
            try:
                site = site or self._start(kind, database)
                texts = self.library.texts_of(site, kind)
                result = run_moment(site, task.fault, task.seed, texts, is_quick=self.is_quick)
            except Exception as error:  # an edge: the other moments must run
                result = failed_result(task, error)
            num_failures = num_failures + 1 if result.is_site_spoiled else 0
            self._tell(result)
            if result.is_site_spoiled and site is not None:
                self._end(site)
                site = None
        if site is not None:
            self._end(site)

    def _start(self, kind: str, database: str) -> Site:
        site = make_site(kind, database)
        with self._lock:
            self._sites.append(site)
        try:
            site.start()
        except Exception:
            self._end(site)
            raise
        with self._lock:
            self.versions |= site.versions()
        return site

    def _end(self, site: Site) -> None:
        site.close()
        with self._lock:
            if site in self._sites:
                self._sites.remove(site)

    def _tell(self, result: Result) -> None:
        with self._lock:
            if not self._is_stopped.is_set():
                self.on_result(result)


def failed_result(task: Task, error: Exception) -> Result:
    """The result of a moment without a verdict."""
    return Result(
        fault=task.fault.name,
        database=task.database,
        seed=task.seed,
        counts=Counts(),
        violations=[f"the moment could not be judged: {type(error).__name__} {error}"[:3000]],
        notes=[],
        seconds=0.0,
        is_site_spoiled=True,
    )


def plan(
    faults: Sequence[Fault], databases: Sequence[str], num_moments: int, seed: int
) -> list[Task]:
    """The moments of a run; each has its own seed, derived from the run's."""
    return [
        Task(fault, database, zlib.crc32(f"{seed} {database} {fault.name} {number}".encode()))
        for database in databases
        for fault in faults
        if database in fault.databases and reason_to_skip(fault) is None
        for number in range(num_moments)
    ]
