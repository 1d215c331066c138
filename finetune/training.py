"""Training with transformers' Trainer: steps, checkpoints, early stopping.

Takes encoded examples and a model; knows nothing of data files, evaluation or export.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    DataCollatorForSeq2Seq,
    EarlyStoppingCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)

from textmill.finetune.checkpoints import (
    CheckpointMarker,
    FiniteLossCheck,
    Stopwatch,
    usable_checkpoint,
)
from textmill.finetune.config import FinetuneConfig, TrainingOptions
from textmill.finetune.encoding import Encoded
from textmill.finetune.errors import TrainingError
from textmill.finetune.hardware import device_name, peak_bytes, resolve_precision
from textmill.finetune.progress import ProgressBar

KEPT_CHECKPOINTS = 2  # the newest and the best


@dataclass(frozen=True, slots=True)
class TrainingHistory:
    """The course of a training.

    Attributes:
        training: (step, mean loss in nats per learned token since the last entry), in order.
        validation: (step, loss) on held-out examples: the mean over batches, each with the same
            weight whatever its number of tokens.
        num_steps: optimiser steps, including those before an interruption.
        best_step: the step whose weights were kept.
        num_tokens: tokens seen, without padding.
        seconds: time in the training loop, including the time before an interruption.
        tokens_per_second: the mean over the training.
        peak_bytes: peak memory: of the GPU, or of the process on a CPU.
        device: ``cpu``, or the GPU's model.
        precision: of matrix products.
    """

    training: tuple[tuple[int, float], ...]
    validation: tuple[tuple[int, float], ...]
    num_steps: int
    best_step: int
    num_tokens: int
    seconds: float
    tokens_per_second: float
    peak_bytes: int
    device: str
    precision: str


def make_trainer(
    config: FinetuneConfig,
    model: Any,
    tokenizer: Any,
    train: Sequence[Encoded],
    validation: Sequence[Encoded],
    folder: Path,
) -> Trainer:
    """Create a Trainer.

    Args:
        config: the options.
        model: from ``BaseModel.trainable``.
        tokenizer: used for padding.
        train: examples to learn.
        validation: examples to compute the validation loss on, every ``checkpoint_steps`` steps.
        folder: for the checkpoints.
    """
    trainer = Trainer(
        model=model,
        args=_arguments(config, folder),
        train_dataset=_dataset(train),
        eval_dataset=_dataset(validation),
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        callbacks=[
            EarlyStoppingCallback(config.training.patience),
            CheckpointMarker(),
            FiniteLossCheck(),
            Stopwatch(),
        ],
    )
    for callback in [c for c in trainer.callback_handler.callbacks if _prints(c)]:
        trainer.remove_callback(callback)
    trainer.add_callback(ProgressBar())
    return trainer


def train(config: FinetuneConfig, trainer: Trainer, folder: Path) -> TrainingHistory:
    """Train to the end, resuming from the folder's last checkpoint if there is one.

    Raises:
        TrainingError: the loss is no longer finite, memory is insufficient, or a checkpoint cannot
            be written.
    """
    set_seed(config.seed % (1 << 32))
    with trainer.accelerator.main_process_first():
        checkpoint = usable_checkpoint(folder)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    except (torch.cuda.OutOfMemoryError, MemoryError) as error:
        raise TrainingError(
            "Out of memory. Halve training.batch_size and double training.accumulation; the result"
            " is the same."
        ) from error
    except OSError as error:
        raise TrainingError(
            f"A checkpoint could not be written to {folder}: {error.strerror or error}. Fix that"
            " and run the same command to resume."
        ) from error
    return _history(config, trainer)


def _arguments(config: FinetuneConfig, folder: Path) -> TrainingArguments:
    options = config.training
    return TrainingArguments(
        output_dir=str(folder),
        seed=config.seed % (1 << 32),
        use_cpu=not torch.cuda.is_available(),
        bf16=resolve_precision(options.precision) == "bfloat16",
        num_train_epochs=options.epochs,
        max_steps=options.max_steps or -1,
        learning_rate=config.learning_rate,
        warmup_steps=options.warmup_share,
        weight_decay=options.weight_decay,
        per_device_train_batch_size=options.batch_size,
        per_device_eval_batch_size=options.batch_size,
        gradient_accumulation_steps=options.accumulation,
        train_sampling_strategy="group_by_length",
        include_num_input_tokens_seen="non_padding",
        prediction_loss_only=True,
        dataloader_pin_memory=torch.cuda.is_available(),
        disable_tqdm=True,
        report_to="none",
        **_schedule(options),
    )


def _schedule(options: TrainingOptions) -> dict[str, Any]:
    """The arguments that say when the Trainer changes the rate, validates, saves and logs."""
    is_constant = options.schedule == "constant"
    return {
        "lr_scheduler_type": "constant_with_warmup" if is_constant else options.schedule,
        "eval_strategy": "steps",
        "eval_steps": options.checkpoint_steps,
        "save_strategy": "steps",
        "save_steps": options.checkpoint_steps,
        "save_total_limit": KEPT_CHECKPOINTS,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss",
        "greater_is_better": False,
        "restore_callback_states_from_checkpoint": True,
        "logging_strategy": "steps",
        "logging_steps": min(10, options.checkpoint_steps),
        "logging_nan_inf_filter": False,
    }


def _dataset(encoded: Sequence[Encoded]) -> Dataset:
    return Dataset.from_dict(
        {
            "input_ids": [one.ids for one in encoded],
            "labels": [one.labels for one in encoded],
            "length": [len(one.ids) for one in encoded],
        }
    )


def _prints(callback: object) -> bool:
    return type(callback).__name__ in {"PrinterCallback", "ProgressCallback"}


def _history(config: FinetuneConfig, trainer: Trainer) -> TrainingHistory:
    log = trainer.state.log_history
    best = trainer.state.best_global_step or trainer.state.global_step
    num_tokens = int(trainer.state.num_input_tokens_seen)
    watches = [c for c in trainer.callback_handler.callbacks if isinstance(c, Stopwatch)]
    seconds = watches[0].total()
    return TrainingHistory(
        training=tuple((int(line["step"]), line["loss"]) for line in log if "loss" in line),
        validation=tuple(
            (int(line["step"]), line["eval_loss"]) for line in log if "eval_loss" in line
        ),
        num_steps=trainer.state.global_step,
        best_step=best,
        num_tokens=num_tokens,
        seconds=seconds,
        tokens_per_second=num_tokens / seconds,
        peak_bytes=peak_bytes(),
        device=device_name(),
        precision=resolve_precision(config.training.precision),
    )
