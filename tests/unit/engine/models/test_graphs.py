"""The static step of the GPU path, computed on a CPU: the same arithmetic without the recording."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.tiny_models import NATIVE_FAMILIES, tiny_model
from tests.unit.engine.models.test_decoder import (
    NUM_SLOTS,
    PREFIX_BYTES,
    PlainEntry,
    decoded,
    random_ids,
    reference,
)
from textmill.engine.models.attention import fused
from textmill.engine.models.cuda_graphs import GraphRunner, bucket_of, buckets
from textmill.engine.models.decoder import Decoder, on_device
from textmill.engine.models.families import describe, load_weights

families = pytest.mark.parametrize("family", NATIVE_FAMILIES)


def graph_runner(folder: Path, dtype: torch.dtype = torch.float32) -> GraphRunner:
    spec = describe(json.loads((folder / "config.json").read_text()))
    assert spec is not None
    weights = load_weights(spec, load_file(folder / "model.safetensors"), dtype)
    weights = on_device(weights, torch.device("cpu"))
    decoder = Decoder(spec, weights, NUM_SLOTS, attention=fused)
    return GraphRunner(decoder, NUM_SLOTS, prefix_bytes=PREFIX_BYTES)


@families
def test_logits_are_those_of_transformers_in_any_slots(family: str) -> None:
    folder = tiny_model(family)
    texts = [random_ids(length, length) for length in (3, 70, 9, 140)]
    rows = [PlainEntry(text[:2], slot) for text, slot in zip(texts, (8, 0, 5, 2), strict=True)]
    found = decoded(graph_runner(folder), rows, [text[2:] for text in texts])
    for text, logits in zip(texts, found, strict=True):
        torch.testing.assert_close(logits, reference(folder, text)[1:-1], rtol=0, atol=1e-4)


@families
def test_a_row_has_the_same_last_bit_alone_and_beside_any_others(family: str) -> None:
    folder = tiny_model(family)
    text = random_ids(90, 1)
    alone = decoded(graph_runner(folder), [PlainEntry(text[:2], 3)], [text[2:]])[0]
    others = [random_ids(length, length + 7) for length in (200, 5, 60)]
    rows = [PlainEntry(t[:2], slot) for t, slot in zip([text, *others], (3, 0, 7, 4), strict=True)]
    beside = decoded(graph_runner(folder), rows, [t[2:] for t in [text, *others]])[0]
    assert torch.equal(alone, beside)


def test_a_prompt_that_is_being_prefilled_is_not_disturbed_by_running_texts() -> None:
    folder = tiny_model("gpt_neo")
    runner = graph_runner(folder)
    prompt, running = random_ids(60, 2), PlainEntry(random_ids(4, 3), 1)
    waiting = PlainEntry(prompt, 0)
    runner.prefill([(running, 3)])
    for end in range(10, 60, 10):
        runner.prefill([(waiting, end)])
        runner.decode([running])
        running.ids.append(7)
    runner.prefill([(waiting, 59)])
    logits = runner.decode([waiting])[0]
    torch.testing.assert_close(logits, reference(folder, prompt)[-1], rtol=0, atol=1e-4)


def test_one_step_is_made_for_each_bucket_of_live_positions() -> None:
    runner = graph_runner(tiny_model("llama"))
    runner.warm_up()
    assert runner.num_steps == 3  # 64, 128 and 256, the context
    row = PlainEntry(random_ids(5, 4), 0)
    runner.prefill([(row, 4)])
    runner.decode([row])
    assert runner.num_steps == 3


@pytest.mark.parametrize(
    ("first", "last", "sizes"),
    [(64, 256, (64, 128, 256)), (64, 200, (64, 128, 200)), (64, 64, (64,)), (64, 40, (40,))],
)
def test_buckets_double_up_to_what_there_is(first: int, last: int, sizes: tuple[int, ...]) -> None:
    assert buckets(first, last) == sizes
    assert [bucket_of(sizes, size) for size in (1, last)] == [sizes[0], last]
