"""Embeddings in a smaller form return every row with the same bits."""

from __future__ import annotations

import gc
from pathlib import Path

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from tests.kernels import library
from tests.tiny_models import tiny_model
from textmill.engine.models import embedding
from textmill.engine.models.checkpoint import Checkpoint, weight_files
from textmill.engine.models.embedding import compact, parts_of
from textmill.engine.models.errors import ModelUnusable
from textmill.engine.models.families import describe, load_weights
from textmill.engine.models.loading import _json
from textmill.engine.models.native_runtime import NativeDecoder
from textmill.engine.models.sharing import SharedParts

Float32 = NDArray[np.float32]
NUM_TOKENS, WIDTH = 9001, 64  # several parts, the last of which is shorter


def numbers(width: int = WIDTH, num_tokens: int = NUM_TOKENS) -> Float32:
    return np.random.default_rng(7).standard_normal((num_tokens, width), np.float32)


def of_blocks() -> Float32:
    kind = gguf.GGMLQuantizationType.Q8_0
    found = numbers()
    found[5] = 0  # a block without a scale
    found[6] *= 1e-30  # its scale is below the smallest float16
    read: Float32 = gguf.quants.dequantize(gguf.quants.quantize(found, kind), kind)
    return read


def of_bfloat16() -> Float32:
    found: Float32 = (numbers().view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    return found


def of_float16() -> Float32:
    return numbers().astype(np.float16).astype(np.float32)


def with_one_odd_number() -> Float32:
    found = of_blocks()
    found[-1, -1] = np.float32(0.1)
    return found


def with_a_negative_zero() -> Float32:
    found = of_blocks()
    found[NUM_TOKENS // 2, 3] = -0.0
    return found


def not_finite() -> Float32:
    found = of_blocks()
    found[3, 3:6] = np.nan, np.inf, -np.inf
    return found


CASES = {
    "blocks of int8": (of_blocks, "blocks of int8", 34 / 32),
    "bfloat16": (of_bfloat16, "bfloat16", 2),
    "float16": (of_float16, "float16", 2),
    "float32": (numbers, "float32", 4),
    "a width without blocks": (lambda: numbers(40), "float32", 4),
    "one odd number at the end": (with_one_odd_number, "float32", 4),
    "a negative zero": (with_a_negative_zero, "float32", 4),
    "numbers that are not finite": (not_finite, "float32", 4),
}


@pytest.mark.parametrize("case", CASES)
def test_the_smallest_exact_form_is_kept_and_every_row_has_the_same_bits(case: str) -> None:
    make, form, number_bytes = CASES[case]
    original = make()
    kept = compact(original)
    assert (kept.form, len(kept)) == (form, len(original))
    assert kept.num_bytes == round(original.size * number_bytes)
    tokens = np.array([0, len(original) - 1, 5, 5, 6, 4500])
    found = kept.rows(tokens)
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    assert np.array_equal(found.view(np.uint32), original[tokens].view(np.uint32))
    everything = kept.rows(np.arange(len(original)))
    assert np.array_equal(everything.view(np.uint32), original.view(np.uint32))


def test_a_change_of_the_original_does_not_change_the_kept_numbers() -> None:
    original = numbers()
    kept = compact(original)
    before = kept.rows(np.array([1]))
    original[1] = 0
    assert np.array_equal(kept.rows(np.array([1])), before)


def test_equal_embeddings_are_one_as_long_as_one_of_them_is_used() -> None:
    shared = SharedParts()
    first = shared.embedding(compact(of_blocks()))
    assert shared.embedding(compact(of_blocks())) is first
    other = of_blocks()
    other[17] = other[18]
    assert shared.embedding(compact(other)) is not first
    assert shared.embedding(compact(of_bfloat16())) is not first
    del first
    gc.collect()
    assert len(shared._embeddings) == 0


def test_equal_tokenizers_are_one() -> None:
    shared = SharedParts()
    path = tiny_model("gpt2") / "tokenizer.json"
    first = shared.tokenizer(path)
    assert shared.tokenizer(path) is first
    assert shared.tokenizer(tiny_model("llama") / "tokenizer.json") is first  # the same text


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
def test_rows_of_a_file_are_those_of_the_tensor(dtype: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"before": numbers(8, 3), "e": numbers().astype(dtype)}, path)
    checkpoint = Checkpoint([path])
    whole, stored = checkpoint["e"], checkpoint.rows("e")
    assert stored.shape == whole.shape
    assert np.array_equal(np.asarray(stored), whole)
    for rows in (slice(0, 1), slice(5, 9000), slice(8999, 20_000), slice(9001, 9002)):
        assert np.array_equal(stored[rows], whole[rows])
    with pytest.raises(ValueError, match="steps of 2"):
        _ = stored[::2]
    parts = dict(parts_of(stored))
    assert np.array_equal(np.concatenate(list(parts.values())), whole.astype(np.float32))
    assert all(start % 32 == 0 for start in parts)


def test_rows_of_a_file_that_became_shorter_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"e": numbers()}, path)
    stored = Checkpoint([path]).rows("e")
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    with pytest.raises(ModelUnusable, match="ends before its tensors do"):
        compact(stored)


@pytest.mark.parametrize("is_int8", [False, True])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_head_that_is_packed_in_parts_computes_the_same(
    family: str, is_int8: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_model(family)
    spec = describe(_json(folder / "config.json"))
    assert spec is not None

    def logits() -> Float32:
        weights = load_weights(spec, Checkpoint(weight_files(folder)))
        decoder = NativeDecoder(spec, weights, 2, library=library(), is_int8=is_int8, num_threads=2)
        return decoder.forward([5, 17, 30], [0, 1, 2], [0, 0, 0], [0, 1, 2]).copy()

    whole = logits()
    monkeypatch.setattr(embedding, "_PART_BYTES", 1)  # 32 rows in each part
    assert np.array_equal(logits(), whole)
