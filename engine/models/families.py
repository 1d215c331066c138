"""Maps GPT-Neo, GPT-2 and Llama configs and checkpoints to one ``Decoder``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from textmill.engine.models.checkpoint import Checkpoint as StoredCheckpoint
from textmill.engine.models.configs import MAX_LAYERS, ConfigReader
from textmill.engine.models.rotary import Rope
from textmill.engine.models.weights import (
    Affine,
    DecoderSpec,
    DecoderWeights,
    Float32,
    LayerWeights,
    Rows,
)

Config = Mapping[str, Any]
Checkpoint = Mapping[str, NDArray[Any]]
Layer = LayerWeights[Rows]
WeightAndBias = Affine[Rows]


def describe(config: Config) -> DecoderSpec | None:
    """The decoder that a ``config.json`` describes; ``None`` if it needs the generic runtime.

    Raises:
        ModelUnusable: a number in it is invalid.
    """
    describers = {"gpt_neo": _gpt_neo, "gpt2": _gpt2, "llama": _llama}
    kind = config.get("model_type")
    describer = describers.get(kind) if isinstance(kind, str) else None
    if describer is None or _is_quantized(config):
        return None
    try:
        return describer(config)
    except KeyError:  # transformers knows the default of a missing field
        return None


def _is_quantized(config: Config) -> bool:
    """Whether the tensors are quantized; those of a config that was read from GGUF are not."""
    found = config.get("quantization_config")
    return bool(found) and not (isinstance(found, dict) and found.get("quant_method") == "gguf")


def _has_only(config: Config, usual: Mapping[str, Any]) -> bool:
    """Whether settings that are not implemented have their usual values."""
    return all(config.get(name, value) == value for name, value in usual.items())


def _gpt_neo(config: Config) -> DecoderSpec | None:
    if not _has_only(config, {"activation_function": "gelu_new"}):
        return None
    numbers = ConfigReader(config)
    width, heads = numbers.size("hidden_size"), numbers.size("num_heads")
    num_layers = numbers.size("num_layers", maximum=MAX_LAYERS)
    window = numbers.size("window_size")
    kinds = _kinds(config, num_layers)
    return DecoderSpec(
        family="gpt_neo",
        num_layers=num_layers,
        width=width,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=_head_dim(numbers, "num_heads", width, heads),
        context_length=numbers.size("max_position_embeddings"),
        vocabulary_size=numbers.size("vocab_size"),
        norm="layer",
        norm_eps=_eps(numbers, "layer_norm_epsilon", 1e-5),
        feed_forward="gelu",
        score_scale=1.0,  # GPT-Neo was trained without the division by sqrt(head_dim)
        windows=tuple(window if kind == "local" else None for kind in kinds),
    )


def _kinds(config: Config, num_layers: int) -> list[str]:
    """The kind of attention of each GPT-Neo layer, from either spelling in the config."""
    kinds = config.get("attention_layers")
    if not kinds:
        kinds = []
        pairs = config["attention_types"]
        if not isinstance(pairs, list):
            raise ConfigReader(config).wrong("attention_types", "a list")
        for pair in pairs:
            if not isinstance(pair, list) or len(pair) != 2 or not isinstance(pair[0], list):
                raise ConfigReader(config).wrong("attention_types", "pairs of kinds and a number")
            repeat = ConfigReader({"the repetitions": pair[1]}, "attention_types, ").size(
                "the repetitions", maximum=MAX_LAYERS
            )
            kinds += pair[0] * repeat
    is_known = isinstance(kinds, list) and all(kind in ("global", "local") for kind in kinds)
    if not is_known or len(kinds) != num_layers:
        name = "attention_layers" if config.get("attention_layers") else "attention_types"
        wanted = f"'global' or 'local' for each of the {num_layers} layers"
        raise ConfigReader(config).wrong(name, wanted)
    return kinds


def _gpt2(config: Config) -> DecoderSpec | None:
    usual = {
        "activation_function": "gelu_new",
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
    }
    if not _has_only(config, usual):
        return None
    numbers = ConfigReader(config)
    width, heads = numbers.size("n_embd"), numbers.size("n_head")
    num_layers = numbers.size("n_layer", maximum=MAX_LAYERS)
    head_dim = _head_dim(numbers, "n_head", width, heads)
    return DecoderSpec(
        family="gpt2",
        num_layers=num_layers,
        width=width,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=head_dim,
        context_length=numbers.size("n_positions"),
        vocabulary_size=numbers.size("vocab_size"),
        norm="layer",
        norm_eps=_eps(numbers, "layer_norm_epsilon", 1e-5),
        feed_forward="gelu",
        score_scale=head_dim**-0.5,
        windows=(None,) * num_layers,
    )


def _llama(config: Config) -> DecoderSpec | None:
    rope = _rope(config)
    if rope is None or not _has_only(config, {"hidden_act": "silu"}):
        return None
    numbers = ConfigReader(config)
    width, heads = numbers.size("hidden_size"), numbers.size("num_attention_heads")
    num_layers = numbers.size("num_hidden_layers", maximum=MAX_LAYERS)
    kv_heads = numbers.size("num_key_value_heads", default=heads)
    if heads % kv_heads:
        raise numbers.wrong("num_key_value_heads", f"a divisor of num_attention_heads, {heads}")
    if config.get("head_dim") is None:
        head_dim = _head_dim(numbers, "num_attention_heads", width, heads)
    else:
        head_dim = numbers.size("head_dim")
    if head_dim % 2:
        raise numbers.wrong("head_dim", f"an even number for rotary positions, but is {head_dim}")
    return DecoderSpec(
        family="llama",
        num_layers=num_layers,
        width=width,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        context_length=numbers.size("max_position_embeddings"),
        vocabulary_size=numbers.size("vocab_size"),
        norm="rms",
        norm_eps=_eps(numbers, "rms_norm_eps", 1e-6),
        feed_forward="swiglu",
        score_scale=head_dim**-0.5,
        windows=(None,) * num_layers,
        rope=rope,
    )


def _head_dim(numbers: ConfigReader, name: str, width: int, heads: int) -> int:
    if width % heads:
        raise numbers.wrong(name, f"a divisor of the width, {width}")
    return width // heads


def _eps(numbers: ConfigReader, name: str, default: float) -> float:
    return numbers.number(name, minimum=1e-12, maximum=1.0, default=default)


def _rope(config: Config) -> Rope | None:
    """The rotary positions; ``None`` for scalings other than Llama 3's."""
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(scaling, dict):
        name = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
        raise ConfigReader(config).wrong(name, "an object")
    inside = ConfigReader(scaling, "rope parameter ")
    outer = inside if scaling.get("rope_theta") else ConfigReader(config)
    theta = outer.number("rope_theta", minimum=1.0, maximum=1e12, default=10_000.0)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if scaling.get("partial_rotary_factor", 1.0) != 1.0 or kind not in ("default", "llama3"):
        return None
    if kind == "default":
        return Rope(theta)
    low = inside.number("low_freq_factor", minimum=1e-3, maximum=1e3)
    high = inside.number("high_freq_factor", minimum=1e-3, maximum=1e3)
    if high <= low:
        raise inside.wrong("high_freq_factor", f"above low_freq_factor, {low:g}")
    return Rope(
        theta,
        factor=inside.number("factor", minimum=1e-3, maximum=1e6),
        low_freq_factor=low,
        high_freq_factor=high,
        original_context_length=inside.size("original_max_position_embeddings"),
    )


