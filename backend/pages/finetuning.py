"""Describes how a model was fine-tuned, in labels and numbers for its card on the models page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from textmill.backend.pages.formats import compact_number, long_duration

Document = Mapping[str, Any]
MAX_FILES_SHOWN = 8  # the model card lists all of them
METHODS = {"lora": "LoRA: low-rank matrices, merged at load", "full": "full: all weights"}
ROLES = {"training": "training", "validation": "held out", "both": "training and held out"}


class Score(NamedTuple):
    """A row of the table of scores."""

    label: str
    better: str
    read: Callable[[Document], float]
    num_decimals: int
    unit: str = ""


LANGUAGE_SCORES = (
    Score("Bits per byte", "lower", lambda scores: scores["bits_per_byte"], 3),
    Score("Perplexity", "lower", lambda scores: scores["perplexity"], 2),
)
TEXT_SCORES = (
    Score("ROUGE-L", "higher", lambda texts: 100 * texts["rouge"]["rouge_l"], 2),
    Score("Memorised 8-grams", "lower", lambda texts: 100 * texts["memorised"], 2, "\xa0%"),
)


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
            f" {long_duration(training['seconds'])} on {training['hardware']}"
        ),
        "rows": score_rows(finetuning["metrics"]["before"], finetuning["metrics"]["after"]),
        "num_examples": finetuning["metrics"]["after"]["num_examples"],
    }


def _file_labels(files: Sequence[Document]) -> list[str]:
    labels = [
        f"{file['name']} ({file['num_rows']:,} rows, {ROLES[file['role']]})"
        for file in files[:MAX_FILES_SHOWN]
    ]
    num_more = len(files) - len(labels)
    return [*labels, f"{num_more:,} more"] if num_more else labels


def score_rows(before: Document, after: Document) -> list[dict[str, str]]:
    """Return the scores of the base and of the model, and their differences."""
    rows = [_row(score, before, after) for score in LANGUAGE_SCORES]
    if before["texts"] is not None and after["texts"] is not None:
        rows += [_row(score, before["texts"], after["texts"]) for score in TEXT_SCORES]
        share = 100 * after["texts"]["reference_memorised"]
        rows[-1]["note"] = f"held-out text itself: {share:.2f}\xa0%"
    return rows


def _row(score: Score, before: Document, after: Document) -> dict[str, str]:
    digits = score.num_decimals
    old, new = round(score.read(before), digits), round(score.read(after), digits)
    change = f"{new - old:+,.{digits}f}".replace("-", "−")
    return {
        "label": score.label,
        "note": f"{score.better} is better",
        "before": f"{old:,.{digits}f}{score.unit}",
        "after": f"{new:,.{digits}f}{score.unit}",
        "change": "±0" if old == new else change,
    }
