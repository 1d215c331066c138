"""The traces of PyTorch's sampler against their definitions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from textmill.core.strategies import DecodingParameters
from textmill.engine.sampling.token_records import NUM_ALTERNATIVES, SamplingState, TokenTrace
from textmill.engine.sampling.torch_sampler import sample_tokens
from textmill.engine.sampling.trace import trace_token, trace_tokens


def traced(logits: torch.Tensor, **parameters: object) -> TokenTrace:
    own = DecodingParameters(max_new_tokens=1, seed=5, trace=True, **parameters)  # type: ignore[arg-type]
    token = sample_tokens(logits[None], [SamplingState(own, [1], 0)])[0]
    return trace_token(logits, token, lambda token_id: f"<{token_id}>")


def test_a_trace_has_logprob_rank_entropy_and_alternatives() -> None:
    logits = torch.tensor([0.5, 0.25, 0.125, 0.125]).log() + 3.0
    trace = traced(logits, strategy="top_k", top_k=2)
    assert trace.id in (0, 1)
    assert trace.rank == trace.id + 1
    assert trace.text == f"<{trace.id}>"
    assert trace.logprob == pytest.approx(torch.tensor([0.5, 0.25])[trace.id].log().item())
    assert trace.entropy == pytest.approx(1.75 * torch.tensor(2.0).log().item(), rel=1e-5)
    assert [a.id for a in trace.alternatives[:2]] == [0, 1]
    filtered = [a.probability for a in sorted(trace.alternatives, key=lambda a: a.id)]
    assert filtered == pytest.approx([2 / 3, 1 / 3, 0, 0], abs=1e-6)
    assert trace.probability == pytest.approx([2 / 3, 1 / 3][trace.id], abs=1e-6)


def test_logprobs_are_those_before_temperature_and_penalty() -> None:
    logits = torch.randn(100, generator=torch.Generator().manual_seed(0))
    trace = traced(logits, strategy="sampling", temperature=0.3, repetition_penalty=1.8)
    assert trace.logprob == pytest.approx(logits.log_softmax(-1)[trace.id].item())
    assert len(trace.alternatives) == NUM_ALTERNATIVES
    logprobs = [alternative.logprob for alternative in trace.alternatives]
    assert logprobs == sorted(logprobs, reverse=True)


def test_a_greedy_token_has_probability_one_and_the_lowest_rank_of_equals() -> None:
    trace = traced(torch.tensor([0.0, 2.0, 2.0]), strategy="greedy")
    assert (trace.id, trace.rank, trace.probability) == (1, 1, 1.0)


def test_an_impossible_token_does_not_spoil_the_entropy() -> None:
    trace = traced(torch.tensor([0.0, 0.0, -torch.inf]), strategy="sampling")
    assert trace.entropy == pytest.approx(torch.tensor(2.0).log().item(), rel=1e-5)


KINDS: list[tuple[str, dict[str, Any]]] = [
    ("greedy", {}),
    ("greedy", {"repetition_penalty": 1.5}),
    ("sampling", {"temperature": 2.0}),
    ("top_k", {"top_k": 5}),
    ("top_k", {"top_k": 300}),
    ("top_p", {"top_p": 0.9}),
    ("min_p", {"min_p": 0.1, "temperature": 1.5}),
    ("typical", {"typical_p": 0.8}),
]


def mixed(size: int, num_rows: int) -> tuple[torch.Tensor, list[SamplingState]]:
    """Rows of every kind; every third has ties, every fifth impossible tokens."""
    logits = torch.randn(num_rows, size, generator=torch.Generator().manual_seed(size)) * 2
    logits[::3] = logits[::3].round()
    logits[::5, ::4] = -torch.inf
    rows = []
    for number in range(num_rows):
        name, filters = KINDS[number % len(KINDS)]
        parameters: Any = {"strategy": name, "max_new_tokens": 1, "seed": number, **filters}
        rows.append(SamplingState(DecodingParameters(trace=True, **parameters), [1, 2], number))
    return logits, rows


@pytest.mark.parametrize("size", [5, 20, 256, 1000, 3001])
def test_traces_follow_from_the_definitions(size: int) -> None:
    logits, rows = mixed(size, 40)
    tokens = sample_tokens(logits, rows)
    traces = trace_tokens(logits, tokens, str)
    for own, row, token, trace in zip(logits, rows, tokens, traces, strict=True):
        exact = own.double().log_softmax(-1)
        chances = exact.exp()
        assert trace.id == token.id
        assert trace.text == str(token.id)
        assert trace.logprob == pytest.approx(exact[trace.id].item(), abs=1e-5)
        ranked = sorted(range(size), key=lambda i: (-own[i].item(), i))
        assert trace.rank == ranked.index(trace.id) + 1
        entropy = -(chances * exact).nan_to_num().sum().item()
        assert trace.entropy == pytest.approx(entropy, abs=1e-4)
        assert [a.id for a in trace.alternatives] == ranked[:NUM_ALTERNATIVES]
        for other in trace.alternatives:
            assert other.logprob == pytest.approx(exact[other.id].item(), abs=1e-5)
            if other.id == trace.id:
                assert other.probability == trace.probability
        if row.parameters.strategy == "greedy":
            assert trace.probability == 1.0
        elif row.parameters.strategy == "top_k" and row.parameters.top_k == 5:
            num_kept = min(5, size)
            assert sum(a.probability > 0 for a in trace.alternatives) <= num_kept
            if own.unique().numel() == size:  # no equals, so the trace contains all kept tokens
                assert sum(a.probability for a in trace.alternatives) == pytest.approx(1.0)


def test_a_trace_is_the_same_alone_and_in_any_batch() -> None:
    logits, rows = mixed(1000, 30)
    tokens = sample_tokens(logits, rows)
    together = trace_tokens(logits, tokens, str)
    for own, token, trace in zip(logits, tokens, together, strict=True):
        assert trace_token(own, token, str) == trace


def test_tracing_changes_no_token_and_no_logits() -> None:
    logits, rows = mixed(1000, 30)
    before = logits.clone()
    tokens = sample_tokens(logits, rows)
    trace_tokens(logits, tokens, str)
    assert torch.equal(logits, before)
    untraced = [replace(row, parameters=replace(row.parameters, trace=False)) for row in rows]
    plain = sample_tokens(logits, untraced)
    assert [token.id for token in plain] == [token.id for token in tokens]
    assert all(token.probabilities is None for token in plain)
