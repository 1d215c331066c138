"""Detects a stalled engine, and ends a process that has work and free slots but claims nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from textmill.worker.awake_clock import AwakeClock
from textmill.worker.intervals import Intervals
from textmill.worker.job_worker import JobWorker

STALL_SECONDS = 20.0  # longer than any step takes; with the lease, jobs are lost within 50 s
NO_CLAIM_SECONDS = 60.0
WATCH_SECONDS = 10.0  # between two checks of the watchdog


class StallDetector:
    """Distinguishes an engine that works from one that hangs, by its step counter.

    It is read at every heartbeat; pauses of the whole process do not count.
    """

    def __init__(self, engine: EngineLike, clock: Callable[[], float] | None = None) -> None:
        self._engine = engine
        self._clock = clock or AwakeClock(2 * Intervals().heartbeat)
        self._step = -1
        self._since = self._clock()

    def stalled_seconds(self) -> float:
        """How long the engine has had work and made no step."""
        step = self._engine.step_count
        is_busy = self._engine.num_active + self._engine.num_waiting > 0
        if step != self._step or not is_busy:
            self._step, self._since = step, self._clock()
        return self._clock() - self._since


class EngineLike(Protocol):
    """The three numbers that the detector reads."""

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
        """Sequences that wait for a slot."""
        ...


class HasStalledSeconds(Protocol):
    """The part of a ``Heartbeat`` that the watchdog reads."""

    stalled_seconds: float


class Watchdog:
    """Ends a process that hangs, so that its supervisor starts a new one.

    Args:
        heartbeat: knows how long the engine has been stalled.
        runner: the jobs of this process.
        has_eligible: whether a job could be claimed.
        end_process: gets the reason; does not return in a real worker.
        clock: in seconds; leaves out pauses of the process.
    """

    def __init__(
        self,
        *,
        heartbeat: HasStalledSeconds,
        runner: JobWorker,
        has_eligible: Callable[[], bool],
        end_process: Callable[[str], None],
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._heartbeat = heartbeat
        self._runner = runner
        self._has_eligible = has_eligible
        self._end_process = end_process
        self._clock = clock or AwakeClock(2 * WATCH_SECONDS)
        self._starved_since: float | None = None
        self._num_claimed = 0

    def look(self) -> None:
        """Check once."""
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
