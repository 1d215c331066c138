"""Each filter against transformers' warper, at the limits of its parameter, and with ties."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    MinPLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from tests.unit.engine.sampling.draw_weights import draw_weights
from textmill.core.strategies import DecodingParameters

NEUTRAL = DecodingParameters("sampling", max_new_tokens=1, seed=0)
SIZES = (2, 3, 17, 63, 64, 65, 400, 1023, 1024, 1025, 3000)
SPREADS = (0.05, 1.0, 4.0, 30.0)
WARPERS: dict[str, type[Any]] = {
    "top_k": TopKLogitsWarper,
    "top_p": TopPLogitsWarper,
    "min_p": MinPLogitsWarper,
    "typical": TypicalLogitsWarper,
}
NAMES = {"top_k": "top_k", "top_p": "top_p", "min_p": "min_p", "typical": "typical_p"}
VALUES: dict[str, list[float]] = {
    "top_k": [2, 3, 10, 64, 65, 1024],
    "top_p": [1e-6, 0.1, 0.5, 0.9, 0.99],
    "min_p": [1e-6, 0.05, 0.3, 0.9],
    "typical": [1e-6, 0.2, 0.5, 0.95],
}
# The distance of a running sum from the bound within which float32 and float64 may differ.
NEAR = 1e-5


def parameters(strategy: Any, value: float, temperature: float = 1.0) -> DecodingParameters:
    values: dict[str, Any] = {NAMES[strategy]: value}
    return replace(NEUTRAL, strategy=strategy, temperature=temperature, **values)


def kept(scores: Tensor, rows: list[DecodingParameters]) -> list[list[int]]:
    weights = draw_weights(scores, rows)
    return [row.nonzero()[:, 0].tolist() for row in weights]


def random_scores(size: int, spread: float, num_rows: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(size * 1000 + int(spread * 100))
    return torch.randn(num_rows, size, generator=generator) * spread


def is_near_the_bound(scores: Tensor, strategy: str, value: float) -> bool:
    """Whether rounding alone may decide about a token: then the warper may be off by one."""
    probabilities = scores.double().softmax(-1)
    order = probabilities
    if strategy == "top_k":
        return False
    if strategy == "min_p":
        return bool(((probabilities / probabilities.max() / value - 1).abs() < NEAR).any())
    if strategy == "typical":
        logs = probabilities.log()
        order = -(logs + (probabilities * logs).sum().neg()).abs()
    ranked = order.sort(descending=True)
    sums = probabilities[ranked.indices].cumsum(-1)
    at = int((sums < value).sum())
    last = ranked.values[max(at - 1, 0) : at + 2]
    has_twin = bool((last.diff().abs() < NEAR * last.abs().max()).any())
    return has_twin or bool(((sums - value).abs() < NEAR).any())


@pytest.mark.parametrize("strategy", list(VALUES))
def test_a_filter_keeps_what_transformers_warper_keeps(strategy: str) -> None:
    num_compared = 0
    for size in SIZES:
        for spread in SPREADS:
            scores = random_scores(size, spread)
            for value in VALUES[strategy]:
                warper: LogitsProcessor = WARPERS[strategy](value)
                warped = warper(torch.zeros(len(scores), 1, dtype=torch.int64), scores.clone())
                ours = kept(scores, [parameters(strategy, value)] * len(scores))
                for row, own, theirs in zip(scores, ours, warped, strict=True):
                    wanted = theirs.isfinite() & (row.softmax(-1) > 0)  # underflow is not drawn
                    if not is_near_the_bound(row, strategy, value):
                        assert own == wanted.nonzero()[:, 0].tolist(), (size, spread, value)
                        num_compared += 1
    assert num_compared > len(SIZES) * len(SPREADS) * len(VALUES[strategy])


@pytest.mark.parametrize("strategy", list(VALUES))
def test_a_batch_of_different_values_keeps_what_each_row_keeps_alone(strategy: str) -> None:
    rows = [parameters(strategy, value, 0.5 + i) for i, value in enumerate(VALUES[strategy])]
    rows += [NEUTRAL, replace(NEUTRAL, strategy="top_k", top_k=7)]
    for size in SIZES:
        scores = random_scores(size, 2.0, len(rows))
        together = draw_weights(scores, rows)
        for at, row in enumerate(rows):
            assert torch.equal(together[at], draw_weights(scores[at : at + 1], [row])[0])


@pytest.mark.parametrize("k", [1, 2, 3, 5])
@pytest.mark.parametrize("size", [5, 64, 2000])
def test_top_k_never_keeps_more_and_of_equals_the_lower_ids(k: int, size: int) -> None:
    rows = [parameters("top_k", k)]
    assert kept(torch.zeros(1, size), rows) == [list(range(k))]
    scores = torch.zeros(1, size)
    scores[0, size - 1] = 1.0
    assert kept(scores, rows) == [[*range(k - 1), size - 1]]


@pytest.mark.parametrize("strategy", ["top_p", "typical"])
@pytest.mark.parametrize("size", [8, 64, 128, 2048])
def test_a_nucleus_of_equals_is_the_fewest_of_the_lower_ids(strategy: str, size: int) -> None:
    for share in (0.25, 0.5, 0.75):
        rows = [parameters(strategy, share)]
        assert kept(torch.zeros(1, size), rows) == [list(range(int(share * size)))]


@pytest.mark.parametrize("guess", [64, 1024])
@pytest.mark.parametrize("beyond", [-1, 0, 1])
def test_a_nucleus_of_about_a_guess_of_tokens_is_exact(guess: int, beyond: int) -> None:
    """The sum of a nucleus's first tokens may end just within, at, or just past a guess."""
    wanted = guess + beyond
    scores = -torch.arange(4096.0)[None] * 1e-3
    sums = scores[0].double().softmax(-1).cumsum(-1)
    middle = float((sums[wanted - 2] + sums[wanted - 1]) / 2)
    assert kept(scores, [parameters("top_p", middle)]) == [list(range(wanted))]


