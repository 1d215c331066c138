"""Sequences much longer than a block of the cache, up to the context's end, beside short ones."""

from __future__ import annotations

import pytest
import torch

from tests.tiny_models import NATIVE_FAMILIES, tiny_model
from tests.unit.engine.models.test_decoder import (
    PlainEntry,
    decoded,
    exact_kinds,
    kinds,
    random_ids,
    reference,
    runner_from,
)
from textmill.engine.models.cache import KV_BLOCK_TOKENS
from textmill.engine.models.runner import PREFILL_CHUNK_TOKENS

CONTEXT = 5 * KV_BLOCK_TOKENS + PREFILL_CHUNK_TOKENS + 7  # a multiple of neither
NUM_DECODED = 2 * KV_BLOCK_TOKENS + 3
families = pytest.mark.parametrize("family", NATIVE_FAMILIES)


@exact_kinds
@families
def test_logits_equal_those_of_transformers_up_to_the_contexts_end(family: str, kind: str) -> None:
    """Prefilled in chunks, then decoded across bounds of blocks, beside a short sequence."""
    folder = tiny_model(family, context_length=CONTEXT)
    long, short = random_ids(CONTEXT, seed=1), random_ids(NUM_DECODED, seed=2)
    start = CONTEXT - NUM_DECODED
    rows = [PlainEntry(long[: start + 1], slot=1), PlainEntry(short[:1], slot=4)]
    ours = decoded(runner_from(folder, kind), rows, [long[start + 1 :], short[1:]])
    for own, text, first in ((ours[0], long, start), (ours[1], short, 0)):
        wanted = reference(folder, text)[first:-1]
        torch.testing.assert_close(own, wanted, atol=1e-4, rtol=1e-4)


@kinds
@families
def test_a_short_text_after_a_long_one_in_its_slot_is_as_in_a_fresh_slot(
    family: str, kind: str
) -> None:
    folder = tiny_model(family, context_length=CONTEXT)
    runner = runner_from(folder, kind)
    long, short = random_ids(CONTEXT - 1, seed=3), random_ids(40, seed=4)
    decoded(runner, [PlainEntry(long, slot=0)], [[5]])
    used = decoded(runner, [PlainEntry(short[:10], slot=0)], [short[10:]])[0]
    fresh_runner = runner_from(folder, kind)
    fresh = decoded(fresh_runner, [PlainEntry(short[:10], slot=0)], [short[10:]])[0]
    assert torch.equal(used, fresh)


@kinds
@families
def test_a_rows_logits_are_the_same_alone_and_beside_a_much_longer_one(
    family: str, kind: str
) -> None:
    """Attention then reads many blocks more, all of them masked: to the last bit no difference."""
    folder = tiny_model(family, context_length=CONTEXT)
    short, long = random_ids(30, seed=5), random_ids(CONTEXT - 30, seed=6)
    alone_in = runner_from(folder, kind)
    alone = decoded(alone_in, [PlainEntry(short[:5], slot=2)], [short[5:]])[0]
    rows = [PlainEntry(short[:5], slot=2), PlainEntry(long, slot=3)]
    among_in = runner_from(folder, kind)
    among = decoded(among_in, rows, [short[5:], random_ids(25, seed=7)])[0]
    assert torch.equal(alone, among)
