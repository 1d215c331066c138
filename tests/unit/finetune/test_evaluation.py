"""All measurements, on models with known logits."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
import torch

from tests.fakes import VOCABULARY_SIZE, LogitsOf, fake_model, spelling
from textmill.finetune.config import EvaluationOptions
from textmill.finetune.evaluation import OPENING_WORDS, evaluate
from textmill.finetune.examples import Example, Location, Part
from textmill.finetune.metrics import PUBLISHED_MULTI_XSCIENCE, Metrics

PROMPT = "Say:"
EIGHT = " one two three four five six seven eight"


def answered(completion: str, prompt: str = PROMPT) -> Example:
    return Example((Part(prompt, False), Part(completion, True)), Location("data.jsonl", 1))


def plain(text: str) -> Example:
    return Example((Part(text, True),), Location("data.txt", 1))


def encode(example: Example) -> tuple[list[int], list[bool]]:
    flags = [part.is_learned for part in example.parts for _ in part.text]
    return [ord(character) for character in example.text], flags


def measured(
    logits_of: LogitsOf,
    held_out: Sequence[Example],
    training_texts: Iterable[str] = (),
    *,
    context_length: int = 1000,
    **options: Any,
) -> Metrics:
    model, _ = fake_model(logits_of, context_length=context_length)
    chosen = EvaluationOptions(**{"max_new_tokens": 100, **options})
    return evaluate(
        model,
        held_out,
        training_texts,
        chosen,
        encode=encode,
        max_tokens=500,
        seed=0,
        num_slots=2,
    )


def even(ids: list[int]) -> torch.Tensor:
    return torch.zeros(VOCABULARY_SIZE)


def test_a_model_that_generates_the_held_out_text_has_perfect_rouge_and_no_memorisation() -> None:
    found = measured(spelling(f"{EIGHT}\0", PROMPT), [answered(EIGHT)], ["something else"])
    assert found.texts is not None
    assert found.texts.rouge.rouge1 == found.texts.rouge.rouge2 == found.texts.rouge.rouge_l == 1
    assert found.texts.distinct1 == found.texts.distinct2 == found.texts.distinct3 == 1
    assert found.texts.memorised == found.texts.reference_memorised == 0
    assert found.score.perplexity == pytest.approx(1, abs=1e-6)


def test_memorised_completions_differ_from_held_out_texts_in_their_share() -> None:
    held_out = [answered(" eight seven six five four three two one")]
    found = measured(spelling(f"{EIGHT}\0", PROMPT), held_out, [f"{PROMPT}{EIGHT}"])
    assert found.texts is not None
    assert (found.texts.memorised, found.texts.reference_memorised) == (1.0, 0.0)
    assert found.texts.rouge.rouge1 == 1
    assert found.texts.rouge.rouge2 == 0


def test_the_options_limit_the_examples_and_completions() -> None:
    examples = [answered("ab"), answered("abcd"), answered("abcdef")]
    found = measured(even, examples, examples=2, texts=1, max_new_tokens=5)
    assert (found.num_examples, found.score.num_tokens) == (2, 6)
    assert found.texts is not None
    assert (found.texts.num_texts, found.texts.num_skipped) == (1, 0)


def test_no_completions_are_generated_if_none_are_requested() -> None:
    found = measured(even, [answered("ab")], iter(()), texts=0)
    assert found.texts is None
    assert found.as_json()["texts"] is None


def test_prompts_that_leave_no_room_are_skipped_and_counted() -> None:
    examples = [
        answered("ab", "p" * 20),
        answered("ab", "p" * 15),
        answered("  "),
        answered("ab", "p" * 16),
    ]
    found = measured(even, examples, context_length=20, texts=2, max_new_tokens=5)
    assert found.texts is not None
    assert (found.texts.num_texts, found.texts.num_skipped) == (1, 3)


def test_the_loss_is_measured_even_if_no_prompt_leaves_room() -> None:
    found = measured(even, [answered("ab", "p" * 20)], context_length=25, max_new_tokens=10)
    assert found.texts is None
    assert found.score.bits_per_byte == pytest.approx(7)


def test_the_opening_of_a_plain_text_is_its_prompt_and_the_reference_has_equal_length() -> None:
    opening = " ".join(["a"] * OPENING_WORDS)
    text = f"{opening} b c d e f"
    seen: list[str] = []

    def logits_of(ids: list[int]) -> torch.Tensor:
        seen.append("".join(map(chr, ids)))
        return spelling(" b c", opening)(ids)

    found = measured(logits_of, [plain(f"{text} {opening}")], max_new_tokens=4)
    assert opening in seen
    assert found.texts is not None
    assert found.texts.rouge.rouge1 == 1  # compared with " b c" only, not with the rest of the text
    short = measured(even, [plain("a b c d"), plain("word")], max_new_tokens=4)
    assert short.texts is not None
    assert (short.texts.num_texts, short.texts.num_skipped) == (1, 1)


def test_metrics_are_serialisable_as_json() -> None:
    document = measured(even, [answered("ab")], max_new_tokens=5).as_json()
    assert json.loads(json.dumps(document)) == document
    assert document["num_examples"] == 1
    assert document["num_tokens"] == document["num_bytes"] == 2
    assert document["nats_per_token"] == pytest.approx(math.log(128))
    assert document["perplexity"] == pytest.approx(128)
    assert document["bits_per_byte"] == pytest.approx(7)
    assert set(document["texts"]) == {
        "num_texts",
        "num_skipped",
        "rouge",
        "distinct1",
        "distinct2",
        "distinct3",
        "memorised",
        "reference_memorised",
    }


def test_every_published_result_names_its_source() -> None:
    for row in PUBLISHED_MULTI_XSCIENCE:
        assert row.source
        assert 100 > row.rouge1 > row.rouge_l > row.rouge2 > 1
