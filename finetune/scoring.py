"""The loss, perplexity and bits per byte of a model, over the learned parts of examples.

Knows nothing of tokenization or of training.
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

# Logits converted at once: 64 rows with a vocabulary of 49,152 take 25 MB in float64, twice.
CHUNK_ROWS = 64

Encode = Callable[[Example], tuple[list[int], list[bool]]]
"""Converts an example into token ids, without end of text, and flags of which are learned."""


@dataclass(frozen=True, slots=True)
class Score:
    """The total loss over a set of examples.

    Attributes:
        loss_nats: sum over the counted tokens.
        num_tokens: counted tokens.
        num_bytes: UTF-8 bytes of their text; unlike tokens, the same for every model.
    """

    loss_nats: float
    num_tokens: int
    num_bytes: int

    @property
    def nats_per_token(self) -> float:
        """The mean loss, as training reports it."""
        return self.loss_nats / self.num_tokens

    @property
    def perplexity(self) -> float:
        """Perplexity per token."""
        return math.exp(self.nats_per_token)

    @property
    def bits_per_byte(self) -> float:
        """The loss in bits per byte, comparable between models with different tokenizers."""
        return self.loss_nats / math.log(2) / self.num_bytes


def score(
    model: LoadedModel, examples: Iterable[Example], max_tokens: int, encode: Encode
) -> Score:
    """Compute a model's loss over the learned parts of examples.

    The end of text that training appends is not counted, so bits per byte describe the texts
    themselves. The first token of an example without a prompt is not counted either, because it has
    no context to be predicted from.

    Args:
        model: its first slot is used; nothing else may use it meanwhile.
        examples: iterated once.
        max_tokens: the maximum length of an example, prompt included; longer ones are truncated, as
            in training. The model's context is a limit as well.
        encode: converts an example into tokens.

    Raises:
        ConfigError: no token of any example is left to count.
        TrainingError: the model's logits are not finite.
    """
    limit = min(max_tokens, model.info.context_length)
    scores = [_score_one(model, example, limit, encode) for example in examples]
    model.runner.release(0)
    num_tokens = sum(one.num_tokens for one in scores)
    if num_tokens == 0:
        raise ConfigError(
            f"No learned token of the held-out examples is within the first {limit} tokens;"
            " raise data.max_tokens, or shorten the prompts."
        )
    return Score(
        sum(one.loss_nats for one in scores), num_tokens, sum(one.num_bytes for one in scores)
    )


def _score_one(model: LoadedModel, example: Example, limit: int, encode: Encode) -> Score:
    ids, is_learned = encode(example)
    ids = ids[:limit]
    counted = [position for position in range(1, len(ids)) if is_learned[position]]
    if not counted:
        return Score(0.0, 0, 0)
    loss = _loss(torch.as_tensor(model.runner.score(ids)), ids, counted)
    if not math.isfinite(loss):
        raise TrainingError(
            f"The model's loss on {example.location.path}, line {example.location.line}, is not"
            " finite; train with a lower learning rate or in float32."
        )
    return Score(loss, len(counted), _num_bytes(model, ids, counted))


@torch.inference_mode()
def _loss(logits: Tensor, ids: list[int], counted: list[int]) -> float:
    """Nats of the tokens at the counted positions; logits: (len(ids), vocabulary) float32."""
    loss = 0.0
    for start in range(0, len(counted), CHUNK_ROWS):
        positions = counted[start : start + CHUNK_ROWS]
        before = logits[[position - 1 for position in positions]].double()
        tokens = torch.tensor([[ids[position]] for position in positions], device=logits.device)
        loss -= float(torch.log_softmax(before, -1).gather(-1, tokens).sum())
    return loss


def _num_bytes(model: LoadedModel, ids: list[int], counted: list[int]) -> int:
    """UTF-8 bytes of the counted tokens; each run of neighbouring tokens is decoded as a whole."""
    runs = groupby(enumerate(counted), key=lambda item: item[1] - item[0])
    texts = (model.tokenizer.decode([ids[position] for _, position in run]) for _, run in runs)
    return sum(len(text.encode()) for text in texts)
