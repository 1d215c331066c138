"""One fine-tuning from end to end: prepare, train, save, evaluate, report, move into place.

Every finished stage is kept in the state folder, so that the same command resumes after an
interruption.
"""

from __future__ import annotations

import fcntl
import json
import logging
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from datasets import disable_progress_bars
from transformers.utils.logging import disable_progress_bar

from textmill.core.catalog.models_file import ModelSpec, load_catalog
from textmill.core.settings import Settings
from textmill.engine.models.loading import load
from textmill.finetune.base_model import BaseModel, Report, find_base
from textmill.finetune.config import FinetuneConfig
from textmill.finetune.errors import TrainingError
from textmill.finetune.evaluation import Metrics, evaluate
from textmill.finetune.export import check_output, move_into_place, save_weights, write_report
from textmill.finetune.hardware import describe_hardware
from textmill.finetune.preparation import PreparedData, prepare_data
from textmill.finetune.result import FinetuningResult
from textmill.finetune.training import TrainingHistory, make_trainer, train

EVALUATION_SLOTS = 16
_WEIGHTS, _CHECKPOINTS, _HISTORY = "weights", "checkpoints", "history.json"
_MERGED = "measured"
_LOCK = "lock"


@dataclass(frozen=True, slots=True)
class FinetuningRun:
    """One run of the command: its options, its base and its data.

    Attributes:
        config: the options.
        settings: of the product.
        base: the base model.
        data: the prepared data.
        folder: the run's folder in the state folder; its name contains the data's fingerprint.
        report: receives progress.
    """

    config: FinetuneConfig
    settings: Settings
    base: BaseModel
    data: PreparedData
    folder: Path
    report: Report

    @property
    def output(self) -> Path:
        """The output folder."""
        return Path(self.config.output or f"models/{self.config.name}").expanduser().absolute()


def open_run(config: FinetuneConfig, settings: Settings, report: Report) -> FinetuningRun:
    """Find the base and prepare the data.

    Raises:
        FinetuneError: the base or the data cannot be used.
    """
    _silence_libraries()
    with PartialState().main_process_first():  # one process converts the base, the others reuse it
        base = find_base(config, load_catalog(settings), settings.home / "models", report)
    report("Reading the data.")
    data = prepare_data(config, base)
    folder = settings.home / "finetune" / f"{config.name}-{data.fingerprint}"
    return FinetuningRun(config, settings, base, data, folder, report)


def execute(run: FinetuningRun) -> Path | None:
    """Train, measure and write the output folder, skipping stages that are already finished.

    Returns:
        The output folder; ``None`` in the secondary processes of a distributed training.

    Raises:
        FinetuneError: the output folder exists, another process executes the same run, or training
            or evaluation failed.
    """
    check_output(run.output)
    with _exclusive(run.folder):
        check_output(run.output)  # another process may have finished since
        history = _train_once(run)
        if not PartialState().is_main_process:
            return None
        weights = run.folder / _WEIGHTS
        metrics = measure(run, weights)
        hardware = describe_hardware(history.device)
        result = FinetuningResult(run.config, run.base, run.data, history, metrics, hardware)
        write_report(weights, result)
        move_into_place(weights, run.output)
        (run.folder / _HISTORY).unlink()  # first, because it implies that there are weights
        shutil.rmtree(run.folder)
        return run.output


@contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    """Lock a folder until the block ends; the kernel releases the lock if the process dies.

    Secondary processes of a distributed training rely on the lock of the main process.
    """
    if not PartialState().is_main_process:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TrainingError(
                "Another process is running the same fine-tuning; wait for it, or use another"
                " --name."
            ) from None
        yield


def measure(run: FinetuningRun, weights: Path) -> dict[str, Metrics]:
    """Measure the base and the tuned model on the same held-out examples with Textmill's engine.

    Args:
        run: the run.
        weights: the folder of an adapter, or of all weights.

    Raises:
        FinetuneError: a model cannot be measured.
    """
    is_adapter = (weights / "adapter_config.json").is_file()
    tuned = (
        ModelSpec("after", run.base.source, str(weights), "float32", True, "")
        if is_adapter
        else ModelSpec("after", str(weights), None, "float32", True, "")
    )
    base = ModelSpec("before", str(run.base.folder), None, "float32", True, "")
    # For merged weights, which are temporary. Not in /tmp, which may be in memory.
    cache = run.folder / _MERGED
    shutil.rmtree(cache, ignore_errors=True)  # left by a process that was killed
    try:
        return {spec.name: _measure(run, spec, cache) for spec in (base, tuned)}
    finally:
        shutil.rmtree(cache, ignore_errors=True)


def measure_finished(run: FinetuningRun, weights: Path) -> dict[str, Metrics]:
    """Measure a finished folder like :func:`measure`, and leave no files in the state folder.

    Raises:
        FinetuneError: a model cannot be measured, or another process executes the same run.
    """
    with _exclusive(run.folder):
        try:
            return measure(run, weights)
        finally:
            if [path.name for path in run.folder.iterdir()] == [_LOCK]:
                shutil.rmtree(run.folder)


def _measure(run: FinetuningRun, spec: ModelSpec, cache_dir: Path) -> Metrics:
    run.report(f"Measuring the model {spec.name} training on held-out text.")
    model = load(
        spec,
        cache_dir=cache_dir,
        dtype="float32",
        num_slots=EVALUATION_SLOTS,
        kernel_dir=run.settings.kernel_dir,
        report=run.report,
    )
    max_tokens = run.config.data.max_tokens
    return evaluate(
        model,
        run.data.validation,
        (example.text for example in run.data.train),
        run.config.evaluation,
        encode=run.base.encoder(max_tokens).encode_parts,
        max_tokens=max_tokens,
        seed=run.config.seed,
        num_slots=EVALUATION_SLOTS,
    )


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


def _write_history(path: Path, history: TrainingHistory) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(asdict(history)), encoding="utf-8")
    part.rename(path)


def _read_history(path: Path) -> TrainingHistory:
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    for side in ("training", "validation"):
        document[side] = tuple((int(step), float(loss)) for step, loss in document[side])
    return TrainingHistory(**document)


def _silence_libraries() -> None:
    """Hide the libraries' progress bars and their warnings for developers."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    disable_progress_bar()
    disable_progress_bars()
    for name in ("transformers", "datasets", "accelerate", "peft"):
        logging.getLogger(name).setLevel(logging.ERROR)
