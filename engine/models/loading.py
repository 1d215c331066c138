"""Loads an entry of the models file: its files, its runtime and its tokenizer."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from textmill.core.catalog.models_file import ModelSpec
from textmill.engine.kernels.instruction_sets import AUTO
from textmill.engine.models.checkpoint import Checkpoint, weight_files
from textmill.engine.models.converted_folders import FolderUse
from textmill.engine.models.errors import ModelUnusable, in_one_line
from textmill.engine.models.families import describe, load_weights
from textmill.engine.models.memory import return_unused
from textmill.engine.models.native_runtime import NativeDecoder
from textmill.engine.models.placement import Placement, place
from textmill.engine.models.provenance import (
    NO_PROVENANCE,
    Provenance,
    bounded_content,
    read_provenance,
)
from textmill.engine.models.runner import KernelRunner, ModelRunner
from textmill.engine.models.shapes import check_tensors
from textmill.engine.models.sharing import SharedParts
from textmill.engine.models.sources import prepare, state_of
from textmill.engine.models.threads import num_threads
from textmill.engine.models.tokenizer import TextTokenizer
from textmill.engine.models.tokenizer_config import read_tokenizer_config
from textmill.engine.models.weights import DecoderSpec, DecoderWeights, Rows
from textmill.engine.speculation.ngram_table import (
    MAX_TABLE_BYTES,
    NGRAMS_FILE,
    BadTable,
    NgramTable,
    parse,
)

FAST_SLOTS = 64  # the kernels gain throughput up to here, and each sequence is as fast as a reader
PLAIN_SLOTS = 16  # in PyTorch on a few cores, more sequences gain little and slow each other down
PREFIX_BYTES = 64 << 20  # about 2,800 tokens of SmolLM2 in int8
MAX_BEAMS = 8  # a beam search may need so many slots, whatever the configured number
Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The facts about a loaded model.

    Attributes:
        family: ``gpt_neo``, ``gpt2``, ``llama``, or ``generic:`` and transformers' model type.
        path: the runtime, ``native`` or ``generic``.
        dtype: the type in which the weights are stored and multiplied.
        instruction_set: of the compiled kernels; ``None`` if PyTorch computes.
        kernels_note: the compiler that made the kernels, or why PyTorch computes.
        revision: changes with weights, config or tokenizer.
        eos_token_ids: tokens that end a completion.
        tokenizer_config: the chat template and special tokens of its tokenizer.
    """

    family: str
    path: str
    num_parameters: int
    context_length: int
    vocabulary_size: int
    dtype: str
    revision: str
    eos_token_ids: frozenset[int]
    tokenizer_config: Mapping[str, Any] = field(default_factory=dict)
    instruction_set: str | None = None
    kernels_note: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModel:
    """A model in memory, with its tokenizer.

    Attributes:
        ngrams: of the texts that it was fine-tuned on, if its folder has them.
        use: keeps its converted folder from being removed, for the next start.
    """

    name: str
    runner: ModelRunner
    tokenizer: TextTokenizer
    info: ModelInfo
    provenance: Provenance = NO_PROVENANCE
    ngrams: NgramTable | None = None
    use: FolderUse | None = None


def default_num_slots(kernel_dir: Path | None, instruction_set: str = AUTO) -> int:
    """The default number of sequences that this device decodes at once."""
    placement = place("auto", kernel_dir, lambda _: None, instruction_set)
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
    instruction_set: str = AUTO,
    prefix_bytes: int = PREFIX_BYTES,
    shared: SharedParts | None = None,
) -> LoadedModel:
    """Load a model; its files are converted first if necessary.

    Args:
        spec: an entry of the models file.
        cache_dir: the folder of converted models.
        dtype: ``float32``, ``bfloat16``, ``int8``, or ``auto``, see ``place``.
        num_slots: the number of sequences that are decoded at once.
        report: is called with a sentence before long work, and about differences from the request.
        kernel_dir: the folder of compiled kernels; ``None`` for PyTorch alone.
        instruction_set: of the kernels; ``auto``, or the name of a set.
        prefix_bytes: the size of the prefix cache.
        shared: the parts of the models that this process has loaded.

    Raises:
        ModelLoadError: the message says what is wrong and how to solve it.
        SettingsError: the processor does not have the instruction set.
    """
    before = state_of(Path(spec.source))
    prepared = prepare(spec.source, spec.adapter, cache_dir, report)
    folder = prepared.folder
    config = _json(folder / "config.json")
    shared = shared or SharedParts()
    tokenizer = _tokenizer(folder, shared)
    return_unused()  # of the parsed file, before the weights need memory
    decoder_spec = describe(config)
    slots = max(num_slots, MAX_BEAMS)

    def say(sentence: str) -> None:
        report(f"{spec.name}: {sentence}")

    if decoder_spec is None:
        loaded = _generic(config, folder, dtype, slots, say)
    else:
        placement = place(dtype, kernel_dir, say, instruction_set)
        loaded = _native(decoder_spec, config, folder, placement, slots, prefix_bytes, shared)
    _check_tokens(tokenizer, loaded.facts["vocabulary_size"], folder)
    if folder == Path(spec.source):
        _check_unchanged(folder, before)
    info = ModelInfo(
        **loaded.facts,
        revision=prepared.revision,
        eos_token_ids=_eos_ids(folder, config),
        tokenizer_config=read_tokenizer_config(folder, say),
    )
    # With an adapter, the provenance in the source's folder is that of another model.
    folders = [Path(spec.adapter)] if spec.adapter else [Path(spec.source), folder]
    model = LoadedModel(
        spec.name,
        loaded.runner,
        tokenizer,
        info,
        read_provenance(folders, say),
        _ngrams(folders[0], info.vocabulary_size, say),
        prepared.use,
    )
    return_unused()
    return model


