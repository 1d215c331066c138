"""Converts a .gguf file of the Llama family into a folder, without PyTorch or transformers.

The files have the same bytes as those that transformers saves, so revisions are the same. Files
with anything else than the usual metadata and tensors are left to transformers.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from textmill.engine.models.errors import ModelUnusable
from textmill.engine.models.gguf_file import GgufFile
from textmill.engine.models.safetensors_writer import Float32, write_float32

_SIZES = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "embedding_length": "hidden_size",
    "rope.dimension_count": "head_dim",
    "rope.freq_base": "rope_theta",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "vocab_size": "vocab_size",
}
_OUTER = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_INNER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def convert_gguf(path: Path, folder: Path) -> bool:
    """Write config.json, generation_config.json and model.safetensors.

    Returns:
        False if the file needs transformers; then nothing was written.

    Raises:
        ModelUnusable: the file is damaged, or has a tensor of a type that cannot be read.
    """
    file = GgufFile(path)
    config = _config(file)
    names = None if config is None else _names(file, config["num_hidden_layers"])
    if config is None or names is None:
        return False

    def read(name: str) -> Float32:
        array = file.tensor(names[name])
        if not np.isfinite(array).all():
            raise ModelUnusable(f"{path}: the tensor {name} contains values that are not finite.")
        if name.endswith("q_proj.weight"):
            return _unpermuted(array, config["num_attention_heads"])
        if name.endswith("k_proj.weight"):
            return _unpermuted(array, config["num_key_value_heads"])
        return array

    shapes = {name: file.tensors[own].shape for name, own in names.items()}
    write_float32(folder / "model.safetensors", shapes, read)
    _write_json(folder / "config.json", config)
    ends = ("bos_token_id", "eos_token_id", "pad_token_id", "transformers_version", "use_cache")
    generation = {name: config[name] for name in ends if config[name] is not None}
    marks = {"_from_model_config": True, "output_attentions": False, "output_hidden_states": False}
    _write_json(folder / "generation_config.json", generation | marks)
    return True


def _config(file: GgufFile) -> dict[str, Any] | None:
    """The config that transformers saves; ``None`` if the file has metadata that is not usual."""
    fields = file.fields
    own = {
        name.removeprefix("llama."): value
        for name, value in fields.items()
        if name.startswith("llama.")
    }
    tokens = {
        role: fields.get(f"tokenizer.ggml.{key}_token_id")
        for role, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown"))
    }
    is_usual = fields.get("general.architecture") == "llama" and own.keys() == _SIZES.keys()
    numbers = [*own.values(), tokens["bos"], tokens["eos"]]
    if not is_usual or not all(type(number) in (int, float) for number in numbers):
        return None
    heads, kv_heads = own["attention.head_count"], own["attention.head_count_kv"]
    if not (heads and kv_heads and type(heads) is type(kv_heads) is int):
        return None
    config = {name: own[key] for key, name in _SIZES.items() if name != "rope_theta"}
    config |= {f"{role}_token_id": token for role, token in tokens.items() if token is not None}
    if "general.name" in fields:
        config["_model_name_or_path"] = fields["general.name"]
    return config | {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "dtype": "float32",
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "mlp_bias": False,
        "model_type": "llama",
        "pad_token_id": tokens["pad"],
        "pretraining_tp": 1,
        "rope_parameters": {"rope_theta": own["rope.freq_base"], "rope_type": "default"},
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "transformers_version": version("transformers"),
        "use_cache": True,
    }


def _names(file: GgufFile, num_layers: int) -> dict[str, str] | None:
    """The file's tensors by their names in transformers; ``None`` if others are there, or fewer."""
    names = {own: name for name, own in _OUTER.items() if name in file.tensors}
    for index in range(num_layers):
        for name, own in _INNER.items():
            names[f"model.layers.{index}.{own}.weight"] = f"blk.{index}.{name}.weight"
    is_usual = set(names.values()) == file.tensors.keys() and "model.norm.weight" in names
    return names if is_usual and "model.embed_tokens.weight" in names else None


def _unpermuted(weight: Float32, num_heads: int) -> Float32:
    """Undo llama.cpp's order of rotary pairs: rows (pair, half) become (half, pair)."""
    rows, width = weight.shape
    pairs = weight.reshape(num_heads, rows // num_heads // 2, 2, width)
    return pairs.swapaxes(1, 2).reshape(rows, width)


def _write_json(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n", encoding="utf-8")
