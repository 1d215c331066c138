"""The kernels' int8 against the same arithmetic in PyTorch, and the kernels' build."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.tiny_models import NATIVE_FAMILIES, tiny_model
from tests.unit.engine.models.test_decoder import (
    TensorRunner,
    decoder_from,
    native_from,
    random_ids,
    runner_from,
)
from textmill.engine.models import decoder as plain
from textmill.engine.models import placement
from textmill.engine.models.embedding import compact
from textmill.engine.models.native_runtime import MAX_STEP_TOKENS
from textmill.engine.models.placement import place
from textmill.engine.models.runner import KernelRunner

HADAMARD_SIZE = 64
families = pytest.mark.parametrize("family", NATIVE_FAMILIES)


def hadamard(size: int) -> Tensor:
    matrix = torch.ones(1, 1)
    while matrix.shape[0] < size:
        matrix = torch.cat((torch.cat((matrix, matrix), 1), torch.cat((matrix, -matrix), 1)))
    return torch.div(matrix, size**0.5)


def transformed(rows: Tensor) -> Tensor:
    missing = -rows.shape[-1] % HADAMARD_SIZE
    rows = torch.nn.functional.pad(rows, (0, missing))
    blocks = rows.unflatten(-1, (-1, HADAMARD_SIZE))
    return torch.matmul(blocks, hadamard(HADAMARD_SIZE)).flatten(-2)


def rounded(rows: Tensor, scale: Tensor) -> Tensor:
    return torch.where(scale > 0, (rows / scale).round() * scale, 0.0)


def activation_scale(rows: Tensor) -> Tensor:
    return rows.abs().amax(-1, keepdim=True) / 127


def weight_scale(weights: Tensor) -> Tensor:
    """Also no four weights of one sign at inputs n, n + 1, n + 4, n + 5 may add up to over 128."""
    eights = weights.unflatten(-1, (-1, 2, 2, 2))  # (outputs, inputs / 8, fours, pairs, 2)
    sums = torch.stack((eights.clamp(min=0), (-eights).clamp(min=0))).sum((-1, -3))
    largest_sum = sums.amax((0, -1, -2)).unsqueeze(-1)
    return torch.maximum(activation_scale(weights), largest_sum / 126)


def rounded_product(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    rows, weight = transformed(rows), transformed(weight)
    product = rounded(rows, activation_scale(rows)) @ rounded(weight, weight_scale(weight)).T
    return product if bias is None else product + bias


@families
def test_int8_is_the_arithmetic_that_the_docs_describe(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a float32 cache; the remaining differences are numbers rounded the other way."""
    folder, ids = tiny_model(family), random_ids(60, seed=1)
    decoder = native_from(folder, is_int8=True, is_cache_int8=False)
    ours = TensorRunner(decoder, prefix_bytes=0).score(ids)
    exact = runner_from(folder, "torch").score(ids)
    monkeypatch.setattr(plain, "linear", rounded_product)
    zero = torch.tensor([0])
    wanted = decoder_from(folder).forward_everywhere(torch.tensor([ids]), zero, zero)[0]
    from_wanted, from_exact = (ours - wanted).norm(), (ours - exact).norm()
    assert from_wanted < 0.6 * from_exact
    assert from_exact < 0.1 * exact.norm()


@families
def test_a_cache_in_int8_changes_logits_by_no_more_than_rounding(family: str) -> None:
    folder, ids = tiny_model(family), random_ids(120, seed=2)
    exact, rounded = (
        TensorRunner(native_from(folder, is_int8=False, is_cache_int8=kind), prefix_bytes=0).score(
            ids
        )
        for kind in (False, True)
    )
    assert 1e-5 * exact.norm() < (rounded - exact).norm() < 0.02 * exact.norm()


def test_the_hadamard_transform_is_its_own_inverse() -> None:
    rows, others = torch.randn(3, 128), torch.randn(5, 128)
    torch.testing.assert_close(transformed(rows) @ transformed(others).T, rows @ others.T)


@pytest.mark.parametrize("kind", ["kernels", "int8"])
def test_a_sequence_may_be_longer_than_a_step(kind: str) -> None:
    folder = tiny_model("llama", context_length=MAX_STEP_TOKENS + 200)
    ids = random_ids(MAX_STEP_TOKENS + 150, seed=1)
    whole = runner_from(folder, kind).score(ids)
    runner = runner_from(folder, kind)
    assert isinstance(runner, KernelRunner)
    cut_elsewhere = runner._decoder
    parts = []
    for start, end in ((0, 100), (100, 101), (101, 400), (400, len(ids))):
        places = range(start, end)
        parts.append(
            cut_elsewhere.forward(ids[start:end], places, [1] * len(places), range(len(places)))
        )
    assert torch.equal(torch.cat([torch.as_tensor(part) for part in parts]), whole)


@families
@pytest.mark.parametrize("kind", ["kernels", "int8"])
def test_numbers_that_are_not_finite_affect_only_their_own_token(family: str, kind: str) -> None:
    runner = runner_from(tiny_model(family), kind)
    healthy = runner.score([5, 6, 7], slot=1)
    decoder = native_from(tiny_model(family), is_int8=kind == "int8")
    embedding = decoder._embedding.rows(np.arange(len(decoder._embedding)))
    embedding[9] = np.nan
    decoder._embedding = compact(embedding)
    logits = decoder.forward([5, 9, 6, 7], [0, 0, 1, 2], [1, 0, 1, 1], [0, 1, 2, 3])
    assert logits[1].isnan().all()
    assert torch.equal(logits[[0, 2, 3]], healthy)


def test_float32_is_used_without_a_compiler(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    said: list[str] = []
    monkeypatch.setenv("CXX", "no-such-compiler")
    placed = place("int8", tmp_path, said.append)
    assert (placed.dtype, placed.device, placed.library) == ("float32", "cpu", None)
    assert "no-such-compiler" in placed.reason
    assert "no-such-compiler" in said[0]
    assert "float32 is used" in said[0]


def test_kernels_may_be_switched_off() -> None:
    said: list[str] = []
    placed = place("auto", None, said.append)
    assert placed.library is None
    assert "TEXTMILL_KERNELS" in placed.reason
    assert said == []
    assert place("int8", None, said.append).dtype == "float32"
    assert "switched off" in said[0]


@pytest.mark.parametrize(
    ("asked", "chosen"),
    [("auto", "int8"), ("int8", "int8"), ("float32", "float32"), ("bfloat16", "bfloat16")],
)
def test_auto_is_the_fastest_faithful_precision(
    asked: str, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement, "kernels", lambda *_: object())
    assert place(asked, Path("unused"), lambda _: None).dtype == chosen
