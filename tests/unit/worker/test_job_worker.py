"""JobWorker between a fake store and a fake engine."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import pytest

from tests.unit.worker.fake_parts import WAIT_SECONDS, RunnerBench, make_job, result
from textmill.core.errors import Conflict, TextmillError, Unstorable
from textmill.core.jobs.records import JobRecord
from textmill.core.jobs.store import Outcome
from textmill.engine.requests import EngineStopped
from textmill.worker import result_writer
from textmill.worker.outcomes import MAX_ERRORS


class Permanent(TextmillError):
    """An error that occurs again at every attempt."""

    code = "permanent"
    is_permanent = True


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[RunnerBench]:
    monkeypatch.setattr(result_writer, "RETRY_WRITE_SECONDS", 0.01)
    bench = RunnerBench()
    yield bench
    bench.store.is_away = False
    bench.store.queued.clear()
    bench.runner.close()
    bench.runner.stop_jobs(frozenset(bench.runner.attempts()), "released")
    bench.engine.end_canceled()
    bench.join()


def end(bench: RunnerBench, job_id: str = "job-1", **values: object) -> None:
    reason = str(values.pop("reason", "length"))
    bench.engine.await_job(job_id)
    bench.engine.end(job_id, result(reason, **values))  # type: ignore[arg-type]
    bench.join()


# ---- models that come later -------------------------------------------------------------------


def test_a_model_that_came_later_is_claimed_for_and_its_revision_is_written(
    bench: RunnerBench,
) -> None:
    bench.start(make_job(1))
    bench.runner.add_model("late", "r2")
    bench.runner.add_model("late", "r3")  # the same, after a database that was away
    bench.start(make_job(2, model="late"))
    assert bench.store.asked_for[0] == ("m",)
    assert bench.store.asked_for[-1] == bench.runner.models == ("m", "late")
    for job_id in ("job-1", "job-2"):
        bench.engine.end(job_id, result())
    bench.join()
    revisions = {job_id: outcome.model_revision for job_id, outcome in bench.store.finished}
    assert revisions == {"job-1": "r1", "job-2": "r3"}


# ---- how a text ends --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "status"),
    [
        ("stop", "succeeded"),
        ("length", "succeeded"),
        ("canceled", "canceled"),
        ("deadline", "failed"),
    ],
)
def test_an_end_becomes_a_status_and_keeps_the_text(
    bench: RunnerBench, reason: str, status: str
) -> None:
    bench.start(make_job())
    bench.engine.write("job-1", "ab")
    end(bench, reason=reason, text="ab\0")
    ((job_id, outcome),) = bench.store.finished
    assert (job_id, outcome.status, outcome.finish_reason) == ("job-1", status, reason)
    assert outcome.text == "ab\ufffd"
    assert (outcome.num_prompt_tokens, outcome.num_completion_tokens) == (2, 4)
    assert (outcome.first_token_seconds, outcome.model_revision) == (0.1, "r1")
    assert (outcome.error_code == "deadline") == (reason == "deadline")
    assert bench.publisher.kinds("job-1") == ["started", "token", "done"]
    assert bench.publisher.entries[-1].end == 4
    assert bench.runner.num_active == 0


def test_the_engine_gets_the_request_as_it_was_stored(bench: RunnerBench) -> None:
    parameters = {"top_k": 3, "temperature": 0.5, "max_new_tokens": 9, "seed": 8, "stop": ["x"]}
    generation = bench.start(
        make_job(strategy="top_k", parameters=parameters, has_trace=True, prompt="p")
    )
    request = generation.request
    assert (request.job_id, request.model, request.prompt) == ("job-1", "m", "p")
    decoding = request.parameters
    assert (decoding.strategy, decoding.top_k, decoding.temperature) == ("top_k", 3, 0.5)
    assert (decoding.max_new_tokens, decoding.seed) == (9, 8)
    assert (decoding.stop, decoding.trace) == (("x",), True)
    assert request.deadline is not None


@dataclass
class Token:
    """A fake of the engine's record of one token."""

    id: int
    text: str
    alternatives: list[Token] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def test_a_trace_is_stored_as_json_without_nul(bench: RunnerBench) -> None:
    bench.start(make_job(has_trace=True))
    end(bench, trace=[Token(3, "\0a", [Token(4, "\0")])])
    assert bench.store.finished[0][1].trace == [
        {
            "id": 3,
            "text": "\ufffda",
            "alternatives": [{"id": 4, "text": "\ufffd", "alternatives": []}],
        }
    ]


