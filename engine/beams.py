"""A text that beam search writes: several rows in the loop, of which one is kept in the end."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from textmill.engine.models.batch_entry import BatchEntry
from textmill.engine.models.loading import LoadedModel
from textmill.engine.sampling.beam import Beam, BeamSearch
from textmill.engine.sampling.torch_sampler import DrawnToken
from textmill.engine.sampling.trace import trace_token
from textmill.engine.sequence import TokenSequence


@dataclass(slots=True, eq=False)
class BeamRow:
    """A live beam: prompt and text, in a slot of the cache."""

    ids: list[int]
    num_cached: int
    slot: int


class BeamSequence(TokenSequence):
    """Holds a slot a beam; its text is told when the search is over, for until then it may change.

    The prompt is prefilled once and copied to the other beams' slots. When beams are born and die,
    a slot goes to its beam's first child, and only other children have the text copied.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        """As ``TokenSequence``."""
        super().__init__(*args, **options)
        parameters = self.parameters
        self.width = parameters.num_beams
        self._rows: list[BeamRow] = []
        self._is_written = False
        self._search = BeamSearch(
            num_beams=parameters.num_beams,
            length_penalty=parameters.length_penalty,
            early_stopping=False,
            max_new_tokens=self.max_tokens - self.num_prompt,
            eos_token_ids=self._eos_token_ids,
        )

    def rows(self) -> Sequence[BatchEntry]:
        """The live beams; the prompt alone before the first step."""
        return self._rows or [self]

    def advance(self, logits: Tensor, model: LoadedModel) -> str | None:
        """Go on from the logits (rows, vocabulary) of all rows; the reason if it was the end."""
        beams = self._search.advance(logits)
        if not beams:
            best = self._search.best
            reason = self._write(best.tokens) or best.finish_reason
            self._explain(model)
            return reason
        self._spread(beams, model)
        self.generation.num_completion_tokens = len(self._rows[0].ids) - self.num_prompt
        return None

    def finish(self, reason: str, error: Exception | None = None) -> None:
        """Show the leading beam where the search was ended from outside, and set the result."""
        if error is None and not self._is_written:
            self._write(self._search.leading)
        super().finish(reason, error)

    def _spread(self, beams: Sequence[Beam], model: LoadedModel) -> None:
        parents, start = self.rows(), self.num_prompt if self._rows else 0
        heirs: dict[int, int] = {}  # parent → the beam that keeps its slot
        for index, beam in enumerate(beams):
            heirs.setdefault(beam.parent, index)
        free = iter(sorted(set(self.slots) - {parents[parent].slot for parent in heirs}))
        rows = []
        for index, beam in enumerate(beams):
            parent = parents[beam.parent]
            slot = parent.slot
            if heirs[beam.parent] != index:
                slot = next(free)
                model.runner.fork(parent.slot, slot, start, parent.num_cached)
            rows.append(BeamRow([*parent.ids, beam.token], parent.num_cached, slot))
        self._rows = rows

    def _write(self, tokens: Iterable[int]) -> str | None:
        self._is_written = True
        for token in tokens:
            reason = self.push(token)
            if reason is not None:
                return reason
        return None

    def _explain(self, model: LoadedModel) -> None:
        """Trace the text that won, by computing its logits once more."""
        if self.trace is None:
            return
        logits = model.runner.score(self.ids[:-1], self.slot)[self.num_prompt - 1 :]
        written = self.ids[self.num_prompt :]
        for row, token, text in zip(logits, written, self.token_texts, strict=True):
            trace = trace_token(row, DrawnToken(token, None), model.tokenizer.text_of)
            self.trace.append(replace(trace, text=text))
