"""GGUF files and adapters are converted without PyTorch, to what transformers and PEFT give."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.kernels import KERNEL_DIR, library
from tests.tiny_models import tiny_model
from tests.unit.engine.models.test_sources import bytes_to_unicode, written_gguf
from textmill.engine.models.checkpoint import Checkpoint, weight_files
from textmill.engine.models.errors import ModelUnusable
from textmill.engine.models.lora import product, read_lora
from textmill.engine.models.sources import prepare

TARGETS = {"llama": "q_proj", "gpt2": "c_attn", "gpt_neo": "v_proj"}
# PEFT 0.21 asks transformers 5.23 for a property by its old name.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),  # of tied embeddings
]


def same_bits(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    return torch.equal(ours.view(torch.int32), theirs.float().contiguous().view(torch.int32))


@pytest.mark.parametrize("kind", [Kind.F32, Kind.F16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_1])
def test_a_gguf_file_becomes_what_transformers_reads(kind: Kind, tmp_path: Path) -> None:
    vocabulary = ["<|endoftext|>", *bytes_to_unicode().values(), "th", "the"]
    path, _ = written_gguf(tmp_path / "tiny.gguf", "default", vocabulary, ["t h", "th e"], kind)
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=path.name, dtype=torch.float32
    ).state_dict()
    folder = prepare(str(path), None, tmp_path / "cache", lambda _: None).folder
    ours = load_file(folder / "model.safetensors")
    assert ours.keys() == theirs.keys() - {"lm_head.weight"}  # tied
    assert [name for name in ours if not same_bits(ours[name], theirs[name])] == []


def edited_gguf(path: Path, before: bytes, after: bytes) -> None:
    content = path.read_bytes()
    assert content.count(before) == 1
    path.write_bytes(content.replace(before, after))


@pytest.mark.parametrize(
    ("kind", "says"),
    [(Kind.I8, "I8"), (99, "number 99")],
    ids=["not numbers of a model", "unknown"],
)
def test_a_tensor_of_a_type_that_cannot_be_read_is_refused_by_its_name(
    kind: int, says: str, tmp_path: Path
) -> None:
    vocabulary = ["<|endoftext|>", *bytes_to_unicode().values(), "th", "the"]
    path, _ = written_gguf(tmp_path / "tiny.gguf", "default", vocabulary, ["t h", "th e"])
    name = b"output_norm.weight"  # one dimension of 32 numbers, then the type
    head = name + struct.pack("<IQ", 1, 32)
    edited_gguf(path, head + struct.pack("<I", Kind.F32), head + struct.pack("<I", int(kind)))
    with pytest.raises(ModelUnusable, match=rf"output_norm\.weight has the type {says}"):
        prepare(str(path), None, tmp_path / "cache", lambda _: None)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_gguf_file_whose_numbers_contradict_each_other_is_not_converted(tmp_path: Path) -> None:
    vocabulary = ["<|endoftext|>", *bytes_to_unicode().values(), "th", "the"]
    path, _ = written_gguf(tmp_path / "tiny.gguf", "default", vocabulary, ["t h", "th e"])
    key = b"llama.feed_forward_length" + struct.pack("<I", 4)  # then an unsigned number
    edited_gguf(path, key + struct.pack("<I", 64), key + struct.pack("<I", 65))
    with pytest.raises(ModelUnusable, match=r"mlp\.(gate|up|down)_proj"):
        prepare(str(path), None, tmp_path / "cache", lambda _: None)
    assert list((tmp_path / "cache").iterdir()) == []


def adapter_for(family: str, folder: Path, **options: Any) -> torch.nn.Module:
    """Save an adapter with random numbers, and return the merged model."""
    base = AutoModelForCausalLM.from_pretrained(tiny_model(family))
    torch.manual_seed(1)
    given: dict[str, Any] = {
        "r": 4,
        "target_modules": [TARGETS[family]],
        "fan_in_fan_out": family == "gpt2",
    }
    tuned = get_peft_model(
        base,
        LoraConfig(**(given | options), init_lora_weights=False, task_type="CAUSAL_LM"),
    )
    tuned.save_pretrained(str(folder))
    return tuned.merge_and_unload()


@pytest.mark.parametrize("use_rslora", [False, True])
@pytest.mark.parametrize("family", TARGETS)
def test_a_plain_adapter_is_merged_as_by_peft(
    family: str, use_rslora: bool, tmp_path: Path
) -> None:
    merged = adapter_for(family, tmp_path / "adapter", lora_alpha=12, use_rslora=use_rslora)
    base = Checkpoint(weight_files(tiny_model(family)))
    assert read_lora(tmp_path / "adapter", family, base) is not None
    source, adapter = str(tiny_model(family)), str(tmp_path / "adapter")
    folder = prepare(source, adapter, tmp_path / "cache", lambda _: None).folder
    ours, theirs = load_file(folder / "model.safetensors"), merged.state_dict()
    before = load_file(tiny_model(family) / "model.safetensors")
    assert {name for name in ours if TARGETS[family] in name and name.endswith("weight")} == {
        name for name in ours if not torch.equal(ours[name], before[name])
    }
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"rank_pattern": {"0.self_attn.q_proj": 2}},
        {"alpha_pattern": {"0.self_attn.q_proj": 2}},
        {"use_dora": True},
        {"bias": "all"},
        {"modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj", "embed_tokens"]},
    ],
    ids=lambda options: "-".join(options),
)
def test_an_adapter_with_other_options_is_left_to_peft(
    options: dict[str, Any], tmp_path: Path
) -> None:
    adapter_for("llama", tmp_path, **options)
    assert read_lora(tmp_path, "llama", Checkpoint(weight_files(tiny_model("llama")))) is None


def test_ranks_are_added_one_after_the_other() -> None:
    rng = np.random.default_rng(1)
    b = rng.standard_normal((130, 7), np.float32)
    a = rng.standard_normal((7, 33), np.float32)
    wanted = np.zeros((130, 33), np.float32)
    for row in range(130):
        for column in range(33):
            for rank in range(7):
                wanted[row, column] += b[row, rank] * a[rank, column]
    assert np.array_equal(product(b, a).view(np.int32), wanted.view(np.int32))


LOADING = """
import json, sys
from pathlib import Path
from textmill.core.catalog.models_file import ModelSpec
from textmill.engine import GenerationRequest, InferenceEngine
from textmill.engine.models.loading import load
from textmill.core.strategies import DecodingParameters
source, adapter, cache, kernels = sys.argv[1:]
spec = ModelSpec("m", source, adapter, "auto", True, "")
model = load(spec, cache_dir=Path(cache), dtype="auto", num_slots=4, report=lambda _: None,
             kernel_dir=Path(kernels))
