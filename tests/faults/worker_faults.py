"""Faults of workers, web, the supervisor and the whole machine."""

from __future__ import annotations

import signal
import time
from dataclasses import replace
from functools import partial

from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError

from tests.faults.bodies import POISON, poison
from tests.faults.moment import (
    LOOK_AT_ROW_SECONDS,
    STARTS_LOAD,
    Fault,
    Moment,
    MomentError,
)
from tests.faults.verdict import Bounds
from tests.processes import command_of, is_alive, send

SUPERVISED = Bounds(recovery_seconds=5.0)
UNSUPERVISED = Bounds(recovery_seconds=40.0)
NUM_IN_POISONED_RUN = 12
NUM_WATCHERS = 6
GONE_SECONDS = 30.0  # until the descendants of a killed supervisor must have ended


# ---- a worker is killed ---------------------------------------------------------------------


def kill_idle(moment: Moment) -> None:
    """Start the load with the fault."""
    pids = moment.site.worker_pids()
    moment.pause(0.2, 2.0)
    _kill(moment, moment.random.choice(pids))
    moment.load.go_on()
    moment.until(lambda: moment.load.ids, "nothing was accepted after the fault")


def kill_decoding(moment: Moment) -> None:
    """Submit a long job, so that there is something to interrupt."""
    for _ in range(10):
        pid, job_id = moment.catch()
        moment.pause(0.0, 0.3)
        if moment.row(job_id) is not None and is_alive(pid):
            _kill(moment, pid)
            return
    raise MomentError("no worker was found while it was generating")


def kill_at(point: str) -> Fault:
    """Kill the process that reaches a failpoint next."""

    def inject(moment: Moment) -> None:
        pids = moment.site.worker_pids()
        moment.site.arm(point)
        moment.load.run(moment.submit_bait)
        moment.until(lambda: not moment.site.is_armed(point), f"{point} was not reached")
        moment.strike(moment.await_death(pids, 5.0))

    return Fault("", "", inject, lambda moment: moment.site.disarm())


def _kill(moment: Moment, pid: int) -> None:
    moment.strike(pid)
    send([pid], signal.SIGKILL)


def _worker_faults() -> list[Fault]:
    kinds = [
        ("idle", "while it is idle", replace(kill_at(""), inject=kill_idle, submits=False)),
        ("prefill", "while it reads a prompt", kill_at("prefill")),
        ("decoding", "while it writes", replace(kill_at(""), inject=kill_decoding)),
        ("before-result", "just before its result is written", kill_at("before_result")),
        ("after-result", "just after its result is written", kill_at("after_result")),
    ]
    found = []
    for name, when, base in kinds:
        watched = replace(
            base,
            name=f"worker-{name}",
            description=f"worker killed {when}; its supervisor detects it",
            site="up",
            bounds=SUPERVISED,
            is_quick=name == "decoding",
        )
        alone = replace(
            base,
            name=f"lone-worker-{name}",
            description=f"worker killed {when}; no process detects it",
            bounds=UNSUPERVISED,
            is_quick=name == "decoding",
        )
        found += [watched, alone]
    return found


# ---- a worker or everything stands still ------------------------------------------------------


def freeze_worker(moment: Moment) -> None:
    """Stop a generating worker outside a transaction, which would lock the database."""
    for _ in range(40):
        pid, job_id = moment.catch()
        send([pid], signal.SIGSTOP)
        moment.undo.append(partial(send, [pid], signal.SIGCONT))
        time.sleep(0.05)
        row = moment.row(job_id)
        if row is not None and row[0] == "running" and not _holds_database(moment):
            moment.strike(pid)
            return
        send([pid], signal.SIGCONT)
    raise MomentError("every stop was within a transaction")


def _holds_database(moment: Moment) -> bool:
    """Whether a stopped process holds locks of the database."""
    site = moment.site
    if site.database == "postgresql":
        query = text(
            "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'"
        )
        with site.engine.connect() as connection:
            seen = [connection.execute(query).scalar_one() for _ in range(3)]
        return bool(min(seen) > 0)
    engine = create_engine(site.database_url, connect_args={"timeout": 1})
    try:
        with engine.connect() as connection:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            connection.rollback()
    except DBAPIError:
        return True
    finally:
        engine.dispose()
    return False


def undo_all(moment: Moment) -> None:
    """Undo the fault."""
    while moment.undo:
        moment.undo.pop()()


def freeze_machine(moment: Moment) -> None:
    """Stop all processes within a few milliseconds, as when a laptop is suspended."""
    moment.catch()
    pids = [*moment.site.product_pids(), *moment.site.server_pids()]
    supervisor = getattr(moment.site, "process", None)
    if supervisor is not None:
        pids.insert(0, supervisor.pid)
    send(pids, signal.SIGSTOP)
    moment.undo.append(lambda: send(pids, signal.SIGCONT))


def wake_machine(moment: Moment) -> None:
    """Resume all processes; the recovery is measured from here."""
    undo_all(moment)
    moment.strike()


