"""The decoder against transformers, and the independence of sequences."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from tests.kernels import library
from tests.tiny_models import NATIVE_FAMILIES, tiny_model
from textmill.engine.models.decoder import Decoder, in_torch
from textmill.engine.models.families import describe, load_weights
from textmill.engine.models.native_runtime import NativeDecoder
from textmill.engine.models.runner import PREFILL_CHUNK_TOKENS, KernelRunner
from textmill.engine.models.torch_runner import TorchRunner

NUM_SLOTS = 9
PREFIX_BYTES = 1 << 20
families = pytest.mark.parametrize("family", NATIVE_FAMILIES)
kinds = pytest.mark.parametrize("kind", ["torch", "kernels", "int8"])
exact_kinds = pytest.mark.parametrize("kind", ["torch", "kernels"])


class TensorDecoder(NativeDecoder):
    """Takes and returns tensors instead of arrays, which the tests compare with PyTorch's."""

    def forward(self, *arguments: Any) -> Any:
        return torch.from_numpy(super().forward(*arguments))

    def sample(self, logits: Any, *arguments: Any) -> None:
        super().sample(np.asarray(logits), *arguments)


class TensorRunner(KernelRunner):
    """The same for a runner."""

    def score(self, ids: list[int], slot: int = 0) -> Any:
        places = range(len(ids))
        logits: Any = self._decoder.forward(ids, places, [slot] * len(ids), places)
        return logits.clone()

    def log_softmax(self, logits: Any) -> Any:
        return torch.from_numpy(super().log_softmax(np.asarray(logits)))


TestedRunner = TorchRunner | TensorRunner


class PlainEntry:
    """A minimal batch entry."""

    def __init__(self, ids: list[int], slot: int) -> None:
        self.ids = list(ids)
        self.num_cached = 0
        self.slot = slot


def decoder_from(folder: Path, dtype: torch.dtype = torch.float32) -> Decoder:
    spec = describe(json.loads((folder / "config.json").read_text()))
    assert spec is not None
    weights = load_weights(spec, load_file(folder / "model.safetensors"))
    return Decoder(spec, in_torch(weights, dtype), NUM_SLOTS)


def runner_from(folder: Path, kind: str) -> TestedRunner:
    if kind == "torch":
        return TorchRunner(decoder_from(folder), prefix_bytes=PREFIX_BYTES)
    return TensorRunner(native_from(folder, is_int8=kind == "int8"), prefix_bytes=PREFIX_BYTES)


def native_from(
    folder: Path,
    *,
    is_int8: bool,
    num_threads: int = 1,
    is_cache_int8: bool | None = None,
    num_slots: int = NUM_SLOTS,
) -> TensorDecoder:
    spec = describe(json.loads((folder / "config.json").read_text()))
    assert spec is not None
    weights = load_weights(spec, load_file(folder / "model.safetensors"))
    return TensorDecoder(
        spec,
        weights,
        num_slots,
        library=library(),
        is_int8=is_int8,
        num_threads=num_threads,
        is_cache_int8=is_cache_int8,
    )


def random_ids(count: int, seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(1, 350) for _ in range(count)]


def reference(folder: Path, ids: list[int]) -> Tensor:
    """transformers' logits after every token, (length, vocabulary)."""
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.inference_mode():
        logits: Tensor = model(torch.tensor([ids])).logits[0]
    return logits


def decoded(runner: TestedRunner, rows: list[PlainEntry], texts: list[list[int]]) -> list[Tensor]:
    """Feed given tokens to entries that end at different times; logits after each token."""
    logits: list[list[Tensor]] = [[] for _ in rows]
    for row in rows:
        while row.num_cached < len(row.ids) - 1:
            prefill_chunk(runner, row)
    while True:
        running = [i for i, row in enumerate(rows) if len(logits[i]) < len(texts[i])]
        if not running:
            return [torch.stack(own) for own in logits]
        step = runner.decode([rows[i] for i in running])
        for place, i in enumerate(running):
            rows[i].ids.append(texts[i][len(logits[i])])
            logits[i].append(step[place].clone())


def prefill_chunk(runner: TestedRunner, row: PlainEntry) -> None:
    taken = runner.chunk_tokens(0)
    runner.prefill([(row, min(row.num_cached + taken, len(row.ids) - 1))])


@exact_kinds
@families
def test_logits_equal_those_of_transformers_at_every_position(family: str, kind: str) -> None:
    folder = tiny_model(family)
    ids = random_ids(200, seed=1)
    ours = runner_from(folder, kind).score(ids, slot=3)
    torch.testing.assert_close(ours, reference(folder, ids), atol=1e-4, rtol=1e-4)


