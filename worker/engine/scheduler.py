"""Which sequences run, and where: first come, first served, into the lowest free slot.

Pure Python: knows nothing of torch or of what a step does. Used by the engine's thread alone.
"""

from __future__ import annotations

from collections import deque

from worker.engine.sequence import Sequence


class Scheduler:
    """Sequences that wait, and sequences that hold a slot of their model's cache.

    A model's cache has ``num_slots`` slots, and so many sequences run at once on all models
    together. The lowest slots are used first, so that those in use lie close together: attention
    then reads the cache in place.
    """

    def __init__(self, num_slots: int) -> None:
        self._num_slots = num_slots
        self._waiting: deque[Sequence] = deque()
        self._active: list[Sequence] = []  # in the order of admission

    @property
    def num_active(self) -> int:
        """Sequences that hold a slot."""
        return len(self._active)

    @property
    def num_waiting(self) -> int:
        """Sequences not yet admitted."""
        return len(self._waiting)

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._waiting or self._active)

    def add(self, sequence: Sequence) -> None:
        """Let a sequence wait its turn."""
        self._waiting.append(sequence)

    def admit(self) -> None:
        """Give free slots to those that have waited longest."""
        while self._waiting and len(self._active) < self._num_slots:
            sequence = self._waiting.popleft()
            taken = {other.slot for other in self._active if other.model == sequence.model}
            sequence.slot = min(set(range(self._num_slots)) - taken)
            self._active.append(sequence)

    def due(self, now: float) -> list[tuple[Sequence, str]]:
        """Sequences that somebody outside wants ended, with the reason."""
        reasons = ((s, s.outside_reason(now)) for s in (*self._active, *self._waiting))
        return [(sequence, reason) for sequence, reason in reasons if reason is not None]

    def prefilling(self, model: str) -> list[Sequence]:
        """The model's sequences whose prompt is not in the cache yet, oldest first."""
        return [s for s in self._active if s.model == model and not s.is_prefilled]

    def decoding(self, model: str) -> list[Sequence]:
        """The model's sequences that are ready for their next token, by slot."""
        ready = [s for s in self._active if s.model == model and s.is_prefilled]
        return sorted(ready, key=lambda sequence: sequence.slot)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence that has ended; its slot is free."""
        if sequence in self._active:
            self._active.remove(sequence)
        elif sequence in self._waiting:
            self._waiting.remove(sequence)

    def clear(self) -> list[Sequence]:
        """Forget all sequences, and return them."""
        everything = [*self._active, *self._waiting]
        self._active.clear()
        self._waiting.clear()
        return everything
