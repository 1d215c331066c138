"""Checks that a checkpoint has the tensors that a decoder needs, in the right shapes and types.

The kernels get addresses without sizes, so an error in a model's folder must be found here. Only
the files' tables of contents are read. Knows nothing of arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from textmill.engine.models.checkpoint import FLOATS, TensorEntry
from textmill.engine.models.configs import ConfigReader
from textmill.engine.models.errors import ModelUnusable
from textmill.engine.models.families import bare_name
from textmill.engine.models.weights import DecoderSpec

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ExpectedTensor:
    """A tensor that a family's checkpoint contains.

    Attributes:
        is_optional: whether it may be missing; if it exists, its shape is checked.
    """

    name: str
    shape: Shape
    is_optional: bool = False


def check_tensors(
    spec: DecoderSpec, config: Mapping[str, Any], entries: Mapping[str, TensorEntry]
) -> None:
    """Check that a checkpoint has the tensors of a decoder, in the right shapes.

    Args:
        spec: the decoder that ``config`` describes.
        config: the model's ``config.json``.
        entries: the tables of contents, by names with or without the model's prefix.

    Raises:
        ModelUnusable: a tensor is missing, or differs from the config.
    """
    found = {bare_name(name): (name, entry) for name, entry in entries.items()}
    is_tied = bool(config.get("tie_word_embeddings", spec.family != "llama"))
    for expected in _expected(spec, config, is_tied=is_tied):
        if expected.name in found:
            _check(expected, *found[expected.name])
        elif not expected.is_optional:
            raise ModelUnusable(
                f"The weights are incomplete: the tensor {expected.name} of shape"
                f" {list(expected.shape)} is missing. Copy the folder again."
            )
    _check_biases(spec, set(found))


def _check(expected: ExpectedTensor, name: str, entry: TensorEntry) -> None:
    if entry.shape != expected.shape:
        raise ModelUnusable(
            f"The tensor {name} has the shape {list(entry.shape)}, but config.json requires"
            f" {list(expected.shape)}. Copy the folder again, config.json and weights together."
        )
    if entry.dtype not in FLOATS:
        raise ModelUnusable(
            f"The tensor {name} has numbers of the type {entry.dtype}; the supported types are"
            " float32, float16, bfloat16 and float64."
        )


def _check_biases(spec: DecoderSpec, names: set[str]) -> None:
    """Check that of layers that are concatenated, all have a bias or none has."""
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
                    f"The tensor {missing} is missing, but {present[0]} exists. Copy the folder"
                    " again."
                )


def _expected(
    spec: DecoderSpec, config: Mapping[str, Any], *, is_tied: bool
) -> Iterator[ExpectedTensor]:
    table = (spec.vocabulary_size, spec.width)
    if spec.family == "llama":
        yield ExpectedTensor("embed_tokens.weight", table)
        yield ExpectedTensor("norm.weight", (spec.width,))
    else:
        yield ExpectedTensor("wte.weight", table)
        yield ExpectedTensor("wpe.weight", (spec.context_length, spec.width))
        yield from _affine("ln_f", (spec.width,), has_bias=True)
    yield ExpectedTensor("lm_head.weight", table, is_optional=is_tied)
    yield ExpectedTensor("lm_head.bias", (spec.vocabulary_size,), is_optional=True)
    layers = {"gpt_neo": _gpt_neo_layer, "gpt2": _gpt2_layer, "llama": _llama_layer}
    for index in range(spec.num_layers):
        yield from layers[spec.family](spec, config, index)


def _affine(
    name: str, shape: Shape, *, has_bias: bool | None, transposed: bool = False
) -> list[ExpectedTensor]:
    """The tensors of a linear layer or a norm.

    Args:
        name: without ``.weight``.
        shape: of the weight, (out, in) or (width,).
        has_bias: ``None`` if it may have one.
        transposed: whether the file stores the weight as (in, out).
    """
    stored = shape[::-1] if transposed else shape
    bias = ExpectedTensor(f"{name}.bias", shape[:1], is_optional=not has_bias)
    return [ExpectedTensor(f"{name}.weight", stored), bias]


def _gpt_neo_layer(
    spec: DecoderSpec, config: Mapping[str, Any], index: int
) -> Iterator[ExpectedTensor]:
    at, width = f"h.{index}", spec.width
    inner = _inner(config, "intermediate_size", 4 * width)
    for norm in ("ln_1", "ln_2"):
        yield from _affine(f"{at}.{norm}", (width,), has_bias=True)
    for part in "qkv":
        yield from _affine(f"{at}.attn.attention.{part}_proj", (width, width), has_bias=None)
    yield from _affine(f"{at}.attn.attention.out_proj", (width, width), has_bias=True)
    yield from _affine(f"{at}.mlp.c_fc", (inner, width), has_bias=True)
    yield from _affine(f"{at}.mlp.c_proj", (width, inner), has_bias=True)


def _gpt2_layer(
    spec: DecoderSpec, config: Mapping[str, Any], index: int
) -> Iterator[ExpectedTensor]:
    at, width = f"h.{index}", spec.width
    inner = _inner(config, "n_inner", 4 * width)
    for norm in ("ln_1", "ln_2"):
        yield from _affine(f"{at}.{norm}", (width,), has_bias=True)
    yield from _affine(f"{at}.attn.c_attn", (3 * width, width), has_bias=True, transposed=True)
    yield from _affine(f"{at}.attn.c_proj", (width, width), has_bias=True, transposed=True)
    yield from _affine(f"{at}.mlp.c_fc", (inner, width), has_bias=True, transposed=True)
    yield from _affine(f"{at}.mlp.c_proj", (width, inner), has_bias=True, transposed=True)


def _llama_layer(
    spec: DecoderSpec, config: Mapping[str, Any], index: int
) -> Iterator[ExpectedTensor]:
    at, width = f"layers.{index}", spec.width
    inner = _inner(config, "intermediate_size", 11_008)  # the default of transformers
    queries, keys = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    in_attention = True if config.get("attention_bias") else None
    in_feed_forward = True if config.get("mlp_bias") else None
    for norm in ("input_layernorm", "post_attention_layernorm"):
        yield from _affine(f"{at}.{norm}", (width,), has_bias=None)
    shapes = {"q": (queries, width), "k": (keys, width), "v": (keys, width), "o": (width, queries)}
    for part, shape in shapes.items():
        yield from _affine(f"{at}.self_attn.{part}_proj", shape, has_bias=in_attention)
    shapes = {"gate": (inner, width), "up": (inner, width), "down": (width, inner)}
    for part, shape in shapes.items():
        yield from _affine(f"{at}.mlp.{part}_proj", shape, has_bias=in_feed_forward)


def _inner(config: Mapping[str, Any], name: str, default: int) -> int:
    """The feed-forward's inner width."""
    return ConfigReader(config).size(name, default=default)