@exact_kinds
@families
def test_a_ragged_batch_gives_each_row_the_logits_of_transformers(family: str, kind: str) -> None:
    folder = tiny_model(family)
    lengths = [1, 2, 63, 64, 65, 130, 170]
    texts = [random_ids(length + 20, seed=length) for length in lengths]
    slots = random.Random(0).sample(range(NUM_SLOTS), len(lengths))
    rows = [
        PlainEntry(text[:length], slot)
        for text, length, slot in zip(texts, lengths, slots, strict=True)
    ]
    runner = runner_from(folder, kind)
    forced = [text[length:] for text, length in zip(texts, lengths, strict=True)]
    for own, text, length in zip(decoded(runner, rows, forced), texts, lengths, strict=True):
        wanted = reference(folder, text)[length - 1 : length + 19]
        torch.testing.assert_close(own, wanted, atol=1e-4, rtol=1e-4)


@kinds
@families
def test_a_rows_logits_do_not_depend_on_neighbours_slot_or_arrival(family: str, kind: str) -> None:
    """Bit for bit: a sequence does not depend on the rest of the batch."""
    runner = runner_from(tiny_model(family), kind)
    prompt, text = random_ids(70, seed=5), random_ids(30, seed=6)
    alone = decoded(runner, [PlainEntry(prompt, 0)], [text])[0]
    rng = random.Random(7)
    for trial in range(12):
        num_rows = rng.randint(1, NUM_SLOTS)
        slots = rng.sample(range(NUM_SLOTS), num_rows)
        prompts = [random_ids(rng.choice([1, 5, 64, 150, 200]), seed=trial) for _ in slots[1:]]
        rows = [PlainEntry(p, s) for p, s in zip([prompt, *prompts], slots, strict=True)]
        texts = [text, *(random_ids(rng.randint(1, 40), seed=trial) for _ in slots[1:])]
        together = decoded(runner, rows, texts)[0]
        assert torch.equal(together, alone), f"{num_rows} rows in slots {slots}"


@pytest.mark.parametrize("num_out", [960, 3072])
def test_a_products_rows_do_not_depend_on_how_many_they_are_when_padded(num_out: int) -> None:
    """At SmolLM2's real width, where the library takes its large kernels and two threads."""
    torch.set_num_threads(2)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(num_out, 576, generator=generator)
    rows = torch.randn(64, 576, generator=generator)
    whole = torch.nn.functional.linear(rows, weight)
    for num_rows in range(4, 64, 4):
        part = torch.nn.functional.linear(rows[:num_rows], weight)
        assert torch.equal(part, whole[:num_rows]), num_rows


@exact_kinds
@families
def test_prefill_in_chunks_equals_one_pass(family: str, kind: str) -> None:
    folder = tiny_model(family)
    ids = random_ids(PREFILL_CHUNK_TOKENS + 40, seed=3)
    runner = runner_from(folder, kind)
    row = PlainEntry(ids, 2)
    for end in (PREFILL_CHUNK_TOKENS, len(ids) - 1):
        runner.prefill([(row, end)])
    wanted = reference(folder, ids)[-1]
    torch.testing.assert_close(runner.decode([row])[0], wanted, atol=1e-4, rtol=1e-4)


@kinds
@families
def test_a_slot_remembers_nothing_of_the_row_before(family: str, kind: str) -> None:
    runner = runner_from(tiny_model(family), kind)
    short, text = random_ids(10, seed=1), random_ids(5, seed=2)
    fresh = decoded(runner, [PlainEntry(short, 1)], [text])[0]
    decoded(runner, [PlainEntry(random_ids(180, seed=3), 1)], [random_ids(20, seed=4)])
    assert torch.equal(decoded(runner, [PlainEntry(short, 1)], [text])[0], fresh)
    runner.rest()
    assert torch.equal(decoded(runner, [PlainEntry(short, 1)], [text])[0], fresh)


@kinds
def test_a_wiped_row_leaves_no_nan_behind(kind: str) -> None:
    runner = runner_from(tiny_model("llama"), kind)
    short, text = random_ids(4, seed=1), random_ids(3, seed=2)
    fresh = decoded(runner, [PlainEntry(short, 0)], [text])[0]
    for numbers in (runner.cache.values, runner.cache.keys):
        is_int8 = kind == "int8"
        numbers[0][0, :, :40] = -1 if is_int8 else torch.nan  # a scale of all bits is NaN
    runner.wipe(0, 40)
    assert torch.equal(decoded(runner, [PlainEntry(short, 0)], [text])[0], fresh)


def test_memory_is_taken_where_tokens_stand_and_given_back() -> None:
    cache = decoder_from(tiny_model("llama")).cache
    cache.keys[0][:, :, :8] = 1.0
    cache.release_all()
    assert not cache.keys[0].any()


@kinds
@families
def test_a_forked_text_goes_on_like_the_one_it_came_from(family: str, kind: str) -> None:
    runner = runner_from(tiny_model(family), kind)
    prompt, text = random_ids(90, seed=1), random_ids(20, seed=2)
    row = PlainEntry(prompt, 1)
    wanted = decoded(runner, [row], [text])[0]
    runner.fork(1, 5, 0, 70)
    runner.fork(1, 5, 70, len(prompt) - 1)
    child = PlainEntry(prompt, 5)
    child.num_cached = len(prompt) - 1
    assert torch.equal(decoded(runner, [child], [text])[0], wanted)


