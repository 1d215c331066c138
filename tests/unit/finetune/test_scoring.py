"""Loss, perplexity and bits per byte, against hand-computed values and transformers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.fakes import VOCABULARY_SIZE, fake_model
from tests.tiny_models import tiny_model
from textmill.core.catalog.models_file import ModelSpec
from textmill.engine.models.loading import LoadedModel, load
from textmill.finetune.errors import ConfigError, TrainingError
from textmill.finetune.examples import Example, Location, Part
from textmill.finetune.scoring import CHUNK_ROWS, Encode, Score, score


def example(*parts: str | tuple[str, bool]) -> Example:
    """A string is a learned part; ``(text, False)`` is a part that is not learned."""
    made = [Part(part, True) if isinstance(part, str) else Part(*part) for part in parts]
    return Example(tuple(made), Location("data.jsonl", 1))


def encoder(model: LoadedModel) -> Encode:
    def encode(one: Example) -> tuple[list[int], list[bool]]:
        ids: list[int] = []
        is_learned: list[bool] = []
        for part in one.parts:
            own = model.tokenizer.encode(part.text)
            ids += own
            is_learned += [part.is_learned] * len(own)
        return ids, is_learned

    return encode


def scored(model: LoadedModel, *examples: Example, max_tokens: int = 1000) -> Score:
    return score(model, examples, max_tokens, encoder(model))


def half_on(character: str) -> Any:
    """Logits with probability 1/2 for one character, and equal shares for the others."""
    logits = torch.zeros(VOCABULARY_SIZE)
    logits[ord(character)] = math.log(VOCABULARY_SIZE - 1)
    return lambda ids: logits


EVEN = fake_model(lambda ids: torch.zeros(VOCABULARY_SIZE))[0]


def test_a_uniform_model_needs_seven_bits_for_each_of_128_characters() -> None:
    found = scored(EVEN, example(("ab", False), "cde"))
    assert (found.num_tokens, found.num_bytes) == (3, 3)
    assert found.loss_nats == pytest.approx(3 * math.log(128))
    assert found.nats_per_token == pytest.approx(math.log(128))
    assert found.perplexity == pytest.approx(128)
    assert found.bits_per_byte == pytest.approx(7)


def test_only_learned_parts_count_and_each_token_is_predicted_from_those_before_it() -> None:
    model, _ = fake_model(half_on("x"))
    found = scored(model, example(("xx", False), "xy", ("xxx", False), "x"))
    assert (found.num_tokens, found.num_bytes) == (3, 3)
    assert found.loss_nats == pytest.approx(2 * math.log(2) + math.log(2 * 127))


def test_the_first_token_of_a_text_without_prompt_is_not_counted() -> None:
    assert scored(EVEN, example("abc")).num_tokens == 2
    assert scored(EVEN, example(("p", False), "abc")).num_tokens == 3


def test_tokens_after_the_limit_are_neither_computed_nor_counted() -> None:
    seen: list[int] = []

    def logits_of(ids: list[int]) -> Any:
        seen.append(len(ids))
        return torch.zeros(VOCABULARY_SIZE)

    model, _ = fake_model(logits_of, context_length=6)
    assert scored(model, example(("ab", False), "cdefghi"), max_tokens=5).num_tokens == 3
    assert max(seen) == 5
    assert scored(model, example(("ab", False), "cdefghi"), max_tokens=50).num_tokens == 4
    assert max(seen) == 6  # the model's context


def test_examples_add_up_and_one_without_learned_tokens_is_skipped() -> None:
    one, other = example(("a", False), "bc"), example(("ab", False), "c")
    prompt_alone = example(("abcdefgh", False), "i")
    found = scored(EVEN, one, prompt_alone, other, max_tokens=5)
    assert (found.num_tokens, found.num_bytes) == (3, 3)
    assert found.perplexity == pytest.approx(128)


def test_a_text_longer_than_a_chunk_is_counted_in_full() -> None:
    text = "x" * (2 * CHUNK_ROWS + 3)
    model, _ = fake_model(half_on("x"))
    found = scored(model, example(("p", False), text))
    assert found.loss_nats == pytest.approx(len(text) * math.log(2))


def test_an_error_without_countable_tokens_says_which_option_to_change() -> None:
    with pytest.raises(ConfigError, match=r"within the first 4 tokens; raise data\.max_tokens"):
        scored(EVEN, example(("abcd", False), "e"), max_tokens=4)


def test_an_error_about_logits_that_are_not_finite_names_the_location() -> None:
    model, _ = fake_model(lambda ids: torch.full((VOCABULARY_SIZE,), math.nan))
    with pytest.raises(TrainingError, match=r"data\.jsonl, line 1.*lower learning rate"):
        scored(model, example(("a", False), "b"))


def test_the_slot_is_released() -> None:
    model, runner = fake_model(lambda ids: torch.zeros(VOCABULARY_SIZE))
    scored(model, example("abc"))
    assert runner.released == [0]


@pytest.mark.parametrize("family", ["llama", "gpt_neo", "opt"])
def test_the_loss_equals_that_of_transformers(family: str, tmp_path: Path) -> None:
    folder = tiny_model(family)
    model = load(
        ModelSpec("tiny", str(folder), None, "float32", True, ""),
        cache_dir=tmp_path,
        dtype="float32",
        num_slots=1,
        report=lambda sentence: None,
    )
    examples = [
        example(("Title: Größe\nAbstract:", False), " The quick brown fox, 你好世界."),
        example("Attention is all you need, a naïve café."),
        example(("user: a", False), "one", ("user: b", False), "two 😀"),
    ]
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    loss, num_tokens, num_bytes = 0.0, 0, 0
    for one in examples:
        ids, is_learned = encoder(model)(one)
        labels = [
            token if learned else -100 for token, learned in zip(ids, is_learned, strict=True)
        ]
        num_counted = sum(is_learned[1:])
        with torch.inference_mode():
            mean = reference(torch.tensor([ids]), labels=torch.tensor([labels])).loss
        loss += float(mean) * num_counted
        num_tokens += num_counted
        texts = [part.text for part in one.parts if part.is_learned]
        num_bytes += sum(len(text.encode()) for text in texts)
        if is_learned[0]:
            num_bytes -= len(model.tokenizer.decode(ids[:1]).encode())
    found = scored(model, *examples)
    assert (found.num_tokens, found.num_bytes) == (num_tokens, num_bytes)
    assert found.loss_nats == pytest.approx(loss, rel=1e-5)