def test_a_lost_job_is_dropped_without_a_word(bench: RunnerBench) -> None:
    bench.start(make_job())
    end(bench, reason="lost")
    assert (bench.store.finished, bench.store.released) == ([], [])
    assert bench.publisher.kinds("job-1") == ["started"]
    assert bench.runner.num_active == 0


def test_a_released_job_goes_back_without_a_loss(bench: RunnerBench) -> None:
    bench.start(make_job())
    end(bench, reason="released")
    assert bench.store.released == [("job-1", 0.0, False)]
    assert bench.store.finished == []


def test_a_result_that_the_fence_refuses_is_thrown_away(bench: RunnerBench) -> None:
    bench.store.fenced.add("job-1")
    bench.start(make_job())
    end(bench)
    assert bench.store.finished == []
    assert "done" not in bench.publisher.kinds("job-1")


# ---- errors -----------------------------------------------------------------------------------


def test_an_error_sends_the_job_back_to_be_tried_alone_and_the_third_fails_it(
    bench: RunnerBench,
) -> None:
    for num_before in range(MAX_ERRORS):
        job_id = f"job-{num_before}"
        bench.start(make_job(num_before, lost_count=num_before))
        end(bench, job_id, reason="error", error=RuntimeError("broken"))
    assert [job_id for job_id, _, _ in bench.store.released] == ["job-0", "job-1"]
    assert all(counts and delay > 0 for _, delay, counts in bench.store.released)
    ((job_id, outcome),) = bench.store.finished
    assert (job_id, outcome.status, outcome.finish_reason) == ("job-2", "failed", "error")
    assert (outcome.error_code, outcome.error_message) == ("internal", "broken")


def test_a_visitor_sees_no_path_and_nothing_that_a_library_quotes(bench: RunnerBench) -> None:
    error = RuntimeError("cannot map '/srv/secret/a prompt' in /srv/secret/kernels.so")
    bench.start(make_job(2, lost_count=2))
    end(bench, "job-2", reason="error", error=error)
    ((_, outcome),) = bench.store.finished
    assert outcome.error_message == "cannot map … in …/kernels.so"


def test_a_permanent_error_fails_at_once_with_its_code(bench: RunnerBench) -> None:
    bench.start(make_job())
    end(bench, reason="error", error=Permanent("No."))
    ((_, outcome),) = bench.store.finished
    assert (outcome.status, outcome.error_code, outcome.error_message) == (
        "failed",
        "permanent",
        "No.",
    )
    assert bench.store.released == []


@pytest.mark.parametrize("error", [Permanent("No."), RuntimeError("broken")])
def test_an_engine_that_refuses_leaves_no_job_without_an_end(
    bench: RunnerBench, error: Exception
) -> None:
    bench.engine.refuses = error
    bench.store.queued.append(make_job())
    bench.work()
    bench.join()
    assert len(bench.store.finished) + len(bench.store.released) == 1
    assert bench.runner.num_free == bench.engine.num_slots


def test_parameters_that_cannot_be_read_fail_the_job_and_not_the_worker(
    bench: RunnerBench,
) -> None:
    bench.store.queued.append(make_job(parameters={"nonsense": 1}, lost_count=2))
    bench.work()
    bench.join()
    assert bench.store.finished[0][1].status == "failed"


# ---- the number of concurrent jobs -----------------------------------------------------------


def test_no_more_jobs_are_claimed_than_there_are_slots(bench: RunnerBench) -> None:
    bench.start(make_job(1))
    bench.start(make_job(2))
    bench.store.queued.append(make_job(3))
    assert bench.runner.work() == 0
    assert bench.runner.num_free == 0
    assert [job.id for job in bench.store.queued] == ["job-3"]
    bench.engine.end("job-1", result())
    bench.engine.await_job("job-3")  # the thread that had a slot takes the next job
    bench.engine.end("job-2", result())
    bench.engine.end("job-3", result())
    bench.join()
    assert sorted(bench.num_run) == [1, 2]