@kinds
@families
def test_a_recalled_prompt_goes_on_as_if_it_were_computed(family: str, kind: str) -> None:
    """Bit for bit, whether all of it was known or only its beginning."""
    prompt, text = random_ids(190, seed=1), random_ids(8, seed=2)
    wanted = decoded(runner_from(tiny_model(family), kind), [PlainEntry(prompt, 0)], [text])[0]
    for beginning in (prompt, prompt[:150], [*prompt[:140], 3, 4, 5], prompt[:20]):
        runner = runner_from(tiny_model(family), kind)
        first = PlainEntry(beginning, 2)
        decoded(runner, [first], [[7]])
        first.ids, first.num_cached = beginning, len(beginning) - 1
        runner.keep(first)
        runner.release(2)
        row = PlainEntry(prompt, 4)
        runner.recall(row)
        assert (row.num_cached > 0) == (kind != "torch" or len(beginning) > 140)
        assert torch.equal(decoded(runner, [row], [text])[0], wanted)


@families
def test_a_known_prompt_in_bfloat16_is_rounded_as_if_it_were_computed(family: str) -> None:
    """There a prompt's last token goes with the others, and no known beginning may change that."""
    for seed in range(10):
        prompt = random_ids(40 + seed, seed)
        decoder = decoder_from(tiny_model(family), torch.bfloat16)
        runner = TorchRunner(decoder, prefix_bytes=PREFIX_BYTES)
        found = []
        for slot in (1, 4):
            row = PlainEntry(prompt, slot)
            runner.recall(row)
            if row.num_cached < len(prompt) - 1:
                runner.prefill([(row, len(prompt) - 1)])
            runner.keep(row)
            found.append(runner.decode([row]))
        assert torch.equal(*found), seed


@kinds
def test_a_released_slot_takes_no_memory_and_leaves_its_neighbours_alone(kind: str) -> None:
    runner = runner_from(tiny_model("llama", context_length=4096), kind)
    rows = [PlainEntry(random_ids(3000, seed=slot), slot) for slot in range(3)]
    decoded(runner, rows, [[1]] * 3)
    before = [np.asarray(runner.cache.values[:, slot]).copy() for slot in range(3)]
    runner.release(1)
    assert np.array_equal(runner.cache.values[:, 0], before[0])
    assert np.array_equal(runner.cache.values[:, 2], before[2])
    assert not runner.cache.values[:, 1, 0, 300:2900].any()  # whole pages


def test_two_threads_compute_the_same_as_one() -> None:
    for family in NATIVE_FAMILIES:
        for is_int8 in (False, True):
            found = []
            for num_threads in (1, 2, 3):
                decoder = native_from(tiny_model(family), is_int8=is_int8, num_threads=num_threads)
                runner = TensorRunner(decoder, prefix_bytes=0)
                found.append(runner.score(random_ids(100, seed=1)))
            assert torch.equal(found[0], found[1])
            assert torch.equal(found[0], found[2])


@families
def test_bfloat16_is_near_float32(family: str) -> None:
    folder = tiny_model(family)
    ids = torch.tensor([random_ids(60, seed=9)])
    start, slots = torch.tensor([0]), torch.tensor([0])
    exact = decoder_from(folder).forward(ids, start, slots)
    rough = decoder_from(folder, torch.bfloat16).forward(ids, start, slots)
    assert rough.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(exact, rough).item() > 0.99


@pytest.mark.parametrize(
    "options",
    [
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500_000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
        {"attention_bias": True, "mlp_bias": True},
        {"head_dim": 16, "tie_word_embeddings": False},
        {"num_key_value_heads": 6},
    ],
    ids=["llama3-rope", "biases", "own head_dim, untied", "no groups"],
)
def test_variants_of_llama_are_served_alike(options: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        **{
            "vocab_size": 400,
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "max_position_embeddings": 256,
            "tie_word_embeddings": True,
            **options,
        }
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    model.save_pretrained(tmp_path)
    ids = random_ids(150, seed=4)
    for kind in ("torch", "kernels"):
        ours = runner_from(tmp_path, kind).score(ids)
        torch.testing.assert_close(ours, reference(tmp_path, ids), atol=1e-4, rtol=1e-4)


def test_what_we_do_not_implement_is_left_to_transformers() -> None:
    llama = {"model_type": "llama", "hidden_act": "silu"}
    assert describe({"model_type": "opt"}) is None
    assert describe({**llama, "hidden_act": "gelu"}) is None
    assert describe({**llama, "rope_scaling": {"rope_type": "yarn", "factor": 2.0}}) is None
    assert describe({"model_type": "gpt2", "activation_function": "relu"}) is None
    assert describe({"model_type": "gpt_neo", "activation_function": "relu"}) is None
