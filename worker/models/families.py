"""How GPT-Neo, GPT-2 and Llama checkpoints become one ``Decoder``: names, shapes, constants."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from worker.models.decoder import Affine, DecoderSpec, DecoderWeights, LayerWeights, Rope

Config = Mapping[str, Any]
Checkpoint = Mapping[str, Tensor]


def describe(config: Config) -> DecoderSpec | None:
    """The decoder that a ``config.json`` asks for; ``None`` where ours cannot stand in."""
    describers = {"gpt_neo": _gpt_neo, "gpt2": _gpt2, "llama": _llama}
    describer = describers.get(config.get("model_type", ""))
    if describer is None or _is_quantised(config):
        return None
    try:
        return describer(config)
    except KeyError:  # transformers knows a default for what is left out
        return None


def _is_quantised(config: Config) -> bool:
    """Whether the tensors are not plain numbers; what was read from GGUF says so and is none."""
    method = (config.get("quantization_config") or {}).get("quant_method")
    return bool(config.get("quantization_config")) and method != "gguf"


def _has_only(config: Config, usual: Mapping[str, Any]) -> bool:
    """Whether the settings that we do not implement have their usual values."""
    return all(config.get(name, value) == value for name, value in usual.items())


def _gpt_neo(config: Config) -> DecoderSpec | None:
    if not _has_only(config, {"activation_function": "gelu_new"}):
        return None
    width, heads = config["hidden_size"], config["num_heads"]
    kinds = config.get("attention_layers") or [
        kind for kinds, repeat in config["attention_types"] for _ in range(repeat) for kind in kinds
    ]
    window = config["window_size"]
    return DecoderSpec(
        family="gpt_neo",
        num_layers=config["num_layers"],
        width=width,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=width // heads,
        context_length=config["max_position_embeddings"],
        vocabulary_size=config["vocab_size"],
        norm="layer",
        norm_eps=config.get("layer_norm_epsilon", 1e-5),
        feed_forward="gelu",
        score_scale=1.0,  # GPT-Neo was trained without the division by sqrt(head_dim)
        windows=tuple(window if kind == "local" else None for kind in kinds),
    )


def _gpt2(config: Config) -> DecoderSpec | None:
    usual = {
        "activation_function": "gelu_new",
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
    }
    if not _has_only(config, usual):
        return None
    width, heads = config["n_embd"], config["n_head"]
    return DecoderSpec(
        family="gpt2",
        num_layers=config["n_layer"],
        width=width,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=width // heads,
        context_length=config["n_positions"],
        vocabulary_size=config["vocab_size"],
        norm="layer",
        norm_eps=config.get("layer_norm_epsilon", 1e-5),
        feed_forward="gelu",
        score_scale=(width // heads) ** -0.5,
        windows=(None,) * config["n_layer"],
    )


def _llama(config: Config) -> DecoderSpec | None:
    rope = _rope(config)
    if rope is None or not _has_only(config, {"hidden_act": "silu"}):
        return None
    width, heads = config["hidden_size"], config["num_attention_heads"]
    head_dim = config.get("head_dim") or width // heads
    return DecoderSpec(
        family="llama",
        num_layers=config["num_hidden_layers"],
        width=width,
        num_heads=heads,
        num_kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=head_dim,
        context_length=config["max_position_embeddings"],
        vocabulary_size=config["vocab_size"],
        norm="rms",
        norm_eps=config.get("rms_norm_eps", 1e-6),
        feed_forward="swiglu",
        score_scale=head_dim**-0.5,
        windows=(None,) * config["num_hidden_layers"],
        rope=rope,
    )


def _rope(config: Config) -> Rope | None:
    """The rotary positions; ``None`` for scalings other than Llama 3's."""
    given = config.get("rope_scaling") or config.get("rope_parameters") or {}
    theta = float(given.get("rope_theta") or config.get("rope_theta") or 10_000.0)
    kind = given.get("rope_type", given.get("type", "default"))
    if given.get("partial_rotary_factor", 1.0) != 1.0 or kind not in ("default", "llama3"):
        return None
    if kind == "default":
        return Rope(theta)
    return Rope(
        theta,
        factor=given["factor"],
        low_freq_factor=given["low_freq_factor"],
        high_freq_factor=given["high_freq_factor"],
        original_context_length=given["original_max_position_embeddings"],
    )


