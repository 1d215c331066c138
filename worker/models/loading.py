"""From a line of the models file to something that computes logits."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from core.model_catalog import ModelSpec
from worker.models.decoder import Decoder
from worker.models.errors import ModelUnusable
from worker.models.families import describe, take_weights
from worker.models.runner import NativeRunner, Runner
from worker.models.sources import prepare
from worker.models.tokenizer import TextTokenizer

CPU_SLOTS = 16  # more rows gain little in float32 on a few cores and make each text slower
CUDA_SLOTS = 128
Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What is known of a loaded model; ``path`` is ``native`` or ``generic``."""

    family: str
    path: str
    num_parameters: int
    context_length: int
    vocabulary_size: int
    dtype: str
    revision: str
    eos_token_ids: frozenset[int]
    tokenizer_json: str | None


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModel:
    """A model in memory, with the tokenizer that goes with it."""

    name: str
    runner: Runner
    tokenizer: TextTokenizer
    info: ModelInfo


def default_num_slots() -> int:
    """Sequences that this device decodes at once when the settings do not say."""
    return CUDA_SLOTS if torch.cuda.is_available() else CPU_SLOTS


def load(
    spec: ModelSpec, *, cache_dir: Path, dtype: str, num_slots: int, report: Report
) -> LoadedModel:
    """Prepare a model's files if need be, and load it.

    Raises:
        ModelLoadError: one sentence on what is wrong and what to do.
    """
    prepared = prepare(spec.source, spec.adapter, cache_dir, report)
    folder = prepared.folder
    config = _json(folder / "config.json")
    chosen = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    tokenizer = TextTokenizer(folder / "tokenizer.json")
    decoder_spec = describe(config)
    if decoder_spec is None:
        from worker.models.generic import GenericRunner  # noqa: PLC0415 - imports transformers, seconds

        runner: Any = GenericRunner(folder, chosen, num_slots)
        family, path = f"generic:{config.get('model_type')}", "generic"
        context, vocabulary = runner.context_length, runner.vocabulary_size
        num_parameters = runner.num_parameters
    else:
        checkpoint: dict[str, torch.Tensor] = {}
        for file in sorted(folder.glob("*.safetensors")):
            checkpoint |= load_file(file)
        try:
            weights = take_weights(decoder_spec, checkpoint, chosen)
        except KeyError as error:
            raise ModelUnusable(
                f"{spec.source}: the weights lack {error}; is the folder a complete copy?"
            ) from error
        num_parameters = sum(
            t.numel() for t in {t.data_ptr(): t for t in checkpoint.values()}.values()
        )
        runner = NativeRunner(Decoder(decoder_spec, weights, num_slots))
        family, path = decoder_spec.family, "native"
        context, vocabulary = decoder_spec.context_length, decoder_spec.vocabulary_size
    info = ModelInfo(
        family=family,
        path=path,
        num_parameters=num_parameters,
        context_length=context,
        vocabulary_size=vocabulary,
        dtype="bfloat16" if chosen is torch.bfloat16 else "float32",
        revision=prepared.revision,
        eos_token_ids=_eos_ids(folder, config),
        tokenizer_json=tokenizer.json,
    )
    return LoadedModel(spec.name, runner, tokenizer, info)


def _json(path: Path) -> dict[str, Any]:
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelUnusable(f"{path} cannot be read as JSON: {error}") from error
    return document


def _eos_ids(folder: Path, config: dict[str, Any]) -> frozenset[int]:
    generation = folder / "generation_config.json"
    found = _json(generation).get("eos_token_id") if generation.exists() else None
    found = config.get("eos_token_id") if found is None else found
    return frozenset([found] if isinstance(found, int) else found or [])
