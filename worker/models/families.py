"""How GPT-Neo, GPT-2 and Llama checkpoints become one ``Decoder``: names, shapes, constants."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from worker.models.decoder import DecoderSpec, DecoderWeights, LayerWeights

Config = Mapping[str, Any]
Checkpoint = Mapping[str, Tensor]
FAMILIES = ("gpt_neo", "gpt2", "llama")


def describe(config: Config) -> DecoderSpec | None:
    """The decoder that a ``config.json`` asks for; ``None`` where ours cannot stand in."""
    describers = {"gpt_neo": _gpt_neo, "gpt2": _gpt2, "llama": _llama}
    describer = describers.get(config.get("model_type", ""))
    return describer(config) if describer else None


def _gpt_neo(config: Config) -> DecoderSpec | None:
    if config.get("activation_function", "gelu_new") != "gelu_new":
        return None
    width, heads = config["hidden_size"], config["num_heads"]
    if config.get("intermediate_size") not in (None, 4 * width) and not config["intermediate_size"]:
        return None
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
        positions="learned",
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
    if any(config.get(name, value) != value for name, value in usual.items()):
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
        positions="learned",
        feed_forward="gelu",
        score_scale=(width // heads) ** -0.5,
        windows=(None,) * config["n_layer"],
    )


def _llama(config: Config) -> DecoderSpec | None:
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default" or config.get("hidden_act", "silu") != "silu":
        return None
    if config.get("attention_bias") or config.get("mlp_bias"):
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
        positions="rotary",
        feed_forward="swiglu",
        score_scale=head_dim**-0.5,
        windows=(None,) * config["num_hidden_layers"],
        rope_theta=float(rope.get("rope_theta") or config.get("rope_theta") or 10_000.0),
    )


def take_weights(spec: DecoderSpec, checkpoint: Checkpoint, dtype: torch.dtype) -> DecoderWeights:
    """Name, turn round and merge a checkpoint's tensors as ``Decoder`` wants them."""
    named = {
        name.removeprefix("transformer.").removeprefix("model."): t
        for name, t in checkpoint.items()
    }

    def get(name: str) -> Tensor:
        return named[name].to(dtype)

    takers = {"gpt_neo": _gpt_neo_layer, "gpt2": _gpt2_layer, "llama": _llama_layer}
    layers = [takers[spec.family](get, index) for index in range(spec.num_layers)]
    final: tuple[Tensor, Tensor | None]
    if spec.family == "llama":
        embedding, final = get("embed_tokens.weight"), (get("norm.weight"), None)
        position_embedding = None
    else:
        embedding, final = get("wte.weight"), (get("ln_f.weight"), get("ln_f.bias"))
        position_embedding = get("wpe.weight")
    head = get("lm_head.weight") if "lm_head.weight" in named else embedding
    return DecoderWeights(embedding, position_embedding, layers, final, head)


def _gpt_neo_layer(get: Any, index: int) -> LayerWeights:
    at = f"h.{index}."
    merged = torch.cat([get(f"{at}attn.attention.{name}_proj.weight") for name in "qkv"])
    return LayerWeights(
        norm1=(get(at + "ln_1.weight"), get(at + "ln_1.bias")),
        qkv=(merged, None),
        out=(get(at + "attn.attention.out_proj.weight"), get(at + "attn.attention.out_proj.bias")),
        norm2=(get(at + "ln_2.weight"), get(at + "ln_2.bias")),
        up=(get(at + "mlp.c_fc.weight"), get(at + "mlp.c_fc.bias")),
        down=(get(at + "mlp.c_proj.weight"), get(at + "mlp.c_proj.bias")),
    )


def _gpt2_layer(get: Any, index: int) -> LayerWeights:
    at = f"h.{index}."

    def turned(name: str) -> tuple[Tensor, Tensor]:  # Conv1D keeps (in, out)
        return get(f"{at}{name}.weight").T.contiguous(), get(f"{at}{name}.bias")

    return LayerWeights(
        norm1=(get(at + "ln_1.weight"), get(at + "ln_1.bias")),
        qkv=turned("attn.c_attn"),
        out=turned("attn.c_proj"),
        norm2=(get(at + "ln_2.weight"), get(at + "ln_2.bias")),
        up=turned("mlp.c_fc"),
        down=turned("mlp.c_proj"),
    )


def _llama_layer(get: Any, index: int) -> LayerWeights:
    at = f"layers.{index}."
    merged = torch.cat([get(f"{at}self_attn.{name}_proj.weight") for name in "qkv"])
    gated = torch.cat([get(f"{at}mlp.{name}_proj.weight") for name in ("gate", "up")])
    return LayerWeights(
        norm1=(get(at + "input_layernorm.weight"), None),
        qkv=(merged, None),
        out=(get(at + "self_attn.o_proj.weight"), None),
        norm2=(get(at + "post_attention_layernorm.weight"), None),
        up=(gated, None),
        down=(get(at + "mlp.down_proj.weight"), None),
    )
