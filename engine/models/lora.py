"""Merges a LoRA adapter (Hu et al., 2021) into weights, with the same bits on every processor.

W + scale · (B A): the products for each rank are added in the order of ranks, each product and sum
rounded to float32. BLAS, which PEFT uses, adds in another order on each processor. Adapters with
any option beyond rank, alpha and the scale's rule are left to PEFT.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from textmill.engine.models.checkpoint import FLOATS, Checkpoint
from textmill.engine.models.families import bare_name
from textmill.engine.models.safetensors_writer import Float32

_BLOCK_ROWS = 64  # of a weight, so that sums stay in the processor's caches
_PREFIX = "base_model.model."
# Options that do not change how a trained adapter is merged. All others must be unset.
_IRRELEVANT = {
    "auto_mapping", "base_model_name_or_path", "fan_in_fan_out", "inference_mode", "lora_alpha",
    "lora_dropout", "megatron_core", "peft_type", "peft_version", "qalora_group_size", "r",
    "revision", "target_modules", "task_type", "use_rslora",
}  # fmt: skip
_USUAL = {"bias", "init_lora_weights"}  # checked by their values


@dataclass(frozen=True, slots=True)
class LoraPair:
    """The names of an adapter's two matrices for one weight: (rank, in) and (out, rank)."""

    a: str
    b: str


class LoraMerge:
    """An adapter that fits a checkpoint."""

    def __init__(
        self, adapter: Checkpoint, pairs: Mapping[str, LoraPair], scale: float, *, is_conv: bool
    ) -> None:
        self._adapter = adapter
        self._pairs = pairs
        self._scale = np.float32(scale)
        self._is_conv = is_conv

    def merged(self, name: str, weight: Float32) -> Float32:
        """The weight with the adapter's part, if there is one; ``name`` is without prefix."""
        pair = self._pairs.get(name)
        if pair is None:
            return weight
        a, b = (np.asarray(self._adapter[n], np.float32) for n in (pair.a, pair.b))
        delta = product(b, a) * self._scale
        return weight + (delta.T if self._is_conv else delta)


def product(b: Float32, a: Float32) -> Float32:
    """B A, (out, in) float32, added in the order of ranks."""
    total = np.zeros((len(b), a.shape[1]), np.float32)
    for start in range(0, len(b), _BLOCK_ROWS):
        rows, factors = total[start : start + _BLOCK_ROWS], b[start : start + _BLOCK_ROWS]
        term = np.empty_like(rows)
        for rank in range(len(a)):
            np.multiply(factors[:, rank, None], a[rank], out=term)
            rows += term
    return total


def read_lora(adapter: Path, family: str, weights: Checkpoint) -> LoraMerge | None:
    """The adapter's merge into a checkpoint; ``None`` if PEFT must do it, or refuse it.

    Args:
        adapter: its folder.
        family: of the base model, one of the natively supported.
        weights: of the base model.
    """
    path = adapter / "adapter_model.safetensors"
    try:
        config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(config, dict) or not _is_usual(config) or not path.is_file():
        return None
    found = Checkpoint([path])
    bare = {bare_name(name): name for name in weights}
    pairs = {}
    for name in bare:
        module = name.removesuffix(".weight")
        if name.endswith(".weight") and module.rpartition(".")[2] in config["target_modules"]:
            # The names in the adapter are those of the model's class.
            prefix = "transformer." if family != "llama" else "model."
            stem = f"{_PREFIX}{prefix}{module}"
            pairs[name] = LoraPair(f"{stem}.lora_A.weight", f"{stem}.lora_B.weight")
    expected = {n for pair in pairs.values() for n in (pair.a, pair.b)}
    is_conv = family == "gpt2"
    rank = config["r"]
    if not pairs or expected != set(found):
        return None
    for name, pair in pairs.items():
        shape = weights.entries[bare[name]].shape
        if len(shape) != 2 or _is_outer(name):
            return None
        out, width = shape[::-1] if is_conv else shape
        a, b = found.entries[pair.a], found.entries[pair.b]
        if (
            a.shape != (rank, width)
            or b.shape != (out, rank)
            or not {a.dtype, b.dtype} <= {*FLOATS}
        ):
            return None
    scale = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return LoraMerge(found, pairs, scale, is_conv=is_conv)


def _is_outer(name: str) -> bool:
    """Whether it is an embedding or the head, which may be tied to each other."""
    return name.startswith(("embed_tokens", "lm_head", "wte", "wpe"))


def _is_usual(config: Mapping[str, Any]) -> bool:
    rank, alpha, targets = (config.get(name) for name in ("r", "lora_alpha", "target_modules"))
    if config.get("peft_type") != "LORA" or type(rank) is not int or rank < 1:
        return False
    if type(alpha) not in (int, float) or not isinstance(targets, list):
        return False
    if not all(isinstance(target, str) and "." not in target for target in targets):
        return False
    if config.get("bias", "none") != "none" or config.get("init_lora_weights", True) not in (
        True,
        False,
        "gaussian",
    ):
        return False
    others = config.keys() - _IRRELEVANT - _USUAL
    return not any(config[name] for name in others)
