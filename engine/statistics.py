"""Counts of an engine's tokens and steps, and rates over the last seconds."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

RATE_SECONDS = 10.0  # long enough to be steady, short enough to be current


@dataclass(frozen=True, slots=True)
class EngineStatistics:
    """Statistics of an engine; occupancy and rate are over the last ten seconds.

    Attributes:
        num_tokens: generated since the start.
        num_steps: decode steps since the start, of all models.
        mean_occupancy: mean share of the slots that a decode step used.
        tokens_per_second: of all sequences together.
        num_drafted: tokens that were guessed ahead since the start.
        num_accepted: those of them that were drawn, and so saved a step.
    """

    num_tokens: int
    num_steps: int
    mean_occupancy: float
    tokens_per_second: float
    num_drafted: int = 0
    num_accepted: int = 0


class Throughput:
    """Counts tokens on the engine's thread; ``statistics`` may be called on any thread."""

    def __init__(self, num_slots: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._num_slots = num_slots
        self._clock = clock
        self._started_at = clock()
        self._lock = threading.Lock()
        self._num_tokens = 0
        self._num_steps = 0
        self._num_drafted = 0
        self._num_accepted = 0
        # (time, sequences, tokens) of each step
        self._recent: deque[tuple[float, int, int]] = deque()

    def count(self, num_sequences: int, *, num_drafted: int = 0, num_accepted: int = 0) -> None:
        """Count one decode step, which adds a token to each sequence and the accepted ones."""
        num_tokens = num_sequences + num_accepted
        with self._lock:
            self._num_tokens += num_tokens
            self._num_steps += 1
            self._num_drafted += num_drafted
            self._num_accepted += num_accepted
            self._recent.append((self._clock(), num_sequences, num_tokens))
            self._forget()

    def statistics(self) -> EngineStatistics:
        """Return the current statistics."""
        with self._lock:
            self._forget()
            sequences = [num for _, num, _ in self._recent]
            num_recent = sum(num for _, _, num in self._recent)
            total, num_steps = self._num_tokens, self._num_steps
            guesses = self._num_drafted, self._num_accepted
        seconds = max(min(RATE_SECONDS, self._clock() - self._started_at), 1e-9)
        occupancy = sum(sequences) / len(sequences) / self._num_slots if sequences else 0.0
        return EngineStatistics(total, num_steps, occupancy, num_recent / seconds, *guesses)

    def _forget(self) -> None:
        since = self._clock() - RATE_SECONDS
        while self._recent and self._recent[0][0] < since:
            self._recent.popleft()
