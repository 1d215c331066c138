"""One fine-tuning from end to end: prepare → train → save → evaluate → report → into place.

What is done is kept in the state folder, so that the same command goes on after an interruption.
"""

from __future__ import annotations

import json
import logging
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from datasets import disable_progress_bars
from transformers.utils.logging import disable_progress_bar

from textmill.core.catalog.models_file import ModelSpec, load_catalog
from textmill.core.file_lock import file_lock
from textmill.core.settings import Settings
from textmill.engine.models.loading import load
from textmill.finetune.base_model import BaseModel, find_base
from textmill.finetune.config import FinetuneConfig
from textmill.finetune.errors import ConfigError, TrainingError
from textmill.finetune.evaluation import Metrics, evaluate
from textmill.finetune.export import (
    FINETUNE_FILE,
    check_output,
    hardware_words,
    move_into_place,
    save_weights,
    write_report,
)
from textmill.finetune.preparation import Prepared, prepare_data
from textmill.finetune.training import TrainingHistory, make_trainer, train

EVALUATION_SLOTS = 16
_WEIGHTS, _CHECKPOINTS, _HISTORY = "weights", "checkpoints", "history.json"
_MEASURED = "measured"
_LOCK = "lock"
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class FinetuningRun:
    """What one fine-tuning works with.

    Attributes:
        folder: in the state folder, of this fingerprint alone.
    """

    config: FinetuneConfig
    settings: Settings
    base: BaseModel
    data: Prepared
    folder: Path
    say: Say

    @property
    def output(self) -> Path:
        """The folder that is left in the end."""
        return Path(self.config.output or f"models/{self.config.name}").expanduser().absolute()


def open_run(config: FinetuneConfig, settings: Settings, say: Say) -> FinetuningRun:
    """Find the base and read the data.

    Raises:
        FinetuneError: one of them cannot be used.
    """
    _quiet()
    with PartialState().main_process_first():  # it converts, the others find it converted
        base = find_base(config, load_catalog(settings), settings.home / "models", say)
    say("Reading the data.")
    data = prepare_data(config, base)
    folder = settings.home / "finetune" / f"{config.name}-{data.fingerprint}"
    return FinetuningRun(config, settings, base, data, folder, say)


def execute(run: FinetuningRun) -> Path | None:
    """Train what is not trained yet, measure, and leave the output.

    Returns:
        The folder; ``None`` in processes that only help the first one to train.

    Raises:
        FinetuneError: the output is there already, another process is at work on the same, or
            training or evaluation failed.
    """
    check_output(run.output)
    with _sole_worker(run.folder):
        check_output(run.output)  # another may just have finished
        return _execute(run)


def _execute(run: FinetuningRun) -> Path | None:
    history = _trained(run)
    if not PartialState().is_main_process:
        return None
    metrics = measure(run, run.folder / _WEIGHTS)
    write_report(
        run.folder / _WEIGHTS,
        run.config,
        run.base,
        run.data,
        history,
        metrics,
        hardware_words(history.device),
    )
    move_into_place(run.folder / _WEIGHTS, run.output)
    (run.folder / _HISTORY).unlink()  # first: it says that there are weights
    shutil.rmtree(run.folder)
    return run.output


@contextmanager
def _sole_worker(folder: Path) -> Iterator[None]:
    """Hold a folder; the kernel lets go when the process dies. Helpers of one training share it."""
    if not PartialState().is_main_process:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(file_lock(folder / _LOCK, is_blocking=False))
        except BlockingIOError:
            raise TrainingError(
                "Another process runs this very fine-tuning; wait for it, or give this one another"
                " --name."
            ) from None
        yield


def measure(run: FinetuningRun, weights: Path) -> dict[str, Metrics]:
    """The base and the tuned model on the same held-out examples, by the product's own engine.

    Args:
        run: what is worked with.
        weights: an adapter's folder, or one of all weights.

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
    # Merged weights, which nobody needs afterwards; not in /tmp, which may be memory.
    cache = run.folder / _MEASURED
    shutil.rmtree(cache, ignore_errors=True)  # of a process that was killed
    try:
        return {spec.name: _measure(run, spec, cache) for spec in (base, tuned)}
    finally:
        shutil.rmtree(cache, ignore_errors=True)


def measure_again(run: FinetuningRun, weights: Path) -> dict[str, Metrics]:
    """What :func:`measure` gives, for a folder that is finished; nothing is left behind.

    Raises:
        FinetuneError: a model cannot be measured, or another process is at work on the same.
    """
    with _sole_worker(run.folder):
        try:
            return measure(run, weights)
        finally:
            if [path.name for path in run.folder.iterdir()] == [_LOCK]:
                shutil.rmtree(run.folder)


def _measure(run: FinetuningRun, spec: ModelSpec, cache_dir: Path) -> Metrics:
    run.say(f"Measuring the model {spec.name} training on held-out text.")
    model = load(
        spec,
        cache_dir=cache_dir,
        dtype="float32",
        num_slots=EVALUATION_SLOTS,
        kernel_dir=run.settings.kernel_dir,
        report=run.say,
    )
    return evaluate(
        model,
        run.data.validation,
        (example.text for example in run.data.train),
        run.config.evaluation,
        encode=run.base.encoder(run.config.data.max_tokens).parts,
        max_tokens=run.config.data.max_tokens,
        seed=run.config.seed,
        num_slots=EVALUATION_SLOTS,
    )


def _trained(run: FinetuningRun) -> TrainingHistory:
    """The history of a training, which is run unless an earlier process finished it."""
    kept = run.folder / _HISTORY
    if kept.is_file() and any((run.folder / _WEIGHTS).glob("*.safetensors")):
        run.say("The training is done already; going on with what comes after it.")
        return _read_history(kept)
    checkpoints = run.folder / _CHECKPOINTS
    if checkpoints.is_dir():
        run.say("Going on where an earlier training with the same options and data was.")
    tokenizer = run.base.tokenizer()
    trainer = make_trainer(
        run.config,
        run.base.trainable(run.config),
        tokenizer,
        run.data.train_texts,
        run.data.validation_texts[: run.config.training.checkpoint_examples],
        checkpoints,
    )
    history = train(run.config, trainer, checkpoints)
    if PartialState().is_main_process:
        model = trainer.accelerator.unwrap_model(trainer.model)
        save_weights(model, tokenizer, run.folder / _WEIGHTS)
        part = kept.with_suffix(".part")
        part.write_text(json.dumps(asdict(history)), encoding="utf-8")
        part.rename(kept)
    PartialState().wait_for_everyone()
    return history


def _read_history(path: Path) -> TrainingHistory:
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    for side in ("training", "validation"):
        document[side] = tuple((int(step), float(loss)) for step, loss in document[side])
    return TrainingHistory(**document)


def read_figures(folder: Path) -> Mapping[str, Any]:
    """What a finished folder says of itself.

    Raises:
        ConfigError: it is no folder that a fine-tuning left.
    """
    try:
        document = json.loads((folder / FINETUNE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder} is no folder that `textmill finetune` left.") from error
    if not isinstance(document, dict) or "metrics" not in document:
        raise ConfigError(f"{folder / FINETUNE_FILE} holds no figures.")
    return document


def _quiet() -> None:
    """Keep the libraries' bars and their advice to programmers out of a user's sight."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    disable_progress_bar()
    disable_progress_bars()
    for name in ("transformers", "datasets", "accelerate", "peft"):
        logging.getLogger(name).setLevel(logging.ERROR)
