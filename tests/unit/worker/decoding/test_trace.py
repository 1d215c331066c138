"""What is told of a choice."""

from __future__ import annotations

import pytest
import torch

from core.strategies import DecodingParameters
from worker.decoding.records import NUM_ALTERNATIVES, RowState, TokenTrace
from worker.decoding.sampling import choose
from worker.decoding.trace import trace_token


def traced(logits: torch.Tensor, **parameters: object) -> TokenTrace:
    chosen = DecodingParameters(max_new_tokens=1, seed=5, trace=True, **parameters)  # type: ignore[arg-type]
    choice = choose(logits[None], [RowState(chosen, [1], 0)])[0]
    return trace_token(logits, choice, lambda token: f"<{token}>")


def test_a_trace_tells_likelihood_rank_entropy_and_alternatives() -> None:
    logits = torch.tensor([0.5, 0.25, 0.125, 0.125]).log() + 3.0
    trace = traced(logits, strategy="top_k", top_k=2)
    assert trace.id in (0, 1)
    assert trace.rank == trace.id + 1
    assert trace.text == f"<{trace.id}>"
    assert trace.logprob == pytest.approx(torch.tensor([0.5, 0.25])[trace.id].log().item())
    assert trace.entropy == pytest.approx(1.75 * torch.tensor(2.0).log().item(), rel=1e-5)
    assert [a.id for a in trace.alternatives[:2]] == [0, 1]
    after_cut = [a.probability for a in sorted(trace.alternatives, key=lambda a: a.id)]
    assert after_cut == pytest.approx([2 / 3, 1 / 3, 0, 0], abs=1e-6)
    assert trace.probability == pytest.approx([2 / 3, 1 / 3][trace.id], abs=1e-6)


def test_the_raw_numbers_are_those_before_temperature_and_penalty() -> None:
    logits = torch.randn(100, generator=torch.Generator().manual_seed(0))
    trace = traced(logits, strategy="sampling", temperature=0.3, repetition_penalty=1.8)
    assert trace.logprob == pytest.approx(logits.log_softmax(-1)[trace.id].item())
    assert len(trace.alternatives) == NUM_ALTERNATIVES
    logprobs = [alternative.logprob for alternative in trace.alternatives]
    assert logprobs == sorted(logprobs, reverse=True)


def test_a_greedy_choice_has_probability_one_and_the_lowest_rank_of_equals() -> None:
    trace = traced(torch.tensor([0.0, 2.0, 2.0]), strategy="greedy")
    assert (trace.id, trace.rank, trace.probability) == (1, 1, 1.0)


def test_an_impossible_token_does_not_spoil_the_entropy() -> None:
    trace = traced(torch.tensor([0.0, 0.0, -torch.inf]), strategy="sampling")
    assert trace.entropy == pytest.approx(torch.tensor(2.0).log().item(), rel=1e-5)
