"""Random histories of the job store against a model of what may happen, on both databases."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from sqlalchemy import Engine, delete, select, update

from textmill.core.database.connections import now_ms, reading, writing
from textmill.core.database.tables import Job, JobEvent, JobTrace, Run
from textmill.core.errors import Conflict
from textmill.core.jobs.records import JobRecord
from textmill.core.jobs.store import JobStore, Limits, NewJob, Origin, Outcome

FINAL = {"succeeded", "failed", "canceled"}
LEGAL = {
    (None, "queued"),
    ("queued", "running"),
    ("queued", "canceled"),
    ("queued", "failed"),
    ("running", "queued"),
    ("running", "succeeded"),
    ("running", "failed"),
    ("running", "canceled"),
}
WORKERS = st.sampled_from(["w1", "w2", "w3"])
PICKS = st.integers(0, 10**6)


def machine_for(database: Engine) -> type[RuleBasedStateMachine]:
    class Histories(RuleBasedStateMachine):
        """The accepted jobs, their ends, and every claim that a worker believes to be valid."""

        def __init__(self) -> None:
            super().__init__()
            with writing(database) as connection:
                for table in (JobEvent, JobTrace, Job, Run):
                    connection.execute(delete(table))
            self.store = JobStore(database, Limits(max_queued=50))
            self.accepted: set[str] = set()
            self.deleted: set[str] = set()
            self.ended: dict[str, str] = {}
            self.asked: set[str] = set()
            self.attempts: dict[str, int] = {}
            self.believed: list[JobRecord] = []

        def pick(self, pick: int) -> str | None:
            there = sorted(self.accepted - self.deleted)
            return there[pick % len(there)] if there else None

        def pick_claim(self, pick: int) -> JobRecord | None:
            return self.believed[pick % len(self.believed)] if self.believed else None

        @rule(owner=st.sampled_from(["a", "b"]))
        def submit(self, owner: str) -> None:
            parameters = {"max_new_tokens": 1, "seed": 0, "stop": []}
            if len(self.accepted) < 40:
                new = NewJob("m", "p", "greedy", parameters)
                self.accepted.add(self.store.submit(new, Origin(owner)).id)

        @rule(worker=WORKERS, most=st.integers(0, 2), waits=st.booleans())
        def claim(self, worker: str, most: int, waits: bool) -> None:
            job = self.store.claim(worker, ["m"], most_losses=most, waits_for_first=waits)
            if job is not None:
                assert job.id not in self.ended
                assert job.lost_count <= most
                self.believed.append(job)

        @rule(pick=PICKS, status=st.sampled_from(sorted(FINAL)))
        def finish(self, pick: int, status: str) -> None:
            job = self.pick_claim(pick)
            if job is None:
                return
            done = self.store.finish(job, Outcome(status, "t", "length", 1, 1))
            current = self.attempts.get(job.id) == job.attempt
            if done is not None:
                assert current
                assert job.id not in self.ended
                assert done.status == ("canceled" if job.id in self.asked else status)
                self.ended[job.id] = done.status

        @rule(pick=PICKS, counts=st.booleans())
        def release(self, pick: int, counts: bool) -> None:
            job = self.pick_claim(pick)
            if job is not None:
                self.store.release(job, counts_as_loss=counts)

        @rule(pick=PICKS)
        def cancel(self, pick: int) -> None:
            job_id = self.pick(pick)
            if job_id is not None:
                try:
                    self.store.request_cancel(job_id)
                    assert job_id not in self.ended
                    self.asked.add(job_id)
                except Conflict:
                    assert job_id in self.ended

        @rule(pick=PICKS)
        def delete(self, pick: int) -> None:
            job_id = self.pick(pick)
            if job_id is not None:
                self.store.delete(job_id)
                self.deleted.add(job_id)

        @rule()
        def crash_and_sweep(self) -> None:
            with writing(database) as connection:
                connection.execute(
                    update(Job).where(Job.status == "running").values(lease_until=now_ms() - 1)
                )
            self.store.sweep("sweeper")
            with writing(database) as connection:
                connection.execute(update(Job).values(not_before=0))

        @invariant()
        def nothing_illegal_ever_stands(self) -> None:
            with reading(database) as connection:
                rows = {r.id: r for r in connection.execute(select(Job.__table__))}
                events = connection.execute(select(JobEvent.__table__).order_by(JobEvent.number))
                paths: dict[str, list[tuple[str | None, str]]] = {}
                for event in events:
                    paths.setdefault(event.job_id, []).append((event.from_status, event.to_status))
            assert set(rows) == self.accepted - self.deleted
            assert set(paths) == self.accepted
            for path in paths.values():
                assert set(path) <= LEGAL
                assert [to for _, to in path[:-1]] == [start for start, _ in path[1:]]
                assert sum(to in FINAL for _, to in path) <= 1
            for job_id, row in rows.items():
                assert paths[job_id][-1][1] == row.status
                assert row.attempt >= self.attempts.get(job_id, 0)
                self.attempts[job_id] = row.attempt
                if job_id in self.ended:
                    assert row.status == self.ended[job_id]
                elif row.status in FINAL:
                    self.ended[job_id] = row.status
                if job_id in self.asked:
                    assert row.status in {"running", "canceled"}
                    assert row.finish_reason in {None, "canceled"}
                    assert row.error_code is None
                assert (row.status == "running") == (row.lease_until is not None)
            for job_id in self.deleted:
                assert paths[job_id][-1][1] in FINAL

    return Histories


@contextmanager
def quick(num_examples: int) -> Iterator[settings]:
    yield settings(
        max_examples=num_examples,
        stateful_step_count=40,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )


@pytest.mark.parametrize("num_examples", [60])
def test_random_histories_keep_every_promise(database: Engine, num_examples: int) -> None:
    with quick(num_examples) as chosen:
        run_state_machine_as_test(machine_for(database), settings=chosen)
