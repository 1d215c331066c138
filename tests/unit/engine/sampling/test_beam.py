"""Beam search against transformers' own, and by hand."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.tiny_models import NATIVE_FAMILIES, tiny_model
from textmill.engine.sampling.beam import BeamSearch, Hypothesis

NUM_PROMPTS = 34  # for each of three families: 102 in all


@cache
def model_of(family: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_model(family)).eval()


def likely_tokens(model: Any) -> list[int]:
    """Tokens that the model likes, so that a search that may end with them often does."""
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(1, 350, (16, 8), generator=generator)
    with torch.inference_mode():
        likely = model(prompts).logits.softmax(-1).mean((0, 1)).topk(3).indices
    return [int(token) for token in likely]


@torch.inference_mode()
def searched(model: Any, prompt: list[int], search: BeamSearch) -> Hypothesis:
    """Drive a search with whole forward passes."""
    texts = [prompt]
    while True:
        logits = model(torch.tensor(texts)).logits[:, -1].float()
        beams = search.advance(torch.log_softmax(logits, -1).numpy())
        if not beams:
            return search.best
        texts = [[*texts[beam.parent], beam.token] for beam in beams]


@pytest.mark.parametrize("family", NATIVE_FAMILIES)
def test_the_tokens_are_those_of_transformers(family: str) -> None:
    model, rng = model_of(family), random.Random(family)
    likely = likely_tokens(model)
    reasons = []
    for _ in range(NUM_PROMPTS):
        prompt = [rng.randrange(1, 350) for _ in range(rng.randint(1, 12))]
        eos = rng.sample(likely, rng.randint(1, 2))
        options: dict[str, Any] = {
            "num_beams": rng.randint(2, 8),
            "length_penalty": rng.choice([-2.0, -0.5, 0.0, 0.7, 1.0, 2.0]),
            "early_stopping": rng.choice([False, True]),
            "max_new_tokens": rng.randint(1, 20),
        }
        written = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            do_sample=False,
            eos_token_id=eos,
            pad_token_id=0,
            **options,
        )[0, len(prompt) :].tolist()
        best = searched(model, prompt, BeamSearch(eos_token_ids=frozenset(eos), **options))
        ends = [i for i, token in enumerate(written) if token in eos]
        assert list(best.tokens) == (written[: ends[0]] if ends else written), options
        assert best.finish_reason == ("stop" if ends else "length")
        reasons.append(best.finish_reason)
    assert set(reasons) == {"stop", "length"}


def test_a_search_worked_by_hand() -> None:
    """Greedy would take 1 (0.6) and then 2 (0.6 of it); the other branch is likelier as a whole."""
    after = {(): [0.0, 0.6, 0.4, 0.0], (1,): [0, 0.2, 0.6, 0.2], (2,): [0, 0.0, 0.05, 0.95]}
    search = BeamSearch(
        num_beams=2,
        length_penalty=1.0,
        early_stopping=False,
        max_new_tokens=2,
        eos_token_ids=frozenset(),
    )
    beams = search.advance(torch.tensor([after[()]]).log().numpy())
    assert [(beam.parent, beam.token) for beam in beams] == [(0, 1), (0, 2)]
    assert search.leading == (1,)
    assert search.advance(torch.tensor([after[(1,)], after[(2,)]]).log().numpy()) == []
    assert search.is_done
    assert search.best.tokens == (2, 3)
    assert search.best.score == pytest.approx(torch.tensor(0.4 * 0.95).log().item() / 2)


def test_a_text_that_ends_counts_only_among_the_likeliest() -> None:
    """The end token is third: with two beams it is not taken, however few have ended."""
    search = BeamSearch(
        num_beams=2,
        length_penalty=0.0,
        early_stopping=True,
        max_new_tokens=3,
        eos_token_ids=frozenset({0}),
    )
    beams = search.advance(torch.tensor([[0.2, 0.5, 0.3]]).log().numpy())
    assert [beam.token for beam in beams] == [1, 2]
    search.advance(torch.tensor([[0.9, 0.05, 0.05], [0.8, 0.1, 0.1]]).log().numpy())
    assert search.is_done
    assert search.best.tokens == (1,)
    assert search.best.finish_reason == "stop"
