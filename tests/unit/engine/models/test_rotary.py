"""The tables of rotary positions are transformers', and the same bits on every processor."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from textmill.engine.models.rotary import Rope, cosines_and_sines, rotary_tables

LLAMA3 = Rope(500_000.0, 32.0, 1.0, 4.0, 8192)


def test_sines_and_cosines_are_rounded_correctly() -> None:
    angles = np.random.default_rng(1).uniform(0, 1_600_000, 20_000).astype(np.float32)
    angles = np.concatenate(
        [angles, angles / 1000, np.array([0, 1e-30, math.pi, 131_071], np.float32)]
    )
    cos, sin = cosines_and_sines(angles)
    exact = [(math.cos(angle), math.sin(angle)) for angle in angles.tolist()]
    assert np.array_equal(np.stack([cos, sin], -1), np.array(exact, np.float32))


@pytest.mark.parametrize(
    "rope", [Rope(), Rope(100_000.0), LLAMA3], ids=["plain", "theta", "llama3"]
)
def test_the_tables_are_those_of_transformers(rope: Rope) -> None:
    scaling = {"rope_type": "default", "rope_theta": rope.theta}
    if rope.factor != 1.0:
        scaling |= {
            "rope_type": "llama3",
            "factor": rope.factor,
            "low_freq_factor": rope.low_freq_factor,
            "high_freq_factor": rope.high_freq_factor,
            "original_max_position_embeddings": rope.original_context_length,
        }
    config = LlamaConfig(hidden_size=128, num_attention_heads=2, rope_parameters=scaling)
    positions = torch.arange(2048)[None]
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1), positions)
    ours = rotary_tables(rope, 2048, 64)
    for table, theirs in zip(ours, (cos, sin), strict=True):
        assert np.abs(table - theirs[0, :, :32].numpy()).max() < 1e-6


def test_the_bits_are_those_of_every_other_processor() -> None:
    digest = hashlib.sha256()
    for rope in (Rope(), Rope(100_000.0), LLAMA3):
        for table in rotary_tables(rope, 8192, 64):
            digest.update(table.astype("<f4").tobytes())
    assert digest.hexdigest()[:16] == "03631b39ce8ff0eb"
