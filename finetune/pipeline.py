"""The stages of a fine-tuning: train, save, measure, report, move into place.

Every finished stage is kept in the state folder, so that the same command resumes after an
interruption.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import PartialState

from textmill.engine.models.conversion import plain_config
from textmill.engine.speculation.ngram_builder import build
from textmill.engine.speculation.ngram_table import NGRAMS_FILE
from textmill.finetune.export import check_output, move_into_place, save_weights, write_report
from textmill.finetune.hardware import describe_hardware
from textmill.finetune.measurement import measure
from textmill.finetune.result import FinetuningResult
from textmill.finetune.run import FinetuningRun, exclusive
from textmill.finetune.training import TrainingHistory, make_trainer, train

_WEIGHTS, _CHECKPOINTS, _HISTORY = "weights", "checkpoints", "history.json"


def execute(run: FinetuningRun) -> Path | None:
    """Train, measure and write the output folder, skipping stages that are already finished.

    Returns:
        The output folder; ``None`` in the secondary processes of a distributed training.

    Raises:
        FinetuneError: the output folder exists, another process executes the same run, or training
            or evaluation failed.
    """
    check_output(run.output)
    with exclusive(run.folder):
        check_output(run.output)  # another process may have finished since
        history = _train_once(run)
        if not PartialState().is_main_process:
            return None
        weights = run.folder / _WEIGHTS
        _write_table(run, weights / NGRAMS_FILE)
        metrics = measure(run, weights)
        hardware = describe_hardware(history.device)
        result = FinetuningResult(run.config, run.base, run.data, history, metrics, hardware)
        write_report(weights, result)
        move_into_place(weights, run.output)
        (run.folder / _HISTORY).unlink()  # first, because it implies that there are weights
        shutil.rmtree(run.folder)
        return run.output


def _train_once(run: FinetuningRun) -> TrainingHistory:
    """Train, unless an earlier process has finished the training; return its history."""
    path = run.folder / _HISTORY
    if path.is_file() and any((run.folder / _WEIGHTS).glob("*.safetensors")):
        run.report("The training is already finished; continuing with the evaluation.")
        return _read_history(path)
    checkpoints = run.folder / _CHECKPOINTS
    if checkpoints.is_dir():
        run.report("Resuming an earlier training with the same options and data.")
    tokenizer = run.base.tokenizer()
    trainer = make_trainer(
        run.config,
        run.base.trainable(run.config),
        tokenizer,
        run.data.encoded_train,
        run.data.encoded_validation[: run.config.training.checkpoint_examples],
        checkpoints,
    )
    history = train(run.config, trainer, checkpoints)
    if PartialState().is_main_process:
        model = trainer.accelerator.unwrap_model(trainer.model)
        save_weights(model, tokenizer, run.folder / _WEIGHTS)
        _write_history(path, history)
    PartialState().wait_for_everyone()
    return history


def _write_table(run: FinetuningRun, path: Path) -> None:
    """Write the n-grams of the training texts, with which the engine guesses tokens ahead."""
    texts = (one.ids for one in run.data.encoded_train)
    vocabulary_size = int(plain_config(run.base.folder).vocab_size)
    path.write_bytes(build(texts, vocabulary_size).dump())


def _write_history(path: Path, history: TrainingHistory) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(asdict(history)), encoding="utf-8")
    part.rename(path)


def _read_history(path: Path) -> TrainingHistory:
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    for side in ("training", "validation"):
        document[side] = tuple((int(step), float(loss)) for step, loss in document[side])
    return TrainingHistory(**document)
