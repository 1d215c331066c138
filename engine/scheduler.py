"""Which sequences run, and in which slots: first come, first served as far as memory allows.

Pure Python: knows nothing of torch or of a step's computation. Used by the engine's thread only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from itertools import count, islice

from textmill.engine.sequence import TokenSequence

# Waiting sequences examined in a step. Thousands may wait, and each takes a microsecond.
MAX_EXAMINED = 256


class Scheduler:
    """Sequences that wait, and sequences that hold slots of their model's cache.

    The number of slots and the memory for keys and values limit how many sequences run at once, of
    all models together. Sequences are admitted in the order of arrival. Later sequences pass one
    that does not fit if they fit themselves, but no more of them than there are slots; then all
    wait for it, so that neither blocks the other for ever. The lowest slots are used first, so that
    the slots in use are close together: attention in PyTorch then reads the cache in place.
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
            num_slots: slots in use at once; a beam search that runs alone may use more.
            cache_bytes: limit on the keys and values of running sequences; ``None`` for no limit.
            bytes_per_token: by model, the size of a token's keys and values.
        """
        self._num_slots = num_slots
        self._cache_bytes = cache_bytes
        self._bytes_per_token = dict(bytes_per_token or {})
        self._waiting: deque[TokenSequence] = deque()
        self._active: list[TokenSequence] = []  # in the order of admission

    @property
    def num_active(self) -> int:
        """The number of sequences that hold slots."""
        return len(self._active)

    @property
    def num_waiting(self) -> int:
        """The number of sequences that wait for admission."""
        return len(self._waiting)

    @property
    def has_work(self) -> bool:
        """Whether any sequence waits or runs."""
        return bool(self._waiting or self._active)

    def add(self, sequence: TokenSequence) -> None:
        """Add a sequence to those that wait."""
        self._waiting.append(sequence)

    def set_bytes_per_token(self, model: str, bytes_per_token: int) -> None:
        """Set the size of a token's keys and values for a model that was added later."""
        self._bytes_per_token[model] = bytes_per_token

    def num_bytes(self, sequence: TokenSequence) -> int:
        """The largest size of a sequence's keys and values, in bytes."""
        return sequence.max_tokens * sequence.width * self._bytes_per_token.get(sequence.model, 0)

    def admit(self) -> list[TokenSequence]:
        """Give free slots to the oldest waiting sequences that fit, and return them."""
        admitted: list[TokenSequence] = []
        passed: list[TokenSequence] = []
        if not self._waiting:
            return admitted
        free_slots = self._num_slots - sum(s.width for s in self._active)
        free_bytes = self._free_bytes()
        for sequence in list(islice(self._waiting, MAX_EXAMINED)):
            needed = self.num_bytes(sequence)
            fits = sequence.width <= free_slots and (free_bytes is None or needed <= free_bytes)
            if not (fits or not self._active):  # one that is too large runs alone
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
        """Give a sequence the lowest free slots of its model."""
        self._waiting.remove(sequence)
        used = {slot for s in self._active if s.model == sequence.model for slot in s.slots}
        free = (slot for slot in count() if slot not in used)
        sequence.slots = tuple(islice(free, sequence.width))
        self._active.append(sequence)

    def _free_bytes(self) -> int | None:
        if self._cache_bytes is None:
            return None
        return self._cache_bytes - sum(self.num_bytes(s) for s in self._active)

    def to_be_ended(self, now: float) -> list[tuple[TokenSequence, str]]:
        """Sequences that were canceled or are past their deadline, with the reason."""
        reasons = ((s, s.reason_to_end(now)) for s in (*self._active, *self._waiting))
        return [(sequence, reason) for sequence, reason in reasons if reason is not None]

    def prefilling(self, model: str) -> list[TokenSequence]:
        """The model's sequences whose prompts are not completely cached, oldest first."""
        return [s for s in self._active if s.model == model and not s.is_prefilled]

    def decoding(self, model: str) -> list[TokenSequence]:
        """The model's sequences that are ready for their next token, by slot."""
        ready = [s for s in self._active if s.model == model and s.is_prefilled]
        return sorted(ready, key=lambda sequence: sequence.slots)

    def num_decoding_entries(self) -> int:
        """The number of batch entries of the next decode steps, of all models together."""
        return sum(len(s.batch_entries()) for s in self._active if s.is_prefilled)

    def remove(self, sequence: TokenSequence) -> None:
        """Remove a sequence that has ended, and free its slots."""
        if sequence in self._active:
            self._active.remove(sequence)
        elif sequence in self._waiting:
            self._waiting.remove(sequence)

    def clear(self) -> list[TokenSequence]:
        """Remove all sequences, and return them."""
        everything = [*self._active, *self._waiting]
        self._active.clear()
        self._waiting.clear()
        return everything
