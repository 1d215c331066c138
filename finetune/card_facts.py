"""The facts that a model card contains, collected from a fine-tuning's result."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from textmill.finetune.data_files import DataFile
from textmill.finetune.metrics import Metrics
from textmill.finetune.result import FinetuningResult


@dataclass(frozen=True, slots=True)
class DataFacts:
    """The training data and the held-out data.

    Attributes:
        files: the files that examples were read from.
        format: how the files were read, as in ``data.format``.
        num_training: training examples.
        num_validation: held-out examples.
        num_duplicates: examples dropped as duplicates of an earlier one.
        num_overlapping: examples dropped from training because they are also held out.
        num_truncated: training examples that were truncated.
        num_cut_tokens: tokens cut from them in all.
        max_tokens: the length to which they were truncated.
    """

    files: tuple[DataFile, ...]
    format: str
    num_training: int
    num_validation: int
    num_duplicates: int
    num_overlapping: int
    num_truncated: int
    num_cut_tokens: int
    max_tokens: int


@dataclass(frozen=True, slots=True)
class TrainingFacts:
    """How the model was trained.

    Attributes:
        method: low-rank adaptation, or training of all weights.
        options: names and values as in the configuration file, for the card's table.
        num_steps: optimiser steps.
        best_step: the step with the lowest validation loss; its weights were kept.
        num_tokens: tokens seen, over all epochs.
        seconds: duration of the training, without evaluation.
        hardware: kind and number of processors, never a machine's name.
    """

    method: Literal["lora", "full"]
    options: tuple[tuple[str, str], ...]
    num_steps: int
    best_step: int
    num_tokens: int
    seconds: float
    hardware: str


@dataclass(frozen=True, slots=True)
class CardFacts:
    """The contents of a model card.

    Attributes:
        name: the model's name.
        description: one line for readers; may be empty.
        base_model: Hub id, package or folder name of the base.
        license: license of the base model, which its descendants inherit; ``None`` if unknown.
        library: the library that loads the folder.
        data: the data.
        training: the training.
        before: figures of the base.
        after: figures of the tuned model.
        curve: file name of the loss curve in the card's folder; ``None`` if there is no curve.
        is_multi_xscience: whether the data are Multi-XScience, for which results are published.
    """

    name: str
    description: str
    base_model: str
    license: str | None
    library: Literal["peft", "transformers"]
    data: DataFacts
    training: TrainingFacts
    before: Metrics
    after: Metrics
    curve: str | None = None
    is_multi_xscience: bool = False


def collect_card_facts(result: FinetuningResult, curve: str | None) -> CardFacts:
    """Collect the facts of a card.

    Args:
        result: of a finished fine-tuning.
        curve: file name of the loss curve.
    """
    config, source = result.config, result.base.source
    return CardFacts(
        name=config.name,
        description=config.description,
        base_model=Path(source).name if Path(source).is_absolute() else source,
        license=None,
        library="peft" if config.method == "lora" else "transformers",
        data=_data_facts(result),
        training=_training_facts(result),
        before=result.metrics["before"],
        after=result.metrics["after"],
        curve=curve,
        is_multi_xscience=result.data.format == "multi_xscience",
    )


def _data_facts(result: FinetuningResult) -> DataFacts:
    data, counts = result.data, result.data.train_counts
    return DataFacts(
        files=data.files,
        format=data.format,
        num_training=len(data.train),
        num_validation=len(data.validation),
        num_duplicates=data.num_duplicates,
        num_overlapping=data.holdout.overlaps.count,
        num_truncated=counts.num_cut_texts,
        num_cut_tokens=counts.num_cut_tokens,
        max_tokens=result.config.data.max_tokens,
    )


def _training_facts(result: FinetuningResult) -> TrainingFacts:
    config, history = result.config, result.history
    options: dict[str, Any] = {"seed": config.seed}
    options |= config.lora.model_dump(mode="json") if config.method == "lora" else {}
    options |= config.training.model_dump(mode="json", exclude_none=True)
    options |= {"learning_rate": config.learning_rate, "precision": history.precision}
    return TrainingFacts(
        method=config.method,
        options=tuple((name, str(value)) for name, value in sorted(options.items())),
        num_steps=history.num_steps,
        best_step=history.best_step,
        num_tokens=history.num_tokens,
        seconds=history.seconds,
        hardware=result.hardware,
    )
