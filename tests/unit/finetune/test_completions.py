"""Completions from the engine: their order, their seeds, and errors that name the prompt."""

from __future__ import annotations

import math

import pytest
import torch

from tests.fakes import VOCABULARY_SIZE, fake_model, one_hot
from textmill.core.strategies import MAX_SEED, DecodingParameters
from textmill.finetune.completions import decoding_parameters, generate_completions
from textmill.finetune.errors import TrainingError

GREEDY = DecodingParameters("greedy", 3, seed=0)


def test_completions_are_in_the_order_of_the_prompts() -> None:
    model, runner = fake_model(lambda ids: one_hot(ids[-1] + 1))
    prompts = ["a", "f", "k", "p", "u"]
    assert generate_completions(model, prompts, GREEDY, 2) == ["bcd", "ghi", "lmn", "qrs", "vwx"]
    assert max(runner.batch_sizes) == 2


def test_no_prompts_give_no_completions() -> None:
    assert generate_completions(fake_model(lambda ids: one_hot(1))[0], [], GREEDY, 2) == []


def test_equal_prompts_have_different_seeds_and_a_seed_always_gives_the_same_completion() -> None:
    model, _ = fake_model(lambda ids: torch.zeros(VOCABULARY_SIZE))
    parameters = DecodingParameters("sampling", 20, seed=MAX_SEED)
    completions = generate_completions(model, ["a"] * 3, parameters, 3)
    assert len(set(completions)) == 3
    assert generate_completions(model, ["a"] * 3, parameters, 1) == completions


def test_an_error_names_the_number_of_a_prompt_that_is_too_long() -> None:
    model, _ = fake_model(lambda ids: one_hot(97), context_length=8)
    with pytest.raises(TrainingError, match=r"prompt 2 of 3: .*9 tokens.* 8,.*evaluation\.texts"):
        generate_completions(model, ["a", "a" * 9, "a"], GREEDY, 2)


def test_an_error_names_the_number_of_a_prompt_whose_generation_fails() -> None:
    def logits_of(ids: list[int]) -> torch.Tensor:
        return torch.full((VOCABULARY_SIZE,), math.nan) if ids[0] == ord("b") else one_hot(97)

    with pytest.raises(TrainingError, match=r"prompt 2 of 2: .*finite"):
        generate_completions(fake_model(logits_of)[0], ["a", "b"], GREEDY, 2)


def test_a_strategy_has_the_default_parameters_of_a_request() -> None:
    assert decoding_parameters("greedy", 9, 4) == DecodingParameters("greedy", 9, 4)
    assert decoding_parameters("top_k", 9, 4) == DecodingParameters(
        "top_k", 9, 4, temperature=0.5, top_k=10
    )
