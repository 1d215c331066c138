"""The workers that the database knows of."""

from __future__ import annotations

import os
import subprocess
import sys

from sqlalchemy import Engine

from textmill.core.workers import WorkerState, beat, forget_dead, seen_workers


def state(worker_id: str) -> WorkerState:
    return WorkerState(worker_id, ["m"], 4, 0, 0.0)


def seen(database: Engine) -> set[str]:
    return {worker.id for worker in seen_workers(database)}


def test_workers_of_this_host_whose_process_is_gone_are_forgotten(database: Engine) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    ids = {
        "dead": f"host-a-{ended.pid}-abc123",
        "alive": f"host-a-{os.getpid()}-abc123",
        "elsewhere": f"host-b-{ended.pid}-abc123",
        "strange": "nonsense",
    }
    for worker_id in ids.values():
        beat(database, state(worker_id))
    forget_dead(database, "host-a")
    assert seen(database) == {ids["alive"], ids["elsewhere"], ids["strange"]}