def _check_unchanged(folder: Path, before: object) -> None:
    if state_of(folder) != before:
        raise ModelUnusable(
            f"The files in {folder} changed while they were read. Load the model again."
        )


def _ngrams(folder: Path, vocabulary_size: int, say: Report) -> NgramTable | None:
    """The table in a folder; ``None``, and a sentence, if it cannot be used."""
    content = bounded_content(folder / NGRAMS_FILE, MAX_TABLE_BYTES, say)
    if content is None:
        return None
    try:
        return parse(content, vocabulary_size)
    except BadTable as error:
        say(f"{folder / NGRAMS_FILE} is omitted, because {error}; texts are the same, but slower")
        return None


@dataclass(frozen=True, slots=True)
class _Runtime:
    runner: ModelRunner
    facts: dict[str, Any]


def _generic(config: dict[str, Any], folder: Path, dtype: str, slots: int, say: Report) -> _Runtime:
    from textmill.engine.models.torch_runtime import GenericRunner  # noqa: PLC0415 - transformers, seconds

    say("this family has no native runtime; transformers is used, which is slower")
    if dtype == "int8":
        say("int8 is for natively supported families; float32 is used")
    runner = GenericRunner(folder, "bfloat16" if dtype == "bfloat16" else "float32", slots)
    facts = {
        "family": f"generic:{config.get('model_type')}",
        "path": "generic",
        "dtype": runner.dtype,
        "kernels_note": "this family is computed by transformers",
        "context_length": runner.context_length,
        "vocabulary_size": runner.vocabulary_size,
        "num_parameters": runner.num_parameters,
    }
    return _Runtime(runner, facts)


def _native(
    spec: DecoderSpec,
    config: dict[str, Any],
    folder: Path,
    placement: Placement,
    slots: int,
    prefix_bytes: int,
    shared: SharedParts,
) -> _Runtime:
    with _loading_errors(folder, slots):
        checkpoint = Checkpoint(weight_files(folder))
        check_tensors(spec, config, checkpoint.entries)
        weights = load_weights(spec, checkpoint)
        runner, num_parameters = _native_runner(
            spec, weights, placement, slots, prefix_bytes, shared
        )
    facts = {
        "family": spec.family,
        "path": "native",
        "dtype": placement.dtype,
        "instruction_set": None if placement.kernels is None else placement.kernels.instruction_set,
        "kernels_note": placement.kernels.compiler if placement.kernels else placement.reason,
        "context_length": spec.context_length,
        "vocabulary_size": spec.vocabulary_size,
        "num_parameters": num_parameters,
    }
    return _Runtime(runner, facts)


def _native_runner(
    spec: DecoderSpec,
    weights: DecoderWeights[Rows],
    placement: Placement,
    slots: int,
    prefix_bytes: int,
    shared: SharedParts,
) -> tuple[ModelRunner, int]:
    """The runner for a placement, and the number of the model's parameters."""
    if placement.library is not None:
        native = NativeDecoder(
            spec,
            weights,
            slots,
            library=placement.library,
            is_int8=placement.dtype == "int8",
            num_threads=num_threads(),
            share=shared.embedding,
        )
        return KernelRunner(native, prefix_bytes=prefix_bytes), native.num_parameters
    from textmill.engine.models.torch_loading import torch_runner  # noqa: PLC0415 - see placement

    return torch_runner(spec, weights, placement, slots, prefix_bytes)


@contextmanager
def _loading_errors(folder: Path, slots: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ModelUnusable(
            f"The weights in {folder} are incomplete ({in_one_line(error)}). Copy the folder again."
        ) from error
    except (MemoryError, RuntimeError) as error:  # PyTorch's allocator raises RuntimeError
        raise ModelUnusable(
            f"The model in {folder} cannot be loaded for {slots} sequences ({in_one_line(error)})."
            " Free some memory, or lower TEXTMILL_SLOTS."
        ) from error


def _tokenizer(folder: Path, shared: SharedParts) -> TextTokenizer:
    try:
        return shared.tokenizer(folder / "tokenizer.json")
    except Exception as error:  # the library raises errors of many types
        raise ModelUnusable(
            f"{folder / 'tokenizer.json'} cannot be read: {in_one_line(error)}"
        ) from error


def _json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelUnusable(f"{path} cannot be read as JSON: {in_one_line(error)}") from error
    if not isinstance(document, dict):
        raise ModelUnusable(f"{path} is not a JSON object. Copy the folder again.")
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
    """Check that the embedding has every token of the tokenizer."""
    largest = tokenizer.largest_id
    if largest >= vocabulary_size:
        raise ModelUnusable(
            f"The tokenizer in {folder} has the token id {largest}"
            f" ({tokenizer.text_of(largest)!r}), but the model has {vocabulary_size} tokens, ids 0"
            f" to {vocabulary_size - 1}. Use the tokenizer that belongs to the weights, or call"
            " resize_token_embeddings on the model."
        )
