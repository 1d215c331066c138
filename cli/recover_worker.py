"""``textmill recover-worker``: the supervisor of ``up`` runs it after a worker process has ended.

It is a process of its own, so that the supervisor needs no database and never waits for one.
"""

from __future__ import annotations

import click

from textmill.core.settings import Settings

_SECONDS_TO_START = 30.0  # a reported problem counts until the process had this time to start again


def run_recover_worker(
    settings: Settings, name: str, pid: int, reason: str, seconds: float
) -> None:
    """Return the jobs of a worker to the queue, and report why the worker is missing.

    Args:
        settings: of the worker.
        name: the supervisor's name for it.
        pid: of the process that has ended.
        reason: how it ended, as the end of a sentence; empty if there is nothing to report.
        seconds: until it is started again.

    Raises:
        StorageUnavailable: the database is unavailable; the jobs wait until their leases expire.
    """
    from textmill.core.database.connections import make_engine
    from textmill.core.dead_workers import recover_worker
    from textmill.core.jobs.store import JobStore, Limits
    from textmill.core.problems import Subject, report
    from textmill.core.workers import worker_host

    engine = make_engine(settings.database_url, pool_size=1)
    try:
        store = JobStore(engine, Limits.from_settings(settings))
        done = recover_worker(store, settings.home, pid, f"supervisor:{worker_host()}")
        for job_id, _model in done.requeued if done else ():
            click.echo(f"The job {job_id}, which {name} was working on, is queued again.")
        if reason:
            subject = Subject(worker_host(), "worker", name)
            report(engine, subject, reason, seconds + _SECONDS_TO_START)
    finally:
        engine.dispose()
