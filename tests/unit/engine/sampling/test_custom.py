"""The strategy custom: identities, reference definitions, independence of rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import FloatTensor, LongTensor, Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from tests.unit.engine.sampling.custom_states import state_of
from tests.unit.engine.sampling.draw_weights import draw_weights
from tests.unit.engine.sampling.test_filter_table import SMALL, each_sampler, sampler_named
from tests.unit.engine.sampling.test_sampling import assert_drawn_from
from textmill.engine.sampling.token_records import SamplingState
from textmill.engine.sampling.uniform import XTC_COIN, uniform

SIZE = 3001
IDS = [3, 5, 5, 7]
UNDERFLOW = 1e-30
EVERYTHING: dict[str, Any] = {
    "temperature": 0.9,
    "top_k": 40,
    "top_p": 0.95,
    "min_p": 0.01,
    "typical_p": 0.95,
    "repetition_penalty": 1.1,
    "frequency_penalty": 0.5,
    "presence_penalty": 0.3,
    "logit_bias": ((2, 4.0), (11, -100.0)),
    "top_n_sigma": 2.5,
    "xtc_probability": 0.5,
    "xtc_threshold": 0.05,
    "dry_multiplier": 0.8,
}
MIXES: list[dict[str, Any]] = [
    {},
    EVERYTHING,
    {"top_k": 5, "top_p": 0.8},
    {"top_p": 0.7, "min_p": 0.1, "temperature": 1.4},
    {"top_k": 200, "typical_p": 0.6},
    {"top_p": 0.9, "typical_p": 0.5, "xtc_probability": 1.0},
    {"min_p": 0.02, "typical_p": 0.9, "repetition_penalty": 1.4},
    {"top_k": 30, "top_p": 0.9, "min_p": 0.05, "typical_p": 0.8, "temperature": 0.6},
    {"top_n_sigma": 1.0, "top_k": 3},
    {"temperature": 0.0, "frequency_penalty": 2.0},
    {"dry_multiplier": 2.0, "breakers": [7]},
]


def logits_of(seed: int, size: int = SIZE, spread: float = 3.0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)) * spread


def tokens(name: str, logits: Tensor, states: Sequence[SamplingState]) -> list[int | None]:
    drawn = sampler_named(name, logits.shape[-1]).sample(logits.contiguous(), states, str)
    return [one.token for one in drawn]


def chances(name: str, logits: Tensor, state: SamplingState) -> Any:
    """The probability of each token of a vocabulary that a trace contains as a whole."""
    assert state.parameters.trace
    (drawn,) = sampler_named(name, SMALL).sample(logits[None].contiguous(), [state], str)
    assert drawn.trace is not None
    found = np.zeros(SMALL)
    for other in drawn.trace.alternatives:
        found[other.id] = other.probability
    return found


def small_state(ids: Sequence[int] = IDS, **options: Any) -> SamplingState:
    return state_of(ids, size=SMALL, trace=True, **options)


def softmax(scores: Any) -> Any:
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


# ---- identities -------------------------------------------------------------------------------


@each_sampler
@pytest.mark.parametrize("penalty", [1.0, 1.3])
@pytest.mark.parametrize("temperature", [0.5, 1.0])
@pytest.mark.parametrize(
    ("strategy", "options"),
    [
        ("greedy", {"temperature": 0.0}),
        ("greedy", {"top_k": 1}),
        ("sampling", {}),
        ("top_k", {"top_k": 10}),
        ("top_k", {"top_k": 5000}),
        ("top_p", {"top_p": 0.9}),
        ("min_p", {"min_p": 0.05}),
        ("typical", {"typical_p": 0.9}),
    ],
)
def test_with_one_filter_the_tokens_and_traces_are_those_of_the_named_strategy(
    strategy: str, options: dict[str, Any], temperature: float, penalty: float, name: str
) -> None:
    logits = torch.stack([logits_of(i) for i in range(64)])
    logits[::3] = logits[::3].round()
    shared = {"temperature": temperature, "repetition_penalty": penalty, "trace": True} | options
    found = []
    for chosen in (strategy, "custom"):
        own: dict[str, Any] = {"strategy": chosen} | shared
        states = [state_of(IDS, size=SIZE, seed=i, position=i % 9, **own) for i in range(64)]
        drawn = sampler_named(name, SIZE).sample(logits, states, str)
        found.append([(one.token, one.trace and one.trace.as_json()) for one in drawn])
    assert found[0] == found[1]


@each_sampler
def test_a_row_is_sampled_alike_alone_and_in_batches_of_every_size(name: str) -> None:
    rows = [
        state_of(IDS * 3, size=SIZE, seed=i, position=i % 7, trace=True, **MIXES[i % len(MIXES)])
        for i in range(64)
    ]
    logits = torch.stack([logits_of(i) for i in range(64)])
    logits[5], logits[6] = logits[5].round(), 0.0
    sampler = sampler_named(name, SIZE)

    def drawn(members: list[int]) -> list[Any]:
        own = sampler.sample(logits[members].contiguous(), [rows[i] for i in members], str)
        return [(one.token, one.trace and one.trace.as_json()) for one in own]

    alone = [drawn([i])[0] for i in range(64)]
    for num_rows in (2, 3, 17, 64):
        order = torch.randperm(64, generator=torch.Generator().manual_seed(num_rows))
        members = order[:num_rows].tolist()
        assert drawn(members) == [alone[i] for i in members]


@pytest.mark.parametrize("options", MIXES, ids=str)
def test_both_samplers_draw_the_same_tokens(options: dict[str, Any]) -> None:
    """Both draw by the same number; a sum that is rounded otherwise hardly ever moves a token."""
    logits = torch.stack([logits_of(i) for i in range(200)])
    states = [state_of(IDS * 2, size=SIZE, seed=i, position=i % 7, **options) for i in range(200)]
    ours, theirs = tokens("kernels", logits, states), tokens("torch", logits, states)
    assert sum(a != b for a, b in zip(ours, theirs, strict=True)) <= 1


@pytest.mark.parametrize("options", MIXES, ids=str)
def test_both_samplers_have_the_same_probabilities(options: dict[str, Any]) -> None:
    for seed in range(30):
        logits = logits_of(seed, SMALL)
        if seed % 3 == 0:
            logits = logits.round()
        state = small_state(IDS * 2, seed=seed, position=seed % 7, **options)
        ours, theirs = chances("kernels", logits, state), chances("torch", logits, state)
        assert ((ours > UNDERFLOW) == (theirs > UNDERFLOW)).all()
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-9)


@each_sampler
def test_a_trace_shows_the_model_before_and_the_draw_after_all_steps(name: str) -> None:
    logits = logits_of(8, SMALL)
    plain = small_state(strategy="sampling")
    state = small_state(logit_bias=((4, 100.0),), top_p=0.5, dry_multiplier=1.0)
    (before,) = sampler_named(name, SMALL).sample(logits[None], [plain], str)
    (after,) = sampler_named(name, SMALL).sample(logits[None], [state], str)
    assert before.trace is not None
    assert after.trace is not None
    assert (after.token, after.trace.probability) == (4, 1.0)
    assert after.trace.entropy == before.trace.entropy
    pairs = zip(before.trace.alternatives, after.trace.alternatives, strict=True)
    for one, other in pairs:
        assert (one.id, one.logprob) == (other.id, other.logprob)
        assert other.probability == float(other.id == 4)


@each_sampler
def test_what_is_impossible_is_never_drawn(name: str) -> None:
    logits = torch.full((1, SIZE), -torch.inf)
    logits[0, [8, 2500]] = 1.0
    for options in MIXES:
        states = [state_of(IDS, size=SIZE, seed=seed, **options) for seed in range(30)]
        assert set(tokens(name, logits.expand(30, -1), states)) <= {8, 2500}


# ---- transformers' processors -----------------------------------------------------------------

COMBINATIONS: list[dict[str, Any]] = [
    {"top_k": 12, "top_p": 0.8},
    {"top_k": 12, "min_p": 0.03},
    {"top_p": 0.9, "min_p": 0.05},
    {"top_p": 0.9, "typical_p": 0.7},
    {"top_k": 15, "typical_p": 0.6},
    {"min_p": 0.02, "typical_p": 0.5},
    {"top_k": 14, "top_p": 0.95, "min_p": 0.02, "typical_p": 0.9},
    {"top_k": 14, "top_p": 0.95, "min_p": 0.02, "typical_p": 0.9, "temperature": 1.7},
    {"top_k": 9, "top_p": 0.7, "temperature": 0.4, "repetition_penalty": 1.5},
    {"top_p": 0.8, "repetition_penalty": 1.3, "logit_bias": ((3, 2.0), (9, -4.0))},
]
each_combination = pytest.mark.parametrize("options", COMBINATIONS, ids=str)


def transformers_probabilities(logits: Tensor, state: SamplingState) -> Tensor:
    """Probabilities after transformers' own processors, in their order in ``generate``."""
    own = state.parameters
    processors = LogitsProcessorList()
    if own.logit_bias:
        biases = [[[token], bias] for token, bias in own.logit_bias]
        processors.append(SequenceBiasLogitsProcessor(cast("Any", biases)))
    if own.repetition_penalty != 1.0:
        processors.append(RepetitionPenaltyLogitsProcessor(own.repetition_penalty))
    if own.temperature != 1.0:
        processors.append(TemperatureLogitsWarper(own.temperature))
    if own.top_k:
        processors.append(TopKLogitsWarper(own.top_k))
    if own.top_p < 1.0:
        processors.append(TopPLogitsWarper(own.top_p))
    if own.min_p > 0.0:
        processors.append(MinPLogitsWarper(own.min_p))
    if own.typical_p < 1.0:
        processors.append(TypicalLogitsWarper(own.typical_p))
    ids = cast("LongTensor", torch.tensor([list(state.ids)]))
    return processors(ids, cast("FloatTensor", logits[None].clone())).softmax(-1)[0]


