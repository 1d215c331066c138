"""Which sequences run, and where: first come, first served as far as memory allows.

Pure Python: knows nothing of torch or of what a step does. Used by the engine's thread alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from itertools import count, islice

from textmill.engine.sequence import TokenSequence

LOOKED_AT = 256  # of those that wait, in a step: thousands may, and to look takes a microsecond


class Scheduler:
    """Sequences that wait, and sequences that hold slots of their model's cache.

    As many sequences run at once, on all models together, as there are slots and as the memory for
    keys and values allows. Who comes first goes first. Those behind a sequence that does not fit
    pass it where they fit, but no more of them than there are slots: then all wait for it, so that
    neither holds up the other for ever. The lowest slots are used first, so that those in use lie
    close together: attention in PyTorch then reads the cache in place.
    """

    def __init__(
        self,
        num_slots: int,
        *,
        cache_bytes: int | None = None,
        bytes_per_token: Mapping[str, int] | None = None,
    ) -> None:
        """Start empty.

        Args:
            num_slots: texts at once; a beam search may take more when it is alone.
            cache_bytes: bound on the keys and values of all that run; ``None`` for no bound.
            bytes_per_token: by model, what a token's keys and values take.
        """
        self._num_slots = num_slots
        self._cache_bytes = cache_bytes
        self._bytes_per_token = dict(bytes_per_token or {})
        self._waiting: deque[TokenSequence] = deque()
        self._active: list[TokenSequence] = []  # in the order of admission

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

    def add(self, sequence: TokenSequence) -> None:
        """Let a sequence wait its turn."""
        self._waiting.append(sequence)

    def weigh(self, model: str, bytes_per_token: int) -> None:
        """Take note of a model that came later."""
        self._bytes_per_token[model] = bytes_per_token

    def num_bytes(self, sequence: TokenSequence) -> int:
        """What a sequence's keys and values may grow to."""
        return sequence.max_tokens * sequence.width * self._bytes_per_token.get(sequence.model, 0)

    def admit(self) -> list[TokenSequence]:
        """Give free slots to those that have waited longest and fit; those that got one."""
        admitted: list[TokenSequence] = []
        passed: list[TokenSequence] = []
        if not self._waiting:
            return admitted
        free_slots = self._num_slots - sum(s.width for s in self._active)
        free_bytes = self._free_bytes()
        for sequence in list(islice(self._waiting, LOOKED_AT)):
            needed = self.num_bytes(sequence)
            fits = sequence.width <= free_slots and (free_bytes is None or needed <= free_bytes)
            if not (fits or not self._active):  # who is too large runs alone
                if free_slots <= 0 or sequence.num_passed >= self._num_slots:
                    break
                passed.append(sequence)
                continue
            self._place(sequence)
            admitted.append(sequence)
            free_slots -= sequence.width
            free_bytes = None if free_bytes is None else free_bytes - needed
            for other in passed:
                other.num_passed += 1
        return admitted

    def _place(self, sequence: TokenSequence) -> None:
        """Give it the lowest free slots of its model."""
        self._waiting.remove(sequence)
        taken = {slot for s in self._active if s.model == sequence.model for slot in s.slots}
        free = (slot for slot in count() if slot not in taken)
        sequence.slots = tuple(islice(free, sequence.width))
        self._active.append(sequence)

    def _free_bytes(self) -> int | None:
        if self._cache_bytes is None:
            return None
        return self._cache_bytes - sum(self.num_bytes(s) for s in self._active)

    def due(self, now: float) -> list[tuple[TokenSequence, str]]:
        """Sequences that somebody outside wants ended, with the reason."""
        reasons = ((s, s.outside_reason(now)) for s in (*self._active, *self._waiting))
        return [(sequence, reason) for sequence, reason in reasons if reason is not None]

    def prefilling(self, model: str) -> list[TokenSequence]:
        """The model's sequences whose prompt is not in the cache yet, oldest first."""
        return [s for s in self._active if s.model == model and not s.is_prefilled]

    def decoding(self, model: str) -> list[TokenSequence]:
        """The model's sequences that are ready for their next token, by slot."""
        ready = [s for s in self._active if s.model == model and s.is_prefilled]
        return sorted(ready, key=lambda sequence: sequence.slots)

    def num_decoding_rows(self) -> int:
        """Rows that the next decode steps compute, of all models together."""
        return sum(len(s.rows()) for s in self._active if s.is_prefilled)

    def remove(self, sequence: TokenSequence) -> None:
        """Forget a sequence that has ended; its slot is free."""
        if sequence in self._active:
            self._active.remove(sequence)
        elif sequence in self._waiting:
            self._waiting.remove(sequence)

    def clear(self) -> list[TokenSequence]:
        """Forget all sequences, and return them."""
        everything = [*self._active, *self._waiting]
        self._active.clear()
        self._waiting.clear()
        return everything
