"""Two random moments of each quick fault on both databases, with the bounds of the whole table.

``make faults`` injects every fault at twenty moments. Here the sites run in parallel, and the two
moments at which no process detects a worker's end share one lease. Each failure's message contains
the seed.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from tests.faults.moment import Moment, Result, run_moment
from tests.faults.registry import DATABASES, all_faults, make_site
from tests.faults.runner import Library, Run, Task, failed_result, plan

NUM_MOMENTS = 2
NUM_BODIES = 6
LONE = "lone-worker-decoding"
BETWEEN_SECONDS = 2.0
LONE_DATABASE = "postgresql"  # a lease takes 30 s, so one database must suffice here
QUICK = [fault for fault in all_faults() if fault.is_quick]
SEED = int(os.environ.get("TEXTMILL_TEST_SEED", random.randrange(10**6)))
CASES = [
    (fault.name, database)
    for fault in QUICK
    for database in DATABASES
    if database in fault.databases and (fault.name != LONE or database == LONE_DATABASE)
]

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def results() -> Iterator[dict[tuple[str, str], list[Result]]]:
    """All moments of the sample, run in parallel."""
    found: dict[tuple[str, str], list[Result]] = {case: [] for case in CASES}
    library = Library(NUM_BODIES)

    def keep(result: Result) -> None:
        found[result.fault, result.database].append(result)

    runs = [
        Run(tasks, keep, num_lanes=1, is_quick=True, library=library)
        for database in DATABASES
        for kind in ("up", "proxied")
        if (tasks := tasks_of(kind, database))
    ]
    threads = [threading.Thread(target=run.run) for run in runs]
    threads.append(threading.Thread(target=run_lone, args=(library, keep)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    yield found
    for run in runs:
        run.stop()


def tasks_of(kind: str, database: str) -> list[Task]:
    """The moments of one site; a proxy without a mode lets everything pass."""
    usual = [fault for fault in QUICK if fault.name != LONE]
    chosen = [replace(f, site="proxied") if f.site == "plain" else f for f in usual]
    return plan([f for f in chosen if f.site == kind], [database], NUM_MOMENTS, SEED)


def run_lone(library: Library, keep: Callable[[Result], None]) -> None:
    """Kill two workers within one lease, the second one when the first has restarted."""
    usual = next(fault for fault in QUICK if fault.name == LONE)
    site = make_site(usual.site, LONE_DATABASE)
    turn = threading.Lock()

    def in_turn(moment: Moment) -> None:
        with turn:
            usual.inject(moment)
            time.sleep(BETWEEN_SECONDS)  # until the site has noticed it
            site.await_healthy()

    fault = replace(usual, inject=in_turn)
    tasks = plan([fault], [LONE_DATABASE], NUM_MOMENTS, SEED)

    def run(seed: int) -> None:
        keep(run_moment(site, fault, seed, texts, is_quick=True))

    try:
        site.start()
        texts = library.texts_of(site, fault.site)
        with ThreadPoolExecutor(NUM_MOMENTS) as pool:
            list(pool.map(run, [task.seed for task in tasks]))
    except Exception as error:  # the edge of this thread; the test that reads the result fails
        keep(failed_result(tasks[0], error))
    finally:
        site.close()


@pytest.mark.parametrize(("fault", "database"), CASES)
def test_every_bound_is_held(
    fault: str, database: str, results: dict[tuple[str, str], list[Result]]
) -> None:
    done = results[fault, database]
    assert len(done) == NUM_MOMENTS
    broken = [
        f"seed {result.seed}: {', '.join(result.violations)} {result.notes}"
        for result in done
        if result.violations
    ]
    assert not broken, f"seed of the sample: {SEED}\n" + "\n".join(broken)
    assert sum(result.counts.accepted for result in done) > 0
