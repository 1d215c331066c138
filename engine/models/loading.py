"""From a line of the models file to something that computes logits."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from textmill.core.catalog.models_file import ModelSpec
from textmill.engine.models.checkpoint import Checkpoint
from textmill.engine.models.cuda_graphs import GraphRunner
from textmill.engine.models.decoder import Decoder, DecoderSpec, on_device
from textmill.engine.models.errors import ModelUnusable, in_one_line
from textmill.engine.models.families import describe, load_weights
from textmill.engine.models.native_runtime import NativeDecoder
from textmill.engine.models.placement import Placement, place
from textmill.engine.models.provenance import NO_PROVENANCE, Provenance, read_provenance
from textmill.engine.models.runner import KernelRunner, ModelRunner, TorchRunner
from textmill.engine.models.shapes import check_tensors
from textmill.engine.models.sources import prepare, state_of, weight_files
from textmill.engine.models.tokenizer import TextTokenizer

FAST_SLOTS = 64  # the kernels gain throughput up to here, and each text keeps a reader's pace
PLAIN_SLOTS = 16  # more rows gain little in PyTorch on a few cores and make each text slower
PREFIX_BYTES = 64 << 20  # some 2,800 tokens of SmolLM2 in int8
MAX_BEAMS = 8  # a beam search takes so many slots at once, whatever the number of texts
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
    runner: ModelRunner
    tokenizer: TextTokenizer
    info: ModelInfo
    provenance: Provenance = NO_PROVENANCE


def default_num_slots(kernel_dir: Path | None) -> int:
    """Texts that this device decodes at once when the settings do not say."""
    placement = place("auto", kernel_dir, lambda _: None)
    is_fast = placement.library is not None or placement.device != "cpu"
    return FAST_SLOTS if is_fast else PLAIN_SLOTS


def load(
    spec: ModelSpec,
    *,
    cache_dir: Path,
    dtype: str,
    num_slots: int,
    report: Report,
    kernel_dir: Path | None = None,
    prefix_bytes: int = PREFIX_BYTES,
) -> LoadedModel:
    """Prepare a model's files if need be, and load it.

    Args:
        spec: a line of the models file.
        cache_dir: where converted models are kept.
        dtype: ``float32``, ``bfloat16``, ``int8``, or ``auto``, see ``place``.
        num_slots: texts that must fit at once.
        report: gets a sentence about what takes long, or is not as it was asked for.
        kernel_dir: where compiled kernels are kept; ``None`` for PyTorch alone.
        prefix_bytes: how much may be kept of prompts' beginnings.

    Raises:
        ModelLoadError: one sentence on what is wrong and what to do.
    """
    before = state_of(Path(spec.source))
    prepared = prepare(spec.source, spec.adapter, cache_dir, report)
    folder = prepared.folder
    config = _json(folder / "config.json")
    tokenizer = _tokenizer(folder)
    decoder_spec = describe(config)
    slots = max(num_slots, MAX_BEAMS)

    def say(sentence: str) -> None:
        report(f"{spec.name}: {sentence}")

    if decoder_spec is None:
        made = _generic(config, folder, dtype, slots, say)
    else:
        placement = place(dtype, kernel_dir, say)
        made = _native(decoder_spec, config, folder, placement, slots, prefix_bytes)
    _check_tokens(tokenizer, made.facts["vocabulary_size"], folder)
    if folder == Path(spec.source) and state_of(folder) != before:
        raise ModelUnusable(f"The files in {folder} changed while they were read; this passes.")
    info = ModelInfo(
        **made.facts,
        revision=prepared.revision,
        eos_token_ids=_eos_ids(folder, config),
        tokenizer_json=tokenizer.json,
    )
    # With an adapter, what the source says of itself is of another model.
    folders = [Path(spec.adapter)] if spec.adapter else [Path(spec.source), folder]
    return LoadedModel(spec.name, made.runner, tokenizer, info, read_provenance(folders, say))


@dataclass(frozen=True, slots=True)
class _Made:
    runner: ModelRunner
    facts: dict[str, Any]


def _generic(config: dict[str, Any], folder: Path, dtype: str, slots: int, say: Report) -> _Made:
    from textmill.engine.models.torch_runtime import GenericRunner  # noqa: PLC0415 - transformers, seconds

    say("no runtime of ours for this family; transformers' is used, slowly")
    if dtype == "int8":
        say("int8 is for families of our own; float32 is used")
    chosen = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    runner = GenericRunner(folder, chosen, slots)
    facts = {
        "family": f"generic:{config.get('model_type')}",
        "path": "generic",
        "dtype": str(chosen).removeprefix("torch."),
        "context_length": runner.context_length,
        "vocabulary_size": runner.vocabulary_size,
        "num_parameters": runner.num_parameters,
    }
    return _Made(runner, facts)


def _native(
    spec: DecoderSpec,
    config: dict[str, Any],
    folder: Path,
    placement: Placement,
    slots: int,
    prefix_bytes: int,
) -> _Made:
    runner: ModelRunner
    decoder: Decoder | NativeDecoder
    try:
        checkpoint = Checkpoint(weight_files(folder))
        check_tensors(spec, config, checkpoint.entries)
        weights = load_weights(spec, checkpoint, placement.torch_dtype)
        if placement.device != "cpu":
            device = torch.device(placement.device)
            decoder = Decoder(spec, on_device(weights, device), slots)
            runner = GraphRunner(decoder, slots, prefix_bytes=prefix_bytes)
            runner.warm_up()
        elif placement.library is None:
            decoder = Decoder(spec, weights, slots)
            runner = TorchRunner(decoder, prefix_bytes=prefix_bytes)
        else:
            decoder = NativeDecoder(
                spec,
                weights,
                slots,
                library=placement.library,
                is_int8=placement.dtype == "int8",
                num_threads=torch.get_num_threads(),
            )
            runner = KernelRunner(decoder, prefix_bytes=prefix_bytes)
    except torch.OutOfMemoryError as error:
        raise ModelUnusable(
            f"The GPU has no room for the model and the key-value cache of {slots} texts;"
            " lower TEXTMILL_SLOTS."
        ) from error
    except OSError as error:
        raise ModelUnusable(
            f"The weights in {folder} are not complete ({in_one_line(error)});"
            " copy the folder again."
        ) from error
    except (MemoryError, RuntimeError) as error:  # PyTorch's allocator raises RuntimeError
        raise ModelUnusable(
            f"The model in {folder} cannot be held for {slots} texts ({in_one_line(error)});"
            " free some memory, or lower TEXTMILL_SLOTS."
        ) from error
    facts = {
        "family": spec.family,
        "path": "native",
        "dtype": placement.dtype,
        "context_length": spec.context_length,
        "vocabulary_size": spec.vocabulary_size,
        "num_parameters": decoder.num_parameters,
    }
    return _Made(runner, facts)


def _tokenizer(folder: Path) -> TextTokenizer:
    try:
        return TextTokenizer(folder / "tokenizer.json")
    except Exception as error:  # whatever the file holds in place of a tokenizer's parts
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
    ids = found if isinstance(found, list) else [] if found is None else [found]
    if not all(type(token) is int for token in ids):
        raise ModelUnusable(f"{folder}: eos_token_id is {found!r}; it must be token ids.")
    return frozenset(ids)


def _check_tokens(tokenizer: TextTokenizer, vocabulary_size: int, folder: Path) -> None:
    """See that every token of the tokenizer has a row in the embedding."""
    largest = tokenizer.largest_id
    if largest >= vocabulary_size:
        raise ModelUnusable(
            f"The tokenizer in {folder} has the token id {largest}"
            f" ({tokenizer.text_of(largest)!r}), but the model has {vocabulary_size} tokens, ids 0"
            f" to {vocabulary_size - 1}; take the tokenizer that belongs to the weights, or call"
            " resize_token_embeddings on the model."
        )
