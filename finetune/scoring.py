"""How likely a model finds texts: loss, perplexity, bits per byte, over what is learned alone.

Knows nothing of how an example becomes tokens, nor of training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from textmill.engine.models.loading import LoadedModel
from textmill.finetune.errors import ConfigError, TrainingError
from textmill.finetune.examples import Example

# Of the logits at once: 64 rows of a vocabulary of 49,152 take 25 MB in float64, twice.
CHUNK_ROWS = 64

Encode = Callable[[Example], tuple[list[int], list[bool]]]
"""Token ids of an example, without an end of text, and which of them are learned."""


@dataclass(frozen=True, slots=True)
class Score:
    """The loss over some texts, in all.

    Attributes:
        loss_nats: sum over the tokens counted.
        num_tokens: tokens counted.
        num_bytes: of their text in UTF-8; unlike tokens, the same for every model.
    """

    loss_nats: float
    num_tokens: int
    num_bytes: int

    @property
    def nats_per_token(self) -> float:
        """The mean loss, as training shows it."""
        return self.loss_nats / self.num_tokens

    @property
    def perplexity(self) -> float:
        """Of a token."""
        return math.exp(self.nats_per_token)

    @property
    def bits_per_byte(self) -> float:
        """Comparable between models whose tokenizers differ."""
        return self.loss_nats / math.log(2) / self.num_bytes


def score(
    model: LoadedModel, examples: Iterable[Example], max_tokens: int, encode: Encode
) -> Score:
    """A model's loss over the learned parts of examples.

    The end of text that training appends is not counted: these are the bits of the texts
    themselves. Where a text has no prompt, its first token is not counted either, since nothing
    stands before it from which it could be predicted.

    Args:
        model: fills its first slot; nothing else may use it meanwhile.
        examples: gone through once.
        max_tokens: of an example, prompt included; what comes after is cut, as in training. The
            model's context bounds it as well.
        encode: how an example becomes tokens.

    Raises:
        ConfigError: no token of any example is left to count.
        TrainingError: the model gives numbers that are not finite.
    """
    limit = min(max_tokens, model.info.context_length)
    loss, num_tokens, num_bytes = 0.0, 0, 0
    for example in examples:
        ids, is_learned = encode(example)
        ids = ids[:limit]
        counted = [place for place in range(1, len(ids)) if is_learned[place]]
        if not counted:
            continue
        found = _loss(model.runner.score(ids), ids, counted)
        if not math.isfinite(found):
            raise TrainingError(
                f"The model's loss on {example.place.path}, line {example.place.line}, is not"
                " finite; train with a lower learning rate or in float32."
            )
        loss += found
        num_tokens += len(counted)
        num_bytes += _num_bytes(model, ids, counted)
    model.runner.release(0)
    if num_tokens == 0:
        raise ConfigError(
            f"No learned token of the held-out examples lies within {limit} tokens;"
            " raise data.max_tokens, or shorten the prompts."
        )
    return Score(loss, num_tokens, num_bytes)


@torch.inference_mode()
def _loss(logits: Tensor, ids: list[int], counted: list[int]) -> float:
    """Nats of the tokens at the places counted; logits (len(ids), vocabulary) float32."""
    loss = 0.0
    for start in range(0, len(counted), CHUNK_ROWS):
        places = counted[start : start + CHUNK_ROWS]
        before = logits[[place - 1 for place in places]].double()
        tokens = torch.tensor([[ids[place]] for place in places], device=logits.device)
        loss -= float(torch.log_softmax(before, -1).gather(-1, tokens).sum())
    return loss


def _num_bytes(model: LoadedModel, ids: list[int], counted: list[int]) -> int:
    """UTF-8 bytes of the tokens counted, each stretch decoded as a whole."""
    stretches = groupby(enumerate(counted), key=lambda item: item[1] - item[0])
    texts = (model.tokenizer.decode([ids[place] for _, place in s]) for _, s in stretches)
    return sum(len(text.encode()) for text in texts)
