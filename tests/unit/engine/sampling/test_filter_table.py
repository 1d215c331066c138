"""Both samplers, PyTorch's and the kernels', tested from the table of sampling steps.

They get the same random logits and draw with the same numbers. Both compute in float32, but their
exponentials round differently. Tokens, ranks and, in a small vocabulary, the kept sets are compared
exactly; probabilities to 1e-4 of their value, because rounding may decide about a last token of a
large vocabulary's filter.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.kernels import library
from tests.unit.engine.sampling.custom_states import state_of
from textmill.core.strategies import DecodingParameters
from textmill.engine.kernels.interface import Spec
from textmill.engine.sampling.filter_table import (
    FILTERS,
    STEPS,
    SamplingStep,
    filters_of,
    is_greedy,
)
from textmill.engine.sampling.native_sampler import KernelSampler
from textmill.engine.sampling.plain_sampler import TorchSampler
from textmill.engine.sampling.sampler import SampledToken, Sampler
from textmill.engine.sampling.token_records import NUM_ALTERNATIVES

SMALL, SIZES = NUM_ALTERNATIVES, (NUM_ALTERNATIVES, 300, 3001)  # a small trace has every token
NUM_ROWS = 60
# Values within the range of each step's parameter, from the table's identity to the narrowest.
VALUES: dict[str, list[Any]] = {
    "logit_bias": [(), ((0, -100.0), (5, 3.5), (19, 0.25)), ((7, 100.0),)],
    "repetition_penalty": [1.0, 1.1, 1.5, 2.0],
    "frequency_penalty": [0.0, 0.3, -2.0],
    "presence_penalty": [0.0, 2.0, -0.7],
    "dry": [0.0, 0.8, 10.0],
    "top_n_sigma": [0.0, 0.3, 1.0, 10.0],
    "temperature": [0.0, 0.05, 0.7, 1.0, 2.0],
    "top_k": [1, 2, 7, SMALL, 5000],
    "top_p": [1e-6, 0.3, 0.9, 0.999, 1.0],
    "min_p": [0.0, 1e-6, 0.05, 0.5, 1.0],
    "typical": [1e-6, 0.2, 0.9, 0.999, 1.0],
    "xtc": [0.0, 0.5, 1.0],
}
CASES = [(step, value) for step in STEPS for value in VALUES[step.name]]
UNDERFLOW = 1e-30  # the kernels' exp is 0 below exp(-87), PyTorch's below exp(-103)
SAMPLERS = ("torch", "kernels")
each_case = pytest.mark.parametrize(
    ("step", "value"), CASES, ids=[f"{step.name} {value}" for step, value in CASES]
)
each_sampler = pytest.mark.parametrize("name", SAMPLERS)


@cache
def kernel_sampler(vocabulary_size: int) -> KernelSampler:
    """The kernels' sampler for any vocabulary: of a decoder without weights."""
    sizes = {name: 1 for name, *_ in Spec._fields_}
    sizes |= {"capacity": 16, "vocabulary": vocabulary_size, "is_int8": 0}
    handle = ctypes.c_void_p()
    assert library().textmill_new(ctypes.byref(Spec(**sizes)), ctypes.byref(handle)) == 0

    def sample(logits: Any, parameters: bytes, tokens: Any, traces: Any) -> None:
        arguments = len(tokens), np.asarray(logits).ctypes.data, parameters, tokens, traces
        assert library().textmill_sample(handle, *arguments) == 0

    return KernelSampler(sample)


def sampler_named(name: str, vocabulary_size: int) -> Sampler:
    return TorchSampler() if name == "torch" else kernel_sampler(vocabulary_size)


def random_logits(size: int) -> Tensor:
    logits = torch.randn(NUM_ROWS, size, generator=torch.Generator().manual_seed(size)) * 3
    logits[::4] = logits[::4].round()  # with equal values
    return logits


def parameters_of(step: SamplingStep, value: Any, **others: Any) -> dict[str, Any]:
    is_shared = step.name in ("repetition_penalty", "temperature")
    strategy = step.name if step.name in FILTERS else "sampling" if is_shared else "custom"
    return {"strategy": strategy, step.parameter: value, **others}


