"""The sampler in PyTorch, for logits of the decoder in PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from textmill.engine.sampling.sampler import SampledToken
from textmill.engine.sampling.token_records import SamplingState, TokenTrace
from textmill.engine.sampling.torch_sampler import DrawnToken, finite_rows, sample_tokens
from textmill.engine.sampling.trace import trace_tokens


class TorchSampler:
    """Samples in PyTorch."""

    def sample(
        self, logits: Tensor, states: Sequence[SamplingState], text_of: Callable[[int], str]
    ) -> list[SampledToken]:
        """Sample one token for each row of logits (rows, vocabulary) float32, with its trace."""
        finite = [index for index, is_finite in enumerate(finite_rows(logits)) if is_finite]
        sampled = [SampledToken(None, None)] * len(states)
        if not finite:
            return sampled
        kept = logits if len(finite) == len(states) else logits[finite]
        drawn = sample_tokens(kept, [states[index] for index in finite])
        for index, token in zip(finite, drawn, strict=True):
            sampled[index] = SampledToken(token.id, None)
        traced = [place for place, i in enumerate(finite) if states[i].parameters.trace]
        if traced:
            found = trace_tokens(kept[traced], [drawn[place] for place in traced], text_of)
            for place, trace in zip(traced, found, strict=True):
                sampled[finite[place]] = SampledToken(drawn[place].id, trace)
        return sampled

    def are_finite(self, logits: Tensor) -> bool:
        """Whether a token can be chosen from each row: no NaN, and a finite maximum."""
        return all(finite_rows(logits))

    def trace(
        self, logits: Tensor, tokens: Sequence[int], text_of: Callable[[int], str]
    ) -> list[TokenTrace]:
        """Trace the given token of each row of logits (rows, vocabulary) as a certain choice."""
        return trace_tokens(logits, [DrawnToken(token, None) for token in tokens], text_of)
