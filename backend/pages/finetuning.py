"""Describes how a model was fine-tuned, in labels and numbers for its card on the models page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from textmill.backend.pages.formats import compact_number
from textmill.core.catalog.figures import ComparedFigure, compare_figures, duration_text

Document = Mapping[str, Any]
MAX_FILES_SHOWN = 8  # the model card lists all of them
METHODS = {"lora": "LoRA: low-rank matrices, merged at load", "full": "full: all weights"}
ROLES = {"training": "training", "validation": "held out", "both": "training and held out"}


def describe_finetuning(finetuning: Document) -> dict[str, Any]:
    """Return the labels of a fine-tuning; ``finetuning`` is a ``FinetuningView`` as JSON."""
    data, training = finetuning["data"], finetuning["training"]
    return {
        "base": finetuning["base_model"] or finetuning["base"],
        "is_base_served": finetuning["base_model"] is not None,
        "method": METHODS[finetuning["method"]],
        "files": _file_labels(data["files"]),
        "examples": (
            f"{data['training']['num_examples']:,} training examples,"
            f" {data['validation']['num_examples']:,} held out"
        ),
        "training": (
            f"{training['num_steps']:,} steps, {compact_number(training['num_tokens'])} tokens,"
            f" {duration_text(training['seconds'])} on {training['hardware']}"
        ),
        "figures": main_figures(finetuning["metrics"]["before"], finetuning["metrics"]["after"]),
        "num_examples": finetuning["metrics"]["after"]["num_examples"],
    }


def _file_labels(files: Sequence[Document]) -> list[str]:
    labels = [
        f"{file['name']} ({file['num_rows']:,} rows, {ROLES[file['role']]})"
        for file in files[:MAX_FILES_SHOWN]
    ]
    num_more = len(files) - len(labels)
    return [*labels, f"{num_more:,} more"] if num_more else labels


def main_figures(before: Document, after: Document) -> list[ComparedFigure]:
    """Return the most important figures of the base and of the model."""
    return [figure for figure in compare_figures(before, after) if figure.is_main]