def test_a_job_that_was_lost_twice_waits_for_its_turn_and_starts_alone(bench: RunnerBench) -> None:
    bench.start(make_job(1))
    bench.store.queued += [make_job(2, lost_count=2), make_job(3)]
    assert bench.runner.work() == 0  # the first has just begun, so no other job may start
    assert bench.runner.is_blocked
    bench.runner._settled_seconds = 0.0
    bench.work()
    bench.engine.await_job("job-2")
    bench.runner._settled_seconds = 3600.0
    bench.engine.end("job-1", result())
    _await(lambda: bench.runner.attempts().keys() == {"job-2"})
    num_claims = bench.store.num_claims
    assert bench.runner.work() == 0  # not even a look
    assert bench.runner.is_blocked
    assert bench.store.num_claims == num_claims
    bench.engine.end("job-2", result())
    bench.engine.await_job("job-3")
    assert not bench.runner.is_blocked
    end(bench, "job-3")


def test_jobs_that_were_never_lost_pass_those_that_wait_for_their_group(
    bench: RunnerBench,
) -> None:
    bench.runner._settled_seconds = 3600.0
    bench.engine.num_slots = 1  # a group of one, though two threads may run
    bench.start(make_job(1, lost_count=1))
    bench.store.queued += [make_job(2, lost_count=1), make_job(3)]
    bench.work()
    bench.engine.await_job("job-3")
    assert [job.id for job in bench.store.queued] == ["job-2"]
    bench.engine.end("job-3", result())
    bench.engine.end("job-1", result())
    bench.engine.await_job("job-2")
    end(bench, "job-2")


def test_a_claim_that_the_database_refuses_is_no_claim(bench: RunnerBench) -> None:
    bench.store.is_away = True
    bench.store.queued.append(make_job())
    assert bench.runner.work() == 0
    assert bench.runner.num_free == bench.engine.num_slots
    bench.store.is_away = False
    bench.work()
    end(bench)
    assert len(bench.store.finished) == 1


# ---- the database away while finishing --------------------------------------------------------


@pytest.mark.parametrize("reason", ["length", "released", "error"])
def test_a_result_is_kept_until_it_is_written_and_nothing_is_claimed_meanwhile(
    bench: RunnerBench, reason: str
) -> None:
    bench.start(make_job(1))
    bench.store.is_away = True
    error = RuntimeError("broken") if reason == "error" else None
    bench.engine.end("job-1", result(reason, error=error))
    assert bench.store.refused.wait(WAIT_SECONDS)
    _await(lambda: bench.runner._results.is_waiting)
    num_claims = bench.store.num_claims
    bench.store.queued.append(make_job(2))
    assert bench.runner.work() == 0
    assert bench.store.num_claims == num_claims
    assert bench.runner.attempts() == {"job-1": 1}  # its lease is still to be renewed
    bench.store.is_away = False
    with bench.store.changed:
        assert bench.store.changed.wait_for(
            lambda: bench.store.finished or bench.store.released, WAIT_SECONDS
        )
    bench.engine.await_job("job-2")
    end(bench, "job-2")
    assert len(bench.store.finished) + len(bench.store.released) == 2


def _await(condition: object) -> None:
    pause = threading.Event()
    for _ in range(1000):
        if condition():  # type: ignore[operator]
            return
        pause.wait(0.01)
    raise AssertionError("it did not come to be")


@pytest.mark.parametrize("error", [Unstorable("a value"), Conflict("a rule")])
def test_an_outcome_that_no_database_can_store_fails_its_job_and_holds_up_no_other(
    bench: RunnerBench, error: Exception
) -> None:
    finish = bench.store.finish

    def refuse(job: JobRecord, outcome: Outcome) -> Outcome | None:
        if outcome.text:
            raise error
        return finish(job, outcome)

    bench.store.finish = refuse  # type: ignore[method-assign]
    bench.start(make_job(1))
    end(bench, "job-1", text="bad")
    bench.start(make_job(2))
    end(bench, "job-2", text="")
    (_, failed), (_, other) = bench.store.finished
    assert (failed.status, failed.error_code, failed.text) == ("failed", "unstorable", "")
    assert other.status == "succeeded"


# ---- cancel and drain -------------------------------------------------------------------------


