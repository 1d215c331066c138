"""Strategies: exact identities, independence of neighbours, and the right distributions."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import FloatTensor, LongTensor, Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from tests.unit.engine.sampling.draw_weights import draw_weights
from textmill.core.strategies import DecodingParameters
from textmill.engine.sampling.token_records import SamplingState
from textmill.engine.sampling.torch_sampler import finite_rows, sample_tokens

SIZE = 1500  # larger than the largest guess of a nucleus


def logits_of(seed: int, size: int = SIZE, spread: float = 3.0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)) * spread


def state(strategy: Any, *, seed: int = 1, position: int = 0, **options: Any) -> SamplingState:
    parameters = DecodingParameters(strategy=strategy, max_new_tokens=1, seed=seed, **options)
    return SamplingState(parameters, [1, 2, 3], position)


def tokens(logits: Tensor, rows: list[SamplingState]) -> list[int]:
    return [token.id for token in sample_tokens(logits, rows)]


LOGITS_FILTERS: list[tuple[str, dict[str, Any]]] = [
    ("sampling", {"temperature": 0.7}),
    ("top_k", {"top_k": 10, "temperature": 0.5}),
    ("top_k", {"top_k": 300}),
    ("top_p", {"top_p": 0.9}),
    ("top_p", {"top_p": 0.1}),
    ("top_p", {"top_p": 0.999, "temperature": 2.0}),
    ("min_p", {"min_p": 0.05}),
    ("typical", {"typical_p": 0.95}),
    ("typical", {"typical_p": 0.2, "temperature": 1.5}),
    ("sampling", {"repetition_penalty": 1.3}),
    ("top_p", {"top_p": 0.8, "repetition_penalty": 2.0, "temperature": 0.9}),
]
each_filter = pytest.mark.parametrize(("strategy", "options"), LOGITS_FILTERS)


# ---- identities -------------------------------------------------------------------------------


@pytest.mark.parametrize("spread", [0.01, 3.0, 100.0])
@pytest.mark.parametrize(
    ("strategy", "options"),
    [
        ("top_k", {"top_k": 1, "temperature": 1.3}),
        ("sampling", {"temperature": 0.0}),
        ("top_k", {"top_k": 40, "temperature": 0.0}),
        ("top_p", {"top_p": 0.5, "temperature": 0.0}),
        ("min_p", {"min_p": 0.01, "temperature": 0.0}),
        ("typical", {"typical_p": 0.5, "temperature": 0.0}),
    ],
)
def test_top_k_of_one_and_temperature_zero_equal_greedy(
    strategy: str, options: dict[str, Any], spread: float
) -> None:
    for seed in range(40):
        logits = logits_of(seed, spread=spread)
        if seed % 4 == 0:  # and among equals
            logits = logits.round()
        for penalty in (1.0, 1.5):
            greedy = state("greedy", repetition_penalty=penalty)
            other = state(strategy, seed=seed, repetition_penalty=penalty, **options)
            first, second = tokens(torch.stack([logits, logits]), [greedy, other])
            assert first == second
            if penalty == 1.0:
                assert first == int((logits == logits.max()).nonzero()[0])  # the lowest id


@pytest.mark.parametrize("temperature", [0.2, 0.7, 1.0, 2.0])
@pytest.mark.parametrize(
    ("strategy", "options"),
    [
        ("top_k", {"top_k": SIZE}),
        ("top_p", {"top_p": 1.0}),
        ("min_p", {"min_p": 0.0}),
        ("typical", {"typical_p": 1.0}),
    ],
)
def test_a_filter_that_cuts_nothing_equals_sampling(
    strategy: str, options: dict[str, Any], temperature: float
) -> None:
    logits = logits_of(1)
    for seed in range(100):
        plain = state("sampling", seed=seed, position=seed % 7, temperature=temperature)
        same = state(strategy, seed=seed, position=seed % 7, temperature=temperature, **options)
        first, second = tokens(torch.stack([logits, logits]), [plain, same])
        assert first == second


@each_filter
def test_a_rows_token_and_weights_do_not_depend_on_its_neighbours(
    strategy: str, options: dict[str, Any]
) -> None:
    own = logits_of(11)
    row = state(strategy, seed=3, position=5, **options)
    alone = sample_tokens(own[None], [row])[0].id
    alone_weights = draw_weights(own[None], [row.parameters])[0]
    others = [state(name, seed=i, **other) for i, (name, other) in enumerate(LOGITS_FILTERS)]
    others += [state("greedy"), state(strategy, seed=9, **options)]
    for place in range(len(others) + 1):
        rows = [*others[:place], row, *others[place:]]
        logits = torch.stack([own if r is row else logits_of(50 + i) for i, r in enumerate(rows)])
        assert tokens(logits, rows)[place] == alone
        drawable = [i for i, r in enumerate(rows) if r.parameters.strategy != "greedy"]
        weights = draw_weights(logits[drawable], [rows[i].parameters for i in drawable])
        assert torch.equal(weights[drawable.index(place)], alone_weights)


@pytest.mark.parametrize("num_threads", [1, 2, 3])
@pytest.mark.parametrize("size", [700, 3001])
def test_a_row_is_the_same_to_the_last_bit_in_batches_of_every_size(
    size: int, num_threads: int
) -> None:
    """Torch divides rows among threads, and rounds some functions differently at a share's end."""
    mix = [("greedy", {}), *LOGITS_FILTERS]
    rows = [
        state(name, seed=i, trace=True, **options)
        for i, (name, options) in enumerate(mix * (64 // len(mix) + 1))
    ][:64]
    logits = torch.stack([logits_of(i, size) for i in range(64)])
    logits[5], logits[6] = logits[5].round(), 0.0
    alone = [sample_tokens(logits[i : i + 1], [row])[0] for i, row in enumerate(rows)]
    torch.set_num_threads(num_threads)
    for num_rows in range(1, 65):
        members = torch.randperm(64, generator=torch.Generator().manual_seed(num_rows))
        chosen = members[:num_rows].tolist()
        together = sample_tokens(logits[chosen], [rows[i] for i in chosen])
        assert together == [alone[i] for i in chosen]


@each_filter
def test_the_same_seed_and_position_give_the_same_token(
    strategy: str, options: dict[str, Any]
) -> None:
    logits = logits_of(4)[None]
    drawn = [tokens(logits, [state(strategy, seed=8, position=p, **options)])[0] for p in range(30)]
    again = [tokens(logits, [state(strategy, seed=8, position=p, **options)])[0] for p in range(30)]
    assert drawn == again
    if not (strategy == "top_p" and options["top_p"] == 0.1):
        assert len(set(drawn)) > 1


@pytest.mark.parametrize("strategy", ["sampling", "top_k", "top_p", "min_p", "typical"])
@pytest.mark.parametrize("temperature", [1e-8, 1e-40, 1e-320])
def test_a_temperature_near_zero_takes_the_likeliest(strategy: str, temperature: float) -> None:
    values: dict[str, dict[str, Any]] = {
        "top_k": {"top_k": 5},
        "top_p": {"top_p": 0.9},
        "min_p": {"min_p": 0.1},
        "typical": {"typical_p": 0.9},
    }
    options = values.get(strategy, {})
    logits = logits_of(2, spread=50.0)
    row = state(strategy, temperature=temperature, **options)
    assert tokens(logits[None], [row]) == [int(logits.argmax())]


def test_logits_stay_as_they_were() -> None:
    logits = torch.stack([logits_of(i) for i in range(len(LOGITS_FILTERS))])
    before = logits.clone()
    sample_tokens(logits, [state(name, **options) for name, options in LOGITS_FILTERS])
    assert torch.equal(logits, before)


def test_what_is_impossible_is_never_drawn() -> None:
    logits = torch.full((SIZE,), -torch.inf)
    logits[[3, 700]] = torch.tensor([1.0, 1.0])
    for strategy, options in LOGITS_FILTERS:
        for seed in range(20):
            assert tokens(logits[None], [state(strategy, seed=seed, **options)])[0] in (3, 700)


def test_a_row_of_nan_is_told_from_a_sound_one() -> None:
    logits = torch.zeros(4, 10)
    logits[1, 3] = torch.nan
    logits[2, :] = -torch.inf
    logits[3, :9] = -torch.inf
    assert finite_rows(logits) == [True, False, False, True]


def test_the_number_in_front_of_the_draw_never_leaves_the_kept_tokens() -> None:
    """A share that rounds up to the whole must give the last token with a weight."""
    logits = torch.full((SIZE,), -torch.inf)
    logits[:5] = 0.0
    drawn = {tokens(logits[None], [state("top_k", seed=seed, top_k=3)])[0] for seed in range(200)}
    assert drawn == {0, 1, 2}


# ---- reference: transformers' processors ------------------------------------------------------


def penalised(logits: Tensor, penalty: float) -> Tensor:
    scores = logits.clone()
    seen = scores[[1, 2, 3]]
    scores[[1, 2, 3]] = torch.where(seen < 0, seen * penalty, seen / penalty)
    return scores


def reference_weights(logits: Tensor, parameters: DecodingParameters) -> Tensor:
    """Probabilities after transformers' own processors, in their order in ``generate``."""
    processors = LogitsProcessorList()
    if parameters.repetition_penalty != 1.0:
        processors.append(RepetitionPenaltyLogitsProcessor(parameters.repetition_penalty))
    if parameters.temperature != 1.0:
        processors.append(TemperatureLogitsWarper(parameters.temperature))
    if parameters.top_k:
        processors.append(TopKLogitsWarper(parameters.top_k))
    if parameters.top_p < 1.0:
        processors.append(TopPLogitsWarper(parameters.top_p))
    if parameters.min_p > 0.0:
        processors.append(MinPLogitsWarper(parameters.min_p))
    if parameters.typical_p < 1.0:
        processors.append(TypicalLogitsWarper(parameters.typical_p))
    ids = cast("LongTensor", torch.tensor([[1, 2, 3]]))
    scores = cast("FloatTensor", logits[None].clone())
    return processors(ids, scores).softmax(-1)[0]


@each_filter
def test_weights_equal_those_of_transformers(strategy: str, options: dict[str, Any]) -> None:
    for seed in range(20):
        logits = logits_of(seed)
        row = state(strategy, **options).parameters
        weights = draw_weights(penalised(logits, row.repetition_penalty)[None], [row])[0]
        ours = weights / weights.sum()
        wanted = reference_weights(logits, row)
        assert torch.equal(ours > 0, wanted > 0)
        torch.testing.assert_close(ours, wanted, atol=1e-6, rtol=1e-4)


def test_equals_at_the_bound_are_kept_by_the_lower_id() -> None:
    logits = torch.zeros(1, SIZE)
    logits[0, [5, 9, 700, 1200]] = 1.0
    kept = draw_weights(logits, [state("top_k", top_k=3).parameters])[0].nonzero()[:, 0]
    assert kept.tolist() == [5, 9, 700]
    kept = draw_weights(logits, [state("top_k", top_k=6).parameters])[0].nonzero()[:, 0]
    assert kept.tolist() == [0, 1, 5, 9, 700, 1200]


# ---- reference: the definitions, in float64 ---------------------------------------------------


def exact_probabilities(logits: Tensor, parameters: DecodingParameters) -> Any:
    """Each token's probability by the strategy's definition; of equals, lower ids are kept."""
    scores = logits.double().numpy()
    size = len(scores)
    if parameters.strategy == "greedy" or parameters.temperature == 0.0:
        return np.eye(size)[scores.argmax()]
    weights = np.exp((scores - scores.max()) / parameters.temperature)
    chances = weights / weights.sum()
    if parameters.strategy == "top_k":
        kept = np.argsort(-scores, kind="stable")[: parameters.top_k]
    elif parameters.strategy == "top_p":
        kept = smallest_set(-chances, chances, parameters.top_p)
    elif parameters.strategy == "typical":
        logs = np.log(chances, where=chances > 0, out=np.full(size, -np.inf))
        entropy = -(chances[chances > 0] * logs[chances > 0]).sum()
        kept = smallest_set(np.abs(-logs - entropy), chances, parameters.typical_p)
    else:
        kept = np.flatnonzero(chances >= parameters.min_p * chances.max())
    after = np.zeros(size)
    after[kept] = chances[kept]
    return after / after.sum()


def smallest_set(order: Any, chances: Any, share: float) -> Any:
    # Sums of equal values reach a round share up to rounding, and surprises of equal values differ
    # by less than this.
    ranked = np.argsort(np.round(order, 12), kind="stable")
    return ranked[: int((chances[ranked].cumsum() < share - 1e-12).sum()) + 1]


def logits_with(kind: str) -> Tensor:
    logits = logits_of(21, size=60, spread=1.5)
    if kind == "ties":  # a handful of values, so that every cut goes through equals
        return logits.round()
    if kind == "equals":
        return torch.zeros(64)
    if kind == "impossible":
        logits[::3] = -torch.inf
    elif kind == "certain":
        logits[:] = -torch.inf
        logits[17] = -3.0
    elif kind == "nearly certain":
        logits[17] = 40.0
    return logits


EDGES: list[tuple[str, dict[str, Any]]] = [
    ("greedy", {}),
    ("sampling", {}),
    *[("top_k", {"top_k": k}) for k in (1, 2, 7, 60, 64, 65)],
    *[("top_p", {"top_p": p}) for p in (1e-6, 0.3, 0.45, 0.9, 1 - 1e-9, 1.0)],
    *[("min_p", {"min_p": p}) for p in (0.0, 1e-6, 0.1, 1.0)],
    *[("typical", {"typical_p": p}) for p in (1e-6, 0.2, 0.9, 1.0)],
]


@pytest.mark.parametrize("temperature", [0.0, 0.05, 1.0, 2.0])
@pytest.mark.parametrize(
    "kind", ["usual", "ties", "equals", "impossible", "certain", "nearly certain"]
)
@pytest.mark.parametrize(("strategy", "options"), EDGES)
def test_draws_follow_the_definition_at_its_edges(
    strategy: str, options: dict[str, Any], kind: str, temperature: float
) -> None:
    """For fresh seeds each had a false alarm of 1e-6, all 528 together one of 6e-4."""
    logits = logits_with(kind)
    row = state(strategy, temperature=temperature, **options).parameters
    wanted = exact_probabilities(logits, row)
    num_draws = 1500 if (wanted > 0).sum() > 1 else 50
    assert_drawn_from(wanted, drawn(logits, row, num_draws), num_draws)


@each_filter
def test_draws_follow_the_definition_in_a_vocabulary_of_many_blocks(
    strategy: str, options: dict[str, Any]
) -> None:
    """Neighbours are counted together; for fresh seeds each had a false alarm of 1e-6."""
    logits = logits_of(22, size=3001, spread=2.0)
    penalised_by = {**options, "repetition_penalty": 1.0}
    row = state(strategy, **penalised_by).parameters
    assert_drawn_from(exact_probabilities(logits, row), drawn(logits, row, 10_000), 10_000)


def drawn(logits: Tensor, parameters: DecodingParameters, num_draws: int) -> list[int]:
    """Tokens of ten seeds at many places."""
    seeded = [replace(parameters, seed=7919 * number) for number in range(10)]
    rows = [SamplingState(seeded[i % 10], [1, 2, 3], i // 10) for i in range(num_draws)]
    return tokens(logits.expand(num_draws, -1), rows)


def assert_drawn_from(wanted: Any, drawn_tokens: list[int], num_draws: int) -> None:
    """Pearson's chi-square over groups of neighbouring ids that are drawn 20 times or more."""
    counts = np.bincount(drawn_tokens, minlength=len(wanted))
    assert counts[wanted == 0].sum() == 0
    expected = wanted * num_draws
    groups = (expected.cumsum() / 20).astype(int)
    groups = np.minimum(groups, int(num_draws / 20) - 1)
    _, groups = np.unique(groups[expected > 0], return_inverse=True)
    observed = np.bincount(groups, counts[expected > 0])
    awaited = np.bincount(groups, expected[expected > 0])
    if len(awaited) > 1:
        statistic = ((observed - awaited) ** 2 / awaited).sum()
        assert statistic < chi_square_bound(len(awaited) - 1)


def chi_square_bound(degrees: int) -> float:
    """The value passed with probability 1e-6 (Wilson and Hilferty, 1931; z = 4.753)."""
    share = 2 / (9 * degrees)
    return degrees * (1 - share + 4.753424 * math.sqrt(share)) ** 3
