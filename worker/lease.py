"""Heartbeat, progress and watchdog: what a worker tells the database while it decodes.

The heartbeat renews all leases of the worker, unless its engine stands still; the progress loop
saves texts and hears of cancellations; the watchdog ends a process that has work, room, and claims
nothing. Decides nothing about a job: what to cancel and what is lost, the store says.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

import structlog

from textmill.core.errors import StorageUnavailable
from textmill.core.jobs.store import JobStore, LeaseStatus
from textmill.core.workers import WorkerState, beat
from textmill.engine import InferenceEngine
from textmill.worker.awake_clock import AwakeClock
from textmill.worker.intervals import Intervals
from textmill.worker.job_worker import JobWorker

STALL_SECONDS = 20.0  # longer than any step takes; together with the lease: lost within 50 s
NO_CLAIM_SECONDS = 60.0
WATCH_SECONDS = 10.0  # between two looks of the watchdog
RETRY_SECONDS = 1.0  # after a call that found the database away: leases run out meanwhile
log = structlog.get_logger(__name__)


class Loop:
    """A thread that calls something again and again until it is closed."""

    def __init__(self, name: str, every_seconds: float, call: Callable[[], None]) -> None:
        """``call`` must not take much longer than ``every_seconds``."""
        self._every = every_seconds
        self._call = call
        self._closing = threading.Event()
        self._woken = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._name = name
        self._is_away = False  # the database, at the last call

    def start(self) -> None:
        """Start the thread; the first call comes at once."""
        self._thread.start()

    def wake(self) -> None:
        """Call now instead of at the next turn."""
        self._woken.set()

    def close(self, timeout_seconds: float = 5.0) -> None:
        """Stop after the present call."""
        self._closing.set()
        self._woken.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(timeout_seconds)

    def _run(self) -> None:
        while True:
            self._woken.clear()
            if self._closing.is_set():  # looked at after the clearing, or a close would be missed
                return
            pause = self._every
            try:
                self._call()
                self._note_database(None)
            except StorageUnavailable as error:
                self._note_database(error)
                pause = min(pause, RETRY_SECONDS)
            except Exception:  # the task edge: a loop that dies would take the worker's leases
                log.exception("loop_failed", loop=self._name)
            self._woken.wait(pause)

    def _note_database(self, error: StorageUnavailable | None) -> None:
        """Log that the database went away or came back, once each."""
        if error is not None and not self._is_away:
            log.warning("database_away", loop=self._name, reason=str(error))
        elif error is None and self._is_away:
            log.info("database_back", loop=self._name)
        self._is_away = error is not None


class StallDetector:
    """Tells an engine that works from one that hangs, by its step counter."""

    def __init__(self, engine: EngineLike, clock: Callable[[], float] | None = None) -> None:
        """Start as not stalled; asked at every heartbeat, it leaves out pauses of the process."""
        self._engine = engine
        self._clock = clock or AwakeClock(2 * Intervals().heartbeat)
        self._step = -1
        self._since = self._clock()

    def stalled_seconds(self) -> float:
        """For how long there has been work and no step."""
        step = self._engine.step_count
        is_busy = self._engine.num_active + self._engine.num_waiting > 0
        if step != self._step or not is_busy:
            self._step, self._since = step, self._clock()
        return self._clock() - self._since


class EngineLike(Protocol):
    """The three numbers that the detector looks at."""

    @property
    def step_count(self) -> int:
        """Steps made so far."""
        ...

    @property
    def num_active(self) -> int:
        """Sequences being decoded."""
        ...

    @property
    def num_waiting(self) -> int:
        """Sequences not yet admitted."""
        ...


class Heartbeat:
    """Renews the worker's leases and its row in ``workers``."""

    def __init__(
        self, *, store: JobStore, engine: InferenceEngine, runner: JobWorker, worker_id: str
    ) -> None:
        """Keep what is asked at every beat."""
        self._store = store
        self._engine = engine
        self._runner = runner
        self._worker_id = worker_id
        self._stall = StallDetector(engine)
        self.stalled_seconds = 0.0

    def living(self) -> dict[str, int]:
        """The jobs (id → attempt) that this worker holds and works on."""
        return {} if self.stalled_seconds > STALL_SECONDS else self._runner.attempts()

    def beat(self) -> None:
        """One beat; a stalled engine's leases are left to run out."""
        self.stalled_seconds = self._stall.stalled_seconds()
        if self.stalled_seconds > STALL_SECONDS:
            log.error("engine_stalled", seconds=round(self.stalled_seconds, 1))
            return
        apply(self._store.renew(self._worker_id, self._runner.attempts()), self._runner)
        beat(
            self._store.engine,
            WorkerState(
                id=self._worker_id,
                models=list(self._runner.models),
                num_slots=self._engine.num_slots,
                num_active=self._runner.num_active,
                tokens_per_second=self._engine.statistics().tokens_per_second,
            ),
        )

    def save_progress(self) -> None:
        """Store what was written since the last time, and hear of cancellations."""
        attempts = self._runner.attempts()
        if not attempts:
            return
        progress = self._runner.progress()
        if progress:
            self._store.save_progress(self._worker_id, progress)
        apply(self._store.lease_status(self._worker_id, attempts), self._runner)


def apply(lease_status: LeaseStatus, runner: JobWorker) -> None:
    """Make the engine drop what was canceled or taken away."""
    if lease_status.to_cancel:
        runner.stop_jobs(lease_status.to_cancel, "canceled")
    # A job that ended between the question and the answer is no longer active: nothing happens.
    if lease_status.lost:
        runner.stop_jobs(lease_status.lost, "lost")


class Watchdog:
    """Ends a process that hangs, so that its supervisor starts a new one."""

    def __init__(
        self,
        *,
        heartbeat: Heartbeat,
        runner: JobWorker,
        has_eligible: Callable[[], bool],
        end_process: Callable[[str], None],
        clock: Callable[[], float] | None = None,
    ) -> None:
        """``end_process`` gets the reason and does not return in a real worker."""
        self._heartbeat = heartbeat
        self._runner = runner
        self._has_eligible = has_eligible
        self._end_process = end_process
        self._clock = clock or AwakeClock(2 * WATCH_SECONDS)
        self._starved_since: float | None = None
        self._num_claimed = 0

    def look(self) -> None:
        """Judge the worker once."""
        if self._heartbeat.stalled_seconds > NO_CLAIM_SECONDS:
            self._end_process("the engine made no step for a minute with work to do")
        is_starved = (
            self._runner.num_free > 0 and not self._runner.is_blocked and self._has_eligible()
        )
        now = self._clock()
        has_claimed = self._runner.num_claimed != self._num_claimed
        self._num_claimed = self._runner.num_claimed
        if not is_starved or has_claimed:
            self._starved_since = None
        elif self._starved_since is None:
            self._starved_since = now
        elif now - self._starved_since > NO_CLAIM_SECONDS:
            self._end_process("jobs wait and slots are free, but nothing was claimed for a minute")