def test_what_is_to_stop_before_the_engine_has_it_is_stopped_then(bench: RunnerBench) -> None:
    held = threading.Event()
    submit = bench.engine.submit

    def slow_submit(*args: object) -> object:
        held.set()
        bench.runner.stop_jobs(frozenset({"job-1"}), "canceled")
        return submit(*args)  # type: ignore[arg-type]

    bench.engine.submit = slow_submit  # type: ignore[method-assign, assignment]
    generation = bench.start(make_job())
    assert held.is_set()
    _await(lambda: generation.cancel_reason == "canceled")


def test_the_first_reason_to_stop_counts(bench: RunnerBench) -> None:
    generation = bench.start(make_job())
    bench.runner.stop_jobs(frozenset({"job-1"}), "lost")
    bench.runner.stop_jobs(frozenset({"job-1", "unknown"}), "released")
    assert generation.cancel_reason == "lost"


def test_a_drain_lets_a_job_end_that_ends_in_time(bench: RunnerBench) -> None:
    bench.start(make_job(1))
    drain = threading.Thread(target=bench.runner.drain, args=(WAIT_SECONDS,))
    drain.start()
    bench.store.queued.append(make_job(2))
    _await(lambda: bench.runner._closing.is_set())
    assert bench.runner.work() == 0
    end(bench, "job-1")
    drain.join(WAIT_SECONDS)
    assert not drain.is_alive()
    assert [job_id for job_id, _ in bench.store.finished] == ["job-1"]
    assert [job.id for job in bench.store.queued] == ["job-2"]


def test_a_drain_gives_back_what_does_not_end_in_time(bench: RunnerBench) -> None:
    generations = [bench.start(make_job(n)) for n in (1, 2)]
    drain = threading.Thread(target=bench.runner.drain, args=(0.01,))
    drain.start()
    for generation in generations:
        _await(lambda generation=generation: generation.cancel_reason == "released")
    bench.engine.end_canceled()
    drain.join(WAIT_SECONDS)
    bench.join()
    assert sorted(bench.store.released) == [("job-1", 0.0, False), ("job-2", 0.0, False)]
    assert bench.runner.wait_until_idle(0)


def test_a_drain_gives_back_a_job_whose_claim_had_begun(
    bench: RunnerBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No job is active yet when the drain begins, so nothing seems to be left to wait for."""
    is_claiming, may_claim = threading.Event(), threading.Event()
    claim = bench.store.claim

    def slow_claim(*args: Any, **options: Any) -> Any:
        is_claiming.set()
        assert may_claim.wait(WAIT_SECONDS)
        return claim(*args, **options)

    monkeypatch.setattr(bench.store, "claim", slow_claim)
    bench.store.queued.append(make_job())
    work = threading.Thread(target=bench.runner.work)
    work.start()
    assert is_claiming.wait(WAIT_SECONDS)
    drain = threading.Thread(target=bench.runner.drain, args=(0.0,))
    drain.start()
    _await(lambda: bench.runner._closing.is_set())
    drain.join(0.2)  # without the wait for the claim the drain is over here
    may_claim.set()
    generation = bench.engine.await_job("job-1")
    _await(lambda: generation.cancel_reason == "released")
    bench.engine.end_canceled()
    for thread in (drain, work):
        thread.join(WAIT_SECONDS)
        assert not thread.is_alive()
    assert bench.store.released == [("job-1", 0.0, False)]


def test_a_drain_with_the_database_away_gives_up_in_time(
    bench: RunnerBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    idle_for: list[float] = []
    wait = bench.runner.wait_until_idle

    def wait_shortly(seconds: float) -> bool:
        idle_for.append(seconds)
        return wait(min(seconds, 0.05))

    monkeypatch.setattr(bench.runner, "wait_until_idle", wait_shortly)
    bench.start(make_job())
    bench.store.is_away = True
    bench.engine.end("job-1", result())
    bench.runner.drain(0.01)
    bench.join()  # the thread gave up writing: the lease runs out, another worker repeats the job
    assert bench.store.finished == []
    assert sum(idle_for) < 20


def test_a_dead_engine_costs_no_job_a_loss_and_ends_the_claims(bench: RunnerBench) -> None:
    ended = threading.Event()
    bench.runner._on_dead_engine = ended.set
    bench.engine.refuses = EngineStopped("dead")
    bench.store.queued += [make_job(1), make_job(2)]
    bench.runner.work()
    assert bench.store.released == [("job-1", 0.0, False)]
    assert bench.store.finished == []
    assert [job.id for job in bench.store.queued] == ["job-2"]
    assert ended.is_set()
