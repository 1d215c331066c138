"""One decode step's batch: the entries of its sequences, with drafts, and whose logits are whose.

A sequence with a draft has a row of logits for its last token and one for each drafted token: the
logits after the draft up to there. The rows are the same to the last bit as if the draft had been
drawn token by token, so the sampler draws the same tokens from them. A row counts only if all
drafted tokens before it were drawn (Leviathan, Kalman and Matias, "Fast inference from
transformers via speculative decoding", 2023; here a token must be equal, since every draw is a
function of seed and position).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from textmill.engine.beams import BeamSequence
from textmill.engine.models.batch_entry import BatchEntry
from textmill.engine.models.runner import KernelRunner, ModelRunner
from textmill.engine.sampling.sampler import SampledToken, Sampler
from textmill.engine.sampling.token_records import SamplingState
from textmill.engine.sequence import TokenSequence


@dataclass(frozen=True, slots=True)
class VerifiedDraft:
    """The tokens drawn for a sequence, of which those after the first wrong guess do not count."""

    sequence: TokenSequence
    draft: Sequence[int]
    tokens: Sequence[SampledToken]

    @property
    def num_accepted(self) -> int:
        """The number of guesses that were drawn, up to the first that was not."""
        pairs = zip(self.draft, self.tokens, strict=False)
        return next(
            (n for n, (guess, drawn) in enumerate(pairs) if guess != drawn.token), len(self.draft)
        )

    @property
    def is_finite(self) -> bool:
        """Whether no row has NaN, not even one that does not count."""
        return all(drawn.token is not None for drawn in self.tokens)


class DecodeBatch:
    """The sequences of one step of one model."""

    def __init__(
        self,
        sequences: Sequence[TokenSequence],
        drafts: Mapping[TokenSequence, Sequence[int]],
    ) -> None:
        """Create a batch.

        Args:
            sequences: in the order of their slots.
            drafts: guessed tokens of those that draw one token after the other.
        """
        self.single = [s for s in sequences if not isinstance(s, BeamSequence)]
        self.beams = [s for s in sequences if isinstance(s, BeamSequence)]
        self._entries: list[BatchEntry] = []
        self._entry_drafts: list[Sequence[int]] = []
        self._drafts = drafts
        self._rows: dict[TokenSequence, slice] = {}  # of the logits
        num_rows = 0
        for sequence in sequences:
            own, draft = sequence.batch_entries(), drafts.get(sequence, ())
            self._rows[sequence] = slice(num_rows, num_rows + len(own) + len(draft))
            num_rows += len(own) + len(draft)
            self._entries += own
            self._entry_drafts += [draft] * len(own)
        self.num_drafted = num_rows - len(self._entries)

    def compute(self, runner: ModelRunner) -> Any:
        """The logits of all rows, (rows, vocabulary) float32."""
        if self.num_drafted and isinstance(runner, KernelRunner):
            return runner.verify(self._entries, self._entry_drafts)
        return runner.decode(self._entries)

    def sample(
        self, logits: Any, sampler: Sampler, text_of: Callable[[int], str]
    ) -> list[VerifiedDraft]:
        """Draw the tokens of all sequences but beam searches."""
        rows = [row for s in self.single for row in range(self._rows[s].start, self._rows[s].stop)]
        states = [state for s in self.single for state in self._states(s)]
        own = logits if len(rows) == len(logits) else logits[rows]
        tokens = sampler.sample(own, states, text_of)
        drawn, start = [], 0
        for sequence in self.single:
            draft = self._drafts.get(sequence, ())
            end = start + 1 + len(draft)
            drawn.append(VerifiedDraft(sequence, draft, tokens[start:end]))
            start = end
        return drawn

    def rows(self, sequence: TokenSequence) -> slice:
        """A sequence's rows of the logits."""
        return self._rows[sequence]

    def _states(self, sequence: TokenSequence) -> Iterator[SamplingState]:
        """The state of each row, as if the draft up to there had been drawn."""
        state = sequence.sampling_state()
        draft = self._drafts.get(sequence, ())
        yield state
        for length in range(1, len(draft) + 1):
            ids = [*state.ids, *draft[:length]]
            yield SamplingState(state.parameters, ids, state.position + length, state.rules)
