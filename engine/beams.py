"""A sequence decoded by beam search: several batch entries, of which one becomes the result."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from textmill.engine.models.batch_entry import BatchEntry
from textmill.engine.models.loading import LoadedModel
from textmill.engine.sampling.beam import Beam, BeamSearch
from textmill.engine.sampling.sampler import Sampler
from textmill.engine.sequence import TokenSequence


@dataclass(slots=True, eq=False)
class BeamEntry:
    """One beam: prompt and completion so far, in a slot of the cache."""

    ids: list[int]
    num_cached: int
    slot: int


class BeamSequence(TokenSequence):
    """Holds a slot for each beam. Its text may change until the end, and is emitted then.

    The prompt is prefilled once and copied to the other beams' slots. A beam's slot goes to its
    first child; the cache is copied only for further children.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        """Create a sequence; the arguments are those of ``TokenSequence``."""
        super().__init__(*args, **options)
        parameters = self.parameters
        self.width = parameters.num_beams
        self._entries: list[BeamEntry] = []
        self._is_pushed = False
        self._search = BeamSearch(
            num_beams=parameters.num_beams,
            length_penalty=parameters.length_penalty,
            early_stopping=False,
            max_new_tokens=self.max_tokens - self.num_prompt,
            eos_token_ids=self._eos_token_ids,
        )

    def batch_entries(self) -> Sequence[BatchEntry]:
        """The current beams; only the prompt before the first step."""
        return self._entries or [self]

    def advance(self, logits: Any, model: LoadedModel, sampler: Sampler) -> str | None:
        """Advance by the logits (beams, vocabulary), and return the finish reason at the end."""
        beams = self._search.advance(model.runner.log_softmax(logits))
        if not beams:
            best = self._search.best
            reason = self._push_all(best.tokens) or best.finish_reason
            self._explain(model, sampler)
            return reason
        self._assign_slots(beams, model)
        self.generation.num_completion_tokens = len(self._entries[0].ids) - self.num_prompt
        return None

    def finish(self, reason: str, error: Exception | None = None) -> None:
        """Use the leading beam if the search was ended early, and set the result."""
        if error is None and not self._is_pushed:
            self._push_all(self._search.leading)
        super().finish(reason, error)

    def _assign_slots(self, beams: Sequence[Beam], model: LoadedModel) -> None:
        parents, start = self.batch_entries(), self.num_prompt if self._entries else 0
        heirs: dict[int, int] = {}  # parent → the beam that keeps its slot
        for index, beam in enumerate(beams):
            heirs.setdefault(beam.parent, index)
        free = iter(sorted(set(self.slots) - {parents[parent].slot for parent in heirs}))
        entries = []
        for index, beam in enumerate(beams):
            parent = parents[beam.parent]
            slot = parent.slot
            if heirs[beam.parent] != index:
                slot = next(free)
                model.runner.fork(parent.slot, slot, start, parent.num_cached)
            entries.append(BeamEntry([*parent.ids, beam.token], parent.num_cached, slot))
        self._entries = entries

    def _push_all(self, tokens: Iterable[int]) -> str | None:
        self._is_pushed = True
        for token in tokens:
            reason = self.push(token)
            if reason is not None:
                return reason
        return None

    def _explain(self, model: LoadedModel, sampler: Sampler) -> None:
        """Trace the best text, by computing its logits again."""
        if self.trace is None:
            return
        logits = model.runner.score(self.ids[:-1], self.slot)[self.num_prompt - 1 :]
        completion = self.ids[self.num_prompt :]
        traces = sampler.trace(logits, completion, model.tokenizer.text_of)
        for trace, text in zip(traces, self.token_texts, strict=True):
            self.trace.append(replace(trace, text=text))