class _Names:
    """A checkpoint's tensors by their names without prefix, in the type that is computed with."""

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype) -> None:
        self._checkpoint = checkpoint
        self._names = {
            name.removeprefix("transformer.").removeprefix("model."): name for name in checkpoint
        }
        self._dtype = dtype

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def tensor(self, name: str) -> Tensor:
        return self._checkpoint[self._names[name]].to(self._dtype)

    def affine(self, name: str) -> Affine:
        bias = f"{name}.bias"
        return self.tensor(f"{name}.weight"), self.tensor(bias) if bias in self else None

    def turned(self, name: str) -> Affine:
        """GPT-2's Conv1D keeps its weight as (in, out)."""
        weight, bias = self.affine(name)
        return weight.T.contiguous(), bias

    def stacked(self, *names: str) -> Affine:
        """Several products of the same input as one."""
        weights, biases = zip(*(self.affine(name) for name in names), strict=True)
        present = [bias for bias in biases if bias is not None]
        return torch.cat(weights), torch.cat(present) if present else None


def take_weights(spec: DecoderSpec, checkpoint: Checkpoint, dtype: torch.dtype) -> DecoderWeights:
    """Name, turn round and merge a checkpoint's tensors as ``Decoder`` wants them.

    The layers are an iterator, to be gone through once: who packs them need not hold them all.

    Raises:
        KeyError: the checkpoint lacks a tensor.
    """
    names = _Names(checkpoint, dtype)
    takers: dict[str, Callable[[_Names, int], LayerWeights]]
    takers = {"gpt_neo": _gpt_neo_layer, "gpt2": _gpt2_layer, "llama": _llama_layer}
    layers = (takers[spec.family](names, index) for index in range(spec.num_layers))
    if spec.family == "llama":
        embedding, final = names.tensor("embed_tokens.weight"), names.affine("norm")
        position_embedding = None
    else:
        embedding, final = names.tensor("wte.weight"), names.affine("ln_f")
        position_embedding = names.tensor("wpe.weight")
    head = names.affine("lm_head") if "lm_head.weight" in names else (embedding, None)
    return DecoderWeights(embedding, position_embedding, layers, final, head)


def _gpt_neo_layer(names: _Names, index: int) -> LayerWeights:
    at = f"h.{index}"
    return LayerWeights(
        norm1=names.affine(f"{at}.ln_1"),
        qkv=names.stacked(*(f"{at}.attn.attention.{name}_proj" for name in "qkv")),
        out=names.affine(f"{at}.attn.attention.out_proj"),
        norm2=names.affine(f"{at}.ln_2"),
        up=names.affine(f"{at}.mlp.c_fc"),
        down=names.affine(f"{at}.mlp.c_proj"),
    )


def _gpt2_layer(names: _Names, index: int) -> LayerWeights:
    at = f"h.{index}"
    return LayerWeights(
        norm1=names.affine(f"{at}.ln_1"),
        qkv=names.turned(f"{at}.attn.c_attn"),
        out=names.turned(f"{at}.attn.c_proj"),
        norm2=names.affine(f"{at}.ln_2"),
        up=names.turned(f"{at}.mlp.c_fc"),
        down=names.turned(f"{at}.mlp.c_proj"),
    )


def _llama_layer(names: _Names, index: int) -> LayerWeights:
    at = f"layers.{index}"
    return LayerWeights(
        norm1=names.affine(f"{at}.input_layernorm"),
        qkv=names.stacked(*(f"{at}.self_attn.{name}_proj" for name in "qkv")),
        out=names.affine(f"{at}.self_attn.o_proj"),
        norm2=names.affine(f"{at}.post_attention_layernorm"),
        up=names.stacked(f"{at}.mlp.gate_proj", f"{at}.mlp.up_proj"),
        down=names.affine(f"{at}.mlp.down_proj"),
    )
