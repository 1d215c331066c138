"""The configs that the native decoder supports, and the values that it reads from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import GPT2Config, GPTNeoConfig, LlamaConfig

from tests.tiny_models import NATIVE_FAMILIES, tiny_model
from textmill.engine.models.families import describe, load_weights
from textmill.engine.models.rotary import Rope
from textmill.engine.models.weights import DecoderSpec

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def config(family: str, **changes: Any) -> dict[str, Any]:
    kinds: dict[str, type[Any]] = {
        "gpt_neo": GPTNeoConfig,
        "gpt2": GPT2Config,
        "llama": LlamaConfig,
    }
    document: dict[str, Any] = json.loads(kinds[family]().to_json_string(use_diff=False))
    return document | changes


def described(document: dict[str, Any]) -> DecoderSpec:
    spec = describe(document)
    assert spec is not None
    return spec


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("gpt_neo", {"activation_function": "relu"}),
        ("gpt2", {"activation_function": "relu"}),
        ("gpt2", {"scale_attn_weights": False}),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
        ("gpt2", {"add_cross_attention": True}),
        ("llama", {"hidden_act": "gelu"}),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0}}),
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}),
        ("llama", {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}),
        ("llama", {"model_type": "mistral"}),
        ("llama", {"model_type": None}),
    ],
    ids=str,
)
def test_what_ours_cannot_stand_in_for_is_left_to_transformers(
    family: str, changes: dict[str, Any]
) -> None:
    assert describe(config(family)) is not None
    assert describe(config(family, **changes)) is None


@pytest.mark.parametrize("family", NATIVE_FAMILIES)
def test_quantised_weights_are_left_to_transformers(family: str) -> None:
    quantised = config(family, quantization_config={"quant_method": "gptq", "bits": 4})
    assert describe(quantised) is None
    assert describe(config(family, quantization_config=None)) is not None
    # What transformers leaves in the config of a GGUF file that it has turned into plain numbers.
    from_gguf = {"dequantize": False, "gguf_file": "m.gguf", "quant_method": "gguf"}
    assert describe(config(family, quantization_config=from_gguf)) is not None


@pytest.mark.parametrize("family", NATIVE_FAMILIES)
def test_a_config_that_leaves_out_what_we_need_is_left_to_transformers(family: str) -> None:
    """transformers knows defaults for everything; we know a few."""
    assert describe({"model_type": family}) is None
    short_rope = {"rope_type": "llama3", "factor": 8.0}
    assert describe(config("llama", rope_parameters=short_rope)) is None


def test_the_layers_of_gpt_neo_take_turns() -> None:
    spec = described(
        config("gpt_neo", attention_layers=None, attention_types=[[["global", "local"], 12]])
    )
    assert spec.windows == (None, 256) * 12
    assert spec.score_scale == 1.0
    own = described(config("gpt_neo", attention_layers=["local", "global"], num_layers=2))
    assert own.windows == (256, None)


@pytest.mark.parametrize(
    ("changes", "rope"),
    [
        ({"rope_parameters": None, "rope_theta": 5e5}, Rope(5e5)),
        ({"rope_parameters": None}, Rope(10_000.0)),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, Rope(1e6)),
        (
            {"rope_parameters": LLAMA3_ROPE | {"rope_theta": 5e5}},
            Rope(5e5, 8.0, 1.0, 4.0, 8192),
        ),
        (
            {"rope_parameters": None, "rope_scaling": LLAMA3_ROPE, "rope_theta": 5e5},
            Rope(5e5, 8.0, 1.0, 4.0, 8192),
        ),
    ],
    ids=str,
)
def test_rotary_positions_are_read_in_the_old_and_the_new_spelling(
    changes: dict[str, Any], rope: Rope
) -> None:
    document = config("llama", **changes)
    assert described(document).rope == rope


def test_heads_of_llama_default_to_as_many_and_as_wide_as_they_must_be() -> None:
    spec = described(
        config(
            "llama",
            hidden_size=96,
            num_attention_heads=6,
            num_key_value_heads=None,
            head_dim=None,
        )
    )
    assert (spec.num_kv_heads, spec.head_dim, spec.score_scale) == (6, 16, 0.25)


@pytest.mark.parametrize("family", NATIVE_FAMILIES)
def test_names_with_and_without_a_prefix_are_the_same_weights(family: str, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    folder = tiny_model(family)
    spec = described(json.loads((folder / "config.json").read_text()))
    saved = load_file(folder / "model.safetensors")
    bare = {n.removeprefix("transformer.").removeprefix("model."): t for n, t in saved.items()}
    assert bare.keys() != saved.keys()
    one, other = (load_weights(spec, names) for names in (saved, bare))
    assert np.array_equal(one.embedding, other.embedding)
    last, same = list(one.layers)[-1], list(other.layers)[-1]
    assert np.array_equal(last.down[0], same.down[0])
    assert one.head[0] is one.embedding  # tied: one tensor, and counted once
    with pytest.raises(KeyError):
        load_weights(spec, {})