@each_sampler
@each_combination
def test_the_kept_tokens_and_their_probabilities_are_those_of_transformers(
    options: dict[str, Any], name: str
) -> None:
    for seed in range(60):
        logits = logits_of(seed, SMALL, spread=1.5)
        state = small_state(seed=seed, **options)
        wanted = transformers_probabilities(logits, state).numpy()
        found = chances(name, logits, state)
        assert ((found > UNDERFLOW) == (wanted > 0)).all()
        assert found == pytest.approx(wanted, rel=1e-4, abs=1e-9)


@each_combination
def test_weights_in_a_large_vocabulary_are_those_of_transformers(options: dict[str, Any]) -> None:
    """The filters alone; a sum's last bit may decide about one last token of thousands."""
    own = {key: value for key, value in options.items() if key not in ("logit_bias",)}
    own["repetition_penalty"] = 1.0
    for seed in range(20):
        logits = logits_of(seed)
        state = state_of(IDS, size=SIZE, **own)
        weights = draw_weights(logits[None], [state.parameters])[0]
        wanted = transformers_probabilities(logits, state)
        assert int(((weights > 0) != (wanted > 0)).sum()) <= 1
        torch.testing.assert_close(weights / weights.sum(), wanted, atol=1e-5, rtol=1e-3)


