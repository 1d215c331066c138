"""The one step from a batch's logits to its tokens and their traces, however it is computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from textmill.engine.sampling.token_records import SamplingState, TokenTrace
from textmill.engine.sampling.torch_sampler import choose, sound_rows
from textmill.engine.sampling.trace import trace_tokens


@dataclass(frozen=True, slots=True)
class Chosen:
    """A row's next token; ``None`` where its logits have NaN or no largest number."""

    token: int | None
    trace: TokenTrace | None


class Chooser(Protocol):
    """Chooses for a batch of rows with any strategies."""

    def choose(
        self, logits: Tensor, rows: Sequence[SamplingState], text_of: Callable[[int], str]
    ) -> list[Chosen]:
        """A token a row of logits (rows, vocabulary) float32, traced where it is wanted."""
        ...


class TorchChooser:
    """Chooses in PyTorch."""

    def choose(
        self, logits: Tensor, rows: Sequence[SamplingState], text_of: Callable[[int], str]
    ) -> list[Chosen]:
        """A token a row of logits (rows, vocabulary) float32, traced where it is wanted."""
        sound = [index for index, is_sound in enumerate(sound_rows(logits)) if is_sound]
        chosen = [Chosen(None, None)] * len(rows)
        if not sound:
            return chosen
        kept = logits if len(sound) == len(rows) else logits[sound]
        choices = choose(kept, [rows[index] for index in sound])
        for index, choice in zip(sound, choices, strict=True):
            chosen[index] = Chosen(choice.token, None)
        traced = [place for place, i in enumerate(sound) if rows[i].parameters.trace]
        if traced:
            found = trace_tokens(kept[traced], [choices[place] for place in traced], text_of)
            for place, trace in zip(traced, found, strict=True):
                chosen[sound[place]] = Chosen(choices[place].token, trace)
        return chosen
