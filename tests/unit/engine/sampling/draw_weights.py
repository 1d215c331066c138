"""The weights from which the PyTorch sampler draws, computed for one sequence at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from textmill.core.strategies import DecodingParameters
from textmill.engine.sampling.blocks import padded_rows
from textmill.engine.sampling.logits_filters import filtered_softmax


def draw_weights(scores: Tensor, rows: list[DecodingParameters]) -> Tensor:
    """Weights (rows, vocabulary) float32 of sequences with any strategies."""
    every = torch.arange(scores.shape[-1])[None]
    size = scores.shape[-1]
    weights = [
        filtered_softmax(padded_rows(scores, [i]), [row], size) for i, row in enumerate(rows)
    ]
    return torch.cat([own.of(every) for own in weights])