@each_sampler
@each_combination
def test_draws_have_the_distribution_of_transformers(options: dict[str, Any], name: str) -> None:
    """Pearson's chi-square; for fresh seeds each test has a false alarm of 1e-6."""
    logits, num_draws = logits_of(31, 60, spread=1.5), 6000
    states = [
        state_of(IDS, size=60, seed=7919 * (i % 10), position=i // 10, **options)
        for i in range(num_draws)
    ]
    wanted = transformers_probabilities(logits, states[0]).double().numpy()
    drawn = tokens(name, logits.expand(num_draws, -1), states)
    assert_drawn_from(wanted, cast("list[int]", drawn), num_draws)


# ---- OpenAI's penalties and biases ------------------------------------------------------------


@each_sampler
def test_frequency_and_presence_penalties_count_the_generated_tokens_alone(name: str) -> None:
    logits = logits_of(1, SMALL)
    ids = [9, 9, 4, 3, 5, 5, 7, 5]  # the last five are generated: 3, 5 three times, 7
    scores = logits.double().numpy()
    for frequency, presence in ((0.5, 0.0), (0.0, 1.5), (0.7, -0.4), (-2.0, 2.0)):
        wanted = scores.copy()
        for token, count in ((3, 1), (5, 3), (7, 1)):
            wanted[token] -= count * frequency + presence
        state = small_state(ids, position=5, frequency_penalty=frequency, presence_penalty=presence)
        assert chances(name, logits, state) == pytest.approx(softmax(wanted), rel=1e-5)


@each_sampler
def test_a_bias_is_added_before_the_repetition_penalty_divides(name: str) -> None:
    logits = logits_of(2, SMALL)
    wanted = logits.double().numpy().copy()
    wanted[5] += 3.0
    wanted[8] -= 100.0
    wanted[IDS] = np.where(wanted[IDS] < 0, wanted[IDS] * 1.5, wanted[IDS] / 1.5)
    state = small_state(logit_bias=((5, 3.0), (8, -100.0)), repetition_penalty=1.5)
    assert chances(name, logits, state) == pytest.approx(softmax(wanted), rel=1e-5)


@each_sampler
def test_temperature_zero_takes_the_likeliest_after_all_penalties(name: str) -> None:
    logits = torch.full((1, SMALL), -1.0)
    logits[0, 5], logits[0, 3], logits[0, 9] = 4.0, 3.5, 1.0
    options: dict[str, Any] = {"temperature": 0.0, "xtc_probability": 1.0}
    for own, token in (
        ({}, 5),
        ({"presence_penalty": 1.0}, 3),
        ({"logit_bias": ((9, 4.0),)}, 9),
        ({"frequency_penalty": 1.0, "logit_bias": ((3, -3.0),)}, 5),
        ({"frequency_penalty": 1.9, "logit_bias": ((3, -3.0),)}, 9),
    ):
        state = small_state([7, 5, 5], position=2, **options, **own)
        assert tokens(name, logits, [state]) == [token]


# ---- top-n-sigma, XTC and DRY by their published definitions ----------------------------------


@each_sampler
@pytest.mark.parametrize("n", [0.1, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_top_n_sigma_keeps_what_is_within_n_deviations_of_the_largest_logit(
    n: float, temperature: float, name: str
) -> None:
    for seed in range(20):
        logits = logits_of(seed, SMALL)
        scores = logits.double().numpy()
        wanted = np.where(scores >= scores.max() - n * scores.std(), scores, -np.inf)
        state = small_state(top_n_sigma=n, temperature=temperature)
        found = chances(name, logits, state)
        assert ((found > 0) == np.isfinite(wanted)).all()
        assert found == pytest.approx(softmax(wanted / temperature), rel=1e-4)


@each_sampler
def test_the_deviation_is_that_of_the_models_own_possible_logits(name: str) -> None:
    """A bias moves the largest logit and tokens in and out of the set, not its width."""
    logits = logits_of(3, SMALL)
    logits[::4] = -torch.inf
    scores = logits.double().numpy()
    width = scores[np.isfinite(scores)].std()
    biased = scores.copy()
    biased[5] -= 100.0
    biased[6] += 5.0
    wanted = np.where(biased >= biased.max() - width, biased, -np.inf)
    state = small_state(top_n_sigma=1.0, logit_bias=((5, -100.0), (6, 5.0)))
    assert chances(name, logits, state) == pytest.approx(softmax(wanted), rel=1e-4)


def without_top_choices(probabilities: Any, threshold: float) -> Any:
    """XTC: all tokens that reach the threshold are removed, except the least likely of them."""
    order = np.argsort(-probabilities, kind="stable")
    likely = [token for token in order if probabilities[token] >= threshold]
    after = probabilities.copy()
    after[likely[:-1]] = 0.0
    return after / after.sum()


@each_sampler
@pytest.mark.parametrize("threshold", [0.001, 0.03, 0.1, 0.4, 0.9])
@pytest.mark.parametrize("others", [{}, {"top_k": 6}, {"top_p": 0.8, "temperature": 1.5}], ids=str)
def test_xtc_excludes_the_likely_tokens_but_the_least_likely_of_them(
    others: dict[str, Any], threshold: float, name: str
) -> None:
    for seed in range(20):
        logits = logits_of(seed, SMALL, spread=1.5)
        before = chances(name, logits, small_state(**others))
        if np.abs(before - threshold).min() < 1e-5:
            continue  # rounding decides
        state = small_state(xtc_probability=1.0, xtc_threshold=threshold, **others)
        found = chances(name, logits, state)
        assert found == pytest.approx(without_top_choices(before, threshold), rel=1e-4)


@each_sampler
def test_of_equally_likely_tokens_xtc_keeps_the_last(name: str) -> None:
    logits = torch.full((SMALL,), -30.0)
    logits[[2, 9, 13]] = 1.0
    state = small_state(xtc_probability=1.0, xtc_threshold=0.2)
    assert chances(name, logits, state)[[2, 9, 13]].tolist() == pytest.approx([0, 0, 1], abs=1e-6)


@each_sampler
def test_xtcs_coin_falls_as_often_as_it_should_and_tells_nothing_of_the_draw(name: str) -> None:
    """With 4,000 draws each count has a false alarm of 1e-6 at five deviations."""
    num_draws = 4000
    logits = torch.full((SMALL,), -30.0)
    logits[[2, 9]] = torch.tensor([0.6, 0.4]).log()
    states = [
        small_state(seed=i % 10, position=i // 10, xtc_probability=0.3, top_k=19)
        for i in range(num_draws)
    ]
    drawn = tokens(name, logits.expand(num_draws, -1), states)
    coins = [uniform(s.parameters.seed, s.position, XTC_COIN) < 0.3 for s in states]
    draws = [uniform(s.parameters.seed, s.position) < 0.6 for s in states]
    expected = [9 if coin or not draw else 2 for coin, draw in zip(coins, draws, strict=True)]
    assert drawn == expected
    both = sum(coin and draw for coin, draw in zip(coins, draws, strict=True))
    for count, chance in ((sum(coins), 0.3), (sum(draws), 0.6), (both, 0.18)):
        deviation = math.sqrt(num_draws * chance * (1 - chance))
        assert abs(count - num_draws * chance) < 5 * deviation


def dry_penalties(ids: list[int], breakers: list[int], own: Any) -> dict[int, float]:
    """DRY, straightforwardly: for each earlier place, how far the text's end matches before it."""
    ids = ids[-own.dry_range :] if own.dry_range else ids
    longest: dict[int, int] = {}
    for following in range(1, len(ids)):
        length = 0
        while (
            length < min(following, 50)
            and ids[following - 1 - length] == ids[len(ids) - 1 - length]
            and ids[len(ids) - 1 - length] not in breakers
        ):
            length += 1
        if ids[following] not in breakers and length:
            longest[ids[following]] = max(length, longest.get(ids[following], 0))
    return {
        token: own.dry_multiplier * own.dry_base ** (length - own.dry_allowed_length)
        for token, length in longest.items()
        if length >= own.dry_allowed_length
    }


@each_sampler
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"dry_allowed_length": 1},
        {"dry_allowed_length": 4, "dry_base": 1.1},
        {"dry_range": 12},
        {"breakers": [1]},
        {"breakers": [0, 2], "dry_range": 25, "dry_allowed_length": 1, "dry_base": 1.0},
    ],
    ids=str,
)
def test_dry_penalizes_tokens_that_would_continue_a_repetition(
    options: dict[str, Any], name: str
) -> None:
    random = np.random.default_rng(4)
    num_penalized = 0
    for _ in range(60):
        ids = random.integers(0, 3, random.integers(1, 60)).tolist()  # three tokens repeat often
        logits = logits_of(len(ids), SMALL)
        state = small_state(ids, dry_multiplier=0.05, **options)
        wanted = logits.double().numpy().copy()
        for token, penalty in dry_penalties(
            ids, options.get("breakers", []), state.parameters
        ).items():
            wanted[token] -= penalty
            num_penalized += 1
        found = chances(name, logits, state)
        assert found == pytest.approx(softmax(wanted), rel=1e-4, abs=1e-30)
    assert num_penalized > 10


@each_sampler
def test_a_long_repetition_counts_as_fifty_tokens(name: str) -> None:
    logits = torch.zeros(SMALL)
    state = small_state([4] * 3000, dry_multiplier=0.1, dry_base=1.05)
    wanted = np.zeros(SMALL)
    wanted[4] = -0.1 * 1.05**48
    assert chances(name, logits, state) == pytest.approx(softmax(wanted), rel=1e-4)
    steep = small_state([4] * 3000, dry_multiplier=10.0, dry_base=4.0)
    assert chances(name, logits, steep)[4] == 0.0