def sampled(name: str, logits: Tensor, **parameters: Any) -> list[SampledToken]:
    states = [
        state_of(
            [3, 5, 5, 7, 3, 5],
            size=logits.shape[-1],
            position=row % 5,
            seed=row,
            trace=True,
            **parameters,
        )
        for row in range(len(logits))
    ]
    return sampler_named(name, logits.shape[-1]).sample(logits, states, str)


def tokens(name: str, logits: Tensor, **parameters: Any) -> list[int | None]:
    return [own.token for own in sampled(name, logits, **parameters)]


@each_case
@pytest.mark.parametrize("size", SIZES)
def test_both_samplers_draw_the_same_tokens(step: SamplingStep, value: Any, size: int) -> None:
    logits = random_logits(size)
    for temperature in (0.6, 1.0):
        others = {} if step.parameter == "temperature" else {"temperature": temperature}
        parameters = parameters_of(step, value, **others)
        found = {name: sampled(name, logits, **parameters) for name in SAMPLERS}
        for own, other in zip(*found.values(), strict=True):
            assert own.token == other.token
            assert own.trace is not None
            assert other.trace is not None
            assert own.trace.rank == other.trace.rank
            assert own.trace.probability == pytest.approx(other.trace.probability, rel=1e-4)


@each_case
def test_both_samplers_keep_the_same_tokens(step: SamplingStep, value: Any) -> None:
    logits = random_logits(SMALL)
    kept: dict[str, list[set[int]]] = {}
    for name in SAMPLERS:
        traces = [own.trace for own in sampled(name, logits, **parameters_of(step, value))]
        kept[name] = [
            {a.id for a in t.alternatives if a.probability > UNDERFLOW} for t in traces if t
        ]
        assert len(kept[name]) == NUM_ROWS
    assert kept["torch"] == kept["kernels"]


@each_case
@each_sampler
def test_a_step_at_its_identity_changes_no_token(step: SamplingStep, value: Any, name: str) -> None:
    for size in SIZES:
        parameters = parameters_of(step, value)
        logits = random_logits(size)
        own = DecodingParameters(max_new_tokens=1, seed=0, **parameters)
        if step.is_identity(own, size) and not step.is_greedy(own, size):
            assert tokens(name, logits, **parameters) == tokens(name, logits, strategy="sampling")


@each_case
@each_sampler
def test_a_step_that_leaves_only_the_likeliest_token_equals_greedy(
    step: SamplingStep, value: Any, name: str
) -> None:
    for size in SIZES:
        parameters = parameters_of(step, value)
        logits = random_logits(size)
        if is_greedy(DecodingParameters(max_new_tokens=1, seed=0, **parameters)):
            expected = tokens(name, logits, strategy="greedy")
            assert tokens(name, logits, **parameters) == expected
            assert expected == [int((row == row.max()).nonzero()[0]) for row in logits]


@each_sampler
def test_the_steps_are_applied_in_the_order_of_the_table(name: str) -> None:
    """Penalty, temperature and filter: in another order, another set of tokens would be kept."""
    assert list(STEPS) == sorted(STEPS, key=lambda step: step.order)
    assert list(FILTERS) == ["top_k", "top_p", "min_p", "typical"]
    logits = torch.full((1, SMALL), -10.0)
    logits[0, 3], logits[0, 4] = 2.0, 1.5  # the penalty applies to token 3, which becomes 1.0
    options = {"repetition_penalty": 2.0, "temperature": 0.2}
    first = sampled(name, logits, strategy="top_k", top_k=1, **options)[0]
    assert first.token == 4
    trace = sampled(name, logits, strategy="min_p", min_p=0.2, **options)[0].trace
    assert trace is not None
    # exp((1.0 - 1.5) / 0.2) = 0.08 is below min_p; at temperature 1 it would be 0.61.
    assert {a.id for a in trace.alternatives if a.probability > 0} == {4}


def test_every_filter_has_its_own_kernel_code_and_is_found_by_its_strategy() -> None:
    codes = [step.kernel_code for step in FILTERS.values()]
    assert len(set(codes)) == len(codes)
    for step in FILTERS.values():
        narrow = {"top_k": 2, "top_p": 0.5, "min_p": 0.5, "typical": 0.5}[step.name]
        own = DecodingParameters(max_new_tokens=1, seed=0, **parameters_of(step, narrow))
        assert filters_of(own, 100) == (step.name,)
