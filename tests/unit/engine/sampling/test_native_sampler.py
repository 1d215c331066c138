"""The kernels' sampler against PyTorch's, and against exact distributions."""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tiny_models import tiny_model
from tests.unit.engine.models.test_decoder import native_from
from textmill.core.strategies import DecodingParameters
from textmill.engine.sampling.native_sampler import KernelSampler
from textmill.engine.sampling.plain_sampler import TorchSampler
from textmill.engine.sampling.token_records import SamplingState

STRATEGIES: list[dict[str, Any]] = [
    {"strategy": "greedy"},
    {"strategy": "greedy", "repetition_penalty": 1.4},
    {"strategy": "sampling", "temperature": 0.7},
    {"strategy": "sampling", "temperature": 2.0, "repetition_penalty": 1.2},
    {"strategy": "sampling", "temperature": 0.0},
    {"strategy": "top_k", "top_k": 1},
    {"strategy": "top_k", "top_k": 10, "temperature": 0.5},
    {"strategy": "top_k", "top_k": 300},
    {"strategy": "top_p", "top_p": 0.9},
    {"strategy": "top_p", "top_p": 1e-6},
    {"strategy": "top_p", "top_p": 0.999, "temperature": 1.7},
    {"strategy": "min_p", "min_p": 0.05},
    {"strategy": "min_p", "min_p": 1.0},
    {"strategy": "typical", "typical_p": 0.9},
    {"strategy": "typical", "typical_p": 0.2, "temperature": 1.5},
]


@cache
def vocabulary_and_sampler(num_threads: int = 1) -> tuple[int, KernelSampler]:
    decoder = native_from(tiny_model("llama"), is_int8=True, num_threads=num_threads)
    return decoder.spec.vocabulary_size, KernelSampler(decoder.sample)


def state(seed: int = 0, position: int = 0, **parameters: Any) -> SamplingState:
    chosen = DecodingParameters(max_new_tokens=9, seed=seed, **parameters)
    return SamplingState(chosen, [3, 5, 5, 7], position)


def random_logits(num_rows: int, seed: int = 0) -> Tensor:
    size, _ = vocabulary_and_sampler()
    return torch.randn(num_rows, size, generator=torch.Generator().manual_seed(seed)) * 3


def text_of(token: int) -> str:
    return str(token)


def tokens_of(logits: Tensor, rows: list[SamplingState], num_threads: int = 1) -> list[int | None]:
    sampler = vocabulary_and_sampler(num_threads)[1]
    return [sampled.token for sampled in sampler.sample(logits.numpy(), rows, text_of)]


@pytest.mark.parametrize("options", STRATEGIES)
def test_the_tokens_are_those_that_pytorch_samples(options: dict[str, Any]) -> None:
    """Both draw by the same number; sums that are rounded otherwise hardly ever move a token."""
    logits = random_logits(500)
    rows = [state(seed, seed % 7, **options) for seed in range(500)]
    ours = tokens_of(logits, rows)
    theirs = [sampled.token for sampled in TorchSampler().sample(logits, rows, text_of)]
    assert sum(a != b for a, b in zip(ours, theirs, strict=True)) <= 1


@pytest.mark.parametrize("options", STRATEGIES)
def test_traces_are_those_of_pytorch(options: dict[str, Any]) -> None:
    logits = random_logits(40, seed=1)
    logits[:, 17] = logits[:, 90]  # equals
    rows = [state(seed, **options, trace=True) for seed in range(40)]
    ours = vocabulary_and_sampler()[1].sample(logits.numpy(), rows, text_of)
    theirs = TorchSampler().sample(logits, rows, text_of)
    for own, other in zip(ours, theirs, strict=True):
        assert own.trace is not None
        assert other.trace is not None
        if own.token != other.token:
            continue
        assert (own.trace.id, own.trace.text, own.trace.rank) == (
            other.trace.id,
            other.trace.text,
            other.trace.rank,
        )
        for name in ("logprob", "probability", "entropy"):
            expected = pytest.approx(getattr(other.trace, name), abs=2e-5)
            assert getattr(own.trace, name) == expected, name
        assert len(own.trace.alternatives) == len(other.trace.alternatives) == 20
        for a, b in zip(own.trace.alternatives, other.trace.alternatives, strict=True):
            assert a.logprob == pytest.approx(b.logprob, abs=2e-5)
            if a.id == b.id:
                assert a.probability == pytest.approx(b.probability, abs=2e-5)


def test_a_row_is_sampled_alike_alone_and_among_others_by_any_number_of_threads() -> None:
    logits = random_logits(64, seed=2)
    rows = [state(seed, 3, **STRATEGIES[seed % len(STRATEGIES)]) for seed in range(64)]
    alone = [tokens_of(logits[i : i + 1].clone(), [rows[i]])[0] for i in range(64)]
    assert tokens_of(logits, rows) == alone
    assert tokens_of(logits, rows, num_threads=3) == alone