@pytest.mark.parametrize("strategy", list(VALUES))
@pytest.mark.parametrize("size", [2, 64, 65, 2000])
def test_the_narrowest_filter_keeps_a_token_and_the_widest_all(strategy: str, size: int) -> None:
    narrowest = {"top_k": 1, "top_p": 5e-324, "min_p": 1.0, "typical": 5e-324}[strategy]
    widest = {"top_k": size, "top_p": 1.0, "min_p": 0.0, "typical": 1.0}[strategy]
    scores = random_scores(size, 2.0)
    narrow = kept(scores, [parameters(strategy, narrowest)] * 3)
    assert [len(own) for own in narrow] == [1, 1, 1]
    if strategy != "typical":  # the most typical token need not be the likeliest
        assert [own[0] for own in narrow] == scores.argmax(-1).tolist()
    wide = draw_weights(scores, [parameters(strategy, widest)] * 3)
    assert torch.equal(wide, draw_weights(scores, [NEUTRAL] * 3))
    if strategy == "top_k":
        beyond = draw_weights(scores, [parameters("top_k", size + 1)] * 3)
        assert torch.equal(beyond, wide)


@pytest.mark.parametrize("strategy", list(VALUES))
def test_something_is_kept_where_almost_nothing_is_possible(strategy: str) -> None:
    """One token with all the mass, or infinite scores for all others."""
    for low in (-torch.inf, -1e4, -torch.finfo(torch.float32).max):
        scores = torch.full((1, 100), low)
        scores[0, 42] = 0.0
        for value in VALUES[strategy]:
            assert kept(scores, [parameters(strategy, value)]) == [[42]]


def test_a_share_that_rounding_keeps_out_of_reach_keeps_all() -> None:
    scores = random_scores(3000, 1.0)
    almost_all = parameters("top_p", 1 - 2**-53)
    assert kept(scores, [almost_all] * 3) == [list(range(3000))] * 3


@pytest.mark.parametrize("strategy", ["top_p", "typical"])
@pytest.mark.parametrize("beyond", [-1e-9, 0.0, 1e-9])
def test_a_share_that_ends_with_a_bin_is_right_to_a_token(strategy: str, beyond: float) -> None:
    """A thousand equals, two thousand less likely ones: float32 sums are not exact enough.

    The likely ones are the more typical, too: the entropy is nearer to their surprise.
    """
    scores = torch.zeros(1, 3000)
    scores[0, ::3] = 1.0
    mass = 1000 * math.e / (1000 * math.e + 2000)
    likely = list(range(0, 3000, 3))
    own = kept(scores, [parameters(strategy, mass + beyond)])[0]
    assert abs(len(own) - len(likely)) <= 1
    assert set(own[:-1]) <= set(likely) or set(likely) <= set(own)


@pytest.mark.parametrize("strategy", ["top_p", "typical"])
@pytest.mark.parametrize("spread", [0.0, 1e-6, 1e-3])
def test_a_nucleus_of_near_equals_is_right_to_a_token(strategy: str, spread: float) -> None:
    """Thousands of tokens in one bin."""
    scores = torch.linspace(0, spread, 3001)[None]
    own = kept(scores, [parameters(strategy, 0.5)])[0]
    assert abs(len(own) - 1500.5) < 3
