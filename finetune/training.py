"""The training itself, by transformers' Trainer: steps, checkpoints, an end when it is time.

Takes encoded texts and a model; knows nothing of files of data, evaluation or export.
"""

from __future__ import annotations

import resource
import sys
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
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from textmill.finetune.checkpoints import (
    FiniteLosses,
    Stopwatch,
    WholeCheckpoints,
    usable_checkpoint,
)
from textmill.finetune.config import FinetuneConfig
from textmill.finetune.encoding import Encoded
from textmill.finetune.errors import TrainingError
from textmill.finetune.progress import ProgressBar

KEPT_CHECKPOINTS = 2  # the newest, and the best


@dataclass(frozen=True, slots=True)
class TrainingHistory:
    """What a training did.

    Attributes:
        training: (step, mean loss a learned token in nats since the last entry), in order.
        validation: (step, loss) on held-out text; the mean of batches, whatever their tokens.
        num_steps: steps made, those before an interruption included.
        best_step: the step whose weights were kept.
        num_tokens: tokens seen, padding left out.
        seconds: time in the loop, before interruptions included.
        tokens_per_second: over all of it.
        peak_bytes: most memory that was held: the device's, or the process's on a CPU.
        device: ``cpu``, or the GPU's kind.
        precision: of the products.
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
    *,
    callbacks: Sequence[TrainerCallback] = (),
) -> Trainer:
    """Put a Trainer together.

    Args:
        config: the options.
        model: from ``BaseModel.trainable``.
        tokenizer: to pad with.
        train: texts to learn.
        validation: texts to look at every ``checkpoint_steps``.
        folder: of the checkpoints.
        callbacks: beside the progress bar and the early end.
    """
    options = config.training
    arguments = TrainingArguments(
        output_dir=str(folder),
        seed=config.seed % (1 << 32),
        use_cpu=not torch.cuda.is_available(),
        bf16=precision(config) == "bfloat16",
        num_train_epochs=options.epochs,
        max_steps=options.max_steps or -1,
        learning_rate=config.learning_rate,
        lr_scheduler_type="constant_with_warmup"
        if options.schedule == "constant"
        else options.schedule,
        warmup_steps=options.warmup_share,
        weight_decay=options.weight_decay,
        per_device_train_batch_size=options.batch_size,
        per_device_eval_batch_size=options.batch_size,
        gradient_accumulation_steps=options.accumulation,
        train_sampling_strategy="group_by_length",
        include_num_input_tokens_seen="non_padding",
        eval_strategy="steps",
        eval_steps=options.checkpoint_steps,
        save_strategy="steps",
        save_steps=options.checkpoint_steps,
        save_total_limit=KEPT_CHECKPOINTS,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        restore_callback_states_from_checkpoint=True,
        logging_strategy="steps",
        logging_steps=min(10, options.checkpoint_steps),
        logging_nan_inf_filter=False,
        prediction_loss_only=True,
        dataloader_pin_memory=torch.cuda.is_available(),
        disable_tqdm=True,
        report_to="none",
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=_dataset(train),
        eval_dataset=_dataset(validation),
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        callbacks=[
            EarlyStoppingCallback(options.patience),
            WholeCheckpoints(),
            FiniteLosses(),
            Stopwatch(),
            *callbacks,
        ],
    )
    for callback in [c for c in trainer.callback_handler.callbacks if _prints(c)]:
        trainer.remove_callback(callback)
    trainer.add_callback(ProgressBar())
    return trainer


def train(config: FinetuneConfig, trainer: Trainer, folder: Path) -> TrainingHistory:
    """Train to the end, from the last checkpoint of the folder on where there is one.

    Raises:
        TrainingError: the loss is no number any more, or memory is short.
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
            "There is not memory enough; halve training.batch_size and double"
            " training.accumulation, which learns the same."
        ) from error
    except OSError as error:
        raise TrainingError(
            f"A checkpoint could not be written to {folder}: {error.strerror or error}. Mend that,"
            " and the same command goes on."
        ) from error
    return _history(config, trainer)


def precision(config: FinetuneConfig) -> str:
    """``bfloat16`` where the device multiplies it faster and nobody asked for another."""
    if config.training.precision != "auto":
        return config.training.precision
    if torch.cuda.is_available():
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    is_fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bfloat16" if is_fast else "float32"


def peak_bytes() -> int:
    """The most memory held so far: the GPU's where there is one, else this process's."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def device_words() -> str:
    """Where the training runs, in a word or two."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def _dataset(texts: Sequence[Encoded]) -> Dataset:
    return Dataset.from_dict(
        {
            "input_ids": [text.ids for text in texts],
            "labels": [text.labels for text in texts],
            "length": [len(text.ids) for text in texts],
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
        device=device_words(),
        precision=precision(config),
    )