@pytest.mark.parametrize(
    "options",
    [
        {"strategy": "top_k", "top_k": 400},
        {"strategy": "top_k", "top_k": 10**6},
        {"strategy": "top_p", "top_p": 1.0},
        {"strategy": "min_p", "min_p": 0.0},
        {"strategy": "typical", "typical_p": 1.0},
    ],
)
def test_a_filter_that_leaves_nothing_out_is_sampling(options: dict[str, Any]) -> None:
    logits = random_logits(200, seed=3)
    sampled = [state(seed, strategy="sampling", temperature=0.9) for seed in range(200)]
    cut = [state(seed, **options, temperature=0.9) for seed in range(200)]
    assert tokens_of(logits, cut) == tokens_of(logits, sampled)


def test_rows_without_a_largest_number_have_no_token_and_disturb_no_other() -> None:
    logits = random_logits(5, seed=4)
    rows = [state(seed, strategy="sampling") for seed in range(5)]
    healthy = tokens_of(logits, rows)
    logits[1, 50] = torch.nan
    logits[2] = -torch.inf
    logits[3, 9] = torch.inf
    found = tokens_of(logits, rows)
    assert found == [healthy[0], None, None, None, healthy[4]]


def test_what_is_impossible_is_never_drawn() -> None:
    logits = torch.full_like(random_logits(1), -torch.inf)
    logits[0, [8, 300]] = 1.0
    for options in STRATEGIES:
        drawn = {tokens_of(logits, [state(s, **options)])[0] for s in range(40)}
        assert drawn <= {8, 300}
        if options.get("strategy") == "sampling" and options["temperature"] > 0:
            assert drawn == {8, 300}


def test_of_equals_on_a_filters_bound_the_lower_ids_are_kept() -> None:
    logits = torch.zeros_like(random_logits(1))
    top_k = {tokens_of(logits, [state(s, strategy="top_k", top_k=3)])[0] for s in range(60)}
    assert top_k == {0, 1, 2}
    share = 4.5 / logits.shape[-1]
    top_p = {tokens_of(logits, [state(s, strategy="top_p", top_p=share)])[0] for s in range(80)}
    assert top_p == {0, 1, 2, 3, 4}


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"strategy": "sampling", "temperature": 1.0}, [0, 1, 2, 3, 4]),
        ({"strategy": "top_k", "top_k": 3}, [0, 1, 2]),
        ({"strategy": "top_p", "top_p": 0.7}, [0, 1]),
        ({"strategy": "min_p", "min_p": 0.2}, [0, 1, 2]),
        ({"strategy": "typical", "typical_p": 0.5}, [1, 0]),
    ],
)
def test_frequencies_are_the_strategys_probabilities(
    options: dict[str, Any], kept: list[int]
) -> None:
    """Chi-square over 20,000 seeds; a sound kernel fails one choice of seeds in a million."""
    chances = torch.tensor([0.5, 0.25, 0.15, 0.06, 0.04], dtype=torch.float64)
    logits = torch.full_like(random_logits(1), -torch.inf)
    logits[0, :5] = chances.log().float()
    num_rows, rounds = 500, 40
    batch = logits.expand(num_rows, -1).contiguous()
    counts: Counter[int | None] = Counter()
    for step in range(rounds):
        rows = [state(step * num_rows + i, i % 5, **options) for i in range(num_rows)]
        counts.update(tokens_of(batch, rows))
    wanted = chances[kept] / chances[kept].sum() * num_rows * rounds
    assert set(counts) == set(kept)
    statistic = sum(
        (counts[token] - float(mean)) ** 2 / float(mean)
        for token, mean in zip(kept, wanted, strict=True)
    )
    # Quantiles of chi-square at 1 - 1e-6 for 1 to 4 degrees of freedom.
    assert statistic < {1: 23.93, 2: 27.63, 3: 30.66, 4: 33.38}[len(kept) - 1]


def test_the_trace_of_a_given_token_is_that_of_pytorch() -> None:
    logits = random_logits(30, seed=4)
    logits[:, 17] = logits[:, 90]  # equals
    tokens = [17, 90, *logits[2:10].argmax(-1).tolist(), *range(20)]
    ours = vocabulary_and_sampler()[1].trace(logits.numpy(), tokens, text_of)
    theirs = TorchSampler().trace(logits, tokens, text_of)
    for own, other in zip(ours, theirs, strict=True):
        assert (own.id, own.text, own.rank) == (other.id, other.text, other.rank)
        assert own.probability == other.probability == 1.0
        assert own.logprob == pytest.approx(other.logprob, abs=2e-5)
        assert own.entropy == pytest.approx(other.entropy, abs=2e-5)
        found = {a.id: a.probability for a in own.alternatives}
        assert sum(found.values()) == (1.0 if own.id in found else 0.0)


def test_rows_that_are_not_finite_are_found() -> None:
    sampler = vocabulary_and_sampler()[1]
    logits = random_logits(2).numpy()
    assert sampler.are_finite(logits)
    for value in (float("nan"), float("inf")):
        spoiled = logits.copy()
        spoiled[1, 5] = value
        assert not sampler.are_finite(spoiled)
    logits[0, 5] = -float("inf")
    assert sampler.are_finite(logits)
