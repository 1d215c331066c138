"""From a line of the models file to something that computes logits."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from core.model_catalog import ModelSpec
from worker.models.decoder import Decoder, DecoderSpec
from worker.models.errors import ModelUnusable, in_one_line
from worker.models.families import describe, take_weights
from worker.models.runner import NativeRunner, Runner
from worker.models.sources import prepare, weight_files
from worker.models.tokenizer import TextTokenizer

DEFAULT_SLOTS = 16  # more rows gain little in float32 on a few cores and make each text slower
Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What is known of a loaded model.

    Attributes:
        family: ``gpt_neo``, ``gpt2``, ``llama``, or ``generic:`` and transformers' model type.
        path: ``native`` or ``generic``.
        dtype: what the weights are held and multiplied in.
        revision: changes with weights, config or tokenizer.
        eos_token_ids: tokens that end a text.
        tokenizer_json: the whole tokenizer, so that the web side counts alike.
    """

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
    return DEFAULT_SLOTS


def load(
    spec: ModelSpec, *, cache_dir: Path, dtype: str, num_slots: int, report: Report
) -> LoadedModel:
    """Prepare a model's files if need be, and load it.

    Args:
        spec: a line of the models file.
        cache_dir: where converted models are kept.
        dtype: ``float32``, ``bfloat16``, ``int8`` or ``auto``; the last two are float32 for now.
        num_slots: sequences that must fit at once.
        report: gets a sentence about what takes long.

    Raises:
        ModelLoadError: one sentence on what is wrong and what to do.
    """
    prepared = prepare(spec.source, spec.adapter, cache_dir, report)
    folder = prepared.folder
    config = _json(folder / "config.json")
    if dtype == "int8":
        report(f"{spec.name}: int8 is not there yet; float32 is used")
    chosen = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    tokenizer = _tokenizer(folder)
    runner: Runner
    decoder_spec = describe(config)
    if decoder_spec is None:
        from worker.models.generic import GenericRunner  # noqa: PLC0415 - transformers, seconds

        report(f"{spec.name}: no runtime of ours for this family; transformers' is used, slowly")
        runner = generic = GenericRunner(folder, chosen, num_slots)
        family, path = f"generic:{config.get('model_type')}", "generic"
        context, vocabulary = generic.context_length, generic.vocabulary_size
        num_parameters = generic.num_parameters
    else:
        decoder, num_parameters = _decoder(decoder_spec, folder, chosen, num_slots)
        runner = NativeRunner(decoder)
        family, path = decoder_spec.family, "native"
        context, vocabulary = decoder_spec.context_length, decoder_spec.vocabulary_size
    info = ModelInfo(
        family=family,
        path=path,
        num_parameters=num_parameters,
        context_length=context,
        vocabulary_size=vocabulary,
        dtype=str(chosen).removeprefix("torch."),
        revision=prepared.revision,
        eos_token_ids=_eos_ids(folder, config),
        tokenizer_json=tokenizer.json,
    )
    return LoadedModel(spec.name, runner, tokenizer, info)


def _decoder(
    spec: DecoderSpec, folder: Path, dtype: torch.dtype, num_slots: int
) -> tuple[Decoder, int]:
    """The decoder with its weights, and how many there are."""
    checkpoint: dict[str, torch.Tensor] = {}
    try:
        for file in weight_files(folder):
            checkpoint |= load_file(file)
        weights = take_weights(spec, checkpoint, dtype)
    except (KeyError, OSError, SafetensorError) as error:
        raise ModelUnusable(
            f"The weights in {folder} are not complete ({in_one_line(error)});"
            " copy the folder again."
        ) from error
    return Decoder(spec, weights, num_slots), weights.num_parameters()


def _tokenizer(folder: Path) -> TextTokenizer:
    try:
        return TextTokenizer(folder / "tokenizer.json")
    except Exception as error:  # tokenizers raises bare Exception
        raise ModelUnusable(
            f"{folder / 'tokenizer.json'} cannot be read: {in_one_line(error)}"
        ) from error


def _json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelUnusable(f"{path} cannot be read as JSON: {in_one_line(error)}") from error
    if not isinstance(document, dict):
        raise ModelUnusable(f"{path} holds no JSON object; copy the folder again.")
    return document


def _eos_ids(folder: Path, config: dict[str, Any]) -> frozenset[int]:
    generation = folder / "generation_config.json"
    found = _json(generation).get("eos_token_id") if generation.exists() else None
    found = config.get("eos_token_id") if found is None else found
    return frozenset([found] if isinstance(found, int) else found or [])
