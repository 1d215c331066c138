"""The cost of the queue: jobs per second with negligible generation time."""

from __future__ import annotations

import time

from sqlalchemy import Engine, func, select

from benchmarks.disk import sync_ms
from benchmarks.figures import Section, ratio_of_medians
from benchmarks.processes import BenchmarkError, Product, Workspace
from textmill.core.database.connections import make_engine, reading
from textmill.core.database.tables import Job
from textmill.core.jobs.store import JobStore, Limits, NewJob, Origin

NUM_JOBS = 1000
ROUNDS = 2
DRAIN_SECONDS = 240.0


def measure(space: Workspace) -> Section:
    """Let a worker empty a full queue, alternately on SQLite and PostgreSQL."""
    section = Section(
        "queue",
        "jobs per second from claim to final state with negligible generation time",
        [
            "a tiny random Llama (2 layers, width 64), 1 token a job: claim, engine, stream, end",
            f"{NUM_JOBS} rows are stored before the worker starts; {ROUNDS} rounds in turn on each"
            " database; from the first claim to the last end by the database's clock",
        ],
    )
    kinds = ("sqlite", "postgresql")
    rates: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(ROUNDS):
        for kind in kinds:
            rates[kind].append(_drain(space, kind))
    for kind in kinds:
        section.add(kind, "jobs/s", rates[kind])
    ratio = ratio_of_medians(rates["postgresql"], rates["sqlite"])
    section.add("postgresql / sqlite, medians", "x", [ratio])
    section.add("for scale: one 4 KiB write, synced", "ms", sync_ms(space.folder))
    return section


def _drain(space: Workspace, kind: str) -> float:
    url = space.new_database(kind)
    product = Product(space, url, models_path=space.tiny_models_file())
    engine = make_engine(url)
    try:
        _fill(engine)
        with product.running("worker") as processes:
            deadline = time.monotonic() + DRAIN_SECONDS
            while (num_left := _num_left(engine)) > 0:
                if time.monotonic() > deadline or processes["worker"].poll() is not None:
                    raise BenchmarkError(f"{num_left} jobs were left; see {product.folder}")
                time.sleep(0.5)
        return _rate(engine)
    finally:
        engine.dispose()


def _fill(engine: Engine) -> None:
    """Insert rows as the web side does, 64 in each transaction."""
    store = JobStore(engine, Limits(max_queued=NUM_JOBS))
    parameters = {"repetition_penalty": 1.0, "max_new_tokens": 1, "seed": 1, "stop": []}
    jobs = [NewJob("tiny", f"Job {number}", "greedy", parameters) for number in range(NUM_JOBS)]
    for start in range(0, NUM_JOBS, 64):
        store.submit_run("benchmark", jobs[start : start + 64], Origin("benchmark"))


def _num_left(engine: Engine) -> int:
    open_jobs = select(func.count()).select_from(Job).where(Job.status.in_(("queued", "running")))
    with reading(engine) as connection:
        return connection.execute(open_jobs).scalar_one()


def _rate(engine: Engine) -> float:
    query = select(func.count(), func.min(Job.started_at), func.max(Job.finished_at)).where(
        Job.status == "succeeded"
    )
    with reading(engine) as connection:
        num_jobs, first, last = connection.execute(query).one()
    if num_jobs != NUM_JOBS or first is None or last is None:
        raise BenchmarkError(f"{num_jobs} of {NUM_JOBS} jobs succeeded.")
    return float(num_jobs * 1000 / (last - first))