class _Names:
    """A checkpoint's tensors by their names without prefix, converted to float32."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._names = {bare_name(name): name for name in checkpoint}

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def tensor(self, name: str) -> Float32:
        return np.asarray(self._checkpoint[self._names[name]], np.float32)

    def rows(self, name: str) -> Rows:
        """A large tensor, which is read by parts if it is in a file."""
        stored = self._checkpoint
        return (
            stored.rows(self._names[name])
            if isinstance(stored, StoredCheckpoint)
            else self.tensor(name)
        )

    def affine(self, name: str) -> tuple[Float32, Float32 | None]:
        return self.tensor(f"{name}.weight"), self.bias(name)

    def bias(self, name: str) -> Float32 | None:
        return self.tensor(f"{name}.bias") if f"{name}.bias" in self else None

    def transposed(self, name: str) -> tuple[Float32, Float32 | None]:
        """A linear layer of GPT-2, whose Conv1D stores its weight as (in, out)."""
        weight, bias = self.affine(name)
        return np.ascontiguousarray(weight.T), bias

    def stacked(self, *names: str) -> tuple[Float32, Float32 | None]:
        """Several linear layers of the same input, concatenated to one."""
        weights, stored = [f"{name}.weight" for name in names], self._checkpoint
        if isinstance(stored, StoredCheckpoint):
            weight = stored.stacked([self._names[name] for name in weights])
        else:
            weight = np.concatenate([self.tensor(name) for name in weights])
        present = [bias for name in names if (bias := self.bias(name)) is not None]
        return weight, np.concatenate(present) if present else None


def bare_name(name: str) -> str:
    """A tensor's name without the prefix of the model's class."""
    return name.removeprefix("transformer.").removeprefix("model.")


def load_weights(spec: DecoderSpec, checkpoint: Checkpoint) -> DecoderWeights[Rows]:
    """Name, transpose and concatenate a checkpoint's tensors, in float32.

    The layers are an iterator, and the embedding and the head of a stored checkpoint are read by
    parts, so that a runtime that packs them need not hold all of them.

    Raises:
        KeyError: the checkpoint lacks a tensor.
    """
    names = _Names(checkpoint)
    loaders: dict[str, Callable[[_Names, int], Layer]]
    loaders = {"gpt_neo": _gpt_neo_layer, "gpt2": _gpt2_layer, "llama": _llama_layer}
    layers = (loaders[spec.family](names, index) for index in range(spec.num_layers))
    if spec.family == "llama":
        embedding, final = names.rows("embed_tokens.weight"), names.affine("norm")
        position_embedding = None
    else:
        embedding, final = names.rows("wte.weight"), names.affine("ln_f")
        position_embedding = names.tensor("wpe.weight")
    head: WeightAndBias = (embedding, None)
    if "lm_head.weight" in names:
        head = names.rows("lm_head.weight"), names.bias("lm_head")
    return DecoderWeights(embedding, position_embedding, layers, final, head)


def _gpt_neo_layer(names: _Names, index: int) -> Layer:
    at = f"h.{index}"
    return LayerWeights(
        norm1=names.affine(f"{at}.ln_1"),
        qkv=names.stacked(*(f"{at}.attn.attention.{name}_proj" for name in "qkv")),
        out=names.affine(f"{at}.attn.attention.out_proj"),
        norm2=names.affine(f"{at}.ln_2"),
        up=names.affine(f"{at}.mlp.c_fc"),
        down=names.affine(f"{at}.mlp.c_proj"),
    )


def _gpt2_layer(names: _Names, index: int) -> Layer:
    at = f"h.{index}"
    return LayerWeights(
        norm1=names.affine(f"{at}.ln_1"),
        qkv=names.transposed(f"{at}.attn.c_attn"),
        out=names.transposed(f"{at}.attn.c_proj"),
        norm2=names.affine(f"{at}.ln_2"),
        up=names.transposed(f"{at}.mlp.c_fc"),
        down=names.transposed(f"{at}.mlp.c_proj"),
    )


def _llama_layer(names: _Names, index: int) -> Layer:
    at = f"layers.{index}"
    return LayerWeights(
        norm1=names.affine(f"{at}.input_layernorm"),
        qkv=names.stacked(*(f"{at}.self_attn.{name}_proj" for name in "qkv")),
        out=names.affine(f"{at}.self_attn.o_proj"),
        norm2=names.affine(f"{at}.post_attention_layernorm"),
        up=names.stacked(f"{at}.mlp.gate_proj", f"{at}.mlp.up_proj"),
        down=names.affine(f"{at}.mlp.down_proj"),
    )
