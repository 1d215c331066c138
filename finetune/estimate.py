"""The dry run: a few examples as they are learned, and an estimate of time and memory."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer

from textmill.core.catalog.figures import duration_text
from textmill.finetune.encoding import Encoded
from textmill.finetune.examples import Example
from textmill.finetune.hardware import device_name, peak_bytes, resolve_precision
from textmill.finetune.reporting import MEBIBYTE
from textmill.finetune.run import FinetuningRun
from textmill.finetune.training import make_trainer

NUM_SHOWN = 3
SHOWN_CHARACTERS = 600
_ADAM_BYTES = 8  # for each trained parameter: two moments in float32


@dataclass(frozen=True, slots=True)
class _Trial:
    """What computing two batches showed.

    Attributes:
        tokens_per_second: of a batch of median length.
        num_steps: optimiser steps of all epochs.
        num_parameters: trained parameters.
    """

    tokens_per_second: float
    num_steps: int
    num_parameters: int


def estimate(run: FinetuningRun) -> Iterator[str]:
    """Show three examples, and estimate the duration and memory of the training.

    Two batches are computed, of which the second is timed. Nothing is changed or kept.
    """
    for number, example in enumerate(run.data.train[:NUM_SHOWN], 1):
        yield from _show(number, example)
    yield "---"
    config, trial = run.config, _try(run)
    num_tokens, num_steps = (
        run.data.train_counts.num_tokens * config.training.epochs,
        trial.num_steps,
    )
    if config.training.max_steps is not None:
        num_tokens *= config.training.max_steps / max(1, num_steps)
        num_steps = config.training.max_steps
    memory = (peak_bytes() + _ADAM_BYTES * trial.num_parameters) / MEBIBYTE
    yield (
        f"The training ({config.method}) has {trial.num_parameters:,} parameters and would take"
        f" {num_steps:,} steps over {num_tokens:,.0f} tokens, on {device_name()} in"
        f" {resolve_precision(config.training.precision)}."
    )
    yield (
        f"At {trial.tokens_per_second:,.0f} tokens/s, measured on one batch, it would last about"
        f" {duration_text(num_tokens / trial.tokens_per_second)} without evaluation and need about"
        f" {memory:,.0f} MiB of memory."
    )


def _show(number: int, example: Example) -> Iterator[str]:
    yield f"--- example {number} ({example.location.path}, line {example.location.line})"
    for part in example.parts:
        shown = part.text[:SHOWN_CHARACTERS]
        more = "…" if len(part.text) > SHOWN_CHARACTERS else ""
        yield f"[{'learned' if part.is_learned else 'given'}] {shown!r}{more}"


def _try(run: FinetuningRun) -> _Trial:
    by_length: list[Encoded] = sorted(run.data.encoded_train, key=lambda one: -len(one.ids))
    size = run.config.training.batch_size
    median = by_length[len(by_length) // 2 :][:size]
    trainer = _trainer(run)
    _seconds(trainer, by_length[:size])  # the longest, for the peak memory
    seconds = _seconds(trainer, median)
    num_batches = -(-len(run.data.encoded_train) // size)
    num_steps = -(-num_batches // run.config.training.accumulation)
    model: Any = trainer.model
    return _Trial(
        tokens_per_second=sum(len(one.ids) for one in median) / seconds,
        num_steps=round(num_steps * run.config.training.epochs),
        num_parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
    )


def _trainer(run: FinetuningRun) -> Trainer:
    with tempfile.TemporaryDirectory() as folder:  # the Trainer creates its output folder
        trainer = make_trainer(
            run.config,
            run.base.trainable(run.config),
            run.base.tokenizer(),
            run.data.encoded_train,
            run.data.encoded_validation[:1],
            Path(folder),
        )
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1
    return trainer


def _seconds(trainer: Trainer, batch: Sequence[Encoded]) -> float:
    """The duration of one training step."""
    rows = [{"input_ids": one.ids, "labels": one.labels} for one in batch]
    model: Any = trainer.model
    inputs = trainer._prepare_inputs(trainer.data_collator(rows))
    _synchronize()
    started = time.perf_counter()
    trainer.training_step(model, inputs)
    _synchronize()
    return time.perf_counter() - started


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