engine = InferenceEngine({"m": model}, num_slots=4)
engine.start()
texts = []
for strategy in ("greedy", "top_p", "typical", "beam"):
    parameters = DecodingParameters(strategy=strategy, max_new_tokens=9, seed=1, trace=True)
    result = engine.submit(GenerationRequest("j", "m", "the", parameters)).result(60)
    assert result.error is None, result.error
    texts.append(result.num_completion_tokens)
engine.stop(60)
print(json.dumps([texts, sorted({"torch", "transformers", "peft"} & set(sys.modules))]))
"""


def test_a_gguf_file_with_an_adapter_is_served_without_torch_in_memory(tmp_path: Path) -> None:
    library()
    vocabulary = ["<|endoftext|>", *bytes_to_unicode().values(), "th", "the"]
    path, model = written_gguf(tmp_path / "tiny.gguf", "default", vocabulary, ["t h", "th e"])
    tuned = get_peft_model(
        model,
        LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM"),
    )
    tuned.save_pretrained(str(tmp_path / "adapter"))
    arguments = [str(path), str(tmp_path / "adapter"), str(tmp_path / "cache"), str(KERNEL_DIR)]
    done = subprocess.run(
        [sys.executable, "-c", LOADING, *arguments], capture_output=True, text=True, check=True
    )
    texts, imported = json.loads(done.stdout.splitlines()[-1])
    assert imported == []
    assert all(0 < count <= 9 for count in texts)
