"""The lines that a fine-tuning prints about its data and its result."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from textmill.core.catalog.figures import compare_figures, duration_text
from textmill.finetune.errors import ConfigError
from textmill.finetune.export import FINETUNE_FILE
from textmill.finetune.preparation import TokenCounts
from textmill.finetune.run import FinetuningRun

MEBIBYTE = 1 << 20


def describe(run: FinetuningRun) -> Iterator[str]:
    """Describe the training and validation data, and what was dropped or truncated."""
    data, options = run.data, run.config.data
    yield from _describe_counts("train", data.train_counts, options.max_tokens)
    yield from _describe_counts("validation", data.validation_counts, options.max_tokens)
    yield from data.holdout.sentences()
    if data.is_packed:
        yield (
            f"The examples have no prompts: they are packed into blocks of {options.max_tokens}"
            " tokens."
        )


def _describe_counts(name: str, counts: TokenCounts, max_tokens: int) -> Iterator[str]:
    yield (
        f"{name}: {counts.num_texts:,} sequences, {counts.num_tokens:,} tokens,"
        f" {counts.num_learned:,} of them learned; median length {counts.median_tokens}, maximum"
        f" {counts.max_tokens}."
    )
    if counts.num_cut_texts:
        yield (
            f"{name}: {counts.num_cut_texts:,} examples were truncated to {max_tokens} tokens;"
            f" {counts.num_cut_tokens:,} tokens were cut in all. The limit is data.max_tokens."
        )
    if counts.num_unlearnable:
        yield (
            f"{name}: {counts.num_unlearnable:,} examples were dropped because their prompts alone"
            f" have {max_tokens} tokens."
        )


def summarise(folder: Path) -> Iterator[str]:
    """Print the result of a fine-tuning from the finished folder's ``finetune.json``."""
    document = read_report(folder)
    yield from figure_table(document["metrics"]["before"], document["metrics"]["after"])
    training = document["training"]
    yield (
        f"Trained {training['num_steps']:,} steps in {duration_text(training['seconds'])} at"
        f" {training['tokens_per_second']:,.0f} tokens/s; peak memory"
        f" {training['peak_bytes'] / MEBIBYTE:,.0f} MiB."
    )
    yield f"The model is in {folder}; serve it with: textmill register {folder}"


def figure_table(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    """A table of the figures of two models, from ``metrics`` of a ``finetune.json``."""
    yield f"{'held-out text':18}{'before':>9}{'after':>9}{'change':>14}"
    for f in compare_figures(before, after):
        yield f"{f.title:18}{f.before:>9}{f.after:>9}{f.change:>14}  {f.note}".rstrip()


def read_report(folder: Path) -> Mapping[str, Any]:
    """Read the ``finetune.json`` of a finished folder.

    Raises:
        ConfigError: the folder was not written by a fine-tuning.
    """
    try:
        document = json.loads((folder / FINETUNE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder} was not written by `textmill finetune`.") from error
    if not isinstance(document, dict) or "metrics" not in document:
        raise ConfigError(f"{folder / FINETUNE_FILE} contains no figures.")
    return document
