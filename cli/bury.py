"""``textmill bury``: what the supervisor of ``up`` runs when a worker process has ended.

A process of its own, so that the supervisor needs no database and never waits for one.
"""

from __future__ import annotations

import click

from textmill.core.settings import Settings

_SECONDS_TO_START = 30.0  # a word on a process counts until it had this time to come back


def run_bury(settings: Settings, name: str, pid: int, reason: str, seconds: float) -> None:
    """Give a worker's jobs back to the queue, and say why it is left out.

    Args:
        settings: of the worker.
        name: that the supervisor gives it.
        pid: of the process that has ended.
        reason: how it ended, as the end of a sentence; empty where that is nothing to speak of.
        seconds: until it is started again.

    Raises:
        StorageUnavailable: the database is away; the leases run out.
    """
    from textmill.core.database.connections import make_engine
    from textmill.core.dead_workers import bury
    from textmill.core.jobs.store import JobStore, Limits
    from textmill.core.problems import Subject, report
    from textmill.core.workers import worker_host

    engine = make_engine(settings.database_url, pool_size=1)
    try:
        store = JobStore(engine, Limits.from_settings(settings))
        done = bury(store, settings.home, pid, f"supervisor:{worker_host()}")
        for job_id, _model in done.requeued if done else ():
            click.echo(f"The job {job_id}, which {name} was working on, is queued again.")
        if reason:
            report(
                engine, Subject(worker_host(), "worker", name), reason, seconds + _SECONDS_TO_START
            )
    finally:
        engine.dispose()
