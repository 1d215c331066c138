"""Families without a native runtime: transformers' arithmetic, with a cache for each slot."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    BloomForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from tests.tiny_models import tiny_model
from textmill.engine.models.errors import ModelUnusable
from textmill.engine.models.runner import PREFILL_CHUNK_TOKENS
from textmill.engine.models.torch_runtime import UNKNOWN_CONTEXT_TOKENS, GenericRunner

NUM_SLOTS = 3
NUM_NEW = 12
SIZES: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}
FAMILIES = ("opt", "gpt_neox", "mistral")


class Row:
    """A minimal batch entry."""

    def __init__(self, ids: list[int], slot: int) -> None:
        self.ids = list(ids)
        self.num_cached = 0
        self.slot = slot


def saved(model: PreTrainedModel, folder: Path) -> Path:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    return folder


@cache
def folder_of(family: str, parent: Path) -> Path:
    if family == "opt":
        return tiny_model("opt", context_length=512)
    torch.manual_seed(0)
    if family == "gpt_neox":
        return saved(GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES)), parent / family)
    window = MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=16)
    return saved(MistralForCausalLM(window), parent / family)


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("generic")


@pytest.fixture(params=FAMILIES)
def folder(request: pytest.FixtureRequest, parent: Path) -> Path:
    return folder_of(request.param, parent)


def runner_of(folder: Path) -> GenericRunner:
    return GenericRunner(folder, "float32", NUM_SLOTS)


def prefilled(runner: GenericRunner, row: Row) -> Row:
    while row.num_cached < len(row.ids) - 1:
        runner.prefill([(row, len(row.ids) - 1)])
    return row


def go_on(runner: GenericRunner, rows: list[Row], num_new: int = NUM_NEW) -> None:
    for _ in range(num_new):
        for row, logits in zip(rows, runner.decode(rows), strict=True):
            row.ids.append(int(logits.argmax()))


def wanted(folder: Path, prompt: list[int]) -> list[int]:
    """Greedy decoding, each token by a pass over the whole sequence, without a cache."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = list(prompt)
    with torch.inference_mode():
        for _ in range(NUM_NEW):
            ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    lengths = (1, 20, PREFILL_CHUNK_TOKENS + 30)
    return [torch.randint(2, 300, (n,), generator=generator).tolist() for n in lengths]


def test_rows_of_any_length_side_by_side_go_on_as_transformers_does(folder: Path) -> None:
    runner = runner_of(folder)
    rows = [prefilled(runner, Row(ids, slot)) for slot, ids in enumerate(prompts())]
    go_on(runner, rows)
    assert [row.ids for row in rows] == [wanted(folder, ids) for ids in prompts()]
    assert all(row.num_cached == len(row.ids) - 1 for row in rows)


def test_a_slot_remembers_nothing_of_the_row_before(folder: Path) -> None:
    runner = runner_of(folder)
    first, second, _ = prompts()
    go_on(runner, [prefilled(runner, Row(second, 0))])
    again = prefilled(runner, Row(first, 0))
    go_on(runner, [again])
    assert again.ids == wanted(folder, first)
    runner.wipe(again.slot, 0)
    runner.rest()
    last = prefilled(runner, Row(second, 0))
    go_on(runner, [last])
    assert last.ids == wanted(folder, second)


def test_logits_are_float32_and_a_rows_do_not_depend_on_its_neighbours(folder: Path) -> None:
    runner = runner_of(folder)

    def last_logits(row: Row, others: list[Row]) -> Tensor:
        rows = [prefilled(runner, each) for each in (row, *others)]
        return runner.decode(rows)[0]

    one, two, three = prompts()
    alone = last_logits(Row(two, 1), [])
    among = last_logits(Row(two, 2), [Row(one, 0), Row(three, 1)])
    assert alone.dtype == torch.float32
    assert torch.equal(alone, among)


def test_what_is_known_of_the_model_is_what_its_config_says(folder: Path) -> None:
    runner = runner_of(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    assert runner.context_length == 512
    assert runner.vocabulary_size == model.config.vocab_size
    assert runner.num_parameters == model.num_parameters()


def test_bfloat16_is_kept_small_and_answers_in_float32(parent: Path) -> None:
    runner = GenericRunner(folder_of("gpt_neox", parent), "bfloat16", 1)
    assert runner.decode([Row([5], 0)]).dtype == torch.float32
    assert {p.dtype for p in runner._model.parameters()} == {torch.bfloat16}


def test_a_model_that_keeps_another_kind_of_memory_is_refused(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1}
    folder = saved(MambaForCausalLM(MambaConfig(**sizes)), tmp_path / "mamba")
    with pytest.raises(ModelUnusable, match="mamba"):
        runner_of(folder)


def test_a_model_that_is_no_causal_one_is_refused(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"vocab_size": 50, "d_model": 16, "d_kv": 4, "num_layers": 1}
    folder = saved(T5ForConditionalGeneration(T5Config(**sizes, num_heads=4)), tmp_path / "t5")
    with pytest.raises(ModelUnusable, match="t5"):
        runner_of(folder)


def test_a_context_that_the_config_does_not_tell_is_presumed(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"vocab_size": 50, "hidden_size": 16, "n_layer": 1, "n_head": 2}
    folder = saved(BloomForCausalLM(BloomConfig(**sizes)), tmp_path / "bloom")
    assert runner_of(folder).context_length == UNKNOWN_CONTEXT_TOKENS
