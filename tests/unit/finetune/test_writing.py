"""Texts from the engine: in order, each with its own seed, and what is said when one fails."""

from __future__ import annotations

import math

import pytest
import torch

from tests.fakes import VOCABULARY_SIZE, fake_model, one_hot
from textmill.core.strategies import MAX_SEED, DecodingParameters
from textmill.finetune.errors import TrainingError
from textmill.finetune.writing import decoding_parameters, write_texts

GREEDY = DecodingParameters("greedy", 3, seed=0)


def test_every_prompt_gets_its_text_in_order_whatever_is_written_beside_it() -> None:
    model, runner = fake_model(lambda ids: one_hot(ids[-1] + 1))
    prompts = ["a", "f", "k", "p", "u"]
    assert write_texts(model, prompts, GREEDY, 2) == ["bcd", "ghi", "lmn", "qrs", "vwx"]
    assert max(runner.batch_sizes) == 2


def test_no_prompts_give_no_texts() -> None:
    assert write_texts(fake_model(lambda ids: one_hot(1))[0], [], GREEDY, 2) == []


def test_prompts_that_are_alike_get_texts_that_differ_and_the_same_seed_the_same() -> None:
    model, _ = fake_model(lambda ids: torch.zeros(VOCABULARY_SIZE))
    parameters = DecodingParameters("sampling", 20, seed=MAX_SEED)
    texts = write_texts(model, ["a"] * 3, parameters, 3)
    assert len(set(texts)) == 3
    assert write_texts(model, ["a"] * 3, parameters, 1) == texts


def test_a_prompt_that_is_too_long_is_named_by_its_number() -> None:
    model, _ = fake_model(lambda ids: one_hot(97), context_length=8)
    with pytest.raises(TrainingError, match=r"Prompt 2 of 3 .*9 tokens.* 8,.*evaluation\.texts"):
        write_texts(model, ["a", "a" * 9, "a"], GREEDY, 2)


def test_a_model_that_breaks_while_writing_is_named_by_its_prompt() -> None:
    def logits_of(ids: list[int]) -> torch.Tensor:
        return torch.full((VOCABULARY_SIZE,), math.nan) if ids[0] == ord("b") else one_hot(97)

    with pytest.raises(TrainingError, match=r"Prompt 2 of 2 could not be continued: .*finite"):
        write_texts(fake_model(logits_of)[0], ["a", "b"], GREEDY, 2)


def test_a_strategy_comes_with_the_defaults_of_a_request() -> None:
    assert decoding_parameters("greedy", 9, 4) == DecodingParameters("greedy", 9, 4)
    assert decoding_parameters("top_k", 9, 4) == DecodingParameters(
        "top_k", 9, 4, temperature=0.5, top_k=10
    )