# ---- web and the supervisor -------------------------------------------------------------------


def kill_web_before_ticket(moment: Moment) -> None:
    """Kill web between the commit of a submission and its ticket."""
    pids = moment.site.web_pids()
    moment.site.arm("before_ticket")
    moment.until(lambda: not moment.site.is_armed("before_ticket"), "nothing was submitted")
    moment.strike(moment.await_death(pids, 5.0))


def kill_web_in_streams(moment: Moment) -> None:
    """Kill web while several watchers receive events."""
    for _ in range(NUM_WATCHERS):
        moment.submit_bait(follows=True)
    moment.catch()
    moment.pause(0.1, 0.8)
    pids = moment.site.web_pids()
    moment.strike()
    send(pids, signal.SIGKILL)


def kill_supervisor(moment: Moment) -> None:
    """Kill the supervisor; its descendants must end; then it is restarted."""
    moment.catch()
    moment.strike()
    left = moment.site.kill_supervisor()
    deadline = time.monotonic() + GONE_SECONDS
    while any(map(is_alive, left)) and time.monotonic() < deadline:
        time.sleep(0.05)
    lingering = [pid for pid in left if is_alive(pid)]
    if lingering:
        commands = "; ".join(" ".join(command_of(pid)) for pid in lingering)
        moment.failures.append(
            f"{len(lingering)} processes ran {GONE_SECONDS:g} s after their supervisor: {commands}"
        )
        send(lingering, signal.SIGKILL)


def start_supervisor(moment: Moment) -> None:
    """Restart the supervisor, as its operator would."""
    moment.site.start()


def _has_ended(pid: int) -> bool:
    return not is_alive(pid)


def restart_in_turn(moment: Moment) -> None:
    """Send SIGTERM to web and each worker in turn, each after the previous restart."""
    moment.strike()
    for kind in ("web", "worker", "worker"):
        pids = moment.site.web_pids()[:1] if kind == "web" else moment.site.worker_pids()[:1]
        send(pids, signal.SIGTERM)
        moment.until(partial(_has_ended, pids[0]), f"{kind} did not end", 40.0)
        moment.site.await_healthy()


# ---- a poisonous prompt -------------------------------------------------------------------------


def poison_one(moment: Moment) -> None:
    """Submit twelve prompts, one of which kills the worker that reads it."""
    bad = poison(moment.random.randrange(100))
    moment.may_fail[bad.name] = frozenset({"worker_lost"})
    moment.site.arm("prefill", POISON, always=True)
    place = moment.random.randrange(NUM_IN_POISONED_RUN)
    pids = moment.site.worker_pids()
    ids = []
    for number in range(NUM_IN_POISONED_RUN):
        body = bad if number == place else moment.load.next_body()
        ids.append(moment.load.submit(body))
    moment.strike(moment.await_death(pids))
    poisoned = ids[place]
    if poisoned is None:
        raise MomentError("the poisonous prompt was not accepted")
    row = moment.until(
        lambda: _final(moment, poisoned),
        "the poisonous job did not end",
        200.0,
        LOOK_AT_ROW_SECONDS,
    )
    if row != "failed":
        moment.failures.append(f"the poisonous job ended as {row}")


def _final(moment: Moment, job_id: str) -> str:
    row = moment.row(job_id)
    return row[0] if row is not None and row[0] in {"succeeded", "failed", "canceled"} else ""


def faults() -> list[Fault]:
    """The faults of this module."""
    return [
        *_worker_faults(),
        Fault(
            "zombie",
            "worker stopped beyond its lease (35 s), then resumed",
            freeze_worker,
            undo_all,
            hold=(35.0, 38.0),
            bounds=UNSUPERVISED,
            jobs_per_second=1.0,
        ),
        Fault(
            "machine-paused",
            "everything stopped for 40 s, then resumed; measured from then",
            freeze_machine,
            wake_machine,
            hold=(40.0, 42.0),
            bounds=Bounds(recovery_seconds=5.0, none_again=True),
            jobs_per_second=1.0,
        ),
        Fault(
            "web-before-ticket",
            "web killed between a commit and its ticket",
            kill_web_before_ticket,
            lambda moment: moment.site.disarm(),
            site="up",
            is_quick=True,
        ),
        Fault(
            "web-in-streams",
            "web killed while watchers read",
            kill_web_in_streams,
            site="up",
        ),
        Fault(
            "supervisor-killed",
            "supervisor killed; its descendants end; restarted",
            kill_supervisor,
            start_supervisor,
            site="up",
            jobs_per_second=STARTS_LOAD,
        ),
        Fault(
            "rolling-restart",
            "SIGTERM to web and both workers, one after another, under load",
            restart_in_turn,
            jobs_per_second=STARTS_LOAD,
        ),
        Fault(
            "poison",
            "one prompt of twelve kills the worker that reads it",
            poison_one,
            lambda moment: moment.site.disarm(),
            site="up",
            submits=False,
        ),
    ]
