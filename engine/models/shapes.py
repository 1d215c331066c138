"""Which tensors a decoder of ours needs, and whether a checkpoint has them in shape and type.

The kernels get addresses without sizes, so whatever is wrong with a model's folder must be found
here. Only the files' tables of contents are looked at. Knows nothing of arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from textmill.engine.models.checkpoint import TensorEntry
from textmill.engine.models.configs import ConfigReader
from textmill.engine.models.decoder import DecoderSpec
from textmill.engine.models.errors import ModelUnusable
from textmill.engine.models.families import bare_name

_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Wanted:
    """A tensor that a family has.

    Attributes:
        is_optional: whether it may be missing; where it is there, its shape counts.
    """

    name: str
    shape: Shape
    is_optional: bool = False


def check_tensors(
    spec: DecoderSpec, config: Mapping[str, Any], entries: Mapping[str, TensorEntry]
) -> None:
    """See that a checkpoint has what a family's decoder takes, in the right shapes.

    Args:
        spec: what ``config`` asks for.
        config: the model's ``config.json``.
        entries: by the names in the files, with or without the model's prefix.

    Raises:
        ModelUnusable: a tensor is missing, or is not what the config says.
    """
    found = {bare_name(name): (name, entry) for name, entry in entries.items()}
    is_tied = bool(config.get("tie_word_embeddings", spec.family != "llama"))
    for wanted in _wanted(spec, config, is_tied=is_tied):
        if wanted.name in found:
            _check(wanted, *found[wanted.name])
        elif not wanted.is_optional:
            raise ModelUnusable(
                f"The weights are not complete: the tensor {wanted.name} of shape"
                f" {list(wanted.shape)} is missing; copy the folder again."
            )
    _check_biases(spec, set(found))


def _check(wanted: Wanted, name: str, entry: TensorEntry) -> None:
    if entry.shape != wanted.shape:
        raise ModelUnusable(
            f"The tensor {name} has the shape {list(entry.shape)}; by config.json it must have"
            f" {list(wanted.shape)}. Copy the folder again, config.json and weights together."
        )
    if entry.dtype not in _FLOATS:
        kind = str(entry.dtype).removeprefix("torch.")
        raise ModelUnusable(
            f"The tensor {name} has numbers of the type {kind}; float32, float16, bfloat16 and"
            " float64 can be served."
        )


def _check_biases(spec: DecoderSpec, names: set[str]) -> None:
    """Products that are computed as one have a bias all or none."""
    if spec.family == "gpt2":
        return
    groups: list[tuple[str, ...]] = [("attn.attention.{}_proj", "q", "k", "v")]
    if spec.family == "llama":
        groups = [("self_attn.{}_proj", "q", "k", "v"), ("mlp.{}_proj", "gate", "up")]
    at = "layers" if spec.family == "llama" else "h"
    for index in range(spec.num_layers):
        for pattern, *parts in groups:
            biases = [f"{at}.{index}.{pattern.format(part)}.bias" for part in parts]
            present = [name for name in biases if name in names]
            if present and len(present) < len(biases):
                missing = next(name for name in biases if name not in names)
                raise ModelUnusable(
                    f"The tensor {missing} is missing, while {present[0]} is there; copy the"
                    " folder again."
                )


def _wanted(spec: DecoderSpec, config: Mapping[str, Any], *, is_tied: bool) -> Iterator[Wanted]:
    table = (spec.vocabulary_size, spec.width)
    if spec.family == "llama":
        yield Wanted("embed_tokens.weight", table)
        yield Wanted("norm.weight", (spec.width,))
    else:
        yield Wanted("wte.weight", table)
        yield Wanted("wpe.weight", (spec.context_length, spec.width))
        yield from _affine("ln_f", (spec.width,), has_bias=True)
    yield Wanted("lm_head.weight", table, is_optional=is_tied)
    yield Wanted("lm_head.bias", (spec.vocabulary_size,), is_optional=True)
    layers = {"gpt_neo": _gpt_neo_layer, "gpt2": _gpt2_layer, "llama": _llama_layer}
    for index in range(spec.num_layers):
        yield from layers[spec.family](spec, config, index)


def _affine(
    name: str, shape: Shape, *, has_bias: bool | None, turned: bool = False
) -> list[Wanted]:
    """A product's or a norm's tensors.

    Args:
        name: without ``.weight``.
        shape: of the weight, (out, in) or (width,).
        has_bias: ``None`` where both ways are known.
        turned: whether the file has the weight as (in, out).
    """
    stored = shape[::-1] if turned else shape
    bias = Wanted(f"{name}.bias", shape[:1], is_optional=not has_bias)
    return [Wanted(f"{name}.weight", stored), bias]


def _gpt_neo_layer(spec: DecoderSpec, config: Mapping[str, Any], index: int) -> Iterator[Wanted]:
    at, width = f"h.{index}", spec.width
    inner = _inner(config, "intermediate_size", 4 * width)
    for norm in ("ln_1", "ln_2"):
        yield from _affine(f"{at}.{norm}", (width,), has_bias=True)
    for part in "qkv":
        yield from _affine(f"{at}.attn.attention.{part}_proj", (width, width), has_bias=None)
    yield from _affine(f"{at}.attn.attention.out_proj", (width, width), has_bias=True)
    yield from _affine(f"{at}.mlp.c_fc", (inner, width), has_bias=True)
    yield from _affine(f"{at}.mlp.c_proj", (width, inner), has_bias=True)


def _gpt2_layer(spec: DecoderSpec, config: Mapping[str, Any], index: int) -> Iterator[Wanted]:
    at, width = f"h.{index}", spec.width
    inner = _inner(config, "n_inner", 4 * width)
    for norm in ("ln_1", "ln_2"):
        yield from _affine(f"{at}.{norm}", (width,), has_bias=True)
    yield from _affine(f"{at}.attn.c_attn", (3 * width, width), has_bias=True, turned=True)
    yield from _affine(f"{at}.attn.c_proj", (width, width), has_bias=True, turned=True)
    yield from _affine(f"{at}.mlp.c_fc", (inner, width), has_bias=True, turned=True)
    yield from _affine(f"{at}.mlp.c_proj", (width, inner), has_bias=True, turned=True)


def _llama_layer(spec: DecoderSpec, config: Mapping[str, Any], index: int) -> Iterator[Wanted]:
    at, width = f"layers.{index}", spec.width
    inner = _inner(config, "intermediate_size", 11_008)  # transformers' own default
    queries, keys = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    in_attention = True if config.get("attention_bias") else None
    in_feed_forward = True if config.get("mlp_bias") else None
    for norm in ("input_layernorm", "post_attention_layernorm"):
        yield from _affine(f"{at}.{norm}", (width,), has_bias=None)
    shapes = {"q": (queries, width), "k": (keys, width), "v": (keys, width), "o": (width, queries)}
    for part, shape in shapes.items():
        yield from _affine(f"{at}.self_attn.{part}_proj", shape, has_bias=in_attention)
    for part, shape in {
        "gate": (inner, width),
        "up": (inner, width),
        "down": (width, inner),
    }.items():
        yield from _affine(f"{at}.mlp.{part}_proj", shape, has_bias=in_feed_forward)


def _inner(config: Mapping[str, Any], name: str, default: int) -> int:
    """The feed-forward's inner width."""
    return ConfigReader(config).size(name, default=default)
