"""Requests at the worst moment: cancel and delete, also at the end of a job, and floods."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from sqlalchemy import text

from tests.faults.bodies import Body
from tests.faults.moment import LOOK_AT_ROW_SECONDS, Fault, Moment, MomentError
from tests.faults.verdict import Bounds

NUM_ANYWHERE = 10
NEAR_SECONDS = 0.005
LEAD_SECONDS = 0.004  # from the request to the database
WANTED_NEAR = 3
MAX_TRIES = 40
TIMES_CAPACITY = 10
FLOOD_THREADS = 24
FLOOD_LIMIT = 30  # the queue limit of the flooded site


def cancel(moment: Moment, job_id: str) -> int | None:
    return moment.client.cancel(job_id)


def delete(moment: Moment, job_id: str) -> int | None:
    return moment.client.delete(job_id)


def cancel_anywhere(moment: Moment) -> None:
    _anywhere(moment, is_delete=False)


def delete_anywhere(moment: Moment) -> None:
    _anywhere(moment, is_delete=True)


def cancel_at_end(moment: Moment) -> None:
    _at_end(moment, is_delete=False)


def delete_at_end(moment: Moment) -> None:
    _at_end(moment, is_delete=True)


def _anywhere(moment: Moment, *, is_delete: bool) -> None:
    """Immediately, after a random time, and after the end: queued, running, final."""
    moment.strike()
    seen: Counter[str] = Counter()

    def one(number: int) -> None:
        waits = (0.0, 0.15, 0.4, 1.0, 3.0)[number % 5]
        job_id = moment.submit_bait() if number % 2 else moment.load.submit(moment.load.next_body())
        if job_id is None:
            return
        time.sleep(waits)
        row = moment.row(job_id)
        seen[row[0] if row is not None else "gone"] += 1
        (delete if is_delete else cancel)(moment, job_id)

    count = NUM_ANYWHERE // 2 if moment.is_quick else NUM_ANYWHERE
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(one, range(count)))
    moment.notes.append(" ".join(f"{state}:{count}" for state, count in sorted(seen.items())))


def _at_end(moment: Moment, *, is_delete: bool) -> None:
    """Aim at the end of a job, from the durations of the previous ones."""
    moment.strike()
    num_near = num_tries = 0
    durations: list[float] = []
    body = moment.load.next_body()
    while num_near < WANTED_NEAR and num_tries < MAX_TRIES:
        num_tries += 1
        num_near += _aim(moment, body, durations, is_delete=is_delete)
    moment.notes.append(f"within 5 ms of the end: {num_near} of {num_tries}")


def _aim(moment: Moment, body: Body, durations: list[float], *, is_delete: bool) -> bool:
    """Make one attempt; return whether the request coincided with the end of the job.

    The end of a deleted job is unknown, so for deletions every attempt that was aimed counts.
    """
    job_id = moment.load.submit(body)
    if job_id is None:
        raise MomentError("a job was not accepted")
    if len(durations) < 2:  # the first jobs only measure the duration
        durations.append(_duration(moment, job_id))
        return False
    started = moment.until(lambda: _times(moment, job_id)[0], "the job did not start") / 1000
    aim = started + sorted(durations)[len(durations) // 2] + moment.random.uniform(-0.01, 0.01)
    time.sleep(max(0.0, aim - LEAD_SECONDS - time.time()))
    asked = time.time()
    status = (delete if is_delete else cancel)(moment, job_id)
    answered = time.time()
    if is_delete:
        return status == 204 and asked - NEAR_SECONDS <= aim <= answered + NEAR_SECONDS
    _, ended_ms = _await_end(moment, job_id)
    row = moment.row(job_id)
    if row is not None and row[0] == "succeeded":  # the duration is known now
        durations.append(ended_ms / 1000 - started)
    else:  # too early: aim later
        durations.append(max(durations) + NEAR_SECONDS)
    del durations[:-3]
    return bool(asked - NEAR_SECONDS <= ended_ms / 1000 <= answered + NEAR_SECONDS)


def _duration(moment: Moment, job_id: str) -> float:
    started, ended = _await_end(moment, job_id)
    return float((ended - started) / 1000)


def _await_end(moment: Moment, job_id: str) -> tuple[int, int]:
    """When a job started and ended, once it has ended."""
    found: tuple[int, int] = moment.until(
        lambda: _ended(moment, job_id), "the job did not end", every_seconds=LOOK_AT_ROW_SECONDS
    )
    return found


def _ended(moment: Moment, job_id: str) -> tuple[int, int] | None:
    started, ended = _times(moment, job_id)
    return (started or ended, ended) if ended else None


def _times(moment: Moment, job_id: str) -> tuple[int, int]:
    query = text("SELECT started_at, finished_at FROM jobs WHERE id = :id")
    with moment.site.engine.connect() as connection:
        row = connection.execute(query, {"id": job_id}).first()
    return (0, 0) if row is None else (row.started_at or 0, row.finished_at or 0)


def flood(moment: Moment) -> None:
    """Submit ten times the queue's limit, as fast as the clients can."""
    moment.strike()
    count = TIMES_CAPACITY * FLOOD_LIMIT
    bodies = [moment.load.next_body() for _ in range(count)]
    with ThreadPoolExecutor(FLOOD_THREADS) as pool:
        ids = list(pool.map(lambda b: moment.load.submit(b, is_given_up=True), bodies))
    num_accepted = sum(job_id is not None for job_id in ids)
    moment.notes.append(f"{num_accepted} of {count} accepted")
    if num_accepted == count:
        moment.failures.append("nothing was refused, so the product was not overloaded")
    statuses = Counter(e.status for e in moment.client.exchanges if e.what == "submit")
    odd = {status: n for status, n in statuses.items() if status not in {202, 429, 503}}
    if odd:
        moment.failures.append(f"submissions were answered with {odd}")


def faults() -> list[Fault]:
    """The faults of this module."""
    answered = Bounds(all_answered=True)
    return [
        Fault(
            "cancel-anywhere",
            "jobs canceled while queued, while running and after the end",
            cancel_anywhere,
            bounds=answered,
            is_quick=True,
        ),
        Fault(
            "delete-anywhere",
            "jobs deleted while queued, while running and after the end",
            delete_anywhere,
            bounds=answered,
        ),
        Fault(
            "cancel-at-end",
            "jobs canceled within milliseconds of their end",
            cancel_at_end,
            bounds=answered,
            jobs_per_second=0.2,
        ),
        Fault(
            "delete-at-end",
            "jobs deleted within milliseconds of their end",
            delete_at_end,
            bounds=answered,
            jobs_per_second=0.2,
        ),
        Fault(
            "overload",
            "ten times as many submissions as the queue's limit",
            flood,
            site="small-queue",
            bounds=answered,
            submits=False,
        ),
    ]
